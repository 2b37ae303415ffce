"""A run on disk: its folder, what its checkpoints hold, and how a stopped run goes on from them. Paper section 4.1."""

import fcntl
import os
import re
import sys
from argparse import Namespace
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from models.checkpoint import Checkpoint, read_checkpoint, save_checkpoint
from models.weights import check_weights
from train.logs import NoLog, RunLog
from train.loop import Trainer
from utils.device import Ranks
from utils.errors import InputError, one_line
from utils.files.writing import TEMPORARY_PREFIX, lock_file, made_folder
from utils.text import Vocabulary

T = TypeVar("T")
# Each flag of train_restr.py is in one of these four: --resume compares the first three.
RECIPE = (  # the flags that decide weights and log
    "batch_size num_steps adamW lr v_lr_scale end_lr warm_iter power is_cos weight_decay momentum grad_clip alpha_loc "
    "patch_label patch_thres seed save_every log_every amp amp_dtype tf32 eval_pad eval_antialias"
).split()
MODEL = (  # compared as ReSTRConfig and words
    "v_backbone l_backbone mm_fusion fusion tr_n_layers drop_path is_shared no_decoder input_size vocabulary"
).split()
DATA = "data_dir set valset".split()  # compared by content, so that a folder may move
HARMLESS = {  # with the reason why a resumed run may have another value
    **dict.fromkeys(("embeddings", "v_weights", "no_pretrained", "random_embeddings"), "read at step 0 only"),
    **dict.fromkeys(("exp_name", "weights_dir", "resume", "allow_changes", "print_model"), "which run, not how"),
    **dict.fromkeys(("keep", "wandb", "is_vis"), "more or fewer files beside the same weights and log"),
    **dict.fromkeys(("num_workers", "eval_batch_size"), "memory and speed only"),
    **dict.fromkeys(("accum", "grad_checkpoint", "compile", "deterministic"), "the same step but for rounding"),
    **dict.fromkeys(("device", "local_rank"), "a run may move to another machine: the same step but for rounding"),
    "max_bad_steps": "when to give up; bad steps change no weight",
}
BEFORE = {"tf32": False}  # flags of RECIPE that checkpoints of 1.0 do not tell, and their value then
OTHER = "choose another --exp_name"


class OtherRun(InputError):
    """A whole state that is not of this run, or of it with other flags: an older one must not take its place."""


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
        """The name of the checkpoint of a step, as in the reference."""
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
class Experiment:
    """A run's model and state, and how they get to disk; only the first rank writes.

    data: plain values that tell what it is trained on; a run goes on with the same only.
    """

    args: Namespace
    ranks: Ranks
    model: torch.nn.Module
    trainer: Trainer
    folder: RunFolder
    vocabulary: Vocabulary
    data: dict
    log: RunLog | NoLog | None = None
    validation: object = None

    @property
    def recipe(self) -> dict:
        """The flags that decide weights and log."""
        return {name: getattr(self.args, name) for name in RECIPE}

    def checkpoint(self, training: dict | None = None, metrics: dict | None = None) -> Checkpoint:
        """The weights as they are, and what they were trained on."""
        weights, config, step = self.model.state_dict(), self.model.config, self.trainer.step
        return Checkpoint(weights, config, self.vocabulary.words, self.data, step, metrics or {}, training)

    def save(self) -> None:
        """The whole state, to continue from. Raises InputError if training has diverged; what was saved stays."""
        if not all(weight.isfinite().all() for weight in self.model.state_dict().values()):
            remedy = "continue from last.pth with --resume --allow_changes and a lower --lr or a --grad_clip"
            raise InputError(f"{self.folder.path}: at step {self.trainer.step} the weights are not finite: {remedy}")
        training = {"trainer": self.trainer.state(), "options": self.recipe, "log_bytes": self.log.position()}
        if self.ranks.is_main:
            self.folder.save_last(lambda file: save_checkpoint(file, self.checkpoint(training)))

    def validate(self) -> None:
        """Evaluate; write the numbered and perhaps the best checkpoint, and the state that knows of them."""
        metrics, trainer = self.validation(self.model, self.trainer.step), self.trainer
        best = trainer.best is None or metrics["oIoU"] > trainer.best
        trainer.best, trainer.validated = metrics["oIoU"] if best else trainer.best, trainer.step
        if self.ranks.is_main:
            save_checkpoint(self.folder.numbered(trainer.step), self.checkpoint(metrics=metrics))
            if best:
                save_checkpoint(self.folder.best, self.checkpoint(metrics=metrics))
            self.folder.prune(self.args.keep)
        self.save()

    def resume(self) -> int:
        """Continue from the newest whole state. Returns the bytes of log.jsonl that it knows. Raises InputError."""
        return self.folder.newest(self._load)

    def _load(self, file) -> int:
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

    def _check_same(self, file, state: Checkpoint, options: dict) -> None:
        """Raise OtherRun if the saved run had another model, other data, or, unless allowed, other flags."""
        for name, now in self.recipe.items():
            then = options.get(name, BEFORE.get(name))
            if then != now and not self.args.allow_changes:
                remedy = "pass the same, or --allow_changes, or another --exp_name"
                raise OtherRun(f"--resume: the run has --{name} {one_line(then, 40)}, not {now}: {remedy}")
            if then != now and self.ranks.is_main:
                print(f"from here on with --{name} {now}, not {one_line(then, 40)}", file=sys.stderr)
        if state.config != self.model.config or state.vocabulary != self.vocabulary.words:
            raise OtherRun("--resume: the run has another model or vocabulary: pass its flags, or another --exp_name")
        for name, now in self.data.items():
            if state.data.get(name) != now:
                raise OtherRun(f"--resume: the run in {file.parent} was trained on other data ({name}): {OTHER}")


def data_of(args: Namespace, splits: dict, vocabulary: Vocabulary) -> dict:
    """What a run is trained and validated on: plain values. `splits`: PreparedSplit by name."""
    first = splits[args.set]
    return {
        "dataset": first.dataset,
        "set": args.set,
        "valset": args.valset,
        "image_size": list(args.input_size),
        "vocabulary_sha256": vocabulary.sha256,
        "splits": {name: split.meta["splits"][name] for name, split in splits.items() if split.meta},
    }
