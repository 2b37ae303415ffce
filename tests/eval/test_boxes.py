"""Bounding boxes of masks against scikit-image's and against boxes that are painted pixel by pixel."""

import numpy as np
import pytest
import torch
from skimage.measure import regionprops

from eval.boxes import box_overlap, mask_boxes
from eval.evaluator import EvalSettings, evaluate
from tests.support.memory_split import MemorySplit
from tests.support.small_model import tiny_model


def random_masks(seed: int, count: int, height: int, width: int) -> torch.Tensor:
    """bool count x height x width, from a single pixel to many; every seventh is empty."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((count, height, width), bool)
    for number, mask in enumerate(masks):
        for _ in range(rng.integers(1, 6) if number % 7 else 0):
            mask[rng.integers(height), rng.integers(width)] = True
    return torch.from_numpy(masks)


def painted(mask: np.ndarray) -> np.ndarray:
    """The pixels of the box around a mask, bool H x W: those with a mask's pixel on or before and on or after them."""
    rows, columns = mask.any(1), mask.any(0)
    sides = [np.logical_or.accumulate(x) & np.logical_or.accumulate(x[::-1])[::-1] for x in (rows, columns)]
    return np.outer(*sides)


def plain_iou(a: np.ndarray, b: np.ndarray) -> float:
    """IoU of the boxes of two masks; 1 if both are empty."""
    a, b = painted(a), painted(b)
    return (a & b).sum() / (a | b).sum() if (a | b).any() else 1.0


@pytest.mark.parametrize("size", [(9, 13), (13, 9), (1, 6), (6, 1), (1, 1), (70, 300)], ids=str)
def test_boxes_are_those_of_scikit_image(size):
    masks = random_masks(sum(size), 40, *size)
    for mask, (left, top, right, bottom) in zip(masks.numpy(), mask_boxes(masks).tolist(), strict=True):
        regions = regionprops(mask.astype(int))
        assert (top, left, bottom, right) == (regions[0].bbox if regions else (0, 0, 0, 0))


def test_overlap_counts_pixels():
    a, b = random_masks(1, 60, 9, 13), random_masks(2, 60, 9, 13).roll(3, 0)
    counted = list(zip(*box_overlap(mask_boxes(a), mask_boxes(b)), strict=True))
    boxes = [(painted(x), painted(y)) for x, y in zip(a.numpy(), b.numpy(), strict=True)]
    assert counted == [((x & y).sum(), (x | y).sum()) for x, y in boxes]
    assert len({int(hit) for hit, _ in counted}) > 10


@pytest.mark.parametrize("threshold", [1e-9, 0.3, 1e6])
def test_each_expression_s_box(threshold):
    """Of the predicted mask, whose box is often most of the image, against ground truth of a few pixels or none."""
    model, split, seen = tiny_model(), MemorySplit(), {}
    for number, ref in enumerate(split.masks):
        size = split.masks[ref].shape
        split.masks[ref] = random_masks(number, 8, *size)[number % 8].numpy()
    split.masks[next(iter(split.masks))][1:-1, 1:-1] = True
    settings = EvalSettings(batch_size=3, threshold=threshold)
    scores = evaluate(model, split, settings, on_sample=lambda p: seen.update({p.score.index: p}), progress=False)
    for score in scores:
        assert score.box_iou == plain_iou(seen[score.index].logits >= threshold, split.mask(score.index))
    found = {score.box_iou for score in scores}
    assert found == {0.0, 1.0} if threshold == 1e6 else len(found) > 5
