"""train_restr.py as users run it, at toy size."""

import json
import os
import re
import shlex
import shutil
import signal
from pathlib import Path

import pytest

from models import load_restr
from tests.conftest import ROOT
from tests.support import forked
from tests.support.forked import filled
from tests.support.train_runs import (
    FLAGS,
    equal,
    errors,
    interrupted,
    outcome,
    records,
    refused,
    start,
    state,
    train,
    wait_for,
)  # fmt: skip


@pytest.fixture(scope="module")
def whole(batches, tmp_path_factory):
    """An undisturbed run."""
    folder = tmp_path_factory.mktemp("runs") / "whole run"
    assert train(batches, folder)[0] == 0
    return folder


def test_what_a_run_leaves_behind(whole, batches):
    names = {path.name for path in whole.iterdir()}
    assert {"last.pth", "best.pth", "Gref_4.pth", "Gref_8.pth", "Gref_12.pth", "log.jsonl"} <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    log = records(whole)
    assert [line["step"] for line in log if line["kind"] == "train"] == [1, 2, 4, 6, 8, 10, 12]
    scores = {line["step"]: line["oIoU"] for line in log if line["kind"] == "val"}
    assert list(scores) == [4, 8, 12]
    values = state(whole, "Gref_12.pth")
    assert (values["step"], values["metrics"]["oIoU"], values["data"]["dataset"]) == (12, scores[12], "Gref")
    assert values["vocabulary"] == (batches / "vocabulary.txt").read_text().split()
    assert state(whole, "best.pth")["metrics"]["oIoU"] == max(scores.values())
    assert load_restr(whole / "best.pth").image_size == (48, 48)


def test_what_a_run_says(whole, batches):
    said, log = Path(f"{whole}.out").read_text(), Path(f"{whole}.err").read_text()
    facts = (
        f"{whole}, from the start",
        f"{batches}: train 20 expressions, val 20, 48 x 48 pixels",
        "Gref_emb.npy is not",
    )
    assert [fact for fact in facts if fact not in said] == [] and "\ndevice    cpu\n" in said
    scores = {line["step"]: line for line in records(whole) if line["kind"] == "val"}
    for step, score in scores.items():
        best = max(score["oIoU"] for before, score in scores.items() if before <= step)
        assert f" step {step} val oIoU {score['oIoU']:.1f} (best {best:.1f}) mIoU {score['mIoU']:.1f}\n" in log
    time, number = r"\d\d:\d\d:\d\d", r"[\d.e+-]+"
    line = rf"{time} step 12/12 loss {number} lr {number} {number} samples/s in 0:\d\d:\d\d"
    assert log.index(" step 12/12 ") < log.index(" step 12 val ")  # a step before its validation
    assert re.findall(line, log) and not re.search(r"\r|\n\n", log)
    assert log.count(" step 1/12 ") == 1 and log.count("/12 ") < 12  # on a terminal each step is shown


def test_the_command_at_the_end_evaluates_the_best_checkpoint(whole):
    _, script, *words = shlex.split(Path(f"{whole}.out").read_text().splitlines()[-1])
    assert (Path.cwd() / script).resolve() == ROOT / "eval/evaluate.py"
    process = forked.start(forked.script, "eval.evaluate", words, output=whole.parent / "evaluation")
    process.join(120)
    best = state(whole, "best.pth")
    metrics = json.loads((whole / f"eval_Gref_val_{best['step']}" / "metrics.json").read_text())
    assert metrics["oIoU"] == pytest.approx(best["metrics"]["oIoU"])


def test_each_start_is_recorded(batches, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = tmp_path / "run"
    assert interrupted(batches, folder, signal.SIGTERM, "--lr", "0.002") == 75
    assert train(batches, folder, "--lr", "0.002", "--resume", "--keep", "1")[0] == 0
    config = json.loads((folder / "config.json").read_text())
    (first,) = config.pop("earlier")
    assert config.keys() == first.keys() >= {"host", "code", "device", "libraries", "date", "python"}
    assert (first["step"], first["flags"]["keep"], config["flags"]["keep"]) == (0, None, 1) and config["step"] > 0
    assert config["flags"]["lr"] == 0.002 and config["flags"]["data_dir"] == str(batches)
    assert shlex.split(config["command"])[1:3] == ["--data_dir", str(batches)]
    assert config["parameters"] == sum(weight.numel() for weight in load_restr(folder / "best.pth").parameters())
    board = EventAccumulator(str(folder)).Reload()
    texts = [event.tensor_proto.string_val[0].decode() for event in board.Tensors("config/text_summary")]
    assert [json.loads(text.strip("`\n")) for text in texts] == [first, config]


def test_the_loss_falls(batches, tmp_path):
    assert train(batches, tmp_path / "run", "--num_steps", "40", "--save_every", "40", "--alpha_loc", "1")[0] == 0
    losses = [line["loss"] for line in records(tmp_path / "run") if line["kind"] == "train"]
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])


