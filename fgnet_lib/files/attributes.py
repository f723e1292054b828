"""What the attributes of an HDF5 or Zarr array say about its axes, voxel size and offset, by the habits of the field.

| attribute | who writes it |
| --- | --- |
| `resolution`, `offset`, `units` | CREMI, funlib, webknossos |
| `voxel_size`, `axis_names` | funlib.persistence, gunpowder |
| `element_size_um` | ilastik, PlantSeg, Fiji's HDF5 plugin |
| `axistags` | ilastik (vigra), as JSON |
| `transform` (axes, scale, translate, units) | CellMap, COSEM |
| `pixelResolution` (dimensions, unit), in x, y, z | N5 |
| `_ARRAY_DIMENSIONS`, dimension names of Zarr 3, dimension labels of HDF5 | xarray, netCDF |
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from fgnet_lib.files.geometry import Claims
from fgnet_lib.files.lengths import AXIS_NAMES, SPACE, Measure, nm_per, parse_json, read_table, split_units

_SIZE = re.compile(r"(?:resolution|voxel_?size|element_?size|pixel_?size)_?([^\W\d_]*)", re.IGNORECASE)
_START = re.compile(r"(?:offset|translation|translate)_?([^\W\d_]*)", re.IGNORECASE)
_UNITS = re.compile(
    r"(?:(?:resolution|voxel|pixel|element|space|spatial|length|distance|size)_?(?:size_?)?)?units?", re.IGNORECASE
)
_ORDER = re.compile(r"(?:(?:data|array|index|coordinate)_?)?(?:order|layout)", re.IGNORECASE)
_NAMES = re.compile(r"_?(?:array_)?(?:axis|axes|dims?|dimensions?)(?:_?(?:names?|labels?|order))?", re.IGNORECASE)


def claim_attributes(
    array: Any, attributes: Mapping[str, Any], around: Sequence[Mapping[str, Any]], coarser: bool = False
) -> Claims:
    """Return what attributes say about an array.

    Args:
        array: the array.
        attributes: its own attributes.
        around: those of the groups around it, the nearest first; they count where the array states no voxel size, or
            does not name its axes.
        coarser: whether it is a level with larger voxels than its groups state.
    """
    coarser = coarser or _is_downsampled(attributes)
    axes = _name_axes(attributes)
    sizes, origins = _lengths(attributes, around)
    for group in around:
        if not sizes and not coarser:
            sizes, shared = _lengths(group)
            origins = origins or shared
        axes = axes or {key: names for key, names in _name_axes(group).items() if len(names) == len(array.shape)}
    unsure = _MATLAB if "MATLAB_class" in attributes else ""
    if "axistags" in attributes:
        if (tags := _vigra(attributes)) is None:
            unsure = "its attribute axistags is not vigra's JSON; AXES names the axes, as in 'zyx'"
        else:
            axes["axistags"], sizes["axistags"] = tags
    if isinstance(transform := read_table(attributes.get("transform")), Mapping):
        axes["transform"] = _list(transform.get("axes", []))
        sizes["transform"] = Measure(transform.get("scale"), transform.get("units"))
        origins["transform"] = Measure(transform.get("translate"), transform.get("units"))
    names = ", ".join(map(str, attributes)) or "none"
    remark = f"its attributes are: {names}"
    if coarser:
        remark = f"{remark}; it is a coarser level, and a voxel size of its group is that of the finest"
    present = {key: measure for key, measure in sizes.items() if measure.value is not None}
    return Claims(
        array,
        {key: value for key, value in axes.items() if value},
        present,
        {key: measure for key, measure in origins.items() if measure.value is not None},
        remark=remark,
        order_unsure=unsure,
    )


_MATLAB = (
    "MATLAB wrote this array, and its files have the axes in reverse; if it was (y, x, z) in MATLAB, give AXES = "
    "'zxy', and if it was (z, y, x), give AXES = 'xyz'"
)


def read_attributes(node: Any) -> dict[str, Any]:
    """Return the attributes of an HDF5 or Zarr node, without those of types that the library cannot read."""
    attributes = {}
    for key in list(node.attrs):
        with suppress(OSError, TypeError, ValueError, RuntimeError, KeyError):
            attributes[str(key)] = node.attrs[key]
    return attributes


def is_coarser(group: Any, name: str) -> bool:
    """Tell whether an array of a group is a coarser level of a pyramid: `1` beside a larger `0`, `s1` beside `s0`."""
    finest = group.get(re.sub(r"\d+$", "0", name))
    return hasattr(finest, "dtype") and math.prod(group[name].shape) < math.prod(finest.shape)


def _is_downsampled(attributes: Mapping[str, Any]) -> bool:
    """Whether N5's factors say that an array has larger voxels than its group."""
    factors = read_table(attributes.get("downsamplingFactors"))
    return isinstance(factors, list | tuple) and any(factor != 1 for factor in factors)


