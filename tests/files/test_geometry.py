from __future__ import annotations

import json
from contextlib import nullcontext

import h5py
import numpy as np
import pytest
import zarr
from helpers.volume_files import SIZE, grey, hdf5, ome_image, ome_zarr, plain_zarr, turn

from fgnet_lib.files.formats import read_volume
from fgnet_lib.files.geometry import parse_axes, parse_voxel_size
from fgnet_lib.files.lengths import nm_per, parse_lengths

# --- what a person gives ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given",
    [
        (40, 8, 8),
        [40, 8.0, 8],
        np.array([40, 8, 8]),
        "40,8,8",
        "40 8 8",
        "40, 8, 8",
        "40; 8; 8",
        "[40, 8, 8]",
        "(40, 8, 8)",
        "40x8x8",
        "40 × 8 × 8 nm",
        "40nm 8nm 8nm",
        "0.04 0.008 0.008 um",
        "0.04 µm, 8 nm, 80 Å",
        ["40", "8", "8"],
        ["40 nm", "8 nm", "8 nm"],
        '{"x": 8, "y": 8, "z": 40}',
        {"z": 40, "y": 8, "x": 8},
        "4e1 8e0 8.",
    ],
)
def test_a_voxel_size_is_read_in_every_form_that_people_and_papermill_give(tmp_path, given):
    assert parse_voxel_size(given) == pytest.approx(SIZE)
    path = hdf5(tmp_path / "a.h5", {"raw": grey()}, raw={"resolution": "far too long"})  # it is not even looked at
    assert read_volume(path, voxel_size=given).voxel_size == pytest.approx(SIZE)


@pytest.mark.parametrize("given", ["", " ", None])
def test_nothing_given_is_nothing(given):
    assert parse_voxel_size(given) is None and parse_axes(given) is None


@pytest.mark.parametrize(
    "given", ["40 8", "40,5 8,5 8,5", "large", 8, [40, 8], [[40, 8], [8, 1]], "40 8 8 parsec", "nan"]
)
def test_what_is_no_voxel_size_is_refused_with_the_form_to_give(given):
    with pytest.raises(ValueError, match="VOXEL_SIZE is .*along z, y, x"):
        parse_voxel_size(given)


def test_a_voxel_size_that_no_microscope_has_is_taken_when_given_and_mentioned():
    with pytest.warns(UserWarning, match=r"\(0.04, 0.008, 0.008\) nm.*um"):
        assert parse_voxel_size("0.04 0.008 0.008") == (0.04, 0.008, 0.008)


@pytest.mark.parametrize(
    ("given", "axes"), [("zyx", "zyx"), ("C0, X, Y, Z", "c0xyz"), (["x", "y", "z"], "xyz"), ("t1c0zyx", "t1c0zyx")]
)
def test_axes_are_read_in_every_form(given, axes):
    assert parse_axes(given) == axes


@pytest.mark.parametrize("given", ["yx", "zzyx", "zyx0", "z-y-x", "rgb"])
def test_axes_need_each_of_z_y_x_once(given):
    with pytest.raises(ValueError, match="AXES is .*'xyz'.*'c0zyx'"):
        parse_axes(given)


@pytest.mark.parametrize("text", ["40 nm x 8 nm x 8 nm", "40 nm × 8 nm × 8 nm", "40x8x8 nm/px", "40 8 8 nm/voxel"])
def test_units_are_read_between_lengths_and_per_voxel(text):
    assert parse_voxel_size(text) == (40, 8, 8)


@pytest.mark.parametrize(("unit", "nm"), [("nm/px", 1), ("um / voxel", 1e3), ("nm per pixel", 1), ("Å/pixels", 0.1)])
def test_a_length_per_pixel_is_a_length(unit, nm):
    assert nm_per(unit) == nm


@pytest.mark.parametrize("unit", ["pixel", "Pixels", "", None, "px", "voxel", b"", "arbitrary"])
def test_a_pixel_is_no_length(unit):
    assert nm_per(unit) is None and parse_lengths([1, 1, 1], unit) is None


