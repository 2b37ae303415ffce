"""One numeric matrix out of a MATLAB file of version 5 (also "7": compressed), as ReferIt's masks are.

Written out here because scipy.io.loadmat trusts the type numbers in a file as table indices, so that a damaged one can
end the process.
"""

import os
import zlib
from collections.abc import Iterator

import numpy as np

from utils.safe_io import MAX_IMAGE_PIXELS, MEBIBYTE, read_bytes, refusing

MAX_MAT_BYTES = 32 * MEBIBYTE
MAX_MAT_UNPACKED = 256 * MEBIBYTE

_HEADER = 128  # bytes: text, then version and byte order in the last four
_MATRIX, _COMPRESSED = 14, 15
_NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_NUMERIC_CLASSES = range(6, 16)  # double, single, and integers of 8 to 64 bits; logical is one of these with a flag

_Element = tuple[int, memoryview]  # type number, content


def read_mat(path: str | os.PathLike, variable: str, remedy: str) -> np.ndarray:
    """The matrix `variable` as numbers H x W, of the type they are stored in.

    Raises InputError: a missing or damaged file, no such variable, anything but a matrix of at most MAX_IMAGE_PIXELS.
    """
    data = read_bytes(path, MAX_MAT_BYTES, "MATLAB file", remedy)
    with refusing(path, "MATLAB file", remedy):
        order = {b"\x00\x01IM": "<", b"\x01\x00MI": ">"}.get(data[124:_HEADER])
        if order is None:
            raise ValueError("it is not of version 5; in MATLAB, save it with -v7")
        for kind, content in _unpacked(memoryview(data)[_HEADER:], order):
            parts = list(_elements(content, order)) if kind == _MATRIX else []
            if len(parts) > 2 and bytes(parts[2][1]) == variable.encode():
                return _matrix(parts, order)
        raise ValueError(f"it holds no {variable}")


def _elements(data: memoryview, order: str) -> Iterator[_Element]:
    """The elements that lie one behind the other in `data`."""
    while len(data) >= 8:
        kind, length = np.frombuffer(data[:8], f"{order}u4").tolist()
        if kind >> 16:  # up to four bytes lie in the tag itself
            kind, length, start, end = kind & 0xFFFF, kind >> 16, 4, 8
        else:
            start, end = 8, 8 + (length if kind == _COMPRESSED else -(-length // 8) * 8)
        if start + length > min(end, len(data)):
            raise ValueError("it is cut off")
        yield kind, data[start : start + length]
        data = data[end:]


def _unpacked(data: memoryview, order: str) -> Iterator[_Element]:
    """The elements of the file, the compressed ones unpacked."""
    room = MAX_MAT_UNPACKED
    for kind, content in _elements(data, order):
        if kind != _COMPRESSED:
            yield kind, content
            continue
        stream = zlib.decompressobj()
        inner = stream.decompress(content, room)
        room -= len(inner)
        if not stream.eof or not room:
            raise ValueError(f"it is cut off, or unpacks to more than {MAX_MAT_UNPACKED:,} bytes")
        yield from _elements(memoryview(inner), order)


def _matrix(parts: list[_Element], order: str) -> np.ndarray:
    """Of a matrix's parts: flags, shape, name, real values (and perhaps imaginary ones)."""
    (_, flags), (_, shape), _, (kind, values) = parts[:4]
    rows, columns = np.frombuffer(shape, f"{order}i4").tolist()
    if flags[0 if order == "<" else 3] not in _NUMERIC_CLASSES or kind not in _NUMBERS or len(parts) > 4:
        raise ValueError("it holds something else than a matrix of real numbers")
    if min(rows, columns) < 1 or rows * columns > MAX_IMAGE_PIXELS:
        raise ValueError(f"it holds a matrix of {rows} x {columns}")
    dtype = np.dtype(order + _NUMBERS[kind])
    if len(values) != rows * columns * dtype.itemsize:
        raise ValueError("it holds a matrix that does not fit its values")
    return np.frombuffer(values, dtype).reshape((rows, columns), order="F")
