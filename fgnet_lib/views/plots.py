"""Figures of the lessons: one style, colours that stay with a neuron, scale bars in nm, physical aspect.

Functions draw on the axes they are given and return them; functions that need several axes return a new figure. They
show what was computed elsewhere. Arrays are (z, y, x), and a function that draws a section takes a section (y, x) or a
volume with `z` (its middle section if `z` is not given)::

    figure, ax = plt.subplots()
    plots.show_section(ax, volume.raw, volume.labels, volume.voxel_size, z=10, title="section 10")
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LightSource, to_rgb
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from mpl_toolkits.axes_grid1.anchored_artists import AnchoredSizeBar
from mpl_toolkits.mplot3d import Axes3D
from mpl_toolkits.mplot3d.art3d import Poly3DCollection
from mpl_toolkits.mplot3d.proj3d import proj_transform
from skimage.color import rgb2lab

from fgnet_lib.views.feature_maps import stretch
from fgnet_lib.volumes import IGNORE, Lazy

TEXT = 12.5  # points; a figure 15 inches wide is shrunk to 11 points on a slide of 13.3 inches
GAP = 6  # voxels without an id, over which two ids are neighbours still
FAR = 60  # between two colours, in CIELAB with half the lightness; beyond it all are equally good
WARM = "afmhot"  # attention; the viewer's shader is the same ramp, so both show a weight in the same colour
# Okabe and Ito's colour-blind safe hues, each in five lightnesses: neighbours differ in hue or in lightness.
HUES = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7")
SPLIT, MERGE = HUES[1], HUES[5]
_PALETTE = np.array(
    [np.array(to_rgb(hue)) * (1 - abs(mix)) + max(mix, 0) for mix in (0, 0.3, -0.25, 0.55, -0.45) for hue in HUES]
)


STYLE = {
    "font.size": TEXT,
    "axes.titlesize": 13,
    "axes.labelsize": 13,
    "legend.fontsize": TEXT,
    "legend.title_fontsize": TEXT,
    "xtick.labelsize": TEXT,
    "ytick.labelsize": TEXT,
    "figure.titlesize": 14,
    "figure.dpi": 80,
    "savefig.bbox": "tight",
    "figure.constrained_layout.use": True,
    "axes.prop_cycle": plt.cycler(color=[HUES[i] for i in (4, 5, 2, 6, 0, 1)]),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "image.cmap": "gray",
    "image.interpolation": "nearest",
}


def style() -> None:
    """Make `STYLE` matplotlib's default for every figure of a lesson; `start_session` calls it."""
    plt.rcParams.update(STYLE)


def label_colors(labels: np.ndarray) -> np.ndarray:
    """Return the colour of each id: an id has the same colour in every figure and in the 3D views.

    Args:
        labels: ids of any integer type and shape.

    Returns:
        float (..., 4), RGBA; 0 and IGNORE are transparent black.
    """
    ids = np.asarray(labels).astype(np.uint64)
    with np.errstate(over="ignore"):  # multiplying by 2^64 / golden ratio spreads neighbouring ids over the palette
        mixed = (ids ^ (ids >> np.uint64(31))) * np.uint64(0x9E3779B97F4A7C15)
    index = (mixed >> np.uint64(32)) * np.uint64(len(_PALETTE)) >> np.uint64(32)
    index = np.where((ids == 0) | (ids == IGNORE), len(_PALETTE), index).astype(np.intp)
    return np.vstack([np.insert(_PALETTE, 3, 1, axis=1), np.zeros(4)]).take(index, axis=0)


