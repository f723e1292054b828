"""The examples in the library's docstrings give what they say."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import fgnet_lib

MODULES = [module.name for module in pkgutil.walk_packages(fgnet_lib.__path__, "fgnet_lib.")]


def run_examples(name: str) -> doctest.TestResults:
    return doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name: str) -> None:
    assert run_examples(name).failed == 0


def test_there_are_examples_to_run() -> None:
    """Or the tests above would pass on modules whose examples doctest does not find."""
    assert run_examples("fgnet_lib.fgnet").attempted >= 4 and "fgnet_lib.files.formats" in MODULES
