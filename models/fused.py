"""A transformer block's small operators on a GPU, each one kernel: what PyTorch does as several passes over memory.

Residual connection, stochastic depth and LayerNorm are one, GELU and its gradient another; the weights of a block are
cast in one launch. Sums have a fixed order (no atomics) and are in float32. PyTorch's form, which CPU, float64 and
torch.compile take, is in models/blocks.py.
"""

import torch
import torch.nn.functional as F
import triton
import triton.language as tl

MAX_WIDTH = 4096  # a program holds a token
PROGRAMS = 512  # that add up a gradient of weights, each a part
BLOCK = 8, 256  # rows x columns of a program's block of the MLP's hidden layer


class Cast(torch.autograd.Function):
    """`Cast.apply(dtype, *weights)`: the weights in another dtype, in one launch, and one for their gradients."""

    @staticmethod
    def forward(ctx, dtype: torch.dtype, *weights: torch.Tensor) -> tuple[torch.Tensor, ...]:
        ctx.dtype = weights[0].dtype
        return _cast(dtype, weights)

    @staticmethod
    def backward(ctx, *grads: torch.Tensor):
        return None, *_cast(ctx.dtype, grads)


def _cast(dtype: torch.dtype, tensors: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    copies = tuple(torch.empty_like(tensor, dtype=dtype) for tensor in tensors)
    torch._foreach_copy_(copies, tensors)
    return copies


class AddNorm(torch.autograd.Function):
    """y = x + (branch + shift) * scale, h = LayerNorm(y); a sample's scale is 1 / keep where its draw < keep, else 0.

    Args of forward: x B x T x d; branch, the same shape, and shift, d (the bias of the layer before), or None: y is x;
    draws, float32 B, or None: the scale is 1; keep, 0..1; weight and bias of the LayerNorm, d, or None: no h; its eps;
    the dtype of h. Returns y, in the wider dtype of x and branch, and h. The gradients of x from both are added here.
    """

    @staticmethod
    def forward(ctx, x, branch, shift, draws, keep: float, weight, bias, eps: float, dtype: torch.dtype):
        x, branch = x.contiguous(), None if branch is None else branch.contiguous()
        y = x if branch is None else torch.empty_like(x, dtype=torch.promote_types(x.dtype, branch.dtype))
        h = None if weight is None else torch.empty_like(x, dtype=dtype)
        (batch, tokens, width), block = x.shape, triton.next_power_of_2(x.shape[-1])
        moments = x.new_empty(batch * tokens, 2, dtype=torch.float32)  # mean and 1 / deviation
        tensors = x, branch, shift, draws, keep, weight, bias, eps, y, h, moments
        _add_norm[(batch * tokens,)](*tensors, tokens, width, block)
        ctx.save_for_backward(*((None,) * 3 if weight is None else (y, moments, weight)), draws)
        ctx.set_materialize_grads(False)
        ctx.keep, ctx.dtypes = keep, [None if z is None else z.dtype for z in (x, branch, shift)]
        return y, h

    @staticmethod
    def backward(ctx, grad_y: torch.Tensor | None, grad_h: torch.Tensor | None):
        (y, moments, weight, draws), (own, kind, shift_kind) = ctx.saved_tensors, ctx.dtypes
        grad_y, grad_h = (None if grad is None else grad.contiguous() for grad in (grad_y, grad_h))
        like = grad_y if grad_h is None else grad_h
        (batch, tokens, width), block = like.shape, triton.next_power_of_2(like.shape[-1])
        passed = grad_h is None and like.dtype == own  # then the gradient of x is that of y
        out = None if passed else torch.empty_like(like, dtype=own)
        branch = None if kind is None else torch.empty_like(like, dtype=kind)
        parts = like.new_empty(min(PROGRAMS, batch * tokens), 3, width, dtype=torch.float32)
        tensors = grad_y, grad_h, y, moments, weight, draws, ctx.keep, out, branch, parts
        _add_norm_gradient[(len(parts),)](*tensors, batch * tokens, tokens, width, block)
        to_shift, *to_norm = parts.sum(0)
        to_shift = None if kind is None else to_shift.to(shift_kind)
        to_norm = (None, None) if weight is None else (part.to(weight.dtype) for part in to_norm)
        return like if passed else out, branch, to_shift, None, None, *to_norm, None, None


class GeluMlp(torch.autograd.Function):
    """linear(gelu(linear(x, first, bias)), second), x B x T x d; keeps one of the two wide tensors.

    x and the weights are of one dtype; the bias may be of another.
    """

    @staticmethod
    def forward(ctx, x: torch.Tensor, first: torch.Tensor, bias: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        hidden = F.linear(x, first)
        ctx.save_for_backward(x, hidden, first, bias, second)
        return F.linear(_gelu_of(hidden, bias)[0], second)

    @staticmethod
    def backward(ctx, grad: torch.Tensor):
        x, hidden, first, bias, second = ctx.saved_tensors
        shape, x, grad = grad.shape[:-1], x.flatten(0, -2), grad.flatten(0, -2)
        grad_hidden = grad @ second
        active, to_bias = _gelu_of(hidden.flatten(0, -2), bias, grad_hidden)
        to_x = (grad_hidden @ first).unflatten(0, shape)
        return to_x, grad_hidden.T @ x, to_bias.to(bias.dtype), grad.T @ active


def _gelu_of(hidden: torch.Tensor, bias: torch.Tensor, grad: torch.Tensor | None = None):
    """gelu(hidden + bias), and the bias's gradient; the gradient of the result becomes that of hidden in its place."""
    width, active = hidden.shape[-1], torch.empty_like(hidden)
    rows = hidden.numel() // width
    grid = min(PROGRAMS // 4, triton.cdiv(rows, BLOCK[0])), triton.cdiv(width, BLOCK[1])
    parts = None if grad is None else hidden.new_empty(grid[0], width, dtype=torch.float32)
    _gelu[grid](hidden, bias, active, grad, parts, rows, width, *BLOCK)
    return active, None if parts is None else parts.sum(0)


@triton.jit
def _scale(draws_ptr, keep, sample):
    return tl.where(tl.load(draws_ptr + sample) < keep, 1 / keep, 0.0)


@triton.jit
def _add_norm(
    x_ptr, branch_ptr, shift_ptr, draws_ptr, keep, weight_ptr, bias_ptr, eps, y_ptr, h_ptr, moments_ptr,
    tokens, width: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, BLOCK)
    good, place = c < width, row * width + c
    value = tl.load(x_ptr + place, good, 0.0).to(tl.float32)
    if branch_ptr is not None:
        branch = tl.load(branch_ptr + place, good, 0.0).to(tl.float32) + tl.load(shift_ptr + c, good, 0.0)
        if draws_ptr is not None:
            branch *= _scale(draws_ptr, keep, row // tokens)
        value = (value + branch).to(y_ptr.dtype.element_ty)
        tl.store(y_ptr + place, value, good)
        value = value.to(tl.float32)
    if weight_ptr is not None:
        mean = tl.sum(value) / width
        value = tl.where(good, value - mean, 0.0)
        rate = 1 / tl.sqrt(tl.sum(value * value) / width + eps)
        weight = tl.load(weight_ptr + c, good, 0.0).to(tl.float32)
        tl.store(h_ptr + place, value * rate * weight + tl.load(bias_ptr + c, good, 0.0), good)
        tl.store(moments_ptr + 2 * row, mean)
        tl.store(moments_ptr + 2 * row + 1, rate)


@triton.jit
def _add_norm_gradient(
    gy_ptr, gh_ptr, y_ptr, moments_ptr, weight_ptr, draws_ptr, keep, out_ptr, branch_ptr, parts_ptr,
    rows, tokens, width: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    c = tl.arange(0, BLOCK)
    good = c < width
    to_shift = tl.zeros((BLOCK,), tl.float32)
    to_weight, to_bias = to_shift, to_shift
    row = tl.program_id(0).to(tl.int64)
    while row < rows:  # not `range`, which Triton's interpreter refuses here
        place = row * width + c
        total = tl.zeros((BLOCK,), tl.float32)
        if gy_ptr is not None:
            total += tl.load(gy_ptr + place, good, 0.0)
        if gh_ptr is not None:
            mean, rate = tl.load(moments_ptr + 2 * row), tl.load(moments_ptr + 2 * row + 1)
            normal = tl.where(good, (tl.load(y_ptr + place, good, 0.0).to(tl.float32) - mean) * rate, 0.0)
            grad = tl.load(gh_ptr + place, good, 0.0).to(tl.float32)
            to_weight += grad * normal
            to_bias += grad
            grad *= tl.load(weight_ptr + c, good, 0.0).to(tl.float32)
            total += rate * (grad - (tl.sum(grad) + normal * tl.sum(grad * normal)) / width)
        if out_ptr is not None:
            tl.store(out_ptr + place, total, good)
        if branch_ptr is not None:
            if draws_ptr is not None:
                total *= _scale(draws_ptr, keep, row // tokens)
            tl.store(branch_ptr + place, total, good)
            to_shift += total
        row += tl.num_programs(0)
    part = parts_ptr + tl.program_id(0) * 3 * width + c
    tl.store(part, to_shift, good)
    tl.store(part + width, to_weight, good)
    tl.store(part + 2 * width, to_bias, good)


@triton.jit
def _gelu(
    hidden_ptr, bias_ptr, active_ptr, grad_ptr, parts_ptr,
    rows, width: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    c = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    bias = tl.load(bias_ptr + c, c < width, 0.0).to(tl.float32)
    to_bias = tl.zeros((COLUMNS,), tl.float32)
    start = tl.program_id(0).to(tl.int64) * ROWS
    while start < rows:
        row = start + tl.arange(0, ROWS)[:, None]
        good, place = (row < rows) & (c < width)[None, :], row * width + c[None, :]
        x = tl.load(hidden_ptr + place, good, 0.0).to(tl.float32) + bias[None, :]
        share = 0.5 + 0.5 * tl.erf(x * 0.7071067811865476)  # of the normal distribution, below x
        tl.store(active_ptr + place, x * share, good)
        if grad_ptr is not None:
            slope = share + x * tl.exp(-0.5 * x * x) * 0.3989422804014327
            grad = slope * tl.load(grad_ptr + place, good, 0.0).to(tl.float32)
            tl.store(grad_ptr + place, grad, good)
            to_bias += tl.sum(grad, 0)
        start += tl.num_programs(0) * ROWS
    if parts_ptr is not None:
        tl.store(parts_ptr + tl.program_id(0) * width + c, to_bias, c < width)
