"""Volumes read lazily from the formats of the field, and written atomically."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import product, takewhile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import zarr

from fgnet_lib.files.atomic import atomic, list_foreign, refuse_to_delete
from fgnet_lib.files.geometry import (
    Arranged,
    Claims,
    FormatError,
    arrange,
    describe_axes,
    mention,
    naming,
    parse_axes,
    parse_voxel_size,
)
from fgnet_lib.files.hdf5 import claim_hdf5, is_hdf5, list_datasets, open_hdf5, refuse_other_files
from fgnet_lib.files.labels import map_bodies, mark_unknown, parse_unknown, place_labels
from fgnet_lib.files.lengths import SPACE
from fgnet_lib.files.ngff import claim_zarr, default_image, is_zarr, list_arrays, multiscales, open_zarr
from fgnet_lib.files.stamps import stamp_all
from fgnet_lib.files.tiff import claim_sections, claim_tiff, is_tiff
from fgnet_lib.volumes import Lazy, Volume, check_raw

RAW_KEY, LABELS_KEY = "volumes/raw", "volumes/labels/neuron_ids"  # the CREMI layout
CHUNK = (16, 128, 128)
_WRITTEN = re.compile(  # the files of a Zarr folder of `write_volume`, by their path in it
    rf"(volumes/(labels/)?)?zarr\.json|({RAW_KEY}|{LABELS_KEY})/(zarr\.json|c(/\d+){{3}})"
)


def read_volume(
    path: str | Path,
    raw_key: Any = None,
    labels_key: Any = None,
    labels_path: str | Path | None = None,
    voxel_size: Any = None,
    axes: Any = None,
    unknown: Any = None,
) -> Volume:
    """Open a volume as a lazy `Volume`, without reading its voxels.

    Formats: HDF5 (CREMI, also padded; FIB-25 with `stack` and `transforms`; any other by its dataset paths), a TIFF
    stack or a folder of TIFF sections in natural order, Zarr 2 and 3 (OME-Zarr 0.1 to 0.6 at full resolution, the
    CREMI layout, or by array paths). What a file says about axes, units and voxel size is brought into z, y, x and nm,
    or refused; what you give comes first, and is used before the file's own is parsed. All that is left out or may be
    incomplete gives a warning. docs/understand/files.md lists what is read and what is refused.

    Labels of other voxel sizes or smaller than raw are placed by the offsets, with `IGNORE` around them, if that is
    exact. uint8 and uint16 labels are widened to uint32; signed labels are refused unless `unknown` is given, because a
    lazy reader cannot know that no id is negative.

    Args:
        path: the file or folder with the raw data; `~` is your home.
        raw_key: path of raw inside the file; by default `volumes/raw`, `raw` or the OME-Zarr image. In a TIFF of
            several images a number; in a folder of TIFFs of several kinds their names with # for numbers, "s#.tif".
        labels_key: path of the labels; by default `volumes/labels/neuron_ids`, or `stack` beside `transforms`.
        labels_path: the file with the labels if it is another one.
        voxel_size: nm along z, y, x, as in (40, 8, 8), "40 8 8" or "0.04 0.008 0.008 um"; overrides the file's own, and
            is needed if the file has none, or one that no microscope has.
        axes: names of the array's axes in the file's order, as in "xyz"; "c0zyx" chooses the first channel. They hold
            for the labels, too, if their file names its axes as that of raw does.
        unknown: id or ids of unknown voxels in the labels, as in -1; they are read as `IGNORE`. 2^64 - 1 always is.

    Raises:
        FileNotFoundError: no such file.
        ValueError: unreadable, no such dataset (lists the datasets of the file), not a volume as `Volume` wants it, or
            something that the file says and that is not understood; names the parameter that decides.
    """
    size, order, ids = parse_voxel_size(voxel_size), parse_axes(axes), parse_unknown(unknown)
    path = _expand(path)
    volume, raw, claims = _open_raw(path, raw_key, size, order)
    labels_key = _key(labels_key)
    separate = labels_path not in (None, "")  # a file may be called 0
    if not separate and labels_key is None and not _has_labels(path):
        return volume
    labels_path = _expand(labels_path) if separate and labels_path is not None else path
    labels = _open(labels_path, labels_key, (LABELS_KEY, "stack"))
    with naming(labels_path):
        _mention_guesses(labels, claims, volume.shape, order, labels_path)
        marked = replace(labels, array=mark_unknown(labels.array, ids, str(labels_path)))
        arranged = arrange(marked, str(labels_path), _axes_of_labels(order, labels, claims), size is not None)
        placed = place_labels(arranged, raw, volume, str(labels_path), claims.centred, labels.centred)
    return replace(volume, labels=placed)


def read_raw(path: str | Path, raw_key: Any = None, voxel_size: Any = None, axes: Any = None) -> Volume:
    """Open a volume as `read_volume` does, without labels, whether its file has any and whatever they are."""
    return _open_raw(_expand(path), raw_key, parse_voxel_size(voxel_size), parse_axes(axes))[0]


def _open_raw(
    path: Path, raw_key: Any, size: tuple[float, float, float] | None, order: str | None
) -> tuple[Volume, Arranged, Claims]:
    """Raw as a lazy volume, as an array in z, y, x with what its file says about it, and all that the file claims."""
    claims = _open(path, _key(raw_key), (RAW_KEY, "raw"))
    sized = size is not None
    with naming(path):
        raw = arrange(claims, str(path), order, sized)
    if (size := size or raw.voxel_size) is None:
        remark = f" ({claims.remark})" if claims.remark else ""
        raise FormatError(
            f"{path}: no voxel size in the file{remark}; give VOXEL_SIZE, in Python voxel_size=(z, y, x), in nm"
        )
    if sized or not describe_axes(claims):
        _mention_uneven(size, path)
    grey = _grey(raw.array, claims, str(path))
    return Volume(grey, size, offset=raw.offset or (0, 0, 0), name=path.name), raw, claims


def _mention_uneven(size: tuple[float, float, float], where: Path) -> None:
    """Warn of voxels that are not square in a section: their numbers may be in the order x, y, z."""
    if not np.isclose(size[1], size[2], rtol=0.01):
        mention(
            f"{where}: voxels of {size} nm along z, y, x are not square in a section; if the numbers are meant along "
            "x, y, z, turn them round in VOXEL_SIZE (and give AXES if the array is x, y, z, too)"
        )


def _mention_guesses(labels: Claims, raw: Claims, shape: tuple[int, ...], order: str | None, where: Path) -> None:
    """Warn where nothing says how labels belong to raw: numbers of sections that differ, or axes without names."""
    pairs = zip(labels.numbers, raw.numbers, strict=False)
    if len(labels.numbers) == len(raw.numbers) and (pair := next((p for p in pairs if p[0] != p[1]), None)):
        mention(
            f"{where}: labels of section {pair[0]} are taken for section {pair[1]} of raw; the files of both folders "
            "are matched by their order, not by their numbers"
        )
    named = [axis for axis in describe_axes(raw) or SPACE if axis and axis in SPACE]
    if order or len(labels.array.shape) != 3 or describe_axes(labels) or named == list(SPACE):
        return
    if tuple(labels.array.shape) != shape or shape == tuple(shape[SPACE.index(axis)] for axis in named):
        mention(
            f"{where}: the labels name no axes and are read as z, y, x, but raw is {', '.join(named)}; if the labels "
            f"are, too, give AXES = {''.join(named)!r}"
        )


def _axes_of_labels(order: str | None, labels: Claims, raw: Claims) -> str | None:
    """The axes given by hand, for labels whose file names its axes as the one of raw does, or not as z, y, x.

    Of raw's channels and times labels have the one that they have.
    """
    if not order:
        return None
    shape, own = labels.array.shape, describe_axes(labels)
    if len(shape) == 3:
        space = tuple(axis for axis in describe_axes(raw) or () if axis and axis in SPACE) or None
        readable = own is not None and sorted(map(str, own)) == sorted(SPACE)
        return None if readable and own != space else "".join(axis for axis in order if axis in SPACE)
    if own != describe_axes(raw):
        return None
    named = re.findall(r"([a-z])(\d*)", order)
    return "".join(
        f"{letter}0" if n == 1 and letter not in SPACE else letter + digits
        for (letter, digits), n in zip(named, shape, strict=len(named) == len(shape))
    )


def fingerprint(path: str | Path, raw_key: Any = None) -> dict[str, str]:
    """Say which files hold the raw array that `read_volume` reads, with their sizes and the times of their last change.

    Args:
        path: as in `read_volume`.
        raw_key: as in `read_volume`.

    Returns:
        File name -> time and size; a folder of chunks, and all sections of a folder together, as a number of files,
        their bytes and a checksum of their names, sizes and times.
    """
    path = _expand(path)
    files = _open(path, _key(raw_key), (RAW_KEY, "raw")).files
    if path.is_dir() and not is_zarr(path):
        return {path.name: stamp_all(files, path)}
    stamps = {}
    for file in files:
        name = Path(os.path.relpath(file, path if path.is_dir() else path.parent)).as_posix()
        stamps[name] = stamp_all(file.rglob("*"), file) if file.is_dir() else stamp_all([file], file.parent)
    return stamps


def write_volume(volume: Volume, path: str | Path) -> Path:
    """Write a volume in the CREMI layout, slab by slab, so that it may be larger than memory; returns the path.

    Raw goes to `volumes/raw`, labels to `volumes/labels/neuron_ids`, each with `resolution` and `offset` in nm and the
    names of its axes. The file appears under its name only when it is complete: a full disk or a kill leaves the
    previous file untouched.

    Args:
        volume: what to write.
        path: `.h5`, `.hdf`, `.hdf5` or `.zarr`; an earlier volume at this path is replaced, unless other arrays or
            files lie in it.

    Raises:
        ValueError: another suffix, or something at the path that is not an earlier volume and would be deleted.
        OSError: the disk is full or cannot be written.
    """
    path = _expand(path)
    if path.suffix not in (".h5", ".hdf", ".hdf5", ".zarr"):
        raise ValueError(f"{path}: cannot write {path.suffix or 'a name without suffix'}; use .h5, .hdf or .zarr")
    check_replaceable(path)
    with atomic(path) as part:
        _write_zarr(volume, part) if path.suffix == ".zarr" else _write_hdf5(volume, part)
        check_replaceable(path)  # writing may have taken an hour
    return path


def check_replaceable(path: Path) -> None:
    """Raise a ValueError unless `write_volume` may write to `path`: it is free, or holds a volume and nothing else."""
    if not path.exists():
        return
    if path.is_dir() != (path.suffix == ".zarr"):
        kind = "folder" if path.is_dir() else "file"
        raise ValueError(f"{path} already exists and is a {kind}: move it away, or choose a new name")
    if path.is_dir():
        return refuse_to_delete(path, list_foreign(path, _WRITTEN), "a volume and other files")
    try:
        with h5py.File(path, "r") as file:
            others = sorted({*list_datasets(file)} - {RAW_KEY, LABELS_KEY})
    except OSError as error:
        raise ValueError(
            f"{path} already exists and cannot be read as a volume ({error}): move it away, or choose a new name"
        ) from error
    refuse_to_delete(path, others, "a volume and other arrays")


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
    full = {"write_empty_chunks": True}  # a chunk that is not on disk looks like one that was lost
    _write_arrays(volume, partial(zarr.open_group(path, mode="w").create_array, config=full))


def _write_arrays(volume: Volume, create: Callable[..., Any], disk: _Surviving | None = None) -> None:
    arrays = {RAW_KEY: volume.raw} if volume.labels is None else {RAW_KEY: volume.raw, LABELS_KEY: volume.labels}
    depth, height, width = chunks = tuple(map(min, CHUNK, volume.shape))
    for key, array in arrays.items():
        out = create(key, shape=volume.shape, dtype=array.dtype, chunks=chunks)
        out.attrs.update(resolution=list(volume.voxel_size), offset=list(volume.offset), axis_names=list(SPACE))
        for z in range(0, volume.shape[0], depth):
            slab = np.asarray(array[z : z + depth, :, :])
            # one chunk at a time: after an error Zarr would go on writing the slab's other chunks in the background
            for y, x in product(range(0, volume.shape[1], height), range(0, volume.shape[2], width)):
                out[z : z + depth, y : y + height, x : x + width] = slab[:, y : y + height, x : x + width]
            if disk and disk.error:
                return


def _expand(path: str | Path) -> Path:
    if re.match(r"[a-z][a-z0-9+]+://", str(path), re.IGNORECASE):
        raise FormatError(f"{path}: is an address, and only files are read; download it, and give its file or folder")
    try:
        return Path(str(path)).expanduser()
    except RuntimeError as error:
        raise FileNotFoundError(f"{path}: begins with ~, and its home folder is unknown") from error


def _key(value: Any) -> str | None:
    """A key as people give it, also as a number; None if there is none."""
    text = "" if value is None else str(value).strip()
    return text.strip("/") or None


def _grey(array: Any, claims: Claims, where: str) -> Any:
    """Raw with black as 0; what is no grey of 8 bits is refused, with the range of its values."""
    if claims.coloured:
        raise FormatError(f"{where}: its values are numbers in a table of colours; save it as grey values of 8 bits")
    if len(array.shape) == 3 and 0 not in array.shape and array.dtype != np.uint8 and array.dtype.kind in "iuf":
        z, y, x = (slice(n // 2, n // 2 + 1) if i == 0 else slice(0, min(n, 1024)) for i, n in enumerate(array.shape))
        sample = np.asarray(array[z, y, x])
        low, high = sample.min(), sample.max()
        fits = array.dtype.kind in "iu" and low >= 0 and high < 256
        advice = (
            "if that holds everywhere, astype('uint8') loses nothing" if fits else "scale them to 0..255, then cast"
        )
        raise FormatError(
            f"{where}: raw is {array.dtype}, not uint8; its middle section has values from {low} to {high}: {advice}"
        )
    check_raw(array, where)
    return Lazy(array.shape, array.dtype, lambda *cut: 255 - np.asarray(array[cut])) if claims.inverted else array


def _open(path: Path, key: str | None, known: tuple[str, ...]) -> Claims:
    """The array at `key`, or at the first of the `known` keys that the file has, with what the file says about it."""
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder (the current folder is {Path.cwd()})")
    with naming(path):
        if is_hdf5(path):
            return _open_node(path, open_hdf5(path), key, known)
        if is_zarr(path):
            return _open_node(path, open_zarr(path), key, known)
        if is_tiff(path):
            return claim_sections(path, key) if path.is_dir() else claim_tiff(path, key)
    raise FormatError(
        f"{path}: unknown format{_describe_unknown(path)}; give .h5, .hdf, .tif, a folder of .tif or a Zarr folder"
    )


def _describe_unknown(path: Path) -> str:
    """What is known about a path that is no volume."""
    if (path / "attributes.json").exists():
        return ", N5 is not read: convert it to Zarr"
    if not path.is_dir():
        return "" if path.is_file() else ", neither a file nor a folder"
    inside = [entry.name for entry in sorted(path.iterdir()) if entry.is_dir() and (is_zarr(entry) or is_tiff(entry))]
    return f", but its folders {', '.join(inside[:10])} hold volumes: name one" if inside else ""


def _open_inner(path: Path) -> Claims | None:
    """The claims of an array that lies in a Zarr folder, whose groups may say what its axes and lengths are."""
    around = list(takewhile(is_zarr, path.absolute().parents))
    top = open_zarr(around[-1]) if around else None
    key = path.absolute().relative_to(around[-1]).as_posix() if around else ""
    inside = isinstance(top, zarr.Group) and isinstance(top.get(key), zarr.Array)
    return claim_zarr(top, key, around[-1]) if inside else None


def _open_node(path: Path, root: Any, key: str | None, known: tuple[str, ...]) -> Claims:
    """The claims of a node in an HDF5 or Zarr file."""
    if isinstance(root, zarr.Array):
        if key is not None:
            raise FormatError(f"{path}: no dataset {key}; it is an array itself")
        return _open_inner(path) or claim_zarr(root, "", path)
    if key is None:
        key = next((k for k in known if k in root), None) or ("" if multiscales(root) else default_image(root, path))
    listed = list_datasets if isinstance(root, h5py.Group) else list_arrays
    if key is None or (key and root.get(key) is None):  # a link may lead nowhere
        names = ", ".join(listed(root)[:20]) or "none"
        raise FormatError(f"{path}: no dataset {key or ' or '.join(known)}; its datasets are: {names}")
    claims = _claim_node(path, root, key)
    beside = f"{key.rpartition('/')[0]}/transforms".lstrip("/")
    if key.endswith("stack") and beside in root:
        return replace(claims, array=map_bodies(claims.array, _claim_node(path, root, beside).array, str(path)))
    return claims


def _claim_node(path: Path, root: Any, key: str) -> Claims:
    """The claims of the array at a key of an HDF5 or Zarr file, "" for the file itself."""
    if not isinstance(root, h5py.Group):
        return claim_zarr(root, key, path)
    node = root[key] if key else root
    refuse_other_files(node, path)
    if not isinstance(node, h5py.Dataset):
        names = ", ".join(list_datasets(node)[:20]) or "none"
        raise FormatError(f"{path}: {key} is a group; its datasets are: {names}")
    return claim_hdf5(node, path)


def _has_labels(path: Path) -> bool:
    if not is_hdf5(path) and not is_zarr(path):
        return False
    with naming(path):
        root = open_hdf5(path) if is_hdf5(path) else open_zarr(path)
        return not hasattr(root, "dtype") and (LABELS_KEY in root or "transforms" in root)
