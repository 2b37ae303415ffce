"""Masks from COCO segmentations (polygons, RLE) and from MATLAB files of version 5 (also "7": compressed), ReferIt's.

scipy.io.loadmat allocates what a header claims, and takes type numbers in a file as indices of a table without a look,
so that a damaged one ends the process (a segmentation fault): headers are checked here before it sees them.
"""

import io
import math
import os
import re
import struct
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from utils.errors import InputError
from utils.files.images import MAX_IMAGE_PIXELS, MAX_IMAGE_SIDE
from utils.files.reading import MEBIBYTE, read_bytes, refusing

MAX_POLYGONS = 5_000
MAX_OUTLINE = 2_000_000  # pixels of all outlines of a ref together: drawing takes time and memory in proportion
MAX_RUN_CHARACTERS = 1_000_000
_REMEDY = "fix or leave out the annotation"
MAX_MAT_BYTES = 32 * MEBIBYTE
MAX_MAT_VALUES = 256 * MEBIBYTE
_HEADER = 128  # bytes: text, then version and byte order in the last four
_HEAD_BYTES = 256  # of an element: enough for flags, shape, a name of up to 63 characters and the tag of the values
_INT8, _INT32, _UINT32, _MATRIX, _COMPRESSED = 1, 5, 6, 14, 15
_ITEM_BYTES = {1: 1, 2: 1, 3: 2, 4: 2, 5: 4, 6: 4, 7: 4, 9: 8, 12: 8, 13: 8}  # of numbers, by their type
_NUMERIC_CLASSES = range(6, 16)  # double, single, and integers of 8 to 64 bits; logical is one of these with a flag
_COMPLEX = 0x800


def whole_number(value: Any) -> int | None:
    """A whole number as int, also of 72.0, "72" and "72.0"; None for anything else."""
    if type(value) is int:
        return value
    if type(value) is float:
        return int(value) if value.is_integer() else None
    if isinstance(value, str) and re.fullmatch(r"\s*[0-9]{1,20}(\.0*)?\s*", value):
        return int(value.partition(".")[0])
    return None


def checked_size(height: Any, width: Any, where: str) -> tuple[int, int]:
    """(height, width) in pixels if they are an image's. Raises InputError beginning with `where`."""
    sides = [whole_number(side) or 0 for side in (height, width)]
    if not all(0 < side <= MAX_IMAGE_SIDE for side in sides) or math.prod(sides) > MAX_IMAGE_PIXELS:
        raise InputError(f"{where}: the height and width given are not those of an image; {_REMEDY}")
    return sides[0], sides[1]


def require_size(image: Path, size: tuple[int, int], said: tuple[int, int], by: Path) -> None:
    """Raise InputError unless the image's size (height, width) is what the file `by` said."""
    if size != said:
        raise InputError(
            f"{image}: is {size[0]} x {size[1]} pixels (height x width), but {by} says {said[0]} x {said[1]}; "
            "get the image that the annotations were made for"
        )


def checked_segmentation(segmentation: Any, size: tuple[int, int], where: str) -> list | dict:
    """A COCO segmentation that is safe to draw at `size`: polygons, RLE as a list of counts.

    Polygons of fewer than three points are left out where others remain: they have no area, and COCO's own code draws
    nothing for them. Raises InputError beginning with `where`.
    """
    try:
        if isinstance(segmentation, dict):
            return {"size": list(size), "counts": _checked_runs(segmentation, size)}
        return _checked_polygons(segmentation, size)
    except ValueError as error:
        raise InputError(f"{where}: {error}; {_REMEDY}") from error


def united(parts: list[list | dict], size: tuple[int, int], where: str) -> list:
    """The union of several objects that `checked_segmentation` returned, or of none: polygons and RLE in one list.

    Raises InputError, as that does, if there is too much to draw.
    """
    polygons = [polygon for part in parts if isinstance(part, list) for polygon in part]
    runs = [part for part in parts if isinstance(part, dict)]
    return (checked_segmentation(polygons, size, where) if polygons else []) + runs


