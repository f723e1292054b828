"""The rows of lesson 14: every way of denoising once on a phantom, what the table answers, and the current page."""

from __future__ import annotations

import denoise as tool
import matplotlib.pyplot as plt
import numpy as np
import pytest

from fgnet_lib.phantom import make_phantom
from fgnet_lib.study.noise import (
    METHODS,
    NOISES,
    SEEDS,
    STRENGTHS,
    NoiseRow,
    NoiseRows,
    describe_missing_noise,
    judge_ranks,
    list_noise_runs,
    noise_answers,
    noise_panels,
    noise_values,
    noise_verdicts,
    noise_winners,
    read_noise_rows,
)
from fgnet_lib.views import charts


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """Each way of denoising, a step long, on a small phantom in the place of every volume; runs in a folder."""
    volume = make_phantom((22, 64, 64), seed=0, voxel_size=(10.0, 10.0, 10.0))
    rows = [(NoiseRow(method, "gaussian", 0.3), 0) for method in METHODS]
    values = {"DENOISING_STEPS": 1, "SEGMENTING_STEPS": 1, "PATCH": 32, "BATCH": 1, "THRESHOLDS": [0.3, 0.6]}
    values |= {"DENOISING": tmp_path / "runs", "PAGE": tmp_path / "page.md", "list_noise_runs": lambda: rows}
    values |= {"open_dataset": lambda name, part: volume, "open_choosing_part": lambda: volume}
    for name, value in values.items():
        monkeypatch.setattr(tool, name, value)
    return tmp_path


@pytest.mark.slow
def test_what_is_missing_is_trained_measured_and_not_done_again(tiny, capsys):
    for _ in range(2):
        tool.train_missing_noise(60, tiny / "work")
    assert capsys.readouterr().out.count("seed 0, after") == len(METHODS)
    rows = read_noise_rows(tiny / "runs")
    assert [row.method for row in rows] == list(METHODS)
    for row, (run,) in rows.items():
        assert run["threshold"] in (0.3, 0.6) and 5 < run["psnr_before"] < 20 and run["core_seconds"] >= 0
        assert noise_values(rows, row, "psnr") == [run["psnr"]]
        assert noise_values(rows, row, "voi") == [run["scores"]["voi_split"] + run["scores"]["voi_merge"]]
    text = tool.PAGE.read_text(encoding="utf-8")
    assert all(text.count(f"\n| {method.title} |") == 1 for method in METHODS.values())
    before = {run["psnr_before"] for (run,) in rows.values()}
    assert before == {rows[NoiseRow("noisy", "gaussian", 0.3)][0]["psnr"]}  # the same noise for all


def rows_of(kind: str, strength: float, **means: tuple[float, float]) -> NoiseRows:
    """Rows whose runs have these mean PSNRs and VOIs, with a little spread."""
    rows = {}
    for name, (psnr, voi) in means.items():
        rows[NoiseRow(name, kind, strength)] = [
            {"seed": k, "psnr": psnr + 0.01 * k, "scores": {"voi_split": voi + 0.01 * k, "voi_merge": 0.0}}
            for k in SEEDS
        ]
    return rows


def test_ranks_are_judged_by_all_runs_and_by_nothing_less():
    falling = {name: (20.0 + k, 3.0 - 0.1 * k) for k, name in enumerate(METHODS)}
    rows = rows_of("line", 0.3, **falling)
    best = METHODS[list(METHODS)[-1]].title
    assert judge_ranks(rows, "line", 0.3) == f'"{best}" is best in both; 0 of 21 pairs swap'
    assert noise_winners(rows)["line noise"] == {"strength 0.3": (best, best)}
    rows |= rows_of("line", 0.3, supervised=(40.0, 2.95))
    title = METHODS["supervised"].title
    assert judge_ranks(rows, "line", 0.3) == f'cleanest "{title}", best "{best}"; 5 of 21 pairs swap'
    assert noise_winners(rows)["line noise"] == {"strength 0.3": (title, best)}
    rows[NoiseRow("noisy", "line", 0.3)].pop()
    assert judge_ranks(rows, "line", 0.3) == "not measured yet: some of the runs are missing"
    assert noise_winners(rows)["line noise"] == {}
    assert judge_ranks({}, "poisson", 0.15).startswith("not measured yet")


