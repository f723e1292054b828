from __future__ import annotations

import subprocess
import sys
import tracemalloc
from contextlib import nullcontext
from types import SimpleNamespace

import h5py
import jupytext
import numpy as np
import pytest
import tifffile
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from fgnet_lib import REPOSITORY
from fgnet_lib.files.formats import read_volume, write_volume
from fgnet_lib.volumes import IGNORE, Lazy, Volume, is_anisotropic

SIZE = (40.0, 8.0, 8.0)


def grey(shape=(6, 20, 24), seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def ids(shape=(6, 20, 24), dtype=np.uint64, seed=1):
    return np.random.default_rng(seed).integers(0, 200, shape).astype(dtype)


def hdf5(path, **arrays):
    """An HDF5 file; `name__attribute=value` sets an attribute of the array before it, `_` in names means `/`."""
    with h5py.File(path, "w") as file:
        for name, value in arrays.items():
            key, _, attribute = name.partition("__")
            if attribute:
                file[key.replace("_", "/")].attrs[attribute] = value
            else:
                file[key.replace("_", "/")] = value
    return path


def cremi(path, raw, labels, label_offset):
    with h5py.File(path, "w") as file:
        for key, array in (("volumes/raw", raw), ("volumes/labels/neuron_ids", labels)):
            file[key] = array
            file[key].attrs["resolution"] = SIZE
        file["volumes/labels/neuron_ids"].attrs["offset"] = label_offset
    return path


# --- the type --------------------------------------------------------------------------------------------------------


def test_a_crop_is_the_crop_of_the_arrays_and_knows_its_place():
    volume = Volume(grey(), SIZE, ids(), offset=(400, 0, 16))
    crop = volume[2:4, 5:, :-3]
    np.testing.assert_array_equal(crop.raw, volume.raw[2:4, 5:, :-3])
    np.testing.assert_array_equal(crop.labels, volume.labels[2:4, 5:, :-3])
    assert crop.offset == (480.0, 40.0, 16.0) and crop.voxel_size == SIZE and crop.shape == (2, 15, 21)


def test_a_crop_beyond_the_border_ends_there():
    assert Volume(grey(), SIZE)[4:99, :, :].shape == (2, 20, 24)


@pytest.mark.parametrize(("size", "anisotropic"), [((40, 8, 8), True), ((10, 10, 10), False), ((16, 8, 8), True)])
def test_anisotropic_is_two_to_one(size, anisotropic):
    assert is_anisotropic(size) is anisotropic


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"raw": grey().astype(np.float64)}, "float64.*uint8"),
        ({"raw": np.full((4, 4, 4), np.nan)}, "float64.*uint8"),
        ({"raw": grey().astype(np.int64)}, "int64.*uint8"),
        ({"raw": grey() > 9}, "bool.*uint8"),
        ({"raw": grey((6, 20, 24, 3))}, r"\(6, 20, 24, 3\).*colour"),
        ({"raw": grey((20, 24))}, r"\(20, 24\).*raw\[None\]"),
        ({"raw": grey((0, 20, 24))}, "empty"),
        ({"labels": ids(dtype=np.int64)}, r"int64.*astype\('uint64'\)"),
        ({"labels": ids(dtype=np.float64)}, "float64.*uint64"),
        ({"labels": ids((6, 20, 23))}, r"\(6, 20, 23\).*\(6, 20, 24\)"),
        ({"voxel_size": (40, -8, 8)}, "-8.0.*above 0"),
        ({"voxel_size": (40, 8)}, "three finite numbers"),
        ({"voxel_size": (40, 8, np.nan)}, "three finite numbers"),
        ({"offset": "here"}, "."),
    ],
)
def test_what_is_not_a_volume_is_refused_by_name(change, message):
    arguments = {"raw": grey(), "voxel_size": SIZE, "name": "mine.h5"} | change
    with pytest.raises(ValueError, match=message):
        Volume(**arguments)


def test_errors_name_the_volume():
    with pytest.raises(ValueError, match="^mine.h5:"):
        Volume(grey().astype(float), SIZE, name="mine.h5")


def test_an_empty_crop_and_a_step_are_refused():
    volume = Volume(grey(), SIZE)
    with pytest.raises(ValueError, match="empty"):
        volume[3:3, :, :]
    with pytest.raises(TypeError, match="without a step"):
        volume[::2, :, :]


