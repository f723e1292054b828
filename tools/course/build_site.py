"""Build the site of the course from executed lessons (`make site`): pages, figures, 3D scenes, glossary, API, search.

Nothing is run here: lessons are shown as `make tutorial` left them. Sources are gathered in out/site/source, laid out
like the repository so that its relative links hold; Sphinx makes out/site/html of them (settings: site/conf.py).
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
from build_notebooks import NAME, REPOSITORY, TABLE
from exercises import tags
from nbformat import NotebookNode
from nbformat.v4 import new_markdown_cell
from run_tutorial import DATASETS, PROFILES, done_before, lesson_parameters, sources_key

from fgnet_lib.datasets import results_dir

ROOT = Path(__file__).resolve().parents[2]
SITE = ROOT / "site"
TUTORIALS = results_dir()
OUT = ROOT / "out" / "site"
PAGES = ("docs/**/*.md", "data/**/*.md")
FILES = ("docs/*.png", "docs/measured/*.png", "docs/learn/*.bib")
FOREIGN = ("_static", "scenes")  # pages of the site that are not ours
LINK = re.compile(r"(?<=\]\()([^)#\s]+)(?=[)#])")
BADGE = re.compile(r"\[!\[(\w+)\]\([^)]*\)\]")
PROGRESS = re.compile(r"\d+%\|")
SCENE = (
    '<div class="scene"><iframe src="../scenes/{}" loading="lazy" title="3D scene, turns when dragged"></iframe></div>'
)
WIDGET = "*This control needs a running notebook: open the lesson by a link at its head.*"
AUTODOC = "```{{eval-rst}}\n.. automodule:: {}\n   :{}:\n```"
NAVIGATION = {
    "Teaching": {"docs/teach/instructors": "Instructor guide", "docs/learn/platforms": "Platforms"},
    "Reference": {"docs/learn/glossary": "Glossary", "api/index": "Library", "bibliography": "Bibliography"},
}


def find_outdated(executed: Path, parameters: dict[str, str]) -> list[str]:
    """The lessons that `make tutorial` has not run yet, or not as they are now."""
    notebooks = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
    keys = {notebook.stem: sources_key(notebook, parameters) for notebook in notebooks}
    done = done_before(executed, keys)
    return [name for name in keys if name not in done]


def gather(executed: Path, source: Path) -> None:
    """Write everything that Sphinx reads to `source`.

    Args:
        executed: folder of executed lessons, with what they saved in results/.
        source: emptied first.

    Raises:
        ValueError: a figure without an alternative text.
    """
    shutil.rmtree(source, ignore_errors=True)
    (source / "scenes").mkdir(parents=True)
    lessons = sorted(executed.glob("[0-9][0-9]_*.ipynb"))
    pages = sorted({path for pattern in PAGES for path in ROOT.glob(pattern)})
    staged = {*pages, *(path for pattern in FILES for path in ROOT.glob(pattern))}
    staged |= {ROOT / "notebooks" / lesson.name for lesson in lessons}
    for path in staged:
        (source / path.relative_to(ROOT)).parent.mkdir(parents=True, exist_ok=True)
        if path in pages:
            text = point_links(path.read_text(encoding="utf-8"), path, staged)
            (source / path.relative_to(ROOT)).write_text(text, encoding="utf-8")
        elif path.suffix != ".ipynb":
            shutil.copy(path, source / path.relative_to(ROOT))
    for lesson in lessons:
        notebook = page_of(lesson, source)
        for cell in notebook.cells:
            if cell.cell_type == "markdown":
                cell.source = point_links(cell.source, ROOT / "notebooks" / lesson.name, staged)
        nbformat.write(notebook, source / "notebooks" / lesson.name)
    write_library(source)
    shutil.copy(SITE / "bibliography.md", source)
    (source / "index.md").write_text(front_page(source), encoding="utf-8")


def point_links(text: str, page: Path, staged: set[Path]) -> str:
    """Badges become plain links, and links to files of the repository that are no part of the site lead to GitHub."""

    def address(match: re.Match[str]) -> str:
        file = Path(os.path.normpath(page.parent / match[0]))
        if "://" in match[0] or file in staged or not file.exists():
            return match[0]  # what leads nowhere is left for Sphinx to complain about
        return f"{REPOSITORY}/blob/main/{file.relative_to(ROOT).as_posix()}"

    text = re.sub(r"^(?=\[!\[Colab)", "Open this lesson in ", text, flags=re.MULTILINE)
    return LINK.sub(address, BADGE.sub(r"[\1]", text))


def page_of(executed: Path, source: Path) -> NotebookNode:
    """An executed lesson as it is shown: solutions folded, figures described, scenes in the page, no dead widgets."""
    notebook = nbformat.read(executed, as_version=4)
    add_solutions(notebook, ROOT / "notebooks" / "solutions" / executed.name)
    cells = []
    for number, cell in enumerate(notebook.cells):
        if "injected-parameters" in tags(cell):
            cells.append(new_markdown_cell(settings(cell)))
            continue
        cells.append(cell)
        if cell.cell_type == "code":
            fold(cell)
            cells += [new_markdown_cell(text) for text in static_outputs(cell, executed, source)]
            describe(cell, f"{executed.name}, cell {number}")
    notebook.cells = cells
    notebook.metadata.pop("widgets", None)
    return notebook


def add_solutions(notebook: NotebookNode, solved: Path) -> None:
    """Put each solution of the solved notebook behind its task; cells are numbered alike in both."""
    if not solved.exists():
        return
    for cell in nbformat.read(solved, as_version=4).cells:
        if "solution" in tags(cell):
            lesson, number = cell.id.rsplit("-", 1)
            before = [other.id for other in notebook.cells].index(f"{lesson}-{int(number) - 1}")
            if cell.cell_type == "markdown":
                cell.source = f"<details><summary>Show the answer</summary>\n\n{cell.source}\n\n</details>"
            notebook.cells.insert(before + 1, cell)


def settings(parameters: NotebookNode) -> str:
    """What a lesson was run with, folders of this machine left out."""
    shown = [f"`{line}`" for line in parameters.source.splitlines() if re.match("(PROFILE|DATASET) ", line)]
    return f"The outputs on this page were made with {' and '.join(shown)}."


def fold(cell: NotebookNode) -> None:
    """Hide the code of set-up and solutions behind a line to click on."""
    for tag, name in {"setup": "set-up", "solution": "solution"}.items():
        if tag in tags(cell):
            cell.metadata["tags"] = ["hide-input"]
            cell.metadata["mystnb"] = {"code_prompt_show": f"Show the {name}", "code_prompt_hide": f"Hide the {name}"}


def static_outputs(cell: NotebookNode, executed: Path, source: Path) -> list[str]:
    """Leave only outputs that live without a kernel; returns what to say below the cell instead, as Markdown.

    Of a widget stays what it shows elsewhere, if anything; a viewer on this machine is dropped; an HTML file that the
    cell says it wrote is copied and framed.
    """
    below, outputs = [], []
    for output in cell.outputs:
        data, text = output.get("data", {}), str(output.get("text", ""))
        widget = data.pop("application/vnd.jupyter.widget-view+json", None)
        if "//127.0.0.1" in data.get("text/html", "") or widget and data.keys() <= {"text/plain"}:
            if not PROGRESS.search(data.get("text/plain", "")) and WIDGET not in below:
                below.append(WIDGET)
            continue
        if text:
            output["text"] = text.replace(f"{ROOT}{os.sep}", "")
        outputs.append(output)
        for name in re.findall(r"[\w-]+\.html", text):
            file = executed.parent / "results" / executed.stem / name
            if file.exists():
                scene = f"{executed.stem}-{name}"
                shutil.copy(file, source / "scenes" / scene)
                below.append(SCENE.format(scene))
    cell.outputs = outputs
    return below


def describe(cell: NotebookNode, where: str) -> None:
    """Give the figures of a cell its alternative text."""
    if any("image/png" in output.get("data", {}) for output in cell.outputs):
        if not cell.metadata.get("alt"):
            raise ValueError(f'{where}: a figure without alternative text; write # %% alt="..." in the source')
        cell.metadata.setdefault("mystnb", {})["image"] = {"alt": cell.metadata["alt"]}


def write_library(source: Path) -> None:
    """One page for each module in the order of docs/architecture.md, and a page that leads to them."""
    (source / "api").mkdir()
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([\w.]+)` \| (.+?) \| .*\|$", text, re.MULTILINE)
    for module, _ in rows:
        files = sorted((ROOT / "fgnet_lib" / module.replace(".", "/")).glob("[!_]*.py"))
        blocks = [AUTODOC.format(f"fgnet_lib.{module}.{file.stem}", "members") for file in files]
        blocks.insert(0, AUTODOC.format(f"fgnet_lib.{module}", "no-members" if files else "members"))
        (source / "api" / f"{module}.md").write_text("\n\n".join([f"# {module}", *blocks]) + "\n", encoding="utf-8")
    lines = ["# Library", "", "`fgnet_lib`, in the order in which a volume becomes neurons on the screen.", ""]
    lines += ["| module | takes → gives |", "| --- | --- |"]
    lines += [f"| [`{module}`]({module}.md) | {what} |" for module, what in rows]
    lines += ["", toctree("Modules", {module: module for module, _ in rows})]
    (source / "api" / "index.md").write_text("\n".join(lines), encoding="utf-8")


def front_page(source: Path) -> str:
    """site/index.md with the README's table of lessons, and the navigation over all pages."""
    table = TABLE.search((ROOT / "README.md").read_text(encoding="utf-8"))[0]
    lessons = {page: name for name, page in re.findall(r"^\| \[(.+?)\]\((.+?)\.ipynb\)", table, re.MULTILINE)}
    named = {page for part in NAVIGATION.values() for page in part}
    others = {path.relative_to(source).with_suffix("").as_posix() for path in source.glob("d*/**/*.md")} - named
    parts = {"Lessons": lessons} | NAVIGATION | {"Behind the course": {page: "" for page in sorted(others)}}
    text = (SITE / "index.md").read_text(encoding="utf-8").replace("<!-- lessons -->", BADGE.sub(r"[\1]", table))
    text = text.replace("<!-- repository -->", REPOSITORY).replace("<!-- name -->", NAME)
    return text.replace("<!-- navigation -->", "\n\n".join(toctree(*part) for part in parts.items()))


