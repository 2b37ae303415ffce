"""Reading a pickle from the web as data: lists, dicts, strings, numbers, None, booleans, and NumPy's forms of these.

Python's unpickler trusts the file with its memory (one opcode can ask for gigabytes) and with its time (keys that take
for ever to hash), so this is a small machine for the opcodes that carry data. It calls nothing that a file names:
`_CALLS` holds what stands in for the few names that data needs.
"""

import codecs
import os
import pickle
import re
from collections.abc import Callable, Iterator
from itertools import accumulate
from math import prod
from operator import mul
from struct import Struct
from typing import Any

import numpy as np

from utils.errors import InputError, one_line
from utils.files.reading import MEBIBYTE, read_bytes, refusing

MAX_PICKLE_BYTES = 128 * MEBIBYTE  # the largest real refs file has about 45 million bytes


MAX_OBJECTS = 16_000_000  # opcodes, and items that they copy; the largest real file takes about 9 million


_BYTE, _SHORT, _WORD, _LONG = (Struct(f"<{form}") for form in "BHIQ")


_FIXED = {
    "PROTO": _BYTE, "FRAME": _LONG, "BINGET": _BYTE, "LONG_BINGET": _WORD, "BINPUT": _BYTE, "LONG_BINPUT": _WORD,
    "BININT": Struct("<i"), "BININT1": _BYTE, "BININT2": _SHORT, "BINFLOAT": Struct(">d"),
}  # fmt: skip


_COUNTED = {  # the form of the length, and what the bytes are
    "SHORT_BINSTRING": (_BYTE, "latin-1"), "BINSTRING": (_WORD, "latin-1"), "SHORT_BINUNICODE": (_BYTE, "utf-8"),
    "BINUNICODE": (_WORD, "utf-8"), "BINUNICODE8": (_LONG, "utf-8"), "SHORT_BINBYTES": (_BYTE, bytes),
    "BINBYTES": (_WORD, bytes), "BINBYTES8": (_LONG, bytes), "BYTEARRAY8": (_LONG, bytes),
    "LONG1": (_BYTE, pickle.decode_long), "LONG4": (_WORD, pickle.decode_long),
}  # fmt: skip


_LINES: dict[str, Callable[[bytes], Any]] = {
    "INT": lambda line: line == b"01" if line in (b"00", b"01") else int(line),
    "LONG": lambda line: int(line.rstrip(b"L")),
    "STRING": lambda line: codecs.escape_decode(line[1:-1])[0].decode("latin-1"),  # Python 2's bytes
    "UNICODE": lambda line: line.decode("raw-unicode-escape"),
    "FLOAT": float, "PUT": int, "GET": int, "GLOBAL": bytes.decode, "INST": bytes.decode,
}  # fmt: skip


_BARE = (
    "NONE NEWTRUE NEWFALSE MARK STOP MEMOIZE EMPTY_LIST EMPTY_TUPLE EMPTY_SET EMPTY_DICT LIST TUPLE FROZENSET DICT "
    "TUPLE1 TUPLE2 TUPLE3 APPEND APPENDS ADDITEMS SETITEM SETITEMS REDUCE BUILD STACK_GLOBAL"
)


_OPCODES = {getattr(pickle, name)[0]: name for name in (*_FIXED, *_COUNTED, *_LINES, *_BARE.split())}


_VALUES = {*_COUNTED, "BININT", "BININT1", "BININT2", "BINFLOAT", "INT", "LONG", "FLOAT", "STRING", "UNICODE"}


_PUTS = {"PUT", "BINPUT", "LONG_BINPUT"}


_GETS = {"GET", "BINGET", "LONG_BINGET"}


_UNDER_MARK = {"LIST", "TUPLE", "FROZENSET", "DICT", "APPENDS", "ADDITEMS", "SETITEMS"}


_TAKEN = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3, "APPEND": 1, "SETITEM": 2, "REDUCE": 2, "BUILD": 1, "STACK_GLOBAL": 2}


def read_pickle(path: str | os.PathLike, remedy: str = "download it again") -> Any:
    """The value in a pickle of Python 2 or 3: lists, dicts with string keys, strings, bytes, numbers, None, booleans.

    Tuples, sets and NumPy's arrays come as lists, NumPy's numbers and strings as Python's, an OrderedDict as a dict,
    Python 2's byte strings as Latin-1 text. Raises InputError: a missing or damaged file, and one that holds anything
    else; nothing in it is ever run or imported.
    """
    data = read_bytes(path, MAX_PICKLE_BYTES, "pickle", remedy)
    with refusing(path, "pickle", remedy):
        return _Machine(path, data).run()