def neighbour_colors(
    labels: np.ndarray, first: Sequence[int] = (), fixed: Mapping[int, np.ndarray] | None = None
) -> dict[int, np.ndarray]:
    """Return a colour for each id of `labels`, far from the colours of all ids that touch it or nearly do.

    Colours are given one by one, each as far as possible from those of its neighbours that have one; an id with few
    neighbours comes late, when it cannot get in another's way. Time grows with the number of ids and contacts.

    Args:
        labels: ids (z, y, x), (y, x), or a mere list of ids; 0 and IGNORE get no colour.
        first: ids to draw together, whose colours all differ, as far as the palette goes (35 colours).
        fixed: id -> RGB, colours that are settled.

    Returns:
        id -> RGB (3,), in [0, 1].
    """
    ids, index = np.unique(labels, return_inverse=True)
    near = _touching(index.reshape(labels.shape), np.isin(ids, (0, IGNORE)))
    number = {i: k for k, i in enumerate(ids.tolist()) if i not in (0, IGNORE)}
    settled = {number[i]: np.asarray(color, float)[:3] for i, color in (fixed or {}).items() if i in number}
    palette = np.vstack([_PALETTE, *settled.values()])
    lab = rgb2lab(palette) * (0.5, 1, 1)  # a tint on grey tissue differs in hue more than in lightness
    apart = np.linalg.norm(lab[: len(_PALETTE), None] - lab, axis=2)
    chosen = np.full(len(ids), -1)  # rows of the palette
    chosen[list(settled)] = np.arange(len(_PALETTE), len(palette))
    together = {number[i]: None for i in first}  # in their order
    unused = apart[:, chosen[list(settled)]].min(axis=1, initial=2 * FAR)  # how far from the colours in use
    uses = np.zeros(len(apart))
    for k in (*together, *_smallest_last(near)):
        if chosen[k] < 0 and ids[k] not in (0, IGNORE):
            others = chosen if k in together else chosen[near[k]]
            gap = apart[:, others[others >= 0]].min(axis=1, initial=FAR)
            chosen[k] = np.argmax(gap + 0.1 * unused - 1e-6 * uses)
            unused = np.minimum(unused, apart[:, chosen[k]])
            uses[chosen[k]] += 1
    return {i: palette[chosen[k]] for i, k in number.items()}


def _smallest_last(near: list[np.ndarray]) -> list[int]:
    """Return the nodes of a graph, given by their neighbours, so that each comes after as few neighbours as possible.

    The node with the fewest neighbours comes last; then the same holds for the rest of the graph, and so on.
    """
    degree = [len(others) for others in near]
    heap = [(count, k) for k, count in enumerate(degree)]
    heapq.heapify(heap)
    order = []
    while heap:
        count, k = heapq.heappop(heap)
        if count == degree[k]:  # else there is a newer entry
            degree[k] = -1
            order.append(k)
            for other in near[k].tolist():
                if degree[other] > 0:
                    degree[other] -= 1
                    heapq.heappush(heap, (degree[other], other))
    return order[::-1]


def _touching(index: np.ndarray, empty: np.ndarray) -> list[np.ndarray]:
    """Return for each id, numbered from 0, those that share a face with it, or face it across a gap of `GAP` voxels.

    Args:
        index: Numbers of ids.
        empty: Whether an id is none, (ids,): ground truth often leaves membranes unlabelled.
    """
    n, pairs = len(empty), []
    for axis in range(index.ndim):
        line = np.moveaxis(index, axis, 0)
        gap, between = empty[line], np.ones_like(line[1:], bool)
        for step in range(1, 2 + GAP if empty.any() else 2):
            after, before = line[step:], line[:-step]
            border = between & (after != before)
            pairs += [after[border] * n + before[border], before[border] * n + after[border]]
            between = between[:-1] & gap[step:-1]
    row, column = np.divmod(np.unique(np.concatenate(pairs)), n)
    return np.split(column, np.searchsorted(row, np.arange(1, n)))


def matched_colors(
    segmentation: np.ndarray, truth: np.ndarray, colors: Mapping[int, np.ndarray]
) -> dict[int, np.ndarray]:
    """Return a colour for each segment: of all segments, the one that covers most of a neuron takes its colour.

    A segment that covers most of several neurons takes the colour of the one with most of its voxels. What is split off
    gets a colour that differs from those of all segments that touch it.

    Args:
        segmentation: ids (z, y, x).
        truth: ids of the same shape.
        colors: id of the truth -> RGB, as `neighbour_colors` returns them.
    """
    (segments, segment), (neurons, neuron) = (np.unique(ids, return_inverse=True) for ids in (segmentation, truth))
    pairs, voxels = np.unique(segment.ravel() * len(neurons) + neuron.ravel(), return_counts=True)
    rows, columns = np.divmod(pairs[np.argsort(-voxels, kind="stable")], len(neurons))
    fixed: dict[int, np.ndarray] = {}
    taken = set()
    for segment, neuron in zip(segments[rows].tolist(), neurons[columns].tolist(), strict=True):
        if neuron in colors and neuron not in taken and segment not in (0, IGNORE):
            taken.add(neuron)
            fixed.setdefault(segment, colors[neuron])
    return neighbour_colors(segmentation, fixed=fixed)


