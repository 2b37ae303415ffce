"""predict.py and `load_restr(FILE).segment`: the masks of evaluation, from a user's own files."""

import re
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import predict
from eval.evaluator import EvalSettings, evaluate
from eval.visualise import patch_picture
from models import load_restr
from models.inference import Segmentation, segment
from tests.support.memory_split import COUNT, write_folder
from tests.support.small_model import SIZE, write_checkpoint
from utils.cli import run_main
from utils.prepared import PreparedSplit

ORIENTATION = 274  # EXIF tag


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("predict") / "best.pth"
    write_checkpoint(path)
    return path


@pytest.fixture(scope="module")
def model(checkpoint):
    return load_restr(checkpoint, "cpu")


@pytest.fixture
def run(checkpoint, tmp_path):
    """run(images, texts, *flags): the script, with results in `tmp_path`/out."""

    def run(images: list, texts: list[str], *flags: object) -> None:
        command = ["--device", "cpu", "--checkpoint", checkpoint, "--out", tmp_path / "out", *flags]
        predict.main([*map(str, [*command, "--image", *images, "--text", *texts])])

    return run


def noise(seed: int = 0) -> np.ndarray:
    """An image, uint8 40 x 57 x 3."""
    return np.random.default_rng(seed).integers(0, 256, (40, 57, 3), dtype=np.uint8)


def picture(path: Path, seed: int = 0) -> Path:
    Image.fromarray(noise(seed)).save(path)
    return path


def mask_in(path: Path) -> np.ndarray:
    """The mask, bool, of a result."""
    pixels = np.asarray(Image.open(path))
    assert set(np.unique(pixels)) <= {0, 255} and pixels.dtype == np.uint8
    return pixels == 255


def test_masks_are_those_of_evaluation(model, run, tmp_path):
    """Every expression of a split: its image's file and its sentence give what the evaluator judged."""
    folder = write_folder(tmp_path)
    split, judged = PreparedSplit(folder, "val"), []
    evaluate(model, split, EvalSettings(), on_sample=judged.append, progress=False)
    assert len(judged) == COUNT
    for score, image, _, logits, _ in judged:
        path, probability = folder / "val_image" / f"{score.image_name}.jpg", 1 / (1 + np.exp(-logits.astype(float)))
        for threshold, expected in ((), logits >= 1e-9), ((0.52,), probability >= 0.52):  # the evaluator's, another
            assert 0 < expected.mean() < 1  # a mask that is neither empty nor everything
            for form in (path, Image.open(path), image):
                assert np.array_equal(model.segment(form, score.sentence, *threshold), expected)
            run([path], [score.sentence], *(("--threshold", *threshold) if threshold else ()))
            name = f"{score.image_name}-{score.sentence.replace(' ', '_')}"
            assert np.array_equal(mask_in(tmp_path / f"out/{name}_mask.png"), expected)


def test_an_image_is_encoded_once(model, run, tmp_path, monkeypatch, capsys):
    calls, encode = [], model.encode_image
    monkeypatch.setattr(model, "encode_image", lambda image: calls.append(image.shape) or encode(image))
    monkeypatch.setattr(predict, "load_restr", lambda *_: model)
    images = [picture(tmp_path / f"{name}.png", ord(name)) for name in "ab"]
    run(images, ["w4 w5", "w6", "--text", "w7"])
    assert calls == [(1, 3, *SIZE)] * 2
    names = product("ab", ("w4_w5", "w6", "w7"), ("mask", "overlay", "patches"))
    expected = {f"{name}-{text}_{kind}.png" for name, text, kind in names}
    assert {path.name for path in (tmp_path / "out").iterdir()} == expected | {"results.json"}
    assert all(Image.open(tmp_path / "out" / name).size == (57, 40) for name in expected)
    assert capsys.readouterr().out.count(": 3 expressions in ") == 2
    assert np.array_equal(mask_in(tmp_path / "out/b-w7_mask.png"), model.segment(images[1], "w7"))


