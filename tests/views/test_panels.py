"""Panels: drawn in place yet the same as drawn anew, cut and enlarged exactly, colours from end to end."""

from __future__ import annotations

import io
from itertools import product

import matplotlib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure

from fgnet_lib.views import plots
from fgnet_lib.views.interactive import to_jpeg
from fgnet_lib.views.panels import (
    Box,
    Canvas,
    ColorScale,
    Curve,
    Panel,
    Values,
    blend,
    enlarge,
    interpolate,
    outlines,
    point_at,
    zoom_box,
)
from fgnet_lib.volumes import IGNORE

VOXEL = (40.0, 8.0, 8.0)


def pixels(figure: Figure) -> np.ndarray:
    """As it is saved: everything drawn, whatever was kept before."""
    picture = io.BytesIO()
    with matplotlib.rc_context({"savefig.bbox": None}):
        figure.savefig(picture, format="rgba", dpi=figure.dpi)
    shape = (*figure.canvas.get_width_height()[::-1], 4)
    return np.frombuffer(picture.getvalue(), np.uint8).reshape(shape)[..., :3].astype(int)


def panel(seed: int = 0, box: Box = Box(0, 0, 40, 60), **options) -> Panel:  # noqa: B008 (a tuple)
    image = np.random.default_rng(seed).integers(0, 256, (40, 60, 3), np.uint8)
    return Panel(f"panel {seed}", box.cut(image), box, VOXEL, **options)


@given(st.integers(1, 300), st.integers(1, 300), st.sampled_from([1, 2, 4, 8]), st.data())
def test_a_zoom_box_lies_in_the_section_and_holds_the_point(height, width, zoom, data):
    y, x = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    box = zoom_box((height, width), y, x, zoom)
    assert 0 <= box.top <= y < box.top + box.height <= height
    assert 0 <= box.left <= x < box.left + box.width <= width
    assert abs(box.height - height / zoom) < 1 and abs(box.width - width / zoom) < 1


@given(st.integers(0, 20), st.integers(0, 20), st.integers(1, 30), st.integers(1, 30), st.sampled_from([1, 4, 8, 16]))
def test_a_cut_map_spread_over_its_voxels_is_the_box(top, left, height, width, stride):
    box = Box(top, left, height, width)
    full = np.arange(50 * 50).reshape(50, 50) // 50 // stride * 100 + np.arange(50) // stride
    np.testing.assert_array_equal(
        enlarge(box.cut(full[::stride, ::stride], (stride,) * 2), box, (stride,) * 2), box.cut(full)
    )


def test_colours_run_from_end_to_end():
    scale = ColorScale("a", 2, 4, "gray")
    np.testing.assert_array_equal(scale.rgb([-9, 2, 3, 4, 9, np.nan])[:, 0], [0, 0, 127, 255, 255, 0])
    np.testing.assert_array_equal(ColorScale("a", 1, 1, "gray").rgb([0, 2])[:, 0], [0, 255])


def test_blending():
    under, over = np.full((2, 2, 3), 100, np.uint8), np.full((2, 2, 3), (200, 0, 100), np.uint8)
    np.testing.assert_array_equal(blend(under, over, 0), under)
    np.testing.assert_array_equal(blend(under, over, 0.5)[0, 0], [150, 50, 100])
    np.testing.assert_array_equal(blend(under, over, 1), over)


def test_quick_outlines_are_those_of_an_overlay():
    labels = np.random.default_rng(3).choice(np.array([0, 7, 9, 12], np.uint64), (6, 8)).repeat(3, 0).repeat(3, 1)
    edge, colors = outlines(labels)
    overlay = plots.label_overlay(labels, fill=0)
    np.testing.assert_array_equal(edge, overlay[..., 3] > 0)
    np.testing.assert_array_equal(colors, (overlay[edge][:, :3] * 255).astype(np.uint8))
    np.testing.assert_array_equal(outlines(np.array([[7, 7, IGNORE]], np.uint64))[0], [[False, True, False]])


@pytest.mark.slow
def test_a_figure_drawn_in_place_is_the_one_drawn_anew():
    before, after = ColorScale("attention", 0, 0.5, "afmhot"), ColorScale("attention", 0, 0.4, "viridis")
    canvas = Canvas()
    first = canvas.show([[panel(0, scale=before, cross=(3, 4)), panel(1)]])
    second = [[panel(2, scale=after, cross=(30, 50)), panel(3)]]
    again = canvas.show(second)
    assert again is first
    np.testing.assert_array_equal(pixels(again), pixels(Canvas().show(second)))


