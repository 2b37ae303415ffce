"""Shapes for the tests of make_shapes: made by the script itself, then read from their files alone."""

import json
import pickle
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

SCRIPT = Path(__file__).resolve().parents[2] / "tools" / "make_shapes.py"
IMAGES = {"train": 40, "val": 6, "testA": 5, "testB": 5}
SEED = 4  # some of its images are grayscale
RGB = {
    "red": (212, 38, 42), "orange": (244, 140, 28), "yellow": (248, 220, 50), "green": (46, 160, 67),
    "blue": (36, 96, 214), "purple": (138, 54, 178), "white": (244, 244, 240),
}  # fmt: skip


def make(root, *arguments, cwd=None):
    command = [sys.executable, str(SCRIPT), "--root", str(root), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=120)


def arguments(seed=SEED, images=IMAGES):
    sizes = ["--images", images["train"], "--val_images", images["val"], "--test_images", images["testA"]]
    return ["--seed", seed, *sizes, "--workers", 1]


@dataclass(eq=False)
class Thing:
    """One annotation as somebody sees it who has the image and the mask; `colour` is None in a grayscale image."""

    entry: dict
    kind: str
    colour: str | None
    mask: np.ndarray
    image: Image.Image

    @property
    def x(self) -> float:
        return self.entry["bbox"][0] + self.entry["bbox"][2] / 2

    @property
    def y(self) -> float:
        return self.entry["bbox"][1] + self.entry["bbox"][3] / 2

    @property
    def size(self) -> str:
        return "big" if max(self.entry["bbox"][2:]) > 0.39 * max(self.image.size) else "small"


@dataclass
class Made:
    """The content of all files; `things` by image id, in the order of the annotations."""

    instances: dict
    refs: list[dict]
    refs_pickle: bytes
    images: dict[int, Image.Image]
    things: dict[int, list[Thing]]


@cache
def made_shapes() -> Made:
    """The shapes, made once however many tests read them."""
    with TemporaryDirectory() as folder:
        result = make(folder, *arguments())
        assert result.returncode == 0, result.stderr
        annotations = Path(folder) / "external/refer/data/refcoco"
        instances = json.loads((annotations / "instances.json").read_text())
        content = (annotations / "refs(unc).p").read_bytes()
        images = {}
        for image in instances["images"]:
            images[image["id"]] = Image.open(Path(folder) / "data/coco/images/train2014" / image["file_name"])
            images[image["id"]].load()
    names = {c["id"]: c["name"] for c in instances["categories"]}
    things: dict[int, list[Thing]] = {number: [] for number in images}
    for entry in instances["annotations"]:
        image = images[entry["image_id"]]
        mask = decode(entry["segmentation"], *image.size[::-1])
        thing = Thing(entry, names[entry["category_id"]], _colour(image, mask), mask, image)
        things[entry["image_id"]].append(thing)
    return Made(instances, pickle.loads(content), content, images, things)


def decode(entry, height, width):
    return coco_mask.decode(coco_mask.frPyObjects(entry, height, width)).astype(bool)


def _colour(image, mask):
    if image.mode == "L":
        return None
    middle = np.median(np.asarray(image, float)[mask], axis=0)
    return min(RGB, key=lambda name: np.abs(middle - RGB[name]).sum())
