"""Surfaces of neurons for the 3D views: marching cubes in nm, simplified to a budget of triangles."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import NamedTuple

import fast_simplification
import fastremap
import numpy as np
from scipy.ndimage import find_objects
from skimage.measure import marching_cubes

from fgnet_lib.metrics import NO_NEURON, check_ids

_simplifying = threading.Lock()  # fast_simplification keeps its mesh in a global; the viewer's server has threads


class Mesh(NamedTuple):
    """The closed surface of a neuron.

    Attributes:
        vertices: float32 (n, 3), nm, z y x; voxel i of an axis reaches from i to i + 1 voxel sizes.
        triangles: int32 (m, 3), indices of vertices, wound so that normals point outwards in x, y, z.
    """

    vertices: np.ndarray
    triangles: np.ndarray


def largest_ids(labels: np.ndarray, n: int) -> list[int]:
    """Return the ids of the `n` largest neurons of labels (z, y, x), largest first; 0 and unknown are no neurons."""
    # in slabs, because with sparse ids fastremap sorts a copy of the array that it counts
    slabs = [
        fastremap.unique(check_ids(labels[z : z + 16], "labels", lowest=-1), return_counts=True)
        for z in range(0, labels.shape[0], 16)
    ]
    ids, slot = np.unique(np.concatenate([ids for ids, _ in slabs]), return_inverse=True)
    order = np.argsort(np.bincount(slot, np.concatenate([sizes for _, sizes in slabs])))[::-1]
    return [int(i) for i in ids[order] if i not in NO_NEURON][:n]


def slender_ids(labels: np.ndarray, n: int) -> list[int]:
    """Return `n` ids of neurons that look best in 3D: those that run through the volume, thin and branched ones first.

    A neuron qualifies if it passes three quarters of the sections and has less than a twentieth of its voxels on the
    other sides, where the volume would cut a flat face. They come by the share of their bounding box that they fill,
    the smallest first. If too few qualify, the largest of the others follow.

    Args:
        labels: ids (z, y, x); 0 and unknown are no neurons.
        n: how many ids to return at most.
    """
    ids, index, voxels = np.unique(labels, return_inverse=True, return_counts=True)
    index = index.reshape(labels.shape)
    boxes = np.array([[side.stop - side.start for side in box] for box in find_objects(index + 1)])
    sides = np.concatenate([index[:, [0, -1]].ravel(), index[:, :, [0, -1]].ravel()])
    cut = np.bincount(sides, minlength=len(ids)) > voxels / 20
    through = (boxes[:, 0] >= 0.75 * len(labels)) & ~cut
    by_fill = [
        int(ids[k])
        for k in np.argsort(voxels / boxes.prod(axis=1), kind="stable")
        if through[k] and ids[k] not in NO_NEURON
    ]
    return [*by_fill, *(i for i in largest_ids(labels, len(ids)) if i not in by_fill)][:n]


def bounding_box(mask: np.ndarray) -> tuple[slice, ...]:
    """Return the smallest box (z, y, x) around the voxels of a mask that are True; at least one has to be."""
    occupied = [np.flatnonzero(mask.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    return tuple(slice(int(along[0]), int(along[-1]) + 1) for along in occupied)


def neuron_mesh(
    labels: np.ndarray,
    neuron: int,
    voxel_size: tuple[float, float, float],
    max_triangles: int = 20_000,
    offset: tuple[float, float, float] = (0, 0, 0),
) -> Mesh:
    """Return the surface of a neuron, closed where the volume cuts it.

    Args:
        labels: ids (z, y, x).
        neuron: its id.
        voxel_size: nm (z, y, x).
        max_triangles: the surface is simplified by edge collapse (quadric error) to about this many.
        offset: position of the first voxel in nm (z, y, x).

    Raises:
        ValueError: no voxel has this id.
    """
    mask = np.asarray(labels) == neuron
    if not mask.any():
        raise ValueError(f"no neuron {neuron} in these labels of shape {mask.shape}: choose an id that they contain")
    box = bounding_box(mask)
    mask = np.pad(mask[box], 1)  # a rim of background closes the surface
    vertices, triangles, *_ = marching_cubes(mask.astype(np.float32), 0.5, spacing=voxel_size, allow_degenerate=False)
    first = np.array([edge.start for edge in box]) - 1 + 0.5  # the rim; marching cubes counts from voxel centres
    vertices = vertices + first * voxel_size + offset
    if len(triangles) > max_triangles:
        with _simplifying:
            vertices, triangles = fast_simplification.simplify(vertices, triangles, target_count=max_triangles)
    return Mesh(vertices.astype(np.float32), triangles.astype(np.int32))


def neuron_meshes(
    labels: np.ndarray,
    voxel_size: tuple[float, float, float],
    ids: Iterable[int],
    max_triangles: int = 20_000,
    offset: tuple[float, float, float] = (0, 0, 0),
) -> dict[int, Mesh]:
    """Return id -> the surface of the neuron, as `neuron_mesh` makes it."""
    return {int(i): neuron_mesh(labels, i, voxel_size, max_triangles, offset) for i in ids}


def mesh_bytes(mesh: Mesh) -> bytes:
    """Return a surface as neuroglancer reads it: the number of vertices, the vertices, the triangles; little-endian."""
    return np.array(len(mesh.vertices), "<u4").tobytes() + b"".join(
        array.astype(kind).tobytes() for array, kind in zip(mesh, ("<f4", "<u4"), strict=True)
    )
