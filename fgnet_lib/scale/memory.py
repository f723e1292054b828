"""The memory of a process: how much it has had, and when it goes back to Linux."""

from __future__ import annotations

import ctypes
import re
import resource
import sys
from functools import cache
from pathlib import Path

_MMAP_THRESHOLD = -3  # M_MMAP_THRESHOLD of mallopt(3): arrays from this size on go back to Linux when they are freed


def return_freed_memory() -> None:
    """Have memory of arrays of a MiB or more go back to Linux as soon as it is freed, from now on (glibc only)."""
    if c := _glibc():
        c.mallopt(_MMAP_THRESHOLD, 1 << 20)
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
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
