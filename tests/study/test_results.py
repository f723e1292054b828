"""The results harness: a tiny row through all of it, resume, and a page that says what the files say."""

from __future__ import annotations

import json
import zlib
from dataclasses import asdict, replace

import numpy as np
import pytest
import render_results
import results
import torch

from fgnet_lib.datasets import open_dataset
from fgnet_lib.phantom import make_phantom
from fgnet_lib.sam2_encoder import build_encoder
from fgnet_lib.study import rows, statistics, table
from fgnet_lib.study.evaluation import predict_rescaled
from fgnet_lib.study.rows import GUIDED, QUESTIONS, ROWS, training
from fgnet_lib.weights import PRETRAINED, load_pretrained, read_notes


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
    assert table.pictures({"row": "random_frozen", "seed": 1}, tiny)["section"].shape == (96, 96)
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
    neuron = results.long_neuron(volume.labels)
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
    prediction = predict_rescaled(load_pretrained(), volume, rescale=True)
    plain = predict_rescaled(load_pretrained(), volume, rescale=False)
    assert prediction.refined.shape == (3, *volume.shape) and prediction.refined.dtype == np.float32
    assert prediction.refined.min() >= 0 and prediction.refined.max() <= 1
    assert np.corrcoef(prediction.refined.ravel(), plain.refined.ravel())[0, 1] > 0.7


