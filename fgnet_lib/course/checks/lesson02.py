"""Checks of lesson 02: maps of features, their shapes and their similarity."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fgnet_lib.course.checks.exercise import Hint, call, call_array, exercise, require, require_equal
from fgnet_lib.sam2_encoder import STRIDES
from fgnet_lib.views.feature_maps import cosine_similarity


@exercise("02", "the shape of a map")
def map_shape(answer: Callable[[tuple[int, int, int], int, int], tuple[int, ...]]) -> None:
    """Check the shape of a map, given that of a stack (z, y, x), a stride and a number of channels."""
    for (sections, rows, columns), stride in (((24, 256, 384), 8), ((16, 128, 320), 16)):
        result = call_array(answer, (sections, rows, columns), stride, 64, shape=(4,))
        require(result.dtype.kind in "iu", f"A shape is made of integers, but your answer has {result.dtype}")
        right = np.array([64, sections, rows // stride, columns // stride])
        mistakes = {
            "z became smaller, but the encoder works section by section and keeps z": right // [1, stride, 1, 1],
            "The order is wrong: it should be channels, z, y, x": right[[1, 2, 3, 0]],
            "y and x are still the numbers of voxels": right * [1, 1, stride, stride],
            "You have swapped y and x": right[[0, 1, 3, 2]],
        }
        words = f"A stack of {sections} x {rows} x {columns} at stride {stride}: {{n}} of the four numbers are wrong"
        require_equal(result, right, mistakes, words)


@exercise("02", "cosine similarity", points=2)
def similarity(answer: Callable[[np.ndarray, int, int], np.ndarray]) -> None:
    """Check the cosine similarity (y, x) of features (C, y, x) to a pixel."""
    features = np.random.default_rng(0).normal(1, 1, (5, 6, 7))
    y, x = 4, 2
    result = call_array(answer, features, y, x, shape=(6, 7))
    dot = np.einsum("c,cyx->yx", features[:, y, x], features)
    length = np.linalg.norm(features, axis=0)
    direction = features / length
    mistakes = {
        "This is the product of the vectors: divide it by both lengths": dot,
        "You divide only the vector of the pixel (y, x) by its length": dot / length[y, x],
        "You divide only the vectors of the other pixels by their lengths": dot / length,
        "You average the products over the channels; they should be added": np.mean(
            direction[:, y, x, None, None] * direction, axis=0
        ),
        "This is the similarity to another pixel: y comes before x": cosine_similarity(features, x, y),
    }
    otherwise = "{n} pixels are wrong, the first at (y, x) = {at}; at the pixel itself the similarity is 1"
    require_equal(result, cosine_similarity(features, y, x), mistakes, otherwise)


@exercise("02", "a stride that is fine enough")
def fine_stride(answer: Callable[[float, float], int]) -> None:
    """Check the coarsest stride whose pixel is no wider than a neurite, given both sizes in nm."""
    for thickness, voxel in ((100, 8), (64, 8), (20, 8), (500, 4), (4, 8)):
        words = f"for {thickness} nm and voxels of {voxel} nm"
        result = call(answer, thickness, voxel)
        require(result in (1, *STRIDES), f"{result!r} is not one of the strides, {words}")
        if result * voxel > thickness and result > 1:
            raise Hint(f"A pixel of stride {result} is wider than the neurite, {words}")
        wider = [stride for stride in STRIDES if result < stride and stride * voxel <= thickness]
        for stride in wider:
            equal = "exactly as wide as the neurite, which is allowed" if stride * voxel == thickness else "fine enough"
            raise Hint(f"There is a coarser stride that is {equal}, {words}")
