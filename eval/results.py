"""The metrics.json files that eval/evaluate.py wrote: found, checked, the one that counts chosen, means over seeds."""

import json
import os
import re
import statistics
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from eval.evaluator import EvalSettings
from eval.metrics import BOX_ACCURACY, GENERALISED, PRECISIONS
from utils.errors import InputError, one_line
from utils.files.reading import MEBIBYTE, read_json, refusing

NOT_PROTOCOL = ("batch_size", "image_size")  # the first changes no number, the second belongs to the model
MAX_COUNT = 10**12
COUNTS = ("n", "n_samples", "n_no_target")
# Flags of a run that runs of one setting may differ in: where they are, how fast, and what they write beside.
FREE = "seed exp_name weights_dir resume allow_changes no_check keep wandb is_vis num_workers device local_rank".split()
_REMEDY = "write it again with eval/evaluate.py, or leave it out"


class Result(NamedTuple):
    """One metrics.json: folder of the run, `marks` for settings that are not the default, and all that it holds."""

    folder: Path
    marks: tuple[str, ...]
    of: tuple[str, str]  # data set and split
    step: int
    metrics: dict


class Mean(float):
    """A mean over runs, with the standard deviation of the sample (divisor n - 1) and the number of runs `n`."""

    def __new__(cls, values: list[float]):
        mean = super().__new__(cls, statistics.fmean(values))
        mean.deviation, mean.n = statistics.stdev(values) if len(values) > 1 else None, len(values)
        return mean


def find_files(paths: Iterable[Path]) -> list[Path]:
    """The JSON files among `paths`, and each metrics.json below the folders among them. Raises InputError for none."""
    found: dict[Path, Path] = {}
    for path in paths:
        if not path.exists():
            raise InputError(f"{path}: no such file or folder")
        files = sorted(path.rglob("metrics.json")) if path.is_dir() else [path]
        found |= {file.resolve(): file for file in files if file.suffix == ".json"}
    if not found:
        raise InputError("no metrics.json in these paths: eval/evaluate.py writes it")
    return list(found.values())


def read_result(path: Path) -> Result | None:
    """The result in a metrics.json; None for a control. Raises InputError for anything else."""
    values = read_json(path, "metrics.json", _REMEDY, limit=MEBIBYTE)
    with refusing(path, "metrics.json of eval/evaluate.py", _REMEDY):
        if "control" in values:
            return None
        _check(values)
        checkpoint, folder = Path(values["checkpoint"]["file"]), path.resolve().parent
        named = re.search(r"_(\d{1,12})$", checkpoint.stem)  # the authors' files do not hold it: unc_25000
        step = values["checkpoint"]["step"] or (int(named[1]) if named else 0)
        inside = folder.name.startswith("eval_") or not checkpoint.parent.name  # else --output_dir was given
        run = folder.parent if inside else checkpoint.parent.resolve()
        return Result(run, _marks(values["settings"]), (values["dataset"], values["split"]), step, values)


def _check(values: dict) -> None:
    """Raise ValueError, KeyError or TypeError for what the tables could not show."""
    names = (values["dataset"], values["split"])
    counts = [values["n_samples"], values["checkpoint"]["step"] or 0]
    percents = [values["oIoU"], values["mIoU"], *(values["prec"][x] for x in PRECISIONS)]
    percents += [values[BOX_ACCURACY]] if BOX_ACCURACY in values else []  # version 1.0 had none
    for label, row in values["by_length"].items():
        if not re.fullmatch(r"\d{1,5}|\d{1,5}-\d{1,5}|>\d{1,5}", label):
            raise ValueError(f"{label!r} is not a range of lengths")
        counts.append(row["n"])
        percents += [row["oIoU"], row["mIoU"]] if row["n"] else []
    if more := values.get("generalised"):
        counts.append(more["n_no_target"])
        percents += [more[name] for name in GENERALISED if more[name] is not None]
    if not all(isinstance(name, str) and name.isprintable() and 0 < len(name) <= 80 for name in names):
        raise ValueError("dataset and split must be short names")
    if not all(type(x) is int and 0 <= x <= MAX_COUNT for x in counts):
        raise ValueError(f"a count is not a whole number in 0..{MAX_COUNT}")
    if not all(type(x) in (int, float) and 0 <= x <= 100 for x in percents):
        raise ValueError("a metric is not a number in 0..100")


def _marks(settings: dict) -> tuple[str, ...]:
    """Settings of the protocol that are not the default, in words."""
    usual, marks = asdict(EvalSettings()), []
    for name, value in sorted(settings.items()):
        if name not in NOT_PROTOCOL and value != usual.get(name):
            shown = one_line(f"{value:g}" if type(value) is float else value, 40)
            special = {"antialias": "anti-aliased", "pad": f"{shown} padding"}
            marks.append(special.get(name, f"{one_line(name, 40)} {shown}"))
    return tuple(marks)


