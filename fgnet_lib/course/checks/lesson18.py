"""Checks of lesson 18: the smallest p of two rows, the best of many runs, and Holm's correction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations
from math import comb

import numpy as np

from fgnet_lib.course.checks.exercise import call_array, exercise, require, require_equal


@exercise("18", "the smallest p", "Write all deals of 2 + 2 runs down: in how many do the means differ as much?")
def smallest_p(answer: Callable[[int], float]) -> None:
    """Check 2 / C(2n, n), the p value of two rows of n runs that do not overlap."""
    for runs in (2, 3, 5):
        right = 2 / comb(2 * runs, runs)
        mistakes = {
            "That is one direction alone: the deal with the hands exchanged differs as much": right / 2,
            "You deal the runs of one row alone: both rows are put together first": 2 / comb(runs, 2),
            "In your deals the order within a hand counts, but it does not change a mean": 2
            / (comb(2 * runs, runs) * np.prod(np.arange(1.0, runs + 1))),
            "You let each run choose its hand, so your hands have any size": 2 / 4**runs,
            "That is the number of deals: the share of those that differ as much is asked for": 1 / right * 2,
            "The real deal is one of the deals, and so is its mirror image: do not leave them out": 0.0,
        }
        result = call_array(answer, runs, shape=())
        require_equal(result, np.array(right), mistakes, f"for {runs} runs a row, {result:.4f} is not the share")


@exercise("18", "the best of k", "Take three scores and k = 2: write the three choices down, and the best run of each.")
def best_of(answer: Callable[[Sequence[float], int], float]) -> None:
    """Check the mean of the smallest score over all choices of k runs."""
    for scores, k in (([1.2, 1.45, 1.1, 1.5, 0.9], 2), ([1.31, 1.3, 1.8, 0.7], 3)):
        choices = list(combinations(scores, k))
        right = np.mean([min(choice) for choice in choices])
        mistakes = {
            "You return the best of all runs, whatever k is": min(scores),
            "You return the mean of all runs: nothing has been chosen": np.mean(scores),
            "You keep the worst run of each choice: lower is better": np.mean([max(choice) for choice in choices]),
            "You keep the best of the first k runs: take every choice of k runs": min(scores[:k]),
            "You add the best runs up: their mean is asked for": right * len(choices),
            "You return the median of the best runs, but their mean is asked for": np.median(
                [min(choice) for choice in choices]
            ),
            "You may take the same run twice: the k runs are different ones": np.mean(
                np.array(np.meshgrid(*[scores] * k)).min(0)
            ),
        }
        result = call_array(answer, scores, k, shape=())
        require_equal(result, np.array(right), mistakes, f"{result:.4f} is not the mean of the best runs")


@exercise(
    "18",
    "Holm's correction",
    "Do it by hand for [0.04, 0.03]: the smaller one is doubled. What does the other become, so that it is not below?",
    points=2,
)
def holm(answer: Callable[[list[float]], np.ndarray]) -> None:
    """Check Holm's corrected p values, in the order of the list."""
    for ps in ([0.03, 0.004, 0.9, 0.02, 0.025], [0.6, 0.7, 0.2], [0.01]):
        m, order = len(ps), np.argsort(ps)
        factors = m - np.arange(m)
        raw = np.sort(ps) * factors
        steps = np.maximum.accumulate(raw)
        back = np.argsort(order)
        right = np.minimum(1, steps)[back]
        mistakes = {
            "You multiply every value by their number: that is Bonferroni's correction": np.minimum(
                1, np.array(ps) * m
            ),
            "A corrected value is smaller than the one before it": np.minimum(1, raw)[back],
            "Your values are sorted: give them back in the order of the list": np.minimum(1, steps),
            "A p value cannot be larger than 1": steps[back],
            "The smallest value gets the smallest factor: it should get the largest": np.minimum(
                1, np.maximum.accumulate(np.sort(ps) * factors[::-1])
            )[back],
            "You return p values as they are": np.array(ps),
        }
        result = call_array(answer, ps, shape=(m,))
        require_equal(result, right, mistakes, f"{np.round(result, 4)} are not the corrected values of {ps}")
        require(bool((result >= np.array(ps) - 1e-12).all()), "A correction never makes a p value smaller")
