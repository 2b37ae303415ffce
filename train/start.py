"""What a run says of itself at its start and at its end, and config.json, which says how it was started."""

import json
import os
import shlex
import shutil
import sys
from pathlib import Path

from train.run import Run
from utils.files.reading import read_json
from utils.files.writing import write_json
from utils.prepared import PreparedSplit, is_train
from utils.provenance import ROOT, facts


def announce(run: Run, split: PreparedSplit, weights: str) -> None:
    """Print what the run will do, and record it in config.json and TensorBoard; `weights`: those it starts from.

    Of a run that was started several times, config.json has the newest start, and below "earlier" the ones before.
    Only the first process does anything.
    """
    if not run.ranks.is_main:
        return
    path, step = run.path / "config.json", run.trainer.step
    parameters = sum(weight.numel() for weight in run.model.parameters() if weight.requires_grad)
    flags = {name: str(value) if isinstance(value, Path) else value for name, value in run.options.values().items()}
    about = {"step": step, "processes": run.ranks.world, "parameters": parameters, "weights": weights, "flags": flags}
    about |= facts(run.ranks.device)
    print(_summary(run, split, about))
    earlier = []
    if path.exists():
        before = read_json(path, "record of a run's starts", "move it away")
        earlier = [*(before.pop("earlier", []) if isinstance(before, dict) else []), before]
    write_json(path, about | ({"earlier": earlier} if earlier else {}))
    run.log.text("config", step, f"```\n{json.dumps(about, indent=1)}\n```")


def _summary(run: Run, split: PreparedSplit, about: dict) -> str:
    options, valset, step = run.options, run.valset, run.trainer.step
    recipe, height, width = options.recipe, *options.data.input_size
    train, val = (f"{len(one):,}" + f" of {one.whole:,}" * (len(one) < one.whole) for one in (split, valset))
    sizes = f"{split.split} {train} expressions, {valset.split} {val}"
    optimiser = "AdamW" if recipe.adamW else "SGD"
    several = f"{about['processes']} processes on " * (about["processes"] > 1)
    precision = f", {run.trainer.amp or 'tf32'}" * bool(run.trainer.amp or options.machine.tf32)
    lines = {
        "run": f"{run.path}, {f'goes on after step {step:,}' if step else 'from the start'}",
        "data": f"{split.folder}: {sizes}, {height} x {width} pixels, {len(run.vocabulary):,} words",
        "model": f"{about['parameters']:,} trainable parameters",
        "weights": about["weights"],
        "training": f"{recipe.num_steps:,} steps of {recipe.batch_size} samples, {optimiser}, learning rate "
        f"{recipe.lr:g}, validation every {options.run.save_every:,} steps",
        "device": f"{several}{about['device']}{precision}",
    }
    return "\n".join(f"{name:9} {text}" for name, text in lines.items())


def conclude(run: Run) -> None:
    """Print the result of a finished run, and the command that evaluates its best checkpoint.

    On the first split that is built and that the run has not used, else on the validation split.
    """
    if not run.ranks.is_main:
        return
    valset, validation, data = run.valset, run.options.validation, run.options.data
    built = valset.meta["splits"] if valset.meta else {}
    unseen = [name for name, entry in built.items() if entry["complete"] and not is_train(name)]
    name = next((name for name in sorted(unseen) if name not in (data.set, data.valset)), data.valset)
    python = "python" if shutil.which("python") == sys.executable else sys.executable
    words = [python, os.path.relpath(ROOT / "eval" / "evaluate.py"), "--data_dir", data.data_dir]
    words += ["--checkpoint", run.path / "best.pth", "--set", name]
    words += ["--eval_pad", validation.pad] * (validation.pad != "grey")
    words += ["--eval_antialias"] * validation.antialias
    words += ["--amp", "--amp_dtype", validation.amp] if validation.amp else []
    best = f"{run.path}: {run.trainer.step:,} steps, best {data.valset} oIoU {run.trainer.best:.2f}"
    print(f"{best}; to evaluate it:\n{shlex.join(map(str, words))}")
