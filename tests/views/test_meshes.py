"""Meshes are where the voxels are, closed, and wound outwards."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fgnet_lib.views.meshes import largest_ids, neuron_mesh, neuron_meshes, slender_ids
from fgnet_lib.volumes import IGNORE

VOXEL = np.array([40.0, 8.0, 4.0])
SHAPE = (6, 12, 20)


def enclosed(mesh) -> float:
    """Volume inside a closed surface in nm^3, negative when it is wound inwards (divergence theorem)."""
    a, b, c = np.moveaxis(mesh.vertices[mesh.triangles][..., ::-1].astype(float), 1, 0)
    return np.einsum("ij,ij->", a, np.cross(b, c)) / 6


@st.composite
def boxes(draw) -> tuple[slice, ...]:
    edges = [sorted(draw(st.lists(st.integers(0, n), min_size=2, max_size=2, unique=True))) for n in SHAPE]
    return tuple(slice(*edge) for edge in edges)


@settings(max_examples=30)
@given(box=boxes(), offset=st.tuples(*[st.floats(-1000, 1000)] * 3))
def test_a_box_is_where_it_is(box, offset):
    labels = np.zeros(SHAPE, np.uint64)
    labels[box] = 2**60 + 1
    mesh = neuron_mesh(labels, 2**60 + 1, tuple(VOXEL), offset=offset)
    assert np.allclose(mesh.vertices.min(0), [s.start for s in box] * VOXEL + offset, atol=0.01)
    assert np.allclose(mesh.vertices.max(0), [s.stop for s in box] * VOXEL + offset, atol=0.01)


def ball() -> np.ndarray:
    z, y, x = np.ogrid[:40, :80, :160]
    return ((np.hypot(np.hypot((z - 20) * 4, (y - 40) * 2), x - 80)) < 60).astype(np.uint32)


def test_surface_is_closed_outward_and_encloses_the_voxels():
    labels = ball()
    mesh = neuron_mesh(labels, 1, (4, 2, 1), max_triangles=10**9)
    edges = np.sort(mesh.triangles[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2), axis=1)
    assert set(np.unique(edges, axis=0, return_counts=True)[1]) == {2}
    assert enclosed(mesh) == pytest.approx(labels.sum() * 8, rel=0.02)


def test_simplified_surface_keeps_its_place():
    fine, coarse = neuron_mesh(ball(), 1, (4, 2, 1), 10**9), neuron_mesh(ball(), 1, (4, 2, 1), 500)
    assert 400 <= len(coarse.triangles) <= 500 < len(fine.triangles)
    assert enclosed(coarse) == pytest.approx(enclosed(fine), rel=0.03)
    assert np.allclose(coarse.vertices.min(0), fine.vertices.min(0), atol=4)
    assert (coarse.vertices.dtype, coarse.triangles.dtype) == (np.float32, np.int32)


def test_threads_do_not_mix_meshes():
    labels = np.repeat(np.arange(1, 7, dtype=np.uint32), 16)[None, None] * ball()[:, :, 32:128]
    wanted = neuron_meshes(labels, (4, 2, 1), range(1, 7), 300)
    with ThreadPoolExecutor(6) as pool:
        meshes = list(pool.map(lambda i: neuron_mesh(labels, i, (4, 2, 1), 300), [*range(1, 7)] * 3))
    assert all(np.array_equal(mesh.vertices, wanted[1 + k % 6].vertices) for k, mesh in enumerate(meshes))


def test_largest_ids_are_neurons():
    labels = np.array([0] * 9 + [IGNORE] * 8 + [5] * 3 + [2**50] * 4 + [7], np.uint64).reshape(1, 5, 5)
    assert largest_ids(labels, 2) == [2**50, 5]
    assert largest_ids(labels, 99) == [2**50, 5, 7]
    assert largest_ids(np.zeros((1, 2, 2), np.uint32), 3) == []
    assert largest_ids(np.tile(labels, (40, 1, 1)), 2) == [2**50, 5]


def test_many_and_missing():
    labels = np.arange(8, dtype=np.uint32).reshape(2, 2, 2)
    assert list(neuron_meshes(labels, (1, 1, 1), [3, 5])) == [3, 5]
    with pytest.raises(ValueError, match="no neuron 9"):
        neuron_mesh(labels, 9, (1, 1, 1))


def test_slender_neurites_come_first_and_those_cut_by_a_side_last():
    labels = np.zeros((8, 20, 20), np.uint64)
    labels[:, 5:12, 5:12] = 1  # thick
    for z in range(8):
        labels[z, 13, 4 + z] = 2  # thin and bent: it fills least of its box
    labels[:3, 15:18, 12:18] = IGNORE
    labels[:5, 2:4, 2:18] = 3  # ends too early
    labels[:, 0, :] = 4  # cut by a side
    assert slender_ids(labels, 2) == [2, 1]
    assert slender_ids(labels, 9) == [2, 1, *(i for i in largest_ids(labels, 9) if i in (3, 4))]
