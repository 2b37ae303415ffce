"""Pickles from the web as data: Python's own unpickler, which here calls nothing that a file names.

`find_class` gives stand-ins for the few names that data needs. The unpickler also trusts a file with its memory and
time, so `checked_pickle` looks at every opcode first, and has dicts and sets made of types that hash no chosen number
or tuple: a million of these can share one hash.
"""

import io
import os
import pickle
import pickletools
import re
from itertools import accumulate
from operator import mul
from typing import Any

import numpy as np

from utils.errors import InputError, one_line
from utils.files.reading import MEBIBYTE, read_bytes, refusing

MAX_PICKLE_BYTES = 128 * MEBIBYTE  # the largest real refs file has about 45 million bytes
MAX_OBJECTS = 16_000_000  # opcodes, and items that they copy; the largest real file takes about 9 million
_OPCODES = {o.code.encode("latin-1"): (o.name, o.arg and o.arg.reader) for o in pickletools.opcodes}
_OPCODES[b"S"] = "STRING", io.BytesIO.readline  # pickletools takes ASCII only
_PUTS = {"PUT", "BINPUT", "LONG_BINPUT"}
_NEW_DICT = b"cdata\ndict\n)R"  # a call of what stands in for "data.dict"
_REWRITTEN = {"EMPTY_DICT": _NEW_DICT, "DICT": b"1" + _NEW_DICT, "FRAME": b""}
_REWRITTEN |= {"EMPTY_SET": b"]", "FROZENSET": b"l", "ADDITEMS": b"e"}  # as lists
_SCALARS = {str, int, float, bool, bytes, bytearray, type(None)}
_ONLY_DATA = "it holds more than lists, dicts, strings and numbers"


def read_pickle(path: str | os.PathLike, remedy: str = "download it again") -> Any:
    """The value in a pickle of Python 2 or 3: lists, dicts with string keys, strings, bytes, numbers, None, booleans.

    Tuples, sets and NumPy's arrays come as lists, NumPy's numbers and strings as Python's, an OrderedDict as a dict,
    Python 2's byte strings as Latin-1 text. Raises InputError: a missing or damaged file, and one that holds anything
    else; nothing in it is ever run or imported.
    """
    data = read_bytes(path, MAX_PICKLE_BYTES, "pickle", remedy)
    with refusing(path, "pickle", remedy):
        unpickler = _RefsUnpickler(path, data)
        return unpickler.plain(unpickler.load())


def checked_pickle(data: bytes, path: object, builds: bool = True) -> io.BufferedReader:
    """The pickle with its dicts made by a call of "data.dict", its sets as lists, without states unless `builds`.

    Raises ValueError where it is cut off or a memo's index is larger than the file, InputError for too many objects.
    """
    rewritten = _REWRITTEN if builds else {**_REWRITTEN, "BUILD": b"0"}  # POP
    file, parts, kept = io.BytesIO(data), [], 0
    read = file.read
    for _ in range(MAX_OBJECTS):
        name, argument_of = _OPCODES[read(1)]
        argument = argument_of(file) if argument_of else None
        if name in _PUTS and not 0 <= argument <= len(data):
            raise ValueError("an index of its memo is larger than the file")
        if name in rewritten:
            parts += data[kept : file.tell() - (9 if name == "FRAME" else 1)], rewritten[name]
            kept = file.tell()
            if name == "DICT" and data[kept - 2 : kept - 1] != b"(":
                raise ValueError("it has a dict as no pickle has")
        elif name == "STOP":
            return io.BufferedReader(io.BytesIO(b"".join([*parts, data[kept : file.tell()]])))
    raise InputError(f"{path}: holds more than {MAX_OBJECTS:,} objects; do not use it")


class _Dict(dict):
    __slots__ = ()

    def __setitem__(self, key: Any, value: Any) -> None:
        if type(key) is not str:
            raise ValueError("a dict has a key that is not a string")
        super().__setitem__(key, value)

    def __setstate__(self, state: Any) -> None:
        raise ValueError(_ONLY_DATA)


class _DType:
    """A NumPy type: its code, such as "i8" or "U5", and its byte order."""

    def __init__(self, code: str, *flags: Any):
        if not re.fullmatch(r"b1|[iu][1248]|f[248]|[SU][0-9]{1,7}|O8", code):
            raise ValueError(f"an array of {one_line(code, 20)}")
        self.code, self.order = code, "<"

    def __setstate__(self, state: tuple) -> None:
        if state[1] not in ("<", ">", "|") or state[2:5] != (None, None, None):
            raise ValueError(_ONLY_DATA)
        self.order = state[1]


