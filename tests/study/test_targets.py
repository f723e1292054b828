"""The rows of lesson 12: a cell of each kind through all of its run on a phantom, and the current page."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import adapt_targets
import pytest

from fgnet_lib.neighbours.target_adaptation import TargetConfig, read_source
from fgnet_lib.phantom import make_phantom
from fgnet_lib.study import targets
from fgnet_lib.study.targets import (
    NEW_TISSUES,
    TARGET_METHODS,
    TARGET_VOLUMES,
    describe_missing_cells,
    list_target_cells,
    target_changes,
    target_scores,
)
from fgnet_lib.weights import PRETRAINED

KINDS = ("voxel_size", "as_is", "histogram", "clahe", "statistics", "both_0.01")


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """One cell of each kind on a small phantom in the place of AC4, with a single step."""
    volume = make_phantom((4, 64, 64), seed=0)
    monkeypatch.setattr(adapt_targets, "open_dataset", lambda name, part: volume)
    monkeypatch.setattr(adapt_targets, "TargetConfig", lambda *given: replace(TargetConfig(*given), steps=1))
    monkeypatch.setattr(adapt_targets, "TARGETS", tmp_path / "runs")
    monkeypatch.setattr(adapt_targets, "PAGE", tmp_path / "page.md")
    monkeypatch.setattr(adapt_targets, "list_target_cells", lambda: [("ac4", name, 0) for name in KINDS])
    return tmp_path


@pytest.mark.slow
def test_what_is_missing_is_measured_once(tiny, capsys):
    for _ in range(2):
        adapt_targets.adapt_missing(60, tiny / "work")
    assert capsys.readouterr().out.count(", after") == len(KINDS)
    cells = targets.read_targets(tiny / "runs")
    assert [*cells] == [("ac4", name, 0) for name in KINDS]
    assert [len(run["losses"]) for run in cells.values()] == [0, 0, 0, 0, 0, 1]
    assert all(voi > 0 for name in KINDS for voi in target_scores(cells, "ac4", name))
    page = adapt_targets.PAGE.read_text(encoding="utf-8")
    assert all(f"| {TARGET_METHODS[name].title} |" in page for name in KINDS)


def cell(voi: float) -> dict:
    return {"scores": {"voi_split": voi - 0.25, "voi_merge": 0.25}}


def test_a_change_is_against_the_training_voxel_size():
    cells = {("ac4", "voxel_size", 0): cell(2.0), ("gala", "both_0.1", 0): cell(1.0)}
    cells |= {("ac4", "both_0.1", order): cell(2.2 + 0.1 * order) for order in range(3)}
    assert target_changes(cells, "both_0.1") == pytest.approx({"ac4": 0.3})  # gala has no baseline
    assert target_scores(cells, "ac4", "clahe") == []


def test_each_method_on_the_new_tissues_comes_first_and_what_is_missing_is_said():
    declared = list_target_cells()
    learning = [name for name, method in TARGET_METHODS.items() if method.kind == "norms"]
    quiet = len(TARGET_METHODS) - len(learning)
    expected = len(TARGET_VOLUMES) * (quiet - 1 + 3 * len(learning)) + len(NEW_TISSUES)
    assert len(set(declared)) == len(declared) == expected
    first = declared[: 2 * len(TARGET_METHODS)]
    assert {volume for volume, _, _ in first} == set(NEW_TISSUES) and {order for _, _, order in first} == {0}
    assert describe_missing_cells(dict.fromkeys(declared, {})) == "Every declared cell is measured."
    assert f"{len(declared) - 1} of {len(declared)} cells" in describe_missing_cells({declared[0]: {}})


def test_the_source_is_that_of_the_shipped_weights():
    levels = read_source(adapt_targets.SOURCE).levels
    assert [len(level.mean) for level in levels] == [16, 32, 48, 64, 96]
    notes = json.loads(adapt_targets.SOURCE.read_text(encoding="utf-8"))["notes"]
    weights = (PRETRAINED / "fgnet_mini.safetensors").read_bytes()
    assert notes["weights"] == hashlib.sha256(weights).hexdigest(), "run tools/results/adapt_targets.py --source"


def test_the_page_says_what_the_table_says():
    page = adapt_targets.PAGE.read_text(encoding="utf-8")
    assert page == adapt_targets.page(), "run tools/results/adapt_targets.py --minutes 0"
