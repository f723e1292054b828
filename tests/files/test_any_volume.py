"""A volume in any format, order of axes and unit reads as the same volume."""

from __future__ import annotations

import warnings

import h5py
import numpy as np
import pytest
import tifffile
import zarr
from helpers.volume_files import grey, hdf5, imagej, ome_image, ome_tiff, ome_zarr, plain_zarr, turn
from hypothesis import given, settings
from hypothesis import strategies as st

from fgnet_lib.files.formats import read_volume
from fgnet_lib.files.lengths import NM_PER_UNIT
from fgnet_lib.volumes import Region

SPELLINGS = {  # unit -> nm, as people write it
    "nm": 1.0,
    "nanometer": 1.0,
    "Nanometers": 1.0,
    "um": 1e3,
    "µm": 1e3,  # the micro sign
    "μm": 1e3,  # the Greek letter
    "micron": 1e3,
    "micrometre": 1e3,
    "angstrom": 0.1,
    "Å": 0.1,
    "mm": 1e6,
    "meter": 1e9,
}
ORDERS = ["zyx", "xyz", "yxz", "czyx", "tczyx", "cxyz", "xyzc", "zcyx"]


def along(axes, values):
    """Values along z, y, x in the order of `axes`, 1 for the others."""
    return [dict(zip("zyx", values, strict=True)).get(axis, 1.0) for axis in axes]


def in_space(axes, values):
    return [value for axis, value in zip(axes, along(axes, values), strict=True) if axis in "zyx"]


def write_ome(version):
    def write(folder, raw, axes, size, start, unit):
        image = ome_image(version, axes, along(axes, size), along(axes, start), unit)
        return ome_zarr(folder / "a.zarr", turn(raw, axes), image, version)

    return write


def write_hdf5(folder, raw, axes, size, start, unit):
    attributes = {"resolution": in_space(axes, size), "offset": in_space(axes, start), "units": [unit] * 3}
    return hdf5(folder / "a.h5", {"raw": turn(raw, axes)}, raw={**attributes, "axis_names": list(axes)})


def write_labelled_hdf5(folder, raw, axes, size, start, unit):
    attributes = {"voxel_size": in_space(axes, size), "offset": in_space(axes, start), "unit": unit}
    path = hdf5(folder / "a.h5", {"raw": turn(raw, axes)}, raw=attributes)
    with h5py.File(path, "r+") as file:
        for dim, axis in zip(file["raw"].dims, axes, strict=True):
            dim.label = axis
    return path


def write_zarr(version, attribute):
    def write(folder, raw, axes, size, start, unit):
        attributes = {"voxel_size": in_space(axes, size), "offset": in_space(axes, start), "units": [unit] * 3}
        return plain_zarr(
            folder / "a.zarr", turn(raw, axes), "raw", version, attributes={**attributes, attribute: list(axes)}
        )

    return write


def write_named_zarr(folder, raw, axes, size, start, unit):
    attributes = {"resolution": in_space(axes, size), "offset": in_space(axes, start), "units": unit}
    names = list(axes)
    return plain_zarr(folder / "a.zarr", turn(raw, axes), "raw", 3, attributes=attributes, dimension_names=names)


def write_cellmap(folder, raw, axes, size, start, unit):
    transform = {
        "axes": list(axes),
        "scale": along(axes, size),
        "translate": along(axes, start),
        "units": [unit] * len(axes),
    }
    return plain_zarr(folder / "a.zarr", turn(raw, axes), "raw", 2, attributes={"transform": transform})


WRITERS = {
    "OME-Zarr 0.4": write_ome("0.4"),
    "OME-Zarr 0.5": write_ome("0.5"),
    "OME-Zarr 0.6": write_ome("0.6"),
    "HDF5 by attributes": write_hdf5,
    "HDF5 by dimension labels": write_labelled_hdf5,
    "Zarr 2 of funlib": write_zarr(2, "axis_names"),
    "Zarr 3 of funlib": write_zarr(3, "axis_names"),
    "Zarr 2 of xarray": write_zarr(2, "_ARRAY_DIMENSIONS"),
    "Zarr 3 with dimension names": write_named_zarr,
    "Zarr of CellMap": write_cellmap,
}