def test_sections_are_lazy_and_stay_inside(tmp_path):
    volume = read_volume(write_volume(Volume(grey(), SIZE, ids()), tmp_path / "a.h5"))
    part = volume.sections(2, 5)
    assert part.shape == (3, 20, 24) and part.offset == (80.0, 0.0, 0.0) and not isinstance(part.raw, np.ndarray)
    np.testing.assert_array_equal(part.load().raw, grey()[2:5])
    np.testing.assert_array_equal(part[1:2, :, 3:4].labels, ids()[3:4, :, 3:4])
    np.testing.assert_array_equal(part.raw[-1], grey()[4])
    np.testing.assert_array_equal(np.asarray(part.labels), ids()[2:5])
    with pytest.raises(IndexError):
        part.raw[3]
    assert volume.sections(4, 6).shape == (2, 20, 24)  # to the last
    with pytest.raises(ValueError, match="4 to 7"):
        volume.sections(4, 7)


# --- formats ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".h5", ".hdf", ".zarr"])
@pytest.mark.parametrize("dtype", [np.uint32, np.uint64])
def test_what_was_written_is_read(tmp_path, suffix, dtype):
    labels = ids(dtype=dtype)
    labels[0, 0, 0] = np.iinfo(dtype).max
    written = write_volume(Volume(grey(), SIZE, labels, offset=(120, 8, 0)), tmp_path / f"new/a{suffix}")
    volume = read_volume(written)
    assert not isinstance(volume.raw, np.ndarray) and volume.labels.dtype == dtype
    assert volume.voxel_size == SIZE and volume.offset == (120.0, 8.0, 0.0) and volume.name == f"a{suffix}"
    np.testing.assert_array_equal(volume.load().raw, grey())
    np.testing.assert_array_equal(volume.load().labels, labels)
    assert read_volume(write_volume(Volume(grey(), SIZE), written)).labels is None  # replaced as a whole


@pytest.mark.slow
@settings(max_examples=15)
@given(
    shape=st.tuples(st.integers(1, 20), st.integers(1, 150), st.integers(1, 150)),
    suffix=st.sampled_from([".h5", ".zarr"]),
    data=st.data(),
)
def test_any_crop_of_any_file_equals_the_array(tmp_path_factory, shape, suffix, data):
    folder = tmp_path_factory.mktemp("volumes")
    lazy = read_volume(write_volume(Volume(grey(shape), SIZE, ids(shape)), folder / f"a{suffix}"))
    start = [data.draw(st.integers(0, n - 1)) for n in shape]
    stop = [data.draw(st.integers(a + 1, n)) for a, n in zip(start, shape, strict=True)]
    cut = tuple(map(slice, start, stop))
    np.testing.assert_array_equal(lazy[cut].raw, grey(shape)[cut])
    np.testing.assert_array_equal(lazy[cut].labels, ids(shape)[cut])


def test_padded_cremi_labels_lie_where_their_offset_in_nm_says(tmp_path):
    path = cremi(tmp_path / "a.hdf", grey((10, 30, 30)), ids((4, 10, 12)), label_offset=(3 * 40, 5 * 8, 7 * 8))
    volume = read_volume(path)
    expected = np.full((10, 30, 30), IGNORE)
    expected[3:7, 5:15, 7:19] = ids((4, 10, 12))
    np.testing.assert_array_equal(volume.load().labels, expected)
    for cut in (np.s_[2:5, 0:9, 10:30], np.s_[0:2, :, :], np.s_[4:5, 6:7, 8:9]):
        np.testing.assert_array_equal(volume[cut].labels, expected[cut])


@pytest.mark.parametrize("offset", [(0, 0, 0), (3 * 40, 5 * 8, 25 * 8), (-40, 0, 0), (20, 0, 0)])
def test_labels_that_do_not_lie_on_the_grid_of_raw_are_refused(tmp_path, offset):
    with pytest.raises(ValueError, match="do not fit raw of shape"):
        read_volume(cremi(tmp_path / "a.hdf", grey((10, 30, 30)), ids((4, 10, 12)), offset))


def test_labels_of_another_shape_are_refused(tmp_path):
    raw = hdf5(tmp_path / "raw.h5", raw=grey())
    labels = hdf5(tmp_path / "labels.h5", ids=ids((6, 20, 23)))
    with pytest.raises(ValueError, match=r"labels.h5: labels of shape \(6, 20, 23\).*\(6, 20, 24\)"):
        read_volume(raw, labels_path=labels, labels_key="ids", voxel_size=SIZE)


