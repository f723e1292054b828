"""What training minimises: how far predicted affinities are from the targets, both classes counting alike."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fgnet_lib.fgnet import FGNetOutput

DICE_WEIGHT = 0.5
FAR_WEIGHT = 0.5  # of affinities that are learned only to learn from them; ours


def affinity_loss(logits: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Class-balanced binary cross-entropy plus 0.5 Dice. Recipe of the field; the exact balance is ours.

    About nine affinities in ten are 1, so plain cross-entropy is content with missing thin membranes. Here
    BCE = (mean over affinities that are 1 + mean over those that are 0) / 2, and Dice looks at the borders, the rare
    class: 1 - 2 sum(b t) / sum(b^2 + t^2), b = 1 - sigmoid(logits), t = 1 - target. Always computed in float32.

    All of it is computed for each sample of the batch and then averaged, so that it makes no difference whether samples
    come together, one after the other (accumulation), or on several GPUs.

    Args:
        logits: (B, 3, D, H, W), any floating dtype.
        target: Affinities 0 or 1, same shape.
        mask: bool, same shape; False where the target is unknown.

    Returns:
        Scalar float32; 0 where nothing is known.
    """
    with torch.autocast(logits.device.type, enabled=False):
        logits, target, mask = logits.float(), target.float(), mask.float()
        error = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
        classes = mask * target, mask * (1 - target)
        bce = sum(_total(error * w) / _total(w).clamp(min=1) for w in classes) / 2
        border, found = mask * (1 - target), mask * torch.sigmoid(-logits)
        overlap, size = 2 * _total(border * found), _total(border.square() + found.square())
        return (bce + DICE_WEIGHT * (1 - (overlap + 1) / (size + 1))).mean()


def _total(values: Tensor) -> Tensor:
    """Sum over all but the first dimension."""
    return values.flatten(1).sum(1)


def fgnet_loss(output: FGNetOutput, target: Tensor, mask: Tensor, weight: float = 1.0) -> Tensor:
    """L(A_r) + weight * L(A_s), L = `affinity_loss`; an output that the model does not have is left out.

    Args:
        output: Of the model.
        target: Affinities 0 or 1: (B, 3, D, H, W), then three channels more for each distance in the model's `far`,
            of which `FAR_WEIGHT` times L is added.
        mask: bool, same shape; False where the target is unknown.
        weight: Of the coarse affinities.

    Raises:
        ValueError: If the output holds neither refined nor coarse affinities.
    """
    if output.refined is None and output.coarse is None:
        raise ValueError("the model's output has neither refined nor coarse affinities: nothing to train")
    near, far = slice(0, 3), slice(3, None)
    terms = [(1.0, output.refined, near), (weight, output.coarse, near)]
    terms += [(FAR_WEIGHT, output.refined_far, far), (FAR_WEIGHT * weight, output.coarse_far, far)]
    return sum(
        factor * affinity_loss(logits, target[:, which], mask[:, which])
        for factor, logits, which in terms
        if logits is not None
    )
