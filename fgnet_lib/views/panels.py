"""Pictures of parts of a section, side by side in one figure, which is built once and then only given new data.

That makes a slider quick. `interactive.Explorer` puts controls above such a figure.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backend_bases import RendererBase
from matplotlib.backends.backend_agg import FigureCanvasAgg, RendererAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, PowerNorm
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from PIL import Image
from skimage.measure import find_contours

from fgnet_lib.views import charts, plots
from fgnet_lib.volumes import IGNORE

SLIDE = 13.3  # inches: the width of a 16:9 slide
FIGURES = 8  # kept for arrangements of panels that may come back

Update = Callable[[Any], None]  # shows a panel of the same kind on axes that are already drawn
Stride = tuple[int, int]  # raw voxels per pixel of a map, along its rows and its columns


class Box(NamedTuple):
    """A part of a section, in raw voxels."""

    top: int
    left: int
    height: int
    width: int

    def cut(self, section: np.ndarray, stride: Stride = (1, 1)) -> np.ndarray:
        """Return the pixels of a map (y, x, ...) at `stride` that cover the box."""
        rows, columns = stride
        bottom, right = -(-(self.top + self.height) // rows), -(-(self.left + self.width) // columns)
        return section[self.top // rows : bottom, self.left // columns : right]


def zoom_box(shape: Sequence[int], y: int, x: int, zoom: int) -> Box:
    """Return a box `zoom` times smaller than a section (y, x), around a point as far as the edges allow.

    >>> zoom_box((100, 200), y=50, x=0, zoom=4)
    Box(top=38, left=0, height=25, width=50)
    """
    height, width = (max(1, round(size / zoom)) for size in shape)
    top, left = (
        int(np.clip(at - side // 2, 0, size - side))
        for at, side, size in zip((y, x), (height, width), shape, strict=True)
    )
    return Box(top, left, height, width)


@dataclass(frozen=True)
class ColorScale:
    """The map from numbers to colours that a colour bar shows; a gamma below 1 spreads the low numbers."""

    label: str
    low: float
    high: float
    colors: str
    gamma: float = 1.0

    def rgb(self, values: np.ndarray) -> np.ndarray:
        """Return the colours of numbers as uint8 (..., 3); numbers beyond the ends get the colours of the ends."""
        share = np.array(values, np.float32)  # in place from here: a third of the time
        share -= np.float32(self.low)
        share /= np.float32(max(self.high - self.low, 1e-12))
        np.fmin(np.fmax(share, 0, out=share), 1, out=share)  # and nan becomes 0
        if self.gamma != 1:
            share **= np.float32(self.gamma)
        share *= 255
        return _ramp(self.colors).take(share.astype(np.uint8), axis=0)

    @property
    def norm(self) -> Normalize:
        """The same map, from numbers to shares of the colour bar."""
        limits = self.low, max(self.high, self.low + 1e-12)
        return Normalize(*limits) if self.gamma == 1 else PowerNorm(self.gamma, *limits)


@lru_cache
def _ramp(colors: str) -> np.ndarray:
    return np.rint(matplotlib.colormaps[colors](np.linspace(0, 1, 256))[:, :3] * 255).astype(np.uint8)


def grey(section: np.ndarray) -> np.ndarray:
    """Return a uint8 section (y, x) as grey colours (y, x, 3)."""
    return np.repeat(section[..., None], 3, axis=2)


def blend(under: np.ndarray, over: np.ndarray, opacity: float) -> np.ndarray:
    """Return colours laid over others, uint8 (y, x, 3) as both of them; the opacity of `over` is in [0, 1]."""
    return np.asarray(Image.blend(Image.fromarray(under), Image.fromarray(over), opacity))


def outlines(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the voxels, bool (y, x), at which ids (y, x) end, and their colours, uint8 (n, 3).

    They are the outlines that `plots.label_overlay` draws, without computing its fill.
    """
    edge = plots.label_edges(labels) & (labels != 0) & (labels != IGNORE)
    return edge, (plots.label_colors(labels[edge])[:, :3] * 255).astype(np.uint8)


