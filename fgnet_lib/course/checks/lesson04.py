"""Checks of lesson 04: the loss, the learning rate, and a run that can be resumed."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from pickle import UnpicklingError
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor, nn

from fgnet_lib.course.checks.exercise import Hint, call, call_array, exercise, require, require_equal

SCHEDULE = (40, 0.01, 8)  # iterations, peak rate, iterations of warm-up
ITERATIONS, LOST_IN = 9, 5

Run = tuple[nn.Module, torch.optim.Optimizer]


@exercise(
    "04",
    "a balanced loss",
    "How much do the ones cost on average, and how much the zeros? The loss is in the middle between these two.",
)
def balanced_loss(answer: Callable[[np.ndarray, np.ndarray], float]) -> None:
    """Check the mean of the cross-entropies of both classes, given probabilities and targets."""
    p = np.array([[0.9, 0.6, 0.7, 0.4], [0.8, 0.2, 0.5, 0.95]])
    _judge_loss(answer, p, np.array([[1, 1, 1, 0], [1, 0, 1, 1]]))
    _judge_loss(answer, p.ravel()[:7] / 2, np.array([0, 1, 0, 0, 0, 0, 0]))


def _judge_loss(answer: Callable[[np.ndarray, np.ndarray], float], p: np.ndarray, target: np.ndarray) -> None:
    """Raise a hint unless an answer gives the balanced loss of probabilities and targets."""
    result = call_array(answer, p, target, shape=())
    cost = -np.log(np.where(target == 1, p, 1 - p))
    ones, zeros = cost[target == 1], cost[target == 0]
    right = (ones.mean() + zeros.mean()) / 2
    mistakes = {
        "This is the plain mean: the class with more affinities counts more": cost.mean(),
        "You add up each class instead of averaging it: the larger class counts more": (ones.sum() + zeros.sum()) / 2,
        "You add up all costs": cost.sum(),
        "This is twice as much as it should be: each class is half of the loss": 2 * right,
        "Only the ones count": ones.mean(),
        "Only the zeros count": zeros.mean(),
        "The sign is wrong: a cost is never negative": -right,
    }
    require_equal(
        result, np.array(right), mistakes, f"{float(result):.3f} is not the mean of the means of both classes"
    )


@exercise(
    "04", "the learning rate", "Print your rates for k = 0, w - 1 and n - 1: which of the three should be the highest?"
)
def learning_rate(answer: Callable[[int, int, float, int], float]) -> None:
    """Check the learning rate, given the iteration, their number, the peak and the warm-up."""
    for n, peak, warmup in (SCHEDULE, (25, 0.3, 3)):
        _judge_rates(answer, n, peak, warmup)


def right_rates(n: int, peak: float, warmup: int) -> np.ndarray:
    """Return the right learning rates of n iterations."""
    k = np.arange(n)
    return peak * np.minimum(1, (k + 1) / warmup) * (1 + np.cos(np.pi * k / n)) / 2


def _judge_rates(answer: Callable[[int, int, float, int], float], n: int, peak: float, warmup: int) -> None:
    """Raise a hint unless an answer gives the learning rates of all iterations."""
    k = np.arange(n)
    result = np.array([call_array(answer, int(value), n, peak, warmup, shape=()) for value in k])
    warm, cosine = np.minimum(1, (k + 1) / warmup), (1 + np.cos(np.pi * k / n)) / 2
    mistakes = {
        "There is no warm-up": peak * cosine,
        "The rate never falls after the warm-up": peak * warm,
        "After the warm-up the rate goes on rising, but it should never exceed the peak": peak
        * (k + 1)
        / warmup
        * cosine,
        "The rate jumps down when the warm-up ends: both factors count in every iteration": np.where(
            k < warmup, peak * warm, peak * cosine
        ),
        "The first iteration has a rate of 0, so it learns nothing": peak * np.minimum(1, k / warmup) * cosine,
        "The peak is missing": warm * cosine,
        "The cosine is twice too fast: the rate is 0 in the middle and rises again": peak
        * warm
        * (1 + np.cos(2 * np.pi * k / n))
        / 2,
        "The cosine alone goes below 0, and a rate must not": peak * warm * np.cos(np.pi * k / n),
        "The cosine is not halved, so the rate is twice too high": 2 * peak * warm * cosine,
        "Only the warm-up counts iterations from 1; the cosine counts them from 0": peak
        * warm
        * (1 + np.cos(np.pi * (k + 1) / n))
        / 2,
        "Your cosine begins when the warm-up ends; here it begins at k = 0": np.where(
            k < warmup, peak * warm, peak * (1 + np.cos(np.pi * (k - warmup) / (n - warmup))) / 2
        ),
    }
    otherwise = f"{{n}} of {n} rates are wrong, the first in iteration {{at}}"
    right = 1000 * right_rates(
        n, peak, warmup
    )  # in thousandths, because rates close to 0 would all be close to one another
    require_equal(result * 1000, right, {hint: 1000 * value for hint, value in mistakes.items()}, otherwise)


@exercise(
    "04",
    "a run that can be resumed",
    "Weights, averages of AdamW and the number k change from one iteration to the next: are all in your file?",
    points=3,
)
def resume(answer: Callable[..., int]) -> None:
    """Check a loop of (model, optimizer, patch, iterations, path) that resumes its checkpoint and returns its start."""
    with TemporaryDirectory() as folder:
        whole = _start(0)
        require(call(answer, *whole, _patch, ITERATIONS, Path(folder, "whole")) == 0, "A new run should return 0")
        wanted, _ = _run(_start(0), 0, ITERATIONS)
        require(
            _have_equal_weights(whole[0], wanted),
            "Without any disturbance your run ends with other weights than the loop of the stub",
        )
        path = Path(folder, "lost")
        with suppress(ConnectionError):
            call(answer, *_start(0), _patch_until_lost, ITERATIONS, path)
        require(path.exists(), f"The session was lost in iteration {LOST_IN}, and there was no checkpoint")
        computed, resumed = [], _start(1)
        try:
            first = call(answer, *resumed, lambda k: computed.append(k) or _patch(k), ITERATIONS, path)
        except UnpicklingError as error:
            raise Hint(
                "`torch.load` refuses whole models and optimizers, which might run code: save their `state_dict()`"
            ) from error
    _check_iterations(computed, first)
    saved, optimizer = _run(_start(0), 0, LOST_IN)
    fresh_model, fresh_optimizer = _start(1)
    mistakes = {
        "The optimizer starts from scratch: its averages are part of the state too": (saved, _adam(saved)),
        "The weights start from scratch: you do not load the model's state": (
            fresh_model,
            _with_state(fresh_model, optimizer),
        ),
        "Weights and optimizer start from scratch: you load only the iteration": (fresh_model, fresh_optimizer),
    }
    for hint, (model, used) in mistakes.items():
        copy, start = _start(1)
        copy.load_state_dict(model.state_dict())
        start.load_state_dict(used.state_dict())
        require(not _have_equal_weights(resumed[0], _run((copy, start), LOST_IN, ITERATIONS)[0]), hint)
    require(_have_equal_weights(resumed[0], wanted), "The resumed run ends with other weights than the undisturbed one")


def _check_iterations(computed: list[int], first: int) -> None:
    """Raise a hint unless a resumed run computed each missing iteration once and returned the first."""
    require(bool(computed), f"The second call computes no iteration, but {ITERATIONS - LOST_IN} are missing")
    require(computed[0] != 0, "The second call begins at iteration 0 again")
    require(
        computed[0] >= LOST_IN,
        f"Iteration {computed[0]} was done before the session was lost, but you compute it again",
    )
    require(computed[0] == LOST_IN, f"Iteration {LOST_IN} was lost, and you never compute it")
    require(
        computed == list(range(LOST_IN, ITERATIONS)),
        f"After the loss you compute these iterations: {computed}; some are missing or repeated",
    )
    require(first == LOST_IN, f"You return {first}, but the first iteration that you computed was {LOST_IN}")


def _adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=0.1)


def _with_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Return an optimizer of a model with the state of another optimizer."""
    own = _adam(model)
    own.load_state_dict(optimizer.state_dict())
    return own


def _start(seed: int) -> Run:
    """Return a new model and its optimizer."""
    torch.manual_seed(seed)
    model = nn.Linear(3, 1)
    return model, _adam(model)


def _patch(k: int) -> Tensor:
    return torch.randn(4, 3, generator=torch.Generator().manual_seed(k))


def _patch_until_lost(k: int) -> Tensor:
    """Return the patches of a session until it is lost."""
    if k == LOST_IN:
        raise ConnectionError("the session was closed")
    return _patch(k)


def _run(start: Run, first: int, end: int) -> Run:
    """Run the loop of the stub from iteration `first` until before `end`."""
    model, optimizer = start
    for k in range(first, end):
        model(_patch(k)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


def _have_equal_weights(model: nn.Module, other: nn.Module) -> bool:
    return all(torch.allclose(a, b, atol=1e-6) for a, b in zip(model.parameters(), other.parameters(), strict=True))
