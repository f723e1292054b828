"""Explorers: controls above a picture, of core ipywidgets only, so that they work wherever notebooks run.

Each picture is drawn by a plain function, which a lesson calls once more for a figure that stays where widgets do not.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from functools import partial

import ipywidgets as widgets
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from fgnet_lib import plots
from fgnet_lib.features import cosine_similarity, principal_components
from fgnet_lib.sam2_encoder import STRIDES
from fgnet_lib.volumes import Volume


def draw_attention(
    volume: Volume, attention: Sequence[np.ndarray], z: int, level: int = 1, opacity: float = 0.6, outlines: bool = True
) -> Figure:
    """One section with an attention map over it.

    Args:
        volume: raw and labels, in memory.
        attention: a1, a2, a3, each (z, y / stride, x / stride), as `inference.predict` returns them.
        z: section.
        level: 1, 2 or 3.
        opacity: of the map; 0 shows the section alone.
        outlines: draw the borders of the labels.
    """
    weights = attention[level - 1]
    low, high = np.percentile(weights, (1, 99))  # of all sections, so that colours compare along z
    figure = Figure(figsize=(6.6, 5.6))
    ax = figure.subplots()
    plots.show_section(ax, volume.raw, None, volume.voxel_size, z, f"attention $a_{level}$, section {z}")
    height, width = (STRIDES[level - 1] * n for n in weights.shape[1:])
    ax.autoscale(False)  # keep to the section, also where a padded map reaches further
    shown = ax.imshow(
        weights[z],
        extent=(-0.5, width - 0.5, height - 0.5, -0.5),
        aspect=ax.get_aspect(),
        cmap=plots.WARM,
        vmin=low,
        vmax=high,
        alpha=opacity,
    )
    if outlines:
        plots.show_labels(ax, volume.labels, z, fill=0)
    figure.colorbar(shown, ax=ax, label=f"$a_{level}$").solids.set_alpha(1)
    return figure


def draw_features(
    volume: Volume,
    features: Sequence[np.ndarray],
    components: Sequence[np.ndarray],
    z: int,
    stride: int = 4,
    y: int = 0,
    x: int = 0,
) -> Figure:
    """A section with a chosen point, the features' main components as colours, and their similarity to that point.

    Args:
        volume: raw, in memory.
        features: maps at strides 4, 8, 16, each (C, z, y / stride, x / stride).
        components: `features.principal_components` of each of them.
        z: section.
        stride: which map to show.
        y, x: the point, in raw voxels.
    """
    level = STRIDES.index(stride)
    figure = Figure(figsize=(13, 4.6))
    em, colors, similar = figure.subplots(1, 3)
    plots.show_section(em, volume.raw, None, volume.voxel_size, z, f"EM, section {z}")
    plots.pca_rgb(colors, components[level][z], stride, volume.voxel_size, f"main components, stride {stride}")
    similarity = cosine_similarity(features[level][:, z], y // stride, x // stride)
    plots.show_similarity(similar, similarity, stride, volume.voxel_size, f"similarity to the cross, stride {stride}")
    for ax in (em, colors, similar):
        ax.plot(x, y, "+", color="red", markersize=16, markeredgewidth=2)
        ax.set(xlim=em.get_xlim(), ylim=em.get_ylim())  # a padded map may reach further than the section
    return figure


def attention_explorer(volume: Volume, attention: Sequence[np.ndarray]) -> widgets.VBox:
    """`draw_attention` with controls for section, level, opacity and outlines."""
    return explore(
        partial(draw_attention, volume, attention),
        z=widgets.IntSlider(volume.shape[0] // 2, 0, volume.shape[0] - 1, description="section"),
        level=widgets.ToggleButtons(options=[(f"a{i}", i) for i in range(1, len(attention) + 1)], description="level"),
        opacity=widgets.FloatSlider(0.6, min=0, max=1, step=0.1, description="opacity"),
        outlines=widgets.Checkbox(
            volume.labels is not None, description="label outlines", disabled=volume.labels is None
        ),
    )


def feature_explorer(volume: Volume, features: Sequence[np.ndarray]) -> widgets.VBox:
    """`draw_features` with controls for section, stride and the point to compare with."""
    depth, height, width = volume.shape
    components = [principal_components(level) for level in features]  # of all sections: colours keep their meaning
    return explore(
        partial(draw_features, volume, features, components),
        z=widgets.IntSlider(depth // 2, 0, depth - 1, description="section"),
        stride=widgets.ToggleButtons(options=STRIDES, description="stride"),
        y=widgets.IntSlider(height // 2, 0, height - 1, description="point y"),
        x=widgets.IntSlider(width // 2, 0, width - 1, description="point x"),
    )


def explore(draw: Callable[..., Figure], **controls: widgets.Widget) -> widgets.VBox:
    """Controls above the picture that `draw` makes of their values, redrawn whenever one changes.

    Args:
        draw: called with the value of each control under its name.
        controls: the widgets, in the order they are shown.
    """
    picture = widgets.Image(format="png")

    def redraw(_change: object = None) -> None:
        png = io.BytesIO()
        FigureCanvasAgg(draw(**{name: control.value for name, control in controls.items()})).print_png(png)
        picture.value = png.getvalue()

    for control in controls.values():
        control.observe(redraw, "value")
    redraw()
    return widgets.VBox([*controls.values(), picture])
