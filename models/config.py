"""The numbers of a ReSTR: paper section 4.1, SPEC section 6. Every default is the paper's."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields

from utils.errors import InputError, one_line

FUSION_VARIANTS = ("indirect", "independent", "vanilla")  # paper, table 4

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
    "mlp_ratio": 64.0,
    "drop_path": 0.9,
    "norm_eps": 0.1,
}
FLAGS = {"layers": "--tr_n_layers", "image_size": "--input_size"}


@dataclass(frozen=True)
class VisionConfig:
    """A plain ViT of timm. `None` means what timm's model of that name has."""

    backbone: str = "vit_base_patch16_384"  # timm's name
    image_size: tuple[int, int] = (480, 480)  # (height, width) in pixels
    patch_size: int | None = None
    width: int | None = None  # channels
    depth: int | None = None  # blocks
    heads: int | None = None
    norm_eps: float | None = None
    drop_path: float = 0.1  # stochastic depth of the last block, rising linearly from 0


@dataclass(frozen=True)
class LanguageConfig:
    """The post-norm transformer over word embeddings."""

    vocabulary_size: int = 12112  # words of vocabulary_Gref.txt
    width: int = 300  # GloVe's
    depth: int = 6
    heads: int = 12
    mlp_ratio: float = 4.0


@dataclass(frozen=True)
class FusionConfig:
    """The visual-linguistic and the linguistic-seed encoder."""

    variant: str = "indirect"
    layers: int = 2  # blocks of each encoder
    heads: int | None = None  # None: as many as the vision encoder
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

    vision: VisionConfig = field(default_factory=VisionConfig)
    language: LanguageConfig = field(default_factory=LanguageConfig)
    fusion: FusionConfig = field(default_factory=FusionConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)

    def __post_init__(self):
        for part in (self.vision, self.language, self.fusion, self.decoder):
            for item in fields(part):
                value = getattr(part, item.name)
                if not (value is None and item.default is None) and not _is_valid(item.name, value):
                    raise InputError(
                        f"{FLAGS.get(item.name, item.name)} {one_line(repr(value), 60)} is out of range or no such kind"
                    )
        if self.fusion.variant not in FUSION_VARIANTS:
            known = ", ".join(FUSION_VARIANTS)
            raise InputError(f"unknown fusion {one_line(repr(self.fusion.variant), 60)}: choose from {known}")

    def to_dict(self) -> dict:
        """Plain dicts and numbers, for a checkpoint."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> "ReSTRConfig":
        """The inverse of `to_dict`. Raises InputError for an unknown or a missing part or number."""
        try:
            kinds = {part.name: part.default_factory for part in fields(cls)}
            _same_names(values, kinds)
            for name, kind in kinds.items():
                _same_names(values[name], [item.name for item in fields(kind)])
            vision = {**values["vision"], "image_size": tuple(values["vision"]["image_size"])}
            return cls(**{name: kind(**{**values, "vision": vision}[name]) for name, kind in kinds.items()})
        except (KeyError, TypeError) as error:
            raise InputError(
                f"not a ReSTR configuration ({one_line(error, 80)}): was it written by another version?"
            ) from None


def _is_valid(name: str, value: object) -> bool:
    if name == "image_size":
        return isinstance(value, tuple) and len(value) == 2 and all(_in_range(name, side) for side in value)
    if name in LARGEST:
        return _in_range(name, value)
    return isinstance(value, bool if name in ("shared", "enabled") else str)


def _in_range(name: str, value: object) -> bool:
    if isinstance(LARGEST[name], int):
        return type(value) is int and 1 <= value <= LARGEST[name]
    return type(value) in (int, float) and 0 <= value <= LARGEST[name]


def _same_names(values: dict, names: Iterable[str]) -> None:
    differing = set(values) ^ set(names)
    if differing:
        raise KeyError(min(map(str, differing)))


# --v_backbone: these names, or any plain ViT of timm. The reference's ViT has LayerNorm's default eps, timm's has 1e-6.
VISION_BACKBONES = {
    "vit_base_patch16_384": VisionConfig(norm_eps=1e-5),
    "vit_shapes_patch8": VisionConfig("vit_tiny_patch16_224", patch_size=8, width=96, depth=4, heads=4),
}

# --l_backbone
LANGUAGE_BACKBONES = {
    "transformer_glove": LanguageConfig(),
    "transformer_shapes": LanguageConfig(width=48, depth=2, heads=4),
}
