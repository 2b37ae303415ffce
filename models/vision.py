"""The vision encoder: a plain ViT of timm as patch features. Paper section 3.1."""

from dataclasses import asdict, replace
from functools import partial

import timm
import torch
from torch import nn

from models.config import VISION_BACKBONES, VisionConfig
from utils.errors import InputError, did_you_mean, one_line

PLAIN_VITS = "choose one of timm's vit_*, deit*, eva*"
MAX_PATCHES = 16_384  # 1024 x 1024 pixels of patch size 8; attention over more fits no memory


def vision_config(name: str, image_size: tuple[int, int], **changes) -> VisionConfig:
    """The entry of the backbone table, or timm's model of that name, for images of `image_size` (height, width)."""
    base = VISION_BACKBONES.get(name) or VISION_BACKBONES.get(name.partition(".")[0])  # timm: model.weights
    if base is None:
        base = VisionConfig(patch_size=None, width=None, depth=None, heads=None, norm_eps=None)
    if name not in VISION_BACKBONES:
        base = replace(base, backbone=name)
    return replace(base, image_size=tuple(image_size), **changes)


class VisionEncoder(nn.Module):
    """Normalised images to patch features.

    Args of forward: image, float B x 3 x H x W, normalised. Returns v: B x N x width, N = (H / patch) * (W / patch);
    class and register tokens are used inside and dropped here.
    Raises InputError if the backbone is not a plain ViT or the image size is not a multiple of its patch size.
    """

    def __init__(self, config: VisionConfig):
        super().__init__()
        self.config = config
        self.backbone = create_backbone(config)
        self.width = self.backbone.embed_dim
        heads = (module.num_heads for module in self.backbone.blocks.modules() if hasattr(module, "num_heads"))
        self.heads = next(heads, max(1, self.width // 64))
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


def create_backbone(config: VisionConfig) -> nn.Module:
    """timm's ViT of `config` with random weights. Raises InputError as `VisionEncoder` does."""
    names = {"patch_size": "patch_size", "width": "embed_dim", "depth": "depth", "heads": "num_heads"}
    options = {names[key]: value for key, value in asdict(config).items() if key in names and value is not None}
    if config.norm_eps is not None:
        options["norm_layer"] = partial(nn.LayerNorm, eps=config.norm_eps)
    if not timm.is_model(config.backbone):  # also keeps timm from asking the network for a name such as hf-hub:a/b
        meant = did_you_mean(config.backbone, [*VISION_BACKBONES, *timm.list_models(["vit_*", "deit*", "eva*"])])
        raise InputError(f"backbone {one_line(config.backbone, 80)} is unknown to timm: {PLAIN_VITS}{meant}")
    try:
        options |= {"img_size": config.image_size, "num_classes": 0, "drop_path_rate": config.drop_path}
        model = timm.create_model(config.backbone, **options)
        model.reset_classifier(0, "")  # no pooling: SigLIP's attention pool would be left without a gradient
        _ = model.blocks, model.num_prefix_tokens, model.embed_dim, model.fc_norm  # each plain ViT has these
        rows, columns = model.patch_embed.patch_size
        if rows != columns or rows < 2 or hasattr(model.patch_embed, "backbone"):
            raise ValueError("its patches are not square, or cut by a convolutional network")
    except (AssertionError, AttributeError, RuntimeError, TypeError, ValueError) as error:
        reason = one_line(error, 160) or type(error).__name__
        raise InputError(f"backbone {config.backbone} is not a plain ViT ({reason}): {PLAIN_VITS}") from None
    height, width = config.image_size
    if height % rows or width % rows:
        raise InputError(f"image size {height} x {width} is not divisible by the patch size {rows}")
    if height * width // rows**2 > MAX_PATCHES:
        raise InputError(f"image size {height} x {width} has more than {MAX_PATCHES} patches of {rows} pixels")
    return model
