"""The explorers of the lessons: attention, the guide's features, a segmentation over thresholds.

Each is made of a plain function that returns the panels for the controls' values. An `interactive.Explorer` draws and
controls them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from html import escape
from pathlib import Path
from weakref import WeakSet

import ipywidgets as widgets
import numpy as np
from matplotlib.colors import to_rgb

from fgnet_lib.fgnet import FGNet
from fgnet_lib.files.images import MAX_BYTES, read_image
from fgnet_lib.metrics import Scores, error_masks, evaluate
from fgnet_lib.probing import Inspector
from fgnet_lib.sam2_encoder import STRIDES
from fgnet_lib.views import plots
from fgnet_lib.views.attention_panels import (
    LEVELS,
    WHAT_IF,
    Scene,
    Settings,
    attention_panels,
    attention_readout,
    html_table,
)
from fgnet_lib.views.feature_maps import cosine_similarity, principal_components, stretch
from fgnet_lib.views.interactive import Explorer, Keys
from fgnet_lib.views.panels import ColorScale, Curve, Panel, Values, grey, outlines, zoom_box
from fgnet_lib.volumes import Volume

COLORS = (plots.WARM, "viridis", "cividis", "magma", "gray")
ZOOMS = (1, 2, 4, 8)
BRUSHES = (4, 8, 16, 32)  # voxels; a pixel of a1 has 4, of a3 16
_works: WeakSet[_AttentionWork] = WeakSet()  # of all explorers: ipywidgets keeps them, also when a cell runs again


def attention_explorer(
    volume: Volume,
    model: FGNet | Mapping[str, FGNet],
    prediction: np.ndarray | None = None,
    folder: str | Path = ".",
) -> Explorer:
    """Return an explorer of what a model attends to, by section and point, and of what follows from setting attention.

    Earlier ones stay usable but free the sections that they have computed, up to 512 MB a model.

    Args:
        volume: in memory; its labels, if any, can be outlined.
        model: a model, or several by name, which appear one above the other (before and after training, with and
            without attention); two models get a row of their differences, too.
        prediction: ids (z, y, x) that can be outlined, too.
        folder: where saved pictures and arrays go.
    """
    models = {"": model} if isinstance(model, FGNet) else model
    for earlier in _works:
        earlier.forget()
    work = _AttentionWork(volume, models, prediction)
    controls = _attention_controls(volume, work.scene)
    upload = widgets.FileUpload(accept=".png,.jpg,.jpeg,.tif,.tiff", description="own image", layout={"width": "auto"})
    upload.tooltip = f"PNG, JPEG or TIFF, at most {MAX_BYTES // 10**6} MB"
    neuroglancer = widgets.Button(description="open here in neuroglancer", layout={"width": "auto"})
    clear = widgets.Button(description="clear painting", layout={"width": "auto"})
    keys: Keys = {str(i): ("level", lambda _value, level=f"a{i}": level) for i in (1, 2, 3)}
    keys |= {"o": ("opacity", lambda opacity: 0.0 if opacity else 0.6), "c": ("region", lambda _strokes: "")}
    extras = [clear, neuroglancer, upload]
    explorer = Explorer(work.panels, controls, work.tell, folder, "attention", keys, extras)
    clear.add_class("fgnet-clear")
    clear.on_click(lambda _button: explorer.change(region=""))
    neuroglancer.add_class("fgnet-neuroglancer")
    upload.add_class("fgnet-upload")
    neuroglancer.on_click(lambda _button: work.open_viewer(explorer))
    upload.observe(lambda change: work.take_image(explorer, change["new"]), "value")
    return explorer


def _attention_controls(volume: Volume, scene: Scene) -> dict[str, widgets.Widget]:
    """Return the controls, each with the name of a field of `Settings`."""
    outlines = tuple(scene.outlined)
    return {
        "z": _section_slider(volume),
        **_point_controls(volume),
        "plane": _buttons(("xy", "xz"), "plane"),
        "level": _buttons(tuple(LEVELS), "attention"),
        "opacity": widgets.FloatSlider(0.6, min=0, max=1, step=0.1, description="opacity"),
        "outlines": widgets.Dropdown(options=outlines, value=outlines[:2][-1], description="outlines"),
        "colors": widgets.Dropdown(options=COLORS, description="colours"),
        "ranks": _buttons([("value", False), ("rank", True)], "colour by"),
        "span": widgets.FloatRangeSlider(
            value=(1, 99),
            min=0,
            max=100,
            step=0.5,
            description="range (%)",
            readout_format=".3",  # 1 – 99: no zeros behind the point, so it fits
            continuous_update=False,
        ),
        "gamma": widgets.FloatSlider(1, min=0.2, max=3, step=0.1, description="gamma"),
        "smooth": _buttons([("grid", False), ("smooth", True)], "display"),
        "what_if": widgets.Dropdown(options=tuple(WHAT_IF), description="what if a is"),
        "brush": _buttons(BRUSHES, "brush radius"),
        "region": widgets.Text(description="clear what is painted", layout={"display": "none"}),
        "flip": _buttons([("off", "nothing"), *zip("zyx", "zyx", strict=True)], "gradient of"),
    }


class _AttentionWork:
    """What the attention explorer does; its scene changes with an image of the reader's own."""

    def __init__(self, volume: Volume, models: Mapping[str, FGNet], prediction: np.ndarray | None) -> None:
        self._models, self._prediction = models, prediction
        self.scene = self._open(volume, prediction)
        _works.add(self)

    def _open(self, volume: Volume, prediction: np.ndarray | None) -> Scene:
        return Scene.of(volume, self._inspect(volume), prediction)

    def _inspect(self, volume: Volume) -> dict[str, Inspector]:
        return {name: Inspector(model, volume.raw) for name, model in self._models.items()}

    def forget(self) -> None:
        """Free what was computed; it is computed again when it is needed."""
        self.scene = replace(self.scene, inspectors=self._inspect(self.scene.volume))

    def panels(self, **values: object) -> list[list[Panel]]:
        """Return the panels for the controls' values."""
        return attention_panels(self.scene, Settings(**values))

    def tell(self, **values: object) -> str:
        """Return HTML for the controls' values."""
        return attention_readout(self.scene, Settings(**values))

    def open_viewer(self, explorer: Explorer) -> None:
        """Open neuroglancer on the same volume, at the point, with the attention of the first model as it is set."""
        from fgnet_lib.views import viewer  # it loads a web server, which most readers never need

        settings, scene = Settings(**explorer.values()), self.scene
        with explorer.working("opening neuroglancer"):
            inspector = next(iter(scene.inspectors.values()))
            attention = inspector.attention(settings.question(scene.volume.shape[1:]))
            segmentations = {"prediction": self._prediction} if "prediction" in scene.outlined else None
            view = viewer.show(scene.volume, segmentations, attention=attention)
            corner = np.divide(scene.volume.offset, scene.volume.voxel_size)
            with view.viewer.txn() as state:
                state.position = (corner + (settings.z, settings.y, settings.x) + 0.5)[::-1]
                for level in LEVELS[settings.level] if attention else ():
                    state.layers[f"attention a{level}"].visible = True
        explorer.status.value = f'<a href="{view.url}" target="_blank">neuroglancer at the point</a>'

    def take_image(self, explorer: Explorer, files: object) -> None:
        """Explore an uploaded image in place of the volume; a file that is none leaves all as it was."""
        uploads = list(files.values()) if isinstance(files, dict) else list(files)  # ipywidgets 7 and 8
        if not uploads:
            return
        name = uploads[0].get("name") or uploads[0]["metadata"]["name"]
        try:
            volume = read_image(name, bytes(uploads[0]["content"]), self.scene.volume.voxel_size)
        except ValueError as error:
            explorer.status.value = escape(str(error))
            return
        with explorer.working(f"computing {name}"):
            self.scene = self._open(volume, None)
        with explorer.hold():
            explorer.controls["outlines"].options = tuple(self.scene.outlined)
            explorer.controls["region"].value = ""
        explorer.resize(volume.shape)
        explorer.status.value = escape(
            f"{name}: {volume.shape} voxels, taken to be of {volume.voxel_size} nm (z, y, x)"
        )


