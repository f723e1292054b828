"""Build the site of the course from executed lessons (`make site`): pages, figures, 3D scenes, glossary, API, search.

Nothing is run here: lessons are shown as `make tutorial` left them. Sources are gathered in out/site/source, laid out
like the repository so that its relative links hold; Sphinx makes out/site/html of them (settings: site/conf.py).
"""

from __future__ import annotations

import argparse
import base64
import html
import io
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import build_playground
import nbformat
from build_notebooks import NAME, PLAYGROUND, REPOSITORY, TABLE
from exercises import tags
from nbformat import NotebookNode
from nbformat.v4 import new_markdown_cell
from PIL import Image
from run_tutorial import DATASETS, PROFILES, done_before, lesson_parameters, sources_key
from still_pages import has_picture, make_still

from fgnet_lib.datasets import results_dir

ROOT = Path(__file__).resolve().parents[2]
SITE = ROOT / "site"
TUTORIALS = results_dir()
OUT = ROOT / "out" / "site"
PAGES = ("docs/**/*.md", "data/**/*.md")
FILES = ("docs/*.png", "docs/measured/*.png", "docs/learn/*.bib")
COPIED = ("scenes", "thumbnails")  # folders that Sphinx leaves alone
FOREIGN = ("_static", "scenes")  # pages of the site that are not ours
LINK = re.compile(r"(?<=\]\()([^)#\s]+)(?=[)#])")
BADGE = re.compile(r"\[!\[(\w+)\]\([^)]*\)\]")
BADGES = re.compile(r"^\[!\[Colab\].*$", re.MULTILINE)
ROW = re.compile(r"^\| \[(.+?)\]\((.+?)\.ipynb\) \| (.+?) \| (.*?) \| \[.*\]\((.+?)\) \|$", re.MULTILINE)
THUMBNAIL = (640, 400)  # pixels at most
CARD = """<li class="lesson" data-lesson="{lesson}"><a href="{page}.html">
<img src="thumbnails/{lesson}.jpg" alt="{alt}" loading="lazy"><span class="name">{name}</span></a>
<p>{goal}</p><p class="cost">{cost}</p>
<p class="open"><a class="button" href="{colab}">Colab<span class="spoken"> of lesson {name}</span></a>
<a class="button" href="{page}.ipynb" download>Download<span class="spoken"> lesson {name}</span></a></p></li>"""
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
    for folder in COPIED:
        (source / folder).mkdir(parents=True)
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
    alts = {lesson.stem: write_thumbnail(lesson, source / "thumbnails") for lesson in lessons}
    (source / "index.md").write_text(front_page(source, alts), encoding="utf-8")


def point_links(text: str, page: Path, staged: set[Path]) -> str:
    """Badges become buttons or plain links; links to files of the repository beside the site lead to GitHub."""

    def address(match: re.Match[str]) -> str:
        file = Path(os.path.normpath(page.parent / match[0]))
        if "://" in match[0] or file in staged or not file.exists():
            return match[0]  # what leads nowhere is left for Sphinx to complain about
        return f"{REPOSITORY}/blob/main/{file.relative_to(ROOT).as_posix()}"

    text = BADGES.sub(lambda match: buttons(match[0], page.name), text)
    return LINK.sub(address, BADGE.sub(r"[\1]", text))


def buttons(badges: str, notebook: str) -> str:
    """The badges of a lesson as HTML that opens it elsewhere, and a button that downloads it."""
    links = re.findall(r"\[!\[(\w+)\]\([^)]*\)\]\(([^)]+)\)", badges)
    verbs = {"GitHub": "View on"}
    opened = [f'<a class="button" href="{url}">{verbs.get(name, "Open in")} {name}</a>' for name, url in links]
    return " ".join(['<p class="open">', *opened, f'<a class="button" href="{notebook}" download>Download</a></p>'])


def page_of(executed: Path, source: Path) -> NotebookNode:
    """An executed lesson as it is shown: solutions folded, figures described, scenes in the page, no dead widgets."""

    def address(path: Path) -> str:
        scene = f"{executed.stem}-{path.name}"
        shutil.copy(path, source / "scenes" / scene)
        return f"../scenes/{scene}"

    notebook = nbformat.read(executed, as_version=4)
    make_still(notebook, executed.parent / "results" / executed.stem, address)
    add_solutions(notebook, ROOT / "notebooks" / "solutions" / executed.name)
    cells = []
    for number, cell in enumerate(notebook.cells):
        if "injected-parameters" in tags(cell):
            cells.append(new_markdown_cell(settings(cell)))
            continue
        cells.append(cell)
        if cell.cell_type == "code":
            fold(cell)
            hide_folders(cell)
            describe(cell, f"{executed.name}, cell {number}")
    notebook.cells = cells
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


def hide_folders(cell: NotebookNode) -> None:
    """Take this machine's folders out of what a cell printed."""
    for output in cell.outputs:
        if "text" in output:
            output["text"] = str(output["text"]).replace(f"{ROOT}{os.sep}", "")


def describe(cell: NotebookNode, where: str) -> None:
    """Give the figures of a cell its alternative text."""
    if has_picture(cell):
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


def write_thumbnail(executed: Path, folder: Path) -> str:
    """Write the most detailed figure of an executed lesson as a small JPEG; returns its alternative text."""
    cells = [cell for cell in nbformat.read(executed, as_version=4).cells if cell.cell_type == "code"]
    figures = [(o.data["image/png"], c.metadata.get("alt", "")) for c in cells for o in c.outputs if has_png(o)]
    if not figures:
        raise ValueError(f"{executed.name}: no figure for the front page; every lesson draws one")
    picture, alt = max(figures, key=lambda figure: len(figure[0]))
    with Image.open(io.BytesIO(base64.b64decode(picture))) as image:
        small = image.convert("RGB")
    small.thumbnail((2 * THUMBNAIL[0], THUMBNAIL[1]))  # the page shows the left part of a wide one
    small.save(folder / f"{executed.stem}.jpg", quality=85)
    return alt


