"""The reader of batch folders: ours, compact or self-contained, and the reference's (SPEC section 4).

Images that belong to a train split come on the canvas, others at their original resolution, as the reference has them.
Training needs neither a listing nor an index of the folder: sample i is read from the files that carry its number.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset, default_collate

from utils.batch_folder import (
    ARRAY_KEYS,
    FILE_KEYS,
    META,
    META_REMEDY,
    SUMS_KEY,
    TEXT_KEYS,
    SplitFiles,
    build_command,
    is_train,
    read_meta,
    reference_dataset,
)
from utils.errors import InputError, one_line
from utils.geometry import fit_inside, pad, resize_image, resize_mask
from utils.refer import DATASETS
from utils.safe_io import BUILD_REMEDY, read_image, read_mask_png, read_npz, safe_name
from utils.text import TEXT_LENGTH


class BatchSplit:
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


class TrainDataset(Dataset):
    """Training samples: dicts of `image` uint8 3 x H x W, `mask` bool 1 x H x W, `ids` int64 [20], `name`, `index`.

    A sample that cannot be read comes as the InputError that says why: one that is raised in a loader's worker process
    would arrive as a traceback. Use with `collate`.
    Args: size, (height, width) of the canvas (default: the split's). A split without "train" in its name holds images
    of their own sizes: they are put on the canvas here, as the build does it for train splits.
    """

    def __init__(self, split: BatchSplit, size: tuple[int, int] | None = None):
        self.split, self.size = split, size or split.image_size

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> dict | InputError:
        try:
            image, mask = self.split.sample(index)
            if mask.shape != self.size:
                fit = fit_inside(*mask.shape, self.size)
                image, mask = pad(resize_image(image, fit), self.size), pad(resize_mask(mask, fit), self.size)
            ids, _, _ = self.split.text(index)
        except InputError as error:
            return error
        return {
            "image": torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))),  # 3 H W
            "mask": torch.from_numpy(mask)[None],  # 1 H W
            "ids": torch.from_numpy(ids),
            "name": self.split.name(index),
            "index": index,
        }


class UnreadableBatch:
    """Stands for a batch of which a sample could not be read; whoever looks into it gets the sample's InputError."""

    def __init__(self, error: InputError):
        self.error = error

    def __getitem__(self, key: str) -> None:
        raise self.error


def collate(samples: list[dict | InputError]) -> dict | UnreadableBatch:
    """Samples of TrainDataset as one batch: tensors stacked, `name` a list, `index` a tensor."""
    errors = [sample for sample in samples if isinstance(sample, InputError)]
    return UnreadableBatch(errors[0]) if errors else default_collate(samples)