def feature_explorer(volume: Volume, features: Sequence[np.ndarray], folder: str | Path = ".") -> Explorer:
    """Return an explorer of the guide's features by section: as colours, a single channel, their similarity to a point.

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
        "show": widgets.Dropdown(options=("principal components", "one channel"), description="show"),
        "channel": widgets.IntSlider(0, 0, channels - 1, description="channel"),
        **_point_controls(volume),
    }
    panels = partial(feature_panels, volume, features, colors)
    keys: Keys = {str(i): ("stride", lambda _value, stride=stride: stride) for i, stride in enumerate(STRIDES, start=1)}
    return Explorer(panels, controls, None, folder, "features", keys)


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
        components: three principal components of each as uint8 colours (z, y / stride, x / stride, 3).
        z: section.
        stride: of the map to show.
        show: "principal components" or "one channel".
        channel: index of the channel to show.
        zoom: how many times the section is enlarged.
        y, x: the point, in raw voxels.
    """
    level, strides = STRIDES.index(stride), (stride, stride)
    box = zoom_box(volume.shape[1:], y, x, zoom)
    shared = {"box": box, "voxel_size": volume.voxel_size, "cross": (y, x)}
    if show == "one channel":
        array = np.asarray(features[level][channel])
        scale = ColorScale(f"channel {channel}", *plots.display_range(array), "cividis")
        values = Values(f"channel {channel}", array[z], strides)
        colors, title = scale.rgb(box.cut(array[z], strides)), f"stride {stride}"
    else:
        colors, title, scale, values = (
            box.cut(components[level][z], strides),
            f"principal components, stride {stride}",
            None,
            None,
        )
    map_ = Panel(title, colors, stride=strides, scale=scale, values=values, **shared)
    similarity = Values("similarity", cosine_similarity(features[level][:, z], y // stride, x // stride), strides)
    scale = ColorScale("cosine similarity", -1, 1, "viridis")
    similar = scale.rgb(box.cut(similarity.array, strides))
    section = volume.raw[z]
    return [
        [
            Panel(f"EM, section {z}", grey(box.cut(section)), values=Values("EM", section), **shared),
            map_,
            Panel("similarity to the cross", similar, stride=strides, scale=scale, values=similarity, **shared),
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
    true_colors = plots.neighbour_colors(volume.labels)
    colors = cache(lambda threshold: plots.matched_colors(segmentations[threshold], volume.labels, true_colors))
    panels = partial(segmentation_panels, volume, segmentations, colors, wrong, scores)
    readout = partial(segmentation_readout, volume, segmentations, scores)
    return Explorer(panels, controls, readout, folder, "segmentation")


def segmentation_panels(
    volume: Volume,
    segmentations: Mapping[float, np.ndarray],
    colors: Callable[[float], Mapping[int, np.ndarray]],
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
        colors: returns id -> RGB for the segmentation at a threshold.
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
    ids = box.cut(segmentations[threshold][z])
    tint = plots.label_overlay(ids, 0.45, colors(threshold))
    segments = ((1 - tint[..., 3:]) * raw + 255 * tint[..., 3:] * tint[..., :3]).astype(np.uint8)
    errors, (edge, _) = raw.copy(), outlines(box.cut(volume.labels[z]))
    for mask, color in zip(wrong[threshold], (plots.SPLIT, plots.MERGE), strict=True):
        part = box.cut(mask[z])
        errors[part] = 0.4 * errors[part] + 0.6 * 255 * np.array(to_rgb(color))
    errors[edge] = 0.5 * errors[edge] + 0.5 * 255
    curve = Curve(
        tuple(scores),
        tuple(score.voi_split for score in scores.values()),
        tuple(score.voi_merge for score in scores.values()),
        threshold,
    )
    return [
        [
            Panel(f"segments, section {z}", segments, values=Values("segment", segmentations[threshold][z]), **shared),
            Panel(
                "errors",
                errors,
                legend={"split": plots.SPLIT, "merge": plots.MERGE},
                values=Values("neuron", volume.labels[z]),
                **shared,
            ),
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
    return where + html_table([heads, cells])


def _section_slider(volume: Volume) -> widgets.IntSlider:
    return widgets.IntSlider(volume.shape[0] // 2, 0, volume.shape[0] - 1, description="section")


def _buttons(options: Sequence, description: str) -> widgets.ToggleButtons:
    """Return narrow buttons in a row behind their description."""
    return widgets.ToggleButtons(options=options, description=description, style={"button_width": "max-content"})


def _point_controls(volume: Volume) -> dict[str, widgets.Widget]:
    """Return the controls of the cross's position and of how far the picture is enlarged around it."""
    _, height, width = volume.shape
    return {
        "y": widgets.IntSlider(height // 2, 0, height - 1, description="point y"),
        "x": widgets.IntSlider(width // 2, 0, width - 1, description="point x"),
        "zoom": _buttons([(f"{zoom}x", zoom) for zoom in ZOOMS], "zoom"),
    }
