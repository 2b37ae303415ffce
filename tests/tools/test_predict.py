"""predict.py and `load_restr(FILE).segment`: the masks of evaluation, from a user's own files."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import predict
from eval.evaluator import EvalSettings, evaluate
from eval.visualise import patch_picture
from models import load_restr
from tests.support.eval_folder import COUNT, write_checkpoint, write_folder
from tests.support.memory_split import SIZE
from utils.cli import run_main
from utils.errors import InputError
from utils.prepared import PreparedSplit

ROOT = Path(__file__).resolve().parents[2]
ORIENTATION = 274  # EXIF tag


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("predict") / "best.pth"
    write_checkpoint(path)
    return path


@pytest.fixture(scope="module")
def model(checkpoint):
    return load_restr(checkpoint)


def run(*arguments: object) -> None:
    predict.main(["--device", "cpu", *map(str, arguments)])


def complaint(capsys, *arguments: object) -> str:
    """The one line that the script says before it leaves with exit code 2."""
    with pytest.raises(SystemExit) as left:
        run_main(lambda: run(*arguments))
    error = capsys.readouterr().err
    assert left.value.code == 2
    assert error.count("\n") == 1 and "error: " in error and "Traceback" not in error
    return error


def picture(path: Path, seed: int = 0, size=(40, 57), **options) -> np.ndarray:
    """Write a noise image; what a reader has to find in it."""
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return pixels


def test_masks_are_those_of_evaluation(model, checkpoint, tmp_path):
    """Every expression of a split: its image's file and its sentence give what the evaluator judged."""
    folder = write_folder(tmp_path)
    split, judged = PreparedSplit(folder, "val"), []
    evaluate(model, split, EvalSettings(threshold=0.05), on_sample=judged.append, progress=False)
    assert len(judged) == COUNT
    for score, image, mask, logits in judged:
        path = folder / "val_image" / f"{score.image_name}.jpg"
        expected = logits >= 0.05
        assert 0 < expected.mean() < 1  # a mask that is neither empty nor everything
        for form in (path, Image.open(path), image):
            assert np.array_equal(model.segment(form, score.sentence, 0.05), expected)
        run(
            *("--checkpoint", checkpoint, "--image", path, "--text", score.sentence),
            *("--out", tmp_path / "out", "--threshold", 0.05),
        )
        written = np.asarray(Image.open(tmp_path / "out" / f"{score.image_name}_1_mask.png"))
        assert written.shape == mask.shape and np.array_equal(written, 255 * expected.astype(np.uint8))


def test_an_image_is_encoded_once(checkpoint, tmp_path, monkeypatch, capsys):
    calls, load = [], predict.load_restr

    def counted(*arguments):
        model = load(*arguments)
        encode = model.encode_image
        monkeypatch.setattr(model, "encode_image", lambda image: calls.append(image.shape) or encode(image))
        return model

    monkeypatch.setattr(predict, "load_restr", counted)
    for name in "ab":
        picture(tmp_path / f"{name}.png", ord(name))
    run(
        *("--checkpoint", checkpoint, "--image", tmp_path / "a.png", tmp_path / "b.png", "--out", tmp_path / "out"),
        *("--text", "w4 w5", "w6", "--text", "w7"),
    )
    assert calls == [(1, 3, *SIZE)] * 2
    kinds = ("mask", "overlay", "patches")
    expected = {f"{name}_{text}_{kind}.png" for name in "ab" for text in (1, 2, 3) for kind in kinds}
    assert {path.name for path in (tmp_path / "out").iterdir()} == expected
    assert all(Image.open(tmp_path / "out" / name).size == (57, 40) for name in expected)
    assert capsys.readouterr().out.count(": 3 expressions in ") == 2
    one = load_restr(checkpoint).segment(tmp_path / "b.png", "w7")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out" / "b_3_mask.png")) == 255, one)


