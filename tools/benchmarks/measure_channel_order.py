"""Measure how often the check of the channel order refuses right affinities, and how often it notices wrong ones.

Prints the table of docs/measured/channel_order.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import permutations, product

import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.spatial import cKDTree

from fgnet_lib.affinities import affinities_from_labels, widen_borders
from fgnet_lib.segmentation import check_affinities

SLOPES = (0, 0.25, 0.5, 1, 2, 3.3, 6, 8)  # voxels along y from one section to the next
SHAPES = ((16, 96, 96), (24, 64, 128))
SEEDS = range(2)
BLUR = (0, 0.5, 0.7, 0.7)  # voxels: channel, z, y, x
NOISE = 0.15


def divide(shape: tuple[int, int, int], slope: float, seed: int, voxels: float, flat: bool) -> np.ndarray:
    """Return a volume filled with cells around random points, which move along y from section to section.

    Args:
        shape: z, y, x.
        slope: voxels along y for each section; half as many along x.
        seed: of the points.
        voxels: in a cell, or in its profile if `flat`.
        flat: every cell is a fibre through all sections, with a profile that stays the same.
    """
    rng = np.random.default_rng(seed)
    shift = np.arange(shape[0]) * slope
    z, y, x = np.meshgrid(*map(np.arange, shape), indexing="ij")
    where = np.stack([z * (not flat), y + shift[z], x + shift[z] / 2], -1).reshape(-1, 3)
    extent = np.ptp(where, axis=0) + 1
    points = rng.random((int(np.prod(extent) / voxels), 3)) * extent
    return (cKDTree(points).query(where)[1] + 1).reshape(shape).astype(np.uint64)


def blur(affinities: np.ndarray) -> np.ndarray:
    return gaussian_filter(affinities, BLUR)


def noisy(affinities: np.ndarray) -> np.ndarray:
    rng = np.random.default_rng(0)
    return (blur(affinities) + rng.normal(0, NOISE, affinities.shape)).clip(0, 1).astype(np.float32)


def of_labels(labels: np.ndarray) -> np.ndarray:
    return affinities_from_labels(labels).astype(np.float32)


KINDS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "of labels": of_labels,
    "of labels, blurred": lambda labels: blur(of_labels(labels)),
    "borders widened": lambda labels: of_labels(widen_borders(labels)),
    "borders widened, blurred": lambda labels: blur(of_labels(widen_borders(labels))),
    "borders widened, blurred, noise": lambda labels: noisy(of_labels(widen_borders(labels))),
}


def wrong_orders(affinities: np.ndarray) -> Iterator[np.ndarray]:
    """Yield affinities in all other orders, and joined to successors along one or all axes, where that differs."""
    successors = np.stack([np.roll(affinities[axis], -1, axis) for axis in range(3)])
    some = [np.array(side) for side in product((False, True), repeat=3) if sum(side) in (1, 3)]
    wrong = [affinities[list(order)] for order in permutations(range(3)) if order != (0, 1, 2)]
    wrong += [np.where(side[:, None, None, None], successors, affinities) for side in some]
    inside = (slice(None), *[slice(1, -1)] * 3)
    yield from (array for array in wrong if not np.array_equal(array[inside], affinities[inside]))


def is_refused(affinities: np.ndarray) -> bool:
    try:
        check_affinities(affinities)
    except ValueError:
        return True
    return False


def count(volumes: list[np.ndarray], kind: str) -> str:
    """Return two cells of a table: right affinities refused, and wrong orders refused."""
    right, wrong = [], []
    for labels in volumes:
        affinities = KINDS[kind](labels)
        right.append(is_refused(affinities))
        wrong += [is_refused(array) for array in wrong_orders(affinities)]
    return f"{sum(right)} of {len(right)} | {sum(wrong)} of {len(wrong)}"


def table(rows: dict[str, list[np.ndarray]]) -> Iterator[str]:
    yield "| volumes | affinities | right, refused | wrong, refused |"
    yield "| --- | --- | --- | --- |"
    for name, volumes in rows.items():
        yield from (f"| {name} | {kind} | {count(volumes, kind)} |" for kind in KINDS)


def main() -> None:
    trials = list(product(SHAPES, SEEDS))
    rows = {"round cells": [divide(shape, 0, seed, 2000, False) for shape, seed in trials]}
    for slope in SLOPES:
        rows[f"fibres, slope {slope:g}"] = [divide(shape, slope, seed, 150, True) for shape, seed in trials]
    for line in table(rows):
        print(line, flush=True)


if __name__ == "__main__":
    main()
