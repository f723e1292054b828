"""The benchmark compares like with like, and its page says what was measured."""

from __future__ import annotations

import json
from contextlib import contextmanager
from types import SimpleNamespace

import bench
import bench_blocks
import measure_bf16_training
import measure_engines
import numpy as np
import pytest
import torch
import zarr
from distributed import Client
from measure_engines import peer_tasks
from peer import build_peer

from fgnet_lib.configuration import MINI
from fgnet_lib.engines.runtimes import BFLOAT16, installed_engines
from fgnet_lib.fgnet import FGNet
from fgnet_lib.inference import predict
from fgnet_lib.machine import ThinConv3d
from fgnet_lib.phantom import make_phantom

pytestmark = pytest.mark.slow  # trains and measures


def test_naive_windows_are_slower_work_for_the_same_affinities(monkeypatch):
    """`feature_reuse` itself compares the affinities; here, that the naive way really encodes every window."""
    monkeypatch.setattr(bench, "REPEATS", 1)
    torch.manual_seed(0)
    model, raw, encoded = FGNet(MINI).eval(), make_phantom((24, 64, 64), seed=0).raw, []
    model.encoder.register_forward_hook(lambda module, inputs, output: encoded.append(inputs[0].shape[2]))
    rows = [(row["overlap"], row["windows"]) for row in bench.feature_reuse("mini", model, raw)]
    assert rows == [(0.25, 4 / 3), (0.5, 4 / 3), (0.75, 2)]
    encoded.clear()
    predict(model, raw, overlap=0.75, progress=False)
    assert sum(encoded) == 24
    encoded.clear()
    monkeypatch.setattr(bench.inference, "_patches", bench.naive_patches)
    predict(model, raw, overlap=0.75, progress=False)
    assert sum(encoded) == 16 * 3


def test_steps_of_a_prediction_are_parts_of_its_time(monkeypatch):
    monkeypatch.setattr(bench, "REPEATS", 1)
    model = FGNet(MINI).eval()
    steps = bench.parts(model, make_phantom((8, 64, 64), seed=0))
    assert list(steps)[:4] == list(bench.STEPS) and min(steps.values()) > 0
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_model_is_measured_alone():
    raw = make_phantom((4, 32, 32), seed=0).raw
    row = bench.one_model(bench.replace(MINI, encoder=None), raw)
    assert row["parameters"] > 1e5 and min(row["mvox_per_s"], row["iterations_per_s"]) > 0
    assert 1 < row["inference_mb"] <= row["training_mb"]


def test_convolutions_of_thin_volumes_are_compared_and_put_back(monkeypatch):
    monkeypatch.setattr(bench, "REPEATS", 1)
    ours, threads = ThinConv3d.forward, torch.get_num_threads()
    assert all(ratio > 0 for ratio in bench.thin(make_phantom((4, 32, 32), seed=0).raw).values())
    assert ThinConv3d.forward is ours and torch.get_num_threads() == threads


def test_throughput_counts_the_operations_of_a_window():
    """Twice the sections take twice the operations."""
    model, counted = FGNet(MINI).eval(), []
    for depth in (4, 8):
        rates = bench.throughput(model, torch.bfloat16, False, (depth, 32, 32))
        counted.append(rates["tflops"] / rates["mvox_per_s"])  # per voxel
    assert counted[0] == pytest.approx(counted[1], rel=1e-6) and counted[0] > 0


def test_the_page_shows_shares_and_ratios():
    results = {
        "date": "2026-11-21", "machine": "a machine", "shape": [1, 2, 3],
        "parts": {"SAM2 encoder": 1.0, "fragments": 3.0},
        "thin": {"training": 2.5, "prediction": 2.25},
        "models": [{"model": "A", "parameters": 1000, "mvox_per_s": 2.0, "iterations_per_s": 1.0, "inference_mb": 900,
                    "training_mb": 2000},
                   {"model": "B", "parameters": 10, "mvox_per_s": 1.0, "iterations_per_s": 1.0, "inference_mb": 800,
                    "training_mb": 1000}],
        "gpu": [{"encoder": "tiny", "dtype": "torch.float16", "compiled": True, "mvox_per_s": 30.0, "peak_mb": 4000,
                 "tflops": 10.0, "best_tflops": 40.0}],
        "reuse": [{"model": "mini", "overlap": 0.5, "windows": 1.75, "reused_s": 1.0, "naive_s": 1.5, "ratio": 1.5}],
    }  # fmt: skip
    text = bench.page(results)
    for line in (
        "| SAM2 encoder | 1.00 | 25% |",
        "train 2.50 times and predict\n2.25 times as fast",
        "| B | 10 | 1.00 | 800 | 1.00 | 1000 | 0.50 |",
        "| tiny | float16 | yes | 30.00 | 4000 | 25% |",
        "| mini | 0.5 | 1.75 | 1.0 | 1.5 | 1.50 |",
    ):
        assert line in text
    assert "Not measured: this machine has no GPU." in bench.page(results | {"gpu": []})


