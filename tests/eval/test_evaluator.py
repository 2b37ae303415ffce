"""eval/evaluator.py against a slow float64 form that takes one expression at a time."""

from argparse import ArgumentParser

import numpy as np
import pytest
import torch
from torch.nn import functional

from eval import evaluator
from eval.evaluator import EvalSettings, count_rotated, evaluate
from eval.metrics import SampleScore
from models.config import DecoderConfig, FusionConfig
from models.inference import segment
from tests.prepare.test_geometry import plain_bilinear
from tests.support.memory_split import WORDS, MemorySplit
from tests.support.small_model import SIZE, tiny_model
from utils.device import Ranks
from utils.errors import InputError
from utils.options import add_options
from utils.text import SPECIAL_WORDS, Vocabulary


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def split():
    return MemorySplit()


def slow_logits(model, image: np.ndarray, ids: np.ndarray, pad: str = "grey", antialias: bool = False) -> np.ndarray:
    """The protocol in float64, for one expression: H x W logits."""
    (height, width), (canvas_h, canvas_w) = image.shape[:2], SIZE
    scale = min(canvas_h / height, canvas_w / width)
    new_h, new_w = round(height * scale), round(width * scale)
    x = torch.from_numpy(image).double().permute(2, 0, 1)[None] / 255 * 2 - 1
    x = functional.interpolate(x, (new_h, new_w), mode="bilinear", align_corners=False, antialias=antialias)
    canvas = torch.full((1, 3, canvas_h, canvas_w), -1.0 if pad == "black" else 0.0, dtype=torch.float64)
    top, left = (canvas_h - new_h) // 2, (canvas_w - new_w) // 2
    canvas[..., top : top + new_h, left : left + new_w] = x
    logits = model(canvas, torch.from_numpy(ids)[None])[0][0, 0].detach().numpy()  # without a decoder of each patch
    scale = max(height / logits.shape[0], width / logits.shape[1])
    new_h, new_w = (round(side * scale) for side in logits.shape)
    top, left = (new_h - height) // 2, (new_w - width) // 2
    return plain_bilinear(logits, (new_h, new_w))[top : top + height, left : left + width]


def counts(scores: list[SampleScore]) -> list[tuple[int, int, int]]:
    return [(s.index, s.intersection, s.union) for s in scores]


SIZES = [(31, 47), (32, 48), (48, 32), (33, 48), (96, 144), (50, 37), (7, 90), (90, 7), (64, 64), (1, 40), (75, 100)]


@pytest.mark.parametrize("size", [*SIZES, (61, 80), (128, 85)], ids=str)
def test_without_a_decoder_patch_logits_are_resized_once(size):
    """I and U of an image, and the mask that predict.py and the web page show."""
    split, parts = MemorySplit(), {"decoder": DecoderConfig(False)}
    rng = np.random.default_rng(sum(size))
    split.images = [rng.integers(0, 256, (*size, 3), dtype=np.uint8)] * len(split.images)
    split.masks = {ref: rng.random(size) < 0.3 for ref in split.masks}
    scores = evaluate(tiny_model(**parts), split, EvalSettings(), progress=False)
    slow, model = tiny_model(**parts).double(), tiny_model(**parts)
    model.vocabulary = [*SPECIAL_WORDS, *(f"w{i}" for i in range(len(SPECIAL_WORDS), WORDS))]
    found = segment(model, split.image(0), "w7 w9")
    expected = slow_logits(slow, split.image(0), Vocabulary(model.vocabulary).ids("w7 w9"))
    assert np.abs(found.logits - expected).max() < 5e-6 and np.array_equal(found.mask, expected >= 1e-9)
    for i, score in enumerate(scores):
        hard, mask = slow_logits(slow, split.image(i), split.text(i)[0]) >= 1e-9, split.mask(i)
        assert (score.intersection, score.union) == ((hard & mask).sum(), (hard | mask).sum())


