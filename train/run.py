"""A run on disk: its folder, what its checkpoints hold, and how a stopped run goes on from them. Paper section 4.1."""

import fcntl
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
import torch.distributed as dist
from torch.utils._pytree import tree_map_only

from eval.evaluator import evaluate
from eval.metrics import PRECISIONS, summarise
from eval.visualise import sheet, spread, write_prediction
from models.checkpoint import Checkpoint, read_checkpoint, save_checkpoint
from models.restr import check_weights
from train.data import judged
from train.folders import TrainingSet
from train.logs import NoLog, RunLog
from train.loop import Trainer
from train.options import FLAGS, DataOptions, Options
from utils.cli import log
from utils.device import Ranks, from_first, gather
from utils.errors import InputError, one_line
from utils.files.writing import TEMPORARY_PREFIX, link_or_copy, lock_file, made_folder
from utils.prepared import PreparedSplit
from utils.text import Vocabulary

OTHER = "choose another --exp_name"
KEEP = 3  # numbered checkpoints, without --keep
SCORES = ("oIoU", "mIoU")
PICTURES = 8  # validation samples that are drawn, evenly spaced over the split


class OtherRun(InputError):
    """A whole state of another run, or of this one with other flags: an older state must not take its place."""


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Make the folder of a run, and lock it against a second process until the block ends.

    At its end the lock is removed. After an exception before the first logged step, the files made in the block go
    too, and the folder if it is then empty and was made here: a failed start leaves nothing.
    Raises InputError if another process trains into it.
    """
    with made_folder(path), (path / ".lock").open("a") as handle:  # "a" never empties what a link points to
        try:
            lock_file(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.fstat(handle.fileno()).st_nlink:  # removed by a run that ended just now
                raise BlockingIOError
        except BlockingIOError:
            raise InputError(f"{path}: another run is training into it: {OTHER}") from None
        before = {*path.iterdir()}
        try:
            for half in path.glob(f"{TEMPORARY_PREFIX}*"):  # of a run that was killed while it saved
                half.unlink(missing_ok=True)
            yield
        except BaseException:
            if not any(file.stat().st_size for file in path.glob("log.jsonl")):
                for new in {*path.glob("*")} - before:
                    with suppress(OSError):  # a folder of --wandb
                        new.unlink()
            raise
        finally:
            (path / ".lock").unlink(missing_ok=True)


def whole_states(path: Path) -> list[Path]:
    """The files of whole states in a run's folder, newest first; last.new.pth is there between two renames only."""
    files = (path / name for name in ("last.new.pth", "last.pth", "last.prev.pth"))
    return [file for file in files if file.exists()]


def resumable(path: Path, resume: bool) -> bool:
    """Whether there is a state to go on from. Raises InputError if a run would be overwritten."""
    states = whole_states(path)
    if states and not resume:
        raise InputError(f"{path} already holds a run: continue it with --resume or {OTHER}")
    if not states and list(path.glob("*.pth")):
        raise InputError(f"{path} holds checkpoints but no last.pth to --resume: {OTHER}")
    return bool(states)


