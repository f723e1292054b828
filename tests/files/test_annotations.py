"""CREMI's synaptic partners: from a file in the official layout into voxels, and what is wrong with others."""

from __future__ import annotations

from pathlib import Path

import h5py
import jupytext
import numpy as np
import pytest

from fgnet_lib import REPOSITORY
from fgnet_lib.files.annotations import read_partners
from fgnet_lib.files.formats import read_volume, write_volume
from fgnet_lib.neighbours import synapses
from fgnet_lib.volumes import Volume

SIZE = (40.0, 4.0, 4.0)
VOXELS = np.array([[1, 10, 20], [1, 10, 60], [3, 50, 7], [0, 0, 0], [5, 99, 99]])  # of ids 7, 3, 11, 2, 900
PRE, POST = "presynaptic_site", "postsynaptic_site"
OFFSET = (400.0, 120.0, 120.0)


@pytest.fixture
def sample(tmp_path):
    """A file as cremi_python 0.8 writes it: texts of variable length, ids in no order, locations from an offset on."""
    raw = np.random.default_rng(0).integers(0, 256, (6, 100, 100)).astype(np.uint8)
    path = write_volume(Volume(raw, SIZE, offset=OFFSET), tmp_path / "sample.hdf")
    with h5py.File(path, "a") as file:
        file.attrs["file_format"] = "0.2"
        group = file.create_group("annotations")
        group.attrs["offset"] = (0.0, 40.0, 80.0)
        locations = (VOXELS + [0.5, 0.25, 0.75]) * SIZE + OFFSET - [0, 40, 80]
        text = h5py.string_dtype()
        group.create_dataset("ids", data=np.array([7, 3, 11, 2, 900], np.uint64))
        group.create_dataset("types", data=[PRE, POST, POST, PRE, POST], dtype=text, compression="gzip")
        group.create_dataset("locations", data=locations)
        group.create_dataset("comments/target_ids", data=np.array([3], np.uint64))
        group.create_dataset("comments/comments", data=["unsure"], dtype=text)
        group.create_dataset("presynaptic_site/partners", data=np.array([[2, 900], [7, 3], [7, 11]], np.uint64))
    return path


def change(path: Path, name: str, data, **settings) -> None:
    with h5py.File(path, "a") as file:
        del file[f"annotations/{name}"]
        if data is not None:
            file.create_dataset(f"annotations/{name}", data=data, **settings)


def test_partners_are_in_the_voxels_of_the_volume_and_in_the_order_of_the_file(sample):
    pre, post = read_partners(sample, read_volume(sample))
    np.testing.assert_array_equal(pre, VOXELS[[3, 0, 0]])
    np.testing.assert_array_equal(post, VOXELS[[4, 1, 2]])


def test_a_point_on_a_corner_belongs_to_the_voxel_that_begins_there(sample):
    size = (50, 4.6, 4.6)  # no binary fractions
    volume = Volume(np.ones((4, 60, 60), np.uint8), size, offset=(0, 1012, 1012))
    voxels = np.random.default_rng(0).integers(0, volume.shape, (400, 3))
    with h5py.File(sample, "a") as file:
        del file["annotations"].attrs["offset"]
    for name, data in {
        "ids": np.arange(400, dtype=np.uint64),
        "types": np.array([PRE, POST] * 200, "S17"),
        "locations": voxels * size + volume.offset,
        "presynaptic_site/partners": np.arange(400, dtype=np.uint64).reshape(200, 2),
    }.items():
        change(sample, name, data)
    pre, post = read_partners(sample, volume)
    np.testing.assert_array_equal(pre, voxels[::2])
    np.testing.assert_array_equal(post, voxels[1::2])


def test_of_a_crop_only_contacts_with_both_sites_inside_are_left(sample):
    crop = read_volume(sample)[1:4, 10:60, 0:50]
    pre, post = read_partners(sample, crop)
    assert pre.tolist() == [[0, 0, 20]] and post.tolist() == [[2, 40, 7]]
    pre, post = read_partners(sample, read_volume(sample)[2:3, :, :])
    assert pre.shape == post.shape == (0, 3)


def test_a_file_without_offset_counts_from_0_and_types_may_be_of_fixed_length(sample):
    with h5py.File(sample, "a") as file:
        del file["annotations"].attrs["offset"]
        locations = file["annotations/locations"][()] + [0, 40, 80]
    change(sample, "locations", locations)
    change(sample, "types", np.array([PRE, POST, POST, PRE, POST], "S17"))
    assert read_partners(sample, read_volume(sample)).pre.tolist() == VOXELS[[3, 0, 0]].tolist()


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("presynaptic_site/partners", None, "no annotations/presynaptic_site/partners.*cremi.org"),
        ("presynaptic_site/partners", np.array([[7, 4]]), "names 4, which is no id"),
        ("presynaptic_site/partners", np.array([[3, 7]]), "annotation 3 is a 'postsynaptic_site'.*pre first"),
        ("presynaptic_site/partners", np.array([[7, 3, 11]]), r"partners': \(1, 3\)"),
        ("presynaptic_site/partners", np.array([7, 3]), r"int64 of shape \(2,\).*rows of two ids"),
        ("ids", np.array([7, 3, 7, 2, 900]), "2 annotations have the id 7"),
        ("ids", np.array([7, 3]), "2 ids, but"),
        ("ids", np.array([7.5, 3, 1, 2, 900]), "float64.*n whole numbers"),
        ("types", np.arange(5), "annotations/types is int64.*n texts"),
        ("locations", np.full((5, 3), np.nan), "annotation 7 lies at .*nan"),
        ("locations", np.zeros((5, 2)), r"'locations': \(5, 2\)"),
    ],
)
def test_what_does_not_fit_is_refused_with_file_value_and_remedy(sample, name, data, message):
    change(sample, name, data)
    with pytest.raises(ValueError, match=f"sample.hdf: .*{message}"):
        read_partners(sample, read_volume(sample))


def test_a_wrong_offset_a_missing_file_and_a_damaged_one_are_named(sample, tmp_path):
    volume = read_volume(sample).load()
    with h5py.File(sample, "a") as file:
        file["annotations"].attrs["offset"] = (0.0, np.inf, 0.0)
    with pytest.raises(ValueError, match="sample.hdf: the offset of annotations is .*inf"):
        read_partners(sample, volume)
    with pytest.raises(FileNotFoundError, match="none.hdf: no such file"):
        read_partners(tmp_path / "none.hdf", volume)
    sample.write_bytes(sample.read_bytes()[:3000])
    with pytest.raises(ValueError, match="sample.hdf: cannot be read"):
        read_partners(sample, volume)


def test_lesson_12_reads_such_a_file_and_says_where_to_get_one(sample, capsys):
    lesson = jupytext.read(REPOSITORY / "notebooks" / "src" / "12_my_volume_looks_different.py")
    (cell,) = (cell.source for cell in lesson.cells if "= read_volume(sample_file)" in cell.source)
    names = {"fetch": lambda name, download: sample, "read_volume": read_volume, "read_partners": read_partners}
    exec(cell, names | {"synapses": synapses, "np": np})
    assert capsys.readouterr().out.splitlines() == [
        "2 pre-synaptic sites with 1.5 partners each",
        "nearest: 67% of 3 partners are right",
        "optimal: 33% of 3 partners are right",
    ]

    def refuse(name, download):
        raise FileNotFoundError(f"{name} is not on this machine")

    exec(cell, names | {"fetch": refuse})
    assert capsys.readouterr().out == "sample_A_20160501.hdf is not on this machine\n"


def test_points_that_lie_in_another_file_are_not_read(sample, tmp_path):
    volume = read_volume(sample).load()
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["ids"] = np.arange(5)
    with h5py.File(sample, "a") as file:
        del file["annotations/ids"]
        file["annotations/ids"] = h5py.ExternalLink("secret.h5", "ids")
    with pytest.raises(ValueError, match="from another file, which is not read"):
        read_partners(sample, volume)


def test_more_rows_than_points_can_be_are_not_read(sample):
    volume = read_volume(sample).load()
    with h5py.File(sample, "a") as file:
        del file["annotations/ids"]
        file.create_dataset("annotations/ids", (2**40,), np.uint64, chunks=(1024,))
    with pytest.raises(ValueError, match="too many to be points"):
        read_partners(sample, volume)
