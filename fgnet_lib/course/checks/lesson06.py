"""Checks of lesson 06: nm, matches, and the viewer's axes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fgnet_lib.course.checks.exercise import call, call_array, exercise, require, require_equal, require_form


@exercise("06", "the volume of a neuron", "What is the volume of a single voxel of 40 x 8 x 4 nm, in nm³ and in µm³?")
def neuron_volume(answer: Callable[[np.ndarray, int, tuple[float, float, float]], float]) -> None:
    """Check the volume of a neuron in µm³."""
    labels = np.zeros((4, 10, 10), np.uint64)
    labels[1:3, 2:9, 2:9], labels[1:3, 3:8, 3:8] = 7, 9  # 9 has 50 voxels, and 7 lies around it
    for label, voxel_size in ((9, (40.0, 8.0, 4.0)), (7, (30.0, 10.0, 12.0))):
        result, voxels = call_array(answer, labels, label, voxel_size, shape=()), np.sum(labels == label)
        right = voxels * np.prod(voxel_size) / 1e9
        mistakes = {
            "That is a number of voxels: how large is one?": np.array(voxels),
            "That is in nm³: 1 µm is 1000 nm": np.array(right * 1e9),
            "1 µm is 1000 nm, but 1 µm³ is not 1000 nm³": np.array(right * 1e6),
            "You treat the voxels as cubes": np.array(voxels * voxel_size[2] ** 3 / 1e9),
            "You count all neurons, but only one is asked for": np.array(98 * np.prod(voxel_size) / 1e9),
            "You add the sides of a voxel; its volume is their product": np.array(voxels * sum(voxel_size) / 1e9),
            "You count the volume outside of the neuron": np.array((400 - voxels) * np.prod(voxel_size) / 1e9),
        }
        sides = " x ".join(f"{nm:g}" for nm in voxel_size)
        require_equal(
            result, np.array(right), mistakes, f"{voxels} voxels of {sides} nm have a different volume in µm³"
        )


@exercise(
    "06",
    "the match of a segment",
    "Look at `truth[segmentation == segment]` of a small array: which ids does it hold, and how often each?",
    points=2,
)
def match(answer: Callable[[np.ndarray, np.ndarray, int], tuple[int, float]]) -> None:
    """Check the neuron with most voxels in a segment, and the share of the segment that it fills."""
    segmentation = np.array([[5] * 10 + [8] * 6 + [1] * 4], np.uint64)[None]
    truth = np.array([[0] * 5 + [3] * 3 + [9] * 2 + [9] * 7 + [3] * 3], np.uint64)[None]
    neuron, share = _match(answer, segmentation, truth, 5)
    require(neuron != 0, "0 is not a neuron: even if it fills most of a segment, it is no match")
    require(neuron != 9, "Neuron 9 is the largest, but has fewer voxels in this segment than another one")
    require(neuron == 3, f"{neuron} is not the neuron with most voxels in the segment")
    require(not np.isclose(share, 3), "That is a number of voxels; a share lies between 0 and 1")
    require(not np.isclose(share, 0.5), "That is the share of the neuron that lies in the segment: turn it around")
    require(not np.isclose(share, 0.6), "Voxels of the segment whose truth is 0 belong to the segment too")
    require(bool(np.isclose(share, 0.3)), f"3 of 10 voxels are not a share of {share:.3f}")
    neuron, share = _match(answer, segmentation, truth, 1)  # no voxel of it is 0 in truth
    require(neuron == 3, "In a segment without a 0 in truth, the smallest id is a neuron like any other")
    require(bool(np.isclose(share, 0.75)), f"In another segment, 3 of 4 voxels are not a share of {share:.3f}")


def _match(answer: Callable, segmentation: np.ndarray, truth: np.ndarray, segment: int) -> tuple[int, float]:
    """Return a student's neuron and share for a segment."""
    result = call(answer, segmentation, truth, segment)
    require_form(np.shape(result) == (2,), "Return two numbers: the id of the neuron, and a share")
    return int(result[0]), float(result[1])


@exercise(
    "06", "shift the viewer's axes right", "How many voxels does the crop begin after the origin? Its offset is in nm."
)
def viewer_position(answer: Callable[[tuple, tuple, tuple], np.ndarray]) -> None:
    """Check neuroglancer's x, y, z in voxels of the data set, given a voxel (z, y, x) of a crop."""
    voxel_size = (40.0, 8.0, 4.0)
    for voxel, offset in (((3, 20, 50), (400.0, 80.0, 32.0)), ((0, 7, 1), (120.0, 0.0, 48.0))):
        result = call_array(answer, voxel, offset, voxel_size, shape=(3,))
        corner = np.divide(offset, voxel_size)
        inside = np.array(voxel) + 0.5
        mistakes = {
            "The order is still z, y, x": corner + inside,
            "That is the corner of the voxel: its centre lies half a voxel further": (corner + voxel)[::-1],
            "The order is still z, y, x, and a centre lies half a voxel behind the corner": corner + voxel,
            "That is the position in this crop, but the crop does not begin at the origin": inside[::-1],
            "You add voxels and nm: the offset is in nm": (offset + inside)[::-1],
            "That is in nm, but the viewer counts in voxels": ((corner + inside) * voxel_size)[::-1],
            "The crop lies after the origin, not before it: add its offset": (inside - corner)[::-1],
        }
        require_equal(result, (corner + inside)[::-1], mistakes, "The position is wrong along axis {at} of x, y, z")
