"""Refs in RefCOCO's layout: a file of refs, and instances.json with masks and image sizes.


In gRefCOCO's form of it `ann_id` is a list: of annotations, whose union is the mask, or [-1] for no object, which
`"no_target": true` says too.
"""

import re
from collections.abc import Collection, Container
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prepare.masks import checked_segmentation, checked_size, united, whole_number
from prepare.ref import Ref, checked_sentences, left_out_polygons, noting, relative_path
from prepare.refs_pickle import read_pickle
from utils.errors import InputError, one_line
from utils.files.images import read_image_size
from utils.files.reading import MEBIBYTE, read_json, safe_name

MAX_INSTANCES_BYTES = 512 * MEBIBYTE  # RefCOCO's instances.json has about 120 MB
MAX_ID = 2**53
MAX_ANNOTATIONS = 1_000  # of a ref
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
        annotations = self._by_id(value, "annotations", {number for entry in entries for number in entry["ann_id"]})
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
        """Entry number `position` of the file with its ids as int and its expressions as text. Raises InputError.

        Its "ann_id" is a list, empty for no object.
        """
        several = isinstance(entry.get("ann_id"), list) or entry.get("no_target")
        ids = {key: _id(entry.get(key)) for key in ("ref_id", "image_id", *(() if several else ("ann_id",)))}
        for key, number in ids.items():
            if number is None:
                raise InputError(f"{self.refs}: ref number {position}: has no whole number as {key}; {self.remedy}")
        where = f"{self.refs}: ref {ids['ref_id']}"
        ids["ann_id"] = self._annotation_ids(entry, where) if several else [ids["ann_id"]]
        sentences = entry.get("sentences")
        if not isinstance(sentences, list) or not all(isinstance(item, (dict, str)) for item in sentences):
            raise InputError(f"{where} has no list of sentences; {self.remedy}")
        texts = [item if isinstance(item, str) else item.get("sent", item.get("raw")) for item in sentences]
        return {**entry, **ids, "sentences": checked_sentences(texts, where, self.remedy, self.skip_empty)}

    def _annotation_ids(self, entry: dict, where: str) -> list[int]:
        """The annotations of an entry of gRefCOCO's form, each once. Raises InputError beginning with `where`."""
        given, without = entry.get("ann_id"), entry.get("no_target")
        if without not in (None, False, True):
            raise InputError(f"{where}: no_target is neither true nor false; {self.remedy}")
        if given == [-1] or (without and given in (None, -1, [])):
            return []
        if without:
            raise InputError(f"{where}: has no_target, but also an annotation as ann_id; keep one of the two")
        numbers = [_id(number) for number in given[:MAX_ANNOTATIONS]]
        if not numbers or None in numbers or len(given) > MAX_ANNOTATIONS:
            raise InputError(f"{where}: ann_id is neither [-1] (no object) nor a list of whole numbers; {self.remedy}")
        return list(dict.fromkeys(numbers))

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
        image = self._one(f"image {entry['image_id']}", images[entry["image_id"]], where)
        objects = [self._one(f"annotation {number}", annotations[number], where) for number in entry["ann_id"]]
        for number, annotation in zip(entry["ann_id"], objects, strict=True):
            of = annotation.get("image_id")
            if of is not None and whole_number(of) != entry["image_id"]:
                shown = f"annotation {number} is of image {one_line(of, 40)}, the ref of {entry['image_id']}"
                raise InputError(f"{where}: {shown}; {self.remedy}")
        name = image.get("file_name")
        if self.nested:
            file = relative_path(name, where)
            coco = re.match(r"COCO_((?:train|val)2014)_", str(file))  # images that lie as COCO's zips unpack
            if coco and (self.images / coco[1]).is_dir():
                file = Path(coco[1]) / file
        else:
            file = Path(safe_name(name or f"COCO_train2014_{entry['image_id']:012d}.jpg", where))
        size = image.get("height"), image.get("width")
        if None in size:
            size = read_image_size(self.images / file, self.remedy)
        size = checked_size(*size, where)
        given = [annotation.get("segmentation") for annotation in objects]
        parts = [checked_segmentation(each, size, where) for each in given]
        return Ref(
            ref_id=str(entry["ref_id"]),
            image_path=self.images / file,
            image_name=file.stem,
            size=size,
            sentences=entry["sentences"],
            split=entry["split"],
            segmentation=parts[0] if len(parts) == 1 else united(parts, size, where),
            left_out=sum(map(left_out_polygons, given, parts)),
        )

    def _one(self, what: str, items: list[dict], where: str) -> dict:
        if len(items) != 1:
            fault = "is there twice: two have this id" if items else "is not there"
            raise InputError(f"{where}: {what} {fault}; {self.remedy}")
        return items[0]


def _id(value: Any) -> int | None:
    """An id as int; None for anything else."""
    number = whole_number(value)
    return number if number is not None and 0 <= number < MAX_ID else None
