"""How training starts, is told to stop, and ends, alone and under torchrun."""

import os
import signal
import subprocess
import sys

import pytest
import torch

from tests.conftest import ROOT
from tests.support.train_runs import FLAGS, batches_fixture, equal, errors, outcome, start, train, wait_for

__all__ = ["batches_fixture"]

LONG = ("--num_steps", "5000", "--save_every", "5000", "--log_every", "1")


def ours(message: str) -> list[str]:
    """The lines that are no progress bars and not torchrun's."""
    return [line for line in message.replace("\r", "\n").splitlines() if ".py: error: " in line]


def command(batches, folder, *flags, launcher="torch.distributed.run"):
    run = [sys.executable, "-m", launcher, "--nproc_per_node", "2", "--master_port", "0", "--rdzv_backend", "c10d"]
    where = ["--data_dir", batches, "--weights_dir", folder.parent, "--exp_name", folder.name]
    return [*run, "--rdzv_endpoint", "localhost:0", ROOT / "train_restr.py", *where, *FLAGS, *flags]


def begin(words, folder):
    """Start a command whose standard error goes to FOLDER.err."""
    with folder.with_name(f"{folder.name}.err").open("w") as file:
        return subprocess.Popen(words, stderr=file, env={**os.environ, "OMP_NUM_THREADS": "1"})


def together(batches, folder, *flags, **how) -> tuple[int, str]:
    code = begin(command(batches, folder, *flags, **how), folder).wait(120)
    return code, folder.with_name(f"{folder.name}.err").read_text()


@pytest.mark.parametrize("flags", [["--nonsense"], ["--set", "nothing"], ["--embeddings", "none.npy"]], ids=str)
def test_one_message_for_all_processes(batches, tmp_path, flags):
    code, message = together(batches, tmp_path / "run", *flags)
    assert code == 1  # torchrun's
    assert len(ours(message)) == 1, message
    assert not (tmp_path / "run").exists()


def test_an_error_in_one_process_ends_all(batches, tmp_path):
    """The one that failed says why; the other, which waits for it in vain, says nothing."""
    program = tmp_path / "broken.py"
    program.write_text(
        "import train_restr, train.loop\n"
        "from utils.cli import run_main\n"
        "from utils.errors import InputError\n"
        "step = train.loop.Trainer.train_step\n"
        "def train_step(self, batches):\n"
        "    if self.ranks.rank == 1 and self.step == 2:\n"
        "        raise InputError('the second process cannot go on')\n"
        "    return step(self, batches)\n"
        "train.loop.Trainer.train_step = train_step\n"
        "run_main(train_restr.main)\n"
    )
    words = [program if word == ROOT / "train_restr.py" else word for word in command(batches, tmp_path / "run", *LONG)]
    os.environ["PYTHONPATH"] = str(ROOT)
    assert begin(words, tmp_path / "run").wait(100) == 1
    message = (tmp_path / "run.err").read_text()
    assert [line.split("error: ")[1] for line in ours(message)] == ["the second process cannot go on"], message
    assert not (tmp_path / "run" / ".lock").exists()


def test_the_old_launcher_and_warnings_once(batches, tmp_path):
    code, message = together(batches, tmp_path / "run", "--num_steps", "1", launcher="torch.distributed.launch")
    assert code == 0, message
    assert message.count("random values") == 1
    assert (tmp_path / "run" / "last.pth").exists()


def test_a_lost_connection_saves_under_torchrun(batches, tmp_path):
    process = begin(command(batches, tmp_path / "run", *LONG), tmp_path / "run")
    log = tmp_path / "run" / "log.jsonl"
    wait_for(lambda: log.exists() and log.stat().st_size)
    process.send_signal(signal.SIGHUP)
    process.wait(100)
    assert torch.load(tmp_path / "run" / "last.pth", weights_only=True)["step"] > 0
    assert (tmp_path / "run.err").read_text().count("finishing the step") == 1


def test_a_lost_connection_saves_and_the_resumed_run_ends_the_same(batches, tmp_path):
    whole, folder = tmp_path / "whole", tmp_path / "run"
    assert train(batches, whole)[0] == 0
    process = start(batches, folder)
    wait_for(lambda: (folder / "log.jsonl").exists() and (folder / "log.jsonl").stat().st_size)
    os.kill(process.pid, signal.SIGHUP)
    process.join(60)
    assert process.exitcode == 75
    assert "continue with --resume" in errors(folder) and not (folder / ".lock").exists()
    assert train(batches, folder, "--resume") == (0, "")
    assert equal(outcome(folder), outcome(whole))


def test_nohup_stays_nohup():
    program = (
        "import os, signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "from train.loop import StopSignal; from prepare.workers import stop_in_order\n"
        "stop = StopSignal(); stop_in_order(); os.kill(os.getpid(), signal.SIGHUP); assert not stop.requested\n"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == 0


def test_a_failed_start_leaves_nothing(batches, tmp_path):
    flags = [flag for flag in FLAGS if flag != "--no_pretrained"]
    code, message = train(batches, tmp_path / "run", "--exp_name", "new/run", base=flags)  # no embeddings
    assert code == 2 and "Gref_emb.npy" in message
    assert not (tmp_path / "new").exists()
    (tmp_path / "run").mkdir()
    assert train(batches, tmp_path / "run", base=flags)[0] == 2
    assert list((tmp_path / "run").iterdir()) == []  # the user's folder stays


def test_out_of_memory_is_one_line():
    program = "from utils.cli import run_main\nimport torch\nrun_main(lambda: torch.empty(2**60))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1) and "out of memory" in done.stderr