def test_questions_are_answered_for_both_measures():
    rows = rows_of("gaussian", 0.15, noisy=(16.0, 2.0), smoothed=(20.0, 2.5))
    answers = noise_answers(rows)
    assert len(answers) == 2 * len(NOISES) * len(STRENGTHS)
    (voi,), (psnr,) = (answers[f"{measure}, Gaussian noise, strength 0.15"] for measure in ("VOI", "PSNR"))
    assert voi[0] == psnr[0] == "Does smoothing help?"
    assert voi[1:] == ["2.510 ± 0.010", "2.010 ± 0.010", "+0.500", "0.10"] and psnr[3] == "+4.000"
    assert noise_answers({})["VOI, line noise, strength 0.3"] == []


def test_what_is_missing_is_said_and_a_seed_is_finished_before_the_next_begins():
    runs = list_noise_runs()
    assert len(set(runs)) == len(runs) == len(METHODS) * len(NOISES) * len(STRENGTHS) * len(SEEDS)
    assert {seed for _, seed in runs[: len(runs) // 3]} == {0}
    complete = {row: [{"seed": seed} for seed in SEEDS] for row, _ in runs}
    assert describe_missing_noise(complete) == "Every declared run is measured."
    del complete[NoiseRow("joint", "line", 0.3)]
    assert f"Not measured yet: 3 of {len(runs)} runs" in describe_missing_noise(complete)


def test_the_figure_has_a_point_for_each_method_and_strength_and_names_the_winners():
    rows = rows_of("line", 0.3, **{name: (20.0 + k, 2.0 + 0.1 * k) for k, name in enumerate(METHODS)})
    figure = charts.psnr_figure(noise_panels(rows), noise_winners(rows), noise_verdicts(rows))
    assert len(figure.axes) == len(STRENGTHS) * len(NOISES) and not any(ax.texts for ax in figure.axes[:-1])
    ends = [f"cleanest:\n{METHODS['embedded'].title}", f"best neurons:\n{METHODS['noisy'].title}"]
    assert [text.get_text() for text in figure.axes[-1].texts] == ends
    assert figure.axes[0].get_title() == "Gaussian noise, strength 0.15\n0 of 21 runs measured"
    assert figure.axes[-1].get_title() == "line noise, strength 0.3\nthe cleanest is not the best, in all runs"
    assert len(figure.axes[-1].containers) == len(METHODS)
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == [method.title for method in METHODS.values()]
    plt.close(figure)


def test_arrows_lead_to_both_winners_however_close_their_marks_are():
    means = dict.fromkeys(METHODS, (20.0, 3.0)) | {"joint": (25.01, 2.0), "embedded": (25.0, 1.999)}
    rows = rows_of("line", 0.3, **means)
    figure = charts.psnr_figure(noise_panels(rows), noise_winners(rows), noise_verdicts(rows))
    figure.canvas.draw()
    ax = figure.axes[-1]
    assert len(ax.texts) == 2
    for text, name in zip(ax.texts, ("joint", "embedded"), strict=True):
        line = text.arrow_patch.get_path().vertices  # in pixels, its tip among them
        mark = ax.transData.transform(np.add(means[name], 0.01))
        assert np.ptp(line, axis=0).max() > 50
        assert np.linalg.norm(line - mark, axis=1).min() < 12
    plt.close(figure)


def test_a_panel_says_whether_the_cleanest_is_the_best():
    rows = rows_of("line", 0.15, **{name: (20.0 + k, 3.0 - 0.1 * k) for k, name in enumerate(METHODS)})
    rows |= rows_of("line", 0.3, **{name: (20.0 + k, 2.0 + 0.1 * k) for k, name in enumerate(METHODS)})
    assert list(noise_verdicts(rows)["line noise"].values()) == [
        "the cleanest is the best, too",
        "the cleanest is not the best, in all runs",
    ]
    means = dict.fromkeys(METHODS, (20.0, 3.0)) | {
        "embedded": (25.0, 2.01),
        "joint": (24.0, 2.0),
    }  # a run's spread apart
    assert noise_verdicts(rows_of("line", 0.3, **means))["line noise"]["strength 0.3"] == (
        "the cleanest is not the best, but runs overlap"
    )
    rows[NoiseRow("noisy", "line", 0.3)].pop()
    assert noise_verdicts(rows)["line noise"]["strength 0.3"] == "20 of 21 runs measured"
    assert noise_verdicts(rows)["Poisson noise"]["strength 0.3"] == "0 of 21 runs measured"


def test_the_page_says_what_the_table_says():
    assert tool.PAGE.read_text(encoding="utf-8") == tool.page(), "run tools/results/denoise.py --minutes 0"
