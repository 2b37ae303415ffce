"""Scenes: which shapes stand where. A scene is kept only if every shape can be told from its visible pixels."""

from dataclasses import dataclass

import numpy as np

from tools.shapes.drawing import COLOURS, Scene, Shape, visible_masks

SIZES = {"small": 1 / 3.2, "big": 1 / 2.1}  # longest side of a shape / longer side of the image
SIZE_JITTER = 0.05  # far less than the gap between small and big
# Percent of each kind. Thin shapes cost a small model most of its IoU, so they are rare.
KIND_SHARES = {"circle": 23, "square": 23, "triangle": 23, "diamond": 19, "star": 4, "cross": 4, "ring": 4}
ASPECTS = {4 / 3: 0.2, 3 / 4: 0.1, 1.0: 0.7}  # width / height -> share: landscape, portrait and square images
GRAY_SHARE = 0.03  # COCO has a few grayscale photographs
BAR_SHARE = 0.15  # scenes in which a bar cuts a big shape into parts
MAX_BIG = 2  # more would not fit beside the small ones
TILT = 12  # degrees: a square never turns into a diamond
MIN_VISIBLE = 0.65  # share of a shape's pixels that nothing covers
MIN_EXTENT = 0.85  # visible / full extent, so that a covered big shape does not pass for a small one
MIN_PIXELS = 0.004  # visible pixels / (longer side of the image)^2: 66 pixels at 128


@dataclass(frozen=True)
class Thing:
    """What can be seen of a shape: its attributes, the centre of its visible box in pixels, its mask (bool H W).

    `colour` is None in a grayscale image, where no expression may name it.
    """

    kind: str
    colour: str | None
    size: str
    x: float
    y: float
    mask: np.ndarray


def sample_scene(rng: np.random.Generator, image_size: int) -> tuple[Scene, list[Thing]]:
    """A random scene whose longer side is `image_size` pixels, and its visible things in painting order.

    At least two things have attributes (kind, colour, size) that no other thing of the scene shares.
    """
    gray = bool(rng.random() < GRAY_SHARE)
    aspect = rng.choice(list(ASPECTS), p=list(ASPECTS.values()))
    width, height = round(image_size * min(1, aspect)), round(image_size * min(1, 1 / aspect))
    while True:
        described = _attributes(rng, gray)
        unique = sum(described.count(attributes) == 1 for attributes in described)
        if unique < 2 or sum(size == "big" for _, _, size in described) > MAX_BIG:
            continue
        shapes = _place(rng, described, height, width)
        if shapes is None:
            continue
        scene = Scene(height, width, [*shapes, *_bar(rng, shapes, image_size)], gray)
        things = _look(scene)
        if things is not None:
            return scene, things


def _attributes(rng: np.random.Generator, gray: bool) -> list[tuple]:
    """2-4 shapes of different colours; in a grayscale image of different kinds instead."""
    count = int(rng.integers(2, 5))
    kinds = rng.choice(list(KIND_SHARES), count, replace=not gray, p=np.array(list(KIND_SHARES.values())) / 100)
    colours = [None] * count if gray else [str(c) for c in rng.choice(list(COLOURS), count, replace=False)]
    return [(str(kind), colour, str(rng.choice(list(SIZES)))) for kind, colour in zip(kinds, colours, strict=True)]


def _place(rng: np.random.Generator, described: list[tuple], height: int, width: int) -> list[Shape] | None:
    """Shapes with positions inside the image, overlapping a little at most; None if they do not fit."""
    placed: list[Shape] = []
    for kind, colour, size in sorted(described, key=lambda attributes: attributes[2]):  # big ones first
        diameter = SIZES[size] * max(height, width) * (1 + SIZE_JITTER * rng.uniform(-1, 1))
        room = 0.56 * diameter + 1  # half a tilted square
        for _ in range(40):
            x, y = rng.uniform(room, width - room), rng.uniform(room, height - room)
            if all(np.hypot(x - s.x, y - s.y) > 0.47 * (diameter + s.diameter) for s in placed):
                break
        else:
            return None
        if colour is None:
            rgb = (rng.uniform(190, 245),) * 3  # clear of the ground and of the bar
        else:
            rgb = tuple(np.clip(np.array(COLOURS[colour]) * rng.uniform(0.92, 1.04) + rng.uniform(-6, 6, 3), 0, 255))
        placed.append(Shape(kind, colour, size, rgb, x, y, diameter, rng.uniform(-TILT, TILT)))
    return [placed[i] for i in rng.permutation(len(placed))]


def _bar(rng: np.random.Generator, shapes: list[Shape], image_size: int) -> list[Shape]:
    """A bar across the middle of one big shape, or nothing."""
    big = [s for s in shapes if s.size == "big"]
    if not big or rng.random() >= BAR_SHARE:
        return []
    below = big[rng.integers(len(big))]
    x, y = (centre + rng.uniform(-0.08, 0.08) * below.diameter for centre in (below.x, below.y))
    return [Shape("bar", None, "big", (58, 48, 42), x, y, 0.5 * image_size, rng.uniform(-90, 90))]


def _look(scene: Scene) -> list[Thing] | None:
    """The visible things, or None if too little is left of one of them."""
    things = []
    for shape, (full, visible) in zip(scene.layers, visible_masks(scene), strict=False):  # without the bar
        pixels, longest = visible.sum(), max(scene.height, scene.width)
        if pixels < MIN_VISIBLE * full.sum() or pixels < MIN_PIXELS * longest**2:
            return None
        top, bottom, left, right = extent(visible)
        if max(bottom - top, right - left) < MIN_EXTENT * shape.diameter:
            return None
        x, y = (left + right) / 2, (top + bottom) / 2
        things.append(Thing(shape.kind, shape.colour, shape.size, x, y, visible))
    return things


def extent(mask: np.ndarray) -> tuple[int, int, int, int]:
    """top, bottom, left, right of the True pixels of a bool H W mask, in pixel edges (bottom and right excluded)."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
