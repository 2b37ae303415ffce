"""The toy model of the tests: a ReSTR of a few thousand numbers, in our words and in those of the authors' code."""

from dataclasses import replace
from pathlib import Path

import torch

from models import ReSTRConfig, build_restr
from models.checkpoint import Checkpoint, save_checkpoint
from models.config import DecoderConfig, FusionConfig, LanguageConfig, VisionConfig
from utils.text import SPECIAL_WORDS, Vocabulary

SIZE = (32, 48)
WORDS = [*SPECIAL_WORDS, *(f"w{i}" for i in range(len(SPECIAL_WORDS), 30))]
VOCABULARY = Vocabulary(WORDS)
CONFIG = ReSTRConfig(
    VisionConfig("vit_tiny_patch16_224", SIZE, patch_size=8, width=24, depth=1, heads=2, norm_eps=1e-5),
    LanguageConfig(len(WORDS), width=12, depth=1, heads=2),
    FusionConfig(layers=2, heads=2),
    DecoderConfig(),
)
REFERENCE = {  # the same numbers in the words of the authors' code
    "v_backbone": {
        **{"backbone": "vit_tiny_patch16_224", "image_size": list(SIZE), "patch_size": 8},
        **{"d_model": 24, "n_heads": 2, "n_layers": 1, "drop_path_rate": 0.1},
    },
    "l_backbone": {"d_lang": 12, "n_layers": 1, "n_heads": 2},
    "mm_fusion": {"n_layers": 2, "n_heads": 2, "drop_path_rate": 0.1, "is_shared": False, "is_decoder": True},
}


def tiny_model(**parts) -> torch.nn.Module:
    """Random weights; the decoder's logits are spread to about 0.4, far above float32's noise. `parts`: of CONFIG."""
    torch.manual_seed(3)
    model = build_restr(replace(CONFIG, **parts)).eval()
    if model.decoder is not None:
        model.decoder.head.weight.data *= 100
    return model


def write_checkpoint(path: Path, step: int = 500, dataset: str = "unc", words: list[str] | None = None, **more) -> None:
    """A checkpoint with random weights. `more`: other fields of Checkpoint."""
    model = tiny_model()
    path.parent.mkdir(exist_ok=True, parents=True)
    data = {"dataset": dataset, "image_size": list(SIZE), "vocabulary_sha256": VOCABULARY.sha256}
    save_checkpoint(path, Checkpoint(model.state_dict(), model.config, words or WORDS, data, step, **more))


def outputs(model) -> torch.Tensor:
    """Pixel and patch logits of `model` for an input that is always the same, in one row."""
    generator = torch.Generator().manual_seed(1)
    image = torch.randint(0, 256, (2, 3, *model.image_size), dtype=torch.uint8, generator=generator)
    ids = torch.randint(0, model.config.language.vocabulary_size, (2, 20), generator=generator)
    device = next(model.parameters()).device
    with torch.no_grad():
        return torch.cat([logits.flatten().cpu() for logits in model(image.to(device), ids.to(device))])
