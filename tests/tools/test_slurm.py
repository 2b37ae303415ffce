"""tools/slurm: the scripts as SLURM runs them, with srun and scontrol stood in for, all nodes on this machine."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.support.forked import filled
from tests.support.train_runs import FLAGS, arguments, equal, outcome, records, wait_for

SCRIPTS = {"one_node.sh": 1, "two_nodes.sh": 2}
# As `srun --ntasks-per-node=1`: the command once a node, and signals are passed on to all of them.
SRUN = """#!/usr/bin/env bash
while [[ "$1" == --* ]]; do shift; done
pids=()
trap 'kill -USR1 "${pids[@]}"' USR1
for ((node = 0; node < SLURM_JOB_NUM_NODES; node++)); do "$@" & pids+=($!); done
code=0
for pid in "${pids[@]}"; do
    wait "$pid"; one=$?
    while kill -0 "$pid" 2>/dev/null; do wait "$pid"; one=$?; done
    if ((one > code)); then code=$one; fi
done
exit "$code"
"""
SCONTROL = """#!/usr/bin/env bash
if [ "$1" = show ]; then yes 127.0.0.1 | head -n "$SLURM_JOB_NUM_NODES"; else echo "$@" >> "$STOOD_IN/requeued"; fi
"""
TORCHRUN = """#!/usr/bin/env bash
echo "$@" >> "$STOOD_IN/started"
trap 'exit 1' USR1
for ((i = 0; i < SECONDS_LEFT * 50; i++)); do sleep 0.02; done
exit "$CODE"
"""


class Job:
    """One start of a script of tools/slurm; `folder` holds the programs that stand in for SLURM's."""

    def __init__(self, folder: Path, script: str, *flags, torchrun: str = "", **environment):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        folder.mkdir(exist_ok=True)
        for name, text in {"srun": SRUN, "scontrol": SCONTROL, "torchrun": torchrun}.items():
            if text:
                (folder / name).write_text(text)
                (folder / name).chmod(0o755)
        slurm = {"JOB_NUM_NODES": SCRIPTS[script], "JOB_NODELIST": "node[1-2]", "JOB_ID": port - 20000}
        slurm |= {"GPUS_ON_NODE": 1, "CPUS_PER_TASK": 1}
        path = os.pathsep.join([str(folder), str(Path(sys.executable).parent), os.environ["PATH"]])
        own = {"PATH": path, "STOOD_IN": folder, "OMP_NUM_THREADS": 1, "PYTHONPATH": ROOT, **environment}
        own |= {f"SLURM_{name}": value for name, value in slurm.items()}
        self.folder, self.port = folder, port
        with (folder / "log").open("w") as log:
            words = ["bash", ROOT / "tools/slurm" / script, *flags]
            given = os.environ | {name: str(value) for name, value in own.items()}
            self.process = subprocess.Popen(words, cwd=ROOT, stdout=log, stderr=log, env=given)

    def stop(self) -> None:
        """What --signal=B:USR1@300 does."""
        self.process.send_signal(signal.SIGUSR1)

    def ended(self) -> tuple[int, bool]:
        """Exit code of the script, and whether it asked for another start."""
        code = self.process.wait(240)
        return code, (self.folder / "requeued").exists()


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize(
    ("left", "code", "stop", "expected"),
    [(0, 0, False, (0, False)), (0, 1, False, (1, False)), (60, 0, True, (1, True))],
    ids=["finished", "failed", "stopped"],
)
def test_only_a_stopped_training_is_queued_again(tmp_path, script, left, code, stop, expected):
    job = Job(tmp_path / "job", script, "--lr", "1", torchrun=TORCHRUN, SECONDS_LEFT=left, CODE=code)
    wait_for(lambda: filled(tmp_path / "job/started"))
    if stop:
        wait_for(lambda: (tmp_path / "job/started").read_text().count("\n") == SCRIPTS[script])
        job.stop()
    assert job.ended() == expected, (tmp_path / "job/log").read_text()
    started = (tmp_path / "job/started").read_text().splitlines()
    assert len({*started}) == 1 and len(started) == SCRIPTS[script]
    assert started[0].endswith("train_restr.py --lr 1 --resume")
    assert (f"--rdzv_endpoint=127.0.0.1:{20000 + (job.port - 20000) % 10000}" in started[0]) == (len(started) > 1)


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_a_training_that_is_stopped_and_queued_again_ends_with_the_same_bits(batches, tmp_path, script):
    long = ["--num_steps", "60", "--save_every", "60", "--log_every", "1"]
    flags = [flag for flag in FLAGS if flag != "--adamW"]
    whole, run = tmp_path / "whole", tmp_path / "run"
    job = Job(tmp_path / "job", script, *arguments(batches, whole, *long, base=flags))
    assert job.ended() == (0, False), (tmp_path / "job/log").read_text()
    job = Job(tmp_path / "job", script, *arguments(batches, run, *long, base=flags))
    wait_for(lambda: filled(run / "log.jsonl"), 120)
    job.stop()
    code, queued = job.ended()
    assert queued and code in (1, 128 + signal.SIGABRT)  # torchrun's: a thread of its own may abort it at its end
    said = (tmp_path / "job/log").read_text()
    assert said.count("continue with --resume") == 1
    assert 0 < len(records(run)) < 60
    job = Job(tmp_path / "job", script, *arguments(batches, run, *long, base=flags))
    assert job.ended()[0] == 0
    assert "goes on after step" in (tmp_path / "job/log").read_text()
    assert equal(outcome(run), outcome(whole))
