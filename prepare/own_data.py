"""Data of the user's own, `-d NAME --refs FILE`: a JSON Lines file, or files in the layout of RefCOCO.

docs/CUSTOM_DATA.md describes both. Whatever an entry names lies below one folder.
"""

import gzip
import hashlib
import io
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from prepare.masks import checked_segmentation, require_size
from prepare.ref import Ref, checked_sentences, left_out_polygons, noting, relative_path, require_distinct_names
from prepare.refcoco import CocoFiles
from utils.datasets import ALIASES, DATASETS, Dataset, short_name
from utils.errors import InputError, did_you_mean, one_line
from utils.files.images import read_image_size
from utils.files.reading import MAX_JSON_CONTAINERS, MEBIBYTE, foreign_content, json_value, read_bytes, safe_name
from utils.prepared import is_plain_name, is_train

MAX_LINES_BYTES = 512 * MEBIBYTE
MAX_PLAIN_NAME = 100  # bytes; a longer path gives a name by its digest
SizeOf = Callable[[Path], tuple[int, int]]  # (height, width) of an image file
OUTLINES = ("mask", "polygon", "rle")
REMEDY = "docs/CUSTOM_DATA.md shows how it has to look"
_IMAGE_REMEDY = "fix the entry, or give the folder with --images DIR"


