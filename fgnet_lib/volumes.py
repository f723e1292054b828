"""EM volumes, and boxes of voxels in them.

Arrays are in z, y, x order, voxel sizes and offsets in nm. `raw` is uint8; `labels` are uint32 or uint64, where 0 is
boundary or unlabelled and `IGNORE` is unknown. Nothing is read from disk before it is cut out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

import numpy as np

T = TypeVar("T")
IGNORE = np.uint64(2**64 - 1)  # CREMI's mark for unknown voxels


class FormatError(ValueError):
    """A file that is not read, with the file, what it says, and what to do."""


def triple(values: Iterable[T]) -> tuple[T, T, T]:
    """Return three values, along z, y, x, as a tuple."""
    z, y, x = values
    return z, y, x


class Region(NamedTuple):
    """A box of voxels: along each axis a slice with a start and a stop.

    A region indexes arrays of NumPy, PyTorch and Zarr, as in `array[region]`; h5py needs `array[*region]`. If channels
    come first, write `array[:, *region]`.

    >>> block = Region.at((2, 0, 8), shape=(4, 8, 8))
    >>> read = block.grow((1, 2, 2), shape=(6, 16, 16))
    >>> print(block, "is read with its surroundings", read)
    2:6, 0:8, 8:16 is read with its surroundings 1:6, 0:10, 6:16
    >>> print(block.within(read))
    1:5, 0:8, 2:10
    >>> np.zeros((3, 6, 16, 16))[:, *block].shape
    (3, 4, 8, 8)
    """

    z: slice
    y: slice
    x: slice

    @classmethod
    def at(cls, start: Sequence[int], shape: Sequence[int]) -> Region:
        """The box of `shape` voxels whose first voxel is `start`, both (z, y, x)."""
        return cls(*(slice(int(a), int(a) + int(n)) for a, n in zip(start, shape, strict=True)))

    @classmethod
    def whole(cls, shape: Sequence[int]) -> Region:
        """All voxels of a volume of `shape` (z, y, x)."""
        return cls.at((0, 0, 0), shape)

    @property
    def start(self) -> tuple[int, int, int]:
        """The first voxel (z, y, x)."""
        return self.z.start, self.y.start, self.x.start

    @property
    def stop(self) -> tuple[int, int, int]:
        """One more than the last voxel, along z, y, x."""
        return self.z.stop, self.y.stop, self.x.stop

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along z, y, x."""
        return tuple(s.stop - s.start for s in self)

    @property
    def voxels(self) -> int:
        """The number of voxels, 0 for an empty box."""
        return math.prod(self.shape)

    def grow(self, margin: Sequence[int], shape: Sequence[int]) -> Region:
        """The box with `margin` (z, y, x) voxels more on every side, as far as a volume of `shape` goes.

        `grow(margin, region.stop)` grows it on the low sides only.
        """
        axes = zip(self, margin, shape, strict=True)
        return Region(*(slice(max(s.start - m, 0), min(s.stop + m, n)) for s, m, n in axes))

    def intersect(self, other: Region) -> Region:
        """The voxels that both boxes have; empty along an axis where they share none."""
        starts = [max(a.start, b.start) for a, b in zip(self, other, strict=True)]
        stops = [min(a.stop, b.stop) for a, b in zip(self, other, strict=True)]
        return Region(*(slice(start, max(start, stop)) for start, stop in zip(starts, stops, strict=True)))

    def within(self, other: Region) -> Region:
        """The same box in the coordinates of `other`: `array[other][box.within(other)]` is `array[box]`."""
        return Region(*(slice(a.start - b.start, a.stop - b.start) for a, b in zip(self, other, strict=True)))

    def before(self, axis: int) -> Region:
        """The layer of voxels in front of the box along `axis`; empty where the volume begins."""
        layer = slice(max(self[axis].start - 1, 0), self[axis].start)
        return Region(*(layer if i == axis else s for i, s in enumerate(self)))

    def __str__(self) -> str:
        return ", ".join(f"{s.start}:{s.stop}" for s in self)


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
        check_raw(self.raw, where)
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

    def __getitem__(self, key: slice | tuple[slice, ...]) -> Volume:
        """Read a crop into memory; `key` is a `Region` or slices without a step, and the offset moves along.

        Raises:
            MemoryError: The crop is too large; says how large.
            FormatError: The file says something there that is not read, such as a label below 0.
            OSError: The crop cannot be read, as in a damaged file.
        """
        region = Region(*_complete(key, self.shape))
        try:
            raw = np.asarray(self.raw[*region])
            labels = None if self.labels is None else np.asarray(self.labels[*region])
        except FormatError:
            raise
        except MemoryError as error:
            size = region.voxels * (1 + (0 if self.labels is None else self.labels.dtype.itemsize)) / 2**30
            raise MemoryError(f"{self.name}: [{region}] takes {size:.1f} GiB of memory; cut a smaller crop") from error
        except Exception as error:  # whatever the codecs raise
            raise OSError(f"{self.name}: cannot read [{region}], the file may be damaged ({error})") from error
        offset = triple(o + a * v for o, a, v in zip(self.offset, region.start, self.voxel_size, strict=True))
        return replace(self, raw=raw, labels=labels, offset=offset)

    def sections(self, first: int, last: int) -> Volume:
        """The volume of sections `first` to `last` - 1 along z, still lazy, the offset moved along."""
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
    """Tell whether a voxel (z, y, x) is at least twice as long in z as in x: sections are then treated one by one."""
    return voxel_size[0] >= 2 * voxel_size[2]


class Lazy:
    """An array whose voxels come from `cut` (a slice for each axis: z, y, x, or channels before them) when needed."""

    def __init__(self, shape: tuple[int, ...], dtype: Any, cut: Callable[..., np.ndarray]) -> None:
        self.shape, self.dtype, self.ndim, self._cut = tuple(shape), np.dtype(dtype), len(shape), cut

    def __getitem__(self, key: Any) -> np.ndarray:
        key = key if isinstance(key, tuple) else (key,)
        single = [isinstance(k, int | np.integer) for k in key]
        starts = [range(n)[k] if i else 0 for k, i, n in zip(key, single, self.shape, strict=False)]
        slices = [slice(a, a + 1) if i else k for k, i, a in zip(key, single, starts, strict=False)]
        cut = _complete(tuple(slices), self.shape)
        shape = [s.stop - s.start for s in cut]
        out = self._cut(*cut) if all(shape) else np.empty(shape, self.dtype)
        return out[tuple(0 if i else slice(None) for i in single)]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[(slice(None),) * self.ndim], dtype)


def _complete(key: Any, shape: tuple[int, ...]) -> tuple[slice, ...]:
    """The slices with start and stop, one for each axis, that an index of fewer or open slices means."""
    key = (key if isinstance(key, tuple) else (key,)) + (slice(None),) * len(shape)
    if not all(isinstance(k, slice) and k.step in (None, 1) for k in key):
        raise TypeError(f"cut a volume with slices without a step, as in volume[0:16, 0:256, 0:256], not {key}")
    bounds = (k.indices(n) for k, n in zip(key, shape, strict=False))
    return tuple(slice(start, max(start, stop)) for start, stop, _ in bounds)


def check_raw(raw: Any, where: str) -> None:
    """Raise a ValueError that names `where` unless `raw` is a non-empty uint8 array with three axes."""
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
