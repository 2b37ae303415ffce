"""Prepared data as training samples, their order, and the batches that a loop reads.

The order is a function of the seed and the step alone, so a run may stop anywhere and go on with another number of
processes: step s reads the same samples.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from eval.loaders import loading, shared
from eval.visualise import spread
from train.folders import TrainingSet
from train.options import VAL_LIMITS, Options
from utils.device import Ranks
from utils.errors import InputError
from utils.geometry import fit_inside, pad
from utils.prepared import PreparedSplit
from utils.resample import resize_image, resize_mask


def judged(valset: PreparedSplit, limit: int | None) -> PreparedSplit:
    """What validation judges of a split: `limit` expressions, evenly spread; 0: all; None: as VAL_LIMITS says."""
    limit = VAL_LIMITS.get(valset.dataset, 0) if limit is None else limit
    return valset.select(sorted(spread(len(valset), limit))) if limit else valset


class TrainDataset(Dataset):
    """Training samples: dicts of `image` uint8 3 x H x W, `mask` bool 1 x H x W, `ids` int64 [20], `name`, `index`.

    A sample that cannot be read comes as the InputError that says why: raised in a loader's process, it would arrive as
    a traceback. Use with `collate`.
    Args: size, (height, width) of the canvas (default: the split's). A split without "train" in its name holds images
    of their own sizes: they are put on the canvas here, as the build does it for train splits.
    """

    def __init__(self, split: PreparedSplit | TrainingSet, size: tuple[int, int] | None = None):
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


def mixed_seed(*numbers: int) -> int:
    """One seed of 32 bits, all that PyTorch's CPU generator reads, from several non-negative numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


@lru_cache(16)  # of as many data sets
def _permutation(samples: int, *seed: int) -> torch.Tensor:
    return torch.randperm(samples, generator=torch.Generator().manual_seed(mixed_seed(*seed)))


class Mix(NamedTuple):
    """Several data sets in fixed shares: with shares 2, 1, 1 each 4 positions in a row have 2, 1 and 1 samples of them.

    A data set's samples come as one permutation of it after another, whatever the other ones do.
    """

    lengths: list[int]  # samples of each data set, which are numbered through
    shares: list[int]

    def sample(self, position: int, seed: int) -> int:
        """The sample at a position of the stream."""
        block, place = divmod(position, sum(self.shares))
        order = _permutation(sum(self.shares), seed, block, 2)  # 2 and 3: streams beside those of order and drop path
        owners = np.repeat(range(len(self.shares)), self.shares)[order]
        own = owners[place]
        earlier = block * self.shares[own] + int((owners[:place] == own).sum())
        epoch, place = divmod(earlier, self.lengths[own])
        return sum(self.lengths[:own]) + int(_permutation(self.lengths[own], seed, epoch, 3, int(own))[place])


class StepSampler(Sampler[list[int]]):
    """Lists of sample indices, one a micro-batch, for the steps `start` to `stop` - 1.

    The stream of samples is one permutation of all `samples` after another, and step s takes the `batch` samples from
    s * batch on: each epoch sees each sample once. With a `mix` the stream is that of the Mix. Of each global batch,
    rank r of `ranks` takes its own equal part, cut into `accum` micro-batches. `batch` is divisible by `ranks` *
    `accum`.
    """

    def __init__(self, samples, batch, seed, start, stop, rank=0, ranks=1, accum=1, mix: Mix | None = None):
        self.samples, self.batch, self.seed, self.mix = samples, batch, seed, mix
        self.start, self.stop = start, stop
        self.rank, self.ranks, self.accum = rank, ranks, accum

    def __len__(self) -> int:
        return max(0, self.stop - self.start) * self.accum

    def __iter__(self) -> Iterator[list[int]]:
        size = self.batch // (self.ranks * self.accum)
        for step in range(self.start, self.stop):
            first = step * self.batch + self.rank * self.accum * size
            for start in range(first, first + self.accum * size, size):
                yield [self._sample(position) for position in range(start, start + size)]

    def _sample(self, position: int) -> int:
        if self.mix:
            return self.mix.sample(position, self.seed)
        epoch, place = divmod(position, self.samples)
        return int(_permutation(self.samples, self.seed, epoch)[place])


def micro_batches(options: Options, split: TrainingSet, step: int, ranks: Ranks) -> Iterator[dict]:
    """Batches of this rank from the step on, `--accum` a step. Raises the InputError of an unreadable sample."""
    recipe, workers = options.recipe, options.data.num_workers
    steps = (recipe.batch_size, recipe.seed, step, recipe.num_steps)
    mix = Mix(split.lengths, options.data.mix) if options.data.mix else None
    order = StepSampler(len(split), *steps, ranks.rank, ranks.world, recipe.accum, mix)
    how = {"collate_fn": collate, "pin_memory": ranks.device.type == "cuda", **loading(workers)}
    for batch in DataLoader(TrainDataset(split, options.data.input_size), batch_sampler=order, **how):
        if isinstance(batch, InputError):
            raise batch
        yield batch
