"""Resize-and-pad and resize-and-crop: one rounding rule, in NumPy for preparation and in torch for evaluation.

Sizes are always (height, width). The NumPy half gives, bit for bit, what `skimage.transform.resize` with its defaults
gives, several times faster; `utils/resample.py` says how. The torch half is the evaluation protocol (docs/PAPER.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from utils import resample

if TYPE_CHECKING:  # preparation uses this module in many worker processes, which have no need of torch
    from torch import Tensor


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


def resize_and_pad(image: Tensor, size: tuple[int, int], antialias: bool = False, fill: float | Tensor = 0.0) -> Tensor:
    """An evaluation image onto the network's canvas: float B x C x h x w -> B x C x H x W.

    Bilinear with half-pixel centres; `antialias`: through a filter, as Pillow does, where it shrinks. `fill` is the
    canvas's colour after normalisation: 0.0, which is mid-grey for mean 0.5, or a tensor of C values.
    """
    from torch.nn import functional

    fit = fit_inside(*image.shape[-2:], size)
    resized = functional.interpolate(
        image, (fit.height, fit.width), mode="bilinear", align_corners=False, antialias=antialias
    )
    canvas = image.new_empty(*image.shape[:2], *size)
    canvas[:] = fill if isinstance(fill, float | int) else fill.view(-1, 1, 1)
    canvas[..., fit.top : fit.top + fit.height, fit.left : fit.left + fit.width] = resized
    return canvas


def resize_and_crop(logits: Tensor, height: int, width: int) -> Tensor:
    """Network logits back to an image's own resolution: float N x C x H x W -> N x C x `height` x `width`.

    The inverse of `resize_and_pad`: resized by max(height/H, width/W), then the centre is cut out.
    """
    from torch.nn import functional

    canvas = logits.shape[-2:]
    scale = max(height / canvas[0], width / canvas[1])
    resized = max(height, round(canvas[0] * scale)), max(width, round(canvas[1] * scale))
    top, left = centre((height, width), resized)
    logits = functional.interpolate(logits, resized, mode="bilinear", align_corners=False)
    return logits[..., top : top + height, left : left + width]