def test_words_that_count_for_nothing_are_named(checkpoint, tmp_path, capsys):
    picture(tmp_path / "a.png")
    texts = ["w4 w5", "W4 zebra \x1b[31m w5, zebra giraffe", "w4 " * 20 + "w5 w6", "."]
    run("--checkpoint", checkpoint, "--image", tmp_path / "a.png", "--out", tmp_path, "--text", *texts)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("of the image")
    assert 'not in the vocabulary: "zebra", ' in lines[1] and lines[1].endswith('"giraffe"') and "\x1b" not in lines[1]
    assert lines[1].partition("vocabulary")[2].count("zebra") == 1
    assert lines[2].endswith("only the first 20 words are read, not: w5 w6")
    assert lines[3].endswith("it has no words")


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "CMYK", "1", "I;16"])
def test_kinds_of_images(model, tmp_path, mode):
    """Whatever a file's pixels are, the mask is that of the same picture in RGB."""
    pixels = picture(tmp_path / "rgb.png")
    if mode == "I;16":
        gray = pixels[..., 0]
        Image.fromarray(gray.astype(np.uint16) * 257).save(tmp_path / "image.png")
        rgb = np.repeat(gray[..., None], 3, 2)
    else:
        image = Image.fromarray(pixels).convert(mode)
        path = tmp_path / ("image.jpg" if mode == "CMYK" else "image.png")
        image.save(path)
        rgb = np.asarray(Image.open(path).convert("RGB"))
    path = next(tmp_path.glob("image.*"))
    expected = model.segment(np.ascontiguousarray(rgb), "w4 w5")
    assert expected.any() and not expected.all() and np.array_equal(model.segment(path, "w4 w5"), expected)
    assert np.array_equal(model.segment(Image.open(path), "w4 w5"), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photographs_are_turned_upright(model, checkpoint, tmp_path, orientation):
    upright = np.random.default_rng(3).integers(0, 256, (40, 57, 3), dtype=np.uint8)
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
    run("--checkpoint", checkpoint, "--image", tmp_path / "phone.png", "--text", "w4 w5", "--out", tmp_path / "out")
    written = np.asarray(Image.open(tmp_path / "out" / "phone_1_mask.png")) == 255
    assert np.array_equal(written, expected)
    shown = np.asarray(Image.open(tmp_path / "out" / "phone_1_overlay.png"))
    same = (shown == upright).all(-1)
    assert not same[written].any() and same[~written].mean() > 0.2  # the rest is the mask's outline


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_is_no_obstacle(model, tmp_path):
    pixels = np.random.default_rng(4).integers(0, 256, (40, 57, 3), dtype=np.uint8)
    for number, junk in enumerate(
        (b"Exif\0\0MM\0*\0\0\xff\xff", b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\x12\x01" * 40)
    ):
        Image.fromarray(pixels).save(tmp_path / f"{number}.jpg", exif=junk, quality=95)
        assert model.segment(tmp_path / f"{number}.jpg", "w4").shape == (40, 57)


def test_names_of_results(checkpoint, tmp_path):
    names = ["Screenshot at 1.05\u202fPM.png", ".hidden.png", "-x.png", "a:b.png", "ü" * 120 + ".png"]
    for name in names:
        picture(tmp_path / name)
    run("--checkpoint", checkpoint, "--image", *(tmp_path / n for n in names), "--text", "w4", "--out", tmp_path / "o")
    written = {path.name.removesuffix("_1_mask.png") for path in (tmp_path / "o").glob("*_mask.png")}
    assert written == {"Screenshot at 1.05_PM", "hidden", "x", "a_b", "ü" * 80}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"--image": "none.png"}, "none.png: no such file; give an image file"),
        ({"--image": "text.png"}, "text.png: "),
        ({"--image": "cut.png"}, "cut.png: "),
        ({"--image": "float.tiff"}, "float.tiff: "),
        ({"--image": "."}, "is not a regular file"),
        ({"--checkpoint": "text.png"}, "text.png"),
        ({"--checkpoint": "none.pth"}, "none.pth: no such checkpoint"),
        ({"--checkpoint": "nan.pth"}, "nan.pth: its logits are not finite"),
        ({"--text": "  "}, "--text, number 1: it is empty"),
        ({"--text": "w" * 20_000}, "20,000 characters"),
        ({"--threshold": "nan"}, "--threshold"),
        ({"--threshold": "high"}, "--threshold"),
        ({"--device": "toaster"}, "--device toaster"),
        ({"--out": "text.png"}, "text.png"),
    ],
    ids=str,
)
def test_errors_are_one_line(checkpoint, tmp_path, monkeypatch, capsys, change, says):
    monkeypatch.chdir(tmp_path)
    picture(tmp_path / "a.png")
    (tmp_path / "text.png").write_text("not a picture")
    (tmp_path / "cut.png").write_bytes((tmp_path / "a.png").read_bytes()[:300])
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "float.tiff")
    diverged = torch.load(checkpoint, weights_only=True)
    diverged["model"] = {name: weight * torch.nan for name, weight in diverged["model"].items()}
    torch.save(diverged, tmp_path / "nan.pth")
    arguments = {"--checkpoint": checkpoint, "--image": "a.png", "--text": "w4", "--out": "out"} | change
    assert says in complaint(capsys, *(value for pair in arguments.items() for value in pair))
    assert not list(tmp_path.glob("out/*"))


def test_images_of_one_name(checkpoint, tmp_path, capsys):
    for name in ("a.png", "a.jpg"):
        picture(tmp_path / name)
    error = complaint(
        capsys, "--checkpoint", checkpoint, "--text", "w4", "--image", tmp_path / "a.png", tmp_path / "a.jpg"
    )
    assert "a.jpg: its results would have the same name as those of" in error


def test_from_another_folder(tmp_path):
    command = [sys.executable, str(ROOT / "predict.py"), "--checkpoint", "x.pth", "--image", "x", "--text", "x"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and done.stderr.startswith("predict.py: error: x.pth: no such checkpoint")


def test_arrays_that_are_no_images(model):
    for array in (np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)):
        with pytest.raises(InputError, match="uint8 H x W x 3"):
            model.segment(array, "w4")


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
