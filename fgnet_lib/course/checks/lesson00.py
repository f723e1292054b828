"""Checks of lesson 00: sizes, and the two kinds of errors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product

import numpy as np

from fgnet_lib.course.checks.exercise import Hint, call, call_array, exercise, require, require_equal, require_form


@exercise("00", "the size of a volume", "Begin with one axis: how long are 1000 voxels of 40 nm?")
def volume_size(answer: Callable[[tuple, tuple], Sequence[float]]) -> None:
    """Check the size in µm of a shape (voxels) and a voxel size (nm), both z, y, x."""
    for shape, voxel_size in (((50, 1250, 2000), (40.0, 4.0, 8.0)), ((25, 310, 500), (30.0, 8.0, 4.5))):
        result = call_array(answer, shape, voxel_size, shape=(3,))
        right = np.multiply(shape, voxel_size) / 1000
        mistakes = {
            "This is in nm, and the answer is wanted in µm: 1000 nm are 1 µm": right * 1000,
            "1 µm is 1000 nm, not a million nm": right / 1000,
            "The order is x, y, z; it should be z, y, x": right[::-1],
            "You multiply the voxels along z by the voxel size along x": np.multiply(shape, voxel_size[::-1]) / 1000,
            "These are numbers of voxels: how long is one voxel?": np.array(shape),
            "You divide where you should multiply: more voxels make a larger volume": np.divide(shape, voxel_size),
            "You round down, but a size need not be a whole number: `//` leaves out what is behind the point": right
            // 1,
            "You round, but a size need not be a whole number": np.round(right),
        }
        words = f"for {shape} voxels of {voxel_size} nm"
        require_equal(result, right, mistakes, f"Not all three sizes are right: {{n}} of them are wrong, {words}")


@exercise("00", "merge or split", "Ask two questions: is it one neuron in the truth, and is it one segment?")
def error_kind(answer: Callable[[int, int, int, int], str]) -> None:
    """Check the word "merge", "split" or "none" for the true and the predicted ids of two voxels."""
    right = {(True, False): "split", (False, True): "merge"}
    pairs = [*product(((3, 3), (3, 5)), ((8, 8), (8, 9))), *product(((4, 4), (4, 6)), ((4, 4), (4, 6), (6, 4)))]
    for truth, predicted in pairs:  # the last ones use the same numbers on both sides
        expected = right.get((truth[0] == truth[1], predicted[0] == predicted[1]), "none")
        given = call(answer, *truth, *predicted)
        words = f"the true ids are {truth[0]} and {truth[1]}, the segmentation has {predicted[0]} and {predicted[1]}"
        is_word = isinstance(given, str) and given in ("merge", "split", "none")
        require_form(is_word, f"{given!r} is not one of the three words ({words})")
        if {given, expected} == {"merge", "split"}:
            raise Hint(f"You have swapped merge and split: {words}")
        require(given != "none" or expected == "none", f"There is an error, and you missed it: {words}")
        require(given == expected, f"There is no error, but your answer is {given!r}: {words}. Ids are only names")