def test_what_is_not_here_is_named_with_the_remedy(monkeypatch, tmp_path):
    monkeypatch.setenv("FGNET_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("FGNET_DATA_DIR", str(tmp_path))
    for name in ("pretrained_frozen_tiny", "random_frozen_tiny_5"):  # random weights are there to compare with
        assert "sam2.1_hiera_tiny.pt" in results.obstacle(name)
    monkeypatch.setattr(rows, "PRETRAINED", tmp_path)
    assert "make encoder" in results.obstacle("pretrained_frozen") and not results.obstacle("unet")
    monkeypatch.delenv("FGNET_DATA_DIR")
    assert "FGNET_DATA_DIR" in results.obstacle("unet")


def test_a_run_that_is_there_or_locked_is_not_done_again(monkeypatch, tmp_path):
    """Every other one is, each in a process of its own, and what fails is named at the end."""
    started = []
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    monkeypatch.setattr(results, "obstacle", lambda name: "no data" if name == "fine_tuned_large" else "")
    monkeypatch.setattr(results.subprocess, "run", lambda command: started.append(command[-2:]) or Failed(command))
    (tmp_path / "unet-0.json").write_text("{}")
    folder = tmp_path / "work" / "unet-1"
    folder.mkdir(parents=True)
    lock = (folder / "lock").open("w")
    results.fcntl.flock(lock, results.fcntl.LOCK_EX)
    arguments = ["--work", str(tmp_path / "work"), "--rows", "unet", "fine_tuned_large"]
    monkeypatch.setattr(results.sys, "argv", ["results.py", *arguments])
    with pytest.raises(SystemExit, match="unet, seed 2"):
        results.main()
    assert started == [["unet", "2"]]


def test_one_parameter_runs_the_comparison_with_an_encoder_of_sam2(monkeypatch, tmp_path):
    started = []
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    monkeypatch.setattr(results, "obstacle", lambda name: "")
    monkeypatch.setattr(results.subprocess, "run", lambda command: started.append(command[-2]) or Failed(command))
    monkeypatch.setattr(results.sys, "argv", ["results.py", "--work", str(tmp_path / "work"), "--encoder", "tiny"])
    with pytest.raises(SystemExit, match="failed"):
        results.main()
    assert set(started) == {f"{regime}_tiny{part}" for regime in GUIDED for part in ("", "_5", "_20")}
    assert len(started) == 3 * len(set(started))
    for name in set(started):
        mini, row = results.ROWS[name.replace("_tiny", "")], results.ROWS[name]
        assert replace(row, title="", config=replace(row.config, encoder="mini"), encoder="") == replace(
            mini, title="", encoder=""
        )
        assert (row.encoder == "random") == (mini.encoder == "random")
    order = [name for name, _ in results.runs()]
    assert order.index("fine_tuned_tiny") > max(number for number, name in enumerate(order) if name == "additive_20")


def test_a_row_with_sam2_s_own_encoder_runs_where_its_checkpoint_is(tiny, monkeypatch, tmp_path):
    """A file of the official layout with random weights stands for it."""
    encoder = build_encoder("tiny")
    torch.save({"model": encoder.state_dict()}, tmp_path / "official.pt")
    monkeypatch.setattr(rows, "fetch", lambda name, download: tmp_path / "official.pt")
    monkeypatch.setenv("FGNET_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(results, "attention_measured", lambda model, threshold: {})  # as with the mini encoder
    row = replace(ROWS["pretrained_frozen_tiny"], sections=4, iterations=1)
    results.ROWS["pretrained_frozen_tiny"] = row
    assert not results.obstacle("pretrained_frozen_tiny")
    results.do("pretrained_frozen_tiny", 0, tmp_path / "work")
    found = json.loads((tmp_path / "pretrained_frozen_tiny-0.json").read_text())
    assert found["checkpoint"] == zlib.crc32((tmp_path / "official.pt").read_bytes())
    encoders = sum(weights.numel() for weights in encoder.parameters())
    assert found["training"]["parameters"] - found["training"]["trainable"] == encoders


class Failed:
    def __init__(self, command):
        self.returncode = 1


def made(name: str, seed: int, voi: float) -> dict:
    one = {
        "voi_split": voi - 0.25,
        "voi_merge": 0.25,
        "arand": voi / 10,
        "segments": 40,
        "worst": [{"kind": "merge", "label": 3, "bits": 0.1, "parts": 4, "voxel": [1, 2, 3]}],
    }
    volume = {
        "seconds": 2.0,
        "voxels": 4_000_000,
        "refined": one,
        "refined_fragments": one,
        "refined_curve": [[0.3, 1, 2], [0.5, 0.5, 2.5]],
    }
    level = {"auc_membrane": 0.2, "correlation_with_error": 0.1, "std": 0.05}
    return {
        "row": name,
        "seed": seed,
        "declared": {},
        "machine": "a machine",
        "load": 9.0 if seed == 2 else 1.0,
        "cores": 2,
        "date": "2026-11-21",
        "thresholds": {"refined": 0.5},
        "peak_memory_mb": 900.0,
        "training": {"parameters": 1000, "trainable": 500, "iterations": 7, "minutes": 1.5, "device": "cpu"},
        "volumes": {"fib25": volume, "gala": volume},
        "attention": {"a1": level | {f"set_to_{value}": one for value in ("0.0", "mean", "1.0")}},
    }


@pytest.fixture
def measured(tmp_path) -> dict[str, list[dict]]:
    """Three seeds of a plain U-Net, one of it with five sections, and one of a fine-tuned FGNet."""
    vois = {("unet", 0): 1.0, ("unet", 1): 1.2, ("unet", 2): 1.4, ("unet_5", 0): 2.0, ("fine_tuned", 0): 1.1}
    for (name, seed), voi in vois.items():
        (tmp_path / f"{name}-{seed}.json").write_text(json.dumps(made(name, seed, voi)))
    return table.load(tmp_path)


def test_the_page_says_what_the_files_say(measured):
    text = render_results.page(measured)
    line = next(line for line in text.splitlines() if line.startswith("| 3D U-Net (FGE alone) |"))
    assert "1,000 (500) | 7 | 1.5 ± 0.0 | 2.00 ± 0.00 | 900 |" in line
    assert "| 0.950 ± 0.200 | 0.250 ± 0.000 | 1.200 ± 0.200 | 0.120 ± 0.020 | 3 |" in line
    assert "not measured here: `make results ENCODER=tiny`" in text and "ROWS=fine_tuned_tiny" not in text
    assert "1 of 3 seeds measured here; the others: `make results ROWS=fine_tuned`" in text
    assert "may be too slow (seeds): 3D U-Net (FGE alone) (2)." in text
    assert "| 3D U-Net (FGE alone) | 40 |  | 0.100 bits, 4 parts, at (1, 2, 3) |" in text


def test_questions_are_asked_for_every_number_of_sections_that_has_both_rows(measured):
    lines = [line for line in render_results.page(measured).splitlines() if line.startswith("| all of it, at equal it")]
    assert [line.split(" | ")[1:3] for line in lines] == [["fine_tuned against unet", n] for n in ("120", "20", "5")]
    assert "| 1.100 (1) | 1.200 ± 0.200 (3) | 0.100 lower; one seed only" in lines[0]
    assert lines[2].endswith("|  | 2.000 (1) | not measured here |")
    assert table.with_sections("plain_attention", 5) is None
    assert all(name in ROWS for pair in QUESTIONS.values() for name in pair)


def test_an_encoder_of_sam2_is_asked_about_as_soon_as_one_run_has_it(measured):
    assert table.questions(measured) == QUESTIONS
    measured["random_frozen_tiny_5"] = [made("random_frozen_tiny_5", 0, 1.5)]
    said, asked = table.lacking(measured), table.questions(measured)
    assert "1 of 3 seeds" in said["random_frozen_tiny_5"] and "ROWS=fine_tuned_tiny`" in said["fine_tuned_tiny"]
    assert "ENCODER=small" in said["pretrained_frozen_small"] and "fine_tuned_small" not in said
    assert asked["SAM2.1 tiny: a guide at all, without knowledge"] == ("random_frozen_tiny", "unet")
    assert asked["SAM2.1 tiny: fine-tuning, at equal iterations"] == ("fine_tuned_tiny", "pretrained_frozen_tiny")
    official = {question: pair for question, pair in asked.items() if "SAM2.1" in question}
    assert not any("small" in question or "longer" in "".join(pair) for question, pair in official.items())
    line = "tiny: a guide at all, without knowledge | random_frozen_tiny against unet | 5 | 1.500 (1) | 2.000 (1) |"
    assert line in render_results.page(measured)


def test_rows_of_two_postprocessings_are_told_apart(measured):
    assert list(table.postprocessings(measured)) == ["not noted"]
    assert "same post-processing" not in render_results.page(measured)
    measured["fine_tuned"][0]["postprocessing"] = 255
    text = render_results.page(measured)
    assert "**Not all rows had the same post-processing; compare within a line only.**" in text
    assert "- version 000000ff: FGNet, pretrained encoder, fine-tuned, seed 0\n" in text


def test_stages_of_the_shipped_model_are_shown_at_the_threshold_that_training_sections_chose(measured):
    part = [[0.5, 0.75, 0.5, 0.125], [0.75, 0.5, 0.25, 0.0625]]
    stage = {"iterations": 300, "minutes": 2.6, "threshold": 0.5, "training": part, "validation": part}
    measured["shipped"] = [made("shipped", 0, 1.0)]
    measured["shipped"][0]["training"]["tried"] = [stage]
    assert "| 300 | 3 | 0.5 | 1.250 | 0.125 | 1.250 | 0.125 | 0.750 |" in render_results.page(measured)
    chosen, at_all = render_results.draw_tried(measured).axes
    assert [line.get_ydata()[0] for line in chosen.lines[:2]] == [1.25, 1.25]
    assert list(at_all.lines[0].get_ydata()) == [1.25, 0.75] and at_all.lines[1].get_xdata()[0] == 0.5


def test_figures_show_the_rows_that_are_there(measured):
    (curves,), (efficiency,) = (
        draw(measured).axes for draw in (render_results.draw_curves, render_results.draw_efficiency)
    )
    rows = ["3D U-Net (FGE alone)", "FGNet, pretrained encoder, fine-tuned"]  # that with five sections is in the other
    assert [text.get_text() for text in curves.get_legend().get_texts()] == rows
    assert [text.get_text() for text in efficiency.get_legend().get_texts()] == rows
    assert [label.get_text() for label in efficiency.get_xticklabels()] == ["5", "120"]


def test_without_any_file_the_page_names_the_commands():
    text = render_results.page({})
    assert "not measured here: `make results ROWS=unet`" in text and "Nothing of this is measured here yet" in text
    assert (
        len(render_results.draw_curves({}).axes[0].lines) == len(render_results.draw_efficiency({}).axes[0].lines) == 0
    )


def test_the_committed_page_is_what_the_committed_files_give():
    assert render_results.PAGE.read_text("utf-8") == render_results.page(table.load()), "run `make results`"


def test_committed_rows_are_those_that_are_declared():
    for name, runs in table.load().items():
        for run in (run for run in runs if name in ROWS):
            row, recipe = ROWS[name], training(ROWS[name], run["seed"])
            assert run["declared"] == json.loads(json.dumps(asdict(row) | {"training": asdict(recipe)})), name
            assert run["training"]["iterations"] == row.iterations, name


def test_committed_rows_began_with_the_encoder_that_is_shipped():
    shipped = zlib.crc32((PRETRAINED / "encoder_mini.pt").read_bytes())
    rows = {name for name, row in ROWS.items() if row.encoder == "pretrained" and row.config.encoder}
    begun_with = {run["checkpoint"] for name, runs in table.load().items() if name in rows for run in runs}
    assert begun_with <= {shipped}


def test_what_a_difference_allows_to_say():
    assert statistics.spread([1.0]) is None and statistics.spread([1.0, 1.2, 1.4]) == pytest.approx(0.2)
    assert statistics.summary([1.0]) == "1.000" and statistics.summary([1.0, 1.2, 1.4], 1) == "1.2 ± 0.2"
    assert statistics.chance([1, 2, 3], [4, 5, 6]) == pytest.approx(2 / 20)
    assert statistics.chance([1, 1], [1, 1]) == 1 and statistics.chance([1], [2]) == 1
    assert statistics.compared([], [1.0]) == "not measured here"
    assert "nothing follows" in statistics.compared([1.0], [1.1, 1.2])
    assert statistics.compared([1.0, 1.1], [2.0, 2.1]).startswith(
        "1.000 lower, which is more than the spread of single runs, 0.071"
    )
    assert statistics.paired([1.2], [1.0]) == "+0.200 in the only run; another training may differ"
    assert statistics.paired([1.2, 1.0], [1.0, 1.0]) == "+0.100 ± 0.141, up in 1 of 2 runs"
    assert statistics.paired([], []) == "not measured here"
    assert "is not more than the spread" in statistics.compared([1.0, 2.0], [1.1, 2.1])


def test_scores_of_runs(measured):
    assert table.scores(measured["unet"], "voi") == pytest.approx([1.0, 1.2, 1.4])
    assert table.scores(measured["unet"], "voi", "ac4") == []
    merge, split, chosen = table.curve(measured["unet"][0])
    assert (merge[chosen], split[chosen]) == (2.5, 0.5)
    assert table.by_sections(measured)["3D U-Net (FGE alone)"] == {120: pytest.approx([1.0, 1.2, 1.4]), 5: [2.0]}
    (level,) = table.attention_statistics({"fine_tuned": measured["fine_tuned"]})
    assert (level.row, level.auc, level.darker) == ("fine_tuned", [0.8], 1)
    assert level.set_to["mean"] == pytest.approx([1.1])


def test_pictures_of_a_run_lie_beside_its_file(tmp_path):
    run = made("unet", 0, 1.0)
    assert table.pictures(run, tmp_path) == {}
    np.savez(tmp_path / "unet-0.npz", z=np.array(4))
    assert table.pictures(run, tmp_path) == {"z": 4}


def test_the_shipped_row_is_of_the_weights_that_ship():
    (run,) = table.load()["shipped"]
    assert run["training"]["tried"] == read_notes(PRETRAINED / "fgnet_mini.safetensors")["tried"]