@pytest.mark.slow
def test_what_is_kept_and_what_moves_make_the_whole_picture(drawing):
    canvas, scale = Canvas(), ColorScale("attention", 0, 0.5, "afmhot")
    rows = [[panel(0, scale=scale, cross=(3, 4)), panel(1, legend={"split": "red"}), Curve((0, 1), (2, 1), (0, 1), 0)]]
    to_jpeg(canvas.show(rows))
    rows = [
        [panel(2, scale=scale, cross=(30, 50)), panel(3, legend={"split": "red"}), Curve((0, 1), (2, 1), (0, 1), 1)]
    ]
    for changed in (scale, ColorScale("attention", 0, 0.4, "viridis")):
        rows[0][0] = panel(2, scale=changed, cross=(30, 50))
        figure = canvas.show(rows)
        figure.canvas.draw()
        quick = np.asarray(figure.canvas.buffer_rgba())[..., :3].astype(int)
        np.testing.assert_allclose(quick, pixels(figure), atol=2)  # a copied scale bar is rounded once more


@pytest.mark.parametrize(("box", "stride"), [(Box(0, 0, 40, 96), 1), (Box(3, 65, 12, 18), 1), (Box(3, 65, 12, 18), 4)])
def test_a_voxel_is_drawn_where_it_lies_and_a_section_has_its_shape(box, stride):
    section = np.zeros((40, 96, 3), np.uint8)
    section[4:8, 68:72] = 0, 255, 0  # a pixel of a map at stride 4
    image = box.cut(section[::stride, ::stride], (stride, stride))
    shown = Panel("", image, box, (40.0, 16.0, 4.0), (stride, stride), cross=(30, 80))
    figure = Canvas().show([[shown]])
    (ax,) = figure.panels
    rows, columns = np.nonzero((pixels(figure) == (0, 255, 0)).all(-1))
    width, height = figure.canvas.get_width_height()
    corners = {
        point_at(figure, (x + 0.5) / width, (y + 0.5) / height)[1:]
        for y, x in product((rows.min() + 1, rows.max() - 1), (columns.min() + 1, columns.max() - 1))  # not on an edge
    }
    assert corners == {(4, 68), (4, 71), (7, 68), (7, 71)}
    assert [line[0] for line in ax.lines[0].get_data()] == [80, 30]
    window = ax.get_window_extent()
    assert window.height / window.width == pytest.approx(box.height * 16 / (box.width * 4), rel=0.02) == shown.ratio


def test_other_arrangements_have_figures_of_their_own():
    canvas = Canvas()
    shown = [
        canvas.show(rows)
        for rows in ([[panel()]], [[panel(), panel()]], [[panel()], [panel()]], [[panel(box=Box(5, 5, 10, 15))]])
    ]
    assert len({id(figure) for figure in shown}) == 4
    assert canvas.show([[panel(4)]]) is shown[0]


def test_text_stays_readable_on_a_slide():
    figure = Canvas().show([[panel()] * 5])
    smallest = min(text.get_size() for text in figure.findobj(lambda artist: hasattr(artist, "get_fontsize")))
    assert figure.get_figwidth() <= 13.3 and smallest >= 11 * figure.get_figwidth() / 13.3


def test_the_line_of_a_curve_moves():
    canvas, curve = Canvas(), Curve((0.1, 0.5), (2, 1), (0, 1), 0.1)
    canvas.show([[curve]])
    figure = canvas.show([[Curve((0.1, 0.5), (2, 1), (0, 1), 0.5)]])
    assert list(figure.axes[0].lines[-1].get_xdata()) == [0.5, 0.5]


