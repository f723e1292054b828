"""Packages that not every computer has: their tests are skipped there, but never where CI is set."""

from __future__ import annotations

import os
from importlib.util import find_spec

import pytest


def need(*packages: str) -> pytest.MarkDecorator:
    """Mark tests that import these packages, so that they are skipped where one is missing."""
    missing = [package for package in packages if find_spec(package) is None]
    return pytest.mark.skipif(bool(missing) and not os.environ.get("CI"), reason=f"not installed: {', '.join(missing)}")
