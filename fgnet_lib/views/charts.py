"""Scores of runs as charts: VOI against thresholds, labels, time, parameters or bits, with every run and the spread.

Functions draw on the axes they are given and return them; functions that need several axes return a new figure. They
show what was computed elsewhere, in the style and colours of `plots`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from fgnet_lib.views.plots import HUES, MERGE, SPLIT

FROZEN_AT = 300  # where "0 parameters" lies on a logarithmic axis
NAMES_APART = 1.35  # the least factor between names on that axis, so that they do not overlap


def split_merge_curve(
    ax: Axes,
    thresholds: Sequence[float],
    splits: Sequence[float],
    merges: Sequence[float],
    chosen: float | None = None,
    title: str = "",
) -> Axes:
    """Plot VOI split, VOI merge and their sum (bits) over agglomeration thresholds; mark the `chosen` threshold."""
    ax.plot(thresholds, splits, "o-", color=SPLIT, label="VOI split")
    ax.plot(thresholds, merges, "s-", color=MERGE, label="VOI merge")
    ax.plot(thresholds, np.add(splits, merges), "k^--", label="sum")
    if chosen is not None:
        ax.axvline(chosen, color="gray", ls=":", label=f"chosen: {chosen:g}")
    ax.set(xlabel="threshold", ylabel="variation of information (bits)", ylim=(0, None), title=title)
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=4, frameon=False, columnspacing=1)
    return ax


def _line_style(number: int) -> str:
    """Return the style of a line, so that lines differ when the cycle of six colours begins again."""
    return ("-", "--", ":")[number // 6 % 3]


def _highlight(name: str, highlighted: Collection[str] | None) -> dict[str, Any]:
    """Return what `highlighted` changes in a line's style: all are solid, others grey, behind, not in the legend."""
    if highlighted is None:
        return {}
    if name in highlighted:
        return {"linestyle": "-"}
    return {"linestyle": "-", "color": "0.8", "zorder": 1, "label": f"_{name}"}