def enlarge(image: np.ndarray, box: Box, stride: Stride) -> np.ndarray:
    """Return what `box.cut(..., stride)` returned, enlarged to raw voxels: every pixel repeated, exactly the box."""
    rows = np.arange(box.top, box.top + box.height) // stride[0] - box.top // stride[0]
    columns = np.arange(box.left, box.left + box.width) // stride[1] - box.left // stride[1]
    return image.take(columns, axis=1).take(rows, axis=0)


def interpolate(section: np.ndarray, box: Box, stride: Stride) -> np.ndarray:
    """Return a map (y, x) at `stride` at each raw voxel of a box, linear between the middles of its pixels, float32."""
    section = np.asarray(section, np.float32)
    for axis, (start, length) in enumerate(((box.top, box.height), (box.left, box.width))):
        middle = (np.arange(start, start + length) + 0.5) / stride[axis] - 0.5
        middle = np.clip(middle, 0, section.shape[axis] - 1)
        before = np.minimum(middle.astype(int), max(section.shape[axis] - 2, 0))
        share = np.expand_dims((middle - before).astype(np.float32), 1 - axis)
        after = np.minimum(before + 1, section.shape[axis] - 1)
        section = section.take(before, axis) * (1 - share) + section.take(after, axis) * share
    return section


