"""Ask whether a network knows where it is wrong: errors per place inspected, risk, and whether 0.8 means four of five.

Expected calibration error, here for two classes: Naeini et al., AAAI 2015. Temperature: Guo et al., ICML 2017,
arXiv 1706.04599. Risk against coverage: Geifman and El-Yaniv, NeurIPS 2017, arXiv 1705.08500. Ours: the queue.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.optimize import minimize_scalar

from fgnet_lib.volumes import Region

BINS = 15  # of probabilities, in the calibration error


def errors_found(scores: np.ndarray, wrong: np.ndarray, shares: Sequence[float]) -> np.ndarray:
    """Compute the share of all errors among the places with the highest scores, for several shares inspected.

    Args:
        scores: (N,), higher is inspected earlier.
        wrong: bool (N,), at least one of them.
        shares: Of all places, from 0 to 1.
    """
    counts = np.concatenate([[0], np.cumsum(wrong[np.argsort(-scores.astype(float), kind="stable")])])
    return counts[[math.floor(share * len(wrong) + 1e-6) for share in shares]] / counts[-1]  # 0.29 x 100 is below 29


def risk_coverage(scores: np.ndarray, wrong: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute the error rate of what is kept when the most doubtful places are left out.

    Args:
        scores: (N,), higher is left out earlier.
        wrong: bool (N,).

    Returns:
        Coverage 1 / N, 2 / N, ... 1, and for each the share of wrong places among those that are kept.
    """
    kept = np.arange(1, len(wrong) + 1)
    return kept / len(wrong), np.cumsum(wrong[np.argsort(scores, kind="stable")]) / kept


def queue_places(scores: np.ndarray, count: int, apart: tuple[int, int, int]) -> list[tuple[int, int, int]]:
    """List places that a person should look at, the most doubtful first; any finite scores will do.

    Args:
        scores: (z, y, x), higher is more doubtful.
        count: Places at most.
        apart: Voxels (z, y, x); a box of so many on either side of a place yields no further one.

    Raises:
        ValueError: A score is nan or infinite, as an entropy may be where a probability is 0 or 1.
    """
    if odd := np.size(scores) - np.isfinite(scores).sum():
        raise ValueError(f"{odd} of {np.size(scores)} scores are nan or infinite, so they have no place in a queue")
    left, places = scores.astype(float), []
    while len(places) < count and np.isfinite(left).any():
        z, y, x = (int(i) for i in np.unravel_index(left.argmax(), left.shape))
        places.append((z, y, x))
        left[*Region.at((z, y, x), (1, 1, 1)).grow(apart, left.shape)] = -np.inf
    return places


def reliability(probabilities: np.ndarray, truth: np.ndarray, bins: int = BINS) -> np.ndarray:
    """Count what happened where a probability was announced, in bins of equal width.

    Args:
        probabilities: In [0, 1], any shape.
        truth: bool, same shape.
        bins: Their number.

    Returns:
        (bins, 3): samples, their mean probability, and the share that is true; nan where a bin is empty.
    """
    index = np.minimum((probabilities.ravel() * bins).astype(int), bins - 1)
    counts = np.bincount(index, minlength=bins)
    sums = [np.bincount(index, values.ravel().astype(float), bins) for values in (probabilities, truth)]
    return np.stack([counts, *(s / np.where(counts, counts, np.nan) for s in sums)], axis=1)


def calibration_error(probabilities: np.ndarray, truth: np.ndarray, bins: int = BINS) -> float:
    """Compute the expected calibration error: the mean distance of announced probability and share, by samples."""
    counts, announced, came = reliability(probabilities, truth, bins).T
    return float(np.nansum(counts * np.abs(announced - came)) / counts.sum())


def set_temperature(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Divide the logits of probabilities by a temperature; above 1 draws them towards 0.5, and no order changes."""
    p = np.clip(probabilities.astype(np.float64), 1e-6, 1 - 1e-6)
    return 1 / (1 + np.exp(-np.log(p / (1 - p)) / temperature))


def fit_temperature(probabilities: np.ndarray, truth: np.ndarray) -> float:
    """Find the temperature with the least cross entropy, between 0.05 and 20; take sections that were labelled."""

    def cross_entropy(log_temperature: float) -> float:
        p = set_temperature(probabilities, math.exp(log_temperature))
        return -np.log(np.where(truth, p, 1 - p)).mean()

    return math.exp(minimize_scalar(cross_entropy, bounds=(math.log(0.05), math.log(20)), method="bounded").x)
