"""Where the class seed looks: its attention in the last block of the encoder that makes the classifier of it."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from utils.text import TEXT_LENGTH


@contextmanager
def seed_attention(model: nn.Module) -> Iterator[list[Tensor]]:
    """While the block runs, each `segment_features` of `model` appends the seed's attention to the words: B x 20.

    The mean over the heads of the last block (linguistic-seed encoder; `vanilla` has one encoder for everything),
    float32. A row sums to less than 1: the seed also looks at itself, and with `vanilla` at the patches.
    Computed again from what enters that block's attention, because fused kernels keep no weights.
    """
    fusion = model.fusion
    encoder = fusion.visual_linguistic if fusion.variant == "vanilla" else fusion.linguistic_seed
    found: list[Tensor] = []
    calls = 0

    def look(attention: nn.Module, inputs: tuple[Tensor]) -> None:
        nonlocal calls
        calls += 1
        if calls % encoder.repeats == 0:  # a shared block runs several times; the last counts
            found.append(_last_token_attention(attention, inputs[0])[:, -1 - TEXT_LENGTH : -1])

    hook = encoder.blocks[-1].attn.register_forward_pre_hook(look)
    try:
        yield found
    finally:
        hook.remove()


def _last_token_attention(attention: nn.Module, x: Tensor) -> Tensor:
    """Attention of the last of the tokens B T d to all of them, averaged over heads: float32 B T."""
    batch, length, _ = x.shape
    qkv = attention.qkv(x).float().reshape(batch, length, 3, attention.num_heads, -1)
    q, k, _ = qkv.permute(2, 0, 3, 1, 4)  # each B heads T d/heads
    weights = torch.softmax(q[:, :, -1:] @ k.transpose(-2, -1) * attention.scale, -1)  # B heads 1 T
    return weights.mean(1).squeeze(1)
