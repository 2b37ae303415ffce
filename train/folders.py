"""The folders that --data_dir lists: their training splits as one set, and what of it is left out.

RefCOCO, RefCOCO+ and RefCOCOg share photographs: what one trains on, another may evaluate on.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path

import numpy as np

from train.options import DataOptions
from utils.datasets import DATASETS, photograph
from utils.errors import InputError
from utils.prepared import PreparedSplit, Sample, is_train
from utils.subwords import Subwords
from utils.text import Vocabulary


def open_splits(folders: list[Path], split: str) -> dict[str, PreparedSplit]:
    """A split of each folder by the name of its data set, with #1, #2, ... where several hold the same data set.

    Raises InputError as PreparedSplit does, and for a folder that is listed twice.
    """
    there: dict[Path, Path] = {}
    for folder in folders:
        if there.setdefault(folder.resolve(), folder) is not folder:
            raise InputError(f"--data_dir {folder}: is listed twice, also as {there[folder.resolve()]}; leave one out")
    splits = [PreparedSplit(folder, split) for folder in folders]
    count = Counter(split.dataset for split in splits)
    names = [f"{split.dataset}#{i}" if count[split.dataset] > 1 else split.dataset for i, split in enumerate(splits, 1)]
    return dict(zip(names, splits, strict=True))


def open_folders(options: DataOptions) -> tuple[TrainingSet, dict[str, PreparedSplit], Vocabulary]:
    """The training set, the validation splits by name, and the vocabulary; with --overfit a few expressions of each.

    Raises InputError.
    """
    splits, few = open_splits(options.data_dir, options.set), options.overfit
    for split in splits.values():
        if few is not None and few > len(split):
            fault = f"{split.folder} has {len(split):,} expressions in {split.split}"
            raise InputError(f"--overfit {few}: {fault}; give fewer")
    if few is None:
        valsets = open_splits(options.data_dir, options.valset)
    else:
        options.valset = options.set
        splits = valsets = {name: split.select(range(few)) for name, split in splits.items()}
    training = TrainingSet(splits)
    vocabulary = training.vocabulary(options.vocabulary)
    if few is None and not options.keep_overlap:
        training.leave_out_overlap()
    return training, valsets, vocabulary


class TrainingSet:
    """The training splits of one or more folders, one after another, as `train.data.TrainDataset` reads them.

    Args: splits, by name. Raises InputError for folders that were built at different sizes.
    `left_out`: by name, how much `leave_out_overlap` has left out.
    """

    def __init__(self, splits: dict[str, PreparedSplit]):
        self.splits = dict(splits)
        self._first, *others = splits.values()
        for other in others:
            sizes = {self._first.image_size, other.image_size} - {None}
            if len(sizes) > 1:
                fault = f"was built at another size than {self._first.folder}"
                raise InputError(f"{other.folder}: {fault}; build both with the same --img-size")
        self.left_out: dict[str, dict] = {}

    def leave_out_overlap(self) -> None:
        """Leave out the expressions for images that also stand in an evaluation split of one of the folders.

        The splits that are built count. A folder alone stays whole. Raises InputError where nothing is left.
        """
        if len(self.splits) < 2:
            return
        judged = {
            photograph(split.dataset, image)
            for split in self.splits.values()
            for name in _judged(split)
            for image in PreparedSplit(split.folder, name).image_index().names.tolist()
        }
        for name, split in self.splits.items():
            images = split.image_index()
            out = np.array([photograph(split.dataset, image) in judged for image in images.names.tolist()])
            own = np.flatnonzero(~out[images.numbers])
            if not len(own):
                fault = f"each image of {split.split} is also in an evaluation split of the listed folders"
                raise InputError(f"{split.folder}: {fault}; leave the folder out, or pass --keep_overlap")
            digest = hashlib.sha256(own.astype("<i4")).hexdigest()
            counts = {"expressions": len(split) - len(own), "images": int(out.sum()), "kept_sha256": digest}
            self.left_out[name] = counts
            self.splits[name] = split.select(own.tolist())

    def not_looked_at(self) -> list[str]:
        """Evaluation splits of the public data sets that are not built, so that their images are not known."""
        return [
            f"{name} {other}"
            for name, split in self.splits.items()
            for other in (DATASETS[split.dataset].splits if split.dataset in DATASETS else ())
            if not is_train(other) and other not in split.evaluation_splits()
        ]

    def vocabulary(self, file: Path | None = None) -> Vocabulary:
        """The one of all folders. Raises InputError as PreparedSplit.vocabulary does, and where they differ."""
        first, *others = ((split, split.vocabulary(file)) for split in self.splits.values())
        for split, words in others:
            if words.sha256 != first[1].sha256:
                fault = f"has another vocabulary ({len(words):,} words) than {first[0].folder} ({len(first[1]):,})"
                raise InputError(f"{split.folder}: {fault}; build both with the same --vocabulary FILE")
        return first[1]

    def tokenise_by(self, subwords: Subwords) -> None:
        """From now on `read` makes the ids by this tokeniser."""
        for split in self.splits.values():
            split.subwords = subwords

    def embeddings_file(self) -> Path:
        """The table of the first folder."""
        return self._first.embeddings_file()

    @property
    def image_size(self) -> tuple[int, int] | None:
        """(height, width) of the canvas; None where only folders of the authors' code hide it."""
        return next((size for split in self.splits.values() if (size := split.image_size)), None)

    @property
    def datasets(self) -> list[str]:
        """The data set of each folder."""
        return [split.dataset for split in self.splits.values()]

    def __len__(self) -> int:
        return sum(self.lengths)

    @property
    def lengths(self) -> list[int]:
        """The number of expressions of each split."""
        return [len(split) for split in self.splits.values()]

    def read(self, i: int) -> Sample:
        """Expression i, as PreparedSplit.read gives it."""
        _, split, own = self._at(i)
        return split.read(own)

    def name(self, i: int) -> str:
        """The name of expression i: "unc_train_17"; "unc#2/unc_train_17" where two folders hold unc."""
        name, split, own = self._at(i)
        return split.name(own) if name == split.dataset else f"{name}/{split.name(own)}"

    def _at(self, i: int) -> tuple[str, PreparedSplit, int]:
        for name, split in self.splits.items():
            if i < len(split):
                return name, split, i
            i -= len(split)
        raise IndexError(f"{len(self)} expressions, and not {i} more")


def _judged(split: PreparedSplit) -> list[str]:
    """The evaluation splits beside a training split, whatever its name."""
    return [name for name in split.evaluation_splits() if name != split.split]
