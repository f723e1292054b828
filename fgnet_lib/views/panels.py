"""Pictures with controls, of core ipywidgets only, so that they work wherever notebooks run.

`Canvas` builds a figure once and then only gives it new data, which makes a slider quick. `Explorer` puts controls
above whatever a plain function draws; a lesson calls the same function once more for a figure that stays where widgets
do not.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import ipywidgets as widgets
import matplotlib
import numpy as np
from matplotlib.animation import PillowWriter
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.image import imsave
from matplotlib.patheffects import withStroke

from fgnet_lib.views import plots

SLIDE = 13.3  # inches: the width of a 16:9 slide
FRAMES = 5  # sections a second
FIGURES = 8  # kept for arrangements of panels that may come back
# Core widgets do not report clicks on a picture. This listener writes the position of a click (as fractions of width
# and height) into a hidden text field beside the picture, as if somebody had typed it.
CLICKS = """
if (!window.fgnetClicks) {
  window.fgnetClicks = true;
  document.addEventListener("click", event => {
    const picture = event.target.closest && event.target.closest("img.fgnet-picture");
    const explorer = picture && picture.closest(".fgnet-explorer");
    if (!explorer) return;
    const field = explorer.querySelector(".fgnet-pick input"), box = picture.getBoundingClientRect();
    field.value = (event.clientX - box.left) / box.width + " " + (event.clientY - box.top) / box.height;
    for (const name of ["input", "change"]) field.dispatchEvent(new Event(name, {bubbles: true}));
  });
}
"""


Update = Callable[[Any], None]  # shows a panel of the same kind on axes that are already drawn


class Box(NamedTuple):
    """A part of a section, in raw voxels."""

    top: int
    left: int
    height: int
    width: int

    def cut(self, section: np.ndarray, stride: int = 1) -> np.ndarray:
        """Return the pixels of a map (y, x, ...) at `stride` that cover the box."""
        bottom, right = -(-(self.top + self.height) // stride), -(-(self.left + self.width) // stride)
        return section[self.top // stride : bottom, self.left // stride : right]


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
    """The map from numbers to colours that a colour bar shows."""

    label: str
    low: float
    high: float
    colors: str

    def rgb(self, values: np.ndarray) -> np.ndarray:
        """Return the colours of numbers as uint8 (..., 3); numbers beyond the ends get the colours of the ends."""
        share = (np.asarray(values, np.float32) - self.low) / max(self.high - self.low, 1e-12)
        return _ramp(self.colors)[(np.clip(np.nan_to_num(share), 0, 1) * 255).astype(np.uint8)]


@lru_cache
def _ramp(colors: str) -> np.ndarray:
    return np.rint(matplotlib.colormaps[colors](np.linspace(0, 1, 256))[:, :3] * 255).astype(np.uint8)


def grey(section: np.ndarray) -> np.ndarray:
    """Return a uint8 section (y, x) as grey colours (y, x, 3)."""
    return np.repeat(section[..., None], 3, axis=2)


def blend(under: np.ndarray, over: np.ndarray | float, opacity: np.ndarray | float) -> np.ndarray:
    """Return colours laid over others, uint8.

    Args:
        under: uint8 (y, x, 3), colours from 0 to 255.
        over: colours from 0 to 255, of a shape that broadcasts to `under`.
        opacity: of `over`, in [0, 1], of a shape that broadcasts to `under`.
    """
    opacity = np.asarray(opacity, np.float32)
    return (under * (1 - opacity) + np.asarray(over, np.float32) * opacity).astype(np.uint8)


def enlarge(image: np.ndarray, box: Box, stride: int) -> np.ndarray:
    """Return what `box.cut(..., stride)` returned, enlarged to raw voxels: every pixel repeated, exactly the box."""
    rows = np.arange(box.top, box.top + box.height) // stride - box.top // stride
    columns = np.arange(box.left, box.left + box.width) // stride - box.left // stride
    return image[rows[:, None], columns]


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
    """

    title: str
    image: np.ndarray
    box: Box
    voxel_size: tuple[float, float, float]
    stride: int = 1
    scale: ColorScale | None = None
    cross: tuple[int, int] | None = None
    legend: dict[str, str] | None = None

    @property
    def kind(self) -> tuple[object, ...]:
        """The properties that two panels must share to show each other's data."""
        return self.box.height, self.box.width, self.scale and self.scale.label, self.legend is None

    @property
    def ratio(self) -> float:
        """The panel's height divided by its width, both in nm."""
        return self.box.height * self.voxel_size[1] / (self.box.width * self.voxel_size[2])

    def build(self, ax: Axes) -> tuple[Update, list[Artist]]:
        """Draw on new axes; return a function that shows another panel on them, and the artists that move, in order."""
        image = ax.imshow(self.image, interpolation="antialiased", aspect="auto")
        ax.set(xlim=(-0.5, self.box.width - 0.5), ylim=(self.box.height - 0.5, -0.5))
        plots.frame(ax, self.voxel_size)
        (cross,) = ax.plot([], [], "+", color="white", markersize=16, markeredgewidth=2)
        cross.set_path_effects([withStroke(linewidth=4, foreground="black")])  # seen on every map
        colors = ScalarMappable()
        if self.scale:
            ax.figure.colorbar(colors, ax=ax, label=self.scale.label, shrink=0.8)
        if self.legend:
            plots.color_legend(ax, self.legend)

        def update(panel: Panel) -> None:
            (top, left, height, width), stride = panel.box, panel.stride
            above, before = top // stride * stride, left // stride * stride  # where the first pixel begins
            rows, columns = panel.image.shape[:2]
            image.set_data(panel.image)
            image.set_extent((before - 0.5, before + columns * stride - 0.5, above + rows * stride - 0.5, above - 0.5))
            ax.set(xlim=(left - 0.5, left + width - 0.5), ylim=(top + height - 0.5, top - 0.5), title=panel.title)
            cross.set_data(([panel.cross[1]], [panel.cross[0]]) if panel.cross else ([], []))
            if panel.scale:
                scale = panel.scale
                if (colors.get_cmap().name, *colors.get_clim()) != (scale.colors, scale.low, scale.high):
                    colors.set_cmap(scale.colors)
                    colors.set_clim(scale.low, scale.high)
                    ax.figure.canvas.background = None

        update(self)
        return update, [image, *ax.artists, cross, ax.title]


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
        plots.split_merge_curve(ax, self.thresholds, self.splits, self.merges)
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


