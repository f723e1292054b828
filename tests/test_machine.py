"""Device, precision, memory and host; and convolutions that are fast on a CPU."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

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
        ({"JUPYTERHUB_SERVICE_PREFIX": "/user/x/", "SLURM_JOB_ID": "7"}, "jupyterhub"),
        ({"CODESPACE_NAME": "ada-x7"}, "codespaces"),
        ({"GITPOD_WORKSPACE_URL": "https://ada.ws.gitpod.io"}, "gitpod"),
        ({"SAGEMAKER_APP_TYPE": "JupyterLab"}, "sagemaker"),
        ({"SLURM_JOB_ID": "7", "SSH_CONNECTION": "10.0.0.1 5 10.0.0.2 22"}, "cluster"),
        ({"PBS_JOBID": "7"}, "cluster"),
        ({"SSH_CONNECTION": "10.0.0.1 5 10.0.0.2 22"}, "ssh"),
    ],
)
def test_platform_is_read_from_the_environment(monkeypatch, environment, expected):
    for variable, _ in machine._PLATFORM_VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    assert machine.platform() == expected


@given(st.integers(1, 2), st.integers(1, 6), st.integers(4, 60), st.integers(4, 60), st.sampled_from(["dense", "down"]))
@settings(max_examples=30)
def test_thin_convolution_is_the_ordinary_one(batch, depth, height, width, kind):
    torch.manual_seed(0)
    shape = {"dense": {"kernel_size": 3, "padding": 1}, "down": {"kernel_size": (1, 2, 2), "stride": (1, 2, 2)}}[kind]
    thin, plain = machine.ThinConv3d(3, 5, **shape), torch.nn.Conv3d(3, 5, **shape)
    plain.load_state_dict(thin.state_dict())
    x = torch.randn(batch, 3, depth, height, width)
    turned, ordinary = thin(x), plain(x)
    torch.testing.assert_close(turned, ordinary)
    weight = torch.randn_like(ordinary)
    (turned * weight).sum().backward()
    (ordinary * weight).sum().backward()
    for ours, theirs in zip(thin.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-3)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this PyTorch has no oneDNN")
def test_thin_convolution_of_a_patch_is_left_to_onednn():
    """As long as PyTorch leaves it to its slow loop otherwise."""

    def operators(conv):
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], acc_events=True) as profile:
            conv(torch.rand(1, 8, 8, 128, 128))
        return {event.name for event in profile.events()}

    if "aten::slow_conv3d" not in operators(torch.nn.Conv3d(8, 8, 3, padding=1)):
        pytest.skip("this PyTorch takes oneDNN for thin volumes, too: machine.ThinConv3d is not needed any more")
    assert "aten::mkldnn_convolution" in operators(machine.ThinConv3d(8, 8, 3, padding=1))


def test_a_container_limits_memory(monkeypatch, tmp_path):
    machine_has, limit = machine.memory_limit(), tmp_path / "memory.max"
    monkeypatch.setattr(machine, "CGROUP_LIMITS", (limit, tmp_path / "absent"))
    whole = machine.memory_limit()
    assert whole >= machine_has > 0
    limit.write_text("max\n", encoding="utf-8")
    assert machine.memory_limit() == whole
    limit.write_text("1000000\n", encoding="utf-8")
    assert machine.memory_limit() == 1_000_000
