"""Refs in RefCOCO's layout: a file of refs, and instances.json with masks and image sizes."""

from collections.abc import Collection, Container
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prepare.masks import checked_segmentation, checked_size, whole_number
from prepare.ref import Ref, checked_sentences, left_out_polygons, noting, relative_path
from prepare.refs_pickle import read_pickle
from utils.errors import InputError, one_line
from utils.files.images import read_image_size
from utils.files.reading import MEBIBYTE, read_json, safe_name

MAX_INSTANCES_BYTES = 512 * MEBIBYTE  # RefCOCO's instances.json has about 120 MB
MAX_ID = 2**53
Items = dict[int, list[dict]]  # by id: all that have it, of which there should be one


@dataclass(frozen=True)
class CocoFiles:
    """The files of a data set in this layout."""

    refs: Path  # a pickle, or .json of the same structure
    instances: Path
    images: Path  # folder
    remedy: str  # ends the messages of errors
    skip_empty: bool = True  # whether expressions may be empty
    nested: bool = False  # file names in `instances` may lead into sub-folders of `images`

    def check_expressions(self, splits: Container[str]) -> tuple[list[str], list[str]]:
        """The expressions of the splits in the order of the file, and what is wrong with their entries.

        Raises InputError as `check` does.
        """
        entries, faults = self._checked_entries(splits)
        return [sentence for entry in entries for sentence in entry["sentences"]], faults

    def image_ids(self, splits: Collection[str]) -> tuple[dict[str, set[int]], list[str]]:
        """The ids of each split's images, from the file of refs alone, and what is wrong with entries of it.

        Raises InputError as `check` does.
        """
        entries, faults = self._checked_entries(splits)
        ids: dict[str, set[int]] = {split: set() for split in splits}
        for entry in entries:
            ids[entry["split"]].add(entry["image_id"])
        return ids, faults

    def check(self, splits: Container[str] | None) -> tuple[list[Ref], list[str]]:
        """The usable refs of the splits (None: of all) in the order of the file, and what is wrong with the others.

        Raises InputError for a file that cannot be read, and where the splits have no refs.
        """
        entries, faults = self._checked_entries(splits)
        value = read_json(self.instances, "annotation file", self.remedy, MAX_INSTANCES_BYTES, allow_nan=True)
        annotations = self._by_id(value, "annotations", {entry["ann_id"] for entry in entries})
        images = self._by_id(value, "images", {entry["image_id"] for entry in entries})
        del value  # by far the most of the memory
        refs = []
        for entry in entries:
            with noting(faults):
                refs.append(self._ref(entry, annotations, images))
        return refs, faults

    def _checked_entries(self, splits: Container[str] | None) -> tuple[list[dict], list[str]]:
        """The entries of the splits, as `_checked_entry` has them, and the faults of the others."""
        if self.refs.suffix.lower() == ".json":
            entries = read_json(self.refs, "file of refs", self.remedy, MAX_INSTANCES_BYTES, allow_nan=True)
        else:
            entries = read_pickle(self.refs, self.remedy)
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise InputError(f"{self.refs}: is not a list of refs; {self.remedy}")
        found: dict[tuple[str, int], dict] = {}
        faults: list[str] = []
        for position, entry in enumerate(entries):
            split = entry.get("split")
            if isinstance(split, str) and (splits is None or split in splits):
                with noting(faults):
                    checked = self._checked_entry(position, entry)
                    if found.setdefault((split, checked["ref_id"]), checked) is not checked:
                        raise InputError(f"{self.refs}: ref {checked['ref_id']} is there twice; {self.remedy}")
        if not found and not faults:
            there = sorted({entry["split"] for entry in entries if isinstance(entry.get("split"), str)})
            shown = one_line(", ".join(there[:10]), 100) or "none"
            wanted = f"the split {', '.join(splits)}" if isinstance(splits, list) else "a wanted split"
            raise InputError(f"{self.refs}: has no refs of {wanted}; splits there: {shown}")
        return list(found.values()), faults

    def _checked_entry(self, position: int, entry: dict) -> dict:
        """Entry number `position` of the file with its ids as int and its expressions as text. Raises InputError."""
        ids = {key: whole_number(entry.get(key)) for key in ("ref_id", "ann_id", "image_id")}
        for key, number in ids.items():
            if number is None or not 0 <= number < MAX_ID:
                raise InputError(f"{self.refs}: ref number {position}: has no whole number as {key}; {self.remedy}")
        where = f"{self.refs}: ref {ids['ref_id']}"
        sentences = entry.get("sentences")
        if not isinstance(sentences, list) or not all(isinstance(item, (dict, str)) for item in sentences):
            raise InputError(f"{where} has no list of sentences; {self.remedy}")
        texts = [item if isinstance(item, str) else item.get("sent", item.get("raw")) for item in sentences]
        return {**entry, **ids, "sentences": checked_sentences(texts, where, self.remedy, self.skip_empty)}

    def _by_id(self, value: Any, key: str, wanted: set[int]) -> Items:
        items = value.get(key) if isinstance(value, dict) else None
        if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
            raise InputError(f"{self.instances}: has no list of {key}; {self.remedy}")
        found: Items = {number: [] for number in wanted}
        for item in items:
            number = whole_number(item.get("id"))
            if number in found:
                found[number].append(item)
        return found

    def _ref(self, entry: dict, annotations: Items, images: Items) -> Ref:
        """The ref of an entry with its mask, checked; not whether its image is there. Raises InputError."""
        where = f"{self.instances}: ref {entry['ref_id']} of {self.refs.name}"
        annotation = self._one(f"annotation {entry['ann_id']}", annotations[entry["ann_id"]], where)
        image = self._one(f"image {entry['image_id']}", images[entry["image_id"]], where)
        of = annotation.get("image_id")
        if of is not None and whole_number(of) != entry["image_id"]:
            shown = f"annotation {entry['ann_id']} is of image {one_line(of, 40)}, the ref of {entry['image_id']}"
            raise InputError(f"{where}: {shown}; {self.remedy}")
        name = image.get("file_name")
        if self.nested:
            file = relative_path(name, where)
        else:
            file = Path(safe_name(name or f"COCO_train2014_{entry['image_id']:012d}.jpg", where))
        size = image.get("height"), image.get("width")
        if None in size:
            size = read_image_size(self.images / file, self.remedy)
        size = checked_size(*size, where)
        given = annotation.get("segmentation")
        segmentation = checked_segmentation(given, size, where)
        return Ref(
            ref_id=str(entry["ref_id"]),
            image_path=self.images / file,
            image_name=file.stem,
            size=size,
            sentences=entry["sentences"],
            split=entry["split"],
            segmentation=segmentation,
            left_out=left_out_polygons(given, segmentation),
        )

    def _one(self, what: str, items: list[dict], where: str) -> dict:
        if len(items) != 1:
            fault = "is there twice: two have this id" if items else "is not there"
            raise InputError(f"{where}: {what} {fault}; {self.remedy}")
        return items[0]
