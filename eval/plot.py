"""Draw the curves of runs, from log.jsonl to a PNG: loss, learning rate, gradient norm, validation oIoU, mIoU, Prec@X.

    python eval/plot.py weights/unc                              # weights/unc/curves.png
    python eval/plot.py weights/a weights/b --out both.png       # one colour a run

A run may go on meanwhile: what it is writing is left out.
"""

import itertools
import json
import logging
import math
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from eval.metrics import PRECISION_TENTHS
from utils.cli import ArgumentParser, run_main
from utils.errors import InputError, one_line
from utils.files.reading import MEBIBYTE, read_bytes
from utils.files.writing import atomic_write

COLOURS = ("#1f5fbf", "#d9541e", "#2e8b57", "#8e44ad", "#b8860b", "#c2185b", "#00838f", "#5d4037")
GREY, INK = "#8a8f98", "#22262e"
LOSSES = {"loss": "-", "pixel": "--", "patch": ":"}
PRECISIONS = tuple(f"Prec@{tenths / 10:.1f}" for tenths in PRECISION_TENTHS)
MAX_LOG_BYTES = 256 * MEBIBYTE
LARGEST = 1e30  # drawn; false of NaN and infinity, too, and far from where matplotlib's sums overflow
MANY = 150  # points of a training curve from which a running mean is drawn over it
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": "#c3c8d0",
    "axes.labelcolor": INK,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e8ebf0",
    "xtick.color": "#5a606b",
    "ytick.color": "#5a606b",
    "legend.frameon": False,
}


@dataclass(frozen=True)
class Run:
    """A log: `curves` maps "train" and "val" to name -> (steps, values), equally long lists."""

    name: str
    curves: dict[str, dict[str, tuple[list[int], list[float]]]]

    def curve(self, kind: str, name: str) -> tuple[list[int], list[float]]:
        """Steps and values; two empty lists for what was not logged."""
        return self.curves[kind].get(name, ([], []))


def parser() -> ArgumentParser:
    """The command line."""
    result = ArgumentParser(prog="plot.py", description=__doc__)
    result.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="weights/EXP, or a log.jsonl")
    result.add_argument("--out", type=Path, help="PNG to write (default: curves.png in the first run's folder)")
    return result


def main(arguments: list[str] | None = None) -> None:
    """Read the logs, draw, write, say where."""
    options = parser().parse_args(arguments)
    if len(options.runs) > len(COLOURS):
        raise InputError(f"{len(options.runs)} runs: one picture shows at most {len(COLOURS)}")
    files = [path / "log.jsonl" if path.is_dir() else path for path in options.runs]
    out = options.out or files[0].parent / "curves.png"
    runs = [read_log(file) for file in files]
    out.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings(), atomic_write(out) as file:
        warnings.simplefilter("ignore")  # a name's character that the font lacks; a log scale without a point
        draw(runs).savefig(file, format="png", dpi=150)
    print(out)


def read_log(path: Path) -> Run:
    """The curves in a log.jsonl. A last line that was cut is left out; what is not finite is not drawn.

    Raises InputError for a missing or broken file, and for one that logs nothing yet.
    """
    data = read_bytes(path, MAX_LOG_BYTES, "log.jsonl", "give the folder of a run, weights/EXP")
    curves = {"train": {}, "val": {}}
    for number, line in enumerate(data.split(b"\n")[:-1], 1):
        try:
            kind, step, numbers = _entry(json.loads(line))
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            fault = one_line(f"{type(error).__name__}: {error}", 80)
            raise InputError(f"{path}: line {number} is not one of a log.jsonl ({fault}): mend or remove it") from None
        for name, value in numbers.items() if kind in curves else ():
            steps, values = curves[kind].setdefault(name, ([], []))
            steps.append(step)
            values.append(value)
    if not any(curves.values()):
        raise InputError(f"{path}: nothing is logged yet: wait for --log_every steps")
    return Run(path.resolve().parent.name, curves)


def _entry(entry: dict) -> tuple[str, int, dict[str, float]]:
    """Kind, step and drawable numbers of a line."""
    step = entry["step"]
    if type(step) is not int or not 0 <= step < 10**12:
        raise ValueError(f"step {step!r}")
    numbers = {name: float(value) for name, value in entry.items() if type(value) in (int, float)}
    del numbers["step"]
    return str(entry["kind"]), step, {name: value for name, value in numbers.items() if abs(value) < LARGEST}


def draw(runs: list[Run]):
    """A matplotlib Figure of six panels, one colour a run."""
    import matplotlib  # an occasional script's package: none but this file needs it

    matplotlib.use("Agg")
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # says no more than that a cache folder is not writable
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(13, 7.2), facecolor="white", layout="constrained")
        figure.get_layout_engine().set(rect=(0.005, 0.005, 0.99, 0.93), w_pad=0.1, h_pad=0.1)
        panels = figure.subplots(2, 3)
        _header(figure, runs)
        _losses(panels[0, 0], runs)
        _rate(panels[0, 1], runs)
        _gradient(panels[0, 2], runs)
        _validation(panels[1, 0], runs, "oIoU")
        _validation(panels[1, 1], runs, "mIoU")
        _precisions(panels[1, 2], runs)
        for panel in panels.flat:
            _finish(panel)
    return figure


