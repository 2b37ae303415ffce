"""What a run says of itself at its start and at its end, and config.json, which says how it was started."""

import json
import os
import shlex
import shutil
import sys
from pathlib import Path

from train.folders import TrainingSet
from train.run import Run
from utils.files.reading import read_json
from utils.files.writing import write_json
from utils.prepared import PreparedSplit
from utils.provenance import ROOT, facts


def announce(run: Run, split: TrainingSet, weights: str) -> None:
    """Print what the run will do, and record it in config.json and TensorBoard; `weights`: those it starts from.

    Of a run that was started several times, config.json has the newest start, and below "earlier" the ones before.
    Only the first process does anything.
    """
    if not run.ranks.is_main:
        return
    path, step = run.path / "config.json", run.trainer.step
    parameters = sum(weight.numel() for weight in run.model.parameters() if weight.requires_grad)
    flags = {name: str(value) if isinstance(value, Path) else value for name, value in run.options.values().items()}
    folders = [str(folder) for folder in run.options.data.data_dir]
    flags["data_dir"] = folders if len(folders) > 1 else folders[0]
    about = {"step": step, "processes": run.ranks.world, "parameters": parameters, "weights": weights, "flags": flags}
    if len(folders) > 1:
        about |= {"left_out": split.left_out, "not_looked_at": split.not_looked_at()}
    about |= facts(run.ranks.device)
    print(_summary(run, split, about))
    earlier = []
    if path.exists():
        before = read_json(path, "record of a run's starts", "move it away")
        earlier = [*(before.pop("earlier", []) if isinstance(before, dict) else []), before]
    write_json(path, about | ({"earlier": earlier} if earlier else {}))
    run.log.text("config", step, f"```\n{json.dumps(about, indent=1)}\n```")


def _summary(run: Run, split: TrainingSet, about: dict) -> str:
    options, step = run.options, run.trainer.step
    recipe, height, width = options.recipe, *options.data.input_size
    optimiser = "AdamW" if recipe.adamW else "SGD"
    several = f"{about['processes']} processes on " * (about["processes"] > 1)
    precision = f", {run.trainer.amp or 'tf32'}" * bool(run.trainer.amp or options.machine.tf32)
    form = f"{height} x {width} pixels, {len(run.vocabulary):,} {'words' if options.model.own_words else 'tokens'}"
    lines = {
        "run": f"{run.path}, {f'goes on after step {step:,}' if step else 'from the start'}",
        "data": _data(run, split, form, about.get("not_looked_at")),
        "model": f"{about['parameters']:,} trainable parameters",
        "weights": about["weights"],
        "training": f"{recipe.num_steps:,} steps of {recipe.batch_size} samples, {optimiser}, learning rate "
        f"{recipe.lr:g}, validation every {options.run.save_every:,} steps",
        "device": f"{several}{about['device']}{precision}",
    }
    return "\n".join(f"{name:9} {text}" for name, text in lines.items())


def _data(run: Run, split: TrainingSet, form: str, not_looked_at: list[str] | None) -> str:
    """Of one folder a line; of several one for each, then what they have together."""
    lines = []
    for number, (name, own) in enumerate(split.splits.items()):
        train, val = (
            f"{len(one):,}" + f" of {one.whole:,}" * (len(one) < one.whole) for one in (own, run.valsets[name])
        )
        called = f" ({name})" * (name != own.dataset)
        share = f"share {run.options.data.mix[number]}, " if run.options.data.mix else ""
        line = f"{own.folder}{called}: {share}{own.split} {train} expressions, {run.options.data.valset} {val}"
        if name in split.left_out:
            line += f", left out for {split.left_out[name]['images']:,} images of evaluation splits"
        lines.append(line)
    if len(lines) == 1:
        return f"{lines[0]}, {form}"
    lines.append(f"together {len(split):,} expressions, {form}")
    if split.left_out and not_looked_at:
        lines.append(f"not built, so not looked at: the images of {', '.join(not_looked_at)}")
    return f"\n{'':10}".join(lines)


def conclude(run: Run) -> None:
    """Print the result of a finished run, and the command for each data set that evaluates its best checkpoint."""
    if not run.ranks.is_main:
        return
    mean = f" (mean of {', '.join(run.valsets)})" * (len(run.valsets) > 1)
    best = f"{run.path}: {run.trainer.step:,} steps, best {run.options.data.valset} oIoU{mean} {run.trainer.best:.2f}"
    commands = [shlex.join(map(str, _evaluation(run, valset))) for valset in run.valsets.values()]
    print("\n".join([f"{best}; to evaluate it:", *commands]))


def _evaluation(run: Run, valset: PreparedSplit) -> list:
    """On the first split that is built and that the run has not used, else on the validation split."""
    validation, data = run.options.validation, run.options.data
    unseen = [name for name in valset.evaluation_splits() if name not in (data.set, data.valset)] if valset.meta else []
    python = "python" if shutil.which("python") == sys.executable else sys.executable
    words = [python, os.path.relpath(ROOT / "eval" / "evaluate.py"), "--data_dir", valset.folder]
    words += ["--checkpoint", run.path / "best.pth", "--set", next(iter(unseen), data.valset)]
    words += ["--eval_pad", validation.pad] * (validation.pad != "grey")
    words += ["--eval_antialias"] * validation.antialias
    return words + (["--amp", "--amp_dtype", validation.amp] if validation.amp else [])
