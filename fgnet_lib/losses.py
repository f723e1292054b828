"""What training minimises: how far predicted affinities are from the targets, both classes counting alike."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fgnet_lib.fgnet import FGNetOutput

DICE_WEIGHT = 0.5


def affinity_loss(logits: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Compute class-balanced binary cross-entropy plus 0.5 Dice. The recipe is the field's; the exact balance is ours.

    About nine affinities in ten are 1, so plain cross-entropy is content with missing thin membranes. Here BCE = (mean
    over affinities that are 1 + mean over those that are 0) / 2, and Dice looks at the borders, the rare class: 1 - (2
    sum(b t) + 1) / (sum(b^2 + t^2) + 1), b = 1 - sigmoid(logits), t = 1 - target. Always computed in float32.

    The loss is computed for each sample of the batch and then averaged, so it makes no difference whether samples
    come together, one after the other (accumulation), or on several GPUs.

    Args:
        logits: (B, 3, D, H, W), any floating dtype.
        target: Affinities 0 or 1, same shape.
        mask: bool, same shape; False where the target is unknown.

    Returns:
        Scalar float32; 0 where nothing is known.

    Example:
        >>> target = (torch.arange(24) % 3 > 0).float().view(1, 3, 2, 2, 2)
        >>> right = affinity_loss(20 * (2 * target - 1), target, torch.ones_like(target).bool())
        >>> undecided = affinity_loss(torch.zeros_like(target), target, torch.ones_like(target).bool())
        >>> print(f"right {right:.2f}, undecided {undecided:.2f}")
        right 0.00, undecided 0.89
    """
    with torch.autocast(logits.device.type, enabled=False):
        logits, target, mask = logits.float(), target.float(), mask.float()
        error = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
        joined, apart = mask * target, mask * (1 - target)
        bce = (_mean_where(error, joined) + _mean_where(error, apart)) / 2
        border, predicted = apart, mask * torch.sigmoid(-logits)
        overlap, size = 2 * _sum(border * predicted), _sum(border.square() + predicted.square())
        return (bce + DICE_WEIGHT * (1 - (overlap + 1) / (size + 1))).mean()


def _mean_where(values: Tensor, chosen: Tensor) -> Tensor:
    """The mean of the values that are chosen (1, not 0), for each sample; 0 where none is."""
    return _sum(values * chosen) / _sum(chosen).clamp(min=1)


def _sum(values: Tensor) -> Tensor:
    """The sum over all dimensions but the first."""
    return values.flatten(1).sum(1)


def fgnet_loss(output: FGNetOutput, target: Tensor, mask: Tensor, weight: float = 1.0) -> Tensor:
    """Compute L(A_r) + weight * L(A_s), where L is `affinity_loss`; an output that the model lacks is left out.

    Args:
        output: Of the model.
        target: Affinities 0 or 1, (B, 3, D, H, W).
        mask: bool, same shape; False where the target is unknown.
        weight: Of the coarse affinities.

    Returns:
        Scalar float32.

    Raises:
        ValueError: If the output holds neither refined nor coarse affinities.
    """
    if output.refined is None and output.coarse is None:
        raise ValueError("the model's output has neither refined nor coarse affinities: nothing to train")
    loss = torch.zeros((), device=target.device)
    if output.refined is not None:
        loss = loss + affinity_loss(output.refined, target, mask)
    if output.coarse is not None:
        loss = loss + weight * affinity_loss(output.coarse, target, mask)
    return loss
