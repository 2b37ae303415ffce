"""Two gloo processes on the CPU against one: the same steps, the same metrics, one writer."""

import os
import socket
import subprocess
import sys

import pytest
import torch

from tests.conftest import ROOT
from tests.support.train_runs import FLAGS, batches_fixture, records, start, train, wait_for

__all__ = ["batches_fixture"]

# SGD: AdamW divides a gradient that is zero but for rounding, such as that of a key's bias, by its own size, and so
# shows nothing but the rounding. Most blocks of most samples are dropped, which must not depend on who computes them.
SGD = [flag for flag in FLAGS if flag != "--adamW"]
STILL = ("--drop_path", "0.7", "--lr", "0.01")


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def torchrun(batches, folder, *flags, processes=2):
    where = ["--data_dir", batches, "--weights_dir", folder.parent, "--exp_name", folder.name]
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        f"--nproc_per_node={processes}",
        f"--master_port={free_port()}",
    ]
    return subprocess.run(
        [*command, ROOT / "train_restr.py", *where, *SGD, *flags],
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


ONE_STEP = ("--num_steps", "1", "--warm_iter", "0", "--save_every", "1", "--log_every", "1")


@pytest.fixture(scope="module")
def one_step(batches, tmp_path_factory):
    folder = tmp_path_factory.mktemp("one_step") / "run"
    assert train(batches, folder, *STILL, *ONE_STEP, base=SGD)[0] == 0
    return folder


def same_step(folder, other):
    """Whether weights and log (losses and the norm of the gradient) of one step are the same but for rounding."""
    a, b = ({name: x for name, x in records(run)[0].items() if name != "kind"} for run in (folder, other))
    return close(weights(folder, "Gref_1.pth"), weights(other, "Gref_1.pth")) and a == pytest.approx(b, rel=1e-5)


@pytest.fixture(scope="module")
def one(batches, tmp_path_factory):
    folder = tmp_path_factory.mktemp("one") / "run"
    assert train(batches, folder, *STILL, base=SGD)[0] == 0
    return folder


def same_course(folder, other):
    """Whether two runs logged the same; rounding grows step by step, other samples would show in the first digit."""
    pairs = zip(records(folder), records(other), strict=True)
    return all(a.pop("kind") == b.pop("kind") and a == pytest.approx(b, rel=1e-3) for a, b in pairs)


@pytest.mark.parametrize("accum", ["1", "2"])
def test_two_processes_take_the_step_of_one(one_step, batches, tmp_path, accum):
    done = torchrun(batches, tmp_path / "two", *STILL, *ONE_STEP, "--accum", accum)
    assert done.returncode == 0, done.stderr
    assert same_step(tmp_path / "two", one_step)


def test_micro_batches_take_the_step_of_the_large_batch(one_step, batches, tmp_path):
    assert train(batches, tmp_path / "run", *STILL, *ONE_STEP, "--accum", "2", base=SGD)[0] == 0
    assert same_step(tmp_path / "run", one_step)


def test_a_run_goes_on_with_another_number_of_processes(one, batches, tmp_path):
    folder = tmp_path / "run"
    process = start(batches, folder, *STILL, base=SGD)
    wait_for(lambda: (folder / "Gref_4.pth").exists())
    process.terminate()
    process.join()
    assert 4 <= torch.load(folder / "last.pth", weights_only=True)["step"] < 12
    done = torchrun(batches, folder, *STILL, "--resume", "--accum", "2")
    assert done.returncode == 0, done.stderr
    assert same_course(folder, one)
    assert {path.name for path in folder.glob("*.pth")} == {path.name for path in one.glob("*.pth")}


pytestmark = pytest.mark.slow

SLOW_DISK = """
import sys, time
import train_restr, train.run

save = train.run.save_checkpoint
train.run.save_checkpoint = lambda *what: (time.sleep(4), save(*what))
sys.exit(train_restr.main())
"""


def test_a_signal_to_one_process_ends_both_when_the_state_is_written(batches, tmp_path):
    where = ["--data_dir", batches, "--weights_dir", tmp_path, "--exp_name", "run"]
    command = [sys.executable, "-c", SLOW_DISK, *where, *SGD, "--num_steps", "5000", "--save_every", "5000"]
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(command, cwd=ROOT, env={**os.environ, **common, "RANK": rank}, stderr=subprocess.DEVNULL)
        for rank in "01"
    ]
    wait_for(lambda: (tmp_path / "run" / "log.jsonl").exists() and (tmp_path / "run" / "log.jsonl").stat().st_size)
    ranks[1].terminate()
    assert ranks[1].wait(60) == 75
    assert (tmp_path / "run" / "last.pth").exists()
    assert ranks[0].wait(60) == 75
