"""The memory of a process, on Linux."""

from __future__ import annotations

import subprocess
import sys

import pytest

_FREED = """
import resource
from pathlib import Path

import numpy as np

from fgnet_lib.scale.memory import return_freed_memory

large = 20 << 20  # less than what glibc may keep once it has seen larger arrays


def held():
    return int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()


array = np.ones(2 * large, np.uint8)
del array  # glibc adapts its threshold to the largest array that was freed, up to 32 MiB
return_freed_memory()
before = held()
array = np.ones(large, np.uint8)
assert held() > before + large // 2
del array
assert held() < before + large // 2
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc is Linux'")
def test_freed_memory_goes_back_where_each_mb_counts():
    """Counted as a worker's limit counts: memory asked for, used or not; in a process without holes in its heap."""
    subprocess.run([sys.executable, "-c", _FREED], check=True)
