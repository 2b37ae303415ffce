"""Data of the user's own, `-d NAME --refs FILE`: a JSON Lines file, or files in the layout of RefCOCO.

docs/CUSTOM_DATA.md describes both. Whatever an entry names lies below one folder.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from utils.batch_folder import OWN_FAMILY, is_plain_name, is_train
from utils.coco import CocoFiles, splits_of
from utils.errors import InputError, one_line
from utils.refer import DATASETS
from utils.refs import Ref, checked_sentences, relative_path, require_distinct_names, require_files
from utils.safe_io import MAX_JSON_CONTAINERS, MEBIBYTE, json_value, read_bytes, read_image_size, safe_name
from utils.segmentation import checked_segmentation

MAX_LINES_BYTES = 512 * MEBIBYTE
MAX_PLAIN_NAME = 100  # bytes; a longer path gives a name by its digest
OUTLINES = ("mask", "polygon", "rle")
REMEDY = "docs/CUSTOM_DATA.md shows how it has to look"
_IMAGE_REMEDY = "mend the entry, or give the folder with --images DIR"


@dataclass(frozen=True)
class OwnData:
    """What the flags of build_batches.py and build_vocab.py say of a user's data set; `own_data` makes it."""

    name: str
    refs: Path
    instances: Path | None  # only in RefCOCO's layout
    images: Path | None  # None: the folder of `refs`

    family = OWN_FAMILY

    def vocabulary_path(self, root: Path) -> Path:
        """Where build_vocab.py puts the vocabulary."""
        return Path(root) / "data" / f"vocabulary_{self.name}.txt"

    def embeddings_path(self, root: Path) -> Path:
        """Where build_vocab.py puts the word embeddings."""
        return Path(root) / "data" / f"{self.name}_emb.npy"

    @property
    def has_lines(self) -> bool:
        """Whether `refs` is a JSON Lines file, and not in RefCOCO's layout."""
        return self.refs.suffix == ".jsonl"

    @property
    def _folder(self) -> Path:
        return self.images or self.refs.parent

    @property
    def _coco(self) -> CocoFiles:
        return CocoFiles(self.refs, self.instances or self.refs, self._folder, REMEDY, nested=True)

    def read_refs(self, split: str) -> list[Ref]:
        """The refs of a split in file order, checked, each image and mask known to be there. Raises InputError."""
        refs = self._line_refs(split) if self.has_lines else self._coco.read_refs(split)
        names = _image_names({ref.image_path: ref.image_path.relative_to(self._folder) for ref in refs})
        refs = [replace(ref, image_name=names[ref.image_path]) for ref in refs]
        for ref in refs:
            for name in (ref.image_name, f"{ref.image_name}{ref.image_path.suffix}"):
                safe_name(name, f"{self.refs}: {ref.image_path}")
        require_distinct_names(refs)
        if not self.has_lines:  # of lines it was looked at before image sizes were read
            require_files((ref.image_path for ref in refs), "images", _IMAGE_REMEDY)
        return refs

    def read_training_expressions(self) -> list[str]:
        """All expressions of the splits whose name contains "train". Raises InputError if there is none."""
        texts = list(self._line_expressions() if self.has_lines else self._coco_expressions())
        if not texts:
            raise InputError(f'{self.refs}: no split has "train" in its name, so there are no words to take; {REMEDY}')
        return texts

    def _line_expressions(self) -> Iterator[str]:
        for where, record in self._records():
            if is_train(record["split"]):
                yield from _texts(record, where)

    def _coco_expressions(self) -> Iterator[str]:
        entries = self._coco.read_entries()
        for split in filter(is_train, splits_of(entries)):
            for _, _, sentences in self._coco.split_entries(entries, split):
                yield from sentences

    def _records(self) -> Iterator[tuple[str, dict]]:
        """(file and line, the record on it) of each line but blank ones; each has a split."""
        data = read_bytes(self.refs, MAX_LINES_BYTES, "JSON Lines file", REMEDY)
        if data.count(b"[") + data.count(b"{") > MAX_JSON_CONTAINERS:
            raise InputError(f"{self.refs}: has more lists than any JSON Lines file needs; {REMEDY}")
        for number, line in enumerate(data.split(b"\n"), 1):
            where = f"{self.refs}: line {number}"
            if not line.strip():
                continue
            try:
                record = json_value(line)
            except (ValueError, RecursionError) as error:
                raise InputError(f"{where}: is not JSON ({one_line(error, 100)}); {REMEDY}") from error
            if not isinstance(record, dict):
                raise InputError(f"{where}: is not a JSON object {{...}}; {REMEDY}")
            if not isinstance(record.get("split"), str):
                raise InputError(f'{where}: has no "split", such as "train" or "val"; {REMEDY}')
            yield where, record

    def _line_refs(self, split: str) -> list[Ref]:
        found, splits = [], set()
        for where, record in self._records():
            splits.add(record["split"])
            if record["split"] == split:
                found.append((where, record, self._folder / relative_path(record.get("image"), f'{where}: "image"')))
        if not found:
            there = one_line(", ".join(sorted(splits)[:10]), 100) or "none"
            raise InputError(f"{self.refs}: has no line of the split {split}; splits there: {there}")
        require_files((image for _, _, image in found), "images", _IMAGE_REMEDY)
        size_of = cache(lambda image: read_image_size(image, _IMAGE_REMEDY))
        refs = [self._line_ref(where, record, image, size_of) for where, record, image in found]
        require_files((r.segmentation for r in refs if isinstance(r.segmentation, Path)), "masks", _IMAGE_REMEDY)
        return refs

    def _line_ref(self, where: str, record: dict, image: Path, size_of) -> Ref:
        given = [key for key in OUTLINES if key in record]
        if len(given) != 1:
            raise InputError(f"{where}: has to have one of {', '.join(OUTLINES)}, and has {len(given)}; {REMEDY}")
        outline = record[given[0]]
        if given == ["mask"]:
            size, segmentation = None, self._folder / relative_path(outline, f'{where}: "mask"')
            if segmentation.suffix != ".png":
                raise InputError(f"{where}: the mask is not a .png file (others may blur its edge); {REMEDY}")
        elif isinstance(outline, list) != (given == ["polygon"]):
            raise InputError(f'{where}: "polygon" is a list of polygons, "rle" an object; {REMEDY}')
        else:
            size = size_of(image)
            segmentation = checked_segmentation(outline, size, where)
        name = where.rpartition(" ")[2]  # the number of the line
        return Ref(name, image, image.stem, size, _texts(record, where), record["split"], segmentation)


