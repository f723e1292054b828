"""Pictures with controls: drawn in place yet the same as drawn anew, redrawn once, clicked, saved."""

from __future__ import annotations

import io

import ipywidgets as widgets
import matplotlib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from matplotlib.image import imread

from fgnet_lib.views.panels import (
    Box,
    Canvas,
    ColorScale,
    Curve,
    Panel,
    blend,
    enlarge,
    explore,
    point_at,
    to_jpeg,
    zoom_box,
)

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


@settings(deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.sampled_from([1, 2, 4, 8]), st.data())
def test_a_zoom_box_lies_in_the_section_and_holds_the_point(height, width, zoom, data):
    y, x = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    box = zoom_box((height, width), y, x, zoom)
    assert 0 <= box.top <= y < box.top + box.height <= height
    assert 0 <= box.left <= x < box.left + box.width <= width
    assert abs(box.height - height / zoom) < 1 and abs(box.width - width / zoom) < 1


@settings(deadline=None)
@given(st.integers(0, 20), st.integers(0, 20), st.integers(1, 30), st.integers(1, 30), st.sampled_from([1, 4, 8, 16]))
def test_a_cut_map_spread_over_its_voxels_is_the_box(top, left, height, width, stride):
    box = Box(top, left, height, width)
    full = np.arange(50 * 50).reshape(50, 50) // 50 // stride * 100 + np.arange(50) // stride
    np.testing.assert_array_equal(enlarge(box.cut(full[::stride, ::stride], stride), box, stride), box.cut(full))


def test_colours_run_from_end_to_end():
    scale = ColorScale("a", 2, 4, "gray")
    np.testing.assert_array_equal(scale.rgb([-9, 2, 3, 4, 9, np.nan])[:, 0], [0, 0, 127, 255, 255, 0])
    np.testing.assert_array_equal(ColorScale("a", 1, 1, "gray").rgb([0, 2])[:, 0], [0, 255])


def test_blending():
    under, over = np.full((2, 2, 3), 100, np.uint8), np.array([200.0, 0, 100])
    np.testing.assert_array_equal(blend(under, over, 0), under)
    np.testing.assert_array_equal(blend(under, over, 0.5)[0, 0], [150, 50, 100])
    np.testing.assert_array_equal(blend(under, over, np.array([[[1], [0]]]))[0], [[200, 0, 100], [100, 100, 100]])


def test_a_figure_drawn_in_place_is_the_one_drawn_anew():
    before, after = ColorScale("attention", 0, 0.5, "afmhot"), ColorScale("attention", 0, 0.4, "viridis")
    canvas = Canvas()
    first = canvas.show([[panel(0, scale=before, cross=(3, 4)), panel(1)]])
    second = [[panel(2, scale=after, cross=(30, 50)), panel(3)]]
    again = canvas.show(second)
    assert again is first
    np.testing.assert_array_equal(pixels(again), pixels(Canvas().show(second)))


def test_what_is_kept_and_what_moves_make_the_whole_picture():
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
        np.testing.assert_array_equal(quick, pixels(figure))


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


