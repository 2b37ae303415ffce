"""eval/tables.py on made-up metrics.json files: every number in its cell, and nothing where there is none."""

import csv
import io
import json
import re
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from eval import tables
from eval.metrics import SampleScore, summarise
from eval.results import choose, find_files, read_result
from tests.conftest import ROOT
from utils.errors import InputError

SETTINGS = {
    "threshold": 1e-9, "pad": "grey", "antialias": False, "batch_size": 8, "amp": None, "image_size": [480, 480],
}  # fmt: skip
FULL = {
    "Gref_umd val": 4896,
    "unc val": 10834,
    "unc testA": 5657,
    "unc+ val": 10758,
    "Gref val": 9536,
    "referit test": 60105,
}


def write(
    weights: Path, run: str, dataset: str, split: str, oiou: float, step: int = 400000, folder: str = "", **changes
) -> Path:
    """A metrics.json with the public split's number of expressions, where `evaluate.py` would write it."""
    scores = [SampleScore(i, f"a_{i}", i, 9, 1 + i, "red", "i") for i in range(8)]
    metrics = summarise(scores, dataset) | {"oIoU": oiou, "n_samples": FULL.get(f"{dataset} {split}", 8)}
    record = {
        "dataset": dataset,
        "split": split,
        "checkpoint": {"file": f"weights/{run}/best.pth", "sha256": "0", "step": step},
        "settings": SETTINGS | changes.pop("settings", {}),
        "date": "2024-05-01T00:00:00+00:00",
        "code": 40 * "b",
    }
    path = weights / run / (folder or f"eval_{dataset}_{split}_{step}") / "metrics.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(metrics | record | changes))
    return path


def shown(capsys, *arguments) -> str:
    tables.main([str(argument) for argument in arguments])
    return capsys.readouterr().out


def cells(markdown: str, number: int) -> list[dict[str, str]]:
    """Rows of the table of that number, by the head; every row must be as long as the head."""
    blocks = [block for block in re.split(r"\n\n", markdown) if block.startswith("| ")]
    rows = [re.split(r" ?(?<!\\)\| ?", line)[1:-1] for line in blocks[number].strip().splitlines()]
    assert len({len(row) for row in rows}) == 1
    return [dict(zip(rows[0], row, strict=True)) for row in rows[2:]]


def test_table_1_has_the_published_numbers_and_the_difference(tmp_path, capsys):
    write(tmp_path, "unc", "unc", "val", 67.0)
    write(tmp_path, "unc", "unc", "testA", 69.2999)
    write(tmp_path, "both", "unc+", "val", 0.0)
    write(tmp_path, "both", "referit", "test", 71.0)
    write(tmp_path, "both", "Gref_umd", "val", 50.123)
    text = shown(capsys, tmp_path)
    restr, lavt, cgformer, both, unc = cells(text, 0)
    assert list(restr.values()) == [
        "ReSTR (published)", "", "67.22", "69.30", "64.45", "55.78", "60.44", "48.27", r"54.48\*", r"70.18\*", "",
    ]  # fmt: skip
    assert list(lavt.values())[2:] == ["72.73", "75.82", "68.79", "62.14", "68.38", "55.10", "60.50", "", ""]
    assert list(cgformer.values())[2:] == ["74.75", "77.30", "70.64", "64.54", "71.00", "57.14", "62.51", "", ""]
    assert list(unc.values()) == ["unc", "400000", "67.00 (-0.22)", "69.30 (+0.00)", *[""] * 7]
    assert list(both.values()) == ["both", "400000", "", "", "", "0.00 (-55.78)", "", "", "", "71.00 (+0.82)", "50.12"]
    assert list(both)[-1] == "RefCOCOg (umd) val"
    assert r"\* as cited, not verified" in text.partition("\n")[0]
    assert "†" not in text


