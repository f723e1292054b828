"""Lesson 08 as a program: its cells, run with parameters as papermill would set them, but in this process."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import h5py
import jupytext
import matplotlib.pyplot as plt
import numpy as np
import pytest
import tifffile
import torch

from fgnet_lib import REPOSITORY, datasets, segmentation
from fgnet_lib.configuration import MINI
from fgnet_lib.fgnet import FGNet
from fgnet_lib.files.formats import read_volume, write_volume
from fgnet_lib.inference import predict
from fgnet_lib.phantom import make_phantom
from fgnet_lib.volumes import IGNORE, Volume
from fgnet_lib.weights import load_pretrained, save_model

pytestmark = pytest.mark.slow  # runs a lesson

SOURCE = REPOSITORY / "notebooks" / "src" / "08_your_own_volume.py"
SHAPE = (5, 40, 44)  # smaller than one tile


@pytest.fixture(scope="module")
def phantom() -> Volume:
    return make_phantom(SHAPE, seed=3)


@pytest.fixture
def lesson(tmp_path, monkeypatch):
    """Run the lesson from an own folder, with a small random model and a small phantom to compare with."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FGNET_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets, "PHANTOMS", {"train": ((3, 32, 32), 0)})
    monkeypatch.setattr(plt, "show", lambda: plt.close("all"))
    monkeypatch.setattr(plt.rcParams, "update", lambda *_: None)  # styling would outlive the test
    torch.manual_seed(0)
    save_model(FGNet(MINI), "mine.safetensors", {"threshold": 0.3})
    defaults = {"PROFILE": "fast", "OUT_DIR": "results", "DEVICE": "cpu", "CHECKPOINT": "mine.safetensors"}

    def run(**parameters):
        names = {}
        for cell in jupytext.read(SOURCE).cells:
            if cell.cell_type == "code":
                exec(compile(cell.source, str(SOURCE), "exec"), names)
            if "parameters" in cell.metadata.get("tags", []):
                assert parameters.keys() <= names.keys()
                names.update(defaults | parameters)
        return names

    return run


def test_a_file_is_processed_as_a_whole_and_scored(lesson, phantom):
    write_volume(replace(phantom, offset=(80, 0, 8)), "brain.h5")
    names = lesson(VOLUME="brain.h5")
    result = read_volume("results/segmentation.h5").load()
    assert result.voxel_size == (40.0, 8.0, 8.0) and result.offset == (80.0, 0.0, 8.0)
    np.testing.assert_array_equal(result.raw, phantom.raw)
    assert result.labels.shape == SHAPE and (result.labels > 0).all()
    scores = json.loads(Path("results/metrics.json").read_text())
    assert {"voi_split", "voi_merge", "arand"} <= scores.keys()
    assert names["threshold"] == 0.3  # from the model's notes


def test_a_voxel_size_that_no_microscope_has_is_taken_to_the_end(lesson, phantom):
    write_volume(phantom, "brain.h5")
    with pytest.warns(UserWarning, match="no electron microscope has"):
        lesson(VOLUME="brain.h5", VOXEL_SIZE="12000 8 8")
    assert read_volume("results/segmentation.h5", voxel_size=(12000, 8, 8)).load().labels.any()


def test_a_result_that_may_not_be_replaced_stops_the_lesson_before_it_computes(lesson, phantom, monkeypatch):
    write_volume(phantom, "results/segmentation.h5")
    with h5py.File("results/segmentation.h5", "a") as file:
        file["my_notes"] = [1, 2]
    monkeypatch.setattr("fgnet_lib.inference.predict", None)
    with pytest.raises(ValueError, match="other arrays: my_notes"):
        lesson()


def test_without_labels_there_is_no_score_and_no_old_one(lesson, phantom):
    tifffile.imwrite("stack.tif", phantom.raw)
    Path("results").mkdir()
    Path("results/metrics.json").write_text("of another volume")
    lesson(VOLUME="stack.tif", VOXEL_SIZE="40,8,8")
    assert read_volume("results/segmentation.h5").voxel_size == (40.0, 8.0, 8.0)
    assert not Path("results/metrics.json").exists()


def test_keys_labels_in_a_file_of_their_own_and_a_threshold(lesson, phantom):
    with h5py.File("raw.h5", "w") as file:
        file["em/image"] = phantom.raw
    with h5py.File("truth.h5", "w") as file:
        file["ids"] = phantom.labels
    own = {"RAW_KEY": "em/image", "VOXEL_SIZE": "40,8,8", "LABELS": "truth.h5", "LABELS_KEY": "ids"}
    names = lesson(VOLUME="raw.h5", THRESHOLD=0.0, **own)
    np.testing.assert_array_equal(names["volume"].labels, phantom.labels)
    assert names["threshold"] == 0.0
    assert Path("results/metrics.json").is_file()


@pytest.mark.parametrize("size", ["40 8 8", "[40, 8, 8]", [40, 8, 8], "0.04 0.008 0.008 um"])
def test_parameters_in_the_forms_that_papermill_gives(lesson, phantom, size):
    write_volume(phantom, "in a known layout.h5")
    with h5py.File("0", "w") as file:  # a file, too, may have a number for a name
        file["1"] = phantom.raw.transpose(2, 1, 0)
        file["2"] = np.where(phantom.labels == phantom.labels.max(), -1, phantom.labels.astype(np.int64)).T
    own = {"VOXEL_SIZE": size, "RAW_KEY": 1, "LABELS_KEY": 2, "AXES": "xyz", "UNKNOWN": -1}
    volume = lesson(VOLUME=0, LABELS=0, **own)["volume"]
    np.testing.assert_array_equal(volume.raw, phantom.raw)
    assert volume.voxel_size == (40.0, 8.0, 8.0) and (volume.labels == IGNORE).any()