def _steps(data: bytes) -> Iterator[tuple[str, Any]]:
    """(opcode, argument) one after the other. Raises ValueError for an opcode that carries no data."""
    place = 0
    while place < len(data):
        name = _OPCODES.get(data[place])
        place += 1
        argument = None
        if name in _FIXED:
            (argument,) = _FIXED[name].unpack_from(data, place)
            place += _FIXED[name].size
        elif name in _COUNTED:
            form, kind = _COUNTED[name]
            start = place + form.size
            place = start + form.unpack_from(data, place)[0]
            if place > len(data):
                break
            argument = data[start:place]
            argument = argument.decode(kind, "surrogatepass") if isinstance(kind, str) else kind(argument)
        elif name in _LINES:
            end = data.index(b"\n", place)
            if name in ("GLOBAL", "INST"):  # two lines
                end = data.index(b"\n", end + 1)
            argument = _LINES[name](data[place:end])
            place = end + 1
        elif name is None:
            raise ValueError("it holds more than lists, dicts, strings and numbers")
        yield name, argument
    raise ValueError("it is cut off")


class _Name(str):
    """A name on the stack, one of _CALLS."""


class _DType:
    """A NumPy type on the stack: its code, such as "i8" or "U5", and its byte order."""

    def __init__(self, code: str):
        if not re.fullmatch(r"b1|[iu][1248]|f[248]|[SU][0-9]{1,7}|O8", code):
            raise ValueError(f"an array of {one_line(code, 20)}")
        self.code, self.order = code, "<"

    def values(self, data: Any) -> list:
        """Plain values of an array's bytes, or of its list of objects."""
        kind, width = self.code[0], int(self.code[1:])
        if kind == "O":
            return list(data)
        if kind not in "SU":
            return np.frombuffer(data, self.order + self.code).tolist()
        text = data.decode("ascii" if kind == "S" else "utf-32-be" if self.order == ">" else "utf-32-le")
        return [text[i : i + width].rstrip("\0") for i in range(0, len(text), width)] if width else [""]


class _Array:
    """An array on the stack until its BUILD, which sets `value` and puts that in its place."""

    value: Any = None