@pytest.mark.parametrize("unit", ["um", ["um", "um", "um"], "pixel"])
def test_a_unit_that_a_text_states_comes_before_another(unit):
    assert parse_lengths("40 nm, 8 nm, 8 nm", unit) == [40, 8, 8]
    assert parse_lengths(["40 nm", 0.008, "8 nm"], "um") == [40, 8, 8]


def test_an_unknown_unit_is_refused():
    with pytest.raises(ValueError, match="'parsec' is no known unit"):
        parse_lengths([1, 1, 1], "parsec")


# --- what a file says ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "attributes",
    [
        {"resolution": [40, 8, 8]},
        {"resolution": "[40, 8, 8]"},
        {"resolution": b"40,8,8"},
        {"resolution": np.array([[40.0, 8.0, 8.0]])},
        {"resolution": np.array([b"40 nm", b"8 nm", b"8 nm"])},
        {"resolution": [0.04, 0.008, 0.008], "units": ["um"] * 3},
        {"resolution": [0.04, 8, 8], "units": ["um", "nm", "nm"]},
        {"resolution": [400, 80, 80], "unit": "angstrom"},
        {"voxel_size": [40, 8, 8], "axis_names": ["z", "y", "x"]},
        {"element_size_um": [0.04, 0.008, 0.008]},
        {"voxel_size_nm": [40, 8, 8]},
        {"voxelsize": [40, 8, 8], "axes": "zyx"},
        {"resolution": [40, 8, 8], "voxel_size": [40.0, 8.0, 8.0]},
        {"resolution": [40, 8, 8], "dims": [6, 20, 28]},  # a shape, and no names
        {"resolution": [40, 8, 8], "order": "zyx"},
        {"resolution": [40, 8, 8], "order": "C"},  # numpy's, and no names
        {"resolution": [0.04, 0.008, 0.008], "pixel_unit": "um"},
        {"voxel_size": [0.04, 0.008, 0.008], "voxelSizeUnit": "micron"},
        {"voxel_size": [0.04, 0.008, 0.008], "spatial_units": ["um"] * 3},
        {"voxel_size": [40, 8, 8], "time_unit": "s"},  # not of lengths
        {"voxel_size_mm": [4e-5, 8e-6, 8e-6]},
        {"pixel_size_microns": [0.04, 0.008, 0.008]},
    ],
)
def test_attributes_of_the_voxel_size(tmp_path, attributes):
    assert read_volume(hdf5(tmp_path / "a.h5", {"raw": grey()}, raw=attributes)).voxel_size == pytest.approx(SIZE)
    assert read_volume(
        hdf5(tmp_path / "b.h5", {"em/raw": grey()}, file=attributes), "em/raw"
    ).voxel_size == pytest.approx(SIZE)


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"resolution": 8.0}, "resolution is 8.0.*VOXEL_SIZE"),
        ({"resolution": [40, 8]}, "2 numbers for the axes z, y, x.*VOXEL_SIZE"),
        ({"resolution": "large"}, "no lengths in 'large'.*VOXEL_SIZE"),
        ({"resolution": h5py.Empty("f8")}, "not understood.*VOXEL_SIZE"),
        ({"resolution": [40, np.nan, 8]}, "not finite.*VOXEL_SIZE"),
        ({"resolution": [40, 8, 8], "units": "parsec"}, "'parsec' is no known unit.*VOXEL_SIZE"),
        ({"resolution": [40, 8, 8], "units": ["nm", "nm"]}, "2 units.*VOXEL_SIZE"),
        ({"resolution": [40, 8, 8], "voxel_size": [8, 8, 8]}, "contradicts itself.*resolution gives.*voxel_size gives"),
        (
            {"resolution": [0.04, 0.008, 0.008]},
            r"\(0.04, 0.008, 0.008\) nm.*which no electron microscope has.*VOXEL_SIZE",
        ),
        ({"resolution": [4e4, 8e3, 8e3]}, "which no electron microscope has.*VOXEL_SIZE"),
        ({"resolution": [0, 8, 8]}, "which no electron microscope has.*VOXEL_SIZE"),
        ({"resolution": [1, 1, 1], "unit": "pixel"}, "no voxel size in the file.*its attributes are: resolution, unit"),
        ({"scaling": [40, 8, 8]}, "no voxel size in the file.*its attributes are: scaling"),
        ({"axis_names": ["t", "y", "x"], "resolution": [1, 8, 8]}, "axes are t, y, x.*each of z, y, x.*AXES"),
        (
            {"axis_names": ["y", "x"], "resolution": SIZE},
            r"names the axes y, x, but the array has the shape \(6, 20, 28\)",
        ),
        ({"axis_names": ["AP", "DV", "ML"], "resolution": SIZE}, "axes are ap, dv, ml.*AXES"),
        ({"axis_names": ["z", "y", "x"], "axes": "xyz", "resolution": SIZE}, "contradicts itself about its axes.*AXES"),
        ({"axistags": "no JSON", "resolution": SIZE}, "axistags is not vigra's JSON; AXES"),
        ({"resolution": SIZE, "offset": "here"}, "offset is here.*not understood"),
        ({"resolution": SIZE, "MATLAB_class": "uint8"}, "MATLAB.*AXES = 'zxy'.*AXES = 'xyz'"),
    ],
)
def test_attributes_that_are_not_understood_are_refused_unless_you_decide(tmp_path, attributes, message):
    path = hdf5(tmp_path / "a.h5", {"raw": grey()}, raw=attributes)
    with pytest.raises(ValueError, match=f"a.h5.*{message}"):
        read_volume(path)
    volume = read_volume(path, voxel_size=SIZE, axes="zyx")
    assert volume.voxel_size == SIZE
    np.testing.assert_array_equal(volume.load().raw, grey())


