"""tools/reproduce.sh: the whole path at toy size, and what it skips and runs when it is started again."""

import os
import re
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.support.tiny_set import make_tiny_set
from utils.datasets import DATASETS

SCRIPT = ROOT / "tools/reproduce.sh"
TOY = (
    "--v_backbone vit_shapes_patch8 --l_backbone transformer_shapes --no_pretrained --adamW "
    "--num_steps 2 --batch_size 2 --num_workers 0"
)
# Stands for the interpreter: notes what it is to run, and leaves the files by which the script knows that it ran.
STAND_IN = """#!{python} -IS
import hashlib, json, os, pathlib, sys
sys.argv = sys.argv[1:]
if sys.argv[0] == "-":
    exec(sys.stdin.read())
    sys.exit()
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


def reproduce(*arguments, code=0, **settings) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHON": sys.executable, **settings}
    done = subprocess.run(["bash", SCRIPT, *arguments], env=environment, capture_output=True, text=True, cwd="/")
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def started(tmp_path):
    """Run the script with a stand-in for the interpreter; returns what it started, one line a program."""
    log, python = tmp_path / "log", tmp_path / "python"
    python.write_text(STAND_IN.format(python=sys.executable, log=log))
    python.chmod(0o755)
    (tmp_path / "data").mkdir()

    def run(dataset, code=0, **settings) -> list[str]:
        log.write_text("")
        settings = {"ROOT": str(tmp_path), "PYTHON": str(python), "IMG_SIZE": "480,640", **settings}
        reproduce(dataset, code=code, **settings)
        return log.read_text().splitlines()

    return run


def names(lines: list[str]) -> list[str]:
    """Programs, with the split that they are for."""
    return [" ".join([line.split()[0], *re.findall(r"(?:-t|--set) (\S+)", line)]) for line in lines]


def test_from_annotations_to_tables(tmp_path):
    root = make_tiny_set(tmp_path, images=2, refs=1)
    (root / "data/vocabulary_Gref.txt").unlink()
    settings = {"ROOT": str(root), "IMG_SIZE": "64", "TRAIN_FLAGS": TOY, "EVAL_FLAGS": "--num_workers 0"}
    said = reproduce("Gref", IGNORE_CHECK="1", **settings)
    assert (root / "weights/restr_Gref/eval_Gref_val_best/metrics.json").is_file()
    assert re.search(r"^\| restr\\_Gref \| 2 \| [\d.† |]+$", said, re.MULTILINE)


def test_every_split_of_every_data_set(started, tmp_path):
    for dataset, splits in {"unc+": "val testA testB", "Gref_umd": "val test", "referit": "test"}.items():
        lines = started({"Gref_umd": "refcocog_umd"}.get(dataset, dataset), EXP_NAME=dataset)
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
    assert names(started("Gref", code=1, FAIL="check_data.py", CODE="1")) == whole[:2]
    assert names(started("Gref", code=75, FAIL="train_restr.py", CODE="75")) == whole[1:5]  # stopped by a signal
    assert names(started("Gref")) == whole[4:]
    assert names(started("Gref")) == [whole[4], whole[6]]  # a finished training compares its flags, and ends
    assert names(started("Gref", code=2, TRAIN_FLAGS="--lr 1", FAIL="train_restr.py", CODE="2")) == whole[4:5]
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


def test_other_flags_of_evaluation_are_noticed(started):
    started("Gref", EVAL_FLAGS="--amp --num_workers 2")
    assert names(started("Gref", EVAL_FLAGS="--num_workers=0 --batch-size 3 --amp"))[-1] == "tables.py"
    assert started("Gref", code=2) == []
    assert started("Gref", code=2, EVAL_FLAGS="--amp --eval_pad black") == []


@pytest.mark.parametrize("settings", [{"EXP_NAME": "../q"}, {"NUM_GPUS": "abc"}])
def test_settings_that_cannot_be(started, settings):
    assert started("Gref", code=2, **settings) == []


def test_settings_reach_the_programs(started):
    lines = started(
        "Gref",
        NUM_GPUS="8",
        TRAIN_FLAGS="--adamW --amp",
        EVAL_FLAGS="--amp",
        BUILD_FLAGS="--workers 3",
        GLOVE="glove 6B.txt",
        CHECKPOINT="Gref_9.pth",
    )
    by_name = {line.split()[0]: line for line in lines}
    assert "-m torch.distributed.run --standalone --nproc_per_node 8 " in by_name["train_restr.py"]
    assert by_name["train_restr.py"].endswith("--resume --adamW --amp")
    assert "--nproc_per_node 8 " in by_name["evaluate.py"] and by_name["evaluate.py"].endswith("--amp")
    assert "/Gref_9.pth --output_dir" in by_name["evaluate.py"] and "eval_Gref_val_Gref_9" in by_name["evaluate.py"]
    assert "torch" not in by_name["build_batches.py"] and by_name["build_batches.py"].endswith("--workers 3")
    assert by_name["build_vocab.py"].endswith("--glove glove 6B.txt")


def test_usage():
    assert reproduce("--help").startswith("usage: tools/reproduce.sh DATASET")
    for arguments in ([], ["coco"], ["unc", "Gref"]):
        assert "usage: tools/reproduce.sh DATASET" in reproduce(*arguments, code=2)
