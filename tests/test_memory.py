"""The memory of a process, on Linux."""

from __future__ import annotations

import subprocess
import sys

import pytest

from fgnet_lib import memory

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc is Linux'")
_HELD = """
import resource
from pathlib import Path

import numpy as np

from fgnet_lib.memory import freed_memory_kept, return_freed_memory

large = 20 << 20  # less than what glibc may keep once it has seen larger arrays


def held():
    return int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()


"""
_FREED = """
array = np.ones(2 * large, np.uint8)
del array  # glibc adapts its threshold to the largest array that was freed, up to 32 MiB
return_freed_memory()
before = held()
array = np.ones(large, np.uint8)
assert held() > before + large // 2
del array
assert held() < before + large // 2
"""
_KEPT = """
before = held()
with freed_memory_kept():
    for _ in range(2):
        array = np.ones(10 * large, np.uint8)
        del array
        assert before + 9 * large < held() < before + 15 * large
assert held() < before + large
"""


@pytest.mark.slow
@pytest.mark.parametrize("code", [_FREED, _KEPT], ids=["given back", "kept for a while"])
def test_freed_memory_is_kept_or_goes_back_as_asked(code):
    """Counted as a worker's limit counts: memory asked for, used or not; in a process without holes in its heap."""
    subprocess.run([sys.executable, "-c", _HELD + code], check=True)


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(memory, "_glibc", lambda: None)
    with memory.freed_memory_kept():
        memory.return_freed_memory()