@pytest.fixture
def one_phantom(monkeypatch):
    """Instead of the validation volumes, of which AC4 is not here; and workers that see what is changed here."""

    def volumes(name, part):
        if name == "ac4":
            raise FileNotFoundError(name)
        return make_phantom((8, 96, 96), seed=1)

    monkeypatch.setattr(bench_blocks, "cluster", threads)
    monkeypatch.setattr(bench_blocks, "open_dataset", volumes)
    return {"ac4": False, "phantom": False}


@contextmanager
def threads(**options):
    """Workers that see what a test has changed."""
    with Client(processes=False, n_workers=1, threads_per_worker=2, dashboard_address=None) as client:
        yield client


def test_cells_that_blocks_cut_are_whole_again_in_the_table_of_merging(monkeypatch, tmp_path):
    monkeypatch.setattr(bench_blocks, "cluster", threads)
    for name, value in {"BLOCK": (16, 32, 32), "SIDE": 64, "CELL": 12}.items():
        monkeypatch.setattr(bench_blocks, name, value)
    (row,) = bench_blocks.memory_and_merge(tmp_path, [32 * 64 * 64 / 1e9])
    assert row["blocks"] == 8 and row["neurons"] == np.ceil(32 / 12) * np.ceil(64 / 12) ** 2 < row["fragments"]
    assert 0 < row["io_share"] < 1 and not list(tmp_path.iterdir())


def test_accuracy_compares_blocks_with_one_piece_and_passes_over_volumes_that_are_not_here(one_phantom, tmp_path):
    rows = bench_blocks.accuracy(tmp_path, one_phantom)
    assert [row["block"] for row in rows] == [[8, 48, 48], [4, 100, 100], [8, 84, 84], [8, 64, 64]]
    assert {row["volume"] for row in rows} == {"phantom"}
    assert all(abs(row["blocks"] - row["one"]) <= 0.02 for row in rows) and rows[0]["between"] > 0


def test_objects_of_perfect_affinities_are_the_same_in_blocks(one_phantom, tmp_path):
    rows = bench_blocks.perfect(tmp_path, one_phantom)
    assert len(rows) == 4 and max(row["objects"] for row in rows) <= 1e-4
    assert 0 < max(row["everywhere"] for row in rows) < 0.02


def test_the_page_of_blocks_has_a_section_for_each_table():
    peaks = dict.fromkeys(("predict", "fragments", "faces", "relabel", "merge"), 2**30)
    memory = {"gvox": 0.1, "blocks": 12, "fragments": 9, "neurons": 4, "peak_bytes": peaks, "predict_s": 3.4}
    results = {
        "memory": [memory | {"merge_s": 0.25, "io_share": 0.5}],
        "overhead": {"blocks": 200, "ms_per_block": 9.0, "engine_ms": 3.0},
        "blocks": {"shape": [1, 2, 3], "window": {"predict_bytes": 2**28}, "largest_difference": 0.0002,
                   "memory": {"predict_s": 9.0, "predict_bytes": 2**29, "s": 10.0, "bytes": 2**30},
                   "one_block": {"predict_s": 9.5, "predict_bytes": 2**29, "s": 11, "bytes": 2**30, "io_share": 0.01},
                   "eight_blocks": {"predict_s": 10.8, "predict_bytes": 2**27, "s": 15.0, "bytes": 2**28,
                                    "io_share": 0.02}},
        "workers": {"workers_1_s": 10.0, "workers_2_s": 5.5, "ratio": 1.82},
        "accuracy": [{"volume": "phantom", "block": [1, 2, 3], "threshold": 0.7, "one": 1.112, "blocks": 1.113,
                      "between": 0.004}],
        "perfect": [{"volume": "gala", "block": [1, 2, 3], "threshold": 0.7, "objects": 1e-5, "everywhere": 0.0041}],
    }  # fmt: skip
    text = bench_blocks.page({name: {"machine": "a machine", "results": table} for name, table in results.items()})
    for line in (
        "| 0.10 | 12 | 9 | 4 | 1024 | 1024 | 1024 | 1024 | 1024 | 3 | 0.2 | 50% |",
        "9.0 ms a block",
        "| eight blocks | 10.8 | 1.20 | 128 | 15.0 | 1.50 | 256 | 2.0% |",
        "10.0 s with one worker, 5.5 s with two: 1.82 times as fast.",
        "| phantom | 1 x 2 x 3 | 1.112 | 1.113 | +0.001 | 0.004 |",
        "| gala | 1 x 2 x 3 | 0.00001 | 0.0041 |",
    ):
        assert line in text


