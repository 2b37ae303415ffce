"""The pickles of RefCOCO's refs as data: Python's own unpickler, which here calls nothing that a file names."""

import os
import pickle
import re
from itertools import accumulate
from operator import mul
from typing import Any

import numpy as np

from utils.errors import InputError, one_line
from utils.files.reading import MAX_OBJECTS, MEBIBYTE, checked_pickle, read_bytes, refusing

MAX_PICKLE_BYTES = 128 * MEBIBYTE  # the largest real file of refs has about 45 million bytes
_TYPES = re.compile(r"b1|[iu][1248]|f[248]|[SU][0-9]{1,7}|O8")  # of arrays
_SCALARS = {str, int, float, bool, bytes, bytearray, type(None)}


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


class _Dict(dict):
    __slots__ = ()

    def __init__(self, *_: Any):  # the factory of a defaultdict
        super().__init__()

    def __setitem__(self, key: Any, value: Any) -> None:
        if type(key) is not str:
            raise ValueError("a dict has a key that is not a string")
        super().__setitem__(key, value)

    def __setstate__(self, state: Any) -> None:
        raise ValueError("a dict has a state")


class _OfNumPy:
    """A type or an array: what it was made with, and the state that makes it complete."""

    def __init__(self, *made: Any, state: tuple = ()):
        self.made, self.state = made, state

    def __setstate__(self, state: tuple) -> None:
        self.state = state


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
            "collections.defaultdict": _Dict,
            "_codecs.encode": self.encoded,
            "numpy.dtype": _OfNumPy,
            "numpy.core.multiarray._reconstruct": _OfNumPy,
            "numpy.core.multiarray.scalar": lambda dtype, data: self.values((), dtype, False, data),
            "numpy.core.numeric._frombuffer": lambda data, *of: _OfNumPy(state=(of[1], of[0], of[2] == "F", data)),
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

    def values(self, shape: tuple, dtype: _OfNumPy, in_columns: bool, data: Any) -> Any:
        """The plain values of an array: nested lists, without dimensions the value itself."""
        code, (_, order, *parts) = dtype.made[0], dtype.state
        if not _TYPES.fullmatch(code) or order not in ("<", ">", "|") or parts[:3] != [None, None, None]:
            raise ValueError(f"an array of {one_line(code, 20)}")
        data = data.encode("latin-1") if isinstance(data, str) else data  # Python 2's bytes were read as text
        self.spend(sum(accumulate(shape, mul)), len(data))
        if code == "O8":
            array = np.fromiter(data, object, len(data)).reshape(shape)
        else:
            array = np.ndarray(shape, order + code, data, order="F" if in_columns else "C")
            if array.nbytes != len(data) or min(shape, default=0) < 0:
                raise ValueError("an array does not fit its shape")
        return (array.astype("U") if code[0] == "S" else array).tolist() if array.size else []

    def plain(self, value: Any) -> Any:
        """`value` with lists for tuples and arrays, and plain dicts."""
        kind = type(value)
        if kind in _SCALARS:
            return value
        if id(value) in self.plain_of:
            return self.plain_of[id(value)][1]
        if kind is _OfNumPy:
            result = self.plain(self.values(*value.state[-4:]))
        elif kind is _Dict:
            result = {key: self.plain(item) for key, item in value.items()}
        elif kind in (list, tuple):
            result = [item if type(item) in _SCALARS else self.plain(item) for item in value]
        else:
            raise ValueError("it holds more than lists, dicts, strings and numbers")
        self.plain_of[id(value)] = value, result
        return result
