"""Text is read and written as UTF-8, whatever the computer's language: every call says so."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest

from fgnet_lib import REPOSITORY

FOLDERS = ("fgnet_lib", "tools", "site")
TEXT = {"read_text", "write_text"}
FILES = {"open", "fdopen", "NamedTemporaryFile", "TemporaryFile", "TextIOWrapper"}
PROCESSES = {"run", "Popen", "check_output"}
NOT_TEXT = {"os", "zarr", "tensorstore", "Image", "zipped", "part.parent.filehandle"}  # whose `open` knows no encoding
METHODS = {"self.open", "source.open"}  # our own, of `scale.prediction.Source`


def silent_calls(source: str) -> Iterator[int]:
    """The lines of calls that read or write text and leave the encoding to the computer."""
    for call in ast.walk(ast.parse(source)):
        if not isinstance(call, ast.Call):
            continue
        options = {keyword.arg: keyword.value for keyword in call.keywords}
        receiver, _, name = ast.unparse(call.func).rpartition(".")
        if "encoding" in options:
            continue
        as_text = any(getattr(options.get(key), "value", False) for key in ("text", "universal_newlines"))
        if name in TEXT or (name in PROCESSES and as_text) or (name in FILES and opens_text(call, receiver, options)):
            yield call.lineno


def opens_text(call: ast.Call, receiver: str, options: dict[str | None, ast.expr]) -> bool:
    """Tell whether a call opens a file, and not in binary mode."""
    name = ast.unparse(call.func)
    if name in METHODS or (receiver in NOT_TEXT and name != "os.fdopen"):
        return False
    modes = [argument.value for argument in [*call.args[:2], options.get("mode")] if isinstance(argument, ast.Constant)]
    return not any(isinstance(mode, str) and re.fullmatch("[rwax+]*b[rwax+]*", mode) for mode in modes)


def test_every_call_names_its_encoding():
    files = [path for folder in FOLDERS for path in sorted((REPOSITORY / folder).rglob("*.py"))]
    sources = {path.relative_to(REPOSITORY).as_posix(): path.read_text(encoding="utf-8") for path in files}
    assert len(sources) > 60  # the files were read
    silent = [f"{file}:{line}" for file, source in sources.items() for line in silent_calls(source)]
    assert not silent, f'add encoding="utf-8": {", ".join(silent)}'


@pytest.mark.parametrize(
    "call",
    [
        "open(p)", "open(p, 'w')", "p.open()", "p.open('a+')", "p.read_text()", "p.write_text(x)", "os.fdopen(f, 'r+')",
        "subprocess.run(c, text=True)", "NamedTemporaryFile('w')", "open(p, mode='r')",
    ],
)  # fmt: skip
def test_a_call_that_leaves_the_encoding_to_the_computer_is_seen(call):
    assert list(silent_calls(call)) == [1]


@pytest.mark.parametrize(
    "call",
    [
        "open(p, encoding='utf-8')", "open(p, 'wb')", "p.open('rb')", "p.read_text(encoding='ascii')", "zarr.open(p)",
        "os.open(p, 0)", "subprocess.run(c, encoding='utf-8')", "subprocess.run(c)", "p.read_bytes()", "self.open()",
    ],
)  # fmt: skip
def test_other_calls_are_left_alone(call):
    assert list(silent_calls(call)) == []