def _lengths(
    attributes: Mapping[str, Any], around: Sequence[Mapping[str, Any]] = ()
) -> tuple[dict[str, Measure], dict[str, Measure]]:
    """The voxel sizes and the offsets that attributes state, in their own unit or in that of the groups `around`."""
    shared = (unit for unit in map(_unit, around) if unit is not None and _is_length(unit))
    unit = _unit(attributes)
    unit = next(shared, "nm") if unit is None else unit
    sizes: dict[str, Measure] = {}
    origins: dict[str, Measure] = {}
    for key in map(str, attributes):
        for pattern, lengths in ((_SIZE, sizes), (_START, origins)):
            if (match := pattern.fullmatch(key)) and (not match[1] or _is_length(match[1])):
                lengths[key] = Measure(attributes[key], match[1] or _unit(attributes, key) or unit)
    if isinstance(n5 := read_table(attributes.get("pixelResolution")), Mapping):
        sizes["pixelResolution"] = Measure(n5.get("dimensions"), n5.get("unit", "nm"), "xyz")
    return sizes, origins


def _unit(attributes: Mapping[str, Any], length: str = "") -> Any:
    """The unit of a length of this name, or of all lengths; None if attributes name none."""
    pattern = re.compile(rf"{length}_?units?", re.IGNORECASE) if length else _UNITS
    return next((attributes[key] for key in map(str, attributes) if pattern.fullmatch(key)), None)


def _is_length(unit: Any) -> bool:
    try:
        return all(nm_per(word) is not None for word in split_units(unit))
    except ValueError:
        return False


def _name_axes(attributes: Mapping[str, Any]) -> dict[str, list[Any]]:
    """The names of axes, by the attributes that give them; HDF5's own labels are read from its dimensions."""
    named = {key: _list(attributes[key]) for key in map(str, attributes) if key != "DIMENSION_LABELS"}
    return {
        key: names
        for key, names in named.items()
        if names and (_NAMES.fullmatch(key) or _ORDER.fullmatch(key) and _is_order(names))
    }


def _is_order(names: Sequence[Any]) -> bool:
    """Whether names are an order of axes, and not numpy's "C" or "F", or a layout of chunks."""
    return sorted(axis for axis in (AXIS_NAMES.get(str(name).lower(), "") for name in names) if axis in SPACE) == [
        *"xyz"
    ]


def _list(value: Any) -> list[Any]:
    """The names of axes, written as a list or as one word: "zyx"."""
    value = value.tolist() if hasattr(value, "tolist") else value
    value = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
    if isinstance(value, str):
        parsed = parse_json(value)
        value = parsed if isinstance(parsed, list) else re.split(r"[,;\s]+", value.strip())
        value = list(value[0]) if len(value) == 1 else value
    if not isinstance(value, list | tuple):
        return []  # something else under the same name
    return [item.get("name") if isinstance(item, Mapping) else item for item in value]


def _vigra(attributes: Mapping[str, Any]) -> tuple[list[str], Measure] | None:
    """The keys of vigra's axistags, and their resolutions where it has them with a unit; None if it is no such JSON."""
    tags = attributes["axistags"]
    tags = parse_json(tags.decode("utf-8", "replace") if isinstance(tags, bytes) else str(tags))
    try:
        axes = [(str(tag["key"]), float(tag.get("resolution", 0))) for tag in tags["axes"]]
    except (TypeError, KeyError, ValueError, AttributeError):
        return None
    units = parse_json(str(attributes.get("axis_units", "")))
    if not isinstance(units, Mapping) or not all(size > 0 for key, size in axes if key in "zyx"):
        return [key for key, _ in axes], Measure(None)
    order = [key for key, _ in axes if key in "zyx"]
    unit = [units.get(key) for key in order]
    return [key for key, _ in axes], Measure([dict(axes)[key] for key in order], unit, "".join(order))
