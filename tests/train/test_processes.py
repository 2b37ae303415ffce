"""Training under torchrun: two gloo processes take the steps of one, and how they start, are stopped and end."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.conftest import ROOT
from tests.support.forked import filled
from tests.support.train_runs import FLAGS, arguments, interrupted, records, state, train, wait_for

LONG = ("--num_steps", "5000", "--save_every", "5000", "--log_every", "1")
# SGD: AdamW divides a gradient that is zero but for rounding, such as that of a key's bias, by its own size, and so
# shows nothing but the rounding. Most blocks of most samples are dropped, which must not depend on who computes them.
SGD = [flag for flag in FLAGS if flag != "--adamW"]
STILL = ("--drop_path", "0.7", "--lr", "0.01")
ONE_STEP = ("--num_steps", "1", "--warm_iter", "0", "--save_every", "1", "--log_every", "1")


def begin(batches, folder, *flags, launcher="torch.distributed.run", script=ROOT / "train_restr.py", base=FLAGS):
    """Start two processes of a run, whose standard error goes to FOLDER.err."""
    run = [sys.executable, "-m", launcher, "--nproc_per_node", "2", "--master_port", "0", "--rdzv_backend", "c10d"]
    words = [*run, "--rdzv_endpoint", "localhost:0", script, *arguments(batches, folder, *flags, base=base)]
    with Path(f"{folder}.err").open("w") as file:
        return subprocess.Popen(words, stderr=file, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)})


def together(batches, folder, *flags, **how) -> tuple[int, str]:
    code = begin(batches, folder, *flags, **how).wait(240)
    return code, Path(f"{folder}.err").read_text()


def ours(message: str) -> list[str]:
    """The errors that are not torchrun's."""
    return [line.split("error: ")[1] for line in message.replace("\r", "\n").splitlines() if ".py: error: " in line]


@pytest.mark.parametrize("flags", [["--nonsense"], ["--set", "nothing"], ["--embeddings", "none.npy"]], ids=str)
def test_one_message_for_all_processes(batches, tmp_path, flags):
    code, message = together(batches, tmp_path / "run", *flags)
    assert code == 1  # torchrun's
    assert len(ours(message)) == 1, message
    assert not (tmp_path / "run").exists()


BROKEN = """
import train_restr, train.loop
from utils.cli import run_main
from utils.errors import InputError
step = train.loop.Trainer.launch
def launch(self, *arguments):
    if self.ranks.rank == 1 and self.step == 2:
        raise InputError('the second process cannot go on')
    return step(self, *arguments)
train.loop.Trainer.launch = launch
run_main(train_restr.main)
"""


def test_an_error_in_one_process_ends_all(batches, tmp_path):
    """The one that failed says why; the other, which waits for it in vain, says nothing."""
    (tmp_path / "broken.py").write_text(BROKEN)
    code, message = together(batches, tmp_path / "run", *LONG, script=tmp_path / "broken.py")
    assert (code, ours(message)) == (1, ["the second process cannot go on"]), message
    assert not (tmp_path / "run" / ".lock").exists()


def test_the_old_launcher_and_one_log(batches, tmp_path):
    code, message = together(batches, tmp_path / "run", "--num_steps", "1", launcher="torch.distributed.launch")
    assert (code, [message.count(f" step 1{what} ") for what in ("/1", " val")]) == (0, [1, 1]), message
    assert (tmp_path / "run" / "last.pth").exists()
    events = EventAccumulator(str(tmp_path / "run")).Reload()
    drawn = [f"val/Gref_val_{int(i)}" for i in np.linspace(0, 19, 8)]  # by either process
    assert sorted(events.Tags()["images"]) == sorted(drawn)


def test_a_lost_connection_saves(batches, tmp_path):
    process = begin(batches, tmp_path / "run", *LONG)
    wait_for(lambda: filled(tmp_path / "run" / "log.jsonl"))
    process.send_signal(signal.SIGHUP)
    process.wait(100)
    assert state(tmp_path / "run")["step"] > 0
    assert (tmp_path / "run.err").read_text().count("finishing the step") == 1


