"""From affinities to neurons: watershed fragments, then agglomeration by mean affinity (waterz).

Affinities are float32 (3, z, y, x) in [0, 1]; channel c joins a voxel to its predecessor along axis c. A threshold is
a score as waterz defines it, 1 - mean affinity of the face between two segments: a threshold of 0.7 merges two segments
whose face has a mean affinity above 0.3.
"""

from __future__ import annotations

import heapq
import io
import os
import threading
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress
from functools import cache
from itertools import combinations, permutations, product, repeat

import bioimage_cpp
import fastremap
import numpy as np
import torch
import waterz
from scipy import ndimage, sparse
from skimage.segmentation import watershed

from fgnet_lib.volumes import Region, is_anisotropic

MEAN_AFFINITY = "OneMinus<MeanAffinity<RegionGraphType, ScoreValue>>"  # compiled into waterz' wheels
INSIDE = 0.5  # boundary maps are below it inside of neurites
LINK = 0.1  # affinities up to it join nothing
SMOOTHING = 2.0  # voxels; of the distance transform, so that a neurite has one seed and not one for each bump
MIDDLE = 64  # voxels around the centre in which the order of channels is checked
STEPS = 2**16 - 1  # of affinities in that check
PLANES = 32  # that the check sees in each direction, at least: a plane tells nearly the same as the one beside it
SLAB = 8  # planes that are compared at once, so that they stay in the processor's cache

_RIGHT_ORDER = ((0, 1, 2), (0, 0, 0))  # the channel of each axis, and whether it joins a voxel to its successor

Sides = tuple[tuple[bool, bool], ...]  # before and after, along each axis


def fragments(
    affinities: np.ndarray,
    voxel_size: tuple[float, float, float],
    per_section: bool | None = None,
    strict: bool = True,
) -> np.ndarray:
    """Oversegment a volume by a watershed that floods low affinities last.

    Sections of anisotropic data are flooded one by one on 1 - mean of the two in-plane affinities, isotropic data in 3D
    on 1 - mean of all three. Seeds are the maxima of the smoothed distance to the nearest boundary (value of 0.5), and
    every part that no affinity above 0.1 joins to such a maximum, for example a profile too thin to have one.

    Args:
        affinities: float32 (3, z, y, x) in [0, 1].
        voxel_size: nm (z, y, x).
        per_section: Flood section by section; by default in anisotropic data.
        strict: Refuse affinities whose channel order looks wrong; False only warns.

    Returns:
        Dense uint64 ids from 1 (z, y, x), without gaps.

    Raises:
        ValueError: For affinities of another type, shape, range or channel order, or with NaN.
    """
    check_affinities(affinities, strict)
    return flood(affinities, voxel_size, is_anisotropic(voxel_size) if per_section is None else per_section)


def flood(
    affinities: np.ndarray,
    voxel_size: tuple[float, float, float],
    per_section: bool,
    cut: Sides = ((False, False),) * 3,
) -> np.ndarray:
    """Compute ``fragments`` without checking the affinities, also in a crop of a larger volume.

    Args:
        affinities: float32 (3, z, y, x) in [0, 1].
        voxel_size: nm (z, y, x).
        per_section: Flood section by section.
        cut: Sides where the volume goes on. An object that is cut there may have its maximum outside. It gets a seed
            even so, or its neighbours would swallow it.

    Returns:
        uint64 ids from 1 (z, y, x), without gaps.
    """
    boundaries, linked = boundary_map(affinities, per_section), link_mask(affinities)
    if not per_section:
        return _flood(boundaries, linked, voxel_size, cut).astype(np.uint64)
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # SciPy and scikit-image let other threads run meanwhile
        flooded = pool.map(_flood, boundaries, linked, repeat(voxel_size[1:]), repeat(cut[1:]))
        sections = np.stack(list(flooded)).astype(np.uint64)
    sections[1:] += np.cumsum(sections.max((1, 2)))[:-1, None, None]
    return sections


