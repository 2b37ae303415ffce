"""Whether the device computes what the CPU computes, in each precision, and the decoder what float64 gives."""

import copy
import warnings
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.checks.common import Check, Row, at_most, distance, divided, free, holds, peak_gb, relative, step_rate
from benchmarks.ways import OURS, Bench, Way
from models.decoder import CoarseToFineDecoder
from models.loss import LossConfig, restr_loss
from utils.device import autocast

# Rounding changes the sign of the values nearest to zero, and there the slope of the decoder's leaky ReLU: a share s of
# such values moves gradients by the root of s. So even in float32 PyTorch's own decoder is 1e-3 away from float64.
PRECISIONS = {  # name: autocast, TF32, largest relative distance of logits and of gradients
    "float32": (None, False, 1e-4, 3e-3),
    "TF32": (None, True, 3e-3, 3e-2),
    "bf16": ("bf16", False, 2e-2, 0.15),
    "fp16": ("fp16", False, 2e-2, 6e-2),
}
SCALE = 1024  # of the loss, so that float16 holds the gradients
PART = 8  # samples in float64 at a time


def model_against_cpu(check: Check) -> Iterator[Row]:
    """Logits and gradients of the full model with fixed drop paths, against the CPU in float32."""
    expected = _logits_and_gradients(Bench(torch.device("cpu"), check.toy), None)
    for name, (amp, tf32, near, gradients_near) in PRECISIONS.items():
        free(check)
        bench = check.bench()
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
        torch.backends.cudnn.allow_tf32 = tf32
        found = _logits_and_gradients(bench, amp)
        yield at_most(f"{name}: logits", distance(found[0], expected[0]), near)
        pairs = {key: (found[1][key], own) for key, own in expected[1].items() if own.norm() > 0}
        whole = [torch.cat([x.double().flatten() for x in side]) for side in zip(*pairs.values(), strict=True)]
        yield at_most(f"{name}: gradients", distance(*whole), gradients_near)
        worst = max(pairs, key=lambda key: distance(*pairs[key]))
        yield Row(f"{name}: gradient of the worst parameter, {worst}", distance(*pairs[worst]))


def _logits_and_gradients(bench: Bench, amp: str | None) -> tuple[Tensor, dict[str, Tensor]]:
    model, size = bench.network(OURS).train(), 2
    draws = torch.Generator().manual_seed(2)
    for module in model.modules():
        if hasattr(module, "draws"):
            module.draws = torch.rand(size, generator=draws).to(bench.device)
    images, ids, masks = (x.to(bench.device) for x in bench.inputs(OURS, size))
    with autocast(bench.device, amp):
        pixel, patch = model(images, ids)
    (SCALE * restr_loss(pixel, patch, masks, LossConfig())["loss"]).backward()
    gradients = {name: x.grad.float().cpu() / SCALE for name, x in model.named_parameters() if x.grad is not None}
    return pixel.detach().float().cpu(), gradients


def decoder(check: Check) -> Iterator[Row]:
    """The decoder's own operators, and the whole decoder, against float64."""
    yield from operators_against_float64(check)
    yield from decoder_against_float64(check)