class Canvas:
    """Figures, each built once for an arrangement of panels and given new data from then on."""

    def __init__(self) -> None:
        self._built: dict[tuple[object, ...], tuple[Figure, list[Update]]] = {}

    def show(self, rows: Sequence[Sequence[Panel | Curve]]) -> Figure:
        """Return the figure of rows of panels; it is the same object until the arrangement changes."""
        panels = [panel for row in rows for panel in row]
        key = (len(rows), *(panel.kind for panel in panels))
        if key not in self._built:
            with matplotlib.rc_context(plots.STYLE):
                self._built[key] = _build(rows)
        figure, updates = self._built[key] = self._built.pop(key)  # the figure used last goes to the end
        if len(self._built) > FIGURES:
            del self._built[next(iter(self._built))]
        for update, panel in zip(updates, panels, strict=True):
            update(panel)
        return figure


def _build(rows: Sequence[Sequence[Panel | Curve]]) -> tuple[Figure, list[Update]]:
    columns = len(rows[0])
    width = min(4.4, SLIDE / columns)
    height = sum(max(panel.ratio for panel in row) * (width - 1) + 0.6 for row in rows)
    figure = Figure(figsize=(columns * width, height), layout="constrained")
    axes = figure.subplots(len(rows), columns, squeeze=False).flat
    canvas = _QuickCanvas(figure)
    built = [panel.build(ax) for ax, panel in zip(axes, (panel for row in rows for panel in row), strict=True)]
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # computed once: the layout takes longer than drawing
    canvas.moving = tuple(artist for _, moving in built for artist in moving)
    for artist in canvas.moving:
        artist.set_animated(True)
    return figure, [update for update, _ in built]


