"""The language encoder: paper section 3.1."""

from dataclasses import fields

import torch
import torch.nn.functional as F
from torch import nn

from models.blocks import LayerNorm, PostNormBlock, init_weights
from models.config import LARGEST, LanguageConfig, TextEncoderConfig
from utils.errors import one_line
from utils.files.reading import json_value, refusing
from utils.subwords import import_transformers
from utils.text import TEXT_LENGTH

# Encoders of transformers that take a mask of four dimensions, use PyTorch's fused attention, and load nothing.
TEXT_ENCODERS = """
    BertModel CamembertModel DistilBertModel ElectraModel ModernBertModel RobertaModel XLMRobertaModel T5EncoderModel
    CLIPTextModel SiglipTextModel Siglip2TextModel
""".split()


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


class TextEncoder(nn.Module):
    """A text encoder of Hugging Face transformers, followed by the projection of LanguageEncoder.

    Args of forward: ids, int64 B x L, the tokeniser's plus 1, then 0 for padding. Returns l: B x L x `out_width`.
    Raises InputError if transformers has no such encoder, or one of fewer positions than `text_length`.
    """

    def __init__(self, config: TextEncoderConfig, out_width: int):
        super().__init__()
        with refusing(one_line(config.name, 80), "text encoder of transformers", "choose another, or fewer tokens"):
            self.encoder = create_text_encoder(config)
        self.proj = nn.Linear(self.encoder.config.hidden_size, out_width)
        self.norm = LayerNorm(out_width)
        self.proj.apply(init_weights)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        kind = self.encoder.config.model_type
        seen = F.pad(ids[:, 1:] != 0, (1, 0), value=True)  # the first in any case: no softmax is over nothing
        mask = seen[:, None, None].expand(-1, 1, ids.shape[1], -1)  # B 1 20 20
        if kind == "clip_text_model":
            mask = mask.tril()  # a token sees itself and those before it
        elif kind.startswith("siglip"):
            mask = None  # trained without one: padding is seen
        ids = torch.where(ids == 0, self.encoder.config.pad_token_id or 0, ids - 1)
        x = self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state  # B 20 768
        return self.norm(self.proj(x))


ENCODERS = {LanguageConfig: LanguageEncoder, TextEncoderConfig: TextEncoder}


def create_text_encoder(config: TextEncoderConfig) -> nn.Module:
    """The encoder of transformers that `config` describes, with random weights, without pooling and dropout.

    Without dropout, a step depends on the seed and its number alone. Raises whatever transformers does.
    """
    if config.encoder not in TEXT_ENCODERS:
        raise ValueError(f"{config.encoder} is none of {', '.join(TEXT_ENCODERS)}")
    kind, values = getattr(import_transformers(), config.encoder), json_value(config.settings.encode())
    values = {name: 0.0 if "dropout" in name else values[name] for name in own_fields(kind) & values.keys()}
    most = LARGEST["layers"], LARGEST["vocabulary_size"]
    if any(type(value) is int and value > most["layers" not in name] for name, value in values.items()):
        raise ValueError("a number is too large")
    encoder = without_pooling(kind(kind.config_class(**values, vocab_size=config.vocabulary_size - 1)))
    if not 0 <= (encoder.config.pad_token_id or 0) < encoder.config.vocab_size:
        raise ValueError("its padding is no token")
    for name, layer in encoder.named_modules():
        if name.endswith(("position_embedding", "position_embeddings")) and isinstance(layer, nn.Embedding):
            positions = layer.num_embeddings - (0 if layer.padding_idx is None else layer.padding_idx + 1)
            if positions < config.text_length:
                raise ValueError(f"it reads at most {positions} tokens, not {config.text_length}")
    return encoder


def own_fields(kind: type) -> set[str]:
    """Fields of an encoder's configuration that say what it is; those of the base class may name code to load."""
    base = import_transformers().PreTrainedConfig
    return {field.name for field in fields(kind.config_class)} - {field.name for field in fields(base)} - {"vocab_size"}


def without_pooling(encoder: nn.Module) -> nn.Module:
    """The encoder with what it has after the tokens' features, which nothing here uses, made to do nothing."""
    for name in {"pooler", "head"} & dict(encoder.named_children()).keys():
        setattr(encoder, name, nn.Identity())
    return encoder
