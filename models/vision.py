"""The vision encoder: a plain ViT of timm as patch features. Paper section 3.1, SPEC section 6."""

import sys
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import timm
import torch
from timm.models import load_checkpoint
from torch import nn

from models.config import VISION_BACKBONES, VisionConfig
from utils.errors import InputError, one_line

NO_WEIGHTS = "give a file with --v_weights FILE, or train from random weights with --no_pretrained"


def vision_config(name: str, image_size: tuple[int, int], **changes) -> VisionConfig:
    """The entry of the backbone table, or timm's model of that name, for images of `image_size` (height, width)."""
    base = VISION_BACKBONES.get(name) or VISION_BACKBONES.get(name.partition(".")[0])  # timm: model.weights
    if base is None or "." in name:
        base = replace(base or VisionConfig(), backbone=name)
    return replace(base, image_size=tuple(image_size), **changes)


class VisionEncoder(nn.Module):
    """Normalised images to patch features.

    Args of forward: image, float B x 3 x H x W, normalised. Returns v: B x N x width, N = (H / patch) * (W / patch);
    class and register tokens are used inside and dropped here.
    Raises InputError if the backbone is no plain ViT or the image size is no multiple of its patch size.
    """

    def __init__(self, config: VisionConfig):
        super().__init__()
        self.config = config
        self.backbone = _create(config)
        self.width = self.backbone.embed_dim
        self.heads = getattr(self.backbone.blocks[0].attn, "num_heads", None) or max(1, self.width // 64)
        self.patch_size = self.backbone.patch_embed.patch_size[0]
        self.grid = self.backbone.patch_embed.grid_size  # (rows, columns) of patches
        mean, std = (self.backbone.pretrained_cfg[key] for key in ("mean", "std"))
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def normalise(self, image: torch.Tensor) -> torch.Tensor:
        """uint8 B x 3 x H x W in 0..255 to float32, by the backbone's own mean and deviation (ReSTR: 0.5)."""
        return (image.float() / 255 - self.mean) / self.std

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        tokens = self.backbone.forward_features(image)  # B 1+900 768
        tokens = self.backbone.fc_norm(tokens)  # models that pool by averaging keep their final LayerNorm here
        return tokens[:, self.backbone.num_prefix_tokens :]  # B 900 768

    def load_pretrained(self, file: Path | None) -> None:
        """Pre-trained weights from a `.npz`, `.pth` or `.safetensors` file, or, with None, from timm's hub.

        Positions are resampled (bicubic) to this encoder's grid. Raises InputError if they cannot be had or do not fit.
        """
        if file is not None:
            _load_file(self.backbone, Path(file))
            return
        try:
            weights = _create(self.config, pretrained=True).state_dict()
        except Exception as error:  # timm and its hub client raise many kinds
            raise InputError(
                f"pre-trained {self.config.backbone} could not be downloaded ({one_line(error, 160)}): {NO_WEIGHTS}"
            ) from None
        self.backbone.load_state_dict(weights)


def _create(config: VisionConfig, pretrained: bool = False) -> nn.Module:
    names = {"patch_size": "patch_size", "width": "embed_dim", "depth": "depth", "heads": "num_heads"}
    options = {names[key]: value for key, value in asdict(config).items() if key in names and value is not None}
    if config.norm_eps is not None:
        options["norm_layer"] = partial(nn.LayerNorm, eps=config.norm_eps)
    try:
        model = timm.create_model(
            config.backbone,
            pretrained=pretrained,
            img_size=config.image_size,
            num_classes=0,
            drop_path_rate=config.drop_path,
            **options,
        )
        model.reset_classifier(0, "")  # no pooling: SigLIP's attention pool would be left without a gradient
    except (RuntimeError, TypeError, AssertionError, ValueError) as error:
        if pretrained:
            raise
        raise InputError(f"--v_backbone {config.backbone}: timm cannot build it ({one_line(error, 160)})") from None
    return _checked(model, config)


def _checked(model: nn.Module, config: VisionConfig) -> nn.Module:
    needed = ("patch_embed", "blocks", "num_prefix_tokens", "embed_dim", "fc_norm")
    patch = getattr(getattr(model, "patch_embed", None), "patch_size", (0, 1))
    if not all(hasattr(model, name) for name in needed) or patch[0] != patch[1]:
        raise InputError(f"--v_backbone {config.backbone} is not a plain ViT: choose one of timm's vit_*, deit*, eva*")
    if any(side % patch[0] for side in config.image_size):
        height, width = config.image_size
        raise InputError(f"--input_size {height},{width} is not divisible by {config.backbone}'s patch size {patch[0]}")
    return model


def _load_file(backbone: nn.Module, file: Path) -> None:
    if not file.is_file():
        raise InputError(f"{file}: no such file of ViT weights: check --v_weights")
    convert = getattr(sys.modules[type(backbone).__module__], "checkpoint_filter_fn", None)
    try:
        result = load_checkpoint(backbone, str(file), strict=False, filter_fn=convert)
    except Exception as error:  # whatever a damaged or foreign file makes the loaders raise
        raise InputError(f"{file}: not weights of this backbone ({one_line(error, 160)}): check --v_weights") from None
    missing = result.missing_keys if result is not None else []
    if missing:
        raise InputError(
            f"{file}: {len(missing)} tensors of the backbone are not in it, e.g. {missing[0]}: check --v_weights"
        )
