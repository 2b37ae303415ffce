"""Segmentations as annotation files give them -- polygons, run lengths, .mat files -- checked, and drawn as masks."""

import math
import re
from pathlib import Path
from typing import Any

import numpy as np

from utils.errors import InputError
from utils.mat_file import read_mat
from utils.safe_io import MAX_IMAGE_PIXELS, MAX_IMAGE_SIDE

MAX_POLYGONS = 5_000
MAX_OUTLINE = 2_000_000  # pixels of all outlines of a ref together: drawing takes time and memory in proportion
MAX_RUN_CHARACTERS = 1_000_000

_REMEDY = "mend or leave out the annotation"


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


def checked_segmentation(segmentation: Any, size: tuple[int, int], where: str) -> list | dict:
    """A COCO segmentation that is safe to draw at `size`: polygons, run lengths as a list of counts.

    Polygons of fewer than three points are left out where others remain: they have no area, and COCO's own code draws
    nothing for them. Raises InputError beginning with `where`.
    """
    try:
        if isinstance(segmentation, dict):
            return {"size": list(size), "counts": _checked_runs(segmentation, size)}
        return _checked_polygons(segmentation, size)
    except ValueError as error:
        raise InputError(f"{where}: {error}; {_REMEDY}") from error


def _checked_polygons(polygons: Any, size: tuple[int, int]) -> list:
    if not isinstance(polygons, list) or not 0 < len(polygons) <= MAX_POLYGONS:
        raise ValueError("the segmentation is neither polygons nor run lengths")
    for polygon in polygons:
        if not isinstance(polygon, list) or not all(type(value) in (int, float) for value in polygon):
            raise ValueError("a polygon is not a list of numbers")
    outline = 0.0
    kept = [polygon for polygon in polygons if len(polygon) >= 6 or len(polygon) % 2]
    for polygon in kept or polygons:
        if len(polygon) < 6 or len(polygon) % 2:
            raise ValueError(f"a polygon has {len(polygon)} numbers; it takes x, y of three points or more")
        if not all(-MAX_IMAGE_SIDE <= value <= 2 * MAX_IMAGE_SIDE for value in polygon):
            raise ValueError("a polygon has a coordinate that is infinite, not a number or far too large")
        points = np.array(polygon, np.float64).reshape(-1, 2)  # N 2 (x, y)
        side = np.array(size[::-1])
        if (points < -side).any() or (points > 2 * side).any():
            raise ValueError(f"a polygon reaches far outside of the image, which is {size[1]} x {size[0]}")
        outline += np.abs(points - np.roll(points, 1, axis=0)).max(axis=1).sum()
    if outline > MAX_OUTLINE:
        raise ValueError("the polygons' outlines are too long to be an object's")
    return kept


def _checked_runs(rle: dict, size: tuple[int, int]) -> list[int]:
    if rle.get("size") != list(size):
        raise ValueError(f"the run lengths are not for the image's height and width, {size[0]} and {size[1]}")
    counts = rle.get("counts")
    if isinstance(counts, str):
        if counts.startswith(("b'", 'b"')):
            raise ValueError("the run lengths are Python's form of bytes, b'...': write counts.decode() to the file")
        counts = _unpacked_counts(counts)
    if not isinstance(counts, list) or not all(type(run) is int and run >= 0 for run in counts):
        raise ValueError("the run lengths are not whole numbers of pixels")
    if sum(counts) != size[0] * size[1]:
        raise ValueError("the run lengths do not add up to the image")
    return counts


def _unpacked_counts(text: str) -> list[int]:
    """Counts of COCO's compressed form: 5 bits a character, lowest first; from the fourth on, less the last but one."""
    if len(text) > MAX_RUN_CHARACTERS:
        raise ValueError("the compressed run lengths are too long")
    counts: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 30:
            raise ValueError("the compressed run lengths are damaged")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:  # the number goes on
            continue
        if bits & 16:  # negative
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    if shift:
        raise ValueError("the compressed run lengths are cut off")
    return counts


def draw(segmentation: list | dict, size: tuple[int, int]) -> np.ndarray:
    """What `checked_segmentation` returned, as bool H x W: the union of polygons, or the odd runs. SPEC section 3."""
    if isinstance(segmentation, dict):
        counts = segmentation["counts"]
        inside = np.arange(len(counts)) % 2 == 1
        return np.repeat(inside, counts).reshape(size[::-1]).T.copy()  # runs go down the columns
    from pycocotools import mask as coco

    return coco.decode(coco.merge(coco.frPyObjects(segmentation, *size))).astype(bool)


def read_mat_mask(path: Path) -> np.ndarray:
    """ReferIt's mask: where `segimg_t` of the .mat file is 0, as bool H x W. Raises InputError. SPEC section 3."""
    mask = read_mat(path, "segimg_t", "get ReferIt's masks again (data/README.md)") == 0
    checked_size(*mask.shape, str(path))
    return mask
