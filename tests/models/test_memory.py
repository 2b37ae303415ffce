"""The estimate of a training step's memory, against what PyTorch's allocator really handed out."""

import copy

import pytest
import torch
from timm.layers import Mlp

from models import build_restr
from models.blocks import LeanMlp
from models.config import FusionConfig, LanguageConfig, ReSTRConfig, VisionConfig
from models.loss import LossConfig, restr_loss
from tools.model_size import BATCH_SIZES, describe_memory, step_bytes, training_gigabytes

CONFIG = ReSTRConfig(
    VisionConfig("vit_tiny_patch16_224", (96, 128), patch_size=16, width=48, depth=3, heads=3, norm_eps=1e-5),
    LanguageConfig(50, width=24, depth=1, heads=3),
    FusionConfig(layers=1, heads=3),
)


def allocator_peak(batch, amp, grad_checkpoint):
    """Peak bytes during a real step, from the profiler's record of the allocator, weights included."""
    model = build_restr(CONFIG).train()
    model.set_grad_checkpointing(grad_checkpoint)
    with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        image = torch.zeros(batch, 3, 96, 128, dtype=torch.uint8)
        ids = torch.randint(1, 50, (batch, 20))
        mask = torch.zeros(batch, 1, 96, 128, dtype=torch.bool)
        with torch.autocast("cpu", torch.bfloat16, enabled=amp):
            outputs = model(image, ids)
        restr_loss(*outputs, mask, LossConfig())["loss"].backward()
    now = peak = 0
    for event in sorted(profile.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    return peak + sum(value.nbytes for value in model.parameters())


@pytest.mark.parametrize(("amp", "grad_checkpoint"), [(False, False), (True, False), (True, True)])
def test_the_estimate_is_what_a_step_takes(amp, grad_checkpoint):
    weights, peak = step_bytes(CONFIG, 8, amp, grad_checkpoint)
    held = sum(value.nbytes for value in [*build_restr(CONFIG).parameters(), *build_restr(CONFIG).buffers()])
    assert weights == held
    assert peak == pytest.approx(allocator_peak(8, amp, grad_checkpoint), rel=0.1)


def test_flags_that_save_memory_save_it():
    whole, amp, both = (step_bytes(CONFIG, 8, *flags)[1] for flags in ((False, False), (True, False), (True, True)))
    assert both < 0.8 * amp < 0.6 * whole


def test_the_table_counts_the_optimiser():
    for batch in (8, 32):  # one that the estimate has traced, and one that it has not
        weights, peak = step_bytes(CONFIG, batch, True, False)
        found = training_gigabytes(CONFIG, True, False)[BATCH_SIZES.index(batch)]
        assert found * 1e9 == pytest.approx(2 * weights + peak, rel=1e-3)
    assert len(describe_memory(CONFIG).splitlines()) == 6


def test_a_lean_mlp_gives_the_same_bits_and_keeps_less():
    torch.manual_seed(0)
    plain = Mlp(24, 96)
    lean = copy.deepcopy(plain)
    lean.__class__ = LeanMlp
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
    assert not [name for name, module in model.named_modules() if type(module) is Mlp]
