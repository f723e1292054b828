"""Explorers: every control at its extremes, maps that lie where they belong, numbers that are the model's."""

from __future__ import annotations

import io
import itertools
import json
import weakref
from dataclasses import replace
from datetime import UTC, datetime

import ipywidgets as widgets
import numpy as np
import psutil
import pytest
import torch
from matplotlib.image import imread
from PIL import Image

from fgnet_lib.configuration import MINI
from fgnet_lib.fgnet import FGNet
from fgnet_lib.probing import Inspector, WhatIf
from fgnet_lib.sam2_encoder import STRIDES
from fgnet_lib.views import explorers, plots
from fgnet_lib.views.attention_panels import LEVELS, WHAT_IF, paint
from fgnet_lib.views.feature_maps import cosine_similarity
from fgnet_lib.views.interactive import Explorer
from fgnet_lib.views.panels import Box, Canvas, ColorScale, Panel, enlarge, interpolate
from fgnet_lib.volumes import Volume

pytestmark = pytest.mark.slow  # computes sections of a model

SHAPE = (3, 50, 70)  # no multiple of a stride: maps reach further than the section
THRESHOLDS = (0.1, 0.5, 0.9)
STROKE = "[[4, 12, 6, 12, 30]]"  # radius, y, x, y, x
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def make_model(**switches) -> FGNet:
    torch.manual_seed(0)
    return FGNet(replace(MINI, widths=(4, 4, 8, 8, 8), coarse_width=8, **switches))


@pytest.fixture(scope="module")
def model() -> FGNet:
    return make_model()


@pytest.fixture
def volume() -> Volume:
    rng = np.random.default_rng(0)
    labels = np.ones(SHAPE, np.uint64)
    labels[:, :, 35:] = 2
    return Volume(rng.integers(0, 256, SHAPE, np.uint8), (40.0, 8.0, 8.0), labels)


