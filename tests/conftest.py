"""Fixtures shared by the tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from record_times import report

import fgnet_lib  # noqa: F401  before any test loads torch: it says how torch's threads wait

LESSON_RUNS = pytest.StashKey[list]()


@pytest.fixture
def lesson_runs(request) -> list[dict]:
    """Lessons that ran on the phantom in the profile fast; at the end their seconds are compared, and no test fails."""
    return request.config.stash.setdefault(LESSON_RUNS, [])


def pytest_terminal_summary(terminalreporter, config) -> None:
    """Say which lessons took over twice their figure in docs/times.json."""
    terminalreporter.write(report(config.stash.get(LESSON_RUNS, []), "phantom", "fast"))


@pytest.fixture
def em_data() -> Path:
    """The folder of real EM volumes; tests that use it have a twin on the phantom and skip without it."""
    folder = Path(os.environ.get("FGNET_DATA_DIR", ""))
    if not (folder / "val" / "fib25_t2_val_z144-183.h5").is_file():
        pytest.skip("set FGNET_DATA_DIR to the folder of real EM volumes to run this test")
    return folder
