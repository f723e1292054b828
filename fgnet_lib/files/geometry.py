"""What a file says about axes, units, voxel size and offset, brought into z, y, x and nanometres, or refused.

Readers hand over `Claims`: an array in the file's order of axes, and everything that the file says about it, not yet
interpreted. `arrange` is the only place that interprets them. What you say yourself comes first: a voxel size or axes
that you give are used before anything in the file is parsed.
"""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fgnet_lib.files.lengths import (
    AXIS_NAMES,
    PLAUSIBLE_NM,
    SPACE,
    Measure,
    is_plausible,
    parse_lengths,
    read_table,
    split_lengths,
    split_units,
    to_plain,
    to_text,
)
from fgnet_lib.volumes import FormatError, Lazy, triple

MOST_BYTES = 2**31  # of a chunk, decoded: more is a mistake or an attack, and would be read for a single voxel


@dataclass(frozen=True)
class Claims:
    """What a file says about an array, not yet interpreted.

    Attributes:
        array: anything with shape, dtype and slicing, in the file's order of axes.
        axes: who names the axes -> their names, as many as the array has axes; None or "" for an axis without a name.
        sizes: who states a voxel size -> the lengths, for each axis of space or for each axis.
        origins: the same for the position of the first voxel.
        remark: what the file says instead of a voxel size; an error about a missing one ends with it.
        order_unsure: why the order of axes is not what it seems, where the file names none.
        centred: whether origins are centres of voxels, as in OME-Zarr, and not their corners.
        inverted: whether 0 is white.
        coloured: whether values are numbers in a table of colours, and not grey.
        files: the files and folders that hold the array, by which a change is noticed.
        numbers: of the sections in a folder, by their names; empty where they have none.
    """

    array: Any
    axes: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    sizes: Mapping[str, Measure] = field(default_factory=dict)
    origins: Mapping[str, Measure] = field(default_factory=dict)
    remark: str = ""
    order_unsure: str = ""
    centred: bool = False
    inverted: bool = False
    coloured: bool = False
    files: tuple[Path, ...] = ()
    numbers: tuple[int, ...] = ()


class Arranged(NamedTuple):
    """An array in z, y, x, and what its file says about voxel size and offset in nm, None where it says nothing."""

    array: Any
    voxel_size: tuple[float, float, float] | None
    offset: tuple[float, float, float] | None


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Turn whatever a library raises at a damaged file into a `FormatError` that names the file."""
    try:
        yield
    except (FormatError, FileNotFoundError, PermissionError):
        raise
    except Exception as error:
        if type(error).__name__ == "UnknownCodecError":  # numcodecs and Zarr have one each
            raise FormatError(
                f"{path}: is packed with a codec that is not installed ({error}); install the package that has it, or "
                "store the array with a codec that Zarr has, such as zstd"
            ) from error
        reason = f"{type(error).__name__}: {error}"[:300]
        raise FormatError(
            f"{path}: cannot be read, it may be truncated, damaged or not what its name says ({reason})"
        ) from error


def mention(text: str) -> None:
    """Warn of something that a file leaves open, at the line of yours that reads it."""
    level = 1
    while sys._getframe(level).f_globals.get("__name__", "").startswith("fgnet_lib"):
        level += 1
    warnings.warn(text, stacklevel=level + 1)


def arrange(claims: Claims, where: str, axes: str | None = None, sized: bool = False) -> Arranged:
    """Bring an array into z, y, x, and what its file says about it into nm.

    Args:
        claims: what the file says.
        where: what errors call the array.
        axes: the axes in the array's order, as `parse_axes` gives them; overrides the file's.
        sized: whether the voxel size is given by hand: then lengths in the file that cannot be read count as none.

    Raises:
        FormatError: axes that are missing, unknown, too many or contradictory; lengths that cannot be read.
    """
    order = _order(claims, where, axes)
    names = [name for name, _ in order]
    size = _state(claims.sizes, names, f"{where}: voxel size", sized)
    offset = _state(claims.origins, names, f"{where}: offset", sized)
    if size is not None and not sized:
        _refuse_implausible(size, where)
    if sized and offset is None and any(map(_is_away, claims.origins.values())):
        mention(f"{where}: the offset in the file is not understood as a length, and left out")
    return Arranged(_turn(claims.array, order), size, offset)


# --- axes ------------------------------------------------------------------------------------------------------------


def parse_axes(axes: Any) -> str | None:
    """Read the axes that a person gives, as in "zyx", "c0, x, y, z" or ["z", "y", "x"]; None if there are none.

    A number behind a letter chooses one of several channels or times: "c1zyx" is the second channel.

    Raises:
        ValueError: something else, or z, y and x do not occur once each.
    """
    text = "".join(map(str, axes)) if isinstance(axes, list | tuple) else str(axes or "")
    text = re.sub(r"[\s,;'\"\[\]()=]", "", text).lower()
    if not text:
        return None
    letters = re.sub(r"\d", "", text)
    if not re.fullmatch(r"([zyx](?!\d)|[a-w]\d*)+", text) or sorted(c for c in letters if c in SPACE) != [
        "x",
        "y",
        "z",
    ]:
        raise ValueError(
            f"AXES is {axes!r}; name the axes in the order of the file, each of z, y, x once, as in 'xyz', and choose "
            "one of the channels by its number, as in 'c0zyx'"
        )
    return text


def describe_axes(claims: Claims) -> tuple[str | None, ...] | None:
    """The names of an array's axes as its file gives them, in one spelling; None where it gives none, or several."""
    named = {names for names in (_canonical(names) for names in claims.axes.values()) if names}
    return named.pop() if len(named) == 1 else None


