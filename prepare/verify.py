"""build_batches.py --verify: every file of a split, read as training and evaluation read it."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from prepare.workers import run_all
from utils.errors import noting
from utils.prepared import PreparedSplit

_AT_ONCE = 32  # expressions


def damage(folder: Path, split: str, workers: int) -> list[str]:
    """What is wrong with the files of a complete split, a line each, sorted.

    Check sums are compared, and every file is decoded. Raises InputError where there is no such split.
    """
    data = PreparedSplit(folder, split)
    data.vocabulary()
    numbers = range(len(data))
    jobs = [numbers[i : i + _AT_ONCE] for i in numbers[::_AT_ONCE]]
    found = run_all(partial(_faults, data), jobs, workers, len, title=data.name(0).rpartition("_")[0])
    return sorted(set().union(*found))


def _faults(split: PreparedSplit, numbers: Sequence[int]) -> list[str]:
    faults: list[str] = []
    for i in numbers:
        with noting(faults):
            split.read(i)
    return faults
