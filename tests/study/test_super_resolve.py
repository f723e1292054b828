"""The rows of lesson 17: all of a run on a phantom, what the table answers, and the current page."""

from __future__ import annotations

from dataclasses import replace

import pytest
import super_resolve as tool

from fgnet_lib.phantom import make_phantom
from fgnet_lib.study import super_resolution
from fgnet_lib.study.super_resolution import (
    ENLARGING_SEEDS,
    ENLARGINGS,
    MEASURES,
    describe_missing_enlargings,
    enlarged_answer,
    enlarged_panels,
    judge_enlargings,
    list_enlargings,
    summarise_enlarged,
)


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """Three ways of two iterations, and a small phantom in the place of every volume; their runs in a folder."""
    volume = make_phantom((8, 100, 100), seed=0, voxel_size=(10.0, 10.0, 10.0))
    ways = {
        "bicubic": ENLARGINGS["bicubic"],
        "codes": replace(ENLARGINGS["codes"], autoencoder=2, indexer=2),
        "codebook_3": replace(ENLARGINGS["codebook_3"], iterations=2, autoencoder=2, indexer=2),
    }
    for module in (tool, super_resolution):
        monkeypatch.setattr(module, "ENLARGINGS", ways)
    monkeypatch.setattr(tool, "ENLARGED_VOLUMES", {"gala": "gala"})
    monkeypatch.setattr(tool, "open_dataset", lambda name, part: volume)
    monkeypatch.setattr(tool, "SUPER_RESOLUTION", tmp_path / "runs")
    monkeypatch.setattr(tool, "PAGE", tmp_path / "page.md")
    monkeypatch.setattr(tool, "list_enlargings", lambda: [(name, 0) for name in ways])
    return tmp_path


@pytest.mark.slow
def test_what_is_missing_is_trained_measured_and_not_done_again(tiny, capsys):
    for _ in range(2):
        tool.enlarge_missing(60, tiny / "work")
    assert capsys.readouterr().out.count("seed 0, after") == 3
    rows = super_resolution.read_enlarged(tiny / "runs")
    assert [*rows] == ["bicubic", "codes", "codebook_3"]
    for name, (run,) in rows.items():
        scores = run["volumes"]["gala"]
        assert MEASURES.keys() <= scores.keys() and ("perplexity" in scores) == (name != "bicubic")
        assert 0 <= scores["invented"] <= 100 and scores["voi"] == pytest.approx(
            scores["voi_split"] + scores["voi_merge"], abs=1e-3
        )
        assert tool.PAGE.read_text(encoding="utf-8").count(f"| {ENLARGINGS[name].title} |") == 1
    assert rows["codebook_3"][0]["volumes"]["gala"]["psnr"] > rows["codes"][0]["volumes"]["gala"]["psnr"]


def rows_of(**scores: tuple[float, float]) -> super_resolution.EnlargedRows:
    """Rows with these PSNR and VOI in all seeds on FIB-25; nothing is invented, and 100 - PSNR percent are lost."""
    rows = {}
    for name, (psnr, voi) in scores.items():
        seeds = ENLARGING_SEEDS if ENLARGINGS[name].iterations or ENLARGINGS[name].autoencoder else (0,)
        measures = {"psnr": psnr, "voi": voi, "invented": 0.0, "lost": 100 - psnr}
        rows[name] = [{"seed": seed, "volumes": {"fib25": measures}} for seed in seeds]
    rows.get("truth", [{"volumes": {"fib25": {}}}])[0]["volumes"]["fib25"].pop("psnr", None)
    return rows


def test_winners_and_swapped_ranks_are_read_off_all_runs_and_nothing_less():
    names = [name for name in ENLARGINGS if name != "truth"]
    agreeing = {name: (20.0 + k, 2.0 - 0.1 * k) for k, name in enumerate(names)}
    rows = rows_of(truth=(99, 0.1), **agreeing)
    last = ENLARGINGS[names[-1]].title
    assert judge_enlargings(rows, "fib25") == [
        f"highest PSNR: {last} (25.00)",
        "fewest invented membranes: bicubic (0.00)",
        f"fewest lost membranes: {last} (75.00)",
        f"lowest VOI: {last} (1.50)",
        "PSNR and VOI disagree in all runs on 0 of 15 pairs",
    ]
    swapped = rows_of(truth=(99, 0.1), **agreeing | {"codebook_3": (25.0, 1.55), "codebook": (24.0, 1.5)})
    assert judge_enlargings(swapped, "fib25")[-1] == (
        "PSNR and VOI disagree in all runs on 1 of 15 pairs: codebook, 3 sections / codebook, 1 section"
    )
    panels = enlarged_panels(rows, "fib25")
    assert panels["VOI (bits)"]["bicubic"] == [2.0] and panels["PSNR (dB)"]["true sections"] == []
    assert enlarged_answer(rows, ("codebook", "plain"), "fib25")[2:] == ["-0.200", "0.10"]
    assert summarise_enlarged(rows, "fib25") == (
        "VOI on FIB-25: true sections 0.10, bicubic 2.00, best network 1.50 (codebook, 3 sections)"
    )
    assert summarise_enlarged({}, "gala") == "gala: no run is measured yet"
    rows["plain"].pop()
    assert judge_enlargings(rows, "fib25") == judge_enlargings({}, "gala")
    assert judge_enlargings(rows, "fib25") == ["not measured yet: some of the runs are missing"]
    assert enlarged_answer({}, ("codebook", "plain"), "gala") == []


def test_what_is_missing_is_said_and_a_seed_is_finished_before_the_next_begins():
    runs = list_enlargings()
    assert len(set(runs)) == len(runs) == 2 + 3 * (len(ENLARGINGS) - 2)
    assert [seed for _, seed in runs] == sorted(seed for _, seed in runs)
    rows = {name: [{"seed": seed} for other, seed in runs if other == name] for name in ENLARGINGS}
    assert describe_missing_enlargings(rows) == "Every declared run is measured."
    del rows["codes"]
    assert f"Not measured yet: 3 of {len(runs)} runs" in describe_missing_enlargings(rows)


def test_the_page_says_what_the_table_says():
    assert tool.PAGE.read_text(encoding="utf-8") == tool.page(), "run tools/results/super_resolve.py --minutes 0"
