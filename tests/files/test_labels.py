"""Labels on the grid of raw, and their many spellings of unknown."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest
import tifffile
from helpers.volume_files import SIZE, grey, hdf5, neurons, ome_image, ome_zarr, sections, turn
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fgnet_lib.files.formats import read_raw, read_volume, write_volume
from fgnet_lib.files.labels import parse_unknown
from fgnet_lib.volumes import IGNORE, Region

RAW, LABELS = "volumes/raw", "volumes/labels/neuron_ids"


def cremi(path, labels, label_attributes, raw=None, **raw_attributes):
    raw = grey() if raw is None else raw
    return hdf5(
        path, {RAW: raw, LABELS: labels}, raw={"resolution": SIZE, **raw_attributes}, neuron_ids=label_attributes
    )


# --- grids -----------------------------------------------------------------------------------------------------------


@given(
    factor=st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4)),
    corner=st.tuples(st.integers(0, 3), st.integers(0, 5), st.integers(0, 5)),
    start=st.tuples(*[st.integers(0, 9)] * 3),
    data=st.data(),
)
@settings(max_examples=20)
def test_labels_of_larger_voxels_are_repeated_where_they_lie(tmp_path_factory, factor, corner, start, data):
    raw, coarse = grey((9, 20, 22)), neurons((3, 4, 5))
    fits = np.add(corner, np.multiply(factor, coarse.shape)) <= raw.shape
    assume(fits.all() and any(corner))  # without an offset, labels have to reach the far side
    path = tmp_path_factory.mktemp("grid") / "a.h5"
    origin = np.multiply(start, SIZE)
    offset = origin + np.multiply(corner, SIZE)
    cremi(path, coarse, {"resolution": np.multiply(SIZE, factor), "offset": offset}, raw, offset=origin)
    expected = np.full(raw.shape, IGNORE)
    fine = coarse.repeat(factor[0], 0).repeat(factor[1], 1).repeat(factor[2], 2)
    box = Region.at(corner, fine.shape)
    expected[box] = fine
    volume = read_volume(path)
    np.testing.assert_array_equal(volume.load().labels, expected)
    first = [data.draw(st.integers(0, n - 1)) for n in raw.shape]
    crop = Region.at(first, [data.draw(st.integers(1, n - a)) for n, a in zip(raw.shape, first, strict=True)])
    np.testing.assert_array_equal(volume[crop].labels, expected[crop])


def test_the_last_coarse_voxel_may_stick_out(tmp_path):
    coarse = neurons((6, 10, 14))
    volume = read_volume(cremi(tmp_path / "a.h5", coarse, {"resolution": (40, 16, 16)}, grey((6, 19, 27))))
    np.testing.assert_array_equal(volume.load().labels, coarse.repeat(2, 1).repeat(2, 2)[:, :19, :27])


@pytest.mark.parametrize(
    "attributes",
    [
        {"resolution": (80, 16, 16)},  # twice the extent of raw
        {"resolution": (40, 4, 4)},  # finer
        {"resolution": (40, 12, 12)},  # no whole factor
        {"resolution": SIZE, "offset": (0, 0, 3)},  # between two voxels
        {"resolution": SIZE, "offset": (40, 0, 0)},  # beyond the end
        {"offset": (0, -8, 0)},
        {"translation": (40, 0, 0)},
        {"offset_um": (0, 0.008, 0)},
    ],
)
def test_labels_of_the_shape_of_raw_on_another_grid_are_refused(tmp_path, attributes):
    with pytest.raises(ValueError, match=r"labels of shape \(6, 20, 28\).*do not fit raw"):
        read_volume(cremi(tmp_path / "a.h5", neurons(), attributes))


@pytest.mark.parametrize(
    "attributes",
    [{}, {"resolution": SIZE}, {"resolution": (0.04, 0.008, 0.008), "units": "um"}, {"resolution": (40.0001, 8, 8)}],
)
def test_labels_on_the_grid_of_raw_are_as_they_are(tmp_path, attributes):
    volume = read_volume(cremi(tmp_path / "a.h5", neurons(), attributes))
    np.testing.assert_array_equal(volume.load().labels, neurons())


def test_the_voxel_size_that_you_give_does_not_move_labels_that_share_the_mistake_of_raw(tmp_path):
    wrong = {"resolution": (8, 8, 8)}
    path = cremi(tmp_path / "a.h5", neurons((4, 20, 28)), {**wrong, "offset": (8, 0, 0)}, **wrong)
    volume = read_volume(path, voxel_size="40 8 8")
    assert volume.voxel_size == SIZE
    np.testing.assert_array_equal(volume.load().labels[1:5], neurons((4, 20, 28)))
    unreadable = cremi(tmp_path / "b.h5", neurons(), {"resolution": "?"}, resolution="?")
    np.testing.assert_array_equal(read_volume(unreadable, voxel_size=SIZE).load().labels, neurons())
    right = cremi(tmp_path / "c.h5", neurons(), {"resolution": SIZE}, resolution=(8, 8, 8))
    np.testing.assert_array_equal(read_volume(right, voxel_size=SIZE).load().labels, neurons())


@pytest.mark.parametrize("shift", [(0, 0, 0), (0, 4, 4)])  # corners, as many write it, or centres, as OME-Zarr wants it
def test_ome_zarr_labels_of_a_coarser_level(tmp_path, shift):
    coarse = neurons((6, 10, 14))
    raw = ome_zarr(tmp_path / "raw.zarr", grey(), ome_image("0.4", "zyx", SIZE, (0, 0, 0), "nanometer"))
    image = ome_image("0.5", "xyz", (16, 16, 40), shift[::-1], "nanometer")
    labels = ome_zarr(tmp_path / "labels.zarr", turn(coarse, "xyz"), image, "0.5")
    volume = read_volume(raw, labels_path=labels)
    np.testing.assert_array_equal(volume.load().labels, coarse.repeat(2, 1).repeat(2, 2))


@pytest.mark.parametrize(("centred", "first"), [(True, 1), (False, 2)])
def test_an_offset_that_may_be_a_corner_or_a_centre_is_what_the_format_of_the_labels_says(tmp_path, centred, first):
    coarse, size, offset = neurons((6, 6, 8)), (40, 24, 24), (0, 16, 16)
    raw = ome_zarr(tmp_path / "raw.zarr", grey(), ome_image("0.4", "zyx", SIZE, (0, 0, 0), "nanometer"))
    if centred:
        labels = ome_zarr(tmp_path / "labels.zarr", coarse, ome_image("0.4", "zyx", size, offset, "nanometer"))
    else:
        labels = hdf5(tmp_path / "labels.h5", {LABELS: coarse}, neuron_ids={"resolution": size, "offset": offset})
    expected = np.full(grey().shape, IGNORE)
    expected[:, first : first + 18, first : first + 24] = coarse.repeat(3, 1).repeat(3, 2)
    np.testing.assert_array_equal(read_volume(raw, labels_path=labels).load().labels, expected)


def test_labels_have_their_own_axes_or_share_yours(tmp_path):
    raw = hdf5(tmp_path / "raw.h5", {"raw": turn(grey(), "xyz"), "ids": turn(neurons(), "xyz")})
    volume = read_volume(raw, labels_key="ids", voxel_size=SIZE, axes="xyz")
    np.testing.assert_array_equal(volume.load().labels, neurons())
    named = hdf5(tmp_path / "b.h5", {"ids": turn(neurons(), "yxz")}, ids={"axis_names": list("yxz")})
    volume = read_volume(raw, labels_path=named, labels_key="ids", voxel_size=SIZE, axes="xyz")
    np.testing.assert_array_equal(volume.load().labels, neurons())
    two = hdf5(tmp_path / "c.h5", {"raw": np.stack([turn(grey(), "xyz")] * 2), "ids": turn(neurons(), "xyz")})
    volume = read_volume(two, labels_key="ids", voxel_size=SIZE, axes="c1xyz")
    np.testing.assert_array_equal(volume.load().labels, neurons())


@pytest.mark.parametrize("suffix", [".h5", ".zarr"])
@pytest.mark.parametrize("axes", ["zxy", "xyz", "yxz"])
def test_what_we_write_is_in_z_y_x_whatever_the_axes_of_raw_are(tmp_path, suffix, axes):
    raw = hdf5(tmp_path / "raw.h5", {"raw": turn(grey((8, 8, 8)), axes)})
    volume = read_volume(raw, voxel_size=SIZE, axes=axes).load()
    ours = write_volume(replace(volume, labels=neurons((8, 8, 8))), tmp_path / f"ours{suffix}")
    again = read_volume(raw, labels_path=ours, voxel_size=SIZE, axes=axes).load()
    np.testing.assert_array_equal(again.raw, grey((8, 8, 8)))
    np.testing.assert_array_equal(again.labels, neurons((8, 8, 8)))


def test_labels_have_one_channel_whichever_of_raw_is_chosen(tmp_path):
    image = ome_image("0.4", "czyx", (1, *SIZE), (0, 0, 0, 0), "nanometer")
    raw = ome_zarr(tmp_path / "raw.zarr", np.stack([grey(), grey(seed=5)]), image)
    labels = ome_zarr(tmp_path / "labels.zarr", neurons()[None], image)
    volume = read_volume(raw, labels_path=labels, axes="c1zyx").load()
    np.testing.assert_array_equal(volume.raw, grey(seed=5))
    np.testing.assert_array_equal(volume.labels, neurons())


def test_axes_decide_for_labels_whose_file_names_them_otherwise(tmp_path):
    raw = hdf5(tmp_path / "raw.h5", {"raw": grey((3, 20, 28))})
    stack = neurons((3, 20, 28)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "frames.tif", stack, imagej=True, metadata={"axes": "TYX"})
    tifffile.imwrite(tmp_path / "colours.tif", stack, photometric="rgb", planarconfig="separate")
    for name in ("frames.tif", "colours.tif"):
        with pytest.raises(ValueError, match=rf"{name}.*AXES"):
            read_volume(raw, labels_path=tmp_path / name, voxel_size=SIZE)
        volume = read_volume(raw, labels_path=tmp_path / name, voxel_size=SIZE, axes="zyx")
        np.testing.assert_array_equal(volume.load().labels, stack)


def test_labels_made_from_a_coarser_level_lie_on_the_finest(tmp_path):
    image = ome_image("0.4", "zyx", (40, 16, 16), (0, 4, 4), "nanometer")  # the centre of its first voxel
    coarse = read_volume(ome_zarr(tmp_path / "level.zarr", grey((6, 10, 14)), image)).load()
    labels = write_volume(replace(coarse, labels=neurons((6, 10, 14))), tmp_path / "labels.h5")
    raw = ome_zarr(tmp_path / "raw.zarr", grey(), ome_image("0.4", "zyx", SIZE, (0, 0, 0), "nanometer"))
    volume = read_volume(raw, labels_path=labels)
    np.testing.assert_array_equal(volume.load().labels, neurons((6, 10, 14)).repeat(2, 1).repeat(2, 2))


def test_raw_alone_is_read_whatever_the_labels_are(tmp_path):
    path = cremi(tmp_path / "a.h5", neurons((3, 4, 5)).astype(np.int64), {})
    with pytest.raises(ValueError, match="labels are int64, not uint32 or uint64; give UNKNOWN, as in -1"):
        read_volume(path)
    np.testing.assert_array_equal(read_raw(path).load().raw, grey())


def test_an_error_about_labels_names_their_file(tmp_path):
    raw, labels = hdf5(tmp_path / "raw.h5", {"raw": grey()}), hdf5(tmp_path / "b.h5", {"ids": neurons() / 2})
    with pytest.raises(ValueError, match=r"b\.h5: labels are float64"):
        read_volume(raw, labels_path=labels, labels_key="ids", voxel_size=SIZE)


@pytest.mark.parametrize(("shape", "warned"), [((8, 8, 8), True), ((6, 20, 28), False)])
def test_labels_without_names_beside_raw_in_another_order_are_mentioned(tmp_path, shape, warned):
    raw, labels = grey(shape), neurons(shape)
    named = {"axis_names": list("xyz"), "resolution": [8, 8, 40]}
    path = hdf5(tmp_path / "a.h5", {"raw": turn(raw, "xyz")}, raw=named)
    tifffile.imwrite(tmp_path / "labels.tif", labels.astype(np.uint16), photometric="minisblack")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        volume = read_volume(path, labels_path=tmp_path / "labels.tif")
    np.testing.assert_array_equal(volume.load().labels, labels)
    assert [("labels name no axes" in str(w.message), "AXES = 'xyz'" in str(w.message)) for w in caught] == (
        [(True, True)] if warned else []
    )
    both = hdf5(tmp_path / "b.h5", {RAW: turn(raw, "xyz"), LABELS: turn(labels, "xyz")}, raw=named)
    np.testing.assert_array_equal(read_volume(both, axes="xyz").load().labels, labels)


@pytest.mark.parametrize(("numbers", "warned"), [(range(6), False), (range(1, 7), True)])
def test_sections_of_labels_with_other_numbers_than_raw_are_mentioned(tmp_path, numbers, warned):
    sections(tmp_path / "raw", grey(), "raw{z:03}.tif")
    sections(tmp_path / "labels", neurons().astype(np.uint16), "label{z}.tif", numbers)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        volume = read_volume(tmp_path / "raw", labels_path=tmp_path / "labels", voxel_size=SIZE)
    np.testing.assert_array_equal(volume.load().labels, neurons())
    message = "labels: labels of section 1 are taken for section 0 of raw"
    assert [message in str(w.message) for w in caught] == [True] * warned


def test_the_first_number_of_a_name_is_that_of_its_section(tmp_path):
    for z in range(6):
        sections(tmp_path / "raw", grey()[z : z + 1], f"z{z}_at{1200 + 7 * z}.tif")
    sections(tmp_path / "labels", neurons().astype(np.uint16), "label{z}.tif")
    with pytest.warns(UserWarning) as warned:
        read_volume(tmp_path / "raw", labels_path=tmp_path / "labels", voxel_size=SIZE)
    assert not any("are taken for section" in str(warning.message) for warning in warned)


# --- unknown ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "ids"),
    [
        ("", ()),
        (None, ()),
        (-1, (-1,)),
        ("-1", (-1,)),
        (4294967295, (2**32 - 1,)),
        ("2^32-1", (2**32 - 1,)),
        ("2**64-1", (2**64 - 1,)),
        ("0, -1", (0, -1)),
        ([0, 7], (0, 7)),
        ("7.0", (7,)),
        ("[3, 4]", (3, 4)),
    ],
)
def test_unknown_is_read_in_every_form(given, ids):
    assert parse_unknown(given) == ids


def test_an_unknown_that_is_no_id_is_refused():
    with pytest.raises(ValueError, match="UNKNOWN is 'none of it'"):
        parse_unknown("none of it")


@pytest.mark.parametrize(
    ("dtype", "value", "given"),
    [
        ("int64", -1, -1),
        ("int32", -1, "-1"),
        ("uint32", 2**32 - 1, -1),
        ("uint32", 2**32 - 1, 2**32 - 1),
        ("uint16", 2**16 - 1, -1),
        ("uint64", 2**32 - 1, "2^32-1"),
        ("uint64", 2**64 - 1, -1),
        ("uint8", 255, 255),
        ("int16", 9999, 9999),
        (">u2", 5, 5),
    ],
)
def test_the_unknown_that_you_give_is_ignored(tmp_path, dtype, value, given):
    labels = neurons().astype(np.int64) % 100 + 6
    expected = np.where(grey(seed=3) > 99, labels.astype(np.uint64), IGNORE)
    labels = np.where(grey(seed=3) > 99, labels.astype(dtype), np.array(value).astype(dtype))
    path = cremi(tmp_path / "a.h5", labels.astype(dtype), {})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(read_volume(path, unknown=given).load().labels, expected)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "uint64"])
def test_all_bits_of_a_type_are_mentioned(tmp_path, dtype):
    value = min(int(np.iinfo(dtype).max), 2**32 - 1)
    labels = np.where(grey(seed=3) > 99, neurons(), np.uint64(value)).astype(dtype)
    volume = read_volume(cremi(tmp_path / "a.h5", labels, {}))
    with pytest.warns(UserWarning, match=f"some labels are {value}.*UNKNOWN = {value}"):
        volume.load()


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        *(("uint64", 2**64 - 2), ("uint64", 2**64 - 3), ("uint64", 2**63 - 1), ("uint32", 2**32 - 2)),
        *(("uint32", 2**31 - 1), ("uint64", 2**32 - 2), ("uint64", 2**32 - 3), ("uint64", 2**31 - 1)),
    ],
)
def test_other_ends_of_a_type_are_mentioned_those_of_32_bits_also_in_64(tmp_path, dtype, value):
    labels = np.where(grey(seed=3) > 99, neurons(), np.uint64(value)).astype(dtype)
    with pytest.warns(UserWarning, match=f"some labels are {value}, .*UNKNOWN = {value}"):
        read_volume(cremi(tmp_path / "a.h5", labels, {})).load()


def test_ids_below_0_that_are_not_given_as_unknown_are_refused(tmp_path):
    labels = neurons().astype(np.int64)
    labels[0, 0, 0] = -5
    path = cremi(tmp_path / "a.h5", labels, {})
    with pytest.raises(ValueError, match="int64"):
        read_volume(path)
    with pytest.raises(ValueError, match="holds the id -5, which is below 0"):
        read_volume(path, unknown=-1).load()


def test_labels_of_a_tiff_in_any_byte_order(tmp_path):
    tifffile.imwrite(tmp_path / "raw.tif", grey(), photometric="minisblack")
    for dtype in (">u2", ">u4"):
        tifffile.imwrite(tmp_path / "b.tif", neurons().astype(dtype), byteorder=">", photometric="minisblack")
        volume = read_volume(tmp_path / "raw.tif", labels_path=tmp_path / "b.tif", voxel_size=SIZE)
        assert volume.labels.dtype == np.uint32
        np.testing.assert_array_equal(volume.load().labels, neurons())
