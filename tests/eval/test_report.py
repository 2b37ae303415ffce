"""evaluate.py --report: its numbers and pictures against a plain computation, its size, and what it refuses."""

import base64
import io
import json
import os
import re
import socket
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from eval.evaluator import Prediction
from eval.metrics import SampleScore
from eval.report import write as report
from eval.report.write import MISSED, RIGHT, WRONG, Shot, Thumbnails
from tests.conftest import ROOT
from tests.eval.test_evaluate import complaint, metrics_in, run
from tests.support.memory_split import COUNT
from tests.support.report_case import HOSTILE, data_of, metrics_of, other_of, predictions, thumbnails_of, write_result
from utils.prepared import PreparedSplit

CODES = {(0, 0, 0, 0): 0, (*MISSED, 255): 1, (*WRONG, 255): 2, (*RIGHT, 255): 3}


def flags(place, *more: object) -> tuple:
    step = () if "--iters" in more else ("--iters", 5000)
    data = ("--data_dir", place / "unc_32x48_batch", "--restore_refseg", place / "exp")
    return (*data, *step, "--report", *more)


def codes(overlay: str) -> np.ndarray:
    """0 nothing, 1 missed, 2 wrong, 3 right for each pixel of an overlay in base64."""
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(overlay))).convert("RGBA"))
    pixels = np.where(pixels[..., 3:] > 0, pixels, 0)
    return np.apply_along_axis(lambda pixel: CODES[tuple(pixel.tolist())], 2, pixels)


def table(rows: list[dict]) -> dict[str, dict]:
    return {row["label"]: {key: value for key, value in row.items() if key != "label"} for row in rows}


