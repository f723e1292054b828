"""What a few runs let one claim."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np


def either_sign(aucs: Sequence[float]) -> list[float]:
    """AUCs from 0.5, no relation, to 1: which sign a training finds is chance, and signs must not cancel in a mean."""
    return [max(auc, 1 - auc) for auc in aucs]


def spread(values: Sequence[float]) -> float | None:
    """Standard deviation of single runs; None for a single run, of which no spread is known."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def summary(values: Sequence[float], digits: int = 3) -> str:
    """Mean and spread in words: "0.950 ± 0.200", or "0.950" for a single run."""
    around = spread(values)
    return f"{np.mean(values):.{digits}f}" + ("" if around is None else f" ± {around:.{digits}f}")


def chance(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """How often runs that are dealt at random into two groups of these sizes differ at least as much in the mean."""
    values, found = np.array([*ours, *theirs]), abs(np.mean(ours) - np.mean(theirs))
    deals = [np.isin(np.arange(len(values)), list(one)) for one in combinations(range(len(values)), len(ours))]
    return float(np.mean([abs(values[deal].mean() - values[~deal].mean()) >= found - 1e-12 for deal in deals]))


def compared(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """What may be said about the difference of the first from the second of two rows' scores.

    The spread that it is compared with is that of single runs, pooled over both rows.
    """
    if not ours or not theirs:
        return "not measured here"
    difference = float(np.mean(ours) - np.mean(theirs))
    said = f"{abs(difference):.3f} {'lower' if difference < 0 else 'higher'}"
    if min(len(ours), len(theirs)) == 1:
        return f"{said}; one seed only, so no spread is known and nothing follows"
    around = float(np.sqrt((spread(ours) ** 2 + spread(theirs) ** 2) / 2))
    verdict = "more" if abs(difference) > around else "not more"
    odds = f"dealt at random, the runs differ at least as much in {chance(ours, theirs):.0%} of all cases"
    return f"{said}, which is {verdict} than the spread of single runs, {around:.3f}; {odds}"


def paired(after: Sequence[float], before: Sequence[float]) -> str:
    """What may be said about a change made to each of the same runs: its mean and spread, and how many rose."""
    if not after:
        return "not measured here"
    change = np.subtract(after, before)
    if len(change) == 1:
        return f"{change[0]:+.3f} in the only run; another training may differ"
    return f"{change.mean():+.3f} ± {spread(change):.3f}, up in {np.sum(change > 0)} of {len(change)} runs"