def boundary_map(affinities: np.ndarray, per_section: bool) -> np.ndarray:
    """1 - mean affinity (z, y, x), over the two in-plane channels or all three; below `INSIDE` in neurites."""
    return 1 - affinities[1 if per_section else 0 :].mean(axis=0)


def link_mask(affinities: np.ndarray) -> np.ndarray:
    """Mark the voxels (z, y, x) that an affinity above `LINK` joins to a neighbour: everything but membranes."""
    mask = np.zeros(affinities.shape[1:], bool)
    for axis, channel in enumerate(affinities > LINK):
        mask |= channel
        np.moveaxis(mask, axis, 0)[:-1] |= np.moveaxis(channel, axis, 0)[1:]
    return mask


def _flood(boundary: np.ndarray, linked: np.ndarray, voxel_size: tuple[float, ...], cut: Sides) -> np.ndarray:
    inside = boundary < INSIDE
    if inside.all():  # no boundary to measure a distance from
        return np.ones(boundary.shape, int)
    distance = bioimage_cpp.distance.distance_transform(inside, voxel_size).astype(float)  # as SciPy's, in a quarter
    distance = ndimage.gaussian_filter(distance, SMOOTHING)
    peaks = inside & (distance == ndimage.maximum_filter(distance, 3))
    seeds = ndimage.label(peaks, np.ones([3] * boundary.ndim))[0]
    seeds = _add_seeds(seeds, inside, _cut_sides(inside.shape, cut))
    seeds = _add_seeds(seeds, linked, linked)
    if not seeds.any():  # nothing but membrane
        return np.ones(boundary.shape, int)
    return watershed(boundary + ~linked, seeds)  # membranes are flooded last, or neighbours would meet through them


def _add_seeds(seeds: np.ndarray, mask: np.ndarray, needed: np.ndarray) -> np.ndarray:
    """Make every connected part of `mask` a seed that has none yet and has a voxel in `needed`."""
    parts, number = ndimage.label(mask)
    new = np.zeros(number + 1, bool)
    new[parts[needed & mask]] = True
    new[parts[seeds > 0]] = False
    return np.where(new[parts], seeds.max() + np.cumsum(new)[parts], seeds)


def _cut_sides(shape: tuple[int, ...], cut: Sides) -> np.ndarray:
    """Mark the voxels at cut sides."""
    mask = np.zeros(shape, bool)
    for axis, sides in enumerate(cut):
        for end in (end for end, is_cut in zip((0, -1), sides, strict=True) if is_cut):
            np.moveaxis(mask, axis, 0)[end] = True
    return mask


def sweep(
    affinities: np.ndarray,
    voxel_size: tuple[float, float, float],
    thresholds: Iterable[float],
    fragments: np.ndarray | None = None,
    strict: bool = True,
) -> dict[float, np.ndarray]:
    """Segment at several thresholds in one agglomeration.

    Args:
        affinities: float32 (3, z, y, x) in [0, 1].
        voxel_size: nm (z, y, x).
        thresholds: Scores in [0, 1]; 0 merges nothing.
        fragments: Integer ids (z, y, x) to start from, 0 for background; by default ``fragments`` makes them.
        strict: Refuse affinities whose channel order looks wrong; False only warns.

    Returns:
        Threshold -> uint64 labels (z, y, x), by rising threshold; no two arrays share memory.

    Raises:
        ValueError: For thresholds outside of [0, 1], fragments of another shape, or affinities that ``fragments``
            refuses.
    """
    check_affinities(affinities, strict)
    thresholds = sorted({float(threshold) for threshold in thresholds})
    if not thresholds or not 0 <= thresholds[0] <= thresholds[-1] <= 1:
        raise ValueError(f"thresholds must be scores (1 - mean affinity) in [0, 1], not {thresholds}")
    if fragments is None:
        fragments = flood(affinities, voxel_size, is_anisotropic(voxel_size))
    if fragments.shape != affinities.shape[1:] or fragments.dtype.kind not in "iu":
        raise ValueError(
            f"fragments must be integer ids of shape {affinities.shape[1:]}, not {fragments.dtype} {fragments.shape}"
        )
    # waterz indexes by id, overwrites the array of fragments, and yields that same array every time: hence two copies.
    dense = fastremap.renumber(_native(fragments))[0].astype(np.uint64, order="C")
    affinities = np.ascontiguousarray(affinities)
    with _silenced():
        steps = waterz.agglomerate(affinities, thresholds, fragments=dense, scoring_function=MEAN_AFFINITY)
        return {threshold: np.array(labels) for threshold, labels in zip(thresholds, steps, strict=True)}


