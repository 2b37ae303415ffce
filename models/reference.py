"""The authors' tensor names and configuration <-> ours."""

import re

import torch

from models.config import DecoderConfig, FusionConfig, LanguageConfig, ReSTRConfig, VisionConfig
from models.restr import ReSTR, model_with
from utils.errors import InputError, one_line

# An ImageNet classifier that the authors' code keeps and never uses.
HEAD = ("encoder_v.head.weight", "encoder_v.head.bias")
HEAD_CLASSES = 1000

# How an authors' name begins, and how ours does, once their decoder's steps have our names; the first that fits.
_PREFIXES = {
    "encoder_v.": "vision.backbone.",
    "encoder_l.proj_lang.": "language.proj.",
    "encoder_l.lang_norm.": "language.norm.",
    "encoder_l.": "language.",
    "fusion_module.seed_emb": "fusion.class_seed",
    "fusion_module.proj_cls": "fusion.proj_classifier",
    "fusion_module.blocks_vl.": "fusion.visual_linguistic.blocks.",
    "fusion_module.blocks_ls.": "fusion.linguistic_seed.blocks.",
    "fusion_module.decoder.": "decoder.",
    "fusion_module.": "fusion.",
}


def our_name(reference_name: str) -> str:
    """Our name of a tensor of the authors' code. Raises InputError for a name that their checkpoints do not have."""
    for theirs, ours in _PREFIXES.items():
        if reference_name.startswith(theirs):
            name = re.sub(r"^decoder\.(\d+)\.up\.1\.", r"decoder.up.\1.", ours + reference_name.removeprefix(theirs))
            return re.sub(r"^decoder\.\d+\.", "decoder.head.", name)
    raise InputError(f"{one_line(repr(reference_name), 80)} is not a tensor of the authors' ReSTR")


def reference_config(names, image_size=(480, 480), shared: bool = False) -> dict:
    """The authors' configuration at its default size; whether there is a decoder is read from the tensor `names`."""
    vision = {"backbone": "vit_base_patch16_384", "image_size": list(image_size), "patch_size": 16}
    return {
        "v_backbone": {**vision, "d_model": 768, "n_heads": 12, "n_layers": 12, "drop_path_rate": 0.1},
        "l_backbone": {"d_lang": 300, "n_layers": 6, "n_heads": 12},
        "mm_fusion": {
            "n_layers": 2,
            "n_heads": 12,
            "drop_path_rate": 0.1,
            "is_shared": shared,
            "is_decoder": any("fusion_module.decoder." in str(name) for name in names),
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
    state_dict = {str(name).removeprefix("module."): value for name, value in state_dict.items()}  # of DataParallel
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

    The order of the names is ours. Raises InputError for a fusion variant or a language encoder that theirs lacks.
    """
    if not isinstance(model.config.language, LanguageConfig):
        raise InputError("the authors' model has no place for another language encoder")
    if model.config.fusion.variant != "indirect":
        raise InputError(f"the authors' model has no place for the fusion variant {model.config.fusion.variant}")
    steps = len(model.decoder.up) if model.decoder is not None else 0
    state = {_reference_name(name, steps): value for name, value in model.state_dict().items()}
    width = model.vision.width
    return state | {HEAD[0]: torch.zeros(HEAD_CLASSES, width), HEAD[1]: torch.zeros(HEAD_CLASSES)}


def _reference_name(name: str, steps: int) -> str:
    name = re.sub(r"^decoder\.up\.(\d+)\.", r"decoder.\1.up.1.", name).replace("decoder.head.", f"decoder.{steps}.")
    theirs, ours = next(pair for pair in _PREFIXES.items() if name.startswith(pair[1]))
    return theirs + name.removeprefix(ours)
