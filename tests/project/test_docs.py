"""What the pages tell to do can be done."""

from __future__ import annotations

import re

from fgnet_lib import REPOSITORY

PAGES = [
    REPOSITORY / "README.md",
    *REPOSITORY.glob("docs/**/*.md"),
    *REPOSITORY.glob("data/**/*.md"),
    *REPOSITORY.glob("notebooks/src/*.py"),
]


def test_the_pages_call_make_targets_that_exist():
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^(\w+):", makefile, re.MULTILINE))
    called = {name for page in PAGES for name in re.findall(r"`make (\w+)", page.read_text(encoding="utf-8"))}
    assert called <= targets
