"""Volumes whose objects are known: rods to train on, polyhedra to segment, and affinities that fit them."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.spatial import cKDTree
from skimage import measure

from fgnet_lib.affinities import affinities_from_labels, widen_borders
from fgnet_lib.volumes import Volume


def rods() -> Volume:
    """Rods along z whose borders are dark: the easiest EM there is."""
    rng = np.random.default_rng(0)
    labels = np.tile(rng.permutation(25).reshape(5, 5).repeat(13, 0).repeat(13, 1)[:64, :64] + 1, (8, 1, 1))
    raw = np.where(widen_borders(labels) == 0, 60, 180) + rng.integers(-30, 30, labels.shape)
    return Volume(raw.astype(np.uint8), (40, 8, 8), labels.astype(np.uint64), name="rods")


def cells(shape: tuple[int, int, int] = (12, 64, 64), number: int = 25, seed: int = 0) -> np.ndarray:
    """A volume filled with polyhedra."""
    points = np.random.default_rng(seed).random((number, 3)) * shape
    return cKDTree(points).query(np.moveaxis(np.indices(shape), 0, -1))[1].astype(np.uint64) + np.uint64(1)


def thin_cells(shape: tuple[int, int, int], number: int, seed: int, stretch: tuple[float, ...]) -> np.ndarray:
    """Cells stretched along the axes, so that many are thinner than their membranes."""
    points = np.random.default_rng(seed).random((number, 3)) * shape * stretch
    return cKDTree(points).query(np.moveaxis(np.indices(shape), 0, -1) * stretch)[1].astype(np.uint64) + np.uint64(1)


def parts_of(objects: np.ndarray) -> np.ndarray:
    """What perfect affinities can tell of objects: their connected parts; 0 for membranes and for single voxels."""
    parts = measure.label(objects, background=0, connectivity=1)
    return np.where(np.bincount(parts.ravel())[parts] > 1, parts, 0)


def affinities_of(labels: np.ndarray) -> np.ndarray:
    """As a good network would predict them: membranes two voxels wide, blurred."""
    affinities = affinities_from_labels(widen_borders(labels)).astype(np.float32)
    affinities[0, 0], affinities[1, :, 0], affinities[2, :, :, 0] = 1, 1, 1  # a network knows nothing of the low faces
    return gaussian_filter(affinities, (0, 0.5, 0.7, 0.7))
