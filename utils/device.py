"""This process among all, its device, and precision."""

import ctypes
import os
import re
import sys
import traceback
import warnings
from argparse import SUPPRESS
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.distributed as dist

from utils.cli import report
from utils.errors import InputError, one_line
from utils.options import option

AMP_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")  # its settings; the second, older name comes first
LOCAL_RANKS = ("LOCAL_RANK", "SLURM_LOCALID", "OMPI_COMM_WORLD_LOCAL_RANK")  # of torchrun, srun and mpirun
OUT_OF_MEMORY = "(?i)out of memory|not enough memory|can't allocate memory|ALLOC(ATION)?_FAILED"
MOVED = "a run may move to another machine: the same step except for rounding"


@dataclass
class Precision:
    """Flags of mixed precision; `amp_dtype` is None without --amp."""

    amp: bool = option(False, "mixed precision")
    amp_dtype: str | None = option("bf16", "type of --amp; fp16 for GPUs before Ampere", choices=[*AMP_DTYPES])

    def __post_init__(self):
        self.amp_dtype = self.amp_dtype if self.amp else None


@dataclass
class Process:
    """Flags of where a process computes."""

    device: str | None = option(None, "cpu, cuda, cuda:1, ... (default: cuda if available)", harmless=MOVED)
    local_rank: int = option(0, SUPPRESS, harmless=MOVED)  # of python -m torch.distributed.launch


def autocast(device: torch.device, amp: str | None) -> torch.autocast:
    """The context in which products are computed in `amp`, a name of AMP_DTYPES; None: in float32."""
    return torch.autocast(device.type, AMP_DTYPES.get(amp), enabled=amp is not None)


class Ranks(NamedTuple):
    """This process among all, and its device."""

    device: torch.device
    rank: int = 0
    world: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0


def choose_device(name: str | None = None, local_rank: int | None = None) -> torch.device:
    """ "cpu", "cuda" or "cuda:1" as a device; None: CUDA if this machine has it. Of a group, `local_rank` chooses it.

    Where a scheduler shows each process its own device only, that one is taken.
    float32 means float32 from here on: by default PyTorch convolves in TF32. Raises InputError for a device that is
    not available.
    """
    torch.backends.cudnn.allow_tf32 = False
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(f"--device {name}: this PyTorch sees no CUDA device; use --device cpu")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise InputError(f"--device {name}: use cpu, cuda or cuda:N")
    device = torch.device(name)
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if local_rank is not None:
            own = count == 1 and int(os.environ.get("LOCAL_WORLD_SIZE") or 1) == 1
            device = torch.device("cuda", 0 if own else local_rank)
        device = torch.device("cuda", device.index or 0)
        if device.index >= count:
            raise InputError(f"{device}: this process sees {count} CUDA devices, counted from 0")
        _let_segments_grow(device.index)
        torch.cuda.set_device(device)
    return device


def _let_segments_grow(index: int) -> None:
    """Have PyTorch's allocator extend its segments, so that it reserves less that it cannot use.

    Left alone: what the user has set, and a device (some virtual GPUs) or driver (not CUDA's) that maps no memory.
    """
    with suppress(OSError, AttributeError):
        driver, able = ctypes.CDLL("libcuda.so.1"), ctypes.c_int()
        # 102: CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED
        unknown = driver.cuInit(0) or driver.cuDeviceGetAttribute(ctypes.byref(able), 102, index)
        if able.value and not unknown and not any(name in os.environ for name in ALLOCATOR):
            os.environ[ALLOCATOR[0]] = "expandable_segments:True"  # read at the first allocation


@contextmanager
def explained_memory(remedy: str) -> Iterator[None]:
    """Report memory that ran out, as PyTorch, cuBLAS, cuDNN or NCCL says it, as an InputError with the remedy."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and not re.search(OUT_OF_MEMORY, str(error)):
            raise
        raise InputError(f"out of memory: {remedy} ({one_line(error, 120)})") from None


@contextmanager
def group(process: Process) -> Iterator[Ranks]:
    """Join the group that torchrun describes in the environment (NCCL on CUDA, gloo on CPU), or be alone.

    `process.local_rank` counts if LOCAL_RANK is not set. An error in one of several processes is reported here and ends
    the process at once: to leave the group it would wait for the others, which wait for it.
    """
    ranks = _join(process)
    try:
        yield ranks
    except BaseException as error:
        if not dist.is_initialized():
            raise
        if isinstance(error, dist.DistError) or "gloo" in str(error):  # a collective call that was broken off
            error = InputError(f"another process of this run has ended: its message says why ({one_line(error, 120)})")
        try:
            code = report(error)
        except BaseException:
            traceback.print_exc()
            code = 1
        sys.stdout.flush()
        os._exit(code)
    if dist.is_initialized():
        dist.destroy_process_group()


def _join(process: Process) -> Ranks:
    local_key = next((key for key in LOCAL_RANKS if key in os.environ), LOCAL_RANKS[0])
    alone = {"WORLD_SIZE": 1, "RANK": 0, local_key: process.local_rank}  # where nobody has set them
    given = {key: os.environ.get(key, str(default)) for key, default in alone.items()}
    if not all(number.isdecimal() for number in given.values()) or int(given["RANK"]) >= int(given["WORLD_SIZE"]):
        shown = ", ".join(f"{key}={one_line(number, 20)}" for key, number in given.items())
        raise InputError(f"{shown}: not the numbers of a process: start with torchrun, or unset them")
    world, rank, local = map(int, given.values())
    chosen = choose_device(process.device, local if world > 1 else None)
    if rank > 0:
        warnings.simplefilter("ignore")  # the first process shows them
    if world > 1:
        try:
            on_gpu = chosen.type == "cuda"
            dist.init_process_group("nccl" if on_gpu else "gloo", device_id=chosen if on_gpu else None)
        except ValueError as error:  # the environment is not torchrun's
            fault = one_line(error, 200)
            raise InputError(f"WORLD_SIZE is {world}, but {fault}: start with torchrun, or unset it") from None
    return Ranks(chosen, rank, world)


def from_first(value):
    """The first process's `value`, which the others may not know, on every rank."""
    values = [value]
    if dist.is_initialized():
        dist.broadcast_object_list(values)
    return values[0]


def gather(items: list) -> list:
    """The `items` of all ranks, in the order of the ranks, on every rank."""
    if not dist.is_initialized():
        return items
    parts: list = [None] * dist.get_world_size()
    dist.all_gather_object(parts, items)
    return [item for part in parts for item in part]