def test_miou_precision_and_lengths(tmp_path, capsys):
    write(tmp_path, "a", "unc", "val", 40.0)
    text = shown(capsys, tmp_path)
    (row,) = cells(text, 1)
    assert text.count("mIoU (%)") == 2 and row["RefCOCO val"] == "38.89"  # mean of 0..7 ninths
    (row,) = cells(text, 2)
    # of 0/9 .. 7/9: from 5/9 on, 6/9 on, 7/9 on, none
    assert list(row.values()) == ["a", "RefCOCO val", "400000", "10834", "37.50", "25.00", "12.50", "0.00", "0.00", ""]
    assert list(row)[-1] == "Acc@0.5"  # which files of version 1.0 lack
    (row,) = cells(text, 3)
    assert list(row) == ["method", "split", "step", "1-2", "3", "4-5", "6-20", "all"]
    assert list(row.values()) == ["a", "val", "400000", "5.56", "22.22", "38.89", "66.67", "40.00"]
    metrics = {"1-2": {"n": 0, "oIoU": None, "mIoU": None}, ">20": {"n": 8, "oIoU": 0.0, "mIoU": 1.0}}
    checkpoint = {"file": "weights/a/unc_25000.pth", "step": 0}  # as the authors' code has it: in the name
    write(tmp_path / "other", "a", "unc", "val", 0.0, by_length=metrics, checkpoint=checkpoint, **{"Acc@0.5": 41.236})
    assert cells(shown(capsys, tmp_path / "other"), 2)[0]["Acc@0.5"] == "41.24"
    csv_lines = shown(capsys, tmp_path / "other", "--format", "csv").splitlines()
    assert [line for line in csv_lines if "Acc@0.5" in line] == ["Acc@0.5,a,unc,val,,25000,10834,41.2360,,"]
    (row,) = cells(shown(capsys, tmp_path / "other"), 3)
    assert (row["1-2"], row["3"], row[r"\>20"], row["step"]) == ("", "", "0.00", "25000")


def test_csv_holds_the_same_numbers(tmp_path, capsys):
    write(tmp_path, "a, b", "unc", "val", 67.01234)
    lines = list(csv.DictReader(io.StringIO(shown(capsys, tmp_path, "--format", "csv"))))
    assert sum("published" in line["method"] for line in lines) == 8 + 7 + 7
    cited = [(line["dataset"], line["value"]) for line in lines if "as cited, not verified" in line["method"]]
    assert cited == [("Gref", "54.48"), ("referit", "70.18")]
    ours = [line for line in lines if line["method"] == "a, b"]
    assert ",".join(ours[0].values()) == "oIoU,a, b,unc,val,,400000,10834,67.0123,67.22,-0.21"
    assert [line["metric"] for line in ours[:7]] == ["oIoU", "mIoU", *(f"Prec@0.{x}" for x in range(5, 10))]
    assert len(ours) == 7 + 2 * 4


def test_rows_are_whole_and_names_escaped(tmp_path, capsys):
    write(tmp_path, "a_b&50%{x}$\\", "unc", "val", 67.0)
    text = shown(capsys, tmp_path, "--format", "latex")
    assert r"a\_b\&50\%\{x\}\$\textbackslash{}" in text
    assert "67.00 ($-$0.22)" in text
    for body in re.findall(r"\\toprule\n(.*?)\\bottomrule", text, re.DOTALL):
        rows = [line for line in body.splitlines() if line != r"\midrule"]
        assert all(line.endswith(r" \\") for line in rows)
        assert len({len(re.findall(r"(?<!\\)&", line)) for line in rows}) == 1
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 5
    write(tmp_path / "other", "a|b*<i>", "unc", "val", 67.0)
    assert cells(shown(capsys, tmp_path / "other"), 0)[-1]["method"] == r"a\|b\*\<i\>"


def test_the_latest_step_counts_or_the_best(tmp_path, capsys):
    for step, oiou in ((5000, 10.0), (10000, 60.0), (100000, 50.0)):
        write(tmp_path, "a", "unc", "val", oiou, step)
    write(tmp_path, "a", "unc", "testA", 55.0, 10000)
    row = cells(shown(capsys, tmp_path), 0)[-1]
    assert list(row.values())[1:4] == ["10000, 100000", "50.00 (-17.22)", "55.00 (-14.30)"]
    text = shown(capsys, tmp_path, "--best")
    assert list(cells(text, 0)[-1].values())[1:3] == ["10000", "60.00 (-7.22)"]
    assert "highest oIoU" in text.partition("\n")[0]


def test_another_protocol_has_its_own_row_and_a_control_none(tmp_path, capsys):
    write(tmp_path, "a", "unc", "val", 67.0)
    write(tmp_path, "a", "unc", "val", 66.0, folder="eval_1", settings={"pad": "black", "amp": "bf16", "batch_size": 2})
    write(tmp_path, "a", "unc", "val", 65.0, folder="eval_2", settings={"threshold": 0.5, "antialias": True})
    write(tmp_path, "a", "unc", "val", 64.0, folder="eval_3", settings={"{0.x}": "{1}"})
    write(tmp_path, "a", "unc", "val", 99.0, folder="eval_4", control={"rotated": 1, "oIoU_unrotated": 3.0})
    tables.main([str(tmp_path)])
    output = capsys.readouterr()
    assert {row["method"]: row["RefCOCO val"] for row in cells(output.out, 0)[3:]} == {
        "a": "67.00 (-0.22)",
        "a, amp bf16, black padding": "66.00 (-1.22)",
        "a, anti-aliased, threshold 0.5": "65.00 (-2.22)",
        r"a, \{0.x\} \{1\}": "64.00 (-3.22)",
    }
    assert "left out: 1 control" in output.err and "99.00" not in output.out


