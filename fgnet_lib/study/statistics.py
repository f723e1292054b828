"""What a few runs let you claim."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations, permutations

import numpy as np

Runs = Mapping[str, Sequence[float]]  # row -> a measure of its runs


def ignore_sign(aucs: Sequence[float]) -> list[float]:
    """The AUCs, counted from 0.5, no relation, to 1: a sign is arbitrary, and signs must not cancel in a mean."""
    return [max(auc, 1 - auc) for auc in aucs]


def spread(values: Sequence[float]) -> float | None:
    """The standard deviation of single runs; None for a single run, whose spread is unknown."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def summary(values: Sequence[float], digits: int = 3) -> str:
    """The mean and the spread as text.

    >>> summary([1.0, 1.2, 1.4])
    '1.200 ± 0.200'
    >>> summary([1.0])
    '1.000'
    """
    deviation = spread(values)
    return f"{np.mean(values):.{digits}f}" + ("" if deviation is None else f" ± {deviation:.{digits}f}")


def permutation_p(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The p value of a two-sided permutation test: how often chance alone separates two means as much.

    The runs of both rows are divided anew into groups of these sizes, in every possible way, the real one included.

    >>> permutation_p([1, 2, 3], [4, 5, 6])
    0.1

    Raises:
        ValueError: a run is not finite.
    """
    values, difference = np.array([*ours, *theirs]), abs(np.mean(ours) - np.mean(theirs))
    if not np.isfinite(values).all():
        raise ValueError(f"a run is not finite, so it cannot be compared: {list(ours)} against {list(theirs)}")
    deals = [np.isin(np.arange(len(values)), deal) for deal in combinations(range(len(values)), len(ours))]
    return float(np.mean([abs(values[deal].mean() - values[~deal].mean()) >= difference - 1e-12 for deal in deals]))


def show_p(p: float) -> str:
    """Write a p value with two digits, or as many as it needs where it is small; none is 0.

    >>> show_p(0.1), show_p(2 / 252), show_p(2 / 12870)
    ('0.10', '0.008', '0.0002')
    """
    return f"{p:.2f}" if p >= 0.01 else np.format_float_positional(p, 1, fractional=False)


def correct_many(ps: Sequence[float]) -> np.ndarray:
    """Make a list of p values as strict as a single one, by Holm's correction (Holm 1979), in the order of the list.

    >>> correct_many([0.03, 0.01, 0.9, 0.02]).tolist()
    [0.06, 0.04, 0.9, 0.06]
    """
    order, factors = np.argsort(ps), len(ps) - np.arange(len(ps))
    corrected = np.empty(len(ps))
    corrected[order] = np.minimum(1, np.maximum.accumulate(np.asarray(ps)[order] * factors))
    return corrected


def difference_cells(ours: Sequence[float], theirs: Sequence[float]) -> list[str]:
    """Compare two rows in four cells of a table: both with spread, difference, p; no cells where runs are missing.

    >>> difference_cells([1, 2, 3], [4, 5, 6])
    ['2.000 ± 1.000', '5.000 ± 1.000', '-3.000', '0.10']
    """
    if not ours or not theirs:
        return []
    p = show_p(permutation_p(ours, theirs)) if min(len(ours), len(theirs)) > 1 else "single run"
    return [summary(ours), summary(theirs), f"{np.mean(ours) - np.mean(theirs):+.3f}", p]


def judge_expectation(lower: Sequence[float], higher: Sequence[float]) -> str:
    """Say whether the runs that were expected to have the lower scores have them; empty where runs are missing.

    A difference of the means below 0.0005 bits is none.

    >>> [judge_expectation(lower, [4, 5, 6]) for lower in ([1, 2, 3], [1, 5], [7, 8], [1])]
    ['came in all runs', 'came in the mean', 'did not come', 'came in a single run']
    """
    if not lower or not higher:
        return ""
    difference = np.mean(higher) - np.mean(lower)
    if abs(difference) < 0.0005:
        return "no difference"
    if difference < 0:
        return "did not come"
    if max(lower) >= min(higher):
        return "came in the mean"
    return "came in all runs" if min(len(lower), len(higher)) > 1 else "came in a single run"


def swapped_pairs(higher_is_better: Runs, lower_is_better: Runs) -> list[tuple[str, str]]:
    """List the pairs of rows that two measures rank differently, whichever of their runs you take.

    >>> swapped_pairs({"smooth": [30, 31], "sharp": [28, 29]}, {"smooth": [1.4, 1.5], "sharp": [1.2, 1.3]})
    [('smooth', 'sharp')]

    Args:
        higher_is_better: row -> runs of a measure such as PSNR.
        lower_is_better: the same rows -> runs of a measure such as VOI.

    Returns:
        Pairs of which all runs of the first are above all of the second by both measures.
    """
    return [
        (a, b)
        for a, b in permutations(higher_is_better, 2)
        if all(min(runs[a]) > max(runs[b]) for runs in (higher_is_better, lower_is_better))
    ]


def pooled_spread(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The standard deviation of single runs, pooled over two rows of at least two runs each.

    >>> print(f"{pooled_spread([1, 2, 3, 4, 5, 6], [1, 1.1]):.3f}")  # the row of six runs counts five times as much
    1.708
    """
    rows = [(len(runs) - 1, np.var(runs, ddof=1)) for runs in (ours, theirs)]
    return float(np.sqrt(sum(n * variance for n, variance in rows) / sum(n for n, _ in rows)))


def compare_runs(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """Say in one sentence what the difference of two rows' scores, the first against the second, lets you claim.

    The spread in the sentence is that of single runs, pooled over both rows.
    """
    if not ours or not theirs:
        return "not measured here"
    difference = float(np.mean(ours) - np.mean(theirs))
    size = f"{abs(difference):.3f} {'lower' if difference < 0 else 'higher'}"
    if min(len(ours), len(theirs)) == 1:
        return f"{size}; a single seed has no spread, so nothing follows"
    deviation = pooled_spread(ours, theirs)
    verdict = "more" if abs(difference) > deviation else "not more"
    p = show_p(permutation_p(ours, theirs))
    return f"{size}, {verdict} than the spread of single runs ({deviation:.3f}); p = {p} by permutation"


def compare_paired_runs(after: Sequence[float], before: Sequence[float]) -> str:
    """Say in one sentence how a change made to each run changed its score: mean, spread, how many runs rose."""
    if not after:
        return "not measured here"
    change = np.subtract(after, before)
    if len(change) == 1:
        return f"{change[0]:+.3f} in the only run; another training may differ"
    return f"{change.mean():+.3f} ± {spread(change):.3f}, up in {np.sum(change > 0)} of {len(change)} runs"
