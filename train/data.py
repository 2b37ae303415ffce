"""Prepared data as training samples and batches."""

from __future__ import annotations

import numpy as np
import torch
from torch.utils.data import Dataset, default_collate

from utils.errors import InputError
from utils.geometry import fit_inside, pad, resize_image, resize_mask
from utils.prepared import PreparedSplit


class TrainDataset(Dataset):
    """Training samples: dicts of `image` uint8 3 x H x W, `mask` bool 1 x H x W, `ids` int64 [20], `name`, `index`.

    A sample that cannot be read comes as the InputError that says why: one that is raised in a loader's worker process
    would arrive as a traceback. Use with `collate`.
    Args: size, (height, width) of the canvas (default: the split's). A split without "train" in its name holds images
    of their own sizes: they are put on the canvas here, as the build does it for train splits.
    """

    def __init__(self, split: PreparedSplit, size: tuple[int, int] | None = None):
        self.split, self.size = split, size or split.image_size

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> dict | InputError:
        try:
            ids, _, _, image, mask = self.split.read(index)
            if mask.shape != self.size:
                fit = fit_inside(*mask.shape, self.size)
                image, mask = pad(resize_image(image, fit), self.size), pad(resize_mask(mask, fit), self.size)
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
