"""The explorers of the lessons: attention, SAM2's features, a segmentation over thresholds.

Each is made of a plain function that gives the panels for the controls' values; `interactive` draws and controls them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from html import escape
from pathlib import Path

import ipywidgets as widgets
import numpy as np
from matplotlib.colors import to_rgb

from fgnet_lib.fgnet import FGNet
from fgnet_lib.metrics import Scores, error_masks, evaluate
from fgnet_lib.probing import Inspected, Inspector, WhatIf
from fgnet_lib.sam2_encoder import STRIDES
from fgnet_lib.views import plots
from fgnet_lib.views.feature_maps import cosine_similarity, principal_components
from fgnet_lib.views.panels import Canvas, Curve, Explorer, Panel, Scale, blend, grey, spread, zoom_box
from fgnet_lib.views.panels import explore as explore  # for lessons: with a picture of their own
from fgnet_lib.volumes import Volume

LEVELS = {"a1": (1,), "a2": (2,), "a3": (3,), "all": (1, 2, 3)}
WHAT_IF = {"as it is": None, "0": 0.0, "1": 1.0, "mean": "mean"}
COLORS = (plots.WARM, "viridis", "cividis", "magma", "gray")
ZOOMS = (1, 2, 4, 8)


def attention_explorer(
    volume: Volume,
    model: FGNet | Mapping[str, FGNet],
    prediction: np.ndarray | None = None,
    folder: str | Path = ".",
) -> Explorer:
    """What a model attends to, section by section, at one point, and what follows when attention is set to a value.

    Args:
        volume: in memory; its labels, if any, can be outlined.
        model: or several by name, which are shown one above the other (before and after training, with and without
            attention).
        prediction: ids (z, y, x) that can be outlined, too.
        folder: where saved pictures go.
    """
    models = {"": model} if isinstance(model, FGNet) else model
    inspectors = {name: Inspector(one, volume.raw) for name, one in models.items()}
    middle = {name: inspector.section(volume.shape[0] // 2) for name, inspector in inspectors.items()}
    known = {"ground truth": volume.labels, "prediction": prediction}
    known = {name: labels for name, labels in known.items() if labels is not None}
    outlines = {"nothing": None} | known
    panels = partial(attention_panels, volume, inspectors, attention_ranges(middle), outlines)
    controls = {
        "z": _section_slider(volume),
        "level": _buttons(tuple(LEVELS), "attention"),
        "what_if": widgets.Dropdown(options=tuple(WHAT_IF), description="what if a is"),
        "opacity": widgets.FloatSlider(0.6, min=0, max=1, step=0.1, description="opacity"),
        "colors": widgets.Dropdown(options=COLORS, description="colours"),
        "outlines": widgets.Dropdown(
            options=tuple(outlines), value=next(iter(known), "nothing"), description="outlines"
        ),
        **_point_controls(volume),
    }
    canvas = Canvas()
    table = partial(attention_table, inspectors)
    return Explorer(lambda **values: canvas.show(panels(**values)), controls, table, folder, "attention")


def attention_ranges(sections: Mapping[str, Inspected]) -> dict[tuple[str, int], tuple[float, float]]:
    """The values shown darkest and brightest: 1st and 99th percentile of one section, so that colours compare along z.

    Args:
        sections: the same section of each model.

    Returns:
        ("attention", level) -> range over all models; (name of the model, level) -> range of its encoder's response.
    """
    ranges = {}
    for i in range(len(STRIDES)):
        maps = [one.attention[i].ravel() for one in sections.values() if one.attention]
        ranges["attention", i + 1] = _range(np.concatenate(maps)) if maps else (0.0, 1.0)
        for name, one in sections.items():
            ranges[name, i + 1] = _range(one.response[i]) if one.response else (0.0, 1.0)
    return ranges


def _range(values: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(values, (1, 99))
    return float(low), float(max(high, low + 0.01))


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
    """One row for each model: attention over the section, then what belongs to the question asked.

    That is SAM2's similarity to the point and the Fine-Grained Encoder's response for one level; for "all", all levels;
    and whenever attention is set to a value, the affinities that follow and how they differ.

    Args:
        volume: raw in memory.
        inspectors: of each model.
        ranges: as `attention_ranges` gives them.
        outlined: labels (z, y, x) or None by the name that `outlines` may take.
        z: section.
        level: a key of `LEVELS`.
        what_if: a key of `WHAT_IF`: what the attention of this level is set to.
        opacity: of attention over the section.
        colors: matplotlib's name of the colour map for attention.
        outlines: a key of `outlined`.
        zoom: how many times smaller than the section the part shown is.
        y, x: the point, in raw voxels.
    """
    box = zoom_box(volume.shape[1:], y, x, zoom)
    place = {"box": box, "voxel_size": volume.voxel_size, "cross": (y, x)}
    raw = box.cut(volume.raw[z])
    edges = None if outlined[outlines] is None else plots.label_overlay(box.cut(outlined[outlines][z]), fill=0)
    rows = []
    for name, inspector in inspectors.items():
        found = inspector.section(z)
        shown = inspector.section(z, _question(level, what_if))
        row = []
        for i in LEVELS[level]:
            scale, image, title = (
                Scale(f"attention $a_{i}$", *ranges["attention", i], colors),
                grey(raw),
                "no attention",
            )
            if shown.attention:
                over = scale.rgb(box.cut(shown.attention[i - 1], STRIDES[i - 1]))
                image = blend(image, spread(over, box, STRIDES[i - 1]), opacity)
                title = f"a{i}, section {z}" if what_if == "as it is" else f"a{i} = {what_if}, section {z}"
            if edges is not None:
                image = blend(image, edges[..., :3] * 255, edges[..., 3:])
            row.append(Panel(_title(name, title), image, scale=scale, **place))
        if what_if != "as it is":
            row += _consequence_panels(found, shown, place)
        elif level != "all":
            row += _point_panels(found, LEVELS[level][0], ranges[name, LEVELS[level][0]], place)
        rows.append(row)
    return rows


def _question(level: str, what_if: str) -> WhatIf | None:
    return None if what_if == "as it is" else (LEVELS[level], WHAT_IF[what_if])


def _title(name: str, title: str) -> str:
    return f"{name}: {title}" if name else title


def _point_panels(found: Inspected, level: int, response: tuple[float, float], place: dict) -> list[Panel]:
    """SAM2's similarity to the point, and how strongly the Fine-Grained Encoder responds."""
    stride, blank = STRIDES[level - 1], np.full((1, 1), np.nan)
    similarity, strength = Scale("cosine similarity", -1, 1, "viridis"), Scale("length of $F'$", *response, "magma")
    (y, x), box = place["cross"], place["box"]
    similar = cosine_similarity(found.sam2[level - 1], y // stride, x // stride) if found.sam2 else None
    maps = (
        (similar, similarity, f"SAM2, stride {stride}"),
        (found.response[level - 1] if found.response else None, strength, f"FGE, stride {stride}"),
    )
    return [
        Panel(title, scale.rgb(box.cut(values, stride)), stride=stride, scale=scale, **place)
        if values is not None
        else Panel(f"no {title}", scale.rgb(blank), stride=max(box.height, box.width), scale=scale, **place)
        for values, scale, title in maps
    ]


def _consequence_panels(found: Inspected, shown: Inspected, place: dict) -> list[Panel]:
    """The affinities that follow from attention as it was set, and how they differ from those of attention as it is."""
    box = place["box"]
    affinities = np.moveaxis(shown.affinities[:, box.top :, box.left :][:, : box.height, : box.width], 0, -1)
    change = (shown.affinities.astype(np.float32) - found.affinities).mean(axis=0)
    seen = np.percentile(np.abs(change), 99.5)
    most = next((step for step in (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5) if step >= seen), 1.0)
    scale = Scale("mean of z, y, x", -most, most, "PuOr")
    return [
        Panel("$A_r$ that follows", (affinities * 255).astype(np.uint8), **place),
        Panel("its change", scale.rgb(box.cut(change)), scale=scale, **place),
    ]


def attention_table(
    inspectors: Mapping[str, Inspector], *, z: int, level: str, what_if: str, y: int, x: int, **_shown: object
) -> str:
    """HTML: attention and the Fine-Grained Encoder's response at the point, all levels; how far A_r changes.

    Args:
        inspectors: of each model.
        z, y, x: the point, in raw voxels.
        level: a key of `LEVELS`.
        what_if: a key of `WHAT_IF`.
    """
    lines = []
    for name, inspector in inspectors.items():
        found = inspector.section(z)
        cells = [name]
        for maps in (found.attention, found.response):
            cells += [f"{one[y // s, x // s]:.3f}" for one, s in zip(maps, STRIDES, strict=False)] or ["-"] * 3
        if what_if == "as it is":
            cells.append("-")
        else:
            after = inspector.section(z, _question(level, what_if)).affinities.astype(np.float32)
            flipped = np.mean((after > 0.5) != (found.affinities > 0.5))
            cells.append(f"{np.abs(after - found.affinities).mean():.3f} on average; {flipped:.1%} cross 0.5")
        lines.append(cells)
    heads = ["", *(f"a{i}" for i in (1, 2, 3)), *(f"|F'{i}|" for i in (1, 2, 3)), "change of A_r in the section"]
    return f"At z = {z}, y = {y}, x = {x}:" + _table([heads, *lines])


def _table(rows: Sequence[Sequence[str]]) -> str:
    cells = ("".join(f"<td style='padding: 0 1em 0 0'>{escape(cell)}</td>" for cell in row) for row in rows)
    return f"<table>{''.join(f'<tr>{row}</tr>' for row in cells)}</table>"


def feature_explorer(volume: Volume, features: Sequence[np.ndarray], folder: str | Path = ".") -> Explorer:
    """SAM2's features of a section: as colours, one channel, and their similarity to a point.

    Args:
        volume: in memory.
        features: maps at strides 4, 8, 16, each (C, z, y / stride, x / stride).
        folder: where saved pictures go.
    """
    colors = []
    for level in features:  # of all sections at once: colours keep their meaning along z
        components = principal_components(level)
        low, high = np.percentile(components, (1, 99), axis=(0, 1, 2))
        share = np.clip((components - low) / np.maximum(high - low, 1e-12), 0, 1)
        colors.append((255 * share).astype(np.uint8))
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
    """A section with a point, its features as colours or one channel of them, and their similarity to the point.

    Args:
        volume: raw in memory.
        features: maps at strides 4, 8, 16, each (C, z, y / stride, x / stride).
        components: three main components of each as uint8 colours (z, y / stride, x / stride, 3).
        z: section.
        stride: which map to show.
        show: "main components" or "one channel".
        channel: which one.
        zoom: how many times smaller than the section the part shown is.
        y, x: the point, in raw voxels.
    """
    level = STRIDES.index(stride)
    box = zoom_box(volume.shape[1:], y, x, zoom)
    place = {"box": box, "voxel_size": volume.voxel_size, "cross": (y, x)}
    if show == "one channel":
        values = np.asarray(features[level][channel])
        scale = Scale(f"channel {channel}", *_range(values), "cividis")
        map_ = Panel(f"stride {stride}", scale.rgb(box.cut(values[z], stride)), stride=stride, scale=scale, **place)
    else:
        colors = box.cut(components[level][z], stride)
        map_ = Panel(f"main components, stride {stride}", colors, stride=stride, **place)
    similarity, scale = (
        cosine_similarity(features[level][:, z], y // stride, x // stride),
        Scale("cosine similarity", -1, 1, "viridis"),
    )
    similar = scale.rgb(box.cut(similarity, stride))
    return [
        [
            Panel(f"EM, section {z}", grey(box.cut(volume.raw[z])), **place),
            map_,
            Panel("similarity to the cross", similar, stride=stride, scale=scale, **place),
        ]
    ]


def segmentation_explorer(volume: Volume, tried: Mapping[float, np.ndarray], folder: str | Path = ".") -> Explorer:
    """A segmentation over its thresholds: segments, split and merge errors, VOI.

    Args:
        volume: with labels, in memory.
        tried: threshold -> ids (z, y, x), as `segmentation.sweep` gives them.
        folder: where saved pictures go.

    Raises:
        ValueError: the volume has no labels to compare with.
    """
    if volume.labels is None:
        raise ValueError(
            f"{volume.name or 'the volume'} has no labels: without ground truth there are no errors to show"
        )
    scores = {threshold: evaluate(labels, volume.labels) for threshold, labels in tried.items()}
    wrong = {threshold: error_masks(labels, volume.labels) for threshold, labels in tried.items()}
    best = min(scores, key=lambda threshold: scores[threshold].voi_split + scores[threshold].voi_merge)
    controls = {
        "z": _section_slider(volume),
        "threshold": widgets.SelectionSlider(options=tuple(tried), value=best, description="threshold"),
        **_point_controls(volume),
    }
    canvas = Canvas()
    panels = partial(segmentation_panels, volume, tried, wrong, scores)
    table = partial(segmentation_table, volume, tried, scores)
    return Explorer(lambda **values: canvas.show(panels(**values)), controls, table, folder, "segmentation")


def segmentation_panels(
    volume: Volume,
    tried: Mapping[float, np.ndarray],
    wrong: Mapping[float, tuple[np.ndarray, np.ndarray]],
    scores: Mapping[float, Scores],
    *,
    z: int,
    threshold: float,
    zoom: int,
    y: int,
    x: int,
) -> list[list[Panel | Curve]]:
    """Segments, what is wrong with them, and VOI over all thresholds.

    Args:
        volume: raw and labels in memory.
        tried: threshold -> ids (z, y, x).
        wrong: threshold -> voxels that are split and that are merged, as `metrics.error_masks` gives them.
        scores: threshold -> what `metrics.evaluate` gives.
        z: section.
        threshold: one of those tried.
        zoom: how many times smaller than the section the part shown is.
        y, x: the point, in raw voxels.
    """
    box = zoom_box(volume.shape[1:], y, x, zoom)
    place = {"box": box, "voxel_size": volume.voxel_size, "cross": (y, x)}
    raw = grey(box.cut(volume.raw[z]))
    fill = plots.label_overlay(box.cut(tried[threshold][z]), fill=0.45)
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
            Panel(f"segments, section {z}", segments, **place),
            Panel("errors", errors, legend={"split": plots.SPLIT, "merge": plots.MERGE}, **place),
            curve,
        ]
    ]