def _checked_polygons(polygons: Any, size: tuple[int, int]) -> list:
    if not isinstance(polygons, list) or not 0 < len(polygons) <= MAX_POLYGONS:
        raise ValueError("the segmentation is neither polygons nor RLE")
    if not all(isinstance(p, list) and all(type(value) in (int, float) for value in p) for p in polygons):
        raise ValueError("a polygon is not a list of numbers")
    outline, side = 0.0, np.array(size[::-1])
    kept = [polygon for polygon in polygons if len(polygon) >= 6 or len(polygon) % 2]
    for polygon in kept or polygons:
        if len(polygon) < 6 or len(polygon) % 2:
            raise ValueError(f"a polygon has {len(polygon)} numbers; it takes x, y of three points or more")
        if not all(-MAX_IMAGE_SIDE <= value <= 2 * MAX_IMAGE_SIDE for value in polygon):
            raise ValueError("a polygon has a coordinate that is infinite, not a number or far too large")
        points = np.array(polygon, np.float64).reshape(-1, 2)  # N 2 (x, y)
        if (points < -side).any() or (points > 2 * side).any():
            raise ValueError(f"a polygon reaches far outside of the image, which is {size[1]} x {size[0]}")
        outline += np.abs(points - np.roll(points, 1, axis=0)).max(axis=1).sum()
    if outline > MAX_OUTLINE:
        raise ValueError("the polygons' outlines are too long to be an object's")
    return kept


def _checked_runs(rle: dict, size: tuple[int, int]) -> list[int]:
    if rle.get("size") != list(size):
        raise ValueError(f"the RLE is not for the image's height and width, {size[0]} and {size[1]}")
    counts = rle.get("counts")
    if isinstance(counts, str):
        if counts.startswith(("b'", 'b"')):
            raise ValueError("the RLE is Python's form of bytes, b'...': write counts.decode() to the file")
        counts = _unpacked_counts(counts)
    if not isinstance(counts, list) or not all(type(run) is int and run >= 0 for run in counts):
        raise ValueError("the RLE counts are not whole numbers of pixels")
    if sum(counts) != size[0] * size[1]:
        raise ValueError("the RLE counts do not add up to the image")
    return counts


def _unpacked_counts(text: str) -> list[int]:
    """Counts of COCO's compressed form: 5 bits a character, lowest first; from the fourth on, less the last but one."""
    if len(text) > MAX_RUN_CHARACTERS or not re.fullmatch("(?:[P-o]{0,6}+[0-O])++", text):
        raise ValueError("the compressed RLE is damaged, cut off or too long")
    codes = np.frombuffer(text.encode(), np.uint8).astype(np.int64) - 48
    lasts = np.flatnonzero(codes < 32)  # all characters of a number but its last have 32 added
    firsts = np.append(0, lasts[:-1] + 1)
    shifts = 5 * (np.arange(len(codes)) - np.repeat(firsts, lasts - firsts + 1))
    counts = np.add.reduceat((codes & 31) << shifts, firsts)
    counts -= (codes[lasts] >> 4 & 1) << shifts[lasts] + 5  # the sign, in the highest bit
    for start in (1, 2):
        counts[start::2] = np.cumsum(counts[start::2])
    return counts.tolist()


def draw(segmentation: list | dict, size: tuple[int, int]) -> np.ndarray:
    """What `checked_segmentation` or `united` returned, as bool H x W: the union of polygons, or the odd runs."""
    if isinstance(segmentation, dict):
        counts = segmentation["counts"]
        inside = np.arange(len(counts)) % 2 == 1
        return np.repeat(inside, counts).reshape(size[::-1]).T.copy()  # runs go down the columns
    from pycocotools import mask as coco

    mask, polygons = np.zeros(size, bool), [part for part in segmentation if isinstance(part, list)]
    if polygons:
        mask |= coco.decode(coco.merge(coco.frPyObjects(polygons, *size))).astype(bool)
    for runs in segmentation:
        if isinstance(runs, dict):
            mask |= draw(runs, size)
    return mask


def read_mat_mask(path: Path) -> np.ndarray:
    """ReferIt's mask: where `segimg_t` of the .mat file is 0, as bool H x W. Raises InputError."""
    mask = read_mat(path, "segimg_t", "get ReferIt's masks again (data/README.md)") == 0
    checked_size(*mask.shape, str(path))
    return mask


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
                    warnings.simplefilter("ignore")  # not "error", which would hold in other threads too
                    matrix = loadmat(alone, variable_names=[variable])[variable]
                if not isinstance(matrix, np.ndarray):  # scipy's text of what it could not read
                    raise ValueError("it is damaged")
                return matrix
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