def _texts(record: dict, where: str) -> tuple[str, ...]:
    texts = record.get("text")
    texts = [texts] if isinstance(texts, str) else texts
    if not isinstance(texts, list) or not texts:
        raise InputError(f'{where}: has no "text", an expression or a list of them; {REMEDY}')
    return checked_sentences(texts, where, REMEDY)


def _image_names(paths: dict[Path, Path]) -> dict[Path, str]:
    """Path -> a plain name that no other has, from its path below the folder: a/1.jpg is a__1.

    Where two would be called the same (1.jpg and 1.png, a/1.jpg and a__1.jpg) or a name is long, it has a digest.
    """
    plain = {path: "__".join(below.with_suffix("").parts) for path, below in paths.items()}
    counts = Counter(plain.values())
    for path, name in plain.items():
        if counts[name] > 1 or len(name.encode()) > MAX_PLAIN_NAME:
            digest = hashlib.sha256(paths[path].as_posix().encode()).hexdigest()[:12]
            plain[path] = f"{digest}-{name[-20:]}"
    return plain


def own_data(name: str, refs: Path | None, instances: Path | None = None, images: Path | None = None) -> OwnData | None:
    """The data set that the flags describe; None for a public one. Raises InputError if they do not go together."""
    if refs is None:
        if instances or images:
            raise InputError("--instances and --images describe your own data, whose refs --refs FILE gives")
        if name not in DATASETS:
            known = ", ".join(DATASETS)
            raise InputError(
                f"-d {one_line(name, 40)}: unknown data set; known are {known}; for your own data give --refs FILE too"
            )
        return None
    if name in DATASETS:
        raise InputError(f"-d {name} is a public data set with files of its own: give yours another name than that")
    if not is_plain_name(name):
        shown = one_line(name, 40)
        raise InputError(
            f"-d {shown!r}: a name has letters, digits and . _ + - only, at most 64, a letter or digit first"
        )
    data = OwnData(name, refs, instances, images)
    if data.has_lines and instances:
        raise InputError(f"--instances goes with a refs file in RefCOCO's layout; {refs} holds the outlines itself")
    return data
