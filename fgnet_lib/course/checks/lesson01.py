"""Checks of lesson 01: targets, widened borders, masks."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fgnet_lib.affinities import affinities_from_labels, widen_borders
from fgnet_lib.course.checks.exercise import call_array, exercise, require, require_equal
from fgnet_lib.volumes import IGNORE

BLOCKS = np.kron(  # four neurons and a membrane, in three sections, touching in every direction
    np.array([[[7, 7, 0], [4, 9, 9]], [[7, 0, 9], [4, 4, 9]], [[4, 7, 0], [4, 9, 9]]], np.uint64),
    np.ones((1, 3, 2), np.uint64),
)


@exercise("01", "the affinity target", points=2)
def affinities(answer: Callable[[np.ndarray], np.ndarray]) -> None:
    """Check the affinities (3, z, y, x) of labels (z, y, x) with the predecessor along each axis."""
    result = call_array(answer, BLOCKS, shape=(3, *BLOCKS.shape))
    right = affinities_from_labels(BLOCKS)
    alike = np.stack([np.roll(BLOCKS, 1, axis) == BLOCKS for axis in range(3)])
    inside = BLOCKS > 0
    low_face = np.stack(np.indices(BLOCKS.shape)) == 0
    successor = np.stack([np.roll(channel, -1, axis) for axis, channel in enumerate(right)])
    require_equal(
        result,
        right,
        {
            "You forgot two things: voxels of label 0, and the first voxels of each axis": alike,
            "You join voxels of label 0, but 'no neuron' is not a neuron": alike & ~low_face,
            "You join the first voxels of an axis to the last ones, but the first ones have no predecessor": alike
            & inside,
            "The channels are in the wrong order: it should be z, y, x": right[::-1],
            "You compare each voxel with the one after it instead of the one before it": successor,
            "You have swapped 0 and 1: joined is 1": 1 - right,
        },
        "{n} of the affinities are wrong, the first at (channel, z, y, x) = {at}",
    )


@exercise("01", "widened borders", points=2)
def widened(answer: Callable[[np.ndarray], np.ndarray]) -> None:
    """Check labels (z, y, x) that become 0 wherever any of the eight neighbours in the section differs."""
    blocks = [[[4, 4, 9], [4, 7, 9]], [[4, 4, 9], [4, 4, 9]], [[4, 0, 9], [4, 7, 7]]]  # with corners that jut out
    labels = np.kron(np.array(blocks, np.uint64), np.ones((1, 5, 5), np.uint64))
    result = call_array(answer, labels, shape=labels.shape)
    right = widen_borders(labels)
    require(np.isin(result, [0, *np.unique(labels)]).all(), "The result has labels that the input does not have")
    require(
        np.all((result == 0) | (result == labels)),
        "A voxel may become 0 or keep its label, but some voxels did neither",
    )
    steps = [(0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1)]
    four, two = (_zero_beside(labels, neighbours) for neighbours in (steps, steps[1::2]))
    mistakes = {
        "You also count neighbours in the sections above and below; only the same section should count": widen_borders(
            labels, in_3d=True
        ),
        "No border has become wider": labels,
        "You leave out the neighbours across a corner, and they should count": four,
        "Only one side of each border becomes 0, and both sides should": two,
    }
    n = np.sum(result == 0) - np.sum(right == 0)
    require_equal(
        result,
        right,
        mistakes,
        f"Your result has {abs(n)} zeros too {'many' if n > 0 else 'few'}; the first difference is at {{at}}",
    )


def _zero_beside(labels: np.ndarray, steps: list[tuple[int, int, int]]) -> np.ndarray:
    """Return labels with 0 wherever any of some neighbours has another label."""
    padded = np.pad(labels, 1, mode="edge")
    inside = (slice(1, -1),) * 3
    differs = [np.roll(padded, step, (0, 1, 2))[inside] != labels for step in steps]
    return np.where(np.any(differs, axis=0), 0, labels)


@exercise("01", "where the loss may look")
def mask(answer: Callable[[np.ndarray], np.ndarray]) -> None:
    """Check the mask of a row of labels: True where the affinity to the predecessor is known."""
    row = np.array([5, 5, IGNORE, IGNORE, 0, 0, 8, IGNORE, 3], np.uint64)
    result = call_array(answer, row, shape=row.shape).astype(float)
    known = row != IGNORE
    before = np.append(False, known[:-1])
    right = known & before
    require(result[0] == 0, "The first voxel has no predecessor, so its affinity must not count")
    mistakes = {
        "In your answer an affinity counts if only one of its two voxels is known": (known | before)
        & (np.arange(len(row)) > 0),
        "In your answer every known voxel counts, whatever its predecessor is": known & (np.arange(len(row)) > 0),
        "In your answer the predecessor alone decides. But is the voxel itself known?": before,
        "You have swapped what counts and what does not": ~right & (np.arange(len(row)) > 0),
        "You leave out voxels of label 0. They are known: they belong to no neuron": right
        & (row > 0)
        & np.roll(row > 0, 1),
    }
    require_equal(result, right, mistakes, "{n} voxels are wrong, the first at {at}")
