"""How the process of a run keeps its memory together, and what it does when it is asked to stop."""

import ctypes
import os
import signal
from contextlib import suppress

from eval.loaders import STOP_SIGNALS

EXIT_RESUME = 75  # sysexits.h, EX_TEMPFAIL: stopped by a signal, saved, start again with --resume


def settle_memory() -> None:
    """Make glibc return freed tensors of 4 MB and more to the system, and keep smaller ones for reuse.

    By default glibc raises that size to 32 MB: the tensors of a full-size training step then leave holes that nothing
    fits into (0.6 GB at batch 2), while the small ones of a small model are returned to the system and cleared by it
    at each step (a tenth of its time; benchmarks/RESULTS.md). Does nothing with another C library.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(-3, 4 << 20)  # M_MMAP_THRESHOLD
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def signalled_with_parent(number: int) -> None:
    """Have Linux send this process signal `number` when the one that started it ends, however that happens."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(1, number)  # PR_SET_PDEATHSIG


class StopSignal:
    """The STOP_SIGNALS set `requested`, for the loop to end after its step; a SIGINT then exits at once.

    announce: say so on standard error; of several processes the first one does.
    """

    def __init__(self, announce: bool = True):
        self.requested, self._announce = False, announce
        for number in STOP_SIGNALS:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # as nohup has it
                signal.signal(number, self._ask)
        if "TORCHELASTIC_RUN_ID" in os.environ:  # torchrun may be killed, or die of a signal that it does not know
            signalled_with_parent(signal.SIGTERM)

    def _ask(self, number, frame) -> None:
        if self.requested and number == signal.SIGINT:
            os._exit(130)  # an exception could be raised, and lost, anywhere
        if self._announce and not self.requested:
            with suppress(OSError):  # the terminal may be gone, which is why the signal came
                below = "\n" * os.isatty(2)  # the bar
                os.write(2, f"{below}{signal.Signals(number).name}: finishing the step and saving\n".encode())
        self.requested = True
