"""Checks of lesson 03: the DW Block, attention, and how it is measured."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fgnet_lib.course.checks.exercise import Hint, call, call_array, exercise, require_equal, require_form
from fgnet_lib.fgnet import FeatureGuidedAttention
from fgnet_lib.metrics import roc_auc


@exercise(
    "03",
    "the weights of a DW Block",
    "Begin with one filter of the depthwise convolution: how many voxels does it cover? How many filters are there?",
)
def dw_weights(answer: Callable[[int, int], int]) -> None:
    """Check the number of weights of a DW Block, given its channels and its factor of widening."""
    for channels, expand in ((48, 4), (10, 3)):
        depthwise, pointwise = np.array(27 * channels), np.array(expand * channels**2)
        mistakes = {
            "In a depthwise convolution every channel looks only at its own neighbours": 27 * channels**2
            + 2 * pointwise,
            "There are two pointwise layers: one widens, one narrows": depthwise + pointwise,
            "The depthwise convolution is missing": 2 * pointwise,
            "The pointwise layers are missing": depthwise,
            "The layer that narrows reads e C channels: how many weights does it have?": depthwise
            + pointwise
            + channels**2,
            "Both pointwise layers have e times as many weights as without widening": depthwise + 2 * channels**2,
            "You count biases or the norm, too: leave them out": depthwise + 2 * pointwise + channels * (2 + expand),
            "No layer goes from e C to e C channels: one widens C to e C, the other narrows e C to C": (
                depthwise + pointwise + (expand * channels) ** 2
            ),
            "In 3D a 3 x 3 x 3 filter covers more than 9 voxels": 9 * channels + 2 * pointwise,
        }
        result = call_array(answer, channels, expand, shape=())
        otherwise = f"{result} is not the number of weights for {channels} channels and e = {expand}"
        require_equal(result, depthwise + 2 * pointwise, mistakes, otherwise)


Names = dict[str, tuple[int, ...]]


@exercise(
    "03",
    "feature-guided attention",
    "Write one line for each step of part 4: project both, add, ReLU, project to one channel, sigmoid; then F'.",
    points=2,
)
def attention(answer: type[nn.Module]) -> None:
    """Check a module that computes F' and a from F and S with the layers from_guide, from_fine and to_map."""
    require_form(isinstance(answer, type), "Give the class itself, without (): MyAttention")
    torch.manual_seed(0)
    library = FeatureGuidedAttention(6, 4, "plain")
    module = answer(6, 4)
    require_form(isinstance(module, nn.Module), "Your class should remain an nn.Module, as in the stub")
    names, expected = (_shapes(each) for each in (module, library))
    require_form(names.keys() == expected.keys(), f"Keep the layers of the stub and their names; yours are {[*names]}")
    changed = [name for name in names if names[name] != expected[name]]
    require_form(not changed, f"Keep the layers of the stub: yours differs in the shape of {', '.join(changed)}")
    module.load_state_dict(library.state_dict())
    for shape in ((2, 2, 5, 5), (1, 3, 4, 6)):
        batch, *sides = shape
        _judge_attention(module, library, torch.randn(batch, 4, *sides), torch.randn(batch, 6, *sides))


def _shapes(module: nn.Module) -> Names:
    """Return the shape of each parameter of a module by name."""
    return {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}


