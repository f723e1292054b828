"""The results harness: a tiny row through all of it, resume, and a page that says what the files say."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import render_results
import results

from fgnet_lib import ablations
from fgnet_lib.datasets import open_dataset
from fgnet_lib.fgnet import load_pretrained
from fgnet_lib.phantom import make_phantom


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """Rows of two iterations on a small phantom in the place of every volume; results in a folder of their own."""
    volume = make_phantom((8, 96, 96), seed=0)
    monkeypatch.setattr(results, "open_dataset", lambda name, part: volume)
    monkeypatch.setattr(results, "SECTIONS", 4)
    monkeypatch.setattr(results, "VOLUMES", {"fib25": False, "ac4": True})
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    monkeypatch.setattr(results, "THRESHOLDS", [0.3, 0.6])
    rows = {
        "random_frozen": replace(results.ROWS["random_frozen"], sections=4, iterations=2),
        "unet": replace(results.ROWS["unet"], sections=4, iterations=2),
    }
    monkeypatch.setattr(results, "ROWS", rows)
    original = results.training
    monkeypatch.setattr(results, "training", lambda row, seed: replace(original(row, seed), patch=(4, 32, 32)))
    return tmp_path


def test_a_row_is_trained_measured_and_written(tiny):
    results.do("random_frozen", 1, tiny / "work")
    found = json.loads((tiny / "random_frozen-1.json").read_text())
    assert found["training"]["iterations"] == found["declared"]["iterations"] == 2
    assert 0 < found["training"]["trainable"] < found["training"]["parameters"]
    assert set(found["volumes"]) == {"fib25", "ac4"} and set(found["thresholds"]) == {"refined", "coarse"}
    one = found["volumes"]["fib25"]["refined"]
    assert one["voi_split"] + one["voi_merge"] > 0 and one["segments"] >= 1
    assert one["worst"][0]["kind"] in ("split", "merge") and len(one["worst"][0]["voxel"]) == 3
    assert len(found["volumes"]["fib25"]["refined_curve"]) == 2 and found["volumes"]["ac4"]["seconds"] > 0
    assert set(found["attention"]) == {"a1", "a2", "a3"}
    assert {"set_to_0.0", "set_to_mean", "set_to_1.0"} < set(found["attention"]["a1"])


def test_the_pictures_of_a_run_hold_its_segmentation_and_nothing_of_the_data():
    volume = make_phantom((8, 96, 96), seed=0)
    neuron = results.branched_neuron(volume.labels)
    segmentation = volume.labels.copy()
    half = (volume.labels == neuron) & (np.arange(96) > np.argwhere(volume.labels == neuron).mean(axis=0)[2])
    segmentation[half] = segmentation.max() + 1
    kept = results.pictured(segmentation, volume)
    assert set(kept) == {"z", "section", "errors", "parts", "covered"} and kept["z"] == 4
    assert kept["covered"].sum() == (volume.labels == neuron).sum() and len(kept["covered"]) == 2
    assert (kept["parts"] == 0).sum() == (volume.labels != neuron).sum()  # here the parts cover it, and nothing else
    assert set(np.unique(kept["errors"])) <= {0, 1} and kept["section"].shape == (96, 96)


def test_a_plain_unet_has_neither_attention_nor_coarse_affinities(tiny):
    results.do("unet", 0, tiny / "work")
    found = json.loads((tiny / "unet-0.json").read_text())
    assert "attention" not in found and set(found["thresholds"]) == {"refined"}
    assert found["training"]["trainable"] == found["training"]["parameters"]


def test_rescaled_predictions_come_back_in_the_volumes_own_voxels():
    volume = open_dataset("phantom", "val")[8:12, :100, :90]  # 8 nm in-plane: predicted at 80 x 72
    prediction = results.predicted(load_pretrained(), volume, rescale=True)
    plain = results.predicted(load_pretrained(), volume, rescale=False)
    assert prediction.refined.shape == (3, *volume.shape) and prediction.refined.dtype == np.float32
    assert prediction.refined.min() >= 0 and prediction.refined.max() <= 1
    assert np.corrcoef(prediction.refined.ravel(), plain.refined.ravel())[0, 1] > 0.7


def test_what_is_not_here_is_named_with_the_remedy(monkeypatch, tmp_path):
    monkeypatch.setenv("FGNET_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("FGNET_DATA_DIR", str(tmp_path))
    assert "sam2.1_hiera_tiny.pt" in results.missing("sam2_tiny")
    monkeypatch.setattr(ablations, "PRETRAINED", tmp_path)
    assert "make encoder" in results.missing("pretrained_frozen") and not results.missing("unet")
    monkeypatch.delenv("FGNET_DATA_DIR")
    assert "FGNET_DATA_DIR" in results.missing("unet")


def test_a_run_that_is_there_or_locked_is_not_done_again(monkeypatch, tmp_path):
    """Every other one is, each in a process of its own, and what fails is named at the end."""
    started = []
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    monkeypatch.setattr(results, "missing", lambda name: "no data" if name == "sam2_large" else "")
    monkeypatch.setattr(results.subprocess, "run", lambda command: started.append(command[-2:]) or Failed(command))
    (tmp_path / "unet-0.json").write_text("{}")
    folder = tmp_path / "work" / "unet-1"
    folder.mkdir(parents=True)
    lock = (folder / "lock").open("w")
    results.fcntl.flock(lock, results.fcntl.LOCK_EX)
    monkeypatch.setattr(
        results.sys, "argv", ["results.py", "--work", str(tmp_path / "work"), "--rows", "unet", "sam2_large"]
    )
    with pytest.raises(SystemExit, match="unet, seed 2"):
        results.main()
    assert started == [["unet", "2"]]


class Failed:
    def __init__(self, command):
        self.returncode = 1


def made(name: str, seed: int, voi: float) -> dict:
    one = {"voi_split": voi - 0.25, "voi_merge": 0.25, "arand": voi / 10}
    volume = {
        "seconds": 2.0,
        "voxels": 4_000_000,
        "refined": one,
        "refined_fragments": one,
        "refined_curve": [[0.3, 1, 2]],
    }
    return {
        "row": name,
        "seed": seed,
        "thresholds": {"refined": 0.3},
        "peak_memory_mb": 900.0,
        "training": {"parameters": 1000, "trainable": 500, "iterations": 7, "minutes": 1.5},
        "volumes": {"fib25": volume, "gala": volume},
    }


def test_the_page_says_what_the_files_say(tmp_path):
    for seed, voi in enumerate((1.0, 1.2, 1.4)):
        (tmp_path / f"unet-{seed}.json").write_text(json.dumps(made("unet", seed, voi)))
    found = render_results.load(tmp_path)
    text = render_results.page(found)
    line = next(line for line in text.splitlines() if line.startswith("| 3D U-Net (FGE alone) |"))
    assert "1,000 (500) | 7 | 1.5 ± 0.0 | 2.00 ± 0.00 | 900 |" in line
    assert "| 0.950 ± 0.200 | 0.250 ± 0.000 | 1.200 ± 0.200 | 0.120 ± 0.020 | 3 |" in line
    assert "not measured here: `make results ROWS=sam2_tiny`" in text
    for draw in (render_results.draw_curves, render_results.draw_efficiency):
        assert [text.get_text() for text in draw(found).axes[0].get_legend().get_texts()] == ["3D U-Net (FGE alone)"]