@dataclass
class Run:
    """One training: model and state, their folder, log and validation. Only the first rank writes.

    Of the folder `path`, `last.pth` is the whole state and `last.prev.pth` the one before it; `best.pth` and
    DATASET_STEP.pth hold weights only. Of several data sets the latter are named after the folder, as evaluate.py finds
    them too. A run goes on with the same model, data and compared options only.
    """

    options: Options
    ranks: Ranks
    model: torch.nn.Module
    trainer: Trainer
    path: Path
    vocabulary: Vocabulary
    data: dict  # what `data_of` says
    valsets: dict[str, PreparedSplit]  # by name; from `start` on, what of them is judged
    log: RunLog | NoLog = field(default_factory=NoLog)
    spared: list[Path] = field(default_factory=list)  # numbered checkpoints that stay, however old

    def start(self, resuming: bool) -> None:
        """Open the log; with `resuming` go on from the newest whole state. Raises InputError."""
        known = self._resume() if resuming and self.ranks.is_main else 0
        if resuming and self.ranks.world > 1:
            self._share()
        self.valsets = self._judged()
        if self.ranks.is_main:
            wandb = self.options.compared() if self.options.run.wandb else None
            self.log = RunLog(self.path, self.trainer.step, known, wandb)

    def _share(self) -> None:
        """Give all processes the state that the first one has read: on other machines they may not see its files."""
        state = tree_map_only(torch.Tensor, torch.Tensor.cpu, self.trainer.state()) if self.ranks.is_main else None
        state, self.options.validation = from_first((state, self.options.validation))
        if not self.ranks.is_main:
            self.trainer.restore(state)
        for weight in self.model.state_dict().values():
            dist.broadcast(weight, 0)

    def _judged(self) -> dict[str, PreparedSplit]:
        limit = self.options.validation.val_limit
        return {name: judged(valset, limit) for name, valset in self.valsets.items()}

    def _resume(self) -> int:
        """Go on from the newest whole state: the bytes of log.jsonl that it knows. Raises the newest's InputError."""
        faults: list[str] = []
        for file in whole_states(self.path):
            try:
                known = self._load(file)
            except OtherRun:
                raise
            except InputError as error:
                faults.append(str(error))
                continue
            for fault in faults if self.ranks.is_main else ():
                print(f"{fault}; falling back to {file}", file=sys.stderr)
            return known
        raise InputError(faults[0])

    def check(self) -> None:
        """Do now what would otherwise fail after hours: judge two images, save the state, and go on from that file.

        Each process has to make this call. It changes nothing, no random number either, and the file goes again.
        Raises InputError or OSError.
        """
        started, file = time.monotonic(), self.path / f"{TEMPORARY_PREFIX}check.pth"
        with torch.random.fork_rng(devices=[]):  # a DataLoader draws a seed for its processes
            for valset in self.valsets.values():
                self._judge(valset.select([0, len(valset) - 1]), progress=False)
        if not self.ranks.is_main:
            return
        try:
            save_checkpoint(file, self._state())
            self._load(file)
        finally:
            file.unlink(missing_ok=True)
        seconds = time.monotonic() - started
        images = "two images judged" + ", of each data set" * (len(self.valsets) > 1)
        print(f"check     {images}, a checkpoint written and read back, in {seconds:.1f} s", flush=True)

    def due(self) -> bool:
        """Whether this step is one to save and validate after."""
        step = self.trainer.step
        return step % self.options.run.save_every == 0 or step == self.options.recipe.num_steps

    def save(self) -> None:
        """Save the whole state, to continue from. Raises InputError if training has diverged; what was saved stays."""
        if not all(weight.isfinite().all() for weight in self.model.state_dict().values()):
            remedy = "continue from last.pth with --resume --allow_changes and a lower --lr or a --grad_clip"
            raise InputError(f"{self.path}: at step {self.trainer.step} the weights are not finite: {remedy}")
        if self.ranks.is_main:
            new, last = self.path / "last.new.pth", self.path / "last.pth"
            save_checkpoint(new, self._state())
            if last.exists():
                last.replace(self.path / "last.prev.pth")
            new.replace(last)

    def validate(self) -> None:
        """Evaluate; write the numbered and perhaps the best checkpoint, and the state that knows of them."""
        metrics, trainer = self._evaluate(), self.trainer
        best = trainer.best is None or metrics["oIoU"] > trainer.best
        trainer.best, trainer.validated = metrics["oIoU"] if best else trainer.best, trainer.step
        if self.ranks.is_main:
            scores = f"oIoU {metrics['oIoU']:.1f} (best {trainer.best:.1f}) mIoU {metrics['mIoU']:.1f}"
            each = [f"{name} {own['oIoU']:.1f}" for name, own in metrics.get("by_dataset", {}).items()]
            log(f"step {trainer.step:,} {self.options.data.valset} {scores}{': ' * bool(each)}{', '.join(each)}")
            numbered = self.path / f"{self._stem}_{trainer.step}.pth"
            save_checkpoint(numbered, self._checkpoint(metrics=metrics))
            if best:
                link_or_copy(numbered, self.path / "best.pth")
            self._prune()
        self.save()

    @property
    def _stem(self) -> str:
        """What the names of numbered checkpoints begin with; of one data set it is that of the authors' code."""
        return next(iter(self.valsets.values())).dataset if len(self.valsets) == 1 else self.path.resolve().name

    def _numbered(self) -> list[tuple[int, Path]]:
        """The numbered checkpoints and their steps, oldest first."""
        pattern = re.compile(re.escape(self._stem) + r"_(\d+)\.pth")
        return sorted((int(match[1]), file) for file in self.path.iterdir() if (match := pattern.fullmatch(file.name)))

    def _prune(self) -> None:
        """Delete all but the newest numbered checkpoints, as many as --keep says."""
        keep = KEEP if self.options.run.keep is None else self.options.run.keep
        for _, file in self._numbered()[:-keep] if keep else ():
            if file not in self.spared:
                file.unlink()

    def _evaluate(self) -> dict:
        """Metrics of the validation split, logged with images of a fixed set of samples; the same on each rank.

        Of several splits: means of theirs, and "by_dataset" with each.
        """
        step, found = self.trainer.step, {}
        for name, valset in self.valsets.items():
            own = "" if name == valset.dataset else f"{name}/"  # two folders of one data set have samples of one name
            folder = self.path / "vis" / str(step) / own if self.options.run.is_vis else None
            found[name], sheets = self._judge(valset, folder)
            for sample, picture in gather(sheets):  # each rank has drawn its own
                self.log.picture(f"val/{own}{sample}", step, picture)
        metrics = mean_metrics(found)
        prec = {f"Prec@{x}": value for x, value in metrics["prec"].items()}
        values, several = {key: metrics[key] for key in SCORES} | prec, len(found) > 1
        for name, own in found.items():
            more = own.get("generalised", {})
            told = {key: own[key] for key in SCORES} if several else {}
            told |= {key: more[key] for key in ("N-acc", "T-acc") if more.get(key) is not None}
            values |= {f"{name} {key}" if several else key: value for key, value in told.items()}
        self.log.record("val", step, values)
        return metrics

    def _judge(self, split: PreparedSplit, folder: Path | None = None, **how) -> tuple[dict, list]:
        """Metrics, and (name, image) of those samples drawn that this process judged; `folder` gets files of them."""
        settings, sheets = self.options.validation, []

        def show(prediction) -> None:
            sheets.append((prediction.score.name, np.asarray(sheet(prediction))))
            if folder:
                folder.mkdir(parents=True, exist_ok=True)
                write_prediction(folder, prediction)

        how |= {"num_workers": self.options.data.num_workers, "on_sample": show, "shown": spread(len(split), PICTURES)}
        scores = evaluate(self.model, split, settings, self.ranks, **how)
        return summarise(scores, split.dataset, split.is_generalised), sheets

    def _state(self) -> Checkpoint:
        """The whole state, to continue from."""
        options, known = self.options.compared(), self.log.position()
        return self._checkpoint(training={"trainer": self.trainer.state(), "options": options, "log_bytes": known})

    def _checkpoint(self, **more) -> Checkpoint:
        weights, words = self.model.state_dict(), self.vocabulary.words
        return Checkpoint(weights, self.model.config, words, self.data, self.trainer.step, **more)

    def _load(self, file: Path) -> int:
        """Continue from a whole state. Returns the bytes of log.jsonl that it knows. Raises InputError."""
        state = read_checkpoint(file)
        training = state.training or {}
        options, position = training.get("options"), training.get("log_bytes")
        if not isinstance(options, dict) or type(position) is not int or position < 0:
            raise InputError(f"{file}: holds no training state to --resume: {OTHER}")
        options = {"val_limit": 0, **options}  # version 1.0 judged the whole split
        validation = self.options.validation
        if validation.val_limit is None:  # a run keeps to what it began with
            self.options.validation = replace(validation, val_limit=options["val_limit"])
        self.check_same(file, state, options)
        try:
            self._judged()  # an error if the file's --val_limit is no number
            check_weights(self.model.config, state.weights)
            if not all(weight.isfinite().all() for weight in state.weights.values()):
                raise ValueError("weights are not finite")
            self.trainer.restore(training["trainer"])
        except (AttributeError, IndexError, InputError, KeyError, RuntimeError, TypeError, ValueError) as error:
            fault = one_line(f"{type(error).__name__}: {error}", 120)
            raise InputError(f"{file}: cannot be continued ({fault}): {OTHER}") from None
        self.model.load_state_dict(state.weights)
        if self.options.run.keep is None:  # a run that was to keep more, as of version 1.0, loses none of them
            self.spared = [file for step, file in self._numbered() if step <= state.step][:-KEEP]
        return position

    def check_same(self, file: Path, state: Checkpoint, options: dict) -> None:
        """Raise OtherRun if the saved run had another model, other data, or, unless allowed, other flags."""
        defaults = {name: flag.default for _, name, flag in FLAGS}
        for name, now in self.options.compared().items():
            then = options.get(name, defaults[name])  # an older version may lack the flag
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