def undisturbed(batches, folder, *flags):
    """An SGD run of one process."""
    assert train(batches, folder, *STILL, *flags, base=SGD)[0] == 0
    return folder


@pytest.fixture(scope="module")
def one_step(batches, tmp_path_factory):
    return undisturbed(batches, tmp_path_factory.mktemp("one_step") / "run", *ONE_STEP)


def same_log(folder, other, rounding, lines=None):
    """Whether two runs logged the same: losses, norms of gradients, metrics."""
    pairs = zip(records(folder)[:lines], records(other)[:lines], strict=True)
    return all(a.pop("kind") == b.pop("kind") and a == pytest.approx(b, rel=rounding) for a, b in pairs)


def same_step(folder, other):
    """Whether weights and log of one step are the same but for rounding."""
    a, b = (state(run, "Gref_1.pth")["model"] for run in (folder, other))
    close = all((a[name] - b[name]).norm() <= 1e-5 * b[name].norm().clamp_min(1e-3) for name in b)
    return close and same_log(folder, other, 1e-5, lines=1)


@pytest.mark.slow
@pytest.mark.parametrize("accum", ["1", "2"])
def test_two_processes_take_the_step_of_one(one_step, batches, tmp_path, accum):
    code, message = together(batches, tmp_path / "two", *STILL, *ONE_STEP, "--accum", accum, base=SGD)
    assert code == 0, message
    assert same_step(tmp_path / "two", one_step)


@pytest.mark.slow
def test_two_processes_train_a_text_encoder(batches, tmp_path):
    pytest.importorskip("transformers")
    from tests.support.text_encoders import write_text_encoder

    flags = [*STILL, *ONE_STEP, "--l_backbone", str(write_text_encoder(tmp_path / "bert"))]
    code, message = together(batches, tmp_path / "two", *flags, base=SGD)
    assert code == 0, message
    assert same_step(tmp_path / "two", undisturbed(batches, tmp_path / "one", *flags))


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes(batches, tmp_path):
    one, folder = undisturbed(batches, tmp_path / "one"), tmp_path / "run"
    interrupted(batches, folder, signal.SIGTERM, *STILL, after="Gref_4.pth", base=SGD)
    assert 4 <= state(folder)["step"] < 12
    code, message = together(batches, folder, *STILL, "--resume", "--accum", "2", base=SGD)
    assert code == 0, message
    assert same_log(folder, one, 1e-3)  # rounding grows step by step, other samples would show in the first digit
    assert {path.name for path in folder.glob("*.pth")} == {path.name for path in one.glob("*.pth")}


SLOW_DISK = """
import sys, time
import train_restr, train.run

save = train.run.save_checkpoint
train.run.save_checkpoint = lambda *what: (time.sleep(4), save(*what))
sys.exit(train_restr.main())
"""


@pytest.mark.slow
def test_a_signal_to_one_process_ends_both_when_the_state_is_written(batches, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-c", SLOW_DISK, *arguments(batches, tmp_path / "run", *LONG, base=SGD)]
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(command, cwd=ROOT, env={**os.environ, **common, "RANK": rank}, stderr=subprocess.DEVNULL)
        for rank in "01"
    ]
    wait_for(lambda: filled(tmp_path / "run" / "log.jsonl"))
    ranks[1].terminate()
    assert ranks[1].wait(60) == 75
    assert (tmp_path / "run" / "last.pth").exists()
    assert ranks[0].wait(60) == 75


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGKILL], ids=["unknown to torchrun", "kill -9"])
def test_the_end_of_torchrun_saves_and_stops(batches, tmp_path, number):
    folder = tmp_path / "run"
    torchrun = begin(batches, folder, *LONG)
    wait_for(lambda: filled(folder / "log.jsonl"))
    torchrun.send_signal(number)
    assert torchrun.wait(60) == -number
    wait_for(lambda: "continue with --resume" in Path(f"{folder}.err").read_text())
    wait_for(lambda: not (folder / ".lock").exists())
    assert state(folder)["step"] > 0