def segment(
    affinities: np.ndarray, voxel_size: tuple[float, float, float], threshold: float, strict: bool = True
) -> np.ndarray:
    """Segment at one threshold (score) into uint64 labels (z, y, x); arguments and errors are those of ``sweep``."""
    return sweep(affinities, voxel_size, [threshold], strict=strict)[float(threshold)]


def agglomerate(faces: np.ndarray, sums: np.ndarray, counts: np.ndarray, nodes: int, threshold: float) -> np.ndarray:
    """Merge the nodes of a graph as waterz merges fragments: across the face with the lowest score, until a threshold.

    Args:
        faces: Nodes on both sides of each face, integers from 0, (n, 2); every pair once, no node with itself.
        sums: Sum of the affinities of each face, (n,).
        counts: Number of affinities of each face, (n,).
        nodes: Number of nodes.
        threshold: Score, 1 - mean affinity.

    Returns:
        For each node the smallest node that it is merged with, (nodes,).
    """
    graph: list[dict[int, tuple[float, int]]] = [{} for _ in range(nodes)]
    for (a, b), total, count in zip(faces.tolist(), sums.tolist(), counts.tolist(), strict=True):
        graph[a][b] = graph[b][a] = (total, count)
    scores = 1 - sums / counts
    low = scores < threshold
    queue = [(score, *face) for score, face in zip(scores[low].tolist(), faces[low].tolist(), strict=True)]
    heapq.heapify(queue)
    merged = []
    while queue:
        score, a, b = heapq.heappop(queue)
        face = graph[a].get(b)
        if face is None or 1 - face[0] / face[1] != score:  # merged, or changed, since it was queued
            continue
        if len(graph[a]) < len(graph[b]):
            a, b = b, a
        merged.append((a, b))
        _join(graph, a, b, queue, threshold)
    return connected_components(np.array(merged, int).reshape(-1, 2), nodes)


def connected_components(pairs: np.ndarray, nodes: int) -> np.ndarray:
    """Label each node with the smallest node of its connected component; `pairs` (n, 2) are the edges.

    >>> connected_components(np.array([[1, 3], [3, 4]]), nodes=5).tolist()
    [0, 1, 2, 1, 1]
    """
    joined = sparse.coo_array((np.ones(len(pairs), bool), tuple(pairs.T)), shape=(nodes, nodes))
    components = sparse.csgraph.connected_components(joined, directed=False)[1]
    return np.unique(components, return_index=True)[1][components]


def _join(graph: list[dict], a: int, b: int, queue: list, threshold: float) -> None:
    """Give the faces of b to a; two faces to the same neighbour become one."""
    neighbours, graph[b] = graph[b], {}
    for other, (total, count) in neighbours.items():
        del graph[other][b]
        if other == a:
            continue
        before = graph[a].get(other, (0.0, 0))
        total, count = total + before[0], count + before[1]
        graph[a][other] = graph[other][a] = (total, count)
        if 1 - total / count < threshold:
            heapq.heappush(queue, (1 - total / count, a, other))


