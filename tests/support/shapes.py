"""Shapes for the tests of make_shapes: made by the script itself, then read from their files alone."""

import json
import pickle
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

SCRIPT = Path(__file__).resolve().parents[2] / "tools" / "make_shapes.py"
IMAGES = {"train": 40, "val": 6, "testA": 5, "testB": 5}
SEED = 4  # some of its images are grayscale, at both levels
REFS_FILES = [("refcoco", "unc"), ("refcoco+", "unc"), ("refcocog", "google"), ("refcocog", "umd")]
RGB = {
    "red": (212, 38, 42), "orange": (244, 140, 28), "yellow": (248, 220, 50), "green": (46, 160, 67),
    "blue": (36, 96, 214), "purple": (138, 54, 178), "white": (244, 244, 240),
}  # fmt: skip


def make(root, *arguments, cwd=None):
    command = [sys.executable, str(SCRIPT), "--root", str(root), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=120)


def arguments(level="easy", seed=SEED, images=IMAGES):
    sizes = ["--images", images["train"], "--val_images", images["val"], "--test_images", images["testA"]]
    return ["--level", level, "--seed", seed, *sizes, "--workers", 1]


@dataclass
class Made:
    level: str
    root: Path
    instances: dict
    refs: dict

    def image(self, image_id):
        return Image.open(self.root / f"data/coco/images/train2014/COCO_train2014_{image_id:012d}.jpg")


_MADE: dict[str, Made] = {}


def made_shapes(level, tmp_path_factory):
    """The shapes of one level, made once however many test files read them."""
    if level not in _MADE:
        root = tmp_path_factory.mktemp(level)
        result = make(root, *arguments(level))
        assert result.returncode == 0, result.stderr
        refer = root / "external/refer/data"
        refs = {(d, s): pickle.loads((refer / d / f"refs({s}).p").read_bytes()) for d, s in REFS_FILES}
        _MADE[level] = Made(level, root, json.loads((refer / "refcoco/instances.json").read_text()), refs)
    return _MADE[level]


def decode(entry, height, width):
    encoded = coco_mask.frPyObjects(entry, height, width)
    return coco_mask.decode(coco_mask.merge(encoded) if isinstance(entry, list) else encoded).astype(bool)


def masks_of(made):
    sizes = {i["id"]: (i["height"], i["width"]) for i in made.instances["images"]}
    return {a["id"]: decode(a["segmentation"], *sizes[a["image_id"]]) for a in made.instances["annotations"]}


def queries(made, split):
    return json.loads((made.root / f"data/referit/referit_query_{split}.json").read_text())


def colour_of(made, a, mask):
    image = made.image(a["image_id"])
    if image.mode == "L":
        return None
    middle = np.median(np.asarray(image, float)[mask], axis=0)
    return min(RGB, key=lambda name: np.abs(middle - RGB[name]).sum())
