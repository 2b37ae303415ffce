"""From scenes to the files of RefCOCO: images, instances.json and refs(unc).p; and to those of gRefCOCO.

`data/shapes.json` below the root records which shapes are there, so that they are never mixed with real data.
"""

import json
import pickle
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from itertools import count
from pathlib import Path
from random import Random

import numpy as np

from tools.shapes.expressions import View, expressions, nothing, several
from tools.shapes.scenes import KINDS, extent, paint, sample_scene
from utils.errors import InputError
from utils.files.reading import read_json
from utils.files.writing import atomic_write, write_json

IMAGES = Path("data/coco/images/train2014")
ANNOTATIONS = Path("external/refer/data/refcoco")
GENERALISED = Path("external/refer/data/grefcoco")
RECORD = Path("data/shapes.json")
VERSION = 2  # a new number wherever the same arguments give other images, masks or expressions
JPEG_QUALITY = 94
SENTENCES = (2, 3, 3, 4)  # how many for a ref, near RefCOCO's average of 2.84
MORE = ((several, 2), (nothing, 3))  # kinds of generalised expressions, and how many of each for an image
ATTEMPTS = 8  # for each kind


@dataclass(frozen=True)
class Plan:
    """The arguments that decide every byte of the data set. `images` maps a split to a number of images."""

    images: dict[str, int]
    image_size: int
    seed: int
    generalised: bool = False  # also write expressions of several things or none

    @property
    def arguments(self) -> dict:
        """For the record, without what version 1.0 did not have."""
        return {name: value for name, value in asdict(self).items() if value is not False}

    @property
    def count(self) -> int:
        return sum(self.images.values())

    def splits(self) -> list[str]:
        """The split of each image, in a random order: in the real files, too, the splits are interleaved."""
        splits = [split for split, count in self.images.items() for _ in range(count)]
        Random(self.seed).shuffle(splits)
        return splits


Meant = tuple[list[dict], list[str]]  # entries of the things that expressions mean
Drawn = tuple[dict, list[dict], list[Meant]]  # entries of an image and of its things; expressions, of one thing first


def write_dataset(plan: Plan, root: Path, workers: int, overwrite: bool = False) -> Counter | None:
    """Write all files under `root`; returns the expressions of each split, None if all of it is there already.

    An unfinished set of the same plan is begun anew. Raises InputError if the root holds real data, or, without
    `overwrite`, other shapes; with it, their images are removed.
    """
    record = {"format": "restr-shapes", "version": VERSION, "arguments": plan.arguments}
    if not _claim(root, record, overwrite):
        return None
    for folder in (RECORD.parent, IMAGES, ANNOTATIONS, *([GENERALISED] if plan.generalised else [])):
        (root / folder).mkdir(parents=True, exist_ok=True)
    write_json(root / RECORD, {**record, "complete": False})
    with ProcessPoolExecutor(workers) as pool:
        drawn = list(pool.map(partial(_draw, plan, root), range(plan.count), chunksize=8))
    refs = _refs(drawn, plan.splits())
    instances = {
        "info": {"description": "synthetic coloured shapes"},
        "images": [image for image, _, _ in drawn],
        "annotations": [entry for _, entries, _ in drawn for entry in entries],
        "categories": [{"supercategory": "shape", "id": i, "name": kind} for i, kind in enumerate(KINDS, 1)],
    }
    _write_json(root / ANNOTATIONS / "instances.json", instances)
    with atomic_write(root / ANNOTATIONS / "refs(unc).p") as file:
        # pickle refers back to a string that is the same object. Through JSON that depends on the refs alone, not on
        # which process made them. Protocol 2 is the newest that Python 2 wrote.
        file.write(pickle.dumps(json.loads(json.dumps(refs)), protocol=2))
    if plan.generalised:
        refs = _refs(drawn, plan.splits(), generalised=True)
        _write_json(root / GENERALISED / "instances.json", instances)
        _write_json(root / GENERALISED / "grefs(unc).json", refs)
    write_json(root / RECORD, {**record, "complete": True})
    return Counter(ref["split"] for ref in refs for _ in ref["sentences"])


def _write_json(path: Path, value: object) -> None:
    with atomic_write(path) as file:
        file.write(json.dumps(value, separators=(",", ":")).encode())


def image_name(index: int) -> str:
    """File name of image number `index`, which counts from 0; its id in the annotations is one more."""
    return f"COCO_train2014_{index + 1:012d}.jpg"


