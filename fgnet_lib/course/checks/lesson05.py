"""Checks of lesson 05: faces, agglomeration, and a threshold chosen honestly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fgnet_lib.course.checks.exercise import Hint, Slip, call, call_array, exercise, require, require_form

Faces = dict[frozenset[int], tuple[int, float]]
VoiCurve = dict[float, tuple[float, float]]


def _pairs(affinities: np.ndarray, fragments: np.ndarray, a: int, b: int, shift: int = 1) -> list[np.ndarray]:
    """Return, for each axis, the affinities of the pairs whose later voxel is in a and whose earlier voxel is in b.

    With a `shift` of 0 they are read at the earlier voxel, which is wrong.
    """
    pairs = []
    for axis in range(3):
        ids, values = np.moveaxis(fragments, axis, 0), np.moveaxis(affinities[axis], axis, 0)
        where = (ids[1:] == a) & (ids[:-1] == b)
        pairs.append((values[1:] if shift else values[:-1])[where])
    return pairs


@exercise(
    "05",
    "the mean affinity of a face",
    "Begin with one axis: which pairs of neighbours have one voxel in `a` and the other one in `b`?",
)
def face_mean(answer: Callable[[np.ndarray, np.ndarray, int, int], float]) -> None:
    """Check the mean over all pairs of neighbouring voxels across the face of two fragments, in either order."""
    generator = np.random.default_rng(5)
    for shape, a, b in (((3, 5, 6), 1, 2), ((4, 3, 5), 3, 1)):
        fragments = generator.integers(1, 4, shape).astype(np.uint64)
        _judge_face(answer, generator.random((3, *shape), dtype=np.float32), fragments, a, b)


def _judge_face(answer: Callable[..., float], affinities: np.ndarray, fragments: np.ndarray, a: int, b: int) -> None:
    """Raise a hint unless an answer gives the mean affinity of the face of two fragments."""
    result = float(call_array(answer, affinities, fragments, a, b, shape=()))
    later, earlier = _pairs(affinities, fragments, a, b), _pairs(affinities, fragments, b, a)
    every = np.concatenate([*later, *earlier])
    by_axis = [np.concatenate(two).mean() for two in zip(later, earlier, strict=True)]
    one_way = "You count only half of the pairs: those whose {} voxel is in the first fragment"
    at_earlier = [*_pairs(affinities, fragments, a, b, 0), *_pairs(affinities, fragments, b, a, 0)]
    mistakes = {
        "That is the largest affinity of the face: a single wrong voxel would decide": every.max(),
        "That is the score of the face, 1 - mean affinity: the mean affinity itself is asked for": 1 - every.mean(),
        "That is a sum: a large face should not win by its size": every.sum(),
        "Pairs along z are missing: fragments also touch across sections": np.concatenate(
            [*later[1:], *earlier[1:]]
        ).mean(),
        one_way.format("later"): np.concatenate(later).mean(),
        one_way.format("earlier"): np.concatenate(earlier).mean(),
        "Every pair counts once: a mean of three means, one per axis, weighs pairs unequally": np.mean(by_axis),
        "The affinity of a pair is stored at its later voxel, not the earlier one": np.concatenate(at_earlier).mean(),
        "The first voxels of an axis have no predecessor, but you pair them with the last ones": _wrapped_mean(
            affinities, fragments, {a, b}
        ),
        "You average over all voxels of the two fragments; only the pairs across their face count": affinities[
            :, np.isin(fragments, (a, b))
        ].mean(),
    }
    for hint, mistake in mistakes.items():
        require(not np.isclose(result, mistake), hint)
    require(bool(np.isclose(result, every.mean())), f"The mean affinity of the {every.size} pairs is not {result:.3f}")


def _wrapped_mean(affinities: np.ndarray, fragments: np.ndarray, pair: set[int]) -> float:
    """Return the mean affinity of a face if each axis were a ring, as `np.roll` makes it."""
    before = np.stack([np.roll(fragments, 1, axis) for axis in range(3)])
    a, b = pair
    return affinities[((fragments == a) & (before == b)) | ((fragments == b) & (before == a))].mean()


FACES: Faces = {
    frozenset({1, 2}): (6, 0.9),
    frozenset({1, 4}): (10, 0.2),
    frozenset({2, 4}): (2, 0.8),
    frozenset({2, 3}): (4, 0.6),
    frozenset({4, 5}): (3, 0.7),
}


@exercise(
    "05",
    "merge two fragments",
    "On paper, merge 2 into 1 in {1-2: (6, 0.9), 2-3: (4, 0.6), 1-3: (2, 0.3)}: which faces are left?",
    points=2,
)
def merge(answer: Callable[[Faces, int, int], Faces]) -> None:
    """Check the faces (pairs, mean affinity) after a merge: two faces to one neighbour become one."""
    result = call(answer, FACES, 1, 2)
    require_form(isinstance(result, dict), f"Return a dictionary like `faces`, not a {type(result).__name__}")
    require(
        frozenset({1, 2}) not in result,
        "The face across which you merged is still there, but it now lies inside",
    )
    require(frozenset({1}) not in result, "A fragment has a face with itself: drop the face that you merged across")
    require(not any(2 in face for face in result), "Fragment 2 is gone, but a face still names it")
    missing = [sorted(face) for face in ({1, 4}, {1, 3}, {4, 5}) if frozenset(face) not in result]
    require(not missing, f"These faces are lost: {missing}")
    require(len(result) == 3, f"{len(result)} faces are left, but there should be 3")
    faces = {face: np.array(content, float) for face, content in result.items()}
    require(all(content.shape == (2,) for content in faces.values()), "Each face should hold (pairs, mean affinity)")
    unrelated = np.allclose(faces[frozenset({4, 5})], (3, 0.7))
    require(unrelated, "A face that has nothing to do with the merge has changed")
    renamed = np.allclose(faces[frozenset({1, 3})], (4, 0.6))
    require(renamed, "A face that only changes its name should keep its pairs and its mean")
    pairs, mean = faces[frozenset({1, 4})]
    replaced = any(np.allclose((pairs, mean), face) for face in ((10, 0.2), (2, 0.8)))
    require(not replaced, "Of two faces to the same neighbour, one has replaced the other: combine them")
    require(pairs == 12, f"Faces of 10 and 2 pairs do not make a face of {pairs:g} pairs")
    require(
        not np.isclose(mean, 0.5),
        "10 pairs and 2 pairs weigh the same in your mean: the larger should count more",
    )
    require(bool(np.isclose(mean, 0.3)), f"The mean over all 12 pairs is not {mean:.3f}")
    _other_merges(answer)


def _other_merges(answer: Callable[[Faces, int, int], Faces]) -> None:
    """Raise a hint if a merge goes wrong with `keep` above `drop`, or where the two have no face."""
    result = call(answer, FACES, 2, 1)
    right = _holds(result, {(2, 4): (12, 0.3), (2, 3): (4, 0.6), (4, 5): (3, 0.7)})
    require(right, "Merging 1 into 2 goes wrong: the fragment that is kept may have the larger id")
    apart = dict(FACES)
    del apart[frozenset({1, 2})]
    try:
        result = call(answer, apart, 1, 2)
    except (KeyError, ValueError) as error:
        kind = type(error).__name__
        raise Hint(
            f"Two fragments without a face between them can be merged too, but your function stops with {kind}"
        ) from error
    right = _holds(result, {(1, 4): (12, 0.3), (1, 3): (4, 0.6), (4, 5): (3, 0.7)})
    require(right, "Merging two fragments without a face between them gives the wrong faces")


def _holds(result: Faces, right: dict[tuple[int, int], tuple[int, float]]) -> bool:
    """Return whether the faces of an answer are the right ones, each with its pairs and its mean affinity."""
    contents = {frozenset(face): content for face, content in right.items()}
    return set(result) == set(contents) and all(np.allclose(result[face], contents[face]) for face in contents)


TRAINING: VoiCurve = {0.2: (2.0, 0.1), 0.4: (1.1, 0.3), 0.6: (0.8, 0.4), 0.8: (0.5, 1.5)}
VALIDATION: VoiCurve = {0.2: (1.9, 0.2), 0.4: (0.7, 0.4), 0.6: (0.6, 0.9), 0.8: (0.3, 2.0)}
OTHER_TRAINING: VoiCurve = {0.3: (1.0, 0.9), 0.5: (1.1, 0.2), 0.7: (0.2, 1.4)}  # where the parts cross is not the best
OTHER_VALIDATION: VoiCurve = {0.3: (0.9, 0.2), 0.5: (1.1, 0.3), 0.7: (0.5, 1.3)}


@exercise("05", "choose a threshold honestly", "Which of the two curves may you look at before you have chosen?")
def honest_threshold(answer: Callable[[VoiCurve, VoiCurve], tuple[float, float]]) -> None:
    """Check the threshold and the VOI to report, given (split, merge) by threshold on training and validation data."""
    threshold, reported = _choice(answer, TRAINING, VALIDATION)
    require(threshold in TRAINING, f"{threshold:g} is not among the thresholds {sorted(TRAINING)}")
    require(threshold != 0.4, "This threshold is the best on the validation data: that is peeking")
    require(threshold != 0.8, "Merges count too: look at the sum of both parts")
    require(threshold != 0.2, "Splits count too: look at the sum of both parts")
    require(not np.isclose(reported, 1.2), "You report the VOI of the data that you chose on")
    require(
        bool(np.isclose(reported, 1.5)), f"The VOI at the threshold {threshold:g} is not {reported:g}: add both parts"
    )
    elsewhere = _choice(answer, OTHER_TRAINING, OTHER_VALIDATION)
    require(
        elsewhere != (threshold, reported), "Other curves give the same two numbers: does your answer use the curves?"
    )
    require(
        elsewhere[0] != 0.3,
        "On other curves you choose where split and merge are most alike, but the smallest sum is elsewhere",
    )
    require(
        bool(np.allclose(elsewhere, (0.5, 1.4))),
        f"On other curves your numbers are wrong: {elsewhere[0]:g}, {elsewhere[1]:g}",
    )


def _choice(answer: Callable[..., Any], training: VoiCurve, validation: VoiCurve) -> tuple[float, float]:
    """Return a student's threshold and VOI for two curves."""
    result = call(answer, training, validation)
    two = isinstance(result, tuple | list | np.ndarray) and [np.ndim(part) for part in result] == [0, 0]
    require_form(two, "Return two numbers: the threshold, and the VOI that you report, both parts added")
    return float(result[0]), float(result[1])


