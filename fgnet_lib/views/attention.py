"""Figures of attention maps, and what they mark in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from fgnet_lib.views import plots

OUTLINE = "#1E90FF"  # no colour of the warm ramp, so outlines stay visible on dark and on bright
BRIGHTEST = 99  # percentile of the weights shown that gets the brightest colour
STRENGTHS = ((0.2, "much"), (0.1, "clearly"), (0.03, "slightly"))  # distance of an AUC from 0.5, in words


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
        section: weights (y / stride, x / stride).
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
    outlined: Sequence[int] = (2, 3),
) -> Figure:
    """Return attention maps in the layout of the paper's Figure 4.

    Rows are sections; columns are EM, ground truth, a1, a2, a3. Black is a weight of 0; the brightest colour is the
    99th percentile of a map's weights in the sections shown.

    Args:
        raw: uint8 (z, y, x).
        labels: ids (z, y, x).
        attention: one map (z, y / stride, x / stride) for each stride.
        sections: the z of each row.
        voxel_size: nm (z, y, x).
        strides: of the maps.
        smooth: interpolate between the pixels of a map; False shows its true grid.
        outlined: levels over which the ground truth is outlined thinly; over a1 it would hide the membranes.
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
        brightest = float(np.nan_to_num(np.percentile(np.asarray(weights)[list(sections)], BRIGHTEST)))
        limits = (0, max(brightest, 1e-12))
        for ax, z in zip(axes[:, 1 + level], sections, strict=True):
            show_attention(ax, weights[z], stride, limits=limits, smooth=smooth)
            if level in outlined:
                outline_labels(ax, labels[z])
            ax.set(  # a padded map may reach further than raw
                xlim=axes[0, 0].get_xlim(), ylim=axes[0, 0].get_ylim(), aspect=axes[0, 0].get_aspect()
            )
        axes[0, 1 + level].set_title(f"$a_{level}$ (stride {stride})")
        bar = figure.colorbar(
            axes[0, 1 + level].images[0], ax=axes[:, 1 + level], location="bottom", shrink=0.9, pad=0.015, extend="max"
        )
        bar.set_label("attention: 0 erases")
    return figure


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
