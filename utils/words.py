"""The vocabulary of a batch folder, and the word embeddings that a model starts from. SPEC section 3."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from utils.errors import InputError
from utils.files.arrays import read_npy
from utils.files.reading import safe_name
from utils.prepared import META
from utils.text import Vocabulary

if TYPE_CHECKING:  # tools/check_data.py reads tables without PyTorch
    from utils.prepared import PreparedSplit

_REMEDY = "make it with build_vocab.py --glove FILE"


def vocabulary_of(split: PreparedSplit, file: Path | None = None) -> Vocabulary:
    """The vocabulary that the batches were built with; from now on `split` refuses ids outside of it.

    Args: file, only for a folder made by the reference, which does not say; None: DATA/vocabulary_NAME.txt.
    Raises InputError if there is none, or if `file` is not the one that the folder was built with.
    """
    if split.meta is None:
        own = Vocabulary.load(file or _data(split) / f"vocabulary_{_name(split)}.txt")
    else:
        own = _stored_vocabulary(split, file)
    split.words = len(own)
    return own


def _stored_vocabulary(split: PreparedSplit, file: Path | None) -> Vocabulary:
    own = Vocabulary.load(split.folder / split.meta["vocabulary"]["file"])
    if own.sha256 != split.meta["vocabulary"]["sha256"]:
        raise InputError(f"{split.folder}: vocabulary.txt is not the one in meta.json: build the batches again")
    if file is not None and Vocabulary.load(file).sha256 != own.sha256:
        raise InputError(f"--vocabulary {file} is not the one that {split.folder} was built with: leave the flag out")
    return own


def embeddings_file(split: PreparedSplit) -> Path:
    """Where build_vocab.py puts the table: DATA/NAME_emb.npy, beside DATA/vocabulary_NAME.txt."""
    return _data(split) / f"{_name(split)}_emb.npy"


def read_embeddings(path: Path, words: int, width: int) -> np.ndarray:
    """A `*_emb.npy` table as float32 words x width, all finite.

    Raises InputError if it is missing, damaged, of another shape, or holds anything else.
    """
    remedy = f"{_REMEDY}, or train with --random_embeddings"
    table = read_npy(path, remedy)
    if table.shape != (words, width):
        shape = " x ".join(map(str, table.shape)) or "one number"
        raise InputError(f"{path}: {shape}, but vocabulary and --l_backbone need {words} x {width}; {remedy}")
    if table.dtype.kind != "f":
        raise InputError(f"{path}: holds {table.dtype} and not floating-point numbers; {remedy}")
    with np.errstate(over="ignore"):  # too large for float32: infinite, and refused
        table = table.astype(np.float32)
    if not np.isfinite(table).all():
        raise InputError(f"{path}: holds numbers that are not finite float32; {remedy}")
    return table


def _data(split: PreparedSplit) -> Path:
    """data/mscoco/unc_480_batch -> data, by the path that the user gave: each folder of it may be a link elsewhere."""
    return Path(os.path.abspath(split.folder)).parent.parent  # noqa: PTH100


def _name(split: PreparedSplit) -> str:
    if split.meta is None:
        return "referit" if split.dataset == "referit" else "Gref"
    source = safe_name(split.meta["vocabulary"].get("source"), f"{split.folder / META}: the vocabulary's source")
    return source.removeprefix("vocabulary_").removesuffix(".txt")