def test_an_offset_that_is_not_understood_is_left_out_with_a_word_where_you_decide(tmp_path):
    path = hdf5(tmp_path / "a.h5", {"raw": grey()}, raw={"resolution": SIZE, "offset": "here"})
    with pytest.warns(UserWarning, match="offset in the file is not understood"):
        assert read_volume(path, voxel_size=SIZE).offset == (0, 0, 0)


def test_the_axes_that_you_give_win(tmp_path):
    wrong = {"axis_names": ["z", "y", "x"], "resolution": [8, 8, 40]}
    path = hdf5(tmp_path / "a.h5", {"raw": turn(grey(), "xyz")}, raw=wrong)
    volume = read_volume(path, axes="xyz")
    assert volume.voxel_size == SIZE
    np.testing.assert_array_equal(volume.load().raw, grey())


def test_a_channel_is_chosen_by_its_number(tmp_path):
    both = np.stack([grey(), grey(seed=5)])
    image = ome_image("0.4", "czyx", (1, 40, 8, 8), (0, 0, 0, 0), "nanometer")
    path = ome_zarr(tmp_path / "a.zarr", both, image)
    with pytest.raises(ValueError, match=r"axes are c, z, y, x with the shape \(2, 6, 20, 28\).*AXES.*'c0zyx'"):
        read_volume(path)
    np.testing.assert_array_equal(read_volume(path, axes="c1zyx").load().raw, both[1])
    with pytest.raises(ValueError, match="number 2 along c, which has numbers 0 to 1"):
        read_volume(path, axes="c2zyx")
    with pytest.raises(ValueError, match="AXES 'zyx' names 3 axes"):
        read_volume(path, axes="zyx")


def test_ilastik_tells_axes_and_resolutions_by_vigras_tags(tmp_path):
    keys = '{"key": "%s", "typeFlags": 2, "resolution": %g, "description": ""}'
    tags = '{"axes": [' + ", ".join(keys % pair for pair in (("x", 8), ("y", 8), ("z", 40), ("c", 0))) + "]}"
    raw = turn(grey(), "xyzc")
    path = hdf5(
        tmp_path / "a.h5", {"raw": raw}, raw={"axistags": tags, "axis_units": '{"x": "nm", "y": "nm", "z": "nm"}'}
    )
    assert read_volume(path).voxel_size == SIZE
    np.testing.assert_array_equal(read_volume(path).load().raw, grey())
    path = hdf5(tmp_path / "b.h5", {"raw": raw}, raw={"axistags": tags})
    with pytest.raises(ValueError, match="no voxel size"):
        read_volume(path)
    np.testing.assert_array_equal(read_volume(path, voxel_size=SIZE).load().raw, grey())


