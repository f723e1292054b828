"""How far a segmentation is from the ground truth: scores, and where the errors are.

Everything is read off one table: how many voxels every neuron shares with every segment. Voxels whose ground truth is 0
(boundary) or unknown are left out of it; segment 0 is a segment like any other. Unknown is ``volumes.IGNORE``
(2^64 - 1), -1, and what -1 becomes in a narrower unsigned type: 2^32 - 1, and with a warning 65535 in uint16 and 255 in
uint8.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import fastremap
import numpy as np
from scipy import sparse
from scipy.stats import rankdata

from fgnet_lib.volumes import IGNORE, triple

NO_NEURON = (0, -1, 2**32 - 1, int(IGNORE))  # boundary, and the spellings of unknown that are no id in any type


class NoKnownVoxelError(ValueError):
    """The ground truth has no voxel with a known neuron, so there is nothing to compare a segmentation with."""


@dataclass(frozen=True)
class Scores:
    """The scores of a segmentation; lower is better in all, and 0 is a perfect segmentation.

    Attributes:
        voi_split: H(segmentation | ground truth) in bits: neurons cut apart.
        voi_merge: H(ground truth | segmentation) in bits: neurons joined.
        arand: Adapted Rand error, 0 to 1.
        cremi: CREMI score, sqrt(arand * (voi_split + voi_merge)).
    """

    voi_split: float
    voi_merge: float
    arand: float
    cremi: float


@dataclass(frozen=True)
class NeuronError:
    """A split neuron, or a segment that joins several neurons.

    Attributes:
        kind: "split" or "merge".
        label: Id of the split neuron, or of the merging segment.
        bits: Its share of VOI split or merge; the shares of all errors add up to the VOI.
        parts: (id, voxels) of the segments it was cut into, or of the neurons it joins, largest first.
        voxel: Where to look (z, y, x): the voxel of the second largest part that is nearest to the part's centroid.
        position_nm: The same voxel in nm from the volume's origin.
    """

    kind: Literal["split", "merge"]
    label: int
    bits: float
    parts: tuple[tuple[int, int], ...]
    voxel: tuple[int, int, int]
    position_nm: tuple[float, float, float]


@dataclass(frozen=True)
class NeuronReport:
    """The worst errors of a segmentation, by their share of the VOI in falling order."""

    splits: tuple[NeuronError, ...]
    merges: tuple[NeuronError, ...]


@dataclass(frozen=True)
class SegmentReport:
    """One segment beside the neuron that it is compared with.

    Attributes:
        segment: Id of the segment.
        voxels: Its size.
        neuron: Id of the neuron; None where the ground truth is unknown in the whole segment.
        neurons: (id, voxels) of the neurons in the segment, largest first; more than one is a merge.
        segments: (id, voxels) of the segments that cover the neuron, largest first; more than one is a split.
    """

    segment: int
    voxels: int
    neuron: int | None
    neurons: tuple[tuple[int, int], ...]
    segments: tuple[tuple[int, int], ...]


class _Overlap(NamedTuple):
    """Voxels shared by neuron (row) and segment (column), with the ids of rows and columns."""

    voxels: sparse.csr_array
    neurons: np.ndarray
    segments: np.ndarray


class _Runs(NamedTuple):
    """The voxels in order, as runs along which both labels stay the same.

    Attributes:
        lengths: voxels of each run.
        known: bool, the runs whose ground truth is neither 0 nor unknown.
        neurons: sorted ids of the ground truth.
        row: rank in `neurons`, for each known run.
        segments: sorted ids of the segmentation, where the ground truth is known.
        column: rank in `segments`, for each known run.
    """

    lengths: np.ndarray
    known: np.ndarray
    neurons: np.ndarray
    row: np.ndarray
    segments: np.ndarray
    column: np.ndarray


def check_ids(labels: np.ndarray, name: str, lowest: int = 0) -> np.ndarray:
    """Return labels as an array in this machine's byte order, or refuse them.

    Args:
        labels: Any integer type, any byte order.
        name: What a message calls them.
        lowest: Smallest id that is allowed.

    Raises:
        ValueError: They are not integers, or some are below `lowest`.
    """
    labels = np.asarray(labels)
    if labels.dtype.kind not in "iu":
        raise ValueError(f"the {name} must hold integer ids, not {labels.dtype}")
    if labels.dtype.kind == "i" and labels.size and labels.min() < lowest:
        raise ValueError(f"the {name} holds the id {labels.min()}: ids are {lowest} or more")
    return labels.astype(labels.dtype.newbyteorder("="), copy=False)


def _check_both(seg: np.ndarray, gt: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    seg, gt = check_ids(seg, "segmentation"), check_ids(gt, "ground truth", lowest=-1)
    if seg.shape != gt.shape:
        raise ValueError(f"the segmentation has shape {seg.shape} and the ground truth {gt.shape}: they must be equal")
    highest = np.iinfo(gt.dtype).max
    if gt.dtype in (np.uint8, np.uint16) and (gt == highest).any():
        warnings.warn(
            f"{highest} in the ground truth is taken for unknown, because -1 becomes that in {gt.dtype}; if it is a "
            "neuron, pass the ground truth as uint32",
            stacklevel=5,
        )
        gt = np.where(gt == highest, gt.dtype.type(0), gt)
    return seg, gt


def _runs(seg: np.ndarray, gt: np.ndarray) -> _Runs:
    seg, gt = (labels.reshape(-1) for labels in _check_both(seg, gt))
    # Labels come in runs along x: counting runs instead of voxels saves time and memory in large volumes.
    starts = np.ones(seg.size, bool)
    starts[1:] = (seg[1:] != seg[:-1]) | (gt[1:] != gt[:-1])
    # No sum of run lengths exceeds the volume, so this type cannot overflow.
    lengths = np.diff(np.flatnonzero(starts), append=seg.size).astype(np.min_scalar_type(seg.size))
    gt = gt[starts]
    limits = np.iinfo(gt.dtype)
    known = ~np.isin(gt, np.array([label for label in NO_NEURON if limits.min <= label <= limits.max], gt.dtype))
    if not known.any():
        raise NoKnownVoxelError(
            f"nothing to compare: of the ground truth's {seg.size} voxels, {lengths[gt == 0].sum()} are 0 (boundary) "
            "and all others are unknown"
        )
    # Ids may be huge and sparse; the table is indexed by their rank.
    neurons, row = fastremap.unique(gt[known], return_inverse=True)
    row = row.astype(np.int32)
    segments, column = fastremap.unique(seg[starts][known], return_inverse=True)
    return _Runs(lengths, known, neurons, row, segments, column.astype(np.int32))


def _overlap(seg: np.ndarray, gt: np.ndarray) -> _Overlap:
    return _table(_runs(seg, gt))


def _table(runs: _Runs) -> _Overlap:
    voxels = sparse.csr_array((runs.lengths[runs.known], (runs.row, runs.column)))
    return _Overlap(voxels, runs.neurons, runs.segments)


def _bits_per_row(voxels: sparse.csr_array) -> np.ndarray:
    """The share of each row in H(column | row) in bits: its sum of p(row, column) log2(p(row) / p(row, column))."""
    cells = voxels.tocoo()
    return np.bincount(cells.row, cells.data * np.log2(voxels.sum(axis=1)[cells.row] / cells.data)) / voxels.sum()


def _arand(voxels: sparse.csr_array) -> float:
    """1 - 2 PR / (P + R), with P and R the precision and recall of "these two different voxels belong together"."""
    both, neuron, segment = (
        n @ n - n.sum() for n in (v.astype(float) for v in (voxels.data, voxels.sum(axis=1), voxels.sum(axis=0)))
    )
    # Single voxels everywhere: there is no pair to judge, so there is no error.
    return float(1 - 2 * both / (neuron + segment)) if neuron + segment else 0.0


def evaluate(seg: np.ndarray, gt: np.ndarray) -> Scores:
    """Score a segmentation against the ground truth.

    >>> evaluate(seg=np.array([1, 1, 2, 2]), gt=np.array([5, 5, 5, 5]))
    Scores(voi_split=1.0, voi_merge=0.0, arand=0.5, cremi=0.7071067811865476)

    VOI is Meila's variation of information (2007). ARAND is the adapted Rand error as scikit-image computes it, from
    pairs of two different voxels. The CREMI score is the geometric mean of VOI and ARAND, as on cremi.org, but not of
    the same voxels: `cremi_python`, the challenge's own script,

    - pairs each voxel with itself, too, which changes the 5th digit of large volumes;
    - takes 0 in the ground truth for a neuron, where we leave it out;
    - takes no pairs from segment 0 (it adds the share of its voxels to both sums of pairs), where we count it as a
      segment like any other; in VOI it counts for both;
    - can leave out a rim around the neurons of each section (its `border_threshold`, in nm); we have no rim. Set the
      rim to ``IGNORE`` in `gt` for the same effect.

    Args:
        seg: Integer ids of any size and sparsity, type, byte order and shape.
        gt: The same shape; 0 and unknown voxels are left out.

    Raises:
        NoKnownVoxelError: The ground truth is 0 or unknown everywhere; this is a ValueError, too.
        ValueError: For ids that are not integers or are negative, or different shapes.
    """
    voxels = _overlap(seg, gt).voxels
    split, merge = (float(_bits_per_row(table).sum()) for table in (voxels, voxels.T.tocsr()))
    arand = _arand(voxels)
    return Scores(split, merge, arand, float(np.sqrt(arand * (split + merge))))


def voi(seg: np.ndarray, gt: np.ndarray) -> tuple[float, float]:
    """Compute VOI split and VOI merge in bits; arguments and errors are those of ``evaluate``."""
    scores = evaluate(seg, gt)
    return scores.voi_split, scores.voi_merge


def segment_report(
    seg: np.ndarray, gt: np.ndarray, segment: int | None = None, neuron: int | None = None
) -> SegmentReport:
    """Compare one segment with the neuron that it matches best, or one neuron with its best segment.

    Args:
        seg: Integer ids (z, y, x).
        gt: The same shape; 0 and unknown voxels belong to no neuron.
        segment: Id of a segment; it is compared with the neuron that fills most of it.
        neuron: In place of `segment`, the id of a neuron; it is compared with the segment that covers most of it.

    Raises:
        ValueError: No voxel has this id, shapes differ, or ids are not integers >= 0.
    """
    seg, gt = _check_both(seg, gt)
    if neuron is not None:
        segment = _ranked(seg[gt == neuron], f"neuron {neuron} in the ground truth")[0][0]
    if segment is None:
        raise ValueError("name a segment or a neuron")
    inside = gt[seg == segment]
    counted = _ranked(inside, f"segment {segment} in the segmentation")
    neurons = tuple(part for part in counted if part[0] not in NO_NEURON)
    if neuron is None and neurons:
        neuron = neurons[0][0]
    segments = () if neuron is None else _ranked(seg[gt == neuron], "")
    return SegmentReport(int(segment), inside.size, neuron, neurons, segments)


def _ranked(labels: np.ndarray, what: str) -> tuple[tuple[int, int], ...]:
    """(id, voxels), largest first; of equal sizes the smaller id first."""
    if not labels.size:
        raise ValueError(f"there is no {what}; its ids are those of np.unique")
    ids, sizes = fastremap.unique(labels, return_counts=True)
    order = np.argsort(-sizes.astype(np.int64), kind="stable")
    return tuple(zip(ids[order].tolist(), sizes[order].tolist(), strict=True))


def error_masks(seg: np.ndarray, gt: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mark the voxels that a segmentation got wrong.

    The *best match* of a neuron is the segment that covers most of it; that of a segment is the neuron that fills most
    of it (of equal sizes, the smaller id). A voxel is a **split** where it is outside the best match of its neuron, and
    a **merge** where its neuron is not the best match of its segment. A voxel can be both. One-to-one labels, whatever
    their ids, have neither.

    Args:
        seg: Integer ids of any size and sparsity, (z, y, x) or any other shape.
        gt: The same shape; voxels where it is 0 or unknown are no errors and do not count for a match.

    Returns:
        Splits and merges, bool arrays of the same shape.

    Raises:
        ValueError: As ``evaluate``.
    """
    runs = _runs(seg, gt)
    voxels = _table(runs).voxels
    masks = np.zeros((2, runs.known.size), bool)
    masks[0, runs.known] = _best_column(voxels)[runs.row] != runs.column
    masks[1, runs.known] = _best_column(voxels.T.tocsr())[runs.column] != runs.row
    splits, merges = (np.repeat(mask, runs.lengths).reshape(np.shape(seg)) for mask in masks)
    return splits, merges