class Values(NamedTuple):
    """The numbers that a panel shows; the read-out under the mouse and saved files take them from here.

    Attributes:
        name: of the quantity, such as "a1".
        array: of the whole section, (y / stride, x / stride) or with channels behind.
        stride: raw voxels per pixel.
    """

    name: str
    array: np.ndarray
    stride: Stride = (1, 1)

    def text(self, row: int, column: int) -> str:
        """Return name and value at a raw voxel."""
        at = np.atleast_1d(self.array[row // self.stride[0], column // self.stride[1]])
        return f"{self.name} {' '.join(str(n) if n.dtype.kind in 'iub' else f'{n:.3f}' for n in at)}"


class _Picture(Artist):
    """The image of a panel, resampled by Pillow: matplotlib's own image takes several times as long."""

    panel: Panel

    def draw(self, renderer: RendererBase) -> None:
        """Draw the part of the image that lies in the panel's box on the whole of the axes."""
        left, bottom, right, top = (round(edge) for edge in self.axes.bbox.extents)
        (y, x, height, width), (rows, columns) = self.panel.box, self.panel.stride
        source = x % columns / columns, y % rows / rows, (x % columns + width) / columns, (y % rows + height) / rows
        image = Image.fromarray(self.panel.image)
        image = image.resize((right - left, top - bottom), Image.Resampling.BOX, source)  # no pixel of a map is blurred
        rgba = np.array(image.transpose(Image.Transpose.FLIP_TOP_BOTTOM).convert("RGBA"))
        renderer.draw_image(renderer.new_gc(), left, bottom, rgba)


class _Stamp(Artist):
    """An artist that seldom changes, drawn once and then copied: a text takes longer than the picture under it."""

    def __init__(self, artist: Artist) -> None:
        super().__init__()
        self._artist, self._pixels = artist, None
        self.set_figure(artist.get_figure())
        artist.set_animated(True)

    def renew(self) -> None:
        """Draw the artist anew the next time."""
        self._pixels = None

    def draw(self, renderer: RendererBase) -> None:
        """Draw the artist, on the figure's own canvas from its copy."""
        if renderer is not self.get_figure().canvas.get_renderer():
            return self._artist.draw(renderer)
        if self._pixels is None:
            sheet = RendererAgg(renderer.width, renderer.height, renderer.dpi)
            self._artist.draw(sheet)
            pixels = np.asarray(sheet.buffer_rgba())[::-1]
            rows, columns = (np.append(np.flatnonzero(pixels[..., 3].any(axis=axis)), 0) for axis in (1, 0))
            part = pixels[rows[0] : rows[:-1].max(initial=0) + 1, columns[0] : columns[:-1].max(initial=0) + 1]
            self._pixels = columns[0], rows[0], part.copy()
        renderer.draw_image(renderer.new_gc(), *self._pixels)


@dataclass(frozen=True)
class Panel:
    """A picture of a part of a section.

    Attributes:
        title: above it.
        image: uint8 (y, x, 3), as `box.cut(..., stride)` returns it.
        box: the part shown.
        voxel_size: nm (z, y, x) of raw voxels.
        stride: raw voxels per pixel of the image.
        scale: of the colour bar, or None for no bar.
        cross: raw voxel (y, x) to mark, or None.
        legend: what colours mean, or None.
        region: voxels to outline, bool (y, x) of the whole section, or None.
        brush: radius in voxels of the brush that paints on the picture; 0 where nothing can be painted.
        values: the numbers behind the colours, or None.
        axes: names of the controls that the picture's rows and columns are positions of.
        stretch: how many times too high the picture is drawn.
    """

    title: str
    image: np.ndarray
    box: Box
    voxel_size: tuple[float, float, float]
    stride: Stride = (1, 1)
    scale: ColorScale | None = None
    cross: tuple[int, int] | None = None
    legend: dict[str, str] | None = None
    region: np.ndarray | None = None
    brush: int = 0
    values: Values | None = None
    axes: tuple[str, str] = ("y", "x")
    stretch: float = 1

    @property
    def kind(self) -> tuple[object, ...]:
        """The properties that two panels must share to show each other's data."""
        return self.box.height, self.box.width, self.scale and self.scale.label, self.legend is None, self.axes

    @property
    def ratio(self) -> float:
        """The panel's height divided by its width, both in nm, and stretched."""
        return self.stretch * self.box.height * self.voxel_size[1] / (self.box.width * self.voxel_size[2])

    def build(self, ax: Axes) -> tuple[Update, list[Artist]]:
        """Draw on new axes; return a function that shows another panel on them, and the artists that move, in order."""
        image = _Picture()
        ax.add_artist(image)
        ax.set(xlim=(-0.5, self.box.width - 0.5), ylim=(self.box.height - 0.5, -0.5))
        plots.frame(ax, (self.stretch * self.voxel_size[1], self.voxel_size[2]))
        outlined = [withStroke(linewidth=4, foreground="black")]  # seen on every map
        (cross,) = ax.plot([], [], "+", color="white", markersize=16, markeredgewidth=2, path_effects=outlined)
        (edge,) = ax.plot([], [], color="white", lw=2, path_effects=outlined)
        bar, outline, title = _Stamp(ax.artists[1]), _Stamp(edge), _Stamp(ax.title)  # artists[0] is the image
        colors, shown, kept = ScalarMappable(), [], [None, self.box]  # kept: the region that is outlined, and the box
        if self.scale:
            ax.figure.colorbar(colors, ax=ax, label=self.scale.label, shrink=0.8)
        if self.legend:
            plots.color_legend(ax, self.legend)

        def update(panel: Panel) -> None:
            top, left, height, width = panel.box
            image.panel = panel
            ax.set(xlim=(left - 0.5, left + width - 0.5), ylim=(top + height - 0.5, top - 0.5))
            if panel.title != ax.get_title():
                ax.title.set_text(panel.title)
                title.renew()
            cross.set_data(([panel.cross[1]], [panel.cross[0]]) if panel.cross else ([], []))
            if panel.region is not kept[0] or panel.box != kept[1]:
                kept[:] = panel.region, panel.box
                edge.set_data(([], []) if panel.region is None else _outline(panel.region))
                outline.renew()
            if panel.scale and panel.scale not in shown:
                shown[:] = [panel.scale]
                colors.set_cmap(panel.scale.colors)
                colors.set_norm(panel.scale.norm)
                ax.figure.canvas.background = None

        update(self)
        return update, [image, bar, cross, outline, title]


def _outline(region: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return x and y of lines around a region, with nan between them."""
    lines = [np.append(line - 1, [[np.nan] * 2], axis=0) for line in find_contours(np.pad(region, 1), 0.5)]
    y, x = np.concatenate([np.empty((0, 2)), *lines]).T
    return x, y


@dataclass(frozen=True)
class Curve:
    """VOI over thresholds (bits), with a line at the threshold `at`."""

    thresholds: tuple[float, ...]
    splits: tuple[float, ...]
    merges: tuple[float, ...]
    at: float
    kind = ("curve",)
    ratio = 1.0

    def build(self, ax: Axes) -> tuple[Update, list[Artist]]:
        """Draw on new axes; return a function that moves the line, and the line."""
        charts.split_merge_curve(ax, self.thresholds, self.splits, self.merges)
        line = ax.axvline(self.at, color="gray", ls=":")
        return lambda curve: line.set_xdata([curve.at, curve.at]), [line]


class _QuickCanvas(FigureCanvasAgg):
    """Draws fixed parts (colour bars, legends) once and moving parts each time; a saved figure is drawn whole."""

    background: object = None  # the fixed parts, as Agg keeps them
    moving: tuple[Artist, ...] = ()

    def draw(self) -> None:
        if self.background is None:
            super().draw()
            self.background = self.copy_from_bbox(self.figure.bbox)
        self.restore_region(self.background)
        for artist in self.moving:
            self.figure.draw_artist(artist)


class _PanelFigure(Figure):
    """A figure that knows which panel each of its axes shows."""

    panels: dict[Axes, Panel]


class Canvas:
    """Figures, each built once for an arrangement of panels and given new data from then on."""

    def __init__(self) -> None:
        self._built: dict[tuple[object, ...], tuple[_PanelFigure, list[Axes], list[Update]]] = {}

    def show(self, rows: Sequence[Sequence[Panel | Curve]]) -> _PanelFigure:
        """Return the figure of rows of panels; it is the same object until the arrangement changes."""
        panels = [panel for row in rows for panel in row]
        key = (len(rows), *(panel.kind for panel in panels))
        if key not in self._built:
            with matplotlib.rc_context(plots.STYLE):
                self._built[key] = _build(rows)
        figure, axes, updates = self._built[key] = self._built.pop(key)  # the figure used last goes to the end
        if len(self._built) > FIGURES:
            del self._built[next(iter(self._built))]
        for update, panel in zip(updates, panels, strict=True):
            update(panel)
        figure.panels = {ax: panel for ax, panel in zip(axes, panels, strict=True) if isinstance(panel, Panel)}
        return figure


def _build(rows: Sequence[Sequence[Panel | Curve]]) -> tuple[_PanelFigure, list[Axes], list[Update]]:
    columns = len(rows[0])
    flat = max(panel.ratio for row in rows for panel in row) < 0.5
    width = min(SLIDE if flat else 4.4, SLIDE / columns)
    height = sum(max(panel.ratio for panel in row) * (width - 1) + 0.6 for row in rows)
    figure = _PanelFigure(figsize=(columns * width, height), layout="constrained")
    axes = list(figure.subplots(len(rows), columns, squeeze=False).flat)
    canvas = _QuickCanvas(figure)
    built = [panel.build(ax) for ax, panel in zip(axes, (panel for row in rows for panel in row), strict=True)]
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # computed once: the layout takes longer than drawing
    canvas.moving = tuple(artist for _, moving in built for artist in moving)
    for artist in canvas.moving:
        artist.set_animated(True)
    return figure, axes, [update for update, _ in built]


def point_at(figure: Figure, right: float, down: float) -> tuple[Panel, int, int] | None:
    """Return the panel under a point of the picture and the raw voxel (y, x) of it, or None beside the panels.

    Args:
        figure: made by `Canvas.show`; in other figures there are no panels.
        right: fraction of the picture's width, from its left edge.
        down: fraction of the picture's height, from its upper edge.
    """
    point = right * figure.bbox.width, (1 - down) * figure.bbox.height
    for ax, panel in getattr(figure, "panels", {}).items():
        if ax.get_window_extent().contains(*point):
            x, y = ax.transData.inverted().transform(point)
            (top, left, height, width) = panel.box
            return panel, int(np.clip(round(y), top, top + height - 1)), int(np.clip(round(x), left, left + width - 1))
    return None
