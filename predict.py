#!/usr/bin/env python
"""Segment your own images with your own words.

    python predict.py --checkpoint weights/EXP/best.pth --image photo.jpg --text "woman in gray shirt" --out DIR

Every text is looked for in every image, which is encoded once. Each pair gives NAME-WORDS_mask.png (0 or 255),
NAME-WORDS_overlay.png and NAME-WORDS_patches.png (the coarse map, a patch of the model a square), for example
photo-woman_in_gray_shirt_mask.png: NAME is the image's, WORDS the text's letters and digits, and of two images or texts
that give the same the second gets _2. A photograph with an EXIF orientation is turned upright first, as a viewer shows
it; COCO's annotations and evaluate.py know only pixels as stored.
"""

import math
import time
import warnings
from argparse import Namespace
from collections.abc import Iterable
from itertools import chain, count
from pathlib import Path

import numpy as np
from PIL import Image

from eval.visualise import ORANGE, overlay, patch_picture, probability
from models import load_restr
from models.inference import Segmentation, logit, segment
from utils.cli import ArgumentParser, run_main
from utils.device import choose_device
from utils.errors import InputError, one_line
from utils.files.images import IMAGE_FORMATS, read_image
from utils.files.writing import atomic_write, plain_name, plain_words

TOO_LOW = 0.01  # probability below which no threshold is worth trying


def parse_args(arguments: list[str] | None = None) -> Namespace:
    """The command line."""
    parser = ArgumentParser(description=__doc__)
    several = {"nargs": "+", "action": "extend", "required": True}
    what = parser.add_argument_group("what to find, and where")
    images = "image files, or folders of them; may be repeated"
    what.add_argument("--image", type=Path, metavar="PATH", help=images, **several)
    what.add_argument("--text", help="expressions, each in quotes; may be repeated", **several)
    model = parser.add_argument_group("model")
    model.add_argument("--checkpoint", type=Path, metavar="FILE", required=True, help="what train_restr.py wrote")
    model.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: cuda if there is one)")
    result = parser.add_argument_group("results")
    folder = {"type": Path, "metavar": "DIR", "default": Path("predictions")}
    result.add_argument("--out", help="folder, created if needed", **folder)
    lowest = "probability, 0 to 1, from which a pixel belongs to the object"
    result.add_argument("--threshold", type=float, default=0.5, help=lowest)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Segment each text in each image."""
    args = parse_args(arguments)
    logit(args.threshold)  # refuses what is no probability
    for number, text in enumerate(args.text, 1):
        if not text.strip():
            raise InputError(f"--text, number {number}: it is empty; describe the object in a word or more")
    paths = [path for given in args.image for path in (images_in(given) if given.is_dir() else [given])]
    names, words = unique(map(plain_name, paths)), unique(map(plain_words, args.text))
    model = load_restr(args.checkpoint, choose_device(args.device))
    args.out.mkdir(parents=True, exist_ok=True)
    faults = []
    for path, name in zip(paths, names, strict=True):
        try:
            image = read_image(path, remedy="give an image file", upright=True)
        except InputError as error:  # of a folder of photographs one is often damaged
            faults.append(error)
            continue
        started = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a text without words, which is said below
            results = segment(model, image, args.text, args.threshold)
        seconds = time.perf_counter() - started
        for text, word, result in zip(args.text, words, results, strict=True):
            write(args.out / f"{name}-{word}", image, result, model.image_size)
            print(f'{name}-{word}: "{one_line(text, 80)}", {found(result, args.threshold)}{remarks(result)}')
        print(f"{one_line(path)}: {len(results)} expression{'s'[: len(results) - 1]} in {seconds:.2f} s")
    if len(faults) < len(paths):
        print(f"results: {one_line(args.out)}")
    if faults:
        raise InputError(*map(str, faults))  # a line each


def images_in(folder: Path) -> list[Path]:
    """The images of a folder, by name, without those of its folders. Raises InputError if there are none."""
    suffixes = {suffix for suffix, kind in Image.registered_extensions().items() if kind in IMAGE_FORMATS}
    files = (path for path in folder.iterdir() if path.suffix.lower() in suffixes and not path.name.startswith("."))
    if images := sorted(path for path in files if path.is_file()):
        return images
    raise InputError(f"--image {folder}: the folder holds no image (.jpg, .png, ...); give image files")


def unique(names: Iterable[str]) -> list[str]:
    """`names` in their order; one that has been there gets _2, _3 and so on."""
    taken: dict[str, None] = {}
    for name in names:
        others = (f"{name}_{number}" for number in count(2))
        taken[next(new for new in chain([name], others) if new not in taken)] = None
    return list(taken)


def found(result: Segmentation, threshold: float) -> str:
    """How much of the image the mask covers; where it is empty, a threshold with which it would not be."""
    if result.mask.any():
        return f"{result.mask.mean():.1%} of the image"
    highest = float(probability(result.logits.astype(float)).max())
    shown = math.floor(100 * highest) / 100 or f"{highest:.1g}"  # not rounded up to the threshold
    advice = f": try --threshold {0.8 * highest:.2g}" if highest >= TOO_LOW and not result.unknown else ""
    return f"nothing reaches {threshold:g}; the highest probability is {shown}{advice}"


def remarks(result: Segmentation) -> str:
    """What the user should know about the expression: words that the model does not know or did not read."""
    said = ""
    if not result.words:
        said += "; it has no words"
    if result.unknown:
        said += f"; not in the vocabulary: {result.unknown_words}"
    if result.unread:
        said += f"; only the first {len(result.words)} tokens are read, not: {one_line(' '.join(result.unread), 80)}"
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
