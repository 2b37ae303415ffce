"""Processes forked off one that has imported all and touched no device, and train_restr.py in such processes."""

import json
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from shutil import rmtree

import torch

import train_restr
from benchmarks.checks.common import Check
from utils.cli import run_main

_fork = multiprocessing.get_context("fork")
FULL = """
    --no_pretrained --adamW --lr 1e-4 --v_lr_scale 1 --batch_size 8 --num_steps 40 --save_every 1000 --log_every 1
    --val_limit 2 --keep 1 --no_check
""".split()
TOY = "--v_backbone vit_shapes_patch8 --l_backbone transformer_shapes --lr 1e-3 --batch_size 4 --num_steps 6".split()
PATIENCE = 300  # seconds for one run; the time limit of the item usually comes first


class Job:
    """`target(*arguments)` in a process of its own session; what it prints goes to the file `output`."""

    def __init__(self, output: Path, target: Callable, *arguments, session: bool = False):
        self.output = output
        self.process = _fork.Process(target=_call, args=(output, session, target, arguments))
        self.process.start()

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self.process.is_alive()

    def end(self, seconds: float = PATIENCE) -> int:
        """Wait for it: the exit code, below 0 for a signal. Raises TimeoutError."""
        self.process.join(seconds)
        if self.running:
            self.kill()
            raise TimeoutError(f"{self.output.stem} did not end in {seconds:.0f} s")
        return self.process.exitcode

    def kill(self) -> None:
        """End it at once."""
        self.process.kill()
        self.process.join()

    def kill_session(self) -> None:
        """End it and all that it has started, if it has a session."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.join()

    def text(self) -> str:
        """All that it printed."""
        return self.output.read_text(errors="replace") if self.output.exists() else ""

    def last_line(self) -> str:
        """The last line of it."""
        return next((line.strip() for line in reversed(self.text().split("\n")) if line.strip()), "")


def _call(output: Path, session: bool, target: Callable, arguments: tuple) -> None:
    if session:
        os.setsid()
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (1, 2):
        os.dup2(file, stream)
    sys.stdout, sys.stderr = (os.fdopen(stream, "w", buffering=1, closefd=False) for stream in (1, 2))
    try:
        target(*arguments)
    except Exception:
        traceback.print_exc()
        sys.exit(1)


class Training(Job):
    """train_restr.py with flags, into `folder`. `fraction`: share of the GPU's memory that it may take."""

    def __init__(self, check: Check, name: str, *flags: object, fraction: float = 0.0):
        self.folder = check.work / name
        starts = len([*check.work.glob(f"{name}.*.txt")])
        super().__init__(check.work / f"{name}.{starts}.txt", _train, training_flags(check, name, *flags), fraction)

    def losses(self) -> dict[int, float]:
        """The loss of each step in the log."""
        file = self.folder / "log.jsonl"
        lines = file.read_text().splitlines() if file.exists() else []
        records = [json.loads(line) for line in lines if line.endswith("}")]
        return {record["step"]: record["loss"] for record in records if record["kind"] == "train"}

    def wait_for(self, condition: Callable[[], bool], seconds: float = PATIENCE) -> bool:
        """Wait until `condition` holds; False if the run ends before. Raises TimeoutError."""
        limit = time.monotonic() + seconds
        while not condition():
            if not self.running:
                return condition()
            if time.monotonic() > limit:
                raise TimeoutError(f"{self.output.stem}: nothing to wait for in {seconds:.0f} s")
            time.sleep(0.002)
        return True

    def message(self) -> str:
        """How it ended: exit code and last line; of a traceback, that it is one."""
        trace = "traceback: " * ("Traceback" in self.text())
        return f"exit code {self.process.exitcode}: {trace}{self.last_line()}"


def training_flags(check: Check, name: str, *flags: object) -> list[str]:
    """The command line of a run into the folder `name`; later flags count."""
    where = ["--data_dir", check.data, "--weights_dir", check.work, "--exp_name", name, "--device", check.device]
    size = TOY if check.toy else []
    return [str(flag) for flag in (*where, "--num_workers", check.workers, *FULL, *size, *flags)]


def _train(flags: list[str], fraction: float) -> None:
    if fraction:
        torch.cuda.set_per_process_memory_fraction(fraction)
    sys.argv = ["train_restr.py", *flags]
    run_main(train_restr.main)


def train_all(check: Check, ways: dict[str, list[object]]) -> Iterator[tuple[str, Training]]:
    """Runs by name, each with its flags, a few at a time; each when it has ended. Its folder goes afterwards."""
    names = list(ways)
    for first in range(0, len(names), check.together):
        now = names[first : first + check.together]
        for name, run in [(name, Training(check, name, *ways[name])) for name in now]:
            run.end()
            yield name, run
            rmtree(run.folder, ignore_errors=True)  # gigabytes
