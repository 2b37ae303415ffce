"""Masks as COCO writes them: polygons, or uncompressed RLE where a mask has a hole."""

import numpy as np

from tools.shapes.scenes import extent


def segmentation(mask: np.ndarray) -> list[list[float]] | dict:
    """COCO's form of a bool H W mask: one polygon for each part, or uncompressed RLE where a part has a hole.

    A polygon goes along pixel edges, so that it decodes to exactly this mask; COCO's polygons cannot say "hole".
    """
    loops = _loops(mask)
    if any(_area(loop) < 0 for loop in loops):
        return rle(mask)
    return [np.ravel(loop).astype(float).tolist() for loop in loops]


def rle(mask: np.ndarray) -> dict:
    """COCO's uncompressed RLE of a bool H W mask: how many zeros, ones, zeros, ... stand down the columns."""
    pixels = np.concatenate([[0], mask.ravel(order="F"), [2]]).astype(np.int8)
    ends = np.flatnonzero(np.diff(pixels))
    return {"counts": np.diff(ends, prepend=0).tolist(), "size": list(mask.shape)}


def annotation(mask: np.ndarray, ann_id: int, image_id: int, category_id: int) -> dict:
    """One entry of `annotations` in instances.json."""
    top, bottom, left, right = extent(mask)
    return {
        "segmentation": segmentation(mask),
        "area": float(mask.sum()),
        "iscrowd": 0,
        "image_id": image_id,
        "bbox": [float(left), float(top), float(right - left), float(bottom - top)],
        "category_id": category_id,
        "id": ann_id,
    }


def _loops(mask: np.ndarray) -> list[list[tuple[int, int]]]:
    """Borders of a mask as closed loops of (x, y) pixel corners: clockwise around a part, else around a hole.

    Pixels that touch only at a corner belong to different parts.
    """
    padded = np.pad(mask, 1)
    inside = padded[1:-1, 1:-1]
    following: dict[tuple[int, int], list[tuple[int, int]]] = {}
    # each side of a pixel with nothing beyond it: where that neighbour is, and the edge's start and end
    sides = (
        (padded[:-2, 1:-1], (0, 0), (1, 0)),
        (padded[1:-1, 2:], (1, 0), (1, 1)),
        (padded[2:, 1:-1], (1, 1), (0, 1)),
        (padded[1:-1, :-2], (0, 1), (0, 0)),
    )
    for neighbour, (x0, y0), (x1, y1) in sides:
        for y, x in np.argwhere(inside & ~neighbour).tolist():
            following.setdefault((x + x0, y + y0), []).append((x + x1, y + y1))
    loops = []
    while following:
        loops.append(_walk(following, next(iter(following))))
    return loops


def _walk(following: dict, start: tuple[int, int]) -> list[tuple[int, int]]:
    """Follow and use up the edges from `start` until it is reached again; only the corners are kept."""
    loop, here, heading = [], start, (0, 0)
    while True:
        ends = following[here]
        right_turn = (here[0] - heading[1], here[1] + heading[0])
        there = right_turn if right_turn in ends else ends[0]  # two ways at a touching corner: stay with this part
        ends.remove(there)
        if not ends:
            del following[here]
        step = (there[0] - here[0], there[1] - here[1])
        if step != heading:
            loop.append(here)
        here, heading = there, step
        if here == start:
            return loop


def _area(loop: list[tuple[int, int]]) -> float:
    """Positive for clockwise on the screen (y downwards)."""
    x, y = np.array(loop, float).T
    return float((x * np.roll(y, -1) - y * np.roll(x, -1)).sum() / 2)