def label_overlay(section: np.ndarray, fill: float, colors: Mapping[int, np.ndarray] | None = None) -> np.ndarray:
    """Return the colours (y, x, 4) of a section's ids (y, x): opaque outlines around an inside of opacity `fill`.

    Args:
        section: ids.
        fill: opacity.
        colors: id -> RGB; ids without a colour stay clear. If it is None, `label_colors` colours them.
    """
    if colors is None:
        rgba = label_colors(section)
    else:
        ids, index = np.unique(section, return_inverse=True)
        rgba = np.array([(*colors[i], 1) if i in colors else (0, 0, 0, 0) for i in ids.tolist()], float)[index]
        rgba = rgba.reshape(*section.shape, 4)
    rgba[..., 3] *= np.where(label_edges(section) & (section != 0), 1, fill)
    return rgba


def label_edges(labels: np.ndarray) -> np.ndarray:
    """Return the voxels, bool (y, x), of which a neighbour along y or x has another id.

    They are those of skimage's `find_boundaries`, which takes two ids above 2^53 for one where they round alike.
    """
    edge = np.zeros(labels.shape, bool)
    for ids, ends in ((labels, edge), (labels.T, edge.T)):
        steps = ids[1:] != ids[:-1]
        ends[1:] |= steps
        ends[:-1] |= steps
    return edge


def _section(array: np.ndarray | Lazy, z: int | None, ndim: int = 3) -> np.ndarray:
    """Return section `z` (default: the middle) of an array that has a z axis at -3, else the array itself."""
    if len(array.shape) < ndim:
        return np.asarray(array)
    z = array.shape[-3] // 2 if z is None else z
    return np.asarray(array[..., z, :, :])


def scale_bar(ax: Axes, voxel_size: Sequence[float]) -> Axes:
    """Draw a bar of 1, 2 or 5 times a power of ten nm, at most a third of the axes wide.

    Args:
        ax: axes whose x axis counts voxels.
        voxel_size: nm, its last two entries along the vertical and the horizontal axis shown.
    """
    left, right = ax.get_xlim()
    room = abs(right - left) * voxel_size[-1] / 3
    power = 10.0 ** np.floor(np.log10(room))
    nm = max(step * power for step in (1, 2, 5) if step * power <= room)
    bar = AnchoredSizeBar(
        ax.transData,
        nm / voxel_size[-1],
        f"{nm:g} nm",
        "lower right",
        pad=0.3,
        sep=3,
        color="white",
        size_vertical=room / voxel_size[-2] / 30,
        fontproperties={"size": TEXT},
    )
    bar.patch.set(facecolor="black", alpha=0.6, linewidth=0)
    ax.add_artist(bar)
    return ax


def frame(ax: Axes, voxel_size: Sequence[float], title: str = "") -> Axes:
    """Make axes that count voxels look like a section: physical aspect, and a scale bar instead of ticks.

    Args:
        ax: axes whose limits are set.
        voxel_size: nm, its last two entries along the vertical and the horizontal axis shown.
        title: of the axes.
    """
    ax.set(title=title, xticks=[], yticks=[], aspect=voxel_size[-2] / voxel_size[-1])
    ax.spines[:].set_visible(False)
    return scale_bar(ax, voxel_size)


def color_legend(ax: Axes, colors: Mapping[str, str], title: str | None = None) -> Axes:
    """Add a legend under the axes: name -> colour."""
    ax.legend(
        handles=[Patch(color=color, label=name) for name, color in colors.items()],
        title=title,
        ncols=len(colors),
        loc="upper center",
        bbox_to_anchor=(0.5, 0),
        frameon=False,
        handlelength=1,
    )
    return ax


def _image(
    ax: Axes, image: np.ndarray, voxel_size: Sequence[float], title: str, stride: int = 1, **imshow: Any
) -> AxesImage:
    """Show a section at `stride` in the coordinates of the raw voxels, physical aspect, scale bar instead of ticks."""
    height, width = (stride * n for n in image.shape[:2])
    picture = ax.imshow(image, extent=(-0.5, width - 0.5, height - 0.5, -0.5), **imshow)
    frame(ax, voxel_size, title)
    return picture