def seeded(weights: Path, run: str, seed: int, oiou: float, split: str = "val", config=None, **changes) -> Path:
    """A metrics.json as `write` makes it, in the folder of a run whose config.json has these flags."""
    path = write(weights, run, "unc", split, oiou, folder=f"eval_{split}_{len(changes)}", **changes)
    flags = {"lr": 1, "seed": seed, "exp_name": run} | (config or {})
    (weights / run / "config.json").write_text(json.dumps({"flags": flags}))
    return path


def test_means_over_seeds(tmp_path, capsys):
    values = {1: 60.0, 2: 67.5, 10: 64.2}
    for seed, oiou in values.items():
        seeded(tmp_path, f"unc_seed{seed}", seed, oiou, config={"no_check": seed > 1})
        seeded(tmp_path, f"unc_seed{seed}", seed, oiou - 1, settings={"pad": "black"})
    seeded(tmp_path, "unc_seed1", 1, 10.0, "testA")
    seeded(tmp_path, "unc_seed2", 2, 11.0, "testA")
    seeded(tmp_path, "unc_seed2", 2, 30.0, "testB")
    seeded(tmp_path, "unc_seed4", 4, 1.0, config={"lr": 2})
    write(tmp_path, "old", "unc", "val", 50.0)  # of a run without config.json
    text = shown(capsys, tmp_path, "--over_seeds")
    mean, deviation = sum(values.values()) / 3, statistics.stdev(values.values())
    assert deviation == pytest.approx((sum((x - mean) ** 2 for x in values.values()) / 2) ** 0.5)
    rows = {
        row["method"]: [row[f"RefCOCO {split}"] for split in ("val", "testA", "testB")] for row in cells(text, 0)[3:]
    }
    assert rows == {
        "old": ["50.00 (-17.22)", "", ""],
        "unc, seeds 1 2 10": [f"{mean:.2f} ± {deviation:.2f} ({mean - 67.22:+.2f})", "", ""],
        "unc, seeds 1 2": ["", "10.50 ± 0.71 (-58.80)", ""],
        "unc, seed 2": ["", "", "30.00†"],
        "unc, seed 4": ["1.00 (-66.22)", "", ""],
        "unc, seeds 1 2 10, black padding": [f"{mean - 1:.2f} ± {deviation:.2f} ({mean - 68.22:+.2f})", "", ""],
    }
    assert "± standard deviation over seeds" in text and "±" not in shown(capsys, tmp_path)
    assert r"\textpm{}" in shown(capsys, tmp_path, "--over_seeds", "--format", "latex")
    lines = list(csv.DictReader(io.StringIO(shown(capsys, tmp_path, "--over_seeds", "--format", "csv"))))
    found = {line["method"]: line for line in reversed(lines) if line["metric"] == "oIoU" and not line["tokens"]}
    line = found["unc, seeds 1 2 10"]
    assert [line[x] for x in ("value", "deviation", "runs")] == [f"{mean:.4f}", f"{deviation:.4f}", "3"]
    assert [found["unc, seed 4"][x] for x in ("value", "deviation", "runs")] == ["1.0000", "", "1"]


def test_what_is_no_mean_over_seeds(tmp_path):
    first = seeded(tmp_path, "a", 1, 1.0)
    twice = seeded(tmp_path, "b", 1, 2.0)
    others = seeded(tmp_path, "c", 2, 2.0, n_samples=3)
    with pytest.raises(InputError, match="a and b are runs of one seed, 1"):
        tables.main([str(first), str(twice), "--over_seeds"])
    with pytest.raises(InputError, match="a and c were evaluated on other expressions"):
        tables.main([str(first), str(others), "--over_seeds"])
    (tmp_path / "a/config.json").write_text('{"flags": {"lr": 1}}')
    with pytest.raises(InputError, match="config.json"):
        tables.main([str(first), "--over_seeds"])


