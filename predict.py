#!/usr/bin/env python
"""Segment your own images with your own words.

    python predict.py --checkpoint weights/EXP/best.pth --image photo.jpg --text "woman in gray shirt" --out DIR

Several --image and several --text make every pair; an image is encoded once. Each pair gives NAME_K_mask.png (0 or
255), NAME_K_overlay.jpg and NAME_K_patches.png (the patch-level map): NAME is the image's, K the number of the text.
"""

import time
from argparse import Namespace, RawDescriptionHelpFormatter
from pathlib import Path

import numpy as np
from PIL import Image

from eval.visualise import ORANGE, heat, overlay, probability
from models import load_restr
from models.inference import Segmentation, segment
from utils import distributed
from utils.errors import ArgumentParser, InputError, one_line, run_main
from utils.geometry import fit_inside
from utils.safe_io import atomic_write, read_image, safe_name


def parse_args() -> Namespace:
    """The command line."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True, help="a checkpoint that train_restr.py wrote")
    parser.add_argument("--image", type=Path, action="append", required=True, help="an image file; may be repeated")
    parser.add_argument("--text", action="append", required=True, help="what to find in it; may be repeated")
    parser.add_argument("--out", type=Path, default=Path("predictions"), help="folder (default: predictions)")
    parser.add_argument(
        "--threshold", type=float, default=1e-9, help="logit from which a pixel belongs (default: 1e-9)"
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1 (default: cuda if there is one)")
    return parser.parse_args()


def main() -> None:
    """Segment each text in each image."""
    args = parse_args()
    names = [safe_name(path.stem, f"--image {one_line(path, 80)}") for path in args.image]
    if len(set(names)) < len(names):
        raise InputError("--image: two files have the same name, so their results would have too: rename one")
    model = load_restr(args.checkpoint, distributed.start(args.device).device)
    args.out.mkdir(parents=True, exist_ok=True)
    for path, name in zip(args.image, names, strict=True):
        image = read_image(path, remedy="give an image file")
        started = time.perf_counter()
        results = segment(model, image, args.text, args.threshold)
        seconds = time.perf_counter() - started
        for number, (text, result) in enumerate(zip(args.text, results, strict=True), 1):
            write(args.out / f"{name}_{number}", image, result, model.image_size)
            unknown = f"; not in the vocabulary: {one_line(', '.join(result.unknown))}" if result.unknown else ""
            print(f"{name}_{number}: {one_line(text, 80)!r}, {result.mask.mean():.1%} of the image{unknown}")
        print(f"{path}: {len(results)} expressions in {seconds:.2f} s")
    print(f"results: {args.out}")


def write(stem: Path, image: np.ndarray, result: Segmentation, canvas: tuple[int, int]) -> None:
    """The three pictures of a result; their names begin with `stem`."""
    save(stem, "mask.png", result.mask.astype(np.uint8) * 255)
    save(stem, "overlay.jpg", overlay(image, result.mask, ORANGE))
    save(stem, "patches.png", patch_picture(image, result.patches, canvas))


def patch_picture(image: np.ndarray, patches: np.ndarray, canvas: tuple[int, int]) -> np.ndarray:
    """The probability of each patch (logits rows x columns over the canvas) as coloured squares over the image."""
    fit = fit_inside(*image.shape[:2], canvas)
    soft = np.kron(probability(patches), np.ones((canvas[0] // patches.shape[0], canvas[1] // patches.shape[1])))
    soft = soft[fit.top : fit.top + fit.height, fit.left : fit.left + fit.width]
    size = image.shape[1::-1]
    return heat(image, np.asarray(Image.fromarray(soft.astype(np.float32)).resize(size, Image.Resampling.NEAREST)))


def save(stem: Path, what: str, picture: np.ndarray) -> None:
    """Write a picture, uint8 H x W or H x W x 3, under its name when it is whole."""
    with atomic_write(stem.with_name(f"{stem.name}_{what}")) as file:
        Image.fromarray(picture).save(file, "JPEG" if what.endswith(".jpg") else "PNG")


if __name__ == "__main__":
    run_main(main)
