"""The memory of a process: how much it has had, and when it goes back to Linux."""

from __future__ import annotations

import ctypes
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

# M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of mallopt(3): arrays from the second on go back to Linux when they are freed
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3


def return_freed_memory() -> None:
    """Have memory of arrays of a MiB or more go back to Linux as soon as it is freed, from now on (glibc only)."""
    if c := _glibc():
        c.mallopt(_MMAP_THRESHOLD, 1 << 20)
        c.malloc_trim(0)


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Keep freed memory for the next arrays meanwhile, and give it back to Linux at the end (glibc only).

    By itself, glibc gives an array above 32 MiB back when it is freed, and Linux clears each page of the next one:
    nearly half of the time of `predict` in wide windows (docs/measured/speed.md).
    """
    if (c := _glibc()) is None:
        yield
        return
    if not c.mallopt(_MMAP_THRESHOLD, 1 << 30):  # glibc before 2.35 takes 32 MiB at most
        c.mallopt(_MMAP_THRESHOLD, 32 << 20)
    c.mallopt(_TRIM_THRESHOLD, 2**31 - 1)
    try:
        yield
    finally:
        c.mallopt(_MMAP_THRESHOLD, 32 << 20)  # where glibc's own adaptation ends
        c.mallopt(_TRIM_THRESHOLD, 64 << 20)
        c.malloc_trim(0)


@cache
def _glibc() -> ctypes.CDLL | None:
    try:
        c = ctypes.CDLL("libc.so.6")
        return c if c.mallopt and c.malloc_trim else None
    except (OSError, AttributeError):
        return None


def peak_bytes() -> int:
    """Read the most memory that this process has had at once, in bytes."""
    status = Path("/proc/self/status")  # Linux hands `ru_maxrss` on to children: a worker would begin with its parent's
    if status.exists() and (peak := re.search(r"VmHWM:\s*(\d+) kB", status.read_text(encoding="utf-8"))):
        return 1024 * int(peak[1])
    import resource  # Windows has none

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
