"""Parameters and FLOPs: `train_restr.py --print_model`."""

import torch
from torch.utils.flop_counter import FlopCounterMode

from models.config import ReSTRConfig, TextEncoderConfig
from models.restr import build_restr

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