@pytest.mark.parametrize(
    "options",
    [{}, {"pad": "black"}, {"antialias": True}, {"pad": "black", "antialias": True, "threshold": 0.2}],
    ids=["default", "black", "antialias", "all"],
)
def test_scores_equal_the_slow_form(model, split, options):
    scores = evaluate(model, split, EvalSettings(**options), progress=False)
    assert counts(scores) != counts(evaluate(model, split, progress=False)) or not options
    slow = tiny_model().double()
    threshold, protocol = options.get("threshold", 1e-9), {key: options[key] for key in options if key != "threshold"}
    noise = 1e-6  # float32's on these logits; pixels that near the threshold may fall on either side
    near = 0
    for i, score in enumerate(scores):
        logits, mask = slow_logits(slow, split.image(i), split.text(i)[0], **protocol), split.mask(i)
        sure, maybe = logits >= threshold + noise, logits >= threshold - noise
        assert (sure & mask).sum() <= score.intersection <= (maybe & mask).sum()
        assert (sure | mask).sum() <= score.union <= (maybe | mask).sum()
        assert 0.005 < sure.mean() < 0.995, "the test needs masks that are neither empty nor full"
        near += (maybe & ~sure).sum()
        assert (score.index, score.name, score.image_name) == (i, f"unc_val_{i}", split.text(i)[2])
        assert (score.length, score.sentence) == (np.count_nonzero(split.text(i)[0]), split.text(i)[1])
    assert near < 5


def test_the_length_of_an_expression_counts_what_is_cut(model):
    split = MemorySplit()
    split.text = lambda i: (np.ones(20, np.int64), "word " * 25, f"image{split.rows[i][0]}")
    assert {score.length for score in evaluate(model, split, progress=False)} == {25}


@pytest.mark.parametrize(("batch_size", "workers"), [(2, 0), (3, 2), (64, 0)])
def test_batched_equals_one_by_one(model, split, batch_size, workers):
    one = evaluate(model, split, EvalSettings(batch_size=1), progress=False)
    assert [score.index for score in one] == list(range(len(split)))
    assert evaluate(model, split, EvalSettings(batch_size=batch_size), num_workers=workers, progress=False) == one


def test_room_for_the_images_that_processes_decode_ahead(split, monkeypatch):
    asked, size = [], 4 * split.mask(0).size  # bytes: three of a pixel, one of the mask
    monkeypatch.setattr(evaluator, "check_shared_memory", lambda *numbers: asked.append(numbers))
    for batch_size, workers in ((8, 2), (2, 4), (8, 0)):
        evaluator.check_room(split, batch_size, workers)
    assert asked == [(size, 2, 8, 4), (size, 4, 2, 2), (0, 0, 8, 8)]


def test_an_image_is_encoded_once(model, split, monkeypatch):
    encoded, sentences = [], []
    encode_image, encode_text = model.encode_image, model.encode_text
    monkeypatch.setattr(model, "encode_image", lambda x: encoded.append(len(x)) or encode_image(x))
    monkeypatch.setattr(model, "encode_text", lambda ids: sentences.append(len(ids)) or encode_text(ids))
    evaluate(model, split, EvalSettings(batch_size=4), progress=False)
    assert encoded == [4, 1]
    assert sum(sentences) == len(split) and max(sentences) == 4


@pytest.mark.parametrize("world", [2, 3, 7])
def test_ranks_share_the_split_without_overlap(model, split, world):
    together = []
    for rank in range(world):
        with pytest.raises(InputError, match="were evaluated but the split has"):  # the others did not come
            watch = {"on_sample": lambda found: together.append(found.score), "progress": False}
            evaluate(model, split, ranks=Ranks(torch.device("cpu"), rank, world), **watch)
    assert sorted(together, key=lambda score: score.index) == evaluate(model, split, progress=False)


@pytest.mark.parametrize(("amp", "points"), [("bf16", 2), ("fp16", 0.2)])
def test_amp_is_near_float32(model, split, amp, points):
    """Of a model without training, whose logits all lie near the threshold."""
    logits = {None: [], amp: []}
    ious = {}
    for name, own in logits.items():
        watch = {"on_sample": lambda found, own=own: own.append(found.logits), "progress": False}
        ious[name] = np.array([score.iou for score in evaluate(model, split, EvalSettings(amp=name), **watch)])
    assert not any(map(np.array_equal, *logits.values()))
    assert 100 * np.mean(abs(ious[amp] - ious[None])) < points


