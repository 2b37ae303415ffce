"""The estimate of a training step's memory, against what PyTorch's allocator really handed out."""

import pytest
import torch

from models import build_restr
from models.config import FusionConfig, LanguageConfig, ReSTRConfig, VisionConfig
from models.loss import LossConfig, restr_loss
from models.memory import BATCH_SIZES, TRACED, describe_memory, step_bytes, training_gigabytes

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
    weights, peak = step_bytes(CONFIG, TRACED, False, False)
    column = BATCH_SIZES.index(TRACED)
    assert training_gigabytes(CONFIG, False, False)[column] * 1e9 == pytest.approx(2 * weights + peak)
    assert len(describe_memory(CONFIG).splitlines()) == 5
