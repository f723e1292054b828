"""The results harness: a tiny row through all of it, resume, and pages that say what the table of runs says."""

from __future__ import annotations

import doctest
import fcntl
import json
import re
import subprocess
import threading
from dataclasses import asdict, replace
from functools import partial
from itertools import product

import matplotlib.pyplot as plt
import numpy as np
import pytest
import render_results
import results
import torch

from fgnet_lib import REPOSITORY
from fgnet_lib.affinities import affinities_from_labels, widen_borders
from fgnet_lib.configuration import FGNetConfig
from fgnet_lib.datasets import open_dataset
from fgnet_lib.files.locks import LockedError, lock
from fgnet_lib.inference import Prediction
from fgnet_lib.phantom import make_phantom
from fgnet_lib.sam2_encoder import build_encoder
from fgnet_lib.study import rows, runs, statistics, table
from fgnet_lib.study.evaluation import postprocessing_version, predict_rescaled
from fgnet_lib.study.rows import GUIDED, QUESTIONS, ROWS, Row, seeds, training
from fgnet_lib.training import TrainConfig
from fgnet_lib.views import plots
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


@pytest.mark.slow
def test_a_row_is_trained_measured_and_written(tiny):
    results.run_once("random_frozen", 0, tiny / "work")
    (run,) = runs.read_runs(tiny)
    assert runs.load_pictures(run, tiny)["section"].shape == (96, 96)
    assert run["training"]["iterations"] == run["declared"]["iterations"] == 2
    assert 0 < run["training"]["trainable"] < run["training"]["parameters"]
    assert set(run["volumes"]) == {"fib25", "ac4"} and set(run["thresholds"]) == {"refined", "coarse"}
    refined = run["volumes"]["fib25"]["refined"]
    assert refined["voi_split"] + refined["voi_merge"] > 0 and refined["segments"] >= 1
    assert refined["worst"][0]["kind"] in ("split", "merge") and len(refined["worst"][0]["voxel"]) == 3
    assert len(run["volumes"]["fib25"]["refined_curve"]) == 2 and run["volumes"]["ac4"]["seconds"] > 0
    assert set(run["attention"]) == {"a1", "a2", "a3"}
    assert {"set_to_0.0", "set_to_mean", "set_to_1.0"} < set(run["attention"]["a1"])


def test_the_pictures_of_a_run_hold_its_segmentation_and_nothing_of_the_data():
    volume = make_phantom((8, 96, 96), seed=0)
    neuron = results.choose_neuron(volume.labels)
    segmentation = volume.labels.copy()
    half = (volume.labels == neuron) & (np.arange(96) > np.argwhere(volume.labels == neuron).mean(axis=0)[2])
    segmentation[half] = segmentation.max() + 1
    kept = results.make_pictures(segmentation, volume)
    assert set(kept) == {"z", "section", "errors", "parts", "covered"} and kept["z"] == 4
    assert kept["covered"].sum() == (volume.labels == neuron).sum() and len(kept["covered"]) == 2
    assert (kept["parts"] == 0).sum() == (volume.labels != neuron).sum()  # here the parts cover it, and nothing else
    assert set(np.unique(kept["errors"])) <= {0, 1} and kept["section"].shape == (96, 96)


@pytest.mark.slow
def test_a_plain_unet_has_neither_attention_nor_coarse_affinities(tiny):
    results.run_once("unet", 1, tiny / "work")
    (run,) = runs.read_runs(tiny)
    assert runs.load_pictures(run, tiny) == {}  # only first seeds keep theirs
    assert "attention" not in run and set(run["thresholds"]) == {"refined"}
    assert run["training"]["trainable"] == run["training"]["parameters"]


@pytest.mark.slow
def test_affinities_of_a_bad_model_are_measured_as_they_are(tiny, monkeypatch):
    """Those of a model that fails on new tissue may look like another order of channels, yet they are ours."""
    truth = affinities_from_labels(widen_borders(make_phantom((8, 96, 96), seed=0).labels)).astype(np.float32)

    def predict(model, seen, *args, **options):
        return Prediction(truth[[2, 0, 1], -seen.shape[0] :], coarse=None, attention=())

    monkeypatch.setattr(results, "predict", predict)
    monkeypatch.setattr(results, "predict_rescaled", predict)
    with pytest.warns(UserWarning, match="another channel order"):
        results.run_once("unet", 0, tiny / "work")
    assert runs.read_runs(tiny)[0]["volumes"]["ac4"]["refined"]["voi_merge"] >= 0


