"""The benchmark compares like with like, and its page says what was measured."""

from __future__ import annotations

from contextlib import contextmanager

import bench
import bench_blocks
import numpy as np
import pytest
import torch
from distributed import Client

from fgnet_lib.fgnet import MINI, FGNet
from fgnet_lib.inference import predict
from fgnet_lib.phantom import make_phantom


def test_naive_windows_are_slower_work_for_the_same_affinities(monkeypatch):
    """`feature_reuse` itself compares the affinities; here, that the naive way really encodes every window."""
    monkeypatch.setattr(bench, "REPEATS", 1)
    torch.manual_seed(0)
    model, raw, encoded = FGNet(MINI).eval(), make_phantom((24, 64, 64), seed=0).raw, []
    model.encoder.register_forward_hook(lambda module, inputs, output: encoded.append(inputs[0].shape[2]))
    assert [one["overlap"] for one in bench.feature_reuse(model, raw)] == [0.25, 0.5, 0.75]
    encoded.clear()
    predict(model, raw, overlap=0.75, progress=False)
    assert sum(encoded) == 24
    encoded.clear()
    monkeypatch.setattr(bench.inference, "_patches", bench.naive_patches)
    predict(model, raw, overlap=0.75, progress=False)
    assert sum(encoded) == 16 * 3


def test_tiles_are_counted_as_they_are_computed():
    torch.manual_seed(0)
    model, calls = FGNet(MINI).eval(), []
    model.refined_decoder.register_forward_hook(lambda *_: calls.append(1))
    raw = make_phantom((20, 200, 170), seed=0).raw
    predict(model, raw, progress=False)
    assert bench._tiles(raw.shape) == len(calls)


def test_the_page_shows_shares_and_ratios():
    found = {
        "date": "2026-11-21", "machine": "a machine", "shape": [1, 2, 3],
        "parts": {"SAM2 encoder": 1.0, "fragments": 3.0},
        "models": [{"model": "A", "parameters": 1000, "mvox_per_s": 2.0, "iterations_per_s": 1.0},
                   {"model": "B", "parameters": 10, "mvox_per_s": 1.0, "iterations_per_s": 1.0}],
        "reuse": [{"overlap": 0.5, "reused_s": 1.0, "naive_s": 1.5, "ratio": 1.5}],
    }  # fmt: skip
    text = bench.page(found)
    for line in (
        "| SAM2 encoder | 1.00 | 25% |",
        "| B | 10 | 1.00 | 1.00 | 0.50 |",
        "| 0.5 | 1.0 | 1.5 | 1.50 | 2.00 |",
    ):
        assert line in text


@contextmanager
def threads(**options):
    """Workers that see what a test has changed."""
    with Client(processes=False, n_workers=1, threads_per_worker=2, dashboard_address=None) as client:
        yield client


def test_cells_that_blocks_cut_are_whole_again_in_the_table_of_merging(monkeypatch, tmp_path):
    monkeypatch.setattr(bench_blocks, "cluster", threads)
    for name, value in {"BLOCK": (16, 32, 32), "SIDE": 64, "CELL": 12}.items():
        monkeypatch.setattr(bench_blocks, name, value)
    (found,) = bench_blocks.memory_and_merge(tmp_path, [32 * 64 * 64 / 1e9])
    assert found["blocks"] == 8 and found["neurons"] == np.ceil(32 / 12) * np.ceil(64 / 12) ** 2 < found["fragments"]
    assert 0 < found["io_share"] < 1 and not list(tmp_path.iterdir())


def test_the_page_of_blocks_has_a_section_for_each_table():
    peaks = dict.fromkeys(("predict", "fragments", "faces", "relabel", "merge"), 2**30)
    memory = {"gvox": 0.1, "blocks": 12, "fragments": 9, "neurons": 4, "peak_bytes": peaks, "predict_s": 3.4}
    found = {
        "memory": [memory | {"merge_s": 0.25, "io_share": 0.5}],
        "overhead": {"blocks": 200, "ms_per_block": 9.0, "engine_ms": 3.0},
        "blocks": {"memory_s": 10.0, "one_block": {"s": 11.0, "peak_bytes": 2**30, "io_share": 0.01},
                   "four_blocks": {"s": 15.0, "peak_bytes": 2**29, "io_share": 0.02}, "largest_difference": 0.0002},
        "workers": {"workers_1_s": 10.0, "workers_2_s": 5.5, "ratio": 1.82},
        "accuracy": {"block": [1, 2, 3], "threshold": 0.7, "memory": 1.112, "blocks": 1.113, "difference": 0.001},
    }  # fmt: skip
    text = bench_blocks.page({name: {"machine": "a machine", "found": one} for name, one in found.items()})
    for line in (
        "| 0.10 | 12 | 9 | 4 | 1024 | 1024 | 1024 | 1024 | 1024 | 3 | 0.2 | 50% |",
        "9.0 ms a block",
        "| four blocks | 15.0 | 1.50 | 512 | 2.0% |",
        "10.0 s with one worker, 5.5 s with two: 1.82 times as fast.",
        "a difference of +0.001",
    ):
        assert line in text


def test_an_unknown_table_is_refused(monkeypatch):
    monkeypatch.setattr("sys.argv", ["bench_blocks.py", "speed"])
    with pytest.raises(SystemExit):
        bench_blocks.main()
