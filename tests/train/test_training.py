"""The training step: accumulation, non-finite steps, schedule, state."""

import copy
import math
from functools import partial
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from models.blocks import SampleDropPath
from tests.support.train_runs import equal
from train.loop import Stopped, Trainer, fit
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


ADAMW = partial(torch.optim.AdamW, fused=True)  # as train_restr.py makes it


def trainer(optimizer=ADAMW, amp=None, **options):
    model = Linear()
    groups = [{"params": [model.weight], "lr": 0.1}]
    recipe = Recipe(**{"num_steps": 10, "lr": 0.1, "warm_iter": 2, **options})
    return Trainer(model, optimizer(groups), squares, recipe, Ranks(torch.device("cpu")), amp)


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


@pytest.mark.parametrize("optimizer", [ADAMW, partial(torch.optim.SGD, momentum=0.9)], ids=["AdamW", "SGD"])
def test_steps_that_are_read_late_are_those_that_are_waited_for(optimizer, capsys):
    late, now = trainer(optimizer), trainer(optimizer)
    batches = [batch(8, seed, value=math.nan if seed in (0, 3) else 1.0) for seed in range(6)]
    expected, found = [], []
    for one in batches:
        expected.append(now.train_step([one]))
        late.launch([one])
        found.append(late.settle(1))
        assert torch.equal(late.model.weight, now.model.weight)  # before anyone knows that the step was not finite
    assert len(late.launched) == 1
    found.append(late.settle())
    assert found[0] == {}
    assert str(found[1:]) == str(expected)  # "nan" is "nan"
    assert equal(late.state(), now.state())
    assert late.state()["window"]["count"] == 4
    lines = [line.split("skipped ")[1] for line in capsys.readouterr().err.splitlines()]
    assert [line.split(":")[0] for line in lines] == ["step 1"] * 2 + ["step 4"] * 2
    assert lines[0] == lines[1] and lines[2] == lines[3]


class Reads(TorchDispatchMode):
    """Counts what makes the host wait for a device: values of tensors that become Python's, by item() or bool()."""

    count = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*arguments, **keywords or {})


@pytest.mark.parametrize("amp", [None, "bf16", "fp16"])
def test_launching_a_step_waits_for_nothing(amp, monkeypatch):
    run = trainer(amp=amp, grad_clip=1.0, accum=2)
    for _ in range(3):
        with Reads() as reads, monkeypatch.context() as patched:
            patched.setattr(torch.Tensor, "tolist", None)
            run.launch([batch(4), batch(4)])
        assert reads.count == 0
        assert math.isfinite(run.settle()["loss"])


def test_float16_skips_and_searches_its_scale_as_a_grad_scaler_does(capsys):
    run = trainer(amp="fp16", warm_iter=0)
    model = Linear()
    optimizer, scaler = torch.optim.AdamW(model.parameters()), torch.amp.GradScaler("cpu")
    for step, value in enumerate([1.0, 1e4, 1.0, 1e5, 1e4, 1.0]):
        one = batch(8, step, value)
        run.launch([one])
        run.settle(1)
        for group in optimizer.param_groups:
            group["lr"] = 0.1 * run.recipe.lr_factor(step)
        with torch.autocast("cpu", torch.float16):
            loss = squares(model(one["image"], one["ids"])[0], None, one["mask"])["loss"]
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        torch.testing.assert_close(run.model.weight, model.weight)
        assert run.scaler.state_dict() == scaler.state_dict()
    assert scaler.get_scale() < 65536 and not torch.equal(
        model.weight, Linear().weight
    )  # of both kinds there were some
    run.settle()
    assert capsys.readouterr().err == ""  # nothing is wrong with such steps
    assert run.window["count"] < 6


@pytest.fixture
def alone_in_a_group(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def fitted(toy, stop, **options):
    """The calls of a run that `fit` makes, with the steps after which they are made."""
    calls = []
    options = SimpleNamespace(run=RunOptions(**options), recipe=toy.recipe)
    run = Run(options, toy.ranks, None, toy, None, None, {}, None)
    for name in ("save", "validate"):
        setattr(run, name, lambda name=name: calls.append((name, toy.step, toy.window.get("count"))))
    run.log.record = lambda kind, step, values: calls.append((kind, step, toy.window.get("count")))
    stopped = False
    try:
        fit(toy, (batch(8, seed) for seed in range(10)), run, stop)
    except Stopped:
        stopped = True
    assert not toy.launched
    return calls, stopped


class Asked:
    """Asked to stop in the middle of a step."""

    def __init__(self, toy, step):
        self.toy, self.step = toy, step

    @property
    def requested(self):
        return self.toy.step >= self.step


def test_processes_of_a_group_stop_one_step_later(alone_in_a_group):
    """The step whose vector brings the word is read when the next one is on its way; what is saved holds both."""
    toy = trainer()
    calls, stopped = fitted(toy, Asked(toy, 4), save_every=100, log_every=100)
    assert stopped
    assert calls == [("train", 1, None), ("save", 6, 5)]


def test_one_process_stops_after_its_step():
    toy = trainer()
    calls, stopped = fitted(toy, Asked(toy, 4), save_every=100, log_every=100)
    assert stopped
    assert calls == [("train", 1, None), ("save", 4, 3)]


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
    calls, stopped = fitted(trainer(), SimpleNamespace(requested=False), save_every=4, log_every=3)
    assert not stopped
    assert [step for what, step, _ in calls if what == "validate"] == [4, 8, 10]
    assert [step for what, step, _ in calls if what == "save"] == [4, 8, 10]
    assert [step for what, step, _ in calls if what == "train"] == [1, 3, 6, 9, 10]


class Dropping(Linear):
    """With two drop paths, whose draws it writes down."""

    def __init__(self):
        super().__init__()
        self.drops = nn.ModuleList(SampleDropPath(0.5) for _ in range(2))
        self.seen, self.places = [], set()

    def forward(self, image, ids):
        self.seen.append(torch.stack([drop.draws for drop in self.drops]))
        self.places |= {drop.draws.data_ptr() for drop in self.drops}
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
    assert len(model.places) == 2  # a CUDA graph reads them where they were when it was recorded
    return model.seen


def test_draws_belong_to_the_sample_and_the_step():
    first, second = draws()
    assert first.shape == (2, 8) and first.min() >= 0 and first.max() < 1
    assert len({*first.flatten().tolist(), *second.flatten().tolist()}) == 32  # each drop path, sample, step its own
    assert not torch.equal(draws(seed=2)[0], first)
    parts = [part for rank in range(2) for part in draws(rank, world=2, accum=2, steps=1)]
    assert torch.equal(torch.cat(parts, 1), first)
