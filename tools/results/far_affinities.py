"""Affinities to voxels further away, which the shipped model learns beside those it keeps, to see more than a membrane.

Lee et al. 2017 (arXiv 1706.00120) found that they help. They have channels of their own while a model is trained.
"""

from __future__ import annotations

# isort: split
import numpy as np
import torch
from torch import Tensor, nn

from fgnet_lib.affinities import affinities_from_labels, affinity_mask
from fgnet_lib.fgnet import AffinityDecoder, FGNet, FGNetOutput
from fgnet_lib.losses import fgnet_loss
from fgnet_lib.patches import PatchDataset

FAR = (3, 9)  # voxels
FAR_WEIGHT = 0.5  # of these in the loss
FAR_CHANNELS = 3 * (1 + len(FAR))  # the nearest neighbours come first


class FarPatches(PatchDataset):
    """Training patches whose targets and masks have three channels more for each distance in `FAR`."""

    def target_and_mask(self, labels: np.ndarray, widened: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        distances = (1, *FAR)
        target = np.concatenate([affinities_from_labels(widened, distance) for distance in distances])
        return target, np.concatenate([affinity_mask(labels, distance) for distance in distances])


def decoders(model: FGNet) -> tuple[AffinityDecoder, AffinityDecoder]:
    """Both decoders of a model."""
    return model.coarse_decoder, model.refined_decoder


def add_far_heads(model: FGNet) -> None:
    """Widen the heads of a model, in place, so that it also predicts the affinities in `FAR`, at random at first.

    The channels of nearest neighbours stay the first three, with their weights.
    """
    for decoder in decoders(model):
        near = decoder.head
        decoder.head = nn.Conv3d(near.in_channels, FAR_CHANNELS, 1, device=near.weight.device)
        with torch.no_grad():
            for wide, narrow in zip(decoder.head.parameters(), near.parameters(), strict=True):
                wide[:3] = narrow


def remove_far_heads(model: FGNet) -> None:
    """Undo `add_far_heads`, in place: a model is shipped with the affinities of nearest neighbours alone."""
    for decoder in decoders(model):
        wide = decoder.head
        decoder.head = nn.Conv3d(wide.in_channels, 3, 1, device=wide.weight.device)
        decoder.head.load_state_dict({name: value[:3] for name, value in wide.state_dict().items()})


def far_loss(model: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Compute the loss of nearest neighbours plus `FAR_WEIGHT` times that of the affinities in `FAR`."""
    raw, target, mask = batch
    output, near, far = model(raw), slice(0, 3), slice(3, None)

    def loss(channels: slice) -> Tensor:
        part = FGNetOutput(output.coarse[:, channels], output.refined[:, channels], ())
        return fgnet_loss(part, target[:, channels], mask[:, channels])

    return loss(near) + FAR_WEIGHT * loss(far)
