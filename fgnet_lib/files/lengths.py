"""Lengths, units and names of axes as people and programs spell them, read into nanometres and into z, y, x."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

SPACE = "zyx"
PLAUSIBLE_NM = (0.1, 10_000.0)  # a voxel of EM; what lies outside is most often a number in another unit
NM_PER_UNIT = {
    unit: nm
    for nm, units in {
        1e-3: "pm picometer picometre",
        0.1: "å a angstrom ångström angstroem",
        1.0: "nm nanometer nanometre",
        1e3: "um μm micron micrometer micrometre",
        1e6: "mm millimeter millimetre",
        1e7: "cm centimeter centimetre",
        2.54e7: 'in inch inche "',
        1e9: "m meter metre",
    }.items()
    for unit in units.split()
}
NO_LENGTH = {
    "",
    "none",
    "null",
    "pixel",
    "px",
    "voxel",
    "vx",
    "unit",
    "unitless",
    "arbitrary",
    "a.u.",
    "dimensionless",
    "reference frame",
}
AXIS_NAMES = {
    name: axis
    for axis, names in {
        "z": "z depth plane planes pln section sections slice slices",
        "y": "y height row rows",
        "x": "x width col cols column columns",
        "t": "t time frame frames",
        "c": "c channel channels ch",
        "s": "s sample samples rgb rgba",
    }.items()
    for name in names.split()
}
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?"
_LENGTH = re.compile(rf"({_NUMBER})\s*([^\d\s,;\[\]()+\-.]*)", re.IGNORECASE)


class Measure(NamedTuple):
    """Lengths as a file states them: `value` in any of the usual spellings, and the unit of all or of each.

    `order` names the axes of the values if it is not the order of the array's axes.
    """

    value: Any
    unit: Any = None
    order: str | None = None


def parse_lengths(value: Any, unit: Any = None, names: Sequence[str] = ()) -> list[float] | None:
    """Read lengths from numbers, text, JSON, or a table by axis, in nm.

    Args:
        value: as in [40, 8, 8], "40 nm", b"[40, 8, 8]", ["40 nm", "8 nm", "8 nm"], {"z": 40, "y": 8, "x": 8}.
        unit: of all lengths, or one for each; what a text says itself comes first.
        names: the axes, where a table has one entry for each.

    Returns:
        The lengths; None if the unit is no length, such as a pixel.

    Raises:
        ValueError: something else.
    """
    pairs = split_lengths(value, names)
    units = split_units(unit)
    if len(units) not in (0, 1, len(pairs)):
        raise ValueError(f"{len(units)} units for {len(pairs)} lengths")
    units = units * len(pairs) if len(units) == 1 else units or [""] * len(pairs)
    lengths = []
    for (number, own), other in zip(pairs, units, strict=True):
        nm = nm_per(own or other)
        if nm is None:
            return None
        lengths.append(float(f"{number * nm:.12g}"))  # 0.04 um are 40 nm, and not 40.00000000000001
    return lengths


def nm_per(unit: Any) -> float | None:
    """Return the nanometres of a unit, spelled as people spell it; None for a pixel or for no unit.

    Raises:
        ValueError: a unit that is no known length.
    """
    text = re.sub(r"\\u00b5", "μ", to_text(unit), flags=re.IGNORECASE)
    word = unicodedata.normalize("NFKC", text).strip().rstrip(".").casefold()
    word = re.sub(r"(?<=\w)\s*(?:/|\bper\b)\s*(?:px|pixel|vx|voxel)s?$", "", word)
    singular = word.removesuffix("s")
    if word in NO_LENGTH or singular in NO_LENGTH:
        return None
    if word not in NM_PER_UNIT and singular not in NM_PER_UNIT:
        raise ValueError(f"{unit!r} is no known unit of length")
    return NM_PER_UNIT[word if word in NM_PER_UNIT else singular]


def is_plausible(size: Sequence[float]) -> bool:
    """Tell whether voxels of this size, in nm, may come from an electron microscope."""
    return bool(np.isfinite(size).all()) and PLAUSIBLE_NM[0] <= min(size) and max(size) <= PLAUSIBLE_NM[1]


def split_lengths(value: Any, names: Sequence[str] = ()) -> list[tuple[float, str]]:
    """Return numbers and the units written behind them, "" where there is none; of a table, those of `names`."""
    value = read_table(value)
    if isinstance(value, str):
        text = re.sub(r"(?:(?<=\d)\s*|(?<=\w)\s+)[x×*]\s*(?=[\d.])", " ", value, flags=re.IGNORECASE).strip(" []()\t\n")
        pairs = [(float(number), unit) for number, unit in _LENGTH.findall(text)]
        if not pairs or _LENGTH.sub("", text).strip(" ,;\t\n"):
            raise ValueError(f"no lengths in {value!r}")
        if pairs[-1][1] and not any(unit for _, unit in pairs[:-1]):
            return [(number, pairs[-1][1]) for number, _ in pairs]
        return pairs
    if isinstance(value, Mapping):
        by_axis = {AXIS_NAMES.get(str(name).lower(), str(name)): length for name, length in value.items()}
        if not set(names) <= by_axis.keys():
            raise ValueError(f"lengths for {', '.join(map(str, value))}")
        return [pair for name in names for pair in split_lengths([by_axis[name]])]
    if isinstance(value, list | tuple):
        pairs = []
        for item in value:
            inner = split_lengths(item) if isinstance(item, str | list | tuple) else [(_number(item), "")]
            pairs += inner
        return pairs
    raise ValueError(f"{value!r} is not a list of lengths")


def read_table(value: Any) -> Any:
    """Return the list or table that a text holds as JSON; anything else in Python's own types."""
    value = to_plain(value)
    text = value.strip() if isinstance(value, str) else ""
    parsed = parse_json(text) if text[:1] in ("[", "{") else None
    return value if parsed is None else parsed


def split_units(unit: Any) -> list[Any]:
    """Return units as a list, which is empty if none is given."""
    unit = read_table(unit)
    return [] if unit is None else list(unit) if isinstance(unit, list | tuple) else [unit]


def to_plain(value: Any) -> Any:
    """Return what an attribute holds in Python's own types, without axes of length 1."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, np.ndarray | np.generic) and value.dtype.names and value.size == 1:
        return dict(zip(value.dtype.names, to_plain(np.squeeze(value).tolist()), strict=True))
    if isinstance(value, np.ndarray | np.generic):
        return to_plain(np.squeeze(value).tolist())
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{value!r} is no number")
    return float(value)


def parse_json(text: str) -> Any:
    """Read JSON; None if the text is something else, or null."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def to_text(value: Any) -> str:
    """Return what an attribute holds as text, "" for nothing."""
    value = to_plain(value)
    return "" if value is None else str(value)
