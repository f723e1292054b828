"""The rows of lesson 11: one through all of its run on a phantom, what the table answers, and the current page."""

from __future__ import annotations

from dataclasses import replace

import adapt
import pytest
import results

from fgnet_lib.phantom import make_phantom
from fgnet_lib.study import adaptation
from fgnet_lib.study.adaptation import (
    EXPECTATIONS,
    METHODS,
    SECTIONS,
    adaptation_answer,
    describe_knee,
    describe_missing_adaptations,
    judge_expectations,
    list_adaptations,
)


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """Two methods of two iterations on a small phantom in the place of every volume; their runs in a folder."""
    volume = make_phantom((8, 96, 96), seed=0)
    methods = {name: replace(METHODS[name], iterations=2) for name in ("gate", "natural_rank_4")}
    for module in (adapt, adaptation):
        monkeypatch.setattr(module, "METHODS", methods)
    monkeypatch.setattr(adapt, "open_dataset", lambda name, part: volume)
    monkeypatch.setattr(adapt, "open_choosing_part", lambda: volume)
    monkeypatch.setattr(results, "THRESHOLDS", [0.3, 0.6])
    monkeypatch.setattr(adapt, "ADAPTATIONS", tmp_path / "runs")
    monkeypatch.setattr(adapt, "PAGE", tmp_path / "page.md")
    monkeypatch.setattr(adapt, "list_adaptations", lambda: [(name, 5, 0) for name in methods])
    return tmp_path


@pytest.mark.slow
def test_what_is_missing_is_trained_measured_and_not_done_again(tiny, capsys):
    for _ in range(2):
        adapt.train_missing(60, tiny / "work")
    assert capsys.readouterr().out.count("seed 0, after") == 2
    rows = adaptation.read_adaptations(tiny / "runs")
    assert adapt.PAGE.read_text(encoding="utf-8").count(f"| {METHODS['gate'].title} | 11,398 |") == 3  # volumes
    assert [*rows] == [("gate", 5), ("natural_rank_4", 5)]
    for (name, _), (run,) in rows.items():
        assert run["trained"]["encoder"] > 0 and run["core_seconds"] >= 0 and run["threshold"] in (0.3, 0.6)
        for volume in adaptation.JUDGED_ON:
            (voi,) = adaptation.adaptation_scores(rows, name, 5, volume)
            assert voi == run["volumes"][volume]["voi_split"] + run["volumes"][volume]["voi_merge"] > 0
    assert rows["gate", 5][0]["trained"]["encoder"] == 4 * 2720 + 512 + 6  # A and B, gates


def score(voi: float) -> dict:
    return {"volumes": {"fib25": {"voi_split": voi - 0.25, "voi_merge": 0.25, "arand": 0.1}}}


def test_an_answer_has_difference_and_p():
    rows = {("rank_4", 5): [score(v) for v in (1.0, 1.1, 1.2)], ("frozen", 5): [score(v) for v in (1.5, 1.6, 1.7)]}
    answer = adaptation_answer(rows, ("rank_4", "frozen"), 5, "fib25")
    assert answer == ["1.100 ± 0.100", "1.600 ± 0.100", "-0.500", "0.10"]
    assert adaptation_answer(rows, ("rank_4", "frozen"), 20, "fib25") == []
    assert adaptation_answer(rows, ("rank_4", "frozen"), 5, "ac4") == []
    single = {key: runs[:1] for key, runs in rows.items()}
    assert adaptation_answer(single, ("rank_4", "frozen"), 5, "fib25")[-1] == "single run"


def test_the_knee_is_the_smallest_method_that_is_as_good_as_the_best():
    vois = {"frozen": (3.0, 3.2), "norms": (1.0, 1.3), "rank_4": (1.0, 1.1), "full": (0.9,)}
    counts = {"frozen": 0, "norms": 2496, "rank_4": 10880, "full": 1400576}
    rows = {
        (name, 5): [score(v) | {"trained": {"encoder": counts[name]}} for v in values] for name, values in vois.items()
    }
    knee = describe_knee(rows, 5, "fib25")
    assert knee == (
        "norm layers only (2,496 parameters), 1.150 ± 0.212; the best is LoRA, r = 4 (10,880 parameters), 1.050 ± 0.071"
    )
    del rows["norms", 5]
    assert describe_knee(rows, 5, "fib25") == "LoRA, r = 4 (10,880 parameters), 1.050 ± 0.071, which is also the best"
    del rows["rank_4", 5]
    assert describe_knee(rows, 5, "fib25") == describe_knee(rows, 20, "fib25") == ""


def test_an_expectation_comes_or_not():
    rows = {("rank_4", 5): [score(1.0), score(1.2)], ("full", 5): [score(1.1), score(1.3)]}
    lines = judge_expectations(rows)
    assert len(lines) == len(EXPECTATIONS) and sum("not measured yet" in line for line in lines) == len(lines) - 1
    assert any(line.endswith("came in the mean (1.100 ± 0.141 against 1.200 ± 0.141, 2 and 2 runs)") for line in lines)


def test_what_is_missing_is_said_and_five_sections_come_first():
    runs = list_adaptations()
    assert len(set(runs)) == len(runs) == len(METHODS) * len(SECTIONS) * 3
    assert {sections for _, sections, _ in runs[:21]} == {5}
    complete = {(name, n): [{"seed": seed} for seed in range(3)] for name in METHODS for n in SECTIONS}
    assert describe_missing_adaptations(complete) == "Every declared run is measured."
    del complete["full", 20]
    assert "3 of 108 runs" in describe_missing_adaptations(complete)


def test_the_page_says_what_the_table_says():
    assert adapt.PAGE.read_text(encoding="utf-8") == adapt.page(), "run tools/results/adapt.py --minutes 0"
