"""The order of training samples, a function of the seed and the step alone.

So a run may stop anywhere and go on with another number of processes: step s reads the same samples.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import Sampler


def mixed_seed(*numbers: int) -> int:
    """One seed of 32 bits, all that PyTorch's CPU generator reads, from several non-negative numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


class StepSampler(Sampler[list[int]]):
    """Lists of sample indices, one a micro-batch, for the steps `start` to `stop` - 1.

    The stream of samples is one permutation of all `samples` after another, and step s takes the `batch` samples from
    s * batch on: each epoch sees each sample once. Of each global batch, rank r of `ranks` takes its own equal part,
    cut into `accum` micro-batches. `batch` is divisible by `ranks` * `accum`.
    """

    def __init__(self, samples, batch, seed, start, stop, rank=0, ranks=1, accum=1):
        self.samples, self.batch, self.seed = samples, batch, seed
        self.start, self.stop = start, stop
        self.rank, self.ranks, self.accum = rank, ranks, accum

    def __len__(self) -> int:
        return max(0, self.stop - self.start) * self.accum

    def __iter__(self) -> Iterator[list[int]]:
        size = self.batch // (self.ranks * self.accum)
        epoch, order = -1, []
        for step in range(self.start, self.stop):
            batch = []
            for position in range(step * self.batch, (step + 1) * self.batch):
                if position // self.samples != epoch:
                    epoch = position // self.samples
                    order = self._permutation(epoch)
                batch.append(int(order[position % self.samples]))
            mine = batch[self.rank * size * self.accum :]
            for micro in range(self.accum):
                yield mine[micro * size : (micro + 1) * size]

    def _permutation(self, epoch: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(mixed_seed(self.seed, epoch))
        return torch.randperm(self.samples, generator=generator)
