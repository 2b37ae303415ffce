"""eval/metrics.py against slow plain forms."""

import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from eval.metrics import RunningIoU, SampleScore, format_table, summarise
from utils.errors import InputError


def score(intersection: int, union: int, length: int = 3, index: int = 0, box_iou=None) -> SampleScore:
    return SampleScore(
        index, f"unc_val_{index}", intersection, union, length, "red circle", "COCO_train2014_1", box_iou=box_iou
    )


def random_scores(seed: int, count: int = 400) -> list[SampleScore]:
    rng = np.random.default_rng(seed)
    unions = rng.integers(0, 12, count)  # small, so that empty and exact ratios are frequent
    return [score(int(rng.integers(0, u + 1)), int(u), int(rng.integers(0, 30)), i) for i, u in enumerate(unions)]


def slow_metrics(scores: list[SampleScore]) -> tuple[Fraction, Fraction, dict]:
    """oIoU, mIoU and Prec@X in exact fractions."""
    ratios = [Fraction(s.intersection, s.union) if s.union else Fraction(1) for s in scores]
    overall = Fraction(sum(s.intersection for s in scores), sum(s.union for s in scores))
    prec = {
        x: Fraction(sum(r >= Fraction(x) for r in ratios), len(scores)) for x in ("0.5", "0.6", "0.7", "0.8", "0.9")
    }
    return overall, sum(ratios) / len(scores), prec


@pytest.mark.parametrize("seed", range(5))
def test_metrics_equal_exact_fractions(seed):
    scores = random_scores(seed)
    result = summarise(scores, "unc")
    overall, mean, prec = slow_metrics(scores)
    assert list(result) == ["oIoU", "mIoU", "prec", "n_samples", "by_length"]
    assert result["oIoU"] == pytest.approx(float(100 * overall), abs=1e-12)
    assert result["mIoU"] == pytest.approx(float(100 * mean), abs=1e-11)
    assert result["prec"] == pytest.approx({x: float(100 * value) for x, value in prec.items()}, abs=1e-12)
    assert list(result["prec"]) == ["0.5", "0.6", "0.7", "0.8", "0.9"]
    assert result["n_samples"] == len(scores)


def test_the_order_of_samples_changes_no_digit():
    scores = random_scores(7)
    assert summarise(scores[::-1], "referit") == summarise(scores, "referit")


@pytest.mark.parametrize("tenths", range(5, 10))
@pytest.mark.parametrize("union", [10, 70, 1_000_000, 30_000_000_000_000_010])
def test_a_ratio_of_exactly_x_counts_and_one_pixel_less_does_not(tenths, union):
    exact = tenths * union // 10  # beyond 2**53 floats could not tell the two apart
    assert summarise([score(exact, union)], "unc")["prec"][f"0.{tenths}"] == 100
    assert summarise([score(exact - 1, union)], "unc")["prec"][f"0.{tenths}"] == 0


def test_nothing_to_find_and_nothing_found():
    result = summarise([score(0, 0), score(1, 4)], "unc")
    assert result["oIoU"] == 25.0  # 0/0 adds nothing
    assert result["mIoU"] == 62.5  # (1 + 1/4) / 2
    assert set(result["prec"].values()) == {50.0}
    assert summarise([score(0, 0)], "unc")["oIoU"] == 100.0
    running = RunningIoU()
    running.add([score(0, 0)])
    assert str(running) == "oIoU 100.00, mIoU 100.00"
    assert summarise([score(0, 5)], "unc")["oIoU"] == 0.0  # a prediction where there is nothing is an error


@pytest.mark.parametrize(
    ("dataset", "labels"),
    [
        ("unc", ["1-2", "3", "4-5", "6-20"]),
        ("unc+", ["1-2", "3", "4-5", "6-20"]),
        ("Gref", ["1-5", "6-7", "8-10", "11-20"]),
        ("Gref_umd", ["1-5", "6-7", "8-10", "11-20"]),
        ("referit", ["1", "2", "3-4", "5-20"]),
        ("my_photos", ["1-5", "6-7", "8-10", "11-20"]),
    ],
)
def test_rows_by_length(dataset, labels):
    scores = [score(length, 40, length, length) for length in range(1, 21)]
    rows = summarise(scores, dataset)["by_length"]
    assert list(rows) == labels
    for label, row in rows.items():
        first, _, last = label.partition("-")
        lengths = range(int(first), int(last or first) + 1)
        assert row["n"] == len(lengths)
        assert row["oIoU"] == pytest.approx(100 * sum(lengths) / (40 * len(lengths)))
        assert row["mIoU"] == pytest.approx(100 * sum(n / 40 for n in lengths) / len(lengths))


def test_lengths_outside_the_buckets_have_their_own_rows():
    rows = summarise([score(1, 2, length) for length in (0, 3, 20, 21, 500)], "unc")["by_length"]
    assert {label: row["n"] for label, row in rows.items()} == {"1-2": 0, "3": 1, "4-5": 0, "6-20": 1, "0": 1, ">20": 2}
    assert rows["1-2"] == {"n": 0, "oIoU": None, "mIoU": None}


def test_the_progress_bar_ends_at_the_result():
    scores, running = random_scores(3), RunningIoU()
    for start in range(0, len(scores), 7):
        running.add(scores[start : start + 7])
        so_far = summarise(scores[: start + 7], "unc")
        assert str(running) == f"oIoU {so_far['oIoU']:.2f}, mIoU {so_far['mIoU']:.2f}"


def test_box_accuracy():
    ious = (0.0, 0.5, math.nextafter(0.5, 0), 1.0, 0.3, 0.7, 0.9, 0.2)
    scores = [score(1, 2, index=i, box_iou=iou) for i, iou in enumerate(ious)]
    result = summarise(scores, "unc")
    assert result.pop("Acc@0.5") == 100 * 4 / 8
    before = summarise([replace(one, box_iou=None) for one in scores], "unc")
    assert before == result  # the metrics of version 1.0, for scores of version 1.0
    assert summarise([*scores, score(1, 2)], "unc").get("Acc@0.5") is None


def test_no_samples_is_an_error():
    with pytest.raises(InputError, match="no expression was evaluated"):
        summarise([], "unc")


def test_the_table_shows_every_number():
    result = summarise([score(62, 100, 2, box_iou=0.4), score(0, 0, 4, box_iou=1.0)], "unc")
    text = format_table({"unc val 500": result})
    head, line = text.splitlines()[:2]
    assert len(head) == len(line)
    assert head.split() == ["samples", "oIoU", "mIoU", *(f"Prec@0.{x}" for x in range(5, 10)), "Acc@0.5"]
    values = ["2", "62.00", "81.00", "100.00", "100.00", "50.00", "50.00", "50.00", "50.00"]
    assert line.split() == ["unc", "val", "500", *values]
    del result["Acc@0.5"]
    assert format_table({"a": result}).splitlines()[1].split()[-1] == "-"
    assert [row.split()[:2] for row in text.splitlines()[4:]] == [["1-2", "1"], ["3", "0"], ["4-5", "1"], ["6-20", "0"]]
    assert "number of tokens" not in format_table({"a": result, "b": result})
