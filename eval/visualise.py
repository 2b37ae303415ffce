"""Images of predictions: `--is_vis`.

Per sample NAME_image.jpg, NAME_gt.png and NAME_pred.png (0 or 255), NAME_soft.png (probability, 0 to 255), all at the
original size, and NAME.jpg, the four, two by two, under the expression, which TensorBoard shows as well.
"""

import textwrap
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from itertools import count
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from eval.evaluator import Prediction
from utils.errors import one_line
from utils.files.reading import safe_name
from utils.files.writing import atomic_write
from utils.geometry import fit_inside

GREEN, ORANGE = (60, 220, 110), (255, 128, 20)
PANEL_SIDE = 360  # longer side of each of the four, in pixels
GAP = 10
MIN_COLUMN = 220  # room for the titles of a narrow image
_PAPER, _INK = (250, 250, 248), (30, 30, 30)
# Colours of the probability from 0 to 1 in equal steps from dark to light, so that grey print can be read, too.
_HEAT = np.array([(8, 8, 30), (84, 15, 109), (187, 55, 84), (249, 142, 9), (252, 250, 160)], dtype=float)


def spread(number: int, most: int) -> set[int]:
    """Indices of `most` samples of a split of `number`, evenly spread over it; of all if it has no more."""
    return set(np.linspace(0, number - 1, min(most, number)).astype(int).tolist())


def probability(logits: np.ndarray) -> np.ndarray:
    """Sigmoid of float logits of any shape, without overflow."""
    return 0.5 * (1.0 + np.tanh(0.5 * logits))


def overlay(image: np.ndarray, mask: np.ndarray, colour: tuple[int, int, int], strength: float = 0.5) -> np.ndarray:
    """`image` (H x W x 3 uint8) with the region of `mask` (H x W bool) tinted and edged in `colour`."""
    shown = image.astype(np.float32)
    shown[mask] += strength * (np.array(colour, np.float32) - shown[mask])
    broad = 1 + (max(mask.shape) - 1) // 480  # to each side, so that the edge of a large image is seen on a screen
    blurred = np.asarray(Image.fromarray(mask.astype(np.uint8) * 255).filter(ImageFilter.BoxBlur(broad)))
    edge = (blurred > 0) & (blurred < 255)
    shown[edge] = colour
    return shown.astype(np.uint8)