def test_n5_lists_its_resolution_in_x_y_z(tmp_path):
    attributes = {"pixelResolution": {"dimensions": [8, 8, 40], "unit": "nm"}}
    assert read_volume(plain_zarr(tmp_path / "a.zarr", grey(), attributes=attributes)).voxel_size == SIZE
    as_text = {name: json.dumps(table) for name, table in attributes.items()}
    assert read_volume(hdf5(tmp_path / "a.h5", {"raw": grey()}, raw=as_text)).voxel_size == SIZE
    (tmp_path / "a.n5").mkdir()
    (tmp_path / "a.n5" / "attributes.json").write_text("{}")
    with pytest.raises(ValueError, match="N5 is not read: convert it to Zarr"):
        read_volume(tmp_path / "a.n5")


def test_a_transform_may_be_a_table_or_its_json(tmp_path):
    table = {"axes": ["x", "y", "z"], "scale": [8, 8, 40], "translate": [16, 0, 40], "units": ["nm"] * 3}
    plain = plain_zarr(tmp_path / "a.zarr", turn(grey(), "xyz"), attributes={"transform": table})
    text = hdf5(tmp_path / "a.h5", {"raw": turn(grey(), "xyz")}, raw={"transform": json.dumps(table)})
    for path in (plain, text):
        volume = read_volume(path)
        assert volume.voxel_size == SIZE and volume.offset == (40, 0, 16)
        np.testing.assert_array_equal(volume.load().raw, grey())


def test_netcdf_names_dimensions_by_their_scales(tmp_path):
    path = hdf5(tmp_path / "a.h5", {"raw": turn(grey(), "xyz")}, raw={"resolution": [8, 8, 40]})
    with h5py.File(path, "r+") as file:
        for number, axis in enumerate("xyz"):
            file[axis] = np.arange(file["raw"].shape[number])
            file[axis].make_scale(axis)
            file["raw"].dims[number].attach_scale(file[axis])
    np.testing.assert_array_equal(read_volume(path).load().raw, grey())


@pytest.mark.parametrize("name", ["axis_labels", "dimension_order", "AxisOrder", "dim_names", "DIMENSIONS"])
def test_axes_are_named_by_an_attribute_of_any_usual_name(tmp_path, name):
    path = hdf5(tmp_path / "a.h5", {"raw": turn(grey(), "xyz")}, raw={"resolution": [8, 8, 40], name: "xyz"})
    np.testing.assert_array_equal(read_volume(path).load().raw, grey())


def test_an_attribute_with_numbers_of_voxels_names_no_axes(tmp_path):
    path = hdf5(tmp_path / "a.h5", {"raw": grey()}, raw={"resolution": SIZE, "dimensions": list(grey().shape)})
    np.testing.assert_array_equal(read_volume(path).load().raw, grey())


def test_names_of_axes_that_do_not_fit_the_array_are_refused_with_the_parameter_that_decides(tmp_path):
    path = hdf5(tmp_path / "a.h5", {"raw": grey()}, raw={"resolution": SIZE, "axes": "czyx"})
    with pytest.raises(ValueError, match=r"a.h5: the file names the axes c, z, y, x, but .*; AXES names the 3 axes"):
        read_volume(path)
    np.testing.assert_array_equal(read_volume(path, axes="zyx").load().raw, grey())


@pytest.mark.parametrize("name", ["order", "layout", "coordinate_order", "dataLayout"])
def test_an_attribute_order_names_the_axes(tmp_path, name):
    path = hdf5(tmp_path / "a.h5", {"raw": turn(grey(), "xyz")}, raw={name: "XYZ", "resolution": [8, 8, 40]})
    np.testing.assert_array_equal(read_volume(path).load().raw, grey())
    assert read_volume(path).voxel_size == SIZE


