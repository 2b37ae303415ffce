"""Draw the curves of runs, from log.jsonl to a PNG: loss, each of its terms, learning rate, validation scores.

    python eval/plot.py weights/unc                              # weights/unc/curves.png
    python eval/plot.py weights/a weights/b --out both.png       # one colour a run

A run may still be training: the line that it is writing is left out.
"""

import json
import logging
import math
import re
import sys
import warnings
from itertools import cycle
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from eval.metrics import PRECISIONS
from utils.cli import ArgumentParser, run_main
from utils.errors import InputError, one_line
from utils.files.reading import MEBIBYTE, read_bytes, refusing
from utils.files.writing import atomic_write

COLOURS = ("#1f5fbf", "#d9541e", "#2e8b57", "#8e44ad", "#b8860b", "#c2185b", "#00838f", "#5d4037")
GREY = "#8a8f98"
LOOKS = (("-", "o"), ("--", "s"), (":", "^"), ("-.", "D"), ((0, (1, 3)), "v"))  # of the curves of one panel
NOT_LOSSES = ("lr", "grad_norm")  # of what training logs
OWN_OIOU = re.compile(r"[\w.+#-]+ oIoU")  # of each of several data sets: "Gref oIoU"
SHARES = re.compile(r"([\w.+#-]+ )?[NT]-acc")  # of data with expressions without an object, also "grefcoco N-acc"
COLUMNS = 3  # of panels
MAX_LOSSES = 20
MAX_LOG_BYTES = 256 * MEBIBYTE
MAX_VALUE = 1e30  # drawn: finite, and far from where matplotlib's sums overflow
SMOOTHED = 150  # points of a training curve from which its running mean is drawn
STYLE = {
    "font.size": 9,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e8ebf0",
    "legend.frameon": False,
}


Curve = tuple[list[int], list[float]]  # steps and values, equally long


class Run(NamedTuple):
    """A log: `curves` maps "train" and "val" to name -> steps and values."""

    name: str
    curves: dict[str, dict[str, Curve]]


def main(arguments: list[str] | None = None) -> None:
    """Read the logs, draw, write, say where."""
    parser = ArgumentParser(prog="plot.py", description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="weights/EXP, or a log.jsonl")
    parser.add_argument("--out", type=Path, help="PNG to write (default: curves.png in the first run's folder)")
    options = parser.parse_args(arguments)
    if len(options.runs) > len(COLOURS):
        raise InputError(f"{len(options.runs)} runs: one plot shows at most {len(COLOURS)}")
    files = [path / "log.jsonl" if path.is_dir() else path for path in options.runs]
    out = options.out or files[0].parent / "curves.png"
    runs = [read_log(file) for file in files]
    out.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings(), atomic_write(out) as file:
        warnings.simplefilter("ignore")  # a character of a name that the font lacks
        draw(runs).savefig(file, format="png", dpi=150)
    print(out)


def read_log(path: Path) -> Run:
    """The curves in a log.jsonl. A last line that was cut is left out; what is not finite is not drawn.

    Raises InputError for a missing or broken file, and for one that logs nothing yet.
    """
    data = read_bytes(path, MAX_LOG_BYTES, "log.jsonl", "give the folder of a run, weights/EXP")
    curves: dict[str, dict[str, Curve]] = {"train": {}, "val": {}}
    for number, line in enumerate(data.split(b"\n")[:-1], 1):
        with refusing(f"{path}: line {number}", "line of a log.jsonl", "fix or remove it"):
            entry = json.loads(line)
            kind, step = curves.get(entry["kind"], {}), entry["step"]
            if type(step) is not int or not 0 <= step < 10**12:
                raise ValueError(f"step {step!r}")
            for name, value in entry.items():
                if name != "step" and type(value) in (int, float) and abs(float(value)) < MAX_VALUE:
                    steps, values = kind.setdefault(name, ([], []))
                    steps.append(step)
                    values.append(float(value))
    if not any(curves.values()):
        raise InputError(f"{path}: nothing is logged yet: wait for --log_every steps")
    return Run(path.resolve().parent.name, curves)


