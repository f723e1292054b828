"""The site shows every docstring, so each is valid reStructuredText: `make check` sees it before Sphinx does."""

from __future__ import annotations

import ast
import io
from pathlib import Path

import pytest
from docutils.core import publish_doctree
from sphinx.ext.napoleon import Config, GoogleDocstring

from fgnet_lib import REPOSITORY

FILES = sorted((REPOSITORY / "fgnet_lib").rglob("*.py"))
DOCUMENTED = ast.Module | ast.ClassDef | ast.FunctionDef


def complaints(docstring: str) -> str:
    """What docutils says of a docstring in Google style; empty if nothing."""
    text, complaint = str(GoogleDocstring(docstring, Config(napoleon_use_ivar=True))), io.StringIO()
    publish_doctree(text, settings_overrides={"warning_stream": complaint, "report_level": 2})
    return complaint.getvalue()


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_docstrings_can_be_shown(path: Path) -> None:
    nodes = [node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, DOCUMENTED)]
    docstrings = [docstring for node in nodes if (docstring := ast.get_docstring(node))]
    assert [problem for docstring in docstrings if (problem := complaints(docstring))] == []


UNEVEN = "Parts:\n\n    a     first\n    b     second\n            of two\n  c"


@pytest.mark.parametrize("docstring", ["The loss\n|x - y| is small.", UNEVEN, "An `open quote."])
def test_what_sphinx_would_refuse_is_noticed(docstring: str) -> None:
    assert complaints(docstring)
