"""Two gloo processes on the CPU against one: the same steps, the same metrics, one writer."""

import os
import socket
import subprocess
import sys

import pytest
import torch

from tests.conftest import ROOT
from tests.train_runs import FLAGS, batches_fixture, records, train

__all__ = ["batches_fixture"]

STILL = ("--drop_path", "0")  # what is dropped is drawn by each process for itself


def torchrun(batches, folder, *flags, processes=2):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    where = ["--data_dir", batches, "--weights_dir", folder.parent, "--exp_name", folder.name]
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={processes}", f"--master_port={port}"]
    return subprocess.run(
        [*command, ROOT / "train_restr.py", *where, *FLAGS, *flags],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def close(a, b):
    """Whether two runs' weights agree to 1e-5 of their norm."""
    return all((a[name] - b[name]).norm() <= 1e-5 * b[name].norm().clamp_min(1e-3) for name in b)


def weights(folder, name="Gref_12.pth"):
    return torch.load(folder / name, weights_only=True)["model"]


@pytest.fixture(scope="module")
def one(batches, tmp_path_factory):
    folder = tmp_path_factory.mktemp("one") / "run"
    assert train(batches, folder, *STILL)[0] == 0
    return folder


def test_two_processes_take_the_steps_of_one(one, batches, tmp_path):
    done = torchrun(batches, tmp_path / "two", *STILL)
    assert done.returncode == 0, done.stderr
    assert close(weights(tmp_path / "two"), weights(one))
    for ours, theirs in zip(records(tmp_path / "two"), records(one), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3)
    assert {path.name for path in tmp_path.joinpath("two").glob("*.pth")} == {path.name for path in one.glob("*.pth")}


def test_micro_batches_take_the_steps_of_the_large_batch(one, batches, tmp_path):
    assert train(batches, tmp_path / "run", *STILL, "--accum", "2")[0] == 0
    assert close(weights(tmp_path / "run"), weights(one))


def test_a_run_goes_on_with_another_number_of_processes(one, batches, tmp_path):
    folder = tmp_path / "run"
    done = torchrun(batches, folder, *STILL)
    assert done.returncode == 0, done.stderr
    for name in ("last.pth", "Gref_12.pth"):
        (folder / name).unlink()
    state = torch.load(folder / "last.prev.pth", weights_only=True)
    assert state["step"] == 12
    assert train(batches, folder, *STILL, "--resume")[0] == 0
    assert close(weights(folder), weights(one))
