"""Metrics of expressions for several objects or none: a plain form, the evaluator, tables, the report."""

import csv
import io
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from eval.evaluator import EvalSettings, evaluate
from eval.metrics import GENERALISED, SampleScore, format_table, summarise
from eval.report import write as report
from models import load_restr
from tests.eval.test_evaluate import complaint, metrics_in, run
from tests.eval.test_tables import cells, seeded, shown, write
from tests.support.memory_split import COUNT
from tests.support.report_case import data_of, metrics_of, predictions, thumbnails_of, write_result
from utils.prepared import PreparedSplit


def plain(pairs: list[tuple[np.ndarray, np.ndarray]]) -> dict:
    """The metrics from the masks (prediction, ground truth) themselves, by their definitions, in float64."""
    ious, inside, outside, right, found, above = [], 0, 0, [], [], {x: [] for x in (0.7, 0.8, 0.9)}
    for guess, truth in pairs:
        both, either = float((guess & truth).sum()), float((guess | truth).sum())
        inside, outside = inside + both, outside + either
        if truth.any():
            ious.append(both / either)
            found.append(float(guess.any()))
            for x, hits in above.items():
                hits.append(float(both / either >= x))
        else:
            ious.append(float(not guess.any()))
            right.append(float(not guess.any()))
    return {
        "n_no_target": len(right),
        "gIoU": 100 * np.mean(ious),
        "cIoU": 100 * inside / outside,
        "N-acc": 100 * np.mean(right),
        "T-acc": 100 * np.mean(found),
        **{f"Prec@{x}": 100 * np.mean(hits) for x, hits in above.items()},
    }


def scores_of(pairs) -> list[SampleScore]:
    return [
        SampleScore(i, f"g_{i}", int((a & b).sum()), int((a | b).sum()), 2, "red ball", "image", int(b.sum()))
        for i, (a, b) in enumerate(pairs)
    ]


@pytest.mark.parametrize("seed", range(6))
def test_metrics_equal_the_plain_form(seed):
    rng = np.random.default_rng(seed)
    pairs = []
    for _ in range(200):
        truth = rng.random((4, 5)) < rng.choice([0, 0.2, 0.7])
        guess = np.where(rng.random((4, 5)) < rng.choice([0, 0.1, 0.5]), ~truth, truth) & (rng.random() < 0.8)
        pairs.append((guess, truth))
    scores = scores_of(pairs)
    assert [s.predicted for s in scores] == [guess.sum() for guess, _ in pairs]
    whole = summarise(scores, "grefcoco", is_generalised=True)
    assert whole["generalised"] == pytest.approx(plain(pairs), abs=1e-9)
    assert tuple(whole["generalised"]) == ("n_no_target", *GENERALISED)
    assert (whole["generalised"]["gIoU"], whole["generalised"]["cIoU"]) == (whole["mIoU"], whole["oIoU"])
    del whole["generalised"]
    assert json.dumps(summarise(scores, "grefcoco")) == json.dumps(whole)


def test_where_a_kind_of_expression_is_missing():
    nothing, thing = np.zeros((2, 2), bool), np.ones((2, 2), bool)
    none = summarise(scores_of([(nothing, nothing), (thing, nothing)]), "x", is_generalised=True)["generalised"]
    assert none == {"n_no_target": 2, "gIoU": 50, "cIoU": 0, "N-acc": 50} | dict.fromkeys(GENERALISED[3:])
    assert "        -" in format_table({"x val": summarise(scores_of([(thing, nothing)]), "x", is_generalised=True)})
    every = summarise(scores_of([(thing, thing)]), "x", is_generalised=True)["generalised"]
    assert (every["n_no_target"], every["N-acc"], every["T-acc"], every["Prec@0.9"]) == (0, None, 100, 100)


@pytest.fixture
def split(place, tmp_path):
    """The folder of `place` with a third of its masks emptied, which its meta.json declares."""
    folder = shutil.copytree(place / "unc_32x48_batch", tmp_path / "unc_32x48_batch")
    for path in sorted((folder / "val_label").iterdir())[::3]:
        Image.new("1", Image.open(path).size).save(path)
    meta = json.loads((folder / "meta.json").read_text())
    split = PreparedSplit(folder, "val")
    meta["splits"]["val"]["no_target"] = sum(not split.mask(i).any() for i in range(COUNT))
    (folder / "meta.json").write_text(json.dumps(meta))
    return PreparedSplit(folder, "val")