def toctree(caption: str, pages: dict[str, str]) -> str:
    """A part of the navigation; a page without a title keeps its own."""
    entries = [f"{title} <{page}>" if title else page for page, title in pages.items()]
    return "\n".join(["```{toctree}", ":hidden:", f":caption: {caption}", "", *entries, "```"])


def build(executed: Path, out: Path) -> Path:
    """Gather, let Sphinx write the pages, and check their links; returns the folder of the site.

    Args:
        executed: folder of executed lessons.
        out: gets source/ and html/.

    Raises:
        ValueError: as `gather`, or a link of the site leads nowhere, or a picture has no alternative text.
        subprocess.CalledProcessError: Sphinx found something wrong, and has said so.
    """
    gather(executed, out / "source")
    shutil.rmtree(out / "html", ignore_errors=True)
    command = [sys.executable, "-m", "sphinx", "--quiet", "--fail-on-warning", "--fresh-env", "--conf-dir", SITE]
    subprocess.run([*command, "--doctree-dir", out / "doctrees", out / "source", out / "html"], check=True)
    shutil.copytree(out / "source" / "scenes", out / "html" / "scenes")
    if problems := find_problems(out / "html"):
        raise ValueError("\n".join(problems))
    return out / "html"


class Page(HTMLParser):
    """What a page of the site links to, what in it can be linked to, and its pictures with their attributes."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.pictures: list[dict[str, str | None]] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        """Called by the parser."""
        values = dict(attributes)
        self.anchors.add(values.get("id") or "")
        self.links += [values[name] for name in ("href", "src") if values.get(name)]
        if tag == "img":
            self.pictures.append(values)


def find_problems(html: Path) -> list[str]:
    """Links within the site that lead nowhere, anchors included, and pictures without alternative text."""
    pages = {path: Page(path) for path in html.rglob("*.html") if path.relative_to(html).parts[0] not in FOREIGN}
    problems = []
    for path, page in pages.items():
        undescribed = [picture["src"] for picture in page.pictures if not picture.get("alt")]
        problems += [f"{path.relative_to(html)}: no alternative text for {source}" for source in undescribed]
        for link in page.links:
            parts = urlsplit(link)
            target = Path(os.path.normpath(path.parent / unquote(parts.path))) if parts.path else path
            if parts.scheme or parts.netloc:
                continue
            anchor = unquote(parts.fragment)
            if not target.exists() or target in pages and anchor not in pages[target].anchors | {""}:
                problems.append(f"{path.relative_to(html)}: {link} leads nowhere")
    return problems


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", default="phantom", choices=DATASETS)
    parser.add_argument("--profile", default="fast", choices=PROFILES)
    options = parser.parse_args()
    executed = TUTORIALS / f"tutorial-{options.dataset}-{options.profile}"
    if late := find_outdated(executed, lesson_parameters(options.dataset, options.profile)):
        command = f"make tutorial DATASET={options.dataset} PROFILE={options.profile}"
        print(f"Not executed, or changed since: {', '.join(late)}\nFirst run: {command}")
        return 1
    try:
        print(f"Open {build(executed, OUT) / 'index.html'}")
    except (ValueError, subprocess.CalledProcessError) as error:
        print(error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