def split_against_merge(
    ax: Axes,
    curves: Mapping[str, tuple[Sequence[float], Sequence[float], int]],
    points: Mapping[str, tuple[float, float]] | None = None,
    highlighted: Collection[str] | None = None,
) -> Axes:
    """Plot VOI split against VOI merge over thresholds, a line for each method; nearer to the corner is better.

    The axes end half as far again as the chosen thresholds and the points; curves may run on beyond them.

    Args:
        ax: axes to draw on.
        curves: name -> VOI merge, VOI split (bits), and the index of the chosen threshold, which gets a dot.
        points: name -> VOI merge and split of segmentations without a threshold, drawn in black.
        highlighted: names of the curves in colour, where all others are to be grey.
    """
    for number, (name, (merge, split, chosen)) in enumerate(curves.items()):
        style = {"linestyle": _line_style(number), "label": name} | _highlight(name, highlighted)
        (line,) = ax.plot(merge, split, **style)
        ax.plot(merge[chosen], split[chosen], "o", color=line.get_color(), markersize=9, zorder=line.get_zorder())
    for number, (name, (merge, split)) in enumerate((points or {}).items()):
        ax.plot(merge, split, "xP+*D"[number % 5], color="black", ms=10, mew=2, label=name, clip_on=False)
    dots = [(merge[chosen], split[chosen]) for merge, split, chosen in curves.values()] + list((points or {}).values())
    ends = 1.5 * np.max(dots, axis=0) if dots else (1, 1)
    ax.set(xlabel="VOI merge (bits)", ylabel="VOI split (bits)", xlim=(0, ends[0]), ylim=(0, ends[1]))
    if curves:
        ax.legend(title="dot: chosen threshold", loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    return ax


def runs_of_rows(ax: Axes, rows: Mapping[str, Sequence[float]], xlabel: str) -> Axes:
    """Plot each run of each row as a dot, rows from top to bottom, and the mean of several runs as a line."""
    for y, values in enumerate(rows.values()):
        ax.plot(values, [y] * len(values), "o", color=HUES[4], alpha=0.7)
        if len(values) > 1:
            ax.plot([np.mean(values)] * 2, [y - 0.3, y + 0.3], color="black")
    ax.set(xlabel=xlabel, ylim=(max(len(rows), 1) - 0.5, -0.5))
    ax.set_yticks(range(len(rows)), [f"{name} ({len(values)})" for name, values in rows.items()])
    ax.grid(axis="x", alpha=0.4)
    return ax


def against_sections(
    ax: Axes, rows: Mapping[str, Mapping[int, Sequence[float]]], highlighted: Collection[str] | None = None
) -> Axes:
    """Plot VOI (bits) against the number of labelled sections: mean, standard deviation, each run as a small dot.

    Args:
        ax: axes to draw on.
        rows: name -> labelled sections -> VOI of each run.
        highlighted: names of the lines in colour, where all others are to be grey.
    """
    for number, (name, amounts) in enumerate(rows.items()):
        sections = sorted(amounts)
        shifted = np.array(sections) * 1.03 ** (number - (len(rows) - 1) / 2)  # so that bars do not lie on each other
        means = [np.mean(amounts[n]) for n in sections]
        around = [np.std(amounts[n], ddof=1) if len(amounts[n]) > 1 else np.nan for n in sections]
        style = {"linestyle": _line_style(number), "label": name} | _highlight(name, highlighted)
        marker = "so^"[number // 6 % 3]  # a row with one amount has no line whose style would tell it
        bars = ax.errorbar(shifted, means, around, marker=marker, capsize=4, **style)
        for x, n in zip(shifted, sections, strict=True):
            ax.plot([x] * len(amounts[n]), amounts[n], ".", color=bars[0].get_color(), alpha=0.6)
    ticks = sorted({n for amounts in rows.values() for n in amounts})
    ax.set(xscale="log", xlabel="labelled sections", ylabel="VOI (bits)")
    ax.set_xticks(ticks, [str(n) for n in ticks])
    ax.minorticks_off()
    if rows:
        ax.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    return ax


def parameters_figure(volumes: Mapping[str, Mapping[str, tuple[int, Mapping[int, Sequence[float]]]]]) -> Figure:
    """Draw VOI (bits) against an encoder's trained parameters: a panel for each volume, a line for each label budget.

    Squares are means, bars standard deviations, small dots single runs. The methods are named above the first panel.

    Args:
        volumes: volume -> method -> its trained parameters in the encoder (0 if it is frozen), labelled sections -> VOI
            of each run.
    """
    rows = max(1, len(volumes))
    figure, axes = plt.subplots(rows, 1, sharex=True, squeeze=False, figsize=(13, 2.7 * rows + 1.8))
    for ax, (volume, methods) in zip(axes[:, 0], volumes.items(), strict=False):
        _parameters_panel(ax, methods)
        ax.set_ylim(bottom=0)  # after all is drawn; so that a small change looks small
        ax.set_ylabel(f"VOI on {volume}\n(bits)")
    counts = {name: count or FROZEN_AT for methods in volumes.values() for name, (count, _) in methods.items()}
    ticks = [FROZEN_AT, *(10**k for k in range(3, 8) if 10**k <= 3 * max(counts.values(), default=10**4))]
    axes[-1, 0].set(xscale="log", xlabel="trained parameters of the encoder")
    axes[-1, 0].set_xticks(ticks, ["0", *(f"{tick:,}" for tick in ticks[1:])])
    axes[-1, 0].minorticks_off()
    last = 0.0
    for name, x in sorted(counts.items(), key=lambda item: item[1]):
        last = max(last * NAMES_APART, x)
        style = {"rotation": 35, "ha": "left", "va": "bottom", "fontsize": 9}
        axes[0, 0].text(last, 1.02, name, transform=axes[0, 0].get_xaxis_transform(), **style)
    if counts:
        axes[0, 0].legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    return figure


def _parameters_panel(ax: Axes, methods: Mapping[str, tuple[int, Mapping[int, Sequence[float]]]]) -> None:
    positions = {name: count or FROZEN_AT for name, (count, _) in methods.items()}
    amounts = sorted({n for _, of_sections in methods.values() for n in of_sections})
    for number, sections in enumerate(amounts):
        names = sorted((name for name, (_, vois) in methods.items() if vois.get(sections)), key=positions.__getitem__)
        vois = [methods[name][1][sections] for name in names]
        x = np.array([positions[name] for name in names]) * 1.06**number  # so that bars do not lie on each other
        around = [np.std(values, ddof=1) if len(values) > 1 else np.nan for values in vois]
        style = {"linestyle": _line_style(number), "label": f"{sections} labelled sections"}
        bars = ax.errorbar(x, [np.mean(values) for values in vois], around, marker="s", capsize=4, **style)
        for at, values in zip(x, vois, strict=True):
            ax.plot([at] * len(values), values, ".", color=bars[0].get_color(), alpha=0.6)
    for x in positions.values():
        ax.axvline(x, color="0.85", lw=0.8, zorder=0)


def bits_figure(
    rows: Mapping[str, Mapping[str, tuple[float, Mapping[str, Mapping[str, Sequence[float]]]]]],
) -> Figure:
    """Draw VOI (bits) against the bits that a network's numbers have: a panel for each network and volume.

    Squares are means, bars standard deviations, small dots single runs; a dashed line is the network with 32 bits.
    Panels of one volume share their axis.

    Args:
        rows: network -> volume -> VOI with 32 bits, and method -> width (any text) -> VOI of each run.
    """
    columns = max(map(len, rows.values()), default=1)
    size = {"figsize": (3.4 * columns + 1, 2.9 * max(1, len(rows)) + 0.8), "squeeze": False}
    figure, axes = plt.subplots(max(1, len(rows)), columns, sharey="col", **size)
    for number, (network, volumes) in enumerate(rows.items()):
        for ax, (volume, (exact, methods)) in zip(axes[number], volumes.items(), strict=True):
            _bits_panel(ax, exact, methods)
            ax.set_title(volume if number == 0 else "")
        axes[number, 0].set_ylabel(network.replace(", ", ",\n") + "\nVOI (bits)")
    for ax in axes[0]:
        ax.set_ylim(bottom=0)  # after all is drawn; so that a small change looks small
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=6, frameon=False)
    return figure


def _bits_panel(ax: Axes, exact: float, methods: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
    ax.axhline(exact, color="black", linestyle="--", linewidth=1, label="32 bits")
    for number, (method, widths) in enumerate(methods.items()):
        x = np.arange(len(widths)) + 0.1 * (number - (len(methods) - 1) / 2)  # so that bars do not lie on each other
        means = [np.mean(values) if len(values) else np.nan for values in widths.values()]
        around = [np.std(values, ddof=1) if len(values) > 1 else np.nan for values in widths.values()]
        bars = ax.errorbar(x, means, around, marker="s", markersize=5, capsize=3, linewidth=1, label=method)
        for at, values in zip(x, widths.values(), strict=True):
            ax.plot([at] * len(values), values, ".", color=bars[0].get_color(), markersize=4, alpha=0.6)
        ax.set_xticks(range(len(widths)), list(widths))


def against_time(
    ax: Axes,
    line: Mapping[str, tuple[float, Sequence[float]]],
    others: Mapping[str, tuple[float, Sequence[float]]],
    marks: Mapping[str, tuple[float, float | None]],
) -> Axes:
    """Plot VOI (bits) against the milliseconds of a section, on a logarithmic axis.

    Squares are means, bars standard deviations, small dots single runs.

    Args:
        ax: axes to draw on.
        line: name -> milliseconds, VOI of each run; joined by a line in the order of time.
        others: likewise, not joined.
        marks: name -> milliseconds, VOI of a network that was trained once, or None where the time alone is known.
    """
    names = sorted(line, key=lambda name: line[name][0])
    ax.plot([line[n][0] for n in names], [np.mean(line[n][1]) for n in names], color="0.7", zorder=1)
    for number, (name, (milliseconds, vois)) in enumerate([*((n, line[n]) for n in names), *others.items()]):
        x = milliseconds * (1 if name in line else 1.02 ** (number - len(line) + 1))  # so that bars lie side by side
        around = np.std(vois, ddof=1) if len(vois) > 1 else np.nan
        bars = ax.errorbar(x, np.mean(vois), around, marker="s" if name in line else "D", capsize=4, ls="", label=name)
        ax.plot([x] * len(vois), vois, ".", color=bars[0].get_color(), alpha=0.6)
    for marker, (name, (milliseconds, voi)) in zip("*^v", marks.items(), strict=False):
        if voi is None:
            ax.axvline(milliseconds, color="0.3", ls=":", label=f"{name} (time alone)")
        else:
            ax.plot(milliseconds, voi, marker, color="k", ms=13, label=name)
    ax.set(xscale="log", xlabel="milliseconds a section", ylabel="VOI (bits)")
    ends = ax.get_xlim()
    ticks = [tick for power in (1, 10, 100, 1000) for tick in (power, 2 * power, 5 * power) if ends[0] < tick < ends[1]]
    ax.set_xticks(ticks, [str(tick) for tick in ticks])
    ax.minorticks_off()
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    return ax


def psnr_figure(
    panels: Mapping[str, Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]]],
    winners: Mapping[str, Mapping[str, tuple[str, str]]],
    verdicts: Mapping[str, Mapping[str, str]],
) -> Figure:
    """Draw VOI (bits) against PSNR (dB): a panel for each noise and strength, a colour for each method.

    Marks are means, bars standard deviations. In each panel an arrow leads from the name of the cleanest method to its
    mark, and another one from the name of the method with the best neurons, so that both are found among close marks.

    Args:
        panels: noise -> method -> strength -> PSNR and VOI of each run.
        winners: noise -> strength -> the methods with the cleanest pictures and with the best neurons.
        verdicts: noise -> strength -> what the panel shows, for its title; all noises and strengths.
    """
    strengths = list(next(iter(verdicts.values())))
    size = {"figsize": (15, 1.4 + 4.3 * len(strengths))}
    figure, axes = plt.subplots(len(strengths), len(verdicts), sharey="row", squeeze=False, **size)
    methods = list(dict.fromkeys(method for panel in panels.values() for method in panel))
    colors = dict(zip(methods, ("black", *HUES[:3], *HUES[4:]), strict=False))
    for (noise, row), column in zip(verdicts.items(), axes.T, strict=True):
        for (strength, verdict), ax in zip(row.items(), column, strict=True):
            means, best = {}, winners.get(noise, {}).get(strength, ())
            for method, points in panels[noise].items():
                if runs := points.get(strength):
                    (x, y), (dx, dy) = np.mean(runs, 1), (np.std(runs, 1, ddof=1) if len(runs[0]) > 1 else (0, 0))
                    style = {"color": colors[method], "marker": "o", "markersize": 8, "markeredgecolor": "white"}
                    on_top = 3 if method in best else 2  # close marks cover each other
                    ax.errorbar(x, y, dy, dx, linestyle="", capsize=3, zorder=on_top, **style)
                    means[method] = x, y
            for words, method, corner in zip(("cleanest", "best neurons"), best, (0.98, 0.02), strict=False):
                _point_at(ax, f"{words}:\n{method}", means[method], colors[method], corner)
            ax.set(title=f"{noise}, {strength}\n{verdict}", xlabel="PSNR (dB), cleaner →")
            ax.margins(0.15, 0.4)  # room for the names of both methods
            if not means:
                ax.set_xticks([])
    for row in axes:
        row[0].set_ylabel("VOI (bits), better ↓")
        if not any(ax.has_data() for ax in row):
            row[0].set_yticks([])
    if methods:
        handles = [Patch(color=colors[method], label=method) for method in methods]
        figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)
    return figure


