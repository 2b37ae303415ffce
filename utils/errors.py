"""How every script says that something is wrong: one line, exit code 2."""

from collections.abc import Iterator
from contextlib import contextmanager

MAX_FAULTS = 20  # that are shown of one file


class InputError(ValueError):
    """A file, folder or flag that the user can fix. The message is one line: the file, the fault and the fix.

    Where a user's own file has several faults, each is an argument and a line.
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
