"""Largest relative errors of the kernels of models/resize.py, run by Triton's interpreter on the CPU, one a line.

A process of its own: Triton asks for its interpreter when it is imported.
"""

import os

os.environ["TRITON_INTERPRET"] = "1"

import torch
import torch.nn.functional as F

from models.resize import LeakyResize, LeakyResizeHead

# B C h w, H W: more and fewer channels and columns than a block, factors of 2 and below, a patch of 14
CASES = [((2, 5, 3, 4), (6, 8)), ((1, 33, 4, 3), (7, 6)), ((1, 3, 2, 20), (4, 35)), ((1, 32, 3, 2), (5, 70))]


def plain(x, size):
    return F.leaky_relu(F.interpolate(x, size=size, mode="bilinear", align_corners=True), 0.01)


def compare(ours, theirs, inputs, exact) -> float:
    """The largest of the relative errors of values and of gradients."""
    grad = torch.randn_like(ours)
    found = ours.detach(), *torch.autograd.grad(ours, inputs, grad)
    expected = theirs.detach(), *torch.autograd.grad(theirs, exact, grad.double())
    return max(float((a - b).norm() / b.norm()) for a, b in zip(found, expected, strict=True))


torch.manual_seed(0)
for shape, size in CASES:
    inputs = [torch.randn(shape, requires_grad=True), torch.randn(1, shape[1], 1, 1, requires_grad=True)]
    exact = [x.detach().double().requires_grad_() for x in inputs]
    print(compare(LeakyResize.apply(inputs[0], size), plain(exact[0], size), inputs[:1], exact[:1]))
    theirs = F.conv2d(plain(exact[0], size), exact[1])
    print(compare(LeakyResizeHead.apply(*inputs, size), theirs, inputs, exact))