def _best_column(voxels: sparse.csr_array) -> np.ndarray:
    """For each row the column with most voxels; of equal columns the first."""
    cells = voxels.tocoo()
    order = np.lexsort((-cells.col, cells.data))
    best = np.empty(voxels.shape[0], np.int32)
    best[cells.row[order]] = cells.col[order]  # of several assignments to one row the last stays: the largest
    return best


def neuron_report(
    seg: np.ndarray, gt: np.ndarray, voxel_size: tuple[float, float, float], top: int = 10
) -> NeuronReport:
    """Find the ``top`` neurons most cut apart and the ``top`` segments that join most, and where.

    Args:
        seg: Integer ids (z, y, x).
        gt: The same shape; 0 and unknown voxels are left out.
        voxel_size: nm (z, y, x).
        top: Largest number of splits, and of merges, to return.

    Raises:
        ValueError: As ``evaluate``.
    """
    voxels, neurons, segments = _overlap(seg, gt)
    return NeuronReport(
        splits=tuple(_worst("split", voxels, neurons, segments, gt, seg, voxel_size, top)),
        merges=tuple(_worst("merge", voxels.T.tocsr(), segments, neurons, seg, gt, voxel_size, top)),
    )


def _worst(
    kind: Literal["split", "merge"],
    voxels: sparse.csr_array,
    row_ids: np.ndarray,
    column_ids: np.ndarray,
    rows: np.ndarray,
    columns: np.ndarray,
    voxel_size: tuple[float, float, float],
    top: int,
) -> Iterator[NeuronError]:
    """The rows of a table that spread most over its columns; ``rows`` and ``columns`` are the labels themselves."""
    bits = _bits_per_row(voxels)
    for row in np.argsort(-bits, kind="stable")[:top]:
        if bits[row] > 0:
            cells = voxels[[row]]
            order = np.argsort(cells.data)[::-1]
            parts = tuple(zip(column_ids[cells.indices[order]].tolist(), cells.data[order].tolist(), strict=True))
            voxel = _central_voxel((rows == row_ids[row]) & (columns == parts[1][0]))
            position = triple(float(i * size) for i, size in zip(voxel, voxel_size, strict=True))
            yield NeuronError(kind, int(row_ids[row]), float(bits[row]), parts, voxel, position)


