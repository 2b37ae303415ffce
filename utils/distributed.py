"""One process or many: torchrun's environment, and the few collective calls that are needed."""

import os
import re
from dataclasses import dataclass

import torch
import torch.distributed as dist

from utils.errors import InputError, one_line

ENVIRONMENT = {"WORLD_SIZE": 1, "RANK": 0, "LOCAL_RANK": 0}  # set by torchrun; alone without it


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


def start(device: str | None = None) -> Ranks:
    """Join the group that torchrun describes in the environment (NCCL on CUDA, gloo on CPU), or be alone.

    Args: device, "cpu", "cuda", "cuda:1", ...; None: CUDA where there is one. float32 means float32 from here on: by
    default PyTorch convolves in TF32. Raises InputError for a device that is not there.
    """
    torch.backends.cudnn.allow_tf32 = False
    name = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(f"--device {name}: this PyTorch sees no CUDA device; use --device cpu")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise InputError(f"--device {name}: use cpu, cuda or cuda:N")
    chosen = torch.device(name)
    try:
        world, rank, local = (int(os.environ.get(key, default)) for key, default in ENVIRONMENT.items())
    except ValueError:
        raise InputError(f"{', '.join(ENVIRONMENT)} are not all numbers: start with torchrun, or unset them") from None
    if chosen.type == "cuda":
        chosen = torch.device("cuda", local if world > 1 else chosen.index or 0)
        if chosen.index >= torch.cuda.device_count():
            raise InputError(f"{chosen}: this machine has {torch.cuda.device_count()} CUDA devices, counted from 0")
        torch.cuda.set_device(chosen)
    if world > 1:
        try:
            dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
        except ValueError as error:  # the environment is not torchrun's
            fault = one_line(error, 200)
            raise InputError(f"WORLD_SIZE is {world}, but {fault}: start with torchrun, or unset it") from None
    return Ranks(chosen, rank, world)


def finish() -> None:
    """Leave the group."""
    if dist.is_initialized():
        dist.destroy_process_group()


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
