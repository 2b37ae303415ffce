"""tools/reproduce.py: the whole path at toy size, what it skips and runs when it is started again, and its old form."""

import json
import os
import re
import signal
import statistics
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from eval.loaders import STOP_SIGNALS
from tests.conftest import ROOT
from tests.eval.test_tables import write as write_metrics
from tests.support.tiny_set import make_tiny_set
from tests.support.train_runs import wait_for
from tools import reproduce
from utils.cli import run_main
from utils.datasets import DATASETS

TOY = (
    "--v_backbone vit_shapes_patch8 --l_backbone transformer_shapes --no_pretrained --adamW "
    "--num_steps 2 --batch_size 2 --num_workers 0"
)
# Stands for the interpreter: notes what it is to run, and leaves the files by which the script knows that it ran.
STAND_IN = """#!{python} -IS
import hashlib, json, os, pathlib, sys
sys.argv = sys.argv[1:]
flags = dict(zip(sys.argv, sys.argv[1:]))
name = next(pathlib.Path(word).name for word in sys.argv if word.endswith(".py"))
with open("{log}", "a") as log:
    print(name, *sys.argv, file=log)
if name == os.environ.get("FAIL"):
    sys.exit(int(os.environ["CODE"]))
if name == "build_vocab.py":
    (pathlib.Path(flags["--root"]) / "data/vocabulary_Gref.txt").touch()
if name == "build_batches.py":
    family = "referit" if flags["-d"] == "referit" else "mscoco"
    folder = pathlib.Path(flags["--root"], "data", family, flags["-d"] + "_480x640_batch")
    folder.mkdir(parents=True, exist_ok=True)
    meta = folder / "meta.json"
    splits = json.loads(meta.read_text())["splits"] if meta.exists() else {{}}
    meta.write_text(json.dumps({{"splits": {{**splits, flags["-t"]: {{"complete": True}}}}}}))
if name == "evaluate.py":
    folder = pathlib.Path(flags["--output_dir"])
    folder.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256(pathlib.Path(flags["--checkpoint"]).read_bytes()).hexdigest()
    record = {{"checkpoint": {{"sha256": digest}}, "command": " ".join(sys.argv)}}
    (folder / "metrics.json").write_text(json.dumps(record))
if name == "train_restr.py":
    folder = pathlib.Path(flags["--weights_dir"], flags["--exp_name"])
    folder.mkdir(parents=True, exist_ok=True)
    [(folder / file).write_bytes(b"weights") for file in ("best.pth", "last.pth", "Gref_9.pth")]
"""


@pytest.fixture(autouse=True)
def handlers():
    """What the test process does at a signal stays as it is."""
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def started(tmp_path, monkeypatch):
    """Run the script with a stand-in for the interpreter; returns what it started, one line a program."""
    log, python = tmp_path / "log", tmp_path / "python"
    python.write_text(STAND_IN.format(python=sys.executable, log=log))
    python.chmod(0o755)
    (tmp_path / "data").mkdir()
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setattr(reproduce, "row_of_models", lambda plan: "the row")

    def run(dataset, code=0, fail=None, **settings) -> list[str]:
        log.write_text("")
        monkeypatch.setenv("FAIL", str(fail))
        monkeypatch.setenv("CODE", str(code))
        settings = {"root": tmp_path, "img_size": "480,640", **settings}
        seeds = [str(seed) for seed in settings.pop("seeds", [])]
        flags = [f"--{name}={value}" for name, value in settings.items()] + ["--seeds", *seeds] * bool(seeds)
        monkeypatch.setattr(sys, "argv", ["reproduce.py", dataset, *flags])
        with pytest.raises(SystemExit) as left:
            run_main(reproduce.main)
        assert left.value.code == code
        return log.read_text().splitlines()

    return run


def names(lines: list[str]) -> list[str]:
    """Programs, with the split that they are for."""
    return [" ".join([line.split()[0], *re.findall(r"(?:-t|--set) (\S+)", line)]) for line in lines]


