"""Where the code runs: the device, the precision that is good on it, and the platform around the notebook."""

from __future__ import annotations

import ctypes
import os
import platform as host
import re
import resource
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch

DEVICES = ("auto", "cpu", "cuda", "mps")
_TRIM, _MAP = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of mallopt(3)
_keeping, _lock = 0, threading.Lock()  # blocks of `memory_kept` that are not left yet, in all threads
_PLATFORM_VARIABLES = (  # set by each host in every notebook; Binder is a JupyterHub too, so it is asked first
    ("COLAB_RELEASE_TAG", "colab"),
    ("KAGGLE_KERNEL_RUN_TYPE", "kaggle"),
    ("BINDER_REPO_URL", "binder"),
    ("JUPYTERHUB_SERVICE_PREFIX", "jupyterhub"),
)


def choose_device(name: str = "auto") -> torch.device:
    """The device called `name`; "auto" takes CUDA, then Apple's MPS, then the CPU.

    Of several processes that torch's launchers start on a machine, each gets a GPU of its own.

    Raises:
        ValueError: `name` is not in `DEVICES`, or this machine has no such device.
    """
    if name not in DEVICES:
        raise ValueError(f"unknown device {name!r}: choose one of {', '.join(DEVICES)}")
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(device for device, there in present.items() if there)
    if not present[name]:
        raise ValueError(f"device {name!r} is not available to PyTorch here: use 'auto' or 'cpu'")
    if name == "cuda" and "LOCAL_RANK" in os.environ:
        return torch.device(name, int(os.environ["LOCAL_RANK"]))
    return torch.device(name)


def precision(device: torch.device) -> str:
    """Mixed precision for `device`, in accelerate's words: "bf16", "fp16" or "no".

    bf16 only where the hardware has it: an emulated bf16 (a T4's, or a CPU's autocast) is many times slower than fp32.
    """
    if device.type != "cuda":
        return "no"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


def platform() -> str:
    """The host of this notebook: "colab", "kaggle", "binder", "jupyterhub" or "local"."""
    return next((name for variable, name in _PLATFORM_VARIABLES if variable in os.environ), "local")


@contextmanager
def memory_kept() -> Iterator[None]:
    """Meanwhile, memory that is freed stays with this process, for its next arrays; it goes back at the end.

    glibc hands the memory of a large array back to Linux when it is freed, and Linux clears each page of the next one:
    on a CPU a third of the time of training (docs/decisions.md). Other C libraries, and a GPU's memory, are left alone.
    """
    global _keeping
    if (c := _glibc()) is None:
        yield
        return
    with _lock:
        _keeping += 1
        c.mallopt(_MAP, 1 << 30)
        c.mallopt(_TRIM, 2**31 - 1)
    try:
        yield
    finally:
        with _lock:
            _keeping -= 1
            if not _keeping:
                c.mallopt(_MAP, 32 << 20)  # where glibc's own adaptation ends
                c.mallopt(_TRIM, 64 << 20)
                c.malloc_trim(0)


def memory_returned() -> None:
    """From now on, memory of arrays of a MiB or more goes back to Linux as soon as it is freed (glibc)."""
    if c := _glibc():
        c.mallopt(_MAP, 1 << 20)
        c.malloc_trim(0)


@cache
def _glibc() -> ctypes.CDLL | None:
    try:
        c = ctypes.CDLL("libc.so.6")
        return c if c.mallopt and c.malloc_trim else None
    except (OSError, AttributeError):
        return None


def peak_bytes() -> int:
    """Most memory that this process has had at once."""
    status = Path("/proc/self/status")  # Linux hands `ru_maxrss` on to children: a worker would begin with its parent's
    if status.exists():
        found = re.search(r"VmHWM:\s*(\d+) kB", status.read_text())
        if found:
            return 1024 * int(found[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def hardware() -> str:
    """What ran this, for whoever compares minutes."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{host.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, {gpu}"