def test_fib25_bodies_are_the_transforms_of_the_stack(tmp_path):
    stack = ids(dtype=np.uint32)  # supervoxels 0..199
    bodies = np.random.default_rng(2).integers(1, 2**40, 200).astype(np.uint64)
    table = np.stack([np.arange(200, dtype=np.uint64), bodies], axis=1)[::-1]
    table = table[table[:, 0] != 17]  # not listed
    raw = hdf5(tmp_path / "grayscale_maps.h5", raw=grey())
    labels = hdf5(tmp_path / "groundtruth.h5", stack=stack, transforms=table)
    expected = np.where(stack == 17, 0, bodies[stack])
    volume = read_volume(raw, labels_path=labels, voxel_size=(10, 10, 10))
    np.testing.assert_array_equal(volume.load().labels, expected)
    np.testing.assert_array_equal(volume[1:3, :, 4:5].labels, expected[1:3, :, 4:5])
    both = hdf5(tmp_path / "both.h5", raw=grey(), stack=stack, transforms=table)
    np.testing.assert_array_equal(read_volume(both, voxel_size=SIZE).load().labels, expected)


def test_plain_hdf5_by_dataset_paths(tmp_path):
    path = hdf5(tmp_path / "a.h5", em_image=grey(), em_seg=ids(), em_image__resolution=SIZE)
    volume = read_volume(path, raw_key="em/image", labels_key="em/seg")
    assert volume.voxel_size == SIZE
    np.testing.assert_array_equal(volume.load().labels, ids())
    assert read_volume(path, raw_key="em/image", voxel_size=(9, 9, 9)).voxel_size == (9.0, 9.0, 9.0)


@pytest.mark.parametrize(
    "options",
    [{}, {"compression": "zlib"}, {"compression": "lzw"}, {"imagej": True, "metadata": {"axes": "ZYX"}}],
)
def test_tiff_stack(tmp_path, options):
    tifffile.imwrite(tmp_path / "a.tif", grey(), **options)
    volume = read_volume(tmp_path / "a.tif", voxel_size=SIZE)
    np.testing.assert_array_equal(volume.load().raw, grey())
    np.testing.assert_array_equal(volume[2:4, 3:7, :].raw, grey()[2:4, 3:7])


def test_tiff_stack_of_separately_written_pages_and_16_bit_labels(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        for section in grey():
            file.write(section)
    tifffile.imwrite(tmp_path / "b.tif", ids(dtype=">u2"), byteorder=">")
    volume = read_volume(tmp_path / "a.tif", labels_path=tmp_path / "b.tif", voxel_size=SIZE)
    assert volume.labels.dtype == np.uint32
    np.testing.assert_array_equal(volume.load().raw, grey())
    np.testing.assert_array_equal(volume.load().labels, ids())


def test_a_folder_of_tiffs_is_in_natural_order(tmp_path):
    for z, section in enumerate(grey((12, 8, 8))):
        tifffile.imwrite(tmp_path / f"section_{z}.tif", section)  # section_10 sorts before section_2 as text
    np.testing.assert_array_equal(read_volume(tmp_path, voxel_size=SIZE).load().raw, grey((12, 8, 8)))


@pytest.mark.parametrize("version", [2, 3])
def test_plain_zarr(tmp_path, version):
    group = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=version)
    group.create_array("em/raw", data=grey(), chunks=(2, 8, 8)).attrs["resolution"] = SIZE
    group.create_array("em/ids", data=ids(), chunks=(2, 8, 8))
    volume = read_volume(tmp_path / "a.zarr", raw_key="em/raw", labels_key="em/ids")
    assert volume.voxel_size == SIZE
    np.testing.assert_array_equal(volume[1:5, 3:11, :].labels, ids()[1:5, 3:11])
    single = read_volume(tmp_path / "a.zarr" / "em" / "raw")  # an array without a group around it
    np.testing.assert_array_equal(single.load().raw, grey())


