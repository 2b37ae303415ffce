"""Transformer blocks that language and fusion share; attention, MLP and the pre-norm block are timm's."""

from collections.abc import Callable
from functools import partial

import torch
from timm.layers import Attention, DropPath, Mlp, calculate_drop_path_rates
from timm.models.vision_transformer import Block
from torch import nn
from torch.utils.checkpoint import checkpoint

LayerNorm = partial(nn.LayerNorm, eps=1e-5)  # every LayerNorm; paper: not stated, the authors' code


def recomputed(function: Callable[..., torch.Tensor], *arguments: torch.Tensor) -> torch.Tensor:
    """Activation checkpointing of `function(*arguments)`: intermediates are recomputed in the backward pass."""
    if not torch.is_grad_enabled():
        return function(*arguments)
    return checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False)


class LeanMlp(Mlp):
    """timm's MLP that stores one of its two wide tensors for the backward pass, a quarter of a block's memory less.

    Only the activation function is recomputed, not a matrix product.
    """

    @classmethod
    def of(cls, mlp: Mlp) -> "LeanMlp":
        """The lean form of `mlp`, made of the same layers."""
        with torch.device("meta"):  # takes no random numbers and no memory
            lean = cls(1)
        for name, layer in mlp.named_children():
            lean.add_module(name, layer)
        return lean

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.drop2(recomputed(self._second, self.fc1(x)))

    def _second(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.norm(self.drop1(self.act(hidden))))


class SampleDropPath(DropPath):
    """timm's stochastic depth; a trainer may set its draws, so that they do not depend on how a batch is divided.

    `draws`: uniform numbers of 0..1, float [samples of the batch]; None: drawn here.
    """

    draws: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.draws is None or not self.training:
            return super().forward(x)
        keep = 1 - self.drop_prob
        return x * ((self.draws < keep).to(x.dtype) / keep).view(-1, *[1] * (x.ndim - 1))


def replace_layers(model: nn.Module) -> None:
    """Replace each of timm's Mlp and DropPath in `model` by ours; numbers and names in the state dict stay."""
    for name, layer in list(model.named_modules()):
        if type(layer) is Mlp:  # not a gated one, which some ViTs have
            model.set_submodule(name, LeanMlp.of(layer))
        elif type(layer) is DropPath:
            model.set_submodule(name, SampleDropPath(layer.drop_prob, layer.scale_by_keep))


class PostNormBlock(nn.Module):
    """x = LN(x + attention(x)); x = LN(x + mlp(x)). Tokens B T d in and out; no mask, no drop path."""

    def __init__(self, width: int, heads: int, mlp_ratio: float):
        super().__init__()
        self.attn = Attention(width, heads, qkv_bias=True)
        self.norm1 = LayerNorm(width)
        self.mlp = LeanMlp(width, int(width * mlp_ratio))
        self.norm2 = LayerNorm(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm1(x + self.attn(x))
        return self.norm2(x + self.mlp(x))


class PreNormEncoder(nn.Module):
    """`layers` pre-norm blocks over tokens B T d, or, if `shared`, one block applied `layers` times."""

    def __init__(self, width: int, heads: int, mlp_ratio: float, layers: int, shared: bool, drop_path: float):
        super().__init__()
        rates = calculate_drop_path_rates(drop_path, 1 if shared else layers)
        self.blocks = nn.ModuleList(
            Block(width, heads, mlp_ratio, True, drop_path=rate, norm_layer=LayerNorm, mlp_layer=LeanMlp)
            for rate in rates
        )
        self.repeats = layers if shared else 1
        self.grad_checkpointing = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in [*self.blocks] * self.repeats:
            if self.grad_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        return x


def init_weights(module: nn.Module) -> None:
    """Linear: truncated normal of std 0.02, bias 0. LayerNorm: 1 and 0. For `Module.apply`."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.LayerNorm):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)
