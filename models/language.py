"""The language encoder: paper section 3.1."""

import torch
from torch import nn

from models.blocks import LayerNorm, PostNormBlock, init_weights
from models.config import LanguageConfig
from utils.text import TEXT_LENGTH


def sinusoids(length: int, width: int) -> torch.Tensor:
    """Fixed position embedding, `length` x `width` float32: sine on even channels, cosine on odd ones, base 10000."""
    position = torch.arange(length, dtype=torch.float64).unsqueeze(1)
    angle = position * 10000.0 ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    table = torch.zeros(length, width, dtype=torch.float64)
    table[:, 0::2] = torch.sin(angle)
    table[:, 1::2] = torch.cos(angle)[:, : width // 2]
    return table.float()


class LanguageEncoder(nn.Module):
    """Word ids to features.

    Args of forward: ids, int64 B x 20, 0 is padding. Returns l: B x 20 x `out_width`.
    """

    def __init__(self, config: LanguageConfig, out_width: int):
        super().__init__()
        self.embedding = nn.Embedding(config.vocabulary_size, config.width, padding_idx=0)
        self.register_buffer("positions", sinusoids(TEXT_LENGTH, config.width), persistent=False)
        self.blocks = nn.Sequential(
            *(PostNormBlock(config.width, config.heads, config.mlp_ratio) for _ in range(config.depth))
        )
        self.proj = nn.Linear(config.width, out_width)
        self.norm = LayerNorm(out_width)
        self.apply(init_weights)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embedding(ids) + self.positions  # B 20 300
        return self.norm(self.proj(self.blocks(x)))  # B 20 768