def segmentation_table(
    volume: Volume,
    tried: Mapping[float, np.ndarray],
    scores: Mapping[float, Scores],
    *,
    z: int,
    threshold: float,
    y: int,
    x: int,
    **_shown: object,
) -> str:
    """HTML: the scores at a threshold, and which segment and neuron the point belongs to.

    Args:
        volume: with labels, in memory.
        tried: threshold -> ids (z, y, x).
        scores: threshold -> what `metrics.evaluate` gives.
        z, y, x: the point, in raw voxels.
        threshold: one of those tried.
    """
    score, here = scores[threshold], (z, y, x)
    heads = ["threshold", "VOI split", "VOI merge", "sum (bits)", "ARAND"]
    bits = score.voi_split, score.voi_merge, score.voi_split + score.voi_merge
    cells = [f"{threshold:g}", *(f"{value:.3f}" for value in (*bits, score.arand))]
    where = f"At z = {z}, y = {y}, x = {x}: segment {tried[threshold][here]}, neuron {volume.labels[here]}."
    return where + _table([heads, cells])


def _section_slider(volume: Volume) -> widgets.IntSlider:
    return widgets.IntSlider(volume.shape[0] // 2, 0, volume.shape[0] - 1, description="section")


def _buttons(options: Sequence, description: str) -> widgets.ToggleButtons:
    """Narrow ones, in one row with what they are about."""
    return widgets.ToggleButtons(
        options=options, description=description, style={"button_width": "3em"}, layout={"width": "max-content"}
    )


def _point_controls(volume: Volume) -> dict[str, widgets.Widget]:
    """Where the cross is, and how far the picture is enlarged around it."""
    _, height, width = volume.shape
    return {
        "zoom": _buttons([(f"{zoom}x", zoom) for zoom in ZOOMS], "zoom"),
        "y": widgets.IntSlider(height // 2, 0, height - 1, description="point y"),
        "x": widgets.IntSlider(width // 2, 0, width - 1, description="point x"),
    }
