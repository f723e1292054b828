"""Figures: lengths, colours and aspect are right; nothing crashes on the extremes."""

from __future__ import annotations

import re
from itertools import combinations

import matplotlib
from helpers.calls import count_calls

from fgnet_lib import REPOSITORY

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.text import Text
from mpl_toolkits.axes_grid1.anchored_artists import AnchoredSizeBar
from skimage.color import rgb2lab
from skimage.segmentation import find_boundaries

from fgnet_lib.phantom import make_phantom
from fgnet_lib.views import charts, plots
from fgnet_lib.views.meshes import largest_ids, neuron_mesh, neuron_meshes
from fgnet_lib.volumes import IGNORE

VOXEL = (40.0, 8.0, 8.0)
pytestmark = pytest.mark.usefixtures("drawing")


@pytest.fixture
def volume() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = np.zeros((6, 48, 64), np.uint64)
    labels[:, 4:20, 4:60] = 7
    labels[:, 24:40, 4:60] = 2**40 + 3
    return rng.integers(0, 256, labels.shape, dtype=np.uint8), labels


def bar_of(ax) -> tuple[float, float]:
    """Length of the bar on the canvas in data units, and the nm written under it."""
    ax.figure.canvas.draw()
    bar = next(artist for artist in ax.artists if isinstance(artist, AnchoredSizeBar))
    box = bar.size_bar.get_window_extent().transformed(ax.transData.inverted())
    return box.width, float(bar.txt_label.get_text().removesuffix(" nm"))


@pytest.mark.slow
@given(width=st.integers(2, 5000), size=st.floats(0.5, 200))
def test_scale_bar_is_as_long_as_it_says(width, size):
    figure, ax = plt.subplots()
    ax.set_xlim(-0.5, width - 0.5)
    bar = plots.scale_bar(ax, (1000.0, size)).artists[0]
    nm = float(bar.txt_label.get_text().removesuffix(" nm"))
    rectangle = bar.size_bar.get_children()[0]
    assert rectangle.get_width() * size == pytest.approx(nm, rel=1e-5)
    assert 1 / 9 < nm / (width * size) < 0.34
    plt.close(figure)


def test_scale_bar_on_the_canvas(volume):
    _, ax = plt.subplots()
    length, nm = bar_of(plots.show_section(ax, *volume, VOXEL, z=2))
    assert (length, nm) == (pytest.approx(100 / 8, rel=0.02), 100)


def test_colors_stay_with_the_id(volume):
    _, labels = volume
    colors = plots.label_colors(labels)
    assert np.array_equal(colors[0], plots.label_colors(labels[0]))
    assert np.array_equal(plots.label_colors(labels.astype(np.int64)), colors)
    assert np.array_equal(colors[0, 5, 5], plots.label_colors(np.array(7)))
    assert not plots.label_colors(np.array([0, IGNORE], np.uint64)).any()
    many = plots.label_colors(np.arange(1, 100_000))
    _, counts = np.unique(many, axis=0, return_counts=True)
    assert len(counts) >= 30
    assert counts.max() < 2 * counts.min()
    assert (many[1:] == many[:-1]).all(1).mean() < 0.1


