"""No two public functions or classes share a name, unless they mean the same."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

from fgnet_lib import REPOSITORY

SAME = {  # a name that may occur several times -> the meaning that they share
    "build": "makes what the tool is named after",
    "main": "runs a command line",
    "page": "returns the Markdown of the page that a tool writes",
    "report": "tells in a few lines how a lesson's exercises or a tutorial's run went",
    "table": "returns a table in Markdown",
}


def public_definitions(path: Path) -> list[str]:
    """The public functions and classes at the top level of a file; exercises are reached as `checks.NAME` alone."""
    statements = ast.parse(path.read_text(encoding="utf-8")).body
    definitions = [node for node in statements if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    return [node.name for node in definitions if not node.name.startswith("_") and not is_exercise(node)]


def is_exercise(definition: ast.FunctionDef | ast.ClassDef) -> bool:
    return any(ast.unparse(decorator).startswith("exercise(") for decorator in definition.decorator_list)


def test_a_name_has_one_meaning():
    files = defaultdict(list)
    for folder in ("fgnet_lib", "tools"):
        for path in sorted((REPOSITORY / folder).rglob("*.py")):
            for name in public_definitions(path):
                files[name].append(str(path.relative_to(REPOSITORY)))
    assert len(files) > 200  # the files were read
    shared = {name: paths for name, paths in files.items() if len(paths) > 1 and name not in SAME}
    assert not shared, f"give each a name of its own, or add to SAME what they share: {shared}"
