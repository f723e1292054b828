"""The rows of lesson 13: two through all of a run on a phantom, what the table answers, and the current page."""

from __future__ import annotations

from dataclasses import replace

import few_sections as tool
import numpy as np
import pytest
import results

from fgnet_lib.phantom import make_phantom
from fgnet_lib.study import few_sections
from fgnet_lib.study.few_sections import (
    FIRST,
    LABELLED_SECTIONS,
    STARTS,
    describe_missing_runs,
    few_answer,
    judge_free_lunch,
    label_few,
    list_few_runs,
)
from fgnet_lib.volumes import IGNORE


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """Two starts of two iterations on a small phantom in the place of every volume; their runs in a folder."""
    volume = make_phantom((12, 96, 96), seed=0, voxel_size=(10.0, 10.0, 10.0))
    starts = {
        "centre": replace(STARTS["centre"], iterations=2, pretraining=2),
        "photographs": replace(STARTS["photographs"], iterations=2),
    }
    for module in (tool, few_sections):
        monkeypatch.setattr(module, "STARTS", starts)
    monkeypatch.setattr(tool, "open_dataset", lambda name, part: volume)
    monkeypatch.setattr(tool, "open_choosing_part", lambda: volume)
    monkeypatch.setattr(results, "THRESHOLDS", [0.3, 0.6])
    monkeypatch.setattr(tool, "FEW_SECTIONS", tmp_path / "runs")
    monkeypatch.setattr(tool, "PAGE", tmp_path / "page.md")
    monkeypatch.setattr(tool, "list_few_runs", lambda: [(name, 1, 0) for name in starts])
    return tmp_path


@pytest.mark.slow
def test_what_is_missing_is_trained_measured_and_not_done_again(tiny, capsys):
    for _ in range(2):
        tool.train_missing_few(60, tiny / "work")
    assert capsys.readouterr().out.count("seed 0, after") == 2
    rows = few_sections.read_few_rows(tiny / "runs")
    assert [*rows] == [("centre", 1), ("photographs", 1)]
    for (name, _), (run,) in rows.items():
        assert run["core_seconds"] >= run["pretraining_seconds"] >= 0 and run["threshold"] in (0.3, 0.6)
        assert few_sections.few_scores(rows, name, 1) == [run["scores"]["voi_split"] + run["scores"]["voi_merge"]]
        assert tool.PAGE.read_text(encoding="utf-8").count(f"| {STARTS[name].title} |") == 1


def test_a_few_sections_keep_their_labels_and_the_grey_values_around_them():
    volume = make_phantom((16, 32, 32), seed=0)
    few = label_few(volume, 5)
    assert few.shape == (5 + 2 * FIRST, 32, 32) and np.array_equal(few.raw, volume.raw[: len(few.raw)])
    known = (few.labels != IGNORE).any((1, 2))
    assert [*np.flatnonzero(known)] == [*range(FIRST, FIRST + 5)]
    assert np.array_equal(few.labels[known], volume.labels[FIRST : FIRST + 5])
    assert (volume.labels != IGNORE).all()  # the volume itself is as it was


def test_affinities_along_z_come_from_the_volume_on_its_side(monkeypatch):
    class Seen:
        def __init__(self, volume):
            values = volume.astype(float)
            self.refined, self.coarse = np.stack([values, values + 0.25, values + 0.5]), None

    monkeypatch.setattr(tool, "predict", lambda model, volume, progress: Seen(volume))
    raw = np.random.default_rng(0).integers(0, 200, (3, 4, 5)).astype(np.uint8)
    assert np.array_equal(tool.predict_turned(None, raw), np.stack([raw + 0.25, raw + 0.25, raw + 0.5]))


def rows_of(**scores: list[float]) -> few_sections.FewRows:
    """Rows with five sections and these VOIs."""
    return {
        (name, 5): [{"seed": k, "scores": {"voi_split": voi - 0.25, "voi_merge": 0.25}} for k, voi in enumerate(values)]
        for name, values in scores.items()
    }


def test_a_free_lunch_is_judged_by_all_runs_and_by_nothing_less():
    equal = {name: [2.0, 2.1, 2.2, 2.3, 2.4] for name in STARTS}
    rows = rows_of(**equal | {"centre": [1.0, 1.1, 1.2, 1.3, 1.4], "painted": [3.0, 3.1, 3.2, 3.3, 3.4]})
    better, worse = STARTS["centre"].title, STARTS["painted"].title
    others = len(STARTS) - 3
    assert judge_free_lunch(rows, 5) == (
        f"better than from scratch: {better}; worse: {worse}; {others} cannot be told apart from it"
    )
    assert judge_free_lunch(rows_of(**equal), 5).startswith("better than from scratch: none; worse: none")
    rows["average", 5].pop()
    assert judge_free_lunch(rows, 5) == judge_free_lunch(rows, 20) == "not measured yet: some of the runs are missing"
    assert few_answer(rows, ("centre", "unet"), 5) == ["1.200 ± 0.158", "2.200 ± 0.158", "-1.000", "0.008"]
    assert few_answer(rows, ("centre", "unet"), 20) == []


def test_what_is_missing_is_said_and_a_seed_is_finished_before_the_next_begins():
    runs = list_few_runs()
    assert len(set(runs)) == len(runs) == len(STARTS) * len(LABELLED_SECTIONS) * 5
    assert {seed for _, _, seed in runs[: len(runs) // 5]} == {0}
    complete = {(name, n): [{"seed": seed} for seed in range(5)] for name in STARTS for n in LABELLED_SECTIONS}
    assert describe_missing_runs(complete) == "Every declared run is measured."
    del complete["centre", 20]
    assert f"Not measured yet: 5 of {len(runs)} runs" in describe_missing_runs(complete)


def test_the_page_says_what_the_table_says():
    assert tool.PAGE.read_text(encoding="utf-8") == tool.page(), "run tools/results/few_sections.py --minutes 0"