def test_an_unknown_table_is_refused(monkeypatch):
    monkeypatch.setattr("sys.argv", ["bench_blocks.py", "speed"])
    with pytest.raises(SystemExit):
        bench_blocks.main()


def test_the_committed_pages_are_what_the_committed_files_give():
    for tool in (bench, bench_blocks):
        results = json.loads((tool.DOCS / f"{tool.__name__}.json").read_text("utf-8"))
        assert (tool.DOCS / f"{tool.__name__}.md").read_text("utf-8") == tool.page(results), "run `make bench`"


def test_the_fields_unet_pools_within_sections_and_computes_the_same_in_every_engine():
    raw = torch.rand((1, 1, 3, 32, 48), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        results = {
            name: torch.as_tensor(np.asarray(task())).reshape(1, 3, 3, 32, 48) for name, task in peer_tasks(raw).items()
        }
    assert list(results) == installed_engines()
    for name, result in results.items():
        tolerance = 1e-2 if name == BFLOAT16 else 1e-4
        torch.testing.assert_close(result, results["torch"], atol=tolerance, rtol=tolerance)
    assert build_peer()(raw[:, :, :1]).shape == (1, 3, 1, 32, 48)


def test_both_types_of_training_see_the_same_patches_and_differ_by_rounding(monkeypatch):
    monkeypatch.setattr(measure_bf16_training, "PATCH", (4, 32, 32))  # not 2 sections: see training.THIN
    volume = make_phantom((4, 48, 48))
    monkeypatch.setattr(measure_bf16_training, "open_dataset", lambda *_: SimpleNamespace(load=lambda: volume))
    for step in measure_bf16_training.train_in_turns(seed=0, iterations=2):
        (ours, _), (theirs, seconds) = step["float32"], step["bfloat16"]
        assert theirs == pytest.approx(ours, rel=0.05) and theirs != ours and seconds > 0


def test_the_page_of_engines_is_what_was_measured():
    results = json.loads((measure_engines.DOCS / "engines.json").read_text(encoding="utf-8"))
    assert (measure_engines.DOCS / "engines.md").read_text(encoding="utf-8") == measure_engines.page(results)


def test_ratios_of_engines_are_to_the_same_engine_or_to_pytorch():
    engine = {"mean": 1e-5, "largest": 1e-4, "voi": 1.0}
    rows = [
        {"engine": "torch", "window_s": 1.0, "volume_s": 9.0},
        {"engine": "openvino", "window_s": 0.5, "volume_s": 6.0},
    ]
    text = measure_engines.page({
        "date": "2026-11-21", "machine": "a machine", "rounds": 1, "shape": [1, 2, 3], "parameters": 5, "load": 1.0,
        "engines": [row | engine for row in rows], "peer_s": {"torch": 2.0, "openvino": 1.5}, "peer_parameters": 7,
        "student_s": {"torch": 0.2, "openvino": 0.1}, "student_parameters": 3,
        "windows": [
            {"engine": "before", "tile": [16, 160, 160], "volume_s": 8.0},
            {"engine": "openvino", "tile": [16, 256, 256], "volume_s": 2.0, "mean": 2e-3, "voi": 1.01},
        ],
        "bfloat16": [{"model": "shipped", "dataset": "fib25", "mean": 1e-3, "voi": 1.0, "moved": [0.003, 0.02, -0.04]}],
        "refused": {"shipped": {}, "student": {}},
    })  # fmt: skip
    assert "| openvino | 500 | 2.00 | 6.0 | 1.50 | 1.0e-05 | 1.0e-04 | 1.000 |" in text
    assert "| before | 16 x 160 x 160 | 8.0 | 1.00 | random weights | |" in text
    assert "| openvino | 16 x 256 x 256 | 2.0 | 4.00 | 2.0e-03 | 1.010 |" in text
    assert "| openvino | 1500 | 500 | 3.00 | 100 | 15.0 |" in text
    assert "| shipped | fib25 | 1.0e-03 | 1.000 | +0.003 | 0.030 | -0.040 |" in text
    assert "efused" not in text


def test_an_engine_that_is_refused_is_reported_and_stops_nothing(monkeypatch):
    installed = ["torch", "openvino", "openvino_bf16"]

    def choose(model, engine, size, voxels):
        if engine == "openvino_bf16" and model == "shipped":
            raise ArithmeticError("engine 'openvino_bf16' differs from PyTorch by 0.016 on average")
        return (model, engine)

    monkeypatch.setattr(measure_engines, "installed_engines", lambda: installed)
    monkeypatch.setattr(measure_engines, "choose_engine", choose)
    networks, refused = {}, {}
    for model in ("shipped", "student"):
        networks[model], refused[model] = measure_engines.by_engine(model)
    assert [*networks["shipped"]] == installed[:2] and [*networks["student"]] == installed
    assert [*refused["shipped"]] == ["openvino_bf16"] and not refused["student"]
    row = {"volume_s": 9.0, "window_s": 1.0, "mean": 1e-5, "largest": 1e-4, "voi": 1.0}
    results = {
        "date": "2026-11-21", "machine": "a machine", "rounds": 1, "shape": [1, 2, 3], "parameters": 5, "load": 1.0,
        "engines": [{"engine": engine} | row for engine in installed[:2]], "peer_s": dict.fromkeys(installed, 2.0),
        "student_s": dict.fromkeys(installed, 0.1), "student_parameters": 3, "peer_parameters": 7,
        "windows": [{"engine": "before", "tile": [16, 160, 160], "volume_s": 8.0}],
        "bfloat16": [{"model": "student", "dataset": "fib25", "mean": 1e-3, "voi": 1.0, "moved": [0.003, 0.02, -0.04]}],
        "refused": refused,
    }  # fmt: skip
    text = measure_engines.page(results)
    why = "- Refused, shipped: engine 'openvino_bf16' differs from PyTorch by 0.016 on average."
    assert text.count(why) == 2 and "| openvino_bf16 | 2000 | refused | | 100 | 20.0 |" in text
    assert text.index(why) < text.index("| student | fib25 |") < text.rindex(why)
    refused["student"] = refused["shipped"]
    assert measure_engines.measure_bfloat16(refused) == []  # and no model is loaded
    assert measure_engines.ALL_REFUSED in measure_engines.page(results | {"bfloat16": []})


def test_without_bfloat16_nothing_of_it_is_measured_and_the_page_says_so(monkeypatch):
    monkeypatch.setattr(measure_engines, "installed_engines", lambda: ["torch", "openvino"])
    results = json.loads((measure_engines.DOCS / "engines.json").read_text(encoding="utf-8"))
    refused = {"shipped": {}, "student": {}}
    text = measure_engines.page(results | {"bfloat16": measure_engines.measure_bfloat16(refused), "refused": refused})
    assert text.endswith("since this processor computes no bfloat16.\n") and "it moves by" not in text


def test_workers_are_timed_on_the_blocks_of_the_network(monkeypatch, tmp_path):
    monkeypatch.setattr(bench_blocks, "make_phantom", lambda _, seed: make_phantom((4, 64, 64), seed))
    monkeypatch.setattr(bench_blocks, "cluster", threads)
    costs = bench_blocks.workers(tmp_path)
    assert costs["ratio"] == costs["workers_1_s"] / costs["workers_2_s"] > 0
    one, two = (zarr.open_array(tmp_path / number / "affinities.zarr")[:] for number in ("1", "2"))
    assert one.shape == (3, 4, 64, 64) and np.array_equal(one, two)
