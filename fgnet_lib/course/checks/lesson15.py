"""Checks of lesson 15: coordinates as waves, where to look again, errors per place inspected, and calibration."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fgnet_lib.course.checks.exercise import call_array, exercise, require_equal


@exercise(
    "15",
    "coordinates as waves",
    "Take a point at 0.5: what are sin(pi / 2) and cos(pi / 2), and what comes for the next frequency?",
    points=2,
)
def coordinate_waves(answer: Callable[[np.ndarray, int, float], np.ndarray]) -> None:
    """Check sin and cos of 2^k pi p for points (N,), with the highest frequencies closed."""
    for seed, (frequencies, opened) in enumerate(((3, 1.0), (5, 0.75), (4, 0.8), (4, 0.2))):
        p = np.random.default_rng(seed).uniform(-1, 1, 6)
        count = int(opened * frequencies)
        right = _waves(2.0 ** np.arange(frequencies), p, count)
        mistakes = {
            "All frequencies are open: those from opened x frequencies on are 0": _waves(
                2.0 ** np.arange(frequencies), p, frequencies
            ),
            "You round up: a frequency that is open in part is still closed": _waves(
                2.0 ** np.arange(frequencies), p, int(np.ceil(opened * frequencies))
            ),
            "Your waves have twice the frequency: the lowest one is pi p": _waves(
                2.0 ** np.arange(1, frequencies + 1), p, count
            ),
            "The factors grow by 1 from wave to wave, but each should be twice the one before": _waves(
                np.arange(1.0, frequencies + 1), p, count
            ),
            "A factor of pi is missing": _waves(2.0 ** np.arange(frequencies) / np.pi, p, count),
            "Sine and cosine are exchanged: sine comes first": right.reshape(6, -1, 2)[:, :, ::-1].reshape(6, -1),
            "All sines come first, but each frequency has its sine and cosine side by side": np.concatenate(
                [right[:, ::2], right[:, 1::2]], axis=1
            ),
        }
        result = call_array(answer, p, frequencies, opened, shape=right.shape)
        require_equal(result, right, mistakes, "{n} values are wrong, the first at {at} (point, column)")


def _waves(factors: np.ndarray, p: np.ndarray, count: int) -> np.ndarray:
    """sin and cos of pi * factor * p, side by side; 0 from frequency `count` on."""
    angles = np.pi * p[:, None] * factors
    waves = np.stack([np.sin(angles), np.cos(angles)], axis=2) * (np.arange(len(factors)) < count)[:, None]
    return waves.reshape(len(p), -1)


@exercise(
    "15",
    "where to look again",
    "Write down two passes over three points: which point changes most from one pass to the other?",
)
def second_look(answer: Callable[[np.ndarray, float], np.ndarray]) -> None:
    """Check the floor(share * N) points with the highest variance over passes (T, N), highest first."""
    for seed, (passes, points, share) in enumerate(((4, 23, 0.25), (3, 17, 0.5), (4, 5000, 0.25))):
        probabilities = np.random.default_rng(seed).random((passes, points))
        probabilities[1:, ::3] = probabilities[0, ::3] + 0.02 * probabilities[1:, ::3]  # some points hardly change
        order = np.argsort(-probabilities.var(0))
        budget = int(share * points)
        right = order[:budget]
        mistakes = {
            "These are the points that change least: the most doubtful ones are wanted": order[::-1][:budget],
            "You choose by the mean of the passes, which does not tell how far they disagree": np.argsort(
                -probabilities.mean(0)
            )[:budget],
            "Your order is that of the points: the most doubtful point comes first": np.sort(right),
            "The most doubtful point comes first, and your order is the opposite": right[::-1],
            "You compare the first two passes alone": np.argsort(-np.abs(probabilities[0] - probabilities[1]))[:budget],
            "These are variances: where they are highest is wanted": -np.sort(-probabilities.var(0))[:budget],
        }
        result = call_array(answer, probabilities, share, shape=(budget,))
        require_equal(result, right, mistakes, "{n} points differ, the first at position {at}")


@exercise(
    "15",
    "errors per place inspected",
    "Take four places, two of them wrong, and inspect the first two: how many of the errors have you seen?",
)
def inspected_errors(answer: Callable[[np.ndarray, np.ndarray, float], float]) -> None:
    """Check the share of all errors among the floor(share * N) places with the highest scores."""
    for seed, places, share in ((3, 399, 0.25), (0, 333, 0.4)):  # together they tell all wrong answers apart
        rng = np.random.default_rng(seed)
        wrong = rng.random(places) < 0.3
        scores = rng.random(places) + 0.2 * wrong
        order, budget = np.argsort(-scores), int(share * places)
        seen = wrong[order[:budget]].sum()
        right = seen / wrong.sum()
        mistakes = {
            "That is the share of inspected places that are wrong: divide by the number of all errors": seen / budget,
            "You inspect the least doubtful places first": wrong[order[::-1][:budget]].sum() / wrong.sum(),
            "That is a share of all places: divide by the number of all errors": seen / places,
            "That is a number of errors, and their share is wanted": seen,
            "That is the share of errors that are left": 1 - right,
            "You count the places that are right": (~wrong[order[:budget]]).sum() / (~wrong).sum(),
            "You round up: the number of places is rounded down": wrong[order[: budget + 1]].sum() / wrong.sum(),
            "The share is of places, and no limit for the scores": wrong[scores > share].sum() / wrong.sum(),
            "You leave out the most doubtful place": wrong[order[1 : budget + 1]].sum() / wrong.sum(),
            "The share is of all places, and not of the errors": wrong[order[: int(share * wrong.sum())]].sum()
            / wrong.sum(),
        }
        result = call_array(answer, scores, wrong, share, shape=())
        require_equal(result, np.array(right), mistakes, f"{result:.3f} is not the share of errors that were seen")


@exercise(
    "15",
    "the calibration error",
    "Take four samples at 0.9, of which two are true: how far is what was announced from what came?",
    points=2,
)
def expected_calibration(answer: Callable[[np.ndarray, np.ndarray, int], float]) -> None:
    """Check the expected calibration error of probabilities and truth in bins of equal width."""
    rng = np.random.default_rng(3)
    edges = np.concatenate([rng.random(40) ** 2, [0, 0, 0.25, 0.5, 0.5, 1]])
    for probabilities, bins in ((edges, 4), (0.3 + 0.4 * rng.random(60), 10)):
        truth = rng.random(len(probabilities)) < 0.2 + 0.5 * probabilities
        index = np.minimum((probabilities * bins).astype(int), bins - 1)
        inside = [index == k for k in range(bins) if (index == k).any()]
        counts = np.array([mask.mean() for mask in inside])
        gaps = np.array([probabilities[mask].mean() - truth[mask].mean() for mask in inside])
        middles = np.array([(index[mask][0] + 0.5) / bins - truth[mask].mean() for mask in inside])
        certain = np.array([np.mean((probabilities[mask] >= 0.5) == truth[mask]) for mask in inside])
        right = (counts * np.abs(gaps)).sum()
        mistakes = {
            "All bins count alike in your sum: each counts by its samples": np.abs(gaps).sum() / bins,
            "All bins count alike in your mean: each counts by its samples": np.abs(gaps).mean(),
            "Gaps above and below cancel in your sum: take their size": (counts * gaps).sum(),
            "You square the gaps: take their size": (counts * gaps**2).sum(),
            "That is the largest gap: a mean over all samples is wanted": np.abs(gaps).max(),
            "Your bins count by their number of samples: take their share of all samples": len(truth) * right,
            "Your bins divide the range of the probabilities, but they should divide 0 to 1": _gap_of_range(
                probabilities, truth, bins
            ),
            "What was announced is the mean probability of a bin, not its middle": (counts * np.abs(middles)).sum(),
            "Compare with the share that is true, and not with how often a guess is right": (
                counts * np.abs(gaps + np.array([truth[mask].mean() for mask in inside]) - certain)
            ).sum(),
        }
        result = call_array(answer, probabilities, truth, bins, shape=())
        require_equal(result, np.array(right), mistakes, f"{result:.4f} is not the mean gap between announced and true")


def _gap_of_range(probabilities: np.ndarray, truth: np.ndarray, bins: int) -> float:
    """The calibration error in bins between the least and the largest probability, as histograms choose them."""
    sums = [np.histogram(probabilities, bins, weights=values)[0] for values in (probabilities, truth.astype(float))]
    return np.abs(sums[0] - sums[1]).sum() / len(truth)