def point_at(figure: Figure, right: float, down: float) -> tuple[int, int] | None:
    """Return the raw voxel (y, x) under a point of the picture, or None beside the panels.

    Args:
        figure: made by `Canvas.show`.
        right: fraction of the picture's width, from its left edge.
        down: fraction of the picture's height, from its upper edge.
    """
    point = right * figure.bbox.width, (1 - down) * figure.bbox.height
    for ax in figure.axes:
        if ax.images and ax.get_window_extent().contains(*point):
            x, y = ax.transData.inverted().transform(point)
            return round(y), round(x)
    return None


def save_run(draw: Callable[[int], Figure], sections: Sequence[int], path: Path, tell: Callable[[int], None]) -> None:
    """Write an animated GIF with one frame for each section.

    Args:
        draw: returns the figure of a section; all figures must have the same size.
        sections: in the order of the frames.
        path: of the file.
        tell: called with the number of frames done after each of them.
    """
    writer = PillowWriter(fps=FRAMES)
    figure = draw(sections[0])
    with writer.saving(figure, path, figure.dpi):
        for done, z in enumerate(sections, start=1):
            writer.fig = draw(z)
            writer.grab_frame()
            tell(done)


class Explorer(widgets.VBox):
    """Controls above a picture that follows them; as the last line of a cell it appears below the cell.

    An integer slider named `z` gets a button that plays through the sections, and one that saves them as a GIF. Sliders
    named `y` and `x` follow clicks on the picture in JupyterLab; where a page runs no script of an output (maybe Colab
    and VS Code), the sliders alone choose the point.

    For style sheets and tests the parts have CSS classes: `fgnet-explorer`, `fgnet-picture`, `fgnet-readout`,
    `fgnet-status`, `fgnet-play`, `fgnet-save-png`, `fgnet-save-gif`, `fgnet-progress`, and `fgnet-` with the name of
    each control.
    """

    def __init__(
        self,
        draw: Callable[..., Figure],
        controls: dict[str, widgets.Widget],
        tell: Callable[..., str] | None = None,
        folder: str | Path = ".",
        name: str = "view",
    ) -> None:
        """Build the picture and its controls.

        Args:
            draw: called with the value of each control under its name.
            controls: the widgets, in the order they are shown.
            tell: called with the same values; returns HTML to show under the picture.
            folder: where saved pictures go; made when missing.
            name: their file names begin with it.
        """
        self.controls, self._draw, self._tell = controls, draw, tell
        self._folder, self._name, self._quiet = Path(folder), name, False
        self.picture = widgets.Image(format="jpeg")  # a third of a PNG's size, at the same pixels
        self.readout, self.status = widgets.HTML(), widgets.HTML()
        self.progress = widgets.IntProgress(0, 0, 1, layout={"visibility": "hidden"})
        self.save_png = widgets.Button(description="save PNG", layout={"width": "auto"})
        self.save_gif = widgets.Button(description="save GIF", layout={"width": "auto"})
        self.pick = widgets.Text(layout={"display": "none"})
        self.play = widgets.Play(interval=1000 // FRAMES)
        script = {"application/javascript": CLICKS, "text/plain": ""}
        listener = widgets.Output(outputs=({"output_type": "display_data", "data": script, "metadata": {}},))
        parts = dict(controls) | {name: getattr(self, name) for name in ("picture", "readout", "status", "progress")}
        parts |= {"save-png": self.save_png, "save-gif": self.save_gif, "pick": self.pick, "play": self.play}
        for part, widget in parts.items():
            widget.add_class(f"fgnet-{part}")
        below = [self.save_png]
        if isinstance(z := controls.get("z"), widgets.IntSlider):
            self.play.min, self.play.max, self.play.value = z.min, z.max, z.value
            widgets.jslink((self.play, "value"), (z, "value"))
            below = [self.play, self.save_png, self.save_gif]
        above = widgets.HBox(list(controls.values()), layout={"flex_flow": "row wrap"})
        below = widgets.HBox([*below, self.progress, self.status], layout={"flex_flow": "row wrap"})
        super().__init__([above, self.picture, self.readout, below, self.pick, listener])
        self.add_class("fgnet-explorer")
        for control in controls.values():
            control.observe(self._redraw, "value")
        self.pick.observe(self._picked, "value")
        self.save_png.on_click(self._save_png)
        self.save_gif.on_click(self._save_gif)
        self._redraw()

    def values(self) -> dict[str, Any]:
        """Return the present value of each control by its name."""
        return {name: control.value for name, control in self.controls.items()}

    def draw(self, **changes: Any) -> Figure:
        """Return the figure of the controls' values, with some `changes`; the controls stay as they are.

        `explorer.draw(z=3)` is a figure of section 3 that stays in a notebook without a kernel.
        """
        return self._draw(**self.values() | changes)

    def _redraw(self, _change: object = None) -> None:
        if self._quiet:
            return
        self.status.value = "drawing"  # a new section may have to go through the network first
        try:
            self._figure = self.draw()
            self.picture.value = to_jpeg(self._figure)
            if self._tell:
                self.readout.value = self._tell(**self.values())
        except Exception as error:  # Jupyter only logs what a callback raises
            self.status.value = escape(f"{type(error).__name__}: {error}")
            raise
        self.status.value = ""

    def _picked(self, change: dict[str, str]) -> None:
        """Move the point to the position that CLICKS wrote, `change["new"]`."""
        right, down = map(float, change["new"].split())
        point = point_at(self._figure, right, down)
        if point is None or not {"y", "x"} <= self.controls.keys():
            return
        self._quiet = True  # two values, one picture
        try:
            self.controls["y"].value, self.controls["x"].value = point
        finally:
            self._quiet = False
        self._redraw()

    def _path(self, ending: str) -> Path:
        self._folder.mkdir(parents=True, exist_ok=True)
        return self._folder / f"{self._name}{ending}"

    def _save_png(self, _button: widgets.Button) -> None:
        z = self.values().get("z")
        path = self._path(".png" if z is None else f"-{z:04}.png")
        self.draw().savefig(path, dpi=160)
        self.status.value = f"saved {path}"

    def _save_gif(self, _button: widgets.Button) -> None:
        z, path = self.controls["z"], self._path(".gif")
        self.progress.max, self.progress.layout.visibility = z.max - z.min + 1, "visible"

        def tell(done: int) -> None:
            self.progress.value = done
            self.status.value = f"{done} of {self.progress.max} sections"

        save_run(lambda section: self.draw(z=section), range(z.min, z.max + 1), path, tell)
        self.progress.layout.visibility = "hidden"
        self.status.value = f"saved {path}"


def to_jpeg(figure: Figure) -> bytes:
    """Return a figure as a JPEG of the figure's own size, at a quality that keeps thin lines and their colours."""
    canvas = figure.canvas if isinstance(figure.canvas, _QuickCanvas) else FigureCanvasAgg(figure)
    canvas.draw()
    picture = io.BytesIO()
    imsave(picture, canvas.buffer_rgba(), format="jpeg", pil_kwargs={"quality": 90, "subsampling": 0})
    return picture.getvalue()


def explore(draw: Callable[..., Figure], **controls: widgets.Widget) -> Explorer:
    """Return controls above the picture that `draw` makes of their values, redrawn whenever a value changes.

    `explore(lambda z: plot(volume, z), z=IntSlider(0, 0, 9))` draws section 0 and follows the slider.

    Args:
        draw: called with the value of each control under its name.
        controls: the widgets, in the order they are shown.
    """
    return Explorer(draw, controls)
