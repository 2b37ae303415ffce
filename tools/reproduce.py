#!/usr/bin/env python
"""Everything for one public data set: check, build, train, evaluate, tables; with one seed or several.

    python tools/reproduce.py unc
    python tools/reproduce.py refcocog --seeds 1 2 3 --num_gpus 8 --train_flags="--adamW --amp"

Each command is shown as you would type it. It can be stopped (exit code 75) and started again at any point with the
same settings: what is complete is skipped, and training continues from its last checkpoint. If settings that change a
result differ from before, it stops and names them; choose another --exp_name for a second run.

With --seeds each seed has a run of its own, EXP_seed1 and so on, and the tables show mean and standard deviation (of
the sample, divisor n - 1). The last line is a row for docs/MODELS.md.
"""

import json
import re
import shlex
import signal
import statistics
import subprocess
import sys
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)  # from wherever this is run

from eval.loaders import STOP_SIGNALS
from eval.results import choose, over_seeds, read_result
from eval.tables import is_other, percent
from models.checkpoint import file_sha256
from prepare.folder import folder_path
from train.process import EXIT_RESUME
from utils.cli import EXIT_USER_ERROR, ArgumentParser, run_main
from utils.datasets import ALIASES, DATASETS, NAMES, short_name, title
from utils.errors import InputError
from utils.files.reading import read_json, refusing
from utils.options import add_options, option, read_options, size

# Flags of evaluate.py that this script gives itself, or that change no number.
NOT_DECIDING = "data_dir set checkpoint output_dir restore_refseg iters num_workers batch_size device seed".split()
MODELS_HEAD = "Data set | Splits (oIoU, mean ± std) | Seeds | GPU | Hours | Commit | Date"


@dataclass
class Settings:
    """What is run, and where."""

    seeds: int | None = option(
        None, "seeds, each with a run of its own (default: one run, with the seed of --train_flags)",
        nargs="+", limits=(0, 2**63 - 1),
    )  # fmt: skip
    root: Path = option(ROOT, "folder that holds data/ and external/ (default: the repository)")
    weights: Path | None = option(None, "folder of checkpoints and results (default: ROOT/weights)")
    exp_name: str | None = option(None, "name of the run's folder in it (default: restr_DATASET)", metavar="EXP")
    img_size: tuple = option((480, 480), "side of the images, or HEIGHT,WIDTH", type=size, metavar="SIZE")
    num_gpus: int = option(1, "processes that train and evaluate, by torchrun if more than 1", limits=(1, 1024))
    glove: Path | None = option(None, "glove.6B.300d.txt, to make word embeddings of if they are missing")
    build_flags: str = option(
        "", "more flags for build_batches.py (default: none)", metavar="'FLAGS'", type=shlex.split
    )
    train_flags: str = option(
        "--adamW", "flags for train_restr.py; the = is needed, as above", metavar="'FLAGS'", type=shlex.split
    )
    eval_flags: str = option("", "more flags for eval/evaluate.py (default: none)", metavar="'FLAGS'", type=shlex.split)
    checkpoint: str | None = option(
        None, "file of the run to evaluate (default: best.pth; last.pth without a validation split)", metavar="FILE"
    )
    ignore_check: bool = option(False, "go on although tools/check_data.py found faults")


class Commands:
    """Runs commands one after the other. A signal that stops a run reaches the one that is running, once."""

    def __init__(self):
        self.running, self.stopped = None, False
        for number in STOP_SIGNALS:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # as nohup has it
                signal.signal(number, self._pass_on)

    def _pass_on(self, number: int, frame) -> None:
        self.stopped = True
        if self.running:
            self.running.send_signal(number)

    def try_run(self, *words) -> int:
        """Show a command as one would type it, and run it; returns its exit code. After a signal the program ends."""
        words = [sys.executable, *map(str, words)]
        print(f"\n$ {shlex.join(words)}", flush=True)
        if self.stopped:
            sys.exit(EXIT_RESUME)
        # In a group of its own: of a terminal's Ctrl+C it would get two, and train_restr.py ends at once at the second.
        self.running = subprocess.Popen(words, process_group=0)
        code = self.running.wait()
        self.running = None
        if self.stopped:  # torchrun's code is 1, also where its processes have saved and ended with EXIT_RESUME
            sys.exit(code if code == EXIT_USER_ERROR else EXIT_RESUME)
        return code if code >= 0 else 128 - code

    def run(self, *words) -> None:
        """The same; the program ends with the command's exit code unless that is 0."""
        if code := self.try_run(*words):
            sys.exit(code)


