"""What a fresh model starts from, its stochastic depth, and what its blocks keep for the backward pass."""

import copy
from dataclasses import replace

import pytest
import torch
from timm.layers import DropPath, Mlp
from timm.models.vision_transformer import Block
from torch import nn

from models.blocks import LeanAttention, LeanBlock, LeanMlp, PreNormEncoder, SampleDropPath, replace_layers
from models.config import FusionConfig, LanguageConfig, ReSTRConfig, VisionConfig
from models.restr import build_restr
from tests.support.small_model import CONFIG as SMALL

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


def test_later_blocks_are_dropped_more_often_by_our_own_layers():
    model = build_restr(CONFIG)
    encoders = {encoder: [0, 0.05, 0.1] for encoder in (model.fusion.visual_linguistic, model.fusion.linguistic_seed)}
    encoders |= {model.vision.backbone: [0, 0.2], PreNormEncoder(WIDTH, 3, 4.0, 3, shared=True, drop_path=0.1): [0]}
    for encoder, rates in encoders.items():
        assert [getattr(block.drop_path1, "drop_prob", 0.0) for block in encoder.blocks] == pytest.approx(rates)
    drops = [module for module in model.modules() if isinstance(module, DropPath)]
    assert len(drops) == 2 + 4 + 4 and {type(drop) for drop in drops} == {SampleDropPath}
    assert not [name for name, module in model.named_modules() if type(module) is Mlp]


def test_initial_weights():
    torch.manual_seed(0)
    model = build_restr(CONFIG)
    modules = [*model.language.modules(), *model.fusion.modules()]
    for layer in (m for m in modules if isinstance(m, nn.Linear)):
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.1)
        assert not layer.bias.any()
    norms = [m for m in modules if isinstance(m, nn.LayerNorm)]
    assert norms and all(m.eps == 1e-5 and (m.weight == 1).all() and not m.bias.any() for m in norms)
    assert model.fusion.class_seed.std().item() == pytest.approx(0.02, rel=0.3)
    for matrix in (model.fusion.proj_patch, model.fusion.proj_classifier):
        assert matrix.std().item() == pytest.approx(WIDTH**-0.5, rel=0.05)
    for layer in (*model.decoder.up, model.decoder.head):
        bound = (6 / (layer.in_channels + layer.out_channels)) ** 0.5  # Xavier, uniform
        assert 0.5 * bound < layer.weight.abs().max().item() <= bound


def test_a_lean_mlp_gives_the_same_bits_and_keeps_less():
    torch.manual_seed(0)
    plain = Mlp(24, 96)
    results = []
    replace_layers(holder := nn.ModuleList([copy.deepcopy(plain)]))
    lean = holder[0]
    for mlp in (plain, lean):
        x = torch.randn(2, 7, 24, generator=torch.Generator().manual_seed(1), requires_grad=True)
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t) or t, lambda t: t):
            y = mlp(x)
        y.square().sum().backward()
        wide = {t.untyped_storage().data_ptr() for t in kept if t.shape[-1] == 96 and t.numel() == 2 * 7 * 96}
        results.append((len(wide), [y, x.grad, *(p.grad for p in mlp.parameters())]))
    (wide, tensors), (lean_wide, lean_tensors) = results
    assert (wide, lean_wide) == (2, 1) and all(map(torch.equal, tensors, lean_tensors))


def test_lean_layers_of_a_block_give_the_same_bits():
    torch.manual_seed(0)
    plain = Block(24, 3, qkv_bias=True, qk_norm=True, drop_path=0.5, init_values=0.1)
    replace_layers(holder := nn.ModuleList([copy.deepcopy(plain)]))
    lean = holder[0]
    assert {LeanBlock, LeanAttention, LeanMlp, SampleDropPath} <= {type(layer) for layer in lean.modules()}
    results = []
    for block in (plain, lean):
        torch.manual_seed(1)
        x = torch.randn(4, 7, 24, requires_grad=True)
        y = block(x)
        y.square().sum().backward()
        results.append([y, x.grad, *(parameter.grad for parameter in block.parameters())])
    assert all(map(torch.equal, *results)) and lean.state_dict().keys() == plain.state_dict().keys()


def test_grad_checkpointing_runs_each_block_again_for_the_same_gradients():
    torch.manual_seed(0)
    still = {name: replace(getattr(SMALL, name), drop_path=0.0) for name in ("vision", "fusion")}
    model = build_restr(replace(SMALL, **still)).train()
    blocks = [
        *model.vision.backbone.blocks,
        *model.fusion.visual_linguistic.blocks,
        *model.fusion.linguistic_seed.blocks,
    ]
    runs, gradients = [], []
    for block in blocks:
        block.register_forward_pre_hook(lambda *_: runs.append(1))
    image, ids = torch.randint(0, 256, (2, 3, 32, 48), dtype=torch.uint8), torch.randint(0, 30, (2, 20))
    for enable, times in ((True, 2), (False, 1)):
        model.set_grad_checkpointing(enable)
        for grad in (False, True):
            runs.clear()
            with torch.set_grad_enabled(grad):
                loss = sum(logits.square().sum() for logits in model(image, ids))
            if grad:
                gradients.append(torch.autograd.grad(loss, [*model.parameters()]))
            assert len(runs) == len(blocks) * (times if grad else 1)
    assert all(map(torch.equal, *gradients))
    assert not hasattr(model.fusion.norm, "grad_checkpointing")
