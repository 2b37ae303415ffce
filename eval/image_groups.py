"""The evaluator's data: each image of a split with all its expressions, decoded ahead by a DataLoader's workers."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from utils.batches import BatchSplit
from utils.errors import InputError
from utils.loaders import PREFETCH, check_shared_memory, start_loader


class ImageGroup(NamedTuple):
    """An image at its original size and all its expressions."""

    indices: list[int]  # of the expressions, in the split
    sentences: list[str]
    name: str  # of the image
    image: Tensor  # H W 3, uint8
    ids: Tensor  # n 20, int64
    masks: Tensor  # refs H W, bool
    targets: list[int]  # which of `masks` each expression is judged against


class ImageGroups(Dataset):
    """The groups of a split. An InputError is returned, not raised, so that it leaves a worker as the one line it is.

    `rotate`: judge each expression against the next ref of its image (see `evaluator.evaluate`).
    """

    def __init__(self, split: BatchSplit, groups: list[list[int]], rotate: bool = False):
        self.split, self.groups, self.rotate = split, groups, rotate

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, number: int) -> ImageGroup | InputError:
        try:
            return self._read(self.groups[number])
        except InputError as error:
            return error

    def _read(self, indices: list[int]) -> ImageGroup:
        texts = [self.split.text(i) for i in indices]
        image = self.split.image(indices[0])
        masks, targets = self._masks(indices, image.shape[:2])
        if self.rotate:
            targets = [(target + 1) % len(masks) for target in targets]
        return ImageGroup(
            indices=list(indices),
            sentences=[sentence for _, sentence, _ in texts],
            name=texts[0][2],
            image=torch.from_numpy(image),
            ids=torch.from_numpy(np.stack([ids for ids, _, _ in texts])),
            masks=torch.from_numpy(np.stack(masks)),
            targets=targets,
        )

    def _masks(self, indices: list[int], size: tuple[int, int]) -> tuple[list[np.ndarray], list[int]]:
        """The mask of each ref of the image in order of appearance, and the number of each expression's ref."""
        numbers: dict[object, int] = {}
        masks: list[np.ndarray] = []
        targets = []
        for index in indices:
            key = self.split.ref(index)
            if key not in numbers:
                mask = self.split.mask(index)
                if mask.shape != size:
                    shown = f"the mask is {_shown(mask.shape)} and the image {_shown(size)} (height x width)"
                    raise self.split.broken(index, shown)
                numbers[key] = len(masks)
                masks.append(mask)
            targets.append(numbers[key])
        return masks, targets


def _shown(size: tuple[int, ...]) -> str:
    return " x ".join(map(str, size))


def check_room(split: BatchSplit, batch_size: int, num_workers: int) -> None:
    """Raise InputError where shared memory has no room for `load`, if all images are as large as the split's first."""
    try:
        size = sum(array.nbytes for array in split.sample(0)) if num_workers else 0
    except InputError:  # `load` tells of a sample that cannot be read
        return
    check_shared_memory(size, num_workers, batch_size, _ahead(batch_size, num_workers))


def _ahead(batch_size: int, num_workers: int) -> int:
    """Images that each process decodes ahead."""
    return max(PREFETCH, batch_size // max(1, num_workers))


def load(groups: ImageGroups, batch_size: int, num_workers: int, pin_memory: bool) -> Iterator[list[ImageGroup]]:
    """Lists of up to `batch_size` groups, in order. Raises the InputError of a group that cannot be read."""
    check_room(groups.split, batch_size, num_workers)
    ahead = {"prefetch_factor": _ahead(batch_size, num_workers)} if num_workers else {}
    loader = DataLoader(
        groups,
        batch_size=None,
        num_workers=num_workers,
        pin_memory=pin_memory,
        worker_init_fn=start_loader if num_workers else None,
        **ahead,
    )
    batch = []
    for group in loader:
        if isinstance(group, InputError):
            raise group
        batch.append(group)
        if len(batch) == batch_size:
            yield batch
            batch = []
    if batch:
        yield batch
