"""Processes of a DataLoader that fail: one line, exit code 2, and nothing hangs."""

import os
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from eval import loaders
from tests.conftest import ROOT
from tests.support.train_runs import FLAGS, batches_fixture, train, wait_for
from utils.errors import InputError

pytestmark = pytest.mark.slow

__all__ = ["batches_fixture"]

REMEDY = "--shm-size"


@pytest.fixture(scope="module")
def trained(batches, tmp_path_factory):
    """A checkpoint."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    assert train(batches, folder, "--num_steps", "1")[0] == 0
    return folder / "best.pth"


class Unsharable(torch.Tensor):
    """Fails when it is moved into shared memory, as a tensor does that finds no room."""

    def share_memory_(self):
        raise self.error


class One:
    """A data set of one sample that cannot be sent."""

    def __init__(self, error):
        self.error = error

    def __len__(self):
        return 1

    def __getitem__(self, index):
        tensor = torch.zeros(3).as_subclass(Unsharable)
        tensor.error = self.error
        return loaders.shared(tensor)


FULL = RuntimeError("unable to write to file </torch_1_2>: No space left on device (28)")


@pytest.mark.parametrize(
    ("error", "words"), [(FULL, REMEDY), (OSError(24, "Too many open files"), "ulimit -n"), (KeyError("bug"), None)]
)
def test_what_cannot_be_sent_is_not_waited_for(error, words):
    loader = DataLoader(One(error), None, **loaders.loading(1))
    with pytest.raises(InputError if words else KeyError, match=words or "bug"), loaders.explained_loaders():
        list(loader)


class Fatal:
    """A data set of which each sample ends the process that reads it."""

    def __init__(self, number):
        self.number = number

    def __len__(self):
        return 4

    def __getitem__(self, index):
        os.kill(os.getpid(), self.number)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGBUS])
def test_a_process_that_is_killed(number, capfd):
    loader = DataLoader(Fatal(number), None, **loaders.loading(2))
    with pytest.raises(InputError, match="/dev/shm"), loaders.explained_loaders():
        list(loader)
    assert capfd.readouterr().err == ""


def test_other_errors_stay_what_they_are():
    with pytest.raises(RuntimeError, match="a bug"), loaders.explained_loaders():
        raise RuntimeError("a bug")
    with pytest.raises(OSError, match="log"), loaders.explained_loaders():
        raise OSError(28, "No space left on device", "log.jsonl")


def test_room_is_checked_before_the_first_step(monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: namedtuple("Usage", "free")(64 << 20))
    sample = 480 * 480 * 4
    loaders.check_shared_memory(8 * sample, workers=0, held=1)
    loaders.check_shared_memory(8 * sample, workers=3, held=1)
    with pytest.raises(InputError, match=f"64 MiB free, but --num_workers 8 needs 120.*{REMEDY}"):
        loaders.check_shared_memory(8 * sample, workers=8, held=1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    with pytest.raises(InputError, match="needs 197"):
        loaders.check_shared_memory(8 * sample, workers=3, held=1)


@pytest.mark.parametrize(("room", "words"), [("16k", "free, but --num_workers 2 needs"), ("100k", "is full")])
@pytest.mark.parametrize("script", ["train", "evaluate"])
def test_a_container_with_little_shared_memory(batches, trained, tmp_path, script, room, words):
    """100k: enough by the size of the first image, but not for the others."""
    mount = ["unshare", "-m", "sh", "-c", f'mount -t tmpfs -o size={room} tmpfs /dev/shm && exec "$@"', "-"]
    if subprocess.run([*mount, "true"], capture_output=True).returncode:
        pytest.skip("needs the right to mount")
    where = ["--data_dir", batches, "--weights_dir", tmp_path / "weights", "--exp_name", "run"]
    command = ["train_restr.py", *where, *FLAGS, "--num_workers", "2", "--batch_size", "1", "--eval_batch_size", "1"]
    if script == "evaluate":
        command = ["eval/evaluate.py", "--data_dir", batches, "--set", "val", "--checkpoint", trained]
        command += ["--output_dir", tmp_path / "weights", "--batch_size", "1", "--device", "cpu"]
    done = subprocess.run([*mount, sys.executable, *command], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert words in done.stderr.splitlines()[-1] and REMEDY in done.stderr.splitlines()[-1]
    assert not list((tmp_path / "weights").rglob("*.pth")) and not (tmp_path / "weights" / "run" / ".lock").exists()


def forked_off(parent: int) -> list[int]:
    """The processes that a process has forked off and that are of the same program."""
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    own = Path(f"/proc/{parent}/cmdline").read_bytes()
    return [int(child) for child in children if Path(f"/proc/{child}/cmdline").read_bytes() == own]


@pytest.mark.parametrize("phase", ["training", "validation", "evaluation"])
def test_a_loader_killed_by_the_system(batches, trained, tmp_path, phase):
    """In a process of its own, as helpers of tests start loaders in another way."""
    if phase == "evaluation":
        command = ["eval/evaluate.py", "--set", "val", "--checkpoint", trained, "--device", "cpu", "--num_workers", "1"]
    else:
        steps = "5000" if phase == "training" else "1"
        command = ["train_restr.py", "--weights_dir", tmp_path, *FLAGS, "--num_workers", "1"]
        command += ["--num_steps", steps, "--save_every", steps]
    command = [sys.executable, *command, "--data_dir", batches]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    at = 1 if phase == "validation" else 0  # after the one that loads training samples
    wait_for(lambda: len(forked_off(process.pid)) > at)
    os.kill(forked_off(process.pid)[at], signal.SIGKILL)
    _, message = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "Traceback" not in message and message.count("error:") == 1
    assert "a process that loads samples was ended" in message.splitlines()[-1]
