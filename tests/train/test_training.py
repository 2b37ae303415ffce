"""The training step: accumulation, non-finite steps, schedule, state."""

import copy
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from models.blocks import SampleDropPath
from tests.support.train_runs import equal
from train.loop import Trainer, fit
from train.options import Recipe, RunOptions
from train.run import Run
from utils.device import Ranks
from utils.errors import InputError


class Linear(nn.Module):
    """The smallest thing that a trainer takes for a model."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.weight = nn.Parameter(torch.randn(3, 4))

    def forward(self, image, ids):
        return image.flatten(1) @ self.weight.T + ids.sum(1, keepdim=True), None


def squares(pixel, patch, mask):
    return {"loss": ((pixel - mask) ** 2).mean(), "pixel": pixel.mean()}


def batch(size, seed=0, value=1.0):
    torch.manual_seed(seed)
    return {
        "image": value * torch.randn(size, 4),
        "mask": torch.randn(size, 3),
        "ids": torch.ones(size, 2),
        "name": [f"unc_train_{i}" for i in range(size)],
    }


def trainer(**options):
    model = Linear()
    groups = [{"params": [model.weight], "lr": 0.1}]
    recipe = Recipe(num_steps=10, lr=0.1, warm_iter=2, **options)
    return Trainer(model, torch.optim.AdamW(groups), squares, recipe, Ranks(torch.device("cpu")))


def test_micro_batches_give_the_step_of_the_large_batch():
    whole = batch(8)
    parts = [{key: value[i : i + 2] for key, value in whole.items()} for i in range(0, 8, 2)]
    one, four = trainer(), trainer(accum=4)
    for _ in range(5):
        a, b = one.train_step([whole]), four.train_step(parts)
        assert a == pytest.approx(b, rel=1e-5)
    torch.testing.assert_close(one.model.weight, four.model.weight, rtol=1e-5, atol=1e-6)


def test_clipping_and_reported_norm():
    small, plain = trainer(grad_clip=1e-3), trainer()
    norm = small.train_step([batch(8)])["grad_norm"]
    model, inputs = Linear(), batch(8)
    squares(model(inputs["image"], inputs["ids"])[0], None, inputs["mask"])["loss"].backward()
    assert norm == pytest.approx(model.weight.grad.norm().item(), rel=1e-5)
    assert plain.train_step([batch(8)])["grad_norm"] == pytest.approx(norm)
    # Of AdamW's moments the first is a tenth of the gradient that it got.
    (moments,), (unclipped,) = (run.optimizer.state.values() for run in (small, plain))
    torch.testing.assert_close(unclipped["exp_avg"], 0.1 * model.weight.grad)
    torch.testing.assert_close(moments["exp_avg"], 0.1 * model.weight.grad * 1e-3 / norm, rtol=1e-3, atol=0)


def test_the_learning_rate_follows_the_schedule():
    run = trainer()
    rates = []
    for _ in range(10):
        run.train_step([batch(8)])
        rates.append(run.optimizer.param_groups[0]["lr"])
    expected = [0.0, 0.05] + [0.1 * (1 - (step - 2) / 8) ** 0.9 for step in range(2, 10)]
    assert rates == pytest.approx(expected)


def test_cosine_schedule():
    recipe = Recipe(lr=1.0, end_lr=0.1, num_steps=110, warm_iter=10, is_cos=True)
    values = [recipe.lr_factor(step) for step in range(111)]
    assert values[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert values[60] == pytest.approx(0.55)
    assert values[110] == pytest.approx(0.1)
    assert values[10:] == sorted(values[10:], reverse=True)


def test_a_step_that_is_not_finite_is_skipped_and_named(capsys):
    run = trainer(max_bad_steps=3)
    run.step = 5  # past the warm-up
    before = run.model.weight.detach().clone()
    run.train_step([batch(8, value=math.inf)])
    assert torch.equal(run.model.weight, before)
    assert "unc_train_0" in capsys.readouterr().err
    run.train_step([batch(8)])
    assert not torch.equal(run.model.weight, before)
    assert run.bad_steps == 0
    run.train_step([batch(8, value=math.nan)])
    run.train_step([batch(8, value=math.nan)])
    with pytest.raises(InputError, match="3 steps in a row.*unc_train_0"):
        run.train_step([batch(8, value=math.nan)])
    assert torch.isfinite(run.model.weight).all()


def test_a_restored_run_repeats_the_rest_bit_for_bit():
    first = trainer()
    for seed in range(4):
        first.train_step([batch(8, seed)])
    second = trainer()
    second.model.load_state_dict(first.model.state_dict())
    second.restore(copy.deepcopy(first.state()))
    assert equal(second.state(), first.state())  # the learning rate, too, which a validation may come to save
    for run in (first, second):
        for seed in range(4, 9):
            run.train_step([batch(8, seed)])
    assert torch.equal(first.model.weight, second.model.weight)
    assert first.window == second.window and first.window["count"] == 9
    assert first.step == second.step == 9


def test_a_restored_run_knows_its_validations_and_bad_steps(capsys):
    first, second = trainer(max_bad_steps=2), trainer(max_bad_steps=2)
    first.step, first.validated, first.best = 5, 4, 61.5
    first.train_step([batch(8, value=math.nan)])
    second.restore(copy.deepcopy(first.state()))
    assert (second.step, second.validated, second.best, second.bad_steps) == (6, 4, 61.5, 1)
    with pytest.raises(InputError, match="2 steps in a row"):
        second.train_step([batch(8, value=math.nan)])


def test_validation_comes_after_every_so_many_steps_and_at_the_end():
    toy, calls = trainer(), []
    options = SimpleNamespace(run=RunOptions(save_every=4, log_every=3), recipe=toy.recipe)
    run = Run(options, toy.ranks, None, toy, None, None, {}, None)
    run.save, run.validate = (lambda: calls.append(("save", toy.step))), (lambda: calls.append(("validate", toy.step)))
    run.log.record = lambda kind, step, values: calls.append((kind, step))
    fit(toy, (batch(8, seed) for seed in range(10)), run, SimpleNamespace(requested=False))
    assert [step for what, step in calls if what == "validate"] == [4, 8, 10]
    assert [step for what, step in calls if what == "save"] == [4, 8, 10]
    assert [step for what, step in calls if what == "train"] == [1, 3, 6, 9, 10]


class Dropping(Linear):
    """With two drop paths, whose draws it writes down."""

    def __init__(self):
        super().__init__()
        self.drops = nn.ModuleList(SampleDropPath(0.5) for _ in range(2))
        self.seen = []

    def forward(self, image, ids):
        self.seen.append(torch.stack([drop.draws for drop in self.drops]))
        return super().forward(image, ids)


def draws(rank=0, world=1, accum=1, steps=2, seed=1):
    """Drop paths x samples of each micro-batch of a rank."""
    model = Dropping()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    recipe = Recipe(num_steps=10, lr=0.1, accum=accum, seed=seed)
    run = Trainer(model, optimizer, squares, recipe, Ranks(torch.device("cpu"), rank, world))
    size = 8 // (world * accum)
    for _ in range(steps):
        run.train_step([batch(size)] * accum)
    return model.seen


def test_draws_belong_to_the_sample_and_the_step():
    first, second = draws()
    assert first.shape == (2, 8) and first.min() >= 0 and first.max() < 1
    assert len({*first.flatten().tolist(), *second.flatten().tolist()}) == 32  # each drop path, sample, step its own
    assert not torch.equal(draws(seed=2)[0], first)
    parts = [part for rank in range(2) for part in draws(rank, world=2, accum=2, steps=1)]
    assert torch.equal(torch.cat(parts, 1), first)