def highlight(image: np.ndarray, mask: np.ndarray, colour: tuple[int, int, int] = ORANGE) -> np.ndarray:
    """`image` with what `mask` leaves out darkened, and an edge in `colour`; what it finds keeps its own."""
    return overlay(np.where(mask[..., None], image, image // 2), mask, colour, strength=0)


def heat(image: np.ndarray, soft: np.ndarray) -> np.ndarray:
    """The probability `soft` (H x W in [0, 1]) in colours over a darkened grey `image` (H x W x 3 uint8)."""
    place = soft * (len(_HEAT) - 1)
    stops = np.arange(len(_HEAT))
    colours = np.stack([np.interp(place, stops, channel) for channel in _HEAT.T], -1)  # H W 3
    grey = image.mean(-1, keepdims=True)
    return (0.25 * grey + 0.75 * colours).astype(np.uint8)


def patch_picture(image: np.ndarray, patches: np.ndarray, canvas: tuple[int, int]) -> np.ndarray:
    """The probability of each patch (logits rows x columns over the `canvas`) as coloured squares over the image."""
    soft = np.kron(probability(patches), np.ones((canvas[0] // patches.shape[0], canvas[1] // patches.shape[1])))
    soft = soft[fit_inside(*image.shape[:2], canvas).window]
    size = image.shape[1::-1]
    return heat(image, np.asarray(Image.fromarray(soft.astype(np.float32)).resize(size, Image.Resampling.NEAREST)))


def sheet(prediction: Prediction) -> Image.Image:
    """Image, ground truth, probability and prediction, two by two, with the expression and the IoU above them."""
    height, width = prediction.mask.shape
    factor = PANEL_SIDE / max(height, width)
    size = max(1, round(width * factor)), max(1, round(height * factor))
    nearest, smooth = Image.Resampling.NEAREST, Image.Resampling.LANCZOS if factor < 1 else Image.Resampling.BICUBIC
    image = np.asarray(Image.fromarray(prediction.image).resize(size, smooth))
    mask, hard, soft = (
        np.asarray(Image.fromarray(array).resize(size, nearest))
        for array in (prediction.mask, prediction.found, probability(prediction.logits))
    )
    panels = [
        ("image", image),
        ("ground truth", highlight(image, mask, GREEN)),
        ("probability", heat(image, soft)),
        (f"prediction, IoU {prediction.score.iou:.2f}", highlight(image, hard)),
    ]
    return grid(panels, 2, prediction.score.sentence)


def grid(panels: Sequence[tuple[str, np.ndarray]], columns: int, caption: str = "") -> Image.Image:
    """Pictures (uint8 H x W x 3) in rows of `columns`, each below its title, and all of them below the caption.

    Long texts are broken into lines, very long ones end in dots; what the font lacks, as Chinese, stays a box.
    """
    column = max(MIN_COLUMN, *(panel.shape[1] for _, panel in panels))
    width = GAP + columns * (column + GAP)
    heading = _lines(caption, 26, width - 2 * GAP, 3)
    texts, pictures, y = [(GAP, GAP, heading, 26)], [], GAP + _height(heading, 26)
    for start in range(0, len(panels), columns):
        row = [(_lines(title, 17, column, 2), panel) for title, panel in panels[start : start + columns]]
        y += max(_height(lines, 17) for lines, _ in row)
        for x, (lines, panel) in zip(count(GAP, column + GAP), row, strict=False):
            texts.append((x, y - _height(lines, 17), lines, 17))
            pictures.append((x + (column - panel.shape[1]) // 2, y, panel))
        y += max(len(panel) for _, panel in row) + GAP
    page = Image.new("RGB", (width, y), _PAPER)
    draw = ImageDraw.Draw(page)
    for left, top, lines, size in texts:
        for number, line in enumerate(lines):
            draw.text((left, top + _height(lines[:number], size)), line, _INK, _font(size))
    for left, top, panel in pictures:
        page.paste(Image.fromarray(panel), (left, top))
    return page


def write_prediction(folder: Path, prediction: Prediction) -> None:
    """Write the five files of a sample into `folder`, which must exist; their names come from the sample's name only.

    Raises InputError for a sample name that is not a plain file name.
    """
    name = safe_name(prediction.score.name, "the name of a sample")
    soft = np.rint(255 * probability(prediction.logits)).astype(np.uint8)
    pictures = {
        f"{name}_image.jpg": Image.fromarray(prediction.image),
        f"{name}_gt.png": Image.fromarray(prediction.mask.astype(np.uint8) * 255),
        f"{name}_soft.png": Image.fromarray(soft),
        f"{name}_pred.png": Image.fromarray(prediction.found.astype(np.uint8) * 255),
        f"{name}.jpg": sheet(prediction),
    }
    for file_name, picture in pictures.items():
        with atomic_write(folder / file_name, durable=False) as file:
            picture.save(file, "JPEG" if file_name.endswith(".jpg") else "PNG", quality=92)


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which has the letters of European languages; Pillow's own has no accents."""
    package = Path(find_spec("matplotlib").origin).parent  # not imported: it takes half a second and may warn
    return ImageFont.truetype(package / "mpl-data/fonts/ttf/DejaVuSans.ttf", size)


def _lines(text: str, size: int, width: int, most: int) -> list[str]:
    """The text as up to `most` lines of up to `width` pixels each, without control characters."""
    text, lines = one_line(text, 1000), []
    for characters in range(width // 5, 3, -1):
        lines = textwrap.wrap(text, characters, max_lines=most, placeholder=" ...")
        if all(_font(size).getlength(line) <= width for line in lines):
            break
    return lines


def _height(lines: list[str], size: int) -> int:
    return round(1.4 * size) * len(lines)
