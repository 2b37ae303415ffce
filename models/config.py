"""The numbers of a ReSTR: paper section 4.1, SPEC section 6. Every default is the paper's."""

from dataclasses import asdict, dataclass, field, fields

from utils.errors import InputError

FUSION_VARIANTS = ("indirect", "independent", "vanilla")  # paper, table 4


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
        if self.fusion.variant not in FUSION_VARIANTS:
            raise InputError(f"unknown fusion {self.fusion.variant!r}: choose from {', '.join(FUSION_VARIANTS)}")
        if self.fusion.layers < 1:
            raise InputError(f"--tr_n_layers {self.fusion.layers}: the fusion encoders need at least one block")

    def to_dict(self) -> dict:
        """Plain dicts and numbers, for a checkpoint."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> "ReSTRConfig":
        """The inverse of `to_dict`. Raises InputError for an unknown or a missing part."""
        try:
            parts = {part.name: part.default_factory(**values[part.name]) for part in fields(cls)}
            vision = parts["vision"]
            parts["vision"] = VisionConfig(**{**asdict(vision), "image_size": tuple(vision.image_size)})
            return cls(**parts)
        except (KeyError, TypeError) as error:
            raise InputError(f"not a ReSTR configuration ({error}): was it written by another version?") from None


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
