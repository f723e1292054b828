"""Checks of lesson 00: sizes, and the two kinds of errors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product

import numpy as np

from fgnet_lib.course.checks.exercise import Hint, ask, ask_array, compare, exercise, require


@exercise("00", "the size of a volume")
def volume_size(answer: Callable[[tuple, tuple], Sequence[float]]) -> None:
    """From a shape (voxels) and a voxel size (nm), both z, y, x, to a size in µm."""
    shape, voxel_size = (50, 1250, 2000), (40.0, 4.0, 8.0)
    result = ask_array(answer, shape, voxel_size, shape=(3,))
    right = np.multiply(shape, voxel_size) / 1000
    mistakes = {
        "This is in nm, and the answer is wanted in µm: 1000 nm are 1 µm": right * 1000,
        "The order is x, y, z; it should be z, y, x": right[::-1],
        "These are numbers of voxels: how long is one voxel?": np.array(shape),
        "You divide where you should multiply: more voxels make a larger volume": np.divide(shape, voxel_size),
    }
    compare(result, right, mistakes, "Not all three sizes are right: {n} of them are wrong")


@exercise("00", "merge or split")
def error_kind(answer: Callable[[int, int, int, int], str]) -> None:
    """From the ids of two voxels, in the ground truth and in a segmentation, to "merge", "split" or "none"."""
    right = {(True, False): "split", (False, True): "merge"}
    for truth, found in product(((3, 3), (3, 5)), ((8, 8), (8, 9))):
        expected = right.get((truth[0] == truth[1], found[0] == found[1]), "none")
        given = ask(answer, *truth, *found)
        words = f"the true ids are {truth[0]} and {truth[1]}, the segmentation has {found[0]} and {found[1]}"
        require(given in ("merge", "split", "none"), f"{given!r} is not one of the three words ({words})")
        if {given, expected} == {"merge", "split"}:
            raise Hint(f"You have swapped merge and split: {words}")
        require(given != "none" or expected == "none", f"There is an error, and you missed it: {words}")
        require(given == expected, f"There is no error, but your answer is {given!r}: {words}. Ids are only names")