@pytest.mark.slow
def test_from_annotations_to_tables(tmp_path):
    root = make_tiny_set(tmp_path, images=2, refs=1)
    (root / "data/vocabulary_Gref.txt").unlink()
    command = [sys.executable, ROOT / "tools/reproduce.py", "Gref", "--seeds", "1", "5", "--root", root]
    command += ["--img_size=64", f"--train_flags={TOY}", "--eval_flags=--num_workers 0", "--ignore_check"]
    done = subprocess.run(command, capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stdout + done.stderr
    files = [root / f"weights/restr_Gref_seed{seed}/eval_Gref_val_best/metrics.json" for seed in (1, 5)]
    scores = [json.loads(file.read_text())["oIoU"] for file in files]
    shown = f"{statistics.mean(scores):.2f} ± {statistics.stdev(scores):.2f}"
    assert f"| restr\\_Gref, seeds 1 5 | 2 | {shown}† |" in re.sub(r"(\| +)+", "| ", done.stdout)
    row = done.stdout.splitlines()[-1]
    assert re.fullmatch(
        rf"\| RefCOCOg \(google\) \| val {shown}† \| 1 5 \| [^|]+ \| [\de.-]+ \| [^|]+ \| [\d-]{{10}} \|", row
    ), row


def test_every_split_of_every_data_set(started, tmp_path):
    for dataset, splits in {"unc+": "val testA testB", "Gref_umd": "val test", "referit": "test"}.items():
        lines = started({"Gref_umd": "refcocog_umd"}.get(dataset, dataset), exp_name=dataset)
        train = next(line for line in lines if line.startswith("train_restr"))
        split = "trainval" if dataset == "referit" else "train"
        assert f"--set {split} --valset {splits.split()[0]} --input_size 480,640" in train
        assert train.endswith(f"--exp_name {dataset} --resume --adamW")
        assert [n.split()[1] for n in names(lines) if n.startswith("evaluate")] == splits.split()
        assert [n.split()[1] for n in names(lines) if n.startswith("build_batches")] == [split, *splits.split()]
        assert {split, *splits.split()} == set(DATASETS[dataset].splits)
        assert all(f"--checkpoint {tmp_path}/weights/{dataset}/" in n for n in lines if n.startswith("evaluate"))
        assert any("last.pth" in line for line in lines) == (dataset == "referit")  # best.pth was chosen on test
        assert names(lines)[-1] == "tables.py"


def test_what_is_finished_is_skipped(started, tmp_path):
    whole = ["build_vocab.py", "check_data.py", "build_batches.py train", "build_batches.py val"]
    whole += ["train_restr.py train", "evaluate.py val", "tables.py"]
    assert names(started("Gref", code=1, fail="check_data.py")) == whole[:2]
    assert names(started("Gref", code=75, fail="train_restr.py")) == whole[1:5]  # stopped by a signal
    assert names(started("Gref")) == whole[4:]
    assert names(started("Gref")) == [whole[4], whole[6]]  # a finished training compares its flags, and ends
    assert names(started("Gref", code=2, train_flags="--lr 1", fail="train_restr.py")) == whole[4:5]
    (tmp_path / "weights/restr_Gref/last.pth").rename(tmp_path / "last.pth")
    assert names(started("Gref")) == ["tables.py"]  # nothing to compare with
    (tmp_path / "last.pth").rename(tmp_path / "weights/restr_Gref/last.pth")
    (tmp_path / "weights/restr_Gref/eval_Gref_val_best/metrics.json").unlink()
    (tmp_path / "weights/restr_Gref/eval_Gref_val_best").rmdir()
    assert names(started("Gref")) == whole[4:]
    (tmp_path / "weights/restr_Gref/best.pth").write_bytes(b"another training's")
    assert names(started("Gref")) == whole[4:]
    (tmp_path / "data/mscoco/Gref_480x640_batch/meta.json").write_text('{"splits": {"train": {"complete": false}}}')
    assert names(started("Gref")) == [*whole[1:5], "tables.py"]


def test_each_seed_has_a_run(started, tmp_path):
    (tmp_path / "data/vocabulary_Gref.txt").touch()
    lines = started("Gref_umd", seeds=[3, 1], exp_name="a", train_flags="--lr 1")
    each = ["train_restr.py train", "evaluate.py val", "evaluate.py test"]
    assert names(lines)[4:] == [*each, *each, "tables.py"]  # after the check and three splits
    assert [line.split("--exp_name ")[1] for line in lines if line.startswith("train_restr.py")] == [
        "a_seed3 --resume --lr 1 --seed 3",
        "a_seed1 --resume --lr 1 --seed 1",
    ]
    evaluated = [re.search(r"weights/(\S+)/best.pth", line)[1] for line in lines if line.startswith("evaluate.py")]
    assert evaluated == ["a_seed3", "a_seed3", "a_seed1", "a_seed1"]
    assert lines[-1].endswith(f"{tmp_path}/weights/a_seed3 {tmp_path}/weights/a_seed1 --over_seeds")
    again = started("Gref_umd", seeds=[3, 1, 2], exp_name="a", train_flags="--lr 1")
    assert names(again) == [each[0], each[0], *each, "tables.py"]


def test_other_flags_of_evaluation_are_noticed(started):
    started("Gref", eval_flags="--amp --num_workers 2")
    assert names(started("Gref", eval_flags="--num_workers=0 --batch-size 3 --amp"))[-1] == "tables.py"
    assert started("Gref", code=2) == []
    assert started("Gref", code=2, eval_flags="--amp --eval_pad black") == []


@pytest.mark.parametrize("text", ["[1]", '{"command": 3}', '{"command": "a \\""}'])
def test_damaged_metrics_are_one_line(started, tmp_path, capsys, text):
    started("Gref")
    (tmp_path / "weights/restr_Gref/eval_Gref_val_best/metrics.json").write_text(text)
    capsys.readouterr()
    assert started("Gref", code=2) == []
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    "settings",
    [
        {"dataset": "coco"},
        {"exp_name": "../q"},
        {"num_gpus": "abc"},
        {"seeds": [1, 1]},
        {"seeds": [1], "train_flags": "--seed=4"},
        {"train_flags": "--lr '1"},
    ],
    ids=str,
)
def test_settings_that_cannot_be(started, settings, capsys):
    assert started(settings.pop("dataset", "Gref"), code=2, **settings) == []
    assert capsys.readouterr().err.count("\n") == 1


