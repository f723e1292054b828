"""Affinity targets against a voxel-by-voxel reading of their definition."""

from __future__ import annotations

import itertools

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import waterz
from hypothesis import given, settings
from hypothesis import strategies as st

from fgnet_lib.affinities import OFFSETS, affinities_from_labels, affinity_mask, widen_borders
from fgnet_lib.volumes import IGNORE

small_labels = hnp.arrays(
    np.uint64,
    hnp.array_shapes(min_dims=3, max_dims=3, max_side=5),
    elements=st.sampled_from([0, 1, 2, 2**40, int(IGNORE)]),
)


def voxel_pairs(shape, distance):
    """Every (channel, voxel, predecessor) whose predecessor lies inside the volume."""
    for channel, voxel in itertools.product(range(3), np.ndindex(shape)):
        predecessor = tuple(np.add(voxel, np.multiply(distance, OFFSETS[channel])))
        if min(predecessor) >= 0:
            yield channel, voxel, predecessor


@given(small_labels, st.sampled_from([1, 2, 4, 9]))
@settings(max_examples=50)
def test_affinities_and_mask_equal_their_definition(labels, distance):
    affinities, mask = np.zeros((3, *labels.shape), np.uint8), np.zeros((3, *labels.shape), bool)
    for channel, voxel, predecessor in voxel_pairs(labels.shape, distance):
        affinities[channel][voxel] = labels[voxel] == labels[predecessor] and labels[voxel] > 0
        mask[channel][voxel] = IGNORE not in (labels[voxel], labels[predecessor])
    np.testing.assert_array_equal(affinities_from_labels(labels, distance), affinities)
    np.testing.assert_array_equal(affinity_mask(labels, distance), mask)


@given(small_labels)
@settings(max_examples=50)
def test_widened_borders_equal_their_definition(labels):
    in_plane, in_3d = labels.copy(), labels.copy()
    for z, y, x in np.ndindex(labels.shape):
        if labels[z, y, x] == IGNORE:
            continue
        near = [slice(max(i - 1, 0), i + 2) for i in (z, y, x)]
        square = labels[z, near[1], near[2]].ravel()
        cross = np.concatenate([labels[near[0], y, x], labels[z, near[1], x], labels[z, y, near[2]]])
        for around, expected in ((square, in_plane), (cross, in_3d)):
            if ((around != labels[z, y, x]) & (around != IGNORE)).any():
                expected[z, y, x] = 0
    np.testing.assert_array_equal(widen_borders(labels), in_plane)
    np.testing.assert_array_equal(widen_borders(labels, in_3d=True), in_3d)


def test_waterz_reads_our_sign_convention():
    """Two touching blocks stay two objects; with affinities to the successor waterz would cut many more."""
    labels = np.ones((8, 16, 16), np.uint64)
    labels[:, :, 8:] = 2
    affinities = affinities_from_labels(labels).astype(np.float32)
    segmentation = next(iter(waterz.agglomerate(affinities, thresholds=[0.5])))
    assert len(np.unique(segmentation[segmentation > 0])) == 2
    assert len(np.unique(segmentation[:, :, :8])) == len(np.unique(segmentation[:, :, 8:])) == 1


@pytest.mark.parametrize("labels", [np.ones((4, 4), np.uint32), np.ones((2, 4, 4), np.float32)])
@pytest.mark.parametrize("function", [affinities_from_labels, affinity_mask, widen_borders])
def test_other_than_integer_volumes_are_refused(function, labels):
    with pytest.raises(ValueError, match="integers of shape"):
        function(labels)
