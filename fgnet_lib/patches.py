"""Training patches, drawn at random from volumes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from fgnet_lib.affinities import affinities_from_labels, affinity_mask, widen_borders
from fgnet_lib.augment import Augment
from fgnet_lib.volumes import IGNORE, Volume, is_anisotropic

LABELLED = 0.5  # a random patch of which less is labelled is drawn again, ...
DRAWS = 20  # ... so many times


class PatchDataset(Dataset):
    """An endless source of training patches; item k is a function of the seed and k, whoever asks for it and when.

    An item is a tuple of raw, float32 (1, z, y, x) in [0, 1]; target affinities, float32 (3, z, y, x), computed after
    augmentation from labels with widened borders (in 3D where the volume is isotropic); and the bool mask (3, z, y, x)
    of where they are known. Each distance in `far` adds three channels to targets and mask. Volumes smaller than a
    patch are mirrored, with unknown labels outside.
    """

    def __init__(
        self,
        volumes: Sequence[Volume],
        patch: tuple[int, int, int],
        augment: Augment | None,
        seed: int = 0,
        weights: Sequence[float] | None = None,
        far: Sequence[int] = (),
    ) -> None:
        """See the class; `augment=None` leaves patches as they are, `weights=None` draws volumes by their voxels.

        Raises:
            ValueError: If there is no volume, one has no labels, or the weights do not fit.
        """
        if not volumes:
            raise ValueError("there is no volume to train on")
        if nameless := [volume.name or f"number {i}" for i, volume in enumerate(volumes) if volume.labels is None]:
            raise ValueError(f"volume {nameless[0]} has no labels, and training needs them")
        weights = np.array([math.prod(v.shape) for v in volumes] if weights is None else weights, float)
        if weights.shape != (len(volumes),) or not (weights >= 0).all() or not weights.sum() > 0:
            raise ValueError(f"{len(volumes)} volumes need as many weights, none below 0, not all 0; got {weights}")
        self.volumes, self.patch, self.augment, self.seed = volumes, patch, augment, seed
        self.share, self.distances = weights / weights.sum(), (1, *far)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        rng = np.random.default_rng((self.seed, index))
        raw, labels, in_3d = self._draw(rng)
        if self.augment is not None:
            sample = self.augment.reseed(int(rng.integers(2**32)))({"raw": raw, "labels": labels})
            raw, labels = sample["raw"], sample["labels"]
        widened = widen_borders(labels, in_3d)
        target = np.concatenate([affinities_from_labels(widened, d) for d in self.distances]).astype(np.float32)
        mask = np.concatenate([affinity_mask(labels, d) for d in self.distances])
        raw = np.ascontiguousarray(raw[None], np.float32) / 255
        return torch.from_numpy(raw), torch.from_numpy(target), torch.from_numpy(mask)

    def _draw(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, bool]:
        """Raw, labels, and whether borders are widened in 3D."""
        volume = self.volumes[rng.choice(len(self.volumes), p=self.share)]
        for _ in range(DRAWS):
            start = [rng.integers(max(n - p, 0) + 1) for n, p in zip(volume.shape, self.patch, strict=True)]
            crop = volume[tuple(slice(s, s + p) for s, p in zip(start, self.patch, strict=True))]
            if (crop.labels != IGNORE).mean() >= LABELLED:
                break
        missing = [(0, p - n) for n, p in zip(crop.shape, self.patch, strict=True)]
        labels = np.pad(crop.labels.astype(np.uint64), missing, constant_values=IGNORE)
        return np.pad(crop.raw, missing, mode="symmetric"), labels, not is_anisotropic(volume.voxel_size)