def _canonical(names: Sequence[Any]) -> tuple[str | None, ...] | None:
    """Names in one spelling, None for those without a meaning; None if not one of them has a meaning."""
    words = [re.sub(r"\^|_?\d+$", "", to_text(name)).strip().lower() for name in names]
    if all(word in ("", "none", "dim", "axis", "d", "phony_dim", "?") for word in words):
        return None
    return tuple(AXIS_NAMES.get(word, word) for word in words)


def _order(claims: Claims, where: str, axes: str | None) -> list[tuple[str, int | None]]:
    """The name of each axis of the array, and the index to take where it is none of space."""
    shape = tuple(claims.array.shape)
    if axes:
        order = [(letter, int(digits) if digits else None) for letter, digits in re.findall(r"([a-z])(\d*)", axes)]
        if len(order) != len(shape):
            raise FormatError(f"{where}: AXES {axes!r} names {len(order)} axes, the array has the shape {shape}")
    else:
        order = [(name, None) for name in _names(claims, where)]
    return [(name, _choose(name, index, n, order, where, shape)) for (name, index), n in zip(order, shape, strict=True)]


def _names(claims: Claims, where: str) -> list[str]:
    """The file's own names; where it has none, z, y, x, and ? for axes of length 1 around them."""
    shape = tuple(claims.array.shape)
    named = {who: names for who, names in ((who, _canonical(names)) for who, names in claims.axes.items()) if names}
    if len(set(named.values())) > 1:
        stated = "; ".join(f"{who} says {_join(names)}" for who, names in named.items())
        raise FormatError(f"{where}: the file contradicts itself about its axes ({stated}); AXES decides, as in 'zyx'")
    if not named:
        if claims.order_unsure:
            raise FormatError(f"{where}: {claims.order_unsure}")
        lead = len(shape) - 3
        while lead > 0 and shape[lead - 1] != 1 and shape[-1] == 1:  # samples come last
            shape, lead = shape[:-1], lead - 1
        lone = lead > 0 and shape[0] == shape[-1] == 1 and sum(n > 1 for n in shape) == 2  # which 1 is a section's z?
        if lead < 0 or set(shape[:lead]) - {1} or lone:
            _refuse_shape(claims.array.shape, where)
        return ["?"] * lead + list(SPACE) + ["?"] * (len(claims.array.shape) - len(shape))
    names = next(iter(named.values()))
    if len(names) != len(shape):
        raise FormatError(
            f"{where}: the file names the axes {_join(names)}, but the array has the shape {shape}; AXES names the "
            f"{len(shape)} axes in the file's order, as in 'zyx'"
        )
    lost = [axis for axis in SPACE if names.count(axis) != 1]
    if lost:
        if "s" in names and shape[names.index("s")] > 1:
            _refuse_shape(shape, where)
        raise FormatError(
            f"{where}: the axes are {_join(names)} by what the file says, and each of z, y, x is needed once; if that "
            f"is wrong, AXES decides: name the {len(shape)} axes in the file's order, as in "
            f"'{('t0c0zyx' if len(shape) > 4 else 'c0zyx' if len(shape) > 3 else 'zyx')}'"
        )
    return [str(name) for name in names]


def _refuse_shape(shape: Sequence[int], where: str) -> None:
    raise FormatError(
        f"{where}: the array has the shape {tuple(shape)}; a volume has three axes z, y, x (one section: "
        "raw[None]; colour: take one channel or the mean of them). AXES names the axes and chooses a channel, as in "
        "'c0zyx'"
    )


def _choose(
    name: str, index: int | None, n: int, order: list[tuple[str, int | None]], where: str, shape: tuple[int, ...]
) -> int | None:
    """The index to take along an axis: None for an axis of space."""
    if name in SPACE:
        return None
    if index is None and n == 1:
        what = "an axis" if name == "?" else f"the axis {name}"
        mention(f"{where}: {what} of length 1 is left out")
        return 0
    if index is None:
        example = "".join(f"{other}0" if other not in SPACE else other for other, _ in order)
        if name == "s":
            _refuse_shape(shape, where)
        raise FormatError(
            f"{where}: the axes are {_join([other for other, _ in order])} with the shape {shape}; AXES chooses one of "
            f"the {n} along {name}, as in '{example}', or names the axes otherwise"
        )
    if not 0 <= index < n:
        raise FormatError(f"{where}: AXES chooses number {index} along {name}, which has numbers 0 to {n - 1}")
    return index


