"""The language encoder's positions and padding."""

import math

import numpy as np
import pytest
import torch

from models.config import FusionConfig, LanguageConfig
from models.language import LanguageEncoder, sinusoids
from tests.support.small_model import tiny_model


@pytest.mark.parametrize("width", [300, 48, 7])
def test_sinusoids(width):
    plain = np.zeros((20, width))
    for position in range(20):
        for channel in range(width):
            angle = position / 10000 ** (channel // 2 * 2 / width)
            plain[position, channel] = math.cos(angle) if channel % 2 else math.sin(angle)
    np.testing.assert_allclose(sinusoids(20, width), plain, atol=1e-7)


def test_positions_are_fixed_and_the_padding_row_stays_zero():
    encoder = LanguageEncoder(LanguageConfig(9, 12, depth=1, heads=3), out_width=24)
    assert "positions" not in encoder.state_dict()
    ids = torch.tensor([[0] * 17 + [3, 5, 3]])
    l = encoder(ids)
    assert l.shape == (1, 20, 24)
    assert not torch.allclose(l[0, 17], l[0, 19])  # one word, two places
    (l * torch.randn_like(l)).sum().backward()
    touched = encoder.embedding.weight.grad.abs().sum(1) > 0
    assert touched.nonzero().flatten().tolist() == [3, 5]


@pytest.mark.parametrize("variant", ["indirect", "independent", "vanilla"])
def test_padding_features_do_not_reach_the_logits(variant):
    model = tiny_model(fusion=FusionConfig(variant, layers=1))
    ids = torch.tensor([[0] * 17 + [3, 5, 3]])
    v, l, other = torch.randn(1, 24, 24), torch.randn(1, 20, 24), torch.randn(1, 20, 24)
    words = (ids != 0).unsqueeze(-1)

    def logits(l):
        return model.segment_features(v, l, ids)[0]

    assert torch.equal(logits(torch.where(words, l, other)), logits(l))
    assert not torch.allclose(logits(torch.where(words, other, l)), logits(l))