def has_png(output: NotebookNode) -> bool:
    """Whether an output is a figure."""
    return "image/png" in output.get("data", {})


def cards(table: str, alts: dict[str, str]) -> str:
    """The README's table of lessons as cards with a picture; `alts` has the text of each picture by lesson."""
    items = []
    for name, page, goal, cost, colab in ROW.findall(table):
        lesson = Path(page).name
        values = {"name": name, "goal": goal, "cost": cost and f"{cost} on a CPU", "alt": alts.get(lesson, "")}
        values = {key: html.escape(value) for key, value in values.items()}
        items.append(CARD.format(lesson=lesson, page=page, colab=colab, **values))
    return "\n".join(['<ul class="lessons">', *items, "</ul>"]) + "\n\n" + table.split("\n\n")[-1]


def front_page(source: Path, alts: dict[str, str]) -> str:
    """site/index.md with the lessons of the README's table, and the navigation over all pages.

    Args:
        source: with all pages.
        alts: alternative texts of the lessons' pictures, by lesson.
    """
    table = TABLE.search((ROOT / "README.md").read_text(encoding="utf-8"))[0]
    lessons = {page: name for name, page in re.findall(r"^\| \[(.+?)\]\((.+?)\.ipynb\)", table, re.MULTILINE)}
    named = {page for part in NAVIGATION.values() for page in part}
    others = {path.relative_to(source).with_suffix("").as_posix() for path in source.glob("d*/**/*.md")} - named
    parts = {"Lessons": lessons} | NAVIGATION | {"Behind the course": {page: "" for page in sorted(others)}}
    text = (SITE / "index.md").read_text(encoding="utf-8").replace("<!-- lessons -->", cards(table, alts))
    text = text.replace("<!-- repository -->", REPOSITORY).replace("<!-- name -->", NAME)
    text = text.replace("<!-- playground -->", PLAYGROUND)
    return text.replace("<!-- navigation -->", "\n\n".join(toctree(*part) for part in parts.items()))


def toctree(caption: str, pages: dict[str, str]) -> str:
    """A part of the navigation; a page without a title keeps its own."""
    entries = [f"{title} <{page}>" if title else page for page, title in pages.items()]
    return "\n".join(["```{toctree}", ":hidden:", f":caption: {caption}", "", *entries, "```"])


def build(executed: Path, out: Path, playground: Path | None = None) -> Path:
    """Gather, let Sphinx write the pages, and check their links; returns the folder of the site.

    Args:
        executed: folder of executed lessons.
        out: gets source/ and html/.
        playground: folder of `build_playground.build`; without it, links lead to the published playground.

    Raises:
        ValueError: as `gather`, or a link of the site leads nowhere, or a picture has no alternative text.
        subprocess.CalledProcessError: Sphinx found something wrong, and has said so.
    """
    gather(executed, out / "source")
    shutil.rmtree(out / "html", ignore_errors=True)
    command = [sys.executable, "-m", "sphinx", "--quiet", "--fail-on-warning", "--fresh-env", "--conf-dir", SITE]
    subprocess.run([*command, "--doctree-dir", out / "doctrees", out / "source", out / "html"], check=True)
    for folder in COPIED:
        shutil.copytree(out / "source" / folder, out / "html" / folder)
    for lesson in (out / "source" / "notebooks").glob("*.ipynb"):
        shutil.copy(ROOT / "notebooks" / lesson.name, out / "html" / "notebooks")  # to download, without outputs
    if playground:
        add_playground(playground, out / "html")
    if problems := find_problems(out / "html"):
        raise ValueError("\n".join(problems))
    return out / "html"


def add_playground(playground: Path, site: Path) -> None:
    """Copy the playground into the site, and let the links of all pages lead to this copy."""
    for page in site.rglob("*.html"):
        text, own = page.read_text(encoding="utf-8"), os.path.relpath(site / "playground" / "index.html", page.parent)
        page.write_text(text.replace(f'href="{PLAYGROUND}"', f'href="{Path(own).as_posix()}"'), encoding="utf-8")
    shutil.copytree(playground, site / "playground")


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


def find_problems(site: Path) -> list[str]:
    """Links within the site that lead nowhere, anchors included, and pictures without alternative text."""
    pages = {path: Page(path) for path in site.rglob("*.html") if path.relative_to(site).parts[0] not in FOREIGN}
    problems = []
    for path, page in pages.items():
        undescribed = [picture["src"] for picture in page.pictures if not picture.get("alt")]
        problems += [f"{path.relative_to(site)}: no alternative text for {source}" for source in undescribed]
        for link in page.links:
            parts = urlsplit(link)
            target = Path(os.path.normpath(path.parent / unquote(parts.path))) if parts.path else path
            if parts.scheme or parts.netloc:
                continue
            anchor = unquote(parts.fragment)
            if not target.exists() or target in pages and anchor not in pages[target].anchors | {""}:
                problems.append(f"{path.relative_to(site)}: {link} leads nowhere")
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
        playground = build_playground.build(OUT / "playground")
    except FileNotFoundError as error:
        print(f"The site is built without its playground: {error}")
        playground = None
    try:
        site = build(executed, OUT, playground)
        print(f"Open {site / 'index.html'}")
        print(f"With the playground, which needs a server: {sys.executable} -m http.server --bind 127.0.0.1 -d {site}")
    except (ValueError, subprocess.CalledProcessError) as error:
        print(error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