def test_a_seed_gives_the_same_bits_with_any_number_of_loaders(whole, batches, tmp_path):
    assert train(batches, tmp_path / "run", "--num_workers", "2", "--deterministic")[0] == 0
    assert equal(outcome(tmp_path / "run"), outcome(whole))
    assert train(batches, tmp_path / "other", "--seed", "2")[0] == 0
    assert not equal(outcome(tmp_path / "other"), outcome(whole))


def test_a_second_interrupt_leaves_at_once(batches, tmp_path):
    process = start(batches, tmp_path / "run", "--num_steps", "2000")
    wait_for((tmp_path / "run" / "log.jsonl").exists)
    for _ in range(2):
        os.kill(process.pid, signal.SIGINT)
    process.join(60)
    assert process.exitcode in (75, 130)  # 75: both came before it looked


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP])
def test_a_signal_saves_and_the_resumed_run_ends_the_same(whole, batches, tmp_path, number):
    folder = tmp_path / "run"
    assert interrupted(batches, folder, number) == 75
    assert "continue with --resume" in errors(folder) and not (folder / ".lock").exists()
    assert state(folder)["step"] < 12
    assert train(batches, folder, "--resume") == (0, "")
    assert equal(outcome(folder), outcome(whole))


def test_resume_of_a_finished_or_an_absent_run(whole, batches, tmp_path):
    before = outcome(whole)
    for folder in (whole, tmp_path / "new"):
        assert train(batches, folder, "--resume")[0] == 0
        assert equal(outcome(folder), before)


def test_a_damaged_state_falls_back_to_the_one_before(whole, batches, tmp_path):
    folder = tmp_path / "run"
    assert train(batches, folder)[0] == 0
    damaged = bytearray((folder / "last.pth").read_bytes())
    middle = len(damaged) // 2
    damaged[middle : middle + 64] = bytes(64)
    (folder / "last.pth").write_bytes(damaged)
    code, message = train(batches, folder, "--resume")
    assert code == 0
    assert f"falling back to {folder / 'last.prev.pth'}" in message
    assert equal(outcome(folder), outcome(whole))
    for name in ("last.pth", "last.prev.pth"):
        (folder / name).write_bytes(b"nothing")
    assert "last.pth" in refused(batches, folder, "--resume")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--set nothing", "nothing"),
        ("--valset testA", "testA"),
        ("--input_size 64,64", "was built at 48,48; leave it out"),
        ("--input_size 50,50", "48,48"),
        ("--batch_size 5 --accum 2", "--accum"),
        ("--v_backbone resnet50", "resnet50"),
        ("--v_weights nowhere.pth", "--v_weights"),
        ("--num_steps 0", "--num_steps"),
        ("--device cuda:77", "--device"),
        ("--device meta", "--device"),
        ("--lr 0", "--lr"),
        ("--alpha_loc nan", "--alpha_loc"),
        ("--keep -1", "--keep"),
        ("--no_pretrained --v_weights a.pth", "contradict"),
        ("--nonsense", "--nonsense"),
    ],
)
def test_what_cannot_be_is_one_line_and_leaves_nothing(batches, tmp_path, flags, words):
    base = [flag for flag in FLAGS if "--v_weights" not in flags or flag != "--no_pretrained"]
    assert words in refused(batches, tmp_path / "run", *flags.split(), "--random_embeddings", base=base)
    assert not list(tmp_path.rglob("*.pth"))


