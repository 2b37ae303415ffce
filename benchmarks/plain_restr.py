"""ReSTR (paper section 3) spelled out plainly, in one file: what tests compare with, and the baseline of benchmarks.

Attention has an explicit softmax and the decoder upsamples before it projects, as in the authors' code; nothing of
models/ is used. It runs on a state dict with the authors' names and their configuration, in the dtype of the tensors.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


class PlainReSTR:
    """`PlainReSTR(state, config)(image, ids)` -> pixel logits B x 1 x H x W, patch logits B x 1 x rows x columns.

    `image` is normalised, B x 3 x H x W, of the dtype of `state`; `ids` int64 B x 20, 0 for padding. `variant`: a
    fusion of the paper; `independent` needs tensors `fusion_module.norm_v.*`, which the authors' default model lacks.
    """

    def __init__(self, state: dict[str, Tensor], config: dict, variant: str = "indirect"):
        self.state, self.config, self.variant = state, config, variant
        table = state["encoder_l.embedding.weight"]
        self.positions = positions(20, table.shape[1]).to(table.device, table.dtype)

    def __call__(self, image: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        v = self.encode_image(image)[:, 1:]
        return self.fuse(v, self.encode_text(ids), ids)

    def linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self.state[f"{name}.weight"], self.state[f"{name}.bias"])

    def norm(self, x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.state[f"{name}.weight"], self.state[f"{name}.bias"], 1e-5)

    def attention(self, x: Tensor, name: str, heads: int) -> Tensor:
        batch, length, width = x.shape
        qkv = self.linear(x, f"{name}.qkv").reshape(batch, length, 3, heads, width // heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each B heads T width/heads
        weights = torch.softmax(q @ k.transpose(-2, -1) / math.sqrt(width // heads), -1)
        return self.linear((weights @ v).transpose(1, 2).reshape(batch, length, width), f"{name}.proj")

    def mlp(self, x: Tensor, name: str) -> Tensor:
        return self.linear(F.gelu(self.linear(x, f"{name}.fc1")), f"{name}.fc2")

    def pre_norm(self, x: Tensor, name: str, heads: int) -> Tensor:
        x = x + self.attention(self.norm(x, f"{name}.norm1"), f"{name}.attn", heads)
        return x + self.mlp(self.norm(x, f"{name}.norm2"), f"{name}.mlp")

    def encode_image(self, image: Tensor) -> Tensor:
        """Tokens of the vision encoder, the class token first: B x 1+N x d."""
        config, state = self.config["v_backbone"], self.state
        patch = config["patch_size"]
        weight = state["encoder_v.patch_embed.proj.weight"].flatten(1)  # d 3*16*16
        x = F.unfold(image, patch, stride=patch).transpose(1, 2) @ weight.T + state["encoder_v.patch_embed.proj.bias"]
        x = torch.cat([state["encoder_v.cls_token"].expand(len(x), -1, -1), x], 1) + state["encoder_v.pos_embed"]
        for i in range(config["n_layers"]):
            x = self.pre_norm(x, f"encoder_v.blocks.{i}", config["n_heads"])
        return self.norm(x, "encoder_v.norm")

    def encode_text(self, ids: Tensor) -> Tensor:
        """Features of the tokens: B x 20 x d."""
        config = self.config["l_backbone"]
        x = self.state["encoder_l.embedding.weight"][ids] + self.positions
        for i in range(config["n_layers"]):
            name = f"encoder_l.blocks.{i}"
            x = self.norm(x + self.attention(x, f"{name}.attn", config["n_heads"]), f"{name}.norm1")
            x = self.norm(x + self.mlp(x, f"{name}.mlp"), f"{name}.norm2")
        return self.norm(self.linear(x, "encoder_l.proj_lang"), "encoder_l.lang_norm")

    def encoder(self, x: Tensor, name: str) -> Tensor:
        config = self.config["mm_fusion"]
        for i in range(config["n_layers"]):
            x = self.pre_norm(x, f"fusion_module.{name}.{0 if config['is_shared'] else i}", config["n_heads"])
        return x

    def fuse(self, v: Tensor, l: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Pixel and patch logits from both encoders' outputs."""
        v = self.linear(v / v.norm(dim=-1, keepdim=True), "fusion_module.proj_v")
        l = self.linear(l / l.norm(dim=-1, keepdim=True), "fusion_module.proj_l")
        l = l * (ids != 0).unsqueeze(-1)
        seed = self.state["fusion_module.seed_emb"].expand(len(v), -1, -1)
        n = v.shape[1]
        if self.variant == "vanilla":
            tokens = self.norm(self.encoder(torch.cat([v, l, seed], 1), "blocks_vl"), "fusion_module.norm")
            patches, classifier = tokens[:, :n], tokens[:, -1]
        else:
            tokens = self.encoder(torch.cat([v, l], 1), "blocks_vl")
            patches = tokens[:, :n]
            words = l if self.variant == "independent" else tokens[:, n:]
            seeded = self.encoder(torch.cat([words, seed], 1), "blocks_ls")
            classifier = self.norm(seeded, "fusion_module.norm")[:, -1]
            if self.variant == "independent":
                patches = self.norm(patches, "fusion_module.norm_v")
        p = patches @ self.state["fusion_module.proj_patch"]
        c = classifier @ self.state["fusion_module.proj_cls"]
        logits = (p * c.unsqueeze(1)).sum(-1)  # B N
        grid = [side // self.config["v_backbone"]["patch_size"] for side in self.config["v_backbone"]["image_size"]]
        patch_map = logits.reshape(len(v), 1, *grid)
        if not self.config["mm_fusion"]["is_decoder"]:
            return patch_map, patch_map
        x = torch.cat([v, logits.unsqueeze(-1) * p], -1).transpose(1, 2).reshape(len(v), -1, *grid)
        return self.decode(x), patch_map

    def decode(self, x: Tensor) -> Tensor:
        """Four times: upsample, project, leaky ReLU; then the last projection."""
        steps = sum(".up.1.weight" in name for name in self.state)
        for i in range(steps):
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
            x = F.leaky_relu(F.conv2d(x, self.state[f"fusion_module.decoder.{i}.up.1.weight"]), 0.01)
        return F.conv2d(x, self.state[f"fusion_module.decoder.{steps}.weight"])


def positions(length: int, width: int) -> Tensor:
    """Sine and cosine of each position at wavelengths from 2 pi to 20000 pi, in turn: float32 length x width."""
    position, channel = (torch.arange(count, dtype=torch.float64) for count in (length, width))
    angle = position[:, None] / 10000 ** (channel // 2 * 2 / width)
    return torch.where(channel % 2 == 1, angle.cos(), angle.sin()).float()