def test_names_of_two_settings_with_one_beginning(tmp_path, capsys):
    for run, seed, rate in (("x_a", 1, 1), ("x_b", 2, 1), ("x_c", 1, 2), ("x_d", 2, 2), ("p", 1, 3), ("q", 2, 3)):
        seeded(tmp_path, run, seed, 1.0 + rate, config={"lr": rate})
    rows = {row["method"]: row["RefCOCO val"] for row in cells(shown(capsys, tmp_path, "--over_seeds"), 0)[3:]}
    assert {name: value.split()[0] for name, value in rows.items()} == {
        "p + q, seeds 1 2": "4.00",
        "x, seeds 1 2": "2.00",
        "x, seeds 1 2 (x_c + x_d)".replace("_", r"\_"): "3.00",
    }


def test_other_expressions_than_the_public_split_are_not_compared(tmp_path, capsys):
    write(tmp_path, "shapes", "unc", "val", 90.0, n_samples=500)
    text = shown(capsys, tmp_path)
    assert cells(text, 0)[-1]["RefCOCO val"] == "90.00†"
    assert text.count("RefCOCO val†") == 1  # of Prec@X
    assert text.count("† other expressions") == 5  # each table
    assert r"90.00\dag{}" in shown(capsys, tmp_path, "--format", "latex")
    lines = csv.DictReader(io.StringIO(shown(capsys, tmp_path, "--format", "csv")))
    ours = next(line for line in lines if line["method"] == "shapes")
    assert (ours["metric"], ours["published"], ours["difference"]) == ("oIoU", "", "")


def test_runs_are_told_apart_by_folder_and_joined_across_output_folders(tmp_path):
    first = write(tmp_path / "x", "run", "unc", "val", 1.0)
    second = write(tmp_path / "y", "run", "unc", "val", 2.0)
    assert list(choose(map(read_result, [first, second]), False)) == [f"{tmp_path}/{d}/run" for d in "xy"]
    checkpoint = {"file": str(tmp_path / "x/run/best.pth"), "step": 400000}
    elsewhere = write(tmp_path / "z", "any", "unc", "testA", 3.0, folder="results", checkpoint=checkpoint)
    (row,) = choose(map(read_result, [first, elsewhere]), False).values()
    assert sorted(row) == [("unc", "testA"), ("unc", "val")]
    (tmp_path / "README.md").touch()  # what a shell's * also names
    assert find_files([tmp_path / "x", tmp_path / "README.md", first, tmp_path / "x/run"]) == [first]  # once
    many = [write(tmp_path / "n", f"run{i}", "unc", "val", 1.0) for i in (10, 9, 1)]
    assert list(choose(map(read_result, many), False)) == ["run1", "run9", "run10"]


BROKEN = {
    "cut": '{"oIoU": 1',
    "a list": "[]",
    "a number": "3",
    "nothing in it": "{}",
    "too large": {"oIoU": 100.1},
    "a string": {"mIoU": "67"},
    "a truth value": {"oIoU": True},
    "no precisions": {"prec": {"0.5": 1.0}},
    "a range": {"by_length": {"1-2 | x": {"n": 1, "oIoU": 1.0, "mIoU": 1.0}}},
    "a row": {"by_length": {"1-2": {"n": 1, "oIoU": None, "mIoU": 1.0}}},
    "a count": {"n_samples": -1},
    "boxes": {"Acc@0.5": 100.5},
    "a step": {"checkpoint": {"file": "a.pth", "step": "x"}},
    "no file": {"checkpoint": {"file": None, "step": 1}},
    "a name": {"dataset": "a\nb"},
    "settings": {"settings": []},
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_file_is_one_line(tmp_path, content):
    path = write(tmp_path, "a", "unc", "val", 1.0)
    good = json.loads(path.read_text())
    path.write_text(content if isinstance(content, str) else json.dumps(good | content))
    with pytest.raises(InputError, match="metrics.json") as error:
        read_result(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_out_writes_the_three_from_anywhere_and_errors_are_one_line(tmp_path, capsys):
    write(tmp_path / "weights", "a", "unc", "val", 67.0)
    command = [sys.executable, str(ROOT / "eval/tables.py"), "weights", "--out", "new/results"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    files = [tmp_path / "new/results" / name for name in ("tables.md", "tables.tex", "tables.csv")]
    for file, name in zip(files, ("markdown", "latex", "csv"), strict=True):
        assert file.read_text() == shown(capsys, tmp_path / "weights", "--format", name)
    assert sorted(files[0].parent.iterdir()) == sorted(files)
    with pytest.raises(InputError, match="no such file or folder"):
        tables.main([str(tmp_path / "none")])
    with pytest.raises(InputError, match=r"no metrics\.json"):
        tables.main([str(tmp_path / "new")])
