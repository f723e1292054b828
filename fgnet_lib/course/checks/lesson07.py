"""Checks of lesson 07: fair pairs, mean and spread over seeds, and how often a difference is chance."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from fgnet_lib.course.checks.exercise import Hint, Slip, call, call_array, exercise, require, require_form

Settings = dict[str, dict[str, Any]]

PLAIN = {"encoder": "mini", "weights": "random", "iterations": 800}
SETTINGS: Settings = {
    "random": PLAIN,
    "pretrained": PLAIN | {"weights": "pretrained"},
    "longer": PLAIN | {"iterations": 1000},
    "pretrained, longer": PLAIN | {"weights": "pretrained", "iterations": 1000},
    "again": dict(PLAIN),
    "with a seed": PLAIN | {"seed": 1},
    "another seed": PLAIN | {"seed": None},
}
OTHER_SETTINGS: Settings = {"a": {"rate": 1}, "b": {"rate": 2}, "c": {"rate": 2, "depth": 0}, "d": {"depth": 0}}


@exercise(
    "07",
    "fair pairs",
    "Begin with two rows: print the keys in which they differ, those that only one of them has included.",
    points=2,
)
def fair_pairs(answer: Callable[[Settings], Iterable]) -> None:
    """Check the pairs of rows whose settings differ in exactly one thing, each once."""
    for rows in (SETTINGS, OTHER_SETTINGS):
        _judge_pairs(answer, rows)


def _judge_pairs(answer: Callable[[Settings], Iterable], rows: Settings) -> None:
    """Raise a hint unless an answer gives the fair pairs of some rows."""
    result = call(answer, rows)
    try:
        pairs = [tuple(pair) for pair in result]
        unique = {frozenset(pair) for pair in pairs}
    except TypeError:
        raise Slip("Return a list of pairs of names: [(one, other), ...]") from None
    known = all(name in rows for pair in pairs for name in pair)
    require(known and all(len(pair) == 2 for pair in pairs), "Each pair should hold two names of rows and nothing else")
    require(all(row != other for row, other in pairs), "You pair a row with itself")
    require(len(unique) == len(pairs), "You list a pair twice, perhaps in both orders")
    right = {frozenset((a, b)): changed for a, b in combinations(rows, 2) if (changed := _changed(rows[a], rows[b]))}
    for pair, changed in right.items():
        if len(changed) == 1 and pair not in unique:
            row, other = sorted(pair)
            extra = changed[0] not in rows[row] or changed[0] not in rows[other]
            reason = "in a setting that only one of them has" if extra else "in one setting, but you leave them out"
            raise Hint(f"{row!r} and {other!r} differ {reason}")
    for row, other in pairs:
        count = len(right.get(frozenset((row, other)), ()))
        require(count > 0, f"{row!r} and {other!r} do not differ at all, so they compare nothing")
        require(count == 1, f"{row!r} and {other!r} differ in {count} settings")


def _changed(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """Return the settings in which two rows differ; a missing setting differs from every value, None included."""
    return [key for key in {**a, **b} if key not in a or key not in b or a[key] != b[key]]


@exercise("07", "mean and spread", "Do it by hand for the runs 1 and 3, and then for a single run.")
def seed_summary(answer: Callable[[Sequence[float]], tuple]) -> None:
    """Check the mean and the standard deviation of a sample over the runs of a row; a single run has no spread."""
    for scores in ([1.0, 1.1, 1.5], [0.9, 0.3, 0.4, 0.6]):
        _judge_summary(answer, scores)
    require(_mean_and_spread(call(answer, [1.3, 1.1]))[1] is not None, "Two runs have a spread already")
    try:
        mean, spread = _mean_and_spread(call(answer, [1.3]))
    except Slip as slip:
        raise Hint(f"For a single run, return two values as well, its mean and None. {slip}") from slip
    require(bool(np.isclose(mean, 1.3)), "The mean of a single run is that run")
    require(
        spread is None or not np.isnan(spread),
        "The spread of a single run is nan (NumPy divides 0 by 0): ask for this case first, and return None",
    )
    require(spread is None, f"A single run has no spread, but yours is {spread}: that would look like certainty")


def _judge_summary(answer: Callable[[Sequence[float]], tuple], scores: list[float]) -> None:
    """Raise a hint unless an answer gives the mean and the spread of several runs."""
    mean, spread = _mean_and_spread(call(answer, scores))
    require(spread is not None, "Several runs have a spread")
    deviation = np.std(scores, ddof=1)
    means = {
        "The first number is the median, but the mean is asked for": np.median(scores),
        "The first number is the best run, not what a row does on average": min(scores),
        "The first number is a sum: divide it by the number of runs": sum(scores),
    }
    spreads = {
        "Your spread divides by the number of runs: for a sample, divide by one less": np.std(scores),
        "That is the variance: the spread should have the unit of the score": np.var(scores, ddof=1),
        "That is the variance, and it divides by the number of runs": np.var(scores),
        "That is the range: it grows with the number of runs": max(scores) - min(scores),
        "That is the standard error of the mean, not the spread of single runs": deviation / np.sqrt(len(scores)),
    }
    for number, right, mistakes in ((mean, np.mean(scores), means), (spread, deviation, spreads)):
        for hint, mistake in mistakes.items():
            require(not np.isclose(number, mistake), hint)
        what = (
            "The first number is not the mean of the runs"
            if mistakes is means
            else ("The second number is not the standard deviation of this sample")
        )
        require(bool(np.isclose(number, right)), what)


def _mean_and_spread(result: Any) -> tuple[float, Any]:
    """Return a student's mean and spread."""
    two = isinstance(result, Sequence | np.ndarray) and len(result) == 2
    require_form(two, f"Return mean and spread, not {result!r}")
    return float(result[0]), None if result[1] is None else float(result[1])


