"""benchmarks/gpu_check.py at toy size on the CPU: every item ends, and one that fails or hangs costs only itself."""

import json
import runpy
import sys
import time

import pytest
import torch

from benchmarks import gpu_check
from benchmarks.checks import speed
from benchmarks.checks.common import Check, Item, Row, at_least, at_most, holds
from tests.conftest import ROOT

MISSED = {  # at toy size on the CPU: what is timed, and what 6 steps do not learn
    *("8: oIoU, float32", "8: oIoU, bf16", "8: oIoU, CPU", "9: share", "9: kernels"),
    *("10: ours", "10: share", "10: that", "11: loader"),
}


def run(monkeypatch, batches, out, *flags):
    fixed = ["--device", "cpu", "--toy", "--data", str(batches), "--workers", "0", "--together", "1"]
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", *fixed, "--out", str(out), *flags])
    with pytest.raises(SystemExit) as left:
        runpy.run_path(str(ROOT / "benchmarks/gpu_check.py"), run_name="__main__")
    return left.value.code


@pytest.mark.slow
def test_every_item_ends(batches, monkeypatch, capfd, tmp_path):
    assert run(monkeypatch, batches, tmp_path / "toy") == 0
    items = json.loads((tmp_path / "toy.json").read_text())["items"]
    assert [(item["number"], item["state"]) for item in items] == [(number, "done") for number in range(1, 15)]
    rows = {f"{item['number']}: {row['what']}": row["good"] for item in items for row in item["rows"]}
    missed = {what for what, good in rows.items() if good is False}
    assert {what for what in missed if not what.startswith(tuple(MISSED))} == set()
    assert sum(good is True for good in rows.values()) > 40
    text = (tmp_path / "toy.md").read_text()
    assert "these figures mean nothing" in text and text.count("\n## ") == 14
    assert "| 14 | kill -9 while saving" in capfd.readouterr().out


def fails(check):
    yield at_most("before", 1.0, 2)
    raise torch.OutOfMemoryError("too large")


def hangs(check):
    yield at_least("before", float("nan"), 2)
    time.sleep(100)


def works(check):
    yield Row("a", None)
    yield holds("b", True)


def alone(check):
    yield Row("time", str(time.monotonic()))


ITEMS = {1: Item("F", fails, 60), 2: Item("H", hangs, 2), 3: Item("A", alone, 60, alone=True), 4: Item("W", works, 60)}


def carried_out(monkeypatch, tmp_path, seconds):
    monkeypatch.setattr(gpu_check, "ITEMS", ITEMS)
    check, kept = Check("cpu", True, tmp_path, tmp_path, workers=0, together=2), []
    gpu_check.carry_out([1, 2, 3, 4], check, time.monotonic() + seconds, kept.append)
    return kept


def test_an_item_that_fails_or_hangs_costs_only_itself(monkeypatch, tmp_path, capfd):
    kept = carried_out(monkeypatch, tmp_path, 60)
    results = kept[-1]
    states = [results[number]["state"] for number in ITEMS]
    assert states == ["failed (1): torch.OutOfMemoryError: too large", "time limit", "done", "done"]
    assert "in fails" in results[1]["log"] and "log" not in results[3]
    assert results[1]["rows"] == [{"what": "before", "value": 1.0, "asked": "at most 2", "good": True}]
    assert results[2]["rows"] == [{"what": "before", "value": "nan", "asked": "at least 2", "good": False}]
    assert {result[4]["state"] for result in kept[:2]} == {"not begun"}  # it waits for the one that is alone
    text = gpu_check.markdown(results, toy=False)
    assert "| 2 | H | time limit | 0 | 1 |" in text and "| a | not measured |  |  |" in text
    told = gpu_check.short(results).splitlines()
    assert told == [f"1: {states[0]}", "2: time limit", "2: before: nan (asked: at least 2)"]


def test_when_time_is_up_nothing_is_begun(monkeypatch, tmp_path, capfd):
    results = carried_out(monkeypatch, tmp_path, 1)[-1]
    assert [results[number]["state"] for number in ITEMS][1:] == ["time limit", "not begun", "not begun"]


def test_data_that_are_not_there(monkeypatch, capfd, tmp_path):
    assert run(monkeypatch, tmp_path, tmp_path / "toy") == 2
    assert "make gpu-data" in capfd.readouterr().err


def test_the_share_of_time_in_which_a_device_works():
    assert speed.busy([(0, 4), (1, 2), (3, 5), (8, 10)]) == 0.7
