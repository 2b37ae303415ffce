"""Shared by the benchmarks: medians of ways that take turns, fresh processes, Markdown tables, where it ran."""

import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from statistics import median

import numpy
import torch

from utils.errors import InputError, one_line

NOT_MEASURED = "not measured"
# A process's peak is never below what its parent held when it started, so a small one stands between.
PARENT = """
import resource, subprocess, sys, time
started = time.perf_counter()
done = subprocess.run([sys.executable, *sys.argv[1:]], stdout=subprocess.PIPE)
print(time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, done.stdout.decode())
sys.exit(done.returncode)
"""
KB = 1 if sys.platform == "darwin" else 1024  # bytes of a unit of ru_maxrss


def medians(ways: dict[str, Callable[[], tuple[float, ...]]], repeats: int, warm: int = 0) -> dict[str, list[float]]:
    """Medians of the numbers that each way returns; ways take turns, the first `warm` rounds are not counted."""
    found = {name: [] for name in ways}
    for turn in range(warm + repeats):
        for name, measure in ways.items():
            values = measure()
            if turn >= warm:
                found[name].append(values)
    return {name: [median(column) for column in zip(*turns, strict=True)] for name, turns in found.items()}


def seconds(
    ways: dict[str, Callable[[], object]],
    repeats: int,
    warm: int = 1,
    clock: Callable[[], float] = time.perf_counter,
    calls: int = 1,
) -> dict[str, float]:
    """Median seconds of a call of each way, of `calls` in a row, in turns; what a GPU was given is part of it."""

    def timed(run: Callable[[], object]) -> tuple[float]:
        started = clock()
        for _ in range(calls):
            run()
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        return ((clock() - started) / calls,)

    found = medians({name: lambda run=run: timed(run) for name, run in ways.items()}, repeats, warm)
    return {name: value for name, (value,) in found.items()}


def fresh_process(*command: object) -> tuple[float, float, list[str]]:
    """Run a Python script in a process of its own: its seconds, the peak MB of its largest process, words printed."""
    done = subprocess.run([sys.executable, "-c", PARENT, *map(str, command)], capture_output=True, text=True)
    if done.returncode:
        raise InputError(f"{command[0]} failed: {one_line(done.stderr, 200)}")
    took, peak, *words = done.stdout.split()
    return float(took), float(peak) * KB / 1e6, words


def peak_mb() -> float:
    """The largest resident size of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KB / 1e6


def where(device: str = "cpu") -> str:
    """Date, machine and versions of this run."""
    gpu = torch.cuda.get_device_name() if device.startswith("cuda") else f"{os.cpu_count()} CPU cores"
    load = os.getloadavg()[0]
    versions = f"Python {platform.python_version()}, torch {torch.__version__}, numpy {numpy.__version__}"
    return f"{time.strftime('%Y-%m-%d')}, {platform.machine()}, {gpu}, load {load:.1f} at the start, {versions}"


def table(head: tuple[str, ...], rows: list[tuple]) -> str:
    """A Markdown table; floats with three significant digits; None: not measured."""
    lines = [head, ("---",) * len(head), *([_shown(value) for value in row] for row in rows)]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def _shown(value: object) -> str:
    if not isinstance(value, float):
        return NOT_MEASURED if value is None else str(value)
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
