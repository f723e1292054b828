"""Measure what a guide sees of membranes when it looks at an isotropic volume along z alone, and along z, y and x.

Prints a table: how well a weighted sum of a guide's channels tells membranes from interiors on training sections of
FIB-25, for membranes that stand upright in the sections and for those that lie in them.
"""

from __future__ import annotations

import fgnet_lib  # noqa: F401  before torch: it tells torch's threads how to wait

# isort: split
import numpy as np
import torch
from measure_guide_zoom import GUIDES, build, features_of, solve
from skimage.feature import structure_tensor

from fgnet_lib.affinities import widen_borders
from fgnet_lib.datasets import open_dataset
from fgnet_lib.fgnet import FGNet
from fgnet_lib.metrics import roc_auc
from fgnet_lib.volumes import Volume

FIT, JUDGE = slice(0, 64), slice(64, 128)  # sections of FIB-25's training part
CORNERS = (0, 96)  # in y and x: four cubes of 64 x 128 x 128 voxels, which overlap a little
SIZE = 128
UPRIGHT, LYING = 0.3, 0.8  # |z| of a membrane's normal: at most, at least
SIGMA = 2.0  # voxels; a membrane's normal is that of its surroundings


def features_along(model: FGNet, raw: np.ndarray, axis: int) -> torch.Tensor:
    """Features (C + 1, z, y, x) of a cube at every voxel, seen in sections across an axis."""
    turned = np.moveaxis(raw, axis, 0)
    seen = torch.stack([features_of(model, section).reshape(-1, *section.shape) for section in turned], dim=1)
    return seen.movedim(1, 1 + axis)


def z_of_normals(borders: np.ndarray) -> np.ndarray:
    """|z| of the normal of the membrane that is nearest to each border voxel, for bool `borders` (z, y, x)."""
    elements = structure_tensor(borders.astype(np.float32), sigma=SIGMA, order="rc")
    upper = np.stack([element[borders] for element in elements], axis=-1)  # (voxels, 6)
    matrices = upper[:, [[0, 1, 2], [1, 3, 4], [2, 4, 5]]]
    return np.abs(np.linalg.eigh(matrices)[1][:, 0, -1])


def cubes(volume: Volume, sections: slice) -> list[tuple[np.ndarray, np.ndarray]]:
    """Grey values and borders of the cubes of some sections."""
    borders = widen_borders(volume.labels, in_3d=True) == 0
    boxes = [(sections, slice(y, y + SIZE), slice(x, x + SIZE)) for y in CORNERS for x in CORNERS]
    return [(volume.raw[box], borders[box]) for box in boxes]


def see(model: FGNet, raw: np.ndarray, axes: tuple[int, ...]) -> torch.Tensor:
    """Features (C, voxels) of all views of a cube together."""
    return torch.cat([features_along(model, raw, axis).flatten(1) for axis in axes])


def judge_views(model: FGNet, volume: Volume, axes: tuple[int, ...]) -> tuple[float, float]:
    """AUC of a linear read-out, fitted on some sections and tested on others: of upright and of lying membranes."""
    squares = products = torch.zeros(1, dtype=torch.float64)
    for raw, borders in cubes(volume, FIT):
        x = see(model, raw, axes)
        squares, products = squares + (x @ x.T).double(), products + (x @ torch.from_numpy(borders.ravel()).float())
    voxels = x.shape[1] * len(CORNERS) ** 2
    weights = solve(squares / voxels, products / voxels).float()
    scores, kinds = [], []
    for raw, borders in cubes(volume, JUDGE):
        scores.append((weights @ see(model, raw, axes)).numpy())
        kind = np.zeros(borders.shape, np.float32)
        kind[borders] = z_of_normals(borders) + 1  # 0 inside of neurons
        kinds.append(kind.ravel())
    score, kind = np.concatenate(scores), np.concatenate(kinds)
    upright, lying = (kind > 0) & (kind <= 1 + UPRIGHT), kind >= 1 + LYING
    inside = kind == 0
    return tuple(roc_auc(score[inside | membranes], membranes[inside | membranes]) for membranes in (upright, lying))


def main() -> None:
    volume = open_dataset("fib25", "train").load()
    print("| guide | sections across | AUC of upright membranes | of lying ones |\n| --- | --- | ---: | ---: |")
    for guide in GUIDES:
        model = build(guide, zoom=1)
        for axes, name in (((0,), "z"), ((0, 1, 2), "z, y and x")):
            upright, lying = judge_views(model, volume, axes)
            print(f"| {guide} | {name} | {upright:.3f} | {lying:.3f} |", flush=True)


if __name__ == "__main__":
    main()
