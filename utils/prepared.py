"""The layout and the reader of prepared data: ours, compact or self-contained, and the authors' code's.

Images that belong to a train split come on the canvas, others at their original resolution, as in the authors' code.
Training needs neither a listing nor an index of the folder: sample i is read from the files that carry its number.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Sequence
from copy import copy
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from utils.cli import progress_bar
from utils.datasets import DATASETS
from utils.errors import InputError, one_line
from utils.files.arrays import read_npz
from utils.files.images import read_image, read_mask_png
from utils.files.reading import BUILD_REMEDY, read_json, safe_name
from utils.geometry import pad
from utils.image_index import ImageIndex, read_index, write_index
from utils.options import MAX_CANVAS_SIDE
from utils.subwords import Subwords
from utils.text import TEXT_LENGTH, Vocabulary

FORMAT, VERSION = "restr-batches", 1
MAX_EXPRESSIONS = 10_000_000  # a file that claims more would take the memory for their order
META, VOCABULARY = "meta.json", "vocabulary.txt"
SIZES = "bytes"  # of meta.json: of all files of each complete split; not in folders of version 1.0
NO_TARGET = "no_target"  # of a split in meta.json: how many expressions have no object; absent if all have one
TEXT_KEYS = ("text_batch", "sent_batch", "im_name_batch")  # of an npz
IMAGE, MASK = 0, 1  # which of the two:
FILE_KEYS = ("image_file", "label_file")  # beside the texts, in the compact form
SUMS_KEY = "crc32"  # beside these, of the two files: uint32 [2]; not in folders of version 1.0
ARRAY_KEYS = ("im_batch", "mask_batch")  # beside the texts, in the self-contained form
META_REMEDY = "move the folder away and prepare the data again with build_batches.py"


def is_plain_name(name: Any) -> bool:
    """Whether a data set or a split may have this name, which becomes part of file names and of commands."""
    return isinstance(name, str) and bool(re.fullmatch(r"\w[\w.+-]*", name)) and len(name.encode()) <= 64


def is_train(split: str) -> bool:
    """Splits named so are resized when the data are prepared; the others keep the original resolution."""
    return "train" in split


def size_name(size: tuple[int, int]) -> str:
    """(480, 480) -> "480"; (480, 640) -> "480x640"."""
    return str(size[0]) if size[0] == size[1] else f"{size[0]}x{size[1]}"


def build_command(meta: dict, split: str) -> str:
    """What to type to build or complete a split of this folder."""
    size = size_name(tuple(meta["image_size"])).replace("x", ",")
    flag = " --self_contained" if meta["self_contained"] else ""
    refs = "" if meta["dataset"] in DATASETS else " --refs FILE"
    return f"python build_batches.py -d {meta['dataset']}{refs} -t {split} --img-size {size}{flag}"


class SplitFiles:
    """Paths of one split's files: `batches`, `images` and `labels` are the three `folders`, `index` an ImageIndex."""

    def __init__(self, folder: Path, dataset: str, split: str):
        self.folder, self.dataset, self.split = folder, dataset, split
        self.folders = tuple(folder / f"{split}_{kind}" for kind in ("batch", "image", "label"))
        self.batches, self.images, self.labels = self.folders
        self.index = folder / f"{split}_images.npz"  # not in folders of version 1.0, until it is needed

    def name(self, number: int | str) -> str:
        """The name of an expression: "unc_val_17"."""
        return f"{self.dataset}_{self.split}_{number}"

    def npz(self, number: int) -> Path:
        return self.batches / f"{self.name(number)}.npz"