class _Machine:
    """Runs the opcodes of a file's `data`."""

    def __init__(self, path: str | os.PathLike, data: bytes):
        self.path, self.data = path, data
        self.stack: list = []
        self.room = MAX_OBJECTS
        self.bytes_room = 2 * len(data)  # of arrays and encoded text, which do not share their bytes

    def run(self) -> Any:
        """The value that the file holds."""
        stack, marks, memo = self.stack, [], {}
        for name, argument in _steps(self.data):
            self.room -= 1
            if self.room < 0:
                self.spend(0)
            if name in _VALUES:
                stack.append(argument)
            elif name in _PUTS:
                memo[argument] = stack[-1]
            elif name in _GETS:
                value = memo[argument]
                stack.append(value.value if type(value) is _Array else value)
            elif name == "MARK":
                marks.append(len(stack))
            elif name == "MEMOIZE":
                memo[len(memo)] = stack[-1]
            elif name == "STOP":
                return stack.pop()
            elif name in ("GLOBAL", "INST"):
                stack.append(self.named(*argument.split("\n")))
            elif name not in _FIXED:
                start = marks.pop() if name in _UNDER_MARK else len(stack) - _TAKEN.get(name, 0)
                items = stack[max(start, 0) :]
                del stack[max(start, 0) :]
                self.act(name, items)
        raise ValueError("it is cut off")

    def act(self, name: str, items: list) -> None:
        """Run an opcode on the `items` that it took from the stack. Too few are an error of what it calls."""
        if name in ("APPEND", "APPENDS", "ADDITEMS"):
            self.stack[-1].extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            self.stack[-1].update(_dict(items))
        elif name == "BUILD":
            self.stack.append(self.built(self.stack.pop(), *items))
        elif name == "STACK_GLOBAL":
            self.stack.append(self.named(*items))
        elif name == "REDUCE":
            function, arguments = items
            self.stack.append(_CALLS[function](self, *arguments))
        elif name in ("EMPTY_DICT", "DICT"):
            self.stack.append(_dict(items))
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name])
        else:  # EMPTY_LIST, LIST, tuples and sets
            self.stack.append(items)

    def spend(self, objects: int) -> None:
        """Count what takes memory."""
        self.room -= objects
        if self.room < 0:
            raise InputError(f"{self.path}: holds more than {MAX_OBJECTS:,} objects; do not use it")

    def named(self, module: str, name: str) -> _Name:
        """What a name stands for. Raises InputError for what is not data."""
        known = f"{module.replace('__builtin__', 'builtins').replace('numpy._core', 'numpy.core')}.{name}"
        if known not in _CALLS:
            raise InputError(f"{self.path}: contains code ({one_line(f'{module}.{name}', 80)}); do not use it")
        return _Name(known)

    def built(self, target: Any, state: list) -> Any:
        """An array or a type with its state."""
        if type(target) is _Array:
            shape, dtype, in_columns, data = state[-4:]
            target.value = self.array(data, dtype, shape, in_columns)
            return target.value
        if type(target) is not _DType or state[1] not in ("<", ">", "|") or state[2:5] != [None, None, None]:
            raise ValueError("it holds more than lists, dicts, strings and numbers")
        target.order = state[1]
        return target

    def array(self, data: Any, dtype: _DType, shape: list[int], in_columns: bool) -> Any:
        """Nested lists of the shape; of a shape without dimensions the value itself."""
        data = data.encode("latin-1") if isinstance(data, str) else data  # Python 2's bytes were read as text
        self.keep(len(data))
        values = dtype.values(data)
        if len(shape) > 32 or min(shape, default=0) < 0 or prod(shape) != len(values):
            raise ValueError("an array does not fit its shape")
        if not values or not shape:
            return values if shape else values[0]
        self.spend(sum(accumulate(shape, mul)))
        if in_columns and dtype.code != "O8":  # objects are listed in rows all the same
            values = [values[i] for i in np.arange(len(values)).reshape(shape, order="F").ravel()]
        for size in shape[:0:-1]:
            values = [values[i : i + size] for i in range(0, len(values), size)]
        return values

    def keep(self, size: int) -> None:
        """Count bytes that are copied."""
        self.bytes_room -= size
        if self.bytes_room < 0:
            raise ValueError("its arrays hold more than the file has")

    def listed(self, items: list = ()) -> list:
        """What a set is made of."""
        self.spend(len(items))
        return list(items)

    def encoded(self, text: str, encoding: str) -> bytes:
        """Bytes, as protocols without them store them."""
        if encoding != "latin1":
            raise ValueError(f"bytes in {one_line(encoding, 20)}")
        self.keep(len(text))
        return text.encode("latin-1")

    def mapping(self, pairs: list = ()) -> dict:
        """The dict of an OrderedDict's pairs."""
        self.spend(len(pairs))
        return _dict([item for key, value in pairs for item in (key, value)])


def _dict(items: list) -> dict:
    """Of key, value, key, value, ... Only strings are keys: a million chosen numbers can all hash alike."""
    if not all(isinstance(key, str) for key in items[::2]):
        raise ValueError("a dict has a key that is not a string")
    return dict(zip(items[::2], items[1::2], strict=True))


_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}


_CALLS: dict[str, Callable | None] = {  # None: only named, never called
    "builtins.set": _Machine.listed,
    "builtins.frozenset": _Machine.listed,
    "collections.OrderedDict": _Machine.mapping,
    "collections.defaultdict": lambda machine, *factory: {},
    "builtins.list": None,
    "builtins.dict": None,
    "builtins.int": None,
    "builtins.bytes": lambda machine: b"",
    "_codecs.encode": _Machine.encoded,
    "numpy.ndarray": None,
    "numpy.dtype": lambda machine, code, *flags: _DType(code),
    "numpy.core.multiarray._reconstruct": lambda machine, *arguments: _Array(),
    "numpy.core.multiarray.scalar": lambda machine, dtype, data: machine.array(data, dtype, [], False),
    "numpy.core.numeric._frombuffer": lambda machine, data, dtype, shape, order: machine.array(
        data, dtype, shape, order == "F"
    ),
}
