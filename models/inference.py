"""From an image's pixels to a mask at the image's own size; for the evaluator, predict.py and the page."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from models.attention import seed_attention
from utils.errors import InputError, one_line
from utils.files.images import read_image, to_rgb
from utils.geometry import fit_inside, window
from utils.text import TEXT_LENGTH, Vocabulary, tokenize

THRESHOLD = 1e-9  # logit from which a pixel belongs to the object; the authors' code's


class Segmentation(NamedTuple):
    """What `segment` finds for one expression in an H x W image.

    mask: bool H x W. logits: float32 H x W. patches: float32 rows x columns, the patch logits over the padded canvas.
    words: the tokens of the expression that the model read, and the attention in 0..1 that the class seed paid each
    (see `models.attention`; the rest of 1 went to padding and the seed itself). unknown: tokens that the vocabulary
    lacks. unread: tokens beyond the first 20.
    """

    mask: np.ndarray
    logits: np.ndarray
    patches: np.ndarray
    words: list[tuple[str, float]]
    unknown: list[str]
    unread: list[str]

    @property
    def unknown_words(self) -> str:
        """`unknown` for people: each once, in quotes, on one line; empty if there are none."""
        return one_line(", ".join(dict.fromkeys(f'"{word.strip()}"' for word in self.unknown)), 200)


def to_canvas(model: nn.Module, image: Tensor, pad: str = "grey", antialias: bool = False) -> Tensor:
    """H x W x 3 uint8 to the model's input, 1 x 3 x S x S: normalised first, then resized and padded.

    pad: "grey" fills with zeros after normalisation (authors' code), "black" with normalised black (as in training).
    """
    image = model.normalise(image.permute(2, 0, 1)[None])  # 1 3 H W
    fill = 0.0
    if pad == "black":
        fill = model.normalise(torch.zeros(1, 3, 1, 1, dtype=torch.uint8, device=image.device))
    return resize_and_pad(image, model.image_size, antialias=antialias, fill=fill)


def resize_and_pad(image: Tensor, size: tuple[int, int], antialias: bool = False, fill: float | Tensor = 0.0) -> Tensor:
    """An evaluation image onto the network's canvas: float B x C x h x w -> B x C x H x W.

    Bilinear with half-pixel centres; `antialias`: through a filter, as Pillow does, where it shrinks. `fill` is the
    canvas's colour after normalisation: 0.0, which is mid-grey for mean 0.5, or a tensor of C values.
    """
    fit = fit_inside(*image.shape[-2:], size)
    resized = functional.interpolate(image, fit.size, mode="bilinear", align_corners=False, antialias=antialias)
    canvas = image.new_empty(*image.shape[:2], *size)
    canvas[:] = fill if isinstance(fill, float | int) else fill.view(-1, 1, 1)
    canvas[..., *fit.window] = resized
    return canvas


def resize_and_crop(logits: Tensor, height: int, width: int) -> Tensor:
    """Network logits back to an image's own resolution: float N x C x H x W -> N x C x `height` x `width`.

    The inverse of `resize_and_pad`: resized by max(height/H, width/W), then the centre is cut out.
    """
    canvas = logits.shape[-2:]
    scale = max(height / canvas[0], width / canvas[1])
    resized = max(height, round(canvas[0] * scale)), max(width, round(canvas[1] * scale))
    logits = functional.interpolate(logits, resized, mode="bilinear", align_corners=False)
    return logits[..., *window((height, width), resized)]


def canvas_logits(model: nn.Module, v: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Float32 pixel and patch logits of expressions `ids` n x 20 in images `v` n x N x d.

    Pixel logits are n x 1 x S x S; without a decoder they are the patch logits, n x 1 x rows x columns, which
    `resize_and_crop` takes to the image in one step, as the authors' code does (only the loss resizes them to S x S).
    """
    pixel, patch = model.segment_features(v, model.encode_text(ids), ids)
    return pixel.float(), patch.float()


class EncodedImage(NamedTuple):
    """What `encode` keeps of an image: v, float 1 x N x d, and its own (height, width) in pixels."""

    v: Tensor
    size: tuple[int, int]


@torch.inference_mode()
def encode(model: nn.Module, image) -> EncodedImage:
    """Encode an image once for many calls of `segment`.

    Args: image, a file's path, a PIL image or a uint8 H x W x 3 array, RGB. A file or a PIL image with an EXIF
    orientation (as phones write it) is turned upright first; an array is taken as it is.
    Raises InputError for an unreadable image.
    """
    pixels = _pixels(image)
    device = next(model.parameters()).device
    return EncodedImage(model.encode_image(to_canvas(model, torch.from_numpy(pixels).to(device))), pixels.shape[:2])


@torch.inference_mode()
def segment(model: nn.Module, image, texts: list[str], threshold: float = THRESHOLD) -> list[Segmentation]:
    """Segment each of `texts` in one image, which is encoded once.

    Args: image, an EncodedImage or what `encode` takes; threshold, the logit from which a pixel belongs to the object.
    The mask belongs to the upright image.
    Raises InputError as `encode`, and for an empty expression, a model that does not know its vocabulary, and logits
    that are not finite.
    """
    if model.vocabulary is None:
        raise InputError("the model does not know its vocabulary: convert the checkpoint with python -m models.convert")
    vocabulary = Vocabulary(model.vocabulary)
    ids = torch.from_numpy(np.stack([vocabulary.ids(text) for text in texts]))
    v, size = image if isinstance(image, EncodedImage) else encode(model, image)
    found = []
    for text, row in zip(texts, ids.to(v.device), strict=True):  # one by one: the logits of 480 x 480 pixels are large
        with seed_attention(model) as attention:
            pixel, patch = canvas_logits(model, v, row[None])
        logits = resize_and_crop(pixel, *size)[0, 0].cpu().numpy()
        if not np.isfinite(logits).all():  # no pixel would reach the threshold, as if nothing were there
            name = (model.provenance or {}).get("file", "the model")
            raise InputError(f"{name}: its logits are not finite: its training has diverged; take an earlier one")
        pieces = tokenize(text)
        read = pieces[:TEXT_LENGTH]
        paid = attention[0][0, TEXT_LENGTH - len(read) :].tolist()
        words = list(zip(read, paid, strict=True))
        unknown = vocabulary.unknown(text)
        patches = patch[0, 0].cpu().numpy()
        found.append(Segmentation(logits >= threshold, logits, patches, words, unknown, pieces[TEXT_LENGTH:]))
    return found


def _pixels(image) -> np.ndarray:
    """A path, a PIL image or an array as uint8 H x W x 3."""
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise InputError(f"an image array must be uint8 H x W x 3, not {image.dtype} {image.shape}")
        return np.require(image, requirements=["C", "W"])  # PyTorch takes no memory that it may not write
    if hasattr(image, "convert"):
        return to_rgb(image, upright=True)
    return read_image(image, remedy="give an image file", upright=True)