class Plan(NamedTuple):
    """What the settings mean for one data set; `runs` are folders of checkpoints by seed."""

    dataset: str
    folder: Path
    train: str
    evaluated: tuple[str, ...]
    checkpoint: str
    runs: dict[int | None, Path]

    def results(self, run: Path, split: str) -> Path:
        """The folder of a split's metrics.json."""
        return run / f"eval_{self.dataset}_{split}_{Path(self.checkpoint).stem}"


def main(arguments: list[str] | None = None) -> None:
    """Do what is not yet done; print tables and row."""
    parser = ArgumentParser(underscores=True, prog="reproduce.py", description=__doc__)
    names = [*DATASETS, *ALIASES]
    parser.add_argument("dataset", choices=names, metavar="DATASET", help=f"data set: {NAMES}")
    add_options(parser.add_argument_group("settings"), Settings)
    args = parser.parse_args(arguments)
    settings = read_options(Settings, args)
    plan, commands = planned(settings, short_name(args.dataset)), Commands()
    prepare(settings, plan, commands)
    for run in plan.runs.values():
        check_evaluations(settings, plan, run)
    for seed, run in plan.runs.items():
        train_and_evaluate(settings, plan, commands, seed, run)
    seeds = ["--over_seeds"] if settings.seeds else []
    commands.run(ROOT / "eval/tables.py", *plan.runs.values(), *seeds)
    print(f"\nFor docs/MODELS.md ({MODELS_HEAD}):")
    print(row_of_models(plan))


def planned(settings: Settings, dataset: str) -> Plan:
    """Splits, folders and names. Raises InputError for settings that cannot be."""
    train, *evaluated = DATASETS[dataset].splits
    name = settings.exp_name or f"restr_{dataset}"
    if Path(name).name != name or name.startswith("."):
        raise InputError(f"--exp_name {name}: is the name of a folder in --weights, without /")
    seeds = settings.seeds or [None]
    if len({*seeds}) < len(seeds):
        raise InputError("--seeds: a seed is given twice; leave one out")
    if settings.seeds and any(word.partition("=")[0] == "--seed" for word in settings.train_flags):
        raise InputError("--seeds and a --seed in --train_flags contradict each other: leave one out")
    weights = settings.weights or settings.root / "weights"
    runs = {seed: weights / (name if seed is None else f"{name}_seed{seed}") for seed in seeds}
    best = "last.pth" if evaluated[0] == "test" else "best.pth"  # the best on the test split would flatter
    folder = folder_path(settings.root, dataset, settings.img_size)
    return Plan(dataset, folder, train, tuple(evaluated), settings.checkpoint or best, runs)


def prepare(settings: Settings, plan: Plan, commands: Commands) -> None:
    """Vocabulary, embeddings and prepared data, if they are missing. Ends the program if the check finds faults."""
    unbuilt = [split for split in (plan.train, *plan.evaluated) if not is_built(plan.folder, split)]
    dataset, name, root = DATASETS[plan.dataset], ["-d", plan.dataset], ["--root", settings.root]
    glove = ["--glove", settings.glove] if settings.glove else []
    if unbuilt and not dataset.vocabulary_path(settings.root).exists():
        print("No vocabulary was found: one is made of the training expressions. Published checkpoints need their own.")
        commands.run(ROOT / "build_vocab.py", *name, *root, *glove)
    elif glove and not dataset.embeddings_path(settings.root).exists():
        commands.run(ROOT / "build_vocab.py", *name, *root, *glove)
    if unbuilt and (code := commands.try_run(ROOT / "tools/check_data.py", *name, *root)):
        if not settings.ignore_check:
            print("reproduce.py: error: fix what is marked FAULT, or pass --ignore_check", file=sys.stderr)
            sys.exit(code)
        print("--ignore_check: continuing with the data as they are")
    sides = ",".join(map(str, settings.img_size))
    for split in unbuilt:
        how = ["-t", split, "--img-size", sides, *root, *settings.build_flags]
        commands.run(ROOT / "build_batches.py", *name, *how)