@pytest.mark.slow
@pytest.mark.parametrize("writer", WRITERS)
@settings(max_examples=12)
@given(
    axes=st.sampled_from(ORDERS),
    unit=st.sampled_from(list(SPELLINGS)),
    size=st.tuples(*[st.sampled_from([0.5, 4.0, 8.0, 30.0, 40.0, 1000.0])] * 3),
    corner=st.tuples(*[st.integers(0, 50)] * 3),
    data=st.data(),
)
def test_every_order_of_axes_and_unit_reads_as_the_same_volume(
    tmp_path_factory, writer, axes, unit, size, corner, data
):
    raw, nm = grey((3, 5, 7)), SPELLINGS[unit]
    start = tuple(number * length for number, length in zip(corner, size, strict=True))
    folder = tmp_path_factory.mktemp("volume")
    path = WRITERS[writer](folder, raw, axes, np.divide(size, nm), np.divide(start, nm), unit)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        volume = read_volume(path)
    dropped = [axis for axis in axes if axis not in "zyx"]
    assert [axis for axis in dropped if any(f"axis {axis} of length 1" in str(w.message) for w in caught)] == dropped
    assert volume.voxel_size == pytest.approx(size) and volume.offset == pytest.approx(start)
    np.testing.assert_array_equal(volume.load().raw, raw)
    first = [data.draw(st.integers(0, n - 1)) for n in raw.shape]
    box = Region.at(first, [data.draw(st.integers(1, n - a)) for n, a in zip(raw.shape, first, strict=True)])
    np.testing.assert_array_equal(volume[box].raw, raw[box])


@pytest.mark.parametrize(("unit", "nm"), [("um", 1e3), ("nm", 1.0), ("micron", 1e3), ("\\u00B5m", 1e3), ("mm", 1e6)])
def test_imagej_tells_its_axes_and_its_voxel_size(tmp_path, unit, nm):
    volume = read_volume(imagej(tmp_path / "a.tif", grey(), unit=unit, nm=nm))
    assert volume.voxel_size == pytest.approx((40, 8, 8), rel=1e-4)
    np.testing.assert_array_equal(volume.load().raw, grey())


@pytest.mark.parametrize(("unit", "nm"), [("nm", 1.0), ("µm", 1e3), ("Å", 0.1), ("mm", 1e6)])
def test_ome_tiff_tells_its_axes_and_its_voxel_size(tmp_path, unit, nm):
    volume = read_volume(ome_tiff(tmp_path / "a.ome.tif", grey(), unit=unit, nm=nm))
    assert volume.voxel_size == pytest.approx((40, 8, 8))
    np.testing.assert_array_equal(volume.load().raw, grey())


def test_an_ome_tiff_that_names_no_unit_means_micrometres(tmp_path):
    lengths = {f"PhysicalSize{axis}": nm / 1000 for axis, nm in zip("ZYX", (40, 8, 8), strict=True)}
    tifffile.imwrite(tmp_path / "a.ome.tif", grey(), photometric="minisblack", metadata={"axes": "ZYX", **lengths})
    assert "Unit" not in tifffile.TiffFile(tmp_path / "a.ome.tif").ome_metadata
    assert read_volume(tmp_path / "a.ome.tif").voxel_size == pytest.approx((40, 8, 8))


@pytest.mark.parametrize(
    ("units", "size"),
    [({"unit": "um", "zunit": "nm"}, (40, 8, 8)), ({}, None), ({"unit": "pixel", "zunit": "nm"}, None)],
)
def test_imagej_names_a_unit_for_all_axes_or_for_each(tmp_path, units, size):
    metadata = {"axes": "ZYX", "spacing": 40, **units}
    tifffile.imwrite(tmp_path / "a.tif", grey(), imagej=True, resolution=(125, 125), metadata=metadata)
    if size is None:
        with pytest.raises(ValueError, match="no voxel size"):
            read_volume(tmp_path / "a.tif")
    else:
        assert read_volume(tmp_path / "a.tif").voxel_size == pytest.approx(size)