@pytest.mark.parametrize("open_folder", [False, True])
def test_the_groups_around_an_array_name_its_axes_and_state_its_place(tmp_path, open_folder):
    path, attributes = (
        tmp_path / "a.zarr",
        {"axis_names": ["x", "y", "z"], "resolution": [8, 8, 40], "offset": [8, 0, 0]},
    )
    plain_zarr(path, turn(grey(), "xyz"))
    zarr.open_group(path)["volumes"].attrs.update(attributes)
    volume = read_volume(path / "volumes/raw" if open_folder else path)
    assert volume.voxel_size == SIZE and volume.offset == (0, 0, 8)
    np.testing.assert_array_equal(volume.load().raw, grey())
    path = hdf5(tmp_path / "a.h5", {"em/raw": turn(grey(), "xyz"), "em/flat": grey()[0]}, file=attributes)
    np.testing.assert_array_equal(read_volume(path, "em/raw").load().raw, grey())
    with pytest.raises(ValueError, match="a volume has three axes"):  # two axes are not these three
        read_volume(path, "em/flat")


def test_the_unit_of_a_voxel_size_may_be_that_of_the_group(tmp_path):
    sized = {"resolution": [0.04, 0.008, 0.008]}
    for units in ("um", ["um"] * 3):
        path = hdf5(tmp_path / "a.h5", {"em/raw": grey()}, raw=sized, file={"units": units})
        assert read_volume(path, "em/raw").voxel_size == SIZE
    counts = hdf5(tmp_path / "b.h5", {"em/raw": grey()}, raw={"resolution": SIZE}, file={"units": "counts"})
    assert read_volume(counts, "em/raw").voxel_size == SIZE  # not of a length


def test_an_offset_may_have_a_unit_of_its_own(tmp_path):
    attributes = {"resolution": SIZE, "offset": [0.04, 0, 0], "offset_unit": "um", "units": "nm"}
    assert read_volume(hdf5(tmp_path / "a.h5", {"raw": grey()}, raw=attributes)).offset == (40, 0, 0)


def pyramid(path, names, attributes):
    """A pyramid whose group has the voxel size of its finest level."""
    levels = {names[0]: grey(), names[1]: np.ascontiguousarray(grey()[:, ::2, ::2])}
    if path.suffix == ".h5":
        return hdf5(path, levels, file={"resolution": SIZE}, **{names[1]: attributes})
    for name, level in levels.items():
        zarr.open_group(path, mode="a", zarr_format=2).create_array(name, data=level)
    group = zarr.open_group(path)
    group.attrs["resolution"] = SIZE
    group[names[1]].attrs.update(attributes)
    return path


@pytest.mark.parametrize("name", ["a.h5", "a.zarr"])
@pytest.mark.parametrize(
    ("names", "attributes"),
    [
        (("0", "1"), {}),
        (("s0", "s1"), {}),
        (("s0", "s2"), {"downsamplingFactors": [2, 2, 1]}),
        (("full", "half"), {"downsamplingFactors": [2, 2, 1]}),
    ],
)
def test_the_voxel_size_of_a_pyramid_is_that_of_its_finest_level(tmp_path, name, names, attributes):
    path = pyramid(tmp_path / name, names, attributes)
    assert read_volume(path, names[0]).voxel_size == SIZE
    with pytest.raises(ValueError, match="no voxel size.*it is a coarser level.*VOXEL_SIZE"):
        read_volume(path, names[1])
    assert read_volume(path, names[1], voxel_size="40 16 16").voxel_size == (40, 16, 16)
    assert read_volume(pyramid(tmp_path / f"own {name}", names, {"resolution": [40, 16, 16]}), names[1])


@pytest.mark.parametrize(("width", "contradicts"), [(8.004, False), (8.04, True), (8.4, True)])
def test_two_statements_may_differ_by_rounding_alone(tmp_path, width, contradicts):
    stated = {"resolution": [40, 8, 8], "voxel_size": [40, 8, width]}
    path = hdf5(tmp_path / "a.h5", {"raw": grey()}, raw=stated)
    with pytest.raises(ValueError, match="contradicts itself") if contradicts else nullcontext():
        assert read_volume(path).voxel_size == (40, 8, 8)