@pytest.mark.parametrize("stride", [1, 8])
def test_a_click_finds_the_voxel_in_every_panel(stride):
    box = Box(8, 13, 20, 30)
    image = np.zeros((-(-28 // stride) - 8 // stride, -(-43 // stride) - 13 // stride, 3), np.uint8)
    scale = ColorScale("a", 0, 1, "gray")
    figure = Canvas().show([[Panel("", image, box, VOXEL, stride, scale)] * 2, [Curve((0,), (0,), (0,), 0), panel()]])
    for ax in (ax for ax in figure.axes if ax.images and ax.get_xlim()[0] == 12.5):
        for y, x in ((8, 13), (27, 42), (20, 20)):
            right, down = ax.transData.transform((x, y)) / figure.bbox.size
            assert point_at(figure, right, 1 - down) == (y, x)
    assert point_at(figure, 0, 0) is None
    curve = next(ax for ax in figure.axes if ax.get_xlabel() == "threshold")
    right, up = curve.get_window_extent().get_points().mean(0) / figure.bbox.size
    assert point_at(figure, right, 1 - up) is None


def test_a_change_is_drawn_once():
    calls = []

    def draw(**values) -> Figure:
        calls.append(values)
        return Figure(figsize=(1, 1))

    slider, box = widgets.IntSlider(1, 0, 5), widgets.Checkbox(True)
    explore(draw, z=slider, outlines=box)
    slider.value = 4
    box.value = False
    assert calls == [{"z": 1, "outlines": True}, {"z": 4, "outlines": True}, {"z": 4, "outlines": False}]


def explorer_of_a_point(calls: list):
    canvas = Canvas()

    def draw(z: int, y: int, x: int) -> Figure:
        calls.append((z, y, x))
        return canvas.show([[panel(z, cross=(y, x))]])

    sliders = {name: widgets.IntSlider(0, 0, n - 1) for name, n in zip("zyx", (3, 40, 60), strict=True)}
    return explore(draw, **sliders)


def test_a_click_moves_the_point_and_draws_once():
    calls = []
    explorer = explorer_of_a_point(calls)
    ax = explorer.draw().axes[0]
    right, down = ax.transData.transform((50, 30)) / ax.figure.bbox.size
    calls.clear()
    explorer.pick.value = f"{right} {1 - down}"  # what the listener in the page types
    assert calls == [(0, 30, 50)]
    assert (explorer.controls["y"].value, explorer.controls["x"].value) == (30, 50)
    explorer.pick.value = "0.001 0.001"  # beside the section
    assert len(calls) == 1


def test_a_click_without_a_point_to_move_does_nothing():
    canvas = Canvas()
    explorer = explore(lambda z: canvas.show([[panel(z)]]), z=widgets.IntSlider(0, 0, 2))
    before = explorer.picture.value
    explorer.pick.value = "0.5 0.5"
    assert explorer.picture.value == before


def test_a_static_figure_leaves_the_controls():
    explorer = explorer_of_a_point([])
    before = explorer.picture.value
    figure = explorer.draw(z=2)
    assert figure.axes[0].get_title() == "panel 2"
    assert explorer.values() == {"z": 0, "y": 0, "x": 0} and explorer.picture.value == before


def test_the_picture_has_the_pixels_of_the_figure():
    figure = Canvas().show([[panel()]])
    shown = imread(io.BytesIO(to_jpeg(figure)), format="jpeg")
    assert shown.shape == (*figure.canvas.get_width_height()[::-1], 3)
    assert np.abs(shown.astype(int) - pixels(figure)).mean() < 8  # noise, the worst there is


def test_the_view_and_the_run_through_z_are_saved(tmp_path):
    calls = []
    explorer = explorer_of_a_point(calls)
    explorer._folder = tmp_path / "new"
    explorer.save_png.click()
    assert imread(tmp_path / "new" / "view-0000.png").shape[1] > explorer.draw().bbox.width
    calls.clear()
    explorer.save_gif.click()
    assert {z for z, _, _ in calls} == {0, 1, 2}
    with (tmp_path / "new" / "view.gif").open("rb") as file:
        content = file.read()
    assert content.startswith(b"GIF89a") and content.count(b"\x21\xf9\x04") == 3  # one control block for each frame
    assert explorer.progress.value == explorer.progress.max == 3 and "view.gif" in explorer.status.value


def test_parts_can_be_found_in_the_page():
    explorer = explorer_of_a_point([])

    def classes(widget: widgets.Widget) -> set[str]:
        return set(widget._dom_classes).union(*map(classes, getattr(widget, "children", ())))

    names = "explorer picture readout status progress play save-png save-gif pick z y x"
    assert classes(explorer) == {f"fgnet-{name}" for name in names.split()}