@dataclass(frozen=True)
class OwnData:
    """What the flags of build_batches.py and build_vocab.py say of a user's data set; `own_data` makes it."""

    name: str
    refs: Path
    instances: Path | None  # only in RefCOCO's layout
    images: Path | None  # None: the folder of `refs`
    skip_empty: bool = True  # whether expressions may be empty

    vocabulary_path, embeddings_path = Dataset.vocabulary_path, Dataset.embeddings_path  # of `vocabulary`

    @property
    def vocabulary(self) -> str:
        """The name of the word list, and of the embeddings."""
        return self.name

    @property
    def has_lines(self) -> bool:
        """Whether `refs` is a JSON Lines file, and not in RefCOCO's layout."""
        return bool(re.search(r"\.(jsonl|ndjson)(\.gz)?$", self.refs.name, re.IGNORECASE))

    def require_flags(self) -> None:
        """Raise InputError where more than `refs` is needed."""
        if not self.has_lines and not (self.instances and self.images):
            raise InputError(f"--refs {self.refs}: give --instances and --images too; only a .jsonl file needs neither")

    @property
    def _folder(self) -> Path:
        return self.images or self.refs.parent

    @property
    def _coco(self) -> CocoFiles:
        instances = self.instances or self.refs
        return CocoFiles(self.refs, instances, self._folder, REMEDY, self.skip_empty, nested=True)

    def read_refs(self, split: str) -> list[Ref]:
        """The refs of a split in file order, checked, each image and mask known to be there.

        Raises InputError with all faults, one a line.
        """
        refs, faults = self.check(split)
        _raise_all(faults)
        return refs

    def check(self, split: str | None = None) -> tuple[list[Ref], list[str]]:
        """The usable refs of a split (None: of all) in file order, and the faults of the others.

        Of images and masks only the heads are read. Raises InputError where the file as a whole is not usable.
        """
        size_of = cache(lambda path: read_image_size(path, _IMAGE_REMEDY))
        if self.has_lines:
            refs, faults = self._check_lines(split, size_of)
        else:
            refs, faults = self._coco.check(None if split is None else [split])
            for ref in {ref.image_path: ref for ref in refs}.values():
                with noting(faults):
                    require_size(ref.image_path, size_of(ref.image_path), ref.size, self.instances)
        names = _image_names({ref.image_path: ref.image_path.relative_to(self._folder) for ref in refs})
        refs = [replace(ref, image_name=names[ref.image_path]) for ref in refs]
        with noting(faults):
            for ref in refs:
                for name in (ref.image_name, f"{ref.image_name}{ref.image_path.suffix}"):
                    safe_name(name, f"{self.refs}: {ref.image_path}")
            require_distinct_names(refs)
        return refs, faults

    def read_training_expressions(self) -> list[str]:
        """All expressions of the splits whose name contains "train". Raises InputError if there is none."""
        texts, faults = [], []
        if self.has_lines:
            for where, record in self._records(faults):
                with noting(faults):
                    texts += self._texts(record, where) if is_train(record["split"]) else ()
        else:
            texts, faults = self._coco.check_expressions(_TrainSplits())
        _raise_all(faults)
        if not texts:
            raise InputError(f'{self.refs}: no split has "train" in its name, so there are no words to take; {REMEDY}')
        return texts

    def _records(self, faults: list[str]) -> Iterator[tuple[str, dict]]:
        """(file and line, the record on it) of each usable line; each has a split. The others go to `faults`."""
        for number, line in enumerate(self._lines(), 1):
            if line.strip():
                with noting(faults):
                    where = f"{self.refs}: line {number}"
                    yield where, _record(line, where)

    def _lines(self) -> list[bytes]:
        data = read_bytes(self.refs, MAX_LINES_BYTES, "JSON Lines file", REMEDY)
        if self.refs.suffix.lower() == ".gz":
            try:
                with gzip.open(io.BytesIO(data)) as file:
                    data = file.read(MAX_LINES_BYTES + 1)
            except (OSError, EOFError, zlib.error) as error:
                raise InputError(f"{self.refs}: is damaged or not packed with gzip; {REMEDY}") from error
        elif kind := foreign_content(self.refs):
            raise InputError(f"{self.refs}: is {kind}; {REMEDY}")
        if len(data) > MAX_LINES_BYTES or data.count(b"[") + data.count(b"{") > MAX_JSON_CONTAINERS:
            raise InputError(f"{self.refs}: has more lists than any JSON Lines file needs; {REMEDY}")
        return data.split(b"\n")

    def _check_lines(self, split: str | None, size_of: SizeOf) -> tuple[list[Ref], list[str]]:
        refs, faults, splits = [], [], set()
        for where, record in self._records(faults):
            splits.add(record["split"])
            if split in (None, record["split"]):
                refs.append(self._line_ref(where, record, size_of, faults))
        if not refs and not faults:
            there = one_line(", ".join(sorted(splits)[:10]), 100) or "none"
            raise InputError(f"{self.refs}: has no line of the split {split}; splits there: {there}")
        return [ref for ref in refs if ref], faults

    def _line_ref(self, where: str, record: dict, size_of: SizeOf, faults: list[str]) -> Ref | None:
        """The ref of a line; None, after all its faults went to `faults`."""
        before = len(faults)
        image = size = outline = None
        texts: tuple[str, ...] = ()
        with noting(faults):
            image = self._folder / relative_path(record.get("image"), f'{where}: "image"')
            size = _size_at(where, image, size_of)
        with noting(faults):
            outline = self._outline(where, record, size, size_of)
        with noting(faults):
            texts = self._texts(record, where)
        if len(faults) > before:
            return None
        return Ref(
            ref_id=where.rpartition(" ")[2],  # the number of the line
            image_path=image,
            image_name=image.stem,
            size=None if isinstance(outline, Path) else size,
            sentences=texts,
            split=record["split"],
            segmentation=outline,
            left_out=left_out_polygons(record.get("polygon"), outline),
        )

    def _texts(self, record: dict, where: str) -> tuple[str, ...]:
        texts = record.get("text")
        texts = [texts] if isinstance(texts, str) else texts
        if not isinstance(texts, list) or not texts:
            raise InputError(f'{where}: has no "text", an expression or a list of them; {REMEDY}')
        return checked_sentences(texts, where, REMEDY, self.skip_empty)

    def _outline(self, where: str, record: dict, size: tuple[int, int] | None, size_of: SizeOf):
        """The mask of a line's object, which fits an image of `size`; unless that is None, as it cannot be read.

        [] of a line that says that there is no object.
        """
        given = [key for key in OUTLINES if record.get(key) is not None]
        if record.get("no_target") not in (None, False, True):
            raise InputError(f'{where}: "no_target" is neither true nor false; {REMEDY}')
        if record.get("no_target"):
            if given:
                raise InputError(f'{where}: has "no_target" and a {given[0]}; keep one of the two')
            return []
        if len(given) != 1:
            no_object = "" if given else ' (of no object: "no_target": true)'
            raise InputError(
                f"{where}: has to have one of {', '.join(OUTLINES)}, and has {len(given)}{no_object}; {REMEDY}"
            )
        outline = record[given[0]]
        if given == ["mask"]:
            path = self._folder / relative_path(outline, f'{where}: "mask"')
            if path.suffix.lower() != ".png":
                raise InputError(f"{where}: the mask is not a .png file (others may blur its edge); {REMEDY}")
            mask_size = _size_at(where, path, size_of)
            if size and mask_size != size:
                said = f"{mask_size[0]} x {mask_size[1]} pixels (height x width), the image {size[0]} x {size[1]}"
                raise InputError(f"{where}: the mask {path} is {said}; make it as large as the image")
            return path
        if isinstance(outline, list) != (given == ["polygon"]):
            raise InputError(f'{where}: "polygon" is a list of polygons, "rle" an object; {REMEDY}')
        return checked_segmentation(outline, size, where) if size else None


