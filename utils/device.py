"""This process among all, its device, precision and memory; the few collective calls that are needed."""

import ctypes
import os
import re
import sys
import traceback
import warnings
from argparse import SUPPRESS, ArgumentParser
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NoReturn

import torch
import torch.distributed as dist

from utils.cli import report
from utils.errors import InputError, one_line
from utils.loaders import end_loaders

AMP_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
LARGE = 4 << 20  # bytes
ENVIRONMENT = {"WORLD_SIZE": 1, "RANK": 0, "LOCAL_RANK": 0}  # set by torchrun; alone without it


def autocast(device: torch.device, amp: str | None) -> torch.autocast:
    """The context in which products are computed in `amp`, a name of AMP_DTYPES; None: in float32."""
    return torch.autocast(device.type, AMP_DTYPES.get(amp), enabled=amp is not None)


def settle_memory() -> None:
    """Let tensors of LARGE and more leave no hole when they go, and smaller ones be had again without the system.

    By itself glibc raises the size that counts as large to 32 MB: the tensors of a full-size training step then leave
    holes that no other fits into (0.6 GB at batch 2), while the small ones of a small model are given back to the
    system and cleared by it at each step (a tenth of its time; benchmarks/RESULTS.md). Does nothing where the C library
    is another.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGE)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


@dataclass(frozen=True)
class Ranks:
    """This process among all, and its device."""

    device: torch.device
    rank: int = 0
    world: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0


def add_local_rank(parser: ArgumentParser) -> None:
    """The flag that `python -m torch.distributed.launch` passes, not shown in the help."""
    parser.add_argument("--local-rank", "--local_rank", type=int, default=0, help=SUPPRESS)


@contextmanager
def group(device: str | None = None, local_rank: int = 0) -> Iterator[Ranks]:
    """Join the group that torchrun describes in the environment (NCCL on CUDA, gloo on CPU), or be alone.

    Args: device, "cpu", "cuda", "cuda:1", ...; None: CUDA where there is one; local_rank, where LOCAL_RANK is not set.
    float32 means float32 from here on: by default PyTorch convolves in TF32. Raises InputError for a device that is
    not there. An error in one of several processes is reported here and ends the process at once: to leave the group
    it would wait for the others, which wait for it.
    """
    ranks = start(device, local_rank)
    try:
        yield ranks
    except BaseException as error:
        if not dist.is_initialized():
            raise
        _end(error)
    if dist.is_initialized():
        dist.destroy_process_group()


def _end(error: BaseException) -> NoReturn:
    if isinstance(error, dist.DistError) or "gloo" in str(error):  # a collective call that was broken off
        error = InputError(f"another process of this run has ended: its message says why ({one_line(error, 120)})")
    try:
        code = report(error)
    except BaseException:
        traceback.print_exc()
        code = 1
    end_loaders()
    sys.stdout.flush()
    os._exit(code)


def choose_device(device: str | None = None, local: int | None = None) -> torch.device:
    """The device of that name ("cpu", "cuda", "cuda:1"; None: CUDA where there is one), without any process group.

    `local`, the number of a process on this machine, decides among CUDA devices where it is given. float32 means
    float32 from here on: by default PyTorch convolves in TF32. Raises InputError for a device that is not there.
    """
    torch.backends.cudnn.allow_tf32 = False
    name = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(f"--device {name}: this PyTorch sees no CUDA device; use --device cpu")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise InputError(f"--device {name}: use cpu, cuda or cuda:N")
    chosen = torch.device(name)
    if chosen.type == "cuda":
        chosen = torch.device("cuda", chosen.index or 0 if local is None else local)
        if chosen.index >= torch.cuda.device_count():
            raise InputError(f"{chosen}: this machine has {torch.cuda.device_count()} CUDA devices, counted from 0")
        torch.cuda.set_device(chosen)
    return chosen


def start(device: str | None = None, local_rank: int = 0) -> Ranks:
    """As `group`, for a process that is alone or does not leave."""
    environment = {**ENVIRONMENT, "LOCAL_RANK": local_rank}
    try:
        world, rank, local = (int(os.environ.get(key, default)) for key, default in environment.items())
    except ValueError:
        raise InputError(f"{', '.join(ENVIRONMENT)} are not all numbers: start with torchrun, or unset them") from None
    chosen = choose_device(device, local if world > 1 else None)
    if rank > 0:
        warnings.simplefilter("ignore")  # the first process shows them
    if world > 1:
        try:
            dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
        except ValueError as error:  # the environment is not torchrun's
            fault = one_line(error, 200)
            raise InputError(f"WORLD_SIZE is {world}, but {fault}: start with torchrun, or unset it") from None
    return Ranks(chosen, rank, world)


def gather(items: list) -> list:
    """The `items` of all ranks, in the order of the ranks, on every rank."""
    if not dist.is_initialized():
        return items
    parts: list = [None] * dist.get_world_size()
    dist.all_gather_object(parts, items)
    return [item for part in parts for item in part]


def mean(values: torch.Tensor) -> torch.Tensor:
    """Each value averaged over the ranks, on every rank."""
    if dist.is_initialized():
        dist.all_reduce(values)
        values /= dist.get_world_size()
    return values


def any_rank(flag: bool, device: torch.device) -> bool:
    """Whether `flag` is set on any rank."""
    if not dist.is_initialized():
        return flag
    value = torch.tensor(float(flag), device=device)
    dist.all_reduce(value, dist.ReduceOp.MAX)
    return bool(value.item())


def wait_for_all() -> None:
    """Return when every rank has come here."""
    if dist.is_initialized():
        dist.barrier()
