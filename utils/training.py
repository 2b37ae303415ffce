"""The training loop: SPEC section 8. It knows a model only as something that takes images and ids.

Everything random in step s comes from (seed, s, rank), so that a resumed run repeats an uninterrupted one.
"""

import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import nn
from tqdm import tqdm

from utils import distributed
from utils.errors import InputError
from utils.logs import progress_bar
from utils.sampler import mixed_seed
from utils.schedule import Schedule
from utils.signals import StopSignal


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
    amp: torch.dtype | None = None  # bfloat16 or float16 autocast


class Trainer:
    """The state of a run and the step that advances it.

    Args: model, called as model(images, ids) -> (pixel logits, patch logits); loss_fn(pixel, patch, mask) -> dict with
    "loss".
    """

    def __init__(
        self, model: nn.Module, optimizer, loss_fn: Callable, schedule: Schedule, options: TrainOptions, ranks
    ):
        self.model, self.optimizer, self.loss_fn = model, optimizer, loss_fn
        self.schedule, self.options, self.ranks = schedule, options, ranks
        self.scaler = torch.amp.GradScaler(ranks.device.type, enabled=options.amp is torch.float16)
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
        """The inverse of `state`."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        for name in ("step", "validated", "best", "bad_steps"):
            setattr(self, name, state[name])
        self.window = dict(state["window"])

    def due(self) -> bool:
        """Whether this step is one to validate after."""
        return self.step % self.options.save_every == 0 or self.step == self.options.num_steps

    def train_step(self, batches: list[dict]) -> dict[str, float]:
        """One update from the micro-batches of this rank. Returns losses and gradient norm."""
        device, options = self.ranks.device, self.options
        self._seed()
        for group, rate in zip(self.optimizer.param_groups, self.base_rates, strict=True):
            group["lr"] = rate * self.schedule.factor(self.step)
        totals: dict[str, torch.Tensor] = {}
        for number, batch in enumerate(batches, 1):
            image, mask, ids = (batch[key].to(device, non_blocking=True) for key in ("image", "mask", "ids"))
            with self._sync_gradients(number == len(batches)):
                with torch.autocast(device.type, options.amp, enabled=options.amp is not None):
                    pixel, patch = self.model(image, ids)
                losses = {name: value / len(batches) for name, value in self.loss_fn(pixel, patch, mask).items()}
                self.scaler.scale(losses["loss"]).backward()
            for name, value in losses.items():
                totals[name] = totals.get(name, 0) + value.detach()
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), options.grad_clip or math.inf)
        values = {name: value.item() for name, value in {**totals, "grad_norm": norm}.items()}
        # the norm is the same on all ranks, so they agree; float16's scaler skips overflows by itself
        if self.scaler.is_enabled() or math.isfinite(values["grad_norm"]):
            self.scaler.step(self.optimizer)
            self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self._watch(values, batches)
        return values

    def _seed(self) -> None:
        torch.manual_seed(mixed_seed(self.options.seed, self.step, self.ranks.rank))

    def _sync_gradients(self, now: bool):
        return nullcontext() if now or not hasattr(self.model, "no_sync") else self.model.no_sync()

    def _watch(self, values: dict[str, float], batches: list[dict]) -> None:
        """Count steps in a row that are not finite; stop after too many, with the samples' names."""
        fine = math.isfinite(values["loss"]) and (self.scaler.is_enabled() or math.isfinite(values["grad_norm"]))
        if not distributed.any_rank(not fine, self.ranks.device):
            self.bad_steps = 0
            for name, value in {**values, "count": 1}.items():
                self.window[name] = self.window.get(name, 0.0) + value
            return
        self.bad_steps += 1
        names = ", ".join(name for batch in batches for name in batch["name"])
        what = f"step {self.step}: loss {values['loss']}, gradient norm {values['grad_norm']}, samples {names}"
        tqdm.write(f"skipped {what}", file=sys.stderr)
        if self.bad_steps >= self.options.max_bad_steps:
            raise InputError(f"{self.bad_steps} steps in a row were not finite; {what}: lower --lr or set --grad_clip")


def fit(trainer: Trainer, batches: Iterable[dict], log, save: Callable[[], None], validate: Callable[[], None]) -> None:
    """Train to the last step.

    Args: batches, the micro-batches from the trainer's step on; save() writes the state; validate() evaluates and
    writes the numbered checkpoint. Raises Stopped after a signal, when the state is saved.
    """
    options = trainer.options
    stop = StopSignal()
    if trainer.step and trainer.due() and trainer.validated < trainer.step:
        validate()  # the run was killed between its checkpoint and its validation
    bar = progress_bar(total=options.num_steps, initial=trainer.step, disable=not trainer.ranks.is_main, unit="step")
    with bar:
        _loop(trainer, iter(batches), bar, log, save, validate, stop)


def _loop(trainer: Trainer, batches: Iterator[dict], bar, log, save, validate, stop: StopSignal) -> None:
    options = trainer.options
    started, done = time.monotonic(), 0
    while trainer.step < options.num_steps:
        trainer.model.train()
        values = trainer.train_step([next(batches) for _ in range(options.accum)])
        done += 1
        rate = done * options.batch_size / (time.monotonic() - started)
        bar.update()
        bar.set_postfix_str(f"loss {values['loss']:.4f}, lr {_rate(trainer):.2e}, {rate:.1f} samples/s")
        if trainer.step % options.log_every == 0:
            _log_window(trainer, log, rate)
            started, done = time.monotonic(), 0
        if trainer.due():
            save()
            validate()
            started, done = time.monotonic(), 0
        if distributed.any_rank(stop.requested, trainer.ranks.device) and trainer.step < options.num_steps:
            save()
            raise Stopped


def _rate(trainer: Trainer) -> float:
    return trainer.optimizer.param_groups[0]["lr"]


def _log_window(trainer: Trainer, log, rate: float) -> None:
    count = trainer.window.pop("count", 0)
    if count:
        means = distributed.mean({name: value / count for name, value in trainer.window.items()})
        log.record("train", trainer.step, {**means, "lr": _rate(trainer)})
    speed = {"samples_per_s": rate}
    if trainer.ranks.device.type == "cuda":
        speed["memory_gb"] = torch.cuda.max_memory_allocated() / 1e9
    log.scalars("speed", trainer.step, speed)
    trainer.window = {}
