"""Sphinx's settings for the site of the course. `tools/course/build_site.py` gathers the pages and
calls it (`make site`).
"""

from __future__ import annotations

import re
from pathlib import Path

from docutils import nodes
from docutils.utils.math import MathError, latex2mathml
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util import logging
from sphinx.util.nodes import make_refnode
from sphinx.writers.html5 import HTML5Translator

project, author = "FGNet Tutorials", "the FGNet Tutorials developers"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinxcontrib.bibtex"]

# Lessons: shown as they were executed, never run here
nb_execution_mode = "off"
nb_merge_streams = True
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
bibtex_bibfiles = ["../docs/learn/references.bib"]  # beside the pages, not among the gathered ones

# The library, from its docstrings
default_role = "py:obj"  # `Volume` in a docstring is a link where it names something of the library
add_module_names = False
python_use_unqualified_type_names = True
maximum_signature_line_length = 80
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_use_ivar = True

# Nothing is fetched from elsewhere: no fonts, no scripts
html_theme = "sphinx_book_theme"
html_title = project
html_static_path = ["static"]
html_favicon = "static/icon.svg"
html_css_files = ["site.css"]
html_js_files = ["site.js"]
html_math_renderer = "mathml"
html_copy_source = False
html_show_copyright = False
html_context = {"default_mode": "auto"}  # as the reader's system; figures keep their white ground
html_theme_options = {"use_download_button": False, "show_toc_level": 2, "navbar_persistent": []}

GLOSSARY = Path(__file__).resolve().parents[1] / "docs" / "learn" / "glossary.md"
NO_PROSE = (nodes.title, nodes.literal, nodes.reference, pending_xref, nodes.math, nodes.raw)


class GlossaryLinks(SphinxPostTransform):
    """In a lesson, the first mention of each term of the glossary becomes a link to it.

    A term in parentheses, "layer (of the viewer)", means something else elsewhere: linked only where it is taught.
    """

    default_priority = 5  # before references are resolved

    def run(self, **kwargs: object) -> None:
        if not self.env.docname.startswith("notebooks/"):
            return
        taught, number = lessons_of_terms(GLOSSARY.read_text(encoding="utf-8")), self.env.docname.split("/")[1][:2]
        terms = {
            name: (page, anchor)
            for name, _, kind, page, anchor, _ in self.env.domains.standard_domain.get_objects()
            if kind == "term" and (bare(name) == name or number in taught[name])
        }
        pattern = mentions([bare(term) for term in terms])
        for element in list(self.document.findall(nodes.TextElement)):
            join_texts(element)
        for text in list(self.document.findall(nodes.Text)):
            if terms and in_prose(text):
                text.parent.replace(text, self.link(text, pattern, terms))

    def link(self, text: nodes.Text, pattern: re.Pattern[str], terms: dict[str, tuple[str, str]]) -> list[nodes.Node]:
        """The text in pieces, those that mention a term of `terms` as links; takes these terms out of `terms`."""
        pieces, end = [], 0
        names = {bare(name).lower(): name for name in terms}
        for match in pattern.finditer(text):
            name = next((names[form] for form in singulars(match[0]) if form in names), None)
            if name not in terms:
                continue
            page, anchor = terms.pop(name)
            word = nodes.inline(match[0], match[0])
            link = make_refnode(self.app.builder, self.env.docname, page, anchor, word, f"Glossary: {name}")
            link["classes"].append("term")
            pieces += [nodes.Text(text[end : match.start()]), link]
            end = match.end()
        return [*pieces, nodes.Text(text[end:])]


class FoldFurther(SphinxPostTransform):
    """Folds the sections of lessons whose heading says that they go further than the path of 90 minutes."""

    default_priority = 900  # when the links to glossary terms are made
    formats = ("html",)

    def run(self) -> None:
        for section in self.document.findall(nodes.section):
            if re.match(r"(\d+ · )?Further: ", section[0].astext()):
                opening = '<details class="further"><summary>Show this part</summary>'
                section.insert(1, nodes.raw("", opening, format="html"))
                section.append(nodes.raw("", "</details>", format="html"))


def join_texts(element: nodes.TextElement) -> None:
    """Lines of a paragraph become one text, so that a term is found across the end of a line."""
    joined = []
    for child in element.children:
        if joined and isinstance(child, nodes.Text) and isinstance(joined[-1], nodes.Text):
            joined[-1] = nodes.Text(joined[-1] + child)
        else:
            joined.append(child)
    element.clear()
    element.extend(joined)


def in_prose(text: nodes.Text) -> bool:
    """Whether a text belongs to a paragraph, and is no code, formula, link or reference to a paper."""
    around, node = [], text.parent
    while node is not None:
        around.append(node)
        node = node.parent
    return any(isinstance(node, nodes.paragraph) for node in around) and not any(
        isinstance(node, NO_PROSE) or isinstance(node, nodes.section) and node[0].astext() == "References"
        for node in around
    )


def lessons_of_terms(glossary: str) -> dict[str, list[str]]:
    """For each term of the glossary's text the numbers of the lessons that its entry names at the end."""
    entries = re.findall(r"((?:^[^\s`].*\n)+)((?:^  \S.*\n)+)", glossary, re.MULTILINE)
    numbers = {names: re.search(r"Lessons? ([\d,\s]+)\.$", text.strip()) for names, text in entries}
    return {
        name: re.findall(r"\d\d", match[1]) for names, match in numbers.items() if match for name in names.splitlines()
    }


def bare(term: str) -> str:
    """A term as the prose has it: "seed" for "seed (of a watershed)"."""
    return re.sub(r" \(.*\)$", "", term)


def mentions(terms: list[str]) -> re.Pattern[str]:
    """Finds terms as whole words, in the plural too, longer ones first; abbreviations only in capitals."""
    forms = []
    for term in sorted(terms, key=len, reverse=True):
        form = r"\s+".join(map(re.escape, term.split())).replace("'", "['\u2019]")  # Sphinx bends apostrophes
        form = f"{form[:-1]}(?:y|ies)" if term.endswith("y") else f"{form}(?:e?s)?"
        forms.append(form if term == term.upper() else f"(?i:{form})")
    return re.compile(rf"(?<![\w-])(?:{'|'.join(forms)})(?![\w-])")


def singulars(mention: str) -> list[str]:
    """What a mention may be in the glossary, in lower case, itself first."""
    word = " ".join(mention.lower().replace("\u2019", "'").split())
    return [word, re.sub("ies$", "y", word), word.removesuffix("s"), word.removesuffix("es")]


def visit_math(translator: HTML5Translator, node: nodes.math | nodes.math_block) -> None:
    """Write a formula as MathML, which browsers draw without a script."""
    tex = re.sub(r"\\[bB]igg?(?![a-zA-Z])", "", node.astext())  # docutils has only \bigl, \bigr; brackets grow anyway
    try:
        formula = latex2mathml.tex2mathml(tex, as_block=isinstance(node, nodes.math_block))
    except MathError as error:
        logging.getLogger(__name__).warning("%s in the formula %s", error, node.astext(), location=node)
        formula = ""
    translator.body.append(f'<div class="math">{formula}</div>' if isinstance(node, nodes.math_block) else formula)
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.add_post_transform(GlossaryLinks)
    app.add_post_transform(FoldFurther)
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math, None))