def test_settings_reach_the_programs(started):
    lines = started(
        "Gref",
        num_gpus="8",
        train_flags="--adamW --amp",
        eval_flags="--amp",
        build_flags="--workers 3",
        glove="glove 6B.txt",
        checkpoint="Gref_9.pth",
    )
    by_name = {line.split()[0]: line for line in lines}
    assert "-m torch.distributed.run --standalone --nproc_per_node 8 " in by_name["train_restr.py"]
    assert by_name["train_restr.py"].endswith("--resume --adamW --amp")
    assert "--nproc_per_node 8 " in by_name["evaluate.py"] and by_name["evaluate.py"].endswith("--amp")
    assert "/Gref_9.pth --output_dir" in by_name["evaluate.py"] and "eval_Gref_val_Gref_9" in by_name["evaluate.py"]
    assert "torch" not in by_name["build_batches.py"] and by_name["build_batches.py"].endswith("--workers 3")
    assert by_name["build_vocab.py"].endswith("--glove glove 6B.txt")


def test_the_command_of_version_1(tmp_path):
    """Its settings, environment variables, become flags; one that is empty counts as not given."""
    python = tmp_path / "python"
    python.write_text("#!/usr/bin/env bash\nprintf '%s\\n' \"$@\"\nexit 75\n")
    python.chmod(0o755)
    old = {"ROOT": "a b", "WEIGHTS": "w", "EXP_NAME": "e", "IMG_SIZE": "480,640", "NUM_GPUS": "8", "GLOVE": "g.txt"}
    old |= {"BUILD_FLAGS": "--workers 3", "TRAIN_FLAGS": "--adamW --amp", "EVAL_FLAGS": "--amp", "CHECKPOINT": "x.pth"}
    for given, flags in (
        (
            old | {"IGNORE_CHECK": "1"},
            [f"--{name.lower()}={value}" for name, value in old.items()] + ["--ignore_check"],
        ),
        ({"TRAIN_FLAGS": "", "IGNORE_CHECK": "0"}, []),
    ):
        clean = {name: value for name, value in os.environ.items() if name not in {*old, "IGNORE_CHECK"}}
        environment = {**clean, "PYTHON": str(python), **given}
        command = ["bash", ROOT / "tools/reproduce.sh", "unc"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd="/")
        assert (done.returncode, done.stderr) == (75, "")
        assert done.stdout.splitlines() == [str(ROOT / "tools/reproduce.py"), "unc", *flags]


