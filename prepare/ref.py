"""One annotated object of a data set (or several, or none), and the checks that every reader of annotations makes."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from prepare.masks import draw, read_mat_mask
from utils.errors import InputError, one_line
from utils.files.images import read_mask_png
from utils.files.reading import safe_name
from utils.text import MAX_EXPRESSION


@dataclass(frozen=True)
class Ref:
    """One annotated object, or several or none: an image, the expressions for it, and its mask."""

    ref_id: str  # unique in its split, and a plain file name
    image_path: Path
    image_name: str  # unique among the split's images, and a plain file name: "COCO_train2014_000000581857", "30993"
    size: tuple[int, int] | None  # height, width the annotations were made for; None: not known
    sentences: tuple[str, ...]  # may hold empty ones, which the build skips
    split: str
    segmentation: list | dict | Path  # polygons, RLE, polygons and RLE (union), or a .mat or .png file; []: no object
    left_out: int = 0  # polygons of fewer than three points, which are not drawn

    @property
    def no_target(self) -> bool:
        """Whether the annotations say that the expressions mean nothing in the image."""
        return self.segmentation == []

    def mask(self) -> np.ndarray:
        """The object as bool H x W, possibly empty. Raises InputError for a missing or broken file."""
        if not isinstance(self.segmentation, Path):
            return draw(self.segmentation, self.size)
        if self.segmentation.suffix == ".mat":
            return read_mat_mask(self.segmentation)
        return read_mask_png(self.segmentation, "save it again as PNG, 0 outside of the object")


@contextmanager
def noting(faults: list[str]) -> Iterator[None]:
    """Append the message of an InputError in the block to `faults` instead of raising it."""
    try:
        yield
    except InputError as error:
        faults.append(str(error))


def checked_sentences(sentences: list[Any], where: str, remedy: str, skip_empty: bool) -> tuple[str, ...]:
    """Expressions that can be stored. Raises InputError beginning with `where` for what is not text, or too long.

    `skip_empty`: empty ones are left to the build, which skips them; else they are refused too.
    """
    for sentence in sentences:
        if not isinstance(sentence, str):
            raise InputError(f"{where}: an expression is not text; {remedy}")
        if len(sentence) > MAX_EXPRESSION:
            raise InputError(f"{where}: an expression has {len(sentence):,} characters; at most {MAX_EXPRESSION:,} go")
        if any(0xD800 <= ord(character) < 0xE000 for character in sentence):
            raise InputError(f"{where}: an expression is not valid Unicode; {remedy}")
        if not skip_empty and not sentence.strip():
            raise InputError(f"{where}: an expression is empty; fix it or pass --skip_empty")
    return tuple(sentences)


def relative_path(name: object, where: str) -> Path:
    """`name` as a path that stays below its folder; a backslash, as tools on Windows write it, separates too.

    Raises InputError beginning with `where`.
    """
    if not isinstance(name, str) or not name:
        safe_name(name, where)
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts:
        shown = one_line(name, 80)
        raise InputError(f'{where}: "{shown}" leaves the folder of images; write paths relative to it (--images DIR)')
    for part in path.parts or (name,):
        safe_name(part, where)
    return Path(path)


def left_out_polygons(given: object, kept: list | dict) -> int:
    """How many polygons `checked_segmentation` left out."""
    return len(given) - len(kept) if isinstance(given, list) else 0


def require_distinct_names(refs: list[Ref]) -> None:
    """Prepared data name images by `image_name`, so that "7.jpg" and "7.png" cannot both be there."""
    paths: dict[str, Path] = {}
    for ref in refs:
        if paths.setdefault(ref.image_name, ref.image_path) != ref.image_path:
            raise InputError(f"{ref.image_path}: another image differs from it in the suffix only; rename one")


def missing_files(paths: Iterable[Path], remedy: str) -> list[Path]:
    """Those that are not there, each once; one listing of a folder is far quicker than a look at each file in it.

    Raises InputError for a folder that cannot be listed.
    """
    wanted, present = dict.fromkeys(paths), {}
    for folder in dict.fromkeys(path.parent for path in wanted):
        try:
            present[folder] = set(os.listdir(folder))  # noqa: PTH208
        except OSError as error:
            raise InputError(f"{folder}: {error.strerror}; {remedy}") from error
    return [path for path in wanted if path.name not in present[path.parent]]
