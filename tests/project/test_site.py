"""The site: the lessons as they are, with made-up outputs, become pages without a dead link, readable on a phone."""

from __future__ import annotations

import ast
import functools
import json
import re
import runpy
import threading
from html import unescape
from http.server import ThreadingHTTPServer
from pathlib import Path

import build_site
import nbformat
import numpy as np
import pytest
from helpers.browser import SCREENSHOTS, find_barriers, open_browser, wait_until
from nbformat.v4 import new_code_cell, new_output
from picture_pages import Quiet
from PIL import Image
from run_tutorial import Lesson, lesson_parameters, sources_key

from fgnet_lib import REPOSITORY
from fgnet_lib.views.tables import fold_table

pytestmark = pytest.mark.slow  # builds the whole site

NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("[0-9][0-9]_*.ipynb"))
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNoAAAAggCBd81ytgAAAABJRU5ErkJggg=="
PAGES = (
    "",
    "notebooks/03_feature_guided_attention.html",
    "notebooks/06_neurons_in_3d.html",
    "notebooks/07_ablations_and_results.html",
    "docs/learn/glossary.html",
    "docs/learn/platforms.html",
    "api/volumes.html",
)
WIDGET = {"application/vnd.jupyter.widget-view+json": {"model_id": "0"}}
SETTINGS = '# Parameters\nPROFILE = "fast"\nDATASET = "phantom"\nOUT_DIR = "/home/teacher/out"\n'
SCENE = "<!doctype html><title>scene</title><p>neurons</p>"
EXPLORER = '<!doctype html><meta name="viewport" content="width=device-width"><title>Attention</title><p>maps</p>'
WRITTEN = {"export_html(": ("neurons.html", SCENE), "export_attention(": ("attention.html", EXPLORER)}
ROWS = [[f"FGNet, row {k}", "1.234 ± 0.012", "-0.123", "3"] for k in range(7)]

UNFOLD = "document.querySelectorAll('details').forEach(part => part.open = true)"

CONF = runpy.run_path(str(REPOSITORY / "site" / "conf.py"))


