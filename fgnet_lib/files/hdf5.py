"""Arrays of HDF5 files, and what their attributes say; nothing is read that lies in another file."""

from __future__ import annotations

import importlib
import importlib.util
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from fgnet_lib.files.attributes import claim_attributes, is_coarser, read_attributes
from fgnet_lib.files.geometry import MOST_BYTES, Claims, FormatError, mention
from fgnet_lib.volumes import Lazy

SUFFIXES = (".h5", ".hdf", ".hdf5", ".he5", ".mat")
FILTERS = {
    32000: "LZF",
    32001: "blosc",
    32004: "LZ4",
    32008: "bitshuffle",
    32013: "ZFP",
    32015: "zstd",
    32026: "blosc2",
}


def is_hdf5(path: Path) -> bool:
    """Tell whether a file is HDF5, by its name or its first bytes."""
    return path.is_file() and (path.suffix.lower() in SUFFIXES or bool(h5py.is_hdf5(path)))


def open_hdf5(path: Path) -> h5py.File:
    """Open an HDF5 file for reading.

    Raises:
        FormatError: a MATLAB file of the time before HDF5.
    """
    if path.suffix.lower() == ".mat" and not h5py.is_hdf5(path):
        raise FormatError(f"{path}: an old MATLAB file, or a damaged one; save it with '-v7.3', which is HDF5")
    return h5py.File(path, "r")


def list_datasets(group: h5py.Group) -> list[str]:
    """List the paths of all arrays in an HDF5 group."""
    names: list[str] = []
    group.visititems(lambda name, node: names.append(name) if isinstance(node, h5py.Dataset) else None)
    return names


def refuse_other_files(node: Any, path: Path) -> None:
    """Raise a FormatError if an HDF5 node takes its voxels from another file.

    h5py follows external links, external storage and virtual datasets: a downloaded file could name any file that you
    may read, and its content would show up as voxels.
    """
    external = isinstance(node, h5py.Dataset) and (node.external or node.is_virtual)
    if external or Path(node.file.filename).resolve() != path.resolve():
        raise FormatError(
            f"{path}: {node.name} takes its voxels from another file, which is not read; copy them into one file, "
            "with h5py or h5repack"
        )


def claim_hdf5(node: h5py.Dataset, path: Path) -> Claims:
    """Return a dataset of an HDF5 file with what its attributes, and those of the groups around it, say.

    Raises:
        FormatError: it is packed with a filter that is not installed, or in chunks that are too large for memory.
    """
    where = f"{path}: {node.name}"
    if node.shape is None:
        raise FormatError(f"{where} is an empty dataset, without a shape; RAW_KEY, or LABELS_KEY, names another one")
    _check_filters(node, where)
    refuse_large_chunks(node.chunks, node.dtype, where)
    groups, parent = [], node
    while parent.name != "/":
        parent = parent.parent
        groups.append(read_attributes(parent))
    array = (
        node if node.chunks is None and node.id.get_storage_size() else watch(node, _lost_chunks(node, where), where)
    )
    coarser = is_coarser(node.parent, node.name.rpartition("/")[2])
    claims = claim_attributes(array, read_attributes(node), groups, coarser)
    labels = [dim.label or (dim[0].name.rpartition("/")[2] if len(dim) else "") for dim in node.dims]  # or netCDF's
    axes = {**claims.axes, "its dimension labels": labels} if any(labels) else claims.axes
    return replace(claims, axes=axes, files=(path,))


def _check_filters(node: h5py.Dataset, where: str) -> None:
    """Refuse a dataset that is packed with a filter that HDF5 lacks; `hdf5plugin` brings the usual ones."""
    settings = node.id.get_create_plist()
    codes = [settings.get_filter(number)[0] for number in range(settings.get_nfilters())]
    if all(map(h5py.h5z.filter_avail, codes)):
        return
    if importlib.util.find_spec("hdf5plugin"):
        importlib.import_module("hdf5plugin")
    for code in codes:
        if not h5py.h5z.filter_avail(code):
            raise FormatError(
                f"{where} is packed with the filter {code} ({FILTERS.get(code, 'unknown')}), which is not installed; "
                "pip install hdf5plugin and open it again, or unpack the file with h5repack -f NONE"
            )


def refuse_large_chunks(chunks: Sequence[int] | None, dtype: Any, where: str) -> None:
    """Raise a FormatError if a chunk takes more memory than any reader wants to give for a single voxel."""
    if chunks is not None and min(chunks) < 1:
        raise FormatError(f"{where} has chunks of {tuple(chunks)} voxels; the file is damaged")
    size = math.prod(chunks or (0,)) * np.dtype(dtype).itemsize
    if size > MOST_BYTES:
        raise FormatError(
            f"{where} is stored in chunks of {tuple(chunks or ())} voxels, {size / 2**30:.1f} GiB each, and a chunk is "
            f"read as a whole; store it in chunks of at most {MOST_BYTES / 2**30:.0f} GiB, with h5repack or zarr"
        )


def watch(array: Any, lost: Callable[[tuple[slice, ...]], tuple[int, int]], where: str) -> Lazy:
    """Return an array that warns, once, when a crop has chunks that are not on disk.

    Args:
        array: the array.
        lost: from slices to the number of chunks that are not on disk, and of all chunks; may refuse to read them.
        where: what the warning calls the array.
    """
    warned: list[bool] = []

    def cut(*slices: slice) -> np.ndarray:
        absent, total = lost(slices)
        if absent and not warned:
            warned.append(True)
            mention(
                f"{where}: {absent} of {total} chunks of this crop are not on disk and read as {array.fillvalue or 0}; "
                "if nothing is meant to be empty there, a copy or a download was not complete"
            )
        return np.asarray(array[slices])

    return Lazy(array.shape, array.dtype, cut)


def chunks_of(slices: tuple[slice, ...], chunks: Sequence[int]) -> list[tuple[int, ...]]:
    """The positions, counted in chunks, of all chunks that a crop reaches."""
    return list(product(*(range(s.start // c, -(-s.stop // c)) for s, c in zip(slices, chunks, strict=True))))


def _lost_chunks(node: h5py.Dataset, where: str) -> Callable[[tuple[slice, ...]], tuple[int, int]]:
    chunks = node.chunks or node.shape

    @cache
    def stored() -> set[tuple[int, ...]] | None:
        """The corners of the chunks that are in the file; None for all."""
        if node.chunks is None:
            return set()  # an array without chunks and without storage
        number = node.id.get_num_chunks()
        size, stored_size = number * math.prod(chunks) * node.dtype.itemsize, node.id.get_storage_size()
        if stored_size > size + size // 8 + 2**16:  # what does not compress grows a little
            raise FormatError(f"{where} has {stored_size} bytes for {size} bytes of voxels, and is not read")
        if number == math.prod(-(-n // c) for n, c in zip(node.shape, chunks, strict=True)):
            return None
        corners = set()
        node.id.chunk_iter(lambda chunk: corners.add(tuple(chunk.chunk_offset)))
        return corners

    def lost(slices: tuple[slice, ...]) -> tuple[int, int]:
        if (known := stored()) is None:
            return 0, 0
        reached = [tuple(i * c for i, c in zip(at, chunks, strict=True)) for at in chunks_of(slices, chunks)]
        return sum(corner not in known for corner in reached), len(reached)

    return lost
