"""Parameters, FLOPs and memory of a training step: `train_restr.py --print_model`."""

import weakref

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from models.config import ReSTRConfig
from models.loss import LossConfig, restr_loss
from models.restr import build_restr
from utils.text import TEXT_LENGTH

PARTS = ("vision", "language", "fusion", "decoder")
BATCH_SIZES = (1, 8, 16, 32, 64)
TRACED = (8, 16)  # samples in the steps that are traced; memory grows with the batch in a straight line
SETTINGS = {  # flags of train_restr.py -> (amp, grad_checkpoint)
    "(float32)": (False, False),
    "--amp": (True, False),
    "--amp --grad_checkpoint": (True, True),
}


def count_parameters(config: ReSTRConfig) -> dict[str, int]:
    """Parameters of each part; the word embeddings, a part of the language encoder, also stand alone."""
    with torch.device("meta"):
        model = build_restr(config)
    counts = {part: sum(p.numel() for p in getattr(model, part).parameters()) for part in PARTS if getattr(model, part)}
    return {**counts, "embeddings": model.language.embedding.weight.numel()}


def count_flops(config: ReSTRConfig) -> dict[str, int]:
    """Floating-point operations (a multiply-add is two) of each part for one image with one expression, forward."""
    with torch.device("meta"):
        model = build_restr(config).eval()
        image = torch.zeros(1, 3, *config.vision.image_size)
        ids = torch.zeros(1, TEXT_LENGTH, dtype=torch.long)
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model(image, ids)
    totals = counter.get_flop_counts()
    return {part: sum(totals.get(f"ReSTR.{part}", {}).values()) for part in PARTS if getattr(model, part)}


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


class _LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors made under it that are still alive, each storage once."""

    def __init__(self):
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.live = self.peak = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._add(leaf.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata not in self.sizes:
            self.sizes[storage._cdata] = storage.nbytes()
            self.live += storage.nbytes()
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._drop, storage._cdata)

    def _drop(self, key: int) -> None:
        self.live -= self.sizes.pop(key)


def step_bytes(config: ReSTRConfig, batch: int, amp: bool, grad_checkpoint: bool) -> tuple[int, int]:
    """Bytes of the weights, and bytes alive at the peak of one forward and backward pass over `batch` samples.

    The peak counts weights, inputs, activations and gradients; it leaves out the optimiser's state and what kernels
    take for themselves. `amp`: bfloat16 autocast.
    """
    with torch.device("meta"):
        model = build_restr(config).train()
    model.set_grad_checkpointing(grad_checkpoint)
    size = config.vision.image_size
    with FakeTensorMode(allow_non_fake_inputs=True), _LiveBytes() as memory:
        model.to_empty(device="cpu")
        weights = memory.live
        image = torch.zeros(batch, 3, *size, dtype=torch.uint8)
        ids = torch.zeros(batch, TEXT_LENGTH, dtype=torch.long)
        mask = torch.zeros(batch, 1, *size, dtype=torch.bool)
        with torch.autocast("cpu", torch.bfloat16, enabled=amp):
            pixel, patch = model(image, ids)
        restr_loss(pixel, patch, mask, LossConfig())["loss"].backward()
    return weights, memory.peak


def training_gigabytes(config: ReSTRConfig, amp: bool, grad_checkpoint: bool) -> list[float]:
    """GB (1e9 bytes) of a training step with AdamW for each of BATCH_SIZES, from two traced steps."""
    (weights, less), (_, more) = (step_bytes(config, batch, amp, grad_checkpoint) for batch in TRACED)
    sample = (more - less) / (TRACED[1] - TRACED[0])
    fixed = less - weights - sample * TRACED[0]  # such as the weights in bfloat16
    # Weights and two moments stay; activations go before the last gradients come, so the larger of the two counts.
    return [(3 * weights + max(weights, fixed + sample * batch)) / 1e9 for batch in BATCH_SIZES]


def describe_memory(config: ReSTRConfig) -> str:
    """A table for the screen: memory of training by batch size and flags."""
    lines = [f"{'GB of a step, by samples a process':36}" + "".join(f"{batch:>7}" for batch in BATCH_SIZES)]
    for flags, setting in SETTINGS.items():
        lines += [f"{flags:36}" + "".join(f"{value:7.1f}" for value in training_gigabytes(config, *setting))]
    with torch.device("meta"):
        weights = sum(parameter.nbytes for parameter in build_restr(config).parameters()) / 1e9
    lines += ["(estimated; AdamW's state is counted; a GPU takes about 1 GB more; --accum N divides the samples by N;"]
    lines += [f" with --accum or several processes the gradients stay: {weights:.1f} GB more)"]
    return "\n".join(lines)