@settings(max_examples=20)
@given(
    axes=st.sampled_from(["zyx", "czyx", "zcyx", "tczyx", "tzyx"]),
    unit=st.sampled_from(["nm", "µm", "Å", "mm"]),
    size=st.tuples(*[st.sampled_from([0.5, 4.0, 8.0, 30.0, 40.0, 1000.0])] * 3),
)
def test_every_order_that_ome_tiff_allows_reads_as_the_same_volume(tmp_path_factory, axes, unit, size):
    """OME-TIFF keeps y and x last; the other axes come in any order."""
    path = tmp_path_factory.mktemp("volume") / "a.ome.tif"
    ome_tiff(path, turn(grey(), axes), axes.upper(), unit, SPELLINGS[unit], size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the axes of length 1 are named; the property above has that
        volume = read_volume(path)
    assert volume.voxel_size == pytest.approx(size)
    np.testing.assert_array_equal(volume.load().raw, grey())


@settings(max_examples=20)
@given(
    axes=st.sampled_from(["zyx", "tzyx", "zcyx", "tzcyx"]),
    unit=st.sampled_from(["nm", "um", "micron", "mm"]),
    size=st.tuples(st.sampled_from([0.5, 4.0, 30.0, 1000.0]), st.sampled_from([4.0, 8.0]), st.sampled_from([4.0, 8.0])),
)
def test_every_order_that_imagej_allows_reads_as_the_same_volume(tmp_path_factory, axes, unit, size):
    """ImageJ keeps the order t, z, c, y, x, and resolutions as fractions of whole numbers."""
    path = imagej(
        tmp_path_factory.mktemp("volume") / "a.tif", turn(grey(), axes), axes.upper(), unit, SPELLINGS[unit], size
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        volume = read_volume(path)
    assert volume.voxel_size == pytest.approx(size, rel=1e-4)
    np.testing.assert_array_equal(volume.load().raw, grey())


def test_every_unit_has_a_length():
    assert (
        all(nm > 0 for nm in NM_PER_UNIT.values())
        and SPELLINGS.keys() - {"µm", "Å", "Nanometers"} <= NM_PER_UNIT.keys()
    )


@pytest.mark.parametrize("version", ["0.1", "0.2"])
def test_early_ome_zarr_is_t_c_z_y_x(tmp_path, version):
    path = ome_zarr(tmp_path / "a.zarr", grey()[None, None], {"datasets": [{"path": "0"}]}, version)
    with pytest.raises(ValueError, match="no voxel size.*no scale"):
        read_volume(path)
    np.testing.assert_array_equal(read_volume(path, voxel_size="40 8 8").load().raw, grey())


def test_ome_zarr_0_3_names_its_axes_without_more(tmp_path):
    image = {"axes": ["x", "y", "z"], "datasets": [{"path": "0"}]}
    path = ome_zarr(tmp_path / "a.zarr", turn(grey(), "xyz"), image, "0.3")
    np.testing.assert_array_equal(read_volume(path, voxel_size=(40, 8, 8)).load().raw, grey())


def test_a_level_has_its_own_voxel_size_and_its_image_has_the_axes(tmp_path):
    image = ome_image("0.4", "xyz", (8, 8, 40), (0, 0, 0), "nanometer")
    steps = [{"type": "scale", "scale": [16, 16, 40]}, {"type": "translation", "translation": [4, 4, 0]}]
    image["datasets"].append({"path": "1", "coordinateTransformations": steps})
    path = ome_zarr(tmp_path / "a.zarr", turn(grey(), "xyz"), image)
    coarse = grey()[:, ::2, ::2]
    zarr.open_group(path).create_array("1", data=turn(coarse, "xyz"))
    for source, key in ((path, "1"), (path, 1), (path / "1", None)):
        volume = read_volume(source, key)
        assert volume.voxel_size == (40, 16, 16) and volume.offset == (0, 4, 4)
        np.testing.assert_array_equal(volume.load().raw, coarse)
    assert read_volume(path, 0).voxel_size == (40, 8, 8)  # 0 is a name, too


def test_levels_in_the_wrong_order_do_not_cost_resolution(tmp_path):
    image = ome_image("0.4", "zyx", (40, 8, 8), (0, 0, 0), "nanometer")
    image["datasets"].insert(0, {"path": "1", "coordinateTransformations": [{"type": "scale", "scale": [40, 16, 16]}]})
    path = ome_zarr(tmp_path / "a.zarr", grey(), image)
    zarr.open_group(path).create_array("1", data=grey()[:, ::2, ::2])
    assert read_volume(path).shape == grey().shape and read_volume(path).voxel_size == (40, 8, 8)


def test_images_in_the_layout_of_bioformats2raw_go_by_number(tmp_path):
    zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=2).attrs["bioformats2raw.layout"] = 3
    for name in ("0", "1"):
        image = ome_image("0.4", "zyx", (40, 8, 8), (0, 0, 0), "nanometer")
        ome_zarr(tmp_path / "a.zarr" / name, grey(seed=int(name)), image)
        if name == "0":
            np.testing.assert_array_equal(read_volume(tmp_path / "a.zarr").load().raw, grey(seed=0))
    with pytest.raises(ValueError, match="holds 2 images, 0, 1; RAW_KEY"):
        read_volume(tmp_path / "a.zarr")
    np.testing.assert_array_equal(read_volume(tmp_path / "a.zarr", 1).load().raw, grey(seed=1))


def test_a_folder_inside_of_an_image_is_what_the_image_says(tmp_path):
    image = ome_image("0.4", "xyz", (8, 8, 40), (0, 0, 0), "nanometer")
    image["datasets"][0]["path"] = "scale0/image"
    path = ome_zarr(tmp_path / "a.zarr", turn(grey(), "xyz"), image)
    (path / "scale0").mkdir()
    (path / "scale0/.zgroup").write_text('{"zarr_format": 2}')
    (path / "0").rename(path / "scale0/image")
    for source, key in ((path, None), (path, "scale0/image"), (path / "scale0/image", None)):
        volume = read_volume(source, key)
        assert volume.voxel_size == (40, 8, 8)
        np.testing.assert_array_equal(volume.load().raw, grey())


def test_a_level_named_by_a_number_is_read(tmp_path):
    image = ome_image("0.4", "xyz", (8, 8, 40), (0, 0, 0), "nanometer")
    image["datasets"][0]["path"] = 0
    path = ome_zarr(tmp_path / "a.zarr", turn(grey(), "xyz"), image)
    for key in (None, 0, "0"):
        np.testing.assert_array_equal(read_volume(path, key).load().raw, grey())


@pytest.mark.parametrize("path_of_level", ["/0", "./0", "0/"])
def test_the_path_of_a_level_is_known_in_every_spelling(tmp_path, path_of_level):
    image = ome_image("0.4", "xyz", (8, 8, 40), (0, 0, 0), "nanometer")
    image["datasets"][0]["path"] = path_of_level
    path = ome_zarr(tmp_path / "a.zarr", turn(grey(), "xyz"), image)
    for key in (None, "0"):
        np.testing.assert_array_equal(read_volume(path, key).load().raw, grey())


def test_an_ome_block_without_an_image_does_not_hide_the_older_one(tmp_path):
    image = ome_image("0.4", "xyz", (8, 8, 40), (0, 0, 0), "nanometer")
    path = ome_zarr(tmp_path / "a.zarr", turn(grey(), "xyz"), image)
    zarr.open_group(path).attrs["ome"] = {"omero": {}}
    for key in (None, "0"):
        np.testing.assert_array_equal(read_volume(path, key).load().raw, grey())


@pytest.mark.parametrize("version", [2, 3])
def test_consolidated_metadata_that_are_out_of_date_are_not_read(tmp_path, version):
    path = plain_zarr(tmp_path / "a.zarr", grey(), version=version, attributes={"resolution": (8, 8, 8)})
    zarr.consolidate_metadata(path)
    zarr.open_array(path / "volumes/raw").attrs["resolution"] = (40, 8, 8)
    assert read_volume(path).voxel_size == (40, 8, 8)


@pytest.mark.parametrize("spacing", ["abc", None])
def test_the_voxel_size_that_you_give_is_used_before_that_of_a_tiff_is_parsed(tmp_path, spacing):
    ome = {f"PhysicalSize{axis}": spacing for axis in "ZYX"}
    stack = {"spacing": spacing, "unit": "um", "axes": "ZYX"}
    tifffile.imwrite(tmp_path / "a.tif", grey(), imagej=True, resolution=(125, 125), metadata=stack)
    tifffile.imwrite(tmp_path / "a.ome.tif", grey(), photometric="minisblack", metadata={"axes": "ZYX", **ome})
    for name in ("a.tif", "a.ome.tif"):
        with pytest.raises(ValueError, match=f"{name}.*VOXEL_SIZE"):
            read_volume(tmp_path / name)
        volume = read_volume(tmp_path / name, voxel_size="40 8 8")
        assert volume.voxel_size == (40, 8, 8) and (volume.load().raw == grey()).all()
