"""What the MLPs store for the backward pass."""

import copy

import torch
from timm.layers import DropPath, Mlp

from models import build_restr
from models.blocks import LeanMlp
from models.config import FusionConfig, LanguageConfig, ReSTRConfig, VisionConfig

CONFIG = ReSTRConfig(
    VisionConfig("vit_tiny_patch16_224", (96, 128), patch_size=16, width=48, depth=3, heads=3, norm_eps=1e-5),
    LanguageConfig(50, width=24, depth=1, heads=3),
    FusionConfig(layers=1, heads=3),
)


def test_a_lean_mlp_gives_the_same_bits_and_keeps_less():
    torch.manual_seed(0)
    plain = Mlp(24, 96)
    lean = LeanMlp.of(copy.deepcopy(plain))
    results = []
    for mlp in (plain, lean):
        x = torch.randn(2, 7, 24, generator=torch.Generator().manual_seed(1), requires_grad=True)
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t) or t, lambda t: t):
            y = mlp(x)
        y.square().sum().backward()
        wide = {t.untyped_storage().data_ptr() for t in kept if t.shape[-1] == 96 and t.numel() == 2 * 7 * 96}
        results.append((y, x.grad, [p.grad for p in mlp.parameters()], len(wide)))
    (y, dx, grads, wide), (lean_y, lean_dx, lean_grads, lean_wide) = results
    assert torch.equal(y, lean_y) and torch.equal(dx, lean_dx) and (wide, lean_wide) == (2, 1)
    assert all(torch.equal(a, b) for a, b in zip(grads, lean_grads, strict=True))


def test_the_encoders_mlps_are_lean():
    model = build_restr(CONFIG)
    assert all("draws" in dir(module) for module in model.modules() if isinstance(module, DropPath))
    assert not [name for name, module in model.named_modules() if type(module) is Mlp]
