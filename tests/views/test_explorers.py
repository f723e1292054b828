"""Explorers: every control at its extremes, maps that lie where they belong, numbers that are the model's."""

from __future__ import annotations

import io
import itertools
from dataclasses import replace

import ipywidgets as widgets
import numpy as np
import pytest
import torch
from matplotlib.image import imread

from fgnet_lib.fgnet import MINI, FGNet
from fgnet_lib.probing import Inspector
from fgnet_lib.sam2_encoder import STRIDES
from fgnet_lib.views import explorers, plots
from fgnet_lib.views.feature_maps import cosine_similarity
from fgnet_lib.views.panels import ColorScale, Explorer, Panel
from fgnet_lib.volumes import Volume

SHAPE = (3, 50, 70)  # no multiple of a stride: maps reach further than the section
THRESHOLDS = (0.1, 0.5, 0.9)


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
    if hasattr(control, "options"):
        return [option[1] if isinstance(option, tuple) else option for option in control.options]
    return [control.min, control.max]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["attention", "two models", "features", "segmentation"])
def test_every_control_changes_the_picture_from_one_end_to_the_other(kind, make):
    explorer = make[kind]()
    for name, control in explorer.controls.items():
        if name == "channel":
            explorer.controls["show"].value = "one channel"
        pictures = []
        for value in settings(control):
            control.value = value
            pictures.append(bytes(explorer.picture.value))
            assert imread(io.BytesIO(pictures[-1]), format="jpeg").ndim == 3
        if kind != "features" or name != "show":  # which was set before
            assert all(a != b for a, b in itertools.pairwise(pictures)), name


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["attention", "two models", "segmentation"])
def test_all_extremes_together(kind, make):
    explorer = make[kind]()
    for end in (0, -1):
        figure = explorer.draw(**{name: settings(control)[end] for name, control in explorer.controls.items()})
        figure.canvas.draw()
        assert explorer._tell(**explorer.values())


def panels_of(explorer: Explorer, monkeypatch, **changes) -> list[list[Panel]]:
    """The panels that a picture was made of."""
    shown = []
    monkeypatch.setattr(explorers.Canvas, "show", lambda _canvas, rows: shown.append(rows))
    explorer.draw(**changes)
    return shown[0]


@pytest.mark.parametrize("level", [1, 2, 3])
def test_attention_lies_on_the_section_it_was_computed_from(level, volume, model, make, monkeypatch):
    options = {"level": f"a{level}", "z": 2, "opacity": 1.0, "outlines": "nothing", "colors": "gray"}
    first, similarity, response = panels_of(make["attention"](), monkeypatch, **options)[0]
    stride, section = STRIDES[level - 1], Inspector(model, volume.raw).section(2)
    np.testing.assert_array_equal(first.image[::stride, ::stride], first.scale.rgb(section.attention[level - 1]))
    assert first.image.shape == (*SHAPE[1:], 3)
    own = cosine_similarity(section.sam2[level - 1], 25 // stride, 35 // stride)
    np.testing.assert_array_equal(similarity.image, ColorScale("", -1, 1, "viridis").rgb(own))
    assert similarity.cross == (25, 35) and similarity.stride == response.stride == stride
    assert response.image.shape[:2] == section.response[level - 1].shape


def test_no_opacity_leaves_the_section(volume, make, monkeypatch):
    rows = panels_of(make["attention"](), monkeypatch, z=1, opacity=0.0, outlines="nothing")
    np.testing.assert_array_equal(rows[0][0].image[..., 0], volume.raw[1])


def test_outlines_are_those_asked_for(volume, make, monkeypatch):
    explorer = make["attention"]()
    plain, truth, prediction = (
        panels_of(explorer, monkeypatch, opacity=0.0, outlines=name)[0][0].image.astype(int)
        for name in ("nothing", "ground truth", "prediction")
    )
    changed = [sorted(set(np.argwhere((image != plain).any(-1))[:, 1])) for image in (truth, prediction)]
    assert changed == [[34, 35], [17, 18, 35, 36, 53, 54]]


def test_a_volume_without_labels_has_nothing_to_outline(volume, model):
    explorer = explorers.attention_explorer(Volume(volume.raw, volume.voxel_size), model)
    assert explorer.controls["outlines"].options == ("nothing",)


@pytest.mark.parametrize("level", explorers.LEVELS)
@pytest.mark.parametrize("value", ["0", "1", "mean"])
def test_what_if_shows_what_follows(level, value, volume, model, make, monkeypatch):
    row = panels_of(make["attention"](), monkeypatch, level=level, what_if=value, z=0)[0]
    assert len(row) == len(explorers.LEVELS[level]) + 2
    asked = explorers.LEVELS[level], explorers.WHAT_IF[value]
    inspector = Inspector(model, volume.raw)
    before, after = inspector.section(0).affinities, inspector.section(0, asked).affinities
    np.testing.assert_array_equal(row[-2].image, np.moveaxis((after * 255).astype(np.uint8), 0, -1))
    change = (after.astype(np.float32) - before).mean(0)
    np.testing.assert_array_equal(row[-1].image, row[-1].scale.rgb(change))
    assert row[-1].scale.low == -row[-1].scale.high


def test_the_numbers_at_the_point(volume, model):
    inspectors = {"ours": Inspector(model, volume.raw), "plain": Inspector(make_model(encoder=None), volume.raw)}
    section = inspectors["ours"].section(1)
    table = explorers.attention_readout(inspectors, z=1, level="a1", what_if="as it is", y=49, x=69)
    for maps in (section.attention, section.response):
        for level_map, (y, x) in zip(maps, ((12, 17), (6, 8), (3, 4)), strict=True):
            assert f">{level_map[y, x]:.3f}<" in table
    assert "ours" in table and table.count(">-<") == 1 + 3 + 1  # no change was asked for; "plain" has no attention


def test_names_are_shown_as_they_are(volume, model):
    table = explorers.attention_readout({"<b>": Inspector(model, volume.raw)}, z=0, level="a1", what_if="0", y=0, x=0)
    assert "&lt;b&gt;" in table and "cross 0.5" in table


def test_models_are_shown_in_rows_on_the_same_colours(make, monkeypatch):
    upper, lower = panels_of(make["two models"](), monkeypatch)
    assert [panel.title for panel in upper] == ["with: a1, section 1", "SAM2, stride 4", "FGE, stride 4"]
    assert [panel.title for panel in lower] == ["without: no attention", "no SAM2, stride 4", "FGE, stride 4"]
    assert upper[0].scale == lower[0].scale


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
