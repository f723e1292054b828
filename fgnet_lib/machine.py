"""Where the code runs: the device and the precision that suit it, the platform around the notebook."""

from __future__ import annotations

import os
import platform as host
from pathlib import Path

import psutil
import torch
import torch.nn.functional as F
from torch import Tensor, nn

DEVICES = ("auto", "cpu", "cuda", "mps")
CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))  # v2, v1
_PLATFORM_VARIABLES = (  # set by each host in every notebook; Binder is a JupyterHub too, so it is asked first
    ("COLAB_RELEASE_TAG", "colab"),
    ("KAGGLE_KERNEL_RUN_TYPE", "kaggle"),
    ("BINDER_REPO_URL", "binder"),
    ("JUPYTERHUB_SERVICE_PREFIX", "jupyterhub"),
    ("CODESPACE_NAME", "codespaces"),
    ("GITPOD_WORKSPACE_URL", "gitpod"),
    ("SAGEMAKER_APP_TYPE", "sagemaker"),
    ("SLURM_JOB_ID", "cluster"),  # jobs before ssh, whose variable a job may inherit
    ("PBS_JOBID", "cluster"),
    ("LSB_JOBID", "cluster"),
    ("SSH_CONNECTION", "ssh"),
)


def choose_device(name: str = "auto") -> torch.device:
    """Choose the device called `name`; "auto" takes CUDA, then Apple's MPS, then the CPU.

    When torch's launchers start several processes on a machine, each gets a GPU of its own.

    Example:
        >>> choose_device("cpu")
        device(type='cpu')

    Raises:
        ValueError: `name` is not in `DEVICES`, or this machine has no such device.
    """
    if name not in DEVICES:
        raise ValueError(f"unknown device {name!r}: choose one of {', '.join(DEVICES)}")
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(device for device, available in present.items() if available)
    if not present[name]:
        raise ValueError(f"device {name!r} is not available to PyTorch here: use 'auto' or 'cpu'")
    if name == "cuda" and "LOCAL_RANK" in os.environ:
        return torch.device(name, int(os.environ["LOCAL_RANK"]))
    return torch.device(name)


def precision(device: torch.device) -> str:
    """Choose the mixed precision for `device`, in accelerate's words: "bf16", "fp16" or "no"; a CPU's is always "no".

    bf16 only where the hardware has it: an emulated bf16 (a T4's, or a CPU's autocast) is many times slower than fp32.

    Example:
        >>> precision(torch.device("cpu"))
        'no'
    """
    if device.type != "cuda":
        return "no"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


def has_bfloat16() -> bool:
    """Tell whether this CPU has instructions for bfloat16; without them PyTorch imitates it, many times slower."""
    return torch.cpu._is_avx512_bf16_supported()


def memory_limit() -> int:
    """Bytes of memory that this machine has, or that the container of this process may use (Binder's is 2 GB)."""
    limits = [psutil.virtual_memory().total]
    for path in CGROUP_LIMITS:
        if path.exists() and (limit := path.read_text(encoding="utf-8").strip()).isdigit():  # "max" where there is none
            limits.append(int(limit))
    return min(limits)


def platform() -> str:
    """Name the host of this notebook, "local" if nothing tells that it is another machine than the browser's.

    Returns:
        "colab", "kaggle", "binder", "jupyterhub", "codespaces", "gitpod", "sagemaker", "cluster" (a batch job, as Open
        OnDemand starts it), "ssh" or "local".
    """
    return next((name for variable, name in _PLATFORM_VARIABLES if variable in os.environ), "local")


def usable_cores() -> int:
    """How many cores this process may use: a container or a batch job may have fewer than the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def hardware() -> str:
    """Describe this machine in one line, to print beside measured times."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{host.machine()}, {usable_cores()} cores, {torch.get_num_threads()} threads, {gpu}"


class ThinConv3d(nn.Conv3d):
    """A dense convolution that is also fast on a CPU for a single volume that is thin in z.

    PyTorch leaves a single sample to oneDNN only where channels times all axes but the last exceed a bound
    (`use_mkldnn` in ATen/native/Convolution.cpp). Below it, PyTorch takes a loop that is up to six times as slow. With
    x first and z last the sums are the same, and the product is larger.
    """

    ONEDNN_ABOVE = 20480

    def forward(self, x: Tensor) -> Tensor:
        recorded = torch.jit.is_tracing()  # for another runtime, whose loops are others
        if recorded or x.device.type != "cpu" or x.shape[0] > 1 or x.shape[1:4].numel() > self.ONEDNN_ABOVE:
            return super().forward(x)
        weight, stride, padding = self.weight.transpose(2, 4), self.stride[::-1], self.padding[::-1]
        return F.conv3d(x.transpose(2, 4), weight, self.bias, stride, padding).transpose(2, 4)