def test_words_that_count_for_nothing_are_named(run, tmp_path, capsys):
    texts = ["w4 w5", "W4 zebra \x1b[31m w5, zebra giraffe", "w4 " * 20 + "w5 w6", "."]
    run([picture(tmp_path / "a.png")], texts)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("of the image")
    assert 'not in the vocabulary: "zebra", ' in lines[1] and lines[1].endswith('"giraffe"') and "\x1b" not in lines[1]
    assert lines[1].partition("vocabulary")[2].count("zebra") == 1
    assert lines[2].endswith("only the first 20 tokens are read, not: w5 w6")
    assert lines[3].endswith("it has no words")


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "CMYK", "1", "I;16"])
def test_kinds_of_images(model, tmp_path, mode):
    """Whatever a file's pixels are, the mask is that of the same picture in RGB."""
    pixels, path = noise(), tmp_path / ("image.jpg" if mode == "CMYK" else "image.png")
    if mode == "I;16":
        Image.fromarray(pixels[..., 0].astype(np.uint16) * 257).save(path)
        rgb = pixels[..., :1].repeat(3, 2)
    else:
        Image.fromarray(pixels).convert(mode).save(path)
        rgb = np.asarray(Image.open(path).convert("RGB"))
    expected = model.segment(np.ascontiguousarray(rgb), "w4 w5")
    assert expected.any() and not expected.all() and np.array_equal(model.segment(path, "w4 w5"), expected)
    assert np.array_equal(model.segment(Image.open(path), "w4 w5"), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photographs_are_turned_upright(model, run, tmp_path, orientation):
    upright = noise(3)
    # What a camera stores, so that the turn which the tag prescribes gives `upright` (EXIF 2.3, tag 0x0112).
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "phone.png", exif=exif)
    expected = model.segment(upright, "w4 w5")
    assert np.array_equal(model.segment(tmp_path / "phone.png", "w4 w5"), expected)
    assert np.array_equal(model.segment(Image.open(tmp_path / "phone.png"), "w4 w5"), expected)
    run([tmp_path / "phone.png"], ["w4 w5"])
    written = mask_in(tmp_path / "out/phone-w4_w5_mask.png")
    assert np.array_equal(written, expected)
    shown = np.asarray(Image.open(tmp_path / "out" / "phone-w4_w5_overlay.png"))
    same = (shown == upright).all(-1)
    assert not same[written].any() and same[~written].mean() > 0.2  # the rest is the mask's outline


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_is_no_obstacle(model, tmp_path):
    for junk in (b"Exif\0\0MM\0*\0\0\xff\xff", b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\x12\x01" * 40):
        Image.fromarray(noise()).save(tmp_path / "a.jpg", exif=junk, quality=95)
        assert model.segment(tmp_path / "a.jpg", "w4").shape == (40, 57)


def results(folder: Path) -> set[str]:
    return {path.name.removesuffix("_mask.png") for path in (folder / "out").glob("*_mask.png")}


def test_names_of_results(run, tmp_path):
    names = ["Screenshot at 1.05\u202fPM.png", ".hidden.png", "-x.png", "a:b.png", "ü" * 120 + ".png", "x.bmp"]
    run([picture(tmp_path / name) for name in names], ["w4"])
    assert results(tmp_path) == {
        f"{name}-w4" for name in ("Screenshot at 1.05_PM", "hidden", "x", "a_b", "ü" * 50, "x_2")
    }


def test_names_carry_the_words(run, tmp_path):
    texts = ["Red  ball!", "red/ball", "red ball 2", "red_ball", ".", "../größe ✓", "w" * 99, "\x1b[31m"]
    run([picture(tmp_path / "a.png")], texts)
    words = {"red_ball", "red_ball_2", "red_ball_2_2", "red_ball_3", "expression", "größe", "w" * 60, "31m"}
    assert results(tmp_path) == {f"a-{each}" for each in words}


def test_images_of_a_folder(run, tmp_path, capsys):
    (tmp_path / "photos/more").mkdir(parents=True)
    for name in ("b.PNG", "a.jpg", "c.webp", "d.tiff", "more/e.png", "f.jp2"):
        picture(tmp_path / "photos" / name)
    for name in ("._a.jpg", "notes.txt", "movie.mp4", "list.json"):
        (tmp_path / "photos" / name).write_text("not an image")
    run([tmp_path / "photos", picture(tmp_path / "a.png")], ["w4"])
    assert results(tmp_path) == {f"{name}-w4" for name in ("a", "b", "c", "d", "f", "a_2")}
    lines = [line.partition("-w4:")[0] for line in capsys.readouterr().out.splitlines() if "-w4:" in line]
    assert lines == ["a", "b", "c", "d", "f", "a_2"]


def test_a_damaged_image_in_a_folder_stops_only_itself(run, tmp_path, capsys):
    (tmp_path / "photos").mkdir()
    for name in ("a.png", "b.png", "c.png"):
        picture(tmp_path / "photos" / name)
    for name in ("b.png", "d.png"):
        (tmp_path / "photos" / name).write_text("not an image")
    with pytest.raises(SystemExit) as left:
        run_main(lambda: run([tmp_path / "photos"], ["w4"]))
    lines = capsys.readouterr().err.splitlines()
    assert left.value.code == 2 and len(lines) == 2 and "photos/b.png" in lines[0] and "photos/d.png" in lines[1]
    assert results(tmp_path) == {"a-w4", "c-w4"}


def test_what_is_not_found_gets_a_threshold_that_finds_it(model, run, tmp_path, capsys):
    image = picture(tmp_path / "a.png")
    highest = 1 / (1 + np.exp(-float(segment(model, image, "w4").logits.max())))
    run([image], ["w4"], "--threshold", 0.99)
    line = capsys.readouterr().out.splitlines()[0]
    said = re.fullmatch(
        r'a-w4: "w4", nothing reaches 0.99; the highest probability is (.+): try --threshold (.+)', line
    )
    assert 0 <= highest - float(said[1]) < 0.01 and not mask_in(tmp_path / "out/a-w4_mask.png").any()
    run([image], ["w4"], "--threshold", said[2])
    assert mask_in(tmp_path / "out/a-w4_mask.png").any() and "% of the image" in capsys.readouterr().out


def test_few_pixels_count_as_nothing(model, run, tmp_path, capsys):
    """With one pixel more than the mask has it is empty, with as many as it has it stays."""
    image = picture(tmp_path / "a.png")
    pixels = int(segment(model, image, "w4").mask.sum())
    assert pixels
    for fewest, stays in ((pixels, True), (pixels + 1, False)):
        run([image], ["w4"], "--no_target_pixels", fewest)
        line = capsys.readouterr().out.splitlines()[0]
        assert mask_in(tmp_path / "out/a-w4_mask.png").sum() == (pixels if stays else 0)
        assert (f"nothing found: {pixels} pixels, fewer than {fewest}" in line) is not stays
    with pytest.raises(SystemExit):
        run([image], ["w4"], "--no_target_pixels", -1)


@pytest.mark.parametrize(
    ("logit", "threshold", "says"),
    [
        (-0.8, 0.5, "0.5; the highest probability is 0.31: try --threshold 0.25"),
        (-0.0001, 0.5, "0.5; the highest probability is 0.49: try --threshold 0.4"),
        (
            0.0,
            0.5,
            "0.5; the highest probability is 0.5: try --threshold 0.4",
        ),  # exactly 0 is not above the authors' 1e-9
        (50.0, 1, "1; the highest probability is 1.0: try --threshold 0.8"),
        (-7.5, 0.5, "0.5; the highest probability is 0.0006"),
        (-900.0, 0.5, "0.5; the highest probability is 0"),
    ],
)
def test_the_highest_probability(logit, threshold, says):
    logits = np.array([[logit, logit - 1]], np.float32)
    result = Segmentation(np.zeros((1, 2), bool), logits, logits, [], [], [])
    assert predict.found(result, threshold) == f"nothing reaches {says}"
    assert "try" not in predict.found(
        result._replace(unknown=["zebra"]), threshold
    )  # no threshold finds what is unknown


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"images": ["none.png"]}, "none.png: no such file; give an image file"),
        ({"images": ["text.png"]}, "text.png: "),
        ({"images": ["cut.png"]}, "cut.png: "),
        ({"images": ["float.tiff"]}, "float.tiff: "),
        ({"images": ["/dev/null"]}, "is not a regular file"),
        ({"images": ["a.png", "empty"]}, "--image empty: the folder holds no image"),
        ({"texts": ["w4", "  "]}, "--text, number 2: it is empty"),
        ({"texts": ["w" * 20_000]}, "20,000 characters"),
        (["--checkpoint", "text.png"], "text.png"),
        (["--checkpoint", "none.pth"], "none.pth: no such checkpoint"),
        (["--checkpoint", "nan.pth"], "nan.pth: its logits are not finite"),
        (["--threshold", "nan"], "threshold nan: give a probability"),
        (["--threshold", "-2.5"], "threshold -2.5: give a probability"),
        (["--threshold", "high"], "--threshold"),
        (["--device", "toaster"], "--device toaster"),
        (["--out", "text.png"], "text.png"),
    ],
    ids=str,
)
def test_errors_are_one_line(checkpoint, run, tmp_path, monkeypatch, capsys, change, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.png").write_text("not a picture")
    (tmp_path / "empty").mkdir()
    (tmp_path / "cut.png").write_bytes(picture(tmp_path / "a.png").read_bytes()[:300])
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "float.tiff")
    diverged = torch.load(checkpoint, weights_only=True)
    diverged["model"] = {name: weight * torch.nan for name, weight in diverged["model"].items()}
    torch.save(diverged, tmp_path / "nan.pth")
    flags, inputs = (change, {}) if isinstance(change, list) else ([], change)
    with pytest.raises(SystemExit) as left:
        run_main(lambda: run(*({"images": ["a.png"], "texts": ["w4"]} | inputs).values(), *flags))
    error = capsys.readouterr().err
    assert left.value.code == 2 and says in error
    assert error.count("\n") == 1 and "error: " in error and "Traceback" not in error
    assert not list(tmp_path.glob("out/*"))


