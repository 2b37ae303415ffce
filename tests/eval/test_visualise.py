"""eval/visualise.py: what `--is_vis` writes."""

import numpy as np
import pytest
from PIL import Image

from eval.evaluator import EvalSettings, Prediction, evaluate
from eval.metrics import SampleScore
from eval.visualise import GREEN, ORANGE, grid, highlight, probability, sheet, write_prediction
from tests.support.memory_split import MemorySplit
from tests.support.small_model import tiny_model
from utils.errors import InputError


def test_pictures_agree_with_the_scores(tmp_path):
    split, seen = MemorySplit(), []
    settings = EvalSettings(threshold=0.1)

    def write(prediction):
        seen.append(prediction)
        write_prediction(tmp_path, prediction)

    evaluate(tiny_model(), split, settings, on_sample=write, progress=False)
    kinds = ("_image.jpg", "_gt.png", "_soft.png", "_pred.png", ".jpg")
    assert {path.name for path in tmp_path.iterdir()} == {
        f"unc_val_{i}{kind}" for i in range(len(split)) for kind in kinds
    }
    for score, image, mask, logits, _ in seen:
        truth, soft, hard = (
            np.asarray(Image.open(tmp_path / f"{score.name}_{kind}.png")) for kind in ("gt", "soft", "pred")
        )
        assert np.array_equal(truth, 255 * mask.astype(np.uint8)) and set(np.unique(hard)) <= {0, 255}
        assert ((hard == 255) & mask).sum() == score.intersection and ((hard == 255) | mask).sum() == score.union
        assert np.abs(soft - 255 / (1 + np.exp(-logits.astype(float)))).max() <= 0.5 + 1e-3
        saved = np.asarray(Image.open(tmp_path / f"{score.name}_image.jpg"))
        assert saved.shape == image.shape and abs(float(saved.mean()) - image.mean()) < 5


def test_probability_of_extreme_logits():
    values = probability(np.array([-1e30, -2.0, 0.0, 2.0, 1e30], np.float32))
    assert values == pytest.approx([0, 0.1192029, 0.5, 0.8807971, 1])


def test_the_rest_of_the_picture_is_darkened():
    image, mask = np.full((9, 9, 3), (40, 80, 240), np.uint8), np.zeros((9, 9), bool)
    mask[2:7, 2:7] = True
    shown = highlight(image, mask)
    assert (shown[0, 0] == image[0, 0] // 2).all() and (shown[2, 2] == ORANGE).all()
    assert (shown[4, 4] == image[4, 4]).all()  # "the blue one" stays blue


def test_a_sheet_is_two_by_two():
    """A thing is white; the mask is its upper half, the prediction its lower half."""
    image, mask = np.zeros((60, 80, 3), np.uint8), np.zeros((60, 80), bool)
    image[:40, :40], mask[:20, :40] = 255, True
    score = SampleScore(0, "unc_val_0", 0, 1600, 3, "the white one", "image")
    found = (image[..., 0] > 0) & ~mask
    page = np.asarray(sheet(Prediction(score, image, mask, np.where(found, 9.0, -9.0), found)))
    quarters = [half for row in np.split(page, [len(page) // 2]) for half in np.split(row, 2, axis=1)]
    for colour, places in (((255, 255, 255), [0, 1, 3]), (GREEN, [1]), (ORANGE, [3])):  # the thing, and edges of masks
        assert [i for i in range(4) if (quarters[i] == colour).all(-1).any()] == places


def test_captions_are_wrapped_and_have_the_letters_of_europe():
    def page(caption):
        return np.asarray(grid([(title, np.zeros((30, 300, 3), np.uint8)) for title in "ab"], 2, caption))

    none, one, two, three, cut = (page(text) for text in ("", "red", "red one " * 10, "red " * 30, "w" * 9000))
    line = len(one) - len(none)
    assert [len(each) - len(none) for each in (two, three, cut)] == [2 * line, 3 * line, 3 * line]
    assert {each.shape[1] for each in (none, one, two, three, cut)} == {630}
    missing, *letters = (page(letter).tobytes() for letter in "\U000e0ffféłЖλ“")
    assert len({missing, *letters}) == 6


def test_a_sentence_never_decides_where_a_picture_goes(tmp_path):
    mask, image, logits = np.zeros((9, 5), bool), np.zeros((9, 5, 3), np.uint8), np.zeros((9, 5), np.float32)
    (tmp_path / "in").mkdir()
    evil = SampleScore(0, "unc_val_0", 0, 0, 3, "../../x\n\x1b[31m\u202e" + "w" * 9000, "image")
    write_prediction(tmp_path / "in", Prediction(evil, image, mask, logits, mask))
    assert len(list(tmp_path.rglob("*.*"))) == 5 == len(list((tmp_path / "in").iterdir()))
    with pytest.raises(InputError, match="plain file name"):
        named = SampleScore(0, "../unc_val_0", 0, 0, 3, "x", "image")
        write_prediction(tmp_path / "in", Prediction(named, image, mask, logits, mask))
