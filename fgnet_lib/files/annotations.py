"""Synaptic partners as CREMI annotates them: points in nm, their kinds, and which belong together.

| in the file | what it holds |
| --- | --- |
| `annotations/ids` | a number for each point |
| `annotations/types` | "presynaptic_site" or "postsynaptic_site" for each, other kinds as well |
| `annotations/locations` | nm along z, y, x for each |
| `annotations/presynaptic_site/partners` | pairs of numbers, pre and post |
| the attribute `offset` of `annotations` | nm that are added to all locations; 0 where there is none |
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np

from fgnet_lib.files.geometry import MOST_BYTES, FormatError, naming
from fgnet_lib.files.hdf5 import claim_hdf5, open_hdf5, refuse_other_files
from fgnet_lib.volumes import Volume

KINDS = ("presynaptic_site", "postsynaptic_site")


class Partners(NamedTuple):
    """Both sites of n synaptic contacts, each (n, 3) voxels z, y, x of a volume.

    Row k of one belongs to row k of the other; a pre-synaptic site with several partners has a row for each.
    """

    pre: np.ndarray
    post: np.ndarray


def read_partners(path: str | Path, volume: Volume) -> Partners:
    """Read the synaptic partners of a CREMI file, in the voxels of its volume or of a crop of it.

    Args:
        path: HDF5 in CREMI's layout.
        volume: The file's raw volume or a crop; its voxel size and offset in nm tell where a point lies.

    Returns:
        The contacts whose two sites lie inside the volume, in the file's order.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It has no annotations, or such that contradict each other; names the file and the value.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file (the current folder is {Path.cwd()})")
    with naming(path), open_hdf5(path) as file:
        ids, locations = _read(file, "ids", path, "iu", 1), _read(file, "locations", path, "iuf", 2)
        types = _read(file, "types", path, "OS", 1)
        pairs = _read(file, "presynaptic_site/partners", path, "iu", 2)
        offset = np.asarray(file["annotations"].attrs.get("offset", (0.0, 0.0, 0.0)), float)
    _check(ids, types, locations, pairs, offset, path)
    order = np.argsort(ids)
    rows = order[np.searchsorted(ids, pairs, sorter=order)]  # (n, 2) of pre and post
    voxels = (locations + offset - volume.offset) / volume.voxel_size
    points = np.floor(np.round(voxels, 6)).astype(np.int64)  # 3 x 4.6 nm lie in voxel 3, and 13.8 / 4.6 is less than 3
    inside = ((points >= 0) & (points < volume.shape)).all(1)
    rows = rows[inside[rows].all(1)]
    return Partners(points[rows[:, 0]], points[rows[:, 1]])


def _read(file: h5py.File, name: str, path: Path, kinds: str, axes: int) -> np.ndarray:
    """An array of the annotations, refused if it is missing, of another kind, or too large."""
    node = file.get(f"annotations/{name}")
    if node is None:
        raise FormatError(
            f"{path}: no annotations/{name}, so it holds no synaptic partners in CREMI's layout; samples A, B and C of "
            "cremi.org hold them, and crops of them usually do not"
        )
    refuse_other_files(node, path)
    if not isinstance(node, h5py.Dataset) or node.dtype.kind not in kinds or len(node.shape or ()) != axes:
        what = f"{node.dtype} of shape {node.shape}" if isinstance(node, h5py.Dataset) else "a group"
        raise FormatError(f"{path}: annotations/{name} is {what}; CREMI's layout has {_LAYOUT[name]}")
    if math.prod(node.shape) * node.dtype.itemsize > MOST_BYTES:
        raise FormatError(f"{path}: annotations/{name} has {node.shape[0]} rows, too many to be points; it is not read")
    values = np.asarray(claim_hdf5(node, path).array[(slice(None),) * axes])
    return values.astype(np.uint64) if kinds == "iu" else values  # ids of two signs must not meet as floats


_LAYOUT = {
    "ids": "n whole numbers",
    "types": "n texts",
    "locations": "n rows of three numbers, nm along z, y, x",
    "presynaptic_site/partners": "rows of two ids, pre and post",
}


def _check(
    ids: np.ndarray, types: np.ndarray, locations: np.ndarray, pairs: np.ndarray, offset: np.ndarray, path: Path
) -> None:
    """Refuse annotations that contradict each other."""
    shapes = {"types": types.shape, "locations": locations.shape}
    if shapes != {"types": ids.shape, "locations": (len(ids), 3)} or pairs.shape[1] != 2:
        shapes["partners"] = pairs.shape
        raise FormatError(f"{path}: {len(ids)} ids, but {shapes}; give each id a type and three numbers, each pair two")
    if offset.shape != (3,) or not np.isfinite(offset).all():
        raise FormatError(f"{path}: the offset of annotations is {offset.tolist()}; give nm along z, y, x")
    if not np.isfinite(locations).all():
        row = int(np.flatnonzero(~np.isfinite(locations).all(1))[0])
        raise FormatError(f"{path}: annotation {ids[row]} lies at {locations[row].tolist()}; give finite nm")
    numbers, counts = np.unique(ids, return_counts=True)
    if (counts > 1).any():
        raise FormatError(f"{path}: {counts.max()} annotations have the id {numbers[counts.argmax()]}; renumber them")
    if len(unknown := np.setdiff1d(pairs, ids)):
        raise FormatError(f"{path}: a pair of partners names {unknown[0]}, which is no id; remove that pair")
    kinds = dict(zip(ids.tolist(), (t.decode() if isinstance(t, bytes) else str(t) for t in types), strict=True))
    for column, expected in zip(pairs.T.tolist(), KINDS, strict=True):
        for number in column:
            if kinds[number] != expected:
                raise FormatError(
                    f"{path}: annotation {number} is a {kinds[number]!r}, but partners need a {expected!r} there; each "
                    "pair is pre first, post second"
                )
