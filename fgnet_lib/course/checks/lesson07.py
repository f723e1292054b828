"""Checks of lesson 07: fair pairs, mean and spread over seeds, and how often a difference is chance."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from fgnet_lib.course.checks.exercise import Hint, call, exercise, require

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


@exercise("07", "fair pairs", points=2)
def fair_pairs(answer: Callable[[Settings], Iterable]) -> None:
    """Check the pairs of rows whose settings differ in exactly one thing, each once."""
    result = call(answer, {name: dict(row) for name, row in SETTINGS.items()})
    try:
        pairs = [tuple(pair) for pair in result]
        unique = {frozenset(pair) for pair in pairs}
    except TypeError:
        raise Hint("Return a list of pairs of names: [(one, other), ...]") from None
    known = all(name in SETTINGS for pair in pairs for name in pair)
    require(known and all(len(pair) == 2 for pair in pairs), "Each pair should hold two names of rows and nothing else")
    require(all(row != other for row, other in pairs), "You pair a row with itself")
    require(len(unique) == len(pairs), "You list a pair twice, perhaps in both orders")
    right = {frozenset(pair): changed for pair in combinations(SETTINGS, 2) if (changed := _changed(*pair))}
    for pair, changed in right.items():
        if len(changed) == 1 and pair not in unique:
            row, other = sorted(pair)
            extra = changed[0] not in SETTINGS[row] or changed[0] not in SETTINGS[other]
            reason = "in a setting that only one of them has" if extra else "in one setting, but you leave them out"
            raise Hint(f"{row!r} and {other!r} differ {reason}")
    for row, other in pairs:
        count = len(right.get(frozenset((row, other)), ()))
        require(count > 0, f"{row!r} and {other!r} do not differ at all, so they compare nothing")
        require(count == 1, f"{row!r} and {other!r} differ in {count} settings")


def _changed(row: str, other: str) -> list[str]:
    """Return the settings in which two rows differ; a missing setting differs from every value, None included."""
    a, b = SETTINGS[row], SETTINGS[other]
    return [key for key in {**a, **b} if key not in a or key not in b or a[key] != b[key]]


@exercise("07", "mean and spread")
def seed_summary(answer: Callable[[Sequence[float]], tuple]) -> None:
    """Check the mean and the standard deviation of a sample over the runs of a row; a single run has no spread."""
    scores = [1.0, 1.1, 1.5]
    mean, spread = _mean_and_spread(call(answer, list(scores)))
    require(spread is not None, "Three runs have a spread")
    mistakes = {
        "The first number is the median, but the mean is asked for": np.isclose(mean, 1.1),
        "The first number is the best run, not what a row does on average": np.isclose(mean, 1.0),
        "The first number is not the mean of the runs": not np.isclose(mean, 1.2),
        "Your spread divides by the number of runs: for a sample, divide by one less": np.isclose(
            spread, np.std(scores)
        ),
        "That is the variance: the spread should have the unit of the score": np.isclose(
            spread, np.var(scores, ddof=1)
        ),
        "That is the range: it grows with the number of runs": np.isclose(spread, 0.5),
        "That is the standard error of the mean, not the spread of single runs": np.isclose(
            spread, np.std(scores, ddof=1) / np.sqrt(3)
        ),
        "The second number is not the standard deviation of this sample": not np.isclose(
            spread, np.std(scores, ddof=1)
        ),
    }
    for hint, made in mistakes.items():
        require(not made, hint)
    mean, spread = _mean_and_spread(call(answer, [1.3]))
    require(bool(np.isclose(mean, 1.3)), "The mean of a single run is that run")
    require(spread is None, f"A single run has no spread, but yours is {spread}: that would look like certainty")


def _mean_and_spread(result: Any) -> tuple[float, Any]:
    """Return a student's mean and spread."""
    require(isinstance(result, Sequence | np.ndarray) and len(result) == 2, f"Return mean and spread, not {result!r}")
    return float(result[0]), None if result[1] is None else float(result[1])


@exercise("07", "how often by chance", points=2)
def chance_of(answer: Callable[[Sequence[float], Sequence[float]], float]) -> None:
    """Check the share of all deals into two hands whose means differ at least as much as those of the real deal."""
    ours, theirs = [1.1, 1.3, 1.5, 1.6], [1.4, 1.7]
    for a, b in ((ours, theirs), (theirs, ours)):
        result = _single_number(call(answer, list(a), list(b)))
        _judge(result, a, b)
    result = _single_number(call(answer, [1.0, 1.0], [1.0, 1.0, 1.0]))
    require(result == 1, "If all runs are equal, every deal differs as much as the real one: the share is 1")


def _judge(result: float, ours: Sequence[float], theirs: Sequence[float]) -> None:
    runs, hands = np.array([*ours, *theirs]), list(combinations(range(len(ours) + len(theirs)), len(ours)))
    deals = [np.isin(np.arange(len(runs)), hand) for hand in hands]
    differences = np.array([runs[deal].mean() - runs[~deal].mean() for deal in deals])
    seen = float(np.mean(ours) - np.mean(theirs))
    as_large = np.abs(differences) >= abs(seen) - 1e-9
    larger = np.abs(differences) > abs(seen) + 1e-9
    one_way = differences * np.sign(seen) >= abs(seen) - 1e-9
    sums = np.array([abs(runs[deal].sum() - runs[~deal].sum()) for deal in deals])
    mistakes = {
        "You count only one direction, but the other would surprise you as much": one_way.mean(),
        "The real deal is one of all deals, but you leave it out": (as_large.sum() - 1) / (len(deals) - 1),
        "A deal that differs exactly as much counts too (mind the rounding)": larger.mean(),
        "That is the share of deals that differ less": 1 - as_large.mean(),
        "That is a number of deals, but their share is asked for": as_large.sum(),
        "You compare the hands by their sums: the hand with more runs always wins": (
            sums >= abs(sum(ours) - sum(theirs)) - 1e-9
        ).mean(),
    }
    if np.isclose(result, as_large.mean()):
        return
    for hint, mistake in mistakes.items():
        require(not np.isclose(result, mistake), hint)
    raise Hint(f"The share of the {len(deals)} deals that differ at least as much is not {result:.3f}")


def _single_number(result: Any) -> float:
    require(np.ndim(result) == 0 and np.isreal(result), f"Return a single number, not {result!r}")
    return float(result)
