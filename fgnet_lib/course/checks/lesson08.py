"""Checks of lesson 08: what to know about a volume of one's own before computing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fgnet_lib.course.checks.exercise import call, call_array, exercise, require, require_equal, require_form


@exercise(
    "08",
    "voxel size and offset of a cut",
    "Along one axis: how far apart in nm are two voxels of `raw[5::2]`, and where does the first one begin?",
    points=2,
)
def cut_geometry(answer: Callable[[tuple, tuple, tuple, tuple], tuple]) -> None:
    """Check the voxel size and offset in nm of raw[first:...:step] along three axes."""
    _judge_geometry(answer, (40.0, 8.0, 8.0), (400.0, 0.0, 160.0), (5, 100, 50), (1, 2, 4))
    _judge_geometry(answer, (12.0, 10.0, 9.0), (0.0, 30.0, 27.0), (2, 0, 7), (3, 1, 2))


def _judge_geometry(answer: Callable, voxel_size: tuple, offset: tuple, first: tuple, step: tuple) -> None:
    """Raise a hint unless an answer gives the voxel size and the offset of a cut."""
    result = call_array(answer, voxel_size, offset, first, step, shape=(2, 3))
    size, start = np.multiply(voxel_size, step), np.multiply(first, voxel_size)
    require(
        not np.allclose(result, [offset + start, size]), "You return the offset before the voxel size: exchange them"
    )
    require_equal(
        result[0],
        size,
        {
            "If you leave out every second voxel, the voxel size cannot stay the same": np.array(voxel_size),
            "If you leave out voxels, the remaining voxels cover more tissue, not less": np.divide(voxel_size, step),
        },
        "The voxel size is wrong along axis {at} of z, y, x",
    )
    require_equal(
        result[1],
        offset + start,
        {
            "The offset is in nm, but `first` counts voxels": np.add(offset, first),
            "The volume that you cut from does not begin at the origin": start,
            "A cut that begins later than the volume cannot have the offset of the volume": np.array(offset),
            "`first` counts voxels of the volume, before any were left out": offset + np.multiply(first, size),
        },
        "The offset is wrong along axis {at} of z, y, x",
    )


@exercise(
    "08",
    "find the sections without a picture",
    "Print the standard deviation of every section (`axis=(1, 2)`), and beside it a tenth of their median.",
)
def flat_sections(answer: Callable[[np.ndarray], list[int]]) -> None:
    """Check the numbers of the sections whose grey values spread less than a tenth of the median."""
    generator = np.random.default_rng(8)
    raw = generator.integers(60, 200, (13, 20, 30)).astype(np.uint8)
    require(not _sections(answer, raw), "In a volume without any lost section, your function finds some")
    lost = [2, 5, 8, 9]
    for z, grey, noise in zip(lost, (0, 128, 240, 100), (1, 3, 11, 11), strict=True):
        raw[z] = grey + generator.integers(0, noise, raw[z].shape)
    raw[3] = generator.integers(0, 256, raw[3].shape)  # a high contrast, which a limit must not follow
    raw[6] //= 6  # a sixth of the median, which is more than a tenth
    raw[7] //= 4  # dark, and yet a picture
    spread = raw.std(axis=(1, 2))
    numbers = _sections(answer, raw)
    require(
        all(0 <= z < len(raw) for z in numbers),
        f"There are {len(raw)} sections, counted from 0, but you found {numbers}",
    )
    require(7 not in numbers, "Section 7 is dark, but it holds a picture: brightness does not decide")
    require(6 not in numbers, "Section 6 is faint, but your limit should be lower: a tenth of the median")
    require(2 in numbers, "Section 2 is black, but you did not find it")
    require(
        5 in numbers, "Section 5 is evenly grey with a little noise: an empty section need not be black or quite even"
    )
    lowered = np.flatnonzero(spread < spread.mean() / 10).tolist()
    require(numbers != lowered, "Lost sections lower your limit, so you miss some: a mean is not robust")
    require(numbers == lost, f"Sections {lost} have no picture, but you found {numbers}")


def _sections(answer: Callable[[np.ndarray], Any], raw: np.ndarray) -> list[int]:
    """Return a student's numbers in order, given as a list, a set, an array or as `np.where` returns them."""
    result = call(answer, raw)
    numbers = np.ravel(list(result) if np.iterable(result) else result)
    require_form(numbers.dtype != bool, "Return the numbers of the sections, not a yes or no for each section")
    return sorted(int(z) for z in numbers)


@exercise(
    "08",
    "how many sections fit into memory",
    "Add up the bytes of a single voxel first: raw, label, and the affinities of part 2.",
)
def sections_in_memory(answer: Callable[[int, int, float], int]) -> None:
    """Check the number of whole sections whose raw, labels and both affinities fit into some gigabytes."""
    for height, width, gigabytes in ((2000, 1500, 8.0), (1024, 900, 2.5)):
        result = call_array(answer, height, width, gigabytes, shape=())
        voxels = height * width
        fits = {each: int(gigabytes * 1e9 // (each * voxels)) for each in (33, 21, 12, 24, 32, 25, 1)}
        require(result == int(result), "Return whole sections: a part of a section does not count")
        mistakes = {
            "The affinities of one decoder are missing: there are two": fits[21],
            "Raw data and labels need memory too": fits[24],
            "The labels need memory too: 8 bytes a voxel": fits[25],
            "The raw data need memory too: 1 byte a voxel": fits[32],
            "You count only the affinities of one decoder": fits[12],
            "You count only the raw data": fits[1],
            "One section too many: the last one fits only in part": fits[33] + 1,
            "A gigabyte is 1e9 bytes here, not 2**30": int(gigabytes * 2**30 // (33 * voxels)),
        }
        for hint, mistake in mistakes.items():
            require(result != mistake, hint)
        words = f"for sections of {height} x {width} voxels and {gigabytes:g} GB"
        require(result == fits[33], f"At 33 bytes a voxel, the number of sections is not {result:g}, {words}")
