"""The numbers of a ReSTR. Every default is the paper's: `ReSTRConfig()` is its model."""

from dataclasses import Field, asdict, dataclass, field, fields
from typing import get_args

from models.fusion import VARIANTS
from utils.errors import InputError, one_line
from utils.text import TEXT_LENGTH

# The largest value of each number, far above any use: a configuration may come from a stranger's file. Whole numbers
# start at 1, fractions at 0.
LARGEST = {
    "image_size": 8_192,
    "patch_size": 256,
    "width": 16_384,
    "depth": 1_000,
    "layers": 1_000,
    "heads": 1_000,
    "vocabulary_size": 10_000_000,
    "text_length": 64,
    "mlp_ratio": 64.0,
    "drop_path": 0.9,
    "norm_eps": 0.1,
}


@dataclass(frozen=True)
class VisionConfig:
    """A plain ViT of timm. `None`: what timm's model of that name has."""

    backbone: str = "vit_base_patch16_384"  # timm's name. paper: section 4.1, ViT-B/16
    image_size: tuple[int, int] = (480, 480)  # (height, width) in pixels. paper: section 4.1
    patch_size: int | None = 16  # pixels. paper: section 4.1
    width: int | None = 768  # channels. paper: section 4.1
    depth: int | None = 12  # blocks. paper: section 4.1
    heads: int | None = 12  # paper: section 4.1
    norm_eps: float | None = 1e-5  # of each LayerNorm; the authors' code (timm: 1e-6)
    drop_path: float = 0.1  # stochastic depth of the last block, rising linearly from 0


@dataclass(frozen=True)
class LanguageConfig:
    """The post-norm transformer over word embeddings."""

    vocabulary_size: int = 12112  # words of vocabulary_Gref.txt
    width: int = 300  # GloVe's. paper: section 4.1
    depth: int = 6  # blocks. paper: section 4.1
    heads: int = 12  # paper: section 4.1
    mlp_ratio: float = 4.0
    text_length = TEXT_LENGTH  # tokens; no field. paper: section 4.1


@dataclass(frozen=True)
class TextEncoderConfig:
    """A text encoder of Hugging Face transformers, which reads the ids of its own tokeniser plus 1; 0 is padding."""

    name: str = field(compare=False)  # its folder's, or the one on the hub: a copy elsewhere is the same encoder
    encoder: str  # its class, one of models.language.TEXT_ENCODERS
    settings: str  # JSON of the fields of its configuration
    vocabulary_size: int  # the encoder's own, plus 1
    text_length: int  # tokens, with the special ones of the tokeniser


@dataclass(frozen=True)
class FusionConfig:
    """The visual-linguistic and the linguistic-seed encoder."""

    variant: str = "indirect"
    layers: int = 2  # blocks of each encoder. paper: section 4.1
    heads: int | None = None  # None: as many as the vision encoder. paper: section 4.1, 12
    shared: bool = False  # one block applied `layers` times
    mlp_ratio: float = 4.0
    drop_path: float = 0.1


@dataclass(frozen=True)
class DecoderConfig:
    """The coarse-to-fine decoder; without it the pixel logits are the patch logits."""

    enabled: bool = True


@dataclass(frozen=True)
class ReSTRConfig:
    """Everything that decides the shapes of a model; stored in each checkpoint."""

    vision: VisionConfig = VisionConfig()
    language: LanguageConfig | TextEncoderConfig = LanguageConfig()
    fusion: FusionConfig = FusionConfig()
    decoder: DecoderConfig = DecoderConfig()

    def __post_init__(self):
        for part in (self.vision, self.language, self.fusion, self.decoder):
            for item in fields(part):
                value = getattr(part, item.name)
                if not _is_valid(item, value):
                    name, shown = item.name.replace("_", " "), one_line(value, 60)
                    raise InputError(f"{name} {shown} is out of range or of a wrong kind")
        if self.fusion.variant not in VARIANTS:
            known = ", ".join(VARIANTS)
            raise InputError(f"unknown fusion {one_line(repr(self.fusion.variant), 60)}: choose from {known}")

    def to_dict(self) -> dict:
        """Plain dicts and numbers, for a checkpoint."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> "ReSTRConfig":
        """The inverse of `to_dict`. Raises InputError for an unknown or a missing part or number."""
        try:
            kinds = {part.name: part.type for part in fields(cls)}
            kinds["language"] = TextEncoderConfig if "encoder" in values["language"] else LanguageConfig
            for given, kind in [(values, cls), *((values[part], kind) for part, kind in kinds.items())]:
                names = {item.name for item in fields(kind)}
                if set(given) != names:
                    raise KeyError(min(map(one_line, set(given) ^ names)))
            vision = {**values["vision"], "image_size": tuple(values["vision"]["image_size"])}
            if vision["backbone"].partition(".")[0] == VisionConfig.backbone:  # version 1.0 stored None for its numbers
                names = [name for name in ("patch_size", "width", "depth", "heads") if vision[name] is None]
                vision |= {name: getattr(VisionConfig, name) for name in names}
            parts = {**values, "vision": vision}
            return cls(**{part: kind(**parts[part]) for part, kind in kinds.items()})
        except InputError:
            raise
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            reason = one_line(error, 80)
            raise InputError(f"not a ReSTR configuration ({reason}): was it written by another version?") from None


def _is_valid(item: Field, value: object) -> bool:
    """Whether `value` is of the field's type, where a whole number does for a fraction, and in its range."""
    if item.name == "image_size":
        limit = LARGEST["image_size"]
        return isinstance(value, tuple) and len(value) == 2 and all(type(n) is int and 1 <= n <= limit for n in value)
    kinds = get_args(item.type) or (item.type,)  # int and NoneType of int | None
    if type(value) not in kinds and not (float in kinds and type(value) is int):
        return False
    return value is None or item.name not in LARGEST or (0 if float in kinds else 1) <= value <= LARGEST[item.name]


# Vision encoders by name; any plain ViT of timm is one too.
VISION_BACKBONES = {
    "vit_base_patch16_384": VisionConfig(),
    "vit_shapes_patch8": VisionConfig("vit_tiny_patch16_224", patch_size=8, width=96, depth=4, heads=4, norm_eps=None),
}

# Language encoders by name.
LANGUAGE_BACKBONES = {
    "transformer_glove": LanguageConfig(),
    "transformer_shapes": LanguageConfig(width=48, depth=2, heads=4),
}
