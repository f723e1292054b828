"""Checks of lesson 09: halos, ids and worker-hours."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fgnet_lib.course.checks.exercise import call_array, exercise, require, require_equal

WIDTH, SHAPE = (4, 16, 20), (40, 512, 500)  # of a halo, and of a volume
BLOCKS = (((0, 128, 384), (32, 256, 500)), ((16, 8, 128), (32, 128, 256)))  # start and stop, both z, y, x


def grow(start: tuple[int, int, int], stop: tuple[int, int, int]) -> np.ndarray:
    """Return the first and the last + 1 voxel (2, 3) that a block reads, halo included."""
    return np.clip([np.subtract(start, WIDTH), np.add(stop, WIDTH)], 0, SHAPE)


@exercise(
    "09",
    "what a block reads",
    "On an axis of 500 voxels, with a halo of 16: what do the blocks from 0 to 128 and from 384 to 500 read?",
)
def halo(answer: Callable[[tuple, tuple, tuple, tuple], tuple]) -> None:
    """Check the first and last + 1 voxel that a block reads: grown by a halo, as far as the volume goes."""
    width, shape = WIDTH, SHAPE
    for start, stop in BLOCKS:
        result = call_array(answer, start, stop, width, shape, shape=(2, 3))
        grown = np.array([np.subtract(start, width), np.add(stop, width)])
        right = grow(start, stop)
        mistakes = {
            "A block at the near side reads before the volume begins": np.minimum(grown, shape),
            "A block at the far side reads past the volume's end": np.maximum(grown, 0),
            "The block reads past the volume on both sides": grown,
            "The block reads only itself, without a halo": np.array([start, stop]),
            "The halo goes around the block: before it and behind it": np.array([right[0], stop]),
            "The halo goes around the block: it begins earlier, too": np.array([start, right[1]]),
            "A halo enlarges what the block reads, but yours shrinks it": np.clip(
                [np.add(start, width), np.subtract(stop, width)], 0, shape
            ),
            "`stop` is the last voxel + 1, so it may be as large as the shape": np.clip(
                grown, 0, np.subtract(shape, 1)
            ),
            "The second triple is where the block stops reading, not how many voxels it reads": np.array(
                [right[0], right[1] - right[0]]
            ),
            "The halo is added twice at the end: it goes beyond `stop` once": np.clip(
                [grown[0], grown[1] + width], 0, shape
            ),
            "First where it begins to read, then where it ends: exchange them": right[::-1],
        }
        require_equal(result, right, mistakes, "Wrong voxel at (0 for start or 1 for stop, axis) = {at}")


@exercise(
    "09",
    "ids that no other block has",
    "A block of 6 voxels has at most 6 fragments: which ids could block 0 use, and which are left for block 1?",
    points=2,
)
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
        largest <= 18,
        f"Three blocks of 6 voxels have at most 18 fragments, but an id is {largest:g}: it need not be larger than 18",
    )
    few = np.minimum(local, 3)  # a block with other fragments than those before it
    fourth = call_array(answer, few, 3, 6, shape=few.shape).astype(float)
    repeated = set(fourth[few > 0]) & set.union(*sets)
    require(
        not repeated,
        f"Two blocks give the id {min(repeated or [0]):g}: a block cannot know how many fragments others have",
    )
    many = np.where(local == 2, np.uint64(7), local)  # more fragments than a block of 6 voxels may have
    larger = [call_array(answer, many, number, 1000, shape=local.shape).astype(float) for number in (4, 5)]
    require(
        not set(larger[0][local > 0]) & set(larger[1][local > 0]) and larger[1].max() <= 6000,
        "With larger blocks the ids are wrong: use the `voxels` that your function is given",
    )


@exercise("09", "worker-hours", "How many seconds does one worker need for a million voxels, and for all of them?")
def worker_hours(answer: Callable[[float, float, int], float]) -> None:
    """Check the hours of a run, given its voxels, a worker's million voxels a second and the number of workers."""
    for voxels, rate, workers in ((1e12, 0.5, 50), (3e10, 2.0, 8)):
        result = call_array(answer, voxels, rate, workers, shape=())
        alone = voxels / (rate * 1e6) / 3600
        mistakes = {
            "That is the time of a single worker": np.array(alone),
            "That is in seconds": np.array(alone * 3600 / workers),
            "That is in minutes": np.array(alone * 60 / workers),
            "The rate is in million voxels a second": np.array(alone * 1e6 / workers),
            "More workers should take less time, not more": np.array(alone * workers),
            "Twice the rate should halve the time": np.array(voxels * rate / 1e6 / workers / 3600),
        }
        words = f"{voxels:g} voxels at {rate:g} million a second with {workers} workers"
        require_equal(result, np.array(alone / workers), mistakes, f"That is not the time of {words}, in hours")
