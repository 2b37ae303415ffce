"""What a GPU computes is what the CPU computes. Skipped without a GPU."""

import pytest
import torch

from benchmarks.checks import numbers
from benchmarks.checks.common import Check
from benchmarks.ways import OURS, Bench
from eval.evaluator import evaluate
from tests.support.memory_split import MemorySplit
from tests.support.small_model import tiny_model
from utils.device import Ranks

pytestmark = pytest.mark.gpu


def check(path, toy: bool = False) -> Check:
    return Check("cuda", toy, path, path, workers=0, together=1)


def test_kernels_of_the_resizes_at_the_sizes_of_the_decoder(tmp_path):
    rows = [*numbers.operators_against_float64(check(tmp_path))]
    assert len(rows) == 8
    assert [row for row in rows if not row.good] == []


def test_decoder_of_many_samples(tmp_path):
    assert [row for row in numbers.decoder_against_float64(check(tmp_path)) if row.good is False] == []


def test_logits_and_gradients_of_the_full_model(tmp_path):
    assert [row for row in numbers.model_against_cpu(check(tmp_path)) if row.good is False] == []


def test_training_steps():
    steps = [Bench(torch.device(device), tiny=True).step(OURS, 4) for device in ("cpu", "cuda")]
    here, there = ([step() for _ in range(5)] for step in steps)
    assert len(set(here)) == 5
    assert there == pytest.approx(here, rel=1e-4)


def test_a_step_waits_only_for_the_one_before(tmp_path):
    rows = [*numbers.waits_of_a_step(check(tmp_path, toy=True))]
    assert [row.good for row in rows] == [True] * 3


def test_compiled_steps_and_cuda_graphs(tmp_path):
    """The toy model is run as it was traced; with CUDA graphs only the full one is compiled, in gpu_check.py."""
    assert [row for row in numbers.compiled_against_eager(check(tmp_path, toy=True)) if row.good is False] == []


def test_evaluation():
    found = []
    for device in ("cpu", "cuda"):
        ranks = Ranks(torch.device(device))
        found.append(evaluate(tiny_model().to(device), MemorySplit(), ranks=ranks, progress=False))
    for here, there in zip(*found, strict=True):
        assert abs(here.intersection - there.intersection) <= 2
        assert abs(here.union - there.union) <= 2
        assert here.target == there.target
