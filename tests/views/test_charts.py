"""Charts of runs: what is highlighted, which axis is which, and what a chart of nothing looks like."""

from __future__ import annotations

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_rgb

from fgnet_lib.views import charts, plots

pytestmark = pytest.mark.usefixtures("drawing")


def test_highlighted_curves_are_in_color_and_the_rest_is_grey():
    curves = {name: ([0.1, 0.2], [0.3, 0.1], 1) for name in "abc"}
    sections = {name: {5: [2.0, 2.2], 120: [1.0]} for name in "abc"}
    _, (left, right) = plt.subplots(1, 2)
    for ax in (
        charts.split_against_merge(left, curves, highlighted=["b"]),
        charts.against_sections(right, sections, highlighted=["b"]),
    ):
        assert [text.get_text() for text in ax.get_legend().get_texts()] == ["b"]
        colors = [
            line.get_color() for line in ax.lines if len(line.get_xdata()) == 2 and line.get_linestyle() != "None"
        ]
        assert [color == "0.8" for color in colors] == [True, False, True]


def test_a_frozen_encoder_is_left_of_all_others_and_has_no_number_in_between():
    rows = {"frozen": (0, {5: [2.0, 2.2]}), "LoRA": (10880, {5: [1.8], 20: [1.5, 1.7]}), "full": (1400576, {20: [1.4]})}
    figure = charts.parameters_figure({"FIB-25": rows, "gala": {"frozen": (0, {5: [3.0]})}})
    top, bottom = figure.axes
    labels = [tick.get_text() for tick in bottom.get_xticklabels()]
    assert labels[0] == "0" and "10,000" in labels and bottom.get_xticks()[0] < 1000
    assert [text.get_text() for text in top.get_legend().get_texts()] == ["5 labelled sections", "20 labelled sections"]
    assert {text.get_text() for text in top.texts} == rows.keys() and not bottom.texts
    assert top.get_ylabel() == "VOI on FIB-25\n(bits)" and top.get_ylim()[0] == bottom.get_ylim()[0] == 0
    charts.parameters_figure({})


def test_time_is_logarithmic_and_a_network_without_a_score_is_a_line():
    line, others = {"wide": (8.0, [1.3, 1.4]), "narrow": (2.0, [1.8])}, {"labels alone": (4.0, [1.7, 1.6, 1.8])}
    marks = {"student": (4.0, 1.2), "teacher": (50.0, 1.1), "U-Net": (90.0, None)}
    ax = charts.against_time(plt.figure().subplots(), line, others, marks)
    named = [text.get_text() for text in ax.get_legend().get_texts()]
    assert sorted(named) == sorted([*line, *others, "student", "teacher", "U-Net (time alone)"])
    assert ax.get_xscale() == "log" and list(ax.lines[0].get_xdata()) == [2.0, 8.0]
    charts.against_time(plt.figure().subplots(), {}, {}, marks)


def test_a_change_of_voi_is_an_arrow_whose_colour_says_better_or_worse():
    ax = charts.changes_of_voi(plt.figure().subplots(), 2.0, {"helps": [1.5, 1.7], "hurts": [3.0], "unmeasured": []})
    texts = [text.get_text() for text in ax.texts]
    assert texts == ["", "-0.40", "", "+1.00"]  # an arrow has an empty text
    arrows = [text.arrow_patch for text in ax.texts if text.arrow_patch is not None]
    assert [arrow.get_edgecolor()[:3] for arrow in arrows] == [to_rgb(plots.SPLIT), to_rgb(plots.MERGE)]
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["helps", "hurts", "unmeasured"]
    assert len(ax.lines) == 3  # before, and the runs of two methods


def test_each_score_of_doubt_says_what_it_shows_at_the_budget():
    entropy = np.array([[0.1, 0.6, 0.9], [0.2, 0.8, 1.0]])
    seen = {"oracle": np.ones((2, 3)), "entropy": entropy, "margin": entropy, "variance": entropy - 0.1}
    seen |= {"random": np.array([[0.01, 0.14, 0.5]]), "other": np.empty((0, 3))}
    figure, (left, right) = plt.subplots(1, 2)
    ax = charts.errors_inspected(left, [0.01, 0.125, 0.5], seen, 0.125)
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["oracle: 100%", "entropy, margin: 70%", "variance: 60%", "random: 14%"]
    assert ax.get_title() == "12.5 % of the voxels, chosen by entropy, hold 70% of the errors; at random 14%"
    assert charts.errors_inspected(right, [0.01, 0.5], {}, 0.5).get_legend() is None
    plt.close(figure)


def test_lost_membranes_lie_left_and_invented_ones_right_with_their_numbers():
    rows = {"true": [], "codes": [3.0, 5.0], "not measured": []}
    panels = {"PSNR": rows, "invented": rows, "lost": rows | {"codes": [9.0]}, "VOI": rows | {"true": [1.05]}}
    figure = charts.enlarged_figure(panels, "what it costs")
    psnr, membranes, voi = figure.axes
    assert [bar.get_width() for bar in membranes.patches] == [-9.0, 4.0]
    assert [text.get_text() for text in membranes.texts] == ["9.00", "4.00"]
    assert [text.get_text() for text in voi.texts] == ["1.05", "4.00"]
    assert [label.get_text() for label in psnr.get_yticklabels()] == ["true (1)", "codes (2)", "not measured (0)"]
    plt.close(figure)


def test_curves():
    _, (left, right) = plt.subplots(1, 2)
    charts.split_merge_curve(left, [0.1, 0.5, 0.9], [2, 1, 0.2], [0.1, 0.3, 3], chosen=0.5)
    total = next(line for line in left.lines if line.get_label() == "sum")
    assert np.allclose(total.get_ydata(), [2.1, 1.3, 3.2])
    charts.loss_curve(right, [], [])
    charts.loss_curve(right, [1, 2], [np.nan, 0.5], "validation")
    assert [text.get_text() for text in right.get_legend().get_texts()] == ["training", "validation"]
    right.figure.canvas.draw()
    assert all(ax.get_legend().get_window_extent().y1 < ax.get_window_extent().y0 for ax in (left, right))
