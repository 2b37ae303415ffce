"""eval/plot.py on logs that the run's own log wrote: what is drawn where, and what a log may look like."""

import io
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from eval import plot
from tests.conftest import ROOT
from train.logs import RunLog
from utils.errors import InputError

PRECISIONS = {f"Prec@{x / 10}": 90.0 - x for x in range(5, 10)}


def write(folder: Path, steps: int = 6, every: int = 100) -> Path:
    folder.mkdir(parents=True)
    log = RunLog(folder)
    for step in range(every, steps * every + 1, every):
        losses = {"loss": 300 / step, "pixel": 200 / step, "patch": 100 / step}
        log.record("train", step, {**losses, "grad_norm": step / 1000, "lr": 1e-5 / step})
        if step % 200 == 0:
            log.record("val", step, {"oIoU": 50 - abs(step - 400) / 100, "mIoU": step / 10, **PRECISIONS})
    log.close()
    return folder


def drawn(figure) -> dict[str, list[tuple[list, list]]]:
    """Title of each panel -> x and y of its lines."""
    return {
        panel.get_title(loc="left"): [(list(line.get_xdata()), list(line.get_ydata())) for line in panel.lines]
        for panel in figure.axes
    }


def test_each_panel_has_its_curves(tmp_path):
    figure = plot.draw([plot.read_log(write(tmp_path / "a") / "log.jsonl")])
    lines = drawn(figure)
    steps = [100, 200, 300, 400, 500, 600]
    for title, total in (("Training loss", 300), ("Loss: pixel", 200), ("Loss: patch", 100)):
        assert lines[title] == [(steps, [total / step for step in steps])]
    assert lines["Learning rate"] == [(steps, [1e-5 / step for step in steps])]
    oiou, miou = ([200, 400, 600], [48.0, 50.0, 48.0]), ([200, 400, 600], [20.0, 40.0, 60.0])
    assert lines["Validation IoU (%)"] == [oiou, miou, ([400], [50.0])]  # the last one marks the best oIoU
    assert lines["Validation Prec@X (%)"] == [([200, 400, 600], [value] * 3) for value in PRECISIONS.values()]
    assert [text.get_text() for panel in figure.axes for text in panel.texts] == ["best oIoU 50.00 at 400"]
    legends = [[text.get_text() for text in panel.get_legend().get_texts()] for panel in figure.axes[4:]]
    assert legends == [["oIoU", "mIoU"], list(PRECISIONS)]
    runs = [plot.read_log(write(tmp_path / name, steps) / "log.jsonl") for name, steps in (("b", 6), ("c", 4))]
    of_each = [(line.get_color(), len(line.get_xdata())) for line in plot.draw(runs).axes[1].lines]
    assert of_each == [(plot.COLOURS[0], 6), (plot.COLOURS[1], 4)]


@pytest.mark.parametrize("own", ["", "grefcoco "])  # the second of several data sets
def test_generalised_expressions_have_a_panel_of_their_own(tmp_path, own):
    folder = write(tmp_path / "a")
    with (folder / "log.jsonl").open("a") as file:
        for step, *found in ((700, 40.0, 95.0), (800, 60.0, 90.0)):
            named = zip((f"{own}N-acc", f"{own}T-acc"), found, strict=True)
            file.write(json.dumps({"kind": "val", "step": step, "oIoU": 1.0, "mIoU": 1.0, **dict(named)}) + "\n")
    runs = [plot.read_log(path / "log.jsonl") for path in (folder, write(tmp_path / "b"))]
    assert list(drawn(plot.draw(runs)).values())[-1] == [([700, 800], [40.0, 60.0]), ([700, 800], [95.0, 90.0])]


def test_each_data_set_has_its_curve(tmp_path):
    folder = write(tmp_path / "a")
    log = RunLog(folder, 600, (folder / "log.jsonl").stat().st_size)
    log.record("val", 800, {"oIoU": 40.0, "mIoU": 50.0, "Gref oIoU": 30.0, "unc+ oIoU": 50.0, "$x oIoU": 1.0})
    log.close()
    figure = plot.draw([plot.read_log(folder / "log.jsonl")])
    named = [text.get_text() for text in figure.axes[4].get_legend().get_texts()]
    assert named == ["oIoU", "mIoU", "Gref oIoU", "unc+ oIoU"]
    assert drawn(figure)["Validation IoU (%)"][2:4] == [([800], [30.0]), ([800], [50.0])]


def test_a_long_curve_is_drawn_with_its_running_mean(tmp_path):
    run = plot.read_log(write(tmp_path / "a", steps=200) / "log.jsonl")
    raw, mean = drawn(plot.draw([run]))["Training loss"]
    assert raw == run.curves["train"]["loss"]
    near = [raw[1][max(0, i - 4) : i + 5] for i in range(200)]  # 4 on each side, fewer at both ends
    assert mean[1] == pytest.approx([math.fsum(values) / len(values) for values in near])
    assert len(drawn(plot.draw([run]))["Learning rate"]) == 1  # no noise to smooth


