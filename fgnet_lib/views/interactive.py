"""Controls above a picture that follows them, of core ipywidgets only, so that they work wherever notebooks run.

A lesson calls the function that draws once more for a figure that stays where widgets do not.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from html import escape
from itertools import chain, count
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import numpy as np
import tifffile
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from fgnet_lib.files.atomic import atomic, list_foreign, refuse_to_delete
from fgnet_lib.views.panels import Canvas, Curve, Panel, point_at

FRAMES = 5  # sections a second
_SAVED = re.compile(r"settings\.json|[^/]+\.(npy|tif)")  # the files of `save_arrays_of`
READABLE = 0.7  # of a picture's own width: on narrower pages its text would be too small
# Core widgets report neither clicks on a picture nor keys. This listener writes them into hidden text fields beside the
# picture, as if somebody had typed them; `fgnet-about` tells it where the panels lie, which keys count, and alt text.
LISTENER = """
if (!window.fgnetListens) {
  window.fgnetListens = true;
  const find = event => event.target.closest && event.target.closest("img.fgnet-picture");
  const part = (picture, name) => picture.closest(".fgnet-explorer").querySelector(".fgnet-" + name);
  const about = picture => JSON.parse(part(picture, "about").textContent.trim() || '{"panels": [], "keys": []}');
  const type = (picture, name, text) => {
    const field = part(picture, name).querySelector("input");
    field.value = text;
    for (const kind of ["input", "change"]) field.dispatchEvent(new Event(kind, {bubbles: true}));
  };
  const queues = new WeakMap();
  const report = (picture, ...what) => {  // the last events, numbered: a busy kernel misses none
    const queue = queues.get(picture) || [];
    const number = Math.max(Date.now(), queue.length ? queue[queue.length - 1][0] + 1 : 0);
    queues.set(picture, [...queue, [number, ...what]].slice(-20));
    type(picture, "pick", JSON.stringify(queues.get(picture)));
  };
  const position = (picture, event) => {
    const box = picture.getBoundingClientRect();
    return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
  };
  const panelAt = (picture, [right, down]) => about(picture).panels.find(([left, top, width, height]) =>
    right >= left && right <= left + width && down >= top && down <= top + height);
  const remove = kind => document.querySelectorAll("." + kind).forEach(old => old.remove());
  const put = (element, kind, left, top, width, height) => {  // above the page; the mouse goes through it
    element.setAttribute("class", kind);
    element.style.cssText = `position: fixed; z-index: 1000; pointer-events: none; box-sizing: border-box;
      left: ${left}px; top: ${top}px; width: ${width}px; height: ${height}px`;
    return document.body.appendChild(element);
  };
  const follow = (picture, event) => {  // the same place in the other panels; the brush in all of them
    const box = picture.getBoundingClientRect(), at = position(picture, event), over = panelAt(picture, at);
    remove("fgnet-mark");
    for (const panel of about(picture).panels) {
      if (!over || panel[4] !== over[4] || (`${panel}` === `${over}` && !panel[5])) continue;
      const side = panel[5] ? 2 * panel[5] * box.width : 14;
      const x = box.left + box.width * (panel[0] + (at[0] - over[0]) / over[2] * panel[2]);
      const y = box.top + box.height * (panel[1] + (at[1] - over[1]) / over[3] * panel[3]);
      const frame = put(document.createElement("div"), "fgnet-mark", x - side / 2, y - side / 2, side, side);
      Object.assign(frame.style, {border: "2px solid white", outline: "1px solid black",
        borderRadius: panel[5] ? "50%" : "0"});
    }
    type(picture, "hover", over ? at.join(" ") : "");
  };
  const paint = ({picture, panel, stroke}) => {  // shown until the picture with its outline comes
    const box = picture.getBoundingClientRect(), space = "http://www.w3.org/2000/svg";
    const [left, top, width, height, , brush] = panel;
    remove("fgnet-stroke");
    const sheet = put(document.createElementNS(space, "svg"), "fgnet-stroke", box.left + left * box.width,
      box.top + top * box.height, width * box.width, height * box.height);
    const line = sheet.appendChild(document.createElementNS(space, "polyline"));
    const points = stroke.map(([x, y]) => `${(x - left) * box.width},${(y - top) * box.height}`);
    const style = {points: points.join(" "), fill: "none", stroke: "orange", "stroke-opacity": 0.7,
      "stroke-width": 2 * brush * box.width, "stroke-linecap": "round", "stroke-linejoin": "round"};
    for (const [name, value] of Object.entries(style)) line.setAttribute(name, value);
  };
  const prepare = picture => {
    picture.alt = about(picture).alt || "";
    picture.tabIndex = 0;
    picture.draggable = false;
    picture.style.touchAction = about(picture).panels.some(panel => panel[5]) ? "none" : "";  // a finger paints
    remove("fgnet-stroke");
  };
  const clear = () => remove("fgnet-mark");
  const distance = (picture, a, b) => {
    const box = picture.getBoundingClientRect();
    return Math.hypot((a[0] - b[0]) * box.width, (a[1] - b[1]) * box.height);
  };
  let start = null;  // where the mouse or a finger went down, and the stroke since then
  document.addEventListener("load", event => find(event) && prepare(find(event)), true);
  document.querySelectorAll("img.fgnet-picture").forEach(prepare);
  document.addEventListener("pointerdown", event => {
    const picture = event.button === 0 && event.isPrimary && find(event);
    if (!picture) return;
    const at = position(picture, event), panel = panelAt(picture, at);
    start = {picture, panel, stroke: [at]};
    if (panel && panel[5]) picture.setPointerCapture(event.pointerId);
  });
  document.addEventListener("pointermove", event => {
    const picture = find(event);
    if (picture) follow(picture, event);
    else clear();
    if (!picture || !start || start.picture !== picture || !start.panel || !start.panel[5]) return;
    const at = position(picture, event), last = start.stroke[start.stroke.length - 1];
    const [left, top, width, height, , brush] = start.panel, span = brush * picture.getBoundingClientRect().width;
    const inside = [Math.min(Math.max(at[0], left), left + width), Math.min(Math.max(at[1], top), top + height)];
    if (distance(picture, inside, last) < Math.max(2, span / 4)) return;
    start.stroke.push(inside);
    paint(start);
  });
  document.addEventListener("pointerup", event => {
    const picture = find(event), from = start;
    start = null;
    if (!picture || !from || from.picture !== picture) return;
    picture.focus({preventScroll: true});
    if (event.pointerType === "touch") clear();
    const far = distance(picture, from.stroke[0], position(picture, event)) > 5 || from.stroke.length > 2;
    if (!far) {
      remove("fgnet-stroke");
      report(picture, "click", ...from.stroke[0]);
    } else if (from.panel && from.panel[5]) {
      report(picture, "paint", ...from.stroke.flat().map(number => Math.round(number * 1e5) / 1e5));
    }
  });
  document.addEventListener("pointercancel", () => { start = null; remove("fgnet-stroke"); });
  document.addEventListener("scroll", clear, true);
  window.addEventListener("keydown", event => {  // before the notebook takes it for a command
    const picture = find(event);
    if (!picture || event.ctrlKey || event.metaKey || event.altKey) return;
    if (!about(picture).keys.includes(event.key)) return;
    event.preventDefault();
    event.stopImmediatePropagation();
    report(picture, "key", event.key);
  }, true);
}
"""

Picture = Figure | Sequence[Sequence[Panel | Curve]]  # rows of panels are shown on a `panels.Canvas`
Keys = Mapping[str, tuple[str, Callable[[Any], Any]]]  # key -> the name of a control, and its value after -> before


class Explorer(widgets.VBox):
    """Controls above a picture that follows them; as the last line of a cell it appears below the cell.

    An integer slider named `z` gets a button that plays through the sections, one that saves them as a GIF, and the
    keys z and Z on the picture (next and previous section). Sliders named `y` and `x` follow clicks on the picture and
    the arrow keys. A text field named `region` takes what is painted on panels that have a brush: a JSON list with
    [radius, y, x, y, x, ...], in voxels, for each stroke. Under the picture are the values at the mouse. All of this
    needs a page that runs the script of an output, as JupyterLab does; where a page runs none (maybe Colab and VS
    Code), the controls alone remain.

    For style sheets and tests the parts have CSS classes: `fgnet-explorer`, `fgnet-picture`, `fgnet-values`,
    `fgnet-readout`, `fgnet-status`, `fgnet-play`, `fgnet-save-png`, `fgnet-save-gif`, `fgnet-save-arrays`,
    `fgnet-progress`, and `fgnet-` with the name of each control.
    """

    def __init__(
        self,
        draw: Callable[..., Picture],
        controls: dict[str, widgets.Widget],
        tell: Callable[..., str] | None = None,
        folder: str | Path = ".",
        name: str = "view",
        keys: Keys | None = None,
        extras: Sequence[widgets.Widget] = (),
    ) -> None:
        """Build the picture and its controls.

        Args:
            draw: called with the value of each control under its name; returns a figure, or the panels for one, which
                are drawn quicker when they change.
            controls: the widgets, in the order they are shown.
            tell: called with the same values; returns HTML to show under the picture.
            folder: where saved pictures go; made when missing.
            name: their file names begin with it; where there is a file of the name, -2, -3, ... follow.
            keys: more keys for the picture.
            extras: widgets to show beside the buttons.
        """
        self.controls, self._draw, self._tell = controls, draw, tell
        self._live = Canvas()  # of the picture alone: what is drawn besides must not change what the mouse points at
        self._folder, self._name, self._quiet, self._seen = Path(folder).expanduser(), name, False, 0
        self._keys = _motion_keys(controls) | dict(keys or {})
        self.picture = widgets.Image(format="jpeg")  # a third of a PNG's size, at the same pixels
        self.readout, self.status, self.values_at = (widgets.HTML() for _ in range(3))
        self.progress = widgets.IntProgress(0, 0, 1, layout={"visibility": "hidden"})
        self.save_png, self.save_gif, self.save_arrays = (
            widgets.Button(description=f"save {what}", layout={"width": "auto"}) for what in ("PNG", "GIF", "arrays")
        )
        self.play = widgets.Play(interval=1000 // FRAMES)
        self.pick, self.hover = (widgets.Text(layout={"display": "none"}) for _ in range(2))
        self._about = widgets.HTML(layout={"display": "none"})
        super().__init__(self._arrange(extras))
        self.add_class("fgnet-explorer")
        for control in controls.values():
            control.observe(self._redraw, "value")
        self.pick.observe(self._act, "value")
        self.hover.observe(self._point, "value")
        self.save_png.on_click(self._save_png)
        self.save_gif.on_click(self._save_gif)
        self.save_arrays.on_click(self._save_arrays)
        self._redraw()
        self.save_arrays.layout.display = None if getattr(self._figure, "panels", {}) else "none"

    def _arrange(self, extras: Sequence[widgets.Widget]) -> list[widgets.Widget]:
        """Return the parts from top to bottom, named for style sheets, controls aligned in columns."""
        parts = self.controls | {name: getattr(self, name) for name in ("picture", "readout", "status", "progress")}
        parts |= {"pick": self.pick, "hover": self.hover, "about": self._about, "values": self.values_at}
        parts |= {"save-png": self.save_png, "save-gif": self.save_gif, "save-arrays": self.save_arrays}
        for part, widget in (parts | {"play": self.play}).items():
            widget.add_class(f"fgnet-{part}")
        for control in self.controls.values():
            control.layout.width = "auto"
            if isinstance(control, widgets.ToggleButtons):
                control.add_class("widget-inline-hbox")  # its description beside it, as other widgets have it
            if hasattr(control.style, "description_width"):
                control.style.description_width = "6.5em"
        below = [self.save_png, self.save_arrays, *extras]
        if isinstance(z := self.controls.get("z"), widgets.IntSlider):
            self.play.min, self.play.max, self.play.value = z.min, z.max, z.value
            widgets.jslink((self.play, "value"), (z, "value"))
            below = [self.play, self.save_png, self.save_gif, self.save_arrays, *extras]
        columns = {"grid_template_columns": "repeat(auto-fill, minmax(21em, 1fr))", "grid_gap": "2px 1em"}
        above = widgets.GridBox(list(self.controls.values()), layout=columns)
        below = widgets.HBox([*below, self.progress, self.status], layout={"flex_flow": "row wrap"})
        script = {"application/javascript": LISTENER, "text/plain": ""}
        listener = widgets.Output(outputs=({"output_type": "display_data", "data": script, "metadata": {}},))
        hidden = [self.pick, self.hover, self._about, listener]
        view = widgets.Box([self.picture], layout={"overflow": "auto"})  # on a phone the picture is moved sideways
        return [above, view, self.values_at, self.readout, below, *hidden]

    def values(self) -> dict[str, Any]:
        """Return the present value of each control by its name."""
        return {name: control.value for name, control in self.controls.items()}

    def draw(self, **changes: Any) -> Figure:
        """Return the figure of the controls' values, with some `changes`; the controls stay as they are.

        `explorer.draw(z=3)` is a figure of section 3 that stays in a notebook without a kernel.
        """
        return self._show(Canvas(), **changes)

    def _show(self, canvas: Canvas, **changes: Any) -> Figure:
        """Return the figure of the controls' values, with some `changes`, on a canvas if it is made of panels."""
        picture = self._draw(**self.values() | changes)
        return picture if isinstance(picture, Figure) else canvas.show(picture)

    def change(self, **values: Any) -> None:
        """Set several controls and draw once; numbers beyond a slider's ends become its ends."""
        with self.hold():
            for name, value in values.items():
                control = self.controls[name]
                inside = isinstance(value, int | float) and hasattr(control, "min")
                control.value = max(control.min, min(control.max, value)) if inside else value
        self._redraw()

    def resize(self, shape: Sequence[int]) -> None:
        """Let the sliders z, y, x cover a volume of another shape, and go to its middle."""
        with self.hold():
            for axis, size in zip("zyx", shape, strict=True):
                self.controls[axis].max = size - 1
            self.play.max = shape[0] - 1
        self.change(**{axis: size // 2 for axis, size in zip("zyx", shape, strict=True)})

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Let controls change without a new picture."""
        self._quiet = True
        try:
            yield
        finally:
            self._quiet = False

    @contextmanager
    def working(self, task: str) -> Iterator[None]:
        """Tell beside the buttons what is going on, and what went wrong: Jupyter only logs what a callback raises."""
        self.status.value = task
        try:
            yield
        except Exception as error:
            self.status.value = escape(f"{type(error).__name__}: {error}")
            raise

    def _redraw(self, _change: object = None) -> None:
        if self._quiet:
            return
        with self.working("drawing"):  # a new section may have to go through the network first
            self._figure = self._show(self._live)
            self._about.value = escape(json.dumps(_describe(self._figure) | {"keys": list(self._keys)}))
            self.picture.layout.min_width = f"{READABLE * self._figure.bbox.width:.0f}px"
            self.picture.value = to_jpeg(self._figure)
            if self._tell:
                self.readout.value = self._tell(**self.values())
        self._point({"new": self.hover.value})
        self.status.value = ""

    def _act(self, change: dict[str, str]) -> None:
        """Do what happened on the picture since the last time: LISTENER writes the last events with their numbers."""
        values = self.values()
        for number, kind, *what in json.loads(change["new"]):
            if number > self._seen:
                self._seen = number
                values |= self._changes(values, kind, what)
        before = self.values()
        if changes := {name: value for name, value in values.items() if value != before[name]}:
            self.change(**changes)

    def _changes(self, values: dict[str, Any], kind: str, what: list[Any]) -> dict[str, Any]:
        """Return the controls' new values by an event: a key, a click at (right, down), a stroke of a brush."""
        if kind == "key":
            name, step = self._keys[what[0]]
            return {name: step(values[name])}
        points = [point_at(self._figure, *what[i : i + 2]) for i in range(0, len(what), 2)]
        if points[0] is None:
            return {}
        panel, *position = points[0]
        if kind == "click" and set(panel.axes) <= self.controls.keys():
            return dict(zip(panel.axes, position, strict=True))
        if kind == "paint" and panel.brush:
            ends = (at for point in points if point and point[0] is panel for at in point[1:])
            return {"region": json.dumps([*json.loads(values["region"] or "[]"), [panel.brush, *ends]])}
        return {}

    def _point(self, change: dict[str, str]) -> None:
        """Show the values of all panels at the position of the mouse that LISTENER wrote."""
        point = point_at(self._figure, *map(float, change["new"].split())) if change["new"] else None
        text = _values_text(self._figure.panels.values(), *point) if point else self._hint()
        self.values_at.value = escape(text)

    def _hint(self) -> str:
        """Return which keys do what, and whether dragging paints."""
        symbols = {"ArrowUp": "↑", "ArrowDown": "↓", "ArrowLeft": "←", "ArrowRight": "→"}
        keys: dict[str, list[str]] = {}
        for key, (name, _) in self._keys.items():
            keys.setdefault(name, []).append(symbols.get(key, key))
        parts = [f"{' '.join(names)}: {self.controls[name].description}" for name, names in keys.items()]
        text = f"Keys, after a click on the picture: {', '.join(parts)}." if parts else ""
        if any(panel.brush for panel in getattr(self._figure, "panels", {}).values()):
            text = f"Drag on a picture to paint where attention changes. {text}"
        return text

    def _path(self, ending: str = "", of_section: bool = True) -> Path:
        """Return the path of a new file: what was saved before may show the same section with other settings."""
        z = self.values().get("z") if of_section else None
        name = self._name if z is None else f"{self._name}-{z:04}"
        return next(path for name in _numbered(name) if not (path := self._folder / f"{name}{ending}").exists())

    def _save_png(self, _button: widgets.Button) -> None:
        path = self._path(".png")
        with self.working(f"saving {path}"), atomic(path) as part:
            self.draw().savefig(part, dpi=160, format="png")
        self.status.value = f"saved {path}"

    def _save_gif(self, _button: widgets.Button) -> None:
        z, path, canvas = self.controls["z"], self._path(".gif", of_section=False), Canvas()
        self.progress.max, self.progress.layout.visibility = z.max - z.min + 1, "visible"

        def tell(done: int) -> None:
            self.progress.value = done
            self.status.value = f"{done} of {self.progress.max} sections"

        try:
            with self.working(f"saving {path}"):
                save_run(lambda section: self._show(canvas, z=section), range(z.min, z.max + 1), path, tell)
        finally:
            self.progress.layout.visibility = "hidden"
        self.status.value = f"saved {path}"

    def _save_arrays(self, _button: widgets.Button) -> None:
        path = self._path()
        with self.working(f"saving {path}"):
            save_arrays_of(getattr(self.draw(), "panels", {}).values(), self.values(), path)
        self.status.value = f"saved {path}: each array as .npy and .tif, the settings as settings.json"


def _motion_keys(controls: Mapping[str, widgets.Widget]) -> dict[str, tuple[str, Callable[[Any], Any]]]:
    """Return the keys that move through sections and move the point, as far as there are sliders for them."""
    steps = {"z": ("z", 1), "Z": ("z", -1), "ArrowUp": ("y", -1), "ArrowDown": ("y", 1)}
    steps |= {"ArrowLeft": ("x", -1), "ArrowRight": ("x", 1)}

    def move(step: int, slider: widgets.IntSlider) -> Callable[[int], int]:
        return lambda value: max(slider.min, min(slider.max, value + step))

    return {key: (name, move(step, controls[name])) for key, (name, step) in steps.items() if name in controls}


def _describe(figure: Figure) -> dict[str, Any]:
    """Return alt text of a figure, and of its panels [left, top, width, height, plane, radius of the brush].

    All lengths are fractions of the picture's.
    """
    panels = []
    for ax, panel in getattr(figure, "panels", {}).items():
        box = ax.get_position()
        brush = (panel.brush + 0.5) / panel.box.width * box.width if panel.brush else 0
        edges = (round(n, 4) for n in (box.x0, 1 - box.y1, box.width, box.height))
        panels.append([*edges, "".join(panel.axes), round(brush, 5)])
    return {"alt": "; ".join(ax.get_title() for ax in figure.axes if ax.get_title()), "panels": panels}


def _values_text(panels: Sequence[Panel], over: Panel, row: int, column: int) -> str:
    """Return the values that all panels of the plane of `over` have at a raw voxel of it, each quantity once."""
    texts = [panel.values.text(row, column) for panel in panels if panel.values and panel.axes == over.axes]
    where = ", ".join(f"{axis} = {at}" for axis, at in zip(over.axes, (row, column), strict=True))
    return f"Mouse at {where}: " + " · ".join(dict.fromkeys(texts))


def save_run(draw: Callable[[int], Figure], sections: Sequence[int], path: Path, tell: Callable[[int], None]) -> None:
    """Write an animated GIF with one frame for each section; it appears when it is complete.

    Args:
        draw: returns the figure of a section; all figures must have the same size.
        sections: in the order of the frames.
        path: of the file; its folder is made when missing.
        tell: called with the number of frames done after each of them.
    """
    frames = []
    for done, z in enumerate(sections, start=1):
        frames.append(Image.fromarray(_pixels(draw(z))[..., :3]).quantize())
        tell(done)
    with atomic(path) as part:
        frames[0].save(part, "GIF", save_all=True, append_images=frames[1:], duration=1000 // FRAMES, loop=0)


def save_arrays_of(panels: Sequence[Panel], settings: Mapping[str, Any], folder: Path) -> None:
    """Write the numbers that panels show into a folder, which appears when it is complete.

    Each quantity, of the whole section, is `NAME.npy` and `NAME.tif` (with its pixel size and the settings);
    `settings.json` holds the settings and, by name, voxels per pixel and the pixel size.

    Args:
        panels: those without numbers are left out.
        settings: of the controls, by name.
        folder: what an earlier call wrote to it is replaced.

    Raises:
        ValueError: no panel has numbers, or the folder holds other files, which would be deleted.
        OSError: the disk is full or cannot be written; what was there before is untouched.
    """
    shown = {panel.values.name: panel for panel in panels if panel.values}
    arrays = dict(zip(_name_files(shown), shown.values(), strict=True))
    if not arrays:
        raise ValueError("this picture has no panels with numbers to save")
    refuse_to_delete(folder, list_foreign(folder, _SAVED), "arrays saved earlier and other files")
    about = {"settings": dict(settings), "arrays": {}}
    with atomic(folder) as part:
        part.mkdir()
        for name, panel in arrays.items():
            quantity, array, stride = panel.values
            size = [nm * n for nm, n in zip(panel.voxel_size[1:], stride, strict=True)]
            about["arrays"][name] = {"quantity": quantity, "axes": panel.axes, "stride": stride, "pixel_nm": size}
            tiff = _encode_tiff(array, size, {"settings": about["settings"], "quantity": quantity})
            for ending, content in (("npy", _encode_npy(array)), ("tif", tiff)):
                (part / f"{name}.{ending}").write_bytes(content)  # NumPy itself is silent about a full disk
        (part / "settings.json").write_text(json.dumps(about, indent=1, default=str), encoding="utf-8")


def _name_files(quantities: Iterable[str]) -> list[str]:
    """Return a file name for each quantity; two that differ only in signs or in case, as two models may, get numbers.

    >>> _name_files(["lr=0.1: a1", "lr 0.1: a1", "a2"])
    ['lr-0.1-a1', 'lr-0.1-a1-2', 'a2']
    """
    names: list[str] = []
    for quantity in quantities:
        plain, taken = re.sub(r"[^\w.-]+", "-", quantity).strip("-"), {name.casefold() for name in names}
        names.append(next(name for name in _numbered(plain) if name.casefold() not in taken))
    return names


def _numbered(name: str) -> Iterator[str]:
    """Yield a name, and then the same with -2, -3 and so on behind it."""
    return chain([name], (f"{name}-{number}" for number in count(2)))


def _encode_npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


def _encode_tiff(array: np.ndarray, size: Sequence[float], settings: Mapping[str, Any]) -> bytes:
    """Return a section (y, x) or (y, x, channels) as TIFF, with its pixel size in nm and settings as description."""
    array = array.astype(np.float32) if array.dtype.kind == "f" else array  # few programs read 16 bits of a float
    array, file = np.moveaxis(array, -1, 0) if array.ndim == 3 else array, io.BytesIO()
    resolution = {"resolution": (1e7 / size[1], 1e7 / size[0]), "resolutionunit": "CENTIMETER"}
    text = json.dumps(settings, default=str)
    tifffile.imwrite(file, array, photometric="minisblack", description=text, metadata=None, **resolution)
    return file.getvalue()


def _pixels(figure: Figure) -> np.ndarray:
    """Return the picture of a figure at its own size, uint8 (y, x, 4); the last channel means nothing."""
    canvas = figure.canvas if isinstance(figure.canvas, FigureCanvasAgg) else FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())


def to_jpeg(figure: Figure) -> bytes:
    """Return a figure as a JPEG of the figure's own size, at a quality that keeps thin lines and their colours."""
    picture, rgba = io.BytesIO(), _pixels(figure)
    image = Image.frombuffer("RGBX", rgba.shape[1::-1], rgba, "raw", "RGBX", 0, 1)  # as it is, without a copy
    image.save(picture, "JPEG", quality=90, subsampling=0)
    return picture.getvalue()


def explore(draw: Callable[..., Picture], **controls: widgets.Widget) -> Explorer:
    """Return controls above the picture that `draw` makes of their values, redrawn whenever a value changes.

    `explore(lambda z: plot(volume, z), z=IntSlider(0, 0, 9))` draws section 0 and follows the slider.

    Args:
        draw: called with the value of each control under its name; returns a figure, or the panels for one.
        controls: the widgets, in the order they are shown.
    """
    return Explorer(draw, controls)
