"""What fewer bits cost is measured once for each row and seed, and the committed page says what the table says."""

from __future__ import annotations

import measure_bits
import pytest
import torch

from fgnet_lib.phantom import make_phantom
from fgnet_lib.study.evaluation import postprocessing_version
from fgnet_lib.study.runs import read_runs


@pytest.fixture
def small(monkeypatch, tmp_path):
    """A small phantom in the place of every volume, one row, and results in a folder of their own."""
    monkeypatch.setattr(measure_bits, "open_dataset", lambda name, part: make_phantom((6, 128, 128), seed=0))
    monkeypatch.setattr(measure_bits, "FOLDER", tmp_path)
    monkeypatch.setattr(measure_bits, "SEEDS", (0,))
    monkeypatch.setattr(measure_bits, "VOLUMES", {"fib25": False, "ac4": True})
    monkeypatch.setattr(measure_bits, "cases", lambda: [measure_bits.Case("whole model", (8, 8), "min-max")])
    return tmp_path


@pytest.mark.slow
def test_a_row_is_measured_once_and_whole_numbers_are_near_floating_point(small, monkeypatch):
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(measure_bits, "installed_engines", lambda: ["torch", "onnxruntime"])
    measure_bits.measure(minutes=5)
    table = {run["row"]: run for run in read_runs(small)}
    whole = "whole model in onnxruntime, 8 bits"
    assert table.keys() == {"float", "whole model, W8A8, min-max", whole}
    change = {row: run["volumes"]["fib25"]["change"] for row, run in table.items()}
    assert change["float"] == 0
    assert 1e-4 < change[whole] < 0.05 and 1e-4 < change["whole model, W8A8, min-max"] < 0.05
    assert table["whole model, W8A8, min-max"]["megabytes"] < table["float"]["megabytes"] / 2
    monkeypatch.setattr(measure_bits, "rounded_run", lambda *_: pytest.fail("measured again"))
    monkeypatch.setattr(measure_bits, "engine_run", lambda *_: pytest.fail("measured again"))
    measure_bits.measure(minutes=5)
    assert "| whole model, W8A8, min-max |" in measure_bits.page(read_runs(small))


def test_seeds_draw_different_crops_and_the_same_again(small):
    first, again, other = (measure_bits.draw_crop(seed) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert first.shape == (1, 1, *measure_bits.CROP)


def test_the_committed_page_is_what_the_committed_table_gives():
    runs = read_runs(measure_bits.FOLDER)
    page = (measure_bits.MEASURED / "quantisation.md").read_text(encoding="utf-8")
    assert page == measure_bits.page(runs), "run tools/results/measure_bits.py --minutes 0"
    (reference,) = (run for run in runs if run["row"] == "float")
    assert reference["postprocessing"] == postprocessing_version(), "measured with another post-processing"