def _header(figure, runs: list[Run]) -> None:
    """The runs' names in their colours. They stand as they are: nothing in them is mathematics."""
    from matplotlib.offsetbox import AnchoredOffsetbox, HPacker, TextArea

    style = {"fontsize": 12, "fontweight": "bold", "parse_math": False}
    limit = max(10, 100 // len(runs))
    names = [
        TextArea(one_line(run.name, limit), textprops={**style, "color": colour})
        for run, colour in zip(runs, COLOURS, strict=False)
    ]
    row = HPacker(children=names, pad=0, sep=24)
    place = {"bbox_to_anchor": (0.012, 0.985), "bbox_transform": figure.transFigure}
    figure.add_artist(AnchoredOffsetbox("upper left", child=row, pad=0, borderpad=0, frameon=False, **place))


def _losses(panel, runs: list[Run]) -> None:
    panel.set_title("Training loss")
    for run, colour in zip(runs, COLOURS, strict=False):
        for name, dashes in LOSSES.items():
            steps, values = run.curve("train", name)
            if values:
                label = name if run is runs[0] else None
                _noisy(panel, steps, values, colour, raw=name == "loss", linestyle=dashes, label=label)
    if panel.get_legend_handles_labels()[0]:
        for line in panel.legend(loc="upper right").get_lines():
            line.set_color(GREY)


def _rate(panel, runs: list[Run]) -> None:
    panel.set_title("Learning rate")
    for run, colour in zip(runs, COLOURS, strict=False):
        if run.curve("train", "lr")[1]:
            panel.plot(*run.curve("train", "lr"), color=colour, linewidth=1.5)
    panel.yaxis.set_major_formatter(lambda value, _: f"{value:.3g}")


def _gradient(panel, runs: list[Run]) -> None:
    panel.set_title("Gradient norm (log)")
    panel.set_yscale("log", nonpositive="mask")
    for run, colour in zip(runs, COLOURS, strict=False):
        steps, values = run.curve("train", "grad_norm")
        if values:
            _noisy(panel, steps, values, colour)
    panel.yaxis.set_major_formatter(lambda value, _: f"{value:.3g}")
    panel.yaxis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "25" else "")


def _noisy(panel, steps: list[int], values: list[float], colour: str, raw: bool = True, **options) -> None:
    """A curve; one of many points as its running mean, over the points themselves if `raw`."""
    if len(values) >= MANY:
        if raw:
            panel.plot(steps, values, color=colour, alpha=0.22, linewidth=0.8)
        values = running_mean(values, len(values) // 50)
    panel.plot(steps, values, color=colour, linewidth=1.5, **options)


def running_mean(values: list[float], half: int) -> list[float]:
    """Mean of each value and its neighbours, `half` on each side; fewer where the curve begins and ends."""
    sums = [0.0, *itertools.accumulate(values)]
    ranges = ((max(0, i - half), min(len(values), i + half + 1)) for i in range(len(values)))
    return [(sums[end] - sums[start]) / (end - start) for start, end in ranges]


def _validation(panel, runs: list[Run], name: str) -> None:
    panel.set_title(f"Validation {name} (%)")
    row = sum(bool(run.curve("val", name)[1]) for run in runs)
    for run, colour in zip(runs, COLOURS, strict=False):
        steps, values = run.curve("val", name)
        if not values:
            continue
        panel.plot(steps, values, color=colour, marker="o", markersize=2.5, linewidth=1.5)
        best = max(range(len(values)), key=values.__getitem__)
        panel.plot(steps[best], values[best], "o", color=colour, markersize=8, markerfacecolor="white", zorder=3)
        row -= 1
        text, place = f"best {values[best]:.2f} at {_step(steps[best])}", (0.98, 0.04 + 0.075 * row)
        panel.text(*place, text, color=colour, ha="right", transform=panel.transAxes, fontweight="bold")
    if panel.lines:
        panel.set_ylim(0, max(1.0, 1.03 * panel.get_ylim()[1]))


def _precisions(panel, runs: list[Run]) -> None:
    panel.set_title("Validation Prec@X (%)")
    for run, colour in zip(runs, COLOURS, strict=False):
        for i, (steps, values) in _curves(run):
            panel.plot(steps, values, color=colour, alpha=1 - 0.17 * i, linewidth=1.5)
    panel.set_ylim(0, max(1.0, panel.get_ylim()[1]))
    _name_ends(panel, runs[0])


def _name_ends(panel, run: Run) -> None:
    """@0.5 ... @0.9 beside the last points of a run's curves, apart enough to be read."""
    ends = sorted((values[-1], i, steps[-1]) for i, (steps, values) in _curves(run))
    place, gap = -math.inf, 0.055 * panel.get_ylim()[1]
    for value, i, step in ends:
        place = max(value, place + gap)
        label = {"xytext": (5, 0), "textcoords": "offset points", "va": "center", "fontsize": 8}
        panel.annotate(PRECISIONS[i].removeprefix("Prec"), (step, place), color=COLOURS[0], **label)
    panel.set_ylim(0, max(panel.get_ylim()[1], place + gap / 2))


def _curves(run: Run) -> Iterator[tuple[int, tuple[list[int], list[float]]]]:
    return ((i, run.curve("val", name)) for i, name in enumerate(PRECISIONS) if run.curve("val", name)[1])


def _finish(panel) -> None:
    """Steps below, and a word where there is nothing to see."""
    panel.set_xlabel("step")
    panel.xaxis.set_major_formatter(lambda step, _: _step(step))
    if panel.lines:
        panel.set_xlim(left=0)
    else:
        panel.text(0.5, 0.5, "nothing logged yet", color=GREY, ha="center", va="center", transform=panel.transAxes)
        panel.set(xticks=[], yticks=[])


def _step(step: float) -> str:
    return f"{step / 1000:g}k" if abs(step) >= 1000 else f"{step:g}"


if __name__ == "__main__":
    run_main(main)