@exercise(
    "05",
    "find where a split heals",
    "At a single threshold: how many different segment ids do the voxels of the neuron have?",
)
def whole_from(answer: Callable[[dict[float, np.ndarray], np.ndarray, int], float]) -> None:
    """Check the lowest of several thresholds at which a neuron lies in one segment."""
    truth = np.repeat(np.array([[1, 1, 1, 1, 2, 2, 3, 3, 4, 4]], np.uint64), 3, axis=0)[None]
    rows = {
        0.2: [5, 6, 7, 8, 1, 9, 2, 4, 3, 10],
        0.4: [5, 5, 7, 7, 1, 9, 2, 4, 3, 10],
        0.6: [5, 5, 5, 5, 1, 9, 2, 4, 3, 10],
        0.7: [5, 5, 5, 5, 1, 9, 2, 2, 3, 10],
        0.8: [5, 5, 5, 5, 1, 1, 2, 2, 2, 2],
        0.9: [5, 5, 5, 5, 5, 5, 5, 5, 5, 5],
        1.0: [5, 5, 5, 5, 5, 5, 5, 5, 5, 5],
    }
    segmentations = {value: np.repeat(np.array([row], np.uint64), 3, axis=0)[None] for value, row in rows.items()}
    right = {1: 0.6, 2: 0.8, 3: 0.7, 4: 0.8}
    thresholds = {neuron: _healed(answer, segmentations, truth, neuron) for neuron in right}
    if thresholds == right:
        return
    require(
        set(thresholds.values()) != {0.9}, "There everything is one segment: look only at the voxels of this neuron"
    )
    require(thresholds[1] != 1.0, "The neuron is whole earlier: return the lowest such threshold")
    require(thresholds[1] != 0.4, "There the neuron is still split: that is the last threshold before it heals")
    require(thresholds[1] != 0.2, "At the lowest threshold the neuron is in pieces: segment ids are not neuron ids")
    wrong = next(neuron for neuron in right if thresholds[neuron] != right[neuron])
    raise Hint(f"Neuron {wrong} does not become whole at the threshold {thresholds[wrong]:g}")


def _healed(
    answer: Callable[..., float], segmentations: dict[float, np.ndarray], truth: np.ndarray, neuron: int
) -> float:
    """Return a student's threshold for a neuron; neuron 4 becomes whole only together with another one."""
    try:
        return float(call_array(answer, segmentations, truth, neuron, shape=()))
    except (ValueError, Slip) as error:
        if neuron != 4:
            raise
        raise Hint(
            "You find no threshold for a neuron that becomes whole when it is merged with another one: whole is whole"
        ) from error
