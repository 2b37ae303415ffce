"""One rounding rule for where an image lands on a canvas, and the NumPy half of resizing, for preparation.

Sizes are always (height, width). The half in torch, for evaluation, is in `models/inference.py`.
"""

from dataclasses import dataclass

import numpy as np

from utils import resample


@dataclass(frozen=True)
class Fit:
    """Where an image lands on a canvas: resized by `scale` to `height` x `width`, its corner at (`top`, `left`)."""

    scale: float
    height: int
    width: int
    top: int
    left: int


def fit_inside(height: int, width: int, size: tuple[int, int]) -> Fit:
    """The largest placement of a `height` x `width` image within a canvas of `size` that keeps its aspect ratio.

    scale = min(H/height, W/width); sides are rounded half to even, but never below one pixel; offsets are rounded down.
    """
    scale = min(size[0] / height, size[1] / width)
    new_height, new_width = max(1, round(height * scale)), max(1, round(width * scale))
    return Fit(scale, new_height, new_width, *centre((new_height, new_width), size))


def centre(inner: tuple[int, int], outer: tuple[int, int]) -> tuple[int, int]:
    """Offset (top, left) of an `inner` rectangle centred in an `outer` one, rounded down."""
    return (outer[0] - inner[0]) // 2, (outer[1] - inner[1]) // 2


def resize_image(image: np.ndarray, fit: Fit) -> np.ndarray:
    """uint8 H x W x 3 -> uint8 of the fit's size, equal to `img_as_ubyte(skimage.transform.resize(...))`."""
    return resample.resize_image(image, (fit.height, fit.width))


def resize_mask(mask: np.ndarray, fit: Fit) -> np.ndarray:
    """bool H x W -> bool of the fit's size, equal to `skimage.transform.resize(mask as float32) > 0`."""
    return resample.resize_mask(mask, (fit.height, fit.width))


def pad(array: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """`array` (h x w or h x w x C) centred on a zero canvas of `size`; same dtype, C-contiguous."""
    top, left = centre(array.shape[:2], size)
    canvas = np.zeros((*size, *array.shape[2:]), array.dtype)
    canvas[top : top + array.shape[0], left : left + array.shape[1]] = array
    return canvas
