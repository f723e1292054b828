"""Arrays of Zarr folders, and what OME-Zarr of the versions 0.1 to 0.6, or their attributes, say about them.

| version | axes | scale |
| --- | --- | --- |
| 0.1, 0.2 | t, c, z, y, x, without saying so | none |
| 0.3 | a list of names | none |
| 0.4, 0.5 | a list with names, types and units | `scale` and `translation` of each level, then of all levels |
| 0.6 | in named coordinate systems | the same to one of these systems, also as a `sequence` |
"""

from __future__ import annotations

import math
import posixpath
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.storage import LocalStore

from fgnet_lib.files.attributes import claim_attributes, is_coarser, read_attributes
from fgnet_lib.files.geometry import Claims, FormatError
from fgnet_lib.files.hdf5 import chunks_of, refuse_large_chunks, watch
from fgnet_lib.files.lengths import Measure

MARKS = ("zarr.json", ".zgroup", ".zarray")
UNNAMED = ("0.1", "0.2")  # versions of OME-Zarr whose axes are t, c, z, y, x


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
            raise FormatError(f"{path} leads out of {self.root}, to {path.resolve()}, and is not read")
        if path.exists() and not path.is_file() and not path.is_dir():
            raise FormatError(f"{path} is neither a file nor a folder, and is not read")


def is_zarr(path: Path) -> bool:
    """Tell whether a folder is a Zarr group or array."""
    return path.is_dir() and any((path / mark).exists() for mark in MARKS)


def open_zarr(path: Path) -> Any:
    """Open a Zarr folder for reading: a group or an array.

    Consolidated metadata, a copy for slow stores, are not read: they are often older than what they were copied from.
    """
    return zarr.open(_Confined(path, read_only=True), mode="r", use_consolidated=False)


def list_arrays(group: Any) -> list[str]:
    """List the paths of all arrays in a Zarr group."""
    return [name for name, node in group.members(max_depth=None) if isinstance(node, zarr.Array)]


def multiscales(group: Any) -> Any:
    """What a group says about the levels of an OME-Zarr image; None if it is none."""
    return _ome(group).get("multiscales")


def _ome(group: Any) -> Mapping[str, Any]:
    """What OME-Zarr says in a group: from 0.5 on under `ome`, before beside other attributes."""
    modern = group.attrs.get("ome")
    return {**group.attrs, **(modern if isinstance(modern, Mapping) else {})}


def default_image(group: Any, path: Path) -> str | None:
    """The key of the only image of a Zarr folder as `bioformats2raw` lays it out; None if it is laid out otherwise.

    Raises:
        FormatError: it holds several images; lists them.
    """
    if "bioformats2raw.layout" not in _ome(group):
        return None
    images = sorted(key for key, node in group.groups() if multiscales(node))
    if len(images) > 1:
        raise FormatError(f"{path}: holds {len(images)} images, {', '.join(images[:20])}; RAW_KEY names one of them")
    return images[0] if images else None


def claim_zarr(root: Any, key: str, path: Path) -> Claims:
    """Return the array at a key of a Zarr folder with what the folder says about it.

    Args:
        root: the open folder, a group or an array.
        key: path of an array; or of an OME-Zarr image, whose full resolution is meant; "" for `root` itself.
        path: the folder.

    Raises:
        FormatError: no array there, or a description that is not understood.
    """
    node = root[key] if key else root
    where = f"{path}/{key}".rstrip("/")
    if isinstance(node, zarr.Array):
        claims = _claim_array(root, node, path, where)
        image, level = _image_around(root, key)
        return _claim_level(claims, image, level) if image else claims
    image, level = _full_resolution(node, where)
    array = node[level["path"]]
    return _claim_level(_claim_array(root, array, path, where), image, level)


def _claim_array(root: Any, array: Any, path: Path, where: str) -> Claims:
    _refuse_objects(array, where)
    refuse_large_chunks(array.chunks, array.dtype, where)
    folder = path / array.path
    parents = array.path.split("/")[:-1]
    groups = [group for _, group in reversed(_groups_around(root, array.path))]
    coarser = bool(groups) and is_coarser(groups[0], array.path.rpartition("/")[2])
    watched = watch(_Filled(array), _lost_chunks(array, folder), where)
    claims = claim_attributes(watched, read_attributes(array), list(map(read_attributes, groups)), coarser)
    names = getattr(array.metadata, "dimension_names", None)
    axes = {**claims.axes, "its dimension names": names} if names else claims.axes
    marks = [path.joinpath(*parents[:i]) / mark for i in range(len(parents) + 1) for mark in (*MARKS, ".zattrs")]
    return replace(claims, axes=axes, files=(*(mark for mark in marks if mark.is_file()), folder))