def _draw(plan: Plan, root: Path, index: int) -> Drawn:
    """Draw the image `index` and write its file; it depends on the plan's seed and size and on `index` only."""
    rng = np.random.default_rng([plan.seed, index])
    scene, things = sample_scene(rng, plan.image_size)
    name, image_id = image_name(index), index + 1
    with atomic_write(root / IMAGES / name, durable=False) as file:
        paint(scene, rng).save(file, "JPEG", quality=JPEG_QUALITY)
    image = {"id": image_id, "file_name": name, "width": scene.width, "height": scene.height}
    annotations = [
        annotation(thing.mask, 10 * image_id + number, image_id, KINDS.index(thing.kind) + 1)
        for number, thing in enumerate(things)
    ]
    words, view = Random(int(rng.integers(2**62))), View(things, scene.height, scene.width)
    meant: list[Meant] = [
        ([entry], expressions(words, view, i, words.choice(SENTENCES))) for i, entry in enumerate(annotations)
    ]
    for propose, most in MORE if plan.generalised else ():
        found = dict(filter(None, (propose(words, view) for _ in range(ATTEMPTS))))  # expression -> its things
        meant += [([annotations[i] for i in indices], [text]) for text, indices in [*found.items()][:most]]
    return image, annotations, meant


def annotation(mask: np.ndarray, ann_id: int, image_id: int, category_id: int) -> dict:
    """The entry of a bool H W mask in instances.json, as COCO's uncompressed run lengths down the columns."""
    top, bottom, left, right = extent(mask)
    pixels = np.concatenate([[0], mask.ravel(order="F"), [2]]).astype(np.int8)
    runs = np.diff(np.flatnonzero(np.diff(pixels)), prepend=0)  # of zeros, ones, zeros, ...
    return {
        "segmentation": {"counts": runs.tolist(), "size": list(mask.shape)},
        "area": float(mask.sum()),
        "iscrowd": 0,
        "image_id": image_id,
        "bbox": [float(left), float(top), float(right - left), float(bottom - top)],
        "category_id": category_id,
        "id": ann_id,
    }


def _refs(drawn: list[Drawn], splits: list[str], generalised: bool = False) -> list[dict]:
    """The list in refs(unc).p, or in grefs(unc).json; things without an unambiguous expression are left out."""
    refs: list[dict] = []
    numbers = count()
    for (image, things, meant), split in zip(drawn, splits, strict=True):
        for entries, texts in meant if generalised else meant[: len(things)]:
            if not texts:
                continue
            ids, kinds = ([entry[key] for entry in entries] for key in ("id", "category_id"))
            sentences = [{"sent_id": next(numbers), "raw": t, "sent": t, "tokens": t.split()} for t in texts]
            ref = {
                "ref_id": len(refs),
                "ann_id": (ids or [-1]) if generalised else ids[0],
                "image_id": image["id"],
                "category_id": (kinds or [-1]) if generalised else kinds[0],
                "file_name": f"{image['file_name'].removesuffix('.jpg')}_{len(refs)}.jpg",
                "split": split,
                "sent_ids": [sentence["sent_id"] for sentence in sentences],
                "sentences": sentences,
            }
            refs.append({**ref, "no_target": not ids} if generalised else ref)
    return refs


def _claim(root: Path, record: dict, overwrite: bool) -> bool:
    """Whether the shapes of `record` have to be written to `root`. Raises InputError if anything else is there."""
    if not (root / RECORD).exists():
        for folder in (IMAGES, ANNOTATIONS, GENERALISED):  # COCO and RefCOCO have the same file names as the shapes
            found = next((path for path in (root / folder).rglob("*") if path.is_file()), None)
            if found is not None:
                raise InputError(f"{found} is not from make_shapes ({root / RECORD} is missing): give another --root")
        return True
    there = read_json(root / RECORD, "the record of make_shapes")
    try:
        number = sum(map(int, there["arguments"]["images"].values()))
    except (KeyError, TypeError, ValueError, AttributeError):
        raise InputError(f"{root / RECORD}: not a record of make_shapes; give another --root") from None
    other = {**there, "complete": False} != {**record, "complete": False}
    if other and not overwrite:
        raise InputError(f"{root} holds other shapes (see {RECORD}): pass --overwrite or another --root")
    for index in range(number if other else 0):
        (root / IMAGES / image_name(index)).unlink(missing_ok=True)
    for name in ("instances.json", "grefs(unc).json") if other else ():  # a later plan may be without
        (root / GENERALISED / name).unlink(missing_ok=True)
    return other or not there.get("complete")
