"""The rows of lesson 12: a cell of each kind through all of its run on a phantom, and the current page."""

from __future__ import annotations

import re
from dataclasses import replace

import adapt_targets
import pytest
import which_first

from fgnet_lib import REPOSITORY
from fgnet_lib.neighbours.target_adaptation import SHIPPED_SOURCE, TargetConfig, read_source
from fgnet_lib.phantom import make_phantom
from fgnet_lib.study import targets
from fgnet_lib.study.targets import (
    BASELINE,
    NEW_TISSUES,
    TARGET_METHODS,
    TARGET_VOLUMES,
    advise,
    describe_changes,
    describe_missing_cells,
    list_target_cells,
    scores_by_rate,
    target_changes,
    target_scores,
)

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
    assert scores_by_rate(cells, "ac4") == {0.1: pytest.approx([2.2, 2.3, 2.4])}
    assert scores_by_rate(cells, "fib25") == {}


def test_advice_follows_from_the_changes_and_says_what_is_missing():
    cells = {(volume, "voxel_size", 0): cell(2.0) for volume in TARGET_VOLUMES}
    cells |= {("ac4", "as_is", 0): cell(1.9), ("cremi_b_mini", "as_is", 0): cell(3.0)}
    cells |= {
        (volume, "clahe", 0): cell(voi) for volume, voi in zip(TARGET_VOLUMES, (2.01, 2.0, 1.5, 1.9), strict=True)
    }
    cells |= {("gala", "histogram", 0): cell(2.1), ("ac4", "histogram", 0): cell(1.7)}
    cells |= {("ac4", "statistics", 0): cell(2.1)}
    assert advise(cells, "clahe") == "try it"
    assert describe_changes(cells, "clahe") == (
        "better on AC4 (-0.50), CREMI B (-0.10); the same on FIB-25 (+0.01), gala (+0.00)"
    )
    assert advise(cells, "histogram") == "try it on new tissue; it hurts on the model's own, so far"
    assert advise(cells | {("cremi_b_mini", "histogram", 0): cell(2.1)}, "histogram") == (
        "may help or hurt: only with labels to judge it, so far"
    )
    assert describe_changes(cells, "histogram") == (
        "better on AC4 (-0.30); worse on gala (+0.10); not measured on FIB-25, CREMI B"
    )
    assert advise(cells, "statistics") == "leave it, so far" and advise(cells, "both_0.1") == "not measured yet"
    assert describe_changes(cells, BASELINE, "as_is") == "better on CREMI B (-1.00); worse on AC4 (+0.10)"


def test_the_page_of_advice_says_what_both_tables_say():
    text = which_first.WHICH_FIRST.read_text(encoding="utf-8")
    assert text == which_first.page(), "run tools/results/which_first.py"
    assert all(f"| {method.title} |" in text for key, method in TARGET_METHODS.items() if key not in KINDS[:2])


def test_lesson_08_gives_the_numbers_of_the_table():
    lesson = (REPOSITORY / "notebooks" / "src" / "08_your_own_volume.py").read_text(encoding="utf-8")
    told = re.findall(r"\b\d\.\d\d\b", lesson.split("You can join several.")[1].split("The default is")[0])
    cells = targets.read_targets()
    scores = {
        (volume, key): f"{target_scores(cells, volume, key)[0]:.2f}"
        for volume in NEW_TISSUES
        for key in ("as_is", "voxel_size", "histogram", "clahe")
    }
    ac4, cremi = ({key: voi for (of, key), voi in scores.items() if of == volume} for volume in NEW_TISSUES)
    pairs = [(of["as_is"], of["voxel_size"]) for of in (ac4, cremi)]
    pairs += [(ac4[key], cremi[key]) for key in ("histogram", "clahe")]
    assert told == [voi for pair in pairs for voi in pair]


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


def test_the_shipped_model_holds_its_source():
    levels = read_source(SHIPPED_SOURCE).levels
    assert [len(level.mean) for level in levels] == [16, 32, 48, 64, 96], "run tools/results/adapt_targets.py --source"


def test_the_page_says_what_the_table_says():
    page = adapt_targets.PAGE.read_text(encoding="utf-8")
    assert page == adapt_targets.page(), "run tools/results/adapt_targets.py --minutes 0"
