"""What the tests of readers share: hostile content, mutations, and how a refusal has to look."""

import builtins
import io
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from utils.errors import InputError

FUZZ = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


def refused(read, *arguments) -> str:
    """The message with which `read` refuses: one line, of a length that a terminal shows."""
    with pytest.raises(InputError) as caught:
        read(*arguments)
    message = str(caught.value)
    assert message.isprintable() and len(message) < 600
    return message


def survives(read, *arguments) -> None:
    """`read` gives a value or refuses in one line."""
    try:
        read(*arguments)
    except InputError as error:
        assert str(error).isprintable() and len(str(error)) < 600


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def laughs(levels: int = 60) -> list:
    """Two lists, which are the same, of two lists and so on: 2**60 to whoever prints them."""
    return [] if not levels else [laughs(levels - 1)] * 2


UNSHOWN = [10**5000, laughs()]  # Python does not print such a number, nor finish to print such a list


class Call:
    """Pickles as a call of a function, made when the pickle is read."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def attacks(target: Path) -> list:
    """Five values whose pickles run code when read; most create the file `target`."""
    code = f"open({str(target)!r}, 'w')"
    return [
        Call(os.system, f"touch {target}"),
        Call(builtins.eval, code),
        [{"ref_id": 1, "sentences": [Call(builtins.exec, code)]}],
        {"a": {"b": [[Call(getattr, Call(__import__, "os"), "system")]]}},
        Call(io.FileIO, str(target), "w"),
    ]
