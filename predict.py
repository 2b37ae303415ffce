#!/usr/bin/env python
"""Segment your own images with your own words.

    python predict.py --checkpoint weights/EXP/best.pth --image photo.jpg --text "woman in gray shirt" --out DIR

Every text is looked for in every image, which is encoded once. Each pair gives NAME_K_mask.png (0 or 255),
NAME_K_overlay.png and NAME_K_patches.png (the coarse map, a patch of the model a square): NAME is the image's, K the
number of the text. A photograph with an EXIF orientation is turned upright first, as a viewer shows it; COCO's
annotations and evaluate.py know only pixels as stored.
"""

import math
import time
import warnings
from argparse import Namespace
from pathlib import Path

import numpy as np
from PIL import Image

from eval.visualise import ORANGE, overlay, patch_picture
from models import load_restr
from models.inference import THRESHOLD, Segmentation, segment
from utils.cli import ArgumentParser, run_main
from utils.device import choose_device
from utils.errors import InputError, one_line
from utils.files.images import read_image
from utils.files.reading import MAX_NAME_BYTES
from utils.files.writing import atomic_write

SUFFIX_BYTES = 40  # of "_K_overlay.png" and what a file system needs beside it


def parse_args(arguments: list[str] | None = None) -> Namespace:
    """The command line."""
    parser = ArgumentParser(description=__doc__)
    several = {"nargs": "+", "action": "extend", "required": True}
    what = parser.add_argument_group("what to find, and where")
    what.add_argument("--image", type=Path, metavar="FILE", help="image files; may be repeated", **several)
    what.add_argument("--text", help="expressions, each in quotes; may be repeated", **several)
    model = parser.add_argument_group("model")
    model.add_argument("--checkpoint", type=Path, metavar="FILE", required=True, help="what train_restr.py wrote")
    model.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: cuda if there is one)")
    result = parser.add_argument_group("results")
    folder = {"type": Path, "metavar": "DIR", "default": Path("predictions")}
    result.add_argument("--out", help="folder, created if needed", **folder)
    logit = "logit from which a pixel belongs to the object"
    result.add_argument("--threshold", type=float, default=THRESHOLD, help=logit)
    args = parser.parse_args(arguments)
    if not math.isfinite(args.threshold):
        parser.error(f"--threshold: {args.threshold} is not a finite number")
    return args


def main(arguments: list[str] | None = None) -> None:
    """Segment each text in each image."""
    args = parse_args(arguments)
    for number, text in enumerate(args.text, 1):
        if not text.strip():
            raise InputError(f"--text, number {number}: it is empty; describe the object in a word or more")
    names = [plain_name(path) for path in args.image]
    for name, path in zip(names, args.image, strict=True):
        first = args.image[names.index(name)]
        if first is not path:
            raise InputError(f"--image {path}: its results would have the same name as those of {first}; use two --out")
    model = load_restr(args.checkpoint, choose_device(args.device))
    args.out.mkdir(parents=True, exist_ok=True)
    for path, name in zip(args.image, names, strict=True):
        image = read_image(path, remedy="give an image file", upright=True)
        started = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a text without words, which is said below
            results = segment(model, image, args.text, args.threshold)
        seconds = time.perf_counter() - started
        for number, (text, result) in enumerate(zip(args.text, results, strict=True), 1):
            write(args.out / f"{name}_{number}", image, result, model.image_size)
            share = f"{result.mask.mean():.1%} of the image"
            print(f'{name}_{number}: "{one_line(text, 80)}", {share}{remarks(result)}')
        print(f"{one_line(path)}: {len(results)} expression{'s'[: len(results) - 1]} in {seconds:.2f} s")
    print(f"results: {one_line(args.out)}")


def plain_name(path: Path) -> str:
    """The image's name without its suffix, as results can carry it: what files or terminals do not take becomes "_"."""
    kept = "".join(c if c.isprintable() and c not in '/\\:*?"<>|' else "_" for c in path.stem)
    return kept.encode()[: MAX_NAME_BYTES - SUFFIX_BYTES].decode(errors="ignore").lstrip(".~-").strip() or "image"


def remarks(result: Segmentation) -> str:
    """What the user should know about the expression: words that the model does not know or did not read."""
    said = ""
    if not result.words:
        said += "; it has no words"
    if result.unknown:
        said += f"; not in the vocabulary: {result.unknown_words}"
    if result.unread:
        said += f"; only the first {len(result.words)} words are read, not: {one_line(' '.join(result.unread), 80)}"
    return said


def write(stem: Path, image: np.ndarray, result: Segmentation, canvas: tuple[int, int]) -> None:
    """The three images of a result, each whole or not at all; their names begin with `stem`."""
    pictures = {
        "mask": result.mask.astype(np.uint8) * 255,
        "overlay": overlay(image, result.mask, ORANGE),
        "patches": patch_picture(image, result.patches, canvas),
    }
    for what, pixels in pictures.items():
        with atomic_write(stem.with_name(f"{stem.name}_{what}.png")) as file:
            Image.fromarray(pixels).save(file, "PNG")


if __name__ == "__main__":
    run_main(main)
