"""What the items share: where they run, the rows that they yield, how far two results are apart."""

import gc
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.report import seconds
from benchmarks.ways import Bench
from utils.device import Ranks


class Row(NamedTuple):
    """One result. `value` None: not measured; `good` None: nothing is asked of it."""

    what: str
    value: float | str | None
    asked: str = ""
    good: bool | None = None


@dataclass(frozen=True)
class Check:
    """Where the items run: toy, at toy size; data, prepared data; work, a folder for what runs leave behind;
    workers, processes that load samples; together, processes at work at a time where nothing is timed.
    """

    device: str
    toy: bool
    data: Path
    work: Path
    workers: int
    together: int

    @property
    def cuda(self) -> bool:
        """Whether the device is a GPU; asks nothing of it."""
        return self.device.startswith("cuda")

    def ranks(self) -> Ranks:
        """One process on the device."""
        return Ranks(torch.device(self.device))

    def bench(self) -> Bench:
        """Networks and inputs on the device."""
        return Bench(torch.device(self.device), self.toy)

    def size(self, full: int, toy: int) -> int:
        """A number of samples, steps or repeats."""
        return toy if self.toy else full


class Item(NamedTuple):
    """`run` yields the rows. It is ended after `limit` seconds; `alone`: beside nothing else, for it is timed."""

    title: str
    run: Callable[[Check], Iterator[Row]]
    limit: float
    alone: bool = False


def at_most(what: str, value: float | None, limit: float) -> Row:
    """A row that is good up to `limit`; NaN is not."""
    return Row(what, value, f"at most {limit:g}", None if value is None else value <= limit)


def at_least(what: str, value: float | None, limit: float) -> Row:
    """A row that is good from `limit` on; NaN is not."""
    return Row(what, value, f"at least {limit:g}", None if value is None else value >= limit)


def holds(what: str, good: bool, found: str = "no") -> Row:
    """A row of a promise; `found`: what was seen where it does not hold."""
    return Row(what, "yes" if good else found, "yes", bool(good))


def distance(found: Tensor, expected: Tensor) -> float:
    """Relative distance of two tensors: norm of the difference by norm of the expected one, in float64 on the CPU."""
    found, expected = (x.detach().double().cpu() for x in (found, expected))
    return float((found - expected).norm() / expected.norm())


def relative(found: float, expected: float) -> float:
    """How far a number is from the expected one, as a share of it; NaN where that is 0 and the other is not."""
    if found == expected:
        return 0.0
    return abs(found / expected - 1) if expected else math.nan


def free(check: Check) -> None:
    """Free what was held on the device, and reset its peak."""
    torch.compiler.reset()
    gc.collect()  # a compiled model refers to itself
    if check.cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def step_rate(check: Check, step: Callable[[], float], size: int) -> float:
    """Samples a second of steps in a row."""
    return size / seconds({"": step}, check.size(3, 1), check.size(2, 1), calls=check.size(3, 1))[""]


def peak_gb(check: Check) -> float | None:
    """The most GB that tensors have taken on the device since `free`."""
    return torch.cuda.max_memory_allocated() / 1e9 if check.cuda else None


def divided(a: float | None, b: float | None) -> float | None:
    """a / b; None if one of them was not measured."""
    return a / b if a and b else None