def _refuse_objects(array: Any, where: str) -> None:
    """Raise a FormatError unless an array holds plain numbers: one with Python objects may be unpacked by pickle.

    A pickle runs whatever its file says. Old versions of numcodecs unpack it wherever a file asks for it.
    """
    codecs = [getattr(codec, "codec_id", "") for codec in (*array.filters, *array.compressors)]
    if array.dtype.kind not in "biufc" or "pickle" in codecs:
        packed = f", packed by {', '.join(codecs)}" if any(codecs) else ""
        raise FormatError(f"{where} holds {array.dtype}{packed}, and not numbers; it is not read")


class _Filled:
    """A Zarr array with the names that h5py gives."""

    def __init__(self, array: Any) -> None:
        self.array, self.shape, self.dtype, self.fillvalue = array, array.shape, array.dtype, array.fill_value

    def __getitem__(self, key: Any) -> Any:
        return self.array[key]


def _lost_chunks(array: Any, folder: Path) -> Callable[[tuple[slice, ...]], tuple[int, int]]:
    """Count the chunks, or shards, of a crop that are not on disk, and refuse those that are too large."""
    chunks = array.shards or array.chunks
    size = math.prod(chunks) * array.dtype.itemsize
    allowed = size + size // 8 + 2**16  # what does not compress grows a little; shards have an index
    inner = math.prod(chunks) // math.prod(array.chunks)

    def lost(slices: tuple[slice, ...]) -> tuple[int, int]:
        reached = chunks_of(slices, chunks)
        absent = 0
        for position in reached:
            file = folder / array.metadata.encode_chunk_key(position)
            if not file.exists():
                absent += 1
            elif file.stat().st_size > allowed + 16 * inner:
                raise FormatError(f"{file} has {file.stat().st_size} bytes for {size} bytes of voxels, and is not read")
        return absent, len(reached)

    return lost


# --- OME-Zarr --------------------------------------------------------------------------------------------------------


def _groups_around(root: Any, key: str) -> list[tuple[str, Any]]:
    """The groups that an array lies in, from the root on, each with the rest of the array's path."""
    parts = key.split("/")
    keys = ["/".join(parts[:i]) for i in range(len(parts))]
    nodes = [root if not key else root.get(key, None) for key in keys]
    return [("/".join(parts[i:]), node) for i, node in enumerate(nodes) if isinstance(node, zarr.Group)]


def _image_around(root: Any, key: str) -> tuple[Any, Any]:
    """The image that an array is a level of, and the level; (None, None) if it is none."""
    for rest, group in _groups_around(root, key):
        images = multiscales(group)
        for image in images if isinstance(images, list) else []:
            for level in _levels(image):
                if level["path"] == rest:
                    return image, level
    return None, None


def _levels(image: Any) -> list[dict[str, Any]]:
    """The levels of an image that have a path, which may be a number, or begin with a dot."""
    levels = image.get("datasets") if isinstance(image, Mapping) else None
    levels = levels if isinstance(levels, list) else []
    named = [level for level in levels if isinstance(level, Mapping) and "path" in level]
    return [{**level, "path": posixpath.normpath(f"/{level['path']}").strip("/")} for level in named]


def _full_resolution(group: Any, where: str) -> tuple[Any, Any]:
    """The image of a group, and its level with the most voxels, which the specification wants first."""
    images = multiscales(group)
    if not isinstance(images, list) or not images or not isinstance(images[0], Mapping):
        raise FormatError(f"{where} is a group; its datasets are: {', '.join(list_arrays(group)[:20]) or 'none'}")
    levels = [level for image in images for level in _levels(image)]
    paths = [level["path"] for level in levels]
    if len(images) > 1:
        raise FormatError(f"{where}: holds {len(images)} OME-Zarr images; RAW_KEY names an array: {', '.join(paths)}")
    lost = [name for name in paths if not name or name not in group or not isinstance(group[name], zarr.Array)]
    if not levels or paths[0] in lost:
        raise FormatError(
            f"{where}: OME-Zarr names the levels {', '.join(paths) or 'none'}; missing: {', '.join(lost) or 'none'}; "
            f"there are: {', '.join(list_arrays(group)[:20]) or 'none'}. RAW_KEY names an array"
        )
    levels = [level for level in levels if level["path"] not in lost]
    return images[0], max(levels, key=lambda level: math.prod(group[level["path"]].shape))


