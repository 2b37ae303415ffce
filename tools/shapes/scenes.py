"""Scenes: which shapes stand where, drawn anti-aliased on textured ground.

A scene is kept only if every shape can be told from its visible pixels.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

KINDS = ("circle", "square", "triangle", "star", "ring", "cross", "diamond")
COLOURS = {
    "red": (212, 38, 42), "orange": (244, 140, 28), "yellow": (248, 220, 50), "green": (46, 160, 67),
    "blue": (36, 96, 214), "purple": (138, 54, 178), "white": (244, 244, 240),
}  # fmt: skip
HOLE = 0.55  # inner / outer diameter of a ring
RIM = 0.86  # a shape has a rim of a darker shade; this share of its diameter lies inside the rim
RIM_SHADE = 0.68
SUPERSAMPLING = 4
GROUNDS = ((126, 116, 100), (104, 120, 108), (112, 116, 128), (138, 124, 112), (96, 104, 104))  # muted
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
class Shape:
    """A shape to draw: centre, diameter (its longest side) in pixels, angle in degrees, rgb in 0..255."""

    kind: str
    colour: str | None
    size: str
    rgb: tuple
    x: float
    y: float
    diameter: float
    angle: float


@dataclass(frozen=True)
class Scene:
    """Shapes in painting order, the last of them perhaps a bar, which is never referred to."""

    height: int
    width: int
    layers: list[Shape]
    gray: bool


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


def _polygon(count: int, radii: tuple = (1,)) -> np.ndarray:
    """Corners around a centre, the first on top, their radii in turn; their box is centred on 0, its longer side 1."""
    angle = np.arange(count) * 2 * np.pi / count
    points = np.stack([np.sin(angle), -np.cos(angle)], 1) * np.resize(radii, count)[:, None]
    low, high = points.min(0), points.max(0)
    return (points - (low + high) / 2) * (1 / (high - low).max())


_ARM = 0.17  # half the width of a cross's arm
_CROSS = [(-_ARM, -0.5), (_ARM, -0.5), (_ARM, -_ARM), (0.5, -_ARM), (0.5, _ARM), (_ARM, _ARM)]
OUTLINES = {  # corner points, x and y in -0.5..0.5
    "circle": _polygon(72),
    "ring": _polygon(72),
    "square": np.array([(-0.46, -0.46), (0.46, -0.46), (0.46, 0.46), (-0.46, 0.46)]),
    "triangle": _polygon(3),
    "star": _polygon(10, (1, 0.45)),
    "cross": np.array(_CROSS + [(-x, -y) for x, y in _CROSS]),
    "diamond": np.array([(0, -0.5), (0.33, 0), (0, 0.5), (-0.33, 0)]),
    "bar": np.array([(-0.5, -0.05), (0.5, -0.05), (0.5, 0.05), (-0.5, 0.05)]),
}


def _coverage(shape: Shape, height: int, width: int, inset: float = 1.0) -> tuple[tuple, np.ndarray]:
    """The part of the image that a shape (shrunk to `inset`) may touch, and how much of each pixel it covers.

    The shape's centre lies in the image, so the part is never empty. Returns (rows, columns) slices and
    float32 h w in 0..1.
    """
    angle = np.deg2rad(shape.angle)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    centre = np.array([shape.x, shape.y])
    points = OUTLINES[shape.kind] @ turn * shape.diameter
    low = np.clip(np.floor(centre + points.min(0)), 0, (width, height)).astype(int)
    high = np.clip(np.ceil(centre + points.max(0)), 0, (width, height)).astype(int)
    canvas = Image.new("L", tuple(((high - low) * SUPERSAMPLING).tolist()))
    pen = ImageDraw.Draw(canvas)
    loops = [(inset, 255)] + ([(HOLE * (2 - inset), 0)] if shape.kind == "ring" else [])
    for scale, fill in loops:
        corners = (centre - low + points * scale) * SUPERSAMPLING - 0.5  # pixel centres are whole numbers in PIL
        pen.polygon([tuple(p) for p in corners.tolist()], fill=fill)
    where = slice(int(low[1]), int(high[1])), slice(int(low[0]), int(high[0]))
    return where, np.asarray(canvas.reduce(SUPERSAMPLING), np.float32) / 255


def visible_masks(scene: Scene) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each shape but a bar, in painting order: all its pixels, and those that nothing later covers (bool H W)."""
    covered = np.zeros((scene.height, scene.width), bool)
    masks = []
    for shape in reversed(scene.layers):
        full = np.zeros_like(covered)
        where, coverage = _coverage(shape, scene.height, scene.width)
        full[where] = coverage >= 0.5
        if shape.kind != "bar":
            masks.append((full, full & ~covered))
        covered |= full
    return masks[::-1]


def paint(scene: Scene, rng: np.random.Generator) -> Image.Image:
    """The image of a scene: mode RGB, or L if the scene is gray. `rng` draws the ground's texture."""
    image = _ground(scene, rng)
    for shape in scene.layers:
        rgb = np.array(shape.rgb, np.float32)
        for inset, colour in ((1.0, rgb * RIM_SHADE), (RIM, rgb)):
            where, coverage = _coverage(shape, scene.height, scene.width, inset)
            image[where] += coverage[..., None] * (colour - image[where])
    result = Image.fromarray(np.clip(image + 0.5, 0, 255).astype(np.uint8))
    return result.convert("L") if scene.gray else result


def _ground(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Muted ground, float32 H W 3: patches of light and shade, stripes like a woven mat's, and fine grain."""
    height, width = scene.height, scene.width
    base = np.array(GROUNDS[rng.integers(len(GROUNDS))], np.float32) + rng.uniform(-8, 8, 3)
    shade = np.zeros((height, width), np.float32)
    for cells, strength in ((4, 9.0), (14, 6.0)):
        grid = rng.normal(0, strength, (cells, cells)).astype(np.float32)
        shade += np.asarray(Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC))
    direction, waves = rng.uniform(0, np.pi), rng.uniform(8, 20)
    y, x = np.mgrid[:height, :width].astype(np.float32) * (2 * np.pi * waves / max(height, width))
    shade += rng.uniform(0, 7) * np.sin(x * np.cos(direction) + y * np.sin(direction))
    shade += rng.normal(0, 3.0, (height, width))
    return (base + shade[..., None]).astype(np.float32)
