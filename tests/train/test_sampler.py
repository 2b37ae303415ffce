"""The order of training samples: every epoch sees every sample, whatever the number of processes or restarts."""

import pytest

from train.data import StepSampler


def steps(sampler):
    """Samples of each step: its micro-batches joined."""
    lists = list(sampler)
    return [sum(lists[i : i + sampler.accum], []) for i in range(0, len(lists), sampler.accum)]


@pytest.mark.parametrize(("samples", "batch"), [(12, 4), (10, 4), (3, 8), (7, 7)])
def test_each_epoch_is_a_permutation(samples, batch):
    stream = sum(steps(StepSampler(samples, batch, seed=5, start=0, stop=3 * samples)), [])
    epochs = [stream[i : i + samples] for i in range(0, len(stream), samples)]
    assert len(epochs) == 3 * batch
    assert all(sorted(epoch) == list(range(samples)) for epoch in epochs)
    assert samples < 4 or len({tuple(epoch) for epoch in epochs}) > 1


def test_a_resumed_run_reads_on_where_the_other_stopped():
    whole = steps(StepSampler(10, 4, seed=1, start=0, stop=9))
    assert whole[4:] == steps(StepSampler(10, 4, seed=1, start=4, stop=9))
    assert whole != steps(StepSampler(10, 4, seed=2, start=0, stop=9))


def test_a_seed_is_not_another_one_an_epoch_later():
    first, second = (steps(StepSampler(50, 50, seed, start=0, stop=4)) for seed in (1, 2))
    assert not [epoch for epoch in first if epoch in second]


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("accum", [1, 2])
def test_ranks_and_micro_batches_share_out_the_global_batch(ranks, accum):
    whole = steps(StepSampler(10, 8, seed=1, start=2, stop=7))
    parts = [steps(StepSampler(10, 8, 1, 2, 7, rank, ranks, accum)) for rank in range(ranks)]
    assert [sum(step, []) for step in zip(*parts, strict=True)] == whole
    sampler = StepSampler(10, 8, 1, 2, 7, 0, ranks, accum)
    assert {len(batch) for batch in sampler} == {8 // (ranks * accum)}
    assert len(list(sampler)) == len(sampler)