@pytest.mark.slow
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
        assert "sam2.1_hiera_tiny.pt" in results.find_obstacle(name)
    monkeypatch.setattr(rows, "PRETRAINED", tmp_path)
    assert "make encoder" in results.find_obstacle("pretrained_frozen") and not results.find_obstacle("unet")
    monkeypatch.delenv("FGNET_DATA_DIR")
    assert "FGNET_DATA_DIR" in results.find_obstacle("unet")


def test_a_run_that_is_measured_or_locked_is_not_done_again(monkeypatch, tmp_path):
    """Every other one is, each in a process of its own, and what fails is named at the end."""
    started = []
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    monkeypatch.setattr(results, "find_obstacle", lambda name: "no data" if name == "fine_tuned_large" else "")
    monkeypatch.setattr(results.subprocess, "run", lambda command: started.append(command[-2:]) or Failed(command))
    runs.add_runs([made("unet", 0, 1.0)], tmp_path)
    folder = tmp_path / "work" / "unet-1"
    folder.mkdir(parents=True)
    lock = (folder / "lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    arguments = ["--work", str(tmp_path / "work"), "--rows", "unet", "fine_tuned_large"]
    monkeypatch.setattr(results.sys, "argv", ["results.py", *arguments])
    with pytest.raises(SystemExit, match="unet, seed 2"):
        results.main()
    assert started == [["unet", "2"]]


@pytest.mark.slow
def test_a_row_that_is_declared_otherwise_is_named_until_it_is_removed(tiny, monkeypatch, capsys):
    """Neither are its old runs taken for the new row, nor does the new one go on from their checkpoints."""
    work, declared = tiny / "work", replace(results.ROWS["unet"], iterations=3)

    def run_here(command: list[str]) -> subprocess.CompletedProcess:
        results.run_once("unet", 0, work / "unet-0")
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(results, "find_obstacle", lambda _: "")
    monkeypatch.setattr(results, "list_runs", lambda: [("unet", 0)])
    monkeypatch.setattr(results.subprocess, "run", run_here)
    monkeypatch.setattr(results.sys, "argv", ["results.py", "--work", str(work), "--remove", "unet"])
    results.run_missing(["unet"], 60, work)
    monkeypatch.setitem(results.ROWS, "unet", declared)
    results.run_missing(["unet"], 60, work)
    assert "not measured again, though iterations was 2, is now 3" in capsys.readouterr().out
    results.main()
    results.run_missing(["unet"], 60, work)
    assert [run["training"]["iterations"] for run in runs.read_runs(tiny)] == [3]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--rows", "unet", "unett"], "no row unett"), (["--rows", "unet", "--encoder", "tiny"], "encoder tiny")],
)
def test_rows_that_are_not_declared_are_refused(monkeypatch, capsys, arguments, message):
    monkeypatch.setattr(results, "run_missing", lambda *_: pytest.fail("it began"))
    monkeypatch.setattr(results.sys, "argv", ["results.py", *arguments])
    with pytest.raises(SystemExit):
        results.main()
    assert message in capsys.readouterr().err


def test_one_parameter_runs_the_comparison_with_an_encoder_of_sam2(monkeypatch, tmp_path):
    started = []
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    monkeypatch.setattr(results, "find_obstacle", lambda name: "")
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
    order = [name for name, _ in results.list_runs()]
    assert order.index("fine_tuned_tiny") > max(number for number, name in enumerate(order) if name == "additive_20")


