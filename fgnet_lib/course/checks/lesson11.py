"""Checks of lesson 11: a low-rank update with its gate, its number of parameters, and the spectrum of a section."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fgnet_lib.course.checks.exercise import call_array, exercise, require_equal

Layers = list[tuple[int, int]]


@exercise(
    "11",
    "a low-rank update",
    "Take one token x and gate 1: which of A and B must come first, so that the shapes fit? Where does the gate act?",
    points=2,
)
def low_rank_update(answer: Callable[..., np.ndarray]) -> None:
    """Check W x + g B A x for the tokens of several images, with a gate for each image."""
    random = np.random.default_rng(0)
    for images, tokens, inputs, outputs, rank in ((2, 3, 4, 6, 2), (3, 5, 3, 3, 1)):
        x = random.normal(size=(images, tokens, inputs))
        weight, b = random.normal(size=(outputs, inputs)), random.normal(size=(outputs, rank))
        a, gate = random.normal(size=(rank, inputs)), random.uniform(0.2, 0.8, images)
        base, update = x @ weight.T, x @ a.T @ b.T
        gates = gate[:, None, None]
        mistakes = {
            "The gate is missing: every image gets the whole update": base + update,
            "You return the frozen layer alone: where is the update?": base,
            "You return the update alone: the frozen layer W x belongs to the sum": gates * update,
            "The gate acts on the update alone, but here it also scales W x": gates * (base + update),
            "The gate scales W x, but it should scale the update": gates * base + update,
            "The gate is added, but it should multiply the update": base + update + gates,
            "You take the update away, but it should be added": base - gates * update,
            "All images get the same gate": base + gate.mean() * update,
            "The gate is squared: it acts once, not on A x and on B A x": base + gates**2 * update,
        }
        result = call_array(answer, x, weight, a, b, gate, shape=(images, tokens, outputs))
        otherwise = "{n} values differ from W x + g B A x, the first at {at} (image, token, channel)"
        require_equal(result, base + gates * update, mistakes, otherwise)


@exercise(
    "11",
    "the size of an adapter",
    "Draw A and B for one layer with 5 inputs, 7 outputs and r = 1: how many numbers are in each?",
)
def adapter_size(answer: Callable[[Layers, int], int]) -> None:
    """Check the number of trained parameters of low-rank updates of rank r on some layers (inputs, outputs)."""
    for layers, rank in (([(32, 96), (64, 64)], 4), ([(10, 10), (10, 30), (10, 30), (7, 5)], 3)):
        inputs, outputs = np.array(layers).T
        right = rank * (inputs + outputs).sum()
        mistakes = {
            "You count W, which stays as it is": (inputs * outputs).sum(),
            "You count W beside A and B, but it is not trained": right + (inputs * outputs).sum(),
            "You count only A: B has a row of r numbers for each output": rank * inputs.sum(),
            "You count only B: A has a row for each of the r directions, as long as the input": rank * outputs.sum(),
            "2 r d holds for layers with as many outputs as inputs: these have different numbers": 2
            * rank
            * inputs.sum(),
            "The rank is missing: A has r rows, and B has r columns": (inputs + outputs).sum(),
            "That is the first layer alone": rank * (inputs[0] + outputs[0]),
            "B A has as many numbers as W, but only A and B are stored": rank * (inputs * outputs).sum(),
        }
        result = call_array(answer, layers, rank, shape=())
        require_equal(
            result, np.array(right), mistakes, f"{result} is not the size of A and B for {layers}, r = {rank}"
        )


@exercise(
    "11",
    "the spectrum that the adapter sees",
    "Go step by step: Fourier transform, absolute value, frequency 0 to the middle, logarithm, scale.",
)
def log_spectrum(answer: Callable[[np.ndarray], np.ndarray]) -> None:
    """Check the logarithm of a section's amplitudes, log(1 + amplitude), centred and scaled to 0 to 1."""
    for seed, shape in enumerate(((6, 8), (5, 5))):
        section = np.random.default_rng(seed).uniform(0, 1, shape)
        transformed = np.fft.fft2(section)
        amplitude = np.abs(transformed)
        centred = np.fft.fftshift(amplitude)
        logarithm = np.log1p(centred)
        mistakes = {
            "The logarithm is missing: nearly all values are close to 0": _scale(centred),
            "Frequency 0 should lie in the middle, but yours lies in a corner": _scale(np.log1p(amplitude)),
            "The logarithm is missing, and frequency 0 should lie in the middle": _scale(amplitude),
            "The values are not scaled to 0 to 1": logarithm,
            "The least value should become 0: you only divide by the largest": logarithm / logarithm.max(),
            "You only take the least value away: the largest should become 1": logarithm - logarithm.min(),
            "log(amplitude) is a large negative number where the amplitude is near 0: add 1 first": _scale(
                np.log(centred)
            ),
            "That is the power, the square of the amplitude": _scale(np.log1p(centred**2)),
            "The amplitude of a complex number is not its real part": _scale(
                np.log1p(np.abs(np.fft.fftshift(transformed.real)))
            ),
            "That is the phase; the amplitude is asked for": _scale(np.fft.fftshift(np.angle(transformed))),
        }
        result = call_array(answer, section, shape=shape)
        require_equal(result, _scale(logarithm), mistakes, "{n} values of the spectrum are wrong, the first at {at}")


def _scale(values: np.ndarray) -> np.ndarray:
    return (values - values.min()) / (values.max() - values.min())
