"""Being asked to stop: by a scheduler, by Ctrl-C, by a time limit."""

import os
import signal
from multiprocessing import active_children
from multiprocessing.util import Finalize

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
EXIT_RESUME = 75  # sysexits.h, EX_TEMPFAIL: stopped by a signal, saved, start again with --resume


class StopSignal:
    """SIGTERM, SIGINT and SIGUSR1 set `requested`, for the loop to end after its step; a SIGINT then exits at once."""

    def __init__(self):
        self.requested = False
        for number in STOP_SIGNALS:
            signal.signal(number, self._ask)

    def _ask(self, number, frame) -> None:
        if self.requested and number == signal.SIGINT:
            os._exit(130)  # an exception could be raised, and lost, anywhere
        self.requested = True
        os.write(2, f"\n{signal.Signals(number).name}: finishing the step and saving\n".encode())


def _end_loaders() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # PyTorch raises an exception where a loader is killed
    for child in active_children():
        child.kill()


# After an exception multiprocessing would end them by the SIGTERM that they ignore, and then wait for ever.
Finalize(None, _end_loaders, exitpriority=1)


def ignore_signals(_worker: int = 0) -> None:
    """For a loader's processes: schedulers signal the whole group, and only the main process is to answer."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
