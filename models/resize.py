"""The decoder's resizes on a GPU, each one kernel with what follows it: paper section 3.3.

PyTorch's own run in float32 under autocast, as one pass over memory of several, and add with atomics in the backward
pass: not the same bits twice. Here each pixel of the input gathers what it gave, in a fixed order, however many samples
there are. Products and sums are in float32. Triton comes with PyTorch for CUDA.
"""

import math

import torch
import triton
import triton.language as tl

SLOPE = tl.constexpr(0.01)  # of the leaky ReLU
MAP, LOGITS = (16, 32), (64, 32)  # columns x channels of a program's block


class LeakyResize(torch.autograd.Function):
    """leaky_relu(bilinear resize, corners aligned): B x C x h x w -> B x C x H x W, of one dtype, channels_last."""

    @staticmethod
    def forward(ctx, x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        y, sides = _map(x, size), (*x.shape[-2:], *size)
        _resize[_grid(y)](x, y, *sides, x.shape[1], *MAP)
        ctx.save_for_backward(y)  # its sign is that of the resized x
        ctx.sides = sides
        return y

    @staticmethod
    def backward(ctx, grad: torch.Tensor):
        (y,) = ctx.saved_tensors
        grad, out = grad.contiguous(memory_format=torch.channels_last), _map(y, ctx.sides[:2])
        _resize_gradient[_grid(out)](grad, y, out, *ctx.sides, y.shape[1], *_reach(*ctx.sides), *MAP)
        return out, None


class LeakyResizeHead(torch.autograd.Function):
    """`LeakyResize`, then a 1 x 1 convolution to one channel, without the large map between.

    Args of forward: x B x C x h x w; weight 1 x C x 1 x 1. Returns float32 B x 1 x H x W.
    """

    @staticmethod
    def forward(ctx, x: torch.Tensor, weight: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        logits, sides = x.new_empty(len(x), 1, *size, dtype=torch.float32), (*x.shape[-2:], *size)
        _head[len(x) * size[0], triton.cdiv(size[1], LOGITS[0])](x, weight, logits, *sides, x.shape[1], *LOGITS)
        ctx.save_for_backward(x, weight)
        return logits

    @staticmethod
    def backward(ctx, grad: torch.Tensor):
        x, weight = ctx.saved_tensors
        sides, channels, grid = (*x.shape[-2:], *grad.shape[-2:]), x.shape[1], _grid(x)
        out, parts = torch.empty_like(x), grad.new_empty(grid[0] * grid[1], channels)  # of the weight's gradient
        _head_gradient[grid](grad.contiguous(), x, weight, out, parts, *sides, channels, *_reach(*sides), *MAP)
        return out, parts.sum(0).to(weight.dtype).view_as(weight), None


def _map(like: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """An empty map of another size, in channels_last."""
    shape, how = (*like.shape[:2], *size), {"dtype": like.dtype, "device": like.device}
    return torch.empty(shape, memory_format=torch.channels_last, **how)


def _grid(x: torch.Tensor) -> tuple[int, int, int]:
    """Programs that each make a block of a row of the map x."""
    batch, channels, height, width = x.shape
    return batch * height, triton.cdiv(width, MAP[0]), triton.cdiv(channels, MAP[1])


def _reach(h: int, w: int, height: int, width: int) -> tuple[int, int]:
    """The most rows, and columns, of the output that one of the h x w pixels of the input is part of."""
    return math.ceil(2 * (height - 1) / (h - 1)), math.ceil(2 * (width - 1) / (w - 1))


@triton.jit
def _between(place, count, outputs):
    """The two of `count` inputs along a side that outputs at `place` lie between, and the share of the second."""
    source = place * ((count - 1) / (outputs - 1))
    first = tl.minimum(source.to(tl.int32), count - 1)
    return first, tl.minimum(first + 1, count - 1), source - first


@triton.jit
def _load(row_ptr, x, c, channels, good):
    return tl.load(row_ptr + x * channels + c, good, 0.0).to(tl.float32)


@triton.jit
def _leaky(value):
    return tl.where(value > 0, value, SLOPE * value)


@triton.jit
def _row(number, rows):
    """Of a program's number: its image as int64, for maps of 2^31 and more numbers, and its row."""
    return (number // rows).to(tl.int64), number % rows


@triton.jit
def _between_rows(top_ptr, bottom_ptr, below, x, c, channels, good):
    top = _load(top_ptr, x, c, channels, good)
    return top + below * (_load(bottom_ptr, x, c, channels, good) - top)


@triton.jit
def _interpolated(x_ptr, y0, y1, below, x0, x1, right, w, c, channels, good):
    """Values of a block, columns x channels, of one row of the output, before the leaky ReLU."""
    top, bottom = x_ptr + y0 * w * channels, x_ptr + y1 * w * channels
    left = _between_rows(top, bottom, below, x0, c, channels, good)
    return left + right * (_between_rows(top, bottom, below, x1, c, channels, good) - left)


@triton.jit
def _resize(x_ptr, y_ptr, h, w, H, W, channels: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr):
    image, row = _row(tl.program_id(0), H)
    x = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[:, None]
    c = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    good = (x < W) & (c < channels)
    y0, y1, below = _between(row, h, H)
    x0, x1, right = _between(x, w, W)
    value = _interpolated(x_ptr + image * h * w * channels, y0, y1, below, x0, x1, right, w, c, channels, good)
    tl.store(y_ptr + ((image * H + row) * W + x) * channels + c, _leaky(value), good)


@triton.jit
def _head(x_ptr, w_ptr, out_ptr, h, w, H, W, channels: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr):
    image, row = _row(tl.program_id(0), H)
    x = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[:, None]
    y0, y1, below = _between(row, h, H)
    x0, x1, right = _between(x, w, W)
    total = tl.zeros((COLUMNS, CHANNELS), tl.float32)
    for start in range(0, channels, CHANNELS):
        c = start + tl.arange(0, CHANNELS)[None, :]
        good = (x < W) & (c < channels)
        value = _interpolated(x_ptr + image * h * w * channels, y0, y1, below, x0, x1, right, w, c, channels, good)
        total += _leaky(value) * tl.load(w_ptr + c, c < channels, 0.0)
    x = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    tl.store(out_ptr + (image * H + row) * W + x, tl.sum(total, 1), x < W)


@triton.jit
def _first(place, count, outputs):
    """The first output that the input at `place` is part of; it may be below 0."""
    return tl.floor((place - 1) / ((count - 1) / (outputs - 1))).to(tl.int32) + 1


@triton.jit
def _share(output, place, count, outputs):
    """The share of the input at `place` in an output, 0..1."""
    away = tl.abs(output * ((count - 1) / (outputs - 1)) - place)
    return tl.where((output >= 0) & (output < outputs), tl.maximum(1 - away, 0.0), 0.0)


@triton.jit
def _resize_gradient(
    g_ptr, y_ptr, out_ptr, h, w, H, W, channels: tl.constexpr,
    ROWS: tl.constexpr, REACH: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    image, i = _row(tl.program_id(0), h)
    j = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[:, None]
    c = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    good = (j < w) & (c < channels)
    total = tl.zeros((COLUMNS, CHANNELS), tl.float32)
    for row in range(ROWS):
        y = _first(i, h, H) + row
        below = _share(y, i, h, H)
        line = (image * H + y) * W
        for column in range(REACH):
            x = _first(j, w, W) + column
            share = below * _share(x, j, w, W)
            there = good & (share > 0)
            slope = tl.where(_load(y_ptr + line * channels, x, c, channels, there) > 0, 1.0, SLOPE)
            total += share * slope * _load(g_ptr + line * channels, x, c, channels, there)
    tl.store(out_ptr + ((image * h + i) * w + j) * channels + c, total, good)


@triton.jit
def _head_gradient(
    g_ptr, x_ptr, w_ptr, out_ptr, parts_ptr, h, w, H, W, channels: tl.constexpr,
    ROWS: tl.constexpr, REACH: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    image, i = _row(tl.program_id(0), h)
    j = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[:, None]
    c = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    good = (j < w) & (c < channels)
    left, after = tl.maximum(j - 1, 0), tl.minimum(j + 1, w - 1)
    total, weight_total = tl.zeros((COLUMNS, CHANNELS), tl.float32), tl.zeros((COLUMNS, CHANNELS), tl.float32)
    for row in range(ROWS):
        y = _first(i, h, H) + row
        below = _share(y, i, h, H)
        y0, y1, down = _between(tl.minimum(tl.maximum(y, 0), H - 1), h, H)
        top, bottom = x_ptr + (image * h + y0) * w * channels, x_ptr + (image * h + y1) * w * channels
        a = _between_rows(top, bottom, down, left, c, channels, good)
        b = _between_rows(top, bottom, down, j, c, channels, good)
        d = _between_rows(top, bottom, down, after, c, channels, good)
        for column in range(REACH):
            x = _first(j, w, W) + column
            share = below * _share(x, j, w, W)
            x0, _, right = _between(x, w, W)
            value = tl.where(x0 < j, a + right * (b - a), b + right * (d - b))
            grad = tl.load(g_ptr + (image * H + y) * W + x, (share > 0) & (j < w), 0.0)
            total += grad * share * tl.where(value > 0, 1.0, SLOPE)
            weight_total += tl.where((y0 == i) & (x0 == j), grad * _leaky(value), 0.0)  # each output counts once
    weight = tl.load(w_ptr + c, c < channels, 0.0)
    tl.store(out_ptr + ((image * h + i) * w + j) * channels + c, total * weight, good)
    c = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    part = tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
    tl.store(parts_ptr + part.to(tl.int64) * channels + c, tl.sum(weight_total, 0), c < channels)
