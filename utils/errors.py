"""How every script says that something is wrong: one line, exit code 2."""

import reprlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import PurePath


class InputError(ValueError):
    """A file, folder or flag that the user can fix. The message is one line: the file, the fault and the fix.

    Where a user's own file has several faults, each is an argument and a line.
    """

    def __str__(self) -> str:
        return "\n".join(map(str, self.args))


class _Abridged(reprlib.Repr):
    """repr() that ends soon for every value: a few items of a list, few levels deep."""

    def __init__(self):
        super().__init__()
        self.maxlevel = 3
        self.maxlist = self.maxtuple = self.maxdict = self.maxset = self.maxfrozenset = 16
        self.maxstring = self.maxother = 500

    def repr1(self, value: object, level: int) -> str:
        kind = next((kind for kind in (dict, list, tuple) if isinstance(value, kind)), None)  # or a subclass of it
        return getattr(self, f"repr_{kind.__name__}")(value, level) if kind else super().repr1(value, level)


def one_line(value: object, limit: int = 500) -> str:
    """Any value as text of at most `limit` characters, control characters and line breaks escaped: for any terminal.

    Text, paths and exceptions as str() has them; of anything else, which a file may nest without end, the beginning.
    """
    try:
        text = str(value) if isinstance(value, (str, PurePath, BaseException)) else _Abridged().repr(value)
    except Exception:  # a number of more digits than Python shows
        text = f"<{type(value).__name__} that cannot be shown>"
    shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text[: limit + 1])
    return shown if len(shown) <= limit else shown[: limit - 3] + "..."


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of an error: which of the `known` names is most like `word`, in whatever case; empty if none is."""
    names = {name.lower(): name for name in known}
    nearest = get_close_matches(word.lower(), names, 1)
    return f"; did you mean {names[nearest[0]]}?" if nearest else ""


@contextmanager
def naming(path: object) -> Iterator[None]:
    """Add the name of `path` to an operating-system error without one: a full disk does not say where."""
    try:
        yield
    except OSError as error:
        if error.errno and not error.filename:
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise
