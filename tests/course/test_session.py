from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from scipy.ndimage import label

from fgnet_lib.course import session
from fgnet_lib.course.session import os, start_session
from fgnet_lib.datasets import DATASETS, open_dataset
from fgnet_lib.views.meshes import slender_ids
from fgnet_lib.volumes import Volume


@pytest.fixture
def start(tmp_path, monkeypatch):
    """start_session with defaults that can be overridden one by one."""
    monkeypatch.setenv("FGNET_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(session, "_replaced", {})

    def call(profile="fast", dataset="phantom", data_dir="", out_dir=str(tmp_path / "out"), device="cpu", seed=0):
        return start_session(profile, dataset, data_dir, out_dir, device, seed)

    return call


def test_start_says_the_device_and_makes_the_folder(start, capsys, tmp_path):
    session = start()
    line = capsys.readouterr().out
    assert line.count("\n") == 1
    assert "cpu" in line and "fp32" in line and "PROFILE fast" in line and "phantom" in line
    assert session.out_dir.is_dir() and session.data_dir == tmp_path


def test_the_same_seed_gives_the_same_numbers(start):
    def draw():
        return random.random(), np.random.rand(), torch.rand(1).item()

    start(seed=7)
    first = draw()
    start(seed=7)
    assert draw() == first
    start(seed=8)
    assert draw() != first


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"profile": "turbo"}, "'turbo'.*fast, cpu, gpu, full"),
        ({"dataset": "phantm"}, "'phantm'.*" + ".*".join(DATASETS)),
        ({"device": "tpu"}, "'tpu'.*auto, cpu"),
        ({"seed": "one"}, "SEED is 'one'"),
        ({"seed": -1}, "SEED is -1"),
        ({"seed": 0.5}, "SEED is 0.5"),
    ],
)
def test_unknown_names_are_refused_with_the_list(start, wrong, message):
    with pytest.raises(ValueError, match=message):
        start(**wrong)


def test_a_data_folder_that_is_missing_is_refused(start):
    with pytest.raises(FileNotFoundError, match="/no/such/folder"):
        start(data_dir="/no/such/folder")


@pytest.mark.parametrize(
    ("value", "reason"), [(" ", "not a folder"), ("/no/such", "not a folder"), (__file__, "a file")]
)
def test_a_variable_for_the_data_that_names_no_folder_is_refused(start, monkeypatch, value, reason):
    monkeypatch.setenv("FGNET_DATA_DIR", value)
    with pytest.raises(FileNotFoundError, match=f"FGNET_DATA_DIR '{value}' is {reason}"):
        start()
    with pytest.raises(FileNotFoundError, match=f"^DATA_DIR '{value}' is {reason}"):
        start(data_dir=value)


def test_a_folder_of_data_that_cannot_be_read_is_refused(start, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may read everywhere
    with pytest.raises(PermissionError, match="FGNET_DATA_DIR .* cannot be read by you"):
        start()


@pytest.mark.parametrize("number", [0, 2024])
def test_a_folder_may_have_a_number_for_a_name(start, monkeypatch, tmp_path, number):
    monkeypatch.chdir(tmp_path)
    (tmp_path / f"{number}").mkdir()
    session = start(out_dir=number, data_dir=number)
    assert (session.out_dir.resolve(), session.data_dir.resolve()) == (tmp_path / f"{number}",) * 2


def test_the_home_folder_is_expanded(start, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "em").mkdir()
    session = start(out_dir="~/results", data_dir="~/em")
    assert session.out_dir == tmp_path / "results" and session.data_dir == tmp_path / "em"
    assert os.environ["FGNET_DATA_DIR"] == str(tmp_path / "em") and not (tmp_path / "~").exists()


def test_data_dir_is_where_datasets_look(start, tmp_path, monkeypatch):
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    assert start(data_dir=str(folder)).data_dir == folder
    assert os.environ["FGNET_DATA_DIR"] == str(folder)


def test_without_data_dir_the_folder_of_the_course_is_back(start, tmp_path, monkeypatch):
    for name in ("mine", "other", "late"):
        (tmp_path / name).mkdir()
    start(data_dir=str(tmp_path / "mine"))
    start(data_dir=str(tmp_path / "other"))
    assert start().data_dir == tmp_path
    start(data_dir=str(tmp_path / "mine"))
    monkeypatch.setenv("FGNET_DATA_DIR", str(tmp_path / "late"))  # by the reader's own hand
    assert start().data_dir == tmp_path / "late"


def test_volume_is_the_middle_of_the_data_set(start):
    session = start()
    crop = session.volume("val")
    whole = open_dataset("phantom", "val")
    assert crop.shape == session.profile.crop and isinstance(crop.raw, np.ndarray)
    corner = [(size - want) // 2 for size, want in zip(whole.shape, crop.shape, strict=True)]
    middle = tuple(slice(a, a + want) for a, want in zip(corner, crop.shape, strict=True))
    np.testing.assert_array_equal(crop.raw, whole.raw[middle])
    np.testing.assert_array_equal(crop.labels, whole.labels[middle])
    assert crop.offset == tuple(a * v for a, v in zip(corner, whole.voxel_size, strict=True))


def test_full_is_the_whole_volume(start):
    assert start(profile="full").volume("val").shape == open_dataset("phantom", "val").shape


def test_real_data_is_cropped_alike(em_data, start):
    session = start(dataset="fib25", data_dir=str(em_data))
    crop = session.volume("val")
    assert crop.shape == session.profile.crop and crop.voxel_size == (10.0, 10.0, 10.0)


@pytest.mark.slow
def test_the_deep_volume_shows_branches_through_64_sections(start):
    """Under fast it is narrow, so that one window of the network covers a section."""
    volume = start().deep_volume()
    assert volume.shape == (64, 160, 160) and volume.raw.dtype == np.uint8
    whole = open_dataset("phantom", "deep")
    assert np.array_equal(volume.labels, whole.labels[:, 48:208, 48:208])
    branched = 0
    for neuron in slender_ids(volume.labels, 12):
        mask = volume.labels == neuron
        assert np.count_nonzero(mask.any(axis=(1, 2))) >= 48  # three quarters of the sections
        branched += max(label(section)[1] for section in mask) > 1
    assert branched >= 2


def test_the_deep_volume_of_real_data_is_the_middle_of_val(start, monkeypatch):
    val = Volume(np.zeros((40, 200, 150), np.uint8), (10.0, 10.0, 10.0))
    monkeypatch.setattr(session, "open_dataset", lambda name, part: {("fib25", "val"): val}[name, part])
    assert start(dataset="fib25").deep_volume().shape == (40, 160, 150)
    assert start(profile="fast", dataset="fib25").volume().shape == (16, 192, 150)
