"""Pictures of solved exercises: what the student's function makes, beside what was expected.

They show inputs on which the check has judged the answer, so both sides agree.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from fgnet_lib.affinities import affinities_from_labels, widen_borders
from fgnet_lib.course.checks import lesson01, lesson02, lesson04, lesson09
from fgnet_lib.views import plots
from fgnet_lib.views.feature_maps import cosine_similarity

SIDES = ("yours", "expected")


def _panels(width: float = 4.0) -> tuple[Figure, Sequence[Axes]]:
    """Return a figure with two axes side by side."""
    return plt.subplots(1, 2, figsize=(2 * width, width), sharex=True, sharey=True)


def _affinities(answer: Callable) -> Figure:
    volume = lesson01.neurites()
    labels = widen_borders(volume.labels)
    figure, axes = _panels()
    for ax, side, values in zip(axes, SIDES, (answer(labels.copy()), affinities_from_labels(labels)), strict=True):
        plots.show_affinities(ax, np.asarray(values), volume.voxel_size, title=f"{side}: affinities")
    return figure


def _widened(answer: Callable) -> Figure:
    volume = lesson01.neurites()
    figure, axes = _panels()
    results = answer(volume.labels.copy()), widen_borders(volume.labels)
    for ax, side, labels in zip(axes, SIDES, results, strict=True):
        title = f"{side}: borders widened"
        plots.show_section(ax, volume.raw, np.asarray(labels), volume.voxel_size, title=title, fill=0.5)
    return figure


def _similarity(answer: Callable) -> Figure:
    section, features = lesson02.local_features()
    y, x = lesson02.PIXEL
    figure, axes = _panels()
    results = answer(features.copy(), y, x), cosine_similarity(features, y, x)
    for ax, side, values in zip(axes, SIDES, results, strict=True):
        title = f"{side}: similarity to the cross"
        plots.show_similarity(ax, np.asarray(values), 1, section.voxel_size, title, colorbar=False)
        ax.plot(x, y, "+", color="red", markersize=14, markeredgewidth=2)
    figure.colorbar(axes[0].images[0], ax=axes, label="cosine similarity", shrink=0.8)
    return figure


def _learning_rate(answer: Callable) -> Figure:
    n, peak, warmup = lesson04.SCHEDULE
    figure, axes = _panels()
    results = [answer(k, n, peak, warmup) for k in range(n)], lesson04.right_rates(n, peak, warmup)
    for ax, side, rates in zip(axes, SIDES, results, strict=True):
        ax.plot(rates, ".-")
        ax.set(title=f"{side}: {warmup} iterations of warm-up", xlabel="iteration", ylabel="learning rate")
    return figure


def _halo(answer: Callable) -> Figure:
    width, shape, blocks = lesson09.WIDTH, lesson09.SHAPE, lesson09.BLOCKS
    figure, axes = _panels(4.5)
    for ax, side in zip(axes, SIDES, strict=True):
        for start, stop in blocks:
            read = answer(start, stop, width, shape) if side == "yours" else lesson09.grow(start, stop)
            _frame(ax, *read, color="tab:orange", alpha=0.5, label="is read")
            _frame(ax, start, stop, color="tab:blue", label="block")
        _frame(ax, (0, 0, 0), shape, fill=False, label="volume")
        ax.set(xlim=(-30, shape[2] + 30), ylim=(shape[1] + 30, -30), aspect="equal", xlabel="x (voxels)")
        ax.set(title=f"{side}: what two blocks read", ylabel="y (voxels)")
    handles, labels = axes[0].get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    figure.legend(unique.values(), unique.keys(), loc="outside lower center", ncols=3)
    return figure


def _frame(ax: Axes, first: Sequence[int], end: Sequence[int], **style) -> None:
    """Draw the y and x extent of a box (z, y, x)."""
    (top, left), (bottom, right) = first[1:], end[1:]
    ax.add_patch(Rectangle((left, top), right - left, bottom - top, **style))


PICTURES: dict[str, Callable[..., Figure]] = {
    "affinities": _affinities,
    "widened": _widened,
    "similarity": _similarity,
    "learning_rate": _learning_rate,
    "halo": _halo,
}
