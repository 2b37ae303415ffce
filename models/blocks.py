"""Transformer blocks that language and fusion share; attention, MLP and the pre-norm block are timm's."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from timm.layers import Attention, DropPath, Mlp, calculate_drop_path_rates
from timm.models.vision_transformer import Block
from torch import nn
from torch.utils.checkpoint import checkpoint

LayerNorm = partial(nn.LayerNorm, eps=1e-5)  # every LayerNorm; paper: not stated, the authors' code


def on_gpu(x: torch.Tensor) -> bool:
    """Whether the kernels of models/fused.py and models/resize.py can take `x`, which are for GPUs, without float64."""
    return x.is_cuda and x.dtype != torch.float64


def recomputed(function: Callable[..., torch.Tensor], *arguments: torch.Tensor) -> torch.Tensor:
    """Activation checkpointing of `function(*arguments)`: intermediates are recomputed in the backward pass."""
    if not torch.is_grad_enabled():
        return function(*arguments)
    return checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False)


class LeanMlp(Mlp):
    """timm's MLP that stores one of its two wide tensors for the backward pass, a quarter of a block's memory less.

    Only the activation function is recomputed, not a matrix product.
    """

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


class LeanAttention(Attention):
    """timm's attention, whose gradients of q, k and v are copied once on their way to the projection, not twice."""

    def forward(self, x: torch.Tensor, attn_mask=None, is_causal: bool = False, layers=None) -> torch.Tensor:
        """`layers`: callables in place of the projections `qkv` and `proj`."""
        if self.gate is not None or not self.fused_attn:
            return super().forward(x, attn_mask, is_causal)
        to_qkv, to_out = layers or (self.qkv, self.proj)
        qkv = to_qkv(x).unflatten(2, (3, self.num_heads, self.head_dim))  # B T 3 heads d
        scale = None
        if x.is_cuda and self.head_dim % 8 and isinstance(self.q_norm, nn.Identity):
            qkv, scale = F.pad(qkv, (0, -self.head_dim % 8)), self.scale  # else PyTorch pads each of q, k and v
        q, k, v = (part.transpose(1, 2) for part in qkv.unbind(2))  # B heads T d
        dropout = self.attn_drop.p if self.training else 0.0
        q, k = self.q_norm(q), self.k_norm(k)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask, dropout, is_causal, scale=scale)
        return self.proj_drop(to_out(self.norm(x[..., : self.head_dim].transpose(1, 2).flatten(2))))


class LeanBlock(Block):
    """timm's pre-norm block; on a GPU by the operators of models/fused.py."""

    def forward(self, x: torch.Tensor, attn_mask=None, is_causal: bool = False) -> torch.Tensor:
        if not _by_kernels(self, x, self.ls1, self.ls2):
            return super().forward(x, attn_mask, is_causal)
        dtype, layers, mlp = _cast_layers(self)
        x, h = _add_norm(x, None, None, None, self.norm1, dtype)
        h = self.attn(h, attn_mask, is_causal, layers)
        x, h = _add_norm(x, h, self.attn.proj, self.drop_path1, self.norm2, dtype)
        return _add_norm(x, mlp(h), self.mlp.fc2, self.drop_path2, None, dtype)[0]


OURS = {Mlp: LeanMlp, DropPath: SampleDropPath, Attention: LeanAttention, Block: LeanBlock}  # by exact class


def replace_layers(model: nn.Module) -> None:
    """Replace timm's layers in `model` by ours; numbers and names in the state dict stay."""
    for name, layer in list(model.named_modules()):
        if kind := OURS.get(type(layer)):
            ours = kind.__new__(kind)
            ours.__setstate__(layer.__dict__)  # as if read from a file: the same parameters, layers and settings
            model.set_submodule(name, ours)


class PostNormBlock(nn.Module):
    """x = LN(x + attention(x)); x = LN(x + mlp(x)). Tokens B T d in and out; no mask, no drop path."""

    def __init__(self, width: int, heads: int, mlp_ratio: float):
        super().__init__()
        self.attn = LeanAttention(width, heads, qkv_bias=True)
        self.norm1 = LayerNorm(width)
        self.mlp = LeanMlp(width, int(width * mlp_ratio))
        self.norm2 = LayerNorm(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not _by_kernels(self, x):
            x = self.norm1(x + self.attn(x))
            return self.norm2(x + self.mlp(x))
        dtype, layers, mlp = _cast_layers(self)
        x = _add_norm(x, self.attn(x, layers=layers), self.attn.proj, None, self.norm1, x.dtype)[1]
        return _add_norm(x, mlp(x), self.mlp.fc2, None, self.norm2, x.dtype)[1]


def _by_kernels(block: nn.Module, x: torch.Tensor, *others: nn.Module) -> bool:
    """Whether a block can run by models/fused.py: on a GPU, LayerNorms, exact GELU, biases, nothing in `others`."""
    attn, mlp, norms = block.attn, block.mlp, (block.norm1, block.norm2)
    if torch.compiler.is_compiling() or not on_gpu(x):
        return False
    if type(attn) is not LeanAttention or type(mlp) is not LeanMlp or type(mlp.act) is not nn.GELU:
        return False
    from models import fused  # Triton comes with PyTorch for CUDA

    biases = (layer.bias is not None for layer in (attn.qkv, attn.proj, mlp.fc1, mlp.fc2, *norms))
    return (
        x.shape[-1] <= fused.MAX_WIDTH
        and attn.gate is None and attn.fused_attn and mlp.act.approximate == "none"
        and all(isinstance(norm, nn.LayerNorm) for norm in norms) and all(biases)
        and all(isinstance(layer, nn.Identity) for layer in (mlp.norm, *others))
        and not any(layer.p for layer in (attn.proj_drop, mlp.drop1, mlp.drop2))
    )  # fmt: skip


def _cast_layers(block: nn.Module) -> tuple[torch.dtype, tuple[Callable, Callable], Callable]:
    """The dtype of products under autocast; the attention's projections, and the MLP, with their weights in it.

    The last bias of each is left to `_add_norm`.
    """
    from models.fused import Cast, GeluMlp

    attn, mlp = block.attn, block.mlp
    weights = attn.qkv.weight, attn.qkv.bias, attn.proj.weight, mlp.fc1.weight, mlp.fc2.weight
    kind = weights[0].device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weights[0].dtype
    if dtype != weights[0].dtype:
        weights = Cast.apply(dtype, *weights)
    layers = partial(F.linear, weight=weights[0], bias=weights[1]), partial(F.linear, weight=weights[2])
    return dtype, layers, lambda x: GeluMlp.apply(x.to(dtype), weights[3], mlp.fc1.bias, weights[4])


def _add_norm(x: torch.Tensor, branch, layer: nn.Linear | None, drop: nn.Module | None, norm, dtype: torch.dtype):
    """`models.fused.AddNorm` with the drop path and the norm of a block, of a branch that ends with `layer`."""
    from models.fused import AddNorm

    draws, keep = None, 1.0
    if isinstance(drop, SampleDropPath) and drop.training and drop.drop_prob:
        draws = torch.rand(len(x), device=x.device) if drop.draws is None else drop.draws
        keep = 1 - drop.drop_prob
    shift, own = layer and layer.bias, (norm.weight, norm.bias, norm.eps) if norm else (None, None, 0.0)
    return AddNorm.apply(x, branch, shift, draws, keep, *own, dtype)


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