def test_a_last_line_cut_by_a_kill_is_left_out(tmp_path):
    file = write(tmp_path / "a") / "log.jsonl"
    whole, data = plot.read_log(file), file.read_bytes()
    for cut in (b"{", b'{"kind": "train", "step": 7', b"\xff\xfe", b"\0" * 9):
        file.write_bytes(data + cut)
        assert plot.read_log(file) == whole


def test_what_cannot_be_drawn_is_left_out(tmp_path):
    file = tmp_path / "log.jsonl"
    entries = [
        {"kind": "train", "step": 1, "loss": 1.0, "grad_norm": math.inf, "lr": 1e-5},
        {"kind": "train", "step": 2, "loss": math.nan, "grad_norm": 1e300, "lr": True},
        {"kind": "train", "step": 3, "loss": 2, "note": "text", "boundary": 1.5},  # a term that is new
        {"kind": "something new", "step": 4, "loss": 9.0},
    ]
    file.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    run = plot.read_log(file)
    loss, boundary = ([1, 3], [1.0, 2.0]), ([3], [1.5])
    assert run.curves == {"train": {"loss": loss, "lr": ([1], [1e-5]), "boundary": boundary}, "val": {}}
    figure = plot.draw([run])
    assert (drawn(figure)["Training loss"], drawn(figure)["Loss: boundary"]) == ([loss], [boundary])
    assert [panel.texts[0].get_text() for panel in figure.axes[3:]] == ["nothing logged yet"] * 2
    figure.savefig(io.BytesIO())


def test_one_point_can_be_seen(tmp_path):
    """Of a run that has logged once; a term of the loss may have any name."""
    run = plot.read_log(write(tmp_path / "a", steps=1, every=200) / "log.jsonl")
    run.curves["train"]["_$x^{2$"] = ([200], [3.0])
    figure = plot.draw([run])
    assert len(figure.axes) == 7 and figure.axes[3].get_title(loc="left") == "Loss: _$x^{2$"
    figure.savefig(file := io.BytesIO())  # at the dpi of the figure, as positions are
    picture = Image.open(file).convert("RGB")
    for panel in figure.axes:
        left, bottom, right, top = panel.get_window_extent().extents
        inside = picture.crop((left, picture.height - top, right, picture.height - bottom))
        assert tuple(bytes.fromhex(plot.COLOURS[0][1:])) in set(inside.get_flattened_data())


def test_a_log_of_too_many_terms(tmp_path):
    run = plot.Run("a", {"train": {f"term{i}": ([1], [1.0]) for i in range(plot.MAX_LOSSES)}, "val": {}})
    with pytest.raises(InputError, match="21 terms of the loss: one plot shows at most 20"):
        plot.draw([run])


BROKEN = {
    "cut": b'{"kind": "train"',
    "blank": b"",
    "no step": b'{"kind": "train"}',
    "a list": b"[1]",
    "a text": b'"kind step"',
    "a broken step": b'{"kind": "train", "step": 1.5}',
    "a step that is a truth value": b'{"kind": "train", "step": true}',
    "a number too large": b'{"kind": "train", "step": 1, "loss": 1' + b"0" * 400 + b"}",
    "bytes": b"\xff\xfe",
    "depth": b"[" * 100_000,
}


@pytest.mark.parametrize("line", BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_line_is_named(tmp_path, line):
    file = write(tmp_path / "a") / "log.jsonl"
    first, rest = file.read_bytes().split(b"\n", 1)
    file.write_bytes(first + b"\n" + line + b"\n" + rest)
    with pytest.raises(InputError, match=r"log\.jsonl: line 2: is not a readable line of") as error:
        plot.read_log(file)
    assert "\n" not in str(error.value)


def test_a_log_without_a_line_and_a_missing_one(tmp_path):
    (tmp_path / "log.jsonl").touch()
    with pytest.raises(InputError, match="nothing is logged yet"):
        plot.main([str(tmp_path)])
    with pytest.raises(InputError, match=r"none/log\.jsonl|none: no such file"):
        plot.main([str(tmp_path / "none")])
    with pytest.raises(InputError, match="9 runs: one plot shows at most 8"):
        plot.main([str(tmp_path)] * 9)
    assert [entry.name for entry in tmp_path.iterdir()] == ["log.jsonl"]


def test_the_script_from_anywhere(tmp_path):
    write(tmp_path / "_$x^{2$ a")  # neither mathematics nor hidden by its underscore
    write(tmp_path / "b")
    script = [sys.executable, str(ROOT / "eval/plot.py")]
    done = subprocess.run([*script, "_$x^{2$ a", "b/log.jsonl"], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "_$x^{2$ a/curves.png\n", "")
    with Image.open(tmp_path / "_$x^{2$ a/curves.png") as picture:
        assert (picture.format, picture.size) == ("PNG", (1950, 1080))
        header = set(picture.convert("RGB").crop((0, 0, 1950, 60)).get_flattened_data())
    for colour in plot.COLOURS[:2]:
        assert tuple(bytes.fromhex(colour[1:])) in header
    plot.main([str(tmp_path / "b"), "--out", str(tmp_path / "new/b.png")])
    assert [entry.name for entry in (tmp_path / "new").iterdir()] == ["b.png"]