def test_pictures_and_counts_agree(place, tmp_path):
    run(*flags(place, "--output_dir", tmp_path, "--is_vis"))
    facts, shown = data_of(tmp_path / "report.html")
    metrics, split = metrics_in(tmp_path), PreparedSplit(place / "unc_32x48_batch", "val")
    run(*[flag for flag in flags(place, "--output_dir", tmp_path / "without") if flag != "--report"])
    with_masks, without = (
        [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
        for folder in (tmp_path, tmp_path / "without")
    )
    found = [line.pop("mask") for line in with_masks]
    assert with_masks == without
    assert not (tmp_path / "without/report.html").exists()
    side = facts["sides"][0]
    assert {key: metrics[key] for key in ("oIoU", "mIoU", "prec", "n_samples", "Acc@0.5")}.items() <= side.items()
    assert table(side["by_length"]) == metrics["by_length"]
    assert facts["control"] is None and facts["changes"] is None and len(facts["sides"]) == 1
    assert len(shown["rows"]) == COUNT and len(list((tmp_path / "vis").glob("*_pred.png"))) == COUNT
    refs = {(split.ref(index), row[8]) for index, row in enumerate(shown["rows"])}
    assert len(refs) == len({ref for ref, _ in refs}) == len({number for _, number in refs}) < COUNT
    for index, row in enumerate(shown["rows"]):
        sentence, name, image, hit, union, _, size, overlay, _ = row
        code, mask = codes(overlay), split.mask(index)
        assert np.array_equal(code % 2 == 1, mask) and ((code == 3).sum(), (code > 0).sum()) == (hit, union)
        assert np.array_equal(code >= 2, np.asarray(Image.open(tmp_path / "vis" / f"{name}_pred.png")) > 0)
        assert np.array_equal(code >= 2, coco.decode(coco.frPyObjects(found[index], *mask.shape)) > 0)
        assert (sentence, shown["names"][image]) == split.text(index)[1:]
        first, last = map(float, size.rstrip("%").split("–"))
        assert first <= 100 * mask.mean() < last
        picture = Image.open(io.BytesIO(base64.b64decode(shown["images"][image])))
        assert picture.format == "WEBP" and picture.size == mask.shape[::-1]


def test_tables_against_a_plain_computation():
    made, before = predictions(150, 1), predictions(150, 2)
    scores, other = [one.score for one in made], other_of(before)
    facts = report.facts(metrics_of(scores), scores, thumbnails_of(made), other)
    assert facts["other"]  # 150 expressions are not the public split
    hits, unions = (np.array([getattr(s, key) for s in scores], float) for key in ("intersection", "union"))
    ious = np.where(unions > 0, hits / np.maximum(unions, 1), 1.0)
    old = np.array([s.intersection / s.union if s.union else 1.0 for s in other.scores])
    names = [f"{name}/best.pth, step 5,000" for name in ("new", "<i>old")]
    assert [side["checkpoint"] for side in facts["sides"]] == names
    for values, side in zip((ious, old), facts["sides"], strict=True):
        below = [(values < edge / 20 - 1e-12).sum() for edge in range(20)]  # all values are more than that apart
        assert side["histogram"] == np.diff([*below, len(values)]).tolist()
        assert sum(row["n"] for row in side["by_size"]) == sum(side["histogram"]) == 150
        assert side["mIoU"] == pytest.approx(100 * values.mean())

    shares = np.array([one.mask.mean() for one in made])
    sizes = {"none": shares == 0, "0–1%": (shares > 0) & (shares < 0.01), "10–20%": (shares >= 0.1) & (shares < 0.2)}
    sizes["50–100%"] = shares >= 0.5
    for label, members in sizes.items():
        row = table(facts["sides"][0]["by_size"])[label]
        assert row["n"] == members.sum() > 0 and row["mIoU"] == pytest.approx(100 * ious[members].mean())
        whole = 100 * hits[members].sum() / unions[members].sum() if unions[members].any() else 100
        assert row["oIoU"] == pytest.approx(whole)

    for word in ("man", "left", "shirt"):
        members = np.array([word in re.findall(r"\w+", s.sentence) for s in scores])
        row = table(facts["words"])[word]
        assert row["n"] == members.sum() and row["before"] == pytest.approx(100 * old[members].mean())
        assert row["mIoU"] == pytest.approx(100 * ious[members].mean())
    assert [row["mIoU"] for row in facts["words"]] == sorted(row["mIoU"] for row in facts["words"])
    expected = {"better": ious - old > 0.05, "worse": old - ious > 0.05, "same": abs(ious - old) <= 0.05}
    expected |= {"now_found": (ious >= 0.5) & (old < 0.5), "now_lost": (old >= 0.5) & (ious < 0.5)}
    assert facts["changes"] == {key: member.sum() for key, member in expected.items()}
    assert all(facts["changes"].values())


def test_values_on_an_edge():
    labels = {0: "none", 1e-9: "0–1%", 0.01: "1–2%", 0.02: "2–5%", 0.5: "50–100%", 1: "50–100%"}
    assert {share: report.size_label(share) for share in labels} == labels
    none, little, half = (SampleScore(0, "unc_val_0", hit, 20, 1, "man", "a") for hit in (0, 1, 10))
    same = {"better": 0, "same": 1, "worse": 0, "now_found": 0, "now_lost": 0}
    assert report.CHANGED == 0.05 and report.FOUND == 0.5
    assert report.changes([little], [none]) == report.changes([none], [little]) == same  # by 0.05, and not by more
    assert report.changes([half], [none]) == same | {"same": 0, "better": 1, "now_found": 1}  # 0.5 is found
    assert report.changes([none], [half]) == same | {"same": 0, "worse": 1, "now_lost": 1}


def test_what_expressions_may_hold(tmp_path):
    made = predictions(30)
    scores = [one.score for one in made]
    report.write_report(tmp_path / "report.html", metrics_of(scores), scores, thumbnails_of(made), other_of(made))
    text = (tmp_path / "report.html").read_text()
    facts, shown = data_of(tmp_path / "report.html")
    assert not set("\u202e\u200f\u2028\x00\x07") & set(text) and text.count("<script") == text.count("</script>") == 3
    assert [row[0] for row in shown["rows"][:4]] == list(HOSTILE[:4])
    assert shown["rows"][4][0] == "\\u202egnirts desrever\\u202c \\u200f" and shown["rows"][7][0] == HOSTILE[7]
    assert facts["sides"][0]["record"]["data"] == "data/<b>unc"
    value = {"<&>": "\u2028</script>", "a": [1.5, None, "é"]}
    assert json.loads(report.encode(value)) == value and not set("<>&\u2028") & set(report.encode(value))
    with pytest.raises(ValueError):
        report.encode(float("nan"))
    page = report.render({"title": "</title><b>"}, {}).decode()
    assert "&lt;/title&gt;&lt;b&gt;: where" in page and "</title><b>" not in page


@pytest.mark.parametrize(
    ("shape", "size", "mask_size"),
    [
        ((720, 960), (640, 480), (320, 240)),
        ((640, 480), (480, 640), (240, 320)),
        ((300, 400), (400, 300), (320, 240)),
        ((20, 30), (30, 20), (30, 20)),
        ((2000, 1), (1, 640), (1, 320)),
    ],
)
def test_images_have_640_pixels_and_are_never_enlarged(shape, size, mask_size):
    y, x = np.mgrid[: shape[0], : shape[1]]
    image = np.stack([255 * y // shape[0], 255 * x // shape[1], 0 * x + 90], -1).astype(np.uint8)
    truth, found = x < shape[1] // 2, y < shape[0] // 2
    score = SampleScore(0, "unc_val_0", 1, 2, 1, "man", "a")
    thumbnails = thumbnails_of([Prediction(score, image, truth, np.where(found, 1, -1).astype(np.float32), found)])
    stored = Image.open(io.BytesIO(thumbnails.images["a"]))
    assert stored.size == size
    assert np.abs(np.asarray(stored.resize(shape[::-1])).astype(int) - image).mean() < 4
    code = codes(base64.b64encode(thumbnails.shots[0].overlay).decode())
    assert code.shape == mask_size[::-1] == tuple(thumbnails.shots[0].found["size"])
    if min(shape) > 1:
        assert code[0, 0] == 3 and code[-1, 0] == 1 and code[0, -1] == 2 and code[-1, -1] == 0
        assert abs((code >= 2).mean() - found.mean()) < 0.01 and abs((code % 2).mean() - truth.mean()) < 0.01


def test_masks_of_both_results():
    ours, theirs = predictions(30, 1), predictions(30, 2)
    for index, shot in thumbnails_of(ours, other_of(theirs)).shots.items():
        for overlay, one in ((shot.overlay, ours[index]), (shot.before, theirs[index])):
            code = codes(base64.b64encode(overlay).decode())
            assert np.array_equal(code % 2 == 1, one.mask) and np.array_equal(code >= 2, one.logits >= 0)


@pytest.mark.parametrize("seed", range(4))
def test_run_lengths_are_those_of_coco(seed):
    rng = np.random.default_rng(seed)
    mask = rng.random((rng.integers(1, 9), rng.integers(1, 9))) < (0, 1, 0.3, 0.7)[seed]
    rle = report.run_lengths(mask)
    assert np.array_equal(coco.decode(coco.frPyObjects(rle, *mask.shape)), mask)
    assert np.array_equal(report.from_run_lengths(rle), mask)


@pytest.mark.parametrize(("image_bytes", "overlay_bytes", "all_fit"), [(29_100, 510, True), (58_000, 1000, False)])
def test_size_of_a_full_split(tmp_path, image_bytes, overlay_bytes, all_fit):
    rng = np.random.default_rng(0)
    thumbnails = Thumbnails()
    thumbnails.images = {f"COCO_train2014_{n:012d}": rng.bytes(image_bytes) for n in range(1500)}
    names = list(thumbnails.images)
    scores = []
    for index in range(10834):
        name, union = names[index % 1500], int(rng.integers(1, 50000))
        sentence = " ".join(rng.choice(["man", "woman", "left", "<b>", "&", "shirt"], 1 + index % 9))
        scores.append(SampleScore(index, f"unc_val_{index}", int(rng.integers(0, union + 1)), union, 3, sentence, name))
        thumbnails.shots[index] = Shot(name, 0.1, index // 3, {}, rng.bytes(overlay_bytes))
    report.write_report(tmp_path / "report.html", metrics_of(scores), scores, thumbnails)
    size = (tmp_path / "report.html").stat().st_size
    assert size < 80_000_000 and (all_fit or size > 79_000_000)
    _, shown = data_of(tmp_path / "report.html")
    pictured = [bool(row[7]) for row in shown["rows"]]
    assert len(pictured) == 10834 and all(pictured) == all_fit
    assert all(shown["images"][row[2]] for row in shown["rows"] if row[7])
    order = sorted(range(10834), key=lambda i: scores[i].iou)
    assert all(pictured[i] for i in (*order[:300], *order[5300:5500], *order[-300:]))


def test_the_control_and_several_steps(place, tmp_path):
    run(*flags(place, "--output_dir", tmp_path / "plain"))
    control = ("--rotate_expressions", "--against", tmp_path / "plain")
    run(*flags(place, "--output_dir", tmp_path / "two", "--iters", 500, 5000, *control))
    for step in ("500", "5000"):
        facts, shown = data_of(tmp_path / "two" / step / "report.html")
        metrics = metrics_in(tmp_path / "two" / step)
        assert facts["control"] == metrics["control"] and facts["sides"][0]["oIoU"] == metrics["oIoU"]
        ours, theirs = (side["checkpoint"] for side in facts["sides"])
        assert f"step {int(step):,}" in ours and "step 5,000" in theirs
        for row in shown["rows"]:  # the masks that are drawn are those that were judged against
            assert ((codes(row[7]) == 3).sum(), (codes(row[7]) > 0).sum()) == (row[3], row[4])
    run(*flags(place, "--expressions", "first_k", "--first_k", 1, "--output_dir", tmp_path / "first"))
    facts, cut = data_of(tmp_path / "first/report.html")
    assert facts["control"] == metrics_in(tmp_path / "first")["control"]
    assert [row[0] for row in cut["rows"]] == [row[0].split()[0] for row in shown["rows"]]  # what the model read
    plain = data_of(tmp_path / "plain" / "report.html")[1]["rows"]
    assert [row[3:5] for row in plain] == [row[9:11] for row in shown["rows"]]


def test_two_processes_give_the_same_files(place, tmp_path):
    run(*flags(place, "--output_dir", tmp_path / "one"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    options = ("--set", "val", "--num_workers", "0", "--device", "cpu", "--output_dir", tmp_path / "two", "--is_vis")
    command = (sys.executable, ROOT / "eval/evaluate.py", *flags(place, "--against", tmp_path / "one"), *options)
    torchrun = os.environ | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}  # what it tells each
    start = partial(subprocess.Popen, [*map(str, command)], stdout=subprocess.PIPE, text=True)
    ranks = [start(env=torchrun | {"RANK": rank, "LOCAL_RANK": rank}) for rank in "01"]
    first, second = (process.communicate(timeout=300)[0] for process in ranks)
    assert [process.returncode for process in ranks] == [0, 0]
    assert "unc val 5000, by number of tokens" in first and second == ""  # only the first prints
    one, two = ((tmp_path / name / "samples.jsonl").read_text() for name in ("one", "two"))
    assert one == two and len(one.splitlines()) == COUNT
    assert len(list((tmp_path / "two" / "vis").glob("*_pred.png"))) == COUNT
    (_, one), (facts, two) = (data_of(tmp_path / name / "report.html") for name in ("one", "two"))
    assert [row[:9] for row in two["rows"]] == one["rows"] and two["images"] == one["images"]
    assert facts["both_masks"] and [row[7] for row in two["rows"]] == [row[11] for row in two["rows"]]
    assert facts["changes"] == {"better": 0, "same": COUNT, "worse": 0, "now_found": 0, "now_lost": 0}


def test_another_result_without_masks(place, tmp_path):
    write_result(tmp_path / "old", scores_of(place))
    run(*flags(place, "--against", tmp_path / "old", "--output_dir", tmp_path / "new"))
    facts, shown = data_of(tmp_path / "new/report.html")
    assert not facts["both_masks"] and all(row[7] and row[11] == "" for row in shown["rows"])
    assert ["Acc@0.5" in side for side in facts["sides"]] == [True, False]


def with_mask(mask: str):
    """Change of the lines of samples.jsonl: the first has this mask."""
    return lambda lines: [lines[0][:-1] + f', "mask": {mask}}}'.encode(), *lines[1:]]


def scores_of(place) -> list[SampleScore]:
    split = PreparedSplit(place / "unc_32x48_batch", "val")
    return [SampleScore(i, split.name(i), i, 20, 1, *split.text(i)[1:]) for i in range(COUNT)]


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("metrics.json", {"split": "testA"}, f"is of unc testA with {COUNT} expressions, not of unc val"),
        ("metrics.json", {"n_samples": 9}, "with 9 expressions"),
        ("metrics.json", {"control": {}}, "is of a control"),
        ("metrics.json", {"oIoU": 12.5}, "its oIoU is not that of the samples.jsonl"),
        ("metrics.json", {"checkpoint": "\x1b[31m"}, "is not a readable metrics.json"),
        ("metrics.json", {"settings": []}, "is not a readable metrics.json"),
        ("metrics.json", None, "no such file"),
        ("metrics.json", b"\xff{", "is not a readable"),
        ("samples.jsonl", None, "samples.jsonl: no such file"),
        ("samples.jsonl", b"", "other expressions"),
        ("samples.jsonl", b"[" * 100_000, "samples.jsonl: is not a readable"),
        ("samples.jsonl", lambda lines: [*lines[:-1], lines[-1][:40]], "samples.jsonl: is not a readable"),
        ("samples.jsonl", lambda lines: [b"7", *lines[1:]], "samples.jsonl: is not a readable"),
        ("samples.jsonl", lambda lines: [b"[1]", *lines[1:]], "samples.jsonl: is not a readable"),
        ("samples.jsonl", lambda lines: lines[::-1], "line 1 is not a score"),
        ("samples.jsonl", lambda lines: [lines[0].replace(b'"union": 20', b'"union": -1'), *lines[1:]], "line 1 is"),
        *(
            ("samples.jsonl", lambda lines, iou=iou: [lines[0][:-1] + b', "box_iou": %b}' % iou, *lines[1:]], says)
            for iou, says in ((b"1.5", "line 1 is"), (b"true", "line 1 is"), (b"1", "line 1 is"), (b"NaN", "is not a"))
        ),
        ("samples.jsonl", lambda lines: [lines[0].replace(b"unc_val_0", b"x") + b"}", *lines[1:]], "is not a readable"),
        ("samples.jsonl", lambda lines: [lines[0].replace(b'e": "w', b'e": "no w'), *lines[1:]], "other ex"),
        *(
            ("samples.jsonl", with_mask(mask), "samples.jsonl: is not a readable")
            for mask in (
                '{"size": [2, 3], "counts": [5]}',
                '{"size": [2, 3], "counts": [7, -1]}',
                '{"size": [2, 3], "counts": [5, true]}',
                '{"size": [2, 3], "counts": [5, 1.0]}',
                '{"size": [-2, -3], "counts": [6]}',
                '{"size": [100000, 100000], "counts": [10000000000]}',
                '{"size": [0, 0], "counts": []}',
                '{"size": [2, 3]}',
                '"iVBORw0K"',
                "[6]",
            )
        ),
    ],
)
def test_another_result_that_is_damaged_or_does_not_fit(place, tmp_path, capsys, file, content, says):
    changed = content if isinstance(content, dict) else {}
    path = write_result(tmp_path / "old", scores_of(place), **changed).with_name(file)
    if callable(content):
        content = b"\n".join(content(path.read_bytes().splitlines()))
    if content is None:
        path.unlink()
    elif not changed:
        path.write_bytes(content)
    error = complaint(capsys, *flags(place, "--against", tmp_path / "old", "--output_dir", tmp_path / "out"))
    assert says in error and not (tmp_path / "out").exists(), error
