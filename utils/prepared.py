"""The reader of batch folders: ours, compact or self-contained, and the reference's (SPEC section 4).

Images that belong to a train split come on the canvas, others at their original resolution, as the reference has them.
Training needs neither a listing nor an index of the folder: sample i is read from the files that carry its number.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from utils.datasets import DATASETS
from utils.errors import InputError, one_line
from utils.files.arrays import read_npz
from utils.files.images import read_image, read_mask_png
from utils.files.reading import BUILD_REMEDY, read_json, safe_name
from utils.geometry import pad
from utils.text import TEXT_LENGTH

FORMAT, VERSION = "restr-batches", 1
MAX_EXPRESSIONS = 10_000_000  # a file that claims more would take the memory for their order
MAX_CANVAS_SIDE = 8_192  # pixels; no model takes more (models.config.LARGEST, whose import takes PyTorch)
META, VOCABULARY, LOCK = "meta.json", "vocabulary.txt", ".lock"
TEXT_KEYS = ("text_batch", "sent_batch", "im_name_batch")
OWN_FAMILY = "custom"  # the folder of data/ that batches of users' own data go to
SIZES = "bytes"  # of meta.json: of all files of each complete split; not in folders of version 1.0
FILE_KEYS = ("image_file", "label_file")  # beside the texts, in the compact form
SUMS_KEY = "crc32"  # beside these: of the image file and of the mask file, uint32 [2]; not in folders of version 1.0
ARRAY_KEYS = ("im_batch", "mask_batch")  # beside the texts, in the reference's form
META_REMEDY = "move the folder away and build the batches again with build_batches.py"


def is_plain_name(name: Any) -> bool:
    """Whether a data set or a split may have this name, which becomes part of file names and of commands."""
    return isinstance(name, str) and bool(re.fullmatch(r"\w[\w.+-]*", name)) and len(name.encode()) <= 64


def is_train(split: str) -> bool:
    """Splits named so are resized when batches are made; the others keep the original resolution (SPEC section 5)."""
    return "train" in split


def size_name(size: tuple[int, int]) -> str:
    """(480, 480) -> "480"; (480, 640) -> "480x640"."""
    return str(size[0]) if size[0] == size[1] else f"{size[0]}x{size[1]}"


def folder_path(root: Path, dataset: str, size: tuple[int, int]) -> Path:
    """Where build_batches.py puts the batches of a data set: data/mscoco/unc_480_batch below `root`."""
    family = DATASETS[dataset].family if dataset in DATASETS else OWN_FAMILY
    return Path(root) / "data" / family / f"{dataset}_{size_name(size)}_batch"


def build_command(meta: dict, split: str) -> str:
    """What to type to build or complete a split of this folder."""
    size = ",".join(map(str, meta["image_size"][: 1 if len(set(meta["image_size"])) == 1 else 2]))
    flag = " --self_contained" if meta["self_contained"] else ""
    refs = "" if meta["dataset"] in DATASETS else " --refs FILE"
    return f"python build_batches.py -d {meta['dataset']}{refs} -t {split} --img-size {size}{flag}"


@dataclass(frozen=True)
class SplitFiles:
    """Paths of one split's files."""

    folder: Path
    dataset: str
    split: str

    @property
    def batches(self) -> Path:
        return self.folder / f"{self.split}_batch"

    @property
    def images(self) -> Path:
        return self.folder / f"{self.split}_image"

    @property
    def labels(self) -> Path:
        return self.folder / f"{self.split}_label"

    @property
    def folders(self) -> tuple[Path, Path, Path]:
        return self.batches, self.images, self.labels

    def name(self, number: int) -> str:
        """The name of an expression: "unc_val_17"."""
        return f"{self.dataset}_{self.split}_{number}"

    def npz(self, number: int) -> Path:
        return self.batches / f"{self.name(number)}.npz"