def test_hues_differ_for_colour_blind_eyes():
    """Machado et al. (2009), full deuteranopia and protanopia, on the base colours."""
    simulations = (
        [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
        [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
    )
    base = plots._PALETTE[:7]
    linear = np.where(base <= 0.04045, base / 12.92, ((base + 0.055) / 1.055) ** 2.4)
    for matrix in simulations:
        seen = np.clip(linear @ np.array(matrix).T, 0, 1)
        lab = rgb2lab(np.where(seen <= 0.0031308, seen * 12.92, 1.055 * seen ** (1 / 2.4) - 0.055))
        distance = np.linalg.norm(lab[:, None] - lab[None], axis=-1)[~np.eye(7, dtype=bool)]
        assert distance.min() > 10


def test_labels_are_clear_where_there_is_none(volume):
    raw, labels = volume
    _, ax = plt.subplots()
    plots.show_section(ax, raw, labels, VOXEL, z=0)
    alpha = ax.images[1].get_array()[..., 3]
    assert not alpha[labels[0] == 0].any()
    assert alpha[4, 10] == 1  # outline
    assert alpha[10, 10] == pytest.approx(0.35)
    plots.show_labels(ax, labels, 0, fill=0)
    assert ax.images[2].get_array()[10, 10, 3] == 0


def test_views_are_to_scale(volume):
    raw, labels = volume
    figure = plots.orthogonal_views(raw, VOXEL, labels, at=(1, 10, 20))
    figure.canvas.draw()
    xy, yz, xz = figure.axes
    assert [ax.get_title() for ax in (xy, yz, xz)] == ["xy, z = 1", "yz, x = 20", "xz, y = 10"]
    boxes = [ax.get_window_extent() for ax in (xy, yz, xz)]
    expected = [(64 * 8, 48 * 8), (6 * 40, 48 * 8), (64 * 8, 6 * 40)]
    scales = [(box.width / w, box.height / h) for box, (w, h) in zip(boxes, expected, strict=True)]
    assert np.ptp([wide / high for wide, high in scales]) < 0.03
    assert np.array_equal(xz.images[0].get_array(), raw[:, 10])
    assert np.array_equal(yz.images[0].get_array(), raw[:, :, 20].T)


@pytest.mark.parametrize("draw", [plots.show_similarity, plots.pca_rgb, plots.show_section])
def test_raw_map_and_labels_lie_on_the_same_voxels(draw):
    _, ax = plt.subplots()
    raw, stride = np.zeros((8, 12)), 1 if draw is plots.show_section else 4
    plots.show_section(ax, np.zeros((8, 12), np.uint8), np.ones((8, 12), np.uint64), VOXEL)
    draw(
        ax,
        np.zeros((8 // stride, 12 // stride, 3)) if draw is plots.pca_rgb else raw[::stride, ::stride],
        *(() if stride == 1 else (stride,)),
    )
    assert {tuple(image.get_extent()) for image in ax.images} == {(-0.5, 11.5, 7.5, -0.5)}


def test_similarity_has_all_of_its_range():
    _, ax = plt.subplots()
    assert plots.show_similarity(ax, np.full((4, 4), 0.3)).images[0].get_clim() == (-1, 1)


def test_errors_are_painted_in_the_colours_of_their_names():
    splits, merges = np.zeros((2, 8, 12), bool)
    splits[2, 3], merges[5, 9] = True, True
    _, ax = plt.subplots()
    plots.error_map(ax, np.zeros((8, 12), np.uint8), splits, merges, VOXEL)
    legend = dict(
        zip((text.get_text() for text in ax.get_legend().get_texts()), ax.get_legend().get_patches(), strict=True)
    )
    painted = sum(np.asarray(image.get_array())[..., :3] for image in ax.images[1:])
    for name, at in (("split", (2, 3)), ("merge", (5, 9))):
        np.testing.assert_allclose(painted[at], legend[name].get_facecolor()[:3], atol=1e-6)


def test_affinities_show_z_y_x_as_red_green_blue():
    affinities = np.zeros((3, 4, 8, 8), np.float32)
    affinities[1, 3] = 1
    _, ax = plt.subplots()
    plots.show_affinities(ax, affinities, VOXEL, z=3)
    assert np.array_equal(ax.images[0].get_array()[0, 0], [0, 1, 0])
    legend = {
        text.get_text(): patch.get_facecolor()[:3]
        for text, patch in zip(ax.get_legend().get_texts(), ax.get_legend().get_patches(), strict=True)
    }
    assert legend == {"z": (1, 0, 0), "y": (0, 1, 0), "x": (0, 0, 1)}


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 1, 300)])
@pytest.mark.parametrize("label", [0, 5, IGNORE])
def test_extremes(shape, label):
    raw, labels = np.zeros(shape, np.uint8), np.full(shape, label, np.uint64)
    figure, axes = plt.subplots(1, 5, figsize=(20, 4))
    plots.show_section(axes[0], raw, labels, VOXEL)
    plots.show_affinities(axes[1], np.full((3, *shape), 1.5, np.float32), VOXEL)
    plots.error_map(axes[2], raw, labels > 0, labels == 0, VOXEL)
    plots.pca_rgb(axes[3], np.zeros((*shape[1:], 3)), 8, VOXEL)
    plots.show_similarity(axes[4], np.ones(shape[1:]), 8, VOXEL)
    figure.canvas.draw()
    plots.orthogonal_views(raw, VOXEL, labels).canvas.draw()


@pytest.mark.slow
@pytest.mark.parametrize(
    "meshes",
    [
        {},
        {
            9: (
                np.array([[0, 0, 0], [40, 0, 0], [0, 80, 0], [0, 0, 160.0]]),
                np.array([[0, 1, 2], [0, 2, 3], [0, 1, 3]]),
            )
        },
    ],
)
def test_neurons_in_3d_are_to_scale(meshes):
    ax = plt.figure().add_subplot(projection="3d")
    plots.neurons_3d(ax, meshes).figure.canvas.draw()
    spans = np.array([np.diff(ax.get_xlim()), -np.diff(ax.get_ylim()), -np.diff(ax.get_zlim())])[:, 0]  # y, z go down
    assert [ax.get_xlabel(), ax.get_ylabel(), ax.get_zlabel()] == ["x (nm)", "y (nm)", "z (nm)"]
    assert np.allclose(spans, (160, 80, 40) if meshes else 1)
    assert np.allclose(ax._box_aspect / ax._box_aspect[0], spans / spans[0])


@pytest.mark.slow
def test_numbers_of_two_axes_do_not_meet_in_their_corner():
    mesh = neuron_mesh(np.ones((56, 256, 256), np.uint8), 1, (80, 8, 8), 500)
    ax = plots.neurons_3d(plt.figure().add_subplot(projection="3d"), {1: mesh})
    for axis, side in ((ax.xaxis, 2048), (ax.yaxis, 2048), (ax.zaxis, 4480)):
        ticks = axis.get_ticklocs()
        assert len(ticks) >= 2 and min(ticks) >= 0 and max(ticks) <= side
    assert max(ax.get_xticks()) < 0.9 * 2048 and max(ax.get_yticks()) < 0.9 * 2048


def test_the_far_side_of_a_mesh_is_not_drawn(monkeypatch):
    drawn = []

    class Spy(plots.Poly3DCollection):
        def __init__(self, corners, **options):
            drawn.extend(corners)
            super().__init__(corners, **options)

    monkeypatch.setattr(plots, "Poly3DCollection", Spy)
    cube = neuron_mesh(np.ones((3, 3, 3), np.uint32), 1, (10, 10, 10))
    plots.neurons_3d(plt.figure().add_subplot(projection="3d"), {1: cube})
    flat = [(axis, corner[0, axis]) for corner in drawn for axis in range(3) if np.ptp(corner[:, axis]) == 0]
    assert set(flat) == {(0, 30), (1, 30), (2, 0)}  # x, y, z: y runs towards the viewer, z down


WIDEST = 15


def test_no_figure_of_a_lesson_is_wider_than_what_is_readable():
    """Widths are written as a number, or as min(..., 15) where they follow from data."""
    for source in sorted((REPOSITORY / "notebooks" / "src").glob("*.py")):
        text = source.read_text(encoding="utf-8")
        widths = re.findall(r"figsize=\((?:min\(.*?, )?([^,)]+)", text)
        assert len(widths) == text.count("figsize="), source.name
        assert all(float(width) <= WIDEST for width in widths), (source.name, widths)


@pytest.mark.slow
def test_text_is_readable_on_a_slide(volume):
    """The widest figure of the lessons is shrunk to a slide of 13.3 inches."""
    figure, axes = plt.subplots(1, 3, figsize=(WIDEST, 5))
    plots.show_affinities(axes[0], np.ones((3, *volume[0].shape)), VOXEL, title="affinities")
    plots.show_similarity(axes[1], np.ones(volume[0][0].shape), 1, VOXEL)
    charts.split_merge_curve(axes[2], [0, 1], [1, 0], [0, 1], title="curve")
    assert min(text.get_fontsize() for text in figure.findobj(Text)) * 13.3 / WIDEST >= 11


@pytest.fixture(scope="module")
def phantom():
    return make_phantom((12, 160, 160), seed=2)


def hue_distance(first, second) -> float:
    return float(np.linalg.norm((rgb2lab(first) - rgb2lab(second)) * (0.5, 1, 1)))


@pytest.mark.slow
def test_what_touches_has_colours_far_apart(phantom):
    labels = phantom.labels
    colors = plots.neighbour_colors(labels)
    assert set(colors) == set(np.unique(labels).tolist())
    pairs = {
        (int(one), int(other))
        for axis in range(3)
        for ids in [np.moveaxis(labels, axis, 0)]
        for one, other in zip(*np.unique(np.stack([ids[1:].ravel(), ids[:-1].ravel()]), axis=1), strict=True)
        if one != other
    }
    near = [hue_distance(colors[one], colors[other]) for one, other in pairs]
    by_id = [hue_distance(*plots.label_colors(np.array(pair))[:, :3]) for pair in pairs]
    assert len(near) > 100 and min(near) > 35 > 20 > min(by_id)
    together = largest_ids(labels, 12)
    drawn = [plots.neighbour_colors(labels, first=together)[i] for i in together]
    assert min(hue_distance(a, b) for k, a in enumerate(drawn) for b in drawn[:k]) > 20


def test_ids_on_both_sides_of_an_unlabelled_membrane_are_neighbours():
    cubes = np.arange(1, 65).reshape(4, 4, 4)
    labels = np.kron(cubes, np.ones((6, 6, 6), int))
    labels[np.any([i % 6 < 4 for i in np.indices(labels.shape)], axis=0)] = 0  # four empty voxels between cubes
    colors = plots.neighbour_colors(labels)
    rows = (np.moveaxis(cubes, axis, 0) for axis in range(3))
    near = [
        hue_distance(colors[a], colors[b]) for row in rows for a, b in zip(row[1:].flat, row[:-1].flat, strict=True)
    ]
    assert min(near) > 35


def test_many_ids_take_work_in_proportion():
    calls = []
    for side in (8, 16):
        cubes = np.kron(np.arange(1, side**3 + 1).reshape([side] * 3), np.ones((2, 2, 2), int))
        colors = plots.neighbour_colors(cubes)
        calls.append(count_calls(lambda cubes=cubes, colors=colors: plots.neighbour_colors(cubes, fixed=colors)))
        calls[-1] += count_calls(lambda cubes=cubes: plots.neighbour_colors(cubes))
        near = [hue_distance(colors[i], colors[i + 1]) for i in range(1, side**3, 7) if i % side]
        assert min(near) > 40
    assert calls[1] < 16 * calls[0]  # 8 times as many ids; 64 times if it were quadratic


def test_a_list_of_ids_is_enough_and_more_ids_than_colours_share_them_evenly():
    ids = [9, 4, 2**40, 7]
    colors = plots.neighbour_colors(np.array(ids), first=ids)
    assert min(hue_distance(colors[a], colors[b]) for a, b in combinations(ids, 2)) > 50
    many = plots.neighbour_colors(np.arange(1, 71), first=range(1, 71))
    assert set(np.unique([many[i] for i in many], axis=0, return_counts=True)[1].tolist()) == {2}


def test_ids_that_come_first_differ_and_settled_colours_stay():
    labels = np.array([[0, 5, 9, 5], [7, 7, 11, IGNORE]], np.uint64)
    red = np.array([1.0, 0, 0])
    colors = plots.neighbour_colors(labels, first=[11, 9], fixed={5: red, 6: red})
    assert set(colors) == {5, 7, 9, 11} and np.array_equal(colors[5], red)
    assert hue_distance(colors[9], colors[11]) > 60 and hue_distance(colors[9], red) > 40
    rgba = plots.label_overlay(labels.astype(np.int64), 0.5, {5: red})
    assert np.array_equal(rgba[0, 1, :3], red) and not rgba[labels != 5].any()


@pytest.mark.parametrize("lowest", [0, 2**57])
def test_neighbours_are_outlined_however_large_their_ids_are(lowest):
    small = np.random.default_rng(0).integers(0, 4, (6, 8), np.uint64).repeat(4, 0).repeat(4, 1)
    labels = np.where(small == 0, small, small + np.uint64(lowest))
    colors = dict.fromkeys(np.unique(labels[labels != 0]).tolist(), np.ones(3))
    inner = find_boundaries(small, mode="inner")  # skimage compares ids as float64, which is enough for small ones
    for overlay in (plots.label_overlay(labels, 0.5), plots.label_overlay(labels, 0.5, colors)):
        np.testing.assert_array_equal(overlay[..., 3], np.where(small == 0, 0, np.where(inner, 1, 0.5)))


def test_a_segment_takes_the_colour_of_the_neuron_that_it_covers_most():
    truth = np.repeat([[1] * 6 + [2] * 4 + [3] * 2], 2, axis=0)[None]
    segments = np.repeat([[8] * 4 + [9] * 2 + [7] * 6], 2, axis=0)[None]  # neuron 1 is split, 2 and 3 are merged
    colors = plots.neighbour_colors(truth)
    matched = plots.matched_colors(segments, truth, colors)
    assert np.array_equal(matched[8], colors[1]) and np.array_equal(matched[7], colors[2])
    assert min(hue_distance(matched[9], matched[i]) for i in (7, 8)) > 40  # split off: a colour of its own
    assert np.array_equal(plots.matched_colors(truth, truth, colors)[3], colors[3])
    assert set(plots.matched_colors(np.where(segments == 9, 9, 0), truth, colors)) == {9}  # 0 is no segment


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(16, 192, 192), (64, 100, 60), (4, 40, 200), (200, 30, 20)])
def test_no_text_of_a_3d_figure_lies_on_another_and_nothing_is_cut_off(shape):
    ramp = np.ones(shape, np.uint8)
    ramp[:, :, : shape[2] // 2] = 2
    meshes = neuron_meshes(ramp, (10, 10, 10), [1, 2], 500)
    colors = {1: np.array([1, 0, 0]), 2: np.array([0, 0, 1])}
    figure = plots.neurons_figure({"left": (meshes, colors), "right": ({1: meshes[1]}, colors)}, width=14)
    figure.canvas.draw()
    texts = [text for text in figure.findobj(Text) if text.get_text() and text.get_visible()]
    texts = [text for text in texts if text.get_rotation() == 0]  # the others' boxes are wider than what they say
    boxes = [text.get_window_extent() for text in texts]
    for k, box in enumerate(boxes):
        on = [texts[j].get_text() for j in range(k) if box.overlaps(boxes[j])]
        assert not on, (texts[k].get_text(), on)
        assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 and box.y0 >= 0 and box.y1 <= figure.bbox.y1
    assert figure.get_tightbbox().height == pytest.approx(figure.get_figheight(), abs=0.1)  # no empty half
    for ax in figure.axes:
        edge = ax.transData.transform(ax.zaxis.line.get_xydata())[:, 0].max()
        assert all(tick.label1.get_window_extent().x0 > edge for tick in ax.zaxis.majorTicks)
    assert figure.axes[0].get_title() == "" and [text.get_text() for text in figure.texts] == ["left", "right"]
