"""Runs of train_restr.py on the device: losses, equal bits, what is left after a signal, a kill and an error."""

import signal
from collections.abc import Iterator
from pathlib import Path
from shutil import copytree
from statistics import fmean

import torch

from benchmarks.checks.common import Check, Row, at_most, holds, relative
from benchmarks.checks.processes import Training, train_all
from eval.evaluator import EvalSettings, evaluate
from eval.metrics import SampleScore, overall_iou
from eval.visualise import spread
from models import load_restr
from models.checkpoint import read_checkpoint
from utils.device import Ranks
from utils.prepared import PreparedSplit

PRECISIONS = {  # flags of a run and how near its first loss is to that of float32
    "tf32": (["--tf32"], 1e-3),
    "bf16": (["--amp"], 2e-2),
    "fp16": (["--amp", "--amp_dtype", "fp16"], 2e-2),
    "grad_checkpoint": (["--grad_checkpoint"], 1e-5),
    "accum": (["--accum", 4], 1e-5),
}


def short_runs(check: Check) -> Iterator[Row]:
    """Forty steps in each precision: the first loss is that of float32, and the loss falls."""
    ways = {"cpu": ["--device", "cpu", "--num_steps", 1], "float32": []}
    losses = {}
    for name, run in train_all(check, ways | {name: flags for name, (flags, _) in PRECISIONS.items()}):
        losses[name] = found = run.losses()
        if run.end() or not found:
            yield holds(f"{name}: a run ends", False, run.message())
            continue
        first = min(found)  # of fp16 a later step, while it looks for its scale
        against = "cpu" if name == "float32" else "float32"
        expected = losses.get(against, {}).get(first)
        if name != "cpu" and expected is not None:
            near = PRECISIONS.get(name, ([], 1e-5))[1]
            yield at_most(f"{name}: loss of step {first} against {against}", relative(found[first], expected), near)
        if len(found) > 1:
            values, part = [*found.values()], max(1, len(found) // 4)
            start, end = fmean(values[:part]), fmean(values[-part:])
            yield holds(f"{name}: loss falls", end < start, f"{start:.4g} to {end:.4g}")


def equal_bits(check: Check) -> Iterator[Row]:
    """--deterministic twice, and stopped by SIGTERM and resumed: the same state to the last bit."""
    steps = ["--num_steps", check.size(12, 6), "--deterministic", "--amp"]
    runs = {name: Training(check, name, *steps) for name in ("whole", "again", "stopped")}
    stopped = runs["stopped"]
    stopped.wait_for(lambda: 2 in stopped.losses())
    stopped.process.terminate()
    code = stopped.end()
    yield holds("SIGTERM: exit code 75", code == 75, stopped.message())
    done = max(stopped.losses(), default=0)
    yield Row("steps before the signal took effect", done)
    runs["stopped"] = Training(check, "stopped", *steps, "--resume")
    ends = {name: run.end() for name, run in runs.items()}
    for name, code in ends.items():
        if code:
            yield holds(f"{name}: a run ends", False, runs[name].message())
            return
    whole = _state(runs["whole"].folder)
    yield holds("twice: equal bits", _equal(_state(runs["again"].folder), whole))
    yield holds("stopped and resumed: equal bits", _equal(_state(stopped.folder), whole))
    yield holds("stopped and resumed: equal log", runs["stopped"].losses() == runs["whole"].losses())


def _state(folder: Path) -> list:
    """Weights, and everything else that a resumed run needs."""
    state = read_checkpoint(folder / "last.pth")
    return [state.weights, state.training["trainer"]]


def _equal(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(_equal, a, b))
    return a == b


def learning(check: Check) -> Iterator[Row]:
    """300 steps on the shapes, then evaluation in float32, in bf16 and on the CPU."""
    recipe = ["--lr", 2e-4, "--grad_clip", 1, "--drop_path", 0, "--batch_size", 16, "--num_steps", 300]
    run = Training(check, "learning", "--amp", *([] if check.toy else recipe))
    if run.end():
        yield holds("300 steps", False, run.message())
        return
    split = PreparedSplit(check.data, "train")
    split = split.select(sorted(spread(len(split), check.size(120, 12))))
    places = {"float32": (check.device, None), "bf16": (check.device, "bf16"), "CPU": ("cpu", None)}
    scores: dict[str, list[SampleScore]] = {}
    for name, (device, amp) in places.items():
        model = load_restr(run.folder / "best.pth").to(device)
        how = {"num_workers": check.workers, "progress": False}
        scores[name] = evaluate(model, split, EvalSettings(amp=amp), Ranks(torch.device(device)), **how)
        yield _oiou(name, scores[name])
    gap = abs(overall_iou(scores["bf16"]) - overall_iou(scores["float32"]))
    yield at_most("oIoU in bf16, points from float32", gap, 0.1)
    for part in ("intersection", "union"):
        here, cpu = (sum(getattr(score, part) for score in scores[name]) for name in ("float32", "CPU"))
        yield at_most(f"{part}, relative difference from the CPU", abs(here - cpu) / max(1, cpu), 1e-3)


def _oiou(name: str, scores: list[SampleScore]) -> Row:
    value = overall_iou(scores)
    return Row(f"oIoU, {name}, %", value, "20 to 99", 20 <= value <= 99)


def failures(check: Check) -> Iterator[Row]:
    """Out of memory and divergence: one line, exit code 2, and the last good state stays."""
    if check.cuda:
        full = Training(check, "full", "--batch_size", 64, fraction=0.1)
        yield _refused("out of memory", full, "out of memory")
    else:
        yield Row("out of memory: one line", None)
    good = Training(check, "diverged", "--num_steps", 4)
    if good.end():
        yield holds("a run ends", False, good.message())
        return
    wild = ["--resume", "--allow_changes", "--num_steps", 100, "--lr", 1e6, "--max_bad_steps", 3]
    yield _refused("divergence", Training(check, "diverged", *wild), "not finite")
    state = read_checkpoint(good.folder / "last.pth")
    finite = all(weight.isfinite().all() for weight in state.weights.values())
    yield holds("divergence: the last state is that of step 4", state.step == 4 and finite, f"step {state.step}")


def _refused(what: str, run: Training, words: str) -> Row:
    code, message = run.end(), run.message()
    return holds(f"{what}: one line", code == 2 and words in message and "traceback" not in message, message)


def kills(check: Check) -> Iterator[Row]:
    """kill -9 while a state is saved, then --resume; and the same state resumed on the CPU."""
    flags = ["--batch_size", 2, "--num_steps", 6, "--save_every", 2, "--val_limit", 1]
    run = Training(check, "killed", *flags)
    last = run.folder / "last.pth"
    saving = run.wait_for(lambda: last.exists() and any(run.folder.glob(".writing-*")))
    run.kill()
    yield holds("killed while it saved", saving and run.process.exitcode == -signal.SIGKILL, run.message())
    copytree(run.folder, check.work / "on_cpu")
    ends = {
        "on the device": Training(check, "killed", *flags, "--resume"),
        "on the CPU": Training(check, "on_cpu", *flags, "--resume", "--device", "cpu"),
    }
    for name, resumed in ends.items():
        code = resumed.end()
        yield holds(f"resumed {name}", code == 0 and max(resumed.losses(), default=0) == 6, resumed.message())
    a, b = (resumed.losses() for resumed in ends.values())
    gap = max((relative(a[step], b[step]) for step in a.keys() & b.keys()), default=None)
    yield at_most("largest relative difference of a loss", gap, 1e-3)
