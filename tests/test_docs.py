"""Links between the pages and the lessons lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("data/**/*.md"), *ROOT.glob("notebooks/src/*.py")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_within_the_repository_lead_to_files(page):
    lines = page.read_text(encoding="utf-8").splitlines()
    prose = "\n".join(line for line in lines if page.suffix == ".md" or line.startswith("# "))
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", prose)
    folder = page.parent.parent if page.suffix == ".py" else page.parent  # lessons are read from notebooks/
    missing = [link for link in links if "://" not in link and not (folder / link).exists()]
    assert missing == []


def test_the_pages_call_make_targets_that_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^(\w+):", makefile, re.MULTILINE))
    called = {name for page in PAGES for name in re.findall(r"`make (\w+)", page.read_text(encoding="utf-8"))}
    assert called <= targets
