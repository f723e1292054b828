"""Checks of lesson 13: two contrastive losses, weights inflated from 2D to 3D, and the offsets of a snake."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fgnet_lib.course.checks.exercise import call_array, exercise, require_equal

Loss = Callable[[np.ndarray], float]


@exercise(
    "13",
    "the released loss",
    "Take two pairs of equal similarity: what is the share of each, and what is minus its logarithm?",
)
def released_loss(answer: Loss) -> None:
    """Check -mean log softmax over the similarities of positive pairs."""
    for seed, pairs in enumerate((4, 7)):
        similarities = np.random.default_rng(seed).normal(size=pairs)
        weights = np.exp(similarities)
        shares = weights / weights.sum()
        right = -np.log(shares).mean()
        mistakes = {
            "You add the pairs up: their mean is asked for": right * pairs,
            "The sign is wrong: a share below 1 has a negative logarithm, and a loss is positive": -right,
            "That is log N whatever the similarities are: first the logarithms, then their mean": np.log(pairs),
            "The logarithm is missing": -shares.mean(),
            "The softmax is missing: without its sum, large similarities would be rewarded": -similarities.mean(),
            "That is a logarithm to the base 2: take the natural one": right / np.log(2),
            "You leave each pair out of its own sum": -np.log(weights / (weights.sum() - weights)).mean(),
        }
        result = call_array(answer, similarities, shape=())
        require_equal(result, np.array(right), mistakes, f"{result:.3f} is not the mean of the negative logarithms")


@exercise(
    "13",
    "InfoNCE",
    "Write a matrix of two samples down: which entry is the partner of the first row, and which is its rival?",
)
def info_nce_loss(answer: Loss) -> None:
    """Check -mean log of each partner's share in its row of similarities (N, N)."""
    for seed, samples in enumerate((3, 5)):
        similarities = np.random.default_rng(seed).normal(size=(samples, samples))
        weights = np.exp(similarities)
        partners = weights.diagonal()
        right = -np.log(partners / weights.sum(1)).mean()
        mistakes = {
            "You sum over columns: the rivals of a sample are in its row": -np.log(partners / weights.sum(0)).mean(),
            "Your sums hold positive pairs alone: that is the released loss": -np.log(partners / partners.sum()).mean(),
            "One sum serves the whole matrix, but each row has its own": -np.log(partners / weights.sum()).mean(),
            "Your sums lack the partner itself": -np.log(partners / (weights.sum(1) - partners)).mean(),
            "You add the samples up: their mean is asked for": right * samples,
            "The sign is wrong: a loss falls when partners become similar": -right,
            "All pairs count as partners, but only the diagonal does": -np.log(
                weights / weights.sum(1, keepdims=True)
            ).mean(),
            "There is no rival in your loss": -similarities.diagonal().mean(),
        }
        result = call_array(answer, similarities, shape=())
        require_equal(result, np.array(right), mistakes, f"{result:.3f} is not the mean over the rows")


@exercise(
    "13",
    "inflation",
    "Take a kernel of one weight and depth 3: which three numbers does each way make of it?",
    points=2,
)
def inflated_kernel(answer: Callable[[np.ndarray, int, str], np.ndarray]) -> None:
    """Check 3D kernels (outputs, inputs, z, y, x) made of 2D ones by "centre" and by "average"."""
    for seed, (shape, depth) in enumerate((((2, 3, 3, 3), 3), ((1, 2, 5, 3), 5))):
        weight = np.random.default_rng(seed).normal(size=shape)
        repeated = np.repeat(weight[:, :, None], depth, axis=2)
        section = np.arange(depth)[:, None, None]
        centre, average = repeated * (section == depth // 2), repeated / depth
        for way, right, other in (("centre", centre, average), ("average", average, centre)):
            mistakes = {
                "You have mixed the two ways up": other,
                f"The sections add up to {depth} times the 2D filter": repeated,
                "The filter lies in the first section, so the result moves by some sections": repeated * (section == 0),
                "The filter lies in the last section, so the result moves by some sections": repeated
                * (section == depth - 1),
                "In the middle the filter should be as it was": centre / depth,
            }
            result = call_array(answer, weight, depth, way, shape=repeated.shape)
            otherwise = f"{{n}} weights of way {way!r} are wrong, the first at {{at}} (output, input, z, y, x)"
            require_equal(result, right, mistakes, otherwise)


@exercise(
    "13",
    "the offsets of a snake",
    "Take three taps and the steps -0.5 and 3: where does each tap lie, seen from the middle one?",
    points=2,
)
def snake_offsets(answer: Callable[[np.ndarray], np.ndarray]) -> None:
    """Check the offsets (2, K) of a snake's taps from its steps (2, K - 1), of which none counts for more than 1."""
    for seed, half in enumerate((2, 3)):
        steps = np.random.default_rng(seed).normal(scale=1.2, size=(2, 2 * half))
        clipped = steps.clip(-1, 1)
        right = _accumulate(clipped, half)
        middle = np.zeros((2, 1))
        mistakes = {
            "Some of your steps are longer than 1": _accumulate(steps, half),
            "You limit the sums: only a single step is at most 1": _accumulate(steps, half).clip(-1, 1),
            "You begin at one end, but the middle tap is where the snake begins": np.cumsum(
                np.concatenate([middle, clipped], 1), 1
            ),
            "Your taps below the middle add their steps up from the far end": np.concatenate(
                [np.cumsum(clipped[:, :half], 1), right[:, half:]], 1
            ),
            "Each tap goes its own way: it should begin where the tap before it ended": np.concatenate(
                [clipped[:, :half], middle, clipped[:, half:]], 1
            ),
            "The steps below the middle count with their own sign": np.concatenate(
                [-right[:, :half], right[:, half:]], 1
            ),
        }
        result = call_array(answer, steps, shape=right.shape)
        require_equal(result, right, mistakes, "{n} offsets are wrong, the first at {at} (y or x, tap)")


def _accumulate(steps: np.ndarray, half: int) -> np.ndarray:
    """Sums of the steps from the middle outwards, 0 in the middle."""
    below = np.cumsum(steps[:, half - 1 :: -1], axis=1)[:, ::-1]
    return np.concatenate([below, np.zeros((2, 1)), np.cumsum(steps[:, half:], axis=1)], axis=1)
