"""How every script says that something is wrong: one line, exit code 2."""

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import NoReturn

from utils.command_line import HelpFormatter
from utils.streams import settle_streams

EXIT_USER_ERROR = 2


MAX_FAULTS = 20  # that are shown of one file


class InputError(Exception):
    """A file, folder or flag that the user can fix. The message is one line: what is wrong, where, and the remedy.

    Where a file of the user's own has several faults, each is an argument, and a line.
    """

    def __str__(self) -> str:
        return "\n".join(map(str, self.args))


@contextmanager
def noting(faults: list[str]) -> Iterator[None]:
    """Append the message of an InputError in the block to `faults` instead of raising it."""
    try:
        yield
    except InputError as error:
        faults.append(str(error))


def raise_all(faults: list[str]) -> None:
    """Raise one InputError with the first MAX_FAULTS of `faults`, if there are any."""
    more = [f"and {len(faults) - MAX_FAULTS:,} more faults"] if len(faults) > MAX_FAULTS else []
    if faults:
        raise InputError(*faults[:MAX_FAULTS], *more)


class ArgumentParser(argparse.ArgumentParser):
    """argparse with the help of `HelpFormatter` and errors of one line."""

    def __init__(self, **options):
        options.setdefault("formatter_class", HelpFormatter)
        super().__init__(**options)

    def error(self, message: str) -> NoReturn:
        text = f"{self.prog}: error: {message} (see {self.prog} --help)\n"
        self.exit(EXIT_USER_ERROR, text if first_to_fail() else None)


def check_limits(options: argparse.Namespace, limits: dict[str, tuple[float, float]]) -> None:
    """Raise InputError for a flag whose value is not from the least to the most of `limits`, or not a number."""
    for name, (least, most) in limits.items():
        value = getattr(options, name)
        if not least <= value <= most:  # nan is not, either
            raise InputError(f"--{name} {value}: must be from {least:g} to {most:g}")


def one_line(text: object, limit: int = 500) -> str:
    """`text` with control characters and line breaks escaped, cut to `limit` characters: safe on any terminal."""
    shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(text)[: limit + 1])
    return shown if len(shown) <= limit else shown[: limit - 3] + "..."


@contextmanager
def naming(path: object) -> Iterator[None]:
    """Add the name of `path` to an operating-system error without one: a full disk does not say where."""
    try:
        yield
    except OSError as error:
        if error.errno and not error.filename:
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise


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
    code, message = EXIT_USER_ERROR, error
    if isinstance(error, KeyboardInterrupt):
        code, message = 130, "interrupted"
    elif isinstance(error, OSError):  # a full disk, a read-only folder, a vanished mount
        name = f"{os.fsdecode(error.filename)}: " if error.filename else ""
        message = f"{name}{error.strerror or error}"
    elif isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        message = "out of memory: free some, or pass a smaller batch or fewer processes"
    elif not isinstance(error, InputError):
        raise error
    messages = error.args if isinstance(error, InputError) else (message,)
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