def show_section(
    ax: Axes,
    raw: np.ndarray | Lazy,
    labels: np.ndarray | Lazy | None = None,
    voxel_size: Sequence[float] = (1, 1, 1),
    z: int | None = None,
    title: str = "",
    fill: float = 0.35,
    colors: Mapping[int, np.ndarray] | None = None,
) -> Axes:
    """Show one EM section, with labels laid over it.

    Args:
        ax: axes to draw on.
        raw: uint8 (y, x) or (z, y, x).
        labels: ids of the same shape, or None.
        voxel_size: nm (z, y, x).
        z: section to show of a volume.
        title: of the axes.
        fill: opacity of the labels; 0 draws their outlines alone.
        colors: of the labels, as in `label_overlay`.
    """
    _image(ax, _section(raw, z), voxel_size, title, cmap="gray", vmin=0, vmax=255)
    return ax if labels is None else show_labels(ax, _section(labels, z), fill=fill, colors=colors)


def show_labels(
    ax: Axes,
    labels: np.ndarray,
    z: int | None = None,
    fill: float = 0.35,
    colors: Mapping[int, np.ndarray] | None = None,
) -> Axes:
    """Lay labels (y, x) or (z, y, x) over the section that `ax` shows: outlines, filled with opacity `fill`."""
    ax.imshow(label_overlay(_section(labels, z), fill, colors), aspect=ax.get_aspect())
    return ax


def show_affinities(
    ax: Axes, affinities: np.ndarray, voxel_size: Sequence[float] = (1, 1, 1), z: int | None = None, title: str = ""
) -> Axes:
    """Show affinities (3, y, x) or (3, z, y, x) in [0, 1] as red (z), green (y), blue (x): white joins, dark parts."""
    rgb = np.moveaxis(_section(affinities, z, ndim=4), 0, -1)
    _image(ax, np.clip(rgb, 0, 1).astype(np.float32), voxel_size, title)
    return color_legend(ax, {"z": "red", "y": "lime", "x": "blue"}, "joined along")


def display_range(values: np.ndarray) -> tuple[float, float]:
    """Return the values to show darkest and brightest: the 1st and 99th percentile, at least 0.01 apart."""
    low, high = np.percentile(values, (1, 99))
    return float(low), float(max(high, low + 0.01))


