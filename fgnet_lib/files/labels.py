"""Labels on the grid of raw: placed, resampled where that is exact, with their mark for unknown voxels as `IGNORE`."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np

from fgnet_lib.files.geometry import MOST_BYTES, Arranged, FormatError, mention
from fgnet_lib.volumes import IGNORE, Lazy, Region, Volume, triple

_EXACT = 1e-3  # of a voxel: offsets in nm are rounded


def place_labels(
    labels: Arranged, raw: Arranged, volume: Volume, where: str, raw_centred: bool = False, centred: bool = False
) -> Any:
    """Return labels on the grid of raw, as they are if they cover it, else with unknown voxels around them.

    Labels of larger voxels are repeated for each voxel of raw that they cover. All other grids are refused.

    Args:
        labels: the labels, with voxel size and offset if their file says them.
        raw: the same of raw, as its file says it.
        volume: raw, with the voxel size that counts.
        where: what errors call the labels.
        raw_centred: whether offsets of raw are centres of voxels: OME-Zarr wants that, and not all writers know it.
        centred: the same of labels. They may be centres without it, if they were made from a level of an OME-Zarr.

    Raises:
        FormatError: the labels do not lie on the grid of raw.
    """
    size = np.array(raw.voxel_size or volume.voxel_size)
    own = np.array(labels.voxel_size or size)
    if np.allclose(own, volume.voxel_size, rtol=_EXACT):
        size = np.array(volume.voxel_size)  # given by hand, and the labels agree
    shift = np.zeros(3) if labels.offset is None else np.array(labels.offset) - (raw.offset or (0.0, 0.0, 0.0))
    factor = np.round(own / size).astype(int)
    half = (own - size) / 2
    exact = (factor >= 1).all() and np.allclose(own, factor * size, rtol=_EXACT)
    corners = (shift - half, shift) if centred else (shift, shift - half)
    for corner in corners if raw_centred else (shift,):
        first = np.round(corner / size).astype(int)
        stop = first + factor * labels.array.shape
        over = factor - 1  # voxels by which the last of coarse labels may stick out
        fits = (first >= 0).all() and (stop <= volume.shape + over).all()
        if exact and fits and np.allclose(corner / size, first, atol=_EXACT):
            return _place(labels.array, volume.shape, triple(first.tolist()), triple(factor.tolist()), where)
    raise FormatError(
        f"{where}: labels of shape {tuple(labels.array.shape)} with voxels of {tuple(own.tolist())} nm, "
        f"{tuple(np.round(shift, 3).tolist())} nm from the first voxel of raw, do not fit raw of shape {volume.shape} "
        f"with voxels of {tuple(size.tolist())} nm; resample or cut them alike, or mend their `resolution` and `offset`"
    )


def _place(array: Any, shape: tuple[int, ...], first: tuple[int, ...], factor: tuple[int, ...], where: str) -> Any:
    if factor == (1, 1, 1) and tuple(array.shape) == shape and not any(first):
        return array
    if tuple(array.shape) == shape and not any(first):
        raise FormatError(f"{where}: labels have the shape of raw, but voxels {factor} times as large")
    if not any(first) and (np.multiply(array.shape, factor) < shape).any():
        raise FormatError(
            f"{where}: labels of shape {tuple(array.shape)} do not fit raw of shape {shape}: they are smaller, and "
            "no `offset` but 0 says where in raw they lie; cut raw like them, or write their `offset` in nm"
        )
    sides = [min(a + f * n, m) - a for a, f, n, m in zip(first, factor, array.shape, shape, strict=True)]
    labelled = Region.at(first, sides)

    def cut(*slices: slice) -> np.ndarray:
        region = Region(*slices)
        out = np.full(region.shape, IGNORE, np.uint64)
        known = region.intersect(labelled)
        if known.voxels:
            inner = known.within(labelled)
            coarse = tuple(slice(s.start // f, -(-s.stop // f)) for s, f in zip(inner, factor, strict=True))
            block = np.asarray(array[coarse])
            for axis, f in enumerate(factor):
                block = block.repeat(f, axis) if f > 1 else block
            starts = [s.start - c.start * f for s, c, f in zip(inner, coarse, factor, strict=True)]
            out[known.within(region)] = block[Region.at(starts, inner.shape)]
        return out

    return Lazy(shape, np.uint64, cut)


def parse_unknown(value: Any) -> tuple[int, ...]:
    """Read the ids that a person gives for unknown voxels: -1, "4294967295", "2^32-1", [0, -1]; none for "" and None.

    Raises:
        ValueError: something else.
    """
    items = (
        value if isinstance(value, list | tuple) else re.split(r"[,;\s]+", re.sub(r"[\[\]()]", "", str(value)).strip())
    )
    ids = []
    for item in () if value is None else items:
        text = str(item).strip().strip("'\"")
        if power := re.fullmatch(r"2(?:\^|\*\*)(\d+)-1", text):
            ids.append(2 ** int(power[1]) - 1)
        elif re.fullmatch(r"-?\d+(\.0*)?", text):
            ids.append(int(text.split(".")[0]))
        elif text:
            raise ValueError(f"UNKNOWN is {value!r}; give the id of unknown voxels, as in -1 or 4294967295")
    return tuple(ids)


def mark_unknown(array: Any, unknown: tuple[int, ...], where: str) -> Any:
    """Return labels as uint32 or uint64, in which `unknown` ids are `IGNORE`.

    If no ids are given, a crop with an id that others use for unknown voxels gives a warning: -1 without its sign; in
    32 and 64 bits also -2 and -3, as BigCAT has them, and the largest signed integer, those of 32 bits in both.
    Signed labels are read if `unknown` is given.

    Raises:
        FormatError: labels of other types; when a crop is read, other ids below 0.
    """
    dtype = np.dtype(array.dtype)
    if dtype.kind != "u" and not (dtype.kind == "i" and unknown):
        advice = "save them with labels.astype('uint64'), if no id is negative or fractional"
        if dtype.kind == "i":
            advice = f"give UNKNOWN, as in -1, if an id below 0 marks unknown voxels; else {advice}"
        raise FormatError(f"{where}: labels are {dtype}, not uint32 or uint64; {advice}")
    if unknown:
        return _replace_unknown(array, unknown, where)
    wide = np.dtype(f"u{max(dtype.itemsize, 4)}")
    suspects = np.array(_suspect(8 * dtype.itemsize), dtype)
    warned: list[bool] = []

    def cut(*slices: slice) -> np.ndarray:
        block = np.asarray(array[slices]).astype(wide, copy=False)
        marks = [] if warned or block.max() < suspects.min() else [mark for mark in suspects if (block == mark).any()]
        if marks:
            warned.append(True)
            ids = ", ".join(map(str, marks))
            mention(
                f"{where}: some labels are {ids}, a number that often marks unknown voxels (-1 without its sign, or "
                f"the end of a type); if it does here, give UNKNOWN = {ids if len(marks) == 1 else repr(ids)}"
            )
        return block

    return Lazy(array.shape, wide, cut)


def _suspect(bits: int) -> list[int]:
    """Ids in unsigned labels that are likely to be marks, and too large to be counted up to."""
    if bits < 32:
        return [2**bits - 1]
    widths = (32, 64) if bits == 64 else (32,)  # ids of 32 bits are often saved with 64
    ends = [end for width in widths for end in (2**width - 2, 2**width - 3, 2 ** (width - 1) - 1)]
    return [2**32 - 1, *ends]  # 2^64 - 1 is IGNORE


def _replace_unknown(array: Any, unknown: tuple[int, ...], where: str) -> Lazy:
    dtype = np.dtype(array.dtype)
    bits = 8 * dtype.itemsize
    ids = [value % 2**bits if dtype.kind == "u" else value for value in unknown]

    def cut(*slices: slice) -> np.ndarray:
        block = np.asarray(array[slices])
        marked = np.isin(block, np.array([i for i in ids if np.iinfo(dtype).min <= i <= np.iinfo(dtype).max], dtype))
        if dtype.kind == "i" and (block[~marked] < 0).any():
            raise FormatError(
                f"{where}: holds the id {block[~marked].min()}, which is below 0 and not in UNKNOWN, {list(unknown)}"
            )
        out = block.astype(np.uint64)
        out[marked] = IGNORE
        return out

    return Lazy(array.shape, np.uint64, cut)


def map_bodies(stack: Any, transforms: Any, where: str) -> Lazy:
    """Return the bodies of FIB-25 (NeuroProof): `stack` holds supervoxels, `transforms` (n, 2) the body of each.

    A supervoxel that is not listed gets 0. `transforms` is read as a whole, but not before its type and size are known.

    Raises:
        FormatError: `transforms` is something else, or too large.
    """
    if np.dtype(stack.dtype).kind not in "iu":
        raise FormatError(f"{where}: `stack` is {stack.dtype}; with `transforms` it holds ids of supervoxels, integers")
    dtype, shape = np.dtype(transforms.dtype), tuple(transforms.shape)
    if len(shape) != 2 or shape[1] != 2 or not shape[0] or dtype.kind not in "iu":
        raise FormatError(f"{where}: `transforms` is {dtype} {shape}; it lists a supervoxel and its body a row")
    if math.prod(shape) * dtype.itemsize > MOST_BYTES:
        raise FormatError(f"{where}: `transforms` has {shape[0]} rows, too many to be supervoxels; it is not read")
    table = np.asarray(transforms[:, :])
    supervoxel, body = table[np.argsort(table[:, 0])].astype(np.uint64, copy=False).T

    def cut(*slices: slice) -> np.ndarray:
        ids = np.asarray(stack[slices]).astype(np.uint64)
        at = np.minimum(np.searchsorted(supervoxel, ids), len(supervoxel) - 1)
        return np.where(supervoxel[at] == ids, body[at], np.uint64(0))

    return Lazy(stack.shape, np.uint64, cut)