@pytest.mark.parametrize("width", [7.7, 8.3])
def test_slightly_uneven_voxels_are_mentioned(tmp_path, width):
    path = hdf5(tmp_path / "a.h5", {"raw": grey()}, raw={"resolution": [40, 8, width]})
    with pytest.warns(UserWarning, match="not square"):
        read_volume(path)


@pytest.mark.parametrize("given", [None, "8 8 40"])
def test_voxels_that_are_not_square_in_a_section_are_mentioned(tmp_path, given):
    path = hdf5(tmp_path / "a.h5", {"raw": grey()}, raw={"resolution": [8, 8, 40]})
    with pytest.warns(UserWarning, match=r"a.h5: voxels of \(8.0, 8.0, 40.0\) nm .* not square.*VOXEL_SIZE"):
        read_volume(path, voxel_size=given)


def test_the_names_of_the_array_and_of_its_group_may_not_contradict(tmp_path):
    path = plain_zarr(tmp_path / "a.zarr", grey(), "em/raw", 3, dimension_names=["z", "y", "x"])
    zarr.open_group(path)["em"].attrs.update(axes="xyz", resolution=SIZE)
    with pytest.raises(ValueError, match="contradicts itself about its axes.*AXES decides"):
        read_volume(path, "em/raw")


@pytest.mark.parametrize("names", ["zyx", "xyz"])
def test_a_table_of_lengths_goes_by_its_names(tmp_path, names):
    size = np.array(
        tuple(dict(zip("zyx", SIZE, strict=True))[name] for name in names), [(name, "f8") for name in names]
    )
    assert read_volume(hdf5(tmp_path / "a.h5", {"raw": grey()}, raw={"resolution": size})).voxel_size == SIZE


def test_a_table_of_lengths_with_other_names_is_refused(tmp_path):
    size = np.array(SIZE, [(name, "f8") for name in "abc"])
    path = hdf5(tmp_path / "a.h5", {"raw": grey()}, raw={"resolution": size})
    with pytest.raises(ValueError, match="resolution is .*lengths for a, b, c.*VOXEL_SIZE"):
        read_volume(path)
    assert read_volume(path, voxel_size=SIZE).voxel_size == SIZE


@pytest.mark.parametrize("shape", [(1, 20, 28, 1), (1, 1, 20, 28, 1)])
def test_one_section_with_an_axis_of_length_1_at_either_end_needs_its_axes(tmp_path, shape):
    path = hdf5(tmp_path / "a.h5", {"raw": grey((1, 20, 28)).reshape(shape)})
    with pytest.raises(ValueError, match="AXES names the axes"):
        read_volume(path, voxel_size=SIZE)
    volume = read_volume(path, voxel_size=SIZE, axes="zyxc" if len(shape) == 4 else "tzyxc")
    np.testing.assert_array_equal(volume.load().raw, grey((1, 20, 28)))


@pytest.mark.parametrize("shape", [(1, 6, 20, 28), (1, 1, 6, 20, 28), (6, 20, 28, 1), (1, 6, 20, 28, 1)])
def test_axes_of_length_1_without_a_name_are_left_out_with_a_word(tmp_path, shape):
    path = hdf5(tmp_path / "a.h5", {"raw": grey().reshape(shape)}, raw={"resolution": SIZE})
    with pytest.warns(UserWarning, match="an axis of length 1 is left out"):
        volume = read_volume(path)
    np.testing.assert_array_equal(volume.load().raw, grey())


# --- OME-Zarr --------------------------------------------------------------------------------------------------------


def described(**changes):
    return ome_image("0.4", "zyx", SIZE, (0, 0, 0), "nanometer") | changes


def steps(*transformations):
    return {"datasets": [{"path": "0", "coordinateTransformations": list(transformations)}]}