def ome_zarr(path, version, raw, unit="micrometer"):
    names = ("t", "c", "z", "y", "x")[-raw.ndim :]
    axes = [{"name": n, "type": "space", "unit": unit} if n in "zyx" else {"name": n, "type": "other"} for n in names]
    lead = [1.0] * (raw.ndim - 3)
    steps = [
        {"type": "scale", "scale": [*lead, 0.02, 0.004, 0.004]},
        {"type": "translation", "translation": [*(0 * x for x in lead), 0.1, 0.0, 0.008]},
    ]
    image = {
        "axes": axes if unit else [{"name": n} for n in names],
        "datasets": [{"path": "0", "coordinateTransformations": steps}],
        "coordinateTransformations": [{"type": "scale", "scale": [*lead, 2, 2, 2]}],
    }
    group = zarr.open_group(path, mode="w", zarr_format=2 if version == "0.4" else 3)
    image = {"multiscales": [image]}
    group.attrs.update(image if version == "0.4" else {"ome": {"version": version, **image}})
    group.create_array("0", data=raw, chunks=(1,) * (raw.ndim - 3) + (2, 8, 8))
    return path


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("lead", [(), (1, 1)])
def test_ome_zarr_with_its_scale_in_nm(tmp_path, version, lead):
    volume = read_volume(ome_zarr(tmp_path / "a.zarr", version, grey().reshape(*lead, *grey().shape)))
    assert volume.voxel_size == pytest.approx(SIZE) and volume.offset == pytest.approx((200, 0, 16))
    np.testing.assert_array_equal(volume.load().raw, grey())
    np.testing.assert_array_equal(volume[1:2, :, 5:6].raw, grey()[1:2, :, 5:6])


def test_ome_zarr_without_units_needs_the_voxel_size(tmp_path):
    path = ome_zarr(tmp_path / "a.zarr", "0.4", grey(), unit=None)
    with pytest.raises(ValueError, match="no voxel size.*voxel_size="):
        read_volume(path)
    assert read_volume(path, voxel_size=SIZE).voxel_size == SIZE


def test_real_fib25_opens_lazily(em_data):
    volume = read_volume(em_data / "val" / "fib25_t2_val_z144-183.h5")
    assert volume.shape == (40, 250, 250) and volume.voxel_size == (10.0, 10.0, 10.0)
    ids_there = np.unique(volume.load().labels)
    assert ids_there[0] == 0 and len(ids_there) == 1 + 125


# --- lazy ------------------------------------------------------------------------------------------------------------

HUGE = (2000, 10_000, 10_000)  # 200 GB of raw, 1.6 TB of labels; chunks never written take no space


def huge_hdf5(path):
    with h5py.File(path, "w") as file:
        for key, dtype in (("volumes/raw", np.uint8), ("volumes/labels/neuron_ids", np.uint64)):
            array = file.create_dataset(key, HUGE, dtype, chunks=(16, 128, 128))
            array.attrs["resolution"] = SIZE
            array[1600:1616, 5120:5248, 5120:5248] = 7
    return path


def huge_zarr(path):
    group = zarr.open_group(path, mode="w")
    for key, dtype in (("volumes/raw", np.uint8), ("volumes/labels/neuron_ids", np.uint64)):
        array = group.create_array(key, shape=HUGE, dtype=dtype, chunks=(16, 128, 128))
        array.attrs["resolution"] = SIZE
        array[1600:1616, 5120:5248, 5120:5248] = 7
    return path


def huge_tiff(path):
    array = tifffile.memmap(path, shape=HUGE, dtype=np.uint8, bigtiff=True)  # a sparse file
    array[1600:1616, 5120:5248, 5120:5248] = 7
    array.flush()
    return path


@pytest.mark.parametrize(("make", "name"), [(huge_hdf5, "a.h5"), (huge_zarr, "a.zarr"), (huge_tiff, "a.tif")])
def test_200_gb_open_at_once_and_only_the_crop_is_read(tmp_path, make, name):
    path = make(tmp_path / name)
    tracemalloc.start()
    volume = read_volume(path, voxel_size=SIZE)
    crop = volume[1600:1610, 5100:5200, 5120:5220]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert volume.shape == HUGE
    assert peak < 20e6  # bytes
    assert (crop.raw[:, 20:] == 7).all() and (crop.raw[:, :20] == 0).all()
    assert crop.labels is None or crop.labels.sum() == 7 * 10 * 80 * 100


def test_a_damaged_chunk_matters_only_to_crops_that_need_it(tmp_path):
    path = write_volume(Volume(grey((16, 128, 256)), SIZE), tmp_path / "a.zarr")
    chunk = next(path.rglob("c/0/0/1"))
    chunk.write_bytes(chunk.read_bytes()[:100])
    np.testing.assert_array_equal(read_volume(path)[:, :, :128].raw, grey((16, 128, 256))[:, :, :128])
    with pytest.raises(OSError, match="a.zarr: cannot read"):
        read_volume(path).load()


