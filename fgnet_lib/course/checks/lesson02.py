"""Checks of lesson 02: maps of features, their shapes and their similarity."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.ndimage import gaussian_filter, gaussian_gradient_magnitude

from fgnet_lib.course.checks.exercise import Hint, call_array, exercise, require, require_equal, require_form
from fgnet_lib.phantom import make_phantom
from fgnet_lib.sam2_encoder import STRIDES
from fgnet_lib.views.feature_maps import cosine_similarity
from fgnet_lib.volumes import Volume


@exercise("02", "the shape of a map", "Compare the shapes printed above with the shape of `raw`: what stays the same?")
def map_shape(answer: Callable[[tuple[int, int, int], int, int], tuple[int, ...]]) -> None:
    """Check the shape of a map, given that of a stack (z, y, x), a stride and a number of channels."""
    for (sections, rows, columns), stride, channels in (((24, 256, 384), 8, 64), ((16, 128, 320), 16, 96)):
        result = call_array(answer, (sections, rows, columns), stride, channels, shape=(4,))
        require_form(result.dtype.kind in "iu", f"A shape is made of integers, but your answer has {result.dtype}")
        right = np.array([channels, sections, rows // stride, columns // stride])
        mistakes = {
            "z became smaller, but the encoder works section by section and keeps z": right // [1, stride, 1, 1],
            "The order is wrong: it should be channels, z, y, x": right[[1, 2, 3, 0]],
            "y and x are still the numbers of voxels": right * [1, 1, stride, stride],
            "A larger stride makes a smaller map, and yours is larger than the stack": right
            * [1, 1, stride**2, stride**2],
            "You have swapped y and x": right[[0, 1, 3, 2]],
        }
        words = f"A stack of {sections} x {rows} x {columns} at stride {stride}: {{n}} of the four numbers are wrong"
        require_equal(result, right, mistakes, words)


PIXEL = (40, 60)  # y, x of the second question


def local_features() -> tuple[Volume, np.ndarray]:
    """Return a section (1, 96, 96) and its features (6, 96, 96): brightness and edges at three widths."""
    section = make_phantom((1, 96, 96), seed=3)
    filters = (gaussian_filter, gaussian_gradient_magnitude)
    maps = [apply(section.raw[0] / 255, width) for apply in filters for width in (1, 2, 4)]
    return section, np.stack([values - values.mean() for values in maps])


@exercise(
    "02",
    "cosine similarity",
    "Try it on two pixels: two vectors of the same direction have the similarity 1, however long they are.",
    points=2,
)
def similarity(answer: Callable[[np.ndarray, int, int], np.ndarray]) -> None:
    """Check the cosine similarity (y, x) of features (C, y, x) to a pixel."""
    _judge_similarity(answer, np.random.default_rng(0).normal(0.3, 1, (5, 6, 7)), 4, 2)
    _judge_similarity(answer, local_features()[1], *PIXEL)


def _judge_similarity(answer: Callable, features: np.ndarray, y: int, x: int) -> None:
    """Raise a hint unless an answer gives the cosine similarity of features (C, y, x) to the pixel (y, x)."""
    result = call_array(answer, features, y, x, shape=features.shape[1:])
    dot = np.einsum("c,cyx->yx", features[:, y, x], features)
    length = np.linalg.norm(features, axis=0)
    direction = features / length
    cosine = cosine_similarity(features, y, x)
    mistakes = {
        "This is the product of the vectors: divide it by both lengths": dot,
        "You divide only the vector of the pixel (y, x) by its length": dot / length[y, x],
        "You divide only the vectors of the other pixels by their lengths": dot / length,
        "You divide by the length of all features together: each pixel has a vector of its own (`axis=0`)": dot
        / np.sum(features**2),
        "You divide by the length of all features together; `axis=0` gives the length of each pixel's vector": dot
        / (length[y, x] * np.linalg.norm(features)),
        "You average the products over the channels; they should be added": np.mean(
            direction[:, y, x, None, None] * direction, axis=0
        ),
        "This is the angle between the vectors, and its cosine is wanted": np.arccos(np.clip(cosine, -1, 1)),
        "This is a distance: it should be 1 at the pixel itself, and small where the vectors differ": 1 - cosine,
        "You drop the sign: opposite vectors have the similarity -1": np.abs(cosine),
        "You cut off what is below 0: opposite vectors have the similarity -1": np.maximum(cosine, 0),
        "This is the similarity to another pixel: y comes before x": cosine_similarity(features, x, y),
    }
    otherwise = "{n} pixels are wrong, the first at (y, x) = {at}; at the pixel itself the similarity is 1"
    require_equal(result, cosine, mistakes, otherwise)


@exercise("02", "a stride that is fine enough", "How many nm wide is a pixel of stride 4, if a voxel has 8 nm?")
def fine_stride(answer: Callable[[float, float], int]) -> None:
    """Check the coarsest stride whose pixel is no wider than a neurite, given both sizes in nm."""
    for thickness, voxel in ((100, 8), (64, 8), (20, 8), (500, 4), (4, 8), (40, 8), (32, 8), (128, 8)):
        words = f"for {thickness} nm and voxels of {voxel} nm"
        result = call_array(answer, thickness, voxel, shape=())
        require(result in (1, *STRIDES), f"{result} is not one of the strides, {words}")
        if result * voxel > thickness and result > 1:
            raise Hint(f"A pixel of stride {result} is wider than the neurite, {words}")
        wider = [stride for stride in STRIDES if result < stride and stride * voxel <= thickness]
        for stride in wider:
            equal = "exactly as wide as the neurite, which is allowed" if stride * voxel == thickness else "fine enough"
            raise Hint(f"There is a coarser stride that is {equal}, {words}")


RANKS = np.array([2, 6, 0, 5, 3, 1, 7, 4])  # a gallery of eight patches, the most similar first
RELEVANT = np.isin(np.arange(8), (0, 3, 5, 6))


@exercise(
    "02",
    "recall of a search",
    "Eight patches, four of them relevant, and the first three of the order hold two of these: what is recall@3?",
)
def recall(answer: Callable[[np.ndarray, np.ndarray, int], float]) -> None:
    """Check the share of a query's relevant patches that are among the first k of the order."""
    fewer = np.isin(np.arange(8), (1, 4, 6))  # three of eight
    cases = [(RANKS, RELEVANT, k) for k in (1, 3, 5, 8)] + [(RANKS[::-1].copy(), fewer, 2)]
    results = np.array([call_array(answer, ranks, relevant, k, shape=()) for ranks, relevant, k in cases])
    right = np.array([_share(ranks[:k], relevant) for ranks, relevant, k in cases])
    mistakes = {
        "You divide by k, which is the precision; recall asks how many of the relevant patches were found": np.array(
            [relevant[ranks[:k]].mean() for ranks, relevant, k in cases]
        ),
        "You look at the first k patches of the gallery; `ranks` says which patches come first": np.array(
            [_share(np.arange(k), relevant) for _, relevant, k in cases]
        ),
        "You look at the least similar patches: the most similar one comes first": np.array(
            [_share(ranks[-k:], relevant) for ranks, relevant, k in cases]
        ),
        "You count the relevant patches that were found; divide by how many there are": np.array(
            [relevant[ranks[:k]].sum() for ranks, relevant, k in cases]
        ),
        "You ask whether any relevant patch was found; recall is the share of them": np.array(
            [float(relevant[ranks[:k]].any()) for ranks, relevant, k in cases]
        ),
        "You always divide by 4: another query may have another number of relevant patches, so count them": np.array(
            [relevant[ranks[:k]].sum() / 4 for ranks, relevant, k in cases]
        ),
        "You divide by the number of all patches in the gallery": np.array(
            [relevant[ranks[:k]].sum() / ranks.size for ranks, relevant, k in cases]
        ),
        "The first k are k patches: you take one too many or one too few": np.array(
            [_share(ranks[: k + 1], relevant) for ranks, relevant, k in cases]
        ),
    }
    require_equal(results, right, mistakes, "{n} of five recalls are wrong; with k = 8, of eight patches, it must be 1")


def _share(answers: np.ndarray, relevant: np.ndarray) -> float:
    """Return the share of the relevant patches that are among some patches."""
    return relevant[answers].sum() / relevant.sum()