def read_meta(folder: Path | str) -> dict | None:
    """The checked content of meta.json in a folder of prepared data; None if the authors' code made the folder.

    Raises InputError for a missing folder, and for a file that is damaged or of another version.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder of prepared data; make it with build_batches.py")
    path = folder / META
    if not path.exists():
        return None
    meta = read_json(path, "description of prepared data", META_REMEDY)
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        raise InputError(f"{path}: does not describe prepared data; {META_REMEDY}")
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
    """The first invalid entry."""
    size, vocabulary, splits = (meta.get(key) for key in ("image_size", "vocabulary", "splits"))
    valid = {
        "dataset": is_plain_name(meta.get("dataset")),
        "image_size": isinstance(size, list) and len(size) == 2 and all(_is_count(n, MAX_CANVAS_SIDE) for n in size),
        f"text_length, which is {TEXT_LENGTH}": meta.get("text_length") == TEXT_LENGTH,
        "self_contained": isinstance(meta.get("self_contained"), bool),
        "vocabulary": isinstance(vocabulary, dict)
        and (vocabulary.get("file"), _is_count(vocabulary.get("size"))) == (VOCABULARY, True)
        and all(isinstance(vocabulary.get(key), str) for key in ("sha256", "source")),
        "splits": isinstance(splits, dict),
        SIZES: isinstance(meta.get(SIZES, {}), dict),
    }
    for split, entry in splits.items() if valid["splits"] else ():
        entry = entry if isinstance(entry, dict) else {}
        counted = all(_is_count(entry.get(key)) for key in ("refs", "expressions", "images"))
        good = is_plain_name(split) and counted and isinstance(entry.get("complete"), bool)
        valid[f"split {one_line(split, 40)}"] = good
    return next((name for name, good in valid.items() if not good), None)


def texts_digest(texts: Iterable[tuple[str, str]]) -> str:
    """SHA-256 of (image name, expression) in the order of their numbers: meta.json has it, evaluation compares it."""
    digest = hashlib.sha256()
    for image, sentence in texts:
        digest.update(json.dumps([image, sentence.rstrip("\0")]).encode() + b"\n")  # NumPy drops zeros at the end
    return digest.hexdigest()


def _reference_dataset(folder: Path, split: str) -> tuple[str, int]:
    """(data set, number of expressions) of a split in a folder without meta.json. Raises InputError."""
    batches = folder / f"{safe_name(split, 'split')}_batch"
    if not batches.is_dir():
        raise InputError(f"{batches}: no such folder of prepared data; make it with build_batches.py")
    names = {path.stem for path in batches.glob(f"*_{split}_*.npz")}
    dataset = min(names, default="").rpartition(f"_{split}_")[0]
    if not names or any(f"{dataset}_{split}_{i}" not in names for i in range(len(names))):
        raise InputError(f"{batches}: its npz files are not numbered from 0 without a gap; {META_REMEDY}")
    return safe_name(dataset, f"{batches}: a file in it"), len(names)


class Sample(NamedTuple):
    """One expression with its image and mask, on the canvas for train splits, else at the original resolution."""

    ids: np.ndarray  # int64 [20]
    expression: str
    image_name: str
    image: np.ndarray  # uint8 H x W x 3, RGB in 0..255
    mask: np.ndarray  # bool H x W


class PreparedSplit:
    """The expressions of one split of prepared data, by index, in the order of the annotations.

    `folder` Path, `split`, `dataset`, and `meta`: the content of meta.json, None in a folder of the authors' code.
    `whole`: the number of expressions in the folder, of which `select` leaves a part.
    `words`: ids are below it; None where a folder does not tell, until `vocabulary` does. `subwords`, if set, makes the
    ids of each expression when it is read, in place of the stored ones.
    Raises InputError: no such folder or split, one whose build has not finished, or more or fewer expressions.
    """

    def __init__(self, folder: Path | str, split: str):
        self.folder, self.split = Path(folder), safe_name(split, "split")
        self.meta = read_meta(self.folder)
        self.words: int | None = None
        self.subwords: Subwords | None = None
        if self.meta is None:
            self.dataset, self.whole = _reference_dataset(self.folder, split)
        else:
            self.dataset, self.words = self.meta["dataset"], self.meta["vocabulary"]["size"]
            self.whole = self._count_complete()
        self._numbers: Sequence[int] = range(self.whole)  # of the expressions' files
        self._self_contained = self.meta is None or self.meta["self_contained"]
        self._files = SplitFiles(self.folder, self.dataset, split)
        if self.meta:
            self._check_count()
        self._index: ImageIndex | None = None
        self._origin: PreparedSplit | None = None  # of which this is a part

    def _count_complete(self) -> int:
        """The number of expressions. Raises InputError unless the split was built to its end."""
        entry = self.meta["splits"].get(self.split)
        if entry and entry["complete"]:
            return entry["expressions"]
        others = ", ".join(sorted(name for name, other in self.meta["splits"].items() if other["complete"])) or "none"
        dataset = DATASETS.get(self.meta["dataset"])
        if entry is None and dataset and self.split not in dataset.splits:  # no command would build it
            known = f"only {', '.join(dataset.splits)} (whole: {others})"
            raise InputError(f"{self.folder}: {dataset.name} has no split {self.split}, {known}; name one of these")
        state = "is only half built" if entry else "has not been built"
        command = f"{build_command(self.meta, self.split)} (with the --root it is in)"
        raise InputError(f"{self.folder}: its split {self.split} {state} (whole: {others}); run: {command}")

    def _check_count(self) -> None:
        """Whether the last expression exists and none comes after it; a listing would take training too long."""
        last, beyond = self._files.npz(len(self) - 1), self._files.npz(len(self))
        if not last.exists() or beyond.exists():
            fault = f"{beyond}: is there" if last.exists() else f"{last}: is not there"
            remedy = META_REMEDY if last.exists() else f"run: {build_command(self.meta, self.split)}"
            raise InputError(f"{fault}, but {META} counts {len(self):,} expressions; {remedy}")

    @property
    def is_generalised(self) -> bool:
        """Whether the annotations have expressions without an object."""
        return bool(self.meta and self.meta["splits"][self.split].get(NO_TARGET))

    def vocabulary(self, file: Path | None = None) -> Vocabulary:
        """The vocabulary that the data were prepared with; from now on ids outside of it are refused.

        Args: file, only for a folder made by the authors' code, which does not say; None: DATA/vocabulary_NAME.txt.
        Raises InputError if there is none, or if `file` is not the one that the folder was built with.
        """
        own = Vocabulary.load(self.folder / VOCABULARY if self.meta else file or self._beside("vocabulary_{}.txt"))
        if self.meta and own.sha256 != self.meta["vocabulary"]["sha256"]:
            raise InputError(f"{self.folder}: {VOCABULARY} is not the one in {META}: prepare the data again")
        if self.meta and file and Vocabulary.load(file).sha256 != own.sha256:
            fault = f"is not the one that {self.folder} was built with: leave the flag out"
            raise InputError(f"--vocabulary {file} {fault}")
        self.words = len(own)
        return own

    def embeddings_file(self) -> Path:
        """Where build_vocab.py puts the table: DATA/NAME_emb.npy, beside DATA/vocabulary_NAME.txt."""
        return self._beside("{}_emb.npy")

    def _beside(self, name: str) -> Path:
        """A file that is named after the vocabulary: in data/ for data/mscoco/unc_480_batch.

        By the path that the user gave: each folder of it may be a link elsewhere.
        """
        vocabulary = "referit" if self.dataset == "referit" else "Gref"  # of the authors' code
        if self.meta:
            source = safe_name(self.meta["vocabulary"]["source"], f"{self.folder / META}: the vocabulary's source")
            vocabulary = source.removeprefix("vocabulary_").removesuffix(".txt")
        return Path(os.path.abspath(self.folder)).parent.parent / name.format(vocabulary)  # noqa: PTH100

    def select(self, indices: Sequence[int]) -> PreparedSplit:
        """These expressions, in this order, as a split of their own; each keeps its name."""
        part = copy(self)
        part._numbers, part._origin = [self._numbers[i] for i in indices], self._origin or self
        return part

    def __len__(self) -> int:
        return len(self._numbers)

    @property
    def image_size(self) -> tuple[int, int] | None:
        """(height, width) of the canvas that train splits are on; None if a split of the authors' code hides it."""
        if self.meta is not None:
            return tuple(self.meta["image_size"])
        return self.image(0).shape[:2] if is_train(self.split) else None

    def evaluation_splits(self) -> list[str]:
        """The names of the whole splits of the same folder that are not for training."""
        if self.meta is None:
            names = [path.name.removesuffix("_batch") for path in self.folder.glob("*_batch")]
        else:
            names = [name for name, entry in self.meta["splits"].items() if entry["complete"]]
        return sorted(name for name in names if not is_train(name))

    def name(self, i: int) -> str:
        """The name of expression i: "unc_val_17"."""
        return self._files.name(self._numbers[i])

    def read(self, i: int) -> Sample:
        """All of expression i; its npz is opened once. Raises InputError: a missing or damaged file, unequal sizes."""
        entry = self._entry(i, IMAGE, MASK)
        image, mask = self._stored(i, entry, IMAGE), self._stored(i, entry, MASK)
        if image.shape[:2] != mask.shape:
            raise self.broken(i, f"the image is {_shown(image)} but the mask {_shown(mask)} (height x width)")
        return Sample(*self._text(i, entry), self._placed(image, i), self._placed(mask, i))

    def sample(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """(image, mask) of expression i. Raises InputError as `read` does."""
        return self.read(i)[3:]

    def text(self, i: int) -> tuple[np.ndarray, str, str]:
        """(ids int64 [20], expression, image name) of expression i. Raises InputError for a missing or damaged file."""
        return self._text(i, self._entry(i))

    def image(self, i: int) -> np.ndarray:
        """uint8 H x W x 3, RGB in 0..255: on the canvas for train splits, else at the original resolution."""
        return self._placed(self._stored(i, self._entry(i, IMAGE), IMAGE), i)

    def mask(self, i: int) -> np.ndarray:
        """bool H x W, as large as the image."""
        return self._placed(self._stored(i, self._entry(i, MASK), MASK), i)

    def ref(self, i: int) -> str:
        """A key that the expressions for one object of one image share."""
        entry = self._entry(i, MASK)
        if not self._self_contained:
            return self._string(i, entry, FILE_KEYS[MASK])
        return f"{self._text(i, entry)[2]} {hashlib.sha256(self._stored(i, entry, MASK)).hexdigest()}"

    def image_groups(self) -> list[list[int]]:
        """Indices of the expressions of each image, in order of first appearance."""
        return self.image_index().groups()

    def image_index(self) -> ImageIndex:
        """The image of each expression. Where no file says it, every npz is read, and the file is written."""
        if self._origin:
            whole = self._origin.image_index()
            return ImageIndex.of(whole.names[whole.numbers[self._numbers]].tolist())
        self._index = self._index or self.stored_index()
        if self._index is None:
            shown = {"desc": f"{self.dataset} {self.split}: images", "unit": "expr", "delay": 5, "leave": False}
            bar = progress_bar(iterable=range(len(self)), disable=os.environ.get("RANK", "0") != "0", **shown)
            self._index = ImageIndex.of(map(self._image_name, bar))
            write_index(self._files.index, self._index, self._texts_sha256)
        return self._index

    def _image_name(self, i: int) -> str:
        return self._string(i, read_npz(self._files.npz(i), TEXT_KEYS[2:]), TEXT_KEYS[2])

    def stored_index(self) -> ImageIndex | None:
        """The content of the file that says the image of each expression; None if it cannot be used."""
        return read_index(self._files.index, len(self), self._texts_sha256)

    @property
    def _texts_sha256(self) -> str:
        return self.meta["splits"][self.split].get("texts_sha256", "") if self.meta else ""

    def _entry(self, i: int, *arrays: int) -> dict[str, np.ndarray]:
        """Texts and file names in the npz of expression i; of a self-contained one IMAGE and MASK as `arrays` say."""
        if not 0 <= i < len(self):
            raise IndexError(f"{self.folder}: {self.split} has {len(self)} expressions, not {i}")
        keys = [ARRAY_KEYS[which] for which in arrays] if self._self_contained else FILE_KEYS
        return read_npz(self._npz(i), (*TEXT_KEYS, *keys), optional_keys=(SUMS_KEY,))

    def _text(self, i: int, entry: dict[str, np.ndarray]) -> tuple[np.ndarray, str, str]:
        ids, expression = entry["text_batch"], entry["sent_batch"]
        whole = ids.shape == (TEXT_LENGTH,) and ids.dtype.kind in "iu" and ids.min() >= 0
        if not whole or (self.words is not None and ids.max() >= self.words):
            raise self.broken(i, f"text_batch is not {TEXT_LENGTH} ids of words of the vocabulary")
        if expression.shape != (1,) or expression.dtype.kind != "U":
            raise self.broken(i, "sent_batch is not one expression")
        text = str(expression[0])
        ids = self.subwords.ids(text, self.name(i)) if self.subwords else ids.astype(np.int64)
        return ids, text, self._string(i, entry, "im_name_batch")

    def _string(self, i: int, entry: dict[str, np.ndarray], key: str) -> str:
        if entry[key].size != 1 or entry[key].dtype.kind != "U":
            raise self.broken(i, f"{key} is not a name")
        return safe_name(entry[key].item(), f"{self._npz(i)}: {key}")

    def _stored(self, i: int, entry: dict[str, np.ndarray], which: int) -> np.ndarray:
        """The IMAGE or the MASK as the folder has it."""
        if self._self_contained:
            array, (dtype, channels) = entry[ARRAY_KEYS[which]], ((np.uint8, (3,)), (np.bool_, ()))[which]
            if array.dtype != dtype or array.ndim < 2 or array.shape[2:] != channels:
                raise self.broken(i, f"{ARRAY_KEYS[which]} is not {'an image' if which == IMAGE else 'a mask'}")
            return array
        name, sums = self._string(i, entry, FILE_KEYS[which]), entry.get(SUMS_KEY)
        if sums is not None and (sums.shape != (2,) or sums.dtype.kind != "u"):
            raise self.broken(i, f"{SUMS_KEY} is not two sums")
        crc32 = None if sums is None else int(sums[which])
        if which == IMAGE:
            return read_image(self._files.images / name, remedy=BUILD_REMEDY, crc32=crc32)
        return read_mask_png(self._files.labels / name, crc32=crc32)

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
        return InputError(f"{self._npz(i)}: {one_line(fault)}; {BUILD_REMEDY}")

    def _npz(self, i: int) -> Path:
        return self._files.npz(self._numbers[i])


def _shown(array: np.ndarray) -> str:
    return f"{array.shape[0]} x {array.shape[1]}"