def _claim_level(claims: Claims, image: Mapping[str, Any], level: Mapping[str, Any]) -> Claims:
    """Claims with the axes, the scale and the translation that OME-Zarr gives."""
    ndim = len(claims.array.shape)
    steps = level.get("coordinateTransformations") or []
    try:
        system, axes = _axes(image, steps, ndim)
    except (TypeError, ValueError, AttributeError) as error:
        text = f"its OME-Zarr is not understood ({error})"
        return replace(claims, order_unsure=f"{text}; AXES names the axes, as in 'zyx'", remark=text)
    named = {**claims.axes, "OME-Zarr": [axis.get("name") for axis in axes]} if axes else dict(claims.axes)
    if not axes:
        claims = replace(claims, order_unsure="its OME-Zarr names no axes; AXES names them, as in 'zyx'")
    units = [axis.get("unit") for axis in axes] or None
    scale, translation, scaled = np.ones(ndim), np.zeros(ndim), False
    unclear = ""
    for position, step in enumerate([*steps, *_common(image, system)]):
        try:
            scale, translation, is_scale = _compose(step, scale, translation)
            scaled |= is_scale and position < len(steps)
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            unclear = f"{error}"
    if unclear:
        remark = f"its OME-Zarr has a transformation that is not read: {unclear}"[:200]
        if system is None:
            return replace(claims, axes=named, remark=remark)
        return replace(
            claims, order_unsure=f"{remark}; AXES names the axes, as in 'zyx'", remark=remark
        )  # may turn them
    if not scaled:
        return replace(claims, axes=named, remark="its OME-Zarr has no scale")
    return replace(
        claims,
        axes=named,
        sizes={**claims.sizes, "OME-Zarr": Measure(scale.tolist(), units)},
        origins={"OME-Zarr": Measure(translation.tolist(), units)},
        remark="its OME-Zarr has a scale, but no unit of length",
        centred=True,
    )


def _axes(image: Mapping[str, Any], steps: list[Any], ndim: int) -> tuple[str | None, list[dict[str, Any]]]:
    """The coordinate system of a level, from 0.6 on, and its axes with names and units."""
    version = str(image.get("version") or "")
    systems = image.get("coordinateSystems")
    if isinstance(systems, list) and systems:
        output = steps[0].get("output") if steps and isinstance(steps[0], Mapping) else None
        name = output.get("name") if isinstance(output, Mapping) else output
        system = next((s for s in systems if s.get("name") == name), systems[0] if name is None else None)
        if system is None:
            raise ValueError(f"a level leads to the coordinate system {name!r}, which it does not describe")
        return system.get("name"), _as_tables(system.get("axes"))
    axes = _as_tables(image.get("axes"))
    if axes or version not in ("", *UNNAMED):
        return None, axes
    return None, [{"name": name} for name in "tczyx"] if ndim == 5 else []


def _as_tables(axes: Any) -> list[dict[str, Any]]:
    return [dict(axis) if isinstance(axis, Mapping) else {"name": axis} for axis in axes or []]


def _common(image: Mapping[str, Any], system: str | None) -> list[Any]:
    """The transformations of all levels; from 0.6 on they lead on to other systems, so they are not needed."""
    return [] if system else image.get("coordinateTransformations") or []


def _compose(step: Any, scale: np.ndarray, translation: np.ndarray) -> tuple[np.ndarray, np.ndarray, bool]:
    """Scale and translation after one more transformation, and whether it held a scale."""
    kind = step["type"]
    if kind == "sequence":
        scaled = False
        for part in step["transformations"]:
            scale, translation, is_scale = _compose(part, scale, translation)
            scaled |= is_scale
        return scale, translation, scaled
    if kind == "identity":
        return scale, translation, False
    if kind not in ("scale", "translation") or kind not in step:
        raise ValueError(f"{kind} without its numbers in the metadata" if kind in ("scale", "translation") else kind)
    numbers = np.array(step[kind], float)
    if numbers.shape != scale.shape:
        raise ValueError(f"{kind} has {numbers.size} numbers for {scale.size} axes")
    if kind == "scale":
        return scale * numbers, translation * numbers, True
    return scale, translation + numbers, False
