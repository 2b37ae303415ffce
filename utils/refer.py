"""Readers of the annotation files of RefCOCO, RefCOCO+, RefCOCOg and ReferIt: one `Ref` an annotated object."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .errors import InputError, one_line
from .safe_io import MEBIBYTE, read_json, safe_name
from .safe_pickle import read_pickle
from .segmentation import checked_segmentation, checked_size, draw, read_mat_mask
from .text import MAX_EXPRESSION

MAX_INSTANCES_BYTES = 512 * MEBIBYTE  # RefCOCO's instances.json has about 120 MB
MAX_ID = 2**53

COCO_IMAGES = Path("data/coco/images/train2014")
REFER_DATA = Path("external/refer/data")
REFERIT = Path("data/referit")

_ANNOTATIONS_REMEDY = "get the annotations as external/README.md says"
_IMAGES_REMEDY = "get the images as data/README.md says"


@dataclass(frozen=True)
class Dataset:
    """A data set that `-d` can name: where its files are below the root, and its splits (SPEC section 1)."""

    name: str
    family: str  # "mscoco" or "referit": the folder of data/ its batches go to
    refs_file: str  # referit: with the split in braces
    splits: tuple[str, ...]
    vocabulary: str  # the name in data/vocabulary_{name}.txt and data/{name}_emb.npy

    @property
    def train_split(self) -> str:
        return self.splits[0]

    def refs_path(self, root: Path, split: str) -> Path:
        return Path(root) / self.refs_file.format(split=split)

    def vocabulary_path(self, root: Path) -> Path:
        return Path(root) / "data" / f"vocabulary_{self.vocabulary}.txt"

    def embeddings_path(self, root: Path) -> Path:
        return Path(root) / "data" / f"{self.vocabulary}_emb.npy"


_COCO_SETS = (
    ("unc", "refcoco/refs(unc).p", ("train", "val", "testA", "testB")),
    ("unc+", "refcoco+/refs(unc).p", ("train", "val", "testA", "testB")),
    ("Gref", "refcocog/refs(google).p", ("train", "val")),
    ("Gref_umd", "refcocog/refs(umd).p", ("train", "val", "test")),
)
DATASETS = {name: Dataset(name, "mscoco", f"{REFER_DATA}/{file}", splits, "Gref") for name, file, splits in _COCO_SETS}
DATASETS["referit"] = Dataset(
    "referit", "referit", f"{REFERIT}/referit_query_{{split}}.json", ("trainval", "test"), "referit"
)


@dataclass(frozen=True)
class Ref:
    """One annotated object: an image, the expressions for it, and its outline."""

    ref_id: str  # unique in its split, and a plain file name
    image_path: Path
    image_name: str  # of the file, without suffix: "COCO_train2014_000000581857", "30993"
    size: tuple[int, int] | None  # height, width the annotations were made for; None: not known
    sentences: tuple[str, ...]  # may hold empty ones
    split: str
    segmentation: list | dict | Path  # polygons, run lengths, or a .mat file

    def mask(self) -> np.ndarray:
        """The object as bool H x W, possibly empty. Raises InputError for a missing or broken .mat file."""
        if isinstance(self.segmentation, Path):
            return read_mat_mask(self.segmentation)
        return draw(self.segmentation, self.size)


def read_refs(root: Path | str, dataset: str, split: str) -> list[Ref]:
    """The refs of a split in the order of the file, every annotation checked and every image known to be there.

    Raises InputError, which names the file and the ref: an unknown data set or split, missing files, annotations or
    images, broken segmentations. SPEC sections 1 to 3.
    """
    root = Path(root)
    chosen = _dataset(dataset, split)
    refs = list(_referit_refs(root, chosen, split) if dataset == "referit" else _coco_refs(root, chosen, split))
    _require_distinct_names(refs)
    _require_files([ref.image_path for ref in refs], "images", _IMAGES_REMEDY)
    if dataset == "referit":
        _require_files([ref.segmentation for ref in refs], "masks", _IMAGES_REMEDY)
    return refs


def read_expressions(root: Path | str, dataset: str, split: str) -> list[str]:
    """All expressions of a split, from the refs or query file alone. Raises InputError as `read_refs` does."""
    chosen = _dataset(dataset, split)
    path = chosen.refs_path(Path(root), split)
    entries = _query_entries(path, split) if dataset == "referit" else _split_entries(path, split)
    return [sentence for _, _, sentences in entries for sentence in sentences]


def _dataset(dataset: str, split: str) -> Dataset:
    if dataset not in DATASETS:
        raise InputError(f"unknown data set {one_line(dataset, 40)!r}; known are {', '.join(DATASETS)}")
    if split not in DATASETS[dataset].splits:
        known = ", ".join(DATASETS[dataset].splits)
        raise InputError(f"{dataset} has no split {one_line(split, 40)!r}; it has {known}")
    return DATASETS[dataset]


def _coco_refs(root: Path, dataset: Dataset, split: str) -> Iterator[Ref]:
    path = dataset.refs_path(root, split)
    entries = list(_split_entries(path, split))
    instances = path.with_name("instances.json")
    annotations, images = _read_instances(instances, {entry["ann_id"] for _, entry, _ in entries})
    for ref_id, entry, sentences in entries:
        where = f"{instances}: ref {ref_id} of {path.name}"
        annotation = annotations.get(entry["ann_id"])
        if annotation is None:
            raise InputError(f"{where}: annotation {entry['ann_id']} is not there; {_ANNOTATIONS_REMEDY}")
        image = images.get(entry["image_id"])
        if image is None:
            raise InputError(f"{where}: image {entry['image_id']} is not there; {_ANNOTATIONS_REMEDY}")
        size = checked_size(image.get("height"), image.get("width"), where)
        name = safe_name(image.get("file_name", f"COCO_train2014_{entry['image_id']:012d}.jpg"), where)
        yield Ref(
            ref_id=ref_id,
            image_path=root / COCO_IMAGES / name,
            image_name=Path(name).stem,
            size=size,
            sentences=sentences,
            split=split,
            segmentation=checked_segmentation(annotation.get("segmentation"), size, where),
        )


def _split_entries(path: Path, split: str) -> Iterator[tuple[str, dict, tuple[str, ...]]]:
    """(ref_id, the entry with its ids checked, its expressions) of each ref of the split, in file order."""
    entries = read_pickle(path, _ANNOTATIONS_REMEDY)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise InputError(f"{path}: is not a list of refs; {_ANNOTATIONS_REMEDY}")
    seen = set()
    for position, entry in enumerate(entries):
        if entry.get("split") != split:
            continue
        where = f"{path}: ref number {position}"
        for key in ("ref_id", "ann_id", "image_id"):
            if type(entry.get(key)) is not int or not 0 <= entry[key] < MAX_ID:
                raise InputError(f"{where}: has no whole number as {key}; {_ANNOTATIONS_REMEDY}")
        ref_id = str(entry["ref_id"])
        if ref_id in seen:
            raise InputError(f"{path}: ref {ref_id} is there twice; {_ANNOTATIONS_REMEDY}")
        seen.add(ref_id)
        sentences = entry.get("sentences")
        if not isinstance(sentences, list) or not all(isinstance(item, dict) for item in sentences):
            raise InputError(f"{path}: ref {ref_id} has no list of sentences; {_ANNOTATIONS_REMEDY}")
        texts = [item.get("sent") for item in sentences]
        yield ref_id, entry, _checked_sentences(texts, f"{path}: ref {ref_id}")
    if not seen:
        there = sorted({entry["split"] for entry in entries if isinstance(entry.get("split"), str)})
        shown = one_line(", ".join(there[:10]), 100) or "none"
        raise InputError(f"{path}: has no refs of the split {split}; splits there: {shown}")


def _checked_sentences(sentences: list[Any], where: str) -> tuple[str, ...]:
    for sentence in sentences:
        if not isinstance(sentence, str):
            raise InputError(f"{where}: an expression is not text; {_ANNOTATIONS_REMEDY}")
        if len(sentence) > MAX_EXPRESSION:
            raise InputError(f"{where}: an expression has {len(sentence):,} characters; at most {MAX_EXPRESSION:,} go")
        if any(0xD800 <= ord(character) < 0xE000 for character in sentence):
            raise InputError(f"{where}: an expression is not valid Unicode; {_ANNOTATIONS_REMEDY}")
    return tuple(sentences)


def _read_instances(path: Path, wanted: set[int]) -> tuple[dict[int, dict], dict[int, dict]]:
    """The wanted annotations, and all images, by id."""
    value = read_json(path, "annotation file", _ANNOTATIONS_REMEDY, MAX_INSTANCES_BYTES)
    found: list[dict[int, dict]] = []
    for key in ("annotations", "images"):
        items = value.get(key) if isinstance(value, dict) else None
        if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
            raise InputError(f"{path}: has no list of {key}; {_ANNOTATIONS_REMEDY}")
        found.append({item["id"]: item for item in items if type(item.get("id")) is int})
    annotations, images = found
    return {i: annotations[i] for i in wanted if i in annotations}, images


def _referit_refs(root: Path, dataset: Dataset, split: str) -> Iterator[Ref]:
    folder = root / REFERIT
    for ref_id, image_name, sentences in _query_entries(dataset.refs_path(root, split), split):
        yield Ref(
            ref_id=ref_id,
            image_path=folder / "images" / f"{image_name}.jpg",
            image_name=image_name,
            size=None,
            sentences=sentences,
            split=split,
            segmentation=folder / "mask" / f"{ref_id}.mat",
        )


def _query_entries(path: Path, split: str) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """(ref_id, image name, its expressions) of each entry, in file order."""
    queries = read_json(path, "query file", _ANNOTATIONS_REMEDY)
    if not isinstance(queries, dict) or not queries:
        raise InputError(f"{path}: is not a table of expressions by object; {_ANNOTATIONS_REMEDY}")
    for ref_id, sentences in queries.items():
        image_name, separator, _ = safe_name(ref_id, str(path)).partition("_")
        if not image_name or not separator or not isinstance(sentences, list):
            raise InputError(f'{path}: "{ref_id}" is not IMAGE_NUMBER with a list of expressions')
        yield ref_id, image_name, _checked_sentences(sentences, f"{path}: {ref_id}")


def _require_distinct_names(refs: list[Ref]) -> None:
    """Batches name pictures by `image_name`, so that "7.jpg" and "7.png" cannot both be there."""
    paths: dict[str, Path] = {}
    for ref in refs:
        if paths.setdefault(ref.image_name, ref.image_path) != ref.image_path:
            raise InputError(f"{ref.image_path}: another image differs from it in the suffix only; rename one")


def _require_files(paths: list[Path], what: str, remedy: str) -> None:
    """All paths, of one folder, exist; one listing of the folder is far quicker than a look at each."""
    folder = paths[0].parent
    try:
        present = set(os.listdir(folder))  # noqa: PTH208
    except OSError as error:
        raise InputError(f"{folder}: {error.strerror}; {remedy}") from error
    missing = list(dict.fromkeys(path for path in paths if path.name not in present))
    if missing:
        more = f" ({len(missing):,} {what} are missing)" if len(missing) > 1 else ""
        raise InputError(f"{missing[0]}: no such file{more}; {remedy}")
