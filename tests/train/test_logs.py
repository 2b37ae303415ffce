"""train/logs.py: --wandb, which is imported only when asked for, and disks that are full."""

import importlib.util
import json
import os
import resource
import sys
import threading
import types

import pytest

from train import logs
from utils.errors import InputError


@pytest.fixture(autouse=True)
def quiet_threads(monkeypatch):
    """As train_restr.py has it."""
    monkeypatch.setattr(threading, "excepthook", logs.pass_over_disk_errors)


@pytest.fixture
def wandb(monkeypatch):
    """A stand-in that writes down the calls, and when TensorBoard's writer was made."""
    calls = []
    package = types.ModuleType("wandb")
    package.init = lambda **options: calls.append(options) or package
    package.finish = lambda: calls.append("finished")
    package.__spec__ = importlib.util.spec_from_loader("wandb", None)
    monkeypatch.setitem(sys.modules, "wandb", package)
    return calls


def test_wandb_mirrors_tensorboard(wandb, tmp_path, monkeypatch):
    from torch.utils import tensorboard

    writer = tensorboard.SummaryWriter
    monkeypatch.setattr(tensorboard, "SummaryWriter", lambda *a, **k: wandb.append("writer") or writer(*a, **k))
    log = logs.RunLog(tmp_path, wandb={"lr": 1e-5})
    log.record("train", 1, {"loss": 0.5})
    log.close()
    options, *later = wandb
    assert options["sync_tensorboard"] and options["config"] == {"lr": 1e-5} and options["group"] == tmp_path.name
    assert later == ["writer", "finished"]  # a writer made earlier would not be mirrored


def test_nothing_is_sent_unless_asked_for(wandb, tmp_path):
    logs.RunLog(tmp_path).close()
    assert wandb == []


def test_without_the_package(monkeypatch, tmp_path):
    monkeypatch.setattr(logs, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install wandb"):
        logs.RunLog(tmp_path, wandb={})
    assert list(tmp_path.iterdir()) == []


def test_a_log_that_was_cut_goes_on_with_a_line_of_its_own(tmp_path, capsys):
    log = logs.RunLog(tmp_path)
    for step in (1, 2, 3):
        log.record("train", step, {"loss": 0.5})
    known = log.position()
    log.close()
    path = tmp_path / "log.jsonl"
    path.write_bytes(path.read_bytes()[:-5])
    log = logs.RunLog(tmp_path, step=3, known_bytes=known)
    log.record("train", 4, {"loss": 0.5})
    log.close()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 4]
    assert "lines of the steps before 4 are missing" in capsys.readouterr().err


def test_a_full_disk_is_named(tmp_path):
    log = logs.RunLog(tmp_path)
    os.dup2(os.open("/dev/full", os.O_WRONLY), log.file.fileno())
    for write in (lambda: log.record("train", 1, {"loss": 0.5}), log.position, log.close):
        with pytest.raises(OSError) as raised:
            write()
        assert raised.value.filename == str(tmp_path / "log.jsonl")
    log.board.close()


def test_a_disk_that_is_full_from_the_start_is_named(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, before[1]))
    try:
        with pytest.raises(OSError) as raised:
            logs.RunLog(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert raised.value.filename == str(tmp_path)
