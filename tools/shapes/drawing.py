"""Drawing: anti-aliased shapes on textured ground, and the pixels of each shape that remain visible."""

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
