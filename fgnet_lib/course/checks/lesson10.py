"""Checks of lesson 10: affinities from embeddings, the loss against a teacher, and feature grafting."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from fgnet_lib.course.checks.exercise import call, call_array, exercise, require, require_equal, require_form


@exercise(
    "10",
    "affinities from embeddings",
    "Take two sections of one pixel each: which two vectors are multiplied, and where does the result go?",
)
def embedding_products(answer: Callable[[np.ndarray], np.ndarray]) -> None:
    """Check affinities along z (z, y, x) as products of unit embeddings (channels, z, y, x)."""
    for seed, shape in enumerate(((4, 3, 2, 3), (2, 4, 3, 2))):
        embeddings = np.random.default_rng(seed).normal(size=shape)
        embeddings /= np.linalg.norm(embeddings, axis=0)
        product = (embeddings[:, 1:] * embeddings[:, :-1]).sum(0)
        distance = np.square(embeddings[:, 1:] - embeddings[:, :-1]).sum(0)
        self_product = (embeddings[:, 1:] ** 2).sum(0)
        mistakes = {
            "An affinity is never below 0: clamp the products": _from_second(product),
            "The absolute value is not the clamp: opposite vectors belong to different neurons": _from_second(
                np.abs(product)
            ),
            "That is the squared distance: it is small where two voxels belong together": _from_second(distance),
            "You multiply each section by itself, but it should meet its predecessor": _from_second(self_product),
            "An affinity belongs to the later of two sections; the first one has 0": np.concatenate(
                [product.clip(0, 1), np.zeros((1, *shape[2:]))]
            ),
            "The mean over channels is too small: add the channels up": _from_second(product.clip(0, 1) / shape[0]),
        }
        result = call_array(answer, embeddings, shape=shape[1:])
        require_equal(result, _from_second(product.clip(0, 1)), mistakes, "{n} affinities are wrong, the first at {at}")


def _from_second(values: np.ndarray) -> np.ndarray:
    """The values, behind a first section of zeros."""
    return np.concatenate([np.zeros((1, *values.shape[1:])), values])


@exercise(
    "10",
    "the loss against a teacher",
    "Try it with a student that equals its teacher. Then ask both for their `grad` after `backward()`.",
)
def teacher_loss(answer: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Check the mean squared difference of affinities, through which no gradient reaches the teacher."""
    for seed, shape in enumerate(((1, 3, 2, 3, 3), (2, 3, 4))):
        values = torch.rand((2, *shape), generator=torch.Generator().manual_seed(seed))
        student, leaf = (v.clone().requires_grad_() for v in values)
        teacher = leaf * 1  # of a network, not a leaf
        loss = call(partial(answer, student, teacher))  # no copies: gradients reach the tensors themselves
        require_form(isinstance(loss, Tensor) and loss.ndim == 0, "Return a tensor that holds one number")
        difference = (values[0] - values[1]).numpy()
        mistakes = {
            "You add the squares up: their mean is asked for": np.square(difference).sum(),
            "That is the mean of absolute differences: square them": np.abs(difference).mean(),
            "That is the root of the mean square": np.sqrt(np.square(difference).mean()),
            "Positive and negative differences cancel: square them before you take the mean": difference.mean(),
            "That is half of it": np.square(difference).mean() / 2,
        }
        kept = torch.equal(student, values[0]) and torch.equal(teacher, values[1])
        require(kept, "Your function changes the affinities that it was given: others still need them")
        otherwise = f"{float(loss.detach()):.4f} is not the mean of the squared differences"
        require_equal(np.asarray(loss.detach()), np.square(difference).mean(), mistakes, otherwise)
        require(loss.requires_grad, "Nothing can learn from your loss: a gradient must reach the student")
        loss.backward()
        require(leaf.grad is None, "A gradient reaches the teacher, so it would move towards its student: detach it")
        reached = student.grad is not None and bool(student.grad.any())
        require(reached, "No gradient reaches the student: was it detached, or turned into a plain number?")
        gradient = 2 * difference / difference.size
        require_equal(
            student.grad.numpy(), gradient, {}, "The student's gradient is not that of the loss, first at {at}"
        )


Graft = Callable[[np.ndarray, np.ndarray, np.ndarray, Sequence[int]], float]


@exercise(
    "10",
    "feature grafting",
    "Print the error of each shift on its own. Your result should be their mean.",
    points=2,
)
def grafting(answer: Graft) -> None:
    """Check the mean error of the products of a student's and a teacher's embeddings some sections apart."""
    for seed, shifts in enumerate(((2, 4), (1, 3))):
        random = np.random.default_rng(seed)
        student, teacher = random.normal(size=(2, 3, 5, 2, 3))
        student, teacher = (e / np.linalg.norm(e, axis=0) for e in (student, teacher))
        labels = random.integers(1, 3, (5, 2, 3))
        errors = [_graft(student, teacher, labels, shift) for shift in shifts]
        swapped = [_graft(teacher, student, labels, shift) for shift in shifts]
        own = [_graft(student, student, labels, shift) for shift in shifts]
        open_products = [_graft(student, teacher, labels, shift, clamp=False) for shift in shifts]
        mistakes = {
            "Only the last shift counts: `=` forgets the others, as in the released loop": errors[-1],
            "Only the first shift counts": errors[0],
            "You add the shifts up: their mean is asked for": np.sum(errors),
            "The teacher should be `shift` sections behind the student, not before it": np.mean(swapped),
            "You compare the student with itself: where is the teacher?": np.mean(own),
            "Clamp the products to 0 to 1 before you compare them": np.mean(open_products),
            "The truth is 1 where both labels are equal, and 0 elsewhere": np.mean(
                [_graft(student, teacher, labels, shift, inverted=True) for shift in shifts]
            ),
        }
        result = call_array(answer, student, teacher, labels, shifts, shape=())
        otherwise = f"{float(result):.4f} is not the mean error over the shifts"
        require_equal(result, np.array(np.mean(errors)), mistakes, otherwise)


def _graft(
    student: np.ndarray, teacher: np.ndarray, labels: np.ndarray, shift: int, clamp: bool = True, inverted: bool = False
) -> float:
    """The mean squared error of products of embeddings `shift` sections apart."""
    product = (student[:, :-shift] * teacher[:, shift:]).sum(0)
    same = (labels[:-shift] == labels[shift:]) != inverted
    return float(np.square((product.clip(0, 1) if clamp else product) - same).mean())
