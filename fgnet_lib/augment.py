"""Augmentation of training patches: MONAI's transforms, and two faults that only serial sections have.

Raw and labels move together; the targets are computed from the labels afterwards. From the elastic deformation on, the
sections of a patch are the channels of one 2D image: in-plane transforms treat all sections alike and cost one call.
"""

from __future__ import annotations

from collections.abc import Mapping

import fastremap
import numpy as np
from monai.transforms import (
    Compose,
    Rand2DElasticd,
    RandAdjustContrastd,
    RandFlipd,
    RandGaussianNoised,
    RandGaussianSmoothd,
    RandomizableTransform,
    RandRotate90d,
    RandScaleIntensityd,
    RandShiftIntensityd,
    SqueezeDimd,
)

from fgnet_lib.volumes import IGNORE

Sample = Mapping[str, np.ndarray]  # "raw" (z, y, x) and "labels" (z, y, x)


class MissingSection(RandomizableTransform):
    """With probability `prob`, one section of the raw is lost (black); its labels stay, to be bridged."""

    def __call__(self, sample: Sample) -> dict[str, np.ndarray]:
        super().randomize(None)
        raw = np.array(sample["raw"])
        if self._do_transform:
            raw[self.R.randint(len(raw))] = 0
        return {**sample, "raw": raw}


class Misalignment(RandomizableTransform):
    """With probability `prob`, one section, or it and all after it, is shifted in-plane by up to `max_shift` voxels.

    Raw and labels shift together. What comes in from outside repeats the edge in the raw and is `IGNORE` in the labels,
    which become uint64.
    """

    def __init__(self, prob: float = 1.0, max_shift: int = 8) -> None:
        RandomizableTransform.__init__(self, prob)
        self.max_shift = max_shift

    def __call__(self, sample: Sample) -> dict[str, np.ndarray]:
        super().randomize(None)
        raw, labels = np.array(sample["raw"]), np.array(sample["labels"], np.uint64)
        if self._do_transform:
            first = self.R.randint(len(raw))
            last = first + 1 if self.R.rand() < 0.5 else len(raw)
            dy, dx = self.R.randint(-self.max_shift, self.max_shift + 1, size=2)
            rows, columns = np.ix_(np.arange(raw.shape[1]) - dy, np.arange(raw.shape[2]) - dx)
            inside = (rows >= 0) & (rows < raw.shape[1]) & (columns >= 0) & (columns < raw.shape[2])
            rows, columns = rows.clip(0, raw.shape[1] - 1), columns.clip(0, raw.shape[2] - 1)
            raw[first:last] = raw[first:last, rows, columns]
            labels[first:last] = np.where(inside, labels[first:last, rows, columns], IGNORE)
        return {**sample, "raw": raw, "labels": labels}


def grey_changes() -> list[RandomizableTransform]:
    """List what changes grey values alone: brightness, contrast, gamma, blur, noise. Strengths are ours."""
    return [
        RandScaleIntensityd("raw", factors=0.2, prob=0.5, channel_wise=True),
        RandShiftIntensityd("raw", offsets=0.1, prob=0.5, channel_wise=True),
        RandAdjustContrastd("raw", prob=0.5, gamma=(0.7, 1.4)),
        RandGaussianSmoothd("raw", sigma_x=(0.3, 1.0), sigma_y=(0.3, 1.0), prob=0.2),
        RandGaussianNoised("raw", prob=0.3, std=0.05),
    ]


class Augment:
    """All augmentations of training, in order; the same seed and sample give the same result.

    Flips along z, y, x and quarter turns in-plane; smooth deformation with up to 15 % magnification; misaligned and
    missing sections; brightness and contrast of each section, gamma, blur, noise. Strengths are ours.

    Example:
        >>> sample = {"raw": np.zeros((4, 32, 32), np.uint8), "labels": np.ones((4, 32, 32), np.uint64)}
        >>> augmented = Augment(seed=1)(sample)
        >>> augmented["raw"].shape, augmented["labels"].dtype
        ((4, 32, 32), dtype('uint64'))
    """

    def __init__(self, seed: int = 0) -> None:
        both = ("raw", "labels")
        self._geometry = Compose(
            [
                *(RandFlipd(both, prob=0.5, spatial_axis=axis) for axis in range(3)),
                RandRotate90d(both, prob=0.75, max_k=3, spatial_axes=(1, 2)),
                SqueezeDimd(both),
                Rand2DElasticd(
                    both, prob=0.5, spacing=(32, 32), magnitude_range=(0, 4), scale_range=0.15,
                    mode=("bilinear", "nearest"), padding_mode="reflection",
                ),
            ]
        )  # fmt: skip
        self._appearance = Compose(
            [
                Misalignment(prob=0.1),
                MissingSection(prob=0.1),
                *grey_changes(),
            ]
        )
        self.reseed(seed)

    def reseed(self, seed: int) -> Augment:
        """Start the random numbers again from `seed`, and return this object."""
        geometry, appearance = np.random.SeedSequence(seed).generate_state(2)
        self._geometry.set_random_state(int(geometry))
        self._appearance.set_random_state(int(appearance))
        return self

    def __call__(self, sample: Sample) -> dict[str, np.ndarray]:
        """Augment one patch.

        Args:
            sample: "raw" uint8 and "labels" integer ids, both (z, y, x) with y = x (quarter turns swap them).

        Returns:
            A new dict with raw uint8 and labels uint64 of the same shape.

        Raises:
            ValueError: If the shapes differ or the patch is not square in-plane.
        """
        raw, labels = sample["raw"], sample["labels"]
        if raw.shape != labels.shape or raw.ndim != 3 or raw.shape[1] != raw.shape[2]:
            raise ValueError(f"raw and labels must both be (z, n, n); got {raw.shape} and {labels.shape}")
        ids, dense = fastremap.unique(labels, return_inverse=True)  # float32, inside MONAI, is exact up to 2^24 only
        moved = self._geometry({"raw": raw[None].astype(np.float32) / 255, "labels": dense.reshape(1, *labels.shape)})
        restored = ids.astype(np.uint64)[np.asarray(moved["labels"]).astype(np.int64)]
        sample = self._appearance({"raw": np.asarray(moved["raw"]), "labels": restored})
        return {**sample, "raw": (np.asarray(sample["raw"]) * 255).round().clip(0, 255).astype(np.uint8)}
