"""Collect metrics.json files into the paper's tables, with the published numbers and our difference to them.

    python eval/tables.py weights/*                     # Markdown on the screen
    python eval/tables.py weights/* --out results       # results/tables.md, tables.tex and tables.csv
    python eval/tables.py weights/* --over_seeds        # one row for runs that differ in nothing but the seed

One row for each run (the folder of its checkpoints) and each setting of the evaluation. Where a run was evaluated on a
split at several steps, the latest one counts. Controls (--expressions) are left out.

With --over_seeds numbers are mean ± standard deviation, that of the sample (divisor n - 1); a single run has no ±. In
CSV, "value" is the mean, and "deviation" and "runs" follow.
"""

import csv
import io
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from eval.metrics import BOX_ACCURACY, GENERALISED, PRECISIONS, length_buckets
from eval.results import Mean, Result, choose, find_files, over_seeds, read_result
from utils.cli import ArgumentParser, run_main
from utils.datasets import is_public, title
from utils.errors import InputError
from utils.files.writing import atomic_write

SPLITS = (  # of the paper's Table 1
    ("unc", "val"), ("unc", "testA"), ("unc", "testB"),
    ("unc+", "val"), ("unc+", "testA"), ("unc+", "testB"),
    ("Gref", "val"), ("referit", "test"),
)  # fmt: skip
OURS = "ReSTR (published)"  # differences are taken to its numbers
PUBLISHED = {  # oIoU in percent, in the order of SPLITS; the first row is the paper's Table 1
    method: dict(zip(SPLITS, numbers, strict=False))
    for method, *numbers in (
        (OURS, 67.22, 69.30, 64.45, 55.78, 60.44, 48.27, 54.48, 70.18),
        ("LAVT, Swin-B + BERT (published)", 72.73, 75.82, 68.79, 62.14, 68.38, 55.10, 60.50),
        ("CGFormer (published)", 74.75, 77.30, 70.64, 64.54, 71.00, 57.14, 62.51),
    )
}
UNVERIFIED = {(OURS, ("Gref", "val")), (OURS, ("referit", "test"))}  # docs/PAPER.md, section 6
UNVERIFIED_NOTE = "as cited, not verified"
KINDS = ("oIoU", "mIoU")
CSV_HEAD = ("metric", "method", "dataset", "split", "tokens", "step", "samples", "value", "published", "difference")
MARKDOWN_SPECIAL = re.compile(r"([\\`*_{}\[\]<>|~#!$&])")
LATEX_WORDS = {"\\": "textbackslash", "~": "textasciitilde", "^": "textasciicircum", "†": "dag"}
LATEX_WORDS |= {"±": "textpm", "<": "textless", ">": "textgreater", "|": "textbar"}
LATEX_SPECIAL = {ord(c): f"\\{word}{{}}" for c, word in LATEX_WORDS.items()} | {ord(c): f"\\{c}" for c in "{}$&#_%"}
Rows = dict[str, dict[tuple[str, str], Result]]  # row -> (data set, split) -> result


class Table(NamedTuple):
    """A table of unescaped text; its first `left` columns hold words, the others numbers."""

    caption: str
    head: list[str]
    rows: list[list[str]]
    left: int = 1


def main(arguments: list[str] | None = None) -> None:
    """Find, read, choose; print one format or write all."""
    parser = ArgumentParser(prog="tables.py", description=__doc__)
    parser.add_argument("paths", type=Path, nargs="+", help="folders, searched for metrics.json, or such files")
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--format", choices=["markdown", "latex", "csv"], default="markdown", help="printed format")
    output.add_argument("--out", type=Path, metavar="DIR", help="folder for all three formats, instead of the screen")
    best = "choice of the step with the highest oIoU on each split; on a test split that flatters"
    parser.add_argument("--best", action="store_true", help=best)
    seeds = "mean and standard deviation of runs that differ in nothing but --seed, by their config.json"
    parser.add_argument("--over_seeds", action="store_true", help=seeds)
    options = parser.parse_args(arguments)
    files = find_files(options.paths)
    results = [result for file in files if (result := read_result(file))]
    if len(results) < len(files):
        print(f"left out: {len(files) - len(results)} controls, which are not results", file=sys.stderr)
    if not results:
        raise InputError("all of them are controls: there is nothing to show")
    rows = choose(results, options.best)
    if options.over_seeds:
        rows = over_seeds(rows)
    tables = tables_of(rows, options.best)
    formats = {"markdown": markdown(tables), "latex": latex(tables), "csv": csv_of(rows, options.over_seeds)}
    if options.out is None:
        print(formats[options.format], end="")
        return
    options.out.mkdir(parents=True, exist_ok=True)
    for suffix, text in zip(("md", "tex", "csv"), formats.values(), strict=True):
        with atomic_write(options.out / f"tables.{suffix}") as file:
            file.write(text.encode())
        print(options.out / f"tables.{suffix}")


