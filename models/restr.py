"""ReSTR assembled: paper section 3."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from models.blocks import replace_layers
from models.config import ReSTRConfig
from models.decoder import CoarseToFineDecoder
from models.fusion import MultimodalFusion
from models.inference import EncodedImage, encode, segment
from models.language import ENCODERS, TextEncoder
from models.vision import VisionEncoder
from utils.errors import InputError, one_line
from utils.subwords import Subwords


class ReSTR(nn.Module):
    """An image and an expression to the logits of the referred region.

    `encode_image` does not depend on the expression: encode an image once and segment many expressions in it.
    """

    def __init__(self, config: ReSTRConfig):
        super().__init__()
        self.config = config
        self.vision = VisionEncoder(config.vision)
        self.subwords: Subwords | None = None  # of an encoder of transformers; set by training and by load_restr
        self.vocabulary: list[str] | str | None = None  # set by load_restr, as is the next
        self.provenance: dict | None = None
        self.image_size = config.vision.image_size  # (height, width) in pixels
        self.patch_size, self.grid, width = self.vision.patch_size, self.vision.grid, self.vision.width
        self.language = ENCODERS[type(config.language)](config.language, width)
        self.fusion = MultimodalFusion(config.fusion, width, self.vision.heads)
        self.decoder = None
        if config.decoder.enabled:
            self.decoder = CoarseToFineDecoder(width, self.patch_size, self.grid, self.image_size)
        replace_layers(self)
        self.encoded: EncodedImage | None = None  # set by set_image

    def normalise(self, image: torch.Tensor) -> torch.Tensor:
        """uint8 B x 3 x H x W (any H, W), 0..255, to the float32 that `encode_image` takes."""
        return self.vision.normalise(image)

    def encode_image(self, image: torch.Tensor) -> torch.Tensor:
        """Normalised float B x 3 x H x W of the configured size to v: B x N x d."""
        return self.vision(image)

    def encode_text(self, ids: torch.Tensor) -> torch.Tensor:
        """Word ids, int64 B x 20 (0: padding), to l: B x 20 x d."""
        return self.language(ids)

    def segment_features(self, v: torch.Tensor, l: torch.Tensor, ids: torch.Tensor):
        """Logits from encoded images and expressions.

        Args: v float B x N x d; l float B x 20 x d; ids int64 B x 20.
        Returns pixel logits B x 1 x H x W and patch logits B x 1 x rows x columns; without a decoder both are the
        patch logits.
        """
        v, p, patch_logits = self.fusion(v, l, ids)
        patch_map = patch_logits.unflatten(1, self.grid).unsqueeze(1)  # B 1 30 30
        if self.decoder is None:
            return patch_map, patch_map
        return self.decoder(v, p, patch_logits), patch_map

    def forward(self, image: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Pixel and patch logits (see `segment_features`) of images and ids.

        Args: image B x 3 x H x W, uint8 or already normalised float; ids int64 B x 20.
        """
        if image.dtype == torch.uint8:
            image = self.normalise(image)
        return self.segment_features(self.encode_image(image), self.encode_text(ids), ids)

    def segment(self, image, text: str | Sequence[str], threshold: float = 0.5) -> np.ndarray | list[np.ndarray]:
        """The mask, bool H x W, of what `text` means in an image: a file's path, a PIL image, or uint8 H x W x 3, RGB.

        For several expressions, a list of masks. `threshold` is the probability, 0..1, from which a pixel belongs to
        the object. For models from `load_restr`, which know their vocabulary; see `models.inference.segment` for
        logits, attention and errors.
        """
        found = segment(self, image, text, threshold)
        return found.mask if isinstance(text, str) else [result.mask for result in found]

    def set_image(self, image) -> None:
        """Encode an image (as in `segment`) once, for any number of `predict`. Call it again after new weights."""
        self.encoded = encode(self, image)

    def predict(self, text: str | Sequence[str], threshold: float = 0.5) -> np.ndarray | list[np.ndarray]:
        """As `segment`, in the image of `set_image`. Raises InputError without one, and as `segment` does."""
        if self.encoded is None:
            raise InputError("no image yet: call set_image(image) first")
        return self.segment(self.encoded, text, threshold)

    def parameter_groups(self, lr: float, vision_lr_scale: float) -> list[dict]:
        """Optimiser groups: the vision encoder at `vision_lr_scale` times `lr` (paper: 0.1), the rest at `lr`.

        A text encoder of transformers is pre-trained as well, and goes with the vision encoder.
        """
        vision = list(self.vision.parameters())
        if isinstance(self.language, TextEncoder):
            vision += self.language.encoder.parameters()
        ours = {id(parameter) for parameter in vision}
        rest = [parameter for parameter in self.parameters() if id(parameter) not in ours]
        return [{"params": rest, "lr": lr}, {"params": vision, "lr": lr * vision_lr_scale}]

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the blocks' activations in the backward pass: less memory, about a third more time."""
        self.vision.backbone.set_grad_checkpointing(enable)
        for module in self.fusion.children():
            if hasattr(module, "grad_checkpointing"):
                module.grad_checkpointing = enable


def build_restr(config: ReSTRConfig) -> ReSTR:
    """A ReSTR with random weights; `models.pretrained.load_pretrained` fills its vision encoder."""
    return ReSTR(config)


def model_with(config: ReSTRConfig, weights: dict[str, torch.Tensor]) -> ReSTR:
    """The model of `config` with `weights`, in eval mode. Raises InputError if they do not fit."""
    check_weights(config, weights)
    model = build_restr(config)
    model.load_state_dict(weights)
    return model.eval()


def check_weights(config: ReSTRConfig, weights: dict[str, torch.Tensor]) -> None:
    """Raise InputError unless `weights` have the names and shapes of a model of `config`.

    They are compared on the meta device: a configuration from a stranger's file cannot make this machine allocate more
    than the file's own tensors take.
    """
    try:
        with torch.device("meta"):
            expected = build_restr(config).state_dict()
    except (ArithmeticError, AssertionError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"no model has these numbers: {one_line(error, 160) or type(error).__name__}") from None
    for name, value in expected.items():
        found, shape = weights.get(name), tuple(value.shape)
        if not isinstance(found, torch.Tensor):
            raise InputError(f"{name} is missing, or not a tensor")
        if not found.is_floating_point() or found.shape != shape:
            raise InputError(f"{name} is {found.dtype} of shape {tuple(found.shape)}, not floats of shape {shape}")
    for name in weights:
        if name not in expected:
            raise InputError(f"{one_line(name, 80)} is left over")
