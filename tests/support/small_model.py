"""A ReSTR of a few thousand numbers, in our words and in the reference's."""

import torch

from models.config import DecoderConfig, FusionConfig, LanguageConfig, ReSTRConfig, VisionConfig

WORDS = ["<pad>", "<go>", "<eos>", "<unk>", "left", "kite"]
CONFIG = ReSTRConfig(
    VisionConfig("vit_tiny_patch16_224", (32, 48), patch_size=16, width=24, depth=1, heads=3, norm_eps=1e-5),
    LanguageConfig(len(WORDS), width=12, depth=1, heads=3),
    FusionConfig(layers=1, heads=3),
    DecoderConfig(),
)
REFERENCE = {  # the same numbers in the reference's words
    "v_backbone": {
        "backbone": "vit_tiny_patch16_224",
        "image_size": [32, 48],
        "patch_size": 16,
        "d_model": 24,
        "n_heads": 3,
        "n_layers": 1,
        "drop_path_rate": 0.1,
    },
    "l_backbone": {"d_lang": 12, "n_layers": 1, "n_heads": 3},
    "mm_fusion": {"n_layers": 1, "n_heads": 3, "drop_path_rate": 0.1, "is_shared": False, "is_decoder": True},
}


def outputs(model):
    """Pixel and patch logits of `model` for an input that is always the same, in one row."""
    generator = torch.Generator().manual_seed(1)
    image = torch.randint(0, 256, (2, 3, *model.image_size), dtype=torch.uint8, generator=generator)
    ids = torch.randint(0, model.config.language.vocabulary_size, (2, 20), generator=generator)
    with torch.no_grad():
        return torch.cat([logits.flatten() for logits in model(image, ids)])
