"""Checks of lesson 12: grey values by rank, statistics of features, an average over history, partners of synapses."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.optimize import linear_sum_assignment

from fgnet_lib.course.checks.exercise import call_array, exercise, require_equal


@exercise(
    "12",
    "grey values by rank",
    "Take four voxels 5, 5, 7, 9 by hand: which share of them is at most 5, and which is at most 7?",
    points=2,
)
def matched_values(answer: Callable[..., np.ndarray]) -> None:
    """Check histogram matching: each grey value becomes the source's value of the same cumulative share."""
    for seed, shape in ((0, (8, 8)), (1, (4, 32))):
        random = np.random.default_rng(seed)
        raw = random.integers(20, 90, shape, dtype=np.uint8)
        # powers of 2, so that shares are exact
        histogram = np.bincount(random.integers(100, 240, 256 * (1 + 3 * seed)), minlength=256)
        counts = np.bincount(raw.ravel(), minlength=256)
        own, theirs = np.cumsum(counts) / raw.size, np.cumsum(histogram) / histogram.sum()
        values = np.arange(256)
        mean = (histogram * values).sum() / histogram.sum()
        deviation = np.sqrt((histogram * (values - mean) ** 2).sum() / histogram.sum())
        right = np.searchsorted(theirs, own)[raw]
        mistakes = {
            "Nothing has changed: these are the target's own values": raw,
            "You compare numbers of voxels, but the two volumes have different sizes: compare shares": np.searchsorted(
                np.cumsum(histogram), np.cumsum(counts)
            )[raw],
            "You go past the value that is asked for: a share that is equal is enough": np.searchsorted(
                theirs, own, side="right"
            )[raw],
            "The direction is wrong: look up the target's share in the source's": np.searchsorted(own, theirs)[raw],
            "Mean and deviation are the source's, but the shares are not": (raw - raw.mean()) / raw.std() * deviation
            + mean,
            "Dark and bright have changed places": 255 - right,
            "The share of a single value is not cumulative": np.searchsorted(theirs, counts / raw.size)[raw],
        }
        result = call_array(answer, raw, histogram, shape=shape)
        require_equal(result, right, mistakes, "{n} grey values are wrong, the first at {at}")


@exercise(
    "12",
    "the source's statistics",
    "What are mean and deviation of a channel after you have taken its own mean away and divided by its own deviation?",
)
def standardised_features(answer: Callable[..., np.ndarray]) -> None:
    """Check features (channels, voxels) that get another mean and deviation in each channel."""
    for seed, (channels, voxels) in enumerate(((3, 7), (4, 5))):
        random = np.random.default_rng(seed)
        features = random.normal(2, 3, (channels, voxels)) * random.uniform(0.5, 2, (channels, 1))
        mean, deviation = random.normal(size=channels), random.uniform(0.5, 2, channels)
        own, spread = features.mean(1, keepdims=True), features.std(1, keepdims=True)
        target, scale = mean[:, None], deviation[:, None]
        mistakes = {
            "You scale without taking the channel's own mean away": features / spread * scale + target,
            "The channel's own deviation is still in there": (features - own) * scale + target,
            "You divide by the variance, the square of the deviation": (features - own) / spread**2 * scale + target,
            "The new deviation is missing: it is 1 in every channel": (features - own) / spread + target,
            "The new mean is missing: it is 0 in every channel": (features - own) / spread * scale,
            "The new mean is scaled, too: add it last": ((features - own) / spread + target) * scale,
            "All channels share one mean and deviation, but each has its own": (features - features.mean())
            / features.std()
            * scale
            + target,
            "You divide by n - 1 where the stored deviation divides by n": (features - own)
            / features.std(1, keepdims=True, ddof=1)
            * scale
            + target,
        }
        result = call_array(answer, features, mean, deviation, shape=(channels, voxels))
        require_equal(
            result, (features - own) / spread * scale + target, mistakes, "{n} values are wrong, the first at {at}"
        )


@exercise(
    "12",
    "an average over history",
    "Do two steps by hand, with a decay of 0.5: how much of the first weights is left in the teacher?",
)
def averaged_weights(answer: Callable[..., np.ndarray]) -> None:
    """Check the weights of a teacher after several students, as an exponential moving average."""
    for seed, (steps, decay) in enumerate(((3, 0.7), (5, 0.9))):
        random = np.random.default_rng(seed)
        first, students = random.normal(size=4), random.normal(size=(steps, 4))

        def average(start: np.ndarray, history: np.ndarray, keep: float) -> np.ndarray:
            for student in history:
                start = keep * start + (1 - keep) * student
            return start

        mistakes = {
            "That is the last student: the teacher has not averaged anything": students[-1],
            "That is the plain mean of the students": students.mean(0),
            "The two weights have changed places: the teacher keeps `decay` of itself": average(
                first, students, 1 - decay
            ),
            "The teacher begins at 0, but it begins at the first weights": average(0 * first, students, decay),
            "Only one student has arrived in your teacher": average(first, students[-1:], decay),
            "The students arrive in the wrong order": average(first, students[::-1], decay),
            "The parts do not sum to 1: how much of the student is added?": average(
                first, students / (1 - decay), decay
            ),
        }
        result = call_array(answer, first, students, decay, shape=(4,))
        require_equal(result, average(first, students, decay), mistakes, "{n} weights are wrong, the first at {at}")


@exercise(
    "12",
    "partners in nanometres",
    "Two points differ by one section and by 8 columns: how far is that in nm, with voxels of 40 x 8 x 8?",
    points=2,
)
def synapse_partners(answer: Callable[..., np.ndarray]) -> None:
    """Check the nearest pre-synaptic site of each post-synaptic one, in nm."""
    for seed, (n, m), size in (
        (0, (8, 8), (40, 8, 8)),
        (2, (7, 12), (30, 6, 9)),
    ):  # seeds whose wrong answers all differ
        voxel_size = np.array(size, float)
        random = np.random.default_rng(seed)
        pre, post = random.integers(0, (6, 40, 40), (n, 3)), random.integers(0, (6, 40, 40), (m, 3))
        away = (post[:, None] - pre) * voxel_size
        far = np.linalg.norm(away, axis=-1)
        mistakes = {
            "You count voxels, but a section is thicker than a pixel is wide": np.linalg.norm(
                post[:, None] - pre, axis=-1
            ).argmin(1),
            "These are the farthest sites": far.argmax(1),
            "Sections count, too: z is missing in your distances": np.linalg.norm(away[..., 1:], axis=-1).argmin(1),
            "You add up the three differences; a distance is the root of the sum of squares": np.abs(away)
            .sum(-1)
            .argmin(1),
        }
        if n == m:
            mistakes["Each pre-synaptic site has chosen; here each post-synaptic one chooses"] = far.argmin(0)
            mistakes["Each site has a partner of its own: that is the optimal assignment"] = linear_sum_assignment(far)[
                1
            ]
        result = call_array(answer, pre, post, voxel_size, shape=(m,))
        require_equal(result, far.argmin(1), mistakes, "{n} sites have another partner, the first is site {at}")
