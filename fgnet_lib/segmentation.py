"""From affinities to neurons: watershed fragments, then agglomeration by mean affinity (waterz).

Affinities are float32 (3, z, y, x) in [0, 1]; channel c joins a voxel to its predecessor along axis c. A threshold is
a score as waterz defines it, 1 - mean affinity of a face between two segments: segments merge while it is lower.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stdout

import fastremap
import numpy as np
import waterz
from scipy import ndimage
from scipy.optimize import linear_sum_assignment
from skimage.segmentation import watershed

from fgnet_lib.volumes import is_anisotropic

MEAN_AFFINITY = "OneMinus<MeanAffinity<RegionGraphType, ScoreValue>>"  # compiled into waterz' wheels
SMOOTHING = 2.0  # voxels; of the distance transform, so that a neurite has one seed and not one for each bump


def fragments(
    affinities: np.ndarray, voxel_size: tuple[float, float, float], per_section: bool | None = None
) -> np.ndarray:
    """Oversegment by a watershed that floods low affinities last.

    Sections of anisotropic data are flooded one by one on 1 - mean of the two in-plane affinities, isotropic data in 3D
    on 1 - mean of all three. Seeds are the maxima of the smoothed distance to the nearest boundary (value of 0.5).

    Args:
        affinities: float32 (3, z, y, x) in [0, 1].
        voxel_size: nm (z, y, x).
        per_section: Flood section by section; by default in anisotropic data.

    Returns:
        Dense uint64 ids from 1 (z, y, x), without gaps.

    Raises:
        ValueError: For affinities of another type, shape, range or channel order, or with NaN.
    """
    _check(affinities)
    if per_section is None:
        per_section = is_anisotropic(voxel_size)
    if not per_section:
        return _flood(1 - affinities.mean(axis=0), voxel_size).astype(np.uint64)
    labels = np.zeros(affinities.shape[1:], np.uint64)
    for z, boundary in enumerate(1 - affinities[1:].mean(axis=0)):
        labels[z] = _flood(boundary, voxel_size[1:]) + (labels[z - 1].max() if z else 0)
    return labels


def _flood(boundary: np.ndarray, voxel_size: tuple[float, ...]) -> np.ndarray:
    inside = boundary < 0.5
    if inside.all() or not inside.any():  # nothing to measure a distance to, or from
        return np.ones(boundary.shape, int)
    distance = ndimage.gaussian_filter(ndimage.distance_transform_edt(inside, voxel_size), SMOOTHING)
    peaks = inside & (distance == ndimage.maximum_filter(distance, 3))
    return watershed(boundary, ndimage.label(peaks, np.ones([3] * boundary.ndim))[0])


_fragments = fragments  # for `sweep`, whose parameter has the same name


def sweep(
    affinities: np.ndarray,
    voxel_size: tuple[float, float, float],
    thresholds: Iterable[float],
    fragments: np.ndarray | None = None,
) -> dict[float, np.ndarray]:
    """Segment at several thresholds in one agglomeration.

    Args:
        affinities: float32 (3, z, y, x) in [0, 1].
        voxel_size: nm (z, y, x).
        thresholds: Scores in [0, 1]; 0 merges nothing.
        fragments: Integer ids (z, y, x) to start from, 0 for background; by default those of ``fragments``.

    Returns:
        Threshold -> uint64 labels (z, y, x), by rising threshold; every array is its own.

    Raises:
        ValueError: For thresholds outside of [0, 1], fragments of another shape, or affinities that do not qualify.
    """
    _check(affinities)
    thresholds = sorted({float(threshold) for threshold in thresholds})
    if not thresholds or not 0 <= thresholds[0] <= thresholds[-1] <= 1:
        raise ValueError(f"thresholds must be scores (1 - mean affinity) in [0, 1], not {thresholds}")
    if fragments is None:
        fragments = _fragments(affinities, voxel_size)
    if fragments.shape != affinities.shape[1:] or fragments.dtype.kind not in "iu":
        raise ValueError(
            f"fragments must be integer ids of shape {affinities.shape[1:]}, not {fragments.dtype} {fragments.shape}"
        )
    # waterz indexes by id, writes into what it is given, and yields that one array again and again: hence two copies.
    dense = fastremap.renumber(fragments)[0].astype(np.uint64, order="C")
    affinities = np.ascontiguousarray(affinities)
    with _silenced():
        steps = waterz.agglomerate(affinities, thresholds, fragments=dense, scoring_function=MEAN_AFFINITY)
        return {threshold: labels.copy() for threshold, labels in zip(thresholds, steps, strict=True)}


def segment(affinities: np.ndarray, voxel_size: tuple[float, float, float], threshold: float) -> np.ndarray:
    """Segment at one threshold; see ``sweep``."""
    return sweep(affinities, voxel_size, [threshold])[float(threshold)]


def remove_small(labels: np.ndarray, min_voxels: int) -> np.ndarray:
    """Give segments of fewer than ``min_voxels`` voxels to the nearest segment that has more.

    Args:
        labels: Integer ids (z, y, x); 0 is background and stays.
        min_voxels: Smallest segment that is kept.

    Returns:
        A new array of the same type. Where no segment is large enough, nothing is removed.
    """
    ids, voxels = fastremap.unique(labels, return_counts=True)
    small = np.isin(labels, ids[(ids != 0) & (voxels < min_voxels)])
    large = (labels != 0) & ~small
    if not small.any() or not large.any():
        return labels.copy()
    nearest = ndimage.distance_transform_edt(~large, return_distances=False, return_indices=True)
    return np.where(small, labels[tuple(nearest)], labels)


@contextmanager
def _silenced() -> Iterator[None]:
    """Send what waterz prints nowhere: from Python by sys.stdout, from C++ by descriptor 1 (in Jupyter two places)."""
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


def _check(affinities: np.ndarray) -> None:
    """Raise a ValueError that says what is wrong and what to do about it."""
    shape, dtype = np.shape(affinities), getattr(affinities, "dtype", type(affinities))
    if len(shape) != 4 or shape[0] != 3 or 0 in shape:
        hint = "; move the channels to the front with np.moveaxis(affinities, -1, 0)" if shape[-1:] == (3,) else ""
        raise ValueError(f"affinities must have the shape (3, z, y, x), not {shape}{hint}")
    if dtype != np.float32:
        raise ValueError(f"affinities must be float32 in [0, 1], not {dtype}; convert with astype(np.float32)")
    low, high = affinities.min(), affinities.max()
    if np.isnan(low):
        raise ValueError(f"affinities hold NaN in {np.isnan(affinities).any(axis=0).sum()} voxels")
    if low < -1e-5 or high > 1 + 1e-5:  # blending of tiles may overshoot by rounding
        raise ValueError(f"affinities must lie in [0, 1], not [{low:g}, {high:g}]; logits need a sigmoid")
    _check_channel_order(affinities)


def _check_channel_order(affinities: np.ndarray) -> None:
    """Refuse channels that plainly belong to other axes, or to the faces of the successors (ours).

    A channel joins a voxel to its predecessor, so it lies half a voxel before the others along its own axis: there, and
    only there, it resembles them more one voxel earlier than one voxel later. The difference of the two correlations is
    taken for each channel and axis, and the assignment with the largest sum has to be channel = axis.
    """
    crop = affinities[(slice(None), *(slice(max(n // 2 - 64, 0), n // 2 + 64) for n in affinities.shape[1:]))]
    if abs(2 * crop - 1).mean() < 0.5:  # an untrained network's are undecided, and may lean anywhere
        return
    crop = crop - crop.mean(axis=(1, 2, 3), keepdims=True)
    lean = np.zeros((3, 3))
    for channel, axis in np.ndindex(3, 3):
        own = np.moveaxis(crop[channel], axis, 0)
        others = np.moveaxis(np.delete(crop, channel, axis=0).mean(axis=0), axis, 0)
        scale = own.size * own.std() * others.std()
        lean[channel, axis] = (own[1:-1] * (others[:-2] - others[2:])).sum() / max(scale, 1e-6)
    best = lean[linear_sum_assignment(lean, maximize=True)].sum()
    if best - lean.trace() > max(0.2, 6 * np.sqrt(6 / crop[0].size)):  # the second is chance in few voxels
        raise ValueError(
            "affinities seem to have another channel order than (z, y, x), or to join voxels to their successors: "
            "channel c at a voxel must belong to the face it shares with its predecessor along axis c"
        )