def test_a_leftover_world_size_does_not_wait_for_others(run, tmp_path, monkeypatch):
    for name, value in (("WORLD_SIZE", "2"), ("RANK", "0"), ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", "1")):
        monkeypatch.setenv(name, value)
    run([picture(tmp_path / "a.png")], ["w4"])
    assert (tmp_path / "out/a-w4_mask.png").exists() and not torch.distributed.is_initialized()


def test_the_patch_map_stands_where_the_patches_are(model):
    """A wide image fills a canvas of 32 x 48 pixels, 4 x 6 patches of 8, from row 4 to 28: half of rows 0 and 3."""
    image = np.zeros((50, 100, 3), np.uint8)
    patches = np.full((4, 6), -50.0, np.float32)
    patches[1, 2] = 50.0
    shown = patch_picture(image, patches, SIZE)
    bright = shown.astype(int).sum(-1) > 300
    rows, columns = np.flatnonzero(bright.any(1)), np.flatnonzero(bright.any(0))
    scale = 100 / 48
    assert abs(rows[0] - (8 - 4) * scale) <= 1 and abs(rows[-1] + 1 - (16 - 4) * scale) <= 1
    assert abs(columns[0] - 16 * scale) <= 1 and abs(columns[-1] + 1 - 24 * scale) <= 1