def draw(runs: list[Run]):
    """A matplotlib Figure, one colour a run: panels of the loss, its terms, the learning rate and the validations.

    Raises InputError for more than MAX_LOSSES terms.
    """
    import matplotlib  # only this script needs it
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # its warning that a cache folder is not writable
    logged = dict.fromkeys(["loss", *(name for run in runs for name in run.curves["train"])])
    losses = [name for name in logged if name not in NOT_LOSSES]
    if len(losses) > MAX_LOSSES:
        raise InputError(f"{len(losses)} terms of the loss: one plot shows at most {MAX_LOSSES}")
    coloured = list(zip(runs, COLOURS, strict=False))
    with matplotlib.rc_context(STYLE):
        shares = [*dict.fromkeys(name for run in runs for name in run.curves["val"] if SHARES.fullmatch(name))]
        rows = math.ceil((len(losses) + 3 + bool(shares)) / COLUMNS)
        figure = Figure(figsize=(13, 3.6 * rows), facecolor="white", layout="constrained")
        panels = iter(figure.subplots(rows, COLUMNS).flat)
        for name in losses:
            title = "Training loss" if name == "loss" else f"Loss: {one_line(name, 30)}"
            _panel(next(panels), title, coloured, "train", [name])
        _panel(next(panels), "Learning rate", coloured, "train", ["lr"])
        own = dict.fromkeys(name for run in runs for name in run.curves["val"] if OWN_OIOU.fullmatch(name))
        _panel(iou := next(panels), "Validation IoU (%)", coloured, "val", ["oIoU", "mIoU", *[*own][:MAX_LOSSES]])
        _best(iou, coloured, "oIoU")
        _panel(next(panels), "Validation Prec@X (%)", coloured, "val", [f"Prec@{x}" for x in PRECISIONS])
        if shares:
            _panel(next(panels), "Validation N-acc, T-acc (%)", coloured, "val", shares[:MAX_LOSSES])
        for panel in panels:
            panel.remove()
        lines = [Line2D([], [], color=colour, linewidth=3) for _, colour in coloured]
        place = {"loc": "outside upper left", "ncols": len(runs), "labelcolor": "linecolor"}
        legend = figure.legend(lines, ["run"] * len(runs), **place, prop={"size": 12, "weight": "bold"})
        for run, text in zip(runs, legend.get_texts(), strict=True):
            text.set_parse_math(False)  # a name stands as it is
            text.set_text(one_line(run.name, max(10, 100 // len(runs))))
    return figure


def _panel(panel, title: str, runs: list[tuple[Run, str]], kind: str, names: list[str]) -> None:
    """The curves `names` of all runs, told apart by dashes, each with a mark at its last point; a word if empty."""
    panel.set_title(title, parse_math=False)
    named = set()
    for run, colour in runs:
        for name, (dashes, mark) in zip(names, cycle(LOOKS), strict=False):
            if name not in run.curves[kind]:
                continue
            steps, values = run.curves[kind][name]
            if len(values) >= SMOOTHED and kind == "train" and name not in NOT_LOSSES:
                panel.plot(steps, values, color=colour, alpha=0.15, linewidth=0.8)
                window = np.ones(2 * (len(values) // 50) + 1)  # fewer neighbours at both ends
                values = np.convolve(values, window, "same") / np.convolve(np.ones(len(values)), window, "same")
            label = None if name in named else name
            look = {"linestyle": dashes, "marker": mark, "markevery": [-1], "markersize": 5}
            panel.plot(steps, values, color=colour, linewidth=1.5, label=label, **look)
            named.add(name)
    panel.set_xlabel("step")
    panel.xaxis.set_major_formatter(lambda step, _: _step(step))
    panel.yaxis.set_major_formatter(lambda value, _: f"{value:.3g}")
    if not named:
        panel.text(0.5, 0.5, "nothing logged yet", color=GREY, ha="center", va="center", transform=panel.transAxes)
        panel.set(xticks=[], yticks=[])
        return
    panel.set_xlim(left=0)
    if kind == "val":
        panel.set_ylim(0, max(1.0, 1.03 * panel.get_ylim()[1]))
    if len(named) > 1:
        for line in panel.legend(loc="best").get_lines():
            line.set_color(GREY)


def _best(panel, runs: list[tuple[Run, str]], name: str) -> None:
    """A mark at the highest value of each run, and its number and step."""
    drawn = [(run.curves["val"][name], colour) for run, colour in runs if name in run.curves["val"]]
    for row, ((steps, values), colour) in enumerate(reversed(drawn)):
        best, step = max(zip(values, steps, strict=True), key=itemgetter(0))
        panel.plot(step, best, "o", color=colour, markersize=8, markerfacecolor="white", zorder=3)
        text, place = f"best {name} {best:.2f} at {_step(step)}", (0.98, 0.04 + 0.075 * row)
        panel.text(*place, text, color=colour, ha="right", transform=panel.transAxes, fontweight="bold")


def _step(step: float) -> str:
    return f"{step / 1000:g}k" if abs(step) >= 1000 else f"{step:g}"


if __name__ == "__main__":
    run_main(main)
