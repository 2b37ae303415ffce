"""train_restr.py as users run it, at toy size."""

import os
import signal

import pytest
import torch

from models import load_restr
from tests.support.train_runs import FLAGS, batches_fixture, equal, errors, outcome, records, start, train, wait_for

__all__ = ["batches_fixture"]


@pytest.fixture(scope="module")
def whole(batches, tmp_path_factory):
    """An undisturbed run."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    assert train(batches, folder)[0] == 0
    return folder


def test_what_a_run_leaves_behind(whole, batches):
    names = {path.name for path in whole.iterdir()}
    assert {"last.pth", "best.pth", "Gref_4.pth", "Gref_8.pth", "Gref_12.pth", "log.jsonl"} <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    log = records(whole)
    assert [line["step"] for line in log if line["kind"] == "train"] == [2, 4, 6, 8, 10, 12]
    scores = {line["step"]: line["oIoU"] for line in log if line["kind"] == "val"}
    assert list(scores) == [4, 8, 12]
    values = torch.load(whole / "Gref_12.pth", weights_only=True)
    assert values["step"] == 12
    assert values["metrics"]["oIoU"] == scores[12]
    assert values["data"]["dataset"] == "Gref"
    assert values["vocabulary"] == (batches / "vocabulary.txt").read_text().split()
    best = torch.load(whole / "best.pth", weights_only=True)
    assert best["metrics"]["oIoU"] == max(scores.values())
    assert load_restr(whole / "best.pth").image_size == (48, 48)


def test_a_file_of_progress_does_not_grow_with_the_steps(whole):
    bars = [line for line in whole.with_name(f"{whole.name}.err").read_text().splitlines() if "/12" in line]
    assert bars and len(bars) < 12  # on a terminal each step is shown
    assert "loss" in bars[-1] and "samples/s" in bars[-1]


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
    wait_for(lambda: (tmp_path / "run" / "log.jsonl").exists())
    for _ in range(2):
        os.kill(process.pid, signal.SIGINT)
    process.join(60)
    assert process.exitcode in (75, 130)  # 75: both came before it looked


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_saves_and_the_resumed_run_ends_the_same(whole, batches, tmp_path, number):
    folder = tmp_path / "run"
    process = start(batches, folder)
    wait_for(lambda: (folder / "log.jsonl").exists() and (folder / "log.jsonl").stat().st_size)
    os.kill(process.pid, number)
    process.join(60)
    assert process.exitcode == 75
    assert "continue with --resume" in errors(folder)
    assert torch.load(folder / "last.pth", weights_only=True)["step"] < 12
    assert train(batches, folder, "--resume") == (0, "")
    assert equal(outcome(folder), outcome(whole))


def test_resume_of_a_finished_or_an_absent_run(whole, batches, tmp_path):
    before = outcome(whole)
    assert train(batches, whole, "--resume")[0] == 0
    assert equal(outcome(whole), before)
    assert train(batches, tmp_path / "new", "--resume")[0] == 0
    assert equal(outcome(tmp_path / "new"), before)


def test_a_damaged_state_falls_back_to_the_one_before(whole, batches, tmp_path):
    folder = tmp_path / "run"
    assert train(batches, folder)[0] == 0
    last = folder / "last.pth"
    damaged = bytearray(last.read_bytes())
    middle = len(damaged) // 2
    damaged[middle : middle + 64] = bytes(64)
    last.write_bytes(damaged)
    code, message = train(batches, folder, "--resume")
    assert code == 0
    assert f"falling back to {folder / 'last.prev.pth'}" in message
    assert equal(outcome(folder), outcome(whole))
    for name in ("last.pth", "last.prev.pth"):
        (folder / name).write_bytes(b"nothing")
    code, message = train(batches, folder, "--resume")
    assert (code, message.count("\n")) == (2, 0)
    assert "last.pth" in message


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--set", "nothing"], "nothing"),
        (["--valset", "testA"], "testA"),
        (["--input_size", "64,64"], "48,48"),
        (["--input_size", "50,50"], "48,48"),
        (["--batch_size", "5", "--accum", "2"], "--accum"),
        (["--v_backbone", "resnet50"], "resnet50"),
        (["--v_weights", "nowhere.pth"], "--v_weights"),
        (["--num_steps", "0"], "--num_steps"),
        (["--device", "cuda:77"], "--device"),
        (["--device", "meta"], "--device"),
        (["--lr", "0"], "--lr"),
        (["--alpha_loc", "nan"], "--alpha_loc"),
        (["--keep", "-1"], "--keep"),
        (["--no_pretrained", "--v_weights", "a.pth"], "contradict"),
        (["--nonsense"], "--nonsense"),
    ],
    ids=str,
)
def test_what_cannot_be_is_one_line_and_leaves_nothing(batches, tmp_path, flags, words):
    base = [flag for flag in FLAGS if "--v_weights" not in flags or flag != "--no_pretrained"]
    code, message = train(batches, tmp_path / "run", *flags, "--random_embeddings", base=base)
    lines = [line for line in message.splitlines() if "start from random values" not in line]
    assert (code, len(lines)) == (2, 1)
    assert words in lines[0]
    assert not list(tmp_path.rglob("*.pth"))


def test_a_run_is_not_overwritten(whole, batches, tmp_path):
    before = outcome(whole)
    code, message = train(batches, whole)
    assert (code, message.count("\n")) == (2, 0)
    assert "--resume" in message
    assert "--exp_name" in message
    code, message = train(batches, whole, "--resume", "--lr", "1e-2")
    assert (code, message.count("\n")) == (2, 0)
    assert "--lr" in message
    assert equal(outcome(whole), before)
    code, message = train(batches, whole, "--resume", "--lr", "1e-2", "--allow_changes")
    assert (code, message) == (0, "from here on with --lr 0.01, not 0.001")
    assert equal(outcome(whole), before)
    folder = tmp_path / "busy"
    process = start(batches, folder, "--num_steps", "2000", "--save_every", "2000")
    wait_for(lambda: (folder / "log.jsonl").exists())
    code, message = train(batches, folder, "--resume")
    process.kill()
    process.join()
    assert (code, message.count("\n")) == (2, 0)
    assert "another run" in message


def test_keep_bounds_the_numbered_checkpoints(batches, tmp_path):
    assert train(batches, tmp_path / "run", "--keep", "2")[0] == 0
    assert {path.name for path in (tmp_path / "run").glob("Gref_*.pth")} == {"Gref_8.pth", "Gref_12.pth"}


def test_a_full_disk_is_one_line_and_leaves_the_last_good_state(batches, tmp_path):
    folder = tmp_path / "run"
    process = start(batches, folder, "--num_steps", "2000")
    wait_for(lambda: (folder / "last.pth").exists() and (folder / "Gref_4.pth").exists())
    os.kill(process.pid, signal.SIGTERM)
    process.join(60)
    good = torch.load(folder / "last.pth", weights_only=True)
    code, message = train(batches, folder, "--num_steps", "2000", "--resume", fsize=1_000_000)
    assert code == 2
    assert len(message.splitlines()) == 1
    assert equal(torch.load(folder / "last.pth", weights_only=True), good)
    assert not [path.name for path in folder.iterdir() if path.name.startswith(".writing")]


def test_a_disk_that_is_full_for_the_log_is_named(batches, tmp_path):
    folder = tmp_path / "run"
    long = ("--num_steps", "2000", "--save_every", "2000", "--log_every", "1")
    code, message = train(batches, folder, *long, fsize=1_000)
    assert code == 2
    assert f"{folder}" in message.splitlines()[-1]


def test_a_split_without_train_in_its_name(batches, tmp_path):
    code, errors = train(batches, tmp_path / "run", "--set", "val", "--num_steps", "2")
    assert code == 0 and errors.endswith("Gref_emb.npy is not there")  # where random word embeddings come from is said
    assert (tmp_path / "run/best.pth").exists()