def _central_voxel(mask: np.ndarray) -> tuple[int, int, int]:
    """The voxel of a mask nearest to its centroid, which itself may lie outside of a bent neurite."""
    voxels = np.argwhere(mask)
    return triple(voxels[np.argmin(((voxels - voxels.mean(axis=0)) ** 2).sum(axis=1))].tolist())


def by_second_part(errors: Iterable[NeuronError], shape: Sequence[int], rim: int = 32) -> list[NeuronError]:
    """Return the errors that one can see, the largest second part first.

    Two outlines never agree to the voxel, so most parts of most errors are a rim along a membrane. Where something
    was cut or joined, the second part is large. An error at the rim of the volume shows only half of what happened.

    Args:
        errors: ``splits`` or ``merges`` of a ``neuron_report``.
        shape: Voxels (z, y, x) of the volume.
        rim: Errors nearer to the edge of a section than this many voxels, or in the first or last section, are left
            out.
    """
    inside = [
        error
        for error in errors
        if len(error.parts) > 1
        and 0 < error.voxel[0] < shape[0] - 1
        and all(rim <= at < side - rim for at, side in zip(error.voxel[1:], shape[1:], strict=True))
    ]
    return sorted(inside, key=lambda error: error.parts[1][1], reverse=True)


def psnr(image: np.ndarray, truth: np.ndarray) -> float:
    """Compute the peak signal-to-noise ratio in dB of grey values from 0 to 1: -10 log10 of the mean squared error.

    >>> print(f"{psnr(np.array([0.5, 0.7]), np.array([0.6, 0.6])):.1f}")
    20.0

    Args:
        image: float of any shape, array or CPU tensor without gradient.
        truth: what the image should be, of the same shape.
    """
    return float(-10 * np.log10(np.mean(np.square(np.asarray(image, float) - np.asarray(truth, float)))))


def roc_auc(scores: np.ndarray, structure: np.ndarray) -> float:
    """Compute the area under the ROC curve: how often a voxel of a structure scores higher than one outside of it.

    >>> roc_auc(scores=np.array([0.1, 0.9, 0.6, 0.7]), structure=np.array([False, True, False, True]))
    1.0

    Args:
        scores: any shape, array or CPU tensor without gradient.
        structure: bool of the same shape, True on the structure.

    Returns:
        1 if every voxel of the structure scores higher than all others, 0 if lower, 0.5 for no relation; equal scores
        count half.

    Raises:
        ValueError: the structure is empty or everything.
    """
    structure = np.asarray(structure, bool).ravel()
    inside = int(structure.sum())
    outside = structure.size - inside
    if not inside or not outside:
        raise ValueError(f"the structure covers {inside} of {structure.size} voxels; there is nothing to tell apart")
    ranks = rankdata(np.asarray(scores).ravel())
    return float((ranks[structure].sum() - inside * (inside + 1) / 2) / (inside * outside))