@pytest.mark.slow
@pytest.mark.parametrize("stride", [1, 8])
def test_a_point_of_the_picture_is_the_voxel_in_every_panel(stride):
    box = Box(8, 13, 20, 30)
    image = np.zeros((-(-28 // stride) - 8 // stride, -(-43 // stride) - 13 // stride, 3), np.uint8)
    scale = ColorScale("a", 0, 1, "gray")
    shown = Panel("", image, box, VOXEL, (stride, stride), scale)
    figure = Canvas().show([[shown] * 2, [Curve((0,), (0,), (0,), 0), panel()]])
    for ax in (ax for ax in figure.panels if ax.get_xlim()[0] == 12.5):
        for y, x in ((8, 13), (27, 42), (20, 20)):
            right, down = ax.transData.transform((x, y)) / figure.bbox.size
            assert point_at(figure, right, 1 - down) == (shown, y, x)
        corner = ax.get_window_extent().get_points()[1] / figure.bbox.size  # half a voxel beyond the last one
        assert point_at(figure, corner[0] - 1e-9, 1 - corner[1] + 1e-9) == (shown, 8, 42)
    assert point_at(figure, 0, 0) is None and len(figure.panels) == 3
    curve = next(ax for ax in figure.axes if ax.get_xlabel() == "threshold")
    right, up = curve.get_window_extent().get_points().mean(0) / figure.bbox.size
    assert point_at(figure, right, 1 - up) is None
    assert point_at(Figure(), 0.5, 0.5) is None  # not made of panels


def test_gamma_spreads_the_low_values_and_the_colour_bar_tells():
    scale = ColorScale("a", 2, 4, "gray", 0.5)
    np.testing.assert_array_equal(scale.rgb([1, 2, 2.5, 4])[:, 0], [0, 0, 127, 255])
    np.testing.assert_allclose(scale.norm([2, 2.5, 4]), [0, 0.5, 1])
    canvas = Canvas()
    canvas.show([[panel(scale=ColorScale("a", 2, 4, "gray"))]])
    second = [[panel(scale=scale)]]
    np.testing.assert_array_equal(pixels(canvas.show(second)), pixels(Canvas().show(second)))


@pytest.mark.parametrize("stride", [(4, 4), (1, 8)])
def test_a_smooth_map_is_the_map_in_the_middle_of_its_pixels_and_linear_between(stride):
    rows, columns = 40 // stride[0], 40 // stride[1]
    ramp = 3 * np.arange(rows)[:, None] * stride[0] + np.arange(columns) * stride[1]
    smooth = interpolate(ramp, Box(10, 12, 20, 16), stride)
    middle = [(side - 1) / 2 for side in stride]  # of the first pixel
    y, x = np.mgrid[10:30, 12:28]
    np.testing.assert_allclose(smooth, 3 * (y - middle[0]) + x - middle[1], atol=1e-4)
    whole = interpolate(ramp, Box(0, 0, 40, 40), stride)
    assert whole.min() == ramp.min() and whole.max() == ramp.max()  # nothing is invented at the rim
    np.testing.assert_array_equal(interpolate(np.full((1, 1), 7), Box(0, 0, 3, 5), (8, 8)), np.full((3, 5), 7))


def test_values_are_told_by_voxel():
    assert Values("a1", np.array([[0.25, 0.5]]), (2, 4)).text(1, 7) == "a1 0.500"
    assert Values("A_r", np.arange(6.0).reshape(1, 2, 3)).text(0, 1) == "A_r 3.000 4.000 5.000"
    assert Values("EM", np.array([[3]], np.uint8)).text(0, 0) == "EM 3"


def test_a_flat_plane_alone_is_as_wide_as_a_slide_and_may_be_stretched():
    flat = Panel("xz", np.zeros((5, 100, 3), np.uint8), Box(0, 0, 5, 100), VOXEL)
    assert Canvas().show([[flat], [flat]]).get_figwidth() > 13
    assert Panel("xz", flat.image, flat.box, VOXEL, stretch=4).ratio == 4 * flat.ratio == 0.2


def test_a_region_is_outlined_and_followed():
    canvas, image = Canvas(), np.zeros((40, 60, 3), np.uint8)
    region = np.zeros((40, 60), bool)
    region[1:3, 10:30] = region[39, 59] = True  # two parts; the second in a corner

    def show(**options) -> Figure:
        return canvas.show([[Panel("", image, Box(0, 0, 40, 60), VOXEL, **options)]])

    x, y = show(region=region).axes[0].lines[-1].get_data()
    assert (min(x[x < 40]), max(x[x < 40]), min(y), max(y)) == (9.5, 29.5, 0.5, 39.5)
    assert np.isnan(x).sum() == np.isnan(y).sum() == 2  # lines are not joined
    shown = [to_jpeg(show(region=part)) for part in (region, None, region, region[::-1])]
    assert shown[0] == shown[2] and len(set(shown)) == 3
