"""The vision encoder: a plain ViT of timm as patch features. Paper section 3.1, SPEC section 6."""

import contextlib
import math
import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
import timm
import torch
from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError
from timm.layers import Mlp
from timm.models import clean_state_dict, load_state_dict
from torch import nn

from models.blocks import LeanMlp
from models.config import VISION_BACKBONES, VisionConfig
from models.tensor_file import load_tensors
from utils.errors import InputError, one_line
from utils.files.arrays import check_npz

NO_WEIGHTS = "give a file with --v_weights FILE, or train from random weights with --no_pretrained"
CHECK = "check --v_weights"
PLAIN_VITS = "choose one of timm's vit_*, deit*, eva*"
MAX_PATCHES = 16_384  # 1024 x 1024 pixels of patch size 8; attention over more does not fit any memory
HUB_SECONDS = 10

# Tensors of a file that, left over, mean another architecture (an ImageNet head or a text encoder does not).
BACKBONE_ONLY = ("blocks.", "norm_pre.", "pos_embed", "cls_token", "reg_token", "dist_token")


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
        for module in self.backbone.modules():
            if type(module) is Mlp:  # no gated one, which others of timm's ViTs have
                module.__class__ = LeanMlp
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

    def load_pretrained(self, file: Path | None) -> None:
        """Pre-trained weights from a `.npz`, `.pth` or `.safetensors` file, or, with None, from timm's hub.

        Positions are resampled (bicubic) to this encoder's grid. Raises InputError if they cannot be had or do not fit.
        """
        loaded = _from_hub(self.config) if file is None else _from_file(self.config, Path(file))
        self.backbone.load_state_dict(loaded.state_dict())


def _create(config: VisionConfig) -> nn.Module:
    names = {"patch_size": "patch_size", "width": "embed_dim", "depth": "depth", "heads": "num_heads"}
    options = {names[key]: value for key, value in asdict(config).items() if key in names and value is not None}
    if config.norm_eps is not None:
        options["norm_layer"] = partial(nn.LayerNorm, eps=config.norm_eps)
    if not timm.is_model(config.backbone):  # also keeps timm from asking the network for a name such as hf-hub:a/b
        raise InputError(f"--v_backbone {one_line(config.backbone, 80)} is unknown to timm: {PLAIN_VITS}")
    try:
        model = timm.create_model(
            config.backbone,
            img_size=config.image_size,
            num_classes=0,
            drop_path_rate=config.drop_path,
            **options,
        )
        model.reset_classifier(0, "")  # no pooling: SigLIP's attention pool would be left without a gradient
    except (RuntimeError, TypeError, AssertionError, ValueError) as error:
        reason = one_line(error, 160) or type(error).__name__
        raise InputError(f"--v_backbone {config.backbone}: no plain ViT ({reason}): {PLAIN_VITS}") from None
    return _checked(model, config)


def _checked(model: nn.Module, config: VisionConfig) -> nn.Module:
    needed = ("patch_embed", "blocks", "num_prefix_tokens", "embed_dim", "fc_norm")
    patch = getattr(getattr(model, "patch_embed", None), "patch_size", (0, 1))
    hybrid = hasattr(getattr(model, "patch_embed", None), "backbone")  # a convolutional network cuts its patches
    if not all(hasattr(model, name) for name in needed) or patch[0] != patch[1] or patch[0] < 2 or hybrid:
        raise InputError(f"--v_backbone {config.backbone} is no plain ViT: {PLAIN_VITS}")
    height, width = config.image_size
    if height % patch[0] or width % patch[0]:
        raise InputError(f"--input_size {height},{width} is not divisible by {config.backbone}'s patch size {patch[0]}")
    if height * width // patch[0] ** 2 > MAX_PATCHES:
        raise InputError(f"--input_size {height},{width} has more than {MAX_PATCHES} patches of {patch[0]} pixels")
    return model


