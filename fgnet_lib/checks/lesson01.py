"""Checks of lesson 01: targets."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fgnet_lib.affinities import affinities_from_labels
from fgnet_lib.checks.exercise import ask_array, compare, exercise

BLOCKS = np.kron(  # four neurons and a membrane, in three sections, touching in every direction
    np.array([[[7, 7, 0], [4, 9, 9]], [[7, 0, 9], [4, 4, 9]], [[4, 7, 0], [4, 9, 9]]], np.uint64),
    np.ones((1, 3, 2), np.uint64),
)


@exercise("01", "the affinity target", points=2)
def affinities(answer: Callable[[np.ndarray], np.ndarray]) -> None:
    """From labels (z, y, x) to affinities (3, z, y, x) with the predecessor along each axis."""
    result = ask_array(answer, BLOCKS, shape=(3, *BLOCKS.shape))
    right = affinities_from_labels(BLOCKS)
    alike = np.stack([np.roll(BLOCKS, 1, axis) == BLOCKS for axis in range(3)])
    inside = BLOCKS > 0
    low_face = np.stack(np.indices(BLOCKS.shape)) == 0
    successor = np.stack([np.roll(channel, -1, axis) for axis, channel in enumerate(right)])
    compare(
        result,
        right,
        {
            "Voxels of label 0 are joined: 'no neuron' is not a neuron": alike & ~low_face,
            "The first voxels of an axis have no predecessor, and are joined to the last ones": alike & inside,
            "The channels have another order: they should be z, y, x": right[::-1],
            "Each voxel is compared with the one after it instead of the one before": successor,
            "0 and 1 are exchanged: joined is 1": 1 - right,
        },
        "{n} of the affinities are wrong, the first at (channel, z, y, x) = {at}",
    )
