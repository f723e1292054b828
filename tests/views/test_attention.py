"""The figure of attention: colours are weights, maps lie on the voxels, and structure is told in words."""

from __future__ import annotations

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.collections import LineCollection
from mpl_toolkits.axes_grid1.anchored_artists import AnchoredSizeBar

from fgnet_lib.views import attention, plots
from fgnet_lib.volumes import IGNORE

VOXEL = (40.0, 8.0, 8.0)
pytestmark = pytest.mark.usefixtures("drawing")


@pytest.fixture
def volume() -> tuple[np.ndarray, np.ndarray]:
    labels = np.ones((6, 48, 64), np.uint64)
    labels[:, :, 32:] = 2
    return np.zeros(labels.shape, np.uint8), labels


@pytest.fixture
def maps() -> list[np.ndarray]:
    """Padded in y beyond raw; nearly all weights are close to 0, as in some trained models."""
    rng = np.random.default_rng(0)
    return [10 ** rng.uniform(-12, -6, (6, 64 // stride, 64 // stride)) for stride in (4, 8, 16)]


def test_the_grid_has_the_layout_of_figure_4(volume, maps):
    figure = attention.attention_grid(*volume, maps, [1, 2], VOXEL)
    panels, bars = figure.axes[:10], figure.axes[10:]
    assert [ax.get_title() for ax in panels[:2]] == ["EM", "ground truth"]
    assert ["a_1" in panels[2].get_title(), "a_3" in panels[4].get_title(), len(bars)] == [True, True, 3]
    assert {ax.get_ylim() for ax in panels} == {(47.5, -0.5)}
    assert [any(isinstance(artist, AnchoredSizeBar) for artist in ax.artists) for ax in panels[:2]] == [True, True]
    assert panels[2].images[0].get_extent() == [-0.5, 63.5, 63.5, -0.5]
    colors = plots.neighbour_colors(volume[1][1:3])  # of the sections shown, far apart where ids touch
    assert np.array_equal(panels[1].images[1].get_array(), plots.label_overlay(volume[1][1], 0.6, colors))


def test_colours_begin_at_0_and_end_where_nearly_all_weights_do(volume, maps):
    figure = attention.attention_grid(*volume, maps, [1, 2], VOXEL)
    for weights, ax in zip(maps, figure.axes[2:5], strict=True):
        low, high = ax.images[0].get_clim()
        assert low == 0 and np.mean(weights[1:3] <= high) == pytest.approx(0.99, abs=0.03)
        assert np.array_equal(ax.images[0].get_array(), weights[1])


def test_outlines_leave_the_finest_map_free(volume, maps):
    axes = attention.attention_grid(*volume, maps, [1], VOXEL).axes[2:5]
    assert [any(isinstance(artist, LineCollection) for artist in ax.collections) for ax in axes] == [False, True, True]


@pytest.mark.parametrize(("smooth", "interpolation"), [(True, "bicubic"), (False, "nearest")])
def test_display_is_smooth_or_the_true_grid(volume, maps, smooth, interpolation):
    ax = attention.attention_grid(*volume, maps, [0], VOXEL, smooth=smooth).axes[4]
    assert ax.images[0].get_interpolation() == interpolation
    assert ax.images[0].get_array().shape == (4, 4)


def test_outlines_are_thin_and_lie_between_voxels(volume):
    _, ax = plt.subplots()
    attention.outline_labels(ax, volume[1][0])
    (lines,) = (artist for artist in ax.collections if isinstance(artist, LineCollection))
    segments = np.array(lines.get_segments())
    assert segments.shape == (48, 2, 2) and set(segments[..., 0].ravel()) == {31.5}
    assert (segments[:, :, 1].min(), segments[:, :, 1].max()) == (-0.5, 47.5) and lines.get_linewidth()[0] < 1


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 1, 300)])
@pytest.mark.parametrize("label", [0, 5, IGNORE])
@pytest.mark.parametrize("weight", [0.0, 0.5, np.nan])
def test_extremes(shape, label, weight):
    raw, labels = np.zeros(shape, np.uint8), np.full(shape, label, np.uint64)
    attention.attention_grid(raw, labels, [np.full(shape, weight)] * 3, [0], VOXEL).canvas.draw()


def test_words_follow_the_numbers():
    sentence = attention.describe_attention("a2", {"on membranes": 0.26, "inside": 0.62, "elsewhere": 0.51})
    assert sentence == "a2 is much lower on membranes (AUC 0.26), clearly higher inside (AUC 0.62), " + (
        "about the same elsewhere (AUC 0.51)."
    )
    assert attention.describe_attention("a1", {"here": 0.46}) == "a1 is slightly lower here (AUC 0.46)."