def _empty(config: VisionConfig) -> nn.Module:
    """A backbone of NaN, which what a file lacks would leave behind."""
    model = _create(config)
    for value in model.state_dict().values():
        value.fill_(torch.nan)
    return model


def _require_full(model: nn.Module, source: object) -> None:
    missing = [name for name, value in model.state_dict().items() if value.isnan().any()]
    if missing:
        raise InputError(f"{source}: {len(missing)} tensors of the backbone are not in it, e.g. {missing[0]}: {CHECK}")


def _filter(model: nn.Module):
    """timm's function that turns the published layouts of this family into its own."""
    return sys.modules[type(model).__module__].checkpoint_filter_fn


def _from_hub(config: VisionConfig) -> nn.Module:
    model = _empty(config)
    try:
        _require_hub(model.pretrained_cfg)
        timm.models.load_pretrained(model, num_classes=0, filter_fn=_filter(model), strict=False)
    except Exception as error:  # timm and its hub client raise many kinds
        reason = one_line(error, 160)
        raise InputError(f"pre-trained {config.backbone} cannot be had ({reason}): {NO_WEIGHTS}") from None
    _require_full(model, f"pre-trained {config.backbone}")
    return model


def _require_hub(source: dict) -> None:
    """Fail within seconds where neither a cache nor the network has the weights: timm would retry for minutes."""
    repository, name = source.get("hf_hub_id"), source.get("hf_hub_filename") or "model.safetensors"
    if not repository or isinstance(try_to_load_from_cache(repository, name), str):
        return
    with contextlib.suppress(HfHubHTTPError):  # an answer, of whatever kind
        get_hf_file_metadata(hf_hub_url(repository, name), timeout=HUB_SECONDS)


def _from_file(config: VisionConfig, file: Path) -> nn.Module:
    """The backbone with the weights of `file`, loaded at the file's own grid of positions and then resampled."""
    if not file.is_file():
        raise InputError(f"{file}: no such file of ViT weights: {CHECK}")
    try:
        arrays = _arrays(file)
        model = _empty(replace(config, image_size=_native_size(config, arrays)))
        if file.suffix == ".npz":
            model.load_pretrained(str(file))
            unexpected = []
        else:
            unexpected = model.load_state_dict(_filter(model)(arrays, model), strict=False).unexpected_keys
    except Exception as error:  # whatever a damaged or foreign file makes the loaders raise
        reason = one_line(" ".join(str(error).split()), 200)
        raise InputError(f"{file}: not weights of {config.backbone} ({reason}): {CHECK}") from None
    _require_full(model, file)
    foreign = [name for name in unexpected if name.startswith(BACKBONE_ONLY)]
    if foreign:
        raise InputError(f"{file}: {config.backbone} has no place for its {one_line(foreign[0], 80)}: {CHECK}")
    model.set_input_size(config.image_size)
    return model


def _arrays(file: Path) -> Mapping:
    if file.suffix == ".npz":
        check_npz(file, CHECK)
        return np.load(file, allow_pickle=False)
    if file.suffix == ".safetensors":
        return load_state_dict(str(file))
    values = load_tensors(file)
    inner = (values.get(name) for name in ("state_dict_ema", "model_ema", "state_dict", "model"))  # timm's order
    return clean_state_dict(next((state for state in inner if state is not None), values))


def _native_size(config: VisionConfig, arrays: Mapping) -> tuple[int, int]:
    """Image size, height and width, for which a file's position embedding was made: a square, or ours."""
    with torch.device("meta"):
        model = _create(config)
    for name in arrays:
        if name.endswith(("pos_embed", "pos_embedding", "visual.positional_embedding")):
            tokens = arrays[name].shape[-2]
            side = math.isqrt(tokens)
            if tokens - side**2 <= model.num_prefix_tokens:  # class and register tokens may have positions too
                return (side * model.patch_embed.patch_size[0],) * 2
    return config.image_size