class _Array:
    """An array until its values are listed: (shape, dtype, whether in columns, data)."""

    def __init__(self, *state: Any):
        self.state = state  # of `_reconstruct` something else, until __setstate__

    def __setstate__(self, state: tuple) -> None:
        self.state = state[-4:]


class _RefsUnpickler(pickle.Unpickler):
    """All that a file may name is a class with `__setstate__`, None, or made anew here: a file can change nothing."""

    def __init__(self, path: str | os.PathLike, data: bytes):
        super().__init__(checked_pickle(data, path), encoding="latin-1")
        self.path, self.room, self.bytes_room = path, MAX_OBJECTS, 2 * len(data)  # for copies; arrays may share bytes
        self.plain_of: dict[int, tuple[Any, Any]] = {}  # by id: a value, which has to stay alive, and its plain form
        self.names = {
            "data.dict": _Dict,
            "builtins.set": self.listed,
            "builtins.frozenset": self.listed,
            "builtins.bytes": lambda: b"",
            "collections.OrderedDict": self.mapping,
            "collections.defaultdict": lambda *factory: _Dict(),
            "_codecs.encode": self.encoded,
            "numpy.dtype": _DType,
            "numpy.core.multiarray._reconstruct": _Array,
            "numpy.core.multiarray.scalar": lambda dtype, data: self.values((), dtype, False, data),
            "numpy.core.numeric._frombuffer": lambda data, *form: _Array(form[1], form[0], form[2] == "F", data),
            **dict.fromkeys(("builtins.list", "builtins.dict", "builtins.int", "numpy.ndarray")),  # never called
        }

    def find_class(self, module: str, name: str) -> Any:
        known = f"{module.replace('__builtin__', 'builtins').replace('numpy._core', 'numpy.core')}.{name}"
        if known not in self.names:
            raise InputError(f"{self.path}: contains code ({one_line(f'{module}.{name}', 80)}); do not use it")
        return self.names[known]

    def spend(self, objects: int, size: int = 0) -> None:
        """Count objects and bytes that are copied."""
        self.room -= objects
        self.bytes_room -= size
        if self.room < 0:
            raise InputError(f"{self.path}: holds more than {MAX_OBJECTS:,} objects; do not use it")
        if self.bytes_room < 0:
            raise ValueError("its arrays hold more than the file has")

    def listed(self, items: Any = ()) -> list:
        self.spend(len(items))
        return list(items)

    def mapping(self, pairs: Any = ()) -> _Dict:
        self.spend(len(pairs))
        result = _Dict()
        for key, value in pairs:
            result[key] = value
        return result

    def encoded(self, text: str, encoding: str) -> bytes:
        """Bytes, as protocols without them store them."""
        self.spend(0, len(text))
        return text.encode({"latin1": "latin-1"}[encoding])

    def values(self, shape: tuple, dtype: _DType, in_columns: bool, data: Any) -> Any:
        """The plain values of an array: nested lists, without dimensions the value itself."""
        data = data.encode("latin-1") if isinstance(data, str) else data  # Python 2's bytes were read as text
        self.spend(sum(accumulate(shape, mul)), len(data))
        if dtype.code == "O8":
            array = np.fromiter(data, object, len(data)).reshape(shape)
        else:
            array = np.ndarray(shape, dtype.order + dtype.code, data, order="F" if in_columns else "C")
            if array.nbytes != len(data) or min(shape, default=0) < 0:
                raise ValueError("an array does not fit its shape")
        return (array.astype("U") if dtype.code[0] == "S" else array).tolist() if array.size else []

    def plain(self, value: Any) -> Any:
        """`value` with lists for tuples and arrays, and plain dicts."""
        kind = type(value)
        if kind in _SCALARS:
            return value
        if id(value) in self.plain_of:
            return self.plain_of[id(value)][1]
        if kind is _Array:
            result = self.plain(self.values(*value.state))
        elif kind is _Dict:
            result = {key: self.plain(item) for key, item in value.items()}
        elif kind in (list, tuple):
            result = [item if type(item) in _SCALARS else self.plain(item) for item in value]
        else:
            raise ValueError(_ONLY_DATA)
        self.plain_of[id(value)] = value, result
        return result
