"""Checks of lesson 16: rounding to levels, a layer of whole numbers, a shift and a scale folded into weights."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fgnet_lib.course.checks.exercise import call, call_array, exercise, require_equal, require_form


@exercise(
    "16",
    "round to levels",
    "Take 2 bits and values from 0 to 3, and then from 10 to 13: which levels do you expect?",
)
def rounded_values(answer: Callable[[np.ndarray, int], np.ndarray]) -> None:
    """Check values rounded to the nearest of 2^bits levels from the least value to the largest."""
    values = np.random.default_rng(0).normal(1.5, 2.0, 60)
    for x, bits in ((values, 3), (40 * values - 9, 4)):
        low, width = x.min(), x.max() - x.min()
        step = width / (2**bits - 1)
        codes = np.round((x - low) / step)
        smaller = width / 2**bits
        mistakes = {
            "These are the numbers of the levels: turn them back into values": codes,
            "The first level is the least value, not 0": codes * step,
            "Take the nearest level, not always the next lower": low + np.floor((x - low) / step) * step,
            "Take the nearest level, not always the next higher": low + np.ceil((x - low) / step) * step,
            "Count the steps between the levels: there are fewer steps than levels": low
            + np.round((x - low) / smaller) * smaller,
            "With b bits there are 2^b levels, not b": low
            + np.round((x - low) / (width / (bits - 1))) * (width / (bits - 1)),
            "Levels at multiples of the step need not begin at the least value": np.round(x / step) * step,
        }
        result = call_array(answer, x, bits, shape=x.shape)
        otherwise = f"With {bits} bits {{n}} of {x.size} values are wrong, the first at index {{at}}"
        require_equal(result, low + codes * step, mistakes, otherwise)


@exercise(
    "16",
    "a layer of whole numbers",
    "What is the code 200 as a value, if the zero is 128 and the step 0.5? And which numbers fit into 8 bits?",
)
def integer_product(answer: Callable[..., np.ndarray]) -> None:
    """Check a linear layer computed from uint8 activations with a zero, and int8 weights with a step a row."""
    rng = np.random.default_rng(1)
    for zero, step in ((100, 0.02), (31, 0.5)):
        codes = rng.integers(0, 256, (5, 12)).astype(np.uint8)
        weight_codes = rng.integers(-127, 128, (4, 12)).astype(np.int8)
        weight_steps = rng.uniform(0.001, 0.01, 4)
        x, weight = codes.astype(int), weight_codes.astype(int)
        right = ((x - zero) @ weight.T) * step * weight_steps
        in_8_bits = ((codes - np.uint8(zero)) @ weight_codes.astype(np.int32).T) * step * weight_steps
        mistakes = {
            "A code is counted from the zero: take it off first": (x @ weight.T) * step * weight_steps,
            "The step of the activations is missing": right / step,
            "The steps of the weights are missing, one for each output": right / weight_steps,
            "The result is still in codes: multiply by the steps of activations and weights": right
            / step
            / weight_steps,
            "8 bits overflow: uint8 has no negative number for a code below the zero. Convert first": in_8_bits,
            "8 bits overflow in the product: convert the codes of the weights, too": (
                ((x - zero).astype(np.int8) @ weight_codes.T) * step * weight_steps
            ),
        }
        result = call_array(answer, codes, zero, step, weight_codes, weight_steps, shape=(5, 4))
        require_equal(result, right, mistakes, "{n} of 20 outputs are wrong, the first at index {at}")


@exercise(
    "16",
    "a shift and a scale that change nothing",
    "Write X = s X^ + z into W X + b, and sort the terms: which belong to X^, and which to no X?",
)
def folded_layer(answer: Callable[..., tuple[np.ndarray, np.ndarray]]) -> None:
    """Check the weight and the bias with which a layer computes from (X - z) / s what it computed from X."""
    rng = np.random.default_rng(2)
    for outputs, channels in ((3, 5), (6, 4)):
        weight, bias = rng.normal(size=(outputs, channels)), rng.normal(size=outputs)
        z, s = rng.normal(size=channels), rng.uniform(0.5, 4, channels)
        result = call(answer, weight, bias, z, s)
        require_form(isinstance(result, tuple | list) and len(result) == 2, "Give two arrays: the weight and the bias")
        given = zip(result, (weight, bias), strict=True)
        parts = [call_array(lambda part=part: part, shape=like.shape) for part, like in given]
        mistakes = {
            "The weight is divided where it should be multiplied: X became smaller, so W has to grow": weight / s,
            "The scale is missing in the weight": weight,
        }
        require_equal(parts[0], weight * s, mistakes, "{n} weights are wrong, the first at index {at}")
        mistakes = {
            "The bias does not know of the shift yet": bias,
            "The shift was taken off X, so what it contributed is to be put back": bias - weight @ z,
            "Before the shift was taken off, the layer's own weight multiplied it, without the scale": bias
            + (weight * s) @ z,
            "The bias gets what the layer makes of z, a sum over the channels for each output": bias + z.sum(),
        }
        require_equal(parts[1], bias + weight @ z, mistakes, "{n} biases are wrong, the first at index {at}")
