"""The authors' tensor names and configuration <-> ours."""

import re

import torch

from models.config import DecoderConfig, FusionConfig, LanguageConfig, ReSTRConfig, VisionConfig
from models.restr import ReSTR
from models.weights import model_with
from utils.errors import InputError, one_line

# An ImageNet classifier that the authors' code keeps and never uses.
HEAD = ("encoder_v.head.weight", "encoder_v.head.bias")
HEAD_CLASSES = 1000

# (pattern of an authors' name, our name); a decoder step is decoder.N.up.1, the last layer decoder.N
_NAMES = (
    (r"encoder_v\.", "vision.backbone."),
    (r"encoder_l\.proj_lang\.", "language.proj."),
    (r"encoder_l\.lang_norm\.", "language.norm."),
    (r"encoder_l\.", "language."),
    (r"fusion_module\.seed_emb$", "fusion.class_seed"),
    (r"fusion_module\.proj_cls$", "fusion.proj_classifier"),
    (r"fusion_module\.blocks_vl\.", "fusion.visual_linguistic.blocks."),
    (r"fusion_module\.blocks_ls\.", "fusion.linguistic_seed.blocks."),
    (r"fusion_module\.decoder\.(\d+)\.up\.1\.weight$", r"decoder.up.\1.weight"),
    (r"fusion_module\.decoder\.\d+\.weight$", "decoder.head.weight"),
    (r"fusion_module\.", "fusion."),
)


def our_name(reference_name: str) -> str:
    """Our name of a tensor of the authors' code. Raises InputError for a name that their checkpoints do not have."""
    for pattern, name in _NAMES:
        new, count = re.subn("^" + pattern, name, reference_name)
        if count:
            return new
    raise InputError(f"{one_line(repr(reference_name), 80)} is not a tensor of the authors' ReSTR")


def reference_config(names, image_size=(480, 480), layers: int = 2, shared: bool = False) -> dict:
    """The authors' configuration at its default size; whether there is a decoder is read from the tensor `names`."""
    vision = {"backbone": "vit_base_patch16_384", "image_size": list(image_size), "patch_size": 16}
    return {
        "v_backbone": {**vision, "d_model": 768, "n_heads": 12, "n_layers": 12, "drop_path_rate": 0.1},
        "l_backbone": {"d_lang": 300, "n_layers": 6, "n_heads": 12},
        "mm_fusion": {
            "n_layers": layers,
            "n_heads": 12,
            "drop_path_rate": 0.1,
            "is_shared": shared,
            "is_decoder": any(name.startswith("fusion_module.decoder.") for name in names),
        },
    }


def config_from_reference(config: dict, vocabulary_size: int) -> ReSTRConfig:
    """Our configuration from the authors' dict of `v_backbone`, `l_backbone` and `mm_fusion`.

    Raises InputError if a key is missing.
    """
    try:
        v, l, m = config["v_backbone"], config["l_backbone"], config["mm_fusion"]
        return ReSTRConfig(
            VisionConfig(
                backbone=v["backbone"],
                image_size=tuple(v["image_size"]),
                patch_size=v["patch_size"],
                width=v["d_model"],
                depth=v["n_layers"],
                heads=v["n_heads"],
                norm_eps=1e-5,
                drop_path=v["drop_path_rate"],
            ),
            LanguageConfig(vocabulary_size, width=l["d_lang"], depth=l["n_layers"], heads=l["n_heads"]),
            FusionConfig(
                layers=m["n_layers"], heads=m["n_heads"], shared=m["is_shared"], drop_path=m["drop_path_rate"]
            ),
            DecoderConfig(m["is_decoder"]),
        )
    except (KeyError, TypeError) as error:
        raise InputError(f"not a configuration of the authors' code: {error} is missing or of a wrong kind") from None


def from_reference(state_dict: dict[str, torch.Tensor], config: dict) -> ReSTR:
    """Our model, in eval mode, with the weights of the authors' `state_dict` and their own `config` dict.

    Raises InputError if a tensor is missing, left over (but for the unused ViT head) or of another shape.
    """
    state_dict = {name.removeprefix("module."): value for name, value in state_dict.items()}  # saved under DataParallel
    embedding = state_dict.get("encoder_l.embedding.weight")
    if getattr(embedding, "ndim", 0) != 2:
        raise InputError("not a ReSTR of the authors' code: encoder_l.embedding.weight is missing or not a matrix")
    ours = {our_name(name): value for name, value in state_dict.items() if name not in HEAD}
    config = config_from_reference(config, len(embedding))
    try:
        return model_with(config, ours)
    except InputError as error:
        raise InputError(f"the authors' checkpoint does not fit its configuration: {error}") from None


def to_reference(model: ReSTR) -> dict[str, torch.Tensor]:
    """The authors' state dict with the weights of `model` (fusion `indirect` only); the unused ViT head is zero.

    The order of the names is ours. Raises InputError for a fusion variant that the authors' model does not have.
    """
    if model.config.fusion.variant != "indirect":
        raise InputError(f"the authors' model has no place for the fusion variant {model.config.fusion.variant}")
    steps = len(model.decoder.up) if model.decoder is not None else 0
    state = {_reference_name(name, steps): value for name, value in model.state_dict().items()}
    width = model.vision.width
    return state | {HEAD[0]: torch.zeros(HEAD_CLASSES, width), HEAD[1]: torch.zeros(HEAD_CLASSES)}


def _reference_name(name: str, steps: int) -> str:
    if name == "decoder.head.weight":
        return f"fusion_module.decoder.{steps}.weight"
    name = re.sub(r"^decoder\.up\.(\d+)\.weight$", r"fusion_module.decoder.\1.up.1.weight", name)
    for pattern, ours in _NAMES:
        if "decoder" not in pattern and name.startswith(ours):
            return re.sub(r"\\\.", ".", pattern).rstrip("$") + name.removeprefix(ours)
    return name
