"""Standard input, output and error that may be closed, or whose reader may go while a script runs."""

import errno
import io
import os
import sys


class _Outlet(io.FileIO):
    """A standard stream. What nobody reads any more is dropped; only a full disk under standard output is an error."""

    def __init__(self, descriptor: int):
        super().__init__(descriptor, "w", closefd=False)
        self._lost = {errno.EPIPE, errno.EIO} if self.isatty() else {errno.EPIPE}  # EIO: the terminal was closed
        self._told = descriptor == 2  # there is no place to tell of errors of standard error

    def write(self, data) -> int | None:
        try:
            return super().write(data)
        except OSError as error:
            if self._told or error.errno in self._lost:
                return len(data)
            self._told = True  # what is still in the buffer would raise it again at exit
            raise OSError(error.errno, error.strerror, "standard output") from None


def settle_streams() -> None:
    """Make standard streams safe to use: open ones that were closed (`>&-`), and let a lost reader stop nothing.

    A script goes on without a reader, so that `| head` or a lost connection costs no work. Characters that the terminal
    cannot show are escaped. A stream that was replaced, as tests do, stays.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:  # else the next file to be opened would take its place
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if stream is not getattr(sys, f"__{name}__"):
            stream.reconfigure(errors="backslashreplace")
            continue
        if stream:
            stream.flush()
        by_line = stream is None or stream.line_buffering or stream.write_through
        buffer = io.BufferedWriter(_Outlet(descriptor))
        encoding = stream.encoding if stream else "utf-8"
        setattr(sys, name, io.TextIOWrapper(buffer, encoding, "backslashreplace", line_buffering=by_line))
