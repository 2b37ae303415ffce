"""results.json of predict.py: against scikit-image, a plain mean, and what pycocotools loads."""

import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from scipy.special import expit
from skimage.measure import regionprops

import predict
from models import load_restr
from models.inference import segment
from tests.support.small_model import write_checkpoint
from tests.tools.test_predict import mask_in, picture
from utils.cli import run_main


@pytest.fixture
def run(tmp_path):
    """run(images, texts, *flags): the script, with results in `tmp_path`/out."""
    write_checkpoint(tmp_path / "best.pth")

    def run(images: list, texts: list[str], *flags: object) -> None:
        command = ["--device", "cpu", "--checkpoint", tmp_path, "--out", tmp_path / "out", *flags]
        predict.main([*map(str, [*command, "--image", *images, "--text", *texts])])

    return run


def results_in(folder: Path) -> list[dict]:
    return json.loads((folder / "out/results.json").read_text())


def test_results_say_what_was_found(run, tmp_path):
    model = load_restr(tmp_path / "best.pth", "cpu")
    images, texts = [picture(tmp_path / f"{name}.png", ord(name)) for name in "ab"], ["w4 w5", "zebra w6, zebra", "w7"]
    pairs = [*product(map(str, images), [*texts, "w8 " * 22])]
    lowest = min(float(expit(segment(model, *pair).logits.max())) for pair in pairs)  # so that no mask is empty or full
    run(images, [*texts, "w8 " * 22], "--threshold", lowest - 1e-3)
    found = results_in(tmp_path)
    assert [(each["image"], each["expression"]) for each in found] == pairs
    assert [each["unknown_words"] for each in found[:4]] == [[], ["zebra", ","], [], []]
    assert [len(each["unread_words"]) for each in found[:4]] == [0, 0, 0, 2]
    shapes = set()
    for each in found:
        mask = mask_in(tmp_path / "out" / each["files"]["mask"])
        assert all(Image.open(tmp_path / "out" / name).size == (57, 40) for name in each["files"].values())
        assert list(each["files"]) == ["mask", "overlay", "patches"]
        assert (each["area"], each["height"], each["width"]) == (mask.sum(), 40, 57) and 0 < mask.mean() < 1
        left, top, width, height = each["box"]
        assert (top, left, top + height, left + width) == regionprops(mask.astype(int))[0].bbox
        logits = segment(model, each["image"], each["expression"]).logits
        assert each["score"] == pytest.approx(float(expit(logits[mask].astype(float)).mean()), abs=1e-12)
        shapes.add((left, top, width, height))
    assert len(shapes) > 2


def test_results_without_a_mask_and_of_damaged_images(run, tmp_path, capsys):
    (tmp_path / "bad.png").write_text("not an image")
    with pytest.raises(SystemExit) as left:
        run_main(lambda: run([tmp_path / "bad.png", picture(tmp_path / "a.png")], ["w4"], "--threshold", 1))
    (each,) = results_in(tmp_path)  # of the one that could be read
    assert (each["score"], each["box"], each["area"]) == (0.0, None, 0) and left.value.code == 2


def loaded_by_coco(path: Path, ids: list[int]) -> COCO:
    """The results, for a data set of images of 40 x 57 pixels with these ids."""
    truth = COCO()
    images = [{"id": number, "height": 40, "width": 57} for number in ids]
    truth.dataset = {"images": images, "categories": [{"id": 1}], "annotations": []}
    truth.createIndex()
    return truth.loadRes(str(path))


@pytest.mark.parametrize(
    ("names", "ids"),
    [
        (["COCO_train2014_000000000025", "000000000071"], [25, 71]),
        (["COCO_train2014_000000000025", "photo"], [1, 2]),
        (["x_000000000025", "000000000025"], [1, 2]),
        (["0000000000025"], [1]),
    ],
)
def test_coco_results_are_those_that_pycocotools_loads(run, tmp_path, capsys, names, ids):
    images = [picture(tmp_path / f"{name}.png", number) for number, name in enumerate(names)]
    run(images, ["w4", "w5 zebra", "w6"], "--format", "coco", "--threshold", 0.505)
    loaded = loaded_by_coco(tmp_path / "out/results.json", ids)
    assert loaded.getImgIds() == ids and len(loaded.anns) == 3 * len(ids)
    for number, image in zip(ids, images, strict=True):
        for each in loaded.loadAnns(loaded.getAnnIds([number])):
            mask = mask_in(tmp_path / "out" / each["files"]["mask"])
            assert each["image"] == str(image) and np.array_equal(loaded.annToMask(each), mask) and mask.any()
            top, left, bottom, right = regionprops(mask.astype(int))[0].bbox
            assert list(each["bbox"]) == [left, top, right - left, bottom - top] and each["area"] == mask.sum()
            assert 0.505 <= each["score"] < 1 and each["unknown_words"] == ["zebra"] * ("zebra" in each["expression"])


@pytest.mark.parametrize(("name", "number"), [("000000000071", 71), ("photo", 2)])
def test_a_damaged_image_changes_no_coco_id_of_the_others(run, tmp_path, capsys, name, number):
    (tmp_path / "a.png").write_text("not an image")
    with pytest.raises(SystemExit):
        run_main(lambda: run([tmp_path / "a.png", picture(tmp_path / f"{name}.png")], ["w4"], "--format", "coco"))
    assert [each["image_id"] for each in results_in(tmp_path)] == [number]


def test_coco_results_of_empty_masks(run, tmp_path, capsys):
    run([picture(tmp_path / "a.png")], ["w4"], "--format", "coco", "--threshold", 1)
    (each,) = loaded_by_coco(tmp_path / "out/results.json", [1]).anns.values()
    assert (each["score"], each["area"], list(each["bbox"])) == (0, 0, [0, 0, 0, 0])