class _TrainSplits:
    """Contains the splits for training."""

    def __contains__(self, split: object) -> bool:
        return is_train(split)


def _size_at(where: str, path: Path, size_of: SizeOf) -> tuple[int, int]:
    try:
        return size_of(path)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def _record(line: bytes, where: str) -> dict:
    try:
        record = json_value(line, allow_nan=True)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: is not JSON ({one_line(error, 100)}); {REMEDY}") from error
    if not isinstance(record, dict):
        raise InputError(f"{where}: is not a JSON object {{...}}; {REMEDY}")
    if not isinstance(record.get("split"), str):
        raise InputError(f'{where}: has no "split", such as "train" or "val"; {REMEDY}')
    return record


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


def add_own_data(group) -> None:
    """Add the flags that describe a data set of the user's own."""
    refs = "JSON Lines file, or refs in RefCOCO's layout (a pickle or .json)"
    group.add_argument("--refs", type=Path, metavar="FILE", help=refs)
    group.add_argument("--instances", type=Path, metavar="FILE", help="instances.json, for refs in RefCOCO's layout")
    images = "folder of images (default for a .jsonl file: its own folder)"
    group.add_argument("--images", type=Path, metavar="DIR", help=images)


def own_data(
    name: str, refs: Path | None, instances: Path | None = None, images: Path | None = None, skip_empty: bool = True
) -> OwnData | None:
    """The data set that the flags describe; None for a public one. Raises InputError if they do not go together."""
    if refs is None:
        if instances or images:
            raise InputError("--instances and --images describe your own data, whose refs --refs FILE gives")
        if short_name(name) not in DATASETS:
            known = [*DATASETS, *ALIASES]
            fault = f"-d {one_line(name, 40)}: unknown data set; known are {', '.join(known)}"
            raise InputError(f"{fault}; for your own data give --refs FILE too{did_you_mean(name, known)}")
        return None
    if name in DATASETS:
        raise InputError(f"-d {name} is a public data set with files of its own: give yours another name than that")
    if not is_plain_name(name):
        shown = one_line(name, 40)
        raise InputError(
            f"-d {shown!r}: a name has letters, digits and . _ + - only, at most 64, a letter or digit first"
        )
    data = OwnData(name, refs, instances, images, skip_empty)
    if data.has_lines and instances:
        raise InputError(f"--instances goes with a refs file in RefCOCO's layout; {refs} holds the masks itself")
    return data


def _raise_all(faults: list[str]) -> None:
    """Raise one InputError with the first 20 of `faults`, if there are any."""
    more = [f"and {len(faults) - 20:,} more faults"] if len(faults) > 20 else []
    if faults:
        raise InputError(*faults[:20], *more)
