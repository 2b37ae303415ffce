"""Reading a pickle from the web as data: lists, dicts, strings, numbers, None and booleans, and nothing else.

Python's C unpickler trusts the file with its memory (one opcode can ask for gigabytes), so this is its Python form with
most of its opcodes taken away. It reads the largest real file, 50 thousand refs, in about 5 seconds.
"""

import io
import os
import pickle
from collections.abc import Callable
from typing import Any

from utils.errors import InputError, one_line
from utils.safe_io import MEBIBYTE, read_bytes, refusing

MAX_PICKLE_BYTES = 128 * MEBIBYTE  # the largest real refs file has about 45 million bytes
MAX_OBJECTS = 8_000_000  # of which the largest real file has about 3 million

_UNCOUNTED = "PROTO FRAME STOP GET BINGET LONG_BINGET"  # these make no object
_NAMING = "GLOBAL STACK_GLOBAL INST"  # these end in find_class, which refuses by name
_ADMITTED = f"""{_UNCOUNTED} {_NAMING} PUT BINPUT LONG_BINPUT MEMOIZE
    NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT
    STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8
    MARK EMPTY_LIST LIST APPEND APPENDS EMPTY_DICT DICT SETITEM SETITEMS"""


def read_pickle(path: str | os.PathLike, remedy: str = "download it again") -> Any:
    """The value in a pickle of Python 2 or 3: lists, dicts with string keys, strings, numbers, None and booleans.

    Python 2's byte strings are read as Latin-1. Raises InputError: a missing or damaged file, and one that holds
    anything else; nothing in it is ever run or imported.
    """
    data = read_bytes(path, MAX_PICKLE_BYTES, "pickle", remedy)
    with refusing(path, "pickle", remedy):
        return _DataUnpickler(path, data).load()


class _DataUnpickler(pickle._Unpickler):
    def __init__(self, path: str | os.PathLike, data: bytes):
        super().__init__(io.BytesIO(data), encoding="latin1")
        self.path = path
        self.room = MAX_OBJECTS

    def find_class(self, module: str, name: str) -> None:
        raise InputError(f"{self.path}: contains code ({one_line(f'{module}.{name}', 80)}); do not use it")

    def refuse(self) -> None:
        raise InputError(f"{self.path}: is damaged or holds more than lists, dicts, strings and numbers; do not use it")

    def count(self) -> None:
        self.room -= 1
        if self.room < 0:
            raise InputError(f"{self.path}: holds more than {MAX_OBJECTS:,} objects; do not use it")


def _counted(load: Callable) -> Callable:
    def load_and_count(unpickler: _DataUnpickler) -> None:
        unpickler.count()
        load(unpickler)

    return load_and_count


def _with_string_keys(load: Callable, first: int, step: int) -> Callable:
    """`load` once the keys on the stack are seen to be strings: a million chosen numbers can all hash alike."""

    def check_and_load(unpickler: _DataUnpickler) -> None:
        if not all(isinstance(key, str) for key in unpickler.stack[first::step]):
            raise ValueError("a dict has a key that is not a string")
        load(unpickler)

    return check_and_load


def _admitted() -> dict[int, Callable]:
    table = dict.fromkeys(range(256), _DataUnpickler.refuse)
    inherited = {name: pickle._Unpickler.dispatch[getattr(pickle, name)[0]] for name in _ADMITTED.split()}
    inherited["SETITEM"] = _with_string_keys(inherited["SETITEM"], -2, 2)  # stack: ..., dict, key, value
    for name in ("SETITEMS", "DICT"):
        inherited[name] = _with_string_keys(inherited[name], 0, 2)  # above the mark: key, value, key, value, ...
    for name, load in inherited.items():
        table[getattr(pickle, name)[0]] = load if name in _UNCOUNTED.split() else _counted(load)
    return table


_DataUnpickler.dispatch = _admitted()
