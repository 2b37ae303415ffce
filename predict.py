#!/usr/bin/env python
"""Segment your own images with your own words.

    python predict.py --checkpoint weights/EXP/best.pth --image photo.jpg --text "woman in gray shirt" --out DIR

Every text is looked for in every image, which is encoded once. Each pair gives NAME-WORDS_mask.png (0 or 255),
NAME-WORDS_overlay.png and NAME-WORDS_patches.png (the coarse map, a patch of the model a square), for example
photo-woman_in_gray_shirt_mask.png: NAME is the image's, WORDS the text's letters and digits, and of two images or texts
that give the same the second gets _2. results.json has score, box and area of each of them. A photograph with
an EXIF orientation is turned upright first, as a viewer shows it; COCO's annotations and evaluate.py know only pixels
as stored.
"""

import math
import re
import time
import warnings
from argparse import Namespace
from collections.abc import Iterable
from itertools import chain, count
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from eval.boxes import mask_boxes
from eval.visualise import ORANGE, overlay, patch_picture, probability
from models import load_restr
from models.inference import Segmentation, logit, segment
from utils.cli import ArgumentParser, run_main
from utils.device import choose_device
from utils.errors import InputError, one_line
from utils.files.images import IMAGE_FORMATS, read_image
from utils.files.writing import atomic_write, plain_name, plain_words, write_json
from utils.options import COUNT_OR_0, within

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
    trained = "what train_restr.py wrote, or hf://owner/name"
    model.add_argument("--checkpoint", type=Path, metavar="FILE", required=True, help=trained)
    model.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: cuda if there is one)")
    result = parser.add_argument_group("results")
    folder = {"type": Path, "metavar": "DIR", "default": Path("predictions")}
    result.add_argument("--out", help="folder, created if needed", **folder)
    form = "form of results.json: plain, or coco, a list of COCO results with the masks as RLE"
    result.add_argument("--format", choices=["plain", "coco"], default="plain", help=form)
    lowest = "probability, 0 to 1, from which a pixel belongs to the object"
    result.add_argument("--threshold", type=float, default=0.5, help=lowest)
    fewest = "pixels below which a mask counts as empty, for expressions of nothing in the image"
    result.add_argument("--no_target_pixels", type=within(int, *COUNT_OR_0), metavar="N", default=0, help=fewest)
    args = parser.parse_args(arguments)
    logit(args.threshold)  # refuses what is no probability
    for number, text in enumerate(args.text, 1):
        if not text.strip():
            raise InputError(f"--text, number {number}: it is empty; describe the object in a word or more")
    return args


def main(arguments: list[str] | None = None) -> None:
    """Segment each text in each image."""
    args = parse_args(arguments)
    paths = [path for given in args.image for path in (images_in(given) if given.is_dir() else [given])]
    names, words = unique(map(plain_name, paths)), unique(map(plain_words, args.text))
    model = load_restr(args.checkpoint, choose_device(args.device))
    args.out.mkdir(parents=True, exist_ok=True)
    faults, records, read = [], [], {}
    for number, (path, name) in enumerate(zip(paths, names, strict=True), 1):
        try:
            image = read_image(path, remedy="give an image file", upright=True)
        except InputError as error:  # of a folder of photographs one is often damaged
            faults.append(error)
            continue
        read[number] = path
        started = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a text without words, which is said below
            results = segment(model, image, args.text, args.threshold)
        seconds = time.perf_counter() - started
        for text, word, result in zip(args.text, words, results, strict=True):
            said = found(result, args.threshold, args.no_target_pixels)
            if result.mask.sum() < args.no_target_pixels:
                result = result._replace(mask=np.zeros_like(result.mask))
            files = write(args.out / f"{name}-{word}", image, result, model.image_size)
            about = {"image": str(path), "expression": text, **record(result), "files": files}
            records.append(coco_result(number, about, result) if args.format == "coco" else about)
            print(f'{name}-{word}: "{one_line(text, 80)}", {said}{remarks(result)}')
        print(f"{one_line(path)}: {len(results)} expression{'s'[: len(results) - 1]} in {seconds:.2f} s")
    if records:
        write_json(args.out / "results.json", identified(records, read) if args.format == "coco" else records)
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


def found(result: Segmentation, threshold: float, fewest: int = 0) -> str:
    """How much of the image the mask covers; where it is empty, a threshold with which it would not be.

    A mask of fewer than `fewest` pixels counts as empty.
    """
    if 0 < result.mask.sum() < fewest:
        return f"nothing found: {result.mask.sum()} pixels, fewer than {fewest}"
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


def record(result: Segmentation) -> dict:
    """What results.json says of a mask: `score`, the mean probability of its pixels, 0 if it has none; `box`, its
    smallest box [x, y, width, height] in pixels, null if it is empty; `area` in pixels; `height` and `width` of the
    (upright) image; the words that the model does not know, and those that it did not read.
    """
    mask, (left, top, right, bottom) = result.mask, mask_boxes(torch.from_numpy(result.mask)[None])[0].tolist()
    return {
        "score": float(probability(result.logits[mask].astype(float)).mean()) if mask.any() else 0.0,
        "box": [left, top, right - left, bottom - top] if mask.any() else None,
        "area": int(mask.sum()),
        "height": mask.shape[0],
        "width": mask.shape[1],
        "unknown_words": list(dict.fromkeys(word.strip() for word in result.unknown)),
        "unread_words": result.unread,
    }


def identified(results: list[dict], read: dict[int, Path]) -> list[dict]:
    """COCO results with the id of each image in place of its number in `read`, the images that could be read.

    COCO's ids, the 12 digits at the end of the images' names; the numbers unless each has one of its own.
    """
    found = [re.search(r"(?<!\d)\d{12}$", path.stem) for path in read.values()]
    ids = [int(name[0]) for name in found if name]
    known = dict(zip(read, ids if len(set(ids)) == len(read) else read, strict=True))
    return [each | {"image_id": known[each["image_id"]]} for each in results]


def coco_result(number: int, about: dict, result: Segmentation) -> dict:
    """A result in image `number` as `loadRes` of pycocotools takes it, which computes area and box; of category 1."""
    from pycocotools import mask  # only this form needs it

    rle = mask.encode(np.asfortranarray(result.mask, np.uint8))
    rle = {"size": list(rle["size"]), "counts": rle["counts"].decode()}
    rest = {key: value for key, value in about.items() if key not in ("area", "box")}
    return {"image_id": number, "category_id": 1, "segmentation": rle, **rest}


def write(stem: Path, image: np.ndarray, result: Segmentation, canvas: tuple[int, int]) -> dict[str, str]:
    """The three images of a result, each whole or not at all; their names, which begin with `stem`, by kind."""
    pictures = {
        "mask": result.mask.astype(np.uint8) * 255,
        "overlay": overlay(image, result.mask, ORANGE),
        "patches": patch_picture(image, result.patches, canvas),
    }
    names = {what: f"{stem.name}_{what}.png" for what in pictures}
    for what, pixels in pictures.items():
        with atomic_write(stem.with_name(names[what])) as file:
            Image.fromarray(pixels).save(file, "PNG")
    return names


if __name__ == "__main__":
    run_main(main)
