"""A volume cut into blocks."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fgnet_lib.volumes import Region


@dataclass(frozen=True)
class Grid:
    """A volume of `shape` cut into blocks (z, y, x); those at the far sides may be smaller. Blocks count from 0."""

    shape: tuple[int, int, int]
    block: tuple[int, int, int]

    def __post_init__(self) -> None:
        if np.shape(self.block) != (3,) or min(self.block) < 1:
            raise ValueError(f"a block is (z, y, x) in voxels, all above 0; got {self.block}")
        object.__setattr__(self, "shape", tuple(map(int, self.shape)))
        object.__setattr__(self, "block", tuple(min(int(b), n) for b, n in zip(self.block, self.shape, strict=True)))

    @property
    def counts(self) -> tuple[int, ...]:
        """Blocks along z, y, x."""
        return tuple(-(-n // b) for n, b in zip(self.shape, self.block, strict=True))

    def __len__(self) -> int:
        return math.prod(self.counts)

    def region(self, index: int, halo: tuple[int, int, int] = (0, 0, 0)) -> Region:
        """The voxels of a block, grown by a halo (z, y, x) as far as the volume goes."""
        place = np.unravel_index(index, self.counts)
        sides = zip(place, self.block, self.shape, halo, strict=True)
        return tuple(slice(max(int(i) * b - h, 0), min((int(i) + 1) * b + h, n)) for i, b, n, h in sides)

    def voxels(self, index: int) -> int:
        """How many voxels a block has."""
        return math.prod(s.stop - s.start for s in self.region(index))