def read_meta(folder: Path | str) -> dict | None:
    """The checked content of a batch folder's meta.json; None for a folder without, which the reference made.

    Raises InputError for a missing folder, and for a file that is damaged or of another version.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder of batches; make it with build_batches.py")
    path = folder / META
    if not path.exists():
        return None
    meta = read_json(path, "description of a batch folder", META_REMEDY)
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        raise InputError(f"{path}: does not describe a batch folder; {META_REMEDY}")
    if meta.get("version") != VERSION:
        version = one_line(meta.get("version"), 20)
        raise InputError(f"{path}: is of version {version}, this program reads {VERSION}; {META_REMEDY}")
    fault = _fault(meta)
    if fault:
        raise InputError(f"{path}: has no valid {fault}; {META_REMEDY}")
    return meta


def _is_count(value: Any, most: int = MAX_EXPRESSIONS) -> bool:
    return type(value) is int and 1 <= value <= most


def _fault(meta: dict) -> str | None:
    """The first entry that is not as it must be."""
    size, vocabulary, splits = meta.get("image_size"), meta.get("vocabulary"), meta.get("splits")
    if not is_plain_name(meta.get("dataset")):
        return "dataset"
    if not isinstance(size, list) or len(size) != 2 or not all(_is_count(n, MAX_CANVAS_SIDE) for n in size):
        return "image_size"
    if meta.get("text_length") != TEXT_LENGTH:
        return f"text_length, which is {TEXT_LENGTH}"
    if type(meta.get("self_contained")) is not bool:
        return "self_contained"
    if not isinstance(vocabulary, dict) or not _is_count(vocabulary.get("size")):
        return "vocabulary"
    if vocabulary.get("file") != VOCABULARY or not all(
        isinstance(vocabulary.get(k), str) for k in ("sha256", "source")
    ):
        return "vocabulary"
    if not isinstance(splits, dict):
        return "splits"
    if not isinstance(meta.get(SIZES, {}), dict):
        return SIZES
    for split, entry in splits.items():
        counts = [entry.get(key) for key in ("refs", "expressions", "images")] if isinstance(entry, dict) else [None]
        if not is_plain_name(split) or not all(map(_is_count, counts)) or type(entry.get("complete")) is not bool:
            return f"split {one_line(split, 40)}"
    return None


def texts_digest(texts: Iterable[tuple[str, str]]) -> str:
    """SHA-256 of (image name, expression) in the order of their numbers: meta.json has it, evaluation compares it."""
    digest = hashlib.sha256()
    for image, sentence in texts:
        digest.update(json.dumps([image, sentence.rstrip("\0")]).encode() + b"\n")  # NumPy drops zeros at the end
    return digest.hexdigest()


def reference_dataset(folder: Path, split: str) -> tuple[str, int]:
    """(data set, number of expressions) of a split in a folder without meta.json. Raises InputError."""
    batches = folder / f"{safe_name(split, 'split')}_batch"
    if not batches.is_dir():
        raise InputError(f"{batches}: no such folder of batches; make it with build_batches.py")
    names = {path.stem for path in batches.glob(f"*_{split}_*.npz")}
    dataset = min(names, default="").rpartition(f"_{split}_")[0]
    if not names or any(f"{dataset}_{split}_{i}" not in names for i in range(len(names))):
        raise InputError(f"{batches}: its npz files are not numbered from 0 without a gap; {META_REMEDY}")
    return safe_name(dataset, f"{batches}: a file in it"), len(names)


class PreparedSplit:
    """The expressions of one split of a batch folder, by index, in the order of the annotations.

    `folder` Path, `split`, `dataset`, and `meta`: the content of meta.json, None for a folder made by the reference.
    `words`: ids are below it; None where a folder does not tell, until `vocabulary_of` does.
    Raises InputError: no such folder or split, one whose build has not come to its end, or more or fewer expressions.
    """

    def __init__(self, folder: Path | str, split: str):
        self.folder, self.split = Path(folder), safe_name(split, "split")
        self.meta = read_meta(self.folder)
        if self.meta is None:
            self.dataset, self._length = reference_dataset(self.folder, split)
        else:
            self.dataset, self._length = self.meta["dataset"], self._complete_split()["expressions"]
        self._self_contained = self.meta is None or self.meta["self_contained"]
        self._files = SplitFiles(self.folder, self.dataset, split)
        self.words: int | None = None
        if self.meta:
            self.words = self.meta["vocabulary"]["size"]
            self._check_count()
        self._groups: list[list[int]] | None = None
        self._last: tuple[int, dict] = (-1, {})  # the compact entry read last: it is asked for text, image and mask

    def _complete_split(self) -> dict:
        entry = self.meta["splits"].get(self.split)
        if entry and entry["complete"]:
            return entry
        others = ", ".join(sorted(name for name, other in self.meta["splits"].items() if other["complete"])) or "none"
        dataset = DATASETS.get(self.meta["dataset"])
        if entry is None and dataset and self.split not in dataset.splits:  # no command would build it
            known = f"only {', '.join(dataset.splits)} (whole: {others})"
            raise InputError(f"{self.folder}: {dataset.name} has no split {self.split}, {known}; name one of these")
        state = "is only half built" if entry else "has not been built"
        command = f"{build_command(self.meta, self.split)} (with the --root it is in)"
        raise InputError(f"{self.folder}: its split {self.split} {state} (whole: {others}); run: {command}")

    def _check_count(self) -> None:
        """Two looks: the last expression is there and none comes after it. Training must not wait for a listing."""
        last, beyond = self._files.npz(len(self) - 1), self._files.npz(len(self))
        if not last.exists() or beyond.exists():
            fault = f"{beyond}: is there" if last.exists() else f"{last}: is not there"
            remedy = META_REMEDY if last.exists() else f"run: {build_command(self.meta, self.split)}"
            raise InputError(f"{fault}, but {META} counts {len(self):,} expressions; {remedy}")

    def __len__(self) -> int:
        return self._length

    @property
    def image_size(self) -> tuple[int, int] | None:
        """(height, width) of the canvas that train splits are on; None if a split of the reference does not tell."""
        if self.meta is not None:
            return tuple(self.meta["image_size"])
        return self.image(0).shape[:2] if is_train(self.split) else None

    def name(self, i: int) -> str:
        """The name of expression i: "unc_val_17"."""
        return self._files.name(i)

    def text(self, i: int) -> tuple[np.ndarray, str, str]:
        """(ids int64 [20], sentence, image name) of expression i. Raises InputError for a missing or damaged file."""
        entry = self._entry(i)
        ids, sentences = entry["text_batch"], entry["sent_batch"]
        whole = ids.shape == (TEXT_LENGTH,) and ids.dtype.kind in "iu" and ids.min() >= 0
        if not whole or (self.words is not None and ids.max() >= self.words):
            raise self.broken(i, f"text_batch is not {TEXT_LENGTH} ids of words of the vocabulary")
        if sentences.shape != (1,) or sentences.dtype.kind != "U":
            raise self.broken(i, "sent_batch is not one sentence")
        return ids.astype(np.int64), str(sentences[0]), self._string(i, entry, "im_name_batch")

    def image(self, i: int) -> np.ndarray:
        """uint8 H x W x 3, RGB in 0..255: on the canvas for train splits, else at the original resolution."""
        return self._placed(self._raw_image(i), i)

    def mask(self, i: int) -> np.ndarray:
        """bool H x W, as large as the image."""
        return self._placed(self._raw_mask(i), i)

    def sample(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """(image, mask) of expression i. Raises InputError also where their sizes disagree."""
        image, mask = self._raw_image(i), self._raw_mask(i)
        if image.shape[:2] != mask.shape:
            raise self.broken(i, f"the image is {_shown(image)} but the mask {_shown(mask)} (height x width)")
        return self._placed(image, i), self._placed(mask, i)

    def ref(self, i: int) -> str:
        """What the expressions for one object of one image have in common: a key, of no meaning beyond that."""
        if not self._self_contained:
            return self._string(i, self._entry(i), "label_file")
        return f"{self.text(i)[2]} {hashlib.sha256(self._raw_mask(i)).hexdigest()}"

    def image_groups(self) -> list[list[int]]:
        """Indices of the expressions of each image, in order of first appearance. Reads every npz file, once."""
        if self._groups is None:
            groups: dict[str, list[int]] = {}
            for i in range(len(self)):
                groups.setdefault(self.text(i)[2], []).append(i)
            self._groups = list(groups.values())
        return self._groups

    def _entry(self, i: int) -> dict[str, np.ndarray]:
        """What the npz of expression i holds, but for pictures."""
        if not 0 <= i < len(self):
            raise IndexError(f"{self.folder}: {self.split} has {len(self)} expressions, not {i}")
        if self._last[0] != i:
            keys = TEXT_KEYS if self._self_contained else TEXT_KEYS + FILE_KEYS
            self._last = i, read_npz(self._files.npz(i), keys, optional_keys=(SUMS_KEY,))
        return self._last[1]

    def _string(self, i: int, entry: dict[str, np.ndarray], key: str) -> str:
        if entry[key].size != 1 or entry[key].dtype.kind != "U":
            raise self.broken(i, f"{key} is not a name")
        return safe_name(entry[key].item(), f"{self._files.npz(i)}: {key}")

    def _raw_image(self, i: int) -> np.ndarray:
        if self._self_contained:
            image = read_npz(self._files.npz(i), ARRAY_KEYS[:1])["im_batch"]
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
                raise self.broken(i, "im_batch is not an image")
            return image
        path = self._files.images / self._string(i, self._entry(i), "image_file")
        return read_image(path, remedy=BUILD_REMEDY, crc32=self._sums(i)[0])

    def _raw_mask(self, i: int) -> np.ndarray:
        if self._self_contained:
            mask = read_npz(self._files.npz(i), ARRAY_KEYS[1:])["mask_batch"]
            if mask.dtype != bool or mask.ndim != 2:
                raise self.broken(i, "mask_batch is not a mask")
            return mask
        path = self._files.labels / self._string(i, self._entry(i), "label_file")
        return read_mask_png(path, crc32=self._sums(i)[1])

    def _sums(self, i: int) -> list[int | None]:
        """CRC-32 of the image and of the mask file; of folders of version 1.0, which say none, [None, None]."""
        sums = self._entry(i).get(SUMS_KEY)
        if sums is None:
            return [None, None]
        if sums.shape != (2,) or sums.dtype.kind != "u":
            raise self.broken(i, f"{SUMS_KEY} is not two sums")
        return sums.tolist()

    def _placed(self, array: np.ndarray, i: int) -> np.ndarray:
        """Centred on the canvas, of which it has one side, if this is a train split."""
        if self.meta is None or not is_train(self.split) or array.shape[:2] == self.image_size:
            return array
        larger = max(n - m for n, m in zip(array.shape, self.image_size, strict=False))
        if self._self_contained or larger:
            raise self.broken(i, f"an image or mask is {_shown(array)}, which {META} does not allow")
        return pad(array, self.image_size)

    def broken(self, i: int, fault: str) -> InputError:
        """The error of an expression whose files cannot be used. Built again, its image and mask are compared too."""
        return InputError(f"{self._files.npz(i)}: {one_line(fault)}; {BUILD_REMEDY}")


def _shown(array: np.ndarray) -> str:
    return f"{array.shape[0]} x {array.shape[1]}"
