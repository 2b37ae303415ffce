"""From scenes to the files of four data sets: RefCOCO, RefCOCO+, RefCOCOg and ReferIt (SPEC sections 1 and 3)."""

import io
import json
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random

import numpy as np

from tools.shapes import formats
from tools.shapes.drawing import KINDS, paint
from tools.shapes.expressions import expressions
from tools.shapes.meanings import View
from tools.shapes.scenes import sample_scene
from utils.files.writing import atomic_write

COCO_IMAGES = Path("data/coco/images/train2014")
REFER = Path("external/refer/data")
REFERIT = Path("data/referit")
JPEG_QUALITY = 94
FIRST_REFERIT_ID = 20_001  # another numbering than COCO's, so that no reader can mix them up

# The images of a data set's split, by the role that the image has in RefCOCO.
REFCOCO_SPLITS = {role: role for role in ("train", "val", "testA", "testB")}
GOOGLE_SPLITS = {"train": "train", "val": "val", "testA": "val", "testB": "val"}  # google has no test split
UMD_SPLITS = {"train": "train", "val": "val", "testA": "test", "testB": "test"}
REFERIT_SPLITS = {"train": "trainval", "val": "trainval", "testA": "test", "testB": "test"}
REFS_FILES = {
    "refcoco": {"refs(unc).p": REFCOCO_SPLITS},
    "refcoco+": {"refs(unc).p": REFCOCO_SPLITS},
    "refcocog": {"refs(google).p": GOOGLE_SPLITS, "refs(umd).p": UMD_SPLITS},
}
STYLES = {"refcoco": {}, "refcoco+": {"place": False}, "refcocog": {"full_sentences": True}, "referit": {}}
SENTENCES = {  # how many for a ref, near the real averages of 2.84, 2.84, 1.9 and 1.2
    "refcoco": (2, 3, 3, 4),
    "refcoco+": (2, 3, 3, 4),
    "refcocog": (1, 2, 2, 3),
    "referit": (1, 1, 1, 2),
}


@dataclass(frozen=True)
class Plan:
    """The arguments that decide every byte of the data set. `images` maps a role to a number of images."""

    level: str
    images: dict[str, int]
    image_size: int
    seed: int

    @property
    def count(self) -> int:
        return sum(self.images.values())

    def roles(self) -> list[str]:
        """The role of each image, in a random order: in the real files, too, the splits are interleaved."""
        roles = [role for role, count in self.images.items() for _ in range(count)]
        Random(self.seed).shuffle(roles)
        return roles


@dataclass(frozen=True)
class Drawn:
    """What the annotation files say about one image; `texts` holds for each data set the sentences of each thing."""

    image: dict
    annotations: list[dict]
    texts: dict[str, list[list[str]]]


def write_dataset(plan: Plan, root: Path, workers: int) -> dict[str, Counter]:
    """Write all files under `root`; returns for each refs file or query file its expressions by split."""
    for folder in (COCO_IMAGES, REFERIT / "images", REFERIT / "mask", *(REFER / name for name in REFS_FILES)):
        (root / folder).mkdir(parents=True, exist_ok=True)
    with _mapper(workers) as apply:
        drawn = list(apply(partial(_draw, plan, root), range(plan.count)))
    roles = plan.roles()
    written = {}
    for name, files in REFS_FILES.items():
        _write(root / REFER / name / "instances.json", _json(_instances(drawn)))
        for file_name, splits in files.items():
            refs = _refs(drawn, [splits[role] for role in roles], name)
            _write(root / REFER / name / file_name, formats.refs_pickle(refs))
            written[f"{name} {file_name}"] = _count((ref["split"], len(ref["sentences"])) for ref in refs)
    written["referit"] = _write_queries(drawn, [REFERIT_SPLITS[role] for role in roles], root)
    return written


@contextmanager
def _mapper(workers: int):
    """`map` in this process, or over several; either keeps the order."""
    if workers == 1:
        yield map
        return
    with ProcessPoolExecutor(workers) as pool:
        yield partial(pool.map, chunksize=8)


