"""Multimodal fusion: paper section 3.2."""

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from models.blocks import LayerNorm, PreNormEncoder, init_weights

if TYPE_CHECKING:
    from models.config import FusionConfig


class MultimodalFusion(nn.Module):
    """Patch features and an adaptive classifier from vision and language.

    Args of forward: v float B x N x d; l float B x 20 x d; ids int64 B x 20 (0: padding).
    Returns v: B x N x d, normalised and projected, as it enters the encoders (the decoder's skip connection);
    p: B x N x d, the projected patch features; and y_p: B x N, the patch logits <p, classifier>, unscaled.

    The variants are those of the paper's ablation (table 4): see VARIANTS.
    """

    def __init__(self, config: "FusionConfig", width: int, heads: int):
        super().__init__()
        self.variant = config.variant
        self.proj_v = nn.Linear(width, width)
        self.proj_l = nn.Linear(width, width)
        heads = config.heads or heads
        encoder = (width, heads, config.mlp_ratio, config.layers, config.shared, config.drop_path)
        self.visual_linguistic = PreNormEncoder(*encoder)
        if self.variant != "vanilla":
            self.linguistic_seed = PreNormEncoder(*encoder)
        self.norm = LayerNorm(width)
        if self.variant == "independent":
            self.norm_v = LayerNorm(width)
        self.apply(init_weights)
        self.class_seed = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, 1, width), std=0.02))
        self.proj_patch = nn.Parameter(torch.randn(width, width) * width**-0.5)
        self.proj_classifier = nn.Parameter(torch.randn(width, width) * width**-0.5)

    def forward(
        self, v: torch.Tensor, l: torch.Tensor, ids: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        v = self.proj_v(F.normalize(v, dim=-1))
        l = self.proj_l(F.normalize(l, dim=-1)).masked_fill((ids == 0).unsqueeze(-1), 0)
        seed = self.class_seed.expand(v.shape[0], -1, -1)  # B 1 d
        patches, classifier = VARIANTS[self.variant](self, v, l, seed)
        p = patches @ self.proj_patch  # B 900 768
        classifier = classifier @ self.proj_classifier  # B 768
        return v, p, (p @ classifier.unsqueeze(-1)).squeeze(-1)  # B 900


# A variant takes the fusion module, v B x N x d, l B x 20 x d and the class seed B x 1 x d, and returns the patch
# features B x N x d and the classifier B x d, both before their projections.


def indirect(fusion: MultimodalFusion, v: torch.Tensor, l: torch.Tensor, seed: torch.Tensor):
    """The class seed meets vision only through the words that have seen it: the paper's model."""
    n = v.shape[1]
    tokens = fusion.visual_linguistic(torch.cat([v, l], 1))  # B 920 768
    seeded = fusion.linguistic_seed(torch.cat([tokens[:, n:], seed], 1))  # B 21 768
    return tokens[:, :n], fusion.norm(seeded[:, -1])


def independent(fusion: MultimodalFusion, v: torch.Tensor, l: torch.Tensor, seed: torch.Tensor):
    """The class seed meets the words alone."""
    tokens = fusion.visual_linguistic(torch.cat([v, l], 1))
    seeded = fusion.linguistic_seed(torch.cat([l, seed], 1))
    return fusion.norm_v(tokens[:, : v.shape[1]]), fusion.norm(seeded[:, -1])


def vanilla(fusion: MultimodalFusion, v: torch.Tensor, l: torch.Tensor, seed: torch.Tensor):
    """One encoder over everything."""
    tokens = fusion.norm(fusion.visual_linguistic(torch.cat([v, l, seed], 1)))  # B 921 768
    return tokens[:, : v.shape[1]], tokens[:, -1]


VARIANTS = {"indirect": indirect, "independent": independent, "vanilla": vanilla}
