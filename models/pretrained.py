"""Pre-trained weights of the vision encoder, from a file or from timm's hub."""

import contextlib
import math
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import timm
import torch
from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError
from timm.models import clean_state_dict, load_state_dict
from torch import nn

from models.config import VisionConfig
from models.tensor_file import load_tensors
from models.vision import VisionEncoder, create_backbone
from utils.errors import InputError, one_line
from utils.files.arrays import array_header
from utils.files.reading import refusing, regular_file_size

NO_WEIGHTS = "give a file of pre-trained weights, or start from random weights"
CHECK = "check the file of pre-trained weights"
HUB_SECONDS = 10

# Tensors of a file that, left over, mean another architecture (an ImageNet head or a text encoder does not).
BACKBONE_ONLY = ("blocks.", "norm_pre.", "pos_embed", "cls_token", "reg_token", "dist_token")


def load_pretrained(encoder: VisionEncoder, file: Path | None) -> None:
    """Fill `encoder` with the weights of a `.npz`, `.pth` or `.safetensors` file, or, with None, of timm's hub.

    Positions are resampled (bicubic) to the encoder's grid. Raises InputError if weights are not available or do not
    fit; the encoder then stays as it was.
    """
    loaded = _from_hub(encoder.config) if file is None else _from_file(encoder.config, Path(file))
    missing = [name for name, value in loaded.state_dict().items() if value.isnan().any()]
    if missing:
        source = f"pre-trained {encoder.config.backbone}" if file is None else file
        raise InputError(f"{source}: {len(missing)} tensors of the backbone are not in it, e.g. {missing[0]}: {CHECK}")
    encoder.backbone.load_state_dict(loaded.state_dict())


def _empty(config: VisionConfig) -> nn.Module:
    """A backbone filled with NaN, so that tensors missing from a file can be detected."""
    model = create_backbone(config)
    for value in model.state_dict().values():
        value.fill_(torch.nan)
    return model


def _filter(model: nn.Module):
    """timm's function that turns the published layouts of this family into its own."""
    return sys.modules[type(model).__module__].checkpoint_filter_fn


def _from_hub(config: VisionConfig) -> nn.Module:
    model = _empty(config)
    repository = model.pretrained_cfg.get("hf_hub_id")
    name = model.pretrained_cfg.get("hf_hub_filename") or "model.safetensors"
    try:
        if repository and not isinstance(try_to_load_from_cache(repository, name), str):
            # Fails within seconds where there is no network: timm would retry for minutes.
            with contextlib.suppress(HfHubHTTPError):  # an answer, of whatever kind
                get_hf_file_metadata(hf_hub_url(repository, name), timeout=HUB_SECONDS)
        timm.models.load_pretrained(model, num_classes=0, filter_fn=_filter(model), strict=False)
    except Exception as error:  # timm and its hub client raise many kinds
        reason = one_line(error, 160)
        raise InputError(f"pre-trained {config.backbone} is not available ({reason}): {NO_WEIGHTS}") from None
    return model


def _from_file(config: VisionConfig, file: Path) -> nn.Module:
    """The backbone with the weights of `file`, loaded at the file's own grid of positions and then resampled."""
    if not file.is_file():
        raise InputError(f"{file}: no such file of ViT weights: {CHECK}")
    unexpected = []
    try:
        arrays = _arrays(file)
        model = _empty(replace(config, image_size=_native_size(config, arrays)))
        if file.suffix == ".npz":
            model.load_pretrained(str(file))
        else:
            unexpected = model.load_state_dict(_filter(model)(arrays, model), strict=False).unexpected_keys
    except Exception as error:  # whatever a damaged or foreign file makes the loaders raise
        reason = one_line(" ".join(str(error).split()), 200)
        raise InputError(f"{file}: not weights of {config.backbone} ({reason}): {CHECK}") from None
    foreign = [name for name in unexpected if name.startswith(BACKBONE_ONLY)]
    if foreign:
        raise InputError(f"{file}: {config.backbone} has no place for its {one_line(foreign[0], 80)}: {CHECK}")
    model.set_input_size(config.image_size)
    return model


def _arrays(file: Path) -> Mapping:
    if file.suffix == ".npz":
        _check_npz(file)
        return np.load(file, allow_pickle=False)
    if file.suffix == ".safetensors":
        return load_state_dict(str(file))
    values = load_tensors(file)
    inner = (values.get(name) for name in ("state_dict_ema", "model_ema", "state_dict", "model"))  # timm's order
    return clean_state_dict(next((state for state in inner if state is not None), values))


def _check_npz(file: Path) -> None:
    """Raise InputError for an npz file that np.load would take far more memory for than the file has bytes."""
    with refusing(file, "npz file", CHECK), zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        unpacked = sum(member.file_size for member in members)
        if unpacked > 10 * regular_file_size(file, CHECK):  # weights hardly pack at all
            raise ValueError(f"it unpacks to {unpacked:,} bytes")
        for member in members:
            with archive.open(member) as array:
                array_header(array, member.file_size, member.filename)


def _native_size(config: VisionConfig, arrays: Mapping) -> tuple[int, int]:
    """Image size, height and width, for which a file's position embedding was made: a square, or ours."""
    with torch.device("meta"):
        model = create_backbone(config)
    for name in arrays:
        if name.endswith(("pos_embed", "pos_embedding", "visual.positional_embedding")):
            tokens = arrays[name].shape[-2]
            side = math.isqrt(tokens)
            if tokens - side**2 <= model.num_prefix_tokens:  # class and register tokens may have positions too
                return (side * model.patch_embed.patch_size[0],) * 2
    return config.image_size