SCALE = {"type": "scale", "scale": list(SIZE)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (steps(), "no voxel size.*no scale"),
        (steps({"type": "translation", "translation": [1, 1, 1]}), "no voxel size.*no scale"),
        (steps() | {"coordinateTransformations": [SCALE]}, "no voxel size.*no scale"),  # of its levels, none its own
        (steps({"type": "scale", "path": "scale.bin"}), "transformation that is not read: scale without its numbers"),
        (steps({"type": "scale", "scale": [8, 8]}), "scale has 2 numbers for 3 axes"),
        (steps({"type": "rotation", "rotation": []}), "transformation that is not read: rotation"),
        (steps(SCALE, {"type": "affine", "affine": []}), "transformation that is not read: affine"),
        (steps("scale"), "transformation that is not read"),
        ({"axes": None}, "names no axes; AXES"),
        ({"datasets": []}, "names the levels none"),
        ({"datasets": [{"path": "9", "coordinateTransformations": [SCALE]}]}, "the levels 9.*there are: 0"),
        ({"axes": [{"name": axis, "type": "space"} for axis in "zyx"]}, "no voxel size.*no unit"),
        ({"axes": [{"name": axis, "unit": "parsec"} for axis in "zyx"]}, "'parsec' is no known unit"),
        ({"axes": [{"name": axis, "unit": "micrometer"} for axis in "tyx"]}, "axes are t, y, x.*AXES"),
    ],
)
def test_ome_zarr_that_is_not_understood_is_refused_unless_you_decide(tmp_path, changes, message):
    path = ome_zarr(tmp_path / "a.zarr", grey(), described(**changes))
    with pytest.raises(ValueError, match=f"a.zarr.*{message}"):
        read_volume(path)
    key = None if "levels" not in message else "0"
    volume = read_volume(path, key, voxel_size=SIZE, axes="zyx")
    np.testing.assert_array_equal(volume.load().raw, grey())


def test_a_transformation_that_may_turn_the_axes_leaves_them_to_you(tmp_path):
    turned = {"type": "mapAxis", "mapAxis": [2, 1, 0]}
    image = ome_image("0.6", "zyx", SIZE, (0, 0, 0), "nanometer")
    image["datasets"][0]["coordinateTransformations"][0]["transformations"].append(turned)
    path = ome_zarr(tmp_path / "a.zarr", turn(grey(), "xyz"), image, "0.6")
    with pytest.raises(ValueError, match="transformation that is not read: mapAxis; AXES names the axes"):
        read_volume(path, voxel_size=SIZE)
    np.testing.assert_array_equal(read_volume(path, voxel_size=SIZE, axes="xyz").load().raw, grey())


def test_a_transformation_of_all_levels_is_applied_last(tmp_path):
    own = steps(SCALE, {"type": "translation", "translation": [40, 0, 16]})
    both = [{"type": "scale", "scale": [2, 2, 2]}, {"type": "translation", "translation": [0, 8, 8]}]
    path = ome_zarr(tmp_path / "a.zarr", grey(), described(**own, coordinateTransformations=both))
    assert read_volume(path).voxel_size == (80, 16, 16) and read_volume(path).offset == (80, 8, 40)


def test_a_transformation_to_another_system_is_not_applied(tmp_path):
    image = ome_image("0.6", "zyx", SIZE, (40, 0, 16), "nanometer")
    image["coordinateSystems"].append({"name": "atlas", "axes": image["coordinateSystems"][0]["axes"]})
    image["coordinateTransformations"] = [{"type": "scale", "scale": [2, 2, 2], "output": {"name": "atlas"}}]
    volume = read_volume(ome_zarr(tmp_path / "a.zarr", grey(), image, "0.6"))
    assert volume.voxel_size == SIZE and volume.offset == (40, 0, 16)


def test_an_early_ome_zarr_of_three_axes_does_not_say_which(tmp_path):
    path = ome_zarr(tmp_path / "a.zarr", grey(), {"datasets": [{"path": "0"}]}, "0.1")
    with pytest.raises(ValueError, match="names no axes; AXES"):
        read_volume(path, voxel_size=SIZE)


def test_an_unknown_coordinate_system_is_refused(tmp_path):
    image = ome_image("0.6", "zyx", SIZE, (0, 0, 0), "nanometer")
    image["datasets"][0]["coordinateTransformations"][0]["output"] = {"name": "brain"}
    with pytest.raises(ValueError, match="coordinate system .brain.*AXES"):
        read_volume(ome_zarr(tmp_path / "a.zarr", grey(), image, "0.6"))