def orthogonal_views(
    raw: np.ndarray,
    voxel_size: Sequence[float],
    labels: np.ndarray | None = None,
    at: Sequence[int] | None = None,
    colors: Mapping[int, np.ndarray] | None = None,
) -> Figure:
    """Show the xy, xz and yz planes through voxel `at` (z, y, x; default: the middle), lengths to scale.

    Returns:
        The figure; its axes are xy, yz (z runs right), xz (z runs down).
    """
    z, y, x = at if at is not None else [n // 2 for n in raw.shape]
    depth, height, width = (n * size for n, size in zip(raw.shape, voxel_size, strict=True))
    scale = 7 / (width + depth)
    figure, axes = plt.subplots(
        2,
        2,
        width_ratios=(width, depth),
        height_ratios=(height, depth),
        figsize=(scale * (width + depth) + 0.5, scale * (height + depth) + 1),
    )
    (vz, vy, vx), (xy, yz), (xz, corner) = voxel_size, *axes
    corner.remove()
    views = (
        (xy, lambda a: a[z], (vy, vx), (x, y), f"xy, z = {z}"),
        (yz, lambda a: a[:, :, x].T, (vy, vz), (z, y), f"yz, x = {x}"),
        (xz, lambda a: a[:, y], (vz, vx), (x, z), f"xz, y = {y}"),
    )
    for ax, cut, size, cross, title in views:
        show_section(ax, cut(raw), None if labels is None else cut(labels), size, title=title, colors=colors)
        ax.axvline(cross[0], color="white", lw=0.8, ls=":")
        ax.axhline(cross[1], color="white", lw=0.8, ls=":")
        if cross[0] > 0.6 * ax.get_xlim()[1] and cross[1] > 0.8 * ax.get_ylim()[0]:
            bar = next(artist for artist in ax.artists if isinstance(artist, AnchoredSizeBar))
            bar.loc = bar.codes["lower left"]  # not on the cross
    return figure


def error_map(
    ax: Axes,
    raw: np.ndarray,
    splits: np.ndarray,
    merges: np.ndarray,
    voxel_size: Sequence[float] = (1, 1, 1),
    z: int | None = None,
    title: str = "",
) -> Axes:
    """Mark wrongly split and wrongly merged voxels (bool, of raw's shape) on a section."""
    show_section(ax, raw, None, voxel_size, z, title)
    for mask, color in ((splits, SPLIT), (merges, MERGE)):
        ax.imshow(np.where(_section(mask, z)[..., None], (*to_rgb(color), 0.6), 0), aspect=ax.get_aspect())
    return color_legend(ax, {"split": SPLIT, "merge": MERGE})


def pca_rgb(
    ax: Axes, components: np.ndarray, stride: int = 1, voxel_size: Sequence[float] = (1, 1, 1), title: str = ""
) -> Axes:
    """Show three principal components (y, x, 3) at `stride` as colours, stretched by `feature_maps.stretch`."""
    _image(ax, stretch(components), voxel_size, title, stride)
    return ax


def show_similarity(
    ax: Axes,
    similarity: np.ndarray,
    stride: int = 1,
    voxel_size: Sequence[float] = (1, 1, 1),
    title: str = "",
    colorbar: bool = True,
) -> Axes:
    """Show cosine similarities (y, x) in [-1, 1] at `stride`."""
    picture = _image(ax, similarity, voxel_size, title, stride, cmap="viridis", vmin=-1, vmax=1)
    if colorbar:
        ax.figure.colorbar(picture, ax=ax, label="cosine similarity", shrink=0.8)
    return ax


def neurons_3d(
    ax: Axes3D,
    meshes: Mapping[int, tuple[np.ndarray, np.ndarray]],
    title: str = "",
    colors: Mapping[int, np.ndarray] | None = None,
) -> Axes3D:
    """Draw closed meshes on 3D axes, with lengths to scale, shaded as the axes are seen now.

    Args:
        ax: axes of `projection="3d"`.
        meshes: id -> (vertices in nm (n, 3) z, y, x; triangles (m, 3)), as `meshes.neuron_meshes` returns them.
        title: of the axes.
        colors: id -> RGB; if it is None, `label_colors` colours the ids.
    """
    rgb = {neuron: label_colors(np.array(neuron))[:3] if colors is None else colors[neuron] for neuron in meshes}
    azimuth, elevation = np.radians((ax.azim, ax.elev))
    eye = np.cos(elevation) * np.cos(azimuth), -np.cos(elevation) * np.sin(azimuth), -np.sin(elevation)  # y, z reversed
    back_to_front = sorted(meshes.items(), key=lambda item: float(item[1][0].mean(0)[::-1] @ eye))
    for neuron, (vertices, triangles) in back_to_front:
        corner = vertices[triangles][..., ::-1].astype(float)
        facing = np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0]) @ eye > 0
        # matplotlib sorts whole triangles by depth: large ones of the far side would shine through
        ax.add_collection3d(
            Poly3DCollection(
                corner[facing],
                facecolors=rgb[neuron],
                shade=True,
                lightsource=LightSource(300, -50),
                antialiased=False,
            )
        )
    corners = np.concatenate([vertices for vertices, _ in meshes.values()] or [np.array([[0, 0, 0], [1, 1, 1]])])
    low, high = corners.min(0)[::-1], corners.max(0)[::-1]
    ax.set(
        xlim=(low[0], high[0]),
        ylim=(high[1], low[1]),
        zlim=(high[2], low[2]),  # as in the sections
        xlabel="x (nm)",
        ylabel="y (nm)",
        zlabel="z (nm)",
    )
    sides = high - low
    ax.set_title(title, y=1.04)
    ax.set_proj_type("ortho")
    ax.set_box_aspect(sides, zoom=0.9)
    _number(ax, sides.max())
    ax.legend(
        handles=[Patch(color=color, label=str(neuron)) for neuron, color in rgb.items()],
        title="id",
        loc="center left",
        bbox_to_anchor=(1.2, 0.5),
        frameon=False,
    )
    return ax


