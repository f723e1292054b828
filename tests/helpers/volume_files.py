"""Files as strangers write them: HDF5, Zarr, OME-Zarr of every version and TIFF, in any order of axes and any unit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import tifffile
import zarr

SIZE = (40.0, 8.0, 8.0)
SHAPE = (6, 20, 28)
KINDS = {"t": "time", "c": "channel"}


def grey(shape: tuple[int, ...] = SHAPE, seed: int = 0) -> np.ndarray:
    """Noise, so that no two voxels that change places look alike."""
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def neurons(shape: tuple[int, ...] = SHAPE, seed: int = 1) -> np.ndarray:
    """Ids from 1 to 200, in noise."""
    return np.random.default_rng(seed).integers(1, 200, shape).astype(np.uint64)


def turn(array: np.ndarray, axes: str) -> np.ndarray:
    """An array z, y, x in another order; letters that are not z, y or x become axes of length 1."""
    space = [axis for axis in axes if axis in "zyx"]
    turned = array.transpose(["zyx".index(axis) for axis in space])
    return np.ascontiguousarray(turned[tuple(slice(None) if axis in "zyx" else None for axis in axes)])


def hdf5(path: Path, arrays: dict[str, np.ndarray], **attributes: dict[str, Any]) -> Path:
    """An HDF5 file; `attributes` maps the last part of an array's path, or `file`, to its attributes."""
    with h5py.File(path, "w") as file:
        for key, array in arrays.items():
            file[key] = array
            file[key].attrs.update(attributes.get(key.rpartition("/")[2], {}))
        file.attrs.update(attributes.get("file", {}))
    return path


def plain_zarr(path: Path, array: np.ndarray, key: str = "volumes/raw", version: int = 2, **options: Any) -> Path:
    """A Zarr folder with an array; `attributes` and other options are those of `create_array`."""
    group = zarr.open_group(path, mode="w", zarr_format=version)
    group.create_array(key, data=array, chunks=options.pop("chunks", array.shape), **options)
    return path


def ome_axes(axes: str, unit: str | None = "nanometer") -> list[dict[str, str]]:
    """Axes as OME-Zarr 0.4 and later describe them."""
    space = {"unit": unit} if unit else {}
    return [{"name": axis, "type": KINDS.get(axis, "space"), **(space if axis in "zyx" else {})} for axis in axes]


def ome_zarr(path: Path, array: np.ndarray, image: dict[str, Any], version: str = "0.4", **options: Any) -> Path:
    """An OME-Zarr whose level 0 is `array`; `image` is the description of its only image."""
    modern = version >= "0.5"
    group = zarr.open_group(path, mode="w", zarr_format=3 if modern else 2)
    group.create_array("0", data=array, chunks=options.pop("chunks", array.shape), **options)
    multiscales = {"multiscales": [image if modern else {"version": version, **image}]}
    group.attrs.update({"ome": {"version": version, **multiscales}} if modern else multiscales)
    return path


def ome_image(version: str, axes: str, size: Sequence[float], start: Sequence[float], unit: str) -> dict[str, Any]:
    """The description of an image with one level in a version from 0.4 on; `size` and `start` are along its axes."""
    scale = {"type": "scale", "scale": list(size)}
    translation = {"type": "translation", "translation": list(start)}
    if version < "0.6":
        return {
            "axes": ome_axes(axes, unit),
            "datasets": [{"path": "0", "coordinateTransformations": [scale, translation]}],
        }
    step = {
        "type": "sequence",
        "transformations": [scale, translation],
        "input": {"path": "0"},
        "output": {"name": "nm"},
    }
    return {
        "coordinateSystems": [{"name": "nm", "axes": ome_axes(axes, unit)}],
        "datasets": [{"path": "0", "coordinateTransformations": [step]}],
    }


def sections(folder: Path, raw: np.ndarray, name: str = "s{z}.tif", numbers: Sequence[int] | None = None) -> Path:
    """A folder of TIFF sections."""
    folder.mkdir(parents=True, exist_ok=True)
    for z, section in zip(numbers or range(len(raw)), raw, strict=True):
        tifffile.imwrite(folder / name.format(z=z), section, photometric="minisblack")
    return folder


def imagej(
    path: Path, array: np.ndarray, axes: str = "ZYX", unit: str = "um", nm: float = 1e3, size: Any = SIZE
) -> Path:
    """A TIFF as ImageJ writes it, in a unit of `nm` nanometres."""
    z, y, x = np.divide(size, nm)
    metadata = {"axes": axes, "spacing": float(z), "unit": unit}
    tifffile.imwrite(path, array, imagej=True, resolution=(1 / x, 1 / y), metadata=metadata)
    return path


def ome_tiff(
    path: Path, array: np.ndarray, axes: str = "ZYX", unit: str = "nm", nm: float = 1.0, size: Any = SIZE
) -> Path:
    """An OME-TIFF, in a unit of `nm` nanometres."""
    lengths = {f"PhysicalSize{axis}": length / nm for axis, length in zip("ZYX", size, strict=True)}
    units = {f"PhysicalSize{axis}Unit": unit for axis in "ZYX"}
    tifffile.imwrite(path, array, ome=True, photometric="minisblack", metadata={"axes": axes, **lengths, **units})
    return path