def test_a_run_is_not_overwritten(whole, batches, tmp_path):
    before, change = outcome(whole), ("--resume", "--lr", "1e-2")
    message = refused(batches, whole)
    assert "--resume" in message and "--exp_name" in message
    assert "--lr" in refused(batches, whole, *change)
    assert equal(outcome(whole), before)
    assert train(batches, whole, *change, "--allow_changes") == (0, "from here on with --lr 0.01, not 0.001")
    assert equal(outcome(whole), before)
    folder = tmp_path / "busy"
    process = start(batches, folder, "--num_steps", "2000", "--save_every", "2000")
    wait_for((folder / "log.jsonl").exists)
    message = refused(batches, folder, "--resume")
    process.kill()
    process.join()
    assert "another run" in message


def test_the_newest_numbered_checkpoints_stay(batches, tmp_path):
    """Three, unless --keep says how many; a run of another --keep that goes on without the flag loses none."""
    more = ("--save_every", "2", "--resume", "--allow_changes")
    for run, steps, flags, kept in (
        ("few", 12, (), [8, 10, 12]),
        ("many", 10, ("--keep", "0"), [2, 4, 6, 8, 10]),
        ("many", 14, (), [2, 4, 10, 12, 14]),
        ("many", 18, (), [2, 4, 14, 16, 18]),
        ("many", 20, ("--keep", "1"), [20]),
    ):
        assert train(batches, tmp_path / run, "--num_steps", str(steps), *more, *flags)[0] == 0
        assert {path.name for path in (tmp_path / run).glob("Gref_*.pth")} == {f"Gref_{step}.pth" for step in kept}
        assert {"best.pth", "last.pth"} <= {path.name for path in (tmp_path / run).iterdir()}
        best = state(tmp_path / run, "best.pth")
        own = tmp_path / run / f"Gref_{best['step']}.pth"
        assert not own.exists() or own.samefile(tmp_path / run / "best.pth")


def test_a_full_disk_is_one_line_and_leaves_the_last_good_state(batches, tmp_path):
    folder, long = tmp_path / "run", ("--num_steps", "2000")
    interrupted(batches, folder, signal.SIGTERM, *long, after="Gref_4.pth")
    good = state(folder)
    refused(batches, folder, *long, "--resume", fsize=1_000_000)
    assert equal(state(folder), good)
    assert not list(folder.glob(".writing*"))


def test_a_disk_that_is_full_for_the_log_is_named(batches, tmp_path):
    long = ("--num_steps", "2000", "--save_every", "2000", "--log_every", "1", "--no_check")
    code, message = train(batches, tmp_path / "run", *long, fsize=9_000)
    assert code == 2 and f"{tmp_path / 'run'}" in message.splitlines()[-1]


PRETRAINED = [flag for flag in FLAGS if flag != "--no_pretrained"]


@pytest.mark.parametrize(
    ("words", "flags", "how"),
    [
        ("Gref_emb.npy", "", {"base": PRETRAINED}),
        ("bad.pth", "--v_weights bad.pth --random_embeddings", {"base": PRETRAINED}),
        ("bad.npy", "--embeddings bad.npy", {}),
        ("bad.txt", "--vocabulary bad.txt", {}),
        ("train_label", "--data_dir broken", {}),  # found when the first step reads its samples
        ("config.json: File too large", "", {"fsize": 1_000}),
    ],
)
def test_a_failed_start_leaves_nothing(batches, tmp_path, words, flags, how):
    for name in ("bad.pth", "bad.npy", "bad.txt"):
        (tmp_path / name).write_bytes(b"nothing")
    if "broken" in flags:
        shutil.copytree(batches, tmp_path / "broken")
        for file in (tmp_path / "broken" / "train_label").iterdir():
            file.write_bytes(b"nothing")
    given = [str(tmp_path / word) if (tmp_path / word).exists() else word for word in flags.split()]
    assert words in refused(batches, tmp_path / "run", *given, "--exp_name", "new/run", **how)
    assert not (tmp_path / "new").exists()
    own = tmp_path / "own" / "notes.txt"
    own.parent.mkdir()
    own.touch()
    refused(batches, own.parent, *given, **how)
    assert list(own.parent.iterdir()) == [own]  # the user's folder stays


def test_a_split_without_train_in_its_name(batches, tmp_path):
    assert train(batches, tmp_path / "run", "--set", "val", "--num_steps", "2")[0] == 0
    assert filled(tmp_path / "run/best.pth")
