"""Prepared data as training samples and batches."""

import numpy as np
import torch
from torch.utils.data import Dataset, default_collate

from eval.loaders import shared
from utils.errors import InputError
from utils.geometry import fit_inside, pad
from utils.prepared import PreparedSplit
from utils.resample import resize_image, resize_mask


class TrainDataset(Dataset):
    """Training samples: dicts of `image` uint8 3 x H x W, `mask` bool 1 x H x W, `ids` int64 [20], `name`, `index`.

    A sample that cannot be read comes as the InputError that says why: raised in a loader's process, it would arrive as
    a traceback. Use with `collate`.
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
        except InputError as error:
            return error
        if mask.shape != self.size:
            inner = fit_inside(*mask.shape, self.size).size
            image, mask = pad(resize_image(image, inner), self.size), pad(resize_mask(mask, inner), self.size)
        return {
            "image": torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))),  # 3 H W
            "mask": torch.from_numpy(mask)[None],  # 1 H W
            "ids": torch.from_numpy(ids),
            "name": self.split.name(index),
            "index": index,
        }


def collate(samples: list[dict | InputError]) -> dict | InputError:
    """Samples as one batch: tensors stacked, `name` a list, `index` a tensor; or the error of an unreadable sample."""
    errors = [sample for sample in samples if isinstance(sample, InputError)]
    if errors:
        return errors[0]
    batch = default_collate(samples)
    return {key: shared(value) if isinstance(value, torch.Tensor) else value for key, value in batch.items()}