@pytest.mark.parametrize("label", [0, 2**64 - 1])
def test_labels_without_one_known_voxel_end_the_scoring_and_not_the_lesson(lesson, phantom, label, capsys):
    write_volume(replace(phantom, labels=np.full(SHAPE, label, np.uint64)), "brain.h5")
    lesson(VOLUME="brain.h5")
    assert "no labels to compare with, so no score" in capsys.readouterr().out
    assert not Path("results/metrics.json").exists() and Path("results/segmentation.h5").exists()


def test_affinities_whose_channels_look_swapped_do_not_end_the_lesson(lesson, phantom, monkeypatch):
    write_volume(phantom, "brain.h5")
    monkeypatch.setattr(segmentation, "_find_channel_order", lambda _: ((1, 0, 2), (0, 0, 0)))
    with pytest.warns(UserWarning, match="another channel order"):
        lesson(VOLUME="brain.h5")
    assert Path("results/segmentation.h5").exists()


def test_an_own_volume_needs_no_folder_for_downloads(lesson, phantom, monkeypatch):
    write_volume(phantom, "brain.h5")
    Path("a file").touch()
    monkeypatch.setenv("FGNET_CACHE_DIR", str(Path("a file/cache").absolute()))
    lesson(VOLUME="brain.h5")
    assert Path("results/segmentation.h5").exists()


def test_adapted_the_volume_stays_as_it_is_and_none_gives_the_earlier_result(lesson, phantom):
    coarse = replace(phantom, voxel_size=(40.0, 16.0, 16.0))
    write_volume(coarse, "brain.h5")
    shipped = {"VOLUME": "brain.h5", "CHECKPOINT": "fgnet_mini"}
    adapted, again = lesson(ADAPT="voxel_size, histogram+clahe", **shipped), lesson(ADAPT="none", **shipped)
    assert adapted["steps"] == ("voxel_size", "histogram", "clahe") and again["steps"] == ()
    assert adapted["seen"].shape == (5, 64, 70) and adapted["affinities"].shape == (3, *SHAPE)
    for names in (adapted, again):
        np.testing.assert_array_equal(names["volume"].raw, phantom.raw)
    np.testing.assert_array_equal(read_volume("results/segmentation.h5").load().raw, phantom.raw)
    earlier = predict(load_pretrained(), phantom.raw, progress=False).refined
    np.testing.assert_array_equal(again["affinities"], earlier)
    assert np.abs(adapted["affinities"] - earlier).max() > 0.1


@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        ({"VOLUME": "nowhere.h5"}, FileNotFoundError, "nowhere.h5: no such file.*current folder"),
        ({"VOLUME": "brain.h5", "CHECKPOINT": "nowhere.pt"}, FileNotFoundError, "nowhere.pt"),
        ({"VOLUME": "brain.h5", "CHECKPOINT": "brain.h5"}, ValueError, "brain.h5.*safetensors"),
        ({"VOLUME": "brain.h5", "THRESHOLD": 1.5}, ValueError, "THRESHOLD is 1.5"),
        ({"VOLUME": "brain.h5", "RAW_KEY": "em"}, ValueError, "no dataset em.*volumes/raw"),
        ({"VOLUME": "brain.h5", "LABELS": "half.h5"}, ValueError, r"half.h5: labels of shape"),
        ({"VOLUME": "brain.h5", "VOXEL_SIZE": "40,-8,8"}, ValueError, "-8.0"),
        ({"VOLUME": "brain.h5", "VOXEL_SIZE": "40,8"}, ValueError, "VOXEL_SIZE is '40,8'.*along z, y, x"),
        (
            {"VOLUME": "brain.h5", "CHECKPOINT": "fgnet_mini", "VOXEL_SIZE": "0.04 0.008 0.008"},
            ValueError,
            "in another unit",
        ),
        ({"VOLUME": "brain.h5", "ADAPT": "gamma"}, ValueError, "'gamma' is no step.*voxel_size, histogram, clahe"),
        ({"VOLUME": "brain.h5", "ADAPT": "histogram"}, ValueError, "histogram needs.*mine.safetensors are not known"),
        ({"VOLUME": "brain.h5", "AXES": "zy"}, ValueError, "AXES is 'zy'"),
        ({"VOLUME": "brain.h5", "UNKNOWN": "?"}, ValueError, r"UNKNOWN is '\?'"),
        ({"VOLUME": "float.tif", "VOXEL_SIZE": "40,8,8"}, ValueError, "float.tif.*float32.*uint8"),
    ],
)
def test_bad_input_stops_early_and_keeps_the_last_result(lesson, phantom, parameters, error, message):
    write_volume(phantom, "brain.h5")
    write_volume(phantom[:2, :, :], "half.h5")
    tifffile.imwrite("float.tif", phantom.raw.astype(np.float32))
    last = write_volume(phantom, "results/segmentation.h5").read_bytes()
    with pytest.raises(error, match=message):
        lesson(**parameters)
    assert Path("results/segmentation.h5").read_bytes() == last
