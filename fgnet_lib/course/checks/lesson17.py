"""Checks of lesson 17: results that agree with the measured pixels, codes, their gradient, and invented membranes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from fgnet_lib.course.checks.exercise import call, call_array, exercise, require, require_equal, require_form

SIDE = 4  # of the square of voxels below a low pixel


@exercise(
    "17",
    "agree with the measured pixels",
    "Take one square of four voxels with mean 3, and the low pixel 5: what must happen to each voxel?",
)
def consistent_sections(answer: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> None:
    """Check sections (z, y, x), moved as little as possible so that the means of 4 x 4 squares are the low pixels."""
    for seed, shape in enumerate(((2, 3, 2), (1, 2, 5))):
        random = np.random.default_rng(seed)
        low = random.uniform(0.2, 0.8, shape)
        sections = random.uniform(0.2, 0.8, (shape[0], SIDE * shape[1], SIDE * shape[2]))
        means = sections.reshape(shape[0], shape[1], SIDE, shape[2], SIDE).mean((2, 4))
        missing = low - means
        mistakes = {
            "Your result is the low pixels, enlarged: the guess should keep its detail": _enlarge(low),
            "The difference has the wrong sign: a square that is too dark must become brighter": sections
            - _enlarge(missing),
            "The mean of a square only grows by d if each of its voxels grows by d": sections
            + _enlarge(missing) / SIDE**2,
            "The difference is a mean, not a sum: do not multiply it by the number of voxels": sections
            + _enlarge(missing) * SIDE**2,
            "Your result agrees with the low pixels, but it moves more than it must: add, do not multiply": sections
            * _enlarge(low / means),
            "A low pixel is the mean of its square, not one of its voxels": sections
            + _enlarge(low - sections[:, ::SIDE, ::SIDE]),
            "Each square has its own difference: repeat each number, not the whole section": sections
            + np.tile(missing, (1, SIDE, SIDE)),
            "You add the low pixels themselves, but only the difference is missing": sections + _enlarge(low),
            "That is the difference alone: add it to the guess": _enlarge(missing),
        }
        result = call_array(answer, sections, low, shape=sections.shape)
        right = sections + _enlarge(missing)
        require_equal(result, right, mistakes, "{n} voxels are wrong, the first at {at} (z, y, x)")


def _enlarge(low: np.ndarray) -> np.ndarray:
    return low.repeat(SIDE, axis=1).repeat(SIDE, axis=2)


@exercise(
    "17",
    "the nearest code",
    "Take one vector and two codes, draw them on paper, and measure with a ruler.",
)
def nearest_code(answer: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> None:
    """Check the number of the code (K, C) at the least Euclidean distance from each vector (N, C)."""
    for seed, (n, k, width) in enumerate(((40, 9, 5), (30, 6, 3))):
        random = np.random.default_rng(seed)
        vectors, codes = random.normal(size=(n, width)), random.normal(size=(k, width)) * random.uniform(0.3, 2, (k, 1))
        differences = vectors[:, None] - codes
        distances = np.square(differences).sum(2)
        dot, absolute = vectors @ codes.T, np.abs(differences)
        cosines = dot / np.linalg.norm(codes, axis=1)
        right = distances.argmin(1)
        mistakes = {
            "That is the farthest code": distances.argmax(1),
            "You take the largest product, but a long code has large products with everything": dot.argmax(1),
            "You take the smallest product: that is the code which points away": dot.argmin(1),
            "You compare directions alone, but a code has a length, too": cosines.argmax(1),
            "You add up absolute differences: the Euclidean distance squares them": absolute.sum(2).argmin(1),
            "You add up differences with their signs, so that they cancel": differences.sum(2).argmin(1),
            "Your sum over the components is missing: you look at the first one alone": absolute[:, :, 0].argmin(1),
            "You give the distance: the number of the code is asked for": distances.min(1),
            "You count codes from 1, and Python counts from 0": right + 1,
        }
        result = call_array(answer, vectors, codes, shape=(n,))
        require_equal(result, right, mistakes, "{n} vectors have a nearer code, the first is vector {at}")


@exercise(
    "17",
    "straight through",
    "Let both tensors require a gradient. Add your result up, call `backward()`, and look at both `grad`.",
)
def straight_through(answer: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Check a tensor with the values of the quantised vectors, whose gradient reaches the vectors alone, unchanged."""
    for seed, shape in enumerate(((3, 2), (2, 3, 2))):
        vectors, quantised, slope = torch.rand((3, *shape), generator=torch.Generator().manual_seed(seed))
        start, end = vectors.numpy(), quantised.numpy()
        vectors, quantised = vectors.clone().requires_grad_(), quantised.clone().requires_grad_()
        result = call(partial(answer, vectors, quantised))  # no copies: gradients reach the tensors themselves
        require_form(isinstance(result, Tensor) and result.shape == vectors.shape, "Return a tensor of the same shape")
        kept = np.array_equal(vectors.detach(), start) and np.array_equal(quantised.detach(), end)
        kept = kept and vectors.requires_grad and quantised.requires_grad
        require(kept, "Your function changes the tensors that it was given, but others still need them")
        mistakes = {
            "Forward, the result should be the quantised vectors, and yours are the vectors themselves": start,
            "That is the difference alone: add it to the vectors": end - start,
            "You go from the vectors in the wrong direction": 2 * start - end,
            "You add the quantised vectors to the vectors: only the way between them is missing": start + end,
            "That is the middle between both": (start + end) / 2,
        }
        require_equal(result.detach().numpy(), end, mistakes, "{n} values are not the quantised ones, first at {at}")
        require(result.requires_grad, "No gradient can pass your result: only the difference is to be detached")
        (result * slope).sum().backward()
        reached = quantised.grad is not None and bool(quantised.grad.any())
        require(not reached, "A gradient reaches the codes, but they have a loss of their own: detach the difference")
        require(
            vectors.grad is not None and bool(vectors.grad.any()),
            "No gradient reaches the vectors, so the encoder could never learn",
        )
        gradient = vectors.grad.numpy()
        require_equal(gradient, slope.numpy(), {}, "The vectors' gradient is not that of your result, first at {at}")