def image_paths(index: int) -> tuple[Path, Path]:
    """The image's file in COCO and in ReferIt, relative to the root."""
    coco = COCO_IMAGES / f"COCO_train2014_{index + 1:012d}.jpg"
    return coco, REFERIT / "images" / f"{FIRST_REFERIT_ID + index}.jpg"


def mask_path(index: int, thing: int) -> Path:
    """The ReferIt mask of a thing, relative to the root."""
    return REFERIT / "mask" / f"{FIRST_REFERIT_ID + index}_{thing + 1}.mat"


def _draw(plan: Plan, root: Path, index: int) -> Drawn:
    """Make the image `index` and write its files; it depends on the plan's seed, level and size and on `index` only."""
    rng = np.random.default_rng([plan.seed, index])
    scene, things = sample_scene(rng, plan.level, plan.image_size)
    jpeg = io.BytesIO()
    paint(scene, rng).save(jpeg, "JPEG", quality=JPEG_QUALITY)
    coco, referit = image_paths(index)
    for path in (coco, referit):
        _write(root / path, jpeg.getvalue())
    for number, thing in enumerate(things):
        _write(root / mask_path(index, number), formats.referit_mask(thing.mask))
    image_id = index + 1
    image = {"id": image_id, "file_name": coco.name, "width": scene.width, "height": scene.height}
    annotations = [
        formats.annotation(thing.mask, 10 * image_id + number, image_id, KINDS.index(thing.kind) + 1)
        for number, thing in enumerate(things)
    ]
    view = View(things, scene.height, scene.width)
    return Drawn(image, annotations, _texts(Random(int(rng.integers(2**62))), view, plan.level))


def _texts(rng: Random, view: View, level: str) -> dict[str, list[list[str]]]:
    return {
        name: [expressions(rng, view, i, level, rng.choice(SENTENCES[name]), **style) for i in range(len(view.things))]
        for name, style in STYLES.items()
    }


def _instances(drawn: list[Drawn]) -> dict:
    return {
        "info": {"description": "synthetic coloured shapes"},
        "images": [d.image for d in drawn],
        "annotations": [annotation for d in drawn for annotation in d.annotations],
        "categories": [{"supercategory": "shape", "id": i + 1, "name": kind} for i, kind in enumerate(KINDS)],
    }


def _refs(drawn: list[Drawn], splits: list[str], name: str) -> list[dict]:
    """The list in a refs(*).p; things without an unambiguous expression are left out."""
    refs, next_sentence = [], 0
    for d, split in zip(drawn, splits, strict=True):
        for annotation, texts in zip(d.annotations, d.texts[name], strict=True):
            if not texts:
                continue
            ids = list(range(next_sentence, next_sentence + len(texts)))
            next_sentence += len(texts)
            stem = d.image["file_name"].removesuffix(".jpg")
            refs.append(
                {
                    "ref_id": len(refs),
                    "ann_id": annotation["id"],
                    "image_id": annotation["image_id"],
                    "category_id": annotation["category_id"],
                    "file_name": f"{stem}_{len(refs)}.jpg",
                    "split": split,
                    "sent_ids": ids,
                    "sentences": [
                        formats.sentence(text, i, name == "refcocog") for text, i in zip(texts, ids, strict=True)
                    ],
                }
            )
    return refs


def _write_queries(drawn: list[Drawn], splits: list[str], root: Path) -> Counter:
    queries: dict[str, dict] = {"trainval": {}, "test": {}}
    for index, (d, split) in enumerate(zip(drawn, splits, strict=True)):
        for number, texts in enumerate(d.texts["referit"]):
            if texts:
                queries[split][mask_path(index, number).stem] = texts
    for split, query in queries.items():
        _write(root / REFERIT / f"referit_query_{split}.json", _json(query))
    return _count((split, len(texts)) for split, query in queries.items() for texts in query.values())


def _json(value: dict) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()  # compact: polygons are long


def _write(path: Path, content: bytes) -> None:
    with atomic_write(path, durable=False) as file:
        file.write(content)


def _count(sizes: Iterable[tuple[str, int]]) -> Counter:
    total: Counter = Counter()
    for split, count in sizes:
        total[split] += count
    return total
