"""The coarse-to-fine decoder: paper section 3.3."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from models import blocks
from models.blocks import recomputed

GROUP = 16  # channels that exist at the image's size at a time


class CoarseToFineDecoder(nn.Module):
    """Patch features to pixel logits.

    Args of forward: v float B x N x d as it enters the fusion encoders; p float B x N x d; patch_logits float B x N.
    Returns pixel logits B x 1 x H x W of `image_size`, under autocast in the dtype of the weights.

    The patch logit itself (no sigmoid) multiplies p. Each step doubles the grid; the last one resizes to the image,
    which is the same for a patch size that is a power of two. A 1 x 1 convolution without bias and a bilinear resize
    commute, so the convolution goes first, on a quarter of the pixels.

    The backward pass resizes again instead of keeping the large maps. At the size of the image, 96 channels would be
    the largest tensor of the whole model: the last step goes by groups of channels, so that it never exists.
    """

    def __init__(self, width: int, patch_size: int, grid: tuple[int, int], image_size: tuple[int, int]):
        super().__init__()
        steps = math.ceil(math.log2(patch_size))
        channels = [2 * width // 2**i for i in range(steps + 1)]  # 1536 768 384 192 96
        self.sizes = [(grid[0] * 2**i, grid[1] * 2**i) for i in range(1, steps)] + [tuple(image_size)]
        self.grid = grid
        self.up = nn.ModuleList(nn.Conv2d(a, b, 1, bias=False) for a, b in zip(channels, channels[1:], strict=False))
        self.head = nn.Conv2d(channels[-1], 1, 1, bias=False)
        for layer in [*self.up, self.head]:
            nn.init.xavier_uniform_(layer.weight)

    def forward(self, v: torch.Tensor, p: torch.Tensor, patch_logits: torch.Tensor) -> torch.Tensor:
        m = patch_logits.unsqueeze(-1) * p  # B 900 768
        # Tokens seen as a map are in memory format channels_last, the faster one for every step here.
        x = torch.cat([v, m], -1).transpose(1, 2).unflatten(2, self.grid)  # B 1536 30 30
        x = self.up[0](x)
        for conv, size in zip(self.up[1:], self.sizes, strict=False):
            x = recomputed(_resize_and_project, x, conv.weight, size)
        return self._logits(x)  # B 1 480 480

    def _logits(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.head.weight
        if _by_kernels(x):
            from models.resize import LeakyResizeHead

            return LeakyResizeHead.apply(x, weight, self.sizes[-1]).to(weight.dtype)
        pairs = zip(x.split(GROUP, 1), weight.split(GROUP, 1), strict=True)
        parts = [recomputed(_resize_and_project, *pair, self.sizes[-1]) for pair in pairs]
        return torch.cat(parts, 1).sum(1, keepdim=True, dtype=weight.dtype)  # B 6 480 480 to B 1 480 480


def _resize_and_project(x: torch.Tensor, weight: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    if _by_kernels(x):
        from models.resize import LeakyResize

        return F.conv2d(LeakyResize.apply(x, size), weight)
    x = F.interpolate(x, size=size, mode="bilinear", align_corners=True)
    return F.conv2d(F.leaky_relu(x, 0.01, inplace=True), weight)


def _by_kernels(x: torch.Tensor) -> bool:
    """Whether the kernels of models/resize.py take a map B x C x h x w: more than one row and column."""
    return blocks.on_gpu(x) and min(x.shape[-2:]) > 1
