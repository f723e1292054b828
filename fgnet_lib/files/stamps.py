"""Checksums, time stamps and comparisons that tell one state of files or settings from another."""

from __future__ import annotations

import stat
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np


def checksum(arrays: Mapping[str, np.ndarray]) -> int:
    """Compute the CRC-32 of the contents of arrays, in the order of their names."""
    crc = 0
    for name in sorted(arrays):
        crc = zlib.crc32(np.ascontiguousarray(arrays[name]).view(np.uint8).data, crc)
    return crc


def stamp(path: Path, *inner: str) -> dict[str, str]:
    """Say when a file was last written and its size in bytes, so that a replaced file is not taken for the old one.

    Args:
        path: a file; or a Zarr folder, which is stamped by its metadata.
        inner: paths of groups and arrays in the Zarr folder, whose metadata are stamped, too.

    Returns:
        File name -> time and size; empty if there is no such file.
    """
    stamps = {}
    marks = [f"{key}/{mark}".lstrip("/") for key in ("", *inner) for mark in ("zarr.json", ".zarray", ".zgroup")]
    for name in ("", *marks):
        file = Path(path) / name
        if file.is_file():
            state = file.stat()
            stamps[name or file.name] = f"{np.datetime64(state.st_mtime_ns, 'ns')}, {state.st_size} bytes"
    return stamps


def stamp_all(files: Iterable[Path], folder: Path) -> str:
    """Return the number of files, their bytes, and a checksum of their names, sizes and times of change.

    Args:
        files: files, and folders, which do not count.
        folder: which their names are relative to.
    """
    rows = []
    for file in files:
        state = file.stat()
        if not stat.S_ISDIR(state.st_mode):
            rows.append((file.relative_to(folder).as_posix(), state.st_size, state.st_mtime_ns))
    text = "\n".join(f"{name} {size} {time}" for name, size, time in sorted(rows))
    return f"{len(rows)} files, {sum(size for _, size, _ in rows)} bytes, checksum {zlib.crc32(text.encode()):08x}"


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """List the settings that changed, each in words.

    >>> differences({"tile": 4, "seed": 0}, {"tile": 5, "seed": 0, "device": "cpu"})
    ['tile was 4, is now 5', 'device was None, is now cpu']
    """
    return [
        f"{key} was {before.get(key)}, is now {now.get(key)}"
        for key in {**before, **now}
        if before.get(key) != now.get(key)
    ]
