"""Processes of a DataLoader that fail: one line, exit code 2, and nothing hangs."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from eval import loaders
from tests.conftest import ROOT
from tests.support.train_runs import arguments, train, wait_for
from utils.errors import InputError

pytestmark = pytest.mark.slow

REMEDY = "--shm-size"


@pytest.fixture(scope="module")
def trained(batches, tmp_path_factory):
    """A checkpoint."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    assert train(batches, folder, "--num_steps", "1")[0] == 0
    return folder / "best.pth"


def command(script: str, batches: Path, trained: Path, folder: Path, *flags: str) -> list:
    """Of a training or an evaluation that leaves its files in `folder`."""
    if script == "train":
        return [sys.executable, "train_restr.py", *arguments(batches, folder, *flags)]
    where = ["--data_dir", batches, "--set", "val", "--checkpoint", trained, "--output_dir", folder, "--device", "cpu"]
    return [sys.executable, "eval/evaluate.py", *where, *flags]


class Unsharable(torch.Tensor):
    """Fails when it is moved into shared memory, as a tensor does that finds no room."""

    def share_memory_(self):
        raise self.error


@dataclass
class Failing:
    """A data set of which no sample can be sent for an error, or each ends the process that reads it by a signal."""

    fault: Exception | signal.Signals

    def __len__(self):
        return 4

    def __getitem__(self, index):
        if isinstance(self.fault, signal.Signals):
            os.kill(os.getpid(), self.fault)
        tensor = torch.zeros(3).as_subclass(Unsharable)
        tensor.error = self.fault
        return loaders.shared(tensor)


FULL = RuntimeError("unable to write to file </torch_1_2>: No space left on device (28)")


@pytest.mark.parametrize(
    ("fault", "kind", "words"),
    [
        (FULL, InputError, REMEDY),
        (OSError(24, "Too many open files"), InputError, "ulimit -n"),
        (KeyError("bug"), KeyError, "bug"),
        (signal.SIGKILL, InputError, "/dev/shm"),
        (signal.SIGBUS, InputError, "/dev/shm"),
    ],
)
def test_what_cannot_be_sent_is_not_waited_for(fault, kind, words, capfd):
    loader = DataLoader(Failing(fault), None, **loaders.loading(2))
    with pytest.raises(kind, match=words), loaders.explained_loaders():
        list(loader)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("fault", [ConnectionResetError(104, "Connection reset by peer"), EOFError()], ids=repr)
def test_a_loader_that_is_killed_while_it_sends(fault):
    with pytest.raises(InputError, match="was ended"), loaders.explained_loaders():
        raise fault


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
    few = ["--num_workers", "2", "--batch_size", "1", *(["--eval_batch_size", "1"] if script == "train" else [])]
    given = command(script, batches, trained, tmp_path / "weights/run", *few)
    done = subprocess.run([*mount, *given], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    last = done.stderr.splitlines()[-1]
    assert words in last and REMEDY in last
    assert not list((tmp_path / "weights").rglob("*.pth")) and not (tmp_path / "weights" / "run" / ".lock").exists()


def loaders_of(parent: int) -> list[int]:
    """The loaders of a process, by the name that PyTorch gives them once they run."""
    found = []
    for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
        with suppress(OSError):  # git, which tells the version of the code, has ended meanwhile
            if Path(f"/proc/{child}/comm").read_text() == "pt_data_worker\n":
                found.append(int(child))
    return found


@pytest.mark.parametrize("phase", ["training", "validation", "evaluation"])
def test_a_loader_killed_by_the_system(batches, trained, tmp_path, phase):
    """In a process of its own, as helpers of tests start loaders in another way."""
    steps = {"training": "5000", "validation": "1"}.get(phase)
    flags = ["--num_steps", steps, "--save_every", steps, "--no_check"] if steps else []  # whose loaders end at once
    given = command("train" if steps else "evaluate", batches, trained, tmp_path / "run", "--num_workers", "1", *flags)
    process = subprocess.Popen(given, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    at = 1 if phase == "validation" else 0  # after the one that loads training samples
    wait_for(lambda: len(loaders_of(process.pid)) > at)
    time.sleep(0.5 if phase == "training" else 0.05)  # until the process itself knows that they run
    os.kill(loaders_of(process.pid)[at], signal.SIGKILL)
    _, message = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "Traceback" not in message and message.count("error:") == 1
    assert "a process that loads samples was ended" in message.splitlines()[-1]


def test_a_killed_run_goes_on_at_once(batches, trained, tmp_path):
    """kill -9: the loaders end with it; they hold the lock of its folder."""
    long = ["--num_workers", "2", "--no_check", "--save_every", "5000", "--num_steps"]
    run = ["train", batches, trained, tmp_path / "run"]
    process = subprocess.Popen(command(*run, *long, "5000"), cwd=ROOT, stderr=subprocess.DEVNULL)
    wait_for(lambda: len(loaders_of(process.pid)) == 2)
    children = loaders_of(process.pid)
    process.kill()
    process.wait()
    wait_for(lambda: not any(Path(f"/proc/{child}").exists() for child in children), seconds=2)
    given = command(*run, *long, "1", "--resume", "--allow_changes")
    done = subprocess.run(given, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert len(children) == 2 and done.returncode == 0, done.stderr
