"""What tells one state of files or settings from another."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np


def checksum(arrays: Mapping[str, np.ndarray]) -> int:
    """CRC-32 of the contents of arrays, in the order of their names."""
    found = 0
    for name in sorted(arrays):
        found = zlib.crc32(np.ascontiguousarray(arrays[name]).view(np.uint8).data, found)
    return found


def stamp(path: Path, *inner: str) -> dict[str, str]:
    """When a file was last written and its size in bytes; of a Zarr folder, that of its metadata, also at inner paths.

    Settings and caches hold it, so that a file that was replaced under the same name is not taken for the old one.
    """
    found = {}
    marks = [f"{key}/{mark}".lstrip("/") for key in ("", *inner) for mark in ("zarr.json", ".zarray", ".zgroup")]
    for name in ("", *marks):
        place = Path(path) / name
        if place.is_file():
            state = place.stat()
            found[name or place.name] = f"{np.datetime64(state.st_mtime_ns, 'ns')}, {state.st_size} bytes"
    return found


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Settings that changed, each as "block was [1, 2, 3], is now [1, 2, 4]"."""
    return [
        f"{key} was {before.get(key)}, is now {now.get(key)}"
        for key in before | now
        if before.get(key) != now.get(key)
    ]  # fmt: skip
