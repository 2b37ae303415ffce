"""Processes that load samples, of an evaluation and of a training run."""

import errno
import os
import re
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing import active_children
from pathlib import Path

from torch.utils.data import get_worker_info

from utils.cli import end_with_parent
from utils.errors import InputError, one_line

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)  # that training answers
CPU_TIMES = ["cpu.cfs_quota_us", "cpu.cfs_period_us"]
CGROUP, CGROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
LOCAL_WORLDS = ("LOCAL_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE", "SLURM_STEP_TASKS_PER_NODE")  # torchrun's first
SHARED_MEMORY = Path("/dev/shm")
PREFETCH = 2  # batches that each process prepares ahead, DataLoader's default
PATIENCE = 1800  # seconds to wait for a batch before the loaders count as stuck
REMEDY = "start the container with more (docker run --shm-size 2g), or pass --num_workers 0"


def processes_here() -> int:
    """Processes of this run on this machine; 1 if no launcher says."""
    given = (re.match(r"\d+", os.environ.get(name, "")) for name in LOCAL_WORLDS)  # srun says "2(x3),1"
    return max(1, next((int(number[0]) for number in given if number), 1))


def default_workers() -> int:
    """Processes that load samples, 1 to 8: as many as the CPUs that this process may use.

    torchrun leaves all of them to each process; srun and mpirun may have given each its own.
    """
    machine = min([os.cpu_count() or 1, *_quotas()])
    own = min(machine, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else machine)
    shared_by_all = own if "LOCAL_WORLD_SIZE" in os.environ else machine
    return max(1, min(8, own, shared_by_all // processes_here()))


def _quotas() -> Iterator[int]:
    """CPUs' worth of time, rounded up, that each control group of this process allows it, of version 1 or 2."""
    for line in CGROUP.read_text().splitlines() if CGROUP.is_file() else ():
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        top, names = (CGROUPS / "cpu", CPU_TIMES) if controllers else (CGROUPS, ["cpu.max"])
        for group in (path, *map(str, Path(path).parents)):  # in a container its own may stand at the top
            with suppress(OSError, ValueError):  # it is not there, or has "max"
                numbers = " ".join((top / group.lstrip("/") / name).read_text() for name in names)
                quota, period = map(int, numbers.split())
                if quota > 0:  # -1: no limit
                    yield -(-quota // period)


def start_loader(_worker: int = 0) -> None:
    """For a DataLoader's `worker_init_fn`."""
    end_with_parent()  # it would hold the lock of a killed run's folder
    for number in STOP_SIGNALS:  # schedulers signal the whole group, and only the main process is to answer
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGBUS, signal.SIG_DFL)  # PyTorch's handler prints a line of its own
    sys.excepthook = lambda *_: None  # of threads that pass tensors on, when the main process has gone


def loading(workers: int, **more) -> dict:
    """Arguments of a DataLoader with `workers` processes."""
    alone = {"num_workers": workers, "worker_init_fn": start_loader}
    return alone | ({"timeout": PATIENCE, **more} if workers else {})


def shared(tensor):
    """The tensor, in a loader's process moved into shared memory.

    If there is no room, the error is raised here and reaches the main process; in the thread that sends tensors it
    would be lost, and the main process would wait for the batch.
    """
    return tensor.share_memory_() if get_worker_info() else tensor


def check_shared_memory(size: int, workers: int, held: int, ahead: int = PREFETCH) -> None:
    """Raise InputError if /dev/shm has no room for what `workers` processes keep there: batches of `size` bytes.

    Args: ahead, batches that each process prepares; held, batches that the main process holds meanwhile.
    """
    needed = processes_here() * (ahead * workers + held) * size if workers else 0
    free = shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.is_dir() else needed
    if needed > free:
        raise InputError(
            f"{SHARED_MEMORY} has {free >> 20} MiB free, but --num_workers {workers} needs {-(-needed >> 20)}: {REMEDY}"
        )


@contextmanager
def explained_loaders() -> Iterator[None]:
    """End the loaders' processes at an error, and report theirs, and full shared memory, as an InputError."""
    try:
        yield
    except BaseException as error:
        # At exit multiprocessing would end them by the SIGTERM that they ignore, and wait for ever.
        before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # PyTorch's handler raises when a loader is killed
        for child in active_children():
            child.kill()
            child.join()
        signal.signal(signal.SIGCHLD, before or signal.SIG_DFL)
        _explain(error)
        raise


def _explain(error: BaseException) -> None:
    text = f"{error} {error.__cause__ or ''}" if isinstance(error, (RuntimeError, OSError)) else ""
    unnamed = isinstance(error, OSError) and error.errno == errno.ENOSPC and not error.filename
    if unnamed or any(sign in text for sign in ("shared memory", "Bus error", "</torch_")):
        raise InputError(f"{SHARED_MEMORY} is full: {REMEDY}") from None
    if "Too many open files" in text or "ancdata" in text:
        raise InputError("too many open files: raise ulimit -n, or pass --num_workers 0") from None
    if text.startswith("DataLoader") or isinstance(error, (ConnectionError, EOFError)):  # the latter while it sends
        remedy = f"if memory or {SHARED_MEMORY} is full, pass a smaller --num_workers (0: none)"
        raise InputError(f"a process that loads samples was ended or is stuck ({one_line(error, 90)}): {remedy}")
