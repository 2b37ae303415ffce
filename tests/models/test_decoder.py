"""The decoder against upsampling first and projecting afterwards, as the paper writes it, in float64."""

import pytest
import torch
import torch.nn.functional as F

from models.decoder import CoarseToFineDecoder

# width, patch size, grid; 160 ends in 20 channels with patch 16: more than a group, and no multiple of it
CASES = [(160, 16, (3, 2)), (72, 8, (2, 5)), (160, 14, (3, 4)), (8, 16, (2, 2))]


def make(width, patch, grid, seed=0):
    """A decoder in float64 and inputs v, p, patch_logits that want gradients."""
    torch.manual_seed(seed)
    model = CoarseToFineDecoder(width, patch, grid, (grid[0] * patch, grid[1] * patch)).double()
    n = grid[0] * grid[1]
    shapes = ((2, n, width), (2, n, width), (2, n))
    return model, [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


def plain(model, v, p, patch_logits, patch, grid):
    """Resize, then project, then activate; written for itself, with no group of channels and nothing in place."""
    maps = torch.cat([v, patch_logits[..., None] * p], -1)
    x = maps.reshape(len(v), *grid, -1).permute(0, 3, 1, 2).contiguous()
    for i, conv in enumerate(model.up):
        last = i == len(model.up) - 1
        size = (grid[0] * patch, grid[1] * patch) if last else (grid[0] * 2 ** (i + 1), grid[1] * 2 ** (i + 1))
        x = F.interpolate(x, size=size, mode="bilinear", align_corners=True)
        x = torch.einsum("bchw,dc->bdhw", x, conv.weight[:, :, 0, 0])
        x = torch.where(x > 0, x, 0.01 * x)
    return torch.einsum("bchw,dc->bdhw", x, model.head.weight[:, :, 0, 0])


def assert_same_gradients(ours, theirs, wanted):
    weights = torch.randn_like(ours)
    gradients = (torch.autograd.grad(logits, wanted, weights) for logits in (ours, theirs))
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-9)


@pytest.mark.parametrize("width, patch, grid", CASES)
def test_equals_upsampling_first_with_its_gradients(width, patch, grid):
    model, inputs = make(width, patch, grid)
    wanted = [*inputs, *model.parameters()]
    ours, theirs = model(*inputs), plain(model, *inputs, patch, grid)
    assert ours.shape == (2, 1, grid[0] * patch, grid[1] * patch)
    with torch.no_grad():
        assert torch.equal(model(*inputs), ours)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)
    assert_same_gradients(ours, theirs, wanted)


def saved_at_image_size(forward):
    """Channels of the tensors that autograd keeps at the size of the result of `forward`."""
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x.shape) or x, lambda x: x):
        size = forward().shape[-2:]
    return [shape[1] for shape in saved if shape[-2:] == size]


def test_all_channels_at_the_size_of_the_image_are_never_kept():
    width, patch, grid = CASES[0]
    model, inputs = make(width, patch, grid)
    assert model.head.in_channels in saved_at_image_size(lambda: plain(model, *inputs, patch, grid))
    assert saved_at_image_size(lambda: model(*inputs)) == []


@pytest.mark.parametrize("grad", [False, True])
def test_bfloat16_autocast_is_near_float32_and_gives_float32_logits(grad):
    model, inputs = make(*CASES[0])
    model, inputs = model.float(), [x.detach().float().requires_grad_(grad) for x in inputs]
    exact = model(*inputs)
    with torch.set_grad_enabled(grad), torch.autocast("cpu", torch.bfloat16):
        rounded = model(*inputs)
    assert rounded.dtype == torch.float32
    assert not torch.equal(rounded, exact)
    assert (rounded - exact).norm() < 0.02 * exact.norm()
    if grad:
        wanted = [*inputs, *model.parameters()]
        weights = torch.randn_like(exact)
        gradients, exact = (torch.autograd.grad(logits, wanted, weights) for logits in (rounded, exact))
        # Rounding changes the sign of a few pixels next to zero, and there the slope of the leaky ReLU.
        assert all((a - b).norm() < 0.15 * b.norm() for a, b in zip(gradients, exact, strict=True))