def execute(notebook: Path, folder: Path) -> None:
    """Write a lesson to `folder` as if it had been run: a figure in each cell that describes one, tables and pages."""
    made = nbformat.read(notebook, as_version=4)
    for cell in (cell for cell in made.cells if cell.cell_type == "code"):
        if "alt" in cell.metadata:
            cell.outputs = [new_output("display_data", {"image/png": PIXEL})]
        if "\nfold_table(" in cell.source:
            table = fold_table(["row", "VOI (bits)", "difference", "runs"], {"attention": ROWS, "encoder": ROWS})
            cell.outputs = [new_output("display_data", {"text/html": table.data})]
        for name, content in (written for call, written in WRITTEN.items() if call in cell.source):
            saved = folder / "results" / notebook.stem / name
            saved.parent.mkdir(parents=True)
            saved.write_text(content)
            cell.outputs = [new_output("stream", text=f"{REPOSITORY}/out/{name} (0.1 MB)")]
    outputs = [new_output("display_data", WIDGET | {"text/plain": plain}) for plain in ("Explorer()", " 10%|# |")]
    outputs += [new_output("display_data", WIDGET | {"text/html": "<p>Instead of a <b>widget</b></p>"})]
    made.cells.append(new_code_cell("explorer", outputs=outputs))
    made.cells.insert(2, new_code_cell(SETTINGS, metadata={"tags": ["injected-parameters"]}))
    nbformat.write(made, folder / notebook.name)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The folder of a whole site."""
    executed = tmp_path_factory.mktemp("executed")
    for notebook in NOTEBOOKS:
        execute(notebook, executed)
    return build_site.build(executed, tmp_path_factory.mktemp("site"))


def page(site: Path, lesson: Path) -> str:
    return (site / "notebooks" / f"{lesson.stem}.html").read_text(encoding="utf-8")


def words(page: str) -> str:
    """What a page says, tags and breaks of lines left out."""
    return " ".join(unescape(re.sub("<[^>]+>", "", page)).split())


# --- lessons ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lesson", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_figure_has_the_text_of_its_cell(site, lesson):
    cells = nbformat.read(lesson, as_version=4).cells
    described = [cell.metadata.alt for cell in cells if "alt" in cell.metadata]
    figures = build_site.Page(site / "notebooks" / f"{lesson.stem}.html").pictures
    assert [figure["alt"] for figure in figures] == described


@pytest.mark.parametrize("lesson", NOTEBOOKS, ids=lambda path: path.stem)
def test_each_solution_is_folded_below_its_task(site, lesson):
    cells = nbformat.read(lesson.parent / "solutions" / lesson.name, as_version=4).cells
    solutions = [cell for cell in cells if "solution" in cell.metadata.get("tags", [])]
    blocks = map(words, re.findall(r"<details.*?</details>", page(site, lesson), re.DOTALL))
    folded = [block for block in blocks if "Show the solution" in block or "Show the answer" in block]
    assert [words(cell.source) in block for cell, block in zip(solutions, folded, strict=True)] == [True] * len(folded)
    assert [words(page(site, lesson)).count(words(cell.source)) for cell in solutions] == [1] * len(folded)


def test_what_goes_further_is_folded_with_all_of_its_section(site):
    text = page(site, REPOSITORY / "notebooks" / "05_affinities_to_neurons.ipynb")
    sections = re.findall(r'<section id="[\w-]*further[\w-]*">(.*?)</section>', text, re.DOTALL)
    assert sections
    for section in sections:
        assert re.search(r'^.*?</h[23]>\s*<details class="further">', section, re.DOTALL)
    assert text.count('<details class="further">') == len(sections)
    assert text.count("<details") == text.count("</details>")


def test_outputs_need_no_kernel_and_name_no_folder(site):
    text = page(site, NOTEBOOKS[0])
    assert text.count("In a running notebook, controls appear here") == 1  # of the explorer, not of the progress bar
    assert "Instead of a <b>widget</b>" in text
    assert "widget-view" not in text and "Explorer()" not in text and "10%|" not in text
    assert 'The outputs on this page were made with PROFILE = "fast" and DATASET = "phantom".' in words(text)
    assert all(str(REPOSITORY) not in page(site, lesson) and "/home/" not in page(site, lesson) for lesson in NOTEBOOKS)


@pytest.mark.parametrize(("number", "written"), [("03", EXPLORER), ("06", SCENE)])
def test_a_page_that_a_lesson_wrote_is_in_its_page(site, number, written):
    lesson = next(path for path in NOTEBOOKS if path.stem.startswith(number))
    (source,) = re.findall(r'<iframe src="([^"]+)" loading="lazy"', page(site, lesson))
    assert (site / "notebooks" / source).read_text() == written


def test_a_figure_without_alternative_text_stops_the_build(tmp_path):
    figure = new_output("display_data", {"image/png": PIXEL})
    with pytest.raises(ValueError, match=r"lesson.ipynb, cell 7: a figure without alternative text"):
        build_site.describe(new_code_cell("plt.show()", outputs=[figure]), "lesson.ipynb, cell 7")


# --- links -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lesson", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_term_is_linked_at_its_first_mention_only(site, lesson):
    terms = re.findall(r'<a class="[^"]*\bterm\b[^"]*" href="([^"]+)"', page(site, lesson))
    assert len(terms) == len(set(terms)) > 3
    assert all(term.startswith("../docs/learn/glossary.html#term-") for term in terms)
    kept = re.findall(r"<h\d>.*?</h\d>|<pre>.*?</pre>|<code.*?</code>", page(site, lesson), re.DOTALL)
    assert kept and not any("/glossary.html" in part for part in kept)


def test_the_link_is_at_the_first_mention(site):
    lesson = next(path for path in NOTEBOOKS if path.stem.startswith("05"))
    prose = " ".join(re.findall(r"<p>.*?</p>", page(site, lesson), re.DOTALL))
    link, word = re.search(r"(<a [^>]*\bterm\b[^>]*>)?(?:<[^>]+>)*\b(agglomeration)\b", prose, re.IGNORECASE).groups()
    assert link and prose.lower().count(word.lower()) > 1


def linked_terms(site: Path) -> dict[str, set[str]]:
    """For each lesson, by its number, the terms that its page links to the glossary."""
    pages = {lesson.stem[:2]: page(site, lesson) for lesson in NOTEBOOKS}
    return {number: set(re.findall(r'title="Glossary: ([^"]+)"', text)) for number, text in pages.items()}


def test_every_term_is_linked_in_a_lesson_that_its_entry_names(site):
    text, linked = (REPOSITORY / "docs" / "learn" / "glossary.md").read_text(encoding="utf-8"), linked_terms(site)
    taught = CONF["lessons_of_terms"](text)
    assert set(taught) == {name for part in linked.values() for name in part}
    assert [name for name, lessons in taught.items() if not any(name in linked[lesson] for lesson in lessons)] == []


def test_a_term_with_a_second_meaning_is_linked_only_where_it_is_taught(site):
    taught, linked = CONF["lessons_of_terms"](CONF["GLOSSARY"].read_text(encoding="utf-8")), linked_terms(site)
    twofold = {name for name in taught if "(" in name}
    assert {"layer (of the viewer)", "dense (of labels)"} <= twofold
    assert [
        (name, lesson) for lesson, names in linked.items() for name in names & twofold if lesson not in taught[name]
    ] == []


def test_references_to_papers_are_left_alone(site):
    parts = [re.search(r"<h2>References<.*?</section>", page(site, lesson), re.DOTALL)[0] for lesson in NOTEBOOKS]
    assert not any("/glossary.html" in part for part in parts)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Affinities of a membrane", ["Affinities"]),
        ("one affinity, two\naffinities", ["affinity", "affinities"]),
        ("ground\ntruth", ["ground\ntruth"]),
        ("The VOI falls; a voi does not", ["VOI"]),
        ("intersection, sectional, cross-section", []),
        ("VOI split and VOI", ["VOI split", "VOI"]),
        ("boxes and a box", ["boxes", "box"]),
        ("the winner\u2019s curse, winner's curse", ["winner\u2019s curse", "winner's curse"]),
    ],
)
def test_mentions_are_whole_words_in_any_number(text, found):
    terms = ["affinity", "ground truth", "VOI", "VOI split", "section", "box", "winner's curse"]
    mentions = CONF["mentions"](terms).findall(text)
    assert mentions == found
    assert all(set(CONF["singulars"](mention)) & {term.lower() for term in terms} for mention in mentions)


def test_files_beside_the_site_are_linked_on_github():
    pointed = functools.partial(
        build_site.point_links, page=REPOSITORY / "notebooks" / "x.ipynb", staged={REPOSITORY / "docs/a.md"}
    )
    assert pointed("[a](../docs/a.md#b)") == "[a](../docs/a.md#b)"
    assert pointed("[l](../LICENSE)") == f"[l]({build_site.REPOSITORY}/blob/main/LICENSE)"
    assert pointed("[n](../nowhere.md) [w](https://example.org)") == "[n](../nowhere.md) [w](https://example.org)"
    assert pointed("| [![Colab](https://c.org/b.svg)](https://c.org/x) |") == "| [Colab](https://c.org/x) |"


@pytest.mark.parametrize("lesson", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_lesson_has_buttons_to_open_and_to_download_it(site, lesson):
    buttons = re.findall(r'<a class="button" href="([^"]+)"( download)?>([^<]+)</a>', page(site, lesson))
    assert [name for _, _, name in buttons if name == "Open in Colab"] == ["Open in Colab"]
    assert (lesson.name, " download", "Download") in buttons
    assert (site / "notebooks" / lesson.name).read_bytes() == lesson.read_bytes()


def test_the_front_page_has_a_card_with_a_picture_for_each_lesson(site):
    text = (site / "index.html").read_text(encoding="utf-8")
    cards = re.findall(r'<li class="lesson" data-lesson="([^"]+)">.*?src="([^"]+)" alt="([^"]+)"', text, re.DOTALL)
    assert [lesson for lesson, _, _ in cards] == [path.stem for path in NOTEBOOKS]
    assert all((site / picture).is_file() for _, picture, _ in cards)
    assert text.count("download>") == text.count(">Colab<span") == len(NOTEBOOKS)


def test_the_front_page_says_where_to_get_the_course(site):
    told = words((site / "index.html").read_text(encoding="utf-8"))
    assert f"git clone {build_site.REPOSITORY} && cd {build_site.NAME} " in told


def test_links_to_the_playground_lead_to_the_one_of_the_same_site(tmp_path):
    site, playground = tmp_path / "html", tmp_path / "playground"
    for folder in (site / "notebooks", playground):
        folder.mkdir(parents=True)
    (playground / "index.html").write_text('<a href="../index.html">course</a>')
    (site / "index.html").write_text(f'<a href="{build_site.PLAYGROUND}">play</a>')
    (site / "notebooks" / "00.html").write_text(f'<a class="external" href="{build_site.PLAYGROUND}">play</a>')
    build_site.add_playground(playground, site)
    assert (site / "index.html").read_text() == '<a href="playground/index.html">play</a>'
    assert 'href="../playground/index.html"' in (site / "notebooks" / "00.html").read_text()
    assert build_site.find_problems(site) == []


def test_problems_of_pages_are_found(tmp_path):
    (tmp_path / "a.html").write_text('<a href="b.html#here">x</a><a href="b.html#gone">x</a><a href="c.html">x</a>')
    (tmp_path / "b.html").write_text('<p id="here"><img src="a.html"><img src="a.html" alt="a page">')
    problems = ["a.html: b.html#gone leads nowhere", "a.html: c.html leads nowhere"]
    assert sorted(build_site.find_problems(tmp_path)) == [*problems, "b.html: no alternative text for a.html"]


# --- library and bibliography ----------------------------------------------------------------------------------------


def test_every_public_function_and_class_is_in_the_reference(site):
    missing = []
    table = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")
    for module in re.findall(r"^\| `([\w.]+)` \|", table, re.MULTILINE):
        file = (REPOSITORY / "fgnet_lib" / module.replace(".", "/")).with_suffix(".py")
        if not file.exists():
            continue  # a package
        anchors = build_site.Page(site / "api" / f"{module}.html").anchors
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                missing += [name for name in [f"fgnet_lib.{module}.{node.name}"] if name not in anchors]
    assert missing == []


def test_every_reference_is_in_the_bibliography(site):
    bibliography = (REPOSITORY / "docs" / "learn" / "references.bib").read_text(encoding="utf-8")
    entries = re.findall(r"^@\w+\{([^,]+),", bibliography, re.M)
    text = (site / "bibliography.html").read_text(encoding="utf-8")
    assert len(re.findall(r'<div class="citation"', text)) == len(entries) > 0


# --- make site -------------------------------------------------------------------------------------------------------


def test_what_has_not_been_run_as_it_is_now_is_named(tmp_path):
    parameters = lesson_parameters("phantom", "fast")
    names = [notebook.stem for notebook in NOTEBOOKS]
    assert build_site.find_outdated(tmp_path, parameters) == names
    keys = [sources_key(notebook, parameters) for notebook in NOTEBOOKS]
    lessons = [vars(Lesson(name, "done", 1.0, 1.0, key)) for name, key in zip(names, keys, strict=True)]
    lessons[1]["key"] = "of an earlier version"
    (tmp_path / "run.json").write_text(json.dumps({"lessons": lessons}))
    assert build_site.find_outdated(tmp_path, parameters) == [names[1]]


def test_make_site_says_what_to_run_first(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(build_site, "TUTORIALS", tmp_path)
    monkeypatch.setattr("sys.argv", ["build_site.py", "--dataset", "fib25", "--profile", "cpu"])
    assert build_site.main() == 1
    assert "make tutorial DATASET=fib25 PROFILE=cpu" in capsys.readouterr().out


# --- in a browser ----------------------------------------------------------------------------------------------------


@pytest.fixture
def address(site):
    """Where a web server shows the site."""
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=site)) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("width", [1280, 390])
def test_pages_fit_the_screen_and_the_search_finds_a_term(address, width):
    with open_browser(width, 900) as (page, watch):
        for path in PAGES:
            page.goto(f"{address}/{path}")
            page.evaluate(UNFOLD)
            assert page.evaluate("document.documentElement.scrollWidth") <= width, f"{path} is wider than the screen"
        page.goto(f"{address}/search.html?q=agglomeration")
        page.locator("ul.search a[href*='docs/learn/glossary.html']").first.wait_for()
        assert (watch.problems, watch.outside) == ([], [])


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_pages_have_no_serious_barrier_and_follow_the_system_at_the_first_visit(address, width, scheme):
    with open_browser(width, 900) as (page, _):
        page.emulate_media(color_scheme=scheme)
        barriers = []
        for number, path in enumerate(PAGES):
            page.goto(f"{address}/{path}")
            page.screenshot(path=SCREENSHOTS / f"site-{width}-{scheme}-{number}.png")
            assert page.locator("html").get_attribute("data-theme") == scheme
            page.evaluate(UNFOLD)
            barriers += [(path, *barrier) for barrier in find_barriers(page)]
        assert barriers == []


def test_a_finished_lesson_is_marked_on_the_front_page_and_stays_so(address):
    with open_browser(1280, 900) as (page, watch):
        page.goto(f"{address}/notebooks/{NOTEBOOKS[0].stem}.html")
        page.get_by_label("I have finished this lesson").check()
        page.goto(f"{address}/index.html")
        assert page.locator("#progress").inner_text().startswith(f"You have finished 1 of {len(NOTEBOOKS)} lessons.")
        assert page.locator("#progress a").get_attribute("href").endswith(f"/notebooks/{NOTEBOOKS[1].stem}.html")
        assert page.locator("li.lesson.finished").count() == 1
        page.goto(f"{address}/notebooks/{NOTEBOOKS[0].stem}.html")
        page.get_by_label("I have finished this lesson").uncheck()
        page.goto(f"{address}/index.html")
        assert page.locator("li.lesson.finished").count() == 0 and watch.problems == []


def test_a_click_or_a_key_enlarges_a_figure(address):
    with open_browser(1280, 900) as (page, watch):
        page.goto(f"{address}/index.html")
        page.locator("a.figure").first.click()
        box = page.locator("dialog.enlarged img").bounding_box()
        assert box["width"] > page.locator("a.figure img").first.bounding_box()["width"]
        page.keyboard.press("Escape")
        assert not page.locator("dialog.enlarged").is_visible()
        page.locator("a.figure").first.focus()
        page.keyboard.press("Enter")
        assert page.locator("dialog.enlarged").is_visible() and watch.problems == []


def test_panels_side_by_side_are_stacked_on_a_phone_with_their_colour_bars(site, address):
    panels = np.full((200, 900), 255, np.uint8)
    for start, end in ((4, 290), (297, 560), (570, 590), (597, 896)):  # the third is a bar; gaps as lessons have them
        panels[10:190, start:end] = 90
    folder = site / "panels"
    folder.mkdir()
    Image.fromarray(panels).save(folder / "panels.png")
    (folder / "index.html").write_text(
        '<!doctype html><meta name="viewport" content="width=device-width"><link rel="stylesheet" '
        'href="../_static/site.css"><div class="cell_output"><img src="panels.png" alt="three"></div>'
        '<script src="../_static/site.js"></script>'
    )
    for width, count in ((390, 3), (1280, 0)):
        with open_browser(width, 900) as (page, _):
            page.goto(f"{address}/panels/")
            parts = page.locator(".stacked > span")
            if count:
                wait_until(page, lambda parts=parts: parts.count() > 0, "panels stay side by side")
            else:
                page.wait_for_timeout(1000)  # for what does not come
            assert parts.count() == count
            if count:
                tops = [part.bounding_box()["y"] for part in parts.all()]
                assert tops == sorted(set(tops)) and parts.first.bounding_box()["width"] > 340
                shapes = [part.evaluate("part => part.style.aspectRatio") for part in parts.all()]
                assert shapes == ["294 / 200", "300 / 200", "306 / 200"]
