"""A run on disk: its folder, what its checkpoints hold, and how a stopped run goes on from them. Paper section 4.1."""

import fcntl
import os
import re
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from eval.evaluator import evaluate
from eval.metrics import summarise
from eval.visualise import strip, write_prediction
from models.checkpoint import Checkpoint, read_checkpoint, save_checkpoint
from models.restr import check_weights
from train.logs import NoLog, RunLog
from train.loop import Trainer
from train.options import GROUPS, DataOptions, Options, flags_of_part
from utils.device import Ranks
from utils.errors import InputError, one_line
from utils.files.writing import TEMPORARY_PREFIX, lock_file, made_folder
from utils.prepared import PreparedSplit
from utils.text import Vocabulary

T = TypeVar("T")
OTHER = "choose another --exp_name"
PICTURES = 8  # validation samples that are drawn, evenly spaced over the split


class OtherRun(InputError):
    """A whole state of another run, or of this one with other flags: an older state must not take its place."""


class RunFolder:
    """The folder of one run, locked against a second process until this one ends.

    `last.pth` is the whole state, `last.prev.pth` the one before it; `best.pth` and DATASET_STEP.pth hold weights only.
    A context manager: at its end the lock is removed, and the folder too if it is still empty and was made here.
    Raises InputError if another process trains into it.
    """

    def __init__(self, path: Path, dataset: str, lock: bool):
        self.path, self.dataset = path, dataset
        self._main, self._stack = lock, ExitStack()
        if not lock:  # of many ranks only the one that writes
            return
        self._stack.enter_context(made_folder(path))
        handle = self._stack.enter_context((path / ".lock").open("a"))  # never empties what a link points to
        try:
            lock_file(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.fstat(handle.fileno()).st_nlink:  # removed by a run that ended just now
                raise BlockingIOError
        except BlockingIOError:
            raise InputError(f"{path}: another run is training into it: choose another --exp_name") from None
        self._stack.callback((path / ".lock").unlink, missing_ok=True)
        for half in path.glob(f"{TEMPORARY_PREFIX}*"):  # of a run that was killed while it saved
            half.unlink(missing_ok=True)

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, *error) -> None:
        self._stack.__exit__(*error)

    @property
    def _states(self) -> list[Path]:
        """Files of whole states, newest first; last.new.pth exists only between the two renames of `save_last`."""
        return [self.path / name for name in ("last.new.pth", "last.pth", "last.prev.pth")]

    def begin(self, resume: bool) -> bool:
        """Whether there is a state to go on from. Raises InputError if a run would be overwritten."""
        if self._found() and not resume:
            raise InputError(f"{self.path} already holds a run: continue it with --resume or choose another --exp_name")
        if not self._found() and list(self.path.glob("*.pth")):
            raise InputError(f"{self.path} holds checkpoints but no last.pth to --resume: choose another --exp_name")
        return bool(self._found())

    def newest(self, read: Callable[[Path], T]) -> T:
        """What `read` gives for the newest whole state.

        Raises its InputError for the newest if none is whole, and at once where it is an OtherRun.
        """
        reasons = []
        for file in self._found():
            try:
                state = read(file)
            except OtherRun:
                raise
            except InputError as error:
                reasons.append(str(error))
                continue
            for reason in reasons if self._main else ():
                print(f"{reason}; falling back to {file}", file=sys.stderr)
            return state
        raise InputError(reasons[0])

    def _found(self) -> list[Path]:
        return [file for file in self._states if file.exists()]

    def save_last(self, write: Callable[[Path], None]) -> None:
        """Let `write` write the whole state; the one before it is kept."""
        new, last, previous = self._states
        write(new)
        if last.exists():
            last.replace(previous)
        new.replace(last)

    def numbered(self, step: int) -> Path:
        """The name of the checkpoint of a step, as in the authors' code."""
        return self.path / f"{self.dataset}_{step}.pth"

    @property
    def best(self) -> Path:
        """The name of the checkpoint with the best validation oIoU."""
        return self.path / "best.pth"

    def prune(self, keep: int) -> None:
        """Delete all but the newest `keep` numbered checkpoints; 0 keeps all."""
        pattern = re.compile(re.escape(self.dataset) + r"_(\d+)\.pth")
        found = sorted((int(match[1]), file) for file in self.path.iterdir() if (match := pattern.fullmatch(file.name)))
        for _, file in found[: len(found) - keep] if keep else []:
            file.unlink()


