"""Processes that load samples, and the signals that ask a program to stop."""

import errno
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import active_children
from multiprocessing.queues import Queue
from multiprocessing.util import Finalize
from pathlib import Path

from utils.errors import InputError, one_line

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
EXIT_RESUME = 75  # sysexits.h, EX_TEMPFAIL: stopped by a signal, saved, start again with --resume
SHARED_MEMORY = Path("/dev/shm")
PREFETCH = 2  # batches that each process prepares ahead, DataLoader's default
REMEDY = "start the container with more (docker run --shm-size 2g), or pass --num_workers 0"


def handle(numbers: tuple[signal.Signals, ...], handler: Callable) -> None:
    """Answer each of the signals with `handler`, but SIGHUP only where nohup does not have it ignored."""
    for number in numbers:
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, handler)


class StopSignal:
    """The STOP_SIGNALS set `requested`, for the loop to end after its step; a SIGINT then exits at once.

    announce: say so on standard error; of several processes the first one does.
    """

    def __init__(self, announce: bool = True):
        self.requested, self._announce = False, announce
        handle(STOP_SIGNALS, self._ask)

    def _ask(self, number, frame) -> None:
        if self.requested and number == signal.SIGINT:
            os._exit(130)  # an exception could be raised, and lost, anywhere
        if self._announce and not self.requested:
            with suppress(OSError):  # the terminal may be gone, which is why the signal came
                os.write(2, f"\n{signal.Signals(number).name}: finishing the step and saving\n".encode())
        self.requested = True


def start_loader(_worker: int = 0) -> None:
    """For a DataLoader's `worker_init_fn`."""
    for number in STOP_SIGNALS:  # schedulers signal the whole group, and only the main process is to answer
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGBUS, signal.SIG_DFL)  # PyTorch's handler prints a line of its own
    Queue._on_queue_feeder_error = _send_error
    sys.excepthook = lambda *_: None  # of threads that pass tensors on, when the main process has gone


def _send_error(queue: Queue, error: Exception, item: tuple) -> None:
    """Send the error in place of a batch (number, content) that could not be sent: else it is waited for for ever."""
    from torch._utils import ExceptionWrapper  # the preparation uses this module without torch

    queue.put((item[0], ExceptionWrapper((type(error), error, error.__traceback__), "in a DataLoader worker")))


def end_loaders() -> None:
    """Kill the processes of all loaders."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # PyTorch raises an exception where a loader is killed
    for child in active_children():
        child.kill()


# After an exception multiprocessing would end them by the SIGTERM that they ignore, and then wait for ever.
Finalize(None, end_loaders, exitpriority=1)


def check_shared_memory(size: int, workers: int, held: int, ahead: int = PREFETCH) -> None:
    """Raise InputError where /dev/shm has no room for what `workers` processes keep there: batches of `size` bytes.

    Args: ahead, batches that each process prepares; held, batches that the main process holds meanwhile.
    """
    processes = int(os.environ.get("LOCAL_WORLD_SIZE") or 1)  # of torchrun on this machine; each has its loaders
    needed = processes * (ahead * workers + held) * size if workers else 0
    free = shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.is_dir() else needed
    if needed > free:
        raise InputError(
            f"{SHARED_MEMORY} has {free >> 20} MiB free, but --num_workers {workers} needs {-(-needed >> 20)}: {REMEDY}"
        )


@contextmanager
def explained_loaders() -> Iterator[None]:
    """Report a failure of a loader's process, and shared memory that is full, as an InputError."""
    try:
        yield
    except (RuntimeError, OSError) as error:
        text = f"{error} {error.__cause__ or ''}"
        unnamed = isinstance(error, OSError) and error.errno == errno.ENOSPC and not error.filename
        if unnamed or any(sign in text for sign in ("shared memory", "Bus error", "</torch_")):
            raise InputError(f"{SHARED_MEMORY} is full: {REMEDY}") from None
        if "Too many open files" in text or "ancdata" in text:
            raise InputError("too many open files: raise ulimit -n, or pass --num_workers 0") from None
        if text.startswith("DataLoader worker"):
            remedy = f"if memory or {SHARED_MEMORY} is full, pass a smaller --num_workers (0: none)"
            raise InputError(f"a process that loads samples was ended ({one_line(error, 90)}): {remedy}") from None
        raise
