"""The training loop: paper section 4.1. It knows a model only as something that takes images and ids.

Everything random in step s comes from (seed, s, sample), so that a resumed run repeats an uninterrupted one and neither
--accum nor the number of processes changes a step.
"""

import math
import resource
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext

import torch
import torch.distributed as dist
from torch import nn

from train.data import mixed_seed
from train.process import StopSignal
from utils import device as distributed
from utils.cli import brief, log, progress_bar
from utils.device import Ranks, autocast
from utils.errors import InputError, one_line

COUNTERS = ("step", "validated", "best", "bad_steps")


class Stopped(Exception):
    """The run was asked to stop by a signal and has saved its state."""


class Trainer:
    """The state of a run and the step that advances it.

    Args: model, called as model(images, ids) -> (pixel logits, patch logits), whose modules with an attribute `draws`
    (`models.blocks.SampleDropPath`) get theirs; loss_fn(pixel, patch, mask) -> dict with "loss"; recipe, a
    `train.options.Recipe`; amp, a name of `utils.device.AMP_DTYPES` or None for float32.
    """

    def __init__(self, model: nn.Module, optimizer, loss_fn: Callable, recipe, ranks: Ranks, amp: str | None = None):
        self.model, self.optimizer, self.loss_fn = model, optimizer, loss_fn
        self.recipe, self.ranks, self.amp = recipe, ranks, amp
        drop_paths = [module for module in model.modules() if hasattr(module, "draws")]
        size = len(drop_paths), recipe.batch_size // (ranks.world * recipe.accum)
        self.draws = torch.zeros(size, device=ranks.device)  # of a micro-batch: one place, from which CUDA graphs read
        for module, own in zip(drop_paths, self.draws, strict=True):
            module.draws = own
        self.scaler = torch.amp.GradScaler(ranks.device.type, enabled=amp == "fp16")
        self.base_rates = [group["lr"] for group in optimizer.param_groups]
        self.step = 0  # updates done
        self.validated = 0  # step of the last validation
        self.best: float | None = None  # oIoU of the best validation, percent
        self.bad_steps = 0  # in a row
        self.window: dict[str, float] = {}  # sums since the last log line
        self.launched: deque[tuple] = deque()  # steps that are not settled
        self.stopping = False  # whether one of several ranks was asked to stop, as all of them know

    @property
    def lr(self) -> float:
        """The learning rate of language and fusion."""
        return self.optimizer.param_groups[0]["lr"]

    def state(self) -> dict:
        """Everything but the weights that a resumed run needs; plain numbers, dicts and tensors."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            **{name: getattr(self, name) for name in COUNTERS},
            "window": dict(self.window),
        }

    def restore(self, state: dict) -> None:
        """The inverse of `state`. Raises ValueError, KeyError or the like for what is not a state of this training."""
        counts = [state[name] for name in ("step", "validated", "bad_steps")]
        if any(type(count) is not int or not 0 <= count <= self.recipe.num_steps for count in counts):
            raise ValueError(f"{one_line(counts, 60)} are not counts of steps")
        numbers = [*state["window"].values(), 0.0 if state["best"] is None else state["best"]]
        if any(type(number) is not float or not math.isfinite(number) for number in numbers):
            raise ValueError(f"{one_line(numbers, 60)} are not losses and an oIoU")
        saved, own = state["optimizer"], self.optimizer.state_dict()["param_groups"]
        _check_moments(self.optimizer, saved["state"])
        groups = [{**now, "lr": then["lr"]} for now, then in zip(own, saved["param_groups"], strict=True)]
        self.optimizer.load_state_dict({"state": saved["state"], "param_groups": groups})
        if self.scaler.is_enabled() and state["scaler"]:  # else the run goes to or from float16: a new one
            self.scaler.load_state_dict(state["scaler"])
        for name in COUNTERS:
            setattr(self, name, state[name])
        self.window = dict(state["window"])

    def train_step(self, batches: list[dict]) -> dict[str, float]:
        """One update, waited for: `launch` and `settle`."""
        self.launch(batches)
        return self.settle()

    def launch(self, batches: list[dict], stop: StopSignal | None = None) -> None:
        """Have the device make one update from the micro-batches of this rank; `settle` reads what comes of it.

        The device itself leaves out an update whose losses or gradients are not finite, so that nothing waits for it.
        `stop`, asked when the step is on its way, tells all ranks that one of them is to stop: see `stopping`.
        """
        for group, rate in zip(self.optimizer.param_groups, self.base_rates, strict=True):
            group["lr"] = rate * self.recipe.lr_factor(self.step)
        totals = self._gradients(batches)
        one = torch.ones_like(totals["loss"])
        totals |= {"stop": one * bool(stop and stop.requested), "scale": self.scaler.scale(one)}
        means = _mean(torch.stack([*totals.values()]))
        bad = 1 - means.isfinite().all().float()
        if self.optimizer.defaults["fused"]:
            self.optimizer.found_inf = bad  # 1: the kernel changes nothing; GradScaler's way to tell it
            self.optimizer.step()
        elif not bad:  # waits: SGD, whose fused form rounds otherwise, and begins with garbage if the first step is bad
            self.optimizer.step()
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        means = means.to("cpu", non_blocking=True)  # into pinned memory
        arrived = torch.get_device_module(self.ranks.device).Event()
        arrived.record()
        names = [name for batch in batches for name in batch.get("name", ())]
        self.launched.append((self.step, names, [*totals], means, arrived))

    def settle(self, late: int = 0) -> dict[str, float]:
        """Wait for all launched steps but the `late` newest, and count them; a rank needs the others to do the same.

        Returns losses and gradient norm of the whole batch of the newest of these steps; {}: there is none.
        Raises InputError after too many steps in a row that are not finite.
        """
        values: dict[str, float] = {}
        while len(self.launched) > late:
            step, names, keys, means, arrived = self.launched.popleft()
            arrived.synchronize()
            values = dict(zip(keys, means.tolist(), strict=True))
            self.stopping |= values.pop("stop") > 0
            expected = values.pop("scale") > 1  # float16's search for its scale
            if all(map(math.isfinite, values.values())):
                self.bad_steps = 0
                for name, value in {**values, "count": 1}.items():
                    self.window[name] = self.window.get(name, 0.0) + value
            elif not expected:
                self._complain(step, values, names)
        return values

    def _gradients(self, batches: list[dict]) -> dict[str, torch.Tensor]:
        """Fill the gradients, unscaled and clipped. Returns losses of this rank and the gradient norm."""
        totals: dict[str, torch.Tensor] = {}
        for number, (batch, draws) in enumerate(zip(batches, self._drop_draws(len(batches)), strict=True), 1):
            self.draws.copy_(draws, non_blocking=True)
            image, mask, ids = (batch[key].to(self.ranks.device, non_blocking=True) for key in ("image", "mask", "ids"))
            last = number == len(batches) or not hasattr(self.model, "no_sync")
            with nullcontext() if last else self.model.no_sync():  # processes exchange gradients once a step
                with autocast(self.ranks.device, self.amp):
                    pixel, patch = self.model(image, ids)
                losses = {name: x / len(batches) for name, x in self.loss_fn(pixel, patch, mask).items()}
                self.scaler.scale(losses["loss"]).backward()
            for name, value in losses.items():
                totals[name] = totals.get(name, 0) + value.detach()
        self.scaler.unscale_(self.optimizer)
        parameters = [parameter for parameter in self.model.parameters() if parameter.grad is not None]
        totals["grad_norm"] = nn.utils.get_total_norm([parameter.grad for parameter in parameters])  # same on all ranks
        if self.recipe.grad_clip:
            nn.utils.clip_grads_with_norm_(parameters, self.recipe.grad_clip, totals["grad_norm"])
        return totals

    def _drop_draws(self, parts: int) -> Sequence[torch.Tensor]:
        """Uniform numbers, drop paths x samples, for each micro-batch of this rank: its part of the whole batch's."""
        seed = mixed_seed(self.recipe.seed, self.step, 1)  # 1: another stream than the sampler's
        size = len(self.draws), self.recipe.batch_size
        draws = torch.rand(size, generator=torch.Generator().manual_seed(seed))
        own = draws.tensor_split(self.ranks.world, 1)[self.ranks.rank].tensor_split(parts, 1)
        if self.ranks.device.type == "cuda":  # from other memory the copy may wait for the device
            own = [part.contiguous().pin_memory() for part in own]
        return own

    def _complain(self, step: int, values: dict[str, float], names: list[str]) -> None:
        """Report a step that is not finite, with the names of this rank's samples; stop after too many in a row."""
        self.bad_steps += 1
        names = distributed.gather(names)
        what = f"step {step}: loss {values['loss']}, gradient norm {values['grad_norm']}, samples "
        if self.ranks.is_main:
            log(f"skipped {what}{', '.join(names)}")
        if self.bad_steps >= self.recipe.max_bad_steps:
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