def check_ranks(options: Options, data: dict, samples: int) -> None:
    """Raise InputError unless all processes have the same flags and data: they would average gradients unlike."""
    flags = {f"--{name}": value for name, value in options.compared().items()}
    first, *others = gather([{**flags, **data, "number of samples": samples}])
    for rank, other in enumerate(others, 1):
        for name in first:
            if other.get(name) != first[name]:
                fault = f"process {rank} has another {name} than process 0"
                raise InputError(f"{fault}: start all with one command, and give each machine the same data")


def mean_metrics(found: dict[str, dict]) -> dict:
    """What `summarise` returns of one split; of several the means of theirs, and "by_dataset" with each."""
    if len(found) == 1:
        return next(iter(found.values()))
    prec = {x: fmean(own["prec"][x] for own in found.values()) for x in PRECISIONS}
    return {key: fmean(own[key] for own in found.values()) for key in SCORES} | {"prec": prec, "by_dataset": found}


def data_of(
    options: DataOptions, split: TrainingSet, valsets: dict[str, PreparedSplit], vocabulary: Vocabulary
) -> dict:
    """What a run is trained and validated on, as plain values."""
    several = len(valsets) > 1
    splits = [(name, own) for part in (split.splits, valsets) for name, own in part.items() if own.meta]
    return {
        "dataset": ", ".join(split.datasets),
        "set": options.set,
        "valset": options.valset,
        "image_size": list(options.input_size),
        "vocabulary_sha256": vocabulary.sha256,
        "splits": {f"{name} " * several + own.split: own.meta["splits"][own.split] for name, own in splits},
        **({"left_out": split.left_out} if several else {}),
    }
