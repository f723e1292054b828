"""Training targets: from instance labels to nearest-neighbour affinities and the mask of what is known.

Convention (the one waterz expects): ``affinities[c][z, y, x]`` joins a voxel to its predecessor along axis c, and is
1 iff both labels are equal and greater than 0. Flipping or transposing a volume shifts affinities, so they are always
recomputed from the labels, never transformed.
"""

from __future__ import annotations

import numpy as np

from fgnet_lib.volumes import IGNORE, Region

OFFSETS = ((-1, 0, 0), (0, -1, 0), (0, 0, -1))  # channel order z, y, x


def affinities_from_labels(labels: np.ndarray, distance: int = 1) -> np.ndarray:
    """Compute the affinities of an instance segmentation, to the nearest neighbours or to voxels further away.

    Args:
        labels: Integer ids, shape (z, y, x); 0 belongs to no object.
        distance: Number of steps from a voxel to the predecessor that it is joined to; 1 is the nearest neighbour.

    Returns:
        uint8 array of shape (3, z, y, x), 1 inside an object and 0 across a border; the low face of each axis, which
        has no predecessor, is 0.

    Raises:
        ValueError: If labels is not an integer array of three dimensions.

    Example:
        >>> affinities_from_labels(np.array([[[5, 5, 7, 0]]]))[2]  # along x: 5 and 5 are joined
        array([[[0, 1, 0, 0]]], dtype=uint8)
    """
    _check_labels(labels)
    affinities = np.zeros((3, *labels.shape), np.uint8)
    for axis in range(3):
        voxel, predecessor = _voxels_and_predecessors(labels, axis, distance)
        _voxels_and_predecessors(affinities[axis], axis, distance)[0][...] = (voxel == predecessor) & (voxel > 0)
    return affinities


def affinity_mask(labels: np.ndarray, distance: int = 1) -> np.ndarray:
    """Compute where affinities are known: neither of the two voxels is `IGNORE`, and there is a predecessor.

    Args:
        labels: Integer ids, shape (z, y, x).
        distance: Number of steps to the predecessor, as in `affinities_from_labels`.

    Returns:
        bool array of shape (3, z, y, x), True where the loss may look.

    Raises:
        ValueError: If labels is not an integer array of three dimensions.
    """
    _check_labels(labels)
    known = labels != IGNORE
    mask = np.zeros((3, *labels.shape), bool)
    for axis in range(3):
        voxel, predecessor = _voxels_and_predecessors(known, axis, distance)
        _voxels_and_predecessors(mask[axis], axis, distance)[0][...] = voxel & predecessor
    return mask


def widen_borders(labels: np.ndarray, in_3d: bool = False) -> np.ndarray:
    """Set to 0 every voxel that lies within one voxel of another label.

    Thin membranes become a background two voxels wide where two objects touch, which a network can learn from; metrics
    always use the labels as they were. One pass of neighbour comparisons, independent of the number of ids.

    Args:
        labels: Integer ids, shape (z, y, x); `IGNORE` stays as it is and makes no border.
        in_3d: Look at the 6 neighbours along z, y, x, for isotropic data (ours); by default at the 8 of the same
            section, for anisotropic data (habit of the field).

    Returns:
        A new array of the same shape and dtype.

    Raises:
        ValueError: If labels is not an integer array of three dimensions.

    Example:
        >>> widen_borders(np.array([[[5, 5, 5, 7, 7, 7]]]))
        array([[[5, 5, 0, 0, 7, 7]]])
    """
    _check_labels(labels)
    neighbours = [s for s in np.ndindex(3, 3, 3) if (abs(np.subtract(s, 1)).sum() == 1 if in_3d else s[0] == 1)]
    padded = np.pad(labels, 1, mode="edge")
    border = np.zeros(labels.shape, bool)
    for start in neighbours:
        neighbour = padded[Region.at(start, labels.shape)]
        border |= (neighbour != labels) & (neighbour != IGNORE)
    return np.where(border & (labels != IGNORE), labels.dtype.type(0), labels)


def _voxels_and_predecessors(array: np.ndarray, axis: int, distance: int) -> tuple[np.ndarray, np.ndarray]:
    """Two views: of all voxels that have a predecessor along an axis at a distance, and of those predecessors."""
    array = np.moveaxis(array, axis, 0)
    return np.moveaxis(array[distance:], 0, axis), np.moveaxis(array[:-distance], 0, axis)


def _check_labels(labels: np.ndarray) -> None:
    if labels.ndim != 3 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels must be integers of shape (z, y, x); got {labels.dtype} of shape {labels.shape}")
