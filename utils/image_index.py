"""Which image each expression of a split belongs to, in one file, as the npz files of 100,000 take minutes to open.

The file follows from the npz files: what is damaged, or of another build, is made again.
"""

import io
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np

from utils.errors import InputError
from utils.files.arrays import read_npz
from utils.files.writing import atomic_write

_KEYS = ("names", "numbers", "texts_sha256")


class ImageIndex(NamedTuple):
    """The images of a split in order of first appearance, and the number of each expression's image."""

    names: np.ndarray  # str [images], all different
    numbers: np.ndarray  # int32 [expressions]

    @classmethod
    def of(cls, names: Iterable[str]) -> "ImageIndex":
        """The index of expressions whose images have these names."""
        found: dict[str, int] = {}
        numbers = np.array([found.setdefault(name, len(found)) for name in names], np.int32)
        return cls(np.array([*found]), numbers)

    def groups(self) -> list[list[int]]:
        """The expressions of each image."""
        order = np.argsort(self.numbers, kind="stable")
        return [group.tolist() for group in np.split(order, np.cumsum(np.bincount(self.numbers))[:-1])]

    def encoded(self, texts_sha256: str) -> bytes:
        """The file, which names the expressions that it is of: `utils.prepared.texts_digest`, empty if not known."""
        file = io.BytesIO()
        np.savez(file, names=self.names, numbers=self.numbers, texts_sha256=texts_sha256)
        return file.getvalue()


def read_index(path: Path, expressions: int, texts_sha256: str) -> ImageIndex | None:
    """The index in a file; None if it is not there, damaged, or of other expressions."""
    with suppress(InputError):
        names, numbers, texts = read_npz(path, _KEYS).values()
        fits = names.dtype.kind == "U" and names.ndim == 1 and numbers.dtype == np.int32 and texts.shape == ()
        if fits and numbers.shape == (expressions,) and texts.item() == texts_sha256:
            images, firsts = np.unique(numbers, return_index=True)
            distinct = len({*names.tolist()}) == len(names)
            if distinct and np.array_equal(images, np.arange(len(names))) and (np.diff(firsts) > 0).all():
                return ImageIndex(names, numbers)
    return None


def write_index(path: Path, index: ImageIndex, texts_sha256: str) -> None:
    """Write the file, unless the folder cannot be written: the index is then made again by the next who needs it."""
    with suppress(OSError), atomic_write(path) as file:
        file.write(index.encoded(texts_sha256))
