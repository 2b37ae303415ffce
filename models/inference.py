"""From an image's pixels to a mask at the image's own size; for the evaluator, predict.py and the page."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from utils.errors import InputError, one_line
from utils.files.images import read_image, to_rgb
from utils.geometry import fit_inside, window
from utils.text import Vocabulary

# The logit from which a pixel belongs to the object, the authors' code's: a probability of a half, but without logits
# that are exactly 0.
THRESHOLD = 1e-9


class Segmentation(NamedTuple):
    """What `segment` finds for one expression in an H x W image.

    mask: bool H x W. logits: float32 H x W. patches: float32 rows x columns, the patch logits over the padded canvas.
    words: the tokens of the expression that the model read, and the attention in 0..1 that the class seed paid each
    (see `seed_attention`; the rest of 1 went to padding and the seed itself). unknown: tokens that the vocabulary
    lacks. unread: tokens beyond the first 20. Of a text encoder of transformers the tokens are its tokeniser's.
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
    fill = 0.0 if pad == "grey" else model.normalise(torch.zeros(3, 1, 1, dtype=torch.uint8, device=image.device))
    return resize_and_pad(image, model.image_size, antialias=antialias, fill=fill)


def resize_and_pad(image: Tensor, size: tuple[int, int], antialias: bool = False, fill: float | Tensor = 0.0) -> Tensor:
    """An evaluation image onto the network's canvas: float B x C x h x w -> B x C x H x W.

    Bilinear with half-pixel centres; `antialias`: through a filter, as Pillow does, where it shrinks. `fill` is the
    canvas's colour after normalisation: 0.0, which is mid-grey for mean 0.5, or a tensor C x 1 x 1.
    """
    fit = fit_inside(*image.shape[-2:], size)
    resized = functional.interpolate(image, fit.size, mode="bilinear", align_corners=False, antialias=antialias)
    canvas = image.new_empty(*image.shape[:2], *size)
    canvas[:] = fill
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
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise InputError(f"an image array must be uint8 H x W x 3, not {image.dtype} {image.shape}")
        pixels = np.require(image, requirements=["C", "W"])  # PyTorch takes no memory that it may not write
    elif hasattr(image, "convert"):
        pixels = to_rgb(image, upright=True)
    else:
        pixels = read_image(image, remedy="give an image file", upright=True)
    device = next(model.parameters()).device
    return EncodedImage(model.encode_image(to_canvas(model, torch.from_numpy(pixels).to(device))), pixels.shape[:2])


@torch.inference_mode()
def segment(
    model: nn.Module, image, text: str | Sequence[str], threshold: float = 0.5
) -> Segmentation | list[Segmentation]:
    """Segment what `text` means in an image; for several expressions a list, and the image is encoded once.

    Args: image, an EncodedImage or what `encode` takes; threshold, the probability, 0..1, from which a pixel belongs to
    the object. The mask belongs to the upright image.
    Raises InputError as `encode`, and for an empty expression, another threshold, a model that does not know its
    vocabulary, and logits that are not finite.
    """
    texts, lowest = [text] if isinstance(text, str) else text, logit(threshold)
    if model.vocabulary is None:
        raise InputError("the model does not know its vocabulary: convert the checkpoint with python -m models.convert")
    vocabulary = model.subwords or Vocabulary(model.vocabulary)
    ids = [torch.from_numpy(vocabulary.ids(each)) for each in texts]  # each 20
    v, size = image if isinstance(image, EncodedImage) else encode(model, image)
    found = []
    for each, row in zip(texts, ids, strict=True):  # one by one: the logits of 480 x 480 pixels are large
        with seed_attention(model) as attention:
            pixel, patch = canvas_logits(model, v, row[None].to(v.device))
        logits = resize_and_crop(pixel, *size)[0, 0].cpu().numpy()
        if not np.isfinite(logits).all():  # no pixel would reach the threshold, as if nothing were there
            name = (model.provenance or {}).get("file", "the model")
            raise InputError(f"{name}: its logits are not finite: its training has diverged; take an earlier one")
        read, unread = vocabulary.split(each)
        words = list(zip(read, attention[0][0][row != 0].tolist(), strict=True))
        patches = patch[0, 0].cpu().numpy()
        found.append(Segmentation(logits >= lowest, logits, patches, words, vocabulary.unknown(each), unread))
    return found[0] if isinstance(text, str) else found


def logit(probability: float) -> float:
    """The logit from which a pixel belongs to the object, for a probability of 0..1; of 0.5 it is THRESHOLD.

    0 takes every pixel, 1 none; 1e-9, the logit that was the default of version 1.0, still means the default.
    Raises InputError for anything else.
    """
    if not 0 <= probability <= 1:
        raise InputError(f"threshold {probability}: give a probability from 0 to 1 (in version 1.0 it was a logit)")
    if probability in (0, 1):
        return math.inf if probability else -math.inf
    return THRESHOLD if probability in (0.5, THRESHOLD) else math.log(probability / (1 - probability))


@contextmanager
def seed_attention(model: nn.Module) -> Iterator[list[Tensor]]:
    """While the block runs, each `segment_features` of `model` appends the class seed's attention to the words: B x 20.

    The mean over the heads of the last block (linguistic-seed encoder; `vanilla` has one encoder for everything),
    float32. A row sums to less than 1: the seed also looks at itself, and with `vanilla` at the patches.
    Computed again from what enters that block's attention, because fused kernels keep no weights.
    """
    fusion = model.fusion
    encoder = fusion.visual_linguistic if fusion.variant == "vanilla" else fusion.linguistic_seed
    found: list[Tensor] = []
    calls = count(1)

    def look(attention: nn.Module, inputs: tuple[Tensor]) -> None:
        if next(calls) % encoder.repeats:  # a shared block runs several times; the last counts
            return
        x = inputs[0]  # B T d
        qkv = attention.qkv(x).float().reshape(*x.shape[:2], 3, attention.num_heads, -1)
        q, k, _ = qkv.permute(2, 0, 3, 1, 4)  # each B heads T d/heads
        weights = torch.softmax(q[:, :, -1:] @ k.transpose(-2, -1) * attention.scale, -1)  # B heads 1 T
        found.append(weights.mean(1)[:, 0, -1 - model.config.language.text_length : -1])

    hook = encoder.blocks[-1].attn.register_forward_pre_hook(look)
    try:
        yield found
    finally:
        hook.remove()
