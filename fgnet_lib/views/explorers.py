"""The explorers of the lessons: attention, SAM2's features, a segmentation over thresholds.

Each is made of a plain function that returns the panels for the controls' values. An `Explorer` draws and controls
them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import numpy as np
from matplotlib.colors import to_rgb

from fgnet_lib.fgnet import FGNet
from fgnet_lib.metrics import Scores, error_masks, evaluate
from fgnet_lib.probing import Inspected, Inspector, WhatIf
from fgnet_lib.sam2_encoder import STRIDES
from fgnet_lib.views import plots
from fgnet_lib.views.feature_maps import cosine_similarity, principal_components, stretch
from fgnet_lib.views.panels import Box, Canvas, ColorScale, Curve, Explorer, Panel, blend, enlarge, grey, zoom_box
from fgnet_lib.volumes import Volume

LEVELS = {"a1": (1,), "a2": (2,), "a3": (3,), "all": (1, 2, 3)}
WHAT_IF = {"as it is": None, "0": 0.0, "1": 1.0, "mean": "mean"}
COLORS = (plots.WARM, "viridis", "cividis", "magma", "gray")
ZOOMS = (1, 2, 4, 8)

Shared = dict[str, Any]  # what all panels of a section share: box, voxel size, cross


def attention_explorer(
    volume: Volume,
    model: FGNet | Mapping[str, FGNet],
    prediction: np.ndarray | None = None,
    folder: str | Path = ".",
) -> Explorer:
    """Return an explorer of what a model attends to, by section and point, and of what follows from setting attention.

    Args:
        volume: in memory; its labels, if any, can be outlined.
        model: a model, or several by name, which appear one above the other (before and after training, with and
            without attention).
        prediction: ids (z, y, x) that can be outlined, too.
        folder: where saved pictures go.
    """
    models = {"": model} if isinstance(model, FGNet) else model
    inspectors = {name: Inspector(network, volume.raw) for name, network in models.items()}
    middle = {name: inspector.section(volume.shape[0] // 2) for name, inspector in inspectors.items()}
    labels = {"ground truth": volume.labels, "prediction": prediction}
    labels = {name: ids for name, ids in labels.items() if ids is not None}
    outlines = {"nothing": None} | labels
    panels = partial(attention_panels, volume, inspectors, attention_ranges(middle), outlines)
    controls = {
        "z": _section_slider(volume),
        "level": _buttons(tuple(LEVELS), "attention"),
        "what_if": widgets.Dropdown(options=tuple(WHAT_IF), description="what if a is"),
        "opacity": widgets.FloatSlider(0.6, min=0, max=1, step=0.1, description="opacity"),
        "colors": widgets.Dropdown(options=COLORS, description="colours"),
        "outlines": widgets.Dropdown(
            options=tuple(outlines), value=next(iter(labels), "nothing"), description="outlines"
        ),
        **_point_controls(volume),
    }
    canvas, readout = Canvas(), partial(attention_readout, inspectors)
    return Explorer(lambda **values: canvas.show(panels(**values)), controls, readout, folder, "attention")


def attention_ranges(sections: Mapping[str, Inspected]) -> dict[tuple[str, int], tuple[float, float]]:
    """Return the range of values that colours cover, from a single section, so that colours compare along z.

    Args:
        sections: the same section of each model.

    Returns:
        ("attention", level) -> range over all models; (name of the model, level) -> range of its encoder's response.
    """
    ranges = {}
    for i in range(len(STRIDES)):
        maps = [section.attention[i].ravel() for section in sections.values() if section.attention]
        ranges["attention", i + 1] = plots.display_range(np.concatenate(maps)) if maps else (0.0, 1.0)
        for name, section in sections.items():
            ranges[name, i + 1] = plots.display_range(section.response[i]) if section.response else (0.0, 1.0)
    return ranges


def attention_panels(
    volume: Volume,
    inspectors: Mapping[str, Inspector],
    ranges: Mapping[tuple[str, int], tuple[float, float]],
    outlined: Mapping[str, np.ndarray | None],
    *,
    z: int,
    level: str,
    what_if: str,
    opacity: float,
    colors: str,
    outlines: str,
    zoom: int,
    y: int,
    x: int,
) -> list[list[Panel]]:
    """Return a row of panels for each model: attention over the section, then what the controls ask for.

    For a single level these are SAM2's similarity to the point and the Fine-Grained Encoder's response; for "all" they
    are all levels. Whenever attention is set to a value, they are the affinities that follow and how they differ.

    Args:
        volume: raw in memory.
        inspectors: of each model.
        ranges: as `attention_ranges` returns them.
        outlined: a name that `outlines` may take -> labels (z, y, x), or None.
        z: section.
        level: a key of `LEVELS`.
        what_if: a key of `WHAT_IF`: what the attention of this level is set to.
        opacity: of attention over the section.
        colors: matplotlib's name of the colour map for attention.
        outlines: a key of `outlined`.
        zoom: how many times the section is enlarged.
        y, x: the point, in raw voxels.
    """
    box = zoom_box(volume.shape[1:], y, x, zoom)
    shared = {"box": box, "voxel_size": volume.voxel_size, "cross": (y, x)}
    raw = box.cut(volume.raw[z])
    edges = None if outlined[outlines] is None else plots.label_overlay(box.cut(outlined[outlines][z]), fill=0)
    rows = []
    for name, inspector in inspectors.items():
        plain = inspector.section(z)
        changed = inspector.section(z, _question(level, what_if))
        row = []
        for i in LEVELS[level]:
            scale = ColorScale(f"attention $a_{i}$", *ranges["attention", i], colors)
            image = _lay_attention(grey(raw), changed, i, scale, box, opacity)
            if edges is not None:
                image = blend(image, edges[..., :3] * 255, edges[..., 3:])
            title = f"a{i}, section {z}" if what_if == "as it is" else f"a{i} = {what_if}, section {z}"
            title = title if changed.attention else "no attention"
            row.append(Panel(_title(name, title), image, scale=scale, **shared))
        if what_if != "as it is":
            row += _consequence_panels(plain, changed, shared)
        elif level != "all":
            row += _point_panels(plain, LEVELS[level][0], ranges[name, LEVELS[level][0]], shared)
        rows.append(row)
    return rows


def _lay_attention(
    raw: np.ndarray, section: Inspected, level: int, scale: ColorScale, box: Box, opacity: float
) -> np.ndarray:
    """Return raw colours (y, x, 3) of a box with the attention of a level laid over them, if the model has any."""
    if not section.attention:
        return raw
    stride = STRIDES[level - 1]
    over = scale.rgb(box.cut(section.attention[level - 1], stride))
    return blend(raw, enlarge(over, box, stride), opacity)


def _question(level: str, what_if: str) -> WhatIf | None:
    return None if what_if == "as it is" else (LEVELS[level], WHAT_IF[what_if])


def _title(name: str, title: str) -> str:
    return f"{name}: {title}" if name else title


def _point_panels(section: Inspected, level: int, response: tuple[float, float], shared: Shared) -> list[Panel]:
    """Return the panels of SAM2's similarity to the point and of how strongly the Fine-Grained Encoder responds."""
    stride, blank = STRIDES[level - 1], np.full((1, 1), np.nan)
    similarity, strength = (
        ColorScale("cosine similarity", -1, 1, "viridis"),
        ColorScale("length of $F'$", *response, "magma"),
    )
    (y, x), box = shared["cross"], shared["box"]
    similar = cosine_similarity(section.sam2[level - 1], y // stride, x // stride) if section.sam2 else None
    maps = (
        (similar, similarity, f"SAM2, stride {stride}"),
        (section.response[level - 1] if section.response else None, strength, f"FGE, stride {stride}"),
    )
    return [
        Panel(title, scale.rgb(box.cut(values, stride)), stride=stride, scale=scale, **shared)
        if values is not None
        else Panel(f"no {title}", scale.rgb(blank), stride=max(box.height, box.width), scale=scale, **shared)
        for values, scale, title in maps
    ]


def _consequence_panels(plain: Inspected, changed: Inspected, shared: Shared) -> list[Panel]:
    """Return the panels of the affinities that follow from a changed attention, and of how they differ from before."""
    box = shared["box"]
    affinities = np.moveaxis(changed.affinities[:, box.top :, box.left :][:, : box.height, : box.width], 0, -1)
    change = (changed.affinities.astype(np.float32) - plain.affinities).mean(axis=0)
    largest = np.percentile(np.abs(change), 99.5)
    most = next((step for step in (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5) if step >= largest), 1.0)
    scale = ColorScale("mean of z, y, x", -most, most, "PuOr")
    return [
        Panel("$A_r$ that follows", (affinities * 255).astype(np.uint8), **shared),
        Panel("its change", scale.rgb(box.cut(change)), scale=scale, **shared),
    ]


def attention_readout(
    inspectors: Mapping[str, Inspector], *, z: int, level: str, what_if: str, y: int, x: int, **_others: object
) -> str:
    """Return HTML of attention and the Fine-Grained Encoder's response at the point, and of how far A_r changes.

    Args:
        inspectors: of each model.
        z, y, x: the point, in raw voxels.
        level: a key of `LEVELS`.
        what_if: a key of `WHAT_IF`.
    """
    lines = []
    for name, inspector in inspectors.items():
        plain = inspector.section(z)
        cells = [name]
        for maps in (plain.attention, plain.response):
            cells += [f"{level_map[y // s, x // s]:.3f}" for level_map, s in zip(maps, STRIDES, strict=False)] or [
                "-"
            ] * 3
        if what_if == "as it is":
            cells.append("-")
        else:
            after = inspector.section(z, _question(level, what_if)).affinities.astype(np.float32)
            flipped = np.mean((after > 0.5) != (plain.affinities > 0.5))
            cells.append(f"{np.abs(after - plain.affinities).mean():.3f} on average; {flipped:.1%} cross 0.5")
        lines.append(cells)
    heads = ["", *(f"a{i}" for i in (1, 2, 3)), *(f"|F'{i}|" for i in (1, 2, 3)), "change of A_r in the section"]
    return f"At z = {z}, y = {y}, x = {x}:" + _table([heads, *lines])


def _table(rows: Sequence[Sequence[str]]) -> str:
    cells = ("".join(f"<td style='padding: 0 1em 0 0'>{escape(cell)}</td>" for cell in row) for row in rows)
    return f"<table>{''.join(f'<tr>{row}</tr>' for row in cells)}</table>"


def feature_explorer(volume: Volume, features: Sequence[np.ndarray], folder: str | Path = ".") -> Explorer:
    """Return an explorer of SAM2's features by section: as colours, a single channel, their similarity to a point.

    Args:
        volume: in memory.
        features: maps at strides 4, 8, 16, each (C, z, y / stride, x / stride).
        folder: where saved pictures go.
    """
    # of all sections at once: colours keep their meaning along z
    colors = [(255 * stretch(principal_components(level))).astype(np.uint8) for level in features]
    channels = min(len(level) for level in features)
    controls = {
        "z": _section_slider(volume),
        "stride": _buttons(STRIDES, "stride"),
        "show": widgets.Dropdown(options=("main components", "one channel"), description="show"),
        "channel": widgets.IntSlider(0, 0, channels - 1, description="channel"),
        **_point_controls(volume),
    }
    canvas, panels = Canvas(), partial(feature_panels, volume, features, colors)
    return Explorer(lambda **values: canvas.show(panels(**values)), controls, None, folder, "features")


def feature_panels(
    volume: Volume,
    features: Sequence[np.ndarray],
    components: Sequence[np.ndarray],
    *,
    z: int,
    stride: int,
    show: str,
    channel: int,
    zoom: int,
    y: int,
    x: int,
) -> list[list[Panel]]:
    """Return the panels of a section: raw, its features as colours or a single channel, their similarity to the point.

    Args:
        volume: raw in memory.
        features: maps at strides 4, 8, 16, each (C, z, y / stride, x / stride).
        components: three main components of each as uint8 colours (z, y / stride, x / stride, 3).
        z: section.
        stride: of the map to show.
        show: "main components" or "one channel".
        channel: index of the channel to show.
        zoom: how many times the section is enlarged.
        y, x: the point, in raw voxels.
    """
    level = STRIDES.index(stride)
    box = zoom_box(volume.shape[1:], y, x, zoom)
    shared = {"box": box, "voxel_size": volume.voxel_size, "cross": (y, x)}
    if show == "one channel":
        values = np.asarray(features[level][channel])
        scale = ColorScale(f"channel {channel}", *plots.display_range(values), "cividis")
        map_ = Panel(f"stride {stride}", scale.rgb(box.cut(values[z], stride)), stride=stride, scale=scale, **shared)
    else:
        colors = box.cut(components[level][z], stride)
        map_ = Panel(f"main components, stride {stride}", colors, stride=stride, **shared)
    similarity, scale = (
        cosine_similarity(features[level][:, z], y // stride, x // stride),
        ColorScale("cosine similarity", -1, 1, "viridis"),
    )
    similar = scale.rgb(box.cut(similarity, stride))
    return [
        [
            Panel(f"EM, section {z}", grey(box.cut(volume.raw[z])), **shared),
            map_,
            Panel("similarity to the cross", similar, stride=stride, scale=scale, **shared),
        ]
    ]


def segmentation_explorer(
    volume: Volume, segmentations: Mapping[float, np.ndarray], folder: str | Path = "."
) -> Explorer:
    """Return an explorer of segmentations over thresholds: segments, split and merge errors, VOI.

    Args:
        volume: with labels, in memory.
        segmentations: threshold -> ids (z, y, x), as `segmentation.sweep` returns them.
        folder: where saved pictures go.

    Raises:
        ValueError: the volume has no labels to compare with.
    """
    if volume.labels is None:
        raise ValueError(
            f"{volume.name or 'the volume'} has no labels: without ground truth there are no errors to show"
        )
    scores = {threshold: evaluate(labels, volume.labels) for threshold, labels in segmentations.items()}
    wrong = {threshold: error_masks(labels, volume.labels) for threshold, labels in segmentations.items()}
    best = min(scores, key=lambda threshold: scores[threshold].voi_split + scores[threshold].voi_merge)
    controls = {
        "z": _section_slider(volume),
        "threshold": widgets.SelectionSlider(options=tuple(segmentations), value=best, description="threshold"),
        **_point_controls(volume),
    }
    canvas = Canvas()
    panels = partial(segmentation_panels, volume, segmentations, wrong, scores)
    readout = partial(segmentation_readout, volume, segmentations, scores)
    return Explorer(lambda **values: canvas.show(panels(**values)), controls, readout, folder, "segmentation")


def segmentation_panels(
    volume: Volume,
    segmentations: Mapping[float, np.ndarray],
    wrong: Mapping[float, tuple[np.ndarray, np.ndarray]],
    scores: Mapping[float, Scores],
    *,
    z: int,
    threshold: float,
    zoom: int,
    y: int,
    x: int,
) -> list[list[Panel | Curve]]:
    """Return the panels of a section's segments and errors, and of VOI over all thresholds.

    Args:
        volume: raw and labels in memory.
        segmentations: threshold -> ids (z, y, x).
        wrong: threshold -> voxels that are split and that are merged, as `metrics.error_masks` marks them.
        scores: threshold -> `metrics.evaluate` of the segmentation.
        z: section.
        threshold: a key of `segmentations`.
        zoom: how many times the section is enlarged.
        y, x: the point, in raw voxels.
    """
    box = zoom_box(volume.shape[1:], y, x, zoom)
    shared = {"box": box, "voxel_size": volume.voxel_size, "cross": (y, x)}
    raw = grey(box.cut(volume.raw[z]))
    fill = plots.label_overlay(box.cut(segmentations[threshold][z]), fill=0.45)
    errors = raw
    for mask, color in zip(wrong[threshold], (plots.SPLIT, plots.MERGE), strict=True):
        errors = blend(errors, 255 * np.array(to_rgb(color)), 0.6 * box.cut(mask[z])[..., None])
    truth = plots.label_overlay(box.cut(volume.labels[z]), fill=0)[..., 3:]
    errors = blend(errors, 255.0, 0.5 * truth)
    curve = Curve(
        tuple(scores),
        tuple(score.voi_split for score in scores.values()),
        tuple(score.voi_merge for score in scores.values()),
        threshold,
    )
    segments = blend(raw, 255 * fill[..., :3], fill[..., 3:])
    return [
        [
            Panel(f"segments, section {z}", segments, **shared),
            Panel("errors", errors, legend={"split": plots.SPLIT, "merge": plots.MERGE}, **shared),
            curve,
        ]
    ]


def segmentation_readout(
    volume: Volume,
    segmentations: Mapping[float, np.ndarray],
    scores: Mapping[float, Scores],
    *,
    z: int,
    threshold: float,
    y: int,
    x: int,
    **_others: object,
) -> str:
    """Return HTML of the scores at a threshold, and of the segment and the neuron that the point belongs to.

    Args:
        volume: with labels, in memory.
        segmentations: threshold -> ids (z, y, x).
        scores: threshold -> `metrics.evaluate` of the segmentation.
        z, y, x: the point, in raw voxels.
        threshold: a key of `segmentations`.
    """
    score, voxel = scores[threshold], (z, y, x)
    heads = ["threshold", "VOI split", "VOI merge", "sum (bits)", "ARAND"]
    bits = score.voi_split, score.voi_merge, score.voi_split + score.voi_merge
    cells = [f"{threshold:g}", *(f"{value:.3f}" for value in (*bits, score.arand))]
    where = f"At z = {z}, y = {y}, x = {x}: segment {segmentations[threshold][voxel]}, neuron {volume.labels[voxel]}."
    return where + _table([heads, cells])


def _section_slider(volume: Volume) -> widgets.IntSlider:
    return widgets.IntSlider(volume.shape[0] // 2, 0, volume.shape[0] - 1, description="section")


def _buttons(options: Sequence, description: str) -> widgets.ToggleButtons:
    """Return narrow buttons in a row behind their description."""
    return widgets.ToggleButtons(
        options=options, description=description, style={"button_width": "3em"}, layout={"width": "max-content"}
    )


def _point_controls(volume: Volume) -> dict[str, widgets.Widget]:
    """Return the controls of the cross's position and of how far the picture is enlarged around it."""
    _, height, width = volume.shape
    return {
        "zoom": _buttons([(f"{zoom}x", zoom) for zoom in ZOOMS], "zoom"),
        "y": widgets.IntSlider(height // 2, 0, height - 1, description="point y"),
        "x": widgets.IntSlider(width // 2, 0, width - 1, description="point x"),
    }