@dataclass
class Run:
    """One training: model and state, their folder, log and validation. Only the first rank writes.

    A run goes on with the same model, data and compared options only.
    """

    options: Options
    ranks: Ranks
    model: torch.nn.Module
    trainer: Trainer
    folder: RunFolder
    vocabulary: Vocabulary
    data: dict  # what `data_of` says
    valset: PreparedSplit
    log: RunLog | NoLog = field(default_factory=NoLog)

    def start(self, resuming: bool) -> None:
        """Open the log; with `resuming` go on from the newest whole state. Raises InputError."""
        known = self.folder.newest(self._load) if resuming else 0
        if self.ranks.is_main:
            wandb = self.options.compared() if self.options.run.wandb else None
            self.log = RunLog(self.folder.path, self.trainer.step, known, wandb)

    def due(self) -> bool:
        """Whether this step is one to save and validate after."""
        step = self.trainer.step
        return step % self.options.run.save_every == 0 or step == self.options.recipe.num_steps

    def save(self) -> None:
        """Save the whole state, to continue from. Raises InputError if training has diverged; what was saved stays."""
        if not all(weight.isfinite().all() for weight in self.model.state_dict().values()):
            remedy = "continue from last.pth with --resume --allow_changes and a lower --lr or a --grad_clip"
            raise InputError(f"{self.folder.path}: at step {self.trainer.step} the weights are not finite: {remedy}")
        options = self.options.compared()
        training = {"trainer": self.trainer.state(), "options": options, "log_bytes": self.log.position()}
        if self.ranks.is_main:
            self.folder.save_last(lambda file: save_checkpoint(file, self._checkpoint(training)))

    def validate(self) -> None:
        """Evaluate; write the numbered and perhaps the best checkpoint, and the state that knows of them."""
        metrics, trainer = self._evaluate(), self.trainer
        best = trainer.best is None or metrics["oIoU"] > trainer.best
        trainer.best, trainer.validated = metrics["oIoU"] if best else trainer.best, trainer.step
        if self.ranks.is_main:
            save_checkpoint(self.folder.numbered(trainer.step), self._checkpoint(metrics=metrics))
            if best:
                save_checkpoint(self.folder.best, self._checkpoint(metrics=metrics))
            self.folder.prune(self.options.run.keep)
        self.save()

    def _evaluate(self) -> dict:
        """Metrics of the validation split, logged with images of a fixed set of samples; the same on each rank."""
        step, settings = self.trainer.step, self.options.validation
        folder = self.folder.path / "vis" / str(step)

        def show(prediction) -> None:
            picture = np.asarray(strip(prediction, settings.threshold))
            self.log.picture(f"val/{prediction.score.name}", step, picture)
            if self.options.run.is_vis:
                folder.mkdir(parents=True, exist_ok=True)
                write_prediction(folder, prediction, settings.threshold)

        number = len(self.valset)
        shown = set(np.linspace(0, number - 1, min(PICTURES, number)).astype(int).tolist())
        workers = self.options.data.num_workers
        watch = {"on_sample": show, "shown": shown}
        scores = evaluate(self.model, self.valset, settings, self.ranks, num_workers=workers, **watch)
        metrics = summarise(scores, self.valset.dataset)
        prec = {f"Prec@{x}": value for x, value in metrics["prec"].items()}
        self.log.record("val", step, {"oIoU": metrics["oIoU"], "mIoU": metrics["mIoU"], **prec})
        return metrics

    def _checkpoint(self, training: dict | None = None, metrics: dict | None = None) -> Checkpoint:
        weights, config, step = self.model.state_dict(), self.model.config, self.trainer.step
        return Checkpoint(weights, config, self.vocabulary.words, self.data, step, metrics or {}, training)

    def _load(self, file: Path) -> int:
        """Continue from a whole state. Returns the bytes of log.jsonl that it knows. Raises InputError."""
        state = read_checkpoint(file)
        training = state.training or {}
        options, position = training.get("options"), training.get("log_bytes")
        if not isinstance(options, dict) or type(position) is not int or position < 0:
            raise InputError(f"{file}: holds no training state to --resume: {OTHER}")
        self._check_same(file, state, options)
        try:
            check_weights(self.model.config, state.weights)
            if not all(weight.isfinite().all() for weight in state.weights.values()):
                raise ValueError("weights are not finite")
            self.trainer.restore(training["trainer"])
        except (AttributeError, IndexError, InputError, KeyError, RuntimeError, TypeError, ValueError) as error:
            fault = one_line(f"{type(error).__name__}: {error}", 120)
            raise InputError(f"{file}: cannot be continued ({fault}): {OTHER}") from None
        self.model.load_state_dict(state.weights)
        return position

    def _check_same(self, file: Path, state: Checkpoint, options: dict) -> None:
        """Raise OtherRun if the saved run had another model, other data, or, unless allowed, other flags."""
        defaults = dict(flag for part in GROUPS for flag in flags_of_part(part))
        for name, now in self.options.compared().items():
            then = options.get(name, defaults[name].default)  # an older version may lack the flag
            if then != now and not self.options.run.allow_changes:
                remedy = "pass the same, or --allow_changes, or another --exp_name"
                raise OtherRun(f"--resume: the run has --{name} {one_line(then, 40)}, not {now}: {remedy}")
            if then != now and self.ranks.is_main:
                print(f"from here on with --{name} {now}, not {one_line(then, 40)}", file=sys.stderr)
        if state.config != self.model.config or state.vocabulary != self.vocabulary.words:
            raise OtherRun("--resume: the run has another model or vocabulary: pass its flags, or another --exp_name")
        for name, now in self.data.items():
            if state.data.get(name) != now:
                raise OtherRun(f"--resume: the run in {file.parent} was trained on other data ({name}): {OTHER}")


def data_of(options: DataOptions, splits: dict[str, PreparedSplit], vocabulary: Vocabulary) -> dict:
    """What a run is trained and validated on, as plain values; `splits` by name."""
    return {
        "dataset": splits[options.set].dataset,
        "set": options.set,
        "valset": options.valset,
        "image_size": list(options.input_size),
        "vocabulary_sha256": vocabulary.sha256,
        "splits": {name: split.meta["splits"][name] for name, split in splits.items() if split.meta},
    }
