"""What the attention explorer shows: a scene and the controls' values become rows of panels and a table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from html import escape

import numpy as np
from PIL import Image, ImageDraw

from fgnet_lib.probing import Inspected, Inspector, WhatIf
from fgnet_lib.sam2_encoder import STRIDES
from fgnet_lib.views.feature_maps import cosine_similarity
from fgnet_lib.views.panels import (
    Box,
    ColorScale,
    Panel,
    Stride,
    Values,
    blend,
    enlarge,
    grey,
    interpolate,
    outlines,
    zoom_box,
)
from fgnet_lib.volumes import Volume

LEVELS = {"a1": (1,), "a2": (2,), "a3": (3,), "all": (1, 2, 3)}
WHAT_IF = {"as it is": None, "0": 0.0, "1": 1.0, "mean": "mean"}
AXES = "zyx"  # the order of the affinities' channels
FLATTEST = 0.2  # height of a plane xz divided by its width; volumes of few sections are stretched along z
DIFFERENCES = "PuOr"  # colours of what may be above or below 0


@dataclass(frozen=True)
class Scene:
    """What is explored.

    Attributes:
        volume: raw in memory.
        inspectors: of each model by its name.
        quantiles: a map (a model's name for its encoder's response, None for attention; level) -> its values at the
            percentiles 0, 1, ..., 100 in the middle section, so that colours compare along z.
        outlined: a name that the control `outlines` may take -> labels (z, y, x), or None.
    """

    volume: Volume
    inspectors: Mapping[str, Inspector]
    quantiles: Mapping[tuple[str | None, int], np.ndarray]
    outlined: Mapping[str, np.ndarray | None]

    @classmethod
    def of(cls, volume: Volume, inspectors: Mapping[str, Inspector], prediction: np.ndarray | None) -> Scene:
        """Return the scene of a volume, whose middle section is computed, with what there is to outline."""
        middle = {name: inspector.section(volume.shape[0] // 2) for name, inspector in inspectors.items()}
        labels = {"nothing": None, "ground truth": volume.labels, "prediction": prediction}
        outlined = {name: ids for name, ids in labels.items() if name == "nothing" or ids is not None}
        return cls(volume, inspectors, _quantiles(middle), outlined)


def _quantiles(sections: Mapping[str, Inspected]) -> dict[tuple[str | None, int], np.ndarray]:
    """Return the quantiles of a scene from one section of each model; attention is taken together over all models."""
    ranges: dict[tuple[str | None, int], np.ndarray] = {}
    steps = np.arange(101)
    for i in range(len(STRIDES)):
        maps = [section.attention[i].ravel() for section in sections.values() if section.attention]
        ranges[None, i + 1] = np.percentile(np.concatenate(maps), steps) if maps else steps / 100
        for name, section in sections.items():
            response = section.response[i] if section.response else steps / 100
            ranges[name, i + 1] = np.percentile(response, steps)
    return ranges


@dataclass(frozen=True)
class Settings:
    """The values of the attention explorer's controls.

    Attributes:
        z: section.
        plane: "xy" for the section, "xz" for the cut through all sections at the point's y.
        level: a key of `LEVELS`.
        outlines: a key of the scene's `outlined`.
        what_if: a key of `WHAT_IF`: what the attention of this level is set to.
        region: where it is set, in every section: strokes as `paint` takes them; empty for everywhere.
        brush: radius in voxels of the brush that paints the region.
        flip: the affinity ("z", "y", "x") whose gradient for attention is shown, or "nothing".
        opacity: of attention over the section.
        colors: matplotlib's name of the colour map for attention.
        ranks: whether colours show ranks among the values of the middle section, instead of values.
        span: percentiles of the middle section that are shown darkest and brightest.
        gamma: exponent of the colours; below 1 it spreads the low values.
        smooth: whether maps are interpolated between the middles of their pixels.
        zoom: how many times the section is enlarged.
        y, x: the point, in raw voxels.
    """

    z: int
    plane: str
    level: str
    outlines: str
    what_if: str
    region: str
    brush: int
    flip: str
    opacity: float
    colors: str
    ranks: bool
    span: tuple[float, float]
    gamma: float
    smooth: bool
    zoom: int
    y: int
    x: int

    def question(self, shape: Sequence[int]) -> WhatIf | None:
        """Return what attention is set to, for an `Inspector`, or None."""
        if self.what_if == "as it is":
            return None
        region = paint(self.region, tuple(shape))
        bits = None if region is None else np.packbits(region).tobytes()
        return WhatIf(LEVELS[self.level], WHAT_IF[self.what_if], bits)


@lru_cache(maxsize=8)
def paint(strokes: str, shape: tuple[int, int]) -> np.ndarray | None:
    """Return the voxels, bool (y, x), of a section that a round brush went over, or None for no stroke.

    >>> paint("[[1, 1, 1, 1, 3]]", (4, 6)).astype(int)
    array([[0, 1, 1, 1, 0, 0],
           [1, 1, 1, 1, 1, 0],
           [0, 1, 1, 1, 0, 0],
           [0, 0, 0, 0, 0, 0]])

    Args:
        strokes: JSON: a list with [radius, y, x, y, x, ...] for each stroke, in voxels; empty for no stroke.
        shape: of the section (y, x).

    Raises:
        ValueError: another text.
    """
    if not strokes:
        return None
    image = Image.new("L", shape[::-1])
    pen = ImageDraw.Draw(image)
    try:
        for radius, *numbers in json.loads(strokes):
            points = list(zip(numbers[1::2], numbers[::2], strict=True))  # Pillow counts x first
            pen.line(points, 1, 2 * radius + 1)
            for x, y in points:
                pen.ellipse((x - radius, y - radius, x + radius, y + radius), 1)
    except (TypeError, ValueError):
        raise ValueError(f"region is {strokes!r}; write a JSON list with [radius, y, x, y, x, ...] a stroke") from None
    return np.asarray(image) > 0


def attention_panels(scene: Scene, settings: Settings) -> list[list[Panel]]:
    """Return a row of panels for each model, and of two models a third row: the first minus the second.

    A row has the EM and the attention. For a single level, the guide's similarity to the point and the Fine-Grained
    Encoder's response follow; with attention set to a value, the affinities that follow and their change; with `flip`,
    the gradient of an affinity at the point. The plane xz has the EM and the attention alone, one below the other.
    """
    rows = _Picture(scene, settings).rows()
    return rows if settings.plane == "xy" else [[panel] for row in rows for panel in row]


class _Picture:
    """The panels of a scene in one plane, as the settings ask for them."""

    def __init__(self, scene: Scene, settings: Settings) -> None:
        self.scene, self.settings = scene, settings
        self.flat = settings.plane == "xy"
        self.question = settings.question(scene.volume.shape[1:])
        depth, *shape = scene.volume.shape
        box, size = zoom_box(shape, settings.y, settings.x, settings.zoom), scene.volume.voxel_size
        if self.flat:
            self.shared = {"box": box, "voxel_size": size, "cross": (settings.y, settings.x)}
            if self.question is not None:  # only what is set to a value can be set in a region
                self.shared |= {"region": paint(settings.region, tuple(shape)), "brush": settings.brush}
        else:
            box, size = Box(0, box.left, depth, box.width), (size[1], size[0], size[2])
            stretch = max(1, round(FLATTEST * box.width * size[2] / (box.height * size[1])))
            self.shared = {"box": box, "voxel_size": size, "cross": (settings.z, settings.x), "axes": ("z", "x")}
            self.shared |= {"stretch": stretch}
        self.box = box
        self.raw = grey(box.cut(self.cut(scene.volume.raw)))
        labels = scene.outlined[settings.outlines]
        self.edges = None if labels is None else outlines(box.cut(self.cut(labels)))

    def cut(self, array: np.ndarray, stride: int = 1) -> np.ndarray:
        """Return the plane of an array (z, y / stride, x / stride)."""
        return array[self.settings.z] if self.flat else array[:, self.settings.y // stride]

    def stride(self, level: int) -> Stride:
        """Return the voxels per pixel of a level's maps in the plane."""
        stride = STRIDES[level - 1]
        return (stride if self.flat else 1), stride

    def rows(self) -> list[list[Panel]]:
        """Return the panels of all models."""
        rows = [self._row(name, inspector) for name, inspector in self.scene.inspectors.items()]
        return [*rows, self._difference_row(rows)] if len(rows) == 2 else rows

    def _row(self, name: str, inspector: Inspector) -> list[Panel]:
        settings, levels = self.settings, LEVELS[self.settings.level]
        where = f"z = {settings.z}" if self.flat else f"y = {settings.y}"
        if (stretch := self.shared.get("stretch", 1)) > 1:
            where += f", z stretched {stretch} times"
        em = Values("EM", self.cut(self.scene.volume.raw))
        row = [Panel(f"{name or 'EM'}, {where}", self._outline(self.raw), values=em, **self.shared)]
        asked = self.flat and (settings.flip != "nothing" or self.question is not None)
        if len(levels) == 1 or not asked:  # three maps and what was asked for would leave no room for any
            row += [self._attention(name, inspector, level) for level in levels]
        if asked:
            follow = self._gradients if settings.flip != "nothing" else self._consequences
            return row + follow(name, inspector)
        return row + (self._answers(name, inspector) if self.flat and len(levels) == 1 else [])

    def _outline(self, image: np.ndarray) -> np.ndarray:
        """Return colours of the box with the chosen outlines over them."""
        if self.edges is None:
            return image
        image, (edge, colors) = image.copy(), self.edges
        image[edge] = colors
        return image

    def _map(self, title: str, values: Values, scale: ColorScale) -> Panel:
        """Return the panel of a map."""
        image, stride = scale.rgb(self.box.cut(values.array, values.stride)), values.stride
        if self.settings.smooth:
            image, stride = scale.rgb(interpolate(values.array, self.box, values.stride)), (1, 1)
        return Panel(title, image, stride=stride, scale=scale, values=values, **self.shared)

    def _blank(self, title: str, scale: ColorScale) -> Panel:
        """Return the panel for a map that a model does not have."""
        size = self.cut(self.scene.volume.raw).shape  # a single grey pixel covers all of the plane
        return Panel(title, np.full((1, 1, 3), 127, np.uint8), stride=size, scale=scale, **self.shared)

    def _attention(self, name: str, inspector: Inspector, level: int) -> Panel:
        """Return the panel of an attention map over the EM."""
        settings, quantiles = self.settings, self.scene.quantiles[None, level]
        low, high = np.array(settings.span) / 100 if settings.ranks else np.interp(settings.span, range(101), quantiles)
        label = f"rank of $a_{level}$" if settings.ranks else f"attention $a_{level}$"
        scale = ColorScale(label, float(low), float(max(high, low + 1e-6)), settings.colors, settings.gamma)
        if self.flat:
            maps = inspector.section(settings.z, self.question).attention
        else:
            maps = tuple(
                self.cut(array, s) for array, s in zip(inspector.attention(self.question), STRIDES, strict=False)
            )
        if not maps:
            return self._blank("no attention", scale)
        values, stride = maps[level - 1], self.stride(level)
        shown = np.interp(values, quantiles, np.linspace(0, 1, 101)) if settings.ranks else values
        if settings.smooth:
            over = scale.rgb(interpolate(shown, self.box, stride))
        else:
            over = enlarge(scale.rgb(self.box.cut(shown, stride)), self.box, stride)
        image = self._outline(blend(self.raw, over, settings.opacity))
        title = f"a{level}" if self.question is None else f"a{level} = {settings.what_if}"
        return Panel(title, image, scale=scale, values=Values(_join(name, f"a{level}"), values, stride), **self.shared)

    def _answers(self, name: str, inspector: Inspector) -> list[Panel]:
        """Return the panels of the guide's similarity to the point and of how strongly the encoder responds."""
        (level,), section = LEVELS[self.settings.level], inspector.section(self.settings.z)
        stride, (low, high) = STRIDES[level - 1], self.scene.quantiles[name, level][[1, 99]]
        similarity = ColorScale("cosine similarity", -1, 1, "viridis")
        strength = ColorScale("length of $F'$", float(low), float(max(high, low + 0.01)), "magma")
        at = self.settings.y // stride, self.settings.x // stride
        similar = cosine_similarity(section.sam2[level - 1], *at) if section.sam2 else None
        maps = (
            (similar, similarity, "similarity", f"guide, stride {stride}"),
            (
                section.response[level - 1] if section.response else None,
                strength,
                f"|F'{level}|",
                f"FGE, stride {stride}",
            ),
        )
        return [
            self._blank(f"no {title}", scale)
            if array is None
            else self._map(title, Values(_join(name, quantity), array, (stride, stride)), scale)
            for array, scale, quantity, title in maps
        ]

    def _consequences(self, name: str, inspector: Inspector) -> list[Panel]:
        """Return the panels of the affinities that follow from a changed attention, and of their change."""
        before, after = (inspector.section(self.settings.z, question).affinities for question in (None, self.question))
        change = Values(_join(name, "change of A_r"), (after - before).mean(0))
        after = np.moveaxis(after, 0, -1)
        image = (self.box.cut(after) * 255).astype(np.uint8)
        follows = Panel("$A_r$ that follows", image, values=Values(_join(name, "A_r"), after), **self.shared)
        return [follows, self._map("its change", change, _both_ways("mean of z, y, x", change.array))]

    def _gradients(self, name: str, inspector: Inspector) -> list[Panel]:
        """Return the panels of how the affinity at the point answers to attention."""
        settings, flip = self.settings, self.settings.flip
        maps = inspector.gradient(AXES.index(flip), settings.z, settings.y, settings.x).maps
        panels = []
        for level in LEVELS[settings.level]:
            array = maps[level - 1] if maps else np.zeros((1, 1))
            scale = _both_ways(f"of $A_{flip}$'s logit", array)
            values = Values(_join(name, f"gradient of a{level}"), array, self.stride(level))
            panels.append(
                self._map(f"gradient, $a_{level}$", values, scale) if maps else self._blank("no attention", scale)
            )
        return panels

    def _difference_row(self, rows: Sequence[Sequence[Panel]]) -> list[Panel]:
        """Return the panels of two rows' difference; in place of that of the EM, A_r's, which the plane xz has not."""
        first, second = self.scene.inspectors
        differences = [
            self._difference(panel.title, panel.values, other.values) for panel, other in zip(*rows, strict=True)
        ]
        if self.flat:
            maps = (inspector.section(self.settings.z, self.question) for inspector in self.scene.inspectors.values())
            refined = (Values("A_r", np.moveaxis(section.affinities, 0, -1)) for section in maps)
            differences[0] = self._difference("$A_r$", *refined)
        else:
            del differences[0]
        return [replace(differences[0], title=f"{first} - {second}: {differences[0].title}"), *differences[1:]]

    def _difference(self, title: str, values: Values | None, other: Values | None) -> Panel:
        """Return the panel of the difference of two maps, averaged over channels, if there are both."""
        if values is None or other is None or values.array.shape != other.array.shape:
            return self._blank("no difference", ColorScale("difference", -1, 1, DIFFERENCES))
        array = np.subtract(values.array, other.array, dtype=np.float32)
        array = array.mean(-1) if array.ndim == 3 else array
        quantity = f"difference of {values.name.partition(': ')[2] or values.name}"
        return self._map(title, Values(quantity, array, values.stride), _both_ways("difference", array))


