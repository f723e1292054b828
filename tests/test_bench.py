"""The benchmark compares like with like, and its page says what was measured."""

from __future__ import annotations

import bench
import torch

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
    monkeypatch.setattr(bench.inference, "_column", bench.naive_column)
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
