"""Parameters, FLOPs and memory: `train_restr.py --print_model`. All from shapes: nothing is computed."""

import weakref
from importlib.util import find_spec
from unittest.mock import patch

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.weak import WeakIdKeyDictionary

from models import blocks
from models.config import ReSTRConfig, TextEncoderConfig
from models.loss import LossConfig, restr_loss
from models.restr import build_restr
from train.options import Options
from utils.device import autocast

WORKSPACE = 100e6  # bytes that cuBLAS and PyTorch's optimiser take beside, by a trace
PARTS = ("vision", "language", "fusion", "decoder")


def count_parameters(config: ReSTRConfig) -> dict[str, int]:
    """Parameters of each part; the word embeddings, a part of the language encoder, also stand alone."""
    with torch.device("meta"):
        model = build_restr(config)
    counts = {part: sum(p.numel() for p in getattr(model, part).parameters()) for part in PARTS if getattr(model, part)}
    pieces = isinstance(config.language, TextEncoderConfig)
    embeddings = model.language.encoder.get_input_embeddings() if pieces else model.language.embedding
    return {**counts, "embeddings": embeddings.weight.numel()}


def count_flops(config: ReSTRConfig) -> dict[str, int]:
    """Floating-point operations (a multiply-add is two) of each part for one image with one expression, forward."""
    with torch.device("meta"):
        model = build_restr(config).eval()
        image = torch.zeros(1, 3, *config.vision.image_size)
        ids = torch.zeros(1, config.language.text_length, dtype=torch.long)
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model(image, ids)
    totals = counter.get_flop_counts()
    return {part: sum(totals.get(f"ReSTR.{part}", {}).values()) for part in PARTS if getattr(model, part)}


class _Peak(TorchDispatchMode):
    """`most`: the bytes that the tensors made in its block take at the moment when they take most."""

    def __init__(self):
        super().__init__()
        self.now, self.most, self.known = 0, 0, WeakIdKeyDictionary()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        results = function(*args, **kwargs or {})
        for storage in (x.untyped_storage() for x in tree_leaves(results) if isinstance(x, torch.Tensor)):
            if storage not in self.known:
                self.known[storage] = True
                self._add(storage.nbytes())
                weakref.finalize(storage, self._add, -storage.nbytes())
        return results

    def _add(self, size: int) -> None:
        self.now += size
        self.most = max(self.most, self.now)


def step_memory(
    config: ReSTRConfig,
    samples: int,
    amp: str | None = None,
    checkpointed: bool = False,
    *,
    moments: int = 2,
    kept: bool = False,
    loss: LossConfig | None = None,
) -> int:
    """Bytes of tensors at the peak of a training step on a GPU, of `samples` samples at a time. Needs Triton.

    Args: amp, as in Trainer; checkpointed, --grad_checkpoint; moments, numbers that the optimiser keeps of each
    parameter; kept, whether gradients stay from one micro-batch to the next. Left out is what PyTorch reserves beside
    its tensors, and CUDA itself.
    """
    from triton.runtime.jit import KernelInterface

    with torch.device("meta"):
        model = build_restr(config).train()
    model.set_grad_checkpointing(checkpointed)
    shape, cpu = (samples, 3, *config.vision.image_size), torch.device("cpu")
    # Autograd asks a GPU for its streams, so the tensors say that they are the CPU's. The kernels would read and write
    # them: of these the results are made, but nothing is started.
    on_gpu = patch.object(blocks, "on_gpu", lambda x: True)
    idle = patch.object(KernelInterface, "__getitem__", lambda kernel, grid: lambda *arguments: None)
    with FakeTensorMode(allow_non_fake_inputs=True), on_gpu, idle, _Peak() as peak:
        model.to_empty(device=cpu)
        image = torch.empty(shape, dtype=torch.uint8)
        ids = torch.empty(samples, config.language.text_length, dtype=torch.long)
        mask = torch.empty(samples, 1, *shape[2:], dtype=torch.bool)
        for _ in range(2 if kept else 1):
            with autocast(cpu, amp):
                outputs = model(image, ids)
            restr_loss(*outputs, mask, loss or LossConfig())["loss"].backward()
            del outputs
    return int(peak.most + 4 * moments * sum(weight.numel() for weight in model.parameters()) + WORKSPACE)


def describe_step(options: Options, config: ReSTRConfig, world: int) -> str:
    """The memory of a step in a line for the screen, by the flags of training, of one of `world` processes.

    Raises InputError for a batch that cannot be divided.
    """
    recipe, machine = options.recipe, options.machine
    samples, kept = recipe.samples_at_a_time(world), world * recipe.accum > 1
    loss = LossConfig(alpha_loc=None) if options.model.no_decoder else options.loss
    how = {"moments": 2 if recipe.adamW else 1, "kept": kept, "loss": loss}
    if not find_spec("triton"):
        return "the memory of a training step on a GPU is only known with Triton, which comes with PyTorch for CUDA"
    size = step_memory(config, samples, machine.amp_dtype, machine.grad_checkpoint, **how) / 1e9
    return f"a training step on a GPU, {samples} samples at a time: {size:.1f} GB; PyTorch reserves about a tenth more"


def describe(config: ReSTRConfig) -> str:
    """A table of both for the screen."""
    parameters, flops = count_parameters(config), count_flops(config)
    embeddings = parameters.pop("embeddings")
    lines = [f"{'part':10} {'parameters':>12} {'GFLOP':>8}"]
    lines += [f"{part:10} {count:12,} {flops[part] / 1e9:8.1f}" for part, count in parameters.items()]
    lines += [f"{'all':10} {sum(parameters.values()):12,} {sum(flops.values()) / 1e9:8.1f}"]
    height, width = config.vision.image_size
    lines += [f"({embeddings:,} are word embeddings; FLOPs: forward, one {height} x {width} image, one expression)"]
    return "\n".join(lines)