def _join(name: str, quantity: str) -> str:
    return f"{name}: {quantity}" if name else quantity


def _both_ways(label: str, array: np.ndarray) -> ColorScale:
    """Return a scale around 0 whose ends are 1, 2 or 5 times a power of ten, so that they stay for similar maps."""
    step = 1 if array.size < 2**16 else 4  # a sixteenth of the voxels of a section says the same, and quicker
    largest = max(float(np.percentile(np.abs(array[::step, ::step]), 99.5)), 1e-6)
    power = 10.0 ** np.floor(np.log10(largest))
    end = next(step * power for step in (1, 2, 5, 10) if step * power >= largest)
    return ColorScale(label, -end, end, DIFFERENCES)


def attention_readout(scene: Scene, settings: Settings) -> str:
    """Return HTML of attention and response at the point, of the change of A_r, and of what would flip an affinity."""
    question, z, y, x = settings.question(scene.volume.shape[1:]), settings.z, settings.y, settings.x
    lines = []
    for name, inspector in scene.inspectors.items():
        plain, cells = inspector.section(z), [name]
        for maps in (plain.attention, plain.response):
            cells += [f"{array[y // s, x // s]:.3f}" for array, s in zip(maps, STRIDES, strict=False)] or ["-"] * 3
        if question is None:
            cells.append("-")
        else:
            before, after = plain.affinities, inspector.section(z, question).affinities
            flipped = np.count_nonzero((after > 0.5) != (before > 0.5)) / after.size
            cells.append(f"{np.abs(after - before).mean():.3f} on average; {flipped:.1%} cross 0.5")
        lines.append(cells)
    heads = ["", *(f"a{i}" for i in (1, 2, 3)), *(f"|F'{i}|" for i in (1, 2, 3)), "change of A_r in the section"]
    text = f"At z = {z}, y = {y}, x = {x}:" + html_table([heads, *lines])
    return text if settings.flip == "nothing" else text + _flip_readout(scene, settings)