def _judge_attention(module: nn.Module, library: FeatureGuidedAttention, fine: Tensor, guide: Tensor) -> None:
    """Raise a hint unless a student's module gives the library's F' and a."""
    with torch.no_grad():
        result = call(module, fine, guide)
        guided, a = library(fine, guide)
        added = library.from_guide(guide) + library.from_fine(fine)
        product = torch.sigmoid(library.to_map((library.from_guide(guide) * library.from_fine(fine)).relu()))
        mistakes = {
            "The ReLU after the sum is missing": torch.sigmoid(library.to_map(added)),
            "The map is not squashed to values from 0 to 1": library.to_map(added.relu()),
            "The ReLU should come after the sum, before W_a, and not behind W_a": torch.sigmoid(
                library.to_map(added).relu()
            ),
            "Add first, and apply the ReLU to the sum, not to each projection": torch.sigmoid(
                library.to_map(library.from_guide(guide).relu() + library.from_fine(fine).relu())
            ),
            "You multiply the two projections; they should be added": product,
        }
    _require_shapes(result, guided, a)
    otherwise = "{n} values of the map a differ from the equation, the first at {at}"
    require_equal(result[1].numpy(), a.numpy(), {hint: t.numpy() for hint, t in mistakes.items()}, otherwise)
    mistakes = {
        "This is the residual form: F' should be 0 where a is 0, so do not add F to F * a": fine + fine * a,
        "You give back the weights that F should lose: multiply F by a, not by 1 - a": fine * (1 - a),
        "You return F without its guidance": fine,
        "You add the attention to F; it should multiply F": fine + a,
    }
    otherwise = "The map a is right, but {n} values of F' are wrong"
    require_equal(result[0].numpy(), guided.numpy(), {hint: t.numpy() for hint, t in mistakes.items()}, otherwise)


def _require_shapes(result: Any, guided: Tensor, a: Tensor) -> None:
    """Raise a hint unless a result has the shapes of F' and a, in this order."""
    two = isinstance(result, tuple | list) and len(result) == 2
    require_form(two, "`forward` should return two things: the guided features, and the map a")
    if [getattr(part, "shape", None) for part in result] == [a.shape, guided.shape]:
        raise Hint("You have swapped the two results: first the features, then the map")
    require_form(getattr(result[1], "shape", None) == a.shape, f"The map should have the shape {tuple(a.shape)}")
    require_form(getattr(result[0], "shape", None) == guided.shape, f"F' should have the shape {tuple(guided.shape)}")


@exercise(
    "03",
    "the AUC",
    "Do it by hand for the border weights 0.9 and 0.4 and the interior weights 0.4 and 0.1: four pairs.",
)
def auc(answer: Callable[[np.ndarray, np.ndarray], float]) -> None:
    """Check the AUC of weights and a mask of borders; equal weights count half."""
    weights = np.array([0.1, 0.4, 0.4, 0.9, 0.4, 0.3, 0.2, 0.4])
    _judge_auc(answer, weights, np.array([0, 1, 0, 1, 0, 0, 1, 1], bool))
    _judge_auc(answer, 10 * weights[::-1] - 3, np.array([0, 1, 1, 0, 0, 0, 0, 1], bool))


def _judge_auc(answer: Callable[[np.ndarray, np.ndarray], float], weights: np.ndarray, borders: np.ndarray) -> None:
    """Raise a hint unless an answer gives the AUC of weights and a mask."""
    result = call_array(answer, weights, borders, shape=())
    p, q = weights[borders][:, None], weights[~borders]
    mistakes = {
        "Equal weights do not count; they should count half": np.mean(p > q),
        "Equal weights count in full; they should count half": np.mean(p >= q),
        "You have swapped borders and interior": np.mean((p < q) + 0.5 * (p == q)),
        "This is a number of pairs: what share of all pairs is it?": np.sum((p > q) + 0.5 * (p == q)),
        "This is a ratio of means, not how often the border voxel is higher": np.mean(p) / np.mean(q),
        "This is a difference of means, not how often the border voxel is higher": np.mean(p) - np.mean(q),
    }
    if len(p) == len(q):
        mistakes["You do not count every pair: compare each border voxel with every interior voxel"] = np.mean(
            (p[:, 0] > q) + 0.5 * (p[:, 0] == q)
        )
    otherwise = f"{float(result):.3f} is not how often a border voxel is higher than an interior voxel"
    require_equal(result, np.array(roc_auc(weights, borders)), mistakes, otherwise)