def decoder_against_float64(check: Check) -> Iterator[Row]:
    """Values and gradients of a decoder of many samples, against itself in float64, in PyTorch's own operators."""
    vision, size = check.bench().config.vision, check.size(200, 3)
    torch.manual_seed(0)
    grid = tuple(side // vision.patch_size for side in vision.image_size)
    width = vision.width
    decoder = CoarseToFineDecoder(width, vision.patch_size, grid, vision.image_size).to(check.device)
    n = grid[0] * grid[1]
    inputs = [torch.randn(size, *shape, device=check.device) for shape in ((n, width), (n, width), (n,))]
    grad = torch.randn(size, 1, *vision.image_size, device=check.device)
    exact = _in_parts(copy.deepcopy(decoder).double(), inputs, grad)
    for name, amp, near in (("float32", None, (3e-5, 5e-3)), ("bf16", "bf16", (3e-2, 0.15))):
        free(check)
        found, again = (_decoded(decoder, inputs, grad, check, amp) for _ in range(2))
        what = ("logits", "gradient of v", "gradient of p", "gradient of patch logits", "gradients of weights")
        for part, ours, theirs in zip(what, found, exact, strict=True):
            yield at_most(f"{name}, {size} samples: {part}", distance(ours, theirs), near[part != "logits"])
        same = all(torch.equal(a, b) for a, b in zip(found[:-1], again[:-1], strict=True))
        yield holds(f"{name}: the same bits twice, weights aside", same)
        yield Row(f"{name}: peak, GB", peak_gb(check))


def _decoded(decoder: nn.Module, inputs: list[Tensor], grad: Tensor, check: Check, amp: str | None) -> list[Tensor]:
    """Logits and gradients, on the CPU."""
    inputs = [x.detach().requires_grad_() for x in inputs]
    with autocast(torch.device(check.device), amp):
        logits = decoder(*inputs)
    gradients = torch.autograd.grad(logits, [*inputs, *decoder.parameters()], grad.to(logits.dtype))
    return [x.detach().cpu() for x in (logits, *gradients[:3])] + [_flat(gradients[3:])]


def _in_parts(decoder: nn.Module, inputs: list[Tensor], grad: Tensor) -> list[Tensor]:
    """The same in float64, a few samples at a time."""
    parts, weights = [], 0
    for start in range(0, len(grad), PART):
        own = [x[start : start + PART].double().requires_grad_() for x in inputs]
        logits = decoder(*own)
        wanted = [*own, *decoder.parameters()]
        gradients = torch.autograd.grad(logits, wanted, grad[start : start + PART].double())
        parts.append([x.detach().cpu() for x in (logits, *gradients[:3])])
        weights = weights + _flat(gradients[3:])
    return [torch.cat(column) for column in zip(*parts, strict=True)] + [weights]


def _flat(tensors: tuple[Tensor, ...]) -> Tensor:
    return torch.cat([x.flatten() for x in tensors]).cpu()


def operators_against_float64(check: Check) -> Iterator[Row]:
    """The kernels of models/resize.py and models/fused.py alone, at their largest sizes."""
    if not check.cuda:
        yield Row("kernels of models/resize.py and models/fused.py", None)
        return
    from models.fused import AddNorm, GeluMlp
    from models.resize import LeakyResize, LeakyResizeHead

    torch.manual_seed(0)
    size, wide = (480, 480), (8, 920, 768)
    x, weight = torch.randn(2, 96, 240, 240), torch.randn(1, 96, 1, 1)
    tokens, (shift, gain, bias) = [torch.randn(wide), torch.randn(wide)], torch.randn(3, 768)
    mlp = torch.randn(3072, 768) / 28, torch.randn(3072), torch.randn(768, 3072) / 55
    draws = torch.tensor([0.1, 0.9] * 4, device=check.device)
    keep = (draws.cpu() < 0.7).view(-1, 1, 1) / 0.7
    cases = {  # ours, PyTorch's, inputs
        "resize": (lambda x: LeakyResize.apply(x, size), lambda x: plain_resize(x, size), [x]),
        "last step": (
            lambda x, w: LeakyResizeHead.apply(x, w, size),
            lambda x, w: F.conv2d(plain_resize(x, size), w),
            [x, weight],
        ),
        "residual and norm": (
            lambda x, y, s, g, b: torch.cat(AddNorm.apply(x, y, s, draws, 0.7, g, b, 1e-5, x.dtype)),
            lambda x, y, s, g, b: torch.cat([z := x + (y + s) * keep, F.layer_norm(z, s.shape, g, b)]),
            [*tokens, shift, gain, bias],
        ),
        "MLP": (GeluMlp.apply, lambda x, v, b, w: F.linear(F.gelu(F.linear(x, v, b)), w), [tokens[0], *mlp]),
    }
    for kind, near in ((torch.float32, (3e-5, 5e-3)), (torch.bfloat16, (1e-2, 2e-2))):
        for what, (ours, plain, inputs) in cases.items():
            found = [y.to(check.device, kind) for y in inputs]
            gaps = _distances(ours, plain, found, [y.cpu().double() for y in found])
            name = f"{what}, {str(kind).removeprefix('torch.')}"
            yield at_most(f"{name}: values", gaps[0], near[0])
            yield at_most(f"{name}: gradients", max(gaps[1:]), near[1])


def plain_resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    """leaky_relu(bilinear resize, corners aligned), by PyTorch."""
    return F.leaky_relu(F.interpolate(x, size=size, mode="bilinear", align_corners=True), 0.01)


def _distances(ours: Callable, plain: Callable, found: list[Tensor], exact: list[Tensor]) -> list[float]:
    """Relative distances of the values, and of the gradients of the inputs; `exact` are on the CPU."""
    results, grad = [], None
    for function, inputs in ((ours, found), (plain, exact)):
        inputs = [x.detach().requires_grad_() for x in inputs]
        value = function(*inputs)
        grad = torch.randn_like(value) if grad is None else grad
        results.append([value, *torch.autograd.grad(value, inputs, grad.to(value))])
    return [distance(a, b) for a, b in zip(*results, strict=True)]


def waits_of_a_step(check: Check) -> Iterator[Row]:
    """How often a training step waits for the device, beside its one wait for the step before (an event)."""
    for name, amp in (("float32", None), ("bf16", "bf16"), ("fp16", "fp16")):
        free(check)
        step = check.bench().step(Way(name, amp=amp), check.size(8, 2), late=1)
        for _ in range(3):
            step()
        if not check.cuda:
            yield Row(f"{name}: waits of a step", None)
            continue
        torch.cuda.set_sync_debug_mode("warn")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            step()
        torch.cuda.set_sync_debug_mode("default")
        waits = [warning for warning in caught if "synchronizing" in str(warning.message)]
        yield at_most(f"{name}: waits of a step, beside that for the step before", len(waits), 0)


MODES = {"eager": None, "compiled": "default", "with CUDA graphs": "reduce-overhead"}


def compiled_against_eager(check: Check) -> Iterator[Row]:
    """Ten losses, graph breaks and speed of torch.compile without and with CUDA graphs."""
    from torch._dynamo.utils import counters  # not above: forks of what imports it hung in gloo (item 12)

    for size in sorted({check.size(8, 2), check.size(64, 2)}):
        losses, rates = {}, {}
        for name, mode in MODES.items():
            free(check)
            counters.clear()
            what = f"{name}, batch {size}"
            losses[name], rates[name], code = _steps(check, Way(name, amp="bf16", compiled=mode), size)
            yield Row(f"{what}, samples/s", rates[name])
            yield Row(f"{what}, GB", peak_gb(check))
            if mode is None:
                continue
            gap = max(relative(a, b) for a, b in zip(losses[name], losses["eager"], strict=True))
            yield at_most(f"{what}: largest relative difference of a loss", gap, 1e-2)
            yield at_most(f"{what}: graph breaks", sum(counters["graph_break"].values()), 0)
            yield at_most(f"{what}: reasons not to record a graph", counters["inductor"]["cudagraph_skips"], 0)
            if code:  # none of the toy model; the gradient of the word embeddings has the one
                yield at_most(f"{what}: atomic additions in the code", sum(x.count("tl.atomic_add") for x in code), 1)
            yield Row(f"{what}: compared to eager", divided(rates[name], rates["eager"]))


def _steps(check: Check, way: Way, size: int) -> tuple[list[float], float, list[str]]:
    """Ten losses, samples a second, and the code that torch.compile has written."""
    from torch._inductor.utils import run_and_get_code

    step = check.bench().step(way, size, late=1)
    _, code = run_and_get_code(step)
    return [step() for _ in range(check.size(10, 3))], step_rate(check, step, size), code
