"""Processes forked off a server that has imported what is slow to import: a start costs little."""

import importlib
import multiprocessing
import os
import re
import resource
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.conftest import ROOT

_server = multiprocessing.get_context("forkserver")


def start(target: Callable, *arguments, output: Path):
    """Call `target` in a process of its own; what it prints goes to OUTPUT.out and OUTPUT.err."""
    os.environ["PYTHONPATH"] = str(ROOT)
    os.environ["OMP_NUM_THREADS"] = "1"
    slow = ["train_restr", "build_batches", "tests.support.fuzz_run", "torch.utils.tensorboard"]
    _server.set_forkserver_preload(slow)
    process = _server.Process(target=_call, args=(str(output), target, arguments))
    process.start()
    return process


def _call(output: str, target: Callable, arguments: Sequence) -> None:
    import torch

    for stream, name in ((1, f"{output}.out"), (2, f"{output}.err")):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), stream)
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # of loaders, as where a script runs by itself
    target(*arguments)


def script(module: str, arguments: Sequence[str], fsize: int = 0, number: int = 0, after: Path | None = None) -> None:
    """For `start`: run a script as from its command line.

    fsize: limit on the bytes of a file, as a full disk sets it; number: a signal that the process gets when the file
    `after` is not empty, from a thread of its own, as another process may come too late.
    """
    import train.run
    from utils.cli import run_main

    train.run.PICTURES = 1  # TensorBoard's check sums of pictures take most of the time of a toy run
    if fsize:
        resource.setrlimit(resource.RLIMIT_FSIZE, (fsize, fsize))
    if after:
        threading.Thread(target=_kill, args=(number, after), daemon=True).start()
    sys.argv = [f"{module}.py", *map(str, arguments)]
    run_main(importlib.import_module(module).main)


def _kill(number: int, after: Path) -> None:
    while not filled(after):
        time.sleep(0.002)
    os.kill(os.getpid(), number)


def filled(file: Path) -> bool:
    """Whether something was written to a file."""
    return file.exists() and file.stat().st_size > 0


def errors(output: Path) -> str:
    """What the last process printed to standard error, without its log."""
    return without_log(Path(f"{output}.err").read_text()).removesuffix("\n")


def without_log(text: str) -> str:
    """The lines that do not begin with a time of day, as progress and validations do."""
    return re.sub(r"^\d\d:\d\d:\d\d .*\n", "", text, flags=re.M)
