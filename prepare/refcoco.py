"""Refs in RefCOCO's layout: a file of refs, and instances.json with masks and image sizes."""

from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prepare.masks import checked_segmentation, checked_size, whole_number
from prepare.ref import Ref, checked_sentences, left_out_polygons, relative_path
from prepare.refs_pickle import read_pickle
from utils.errors import InputError, noting, one_line, raise_all
from utils.files.images import read_image_size
from utils.files.reading import MEBIBYTE, read_json, safe_name

MAX_INSTANCES_BYTES = 512 * MEBIBYTE  # RefCOCO's instances.json has about 120 MB
MAX_ID = 2**53
Entry = tuple[str, dict, tuple[str, ...]]  # ref_id, the entry with its ids as int, its expressions
Instances = tuple[dict[int, dict], dict[int, dict]]  # annotations and images by id
_TWICE: dict = {}  # stands for those that share an id


@dataclass(frozen=True)
class CocoFiles:
    """The files of a data set in this layout."""

    refs: Path  # a pickle, or .json of the same structure
    instances: Path
    images: Path  # folder
    remedy: str  # ends the messages of errors
    nested: bool = False  # file names in `instances` may lead into sub-folders of `images`

    def read_refs(self, split: str) -> list[Ref]:
        """The refs of a split in the order of the file, each annotation checked. Raises InputError.

        Of the user's own data it has all faults, otherwise the first.
        """
        refs, faults = self.check([split])
        raise_all(faults if self.nested else faults[:1])
        return refs

    def read_expressions(self, splits: Container[str]) -> list[str]:
        """The expressions of the splits in the order of the file. Raises InputError as `read_refs` does."""
        entries, faults = self._checked_entries(splits)
        raise_all(faults if self.nested else faults[:1])
        return [sentence for _, _, sentences in entries for sentence in sentences]

    def check(self, splits: Container[str] | None) -> tuple[list[Ref], list[str]]:
        """The usable refs of the splits (None: of all), and what is wrong with the others.

        Raises InputError for a file that cannot be read, and where the splits have no refs.
        """
        entries, faults = self._checked_entries(splits)
        instances = self._read_instances({values["ann_id"] for _, values, _ in entries})
        refs = []
        for entry in entries:
            with noting(faults):
                refs.append(self._ref(entry, instances))
        return refs, faults

    def read_entries(self) -> list[dict]:
        """All refs of all splits, as the file has them. Raises InputError for what is no list of refs."""
        if self.refs.suffix.lower() == ".json":
            entries = read_json(self.refs, "file of refs", self.remedy, MAX_INSTANCES_BYTES, allow_nan=True)
        else:
            entries = read_pickle(self.refs, self.remedy)
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise InputError(f"{self.refs}: is not a list of refs; {self.remedy}")
        return entries

    def _checked_entries(self, splits: Container[str] | None) -> tuple[list[Entry], list[str]]:
        found: dict[tuple[str, str], Entry] = {}
        faults = []
        entries = self.read_entries()
        for position, entry in enumerate(entries):
            split = entry.get("split")
            if not isinstance(split, str) or not (splits is None or split in splits):
                continue
            with noting(faults):
                checked = self._checked_entry(position, entry)
                if (split, checked[0]) in found:
                    raise InputError(f"{self.refs}: ref {checked[0]} is there twice; {self.remedy}")
                found[split, checked[0]] = checked
        if not found and not faults:
            there = sorted({entry["split"] for entry in entries if isinstance(entry.get("split"), str)})
            shown = one_line(", ".join(there[:10]), 100) or "none"
            wanted = f"the split {', '.join(splits)}" if isinstance(splits, list) else "a wanted split"
            raise InputError(f"{self.refs}: has no refs of {wanted}; splits there: {shown}")
        return list(found.values()), faults

    def _checked_entry(self, position: int, entry: dict) -> Entry:
        """One entry, number `position` of the file, checked. Raises InputError."""
        ids = {key: whole_number(entry.get(key)) for key in ("ref_id", "ann_id", "image_id")}
        for key, number in ids.items():
            if number is None or not 0 <= number < MAX_ID:
                raise InputError(f"{self.refs}: ref number {position}: has no whole number as {key}; {self.remedy}")
        where = f"{self.refs}: ref {ids['ref_id']}"
        sentences = entry.get("sentences")
        if not isinstance(sentences, list) or not all(isinstance(item, (dict, str)) for item in sentences):
            raise InputError(f"{where} has no list of sentences; {self.remedy}")
        texts = [item if isinstance(item, str) else item.get("sent", item.get("raw")) for item in sentences]
        return str(ids["ref_id"]), {**entry, **ids}, checked_sentences(texts, where, self.remedy)

    def _read_instances(self, wanted: set[int]) -> Instances:
        """The annotations with the wanted ids that are there, and all images, by id. Raises InputError."""
        value = read_json(self.instances, "annotation file", self.remedy, MAX_INSTANCES_BYTES, allow_nan=True)
        annotations, images = (self._by_id(value, key) for key in ("annotations", "images"))
        return {i: annotations[i] for i in wanted if i in annotations}, images

    def _by_id(self, value: Any, key: str) -> dict[int, dict]:
        items = value.get(key) if isinstance(value, dict) else None
        if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
            raise InputError(f"{self.instances}: has no list of {key}; {self.remedy}")
        found: dict[int, dict] = {}
        for item in items:
            number = whole_number(item.get("id"))
            if number is not None:
                found[number] = _TWICE if number in found else item
        return found

    def _ref(self, entry: Entry, instances: Instances) -> Ref:
        """The ref of an entry with its mask, checked; not whether its image is there. Raises InputError."""
        ref_id, values, sentences = entry
        where = f"{self.instances}: ref {ref_id} of {self.refs.name}"
        annotation, image = (
            self._one(what, values[key], found, where)
            for what, key, found in zip(("annotation", "image"), ("ann_id", "image_id"), instances, strict=True)
        )
        of = annotation.get("image_id")
        if of is not None and whole_number(of) != values["image_id"]:
            shown = f"annotation {values['ann_id']} is of image {one_line(of, 40)}, the ref of {values['image_id']}"
            raise InputError(f"{where}: {shown}; {self.remedy}")
        name = image.get("file_name")
        if self.nested:
            file = relative_path(name, where)
        else:
            file = Path(safe_name(name or f"COCO_train2014_{values['image_id']:012d}.jpg", where))
        size = image.get("height"), image.get("width")
        if None in size:
            size = read_image_size(self.images / file, self.remedy)
        size = checked_size(*size, where)
        given = annotation.get("segmentation")
        segmentation = checked_segmentation(given, size, where)
        return Ref(
            ref_id=ref_id,
            image_path=self.images / file,
            image_name=file.stem,
            size=size,
            sentences=sentences,
            split=values["split"],
            segmentation=segmentation,
            left_out=left_out_polygons(given, segmentation),
        )

    def _one(self, what: str, number: int, found: dict[int, dict], where: str) -> dict:
        item = found.get(number)
        if item is None or item is _TWICE:
            fault = "is not there" if item is None else f"is there twice: two have the id {number}"
            raise InputError(f"{where}: {what} {number} {fault}; {self.remedy}")
        return item