def _turn(array: Any, order: list[tuple[str, int | None]]) -> Any:
    """The array in z, y, x; itself if it is in this order."""
    names = [name for name, _ in order]
    if names == list(SPACE):
        return array
    space = [name for name in names if name in SPACE]
    back = [space.index(axis) for axis in SPACE]

    def cut(*slices: slice) -> np.ndarray:
        box = dict(zip(SPACE, slices, strict=True))
        block = np.asarray(array[tuple(box.get(name, slice(index, (index or 0) + 1)) for name, index in order)])
        block = block[tuple(slice(None) if name in box else 0 for name in names)]
        return np.ascontiguousarray(block.transpose(back))

    return Lazy(tuple(array.shape[names.index(axis)] for axis in SPACE), array.dtype, cut)


def _join(names: Sequence[str | None]) -> str:
    return ", ".join(name or "?" for name in names)


# --- lengths ---------------------------------------------------------------------------------------------------------


def parse_voxel_size(value: Any) -> tuple[float, float, float] | None:
    """Read the voxel size that a person gives, along z, y, x: (40, 8, 8), "40 8 8", "[40, 8, 8]", "40,8,8 nm".

    Numbers without a unit are nm. A size that no EM has is taken, with a warning: you said it.

    Returns:
        nm along z, y, x; None if nothing is given.

    Raises:
        ValueError: not three lengths.
    """
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    try:
        lengths = parse_lengths(value, "nm", "zyx")
    except ValueError as error:
        raise ValueError(f"VOXEL_SIZE is {value!r}: {error}; give nm along z, y, x, as in '40 8 8'") from error
    if lengths is None or len(lengths) != 3:
        raise ValueError(f"VOXEL_SIZE is {value!r}; give three finite numbers along z, y, x in nm, as in '40 8 8'")
    size = triple(lengths)
    if min(size) > 0 and not is_plausible(size):
        mention(
            f"VOXEL_SIZE is {size} nm, which no electron microscope has; for another unit write it, as in "
            "'0.04 0.008 0.008 um'"
        )
    return size


def _refuse_implausible(size: tuple[float, float, float], where: str) -> None:
    if not is_plausible(size):
        raise FormatError(
            f"{where}: the file gives voxels of {size} nm along z, y, x, which no electron microscope has "
            f"({PLAUSIBLE_NM[0]:g} to {PLAUSIBLE_NM[1]:g}); its unit may be another one. Confirm or correct it with "
            "VOXEL_SIZE, in Python voxel_size=(z, y, x), in nm"
        )


def _state(
    measures: Mapping[str, Measure], names: list[str], what: str, sized: bool
) -> tuple[float, float, float] | None:
    """Lengths along z, y, x in nm, by all who state them."""
    stated = {}
    for who, measure in measures.items():
        try:
            lengths = _along_space(measure, names)
        except ValueError as error:
            if sized:
                continue
            raise FormatError(
                f"{what}: {who} is {_show(measure)}, which is not understood ({error}); give VOXEL_SIZE, in Python "
                "voxel_size=(z, y, x), in nm"
            ) from error
        if lengths is not None:
            stated[who] = lengths
    values = list(stated.values())
    if any(not np.allclose(values[0], other, rtol=1e-3) for other in values[1:]):
        if sized:
            return None
        text = "; ".join(f"{who} gives {lengths} nm" for who, lengths in stated.items())
        raise FormatError(f"{what}: the file contradicts itself ({text}); VOXEL_SIZE decides, in nm along z, y, x")
    return values[0] if values else None


def _is_away(origin: Measure) -> bool:
    """Whether an offset is anything but 0, whatever its unit."""
    try:
        return any(number != 0 for number, _ in split_lengths(origin.value, SPACE))
    except ValueError:
        return True


def _along_space(measure: Measure, names: list[str]) -> tuple[float, float, float] | None:
    """Lengths along z, y, x of values that come for each axis of space, or for each axis."""
    axes = list(measure.order or names)
    pairs = split_lengths(measure.value, SPACE)
    if isinstance(read_table(measure.value), Mapping):
        axes = list(SPACE)
    if len(pairs) != len(axes):
        axes = [name for name in axes if name in SPACE]
    if len(pairs) != len(axes):
        raise ValueError(f"{len(pairs)} numbers for the axes {', '.join(axes)}")
    units = split_units(measure.unit)
    if len(units) == len(names) != len(axes):
        units = [unit for unit, name in zip(units, names, strict=True) if name in SPACE]
    units = units * len(axes) if len(units) == 1 else units
    if units and len(units) != len(axes):
        raise ValueError(f"{len(units)} units for the axes {', '.join(axes)}")
    lengths = []
    for axis in SPACE:
        at = axes.index(axis)
        number, own = pairs[at]
        length = parse_lengths([number], own or (units[at] if units else None))
        if length is None:
            return None
        lengths += length
    if not np.isfinite(lengths).all():
        raise ValueError("not finite")
    return triple(lengths)


def _show(measure: Measure) -> str:
    text = str(to_plain(measure.value))[:80]
    return text if measure.unit is None else f"{text} in {str(to_plain(measure.unit))[:40]}"
