"""Boxes of voxels: what their arithmetic says is what arrays hold."""

from __future__ import annotations

import pickle

import h5py
import numpy as np
import pytest
import torch
import zarr
from hypothesis import given
from hypothesis import strategies as st

from fgnet_lib.volumes import FormatError, Lazy, Region, Volume

SHAPE = (7, 6, 9)
axes = [st.tuples(st.integers(0, n), st.integers(0, n)).map(sorted) for n in SHAPE]
regions = st.tuples(*axes).map(lambda edges: Region(*(slice(*edge) for edge in edges)))
margins = st.tuples(*[st.integers(0, 4)] * 3)


def mask(region: Region) -> np.ndarray:
    """The voxels of a box, marked one by one, without slicing."""
    voxels = np.indices(SHAPE).reshape(3, -1)
    inside = [(v >= s.start) & (v < s.stop) for v, s in zip(voxels, region, strict=True)]
    return np.all(inside, axis=0).reshape(SHAPE)


@given(regions)
def test_a_region_is_an_index_and_knows_its_size(region: Region) -> None:
    array = np.arange(np.prod(SHAPE)).reshape(SHAPE)
    assert array[region].shape == region.shape and array[region].size == region.voxels
    assert np.array_equal(array[region].ravel(), array[mask(region)])
    assert np.array_equal(np.stack([array] * 2)[..., *region][1], array[region])
    assert region == Region.at(region.start, region.shape) == pickle.loads(pickle.dumps(region))
    assert region.stop == tuple(a + n for a, n in zip(region.start, region.shape, strict=True))


@given(regions, regions)
def test_an_intersection_has_the_voxels_that_both_have(a: Region, b: Region) -> None:
    assert np.array_equal(mask(a.intersect(b)), mask(a) & mask(b))
    assert mask(a.intersect(b)).sum() == a.intersect(b).voxels == b.intersect(a).voxels
    assert a.intersect(Region.whole(SHAPE)) == a


@pytest.mark.slow
@given(regions, margins)
def test_a_grown_region_has_every_voxel_within_the_margin(region: Region, margin: tuple[int, int, int]) -> None:
    grown = region.grow(margin, SHAPE)
    near = [
        (v >= s.start - m) & (v < s.stop + m) for v, s, m in zip(np.indices(SHAPE), region, margin, strict=True)
    ]  # fmt: skip
    assert np.array_equal(mask(grown), np.all(near, axis=0))
    assert region.grow((0, 0, 0), SHAPE) == region
    assert region.grow(margin, region.stop) == grown.intersect(Region.at((0, 0, 0), region.stop))


@given(regions, margins)
def test_the_same_voxels_are_counted_from_where_another_region_begins(region: Region, margin) -> None:
    array = np.arange(np.prod(SHAPE)).reshape(SHAPE)
    grown = region.grow(margin, SHAPE)
    assert np.array_equal(array[grown][region.within(grown)], array[region])
    assert region.within(Region.whole(SHAPE)) == region and region.within(region) == Region.whole(region.shape)


@given(regions, st.sampled_from([0, 1, 2]))
def test_the_layer_in_front_of_a_region_touches_it(region: Region, axis: int) -> None:
    layer = region.before(axis)
    shifted = np.roll(mask(region), -1, axis) & ~mask(region)
    np.moveaxis(shifted, axis, 0)[-1] = False  # rolled in from the other end
    expected = shifted if region.voxels else np.zeros(SHAPE, bool)
    assert layer.stop[axis] == region.start[axis] and np.array_equal(mask(layer) & bool(region.voxels), expected)


@pytest.mark.parametrize("kind", ["numpy", "torch", "h5py", "zarr", "volume"])
def test_every_kind_of_array_takes_a_region_as_its_index(tmp_path, kind: str) -> None:
    array = np.arange(np.prod(SHAPE), dtype=np.uint8).reshape(SHAPE)
    region = Region.at((1, 2, 3), (4, 3, 5))
    if kind == "volume":
        crop = Volume(array, (40.0, 8.0, 8.0), offset=(400.0, 0.0, 16.0))[region]
        assert crop.offset == (440.0, 16.0, 40.0) and np.array_equal(crop.raw, array[1:5, 2:5, 3:8])
        return
    with h5py.File(tmp_path / "a.h5", "w") as file:
        held = {
            "numpy": array,
            "torch": torch.from_numpy(array),
            "h5py": file.create_dataset("raw", data=array),
            "zarr": zarr.create_array(tmp_path / "a.zarr", data=array),
        }[kind]
        assert np.array_equal(np.asarray(held[*region]), array[1:5, 2:5, 3:8])
        assert kind == "h5py" or np.array_equal(np.asarray(held[region]), array[1:5, 2:5, 3:8])
        held[*region] = 0
        assert not np.asarray(held[*region]).any() and np.asarray(held[...]).any()


def test_a_region_is_written_as_its_slices() -> None:
    assert str(Region.at((1, 2, 3), (4, 3, 5))) == f"{Region.at((1, 2, 3), (4, 3, 5))}" == "1:5, 2:5, 3:8"


def test_a_crop_larger_than_memory_is_said_to_be_too_large_and_not_damaged() -> None:
    def cut(*slices: slice) -> np.ndarray:
        raise MemoryError("Unable to allocate")

    raw, labels = (Lazy((2**10, 2**15, 2**15), dtype, cut) for dtype in (np.uint8, np.uint64))
    for volume, size in (
        (Volume(raw, (8, 8, 8), name="a.h5"), "64.0"),
        (Volume(raw, (8, 8, 8), labels, name="a.h5"), 576),
    ):
        with pytest.raises(MemoryError, match=rf"a.h5: \[0:64, .*\] takes {size}.* GiB of memory; cut a smaller crop"):
            volume[:64]


def test_what_a_file_says_and_is_not_read_reaches_you_unchanged() -> None:
    def cut(*slices: slice) -> np.ndarray:
        raise FormatError("a.h5: holds the id -2, which is below 0")

    with pytest.raises(FormatError, match="^a.h5: holds the id -2"):
        Volume(Lazy(SHAPE, np.uint8, cut), (8, 8, 8), name="a.h5").load()
