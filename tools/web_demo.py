"""A page on this computer for trying a checkpoint: an image, an expression, and what the model makes of them.

    pip install -r requirements-demo.txt
    python tools/web_demo.py --checkpoint weights/EXP/best.pth --examples photos

It answers only to 127.0.0.1, asks nothing of any other machine, and reports nothing to anybody. Images of more than
1280 pixels a side are scaled down first; predict.py takes them as they are.
"""

import contextlib
import importlib.util
import os
import sys
import threading
import time
import warnings
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from PIL import Image

from eval.visualise import ORANGE, heat, overlay, patch_picture, probability
from models import ReSTR, load_restr
from models.inference import EncodedImage, Segmentation, encode, logit, segment
from tools import web_page
from utils.cli import ArgumentParser, run_main
from utils.device import choose_device
from utils.errors import InputError, one_line
from utils.files.images import read_image

MAX_SIDE = 1280  # pixels; what a screen shows, and what keeps an answer quick
EXAMPLES = 12
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}
SESSIONS = 16  # whose last image is kept for the threshold, about 10 MB each
QUIET = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "no_proxy": "127.0.0.1",  # gradio asks its own server whether it has started
}


class Found(NamedTuple):
    """What a session keeps of its last answer: uint8 H x W x 3, and the segmentation."""

    image: np.ndarray
    result: Segmentation


def main(arguments: list[str] | None = None) -> None:
    """Load, build the page, serve it until interrupted."""
    parser = ArgumentParser(prog="web_demo.py", description=__doc__)
    parser.add_argument("--checkpoint", type=Path, metavar="FILE", required=True, help="what train_restr.py wrote")
    parser.add_argument("--examples", type=Path, metavar="DIR", help=f"folder, {EXAMPLES} images of which are offered")
    parser.add_argument("--port", type=int, default=7860, help="of 127.0.0.1, 1 to 65535")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: cuda if there is one)")
    args = parser.parse_args(arguments)
    if not 1 <= args.port <= 65535:
        raise InputError(f"--port {args.port}: give 1 to 65535")
    os.environ.update(QUIET)  # before gradio is imported
    if importlib.util.find_spec("gradio") is None:
        raise InputError("gradio is not installed: pip install -r requirements-demo.txt")
    examples = example_images(args.examples) if args.examples else []
    model = load_restr(args.checkpoint, choose_device(args.device))
    page = web_page.build(subtitle(model), examples, partial(answer, model), cut)
    web_page.serve(page, args.port, SESSIONS)
    with contextlib.suppress(KeyboardInterrupt):
        print(f"http://127.0.0.1:{args.port}  (Ctrl+C ends it)", flush=True)
        threading.Event().wait()
    page.close(verbose=False)


def example_images(folder: Path) -> list[Path]:
    """The first images of a folder, by name. Raises InputError if it has none."""
    if not folder.is_dir():
        raise InputError(f"--examples {folder}: no such folder")
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)[:EXAMPLES]
    if not found:
        raise InputError(f"--examples {folder}: holds no image ({', '.join(sorted(SUFFIXES))})")
    for path in found:
        read_image(path, remedy="remove it from the folder")
    return found


def subtitle(model: ReSTR) -> str:
    """Which model this is, in a line."""
    origin, (height, width) = model.provenance, model.image_size
    parts = [Path(origin["file"]).name, origin["data"].get("dataset"), origin["step"] and f"step {origin['step']:,}"]
    return one_line(" · ".join([*filter(None, parts), f"{height} × {width} pixels"]))


@lru_cache(SESSIONS)
def open_image(model: ReSTR, path: str, changed: int) -> tuple[np.ndarray, EncodedImage]:
    """An image, uint8 H x W x 3, and its encoding, done once for many expressions; `changed`: time of the file."""
    image = fit_screen(read_image(path, "this file", "give a photograph or another image", upright=True))
    return image, encode(model, image)


def answer(model: ReSTR, path: str | None, text: str, share: float) -> tuple:
    """What the page shows for an image and an expression: (Found, overlay, soft map, patch map, words, remarks).

    `share` is the probability from which a pixel belongs to the object. What the user did wrong is said in the remarks.
    """
    try:
        if path is None or not Path(path).is_file():  # the page forgets an upload after an hour
            raise InputError("Give an image first: drop one on the left, or pick an example.")
        if not text.strip():
            raise InputError("The expression is empty: describe the object in a word or more.")
        started = time.perf_counter()
        image, encoded = open_image(model, path, Path(path).stat().st_mtime_ns)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a text without words, which `remarks` says
            result = segment(model, encoded, text)
        seconds = time.perf_counter() - started
    except InputError as error:
        return None, None, None, None, "", web_page.complaint(str(error))
    found = Found(image, result)
    shown, said = cut(found, share)
    soft = heat(image, probability(result.logits))
    patches = patch_picture(image, result.patches, model.image_size)
    return found, shown, soft, patches, web_page.words(result, seconds), said


def cut(found: Found | None, share: float) -> tuple:
    """The overlay and the remark for another threshold, without the model: (uint8 H x W x 3, HTML)."""
    if found is None:
        return None, ""
    mask = found.result.logits >= logit(share)
    return highlight(found.image, mask), web_page.remark(float(mask.mean()))


def highlight(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """uint8 H x W x 3 with what `mask` leaves out darkened, so that a mask on an orange thing shows too."""
    return overlay(np.where(mask[..., None], image, image // 2), mask, ORANGE, strength=0.3)


def fit_screen(image: np.ndarray) -> np.ndarray:
    """uint8 H x W x 3, scaled down if a side is longer than MAX_SIDE."""
    picture = Image.fromarray(image)
    picture.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS, reducing_gap=None)
    return np.asarray(picture)


if __name__ == "__main__":
    run_main(main)
