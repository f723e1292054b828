"""EM volumes: one small type, read lazily from the formats of the field, written atomically.

Arrays are in z, y, x order, voxel sizes and offsets in nm. `raw` is uint8; `labels` are uint32 or uint64, where 0 is
boundary or unlabelled and `IGNORE` is unknown. Nothing is read from disk before it is cut out.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

Region = tuple[slice, slice, slice]  # z, y, x, with start and stop
IGNORE = np.uint64(2**64 - 1)  # CREMI's mark for "nobody looked here"


@dataclass(frozen=True, eq=False)
class Volume:
    """An EM volume, in memory or lazy.

    Attributes:
        raw: grey values, uint8 (z, y, x); a numpy array or anything with shape, dtype and slicing.
        voxel_size: nm along z, y, x.
        labels: neuron ids of the same shape, uint32 or uint64, or None.
        offset: position of the first voxel in nm along z, y, x.
        name: what figures and errors call it.

    Raises:
        ValueError: a dtype, shape or voxel size that is not as above, or an empty volume.
    """

    raw: Any
    voxel_size: tuple[float, float, float]
    labels: Any = None
    offset: tuple[float, float, float] = (0.0, 0.0, 0.0)
    name: str = ""

    def __post_init__(self) -> None:
        where = self.name or "volume"
        _check_raw(self.raw, where)
        if self.labels is not None:
            _check_labels(self.labels, self.raw.shape, where)
        for field in ("voxel_size", "offset"):
            object.__setattr__(self, field, _three_numbers(getattr(self, field), f"{where}: {field}"))
        if min(self.voxel_size) <= 0:
            raise ValueError(f"{where}: voxel_size is {self.voxel_size}; give nm along z, y, x, all above 0")

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along z, y, x."""
        return tuple(self.raw.shape)

    def __getitem__(self, key: tuple[slice, slice, slice]) -> Volume:
        """Read a crop into memory; `key` is three slices without a step, the offset moves along."""
        cut = _slices(key, self.shape)
        try:
            raw = np.asarray(self.raw[cut])
            labels = None if self.labels is None else np.asarray(self.labels[cut])
        except (OSError, RuntimeError, ValueError, zlib.error) as error:  # whatever the codecs raise
            raise OSError(f"{self.name}: cannot read {cut}, the file may be damaged ({error})") from error
        offset = tuple(o + s.start * v for o, s, v in zip(self.offset, cut, self.voxel_size, strict=True))
        return replace(self, raw=raw, labels=labels, offset=offset)

    def sections(self, first: int, last: int) -> Volume:
        """Sections `first` to `last` - 1 along z, still lazy, the offset moved along."""
        if not 0 <= first < last <= self.shape[0]:
            raise ValueError(f"{self.name}: no sections {first} to {last} in a volume with {self.shape[0]}")

        def part(array: Any) -> Lazy:
            shape = (last - first, *self.shape[1:])
            return Lazy(shape, array.dtype, lambda z, y, x: np.asarray(array[first + z.start : first + z.stop, y, x]))

        offset = (self.offset[0] + first * self.voxel_size[0], *self.offset[1:])
        labels = None if self.labels is None else part(self.labels)
        return replace(self, raw=part(self.raw), labels=labels, offset=offset)

    def load(self) -> Volume:
        """Read the whole volume into memory."""
        return self[:, :, :]


def is_anisotropic(voxel_size: tuple[float, float, float]) -> bool:
    """Whether a voxel (z, y, x) is at least twice as long in z as in x: serial sections, to be treated one by one."""
    return voxel_size[0] >= 2 * voxel_size[2]


class Lazy:
    """A (z, y, x) array whose voxels come from `cut(z, y, x)` (three slices) when they are asked for."""

    def __init__(self, shape: tuple[int, ...], dtype: Any, cut: Callable[[slice, slice, slice], np.ndarray]) -> None:
        self.shape, self.dtype, self.ndim, self._cut = tuple(shape), np.dtype(dtype), len(shape), cut

    def __getitem__(self, key: Any) -> np.ndarray:
        key = key if isinstance(key, tuple) else (key,)
        single = [isinstance(k, int | np.integer) for k in key]
        starts = [range(n)[k] if i else 0 for k, i, n in zip(key, single, self.shape, strict=False)]
        slices = [slice(a, a + 1) if i else k for k, i, a in zip(key, single, starts, strict=False)]
        cut = _slices(tuple(slices), self.shape)
        shape = [s.stop - s.start for s in cut]
        out = self._cut(*cut) if all(shape) else np.empty(shape, self.dtype)
        return out[tuple(0 if i else slice(None) for i in single)]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:, :, :], dtype)


def _slices(key: Any, shape: tuple[int, ...]) -> tuple[slice, ...]:
    """Complete slices: every start and stop given, as many as there are axes."""
    key = (key if isinstance(key, tuple) else (key,)) + (slice(None),) * len(shape)
    if not all(isinstance(k, slice) and k.step in (None, 1) for k in key):
        raise TypeError(f"cut a volume with slices without a step, as in volume[0:16, 0:256, 0:256], not {key}")
    bounds = (k.indices(n) for k, n in zip(key, shape, strict=False))
    return tuple(slice(start, max(start, stop)) for start, stop, _ in bounds)


def _check_raw(raw: Any, where: str) -> None:
    if len(raw.shape) != 3:
        raise ValueError(
            f"{where}: raw has shape {tuple(raw.shape)}; a volume has three axes z, y, x "
            "(one section: raw[None]; colour: take one channel or the mean of them)"
        )
    if 0 in raw.shape:
        raise ValueError(f"{where}: the volume is empty, its shape is {tuple(raw.shape)}")
    if raw.dtype != np.uint8:
        raise ValueError(f"{where}: raw is {raw.dtype}, not uint8; scale its grey values to 0..255 and cast to uint8")


def _check_labels(labels: Any, shape: tuple[int, ...], where: str) -> None:
    if labels.dtype not in (np.uint32, np.uint64):
        raise ValueError(
            f"{where}: labels are {labels.dtype}, not uint32 or uint64; if no id is negative or fractional, save them "
            "with labels.astype('uint64')"
        )
    if tuple(labels.shape) != tuple(shape):
        raise ValueError(f"{where}: labels have shape {tuple(labels.shape)}, raw has {tuple(shape)}; they must agree")


def _three_numbers(values: Any, what: str) -> tuple[float, float, float]:
    numbers = np.asarray(values, dtype=float)
    if numbers.shape != (3,) or not np.isfinite(numbers).all():
        raise ValueError(f"{what} is {values}; give three finite numbers along z, y, x in nm")
    return tuple(numbers.tolist())
