"""Explorers: every control at its extremes, a picture that follows them, maps that lie where they belong."""

from __future__ import annotations

import io
import itertools

import ipywidgets as widgets
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imread

from fgnet_lib import explorers
from fgnet_lib.features import principal_components
from fgnet_lib.sam2_encoder import STRIDES
from fgnet_lib.volumes import Volume

SHAPE = (3, 50, 70)  # no multiple of a stride: maps reach further than the section


@pytest.fixture
def volume() -> Volume:
    rng = np.random.default_rng(0)
    labels = np.ones(SHAPE, np.uint64)
    labels[:, :, 35:] = 2
    return Volume(rng.integers(0, 256, SHAPE, np.uint8), (40.0, 8.0, 8.0), labels)


@pytest.fixture
def attention() -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(1)
    return tuple(rng.random((SHAPE[0], -(-SHAPE[1] // s), -(-SHAPE[2] // s)), np.float32) for s in STRIDES)


@pytest.fixture
def features() -> list[np.ndarray]:
    rng = np.random.default_rng(2)
    return [rng.normal(size=(5, SHAPE[0], -(-SHAPE[1] // s), -(-SHAPE[2] // s))) for s in STRIDES]


def pixels(figure: Figure) -> np.ndarray:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())


def settings(control: widgets.Widget) -> list:
    if hasattr(control, "options"):
        return [option[1] if isinstance(option, tuple) else option for option in control.options]
    return [control.min, control.max] if hasattr(control, "max") else [False, True]


@pytest.mark.parametrize("kind", ["attention", "features"])
def test_every_control_works_from_one_end_to_the_other(kind, volume, attention, features):
    if kind == "attention":
        box = explorers.attention_explorer(volume, attention)
    else:
        box = explorers.feature_explorer(volume, features)
    *controls, picture = box.children
    for control in controls:
        pictures = []
        for value in settings(control):
            control.value = value
            pictures.append(bytes(picture.value))
            assert imread(io.BytesIO(pictures[-1])).ndim == 3
        assert all(a != b for a, b in itertools.pairwise(pictures)), control.description


def test_only_the_changed_value_is_drawn_and_once():
    calls = []

    def draw(**values) -> Figure:
        calls.append(values)
        return Figure(figsize=(1, 1))

    slider, box = widgets.IntSlider(1, 0, 5), widgets.Checkbox(True)
    explorers.explore(draw, z=slider, outlines=box)
    slider.value = 4
    box.value = False
    assert calls == [{"z": 1, "outlines": True}, {"z": 4, "outlines": True}, {"z": 4, "outlines": False}]


def test_a_transparent_map_leaves_the_section(volume, attention):
    other = tuple(weights[:, ::-1] for weights in attention)
    shown, same = (explorers.draw_attention(volume, maps, z=1, opacity=0) for maps in (attention, other))
    left = (slice(None), slice(None, 400))  # without the colour bar
    np.testing.assert_array_equal(pixels(shown)[left], pixels(same)[left])
    opaque = explorers.draw_attention(volume, attention, z=1, opacity=1)
    assert (pixels(opaque)[left] != pixels(shown)[left]).any()


@pytest.mark.parametrize("level", [1, 2, 3])
def test_a_map_lies_on_the_section_it_was_computed_from(level, volume, attention):
    stride = STRIDES[level - 1]
    figure = explorers.draw_attention(volume, attention, z=2, level=level, outlines=False)
    section, weights = figure.axes[0].images
    np.testing.assert_array_equal(section.get_array(), volume.raw[2])
    np.testing.assert_array_equal(weights.get_array(), attention[level - 1][2])
    left, right, bottom, top = weights.get_extent()
    assert (left, top) == (-0.5, -0.5)
    assert ((right - left) / stride, (bottom - top) / stride) == weights.get_array().shape[::-1]
    assert figure.axes[0].get_xlim() == (-0.5, SHAPE[2] - 0.5)


@pytest.mark.parametrize("stride", STRIDES)
@pytest.mark.parametrize("point", [(0, 0), (SHAPE[1] - 1, SHAPE[2] - 1), (17, 42)])
def test_the_chosen_point_is_most_similar_to_itself(stride, point, volume, features):
    y, x = point
    components = [principal_components(level) for level in features]
    figure = explorers.draw_features(volume, features, components, z=1, stride=stride, y=y, x=x)
    similarity = figure.axes[2].images[0].get_array()
    assert similarity[y // stride, x // stride] == pytest.approx(1) == similarity.max()


def test_a_volume_without_labels_has_no_outlines_to_switch(volume, attention):
    box = explorers.attention_explorer(Volume(volume.raw, volume.voxel_size), attention)
    outlines = box.children[3]
    assert outlines.disabled and not outlines.value
