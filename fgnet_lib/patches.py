"""Training patches, drawn at random from volumes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from fgnet_lib.affinities import affinities_from_labels, affinity_mask, widen_borders
from fgnet_lib.volumes import IGNORE, Region, Volume, is_anisotropic

if TYPE_CHECKING:
    from fgnet_lib.augment import Augment

LABELLED = 0.5  # a random patch of which less is labelled is drawn again, ...
DRAWS = 20  # ... so many times


class Samples(Dataset[tuple[Tensor, ...]]):
    """Samples that are cut out of volumes; what a training needs to know of a data set."""

    volumes: Sequence[Volume]


class PatchDataset(Samples):
    """An endless source of training patches; item k depends on the seed and on k, and on nothing else.

    An item is a tuple of raw, float32 (1, z, y, x) in [0, 1]; target affinities, float32 (3, z, y, x), computed after
    augmentation from labels with widened borders (in 3D where the volume is isotropic); and the bool mask (3, z, y, x)
    of where they are known. Volumes smaller than a patch are mirrored, with unknown labels outside.

    Example:
        >>> from fgnet_lib.phantom import make_phantom
        >>> from fgnet_lib.augment import Augment
        >>> patches = PatchDataset([make_phantom((8, 64, 64))], patch=(4, 32, 32), augment=Augment())
        >>> [tuple(tensor.shape) for tensor in patches[0]]
        [(1, 4, 32, 32), (3, 4, 32, 32), (3, 4, 32, 32)]
    """

    def __init__(
        self,
        volumes: Sequence[Volume],
        patch: tuple[int, int, int],
        augment: Augment | None,
        seed: int = 0,
        weights: Sequence[float] | None = None,
    ) -> None:
        """Draw from `volumes`.

        Args:
            volumes: With labels.
            patch: Voxels (z, y, x), y = x if there is augmentation.
            augment: Varies the patches; None leaves them as they are.
            seed: Of everything that is random.
            weights: How often each volume is drawn, relative to the others; None means by their numbers of voxels.

        Raises:
            ValueError: If there is no volume, a volume has no labels, or the weights do not fit.
        """
        if not volumes:
            raise ValueError("there is no volume to train on")
        if unlabelled := [volume.name or f"number {i}" for i, volume in enumerate(volumes) if volume.labels is None]:
            raise ValueError(f"volume {unlabelled[0]} has no labels, and training needs them")
        share = np.array([math.prod(v.shape) for v in volumes] if weights is None else weights, float)
        if share.shape != (len(volumes),) or not (share >= 0).all() or not share.sum() > 0:
            raise ValueError(f"{len(volumes)} volumes need as many weights, none below 0, not all 0; got {share}")
        self.volumes, self.patch, self.augment, self.seed = volumes, patch, augment, seed
        self.share = share / share.sum()

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        rng = np.random.default_rng((self.seed, index))
        raw, labels, isotropic = self._draw(rng)
        if self.augment is not None:
            sample = self.augment.reseed(int(rng.integers(2**32)))({"raw": raw, "labels": labels})
            raw, labels = sample["raw"], sample["labels"]
        target, mask = self.target_and_mask(labels, widen_borders(labels, in_3d=isotropic))
        raw = np.ascontiguousarray(raw[None], np.float32) / 255
        return torch.from_numpy(raw), torch.from_numpy(target.astype(np.float32)), torch.from_numpy(mask)

    def target_and_mask(self, labels: np.ndarray, widened: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Compute the affinities of a patch (from its widened labels), and where they are known; a tool may add some.

        Args:
            labels: uint64 (z, y, x).
            widened: The same with widened borders.

        Returns:
            Affinities 0 or 1 and a bool mask, both (3, z, y, x).
        """
        return affinities_from_labels(widened), affinity_mask(labels)

    def _draw(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, bool]:
        """Cut a patch out at random: its raw, its labels, and whether its voxels are isotropic."""
        volume = self.volumes[rng.choice(len(self.volumes), p=self.share)]
        for _ in range(DRAWS):
            start = [int(rng.integers(max(n - p, 0) + 1)) for n, p in zip(volume.shape, self.patch, strict=True)]
            crop = volume[Region.at(start, self.patch)]
            if (crop.labels != IGNORE).mean() >= LABELLED:
                break
        missing = [(0, p - n) for n, p in zip(crop.shape, self.patch, strict=True)]
        labels = np.pad(crop.labels.astype(np.uint64), missing, constant_values=IGNORE)
        return np.pad(crop.raw, missing, mode="symmetric"), labels, not is_anisotropic(volume.voxel_size)
