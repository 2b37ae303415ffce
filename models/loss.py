"""The training loss: paper section 3.4."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from utils.options import POSITIVE, option


@dataclass(frozen=True)
class LossConfig:
    """`alpha_loc` weighs the patch term; None leaves it out (as without a decoder).

    A patch's label is 1 where the "share" of its pixels that are in the mask exceeds `patch_thres`; with "any" where
    their number does, as in the authors' code: any pixel will do.
    """

    alpha_loc: float | None = option(0.1, "weight of the patch loss", limits=POSITIVE)  # paper: section 3.4, lambda
    patch_label: str = option("any", "count or share of mask pixels decides a patch", choices=["any", "share"])
    patch_thres: float = option(0.8, "value that the count or share must exceed", limits=POSITIVE)


def patch_labels(mask: torch.Tensor, grid: tuple[int, int], config: LossConfig) -> torch.Tensor:
    """Label of each patch, float B x 1 x rows x columns of 0 and 1, from a mask B x 1 x H x W of 0 and 1."""
    pixels = (mask.shape[-2] // grid[0]) * (mask.shape[-1] // grid[1])
    share = F.adaptive_avg_pool2d(mask.float(), grid)  # B 1 30 30
    value = (share * pixels).round() if config.patch_label == "any" else share
    return (value > config.patch_thres).float()


def restr_loss(pixel_logits, patch_logits, mask, config: LossConfig) -> dict[str, torch.Tensor]:
    """Binary cross-entropy on pixels plus `alpha_loc` times that on patches, in float32.

    Args: pixel logits B x 1 x h x w (resized to the mask, bilinear with aligned corners); patch logits
    B x 1 x rows x columns; mask bool or 0/1 B x 1 x H x W.
    Returns scalars "loss", "pixel" and, unless left out, "patch".
    """
    mask = mask.float()
    pixel_logits = pixel_logits.float()
    if pixel_logits.shape[-2:] != mask.shape[-2:]:
        pixel_logits = F.interpolate(pixel_logits, size=mask.shape[-2:], mode="bilinear", align_corners=True)
    pixel = F.binary_cross_entropy_with_logits(pixel_logits, mask)
    if config.alpha_loc is None:
        return {"loss": pixel, "pixel": pixel}
    label = patch_labels(mask, patch_logits.shape[-2:], config)
    patch = F.binary_cross_entropy_with_logits(patch_logits.float(), label)
    return {"loss": pixel + config.alpha_loc * patch, "pixel": pixel, "patch": patch}
