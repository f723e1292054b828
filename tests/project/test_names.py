"""A name has one meaning, and says what it names."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from fgnet_lib import REPOSITORY

SAME = {  # a name that may occur several times -> the meaning that they share
    "build": "makes what the tool is named after",
    "main": "runs a command line",
    "page": "returns the Markdown of the page that a tool writes",
    "report": "tells in a few lines how a lesson's exercises or a tutorial's run went",
    "table": "returns a table in Markdown",
}
VAGUE = re.compile(r"(found|those|there|one|said|took|place)(_\d+)?")  # fits any result, so it says nothing about it
FOLDERS = ("fgnet_lib", "tools", "notebooks/src", "site")


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


def bound_names(path: Path) -> Iterator[tuple[int, str]]:
    """Line and name of everything that a file binds: variables, arguments, names of loops, functions and classes."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.FunctionDef | ast.ClassDef | ast.ExceptHandler) and node.name:
            yield node.lineno, node.name


def test_a_name_says_what_it_names():
    names, vague = 0, []
    for path in sorted(path for folder in FOLDERS for path in (REPOSITORY / folder).rglob("*.py")):
        file = path.relative_to(REPOSITORY).as_posix()
        for line, name in bound_names(path):
            names += 1
            if VAGUE.fullmatch(name):
                vague.append(f"{file}:{line} {name}")
    assert names > 5000  # the files were read
    assert not vague, f"name what the value is instead: {', '.join(vague)}"
