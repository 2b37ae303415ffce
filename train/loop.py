"""The training loop: SPEC section 8. It knows a model only as something that takes images and ids.

Everything random in step s comes from (seed, s, sample), so that a resumed run repeats an uninterrupted one and neither
--accum nor the number of processes changes a step.
"""

import math
import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import nn
from tqdm import tqdm

from train.sampler import mixed_seed
from train.schedule import Schedule
from utils import device as distributed
from utils.cli import progress_bar
from utils.device import autocast
from utils.errors import InputError, one_line
from utils.loaders import StopSignal


class Stopped(Exception):
    """The run was asked to stop by a signal and has saved its state."""


@dataclass(frozen=True)
class TrainOptions:
    """How long and how; counts are in steps of the global batch."""

    num_steps: int
    batch_size: int
    log_every: int = 100
    save_every: int = 5000
    grad_clip: float = 0.0  # largest norm of the gradient; 0: no clipping
    accum: int = 1  # micro-batches a step
    seed: int = 1
    max_bad_steps: int = 10  # steps in a row whose loss or gradient is not finite
    amp: str | None = None  # a name of `precision.AMP_DTYPES`


class Trainer:
    """The state of a run and the step that advances it.

    Args: model, called as model(images, ids) -> (pixel logits, patch logits), whose modules with an attribute `draws`
    (`models.blocks.SampleDropPath`) get theirs; loss_fn(pixel, patch, mask) -> dict with "loss".
    """

    def __init__(
        self, model: nn.Module, optimizer, loss_fn: Callable, schedule: Schedule, options: TrainOptions, ranks
    ):
        self.model, self.optimizer, self.loss_fn = model, optimizer, loss_fn
        self.schedule, self.options, self.ranks = schedule, options, ranks
        self.drop_paths = [module for module in model.modules() if hasattr(module, "draws")]
        self.scaler = torch.amp.GradScaler(ranks.device.type, enabled=options.amp == "fp16")
        self.base_rates = [group["lr"] for group in optimizer.param_groups]
        self.step = 0  # updates done
        self.validated = 0  # step of the last validation
        self.best: float | None = None  # oIoU of the best validation, percent
        self.bad_steps = 0  # in a row
        self.window: dict[str, float] = {}  # sums since the last log line

    def state(self) -> dict:
        """Everything but the weights that a resumed run needs; plain numbers, dicts and tensors."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            **{name: getattr(self, name) for name in ("step", "validated", "best", "bad_steps")},
            "window": dict(self.window),
        }

    def restore(self, state: dict) -> None:
        """The inverse of `state`. Raises ValueError, KeyError or the like for what is no state of this training."""
        counts = [state[name] for name in ("step", "validated", "bad_steps")]
        if any(type(count) is not int or not 0 <= count <= self.options.num_steps for count in counts):
            raise ValueError(f"{one_line(counts, 60)} are no counts of steps")
        numbers = [*state["window"].values(), 0.0 if state["best"] is None else state["best"]]
        if any(type(number) is not float or not math.isfinite(number) for number in numbers):
            raise ValueError(f"{one_line(numbers, 60)} are no losses and no oIoU")
        own = [{name: group[name] for name in group.keys() - {"params", "lr"}} for group in self.optimizer.param_groups]
        _check_moments(self.optimizer, state["optimizer"]["state"])
        self.optimizer.load_state_dict(state["optimizer"])
        for group, settings in zip(self.optimizer.param_groups, own, strict=True):
            group.update(settings)
        self.scaler.load_state_dict(state["scaler"])
        for name in ("step", "validated", "best", "bad_steps"):
            setattr(self, name, state[name])
        self.window = dict(state["window"])

    def due(self) -> bool:
        """Whether this step is one to validate after."""
        return self.step % self.options.save_every == 0 or self.step == self.options.num_steps

    def train_step(self, batches: list[dict]) -> dict[str, float]:
        """One update from the micro-batches of this rank. Returns losses and gradient norm of the whole batch."""
        for group, rate in zip(self.optimizer.param_groups, self.base_rates, strict=True):
            group["lr"] = rate * self.schedule.factor(self.step)
        totals: dict[str, torch.Tensor] = {}
        for number, (batch, draws) in enumerate(zip(batches, self._drop_draws(len(batches)), strict=True), 1):
            for module, own in zip(self.drop_paths, draws, strict=True):
                module.draws = own
            with self._sync_gradients(number == len(batches)):
                losses = {name: value / len(batches) for name, value in self._losses(batch).items()}
                self.scaler.scale(losses["loss"]).backward()
            for name, value in losses.items():
                totals[name] = totals.get(name, 0) + value.detach()
        self.scaler.unscale_(self.optimizer)
        totals["grad_norm"] = self._clip()  # the same on all ranks, as gradients are
        means = distributed.mean(torch.stack([*totals.values()]))
        values = dict(zip(totals, means.tolist(), strict=True))  # the step's one wait for the device
        finite = all(map(math.isfinite, values.values()))
        if finite:
            self.scaler.step(self.optimizer)
        expected = self.scaler.is_enabled() and self.scaler.get_scale() > 1  # float16's search for its scale
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        if finite:
            self._count(values)
        elif not expected:
            self._complain(values, batches)
        return values

    def _losses(self, batch: dict) -> dict[str, torch.Tensor]:
        image, mask, ids = (batch[key].to(self.ranks.device, non_blocking=True) for key in ("image", "mask", "ids"))
        with autocast(self.ranks.device, self.options.amp):
            pixel, patch = self.model(image, ids)
        return self.loss_fn(pixel, patch, mask)

    def _drop_draws(self, parts: int) -> Sequence[torch.Tensor]:
        """Uniform numbers, drop paths x samples, for each micro-batch of this rank: its part of the whole batch's."""
        seed = mixed_seed(self.options.seed, self.step, 1)  # 1: another stream than the sampler's
        size = len(self.drop_paths), self.options.batch_size
        draws = torch.rand(size, generator=torch.Generator().manual_seed(seed))
        own = draws.tensor_split(self.ranks.world, 1)[self.ranks.rank]
        return own.to(self.ranks.device, non_blocking=True).tensor_split(parts, 1)

    def _clip(self) -> torch.Tensor:
        """The norm of the gradient, which is then cut down to `grad_clip`."""
        parameters = [parameter for parameter in self.model.parameters() if parameter.grad is not None]
        norm = nn.utils.get_total_norm([parameter.grad for parameter in parameters])
        if self.options.grad_clip:
            nn.utils.clip_grads_with_norm_(parameters, self.options.grad_clip, norm)
        return norm

    def _sync_gradients(self, now: bool):
        return nullcontext() if now or not hasattr(self.model, "no_sync") else self.model.no_sync()

    def _count(self, values: dict[str, float]) -> None:
        self.bad_steps = 0
        for name, value in {**values, "count": 1}.items():
            self.window[name] = self.window.get(name, 0.0) + value

    def _complain(self, values: dict[str, float], batches: list[dict]) -> None:
        """Report a step that is not finite, with the samples' names; stop after too many in a row."""
        self.bad_steps += 1
        names = distributed.gather([name for batch in batches for name in batch["name"]])
        what = f"step {self.step}: loss {values['loss']}, gradient norm {values['grad_norm']}, samples "
        if self.ranks.is_main:
            tqdm.write(f"skipped {what}{', '.join(names)}", file=sys.stderr)
        if self.bad_steps >= self.options.max_bad_steps:
            remedy = "lower --lr or set --grad_clip (with --resume and --allow_changes)"
            raise InputError(f"{self.bad_steps} steps in a row were not finite: {remedy}; {what}{', '.join(names[:8])}")


