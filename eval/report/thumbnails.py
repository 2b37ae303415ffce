"""Thumbnails of predictions for the report's gallery, made while a split is evaluated.

Each image is stored once, as WebP; over it lies, for each expression, a lossless WebP of four colours: nothing, missed,
wrong, right. PNG would take half as much again.
"""

import io
from typing import NamedTuple

import numpy as np
from PIL import Image

from eval.evaluator import Prediction
from utils import device as distributed

SIDE = 192  # longer side, pixels
QUALITY = 52  # of WebP: about 4 kB a photograph
MISSED, WRONG, RIGHT = (66, 133, 255), (255, 92, 53), (52, 211, 115)  # the page's legend has the same
COLOURS = np.array([(0, 0, 0, 0), (*MISSED, 255), (*WRONG, 255), (*RIGHT, 255)], np.uint8)


class Shot(NamedTuple):
    """Of one expression: its image's name, the share of the image that the true mask covers, the overlay as WebP."""

    image: str
    share: float
    overlay: bytes


class Thumbnails:
    """`evaluate`'s on_sample: keeps the Shot of each expression, by index, and each image once, by name."""

    def __init__(self, threshold: float):
        self.threshold = threshold
        self.shots: dict[int, Shot] = {}
        self.images: dict[str, bytes] = {}

    def __call__(self, prediction: Prediction) -> None:
        score, mask = prediction.score, prediction.mask
        size = thumbnail_size(*mask.shape)
        if score.image_name not in self.images:
            self.images[score.image_name] = _webp(prediction.image, size)
        overlay = overlay_webp(mask, prediction.logits >= self.threshold, size)
        self.shots[score.index] = Shot(score.image_name, float(mask.mean()), overlay)

    def gather(self) -> None:
        """Take in those of all processes: a collective call."""
        self.shots = dict(distributed.gather(list(self.shots.items())))
        self.images = dict(distributed.gather(list(self.images.items())))


def thumbnail_size(height: int, width: int) -> tuple[int, int]:
    """(width, height) of the thumbnail of an image, which is never enlarged."""
    scale = min(1.0, SIDE / max(height, width))
    return max(1, round(width * scale)), max(1, round(height * scale))


def overlay_webp(truth: np.ndarray, found: np.ndarray, size: tuple[int, int]) -> bytes:
    """WebP of `size` (width, height): where two bool H x W masks agree and where not, elsewhere transparent."""
    truth, found = (_shrunk(mask, size) for mask in (truth, found))
    colours = COLOURS[truth + 2 * found]  # height width 4
    file = io.BytesIO()
    Image.fromarray(colours).save(file, "WEBP", lossless=True, method=2)
    return file.getvalue()


def _shrunk(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """uint8 0 or 1, width and height of `size`: 1 where at least half of a pixel's area is in the mask."""
    gray = Image.fromarray(mask.astype(np.uint8) * 255)
    return (np.asarray(gray.resize(size, Image.Resampling.BOX)) >= 128).astype(np.uint8)


def _webp(image: np.ndarray, size: tuple[int, int]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).resize(size, Image.Resampling.LANCZOS).save(file, "WEBP", quality=QUALITY, method=4)
    return file.getvalue()
