"""train_restr.py where files vanish, cannot be written, are half built or not of this run: one line, exit code 2."""

import copy
import json
import shutil
import subprocess
import sys

import pytest
import torch

from eval import evaluate
from tests.conftest import ROOT
from tests.support.train_runs import arguments, errors, refused, start, state, train, wait_for
from utils.errors import InputError
from utils.text import Vocabulary

ONE = ("--num_steps", "1")


@pytest.fixture
def copied(batches, tmp_path):
    """A batch folder to be harmed."""
    return shutil.copytree(batches, tmp_path / "Gref_48_batch")


@pytest.fixture
def folder(batches, tmp_path):
    """A run of one step."""
    assert train(batches, tmp_path / "run", *ONE)[0] == 0
    return tmp_path / "run"


def change_meta(folder, *keys, value):
    """Replace a value, nested below `keys`, of meta.json."""
    meta = part = json.loads((folder / "meta.json").read_text())
    for key in keys[:-1]:
        part = part[key]
    part[keys[-1]] = value
    (folder / "meta.json").write_text(json.dumps(meta))


@pytest.mark.parametrize("gone", ["batches", "run"])
def test_a_folder_that_vanishes_in_mid_training(copied, tmp_path, gone):
    folder = tmp_path / "run"
    process = start(copied, folder, "--num_steps", "2000", "--save_every", "3")
    wait_for((folder / "Gref_3.pth").exists)
    shutil.move(copied if gone == "batches" else folder, tmp_path / "elsewhere")  # at once, unlike a removal
    process.join(60)
    assert process.exitcode == 2
    line = errors(folder)
    assert line.count("\n") == 0
    if gone == "batches":
        assert "Gref_48_batch" in line and state(folder)["step"] >= 3
    else:
        assert not folder.exists()


def test_a_folder_that_cannot_be_made(batches, tmp_path):
    (tmp_path / "file").touch()
    assert "Not a directory" in refused(batches, tmp_path / "run", "--weights_dir", str(tmp_path / "file"))


def test_a_half_built_folder_is_refused_with_the_command(copied, tmp_path):
    change_meta(copied, "splits", "val", "complete", value=False)
    command = "build_batches.py -d Gref -t val --img-size 48"
    assert command in refused(copied, tmp_path / "run")
    with pytest.raises(InputError, match=command):
        evaluate.main(["--data_dir", str(copied), "--set", "val", "--checkpoint", str(tmp_path / "none.pth")])
    assert not list(tmp_path.rglob("*.pth"))


def test_a_state_of_other_words_is_not_resumed(copied, folder):
    words = copied / "vocabulary.txt"
    words.write_text(words.read_text().replace("shirt", "skirt"))
    change_meta(copied, "vocabulary", "sha256", value=Vocabulary.load(words).sha256)
    assert "vocabulary" in refused(copied, folder, *ONE, "--resume")


def test_a_state_of_another_program_is_not_resumed(batches, folder):
    whole = state(folder)
    (folder / "last.prev.pth").unlink()
    training, trainer = whole["training"], whole["training"]["trainer"]
    changes = {"step": -5}, {"best": "x"}, {"window": {"loss": "a"}}, {"bad_steps": None}
    trainings = [{**training, "trainer": part} for part in ({}, *({**trainer, **change} for change in changes))]
    trainings += [{}, {"options": 3}, {**training, "log_bytes": "x"}]
    missing, shape, nan = (copy.deepcopy(whole) for _ in range(3))
    del missing["training"]["trainer"]["optimizer"]["state"][0]
    shape["training"]["trainer"]["optimizer"]["state"][0]["exp_avg"] = torch.zeros(3)
    next(iter(nan["model"].values())).view(-1)[0] = torch.nan
    for broken in (missing, shape, nan, *({**whole, "training": part} for part in trainings)):
        torch.save(broken, folder / "last.pth")
        assert "another --exp_name" in refused(batches, folder, *ONE, "--resume")


def test_other_data_is_no_run_to_go_on_with(batches, copied, folder):
    change_meta(copied, "splits", "train", "expressions_sha256", value="0" * 64)
    assert "other data" in refused(copied, folder, *ONE, "--resume")
    for name in ("last.pth", "last.prev.pth"):
        (folder / name).unlink()
    assert "no last.pth" in refused(batches, folder, *ONE, "--resume")


def test_a_newest_state_of_other_flags_is_no_damage_to_fall_back_from(batches, folder):
    newest, before = state(folder), (folder / "log.jsonl").read_bytes()
    newest["training"]["options"]["lr"] = 0.5  # as --allow_changes leaves it when a signal comes before the next save
    torch.save(newest, folder / "last.pth")
    assert "--lr 0.5, not 0.001" in refused(batches, folder, *ONE, "--resume")
    assert (folder / "log.jsonl").read_bytes() == before


def test_a_diverged_run_keeps_a_state_to_go_on_from(batches, tmp_path):
    folder, steps = tmp_path / "run", ("--num_steps", "8", "--save_every", "2", "--warm_iter", "4")
    assert "not finite" in refused(batches, folder, *steps, "--lr", "1e6", "--weight_decay", "1")
    assert all(weight.isfinite().all() for weight in state(folder)["model"].values())


@pytest.mark.parametrize("split", ["train", "val"])
def test_loaders_end_when_a_sample_cannot_be_read(copied, tmp_path, split):
    for file in (copied / f"{split}_label").iterdir():
        file.write_bytes(b"nothing")
    flags = arguments(copied, tmp_path / "run", *ONE, "--num_workers", "2")
    command = [sys.executable, ROOT / "train_restr.py", *flags]  # its own program: what is tested is how it ends
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=60, start_new_session=True)
    assert done.returncode == 2 and f"{split}_label" in done.stderr.splitlines()[-1]