def fit(trainer: Trainer, batches: Iterator[dict], run, stop: StopSignal) -> None:
    """Train to the last step.

    Args: batches, the micro-batches from the trainer's step on; run, a `train.run.Run`. Raises Stopped after a signal,
    when the state is saved.
    """
    recipe = trainer.recipe
    if trainer.step and run.due() and trainer.validated < trainer.step:
        run.validate()  # the run was killed between its checkpoint and its validation
    started, first = time.monotonic(), trainer.step
    hidden = not trainer.ranks.is_main
    with progress_bar(total=recipe.num_steps, initial=trainer.step, disable=hidden, desc="step") as bar:
        while trainer.step < recipe.num_steps:
            if trainer.stopping if dist.is_initialized() else stop.requested:
                trainer.settle()
                run.save()
                if dist.is_initialized():
                    dist.barrier()  # a rank that leaves while the first one writes would have torchrun kill it
                raise Stopped
            trainer.model.train()
            trainer.launch([next(batches) for _ in range(recipe.accum)], stop)
            due = run.due()
            logged = trainer.step in (1, recipe.num_steps) or trainer.step % run.options.run.log_every == 0
            values = trainer.settle(0 if logged or due else 1)  # the device is not left without work
            rate = (trainer.step - first) * recipe.batch_size / (time.monotonic() - started)
            if values:  # of the step before, unless this one is logged
                shown = f"loss {values['loss']:.3g} lr {trainer.lr:.1e} {brief(rate)} samples/s"
                bar.set_postfix_str(shown, refresh=False)
            bar.update()
            if logged:
                _log_window(trainer, run.log, rate)
            if due:
                bar.refresh()  # in a file, the line of this step comes before that of its validation
                run.save()
                run.validate()
            if logged or due:
                started, first = time.monotonic(), trainer.step


def _mean(values: torch.Tensor) -> torch.Tensor:
    """Each value averaged over the ranks, on every rank."""
    if dist.is_initialized():
        dist.all_reduce(values)
        values /= dist.get_world_size()
    return values


def _log_window(trainer: Trainer, log, rate: float) -> None:
    """Log the means of the steps since the last log line, and the speed."""
    count = trainer.window.pop("count", 0)
    if count:
        means = {name: value / count for name, value in trainer.window.items()}
        log.record("train", trainer.step, {**means, "lr": trainer.lr})
    on_gpu = trainer.ranks.device.type == "cuda"
    peak = torch.cuda.max_memory_allocated() if on_gpu else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    log.scalars("speed", trainer.step, {"samples_per_s": rate, "memory_gb": peak / 1e9})
    trainer.window = {}
