"""Being asked to stop: by a scheduler, by Ctrl-C, by a time limit, by a lost connection."""

import os
import signal
from collections.abc import Callable
from contextlib import suppress

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
EXIT_RESUME = 75  # sysexits.h, EX_TEMPFAIL: stopped by a signal, saved, start again with --resume


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
