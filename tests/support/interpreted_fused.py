"""Largest relative errors of the operators of models/fused.py, run by Triton's interpreter on the CPU, one a line.

A process of its own: Triton asks for its interpreter when it is imported.
"""

import os

os.environ["TRITON_INTERPRET"] = "1"

import copy
import itertools

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block
from torch.utils.checkpoint import checkpoint

from models import blocks
from models.fused import AddNorm, Cast, GeluMlp

EPS = 1e-5


def distance(found, expected) -> float:
    """The largest of the relative errors of pairs of tensors."""
    pairs = [(a.double(), b) for a, b in zip(found, expected, strict=True)]
    return max(float(((a - b).norm() / b.norm()).detach()) for a, b in pairs)


def add_norm(shape, kinds, draws, outputs=(0, 1)) -> float:
    """Values and gradients of AddNorm, whose x, branch (None: no branch) and h (None: no norm) have the dtypes `kinds`.

    `outputs`: which of y and h have a gradient.
    """
    keep, width, (kind, of_branch, of_h) = 0.7, shape[-1], kinds
    tensors = {"x": torch.randn(shape).to(kind)}
    if of_branch:
        tensors |= {"branch": torch.randn(shape).to(of_branch), "shift": torch.randn(width)}
    if of_h:
        tensors |= {"weight": torch.randn(width), "bias": torch.randn(width)}
    own = {name: tensor.requires_grad_() for name, tensor in tensors.items()}
    exact = {name: tensor.detach().double().requires_grad_() for name, tensor in tensors.items()}
    branch, of_norm = (own.get("branch"), own.get("shift")), (own.get("weight"), own.get("bias"))
    found = AddNorm.apply(own["x"], *branch, draws, keep, *of_norm, EPS, of_h)
    scale = torch.ones(shape[0]) if draws is None else (draws < keep).double() / keep
    y = exact["x"] + (scale.view(-1, 1, 1) * (exact["branch"] + exact["shift"]) if of_branch else 0)
    expected = [y, F.layer_norm(y, (width,), exact["weight"], exact["bias"], EPS) if of_h else None]
    found, expected = ([values[i] for i in outputs] for values in (found, expected))
    grads = [torch.randn(shape).to(value.dtype) for value in found]
    ours = torch.autograd.grad(found, [*own.values()], grads)
    theirs = torch.autograd.grad(expected, [*exact.values()], [grad.double() for grad in grads])
    assert [gradient.dtype for gradient in ours] == [tensor.dtype for tensor in own.values()]
    return distance([*found, *ours], [*expected, *theirs])


def gelu_mlp(rows: int, width: int, hidden: int) -> float:
    tensors = [torch.randn(size) for size in ((2, rows, width), (hidden, width), hidden, (width, hidden))]
    exact = [tensor.double().requires_grad_() for tensor in tensors]
    own = [tensor.requires_grad_() for tensor in tensors]
    found, (x, weight, bias, second) = GeluMlp.apply(*own), exact
    expected = F.linear(F.gelu(F.linear(x, weight, bias)), second)
    grad = torch.randn_like(found)
    ours, theirs = torch.autograd.grad(found, own, grad), torch.autograd.grad(expected, exact, grad.double())
    return distance([found, *ours], [expected, *theirs])


def block(plain, draws=None) -> float:
    """A whole block by the operators, under activation checkpointing, against itself in float64 without them."""
    holder = torch.nn.ModuleList([plain])
    blocks.replace_layers(holder)
    plain = holder[0]
    for layer in plain.train().modules():
        if hasattr(layer, "draws"):
            layer.draws = draws
    x, grad = torch.randn(3, 7, 24), torch.randn(3, 7, 24)
    exact, x_exact = copy.deepcopy(plain).double(), x.double().requires_grad_()
    expected = exact(x_exact)
    usual, blocks._by_kernels = blocks._by_kernels, lambda *_: True
    found = checkpoint(plain, x.requires_grad_(), use_reentrant=False)
    ours = torch.autograd.grad(found, [x, *plain.parameters()], grad)
    blocks._by_kernels = usual
    theirs = torch.autograd.grad(expected, [x_exact, *exact.parameters()], grad.double())
    assert plain.state_dict().keys() == exact.state_dict().keys()
    return distance([found, *ours], [expected, *theirs])


def cast() -> float:
    weights = [torch.randn(5, 3, requires_grad=True), torch.randn(4, requires_grad=True)]
    found = Cast.apply(torch.bfloat16, *weights)
    grads = [torch.randn_like(weight) for weight in found]
    expected = [weight.to(torch.bfloat16) for weight in weights]
    ours, theirs = torch.autograd.grad(found, weights, grads), torch.autograd.grad(expected, weights, grads)
    assert {gradient.dtype for gradient in ours} == {torch.float32}
    return distance([*found, *ours], [*expected, *theirs])


torch.manual_seed(0)
single, half = torch.float32, torch.bfloat16
draws = torch.tensor([0.1, 0.9, 0.6])  # the second sample's branch is left out
for kinds in itertools.product((single, half), (None, single, half), (single, half)):
    print(half not in kinds, add_norm((3, 5, 12), kinds, draws))
for kinds in ((single, single), (single, half), (half, half), (half, single)):
    print(half not in kinds, add_norm((3, 2, 12), (*kinds, None), draws, [0]))
print(True, add_norm((3, 2, 12), (single, single, single), None, [1]))  # no drop path, and y is not used
print(True, add_norm((3, 180, 5), (single, single, single), draws))  # more tokens than programs
print(True, gelu_mlp(7, 5, 20))
print(True, gelu_mlp(520, 5, 260))  # more rows and columns than programs and their blocks
print(True, block(Block(24, 2, qkv_bias=True, drop_path=0.3), draws))
print(True, block(blocks.PostNormBlock(24, 2, 4.0)))
print(True, cast())
