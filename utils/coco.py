"""Refs in RefCOCO's layout: a file of refs, and instances.json with outlines and image sizes (SPEC section 3)."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.errors import InputError, one_line
from utils.refs import Ref, checked_sentences, relative_path
from utils.safe_io import MEBIBYTE, read_json, safe_name
from utils.safe_pickle import read_pickle
from utils.segmentation import checked_segmentation, checked_size

MAX_INSTANCES_BYTES = 512 * MEBIBYTE  # RefCOCO's instances.json has about 120 MB
MAX_ID = 2**53

Entry = tuple[str, dict, tuple[str, ...]]  # ref_id, the entry with its ids checked, its expressions
Instances = tuple[dict[int, dict], dict[int, dict]]  # annotations and images by id


@dataclass(frozen=True)
class CocoFiles:
    """The files of a data set in this layout."""

    refs: Path  # a pickle, or .json of the same structure
    instances: Path
    images: Path  # folder
    remedy: str  # ends the messages of errors
    nested: bool = False  # file names in `instances` may lead into sub-folders of `images`

    def read_refs(self, split: str) -> list[Ref]:
        """The refs of a split in the order of the file, each annotation checked. Raises InputError."""
        entries = list(self.split_entries(self.read_entries(), split))
        instances = self.read_instances(entry["ann_id"] for _, entry, _ in entries)
        return [self.ref(entry, instances) for entry in entries]

    def read_entries(self) -> list[dict]:
        """All refs of all splits, as the file has them. Raises InputError for what is no list of refs."""
        if self.refs.suffix == ".json":
            entries = read_json(self.refs, "file of refs", self.remedy, MAX_INSTANCES_BYTES)
        else:
            entries = read_pickle(self.refs, self.remedy)
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise InputError(f"{self.refs}: is not a list of refs; {self.remedy}")
        return entries

    def split_entries(self, entries: list[dict], split: str) -> Iterator[Entry]:
        """The entries of a split, checked, in file order. Raises InputError, also where the split has none."""
        seen = set()
        for position, entry in enumerate(entries):
            if entry.get("split") != split:
                continue
            checked = self.checked_entry(position, entry)
            if checked[0] in seen:
                raise InputError(f"{self.refs}: ref {checked[0]} is there twice; {self.remedy}")
            seen.add(checked[0])
            yield checked
        if not seen:
            there = splits_of(entries)
            shown = one_line(", ".join(there[:10]), 100) or "none"
            raise InputError(f"{self.refs}: has no refs of the split {split}; splits there: {shown}")

    def checked_entry(self, position: int, entry: dict) -> Entry:
        """One entry, number `position` of the file, checked. Raises InputError."""
        for key in ("ref_id", "ann_id", "image_id"):
            if type(entry.get(key)) is not int or not 0 <= entry[key] < MAX_ID:
                raise InputError(f"{self.refs}: ref number {position}: has no whole number as {key}; {self.remedy}")
        where = f"{self.refs}: ref {entry['ref_id']}"
        sentences = entry.get("sentences")
        if not isinstance(sentences, list) or not all(isinstance(item, dict) for item in sentences):
            raise InputError(f"{where} has no list of sentences; {self.remedy}")
        return str(entry["ref_id"]), entry, checked_sentences([i.get("sent") for i in sentences], where, self.remedy)

    def read_instances(self, wanted: Iterable[int]) -> Instances:
        """The annotations with the wanted ids that are there, and all images, by id. Raises InputError."""
        value = read_json(self.instances, "annotation file", self.remedy, MAX_INSTANCES_BYTES)
        annotations, images = (self._by_id(value, key) for key in ("annotations", "images"))
        return {i: annotations[i] for i in set(wanted) if i in annotations}, images

    def _by_id(self, value: Any, key: str) -> dict[int, dict]:
        items = value.get(key) if isinstance(value, dict) else None
        if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
            raise InputError(f"{self.instances}: has no list of {key}; {self.remedy}")
        return {item["id"]: item for item in items if type(item.get("id")) is int}

    def ref(self, entry: Entry, instances: Instances) -> Ref:
        """The ref of an entry with its outline, checked; not whether its image is there. Raises InputError."""
        ref_id, values, sentences = entry
        where = f"{self.instances}: ref {ref_id} of {self.refs.name}"
        annotation, image = (
            found.get(values[key]) for found, key in zip(instances, ("ann_id", "image_id"), strict=True)
        )
        if annotation is None:
            raise InputError(f"{where}: annotation {values['ann_id']} is not there; {self.remedy}")
        if image is None:
            raise InputError(f"{where}: image {values['image_id']} is not there; {self.remedy}")
        size = checked_size(image.get("height"), image.get("width"), where)
        if self.nested:
            file = relative_path(image.get("file_name"), where)
        else:
            file = Path(safe_name(image.get("file_name", f"COCO_train2014_{values['image_id']:012d}.jpg"), where))
        return Ref(
            ref_id=ref_id,
            image_path=self.images / file,
            image_name=file.stem,
            size=size,
            sentences=sentences,
            split=values["split"],
            segmentation=checked_segmentation(annotation.get("segmentation"), size, where),
        )


def splits_of(entries: list[dict]) -> list[str]:
    """The splits that entries name, sorted."""
    return sorted({entry["split"] for entry in entries if isinstance(entry.get("split"), str)})
