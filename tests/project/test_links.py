"""Every link within the repository leads to a file and, if it names one, to a heading; the repository's own address is
written once. External links are checked on a schedule (.github/workflows/scheduled.yml)."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import nbformat
import pytest
from build_notebooks import NAME, REPOSITORY, ROOT, SLUG

PAGES = [
    *sorted(ROOT.glob("*.md")),
    ROOT / "CITATION.cff",
    *(path for folder in ("docs", "data") for path in sorted((ROOT / folder).rglob("*.md"))),
    *sorted((ROOT / "notebooks").rglob("*.ipynb")),
]
LINK = re.compile(r"""\]\(([^)\s]+)(?:\s+"[^"]*")?\)|(?:href|src)="([^"]+)"|(https?://[^\s)\]"'>]+)""")
BLOCK = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
HOSTED = re.compile(rf"{re.escape(SLUG)}/(?:(?:blob|tree|raw)/main|main\?urlpath=lab/tree)(?:/(.*))?$")


def texts(page: Path) -> list[str]:
    """The prose of a page without blocks of code: of a notebook, its Markdown cells."""
    if page.suffix != ".ipynb":
        return [BLOCK.sub("", page.read_text(encoding="utf-8"))]
    cells = nbformat.read(page, as_version=4).cells
    return [BLOCK.sub("", cell.source) for cell in cells if cell.cell_type == "markdown"]


def links(page: Path) -> list[str]:
    """What a page links to, code left out."""
    matches = (match for text in texts(page) for match in LINK.finditer(re.sub(r"`[^`\n]*`", "", text)))
    return [next(filter(None, match.groups())) for match in matches]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings: GitHub's, or in a notebook Jupyter's."""
    headings = re.findall(r"^#+ +(.+?) *$", "\n".join(texts(page)), re.MULTILINE)
    if page.suffix == ".ipynb":
        return {heading.replace(" ", "-") for heading in headings}
    names, unique = [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings], set()
    for name in names:
        numbered = (name, *(f"{name}-{k}" for k in range(1, len(names))))
        unique.add(next(anchor for anchor in numbered if anchor not in unique))
    return unique


def dead(page: Path, link: str) -> bool:
    """Whether a link leads nowhere within the repository; a link to another place is not judged."""
    hosted = HOSTED.search(link)
    if hosted:
        target, _, anchor = (hosted[1] or "").partition("#")
        path = ROOT / unquote(target)
    elif SLUG in link:
        return link not in (REPOSITORY, f"{REPOSITORY}/issues")
    elif "://" in link or link.startswith("mailto:"):
        return False
    else:
        target, _, anchor = link.partition("#")
        path = (page.parent / unquote(target)) if target else page
    return not path.exists() or bool(anchor) and unquote(anchor) not in anchors(path)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_within_the_repository_lead_somewhere(page):
    assert [link for link in links(page) if dead(page, link)] == []


def test_a_dead_link_is_noticed(tmp_path):
    page = tmp_path / "page.md"
    hosted = f"https://colab.research.google.com/github/{SLUG}/blob/main"
    good = ["other.md", "other.md#two-words", "#a-b-1", "#c", "https://example.org", REPOSITORY, f"{hosted}/README.md"]
    bad = ["gone.md", "other.md#gone", "#gone", f"{REPOSITORY}/wiki", f"{hosted}/notebooks/99_gone.ipynb"]
    bad += [f"https://mybinder.org/v2/gh/{SLUG}/main?urlpath=lab/tree/gone.ipynb", f"{hosted}/README.md#gone"]
    (tmp_path / "other.md").write_text("## Two words\n")
    prose = "# A, b!\n## A b\n## `c`\n```\n[code](code.md)\n```\n`[code](code.md)`\n"
    page.write_text(prose + "\n".join(f"[![badge](other.md)]({link})" for link in good + bad))
    assert [link for link in links(page) if dead(page, link)] == bad


@pytest.mark.slow
def test_another_address_needs_one_change_and_a_build(tmp_path):
    for name in ("tools", "notebooks/src", "docs", "fgnet_lib", "site"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("README.md", "CITATION.cff", "pyproject.toml"):
        text = (ROOT / name).read_text(encoding="utf-8")
        (tmp_path / name).write_text(text.replace(REPOSITORY, "https://github.com/school/course-2027"))
        if name != "pyproject.toml":
            shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "notebooks" / "solutions").mkdir()
    subprocess.run(
        [sys.executable, str(tmp_path / "tools" / "course" / "build_notebooks.py")], check=True, cwd=tmp_path
    )
    files = [path for path in tmp_path.rglob("*") if path.suffix in {".py", ".md", ".cff", ".toml", ".ipynb"}]
    assert [path.name for path in files if SLUG in path.read_text(encoding="utf-8")] == []
    places = [path for path in files if path.parent == tmp_path / "site"]
    assert places and [path.name for path in places if NAME in path.read_text(encoding="utf-8")] == []
    notebook = (tmp_path / "notebooks" / "00_welcome.ipynb").read_text(encoding="utf-8")
    assert 'here / \\"course-2027\\"' in notebook and "github/school/course-2027/blob" in notebook
