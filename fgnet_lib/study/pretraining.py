"""Pretraining of an image encoder on sections without labels: hide blocks of them, and paint in what was hidden.

Masked image modelling in its simplest form (SimMIM: Xie et al. 2022, doi 10.1109/CVPR52688.2022.00943): hidden blocks
are flat grey, a linear head on the encoder's features predicts the grey values, and only hidden voxels count. It fits
hierarchical encoders such as SAM2's Hiera, because no token is left out. Heads at all three strides are ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import reduce
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fgnet_lib.checkpoints import History
from fgnet_lib.natural_encoder import NaturalEncoder
from fgnet_lib.patches import Samples
from fgnet_lib.sam2_encoder import STRIDES, Sam2Encoder
from fgnet_lib.training import TrainConfig, fit
from fgnet_lib.volumes import Region, Volume

BLOCK = 16  # voxels: the side of the squares that are hidden
HIDDEN = 0.6  # the share of squares that are hidden


class MaskedSections(Samples):
    """An endless source of patches and of what to hide in them; item k depends on the seed and on k, and nothing else.

    An item is raw, float32 (1, z, y, x) in [0, 1], flipped and turned at random, and a bool mask of the same shape that
    is True in hidden squares of `BLOCK` voxels, which differ from section to section.
    """

    def __init__(self, volumes: Sequence[Volume], patch: tuple[int, int, int], seed: int = 0) -> None:
        """Draw from `volumes`.

        Args:
            volumes: With or without labels; each is drawn as often as its number of voxels says.
            patch: Voxels (z, y, x), y = x, a multiple of `BLOCK`.
            seed: Of everything that is random.

        Raises:
            ValueError: If there is no volume, one is smaller than a patch, or a patch is not square or made of blocks.
        """
        if patch[1] != patch[2] or patch[1] % BLOCK:
            raise ValueError(f"a patch must be (z, n, n) with n a multiple of {BLOCK}; got {patch}")
        if not volumes or any(n < p for volume in volumes for n, p in zip(volume.shape, patch, strict=True)):
            raise ValueError(f"patches of {patch} do not fit into volumes of {[volume.shape for volume in volumes]}")
        self.volumes, self.patch, self.seed = volumes, patch, seed
        share = np.array([math.prod(volume.shape) for volume in volumes], float)
        self.share = share / share.sum()

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        rng = np.random.default_rng((self.seed, index))
        volume = self.volumes[rng.choice(len(self.volumes), p=self.share)]
        start = [rng.integers(n - p + 1) for n, p in zip(volume.shape, self.patch, strict=True)]
        raw = volume.raw[Region.at(start, self.patch)]
        raw = np.rot90(raw, int(rng.integers(4)), axes=(1, 2))[:, :: rng.choice((1, -1))]
        blocks = (self.patch[0], self.patch[1] // BLOCK, self.patch[2] // BLOCK)
        hidden = (rng.random(blocks) < HIDDEN).repeat(BLOCK, 1).repeat(BLOCK, 2)
        return torch.from_numpy(raw[None].astype(np.float32) / 255), torch.from_numpy(hidden[None])


class Painter(nn.Module):
    """An encoder with one linear layer per stride, which turns features into grey values."""

    def __init__(self, encoder: Sam2Encoder | NaturalEncoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.heads = nn.ModuleList(nn.Conv3d(c, s * s, 1) for c, s in zip(encoder.channels, STRIDES, strict=True))

    def forward(self, raw: Tensor, hidden: Tensor) -> Tensor:
        """Paint the grey values of a patch whose hidden part the encoder does not see.

        Args:
            raw: float (B, 1, D, H, W) in [0, 1].
            hidden: bool, same shape.

        Returns:
            Grey values (B, 1, D, H, W) in standard deviations of the patch.
        """
        visible = torch.where(hidden, raw.mean(dim=(2, 3, 4), keepdim=True), raw)
        painted = []
        for head, features, stride in zip(self.heads, self.encoder(visible), STRIDES, strict=True):
            squares = head(features).transpose(1, 2)  # pixel_shuffle wants the channels before y and x
            painted.append(F.pixel_shuffle(squares, stride))
        return reduce(torch.add, painted).transpose(1, 2)


def painting_loss(painter: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Compute the mean absolute error over hidden voxels, in standard deviations of the patch's grey values.

    A painter that knows nothing and paints the mean scores 0.8 on Gaussian grey values.
    """
    raw, hidden = batch
    deviation, mean = torch.std_mean(raw, dim=(2, 3, 4), keepdim=True)
    target = (raw - mean) / deviation.clamp(min=1e-3)
    return (painter(raw, hidden).float() - target)[hidden].abs().mean()


def pretrain(
    encoder: Sam2Encoder | NaturalEncoder,
    volumes: Sequence[Volume],
    config: TrainConfig,
    out_dir: str | Path,
    on_step: Callable[[History], None] | None = None,
) -> History:
    """Pretrain an encoder in place; checkpoints, resume, budgets and errors are those of `training.fit`.

    Args:
        encoder: With random weights, or to be adapted to EM.
        volumes: Labels are not looked at.
        config: `patch`, `iterations`, `learning_rate` and so on; `encoder_lr_factor` is the encoder's; what
            concerns labels and frozen encoders is not used.
        out_dir: Folder of the checkpoints.
        on_step: Called with the history after every iteration.

    Returns:
        Loss, learning rate and seconds of every iteration.
    """
    return fit(
        Painter(encoder), MaskedSections(volumes, config.patch, config.seed), painting_loss, config, out_dir, on_step
    )