def choose(results: Iterable[Result], best: bool) -> dict[str, dict[tuple[str, str], Result]]:
    """Row -> (data set, split) -> the result of the latest step, or, with `best`, of the highest oIoU.

    A row is a run and its marks; runs of the same name are told apart by their whole path.
    """
    results = list(results)
    folders = defaultdict(set)
    for result in results:
        folders[result.folder.name].add(result.folder)
    rows: dict[str, dict[tuple[str, str], Result]] = defaultdict(dict)
    order = (lambda r: (r.metrics["oIoU"], r.step)) if best else (lambda r: (r.step, str(r.metrics.get("date"))))
    for result in sorted(results, key=order):
        alone = len(folders[result.folder.name]) == 1
        name = one_line(result.folder.name if alone else result.folder, 200)
        rows[", ".join([name, *result.marks])][result.of] = result
    return {run: rows[run] for run in sorted(rows, key=_natural)}


def over_seeds(rows: dict[str, dict[tuple[str, str], Result]]) -> dict[str, dict[tuple[str, str], Result]]:
    """The rows of `choose`, with one row of `Mean`s for the runs that differ in nothing but the seed.

    By the config.json beside their checkpoints; a run without it stays as it is. Raises InputError for runs that are
    the same even in their seed, or that were evaluated on other expressions.
    """
    groups: dict[str, dict[int | None, str]] = defaultdict(dict)
    for name, row in rows.items():
        seed, setting = _setting(next(iter(row.values())))
        same = groups[setting or name]
        if seed in same:
            raise InputError(f"{same[seed]} and {name} are runs of one seed, {seed}: leave one out")
        same[seed] = name
    means: dict[str, dict[tuple[str, str], Result]] = defaultdict(dict)
    owner: dict[str, dict] = {}
    for seeds in groups.values():
        for of in dict.fromkeys(of for name in seeds.values() for of in rows[name]):
            results = {seed: rows[name][of] for seed, name in seeds.items() if of in rows[name]}
            label = _named(results, seeds)
            if owner.setdefault(label, seeds) is not seeds:
                label += f" ({' + '.join(seeds.values())})"
            means[label][of] = _averaged([*results.values()])
    return means


def _setting(result: Result) -> tuple[int | None, str | None]:
    """The seed of a result's run, and all else that decides it; None and None if the run does not say."""
    path = result.folder / "config.json"
    if not path.is_file():
        return None, None
    flags = read_json(path, "record of a run's starts", "move it away")
    with refusing(path, "config.json of train_restr.py", "move it away"):
        flags = dict(flags["flags"])
        others = {name: value for name, value in flags.items() if name not in FREE}
        return int(flags["seed"]), json.dumps([others, result.marks], sort_keys=True)


def _named(results: dict[int | None, Result], names: dict[int | None, str]) -> str:
    """ "unc, seeds 1 2" for {1: "unc_seed1", 2: "unc_seed2"}."""
    if None in results:
        return names[None]
    tail = "".join(f", {mark}" for mark in next(iter(results.values())).marks)
    runs = [name.removesuffix(tail) for name in names.values()]
    common = re.sub(r"[\W_]*(seed[\W_]*\d*)?$", "", os.path.commonprefix(runs)) or " + ".join(runs)
    return f"{common}, seed{'s' * (len(results) > 1)} {' '.join(map(str, sorted(results)))}{tail}"


def _averaged(results: list[Result]) -> Result:
    """One result of several runs on one split."""
    if len({result.metrics["n_samples"] for result in results}) > 1:
        folders = one_line(" and ".join(result.folder.name for result in results), 200)
        raise InputError(f"{folders} were evaluated on other expressions of {' '.join(results[0].of)}: evaluate again")
    step = results[0].step if len({result.step for result in results}) == 1 else 0  # that of best.pth differs
    return results[0]._replace(step=step, metrics=_mean([result.metrics for result in results]))


def _mean(values: list, key: str = ""):
    """Means of the numbers in equal places of dicts; counts and all else as the first has them."""
    if isinstance(values[0], dict):
        keys = [key for key in values[0] if all(key in value for value in values)]
        return {key: _mean([value[key] for value in values], key) for key in keys}
    return Mean(values) if key not in COUNTS and all(type(v) in (int, float) for v in values) else values[0]


def _natural(text: str) -> list[str | int]:
    """Sort key in which run2 comes before run10."""
    return [int(part) if i % 2 else part for i, part in enumerate(re.split(r"(\d+)", text))]
