"""Rules for the tests themselves."""

from __future__ import annotations

import re

from fgnet_lib import REPOSITORY

TESTS = sorted((REPOSITORY / "tests").rglob("*.py"))


def test_no_test_file_imports_another():
    """Nor does a script in a string: what several files need is in tests/helpers."""
    imports = re.compile(r"^\s*(?:from|import) +(?:tests\.)?(?:\w+\.)*test_\w+", re.MULTILINE)
    texts = {path: path.read_text(encoding="utf-8") for path in TESTS}
    assert {str(path): match[0] for path, text in texts.items() if (match := imports.search(text))} == {}