def _number(ax: Axes3D, longest: float) -> None:
    """Set ticks in nm, as many as an axis has room for if four or five fit on `longest` nm."""
    limits = [sorted(edges) for edges in (ax.get_xlim(), ax.get_ylim(), ax.get_zlim())]
    for axis, (start, end) in zip((ax.xaxis, ax.yaxis, ax.zaxis), limits, strict=True):
        share = (end - start) / longest
        ticks = MaxNLocator(max(2, 1 + int(3 * share))).tick_values(start, end)
        # x and y end in the same corner: no tick near it, where their numbers would collide
        last = start + (1 if axis is ax.zaxis else 0.85) * (end - start)
        ticks = [tick for tick in ticks if start <= tick <= last]
        axis.set_ticks(ticks if share > 0.2 else ticks[-1:])  # a thin crop has room for one number
    _keep_distance(ax, np.ptp(limits, axis=1))


def _keep_distance(ax: Axes3D, sides: np.ndarray) -> None:
    """Set pads so that numbers and names stay off a narrow box, too, seen from the default direction.

    matplotlib moves the text of an axis by a share of the other two sides: in a narrow box hardly at all.
    """
    x, y, z = sides / np.linalg.norm(sides)
    across, along = 0.87 * x + 0.5 * y, np.hypot(0.87 * x, 0.87 * z + 0.25 * x)  # how far, as projected
    ax.zaxis.set_tick_params(pad=max(18, 15 / across - 8))  # matplotlib adds 8 to the pad of numbers, 21 to a name's
    ax.zaxis.labelpad = max(32, 30 / across - 21)
    ax.xaxis.labelpad = 28 if sides[2] < 0.3 * sides.max() else 14
    ax.yaxis.set_tick_params(pad=max(3.5, 6 / along - 8))
    ax.yaxis.labelpad = max(ax.xaxis.labelpad, 22 / along - 21)


def neurons_figure(
    panels: Mapping[str, tuple[Mapping[int, tuple[np.ndarray, np.ndarray]], Mapping[int, np.ndarray]]],
    width: float = 9,
) -> Figure:
    """Draw meshes in 3D, a panel for each title, at one scale and with their tops at one height.

    Args:
        panels: title -> meshes and colours, both by id, as in `neurons_3d`.
        width: of the figure, in inches.
    """
    left, right, below, above = 0.9, 2.7, 0.9, 0.4  # inches for numbers, legend and title
    room = width / len(panels) - left - right
    figure = plt.figure(figsize=(width, width), layout="none")
    extents = {}
    for title, (meshes, colors) in panels.items():
        ax = neurons_3d(figure.add_axes((0, 0, 1, 1), projection="3d"), meshes, colors=colors)
        corners = np.array(np.meshgrid(ax.get_xlim(), ax.get_ylim(), ax.get_zlim())).reshape(3, 8)
        flat = np.stack(proj_transform(*corners, ax.get_proj())[:2], axis=1)
        seen = ax.transAxes.inverted().transform(ax.transData.transform(flat))  # in sides of the square axes
        extents[ax] = seen.min(0), seen.max(0), title
    nm = {ax: np.linalg.norm([np.ptp(ax.get_xlim()), np.ptp(ax.get_ylim()), np.ptp(ax.get_zlim())]) for ax in extents}
    scale = min(min(room / (high - low)[0], 7 / (high - low)[1]) / nm[ax] for ax, (low, high, _) in extents.items())
    sides = {ax: scale * nm[ax] for ax in extents}  # matplotlib draws every box with the same diagonal
    height = max(sides[ax] * (high - low)[1] for ax, (low, high, _) in extents.items()) + below + above
    height = max(height, above + 0.3 * max(len(meshes) for meshes, _ in panels.values()))  # of the legend
    figure.set_size_inches(width, height)
    longest = max(np.ptp(edges) for ax in extents for edges in (ax.get_xlim(), ax.get_ylim(), ax.get_zlim()))
    for number, (ax, (low, high, title)) in enumerate(extents.items()):
        start, side = number * width / len(panels) + left, sides[ax]
        corner = start + (room - side * (high - low)[0]) / 2 - side * low[0], height - above - side * high[1]
        ax.set_position((corner[0] / width, corner[1] / height, side / width, side / height))
        ax.get_tightbbox = lambda *_, **__: figure.bbox  # the square reaches beyond it, the neurons do not
        ax.patch.set_visible(False)
        _number(ax, longest)
        figure.text((start + room / 2) / width, 1 - 0.1 / height, title, ha="center", va="top", size="large")
        ax.get_legend().set(loc="center left")
        ax.get_legend().set_bbox_to_anchor(((start + room + 1.3) / width, 0.5), figure.transFigure)
    return figure
