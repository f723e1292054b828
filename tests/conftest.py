"""Fixtures shared by the tests."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from packaging.utils import canonicalize_name
from record_times import report

import fgnet_lib  # noqa: F401  before torch is loaded: it says how torch's threads wait

settings.register_profile("patient", settings.default, deadline=None)  # a busy machine is no wrong answer
settings.load_profile("patient")

# The files that take minutes, longest first: `make test` gives each file to one of two processes.
LONGEST = (
    *("test_notebooks", "test_browser_jupyterlab", "test_cluster", "test_site", "test_playground", "test_colab"),
    *("test_training_processes", "test_grade_attacks", "test_browser_explorers", "test_run_tutorial"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take minutes, so that at the end no process waits for the other one's last file."""
    ranks = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: ranks.get(item.path.stem, len(ranks)))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Seed torch before each test and the fixtures set up for it, so that no result hangs on which tests ran before."""
    import torch  # not above: after fgnet_lib

    torch.manual_seed(0)


def pytest_terminal_summary(terminalreporter) -> None:
    """Say which lessons took over twice their figure in docs/measured/times.json; no test fails by it."""
    passed = terminalreporter.getreports("passed")
    runs = [value for test in passed for name, value in test.user_properties if name == "lesson on phantom, fast"]
    terminalreporter.write(report(runs, "phantom", "fast"))


@pytest.fixture(autouse=True)
def _environment() -> Iterator[None]:
    """No test leaves variables of the environment to those after it, which would pass or fail by their order."""
    before = dict(os.environ)
    yield
    after = dict(os.environ)
    changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    os.environ.clear()
    os.environ.update(before)
    imported = {"TORCHINDUCTOR_CACHE_DIR", "CUBLAS_WORKSPACE_CONFIG"}  # set by torch and MONAI as they are loaded
    assert set(changed) <= {"PYTEST_CURRENT_TEST", *imported}, f"the test leaves the environment changed: {changed}"


@pytest.fixture
def em_data() -> Path:
    """The folder of real EM volumes; tests that use it have a twin on the phantom and skip without it."""
    folder = Path(os.environ.get("FGNET_DATA_DIR", ""))
    if not (folder / "val" / "fib25_t2_val_z144-183.h5").is_file():
        pytest.skip("set FGNET_DATA_DIR to the folder of real EM volumes to run this test")
    return folder


@pytest.fixture
def colab_list() -> dict[str, str]:
    """Name -> version of what Colab has, from `pip freeze` there; tests that use it have a twin on a made-up server."""
    path = Path(os.environ.get("FGNET_COLAB_LIST", ""))
    if not path.is_file():
        pytest.skip("set FGNET_COLAB_LIST to a pip freeze of Colab (googlecolab/backend-info on GitHub has one)")
    pairs = re.findall(r"^([\w.-]+)==(\S+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {canonicalize_name(name): version for name, version in pairs}
