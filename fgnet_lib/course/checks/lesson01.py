"""Checks of lesson 01: targets, widened borders, masks."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.ndimage import maximum_filter, minimum_filter

from fgnet_lib.affinities import affinities_from_labels, widen_borders
from fgnet_lib.course.checks.exercise import call_array, exercise, require, require_equal, require_form
from fgnet_lib.phantom import make_phantom
from fgnet_lib.volumes import IGNORE, Volume

BLOCKS = np.kron(  # four neurons and a membrane, in three sections, touching in every direction
    np.array([[[7, 7, 0], [4, 9, 9]], [[7, 0, 9], [4, 4, 9]], [[4, 7, 0], [4, 9, 9]]], np.uint64),
    np.ones((1, 3, 2), np.uint64),
)


def neurites() -> Volume:
    """Return a small phantom (3, 96, 96) with labels, which look like neurites in a picture."""
    return make_phantom((3, 96, 96), seed=3)


@exercise(
    "01",
    "the affinity target",
    "Try your function on the row of part 5, as `row[None, None]`, and compare channel 2 with what was printed there.",
    points=2,
)
def affinities(answer: Callable[[np.ndarray], np.ndarray]) -> None:
    """Check the affinities (3, z, y, x) of labels (z, y, x) with the predecessor along each axis."""
    for labels in (BLOCKS, widen_borders(neurites().labels)):
        _judge_affinities(call_array(answer, labels, shape=(3, *labels.shape)), labels)


def _judge_affinities(result: np.ndarray, labels: np.ndarray) -> None:
    """Raise a hint unless affinities (3, z, y, x) are those of labels (z, y, x)."""
    right = affinities_from_labels(labels)
    alike = np.stack([np.roll(labels, 1, axis) == labels for axis in range(3)])
    inside = labels > 0
    low_face = np.stack(np.indices(labels.shape)) == 0
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
            "Only the channel along z is filled: do the same along y and x": right
            * (np.arange(3) == 0)[:, None, None, None],
        },
        "{n} of the affinities are wrong, the first at (channel, z, y, x) = {at}",
    )


@exercise(
    "01",
    "widened borders",
    "Try it on a section of 4 x 6 voxels, half 4 and half 9: which columns should become 0?",
    points=2,
)
def widened(answer: Callable[[np.ndarray], np.ndarray]) -> None:
    """Check labels (z, y, x) that become 0 wherever any of the eight neighbours in the section differs."""
    blocks = [[[4, 4, 9], [4, 7, 9]], [[4, 4, 9], [4, 4, 9]], [[4, 0, 9], [4, 7, 7]]]  # with corners that jut out
    for labels in (np.kron(np.array(blocks, np.uint64), np.ones((1, 5, 5), np.uint64)), neurites().labels):
        result = call_array(answer, labels, shape=labels.shape)
        require_form(result.dtype != bool, "Return labels with 0 on the borders, not a yes or no for each voxel")
        _judge_widened(result, labels)


def _judge_widened(result: np.ndarray, labels: np.ndarray) -> None:
    """Raise a hint unless a result has the labels with their borders widened."""
    right = widen_borders(labels)
    require(np.isin(result, [0, *np.unique(labels)]).all(), "The result has labels that the input does not have")
    require(
        np.all((result == 0) | (result == labels)),
        "A voxel may become 0 or keep its label, but some voxels did neither",
    )
    steps = [(0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1)]
    four, two = (_zero_beside(labels, neighbours) for neighbours in (steps, steps[1::2]))
    mistakes = {
        "A window of 3 x 3 x 3 voxels reaches into the sections above and below; only the same section counts": (
            _zero_in_window(labels, (3, 3, 3))
        ),
        "You also count neighbours in the sections above and below; only the same section should count": widen_borders(
            labels, in_3d=True
        ),
        "Your window reaches two voxels far, and only the next voxel should count": _zero_in_window(labels, (1, 5, 5)),
        "You look along y alone; neighbours along x and across corners should count too": _zero_in_window(
            labels, (1, 3, 1)
        ),
        "You look along x alone; neighbours along y and across corners should count too": _zero_in_window(
            labels, (1, 1, 3)
        ),
        "At the rim of the volume voxels become 0 although they touch nothing: what does your filter take for granted "
        "outside (its `mode`)?": _zero_in_window(labels, (1, 3, 3), "constant"),
        "At the rim of the volume your filter sees the opposite rim (its `mode`), and that is no neighbour": (
            _zero_in_window(labels, (1, 3, 3), "wrap")
        ),
        "You keep the borders and set everything else to 0": np.where(right == 0, labels, 0),
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


def _zero_in_window(labels: np.ndarray, window: tuple[int, int, int], mode: str = "nearest") -> np.ndarray:
    """Return labels with 0 wherever a window holds two labels; `mode` is scipy's, and says what lies outside."""
    return np.where(maximum_filter(labels, window, mode=mode) != minimum_filter(labels, window, mode=mode), 0, labels)


def _zero_beside(labels: np.ndarray, steps: list[tuple[int, int, int]]) -> np.ndarray:
    """Return labels with 0 wherever any of some neighbours has another label."""
    padded = np.pad(labels, 1, mode="edge")
    inside = (slice(1, -1),) * 3
    differs = [np.roll(padded, step, (0, 1, 2))[inside] != labels for step in steps]
    return np.where(np.any(differs, axis=0), 0, labels)


@exercise("01", "where the loss may look", "Write the row 5 ? 5 5 on paper (? is unknown): which affinities are known?")
def mask(answer: Callable[[np.ndarray], np.ndarray]) -> None:
    """Check the mask of a row of labels: True where the affinity to the predecessor is known."""
    for row in ([5, 5, IGNORE, IGNORE, 0, 0, 8, 7, IGNORE, 3], [IGNORE, 4, 4, 9, 9, 0, IGNORE, 2, 2]):
        _judge_mask(answer, np.array(row, np.uint64))


def _judge_mask(answer: Callable[[np.ndarray], np.ndarray], row: np.ndarray) -> None:
    """Raise a hint unless an answer gives the mask of a row of labels."""
    result = call_array(answer, row, shape=row.shape).astype(float)
    known = row != IGNORE
    before = np.append(False, known[:-1])
    right = known & before
    after = np.append(known[:-1] & known[1:], False)
    require(not np.array_equal(result, after), "You look at the voxel after each voxel, not at the one before it")
    require(result[0] == 0, "The first voxel has no predecessor, so its affinity must not count")
    mistakes = {
        "In your answer an affinity counts if only one of its two voxels is known": (known | before)
        & (np.arange(len(row)) > 0),
        "In your answer every known voxel counts, whatever its predecessor is": known & (np.arange(len(row)) > 0),
        "In your answer the predecessor alone decides. But is the voxel itself known?": before,
        "You have swapped what counts and what does not": ~right & (np.arange(len(row)) > 0),
        "This is the affinity itself: its mask says where it is known, whether it is 0 or 1": right
        & (row == np.roll(row, 1))
        & (row > 0),
        "You leave out voxels of label 0. They are known: they belong to no neuron": right
        & (row > 0)
        & np.roll(row > 0, 1),
    }
    require_equal(result, right, mistakes, "{n} voxels are wrong, the first at {at}")
