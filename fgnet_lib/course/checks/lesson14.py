"""Checks of lesson 14: PSNR, blind spots, attention over channels, and a coupling that is undone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch import Tensor

from fgnet_lib.course.checks.exercise import call, call_array, exercise, require_equal, require_form


@exercise(
    "14",
    "PSNR",
    "Take an error of 0.1 in each pixel: what is its mean square, and what is the logarithm of that?",
)
def signal_to_noise(answer: Callable[[np.ndarray, np.ndarray], float]) -> None:
    """Check -10 log10 of the mean squared error of grey values up to 1."""
    for seed, strength in enumerate((0.05, 0.3)):
        rng = np.random.default_rng(seed)
        clean = rng.uniform(0.1, 0.7, (5, 6))
        image = clean + rng.normal(0, strength, clean.shape)
        error = image - clean
        square = np.mean(error**2)
        right = -10 * np.log10(square)
        mistakes = {
            "The sign is wrong: a smaller error has a higher PSNR": -right,
            "You take the root of the error and keep the factor 10": right / 2,
            "The factor 20 belongs to the root of the mean square, 10 to the mean square itself": 2 * right,
            "The natural logarithm is not in decibels": -10 * np.log(square),
            "Errors are added up, but their mean is asked for": -10 * np.log10(np.sum(error**2)),
            "The mean of the errors' sizes is not the mean of their squares": -10 * np.log10(np.mean(abs(error))),
            "Square first, then average: errors of both signs must not cancel": -10 * np.log10(np.mean(error) ** 2),
            "The peak is 1, not the brightest pixel that is there": 10 * np.log10(clean.max() ** 2 / square),
        }
        result = call_array(answer, image, clean, shape=())
        require_equal(result, np.array(right), mistakes, f"{result:.2f} dB is not the PSNR")


@exercise(
    "14",
    "blind spots",
    "Take a section of three pixels in a row, and hide the first one with step (0, 1): what do you get?",
)
def hidden_pixels(answer: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]) -> None:
    """Check a section in which each point has the value of the pixel at point + step."""
    for seed in range(2):
        rng = np.random.default_rng(seed)
        section = rng.uniform(size=(7, 9))
        points = np.array([(2, 2), (2, 3), (4, 6), (4, 2 + seed)])
        steps = np.array([(0, 1), (1, -1), (-2, 1), (-2, -seed)])  # the first borrows from the second, the last from it
        y, x = points.T
        dy, dx = steps.T

        def hide(values: np.ndarray, section: np.ndarray = section, y: np.ndarray = y, x: np.ndarray = x) -> np.ndarray:
            hidden = section.copy()
            hidden[y, x] = values
            return hidden

        in_turn, backwards = section.copy(), section.copy()
        for hidden, order in ((in_turn, 1), (backwards, -1)):
            for (a, b), (da, db) in zip(points[::order], steps[::order], strict=True):
                hidden[a, b] = hidden[a + da, b + db]
        mirrored = section.copy()
        mirrored[y + dy, x + dx] = section[y, x]
        mistakes = {
            "Your section is as it was: nothing is hidden": section,
            "You go the step backwards": hide(section[y - dy, x - dx]),
            "You give the point's value to its neighbour: it is the point that should change": mirrored,
            "Take values from the section as it was given: one of yours was hidden before it was lent": backwards,
            "Take values from the section as it was given, not from the copy: one pixel there had changed": in_turn,
            "y comes first, then x: your steps are mixed up": hide(section[y + dx, x + dy]),
            "Take the value of one neighbour, not a mean": hide(section.mean()),
            "A value from nearby is wanted, not 0": hide(np.zeros(len(y))),
            "Add the step to the place, not to the value": hide(section[y, x] + dy + dx),
        }
        result = call_array(answer, section, points, steps, shape=section.shape)
        require_equal(result, hide(section[y + dy, x + dx]), mistakes, "{n} pixels are wrong, the first at {at} (y, x)")


@exercise(
    "14",
    "channel attention",
    "Take C = 2 and N = 3: which shape does the matrix of weights have, and what is the sum of each of its rows?",
    points=2,
)
def channel_attention(answer: Callable[..., np.ndarray]) -> None:
    """Check softmax(t q k^T) v for arrays (C, N)."""
    for seed, (channels, pixels, t) in enumerate(((3, 5, 1.5), (4, 4, 0.7))):
        rng = np.random.default_rng(seed)
        q, k, v = rng.normal(size=(3, channels, pixels))
        q, k = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (q, k))
        shares = _softmax(t * q @ k.T)
        mistakes = {
            "You attend between pixels: the weights should be C x C": (v @ _softmax(t * q.T @ k).T),
            "The softmax runs over the wrong axis: the sum of each row should be 1": _softmax(t * (q @ k.T).T).T @ v,
            "The weights are used the wrong way round: row i mixes all channels into channel i": shares.T @ v,
            "The number t is missing": _softmax(q @ k.T) @ v,
            "q and k have changed places": _softmax(t * k @ q.T) @ v,
            "The softmax is missing": t * q @ k.T @ v,
            "The weights mix the channels of v, not those of k": shares @ k,
            "The sum of each row should be 1: divide": np.exp(t * q @ k.T) @ v,
            "One sum serves the whole matrix, but each row has its own": np.exp(t * q @ k.T)
            / np.exp(t * q @ k.T).sum()
            @ v,
        }
        result = call_array(answer, q, k, v, t, shape=v.shape)
        require_equal(result, shares @ v, mistakes, "{n} values are wrong, the first at {at} (channel, pixel)")


@exercise(
    "14",
    "undo a coupling",
    "Which of the two did the coupling change last, and what did it need for that? Begin with this one.",
    points=2,
)
def undone_coupling(answer: Callable[..., tuple[np.ndarray, np.ndarray]]) -> None:
    """Check content and noise before c' = c + f(n), n' = n exp(s(c')) + g(c')."""
    for seed in range(2):
        rng = np.random.default_rng(seed)
        c, n = rng.normal(size=(2, 4, 3))
        weights = rng.uniform(0.5, 1.5, 3)

        def f(x: np.ndarray, w: float = weights[0]) -> np.ndarray:
            return np.sin(w * x)

        def g(x: np.ndarray, w: float = weights[1]) -> np.ndarray:
            return w * x**2

        def s(x: np.ndarray, w: float = weights[2]) -> np.ndarray:
            return np.tanh(w * x)

        content = c + f(n)
        noise = n * np.exp(s(content)) + g(content)
        result = call(answer, content, noise, f, g, s)
        two = isinstance(result, tuple | list | np.ndarray | Tensor) and len(result) == 2
        require_form(two, "Give two arrays: content and noise")
        parts = [call_array(lambda part=part: part, shape=c.shape) for part in result]
        _require_noise(parts[1], n, content, noise, g, s)
        mistakes = {
            "The content is still as it came out of the coupling": content,
            "f was given the noise before the coupling: give it that again": content - f(noise),
            "f was added, so it is to be taken off": content + f(n),
            "f looks at the noise, not at the content": content - f(content),
            "The content was changed by f alone": content - g(n),
        }
        require_equal(parts[0], c, mistakes, "{n} values of the content are wrong, the first at {at}")


def _require_noise(
    result: np.ndarray,
    n: np.ndarray,
    content: np.ndarray,
    noise: np.ndarray,
    g: Callable[[np.ndarray], np.ndarray],
    s: Callable[[np.ndarray], np.ndarray],
) -> None:
    """Require the noise before a coupling."""
    scale = np.exp(s(content))
    mistakes = {
        "You do the coupling once more instead of undoing it": noise * scale + g(content),
        "What was done last is undone first: take g off before you divide": noise / scale - g(content),
        "g is to be taken off as well": noise / scale,
        "The scale is to be undone as well": noise - g(content),
        "A product is undone by dividing: look at the sign in your exponential": (noise - g(content)) * scale,
        "g was added, so it is to be taken off": (noise + g(content)) / scale,
        "The noise is still as it came out of the coupling": noise,
        "s is a logarithm: the noise was multiplied by its exponential": (noise - g(content)) / s(content),
    }
    require_equal(result, n, mistakes, "{n} values of the noise are wrong, the first at {at}")


def _softmax(scores: np.ndarray) -> np.ndarray:
    weights = np.exp(scores)
    return weights / weights.sum(axis=1, keepdims=True)