def is_built(folder: Path, split: str) -> bool:
    """Whether meta.json calls a split complete; build_batches.py says what is wrong with any other."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        return json.loads((folder / "meta.json").read_text())["splits"][split]["complete"] is True
    return False


def train_and_evaluate(settings: Settings, plan: Plan, commands: Commands, seed: int | None, run: Path) -> None:
    """Train one run and evaluate its splits, as far as that is not done."""
    several = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", settings.num_gpus]
    several += ["--signals_to_handle", ",".join(["SIGQUIT", *(number.name for number in STOP_SIGNALS)])]
    launcher = several if settings.num_gpus > 1 else []
    data = ["--data_dir", plan.folder]
    unevaluated = [split for split in plan.evaluated if not is_evaluated(plan, run, split)]
    if unevaluated or (run / "last.pth").is_file():  # of a finished run train_restr.py compares flags, and ends at once
        how = [
            "--set",
            plan.train,
            "--valset",
            plan.evaluated[0],
            "--input_size",
            ",".join(map(str, settings.img_size)),
        ]
        where = ["--weights_dir", run.parent, "--exp_name", run.name, "--resume"]
        flags = [*settings.train_flags, *([] if seed is None else ["--seed", seed])]
        commands.run(*launcher, ROOT / "train_restr.py", *data, *how, *where, *flags)
    for split in unevaluated:
        what = ["--set", split, "--checkpoint", run / plan.checkpoint, "--output_dir", plan.results(run, split)]
        commands.run(*launcher, ROOT / "eval/evaluate.py", *data, *what, *settings.eval_flags)


def is_evaluated(plan: Plan, run: Path, split: str) -> bool:
    """With the checkpoint that is there now, or that was there when it was evaluated."""
    checkpoint = run / plan.checkpoint
    with suppress(OSError, ValueError, KeyError, TypeError):
        then = json.loads((plan.results(run, split) / "metrics.json").read_text())["checkpoint"]["sha256"]
        return not checkpoint.exists() or file_sha256(checkpoint) == then
    return False


def check_evaluations(settings: Settings, plan: Plan, run: Path) -> None:
    """Raise InputError if a split was evaluated with other flags that change the numbers."""
    for split in plan.evaluated:
        folder = plan.results(run, split)
        if (file := folder / "metrics.json").is_file():
            values = read_json(file, remedy=f"remove {folder}")
            with refusing(file, "metrics.json of eval/evaluate.py", f"remove {folder}"):
                then = deciding(shlex.split(values.get("command", ""))[1:])
            if then != deciding(settings.eval_flags):
                shown = shlex.join(then) or "none"
                raise InputError(f"{folder}: evaluated with --eval_flags {shown}: pass the same, or remove the folder")


def deciding(words: list[str]) -> list[str]:
    """Of the flags of evaluate.py those that change numbers, with their values, in a fixed order."""
    kept, skip = [], False
    for word in words:
        if word.startswith("-"):
            skip = word.lstrip("-").partition("=")[0].replace("-", "_") in NOT_DECIDING
        if not skip:
            kept.append(word)
    return sorted(kept)


def row_of_models(plan: Plan) -> str:
    """The row of docs/MODELS.md; hours are those of training, the mean over the runs."""
    files = [plan.results(run, split) / "metrics.json" for run in plan.runs.values() for split in plan.evaluated]
    results = [result for file in files if (result := read_result(file))]
    row, *others = over_seeds(choose(results, best=False)).values()
    if others:
        return "no row: the runs differ in more than their seeds (config.json)"
    if silent := [run.name for run in plan.runs.values() if not (run / "config.json").is_file()]:
        return f"no row: {silent[0]} has no config.json, which says seed and device"
    scores = [f"{of[1]} {percent(row[of].metrics['oIoU'])}{'†' * is_other(row[of])}" for of in row]
    starts = [start for run in plan.runs.values() for start in starts_of(run)]
    seeds, gpus = (start["flags"]["seed"] for start in starts), (about(start) for start in starts)
    commits = [record["code"] for record in [*starts, *(result.metrics for result in results)]]
    hours = statistics.fmean(map(hours_of, plan.runs.values()))
    cells = [title(plan.dataset), ", ".join([*scores, *results[0].marks]), joined(seeds, " "), joined(gpus)]
    cells += [f"{hours:.2g}", joined(re.sub(r"^([0-9a-f]{12})[0-9a-f]{28}", r"\1", code) for code in commits)]
    return f"| {' | '.join([*cells, max(result.metrics['date'] for result in results)[:10]])} |"


def starts_of(run: Path) -> list[dict]:
    """The records in config.json of the starts that trained; not those that found the run finished."""
    newest = read_json(run / "config.json")
    starts = [*newest.get("earlier", []), newest]
    return [start for start in starts if start["step"] < start["flags"]["num_steps"]] or starts


def about(start: dict) -> str:
    """ "8 x NVIDIA H100"."""
    return f"{start['processes']} x " * (start["processes"] > 1) + start["device"]


def hours_of(run: Path) -> float:
    """How long a run has trained: each start has a file of TensorBoard, named by the second in which it began."""
    files = run.glob("events.out.tfevents.*")
    return sum(file.stat().st_mtime - int(file.name.split(".")[3]) for file in files) / 3600


def joined(values: Iterable, comma: str = ", ") -> str:
    """The different ones among them."""
    return comma.join(map(str, dict.fromkeys(values)))


if __name__ == "__main__":
    run_main(main)
