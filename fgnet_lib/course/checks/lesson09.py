"""Checks of lesson 09: halos, ids and worker-hours."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fgnet_lib.course.checks.exercise import call_array, exercise, require, require_equal


@exercise("09", "what a block reads")
def halo(answer: Callable[[tuple, tuple, tuple, tuple], tuple]) -> None:
    """Check the first and last + 1 voxel that a block reads: grown by a halo, as far as the volume goes."""
    start, stop, width, shape = (0, 128, 384), (32, 256, 500), (4, 16, 16), (40, 512, 500)
    result = call_array(answer, start, stop, width, shape, shape=(2, 3))
    grown = np.array([np.subtract(start, width), np.add(stop, width)])
    right = np.clip(grown, 0, shape)
    require_equal(
        result,
        right,
        {
            "A block at the near side reads before the volume begins": np.minimum(grown, shape),
            "A block at the far side reads past the volume's end": np.maximum(grown, 0),
            "The block reads past the volume on both sides": grown,
            "The block reads only itself, without a halo": np.array([start, stop]),
            "The halo goes around the block: before it and behind it": np.array([right[0], stop]),
            "A halo enlarges what the block reads, but yours shrinks it": np.clip(
                [np.add(start, width), np.subtract(stop, width)], 0, shape
            ),
        },
        "Wrong voxel at (0 for begin or 1 for end, axis) = {at}",
    )


@exercise("09", "ids that no other block has", points=2)
def block_ids(answer: Callable[[np.ndarray, int, int], np.ndarray]) -> None:
    """Check ids over the volume, given ids within a block, the block's number and the voxels of a full block."""
    local = np.array([[0, 1, 1], [2, 0, 6]], np.uint64)[None]
    ids = [call_array(answer, local, number, 6, shape=local.shape).astype(float) for number in range(3)]
    require(all((block[local == 0] == 0).all() for block in ids), "0 means no fragment and has to stay 0")
    require(not np.allclose(ids[0], ids[1]), "Two blocks give the same ids to different fragments")
    sets = [set(block[local > 0]) for block in ids]
    shared = sets[0] & sets[1] or sets[1] & sets[2]
    require(not shared, f"Two blocks give the id {min(shared or [0]):g}: a block of 6 voxels may have 6 fragments")
    require(all(len(block) == 3 for block in sets), "Two fragments of one block have become one")
    largest = max(max(block) for block in sets)
    require(
        largest <= 18, f"Three blocks of 6 voxels have at most 18 fragments, but an id is {largest:g}: leave no gaps"
    )
    few = np.minimum(local, 3)  # a block with other fragments than those before it
    fourth = call_array(answer, few, 3, 6, shape=few.shape).astype(float)
    repeated = set(fourth[few > 0]) & set.union(*sets)
    require(
        not repeated,
        f"Two blocks give the id {min(repeated or [0]):g}: a block cannot know how many fragments others have",
    )


@exercise("09", "worker-hours")
def worker_hours(answer: Callable[[float, float, int], float]) -> None:
    """Check the hours of a run, given its voxels, a worker's million voxels a second and the number of workers."""
    result = call_array(answer, 1e12, 0.5, 50, shape=())
    require_equal(
        result,
        np.array(1e12 / 0.5e6 / 50 / 3600),
        {
            "That is the time of a single worker": np.array(1e12 / 0.5e6 / 3600),
            "That is in seconds": np.array(1e12 / 0.5e6 / 50),
            "The rate is in million voxels a second": np.array(1e12 / 0.5 / 50 / 3600),
            "More workers should take less time, not more": np.array(1e12 / 0.5e6 * 50 / 3600),
            "Twice the rate should halve the time": np.array(1e12 * 0.5e6 / 50 / 3600),
        },
        "That is not the time of 1e12 voxels at 0.5 million a second with 50 workers, in hours",
    )
