"""The metrics.json files that eval/evaluate.py wrote: found, checked, and the one that counts for a split chosen."""

import re
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
_REMEDY = "write it again with eval/evaluate.py, or leave it out"


class Result(NamedTuple):
    """One metrics.json: folder of the run, `marks` for settings that are not the default, and all that it holds."""

    folder: Path
    marks: tuple[str, ...]
    of: tuple[str, str]  # data set and split
    step: int
    metrics: dict


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


def _natural(text: str) -> list[str | int]:
    """Sort key in which run2 comes before run10."""
    return [int(part) if i % 2 else part for i, part in enumerate(re.split(r"(\d+)", text))]