@pytest.fixture
def features() -> list[np.ndarray]:
    rng = np.random.default_rng(2)
    return [rng.normal(size=(5, SHAPE[0], -(-SHAPE[1] // s), -(-SHAPE[2] // s))) for s in STRIDES]


@pytest.fixture
def tried(volume) -> dict[float, np.ndarray]:
    """All voxels of four columns apart, then the truth, then all in one."""
    columns = np.broadcast_to(np.arange(SHAPE[2], dtype=np.uint64) // 18 + 1, SHAPE)
    return dict(zip(THRESHOLDS, (columns, volume.labels, np.ones(SHAPE, np.uint64)), strict=True))


@pytest.fixture
def make(volume, model, features, tried):
    """An explorer by its name."""
    return {
        "attention": lambda: explorers.attention_explorer(volume, model, tried[0.1]),
        "two models": lambda: explorers.attention_explorer(
            volume, {"with": model, "without": make_model(encoder=None)}
        ),
        "features": lambda: explorers.feature_explorer(volume, features),
        "segmentation": lambda: explorers.segmentation_explorer(volume, tried),
    }


def settings(control: widgets.Widget) -> list:
    if isinstance(control, widgets.FloatRangeSlider):
        return [(0, 60), (40, 100)]
    if isinstance(control, widgets.Text):
        return [STROKE, ""]
    if hasattr(control, "options"):
        return [option[1] if isinstance(option, tuple) else option for option in control.options]
    return [control.min, control.max]


@pytest.mark.parametrize("kind", ["attention", "two models", "features", "segmentation"])
def test_every_control_changes_the_picture_from_one_end_to_the_other(kind, make):
    explorer = make[kind]()
    for name, control in explorer.controls.items():
        if name == "channel":
            explorer.controls["show"].value = "one channel"
        if name == "brush":  # which shows only while one paints
            continue
        before = {"level": {"plane": "xy", "zoom": 1}, "region": {"what_if": "0"}, "flip": {"what_if": "as it is"}}
        explorer.change(**before.get(name, {}))
        pictures = []
        for value in settings(control):
            control.value = value
            pictures.append(bytes(explorer.picture.value))
            assert imread(io.BytesIO(pictures[-1]), format="jpeg").ndim == 3
        if kind != "features" or name != "show":  # which was set before
            assert all(a != b for a, b in itertools.pairwise(pictures)), name


@pytest.mark.parametrize("kind", ["attention", "two models", "segmentation"])
def test_all_extremes_together(kind, make):
    explorer = make[kind]()
    for end in (0, -1):
        ends = {name: settings(control)[end] for name, control in explorer.controls.items()}
        figure = explorer.draw(**ends)
        figure.canvas.draw()
        assert explorer._tell(**explorer.values())


def panels_of(explorer: Explorer, monkeypatch, **changes) -> list[list[Panel]]:
    """The panels that a picture was made of."""
    shown = []
    monkeypatch.setattr(Canvas, "show", lambda _canvas, rows: shown.append(rows))
    explorer.draw(**changes)
    return shown[0]


def test_an_explorer_frees_what_an_earlier_one_has_computed(make):
    earlier = make["attention"]()
    (inspector,) = earlier._tell.__self__.scene.inspectors.values()
    computed = weakref.ref(inspector.section(2).affinities)
    earlier.change(z=2)
    before = earlier.picture.value
    del inspector
    make["attention"]()
    assert computed() is None
    earlier.change(z=0)
    earlier.change(z=2)
    assert earlier.picture.value == before


@pytest.mark.parametrize("level", [1, 2, 3])
def test_attention_lies_on_the_section_it_was_computed_from(level, volume, model, make, monkeypatch):
    options = {"level": f"a{level}", "z": 2, "opacity": 1.0, "outlines": "nothing", "colors": "gray"}
    em, first, similarity, response = panels_of(make["attention"](), monkeypatch, **options)[0]
    np.testing.assert_array_equal(em.image[..., 0], volume.raw[2])
    stride, section = STRIDES[level - 1], Inspector(model, volume.raw).section(2)
    np.testing.assert_array_equal(first.image[::stride, ::stride], first.scale.rgb(section.attention[level - 1]))
    assert first.image.shape == (*SHAPE[1:], 3)
    own = cosine_similarity(section.sam2[level - 1], 25 // stride, 35 // stride)
    np.testing.assert_array_equal(similarity.image, ColorScale("", -1, 1, "viridis").rgb(own))
    assert similarity.cross == (25, 35) and similarity.stride == response.stride == (stride, stride)
    assert response.image.shape[:2] == section.response[level - 1].shape


def test_no_opacity_leaves_the_section(volume, make, monkeypatch):
    rows = panels_of(make["attention"](), monkeypatch, z=1, opacity=0.0, outlines="nothing")
    np.testing.assert_array_equal(rows[0][1].image[..., 0], volume.raw[1])


def test_outlines_are_those_asked_for(volume, make, monkeypatch):
    explorer = make["attention"]()
    plain, truth, prediction = (
        [panel.image.astype(int) for panel in panels_of(explorer, monkeypatch, opacity=0.0, outlines=name)[0][:2]]
        for name in ("nothing", "ground truth", "prediction")
    )
    np.testing.assert_array_equal(plain[0], plain[1])  # the EM has the same outlines as the map beside it
    np.testing.assert_array_equal(truth[0], truth[1])
    plain, truth, prediction = plain[1], truth[1], prediction[1]
    changed = [sorted(set(np.argwhere((image != plain).any(-1))[:, 1])) for image in (truth, prediction)]
    assert changed == [[34, 35], [17, 18, 35, 36, 53, 54]]


def test_a_volume_without_labels_has_nothing_to_outline(volume, model):
    explorer = explorers.attention_explorer(Volume(volume.raw, volume.voxel_size), model)
    assert explorer.controls["outlines"].options == ("nothing",)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("value", ["0", "1", "mean"])
def test_what_if_shows_what_follows(level, value, volume, model, make, monkeypatch):
    row = panels_of(make["attention"](), monkeypatch, level=level, what_if=value, z=0)[0]
    assert len(row) == (3 if level == "all" else 4)
    asked = WhatIf(LEVELS[level], WHAT_IF[value])
    inspector = Inspector(model, volume.raw)
    before, after = inspector.section(0).affinities, inspector.section(0, asked).affinities
    np.testing.assert_array_equal(row[-2].image, np.moveaxis((after * 255).astype(np.uint8), 0, -1))
    change = (after.astype(np.float32) - before).mean(0)
    np.testing.assert_array_equal(row[-1].image, row[-1].scale.rgb(change))
    assert row[-1].scale.low == -row[-1].scale.high


def test_what_if_may_hold_where_one_has_painted(volume, model, make, monkeypatch):
    explorer, options = make["attention"](), {"level": "a1", "what_if": "1", "brush": 8, "z": 0}
    row = panels_of(explorer, monkeypatch, region=STROKE, **options)[0]
    plain = Inspector(model, volume.raw).section(0).attention[0]
    changed = plain != row[1].values.array
    assert changed[2:5, 1:8].all() and changed.sum() < 40 and (row[1].values.array[changed] == 1).all()
    for panel in row:
        np.testing.assert_array_equal(panel.region, paint(STROKE, SHAPE[1:]))
    assert {panel.brush for panel in row} == {8}
    everywhere = panels_of(explorer, monkeypatch, region="", **options)[0]
    assert everywhere[1].region is None and (everywhere[1].values.array == 1).all()
    nothing = panels_of(explorer, monkeypatch, region=STROKE, **options | {"what_if": "as it is"})[0]
    assert {panel.brush for panel in nothing} == {0} and nothing[0].region is None


def test_a_stroke_covers_what_is_near_it():
    y, x = np.mgrid[: SHAPE[1], : SHAPE[2]]
    distance = np.hypot(y - 12, x - np.clip(x, 6, 30))
    painted = paint(STROKE, SHAPE[1:])
    assert painted[distance <= 3.5].all() and not painted[distance > 5].any()
    dot = paint("[[2, 0, 69]]", SHAPE[1:])  # in a corner, with no movement
    assert dot[0, 69] and dot.sum() < 9
    both = paint("[[4, 12, 6, 12, 30], [2, 0, 69]]", SHAPE[1:])
    np.testing.assert_array_equal(both, painted | dot)
    assert paint("", SHAPE[1:]) is None


@pytest.mark.parametrize("text", ["0:3, 0:4", "[1, 2, 3]", "[[1, 2]]", '[["a", 1, 2]]', "{}x"])
def test_a_region_that_is_none_is_explained(text):
    with pytest.raises(ValueError, match="region is "):
        paint(text, SHAPE[1:])


def test_painting_is_cleared_by_the_button_and_by_a_key(make):
    explorer = make["attention"]()
    for clear in (
        lambda: next(child for child in explorer.children[4].children if "fgnet-clear" in child._dom_classes).click(),
        lambda: setattr(explorer.pick, "value", json.dumps([[1, "key", "c"]])),
    ):
        explorer.change(what_if="0", region=STROKE)
        painted = explorer.picture.value
        clear()
        assert explorer.controls["region"].value == "" and explorer.picture.value != painted


def test_memory_does_not_grow_over_300_steps(make):
    explorer, process = make["attention"](), psutil.Process()

    def walk(steps: int) -> int:
        for number in range(steps):
            explorer.change(z=number % SHAPE[0], y=7 * number % SHAPE[1], x=13 * number % SHAPE[2])
            explorer.hover.value = f"{number % 100 / 100} 0.5"
        return process.memory_info().rss

    before = walk(50)  # after the caches are full
    assert walk(300) - before < 10e6  # bytes; if each step kept its picture, 30e6


def test_ranks_and_range_are_those_of_the_middle_section(volume, model, make, monkeypatch):
    explorer, shared = make["attention"](), {"level": "a1", "opacity": 1.0, "outlines": "nothing", "z": 2}
    attention = [Inspector(model, volume.raw).section(z).attention[0] for z in (1, 2)]
    panel = panels_of(explorer, monkeypatch, span=(25, 75), **shared)[0][1]
    np.testing.assert_allclose((panel.scale.low, panel.scale.high), np.percentile(attention[0], (25, 75)))
    panel = panels_of(explorer, monkeypatch, ranks=True, span=(10, 90), gamma=0.5, **shared)[0][1]
    assert panel.scale == ColorScale("rank of $a_1$", 0.1, 0.9, plots.WARM, 0.5)
    rank = (attention[0].ravel() < attention[1].ravel()[:, None]).mean(1).reshape(attention[1].shape)
    darker, brighter = (panel.scale.rgb(rank + step)[..., 0].astype(int) for step in (-0.02, 0.02))
    shown = panel.image[::4, ::4, 0].astype(int)
    assert ((shown >= darker) & (shown <= brighter)).all()
    np.testing.assert_array_equal(panel.values.array, attention[1])  # the read-out and the files keep the weights


def test_a_smooth_map_has_the_same_values(make, monkeypatch):
    explorer = make["attention"]()
    grid, smooth = (panels_of(explorer, monkeypatch, smooth=smooth, zoom=2)[0][2] for smooth in (False, True))
    assert grid.image.shape[:2] == (7, 10) and smooth.image.shape[:2] == (25, 35)
    np.testing.assert_array_equal(grid.values.array, smooth.values.array)
    expected = smooth.scale.rgb(interpolate(smooth.values.array, smooth.box, (4, 4)))
    np.testing.assert_array_equal(smooth.image, expected)


def test_the_plane_xz_is_a_row_of_every_section(volume, model, make, monkeypatch):
    options = {"plane": "xz", "level": "a2", "y": 33, "x": 5, "z": 1, "opacity": 1.0, "outlines": "nothing"}
    (em,), (attention,) = panels_of(make["attention"](), monkeypatch, **options)
    np.testing.assert_array_equal(em.image[..., 0], volume.raw[:, 33])
    inspector = Inspector(model, volume.raw)
    rows = np.stack([inspector.section(z).attention[1][33 // 8] for z in range(3)])
    np.testing.assert_array_equal(attention.values.array, rows)
    np.testing.assert_array_equal(attention.image, enlarge(attention.scale.rgb(rows), Box(0, 0, 3, 70), (1, 8)))
    assert (attention.cross, attention.axes, attention.voxel_size[1:]) == ((1, 5), ("z", "x"), (40, 8))
    assert attention.values.text(2, 69) == f"a2 {rows[2, 8]:.3f}"


@pytest.mark.parametrize("level", ["a2", "all"])
def test_flipping_shows_the_gradient_of_the_affinity_at_the_point(level, volume, model, make, monkeypatch):
    row = panels_of(make["attention"](), monkeypatch, level=level, flip="x", y=20, x=40, z=1)[0]
    maps = Inspector(model, volume.raw).gradient(2, 1, 20, 40).maps
    shown = [panel.values.array for panel in row if panel.values.name.startswith("gradient")]
    assert len(row) == (4 if level == "all" else 3) and len(shown) == len(LEVELS[level])
    for array, expected in zip(shown, [maps[i - 1] for i in LEVELS[level]], strict=True):
        np.testing.assert_allclose(array, expected, rtol=1e-3, atol=1e-7)


def test_the_table_says_which_map_could_flip_the_affinity(make, volume, model):
    explorer = make["attention"]()
    explorer.change(flip="y", z=1, y=20, x=40)
    logit, _, sums = Inspector(model, volume.raw).gradient(1, 1, 20, 40)
    assert f">{1 / (1 + np.exp(-logit)):.3f}<" in explorer.readout.value
    for move in (-logit / total for total in sums):
        assert (f">{move:+.3g}<" if abs(move) <= 1 else f">{move:+.3g} (out of reach)<") in explorer.readout.value


def test_the_numbers_at_the_point(volume, model):
    models = {"ours": model, "plain": make_model(encoder=None)}
    explorer = explorers.attention_explorer(volume, models)
    section = Inspector(model, volume.raw).section(1)
    explorer.change(z=1, y=49, x=69)
    table = explorer.readout.value
    for maps in (section.attention, section.response):
        for level_map, (y, x) in zip(maps, ((12, 17), (6, 8), (3, 4)), strict=True):
            assert f">{level_map[y, x]:.3f}<" in table
    assert "ours" in table and table.count(">-<") == 1 + 3 + 1  # no change was asked for; "plain" has no attention


def test_names_are_shown_as_they_are(volume, model):
    explorer = explorers.attention_explorer(volume, {"<b>": model})
    explorer.change(what_if="0")
    assert "&lt;b&gt;" in explorer.readout.value and "cross 0.5" in explorer.readout.value


def test_a_name_of_a_model_changes_no_colour(volume, model, monkeypatch):
    made = [explorers.attention_explorer(volume, {key: model}) for key in ("attention", "ours")]
    named, plain = (panels_of(explorer, monkeypatch)[0] for explorer in made)
    assert [panel.scale for panel in named] == [panel.scale for panel in plain]


def test_models_are_shown_in_rows_on_the_same_colours(make, monkeypatch):
    upper, lower, difference = panels_of(make["two models"](), monkeypatch)
    assert [panel.title for panel in upper] == ["with, z = 1", "a1", "guide, stride 4", "FGE, stride 4"]
    assert [panel.title for panel in lower] == ["without, z = 1", "no attention", "no guide, stride 4", "FGE, stride 4"]
    assert upper[1].scale == lower[1].scale
    assert [panel.title for panel in difference[1:]] == ["no difference", "no difference", "FGE, stride 4"]


def test_in_the_plane_xz_attention_alone_is_subtracted(volume, model, monkeypatch):
    explorer = explorers.attention_explorer(volume, {"first": model, "second": make_model(attention="plain")})
    titles = [row[0].title for row in panels_of(explorer, monkeypatch, plane="xz", level="a3")]
    assert len(titles) == 5 and titles[-1] == "first - second: a3"


def test_two_models_are_subtracted(volume, model, monkeypatch):
    other = make_model(attention="plain")
    explorer = explorers.attention_explorer(volume, {"first": model, "second": other})
    row = panels_of(explorer, monkeypatch, z=2, level="a3")[-1]
    first, second = (Inspector(network, volume.raw).section(2) for network in (model, other))
    assert row[0].title == "first - second: $A_r$" and row[1].values.name == "difference of a3"
    refined = first.affinities.astype(np.float32) - second.affinities
    np.testing.assert_allclose(row[0].values.array, refined.mean(0), atol=1e-6)
    np.testing.assert_allclose(row[1].values.array, first.attention[2] - second.attention[2], atol=1e-6)
    np.testing.assert_allclose(row[3].values.array, first.response[2] - second.response[2], atol=1e-4)
    assert all(panel.scale.low == -panel.scale.high for panel in row)


def upload(explorer: Explorer, name: str, content: bytes) -> None:
    """What ipywidgets 8 does with a chosen file."""
    widget = next(widget for widget in explorer.children[4].children if isinstance(widget, widgets.FileUpload))
    widget.value = ({"name": name, "type": "", "size": len(content), "content": content, "last_modified": NOW},)


def test_an_image_of_ones_own_takes_the_volumes_place(make, monkeypatch):
    explorer = make["attention"]()
    explorer.controls["region"].value = STROKE
    own = np.random.default_rng(5).integers(0, 256, (40, 48), np.uint8)
    file = io.BytesIO()
    Image.fromarray(own).save(file, "PNG")
    upload(explorer, "own.png", file.getvalue())
    assert "own.png" in explorer.status.value and "(1, 40, 48)" in explorer.status.value
    values = explorer.values()
    assert (values["z"], values["y"], values["x"]) == (0, 20, 24) and values["region"] == ""
    assert [explorer.controls[axis].max for axis in "zyx"] == [0, 39, 47]
    assert explorer.controls["outlines"].options == ("nothing",)
    np.testing.assert_array_equal(panels_of(explorer, monkeypatch)[0][0].image[..., 0], own)


def test_a_file_that_is_no_image_leaves_all_as_it_was(make):
    explorer = make["attention"]()
    before = explorer.values(), explorer.picture.value
    upload(explorer, "<notes>.txt", b"not an image")
    assert explorer.status.value.startswith("&lt;notes&gt;.txt cannot be read as an image; choose a PNG, JPEG or TIFF")
    assert (explorer.values(), explorer.picture.value) == before


def test_keys_choose_the_map_and_hide_it(make):
    explorer = make["attention"]()
    assert {"1", "2", "3", "o", "z", "Z"} <= set(explorer._keys)
    explorer.pick.value = json.dumps([[1, "key", "3"], [2, "key", "o"]])
    assert (explorer.controls["level"].value, explorer.controls["opacity"].value) == ("a3", 0)
    explorer.pick.value = json.dumps([[3, "key", "o"]])
    assert explorer.controls["opacity"].value == 0.6
    features = make["features"]()
    features.pick.value = json.dumps([[1, "key", "3"]])
    assert features.controls["stride"].value == 16


def test_neuroglancer_opens_at_the_point_with_the_map(volume, make):
    from fgnet_lib.views import viewer

    explorer = make["attention"]()
    explorer.change(level="a2", z=2, y=10, x=60)
    next(child for child in explorer.children[4].children if "fgnet-neuroglancer" in child._dom_classes).click()
    (view,) = viewer._latest
    assert view.url in explorer.status.value
    state = view.viewer.state
    np.testing.assert_allclose(state.position, (60.5, 10.5, 2.5))
    assert {layer.name for layer in state.layers if layer.visible} == {"raw", "prediction", "attention a2"}


@pytest.mark.parametrize("stride", STRIDES)
@pytest.mark.parametrize("point", [(0, 0), (SHAPE[1] - 1, SHAPE[2] - 1), (17, 42)])
def test_the_chosen_point_is_most_similar_to_itself(stride, point, make, monkeypatch):
    y, x = point
    _, _, similar = panels_of(make["features"](), monkeypatch, stride=stride, y=y, x=x)[0]
    np.testing.assert_array_equal(similar.image[y // stride, x // stride], similar.scale.rgb(1))


def test_one_channel_is_that_channel(features, make, monkeypatch):
    options = {"show": "one channel", "channel": 4, "stride": 8, "z": 2}
    _, shown, _ = panels_of(make["features"](), monkeypatch, **options)[0]
    np.testing.assert_array_equal(shown.image, shown.scale.rgb(features[1][4, 2]))


def test_zooming_cuts_all_panels_alike(make, monkeypatch):
    explorer = make["features"]()
    whole, zoomed = (panels_of(explorer, monkeypatch, zoom=zoom)[0] for zoom in (1, 2))
    assert {panel.box for panel in zoomed} == {(13, 18, 25, 35)}
    np.testing.assert_array_equal(zoomed[0].image, whole[0].image[13:38, 18:53])
    np.testing.assert_array_equal(zoomed[1].image, whole[1].image[3:10, 4:14])  # the pixels that hold these voxels


def test_errors_are_coloured_by_their_kind(volume, tried, make, monkeypatch):
    explorer = make["segmentation"]()
    assert explorer.controls["threshold"].value == 0.5  # where VOI is lowest
    rows = {t: panels_of(explorer, monkeypatch, threshold=t, z=1)[0] for t in THRESHOLDS}
    right = rows[0.5][1].image.astype(int)
    split, merge = ((rows[t][1].image != right).any(-1) for t in (0.1, 0.9))
    assert merge[:, :33].any() != merge[:, 37:].any()  # one neuron is the segment's best match, the other is merged
    assert split[:, 20:33].all() and not split[:, :17].any()
    assert rows[0.1][1].legend == {"split": plots.SPLIT, "merge": plots.MERGE}
    assert [rows[t][2].at for t in THRESHOLDS] == list(THRESHOLDS)
    assert rows[0.5][2].splits[1] == rows[0.5][2].merges[1] == 0


def test_the_table_of_a_segmentation_names_the_point(make):
    explorer = make["segmentation"]()
    explorer.controls["threshold"].value = 0.1
    explorer.controls["x"].value = 69
    assert "segment 4, neuron 2." in explorer.readout.value and ">0.1<" in explorer.readout.value


def test_without_ground_truth_there_are_no_errors_to_show(volume, tried):
    with pytest.raises(ValueError, match="no labels"):
        explorers.segmentation_explorer(Volume(volume.raw, volume.voxel_size), tried)