# --- bad files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.h5", "a.tif", "a.zarr"])
def test_a_missing_file_is_named(tmp_path, name):
    with pytest.raises(FileNotFoundError, match=name):
        read_volume(tmp_path / name)


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("name", ["a.h5", "a.tif"])
def test_a_truncated_file_is_named(tmp_path, name, keep):
    path = tmp_path / name
    raw = grey((8, 64, 64))
    tifffile.imwrite(path, raw) if name == "a.tif" else write_volume(Volume(raw, SIZE), path)
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    with pytest.raises(ValueError, match=f"{name}: cannot be read.*truncated"):
        read_volume(path, voxel_size=SIZE)


@pytest.mark.parametrize("suffix", [".h5", ".zarr"])
def test_a_wrong_dataset_path_is_answered_with_what_is_there(tmp_path, suffix):
    path = write_volume(Volume(grey(), SIZE, ids()), tmp_path / f"a{suffix}")
    for keys in ({"raw_key": "em"}, {"labels_key": "em"}):
        with pytest.raises(ValueError, match="no dataset em.*volumes/") as error:
            read_volume(path, **keys)
        assert "volumes/raw" in str(error.value) and "volumes/labels/neuron_ids" in str(error.value)
    with pytest.raises(ValueError, match="volumes is a group.*raw"):
        read_volume(path, raw_key="volumes")


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (grey().astype(np.float64), "float64"),
        (np.full((4, 4, 4), np.nan, np.float32), "float32"),
        (grey().astype(np.int64), "int64"),
        (grey() > 9, "bool"),
        (grey((6, 20, 24, 3)), "colour"),
        (grey((20, 24)), "three axes"),
        (grey((0, 20, 24)), "empty"),
    ],
)
def test_arrays_that_are_no_em_are_refused_with_the_path(tmp_path, raw, message):
    with pytest.raises(ValueError, match=f"a.h5: .*{message}"):
        read_volume(hdf5(tmp_path / "a.h5", raw=raw), voxel_size=SIZE)


@pytest.mark.parametrize("dtype", [np.int64, np.int8, np.float64, bool])
def test_signed_and_other_labels_are_refused_with_the_remedy(tmp_path, dtype):
    path = hdf5(tmp_path / "a.h5", raw=grey(), ids=ids(dtype=dtype))
    with pytest.raises(ValueError, match=rf"{np.dtype(dtype)}.*astype\('uint64'\)"):
        read_volume(path, labels_key="ids", voxel_size=SIZE)


