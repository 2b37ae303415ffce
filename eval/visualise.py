"""Images of predictions: `--is_vis`.

Per sample NAME_image.jpg, NAME_gt.png and NAME_pred.png (0 or 255), NAME_soft.png (probability, 0 to 255), all at the
original size, and NAME.jpg, the four side by side under the expression.
"""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from eval.evaluator import Prediction
from utils.errors import one_line
from utils.files.reading import safe_name
from utils.files.writing import atomic_write
from utils.geometry import fit_inside

GREEN, ORANGE = (60, 220, 110), (255, 128, 20)
PANEL_SIDE = 360  # longer side of a panel of the strip, in pixels
GAP = 8
_PAPER, _INK, _FAINT = (250, 250, 248), (30, 30, 30), (115, 115, 115)
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
    grey = Image.fromarray(mask.astype(np.uint8) * 255)
    edge = np.asarray(grey.filter(ImageFilter.MaxFilter(3))) != np.asarray(grey.filter(ImageFilter.MinFilter(3)))
    shown[edge] = colour
    return shown.astype(np.uint8)


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


def strip(prediction: Prediction, threshold: float) -> Image.Image:
    """Image, ground truth, probability and prediction side by side, with the expression and the IoU above."""
    score = prediction.score
    scale = PANEL_SIDE / max(prediction.mask.shape)
    height, width = (max(1, round(side * scale)) for side in prediction.mask.shape)
    nearest, smooth = Image.Resampling.NEAREST, Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.BICUBIC
    image = np.asarray(Image.fromarray(prediction.image).resize((width, height), smooth))
    mask, hard, soft = (
        np.asarray(Image.fromarray(array).resize((width, height), nearest))
        for array in (prediction.mask, prediction.logits >= threshold, probability(prediction.logits))
    )
    panels = {
        "image": image,
        "ground truth": overlay(image, mask, GREEN),
        "probability": heat(image, soft),
        f"prediction  IoU {score.iou:.2f}": overlay(image, hard, ORANGE),
    }
    column = max(width, 170)  # room for the titles of a narrow image
    top = 66
    page = Image.new("RGB", (GAP + len(panels) * (column + GAP), top + height + GAP), _PAPER)
    draw, large, small = ImageDraw.Draw(page), ImageFont.load_default(20), ImageFont.load_default(15)
    draw.text((GAP, 8), _fit(score.sentence, large, page.width - 2 * GAP), _INK, large)
    for number, (title, panel) in enumerate(panels.items()):
        left = GAP + number * (column + GAP)
        draw.text((left, 42), title, _FAINT, small)
        page.paste(Image.fromarray(panel), (left + (column - width) // 2, top))
    return page


def write_prediction(folder: Path, prediction: Prediction, threshold: float) -> None:
    """Write the five files of a sample into `folder`, which must exist; their names come from the sample's name only.

    Raises InputError for a sample name that is not a plain file name.
    """
    name = safe_name(prediction.score.name, "the name of a sample")
    soft = np.rint(255 * probability(prediction.logits)).astype(np.uint8)
    hard = prediction.logits >= threshold
    pictures = {
        f"{name}_image.jpg": Image.fromarray(prediction.image),
        f"{name}_gt.png": Image.fromarray(prediction.mask.astype(np.uint8) * 255),
        f"{name}_soft.png": Image.fromarray(soft),
        f"{name}_pred.png": Image.fromarray(hard.astype(np.uint8) * 255),
        f"{name}.jpg": strip(prediction, threshold),
    }
    for file_name, picture in pictures.items():
        with atomic_write(folder / file_name, durable=False) as file:
            picture.save(file, "JPEG" if file_name.endswith(".jpg") else "PNG", quality=92)


def _fit(expression: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """The expression as one printable line, cut to `width` pixels; what the font cannot draw stays a box."""
    line = shown = one_line(expression, 300)
    while font.getlength(shown) > width:
        line = line[:-1]
        shown = line + " ..."
    return shown
