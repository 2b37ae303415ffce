"""What a fresh model starts from, and its stochastic depth."""

import pytest
import torch
from torch import nn

from models.blocks import PreNormEncoder, SampleDropPath
from models.config import FusionConfig, LanguageConfig, ReSTRConfig, VisionConfig
from models.restr import build_restr

WIDTH = 96
CONFIG = ReSTRConfig(
    VisionConfig("vit_tiny_patch16_224", (32, 48), width=WIDTH, depth=2, heads=3, drop_path=0.2),
    LanguageConfig(40, width=60, depth=1, heads=3),
    FusionConfig(layers=3, drop_path=0.1),
)


def test_draws_decide_which_samples_skip_a_block():
    drop = SampleDropPath(0.25).train()
    drop.draws = torch.tensor([0.0, 0.74, 0.76, 0.99])
    x = torch.randn(4, 5, 6)
    expected = torch.cat([x[:2] / 0.75, torch.zeros(2, 5, 6)])  # kept with probability 0.75, and the mean stays
    torch.testing.assert_close(drop(x), expected)
    assert torch.equal(drop.eval()(x), x)


def drop_rates(encoder: PreNormEncoder) -> list[float]:
    return [getattr(block.drop_path1, "drop_prob", 0.0) for block in encoder.blocks]


def test_fusion_drops_later_blocks_more_often():
    model = build_restr(CONFIG)
    for encoder in (model.fusion.visual_linguistic, model.fusion.linguistic_seed):
        assert drop_rates(encoder) == pytest.approx([0, 0.05, 0.1])
    assert drop_rates(PreNormEncoder(WIDTH, 3, 4.0, layers=3, shared=True, drop_path=0.1)) == [0]
    drops = [module for module in model.modules() if hasattr(module, "draws")]
    assert len(drops) == 2 + 4 + 4  # of the vision encoder's second block, and of two blocks of each fusion encoder


def test_initial_weights():
    torch.manual_seed(0)
    model = build_restr(CONFIG)
    linear = [m for part in (model.language, model.fusion) for m in part.modules() if isinstance(m, nn.Linear)]
    for layer in linear:
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.1)
        assert not layer.bias.any()
    norms = [m for part in (model.language, model.fusion) for m in part.modules() if isinstance(m, nn.LayerNorm)]
    assert norms and all(m.eps == 1e-5 and (m.weight == 1).all() and not m.bias.any() for m in norms)
    assert model.fusion.class_seed.std().item() == pytest.approx(0.02, rel=0.3)
    for matrix in (model.fusion.proj_patch, model.fusion.proj_classifier):
        assert matrix.std().item() == pytest.approx(WIDTH**-0.5, rel=0.05)
    for layer in (*model.decoder.up, model.decoder.head):
        bound = (6 / (layer.in_channels + layer.out_channels)) ** 0.5  # Xavier, uniform
        assert 0.5 * bound < layer.weight.abs().max().item() <= bound
