"""Figures of attention maps, and what they mark in words.

Most weights of a trained map lie near 0 or near 1, so colours that follow the weights leave a map almost black. Here
colours follow the rank of a weight among all weights shown, and the colour bar gives the weights themselves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from fgnet_lib.views import plots

OUTLINE = "#1E90FF"  # no colour of the warm ramp, so outlines stay visible on dark and on bright
TICKS = (0.02, 0.25, 0.5, 0.75, 0.98)  # shares of the weights at which the colour bar gives the weight
STRENGTHS = ((0.2, "much"), (0.1, "clearly"), (0.03, "slightly"))  # distance of an AUC from 0.5, in words


def rank_weights(weights: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Return the share of the weights `among` that are lower, equal ones counted half.

    Args:
        weights: of any shape.
        among: of any shape, at least one.

    Returns:
        float64 in [0, 1] of the shape of `weights`.

    Example:
        >>> rank_weights(np.array([0.0, 0.1, 0.9]), np.array([0.0, 0.0, 0.1, 0.9]))
        array([0.25 , 0.625, 0.875])
    """
    ordered = np.sort(among, axis=None)
    lower, not_higher = (np.searchsorted(ordered, weights, side) for side in ("left", "right"))
    return (lower + not_higher) / (2 * len(ordered))


def show_attention(
    ax: Axes,
    section: np.ndarray,
    stride: int,
    title: str = "",
    limits: tuple[float, float] = (0, 1),
    smooth: bool = False,
) -> Axes:
    """Show a section's map in warm colours, bright = high, beside an EM section that has the scale bar.

    Args:
        ax: axes to draw on; they count raw voxels, so maps of all strides line up with a section.
        section: weights, or their ranks, (y / stride, x / stride).
        stride: raw voxels per pixel of the map, in y and x.
        title: of the axes.
        limits: the values to show darkest and brightest.
        smooth: interpolate between the centres of pixels instead of showing each pixel as a square.
    """
    height, width = (stride * pixels for pixels in section.shape)
    ax.imshow(
        section,
        extent=(-0.5, width - 0.5, height - 0.5, -0.5),
        cmap=plots.WARM,
        vmin=limits[0],
        vmax=limits[1],
        interpolation="bicubic" if smooth else "nearest",
    )
    ax.set(title=title, xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    return ax


def outline_labels(ax: Axes, labels: np.ndarray) -> Axes:
    """Draw a thin line wherever two neighbouring voxels of a section (y, x) have different ids."""
    y, x = np.nonzero(labels[:, 1:] != labels[:, :-1])
    upright = np.stack([np.stack([x + 0.5, y - 0.5], 1), np.stack([x + 0.5, y + 0.5], 1)], 1)
    y, x = np.nonzero(labels[1:] != labels[:-1])
    level = np.stack([np.stack([x - 0.5, y + 0.5], 1), np.stack([x + 0.5, y + 0.5], 1)], 1)
    ax.add_collection(LineCollection([*upright, *level], colors=OUTLINE, linewidths=0.7), autolim=False)
    return ax


def attention_grid(
    raw: np.ndarray,
    labels: np.ndarray,
    attention: Sequence[np.ndarray],
    sections: Sequence[int],
    voxel_size: Sequence[float],
    strides: Sequence[int] = (4, 8, 16),
    smooth: bool = True,
) -> Figure:
    """Return attention maps in the layout of the paper's Figure 4, with the outlines of the ground truth drawn thinly.

    Rows are sections; columns are EM, ground truth, a1, a2, a3. Colours follow the rank of a weight among those of the
    sections shown.

    Args:
        raw: uint8 (z, y, x).
        labels: ids (z, y, x).
        attention: one map (z, y / stride, x / stride) for each stride.
        sections: the z of each row.
        voxel_size: nm (z, y, x).
        strides: of the maps.
        smooth: interpolate between the pixels of a map; False shows its true grid.
    """
    columns = 2 + len(attention)
    ratio = voxel_size[1] * raw.shape[1] / (voxel_size[2] * raw.shape[2])
    tall = max(14.2 / columns * ratio, 1)  # inches, of a row
    figure, axes = plt.subplots(len(sections), columns, squeeze=False, figsize=(15, tall * len(sections) + 0.8))
    colors = plots.neighbour_colors(labels[list(sections)])
    for row, z in zip(axes, sections, strict=True):
        plots.show_section(row[0], raw, None, voxel_size, z)
        plots.show_section(row[1], raw, labels, voxel_size, z, fill=0.6, colors=colors)
        row[0].set_ylabel(f"section {z}")
    axes[0, 0].set_title("EM")
    axes[0, 1].set_title("ground truth")
    for level, (weights, stride) in enumerate(zip(attention, strides, strict=True), start=1):
        among = np.asarray(weights)[list(sections)]
        for ax, z in zip(axes[:, 1 + level], sections, strict=True):
            show_attention(ax, rank_weights(weights[z], among), stride, smooth=smooth)
            outline_labels(ax, labels[z])
            ax.set(  # a padded map may reach further than raw
                xlim=axes[0, 0].get_xlim(), ylim=axes[0, 0].get_ylim(), aspect=axes[0, 0].get_aspect()
            )
        axes[0, 1 + level].set_title(f"$a_{level}$ (stride {stride})")
        _add_rank_bar(figure, axes[:, 1 + level], among)
    return figure


def _add_rank_bar(figure: Figure, axes: np.ndarray, among: np.ndarray) -> None:
    """Add a bar of the colours by rank, with the weights of some ranks beside it."""
    bar = figure.colorbar(ScalarMappable(cmap=plots.WARM), ax=axes, location="bottom", shrink=0.9, pad=0.015)
    bar.set_ticks(TICKS, labels=[_format_weight(weight) for weight in np.quantile(among, TICKS)])
    bar.set_label("attention, coloured by rank")


def _format_weight(weight: float) -> str:
    """Return a weight with two digits, or a power of ten where it is tiny."""
    if weight >= 0.001 or not weight > 0:
        return f"{weight:.2g}"
    return f"$10^{{{round(np.log10(weight))}}}$"


def describe_attention(name: str, aucs: Mapping[str, float]) -> str:
    """Say in one sentence where the weights of a map are higher or lower than elsewhere, and how much.

    Args:
        name: of the map.
        aucs: where, as "on membranes" -> how often a random voxel there has a higher weight than a random voxel
            elsewhere, from 0 to 1.

    Example:
        >>> describe_attention("a1", {"on membranes": 0.21, "in wide neurites": 0.52})
        'a1 is much lower on membranes (AUC 0.21), about the same in wide neurites (AUC 0.52).'
    """
    phrases = []
    for where, auc in aucs.items():
        strength = next((word for distance, word in STRENGTHS if abs(auc - 0.5) >= distance), "")
        comparison = f"{strength} {'higher' if auc > 0.5 else 'lower'}" if strength else "about the same"
        phrases.append(f"{comparison} {where} (AUC {auc:.2f})")
    return f"{name} is {', '.join(phrases)}."