def _flip_readout(scene: Scene, settings: Settings) -> str:
    """Return HTML of how far each map would have to move, everywhere alike, to take the affinity across 0.5."""
    at = settings.z, settings.y, settings.x
    lines = [["", "A_r now", *(f"a{i}" for i in (1, 2, 3))]]
    for name, inspector in scene.inspectors.items():
        logit, _, sums = inspector.gradient(AXES.index(settings.flip), *at)
        moves = [_move(logit, total) for total in sums] or ["-"] * 3
        lines.append([name, f"{1 / (1 + np.exp(-logit)):.3f}", *moves])
    head = (
        f"To take the {settings.flip} affinity of this voxel across 0.5, a map would have to change everywhere by "
        "about this much, to first order:"
    )
    return head + html_table(lines)


def _move(logit: float, total: float) -> str:
    """Return the change of a whole map that takes a logit to 0, if its sum of gradients is `total`."""
    if not total:
        return "-"
    move = -logit / total
    return f"{move:+.3g}" if abs(move) <= 1 else f"{move:+.3g} (out of reach)"  # weights lie in [0, 1]


def html_table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows of texts as an HTML table."""
    cells = ("".join(f"<td style='padding: 0 1em 0 0'>{escape(cell)}</td>" for cell in row) for row in rows)
    return f"<table>{''.join(f'<tr>{row}</tr>' for row in cells)}</table>"