def test_a_colour_tiff_is_refused(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", grey((20, 24, 3)), photometric="rgb")
    with pytest.raises(ValueError, match="a.tif.*colour"):
        read_volume(tmp_path / "a.tif", voxel_size=SIZE)


def test_a_file_without_voxel_size_needs_one_that_is_positive(tmp_path):
    path = hdf5(tmp_path / "a.h5", raw=grey())
    with pytest.raises(ValueError, match="a.h5: no voxel size"):
        read_volume(path)
    with pytest.raises(ValueError, match="a.h5.*-40.0.*above 0"):
        read_volume(path, voxel_size=(-40, 8, 8))


def test_unknown_formats_are_refused(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    for name in ("a.png", "folder"):
        with pytest.raises(ValueError, match=f"{name}: unknown format"):
            read_volume(tmp_path / name)
    with pytest.raises(ValueError, match="s3://bucket/a.zarr: is an address, .*download it"):
        read_volume("s3://bucket/a.zarr")
    with pytest.raises(ValueError, match=r"cannot write \.tif"):
        write_volume(Volume(grey(), SIZE), tmp_path / "a.tif")


def test_part_3_of_lesson_01_writes_its_file_as_often_as_you_run_it(tmp_path, capsys):
    lesson = jupytext.read(REPOSITORY / "notebooks" / "src" / "01_em_volumes.py")
    cells = [cell.source for cell in lesson.cells if cell.cell_type == "code"]
    first, last = (next(i for i, cell in enumerate(cells) if word in cell) for word in ("01_by_hand", "01_corner"))
    volume = Volume(grey((8, 120, 120)), SIZE, ids((8, 120, 120)))
    names = {"volume": volume, "labels": volume.labels, "session": SimpleNamespace(out_dir=tmp_path), "np": np}
    for cell in cells[first : last + 1] * 2:
        exec(cell, names)
    assert capsys.readouterr().out.count("opened: Lazy at (0.0, 0.0, 0.0) nm") == 2


# --- writing over something else -------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".h5", ".zarr"])
@pytest.mark.parametrize("other", ["affinities", "volumes/labels/proofread"])
def test_arrays_beside_a_volume_are_never_deleted(tmp_path, suffix, other):
    path = write_volume(Volume(grey(), SIZE, ids()), tmp_path / f"a{suffix}")
    with h5py.File(path, "a") if suffix == ".h5" else nullcontext(zarr.open_group(path)) as group:
        group.create_dataset(other, data=ids()) if suffix == ".h5" else group.create_array(other, data=ids())
    message = rf"a{suffix} holds a volume and other (arrays|files): {other}.*move them away, or choose a new name"
    with pytest.raises(ValueError, match=message):
        write_volume(read_volume(path)[0:2, :, :], path)
    np.testing.assert_array_equal(read_volume(path, labels_key=other).load().labels, ids())
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_comes_while_a_volume_is_written_is_not_deleted(tmp_path):
    path = write_volume(Volume(grey(), SIZE), tmp_path / "a.zarr")

    def cut(*region):
        (path / "notes.txt").touch()
        return grey()[region]

    with pytest.raises(ValueError, match="notes.txt"):
        write_volume(Volume(Lazy(grey().shape, np.uint8, cut), SIZE), path)
    assert (path / "notes.txt").exists() and list(tmp_path.iterdir()) == [path]


def test_what_is_no_volume_is_not_replaced_by_one(tmp_path):
    (tmp_path / "a.h5").mkdir()
    (tmp_path / "a.h5" / "notes.txt").touch()
    (tmp_path / "a.zarr").write_text("notes")
    (tmp_path / "b.h5").write_text("notes")
    messages = {"a.h5": "is a folder", "a.zarr": "is a file", "b.h5": "cannot be read as a volume"}
    for name, message in messages.items():
        with pytest.raises(ValueError, match=f"{name} already exists and {message}.*: move it away"):
            write_volume(Volume(grey(), SIZE), tmp_path / name)
    assert (tmp_path / "a.h5" / "notes.txt").exists()
    assert {(tmp_path / name).read_text() for name in ("a.zarr", "b.h5")} == {"notes"}


# --- writing that fails ----------------------------------------------------------------------------------------------

FULL_DISK = """
import resource, sys
import numpy as np
from fgnet_lib.files.formats import write_volume
from fgnet_lib.volumes import Volume

noise = np.random.default_rng(0).integers(0, 256, (64, 300, 300), dtype=np.uint8)  # does not compress
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))  # the system refuses to write on, as on a full disk
for path in sys.argv[1:]:
    try:
        write_volume(Volume(noise, (40, 8, 8), noise.astype(np.uint64)), path)
    except OSError as error:
        print(error)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on file sizes")
@pytest.mark.parametrize("suffix", [".h5", ".zarr"])
def test_a_full_disk_leaves_what_was_there(tmp_path, suffix):
    old, new = tmp_path / f"old{suffix}", tmp_path / f"new{suffix}"
    write_volume(Volume(grey(), SIZE, ids()), old)
    command = [sys.executable, "-c", FULL_DISK, str(old), str(new)]
    run = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    for path, line in zip((old, new), run.stdout.splitlines(), strict=True):
        assert f"cannot write {path}, what was there before is untouched" in line
    assert list(tmp_path.iterdir()) == [old]
    np.testing.assert_array_equal(read_volume(old).load().labels, ids())


@pytest.mark.parametrize("linked", ["volumes/raw/c/0/0/0", "volumes/raw/zarr.json"])
def test_a_zarr_folder_whose_links_lead_out_of_it_is_not_read(tmp_path, linked):
    """They could name any file that the reader may read; links inside the folder are followed."""
    path = write_volume(Volume(np.ones((4, 8, 8), np.uint8), (40, 8, 8)), tmp_path / "volume.zarr")
    file = path / linked
    inside = file.rename(path / "inside")
    file.symlink_to(inside)
    assert read_volume(path).raw[:].all()
    file.unlink()
    file.symlink_to(inside.rename(tmp_path / "outside"))
    with pytest.raises(ValueError, match="leads out of .*volume.zarr"):
        read_volume(path).raw[:]
