"""What every script does alike: flags, help, one line for an error, exit codes, a progress bar."""

import argparse
import errno
import io
import multiprocessing
import os
import re
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import NoReturn

from tqdm import tqdm

from utils.errors import InputError, did_you_mean, one_line

EXIT_USER_ERROR = 2
LINE_SECONDS = 30  # between two lines of progress in a file


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
    cannot show are escaped. Both write line by line, so that a file has their lines in order. A stream that was
    replaced, as tests do, stays.
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
        buffer = io.BufferedWriter(_Outlet(descriptor))
        encoding = stream.encoding if stream else "utf-8"
        setattr(sys, name, io.TextIOWrapper(buffer, encoding, "backslashreplace", line_buffering=True))


class HelpFormatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """The description as it is written, and the default of each flag."""


class ArgumentParser(argparse.ArgumentParser):
    """argparse with errors of one line and the help of `HelpFormatter`, without defaults that say nothing.

    What is nearly a flag, or nearly a choice, gives an error that names it.
    underscores: dashes and underscores are the same inside of flags, which are added with underscores.
    """

    def __init__(self, underscores: bool = False, **options):
        super().__init__(**{"formatter_class": HelpFormatter, **options})
        self.underscores, self._given = underscores, []

    def format_help(self) -> str:
        shown = re.sub(r"\s+\(default:\s+(None|False)\)", "", super().format_help())
        return re.sub(r"(\(default[^()]*\))\s+\(default:[^()]*\)", r"\1", shown)  # said in the help of the flag

    def parse_args(self, args=None, namespace=None):
        args = sys.argv[1:] if args is None else args
        self._given = [*map(_underscored, args)] if self.underscores else args
        return super().parse_args(self._given, namespace)

    def _check_value(self, action, value) -> None:
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            error.message += did_you_mean(str(value), map(str, action.choices))
            raise

    def error(self, message: str) -> NoReturn:
        flags = self._option_string_actions
        for name in (argument.partition("=")[0] for argument in self._given if argument.startswith("--")):
            if not any(flag.startswith(name) for flag in flags) and (meant := did_you_mean(name, flags)):
                message = f"unrecognized arguments: {name}{meant}"  # it may be why another one is missing
                break
        text = f"{self.prog}: error: {message} (see {self.prog} --help)\n"
        self.exit(EXIT_USER_ERROR, text if first_to_fail() else None)


def _underscored(argument: str) -> str:
    """--input-size=64 as --input_size=64; what is not a flag stays."""
    name, equals, value = argument.partition("=")
    return f"--{name[2:].replace('-', '_')}{equals}{value}" if re.fullmatch(r"--\w[\w+-]*", name) else argument


def run_main(main: Callable[[], int | None]) -> NoReturn:
    """Run a script's `main`; turn an InputError or an operating-system error into one line and exit code 2."""
    settle_streams()
    try:
        code = main() or 0
        sys.stdout.flush()
    except (Exception, KeyboardInterrupt) as error:
        code = report(error)
    sys.exit(code)


def report(error: BaseException) -> int:
    """Say on one line what the user can do about `error`; returns the exit code. Raises `error` if it is a bug.

    Under torchrun the first process that fails speaks: in the others it is mostly the same.
    """
    code = EXIT_USER_ERROR
    if isinstance(error, InputError):
        messages = error.args
    elif isinstance(error, KeyboardInterrupt):
        code, messages = 130, ["interrupted"]
    elif isinstance(error, OSError):  # a full disk, a read-only folder, a vanished mount
        name = f"{os.fsdecode(error.filename)}: " if error.filename else ""
        messages = [f"{name}{error.strerror or error}"]
    elif isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        messages = ["out of memory: free some, or pass a smaller batch or fewer processes"]
    else:
        raise error
    for text in messages if first_to_fail() else ():
        program = os.path.basename(sys.argv[0]) or "restr"  # noqa: PTH119
        print(f"{program}: error: {one_line(text)}", file=sys.stderr)
    return code


def first_to_fail() -> bool:
    """Whether no other process of this torchrun has asked this before; True outside of torchrun."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return True
    from torch.distributed import TCPStore

    try:
        port, limit = int(os.environ["MASTER_PORT"]), timedelta(seconds=5)
        store = TCPStore(os.environ["MASTER_ADDR"], port, is_master=False, timeout=limit)
        return store.add(f"restr_failed_{os.environ.get('TORCHELASTIC_RESTART_COUNT')}", 1) == 1
    except (KeyError, RuntimeError, ValueError):  # torchrun has gone
        return True


def end_with_parent() -> None:
    """In a process of multiprocessing: have it end when its parent has ended, which if killed cannot stop it."""

    def watch() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class _Lines(tqdm):
    """Progress in a file: a line after the first update, one each LINE_SECONDS, and one at the end if not yet there.

    Its speed is the mean since the start, pauses included: that of the last half minute would make "eta" jump.
    """

    shown: float | None = None  # the number in the last line

    def __init__(self, **options):
        super().__init__(**{**options, "leave": False, "mininterval": LINE_SECONDS, "miniters": 1, "smoothing": 0})
        self.last_print_t = 0  # long ago: the first update is due

    def display(self, msg=None, pos=None) -> None:
        """Print a line when tqdm would draw its bar. None tells it that there is nothing to erase."""
        if self.n in (self.initial, self.shown):
            return
        first, self.shown, seconds = self.shown is None, self.n, self.format_dict["elapsed"]
        speed = (self.n - self.initial) / max(seconds, 1e-9)
        if self.unit_scale:
            n, total, rate = (self.format_sizeof(number, self.unit) for number in (self.n, self.total, speed))
        else:
            n, total, rate = f"{self.n:,}", f"{self.total:,} {self.unit}", f"{brief(speed)} {self.unit}"
        said = [f"{n}/{total}", self.postfix, f"{rate}/s"]
        if self.unit == "it":  # tqdm's default: the postfix has a unit and a speed
            said = [f"{n}/{self.total:,}", self.postfix]
        if self.n >= self.total:
            said.append(f"in {timedelta(seconds=round(seconds))}")
        elif not first:  # the first step starts loaders and libraries
            said.append(f"eta {timedelta(seconds=round((self.total - self.n) / speed))}")
        print(" ".join(filter(None, [time.strftime("%H:%M:%S"), self.desc, *said])), file=self.fp, flush=True)


def progress_bar(**options) -> tqdm:
    """A tqdm bar on standard error, or plain lines where that is not a terminal."""
    return (tqdm if sys.stderr.isatty() else _Lines)(**options)


def log(text: str) -> None:
    """Print a line with the time of day on standard error, above the bar if there is one."""
    (tqdm.write if sys.stderr.isatty() else print)(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr)


def brief(number: float) -> str:
    """A speed as a person says it: 1,234 or 61 or 0.19."""
    return f"{number:,.0f}" if number >= 10 else f"{number:.2g}"