@pytest.mark.slow
def test_a_row_with_sam2_s_own_encoder_runs_where_its_checkpoint_is(tiny, monkeypatch, tmp_path):
    """Random weights in a file of the official layout serve as the checkpoint."""
    encoder = build_encoder("tiny")
    torch.save({"model": encoder.state_dict()}, tmp_path / "official.pt")
    monkeypatch.setattr(rows, "fetch", lambda name, download: tmp_path / "official.pt")
    monkeypatch.setenv("FGNET_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(results, "measure_attention", lambda model, threshold: {})  # as with the mini encoder
    row = replace(ROWS["pretrained_frozen_tiny"], sections=4, iterations=1)
    results.ROWS["pretrained_frozen_tiny"] = row
    assert not results.find_obstacle("pretrained_frozen_tiny")
    results.run_once("pretrained_frozen_tiny", 0, tmp_path / "work")
    (run,) = runs.read_runs(tmp_path)
    assert run["weights"] == {}  # those of SAM2's checkpoints are in the registry of downloads
    encoders = sum(weights.numel() for weights in encoder.parameters())
    assert run["training"]["parameters"] - run["training"]["trainable"] == encoders


class Failed:
    def __init__(self, command):
        self.returncode = 1


def made(name: str, seed: int, voi: float) -> dict:
    evaluation = {
        "voi_split": voi - 0.25,
        "voi_merge": 0.25,
        "arand": voi / 10,
        "against_components": {"voi_split": voi - 0.5, "voi_merge": 0.25},
        "segments": 40,
        "worst": [{"kind": "merge", "label": 3, "bits": 0.1, "parts": 4, "voxel": [1, 2, 3]}],
    }
    volume = {
        "seconds": 2.0,
        "voxels": 4_000_000,
        "refined": evaluation,
        "refined_fragments": evaluation,
        "refined_curve": [[0.3, 1, 2], [0.5, 0.5, 2.5]],
    }
    level = {"auc_membrane": 0.2, "correlation_with_error": 0.1, "std": 0.05}
    return {
        "row": name,
        "seed": seed,
        "declared": {},
        "weights": {},
        "machine": "a machine",
        "load": 9.0 if seed == 2 else 1.0,
        "cores": 2,
        "date": "2026-11-21",
        "thresholds": {"refined": 0.5},
        "peak_memory_mb": 900.0,
        "training": {"parameters": 1000, "trainable": 500, "iterations": 7, "minutes": 1.5, "device": "cpu"},
        "volumes": {"fib25": volume, "gala": volume},
        "attention": {"a1": level | {f"set_to_{value}": evaluation for value in ("0.0", "mean", "1.0")}},
    }


@pytest.fixture
def measured(tmp_path) -> dict[str, list[dict]]:
    """Three seeds of a plain U-Net, one of it with five sections, and one of a fine-tuned FGNet."""
    vois = {("unet", 0): 1.0, ("unet", 1): 1.2, ("unet", 2): 1.4, ("unet_5", 0): 2.0, ("fine_tuned", 0): 1.1}
    runs.add_runs([made(name, seed, voi) for (name, seed), voi in vois.items()], tmp_path)
    return table.load_rows(tmp_path)


def test_the_table_is_the_same_bytes_in_any_order_and_holds_every_digit(tmp_path):
    """Whole numbers, fractions and text come back as they went in."""
    some = [made("unet", seed, 1 / (3 + seed)) for seed in (2, 0, 1)] + [made("fine_tuned", 0, 0.1)]
    assert runs.add_runs(some, tmp_path / "a") == 4
    assert [runs.add_runs([run], tmp_path / "b") for run in reversed(some)] == [1] * 4
    assert runs.add_runs(some[:2], tmp_path / "b") == 0
    assert (tmp_path / "a" / runs.TABLE).read_bytes() == (tmp_path / "b" / runs.TABLE).read_bytes()
    assert runs.read_runs(tmp_path / "a") == [some[3], some[1], some[2], some[0]]
    assert runs.read_runs(tmp_path / "nothing") == []


def test_another_result_of_a_run_is_refused_until_its_row_is_removed(tmp_path):
    runs.add_runs([made("unet", 0, 1.0), made("unet_5", 0, 1.0)], tmp_path)
    before = (tmp_path / runs.TABLE).read_bytes()
    with pytest.raises(ValueError, match=r"another run of unet, seed 0"):
        runs.add_runs([made("unet", 1, 1.0), made("unet", 0, 2.0)], tmp_path)
    assert (tmp_path / runs.TABLE).read_bytes() == before
    runs.picture_path("unet", 0, tmp_path).write_bytes(b"")
    assert runs.remove_rows(["unet"], tmp_path) == 1 and not runs.picture_path("unet", 0, tmp_path).exists()
    assert runs.add_runs([made("unet", 0, 2.0)], tmp_path) == 1
    assert [run["row"] for run in runs.read_runs(tmp_path)] == ["unet", "unet_5"]


def test_terminals_that_add_at_once_wait_for_each_other(tmp_path):
    terminals = [threading.Thread(target=runs.add_runs, args=([made("unet", k, 1.0)], tmp_path)) for k in range(8)]
    for terminal in terminals:
        terminal.start()
    for terminal in terminals:
        terminal.join()
    assert [run["seed"] for run in runs.read_runs(tmp_path)] == list(range(8))


def test_a_killed_write_leaves_the_table_as_it_was(tmp_path, monkeypatch):
    runs.add_runs([made("unet", 0, 1.0)], tmp_path)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(type(tmp_path), "replace", lambda *paths: (_ for _ in ()).throw(KeyboardInterrupt))
        runs.add_runs([made("unet", 1, 1.0)], tmp_path)
    assert len(runs.read_runs(tmp_path)) == 1 and runs.add_runs([made("unet", 1, 1.0)], tmp_path) == 1


def test_loose_files_are_merged_with_the_pictures_that_a_lesson_shows(tmp_path, monkeypatch, capsys):
    loose, folder = tmp_path / "loose", tmp_path / "table"
    loose.mkdir()
    for name, seed in (("unet", 0), ("unet", 1), ("unet_5", 0)):
        (loose / f"{name}-{seed}.json").write_text(json.dumps(made(name, seed, 1.0), indent=1))
        np.savez(loose / f"{name}-{seed}.npz", z=np.array(4))
    monkeypatch.setattr(results, "RESULTS", folder)
    monkeypatch.setattr(results.sys, "argv", ["results.py", "--merge", str(loose)])
    results.main()
    results.main()
    assert capsys.readouterr().out.splitlines() == ["3 runs added to the table", "0 runs added to the table"]
    pictures = [runs.load_pictures(run, folder) for run in runs.read_runs(folder)]
    assert pictures == [{"z": 4}, {}, {}]  # the first seed of a row with all sections


def test_the_pages_say_what_the_table_says(measured):
    text = render_results.rows_page(measured)
    line = next(line for line in text.splitlines() if line.startswith("| 3D U-Net (FGE alone) |"))
    assert "1,000 (500) | 7 | 1.5 ± 0.0 | 2.00 ± 0.00 | 900 |" in line
    assert "| 0.950 ± 0.200 | 0.250 ± 0.000 | 1.200 ± 0.200 | 0.120 ± 0.020 | 0.950 ± 0.200 | 3 |" in line
    assert "may be too slow (seeds): 3D U-Net (FGE alone) (2)." in text
    assert "| 3D U-Net (FGE alone) | 40 |  | 0.100 bits, 4 parts, at (1, 2, 3) |" in text
    attention = render_results.attention_page(measured)
    assert "| FGNet, pretrained encoder, fine-tuned | a1 | 0.80 | 1 of 1 | 0.10 | 0.05 | 1.100 |" in attention


def test_one_sentence_names_what_is_not_measured_and_the_commands(measured):
    sentence = table.describe_gaps(measured)
    assert "encoders tiny, small, base_plus, large as guides (`make results ENCODER=tiny` and so on)" in sentence
    declared = sum(len(seeds(name)) for name, row in ROWS.items() if row.config.encoder not in rows.OFFICIAL)
    special = len(rows.TITLES) - len(ROWS)  # measured once, without training: references, the shipped model
    assert f"other runs: {special + declared - 5} (`make results`)" in sentence
    assert sentence in render_results.results_page(measured)
    everything = {name: [made(name, seed, 1.0) for seed in rows.SEEDS_OF_FEW] for name in rows.TITLES}
    assert table.describe_gaps(everything) == "Every declared run is measured."
    del everything["unet"][1:]
    assert table.describe_gaps(everything) == 'Not measured yet: other runs: 2 (`make results ROWS="unet"`).'


def test_questions_are_answered_for_every_number_of_sections_that_has_both_rows(measured):
    head, page = "| pretrained and fine-tuned, at equal iterations |", render_results.comparisons_page(measured)
    assert [line for line in page.splitlines() if line.startswith(head)] == [
        f"{head} fine_tuned against unet | 120 | 1.100 | 1.200 ± 0.200 | 1, 3 | -0.100 | single run |"
    ]
    assert table.with_sections("plain_attention", 5) is None
    assert all(name in ROWS for pair in QUESTIONS.values() for name in pair)
    for questions in render_results.FINDINGS.values():
        assert all(name in ROWS for _, *pair in questions for name in pair)


def test_a_finding_has_an_answer_for_every_number_of_sections_that_has_both_rows(measured):
    measured |= {name: [made(name, seed, 1.0) for seed in (0, 1)] for name in ("unet_longer", "unet_longer_20")}
    measured |= {
        name: [made(name, seed, 1.5) for seed in (0, 1)] for name in ("natural_additive_5", "natural_additive_20")
    }
    question = "**Does it help more than training a U-Net longer?** `natural_additive` against `unet_longer`"
    lines = [line for line in render_results.findings(measured).splitlines() if line.startswith("| **")]
    answer = "No, in no run: 1.500 ± 0.000 against 1.000 ± 0.000, p = 0.33"
    assert lines == [f"| {question} | not measured | {answer} | not measured |"]


def test_small_ps_are_counted_before_and_after_a_correction(measured):
    assert render_results.count_small(measured) == ""  # not one pair of rows with three runs each
    measured |= {
        name: [made(name, s, 1 + 0.1 * s) for s in range(5)] for name in ("natural_only_5", "natural_additive_5")
    }
    measured |= {
        f"{name}_random_5": [made(f"{name}_random_5", s, 2 + 0.1 * s) for s in range(5)]
        for name in ("natural_only", "natural_additive")
    }
    assert "Of 2 comparisons 2 have p < 0.05" in (text := render_results.count_small(measured))
    assert "leaves 2 " in text  # 2 x 0.008


@pytest.mark.parametrize(
    ("ours", "answer"),
    [
        ([1.0, 1.1, 1.2], "Yes, in every run: 1.100 ± 0.100 against 2.000 ± 0.200, p = 0.10"),
        ([1.0, 1.1, 1.5, 1.81], "On average yes, but single runs overlap"),
        ([1.0, 1.1, 2.3], "Not shown, chance may do as much"),
        ([2.15, 3.0, 3.2, 3.3], "On average no, but single runs overlap"),
        ([3.0, 3.1, 3.2], "No, in no run"),
    ],
)
def test_a_finding_is_in_words_and_has_its_p(ours, answer):
    assert answer in render_results.answer(ours, [1.8, 2.0, 2.2])


def test_an_encoder_of_sam2_is_asked_about_as_soon_as_one_run_has_it(measured):
    assert table.questions(measured) == QUESTIONS
    measured["random_frozen_tiny_5"] = [made("random_frozen_tiny_5", 0, 1.5)]
    sentence, pairs = table.describe_gaps(measured), table.questions(measured)
    assert "encoders small, base_plus, large as guides" in sentence
    assert pairs["SAM2.1 tiny: a guide with random weights"] == ("random_frozen_tiny", "unet")
    assert pairs["SAM2.1 tiny: fine-tuning, at equal iterations"] == ("fine_tuned_tiny", "pretrained_frozen_tiny")
    official = {question: pair for question, pair in pairs.items() if "SAM2.1" in question}
    assert not any("small" in question or "longer" in "".join(pair) for question, pair in official.items())
    pair = "tiny: a guide with random weights | random_frozen_tiny against unet"
    assert f"{pair} | 5 | 1.500 | 2.000 | 1, 1 | -0.500 | single run |" in render_results.comparisons_page(measured)


@pytest.mark.slow
def test_the_committed_rows_were_measured_with_the_post_processing_of_today():
    """Else measure them again, or say on the page which rows may be compared."""
    assert {run["postprocessing"] for run in runs.read_runs() if run["row"] != "references"} == {
        postprocessing_version()
    }


def test_lesson_05_says_of_three_views_what_the_table_says():
    text = (REPOSITORY / "notebooks" / "src" / "05_affinities_to_neurons.py").read_text(encoding="utf-8")
    views = r"VOI is (\S+) instead of (\S+) bits on FIB-25, and (\S+) instead of (\S+) on gala"
    said = re.search(views, text.replace("\n# ", " ")).groups()
    trained = table.trained_rows(table.load_rows())
    pairs = product(("fib25", "gala"), ("shipped_three_views", "shipped"))
    vois = [table.scores(trained[name], "voi", volume) for volume, name in pairs]
    assert said == tuple(f"{voi:.2f}" for (voi,) in vois)


def test_lesson_07_says_of_photographs_what_the_table_says():
    trained = table.trained_rows(table.load_rows())
    vois = {name: table.scores(trained[name], "voi") for name in trained if name.startswith("natural_")}
    ways = ("natural_only", "natural_residual", "natural_additive")
    pairs = {n: {way: (vois[f"{way}{n}"], vois[f"{way}_random{n}"]) for way in ways} for n in ("_5", "_20", "")}
    apart = {n: [way for way in ways if max(pairs[n][way][0]) < min(pairs[n][way][1])] for n in pairs}
    assert apart == {"_5": [*ways], "_20": ["natural_only"], "": ["natural_only", "natural_additive"]}
    gains = {way: [np.mean(pairs[n][way][1]) - np.mean(pairs[n][way][0]) for n in ("_5", "")] for way in ways}
    without = [table.scores(trained[f"unet{norm}_5"], "voi") for norm in ("", "_channel")]  # of a guide
    assert np.mean(without[0]) - np.mean(vois["natural_additive_5"]) > 0.5
    assert max(without[1]) < min(without[0]) and np.mean(without[1]) - np.mean(vois["natural_additive_5"]) < 0.2
    assert max(vois["natural_additive_channel_5"]) < min(vois["natural_additive_random_channel_5"] + without[1])
    names = ("natural_additive_channel_20", "natural_additive_random_channel_20", "unet_channel_20")
    guided, *others = (table.scores(trained[name], "voi") for name in names)
    assert [round(np.mean(scores), 2) for scores in (guided, *others)] == [1.30, 1.31, 1.34]
    assert [round(statistics.permutation_p(guided, other), 2) for other in others] == [0.84, 0.73]
    for n in pairs:
        names = ("natural_additive", "natural_additive_random", "unet", "unet_channel")
        guided, twin, plain, other = (table.scores(trained[f"{name}{n}"], "voi", "ac4") for name in names)
        assert max(guided) < min(twin) and max(guided) + 0.3 < min(plain + other)
    assert [all_labels < 0.5 * few for few, all_labels in gains.values()] == [False, True, True]
    assert gains["natural_only"][1] >= gains["natural_only"][0]
    assert np.mean(np.array(vois["natural_additive_20"]) < np.median(vois["natural_additive_random_20"])) == 1
    assert statistics.permutation_p(vois["natural_residual_20"], vois["natural_residual_random_20"]) > 0.5


def test_rows_of_two_postprocessings_are_told_apart(measured):
    assert list(table.postprocessings(measured)) == ["not noted"]
    assert render_results.MIXED not in render_results.rows_page(measured) + render_results.results_page(measured)
    measured["fine_tuned"][0]["postprocessing"] = 255
    text = render_results.rows_page(measured)
    assert render_results.MIXED in text and render_results.MIXED in render_results.results_page(measured)
    assert "- version 000000ff: FGNet, pretrained encoder, fine-tuned, seed 0\n" in text


@pytest.mark.slow
def test_stages_of_the_shipped_model_are_shown_at_the_threshold_that_training_sections_chose(
    measured, monkeypatch, tmp_path
):
    monkeypatch.setattr(render_results, "THRESHOLDS_FILE", tmp_path / "none")
    part = [[0.5, 0.75, 0.5, 0.125], [0.75, 0.5, 0.25, 0.0625]]
    stage = {"iterations": 300, "minutes": 2.6, "threshold": 0.5, "training": part, "validation": part}
    measured["shipped"] = [made("shipped", 0, 1.0)]
    measured["shipped"][0]["training"]["tried"] = [stage, stage | {"iterations": 400}]  # the teacher, and what ships
    assert "| 300 | 3 | 0.5 | 1.250 | 0.125 | 1.250 | 0.125 | 0.750 |" in render_results.shipped_page(measured)
    chosen, at_all = render_results.draw_shipped(measured).axes
    assert [line.get_xydata().tolist() for line in chosen.lines[:2]] == [[[300, 1.25]], [[400, 1.25]]]
    assert list(at_all.lines[0].get_ydata()) == [1.25, 0.75] and at_all.lines[1].get_xdata()[0] == 0.5


def test_each_part_is_scored_where_the_others_choose(measured, monkeypatch, tmp_path):
    """Two parts are best at 0.3 and one at 0.5: each is scored at what the other two choose."""
    low, high = [[0.3, 0.5, 0.5, 0.2], [0.5, 1.0, 0.4, 0.3]], [[0.3, 1.5, 0.1, 0.1], [0.5, 0.5, 0.4, 0.05]]
    file = tmp_path / "thresholds.json"
    file.write_text(json.dumps({"shipped": {"0-19": low, "20-39": low, "40-59": high}}))
    monkeypatch.setattr(render_results, "THRESHOLDS_FILE", file)
    measured["shipped"] = [made("shipped", 0, 1.0)]
    text = render_results.thresholds_section(measured)
    assert "| 0-19 | 0.5 | 1.400 | 0.300 | 0.3 | 1.000 |" in text  # the other two: 1.3 at 0.3, 1.15 at 0.5
    assert "| 40-59 | 0.3 | 1.600 | 0.100 | 0.5 | 0.900 |" in text
    assert "from 0.3 to 0.5. **Together they choose 0.3**: VOI 3.000 on sections 144-183." in text
    assert "| 0.3 | 1.200 ± 0.346 | 3.000 |" in text
    assert [ax.get_title() for ax in render_results.draw_parts(measured).axes] == ["the shipped model"]
    monkeypatch.setattr(render_results, "THRESHOLDS_FILE", tmp_path / "none")
    assert render_results.thresholds_section(measured) == ""


def test_figures_show_the_rows_that_are_measured(measured):
    (curves,), (efficiency,) = (
        draw(measured).axes for draw in (render_results.draw_thresholds, render_results.draw_sections)
    )
    titles = ["3D U-Net (FGE alone)", "FGNet, pretrained encoder, fine-tuned"]  # five sections are only in the other
    assert [text.get_text() for text in curves.get_legend().get_texts()] == titles
    assert [text.get_text() for text in efficiency.get_legend().get_texts()] == titles
    assert [label.get_text() for label in efficiency.get_xticklabels()] == ["5", "120"]


@pytest.mark.parametrize("name", render_results.FIGURES)
def test_no_list_of_names_squeezes_the_axes_beside_it(name):
    with plt.rc_context():
        plots.style()
        figure = render_results.FIGURES[name](table.load_rows())
        figure.canvas.draw()
    assert min(ax.get_window_extent().height / figure.dpi for ax in figure.axes) > 2.5  # inches
    plt.close(figure)


def test_without_any_run_the_page_names_the_commands():
    text = render_results.results_page({})
    assert "(`make results`)" in text and "ENCODER=tiny" in text and "Nothing of this is measured yet" in text
    assert "Nothing of this is measured yet" in render_results.comparisons_page({})
    assert [len(draw({}).axes[0].lines) for draw in (render_results.draw_thresholds, render_results.draw_sections)] == [
        0,
        0,
    ]


@pytest.mark.parametrize("name", render_results.PAGES)
def test_a_committed_page_is_what_the_committed_table_gives(name):
    text = (render_results.DOCS / name).read_text("utf-8")
    assert text == render_results.PAGES[name](table.load_rows()), "run `make results`"
    assert name != "results.md" or len(text.splitlines()) <= 150


def test_every_figure_of_the_pages_is_committed():
    pages = "".join((render_results.DOCS / name).read_text("utf-8") for name in render_results.PAGES)
    for name in render_results.FIGURES:
        assert (render_results.DOCS / name).is_file() and f"{name.removeprefix('measured/')})" in pages


@pytest.mark.slow
def test_committed_pictures_are_those_that_a_lesson_shows():
    shown = {(run["row"], run["seed"]) for run in runs.read_runs() if runs.keeps_pictures(run["row"], run["seed"])}
    assert {runs.picture_path(*run) for run in shown} == set(runs.RESULTS.glob("*.npz"))
    assert shown == {(own[0]["row"], own[0]["seed"]) for own in table.fully_labelled_rows(table.load_rows()).values()}


def settings(declared: dict, prefix: str = "") -> dict[str, object]:
    """Nested settings as one dictionary, with lists for tuples."""
    flat = {}
    for name, value in json.loads(json.dumps(declared)).items():
        flat |= settings(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def test_committed_rows_are_those_that_are_declared():
    """A setting that came later has its default, one that is gone was off."""
    defaults = settings(asdict(Row("", FGNetConfig())) | {"training": asdict(TrainConfig())})
    for name, own in table.load_rows().items():
        for run in (run for run in own if name in ROWS):
            row, then = ROWS[name], settings(run["declared"])
            now = settings(asdict(row) | {"training": asdict(training(row, run["seed"]))})
            assert {key: then[key] for key in then.keys() & now.keys()} == {
                key: now[key] for key in then.keys() & now.keys()
            }
            assert not any(then[key] for key in then.keys() - now.keys()), name
            assert all(now[key] == defaults[key] for key in now.keys() - then.keys()), name
            assert run["training"]["iterations"] == row.iterations, name


def test_rows_of_the_natural_guide_differ_in_what_they_are_named_after_alone():
    for form, few in product(("only", "residual", "additive"), ("", "_5", "_20")):
        frozen, random = ROWS[f"natural_{form}{few}"], ROWS[f"natural_{form}_random{few}"]
        assert replace(frozen, title="", encoder="") == replace(random, title="", encoder="")
        assert (frozen.encoder, random.encoder) == ("natural", "random") and frozen.frozen
        assert len(seeds(f"natural_{form}{few}")) == (5 if few else 3)
        if tuned := ROWS.get(f"natural_{form}_tuned{few}"):
            assert replace(tuned, title=frozen.title, frozen=True) == frozen and not tuned.frozen
    assert seeds("unet_5") == (0, 1, 2)
    assert sum(run == ("natural_only_5", 4) for run in results.list_runs()) == 1


def test_rows_with_enlarged_sections_differ_in_that_alone():
    for name in rows.ZOOMED:
        base, zoom = name.split("_zoom")
        for few in ("", "_5", "_20"):
            row, plain = ROWS[name + few], ROWS[base + few]
            assert row.config.guide_zoom == int(zoom) and str(zoom) in row.title
            assert replace(row, title=plain.title, config=replace(row.config, guide_zoom=1)) == plain


def test_what_a_difference_lets_you_claim():
    assert doctest.testmod(statistics).attempted > 2 and doctest.testmod(statistics).failed == 0
    assert statistics.spread([1.0]) is None and statistics.spread([1.0, 1.2, 1.4]) == pytest.approx(0.2)
    assert statistics.summary([1.0]) == "1.000" and statistics.summary([1.0, 1.2, 1.4], 1) == "1.2 ± 0.2"
    assert statistics.permutation_p([1, 2, 3], [4, 5, 6]) == pytest.approx(2 / 20)
    assert statistics.permutation_p([1, 1], [1, 1]) == 1 and statistics.permutation_p([1], [2]) == 1
    with pytest.raises(ValueError, match="not finite"):
        statistics.permutation_p([1, np.nan], [2, 3])
    assert statistics.compare_runs([], [1.0]) == "not measured here"
    assert "nothing follows" in statistics.compare_runs([1.0], [1.1, 1.2])
    assert statistics.compare_runs([1.0, 1.1], [2.0, 2.1]).startswith(
        "1.000 lower, more than the spread of single runs (0.071); p = 0.33 by permutation"
    )
    assert statistics.compare_paired_runs([1.2], [1.0]) == "+0.200 in the only run; another training may differ"
    assert statistics.compare_paired_runs([1.2, 1.0], [1.0, 1.0]) == "+0.100 ± 0.141, up in 1 of 2 runs"
    assert statistics.compare_paired_runs([], []) == "not measured here"
    assert "not more than the spread" in statistics.compare_runs([1.0, 2.0], [1.1, 2.1])


def test_scores_of_runs(measured):
    assert table.scores(measured["unet"], "voi") == pytest.approx([1.0, 1.2, 1.4])
    assert table.scores(measured["unet"], "voi", "ac4") == []
    merge, split, chosen = table.curve(measured["unet"][0])
    assert (merge[chosen], split[chosen]) == (2.5, 0.5)
    assert table.by_sections(measured)["3D U-Net (FGE alone)"] == {120: pytest.approx([1.0, 1.2, 1.4]), 5: [2.0]}
    (level,) = table.attention_statistics({"fine_tuned": measured["fine_tuned"]})
    assert (level.row, level.auc, level.darker) == ("fine_tuned", [0.8], 1)
    assert level.set_to["mean"] == pytest.approx([1.1])


def test_questions_are_grouped_by_the_row_to_compare_with(measured):
    question = "pretrained and fine-tuned, at equal iterations"
    topic = {"What helps a 3D U-Net, at equal iterations?": {question: ("fine_tuned", "unet")}}
    assert table.by_topic(QUESTIONS, measured) == topic
    everything = table.by_topic(QUESTIONS)
    assert sum(map(len, everything.values())) == len(QUESTIONS) and table.TOPICS.keys() <= ROWS.keys()
    assert all(len({second for _, second in pairs.values()}) == 1 for pairs in everything.values())
    few = table.by_topic(QUESTIONS, table.load_rows(), 5)
    assert few and {name[-2:] for pairs in few.values() for pair in pairs.values() for name in pair} == {"_5"}


def test_the_shipped_row_is_of_the_weights_that_ship():
    (run,) = table.load_rows()["shipped"]
    assert run["training"]["tried"] == read_notes(PRETRAINED / "fgnet_mini.safetensors")["tried"]


def test_only_missing_runs_are_done_and_none_that_another_process_does(tmp_path, capsys, monkeypatch):
    table, work, done = tmp_path / "table", tmp_path / "work", []
    runs.add_runs([{"row": "a", "seed": 0, "weights": {}}], table)

    def run(row, seed):
        done.append((row, seed))
        runs.add_runs([{"row": row, "seed": seed, "weights": {}}], table)

    declared = {(row, seed): partial(run, row, seed) for row, seed in (("a", 0), ("a", 1), ("b", 0), ("c", 0))}
    runs.do_missing(declared, table, work, minutes=0)
    assert done == []
    with monkeypatch.context() as patch:  # a process does not lock out itself, so the other one is played

        def refuse(folder, **options):
            if folder.name == "b-0":
                raise LockedError("another run is there")
            return lock(folder, **options)

        patch.setattr(runs, "lock", refuse)
        runs.do_missing(declared, table, work, minutes=1)
    assert done == [("a", 1), ("c", 0)] and "b, seed 0: another run is there" in capsys.readouterr().out
    runs.do_missing(declared, table, work, minutes=1)
    assert done[2:] == [("b", 0)]
