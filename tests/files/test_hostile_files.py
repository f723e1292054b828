"""Damaged and hostile files: refused by a sentence that names the file, before they cost memory or read other files."""

from __future__ import annotations

import json
import os
import pickle
import warnings
import zlib

import h5py
import numcodecs
import numpy as np
import pytest
import tifffile
import zarr
from helpers.volume_files import SIZE, grey, hdf5, neurons, ome_image, ome_zarr, plain_zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from fgnet_lib.files.formats import fingerprint, read_volume, write_volume
from fgnet_lib.volumes import Volume


@pytest.mark.slow
@settings(max_examples=60)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 60), end=st.sampled_from([512, 2048, 8192]))
def test_damaged_metadata_of_hdf5_are_refused_by_name(tmp_path_factory, seed, count, end):
    path = write_volume(Volume(grey(), SIZE, neurons()), tmp_path_factory.mktemp("damage") / "a.h5")
    data, rng = bytearray(path.read_bytes()), np.random.default_rng(seed)
    for at in rng.integers(0, min(end, len(data)), count):
        data[at] = rng.integers(256)
    path.write_bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            read_volume(path).load()
        except (ValueError, OSError) as error:
            assert "a.h5" in str(error), f"{type(error)} {error}"


@pytest.mark.parametrize("text", ["[]", "{}", "null", '{"zarr_format": 3}', "[" * 5000, "no JSON", ""])
def test_damaged_metadata_of_zarr_are_refused_by_name(tmp_path, text):
    path = plain_zarr(tmp_path / "a.zarr", grey(), version=3, attributes={"resolution": SIZE})
    for file in ("zarr.json", "volumes/raw/zarr.json"):
        before = (path / file).read_text()
        (path / file).write_text(text)
        try:  # Zarr takes an empty description for that of a group, and then the volume is whole
            np.testing.assert_array_equal(read_volume(path).load().raw, grey())
        except ValueError as error:
            assert "a.zarr" in str(error)
        (path / file).write_text(before)


@pytest.mark.parametrize(
    "change",
    [
        {"multiscales": 5},
        {"multiscales": {}},
        {"multiscales": []},
        {"multiscales": [None]},
        {"multiscales": [{"datasets": 5}]},
        {"multiscales": [{"datasets": [5]}]},
        {"multiscales": [{"datasets": [{"path": ["0"]}]}]},
        {"multiscales": [{"datasets": [{"path": "../../secret"}]}]},
        {"multiscales": [{"axes": 7, "datasets": [{"path": "0"}]}]},
        {"multiscales": [{"axes": [[]], "datasets": [{"path": "0"}]}]},
        {"multiscales": [{"coordinateSystems": [5], "datasets": [{"path": "0"}]}]},
        {"ome": 5},
    ],
)
def test_odd_descriptions_of_ome_zarr_are_refused_by_name(tmp_path, change):
    path = ome_zarr(tmp_path / "a.zarr", grey(), ome_image("0.4", "zyx", SIZE, (0, 0, 0), "nanometer"))
    (path / ".zattrs").write_text(json.dumps(change))
    with pytest.raises(ValueError, match="a.zarr"):
        read_volume(path)
    assert read_volume(path, "0", voxel_size=SIZE, axes="zyx").shape == grey().shape


def test_chunks_of_no_voxels_are_refused(tmp_path):
    path = plain_zarr(tmp_path / "a.zarr", grey(), attributes={"resolution": SIZE})
    array = path / "volumes" / "raw" / ".zarray"
    array.write_text(json.dumps(json.loads(array.read_text()) | {"chunks": [0, 20, 28]}))
    with pytest.raises(ValueError, match="a.zarr"):
        read_volume(path)


