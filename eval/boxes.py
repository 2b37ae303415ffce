"""Bounding boxes of masks, and how much two of them overlap, in whole pixels on the masks' device."""

import torch
from torch import Tensor


def mask_boxes(masks: Tensor) -> Tensor:
    """The smallest box around each mask: bool n x H x W -> int64 n x 4 (left, top, right, bottom), in pixels.

    Right and bottom are the first column and row beyond the mask: right - left is the width. An empty mask has the box
    0, 0, 0, 0. (torchvision's masks_to_boxes gives that to a single pixel at the corner, too.)
    """
    pixels, first, last = masks.view(torch.uint8), [], []  # amax of uint8 takes a CPU a hundredth of bool's any
    for lines in (pixels.amax(1), pixels.amax(2)):  # n W, n H: the columns and the rows that hold a pixel
        places = torch.arange(1, lines.shape[1] + 1, device=masks.device)
        last.append((lines * places).amax(1))
        start = lines.shape[1] - (lines * places.flip(0)).amax(1)
        first.append(start.minimum(last[-1]))  # of an empty mask 0
    return torch.stack([*first, *last], 1)


def box_overlap(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """(intersection, union) in pixels, int64 n each, of boxes n x 4 as `mask_boxes` gives them, pair by pair."""
    corners = torch.maximum(a[:, :2], b[:, :2]), torch.minimum(a[:, 2:], b[:, 2:])
    intersection = _area((corners[1] - corners[0]).clamp(min=0))
    return intersection, _area(a[:, 2:] - a[:, :2]) + _area(b[:, 2:] - b[:, :2]) - intersection


def _area(sides: Tensor) -> Tensor:
    """n x 2 to n. Not `prod`, for which a GPU first compiles a kernel."""
    return sides[:, 0] * sides[:, 1]
