"""The rows of lesson 15: three through all of a run on a phantom, what the table answers, and the current page."""

from __future__ import annotations

import doubt as tool
import numpy as np
import pytest

from fgnet_lib.phantom import make_phantom
from fgnet_lib.study import doubt
from fgnet_lib.study.doubt import (
    CALIBRATED,
    CALIBRATION,
    DECODERS,
    SHARES,
    describe_missing_doubt,
    doubt_answer,
    judge_between,
    judge_calibration,
    judge_doubt,
    judge_second_look,
    list_doubt_runs,
)


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """Small windows of a phantom in the place of every volume, a short training, three rows; runs in a folder."""
    volume = make_phantom((6, 64, 64), seed=0, voxel_size=(10.0, 10.0, 10.0))
    monkeypatch.setattr(tool, "open_dataset", lambda name, part: volume)
    for name, value in {"SIDE": 32, "DEPTH": 2, "JUDGED_FROM": (0, 3), "EPOCHS": 2, "STEPS": 3, "WINDOWS": 1}.items():
        monkeypatch.setattr(tool, name, value)
    monkeypatch.setattr(tool, "TEMPERATURE_SECTIONS", 3)
    monkeypatch.setattr(tool, "CALIBRATED", {"fib25": "FIB-25"})
    monkeypatch.setattr(tool, "DOUBT", tmp_path / "runs")
    monkeypatch.setattr(tool, "PAGE", tmp_path / "page.md")
    monkeypatch.setattr(tool, "list_doubt_runs", lambda: [(name, 0) for name in (CALIBRATION, "variance", "half_5")])
    return tmp_path


@pytest.mark.slow
def test_what_is_missing_is_measured_and_not_done_again(tiny, capsys):
    for _ in range(2):
        tool.measure_missing_doubt(60, tiny / "work")
    assert capsys.readouterr().out.count("seed 0, after") == 3
    rows = doubt.read_doubt(tiny / "runs")
    assert [*rows] == [CALIBRATION, "variance", "half_5"]
    (run,) = rows["variance"]
    assert run["seen"].keys() == {"oracle", *doubt.SCORES}
    assert run["seen"]["entropy"] == pytest.approx(run["seen"]["margin"], abs=2e-3)  # of two classes: but for rounding
    for seen in run["seen"].values():
        assert (np.array(run["seen"]["oracle"]) >= np.array(seen) - 1e-6).all() and len(seen) == len(SHARES)
    assert rows["half_5"][0]["wrong"].keys() == {"asked", "linear", "nearest"}
    assert 0.05 <= rows[CALIBRATION][0]["temperature"] <= 20
    page = tool.PAGE.read_text(encoding="utf-8")
    assert page.count("| second look by variance |") == 1 and page.count("| FIB-25 |") == 1
    assert "| oracle |" in page


def rows_of(**wrong: dict[str, list[float]]) -> doubt.DoubtRows:
    """Rows with these shares of wrong voxels, row -> key -> by seed."""
    return {
        name: [
            {"seed": k, "wrong": {key: values[k] for key, values in keys.items()}}
            for k in range(len(next(iter(keys.values()))))
        ]
        for name, keys in wrong.items()
    }


LOW, HIGH = [0.01, 0.011, 0.012, 0.013, 0.014], [0.05, 0.051, 0.052, 0.053, 0.054]


def test_a_second_look_is_judged_by_all_runs_and_by_nothing_less():
    rows = rows_of(variance={"fine": LOW, "coarse": HIGH}, entropy={"fine": HIGH}, random={"fine": HIGH})
    assert judge_second_look(rows) == (
        "Second look: by variance has fewer errors than anywhere; by entropy cannot be told apart from anywhere."
    )
    assert doubt_answer(rows, "Does a second look help?") == ["1.200 ± 0.158", "5.200 ± 0.158", "-4.000", "0.008"]
    rows["random"].pop()
    assert judge_second_look(rows) == "Second look: not measured yet: some of the runs are missing."
    assert doubt_answer({}, "Does a second look help?") == []


def test_asking_at_full_resolution_is_compared_with_interpolation():
    halves = [name for name, row in DECODERS.items() if row.half]
    rows = rows_of(**{name: {"asked": HIGH, "linear": LOW} for name in halves})
    assert judge_between(rows).count("has more errors than interpolation") == len(halves) == 3
    del rows["half_0"]
    assert "not measured yet" in judge_between(rows)


def test_the_leader_is_named_and_where_it_changes():
    ahead = np.linspace(0.2, 0.9, len(SHARES))
    behind = np.where(np.array(SHARES) < 0.05, ahead - 0.1, ahead + 0.05)
    seen = {"entropy": ahead, "margin": ahead, "variance": ahead - 0.01, "random": ahead - 0.15}
    run = {"seen": {name: values.tolist() for name, values in seen.items()}}
    assert "entropy leads at every share" in judge_doubt({"variance": [run] * 5})
    swapped = {"seen": run["seen"] | {"variance": behind.tolist()}}
    text = judge_doubt({"variance": [swapped] * 5})
    assert "the leader changes at 5 %" in text and text.index("variance") < text.index("entropy")
    assert "not measured yet" in judge_doubt({"variance": [run] * 4})


def test_calibration_is_judged_volume_by_volume():
    runs = [
        {
            "seed": k,
            "temperature": 2.0,
            "volumes": {"fib25": {"before": 0.1, "after": 0.05}, "ac4": {"before": 0.1, "after": 0.2}},
        }
        for k in range(5)
    ]
    assert judge_calibration({CALIBRATION: runs}) == (
        "Calibration: we expected a lower error after the temperature. FIB-25: lower in all runs; AC4: not lower."
    )
    table = doubt.calibration_rows({CALIBRATION: runs})
    assert table[0] == ["FIB-25", "0.1000", "0.0500 ± 0.0000", "2.00 ± 0.00"] and len(table) == 2
    assert "not measured yet" in judge_calibration({CALIBRATION: runs[:4]}) and len(CALIBRATED) == 4


def test_what_is_missing_is_said_and_a_seed_is_finished_before_the_next_begins():
    runs = list_doubt_runs()
    assert len(set(runs)) == len(runs) == 5 * (1 + len(DECODERS))
    assert {seed for _, seed in runs[: len(runs) // 5]} == {0}
    complete = {name: [{"seed": seed} for seed in range(5)] for name in (CALIBRATION, *DECODERS)}
    assert describe_missing_doubt(complete) == "Every declared run is measured."
    del complete["half_0"]
    assert f"Not measured yet: 5 of {len(runs)} runs" in describe_missing_doubt(complete)


def test_the_page_says_what_the_table_says():
    assert tool.PAGE.read_text(encoding="utf-8") == tool.page(), "run tools/results/doubt.py --minutes 0"