def test_a_chunk_larger_than_memory_is_refused_before_it_is_read(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("raw", (2000, 2000, 2000), "u1", chunks=(1500, 1500, 1500)).attrs["resolution"] = SIZE
    group = zarr.open_group(tmp_path / "a.zarr", mode="w")
    array = group.create_array("raw", shape=(2000, 2000, 2000), dtype="u1", chunks=(1500, 1500, 1500))
    array.attrs["resolution"] = SIZE
    for name in ("a.h5", "a.zarr"):
        with pytest.raises(ValueError, match=rf"{name}.*chunks of \(1500, 1500, 1500\) voxels, 3.1 GiB each"):
            read_volume(tmp_path / name)


def test_a_chunk_that_unpacks_to_far_more_than_its_voxels_is_not_unpacked(tmp_path):
    path = plain_zarr(
        tmp_path / "a.zarr",
        grey((8, 64, 64)),
        attributes={"resolution": SIZE},
        compressors=numcodecs.GZip(),
        chunks=(8, 64, 64),
    )
    chunk = path / "volumes" / "raw" / "0.0.0"
    chunk.write_bytes(numcodecs.GZip().encode(bytes(2**27)))
    assert chunk.stat().st_size > 110_000
    with pytest.raises(ValueError, match=r"0.0.0 has .* bytes for 32768 bytes of voxels, and is not read"):
        read_volume(path)[0:1, 0:2, 0:2]


@pytest.mark.slow
def test_a_chunk_of_hdf5_that_unpacks_to_far_more_than_its_voxels_is_not_unpacked(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        array = file.create_dataset("raw", (8, 64, 64), "u1", chunks=(8, 64, 64), compression="gzip")
        array.id.write_direct_chunk((0, 0, 0), zlib.compress(bytes(2**27)))
    with pytest.raises(ValueError, match=r"/raw has .* bytes for 32768 bytes of voxels, and is not read"):
        read_volume(tmp_path / "a.h5", voxel_size=SIZE)[0:1, 0:2, 0:2]


def test_a_pipe_is_no_volume(tmp_path):
    for name in ("a.h5", "a.tif"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(ValueError, match="neither a file nor a folder"):
            read_volume(tmp_path / name)
    (tmp_path / "a.h5").unlink()
    with pytest.raises(ValueError, match="a.tif is no file"):
        read_volume(tmp_path)
    path = plain_zarr(tmp_path / "a.zarr", grey(), attributes={"resolution": SIZE})
    (path / "volumes/raw/0.0.0").unlink()
    os.mkfifo(path / "volumes/raw/0.0.0")
    with pytest.raises(ValueError, match="neither a file nor a folder"):
        read_volume(path).load()


@pytest.mark.parametrize(
    "table", [np.zeros((0, 2), np.uint64), np.zeros((4, 3), np.uint64), np.zeros(4, np.uint64), np.zeros((4, 2))]
)
def test_an_odd_table_of_bodies_is_refused(tmp_path, table):
    path = hdf5(tmp_path / "a.h5", {"raw": grey(), "stack": neurons(), "transforms": table})
    with pytest.raises(ValueError, match="a.h5: `transforms` is"):
        read_volume(path, voxel_size=SIZE)


def test_a_table_of_bodies_larger_than_memory_is_refused_before_it_is_read(tmp_path):
    hdf5(tmp_path / "a.h5", {"raw": grey(), "stack": neurons()})
    with h5py.File(tmp_path / "a.h5", "a") as file:
        file.create_dataset("transforms", (2**40, 2), np.uint64, chunks=(1024, 2))
    with pytest.raises(ValueError, match="a.h5: `transforms` has 1099511627776 rows, too many"):
        read_volume(tmp_path / "a.h5", voxel_size=SIZE)
    plain_zarr(tmp_path / "a.zarr", grey(), "raw")
    group = zarr.open_group(tmp_path / "a.zarr")
    group.create_array("stack", data=neurons())
    group.create_array("transforms", shape=(2**20, 2), dtype="u8", chunks=(2**29, 2))
    with pytest.raises(ValueError, match="a.zarr/transforms is stored in chunks of .*8.0 GiB each"):
        read_volume(tmp_path / "a.zarr", voxel_size=SIZE)


class Unpacked:
    """Says by a file that it was unpacked."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize(
    ("dtype", "filters"), [("|O", ["vlen-bytes", "pickle"]), ("|O", ["vlen-utf8", "pickle"]), ("<u8", ["pickle"])]
)
@pytest.mark.parametrize("name", ["raw", "stack", "transforms"])
def test_nothing_is_unpacked_by_pickle(tmp_path, name, dtype, filters, monkeypatch):
    """Versions of numcodecs before 0.16.6 do it without being asked."""
    monkeypatch.setattr(numcodecs.pickles, "ALLOW_UNSAFE_PICKLE_DECODE", True, raising=False)
    path = plain_zarr(tmp_path / "a.zarr", grey(), "raw")
    group = zarr.open_group(path, zarr_format=2)
    for key, array in {"stack": neurons(), "transforms": np.array([[1, 1]], np.uint64)}.items():
        group.create_array(key, data=array, chunks=array.shape)
    table = json.loads((path / name / ".zarray").read_text())
    change = {"dtype": dtype, "filters": [{"id": codec} for codec in filters], "compressor": None, "fill_value": None}
    (path / name / ".zarray").write_text(json.dumps(table | change))
    (path / name / ".".join("0" * len(table["shape"]))).write_bytes(pickle.dumps(Unpacked(tmp_path / "mark")))
    with pytest.raises(ValueError, match="a.zarr.*(holds .*, packed by vlen-.*, pickle, and not numbers|pickle)"):
        read_volume(path, voxel_size=SIZE).load()
    assert not (tmp_path / "mark").exists()


def test_supervoxels_that_are_no_integers_are_refused(tmp_path):
    table = np.array([[1, 1], [2, 1]], np.uint64)
    path = hdf5(tmp_path / "a.h5", {"raw": grey(), "stack": neurons() + 0.5, "transforms": table})
    with pytest.raises(ValueError, match="a.h5: `stack` is float64"):
        read_volume(path, voxel_size=SIZE)


def test_links_that_lead_nowhere_and_empty_datasets_are_named(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["raw"] = h5py.SoftLink("/gone")
        file["em"] = h5py.Empty("u1")
    with pytest.raises(ValueError, match="a.h5: no dataset raw; its datasets are: em"):
        read_volume(tmp_path / "a.h5", voxel_size=SIZE)
    with pytest.raises(ValueError, match="a.h5: /em is an empty dataset.*RAW_KEY"):
        read_volume(tmp_path / "a.h5", "em", voxel_size=SIZE)


@pytest.mark.parametrize("version", [2, 3])
def test_a_codec_that_is_not_installed_is_named(tmp_path, version):
    path = plain_zarr(tmp_path / "a.zarr", grey(), "raw", version)
    mark = path / "raw" / (".zarray" if version == 2 else "zarr.json")
    table = json.loads(mark.read_text())
    change = {"compressor": {"id": "best"}} if version == 2 else {"codecs": [*table["codecs"], {"name": "best"}]}
    mark.write_text(json.dumps(table | change))
    with pytest.raises(ValueError, match=r"a.zarr: is packed with a codec that is not installed \(.*best"):
        read_volume(path, voxel_size=SIZE)


def test_a_group_instead_of_the_table_of_bodies_is_refused(tmp_path):
    path = hdf5(tmp_path / "a.h5", {"raw": grey(), "stack": neurons(), "transforms/a": neurons()})
    with pytest.raises(ValueError, match="transforms is a group"):
        read_volume(path, voxel_size=SIZE)


def test_a_filter_that_is_not_installed_is_named(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        options = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        options.set_chunk(grey().shape)
        options.set_filter(32013, h5py.h5z.FLAG_OPTIONAL, (1,))  # ZFP, which no uint8 comes packed with
        space = h5py.h5s.create_simple(grey().shape)
        h5py.h5d.create(file.id, b"raw", h5py.h5t.NATIVE_UINT8, space, options)
    with pytest.raises(ValueError, match="a.h5: /raw is packed with the filter 32013.*pip install hdf5plugin"):
        read_volume(tmp_path / "a.h5", voxel_size=SIZE)


def test_old_matlab_files_are_named(tmp_path):
    (tmp_path / "a.mat").write_bytes(b"MATLAB 5.0 MAT-file" + bytes(200))
    with pytest.raises(ValueError, match="a.mat: an old MATLAB file"):
        read_volume(tmp_path / "a.mat")


# --- chunks that are not there ---------------------------------------------------------------------------------------


def lossy_zarr(path, version, **options):
    plain_zarr(path, grey(), "raw", version, attributes={"resolution": SIZE}, **options)
    next(
        file
        for file in sorted((path / "raw").rglob("*"))
        if file.is_file() and not file.name.startswith((".z", "zarr"))
    ).unlink()
    return path


def lossy_hdf5(path):
    with h5py.File(path, "w") as file:
        array = file.create_dataset("raw", grey().shape, "u1", chunks=(2, 10, 14))
        array.attrs["resolution"] = SIZE
        for z in range(0, 6, 2):
            array[z : z + 2, 10:] = grey()[z : z + 2, 10:]
    return path


@pytest.mark.parametrize(
    ("make", "lost"),
    [
        (lambda folder: lossy_zarr(folder / "a.zarr", 2, chunks=(2, 10, 14)), "1 of 12"),
        (lambda folder: lossy_zarr(folder / "a.zarr", 3, chunks=(2, 10, 14)), "1 of 12"),
        (lambda folder: lossy_zarr(folder / "a.zarr", 3, chunks=(2, 10, 14), shards=(2, 20, 28)), "1 of 3"),
        (lambda folder: lossy_hdf5(folder / "a.h5"), "6 of 12"),
    ],
)
def test_chunks_that_are_not_on_disk_are_mentioned(tmp_path, make, lost):
    volume = read_volume(make(tmp_path))
    with pytest.warns(UserWarning, match=f"{lost} chunks of this crop are not on disk and read as 0"):
        raw = volume.load().raw
    np.testing.assert_array_equal(raw[-1, -1], grey()[-1, -1])
    (tmp_path / "new").mkdir()
    volume = read_volume(make(tmp_path / "new"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a crop without them says nothing
        np.testing.assert_array_equal(volume[5:6, 15:20, 20:28].raw, grey()[5:6, 15:20, 20:28])


@pytest.mark.parametrize("suffix", [".h5", ".zarr"])
def test_what_the_project_writes_is_complete_also_where_it_is_black(tmp_path, suffix):
    volume = Volume(np.zeros((40, 20, 28), np.uint8), SIZE, np.zeros((40, 20, 28), np.uint64))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_volume(write_volume(volume, tmp_path / f"a{suffix}")).load()


# --- fingerprints ----------------------------------------------------------------------------------------------------


def test_the_fingerprint_is_of_the_array_that_is_read(tmp_path):
    path = ome_zarr(
        tmp_path / "a.zarr", grey(), ome_image("0.4", "zyx", SIZE, (0, 0, 0), "nanometer"), chunks=(2, 20, 28)
    )
    before = fingerprint(path)
    assert fingerprint(path) == before
    chunk = path / "0" / "1.0.0"
    data = bytearray(chunk.read_bytes())
    data[-1] ^= 1
    chunk.write_bytes(data)
    changed = fingerprint(path)
    assert changed.keys() == before.keys() and changed["0"] != before["0"] and changed[".zattrs"] == before[".zattrs"]
    (path / ".zattrs").write_text((path / ".zattrs").read_text() + " ")
    assert fingerprint(path)[".zattrs"] != changed[".zattrs"]
    zarr.open_group(path).create_array("other", data=grey())
    assert fingerprint(path) == fingerprint(path, "0")


def test_the_fingerprint_of_a_folder_and_of_a_file_is_of_all_that_is_read(tmp_path):
    for z, section in enumerate(grey()):
        tifffile.imwrite(tmp_path / f"s{z}.tif", section, photometric="minisblack")
    before = fingerprint(tmp_path)
    assert "6 files" in before[tmp_path.name]
    (tmp_path / "notes.txt").write_text("no section")
    assert fingerprint(tmp_path) == before
    os.utime(tmp_path / "s3.tif", ns=(1, 1))
    assert fingerprint(tmp_path) != before
    one = fingerprint(tmp_path / "s3.tif")
    tifffile.imwrite(tmp_path / "s3.tif", grey(), photometric="minisblack")
    assert fingerprint(tmp_path / "s3.tif") != one