def test_a_logit_of_exactly_the_threshold_belongs_to_the_object(split):
    model = tiny_model()
    for value in model.decoder.head.parameters():
        torch.nn.init.zeros_(value)  # and so is each logit
    for threshold, found in ((0.0, True), (1e-9, False)):
        scores = evaluate(model, split, EvalSettings(threshold=threshold), progress=False)
        for score, mask in zip(scores, map(split.mask, range(len(split))), strict=True):
            assert (score.intersection, score.union) == ((mask.sum(), mask.size) if found else (0, mask.sum()))


def test_rotated_expressions_are_judged_against_the_next_ref_of_the_image(model, split):
    seen = {}
    watch = {"on_sample": lambda found: seen.update({found.score.index: found}), "progress": False}
    rotated = evaluate(model, split, rotate_expressions=True, **watch)
    moved = 0
    for group in split.image_groups():
        refs = list(dict.fromkeys(map(split.ref, group)))  # in order of appearance
        following = dict(zip(refs, refs[1:] + refs[:1], strict=True))  # around; an image of one ref keeps it
        for i in group:
            mask, found = split.masks[following[split.ref(i)]], seen[i].logits >= 1e-9
            assert np.array_equal(seen[i].mask, mask) and rotated[i].intersection == (found & mask).sum()
            moved += not np.array_equal(mask, split.mask(i))
    assert count_rotated(split) == moved == 11


def test_predictions_agree_with_the_scores(model, split):
    seen = {}
    settings = EvalSettings(batch_size=3)
    scores = evaluate(model, split, settings, on_sample=lambda p: seen.update({p.score.index: p}), progress=False)
    assert sorted(seen) == list(range(len(split)))
    for i, (score, image, mask, logits, _) in seen.items():
        assert score == scores[i]
        assert np.array_equal(image, split.image(i)) and np.array_equal(mask, split.mask(i))
        assert logits.dtype == np.float32 and ((logits >= 1e-9) & mask).sum() == score.intersection
    few = []
    evaluate(model, split, on_sample=few.append, shown={4, 1}, progress=False)
    assert sorted(prediction.score.index for prediction in few) == [1, 4]


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_in_its_mode(split, monkeypatch, training):
    """And cuDNN, which does not try its ways for each number of expressions."""
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", training)
    model, trying = tiny_model(fusion=FusionConfig(drop_path=0.9)).train(training), []
    watch = {"on_sample": lambda _: trying.append(torch.backends.cudnn.benchmark), "progress": False}
    first = evaluate(model, split, **watch)
    assert trying and not any(trying)
    assert model.training is training and torch.backends.cudnn.benchmark is training
    assert evaluate(model, split, progress=False) == first  # stochastic depth was off


def test_logits_that_are_not_finite_are_an_error(split):
    model = tiny_model()
    with torch.no_grad():
        model.decoder.head.weight.fill_(float("nan"))
    with pytest.raises(InputError, match=r"unc_val_\d+ are not finite"):
        evaluate(model, split, progress=False)


def test_ids_outside_the_vocabulary_are_an_error(model):
    split = MemorySplit()
    split.text = lambda i: (np.full(20, WORDS), "word", "image0")
    with pytest.raises(InputError, match="word id 30 .* vocabulary of 30 words"):
        evaluate(model, split, progress=False)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_mask_of_another_size_is_one_line(model, workers):
    split = MemorySplit()
    split.masks = {key: mask[:, 1:] for key, mask in split.masks.items()}
    with pytest.raises(InputError, match=r"^unc_val_\d+: the mask is 57 x 32 and the image 57 x 33") as caught:
        evaluate(model, split, num_workers=workers, progress=False)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "flags", [["--eval_pad=white"], ["--batch_size=0"], ["--batch_size=1025"], ["--threshold=nan"], ["--threshold=inf"]]
)
def test_settings_that_cannot_be(flags):
    parser = ArgumentParser()
    add_options(parser, EvalSettings)
    parser.parse_args(["--eval_pad=black", "--batch_size=1", "--threshold=-1"])
    with pytest.raises(SystemExit):
        parser.parse_args(flags)
