from __future__ import annotations

import subprocess
import sys

import numpy as np
import psutil
import pytest
import torch

from fgnet_lib import machine


def test_auto_prefers_an_accelerator(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert machine.choose_device("auto").type == "cuda"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert machine.choose_device("auto").type == "mps"
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert machine.choose_device("auto").type == "cpu"


def test_each_of_several_processes_has_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert machine.choose_device() == torch.device("cuda")
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert machine.choose_device() == torch.device("cuda", 3) and machine.choose_device("cpu") == torch.device("cpu")


def test_a_device_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="'cuda' is not available"):
        machine.choose_device("cuda")


def test_an_unknown_device_is_refused_with_the_list():
    with pytest.raises(ValueError, match="'gpu'.*auto, cpu, cuda, mps"):
        machine.choose_device("gpu")


@pytest.mark.parametrize(("hardware_bf16", "expected"), [(True, "bf16"), (False, "fp16")])
def test_emulated_bf16_does_not_count(monkeypatch, hardware_bf16, expected):
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or hardware_bf16
    )
    assert machine.precision(torch.device("cuda")) == expected


def test_the_cpu_stays_with_fp32():
    assert machine.precision(torch.device("cpu")) == "no"


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, "local"),
        ({"COLAB_RELEASE_TAG": "release"}, "colab"),
        ({"KAGGLE_KERNEL_RUN_TYPE": "Interactive"}, "kaggle"),
        ({"JUPYTERHUB_SERVICE_PREFIX": "/user/x/"}, "jupyterhub"),
        ({"JUPYTERHUB_SERVICE_PREFIX": "/user/x/", "BINDER_REPO_URL": "https://example.org"}, "binder"),
    ],
)
def test_platform_is_read_from_the_environment(monkeypatch, environment, expected):
    for variable, _ in machine._PLATFORM_VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    assert machine.platform() == expected


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc is Linux'")
def test_freed_memory_is_kept_until_the_end_of_the_block():
    resident, large = psutil.Process().memory_info, 200 << 20
    with machine.memory_kept():
        before = resident().rss
        with machine.memory_kept():
            np.ones(large, np.uint8)
        assert resident().rss > before + large // 2
    assert resident().rss < before + large // 2
    np.ones(large, np.uint8)
    assert resident().rss < before + large // 2


_FREED = """
import resource
from pathlib import Path

import numpy as np

from fgnet_lib import machine

large = 20 << 20  # less than what glibc keeps after `memory_kept`


def held():
    return int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()


with machine.memory_kept():
    pass
machine.memory_returned()
before = held()
array = np.ones(large, np.uint8)
assert held() > before + large // 2
del array
assert held() < before + large // 2
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc is Linux'")
def test_where_each_mb_counts_freed_memory_goes_back_also_after_a_prediction():
    """Counted as a worker's limit counts: memory asked for, used or not; in a process without holes in its heap."""
    subprocess.run([sys.executable, "-c", _FREED], check=True)
