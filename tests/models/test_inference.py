"""The methods of a loaded model: `segment`, `set_image`, `predict`, on arrays."""

import numpy as np
import pytest
import torch

from eval.evaluator import EvalSettings
from models import ReSTR, load_restr
from models.inference import logit, segment
from tests.support.hostile import refused
from tests.support.small_model import write_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("inference") / "best.pth"
    write_checkpoint(path)
    return path


@pytest.fixture(scope="module")
def model(checkpoint):
    return load_restr(checkpoint, "cpu")


def noise() -> np.ndarray:
    """An image, uint8 40 x 57 x 3."""
    return np.random.default_rng(0).integers(0, 256, (40, 57, 3), dtype=np.uint8)


def test_an_image_is_encoded_once_for_many_expressions(checkpoint, monkeypatch):
    model, image = load_restr(checkpoint), noise()
    assert "set_image" in refused(model.predict, "w4")
    expected = [model.segment(image, text) for text in ("w4", "w5 w6")]
    assert not np.array_equal(*expected)
    model.set_image(image)
    monkeypatch.setattr(model, "encode_image", None)
    assert np.array_equal(model.predict("w4"), expected[0])
    assert all(map(np.array_equal, model.predict(["w4", "w5 w6"]), expected))
    assert len(model.predict(("w4",))) == 1 and model.predict([]) == []
    assert not np.array_equal(model.predict("w4", threshold=0.52), expected[0])


def test_several_expressions_give_a_list(model, monkeypatch):
    encoded, image = [], noise()
    expected = [model.segment(image, text) for text in ("w4", "w5 w6")]
    encode = model.encode_image
    monkeypatch.setattr(model, "encode_image", lambda pixels: encoded.append(1) or encode(pixels))
    found = model.segment(image, ["w4", "w5 w6"])
    assert isinstance(found, list) and np.array_equal(found, expected) and len(encoded) == 1
    assert [len(model.segment(image, ["w4"])), model.segment(image, [])] == [1, []]
    results = segment(model, image, ["w4", "w5 w6"])
    assert [len(result.words) for result in results] == [1, 2]
    assert np.array_equal(segment(model, image, "w4").mask, results[0].mask)


@pytest.mark.parametrize(
    ("given", "available", "chosen"), [(None, True, "cuda"), (None, False, "cpu"), ("cpu", True, "cpu")]
)
def test_the_device_is_cuda_if_it_is_there(checkpoint, monkeypatch, given, available, chosen):
    moved = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    monkeypatch.setattr(ReSTR, "to", lambda model, device: moved.append(device) or model)
    load_restr(checkpoint, given)
    assert moved == [chosen]


@pytest.mark.parametrize("probability", [1e-12, 0.1, 0.49, 0.75, 1 - 1e-12])
def test_thresholds_are_probabilities(probability):
    assert 1 / (1 + np.exp(-logit(probability))) == pytest.approx(probability)


def test_thresholds_at_the_ends(model):
    image = noise()
    assert logit(0.5) == logit(1e-9) == EvalSettings().threshold == 1e-9
    assert model.segment(image, "w4", 0).all() and not model.segment(image, "w4", 1).any()
    for threshold in (-0.1, 1.1, 2.5, float("nan")):
        assert "from 0 to 1" in refused(model.segment, image, "w4", threshold)


def test_arrays_that_are_no_images(model):
    for array in (np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)):
        assert "uint8 H x W x 3" in refused(model.segment, array, "w4")
