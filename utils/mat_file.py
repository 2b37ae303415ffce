"""One numeric matrix out of a MATLAB file of version 5 (also "7": compressed), as ReferIt's masks are.

scipy.io.loadmat allocates what a header claims, and takes type numbers in a file as indices of a table without a look,
so that a damaged one can end the process: so headers are checked here before it sees them.
"""

import io
import os
import struct
import warnings
import zlib
from collections.abc import Iterator

import numpy as np

from utils.safe_io import MAX_IMAGE_PIXELS, MEBIBYTE, read_bytes, refusing

MAX_MAT_BYTES = 32 * MEBIBYTE
MAX_MAT_VALUES = 256 * MEBIBYTE

_HEADER = 128  # bytes: text, then version and byte order in the last four
_HEAD_BYTES = 256  # of an element: enough for flags, shape, a name of up to 63 characters and the tag of the values
_INT8, _INT32, _UINT32, _MATRIX, _COMPRESSED = 1, 5, 6, 14, 15
_ITEM_BYTES = {1: 1, 2: 1, 3: 2, 4: 2, 5: 4, 6: 4, 7: 4, 9: 8, 12: 8, 13: 8}  # of numbers, by their type
_NUMERIC_CLASSES = range(6, 16)  # double, single, and integers of 8 to 64 bits; logical is one of these with a flag
_COMPLEX = 0x800


def read_mat(path: str | os.PathLike, variable: str, remedy: str) -> np.ndarray:
    """The matrix `variable` as numbers H x W, of the type they are stored in.

    Raises InputError: a missing or damaged file, no such variable, anything but a matrix of at most MAX_IMAGE_PIXELS.
    """
    from scipy.io import loadmat  # only for preparation, and slow to import

    data = read_bytes(path, MAX_MAT_BYTES, "MATLAB file", remedy)
    with refusing(path, "MATLAB file", remedy):
        order = {b"\x00\x01IM": "<", b"\x01\x00MI": ">"}.get(data[124:_HEADER])
        if order is None:
            raise ValueError("it is not of version 5; in MATLAB, save it with -v7")
        for element, head in _elements(data, order):
            if _is_checked(head, order, variable.encode()):
                alone = io.BytesIO(b"MATLAB".ljust(124) + data[124:_HEADER] + element)
                with warnings.catch_warnings():
                    warnings.simplefilter("error")  # scipy warns of what it cannot read
                    return loadmat(alone, variable_names=[variable])[variable]
        raise ValueError(f"it holds no {variable}")


def _elements(data: bytes, order: str) -> Iterator[tuple[bytes, bytes]]:
    """Each element of the file, and the first bytes of it, unpacked."""
    place = _HEADER
    while place + 8 <= len(data):
        kind, length = struct.unpack_from(f"{order}2I", data, place)
        element = data[place : place + 8 + length]
        if len(element) < 8 + length:
            raise ValueError("it is cut off")
        yield element, zlib.decompressobj().decompress(element[8:], _HEAD_BYTES) if kind == _COMPRESSED else element
        place += len(element)


def _is_checked(head: bytes, order: str, variable: bytes) -> bool:
    """Whether an element is the variable; ValueError if it is, but is not a matrix of real numbers that fits."""
    kind, _, flags_kind, flags_bytes, flags, _, shape_kind, shape_bytes = struct.unpack_from(f"{order}8I", head)
    if (kind, flags_kind, flags_bytes) != (_MATRIX, _UINT32, 8):
        return False
    name_kind, name_bytes, start, end = _tag(head, order, 32 + -(-shape_bytes // 8) * 8)
    if (name_kind, head[start : start + name_bytes]) != (_INT8, variable):
        return False
    rows, columns = struct.unpack_from(f"{order}2i", head, 32)
    values_kind, values_bytes, *_ = _tag(head, order, end)
    if (shape_kind, shape_bytes) != (_INT32, 8) or flags & 0xFF not in _NUMERIC_CLASSES or flags & _COMPLEX:
        raise ValueError("it holds something else than a matrix of real numbers")
    if min(rows, columns) < 1 or rows * columns > MAX_IMAGE_PIXELS:
        raise ValueError(f"it holds a matrix of {rows} x {columns}")
    if values_bytes != rows * columns * _ITEM_BYTES.get(values_kind, 0) or values_bytes > MAX_MAT_VALUES:
        raise ValueError("it holds a matrix that does not fit its values")
    return True


def _tag(head: bytes, order: str, place: int) -> tuple[int, int, int, int]:
    """Of the part of an element at `place`: type, bytes, where its content starts, and where the next part does."""
    kind, length = struct.unpack_from(f"{order}2I", head, place)
    if kind >> 16:  # up to four bytes lie in the tag itself
        return kind & 0xFFFF, kind >> 16, place + 4, place + 8
    return kind, length, place + 8, place + 8 + -(-length // 8) * 8