CHILD = """
import pathlib, signal, sys, time
caught = []
signal.signal(int(sys.argv[1]), lambda number, frame: caught.append(number))
pathlib.Path(sys.argv[2]).write_text("ready")
while not caught:
    time.sleep(0.01)
time.sleep(0.3)
pathlib.Path(sys.argv[2]).write_text(f"{len(caught)} caught")
sys.exit(int(sys.argv[3]))
"""


@pytest.mark.parametrize(
    ("number", "code", "left"),
    [(signal.SIGINT, 75, 75), (signal.SIGTERM, 1, 75), (signal.SIGUSR1, 0, 75), (signal.SIGHUP, 2, 2)],
)
def test_a_signal_reaches_the_program_that_runs(tmp_path, number, code, left):
    """Once; then nothing else starts. 1 is what torchrun makes of 75, and 2 an error, such as a full disk."""
    file, commands = tmp_path / "file", reproduce.Commands()

    def send():
        wait_for(file.exists)
        os.kill(os.getpid(), number)

    sender = threading.Thread(target=send)
    sender.start()
    with pytest.raises(SystemExit) as stopped:
        commands.run("-c", CHILD, int(number), file, code)
    sender.join()
    assert stopped.value.code == left and file.read_text() == "1 caught"
    with pytest.raises(SystemExit) as stopped:
        commands.run("-c", f"open({str(tmp_path / 'other')!r}, 'w')")
    assert stopped.value.code == 75 and not (tmp_path / "other").exists()


def test_a_killed_program_ends_it(tmp_path):
    with pytest.raises(SystemExit) as left:
        reproduce.Commands().run("-c", "import os; os.kill(os.getpid(), 9)")
    assert left.value.code == 137


def test_the_row_of_models(tmp_path):
    """The starts that trained count; a later one that found the run finished does not."""
    runs = {}
    for seed, oiou in {1: 60.0, 2: 61.0, 7: 65.0}.items():
        run = runs[seed] = write_metrics(
            tmp_path, f"a_seed{seed}", "unc", "val", oiou, folder="eval_unc_val_best"
        ).parents[1]
        write_metrics(tmp_path, f"a_seed{seed}", "unc", "testA", 50.0, folder="eval_unc_testA_best")
        flags = {"seed": seed, "num_steps": 9, "lr": 1}
        first = {"step": 0, "flags": flags, "processes": 8, "device": "H100", "code": 40 * "a" + "-dirty"}
        idle = first | {"step": 9, "processes": 1, "device": "cpu", "code": 40 * "c"}
        (run / "config.json").write_text(json.dumps(idle | {"earlier": [first, first | {"step": 4}]}))
        for start, seconds in ((1_000_000, 1800 * seed), (2_000_000, 1800)):
            events = run / f"events.out.tfevents.{start}.host.1.0"
            events.touch()
            os.utime(events, (start + seconds, start + seconds))
    plan = reproduce.Plan("unc", Path(), "train", ("val", "testA"), "best.pth", runs)
    assert reproduce.row_of_models(plan) == (
        "| RefCOCO | val 62.00 ± 2.65, testA 50.00 ± 0.00 | 1 2 7 | 8 x H100 | 2.2 | "
        "aaaaaaaaaaaa-dirty, bbbbbbbbbbbb | 2024-05-01 |"
    )
    (runs[2] / "config.json").unlink()
    assert reproduce.row_of_models(plan).startswith("no row: ")