def test_the_script_counts_few_pixels_as_nothing(place, split, tmp_path, capsys):
    """Against logits of one expression at a time, with as many pixels as half of the predictions have."""
    checkpoint = place / "exp/unc_500.pth"
    logits, lowest = {}, 0.2
    settings = EvalSettings(threshold=lowest)
    model = load_restr(checkpoint, "cpu")
    evaluate(model, split, settings, on_sample=lambda p: logits.update({p.score.index: p.logits}), progress=False)
    sizes = sorted(int((own >= lowest).sum()) for own in logits.values())
    fewest = sizes[COUNT // 2]
    assert sizes[0] < fewest
    guesses = [(logits[i] >= lowest) & ((logits[i] >= lowest).sum() >= fewest) for i in range(COUNT)]
    expected = plain([(guess, split.mask(i)) for i, guess in enumerate(guesses)])
    assert 0 < expected["N-acc"] < 100 and expected["T-acc"] < 100
    flags = ("--data_dir", split.folder, "--checkpoint", checkpoint, "--threshold", lowest)
    run(*flags, "--no_target_pixels", fewest, "--output_dir", tmp_path / "out", "--is_vis", 0, "--report")
    metrics = metrics_in(tmp_path / "out")
    assert metrics["generalised"] == pytest.approx(expected)
    assert metrics["settings"]["no_target_pixels"] == fewest
    for i, guess in enumerate(guesses):
        assert np.array_equal(np.asarray(Image.open(tmp_path / f"out/vis/unc_val_{i}_pred.png")) > 0, guess)
    lines = [json.loads(line) for line in (tmp_path / "out/samples.jsonl").read_text().splitlines()]
    assert [line["target"] for line in lines] == [split.mask(i).sum() for i in range(COUNT)]
    assert [len(line["mask"]["counts"]) > 1 for line in lines] == [guess.any() for guess in guesses]
    assert f"{expected['N-acc']:.2f}" in capsys.readouterr().out
    copied = shutil.copy(checkpoint, tmp_path / "unc_500.pth")
    run(*flags[:2], "--checkpoint", copied, "--no_target_pixels", fewest)
    assert (tmp_path / f"eval_unc_val_500_no_target_pixels{fewest}").is_dir()


def test_an_ordinary_split_stays_as_it_was(place, split, tmp_path):
    """Also where masks happen to be empty: only expressions that are declared to have no object change the file."""
    meta = json.loads((split.folder / "meta.json").read_text())
    del meta["splits"]["val"]["no_target"]
    (split.folder / "meta.json").write_text(json.dumps(meta))
    run("--data_dir", split.folder, "--checkpoint", place / "exp/unc_500.pth", "--output_dir", tmp_path / "out")
    metrics = metrics_in(tmp_path / "out")
    assert list(metrics)[:6] == ["oIoU", "mIoU", "prec", "n_samples", "by_length", "Acc@0.5"]
    assert list(metrics["settings"]) == ["pad", "antialias", "threshold", "batch_size", "amp", "image_size"]


@pytest.mark.parametrize("value", ["-1", "2000000000", "0.5", "few"])
def test_a_number_of_pixels_that_is_none(place, capsys, value):
    flags = ("--data_dir", place / "unc_32x48_batch", "--checkpoint", place / "exp/unc_500.pth")
    assert "--no_target_pixels" in complaint(capsys, *flags, f"--no_target_pixels={value}")


GIVEN = {
    "n_no_target": 3, "gIoU": 61.25, "cIoU": 55.5, "N-acc": 80.0, "T-acc": 97.5,
    "Prec@0.7": 70.0, "Prec@0.8": None, "Prec@0.9": 30.0,
}  # fmt: skip


def test_tables_have_one_more(tmp_path, capsys):
    write(tmp_path, "plain", "unc", "val", 60.0)
    without = shown(capsys, tmp_path)
    assert "gIoU" not in without
    write(tmp_path, "a", "grefcoco", "val", 55.5, generalised=GIVEN)
    text = shown(capsys, tmp_path)
    (row,) = cells(text, 3)
    assert list(row.values()) == [
        *("a", "gRefCOCO val", "400000", "8", "3", "61.25", "55.50", "80.00", "97.50", "70.00", "", "30.00")
    ]
    lines = list(csv.DictReader(io.StringIO(shown(capsys, tmp_path, "--format", "csv"))))
    ours = {line["metric"]: line["value"] for line in lines if line["method"] == "a" and not line["tokens"]}
    assert (ours["gIoU"], ours["N-acc"], ours["Prec@0.7, with an object"]) == ("61.2500", "80.0000", "70.0000")
    assert ours["Prec@0.7"] == "12.5000" and "Prec@0.8, with an object" not in ours


def test_their_table_explains_its_signs(tmp_path, capsys):
    for seed in (1, 2):  # of other expressions than those of the public split
        seeded(tmp_path, f"a_seed{seed}", seed, 60.0 + seed, generalised=GIVEN | {"gIoU": 60.0 + seed}, n_samples=7)
    lines = shown(capsys, tmp_path, "--over_seeds").splitlines()
    (head,) = (number for number, line in enumerate(lines) if "N-acc" in line)
    assert all(sign in lines[place] for sign in "±†" for place in (head - 2, head + 2))


@pytest.mark.parametrize("wrong", [{"gIoU": "x"}, {"N-acc": 101}, {"n_no_target": -1}, {"cIoU": float("nan")}, None])
def test_damaged_values_are_refused(tmp_path, capsys, wrong):
    write(tmp_path, "a", "grefcoco", "val", 55.5, generalised=GIVEN | wrong if wrong else {"gIoU": 3})
    with pytest.raises(report.InputError, match="metrics.json"):
        shown(capsys, tmp_path)


def test_the_report_has_them_and_older_results_load(split, tmp_path):
    made = predictions(COUNT)
    scores = [one.score for one in made]
    metrics = metrics_of(scores) | {"generalised": GIVEN}
    report.write_report(tmp_path / "report.html", metrics, scores, thumbnails_of(made))
    facts, _ = data_of(tmp_path / "report.html")
    assert facts["sides"][0]["generalised"] == summarise(scores, "unc", is_generalised=True)["generalised"]
    texts = [(split.text(i), split.name(i)) for i in range(COUNT)]
    older = [SampleScore(i, name, i, 90, 2, text[1], text[2]) for i, (text, name) in enumerate(texts)]
    path = write_result(tmp_path / "older", older)
    lines = [json.loads(line) for line in path.with_name("samples.jsonl").read_text().splitlines()]
    for line in lines:
        del line["target"]
    path.with_name("samples.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    other = report.read_other(path, split)
    assert other.scores == older
    report.write_report(tmp_path / "compared.html", metrics, scores, thumbnails_of(made), other)
    facts, _ = data_of(tmp_path / "compared.html")
    assert "generalised" in facts["sides"][0] and "generalised" not in facts["sides"][1]
    lines[0]["target"] = 91  # more than the union
    path.with_name("samples.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    with pytest.raises(report.InputError, match=r"samples\.jsonl"):
        report.read_other(path, split)
