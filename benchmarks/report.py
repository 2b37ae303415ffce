"""Shared by the benchmark scripts: Markdown tables, the line that says where they ran, and peak memory."""

import os
import platform
import resource
import sys
import time

import numpy
import torch


def where(device: str = "cpu") -> str:
    """Date, machine and versions of this run."""
    gpu = torch.cuda.get_device_name() if device.startswith("cuda") else f"{os.cpu_count()} CPU cores"
    load = os.getloadavg()[0]
    versions = f"Python {platform.python_version()}, torch {torch.__version__}, numpy {numpy.__version__}"
    return f"{time.strftime('%Y-%m-%d')}, {platform.machine()}, {gpu}, load {load:.1f} at the start, {versions}"


def table(head: tuple[str, ...], rows: list[tuple]) -> str:
    """A Markdown table; floats with three significant digits."""
    lines = [head, ("---",) * len(head), *([_shown(value) for value in row] for row in rows)]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def _shown(value: object) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def peak_mb() -> float:
    """The largest resident size of this process so far, in MB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