def _check_moments(optimizer: torch.optim.Optimizer, state: dict) -> None:
    """Raise ValueError unless a saved optimiser's tensors have the parameters' shapes, which fused kernels trust."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for number, parameter in enumerate(parameters) if state else ():
        for name, value in state[number].items():
            shape = () if name == "step" else parameter.shape
            if value is not None and (value.shape != shape or not value.is_floating_point()):
                raise ValueError(f"{one_line(name, 40)} of parameter {number} is {one_line(value.shape, 40)}")


def fit(trainer: Trainer, batches: Iterable[dict], log, save: Callable, validate: Callable, stop: StopSignal) -> None:
    """Train to the last step.

    Args: batches, the micro-batches from the trainer's step on; save() writes the state; validate() evaluates and
    writes the numbered checkpoint. Raises Stopped after a signal, when the state is saved.
    """
    options = trainer.options
    if trainer.step and trainer.due() and trainer.validated < trainer.step:
        validate()  # the run was killed between its checkpoint and its validation
    bar = progress_bar(total=options.num_steps, initial=trainer.step, disable=not trainer.ranks.is_main, unit="step")
    with bar:
        _loop(trainer, iter(batches), bar, log, save, validate, stop)


def _loop(trainer: Trainer, batches: Iterator[dict], bar, log, save, validate, stop: StopSignal) -> None:
    options = trainer.options
    started, done = time.monotonic(), 0
    while trainer.step < options.num_steps:
        if distributed.any_rank(stop.requested, trainer.ranks.device):
            save()
            distributed.wait_for_all()  # a rank that leaves while the first one writes would have torchrun kill it
            raise Stopped
        trainer.model.train()
        values = trainer.train_step([next(batches) for _ in range(options.accum)])
        done += 1
        rate = done * options.batch_size / (time.monotonic() - started)
        shown = f"loss {values['loss']:.4f}, lr {_rate(trainer):.2e}, {rate:.1f} samples/s"
        bar.set_postfix_str(shown, refresh=False)
        bar.update()
        if trainer.step % options.log_every == 0:
            _log_window(trainer, log, rate)
            started, done = time.monotonic(), 0
        if trainer.due():
            save()
            validate()
            started, done = time.monotonic(), 0


def _rate(trainer: Trainer) -> float:
    return trainer.optimizer.param_groups[0]["lr"]


def _log_window(trainer: Trainer, log, rate: float) -> None:
    count = trainer.window.pop("count", 0)
    if count:
        means = {name: value / count for name, value in trainer.window.items()}
        log.record("train", trainer.step, {**means, "lr": _rate(trainer)})
    on_gpu = trainer.ranks.device.type == "cuda"
    peak = torch.cuda.max_memory_allocated() if on_gpu else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    log.scalars("speed", trainer.step, {"samples_per_s": rate, "memory_gb": peak / 1e9})
    trainer.window = {}