def markdown(tables: list[Table]) -> str:
    """The tables as Markdown; special characters are escaped."""
    parts = []
    for table in tables:
        rule = [":--"] * table.left + ["--:"] * (len(table.head) - table.left)
        lines = [map(_in_markdown, table.head), rule, *(map(_in_markdown, row) for row in table.rows)]
        parts.append(f"{_in_markdown(table.caption)}\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines))
    return "\n".join(parts)


def _in_markdown(text: str) -> str:
    return MARKDOWN_SPECIAL.sub(r"\\\1", text)


def latex(tables: list[Table]) -> str:
    """The tables as LaTeX floats for \\input; special characters are escaped. They need booktabs."""
    parts = ["% \\usepackage{booktabs}\n"]
    for table in tables:
        head, *rows = (" & ".join(map(_in_latex, row)) + r" \\" for row in [table.head, *table.rows])
        columns = "l" * table.left + "r" * (len(table.head) - table.left)
        start = rf"\begin{{table*}}\centering\small\caption{{{_in_latex(table.caption)}}}"
        body = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", head, r"\midrule", *rows, r"\bottomrule"]
        parts.append("\n".join([start, *body, r"\end{tabular}", r"\end{table*}"]) + "\n")
    return "\n".join(parts)


def _in_latex(text: str) -> str:
    return re.sub(r"\(-(?=\d)", "($-$", text.translate(LATEX_SPECIAL))  # a minus sign, not a hyphen


def compared(result: Result) -> tuple[str, str]:
    """ReSTR's published number for a result's split and the difference to it; both empty for other expressions."""
    number = PUBLISHED[OURS].get(result.of)
    if number is None or is_other(result):
        return "", ""
    return f"{number:.2f}", f"{round(result.metrics['oIoU'] - number, 2) + 0.0:+.2f}"


def is_other(result: Result) -> bool:
    """Whether a public split was evaluated with another number of expressions than it has."""
    return not is_public(*result.of, result.metrics["n_samples"])


def _noted(caption: str, results: Iterable[Result]) -> str:
    """The caption, with what ± and † mean if one of the results has them."""
    results = list(results)
    caption += "; ± standard deviation over seeds" * any("±" in percent(result.metrics["oIoU"]) for result in results)
    note = "; † other expressions than those of the public split, so not comparable"
    return caption + note * any(map(is_other, results))


def tables_of(rows: Rows, best: bool) -> list[Table]:
    """All tables of the results that `choose` chose; `best` as there."""
    found = {of for row in rows.values() for of in row}
    columns = [*SPLITS, *sorted(found - set(SPLITS))]
    results = [(run, row[of]) for run, row in rows.items() for of in columns if of in row]
    datasets = dict.fromkeys(of[0] for of in columns if of in found)
    return [
        *(_overview(kind, rows, columns, best) for kind in KINDS),
        _precision(results),
        *_generalised(results),
        *(_by_length(kind, results, dataset) for kind in KINDS for dataset in datasets),
    ]


def _overview(kind: str, rows: Rows, columns: list[tuple[str, str]], best: bool) -> Table:
    lines, caption = [], f"{kind} (%)"
    if kind == "oIoU":
        caption = f"oIoU (%), the paper's Table 1; in brackets the difference to {OURS}; * {UNVERIFIED_NOTE}"
        for method, numbers in PUBLISHED.items():
            cells = [percent(numbers.get(of)) + "*" * ((method, of) in UNVERIFIED) for of in columns]
            lines.append([method, "", *cells])
    for run, row in rows.items():
        cells = [_cell(kind, row[of]) if of in row else "" for of in columns]
        lines.append([run, _steps(row.values()), *cells])
    caption = _noted(caption, (result for row in rows.values() for result in row.values()))
    if best:
        caption += "; of several steps the one with the highest oIoU on the split itself"
    return Table(caption, ["method", "step", *map(_shown, columns)], lines)


def _shown(of: tuple[str, str]) -> str:
    """A split by the usual name of its data set: "RefCOCO val"."""
    return f"{title(of[0])} {of[1]}"


def _cell(kind: str, result: Result) -> str:
    difference = compared(result)[1] if kind == "oIoU" else ""
    return percent(result.metrics[kind]) + "†" * is_other(result) + (f" ({difference})" if difference else "")


def percent(value: float | None) -> str:
    """Two decimals; of a `Mean` of several runs also its standard deviation: "67.22 ± 0.15"; empty for None."""
    if isinstance(value, Mean) and value.n > 1:
        return f"{value:.2f} ± {value.deviation:.2f}"
    return "" if value is None else f"{value:.2f}"


def _steps(results: Iterable[Result]) -> str:
    return ", ".join(str(step) for step in sorted({result.step for result in results}) if step)


def _precision(results: list[tuple[str, Result]]) -> Table:
    lines = []
    for run, result in results:
        values = [percent(result.metrics["prec"][x]) for x in PRECISIONS]
        values.append(percent(result.metrics.get(BOX_ACCURACY)))  # none in files of version 1.0
        split = _shown(result.of) + "†" * is_other(result)
        lines.append([run, split, _steps([result]), str(result.metrics["n_samples"]), *values])
    caption = _noted(f"Prec@X, and {BOX_ACCURACY} of the masks' bounding boxes (%)", (result for _, result in results))
    head = ["method", "split", "step", "samples", *(f"@{x}" for x in PRECISIONS), BOX_ACCURACY]
    return Table(caption, head, lines, left=2)


def _generalised(results: list[tuple[str, Result]]) -> Iterator[Table]:
    """Metrics of the splits that have expressions without an object; no table if there are none."""
    lines, shown = [], []
    for run, result in results:
        if more := result.metrics.get("generalised"):
            shown.append(result)
            counts = [result.metrics["n_samples"], more["n_no_target"]]
            numbers = [percent(more[name]) for name in GENERALISED]
            split = _shown(result.of) + "†" * is_other(result)
            lines.append([run, split, _steps([result]), *map(str, counts), *numbers])
    if lines:
        head = ["method", "split", "step", "samples", "no object", *GENERALISED]
        caption = "Expressions of several objects or none (%); Prec@X of those with an object"
        yield Table(_noted(caption, shown), head, lines, left=2)


def _by_length(kind: str, results: list[tuple[str, Result]], dataset: str) -> Table:
    """Columns are the data set's buckets, and of others ("0", ">20") those that hold anything."""
    own = [(run, result, result.metrics["by_length"]) for run, result in results if result.of[0] == dataset]
    buckets = list(length_buckets(dataset))
    used = {label for _, _, table in own for label, row in table.items() if row["n"]}
    labels = [*buckets, *sorted(used - set(buckets))]
    lines = []
    for run, result, table in own:
        cells = [table.get(label, {"n": 0}) for label in labels]
        values = [percent(cell[kind]) if cell["n"] else "" for cell in cells]
        lines.append(
            [run, result.of[1] + "†" * is_other(result), _steps([result]), *values, percent(result.metrics[kind])]
        )
    head = ["method", "split", "step", *labels, "all"]
    caption = _noted(f"{kind} (%) by number of tokens, {title(dataset)}", (result for _, result, _ in own))
    return Table(caption, head, lines, left=2)


def csv_of(rows: Rows, over_seeds: bool) -> str:
    """One line for each number: of the published methods, then of each result."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(CSV_HEAD + ("deviation", "runs") * over_seeds)
    for method, numbers in PUBLISHED.items():
        for of, number in numbers.items():
            note = f" ({UNVERIFIED_NOTE})" if (method, of) in UNVERIFIED else ""
            line = ["oIoU", method + note, *of, "", "", "", f"{number:.2f}", f"{number:.2f}", ""]
            writer.writerow(line + ["", ""] * over_seeds)
    for run, row in rows.items():
        for result in row.values():
            metrics = result.metrics
            values = [(kind, "", metrics["n_samples"], metrics[kind]) for kind in KINDS]
            values += [(f"Prec@{x}", "", metrics["n_samples"], metrics["prec"][x]) for x in PRECISIONS]
            if BOX_ACCURACY in metrics:
                values.append((BOX_ACCURACY, "", metrics["n_samples"], metrics[BOX_ACCURACY]))
            for name, value in (metrics.get("generalised") or {}).items():
                if name in GENERALISED and value is not None:
                    shown = f"{name}, with an object" if name.startswith("Prec") else name
                    values.append((shown, "", metrics["n_samples"], value))
            for label, part in metrics["by_length"].items():
                values += [(kind, label, part["n"], part[kind]) for kind in KINDS if part["n"]]
            for metric, tokens, samples, value in values:
                beside = compared(result) if metric == "oIoU" and not tokens else ("", "")
                line = [metric, run, *result.of, tokens, result.step or "", samples, f"{value:.4f}", *beside]
                if over_seeds:
                    line += ["" if value.deviation is None else f"{value.deviation:.4f}", value.n]
                writer.writerow(line)
    return file.getvalue()


if __name__ == "__main__":
    run_main(main)
