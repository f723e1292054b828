"""Volumes read lazily from the formats of the field, and written atomically."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import tifffile
import zarr
from zarr.storage import LocalStore

from fgnet_lib.files.atomic import atomic
from fgnet_lib.volumes import IGNORE, Lazy, Region, Volume, check_raw

RAW_KEY, LABELS_KEY = "volumes/raw", "volumes/labels/neuron_ids"  # the CREMI layout
CHUNK = (16, 128, 128)
NM_PER_UNIT = {"angstrom": 0.1, "nanometer": 1.0, "micrometer": 1e3, "millimeter": 1e6}


def read_volume(
    path: str | Path,
    raw_key: str | None = None,
    labels_key: str | None = None,
    labels_path: str | Path | None = None,
    voxel_size: tuple[float, float, float] | None = None,
) -> Volume:
    """Open a volume as a lazy `Volume`, without reading its voxels.

    Formats: HDF5 (CREMI, also padded; FIB-25 with `stack` and `transforms`; any other by its dataset paths), a TIFF
    stack or a folder of TIFF sections in natural order, Zarr 2 and 3 (OME-Zarr 0.4 and 0.5 at full resolution, the
    CREMI layout, or by array paths). Labels smaller than raw, as in CREMI's padded files, are placed by the difference
    of the two offsets, with `IGNORE` around them. uint8 and uint16 labels are widened to uint32; signed labels are
    refused, because a lazy reader cannot know that no id is negative.

    Args:
        path: the file or folder with the raw data.
        raw_key: path of raw inside the file; by default `volumes/raw`, `raw` or the OME-Zarr image.
        labels_key: path of the labels; by default `volumes/labels/neuron_ids`, or `stack` beside `transforms`.
        labels_path: the file with the labels if it is another one.
        voxel_size: nm along z, y, x; overrides the file's own, and is needed if the file has none.

    Raises:
        FileNotFoundError: no such file.
        ValueError: unreadable, no such dataset (lists the datasets of the file), or not a volume as `Volume` wants it.
    """
    path = Path(path)
    raw = _open(path, raw_key, (RAW_KEY, "raw"))
    size = voxel_size or raw.voxel_size
    if size is None:
        raise ValueError(f"{path}: no voxel size in the file; give voxel_size=(z, y, x) in nm")
    check_raw(raw.array, str(path))
    volume = Volume(raw.array, size, offset=raw.offset or (0, 0, 0), name=path.name)
    if labels_path is None and labels_key is None and not _has_labels(path):
        return volume
    labels_path = Path(labels_path or path)
    labels = _open(labels_path, labels_key, (LABELS_KEY, "stack"))
    return replace(volume, labels=_align(labels, volume, str(labels_path)))


def write_volume(volume: Volume, path: str | Path) -> Path:
    """Write a volume in the CREMI layout, slab by slab, so that it may be larger than memory; returns the path.

    Raw goes to `volumes/raw`, labels to `volumes/labels/neuron_ids`, each with `resolution` and `offset` in nm. The
    file appears under its name only when it is complete: a full disk or a kill leaves the previous file untouched.

    Args:
        volume: what to write.
        path: `.h5`, `.hdf`, `.hdf5` or `.zarr`.

    Raises:
        ValueError: another suffix.
        OSError: the disk is full or cannot be written.
    """
    path = Path(path)
    if path.suffix not in (".h5", ".hdf", ".hdf5", ".zarr"):
        raise ValueError(f"{path}: cannot write {path.suffix or 'a name without suffix'}; use .h5, .hdf or .zarr")
    try:
        with atomic(path) as part:
            _write_zarr(volume, part) if path.suffix == ".zarr" else _write_hdf5(volume, part)
    except OSError as error:
        raise OSError(error.errno, f"cannot write {path}, what was there before is untouched: {error}") from error
    return path


class _Surviving(io.FileIO):
    """A file that keeps its first error instead of raising it: HDF5 crashes Python when a write fails."""

    error: OSError | None = None

    def write(self, data: Any) -> int:
        left = memoryview(data)
        try:
            while left and not self.error:
                left = left[super().write(left) :]
        except OSError as error:
            self.error = error
        return len(data)

    def truncate(self, size: int | None = None) -> int:
        try:
            return super().truncate(size)
        except OSError as error:
            self.error = self.error or error
            return self.tell() if size is None else size


def _write_hdf5(volume: Volume, path: Path) -> None:
    with _Surviving(path, "w+b") as disk:
        try:
            with h5py.File(disk, "w") as file:
                _write_arrays(volume, partial(file.create_dataset, compression="gzip"), disk)
        finally:
            if disk.error:
                raise disk.error


def _write_zarr(volume: Volume, path: Path) -> None:
    _write_arrays(volume, zarr.open_group(path, mode="w").create_array)


def _write_arrays(volume: Volume, create: Callable[..., Any], disk: _Surviving | None = None) -> None:
    arrays = {RAW_KEY: volume.raw} if volume.labels is None else {RAW_KEY: volume.raw, LABELS_KEY: volume.labels}
    depth, height, width = chunks = tuple(map(min, CHUNK, volume.shape))
    for key, array in arrays.items():
        out = create(key, shape=volume.shape, dtype=array.dtype, chunks=chunks)
        out.attrs.update(resolution=list(volume.voxel_size), offset=list(volume.offset))
        for z in range(0, volume.shape[0], depth):
            slab = np.asarray(array[z : z + depth, :, :])
            # one chunk at a time: after an error Zarr would go on writing the slab's other chunks in the background
            for y, x in product(range(0, volume.shape[1], height), range(0, volume.shape[2], width)):
                out[z : z + depth, y : y + height, x : x + width] = slab[:, y : y + height, x : x + width]
            if disk and disk.error:
                return


def _align(labels: _Source, volume: Volume, where: str) -> Any:
    """Labels on the grid of raw: as they are if they cover it, else with IGNORE around them."""
    array = _widen(labels.array)
    offset = np.asarray(labels.offset or volume.offset) - volume.offset
    start = offset / volume.voxel_size
    first = np.round(start).astype(int)
    if array.shape == volume.shape and not first.any():
        return array
    inside = first.any() and (first >= 0).all() and (first + array.shape <= volume.shape).all()
    if not inside or not np.allclose(start, first, atol=1e-3):
        raise ValueError(
            f"{where}: labels of shape {array.shape} at {tuple(offset.tolist())} nm do not fit raw of shape "
            f"{volume.shape} with voxels of {volume.voxel_size} nm; cut them alike, or mend the labels' `offset` in nm"
        )
    labelled = Region.at(first.tolist(), array.shape)

    def cut(*slices: slice) -> np.ndarray:
        region = Region(*slices)
        out = np.full(region.shape, IGNORE, np.uint64)
        known = region.intersect(labelled)
        if known.voxels:
            out[known.within(region)] = array[*known.within(labelled)]
        return out

    return Lazy(volume.shape, np.uint64, cut)


def _widen(labels: Any) -> Any:
    if labels.dtype in (np.uint32, np.uint64) or labels.dtype.kind != "u":
        return labels
    dtype = np.dtype(f"u{max(labels.dtype.itemsize, 4)}")
    return Lazy(labels.shape, dtype, lambda *cut: np.asarray(labels[cut]).astype(dtype))


def _map_bodies(stack: Any, transforms: np.ndarray) -> Lazy:
    """FIB-25 (NeuroProof): `stack` holds supervoxels, `transforms` (n, 2) the body of each; 0 if none is listed."""
    order = np.argsort(transforms[:, 0])
    supervoxel, body = transforms[order].astype(np.uint64).T

    def cut(*slices: slice) -> np.ndarray:
        ids = np.asarray(stack[slices]).astype(np.uint64)
        at = np.minimum(np.searchsorted(supervoxel, ids), len(supervoxel) - 1)
        return np.where(supervoxel[at] == ids, body[at], np.uint64(0))

    return Lazy(stack.shape, np.uint64, cut)


class _Source(NamedTuple):
    array: Any
    voxel_size: Any = None  # as the file says it; `Volume` checks it
    offset: Any = None


def _open(path: Path, key: str | None, known: tuple[str, ...]) -> _Source:
    """The array at `key`, or at the first of the `known` keys that the file has."""
    root = _root(path)
    if isinstance(root, _Source):
        return root
    if hasattr(root, "dtype"):  # a Zarr array without a group
        return _describe(root)
    if key is None:
        key = next((k for k in known if k in root), "" if _multiscales(root) else None)
    if key is None or (key and key not in root):
        wanted = key or " or ".join(known)
        raise ValueError(f"{path}: no dataset {wanted}; its datasets are: {', '.join(_list_arrays(root)) or 'none'}")
    node = root[key] if key else root
    _refuse_other_files(node, path)
    source = _ome(node) if _multiscales(node) else _describe(node)
    if not hasattr(source.array, "dtype"):
        raise ValueError(f"{path}: {key} is a group; its datasets are: {', '.join(_list_arrays(node)) or 'none'}")
    beside = f"{key.rpartition('/')[0]}/transforms".lstrip("/")
    if key.endswith("stack") and beside in root:
        _refuse_other_files(root[beside], path)
        return source._replace(array=_map_bodies(source.array, root[beside][:]))
    return source


def _refuse_other_files(node: Any, path: Path) -> None:
    """Raise a ValueError if an HDF5 node takes its voxels from another file.

    h5py follows external links, external storage and virtual datasets: a downloaded file could name any file that you
    may read, and its content would show up as voxels.
    """
    if not isinstance(node, h5py.Dataset | h5py.Group):
        return
    external = isinstance(node, h5py.Dataset) and (node.external or node.is_virtual)
    if external or Path(node.file.filename).resolve() != path.resolve():
        raise ValueError(
            f"{path}: {node.name} takes its voxels from another file, which is not read; copy them into one file, "
            "with h5py or h5repack"
        )


class _Confined(LocalStore):
    """A Zarr folder whose links are followed inside the folder only.

    Zarr's own store follows every link: a downloaded folder could name any file that you may read, and its content
    would show up as voxels.
    """

    async def get(self, key: str, *args: Any, **options: Any) -> Any:
        self._check(key)
        return await super().get(key, *args, **options)

    def get_sync(self, key: str, **options: Any) -> Any:
        self._check(key)
        return super().get_sync(key, **options)

    def _check(self, key: str) -> None:
        path = self.root / key
        if not path.resolve().is_relative_to(self.root.resolve()):
            raise ValueError(f"{path} leads out of {self.root}, to {path.resolve()}, and is not read")


def _root(path: Path) -> Any:
    """The open file: an HDF5 or Zarr group, a Zarr array, or the `_Source` of a TIFF."""
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder (the current folder is {Path.cwd()})")
    try:
        if path.suffix.lower() in (".h5", ".hdf", ".hdf5"):
            return h5py.File(path, "r")
        if path.is_dir() and any((path / mark).exists() for mark in ("zarr.json", ".zgroup", ".zarray")):
            return zarr.open(_Confined(path, read_only=True), mode="r")
        files = list(path.glob("*.tif*"))
        if files or path.suffix.lower() in (".tif", ".tiff"):
            return _tiff(path, files)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read, it may be truncated or not what its name says ({error})") from error
    raise ValueError(f"{path}: unknown format; give .h5, .hdf, .tif, a folder of .tif or a Zarr folder")


def _has_labels(path: Path) -> bool:
    root = _root(path)
    return hasattr(root, "attrs") and not hasattr(root, "dtype") and (LABELS_KEY in root or "transforms" in root)


def _describe(node: Any) -> _Source:
    resolution, offset = node.attrs.get("resolution"), node.attrs.get("offset")
    return _Source(node, *(None if x is None else tuple(map(float, x)) for x in (resolution, offset)))


def _multiscales(node: Any) -> Any:
    return node.attrs.get("ome", node.attrs).get("multiscales")  # 0.5 put it under `ome`


def _ome(group: Any) -> _Source:
    """The full resolution of an OME-Zarr image, its scale and translation in nm; axes before z must have length 1."""
    image = _multiscales(group)[0]
    level = image["datasets"][0]
    array = group[level["path"]]
    units = [axis.get("unit") for axis in image["axes"]][-3:]
    steps = [*level["coordinateTransformations"], *image.get("coordinateTransformations", [])]
    scale, translation = np.ones(array.ndim), np.zeros(array.ndim)
    for step in steps:
        if step["type"] == "scale":
            scale, translation = scale * step["scale"], translation * step["scale"]
        elif step["type"] == "translation":
            translation = translation + step["translation"]
    if array.ndim > 3 and set(array.shape[:-3]) == {1}:
        full, lead = array, (0,) * (array.ndim - 3)
        array = Lazy(full.shape[-3:], full.dtype, lambda *cut: np.asarray(full[lead + cut]))
    if not set(units) <= set(NM_PER_UNIT):
        return _Source(array)  # no unit: the caller has to give the voxel size
    nm = np.array([NM_PER_UNIT[unit] for unit in units])
    return _Source(array, tuple(scale[-3:] * nm), tuple(translation[-3:] * nm))


def _tiff(path: Path, files: list[Path]) -> _Source:
    """A TIFF stack (no `files`), or one section a file in natural order (sec_2 before sec_10)."""
    files.sort(key=lambda file: [int(t) if t.isdigit() else t for t in re.split(r"(\d+)", file.name)])
    with tifffile.TiffFile(files[0] if files else path) as file:
        series, page, pages = file.series[0], file.pages[0], len(file.pages)
    colour = page.ndim > 2
    if not files and series.dataoffset is not None and series.ndim == 3 and not colour:
        stack = tifffile.memmap(path, mode="r")
        return _Source(Lazy(stack.shape, stack.dtype, lambda *cut: np.array(stack[cut])))
    sections = [(file, 0) for file in files] or [(path, i) for i in range(pages)]
    shape = page.shape if len(sections) == 1 and not colour else (len(sections), *page.shape)

    def cut(z: slice, y: slice, x: slice) -> np.ndarray:
        return np.stack([tifffile.imread(file, key=i)[y, x] for file, i in sections[z]])

    return _Source(Lazy(shape, page.dtype, cut))


def _list_arrays(group: Any) -> list[str]:
    """The paths of all arrays in an HDF5 or Zarr group."""
    if isinstance(group, h5py.Group):
        names: list[str] = []
        group.visititems(lambda name, node: names.append(name) if isinstance(node, h5py.Dataset) else None)
        return names
    return [name for name, node in group.members(max_depth=None) if isinstance(node, zarr.Array)]
