"""What the pages tell to do can be done, and what they say about a release is said alike everywhere."""

from __future__ import annotations

import re
import tomllib

import yaml

from fgnet_lib import REPOSITORY

PAGES = [
    *REPOSITORY.glob("*.md"),
    *REPOSITORY.glob(".github/*.md"),
    *REPOSITORY.glob("docs/**/*.md"),
    *REPOSITORY.glob("data/**/*.md"),
    *REPOSITORY.glob("notebooks/src/*.py"),
]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_the_pages_call_make_targets_that_exist():
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^(\w+):", makefile, re.MULTILINE))
    called = {name for page in PAGES for name in re.findall(r"`make (\w+)", page.read_text(encoding="utf-8"))}
    assert called <= targets


def test_the_files_that_contributing_names_exist():
    text = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")
    paths = set(re.findall(r"`((?:fgnet_lib|tests|tools|docs|data|notebooks)/[\w./-]+)`", text))
    assert len(paths) > 10
    known = {path for path in paths if not re.search(r"NN|ipynb$", path)}
    assert [path for path in known if not (REPOSITORY / path).exists()] == []


def test_version_and_licence_are_the_same_everywhere():
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == PROJECT["version"]
    assert PROJECT["license"] == f"{citation['license']} AND CC-BY-4.0"
    for name, identifier in {"LICENSE": "MIT License", "LICENSE-TEXT.md": "CC-BY-4.0"}.items():
        assert name in PROJECT["license-files"]
        assert identifier in (REPOSITORY / name).read_text(encoding="utf-8")


def test_the_changelog_has_the_version_below_what_is_unreleased():
    text = (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert headings[0] == "[Unreleased]"
    assert re.fullmatch(rf"\[{re.escape(PROJECT['version'])}\] - \d{{4}}-\d\d-\d\d", headings[1])
    groups = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}  # of Keep a Changelog
    assert set(re.findall(r"^### (.+)$", text, re.MULTILINE)) <= groups
