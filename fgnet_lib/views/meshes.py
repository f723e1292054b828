"""Surfaces of neurons for the 3D views: marching cubes in nm, simplified to a budget of triangles."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import NamedTuple

import fast_simplification
import fastremap
import numpy as np
from skimage.measure import marching_cubes

from fgnet_lib.volumes import IGNORE

_one_at_a_time = threading.Lock()  # fast_simplification keeps its mesh in a global; the viewer's server has threads


class Mesh(NamedTuple):
    """A closed surface.

    Attributes:
        vertices: float32 (n, 3), nm, z y x; voxel i of an axis reaches from i to i + 1 voxel sizes.
        triangles: int32 (m, 3), indices of vertices, wound so that normals point outwards in x, y, z.
    """

    vertices: np.ndarray
    triangles: np.ndarray


def largest_ids(labels: np.ndarray, n: int) -> list[int]:
    """The ids of the `n` largest neurons (0 and IGNORE are none), largest first."""
    # in slabs, for with sparse ids fastremap sorts a copy of what it counts
    slabs = [
        fastremap.unique(np.asarray(labels[z : z + 16]), return_counts=True) for z in range(0, labels.shape[0], 16)
    ]
    ids, slot = np.unique(np.concatenate([found for found, _ in slabs]), return_inverse=True)
    order = np.argsort(np.bincount(slot, np.concatenate([sizes for _, sizes in slabs])))[::-1]
    return [int(i) for i in ids[order] if i not in (0, int(IGNORE))][:n]


def bounding_box(mask: np.ndarray) -> tuple[slice, ...]:
    """The smallest box (z, y, x) around what is True, of which there has to be something."""
    there = [np.flatnonzero(mask.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    return tuple(slice(int(along[0]), int(along[-1]) + 1) for along in there)


def neuron_mesh(
    labels: np.ndarray,
    neuron: int,
    voxel_size: tuple[float, float, float],
    max_triangles: int = 20_000,
    offset: tuple[float, float, float] = (0, 0, 0),
) -> Mesh:
    """The surface of one neuron, closed where the volume cuts it.

    Args:
        labels: ids (z, y, x).
        neuron: its id.
        voxel_size: nm (z, y, x).
        max_triangles: simplified by edge collapse (quadric error) to about this many.
        offset: position of the first voxel in nm (z, y, x).

    Raises:
        ValueError: no voxel has this id.
    """
    mask = np.asarray(labels) == neuron
    if not mask.any():
        raise ValueError(f"there is no neuron {neuron} in these labels of shape {mask.shape}")
    box = bounding_box(mask)
    mask = np.pad(mask[box], 1)  # a rim of background closes the surface
    vertices, triangles, *_ = marching_cubes(mask.astype(np.float32), 0.5, spacing=voxel_size, allow_degenerate=False)
    first = np.array([edge.start for edge in box]) - 1 + 0.5  # the rim; marching cubes counts from voxel centres
    vertices = vertices + first * voxel_size + offset
    if len(triangles) > max_triangles:
        with _one_at_a_time:
            vertices, triangles = fast_simplification.simplify(vertices, triangles, target_count=max_triangles)
    return Mesh(vertices.astype(np.float32), triangles.astype(np.int32))


def neuron_meshes(
    labels: np.ndarray,
    voxel_size: tuple[float, float, float],
    ids: Iterable[int],
    max_triangles: int = 20_000,
    offset: tuple[float, float, float] = (0, 0, 0),
) -> dict[int, Mesh]:
    """`neuron_mesh` of each id."""
    return {int(i): neuron_mesh(labels, i, voxel_size, max_triangles, offset) for i in ids}


def mesh_bytes(mesh: Mesh) -> bytes:
    """A surface as neuroglancer reads it: number of vertices, vertices, triangles; little-endian, order as given."""
    return np.array(len(mesh.vertices), "<u4").tobytes() + b"".join(
        array.astype(kind).tobytes() for array, kind in zip(mesh, ("<f4", "<u4"), strict=True)
    )
