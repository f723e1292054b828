"""A volume cut into blocks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from fgnet_lib.volumes import Region, triple


@dataclass(frozen=True)
class Grid:
    """A volume of `shape` (z, y, x) cut into blocks, which count from 0; the last along an axis may be smaller.

    >>> grid = Grid(shape=(8, 64, 100), block=(8, 32, 64))
    >>> grid.counts, len(grid), grid.position(3)
    ((1, 2, 2), 4, (0, 1, 1))
    >>> print(grid.region(3), "with a halo", grid.region(3, halo=(1, 8, 8)))
    0:8, 32:64, 64:100 with a halo 0:8, 24:64, 56:100
    """

    shape: tuple[int, int, int]
    block: tuple[int, int, int]

    def __post_init__(self) -> None:
        if np.shape(self.block) != (3,) or min(self.block) < 1:
            raise ValueError(f"a block is (z, y, x) in voxels, all above 0; got {self.block}")
        object.__setattr__(self, "shape", tuple(map(int, self.shape)))
        object.__setattr__(self, "block", tuple(min(int(b), n) for b, n in zip(self.block, self.shape, strict=True)))

    @property
    def counts(self) -> tuple[int, int, int]:
        """Blocks along z, y, x."""
        return triple(-(-n // b) for n, b in zip(self.shape, self.block, strict=True))

    def __len__(self) -> int:
        return math.prod(self.counts)

    def position(self, index: int) -> tuple[int, int, int]:
        """The position of block `index` in the grid, in blocks along z, y, x."""
        return triple(map(int, np.unravel_index(index, self.counts)))

    def index(self, position: Sequence[int]) -> int:
        """The number of the block at `position` (z, y, x) in the grid."""
        return int(np.ravel_multi_index(tuple(position), self.counts))

    def region(self, index: int, halo: tuple[int, int, int] = (0, 0, 0)) -> Region:
        """The voxels of a block, grown by a halo (z, y, x) as far as the volume goes."""
        start = [i * b for i, b in zip(self.position(index), self.block, strict=True)]
        return Region.at(start, self.block).grow(halo, self.shape)

    def overlapping(self, region: Region) -> list[int]:
        """The numbers of the blocks that overlap `region`."""
        positions = (range(s.start // b, -(-s.stop // b)) for s, b in zip(region, self.block, strict=True))
        return [self.index(position) for position in product(*positions)]
