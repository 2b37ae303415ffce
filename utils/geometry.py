"""Where an image lands on a canvas. Sizes are always (height, width)."""

from typing import NamedTuple

import numpy as np


class Fit(NamedTuple):
    """Where an image lands on a canvas: resized to `size` (height, width), at canvas[window]."""

    size: tuple[int, int]
    window: tuple[slice, slice]


def fit_inside(height: int, width: int, size: tuple[int, int]) -> Fit:
    """The largest placement of a `height` x `width` image within a canvas of `size` that keeps its aspect ratio.

    scale = min(H/height, W/width); sides are rounded half to even, but never below one pixel; offsets are rounded down.
    """
    scale = min(size[0] / height, size[1] / width)
    resized = max(1, round(height * scale)), max(1, round(width * scale))
    return Fit(resized, window(resized, size))


def window(inner: tuple[int, int], outer: tuple[int, int]) -> tuple[slice, slice]:
    """An `inner` rectangle centred in an `outer` one, offsets rounded down."""
    top, left = (outer[0] - inner[0]) // 2, (outer[1] - inner[1]) // 2
    return slice(top, top + inner[0]), slice(left, left + inner[1])


def pad(array: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """`array` (h x w or h x w x C) centred on a zero canvas of `size`; same dtype, C-contiguous."""
    canvas = np.zeros((*size, *array.shape[2:]), array.dtype)
    canvas[window(array.shape[:2], size)] = array
    return canvas