@exercise(
    "17",
    "invented membranes",
    "Draw a single line of membrane in the truth. How far from it may a line of the result lie?",
    points=2,
)
def invented_voxels(answer: Callable[[np.ndarray, np.ndarray, float], np.ndarray]) -> None:
    """Check the membrane voxels of a result (bool, y, x) that lie farther than a tolerance from those of the truth."""
    for seed, tolerance in enumerate((3.0, 2.5)):
        random = np.random.default_rng(seed)
        truth, result = (random.uniform(size=(28, 36)) < share for share in (0.02, 0.3))
        truth[3:14, 3:14], result[2:15, 2:15] = True, False  # a thick membrane that the result has lost
        distance = ndimage.distance_transform_edt(~truth)
        far = distance > tolerance
        from_result = ndimage.distance_transform_edt(~result)
        box = ndimage.binary_dilation(truth, np.ones((2 * int(tolerance) + 1,) * 2))
        steps = ndimage.binary_dilation(truth, iterations=int(tolerance))
        mistakes = {
            "You forget the tolerance: a membrane may be off by some voxels": result & ~truth,
            "Those are the lost membranes: the truth has them, and the result does not": truth
            & (from_result > tolerance),
            "You mark everything that is far from a true membrane, whether the result has a membrane or not": far,
            "You mark membranes that the truth has, too": result & ~far,
            "A membrane at exactly the tolerance is still a true one": result & (distance >= tolerance),
            "A tolerance need not be a whole number": result & (distance > int(tolerance)),
            "Your tolerance is a square, so it is larger along the diagonal": result & ~box,
            "Your tolerance counts steps along y and x, so it is smaller along the diagonal": result & ~steps,
            "The distance to what is no membrane is 0 nearly everywhere: which voxels should be 0?": result
            & (ndimage.distance_transform_edt(truth) > tolerance),
            "Your tolerance is twice as large as it should be": result & (distance > 2 * tolerance),
        }
        marked = call_array(answer, result, truth, tolerance, shape=truth.shape)
        require_equal(marked, result & far, mistakes, "{n} voxels are wrong, the first at {at} (y, x)")