def remove_small(labels: np.ndarray, min_voxels: int) -> np.ndarray:
    """Give segments of fewer than ``min_voxels`` voxels to the nearest segment that has more.

    Args:
        labels: Integer ids (z, y, x); 0 is background and stays.
        min_voxels: Smallest segment that is kept.

    Returns:
        A new array of the same type; a copy of `labels` if no segment is large enough.
    """
    ids, voxels = fastremap.unique(_native(labels), return_counts=True)
    small = np.isin(labels, ids[(ids != 0) & (voxels < min_voxels)])
    large = (labels != 0) & ~small
    if not small.any() or not large.any():
        return labels.copy()
    nearest = ndimage.distance_transform_edt(~large, return_distances=False, return_indices=True)
    return np.where(small, labels[tuple(nearest)], labels)


def _native(labels: np.ndarray) -> np.ndarray:
    """Labels in this machine's byte order, which fastremap needs."""
    return labels.astype(labels.dtype.newbyteorder("="), copy=False)


_SILENCE = threading.RLock()  # of two threads, the second would take the first one's silence for the original


@contextmanager
def _silenced() -> Iterator[None]:
    """Suppress what waterz prints: from Python to sys.stdout, from C++ to descriptor 1 (in Jupyter not the same)."""
    with _SILENCE, ExitStack() as stack:
        stack.enter_context(redirect_stdout(io.StringIO()))
        with suppress(OSError):  # descriptor 1 may be closed
            original, devnull = os.dup(1), os.open(os.devnull, os.O_WRONLY)
            stack.callback(os.close, devnull)
            stack.callback(os.close, original)
            stack.callback(os.dup2, original, 1)
            os.dup2(devnull, 1)
        yield


def check_affinities(affinities: np.ndarray, strict: bool = True) -> None:
    """Check that affinities have the right shape, type, range and channel order, for example after reading a file.

    The channel order is read from the middle of the volume, see docs/measured/channel_order.md for how often it errs.

    Args:
        affinities: float32 (3, z, y, x) in [0, 1].
        strict: Refuse affinities whose channel order looks wrong; False only warns.

    Raises:
        ValueError: They do not qualify; the message says what to do.
    """
    shape, dtype = np.shape(affinities), getattr(affinities, "dtype", type(affinities))
    if len(shape) != 4 or shape[0] != 3 or 0 in shape:
        hint = "; move the channels to the front with np.moveaxis(affinities, -1, 0)" if shape[-1:] == (3,) else ""
        raise ValueError(f"affinities must have the shape (3, z, y, x), not {shape}{hint}")
    if dtype != np.float32:
        raise ValueError(f"affinities must be float32 in [0, 1], not {dtype}; convert with astype(np.float32)")
    low, high = affinities.min(), affinities.max()
    if np.isnan(low):
        raise ValueError(f"affinities hold NaN in {np.isnan(affinities).any(axis=0).sum()} voxels")
    if low < -1e-5 or high > 1 + 1e-5:  # blending of tiles may overshoot by rounding
        raise ValueError(f"affinities must lie in [0, 1], not [{low:g}, {high:g}]; logits need a sigmoid")
    if better := _find_channel_order(affinities):
        _complain(better, strict)