def _point_at(ax: Axes, text: str, mark: tuple[float, float], color: str, corner: float) -> None:
    """Write a text into a corner, at this fraction of both axes, with an arrow from there to a mark."""
    style = {"ha": "right", "va": "top"} if corner > 0.5 else {"ha": "left", "va": "bottom"}
    style |= {"color": color, "textcoords": "axes fraction", "zorder": 4}
    arrow = {"arrowstyle": "-|>", "shrinkA": 2, "shrinkB": 5, "color": color, "lw": 1.2}
    ax.annotate(text, mark, (corner, corner), arrowprops=arrow, **style)


def errors_inspected(ax: Axes, shares: Sequence[float], seen: Mapping[str, np.ndarray], budget: float) -> Axes:
    """Plot the share of all errors seen against the share of voxels inspected, a line for each score of doubt.

    Lines are means over runs, bands go from the least to the greatest run. The title and the legend say what each score
    shows at a budget. Entropy and margin are one line where they are equal.

    Args:
        ax: axes to draw on.
        shares: Of voxels that are inspected, from 0 to 1, rising.
        seen: "oracle", "entropy", "margin", "variance" or "random" -> share of errors (runs, shares).
        budget: One of the shares.
    """
    lines = {"oracle": ("black", ":"), "entropy": ("C0", "-"), "margin": ("C2", "-."), "variance": ("C1", "-")}
    lines |= {"random": ("0.5", "--")}
    means = {name: runs.mean(0) for name, runs in seen.items() if len(runs)}
    percent, k = 100 * np.array(shares), int(np.abs(np.array(shares) - budget).argmin())
    equal = {"entropy", "margin"} <= means.keys() and np.allclose(means["entropy"], means["margin"], atol=0.01)
    for name in sorted(means, key=lambda name: -means[name][k]):
        if name == "margin" and equal:
            continue
        (color, line), label = lines[name], "entropy, margin" if name == "entropy" and equal else name
        ax.plot(percent, 100 * means[name], line, color=color, lw=2, label=f"{label}: {means[name][k]:.0%}")
        ax.fill_between(percent, 100 * seen[name].min(0), 100 * seen[name].max(0), color=color, alpha=0.2)
    ax.set(xscale="log", xlabel="voxels inspected (%)", ylabel="wrong boundary voxels seen (%)")
    ticks = [tick for tick in (0.2, 1, 2, 5, 12.5, 25, 50, 100) if percent[0] <= tick <= percent[-1]]
    ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.minorticks_off()
    ax.axvline(100 * budget, color="0.8", zorder=0)
    if "random" in means:
        best = max((name for name in means if name not in ("oracle", "random")), key=lambda name: means[name][k])
        shown = f"chosen by {best}, hold {means[best][k]:.0%} of the errors; at random {means['random'][k]:.0%}"
        ax.set_title(f"{100 * budget:g} % of the voxels, {shown}")
    if means:
        ax.legend(title=f"seen at {100 * budget:g} % inspected", loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    return ax


def enlarged_figure(panels: Mapping[str, Mapping[str, Sequence[float]]], title: str) -> Figure:
    """Draw what enlarged sections are worth: PSNR, lost and invented membranes, and VOI, a line for each row.

    Args:
        panels: PSNR (dB), invented membranes (%), lost membranes (%) and VOI (bits), in this order: name of the measure
            -> row -> each run. Rows without a run keep their line.
        title: What the figure shows.
    """
    figure, axes = plt.subplots(1, 3, figsize=(15, 5), sharey=True)
    psnr, invented, lost, voi = panels.values()
    runs_of_rows(axes[0], psnr, "PSNR (dB), nearer to the truth →")
    for y, name in enumerate(voi):
        for values, color, side in ((lost[name], MERGE, -1), (invented[name], SPLIT, 1)):
            if values:
                mean = float(np.mean(values))
                axes[1].barh(y, side * mean, color=color, height=0.6)
                style = {"va": "center", "ha": "left" if side > 0 else "right"}
                axes[1].annotate(f"{mean:.2f}", (side * mean, y), (4 * side, 0), textcoords="offset points", **style)
    axes[1].axvline(0, color="black", lw=1)
    axes[1].set(xlabel="← lost | invented → (% of membrane voxels)", xticks=[])
    axes[1].margins(x=0.25)
    runs_of_rows(axes[2], voi, "← better neurons, VOI (bits)")
    for ax, rows in ((axes[0], psnr), (axes[2], voi)):
        for y, values in enumerate(rows.values()):
            if values:
                ax.annotate(f"{np.mean(values):.2f}", (max(values), y), (8, 0), textcoords="offset points", va="center")
        ax.margins(x=0.25)
        if not any(rows.values()):
            ax.set_xticks([])
    figure.suptitle(title)
    return figure


def changes_of_voi(ax: Axes, before: float, after: Mapping[str, Sequence[float]]) -> Axes:
    """Plot what each method makes of a VOI (bits): an arrow from before to the mean after, and a dot for each run.

    Arrows to the left, which are better, are blue; those to the right are vermilion; the change is written beside them,
    and where it rounds to 0 the arrow is grey.

    Args:
        ax: axes to draw on.
        before: VOI without any method, a dotted line.
        after: method -> VOI of each run; a method without runs has a row, but no arrow.
    """
    ax.axvline(before, color="0.4", ls=":", zorder=0)
    for row, vois in enumerate(after.values()):
        if not len(vois):
            continue
        mean = float(np.mean(vois))
        same = abs(mean - before) < 0.005  # written as 0.00
        color = "0.4" if same else SPLIT if mean < before else MERGE
        style = {"arrowstyle": "-|>", "color": color, "lw": 2, "shrinkA": 0, "shrinkB": 0, "mutation_scale": 14}
        ax.annotate("", (mean, row), (before, row), arrowprops=style)
        ax.plot(vois, [row] * len(vois), "o", color=color, ms=4, alpha=0.7)
        side = 1 if mean >= before or same else -1
        ax.annotate(
            f"{mean - before:+.2f}",
            (max(vois) if side == 1 else min(vois), row),
            (16 if same else 8 * side, 0),
            textcoords="offset points",
            ha="left" if side == 1 else "right",
            va="center",
            fontsize=9,
        )
    ax.set_yticks(range(len(after)), list(after))
    ax.set_ylim(len(after) - 0.4, -0.6)
    ax.margins(x=0.3)
    ax.set(xlabel="VOI (bits)", xlim=(max(0, ax.get_xlim()[0]), None))  # no VOI is below 0
    return ax


def loss_curve(ax: Axes, steps: Sequence[int], losses: Sequence[float], label: str = "training") -> Axes:
    """Add a curve of the loss over iterations to `ax`."""
    ax.plot(steps, losses, label=label)
    ax.set(xlabel="iteration", ylabel="loss")
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2, frameon=False)  # below: curves may be anywhere
    return ax