@exercise(
    "07",
    "how often by chance",
    "Do it by hand for [1, 2] and [4]: there are three deals. In how many do the means differ by at least 2.5?",
    points=2,
)
def chance_of(answer: Callable[[Sequence[float], Sequence[float]], float]) -> None:
    """Check the share of all deals into two hands whose means differ at least as much as those of the real deal."""
    ours, theirs = [1.1, 1.3, 1.5, 1.6], [1.4, 1.7]
    ties = [1.9, 1.5, 2.0, 1.2], [2.0, 1.7, 1.6]  # some of its deals differ as much as the real one, but for rounding
    for a, b in ((theirs, ours), (ours, theirs), ties, ties[::-1]):
        _judge_chance(float(call_array(answer, a, b, shape=())), a, b)
    result = float(call_array(answer, [1.0, 1.0], [1.0, 1.0, 1.0], shape=()))
    require(result == 1, "If all runs are equal, every deal differs as much as the real one: the share is 1")


def _judge_chance(result: float, ours: Sequence[float], theirs: Sequence[float]) -> None:
    """Raise a hint unless a share is that of the deals that differ at least as much as the real one."""
    runs, hands = np.array([*ours, *theirs]), list(combinations(range(len(ours) + len(theirs)), len(ours)))
    deals = [np.isin(np.arange(len(runs)), hand) for hand in hands]
    differences = np.array([runs[deal].mean() - runs[~deal].mean() for deal in deals])
    seen = float(np.mean(ours) - np.mean(theirs))
    as_large = np.abs(differences) >= abs(seen) - 1e-9
    larger = np.abs(differences) > abs(seen) + 1e-9
    one_way = differences * np.sign(seen) >= abs(seen) - 1e-9
    halves = [np.isin(np.arange(len(runs)), hand) for hand in combinations(range(len(runs)), len(runs) // 2)]
    alike = [abs(runs[half].mean() - runs[~half].mean()) >= abs(seen) - 1e-9 for half in halves]
    sums = np.array([abs(runs[deal].sum() - runs[~deal].sum()) for deal in deals])
    by_value = [runs[~np.isin(runs, runs[deal])] for deal in deals]
    others = [abs(runs[deal].mean() - rest.mean()) for deal, rest in zip(deals, by_value, strict=True) if len(rest)]
    mistakes = {
        "You count only one direction, but the other would surprise you as much": one_way.mean(),
        "You count only one direction, and not that of the real deal: both would surprise you as much": (
            (differences * np.sign(-seen) >= abs(seen) - 1e-9).mean()
        ),
        "The real deal is one of all deals, but you leave it out": (as_large.sum() - 1) / (len(deals) - 1),
        "A deal that differs exactly as much counts too (mind the rounding)": larger.mean(),
        "That is the share of deals that differ less": 1 - as_large.mean(),
        "You deal hands of equal size, but each row keeps its number of runs": np.mean(alike),
        "That is a number of deals, but their share is asked for": as_large.sum(),
        "Two runs may have the same score: part the hands by the runs' numbers, not by their scores": (
            np.sum(np.array(others) >= abs(seen) - 1e-9) / len(deals)
        ),
        "You compare the hands by their sums: the hand with more runs always wins": (
            sums >= abs(sum(ours) - sum(theirs)) - 1e-9
        ).mean(),
    }
    if np.isclose(result, as_large.mean()):
        return
    for hint, mistake in mistakes.items():
        require(not np.isclose(result, mistake), hint)
    require(
        not larger.mean() < result < as_large.mean(),
        "Some deals differ exactly as much as the real one, but you lose them by rounding: count what is within 1e-9",
    )
    raise Hint(f"The share of the {len(deals)} deals that differ at least as much is not {result:.3f}")
