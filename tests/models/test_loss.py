"""The loss and its patch labels against plain forms, one pixel and one patch at a time."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from models.loss import LossConfig, patch_labels, restr_loss

PATCH = (8, 4)  # height and width differ, so that they cannot be exchanged


def mask_of(*counts: int) -> Tensor:
    """One row of patches, of whose 32 pixels so many are set: bool 1 x 1 x 8 x W."""
    patches = [np.arange(PATCH[0] * PATCH[1]).reshape(PATCH) < count for count in counts]
    return torch.from_numpy(np.concatenate(patches, 1))[None, None]


@pytest.mark.parametrize(
    ("label", "threshold", "expected"),
    [
        ("any", 0.8, [0, 1, 1, 1, 1, 1]),  # the reference: more than 0.8 pixels
        ("any", 8, [0, 0, 0, 1, 1, 1]),  # more than 8 of them
        ("share", 0.25, [0, 0, 0, 1, 1, 1]),  # more than a quarter, which 8 of 32 are not
        ("share", 0.8, [0, 0, 0, 0, 1, 1]),  # 26 of 32 are 0.8125
    ],
)
def test_patch_labels(label, threshold, expected):
    mask = mask_of(0, 1, 8, 9, 26, 32)
    found = patch_labels(mask, (1, 6), LossConfig(patch_label=label, patch_thres=threshold))
    assert found.dtype == torch.float32 and found.shape == (1, 1, 1, 6)
    assert found.flatten().tolist() == expected
    assert torch.equal(patch_labels(mask.float(), (1, 6), LossConfig(0.1, label, threshold)), found)


def test_labels_lie_where_their_patches_do():
    mask = torch.zeros(2, 1, 16, 12, dtype=torch.bool)
    mask[0, 0, 9, 5] = mask[1, 0, 0, 11] = True
    labels = patch_labels(mask, (2, 3), LossConfig())
    assert labels.nonzero().tolist() == [[0, 0, 1, 1], [1, 0, 0, 2]]


def cross_entropy(logits: Tensor, labels: Tensor) -> float:
    """Mean over all elements, from the definition."""
    chances = [1 / (1 + math.exp(-x)) for x in logits.flatten().tolist()]
    pairs = zip(chances, labels.flatten().tolist(), strict=True)
    return -sum(math.log(p if label else 1 - p) for p, label in pairs) / len(chances)


def corners_aligned(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """N x 1 x h x w resized so that corner pixels stay where they are, one axis after the other."""
    result = logits[:, 0].double().numpy()
    for axis, length in enumerate(size, 1):
        place = np.linspace(0, result.shape[axis] - 1, length)
        old = np.arange(result.shape[axis])
        result = np.apply_along_axis(lambda line, place=place, old=old: np.interp(place, old, line), axis, result)
    return torch.from_numpy(result)[:, None]


@pytest.mark.parametrize("size", [(16, 12), (5, 6)], ids=["as the mask", "smaller"])
@pytest.mark.parametrize("alpha", [0.1, 0.7, None])
def test_loss(size, alpha):
    torch.manual_seed(0)
    mask = torch.zeros(2, 1, 16, 12, dtype=torch.bool)
    mask[0, 0, 3:9, 2:7] = True
    pixel, patch = 3 * torch.randn(2, 1, *size), 3 * torch.randn(2, 1, 2, 3)
    losses = restr_loss(pixel, patch, mask, LossConfig(alpha))
    expected = {"pixel": cross_entropy(corners_aligned(pixel, (16, 12)), mask)}
    if alpha is not None:
        expected["patch"] = cross_entropy(patch, patch_labels(mask, (2, 3), LossConfig()))
    expected["loss"] = expected["pixel"] + (alpha or 0) * expected.get("patch", 0)
    assert {name: value.item() for name, value in losses.items()} == pytest.approx(expected, rel=1e-5)


def test_half_precision_logits_are_judged_in_float32():
    pixel, patch = torch.randn(1, 1, 8, 12).bfloat16(), torch.randn(1, 1, 1, 3).bfloat16()
    losses = restr_loss(pixel, patch, mask_of(0, 1, 32), LossConfig())
    exact = restr_loss(pixel.float(), patch.float(), mask_of(0, 1, 32), LossConfig())
    assert losses == exact and losses["loss"].dtype == torch.float32


@pytest.mark.parametrize("label", ["any", "share"])
def test_an_expression_without_an_object_has_a_finite_loss(label):
    """Of no pixel in the mask the loss is the mean of log(1 + e^x), and falls with every logit."""
    torch.manual_seed(2)
    pixel, patch = torch.randn(2, 1, 16, 12, requires_grad=True), torch.randn(2, 1, 2, 3, requires_grad=True)
    losses = restr_loss(pixel, patch, torch.zeros(2, 1, 16, 12, dtype=torch.bool), LossConfig(0.5, label))
    values = [[math.log1p(math.exp(x)) for x in logits.flatten().tolist()] for logits in (pixel, patch)]
    means = [sum(value) / len(value) for value in values]
    assert losses["loss"].item() == pytest.approx(means[0] + 0.5 * means[1], abs=1e-6)
    losses["loss"].backward()
    assert all(logits.grad.isfinite().all() and (logits.grad > 0).all() for logits in (pixel, patch))