def middle(shape: tuple[int, int, int]) -> Region:
    """The voxels of a volume of `shape` that the channel order is read from: up to 64 on each side of the centre."""
    return Region.at([n // 2 for n in shape], (0, 0, 0)).grow((MIDDLE, MIDDLE, MIDDLE), shape)


def _complain(order: tuple[Sequence[int], Sequence[int]], strict: bool) -> None:
    """Raise a ValueError, or warn unless `strict`, that channels fit better in another `order`."""
    axis_of, sides = {channel: axis for axis, channel in enumerate(order[0])}, ("predecessor", "successor")
    fit = ", ".join(f"{sides[order[1][axis_of[channel]]]} along {'zyx'[axis_of[channel]]}" for channel in range(3))
    message = (
        f"affinities seem to have another channel order: their three channels fit best as {fit}. Channel c at a voxel "
        "must belong to the face that it shares with its predecessor along axis c (z, y, x)"
    )
    if strict:
        raise ValueError(f"{message}; if you are sure that it does, pass strict=False")
    warnings.warn(message, stacklevel=4)


def _find_channel_order(affinities: np.ndarray) -> tuple[Sequence[int], Sequence[int]] | None:
    """Return the order, as `_RIGHT_ORDER` says it, that fits affinities plainly better than the right one, if any.

    Four neighbours in a square share four faces. Objects may cut none, two, three or all of these, but never one alone:
    a path around the square that leaves an object has to enter it again. So affinities of labels have no square with
    one low face, whatever the shapes of objects, and predicted ones have few (our own test). In another order the
    faces belong to other squares, and the rule breaks wherever that makes a difference.
    """
    crop = affinities[:, *middle(affinities.shape[1:])]
    # Affinities of an untrained network are undecided, and may fit any order.
    if min(crop.shape[1:]) < 3 or abs(2 * crop - 1).mean() < 0.5:
        return None
    crop = (np.clip(crop, 0, 1) * STEPS).astype(np.uint16)  # half the memory, in a third of the time

    @cache
    def face(channel: int, axis: int, side: int) -> np.ndarray:
        """A channel as joined to the predecessor; to a successor, that is one voxel later."""
        start = [1, 1, 1]
        start[axis] -= side
        return crop[channel][tuple(slice(a, a + n - 1) for a, n in zip(start, crop.shape[1:], strict=True))]

    @cache
    def plane(first: tuple[int, int, int], second: tuple[int, int, int]) -> float:
        return _lone_cut(face(*first), face(*second), first[1], second[1])

    def lone_cuts(channels: Sequence[int], sides: Sequence[int]) -> float:
        return sum(plane(*pair) for pair in combinations(zip(channels, range(3), sides, strict=True), 2))

    right = lone_cuts(*_RIGHT_ORDER)
    squares = np.prod(np.subtract(crop.shape[1:], 2)) / _stride(max(crop.shape[1:]))  # in each pair of axes, at least
    margin = max(0.02 * right, 6 * np.sqrt(right / squares))  # chance, in few voxels or with few membranes
    if right <= margin:
        return None
    cuts = {order: lone_cuts(*order) for order in product(permutations(range(3)), product(range(2), repeat=3))}
    best = min(cuts, key=lambda order: cuts[order])
    return best if right - cuts[best] > margin else None


def _lone_cut(first: np.ndarray, second: np.ndarray, axis: int, other: int) -> float:
    """How far one face of a square alone is low, on average: the second lowest of the four minus the lowest.

    Args:
        first: Affinities (z, y, x) to the predecessor along `axis`, uint16 from 0 to `STEPS`.
        second: Affinities (z, y, x) to the predecessor along `other`.
        axis: An axis.
        other: Another axis.
    """
    first, second = (np.moveaxis(faces, (axis, other), (1, 2)) for faces in (first, second))
    first, second = (faces[:: _stride(len(faces))] for faces in (first, second))
    total = 0
    for begin in range(0, len(first), SLAB):
        along_axis, along_other = first[begin : begin + SLAB], second[begin : begin + SLAB]
        pairs = (along_axis[:, 1:, 1:], along_axis[:, 1:, :-1]), (along_other[:, 1:, 1:], along_other[:, :-1, 1:])
        low, high = ([choose(*pair) for pair in pairs] for choose in (np.minimum, np.maximum))
        lowest, next_lowest = np.minimum(*low), np.minimum(np.maximum(*low), np.minimum(*high))
        total += int((next_lowest - lowest).sum(dtype=np.uint64))
    return total / STEPS / first[:, 1:, 1:].size


def _stride(planes: int) -> int:
    """The step between the planes that the check sees."""
    return max(planes // PLANES, 1)
