"""The glossary's words are taught where it says, and the bibliography has every paper that is cited."""

from __future__ import annotations

import re

import pytest

from fgnet_lib import REPOSITORY

SOURCES = {path.stem[:2]: path.read_text("utf-8").lower() for path in (REPOSITORY / "notebooks" / "src").glob("*.py")}
LESSONS = {lesson: text.replace("\n# ", " ") for lesson, text in SOURCES.items()}  # terms run over ends of lines
GLOSSARY = (REPOSITORY / "docs" / "learn" / "glossary.md").read_text("utf-8")
BLOCKS = re.findall(r"```\{glossary\}\n(.*?)\n```", GLOSSARY, re.DOTALL)
ENTRIES = [entry for block in BLOCKS for entry in re.split(r"\n\n(?=\S)", block)]
BIBLIOGRAPHY = (REPOSITORY / "docs" / "learn" / "references.bib").read_text("utf-8")
PAGES = [
    *(REPOSITORY / "notebooks" / "src").glob("*.py"),
    *(REPOSITORY / "fgnet_lib").rglob("*.py"),
    *(REPOSITORY / "docs").rglob("*.md"),
    *(REPOSITORY / "data").rglob("*.md"),
    REPOSITORY / "README.md",
]
IDENTIFIER = re.compile(
    r"(10\.\d{4,}/[\w./-]*\w)|(?:arxiv[: ]|arxiv.org/abs/|eprint += \{)(\d{4}\.\d{5})"
)  # or an arXiv number


def parts(entry: str) -> tuple[list[str], str]:
    """The terms of an entry, one a line, and the indented text below them."""
    lines = entry.splitlines()
    terms = [line for line in lines if not line.startswith(" ")]
    return terms, " ".join(line.strip() for line in lines[len(terms) :])


def stem(term: str) -> str:
    """So much of a term that it is found in other forms of the word, too."""
    word = re.sub(r" \(.*\)$", "", term).lower()
    return word[: max(4, len(word) - 4)]


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.splitlines()[0])
def test_a_term_is_defined_shortly_and_taught_where_it_says(entry):
    terms, text = parts(entry)
    assert 1 <= len(terms) <= 2 and 1 <= len(re.findall(r"[.!?)](?= |$)", text)) <= 5
    reference = re.search(r"(?:Lessons? ([\d, ]+)|See (\S+))\.$", text)
    assert reference, "an entry ends with its lessons: 'Lessons 01, 05.'"
    if reference[2]:
        assert any(stem(term) in (REPOSITORY / reference[2]).read_text("utf-8").lower() for term in terms)
    for lesson in re.findall(r"\d\d", reference[1] or ""):
        assert any(stem(term) in LESSONS[lesson] for term in terms), f"lesson {lesson} does not speak of {terms}"


def test_no_term_is_defined_twice():
    terms = [term.lower() for entry in ENTRIES for term in parts(entry)[0]]
    assert len(terms) == len(set(terms)) > 50


def identifiers(text: str) -> set[str]:
    return {doi or number for doi, number in IDENTIFIER.findall(text.lower())}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_what_a_page_cites_is_in_the_bibliography(page):
    missing = identifiers(page.read_text("utf-8")) - identifiers(BIBLIOGRAPHY)
    assert not missing, f"{sorted(missing)} are cited in {page.name} and missing in docs/learn/references.bib"


def test_an_entry_of_the_bibliography_says_who_what_and_where():
    entries = re.findall(r"^@(\w+)\{(\w+),\n(.*?)\n\}", BIBLIOGRAPHY, re.MULTILINE | re.DOTALL)
    assert len(entries) == BIBLIOGRAPHY.count("\n@") > 20
    assert len({key for _, key, _ in entries}) == len(entries)
    for kind, key, body in entries:
        fields = set(re.findall(r"^  (\w+) +=", body, re.MULTILINE))
        assert {"title"} | ({"author", "year"} if kind != "misc" else set()) <= fields, key
        assert {"doi", "eprint", "url", "booktitle", "journal"} & fields, key


@pytest.mark.parametrize("entry", re.findall(r"^@.*?^\}", BIBLIOGRAPHY, re.MULTILINE | re.DOTALL))
def test_an_entry_has_the_fields_that_the_site_asks_for(entry):
    """Or the site's build stops, minutes into the whole suite."""
    kind, fields = re.match(r"@(\w+)", entry)[1], set(re.findall(r"^ +(\w+) +=", entry, re.MULTILINE))
    where = {"article": "journal", "inproceedings": "booktitle", "book": "publisher"}
    assert {"title"} | ({"author", "year", where[kind]} if kind != "misc" else set()) <= fields
