"""The pages that a newcomer opens first stay short, name files that exist, and lead to all others."""

from __future__ import annotations

import re

import pytest
from build_notebooks import SOURCES, fits_binder, lesson_table

from fgnet_lib import REPOSITORY

DOCS = REPOSITORY / "docs"
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
LESSONS = sorted(SOURCES.glob("[0-9][0-9]_*.py"))


@pytest.mark.parametrize(
    ("page", "lines"), [("README.md", 130), ("docs/architecture.md", 150), ("docs/results.md", 150)]
)
def test_a_page_is_short(page, lines):
    assert len((REPOSITORY / page).read_text(encoding="utf-8").splitlines()) <= lines


def test_a_decision_takes_three_lines_at_most_and_all_of_them_1500_words():
    text = (DOCS / "decisions.md").read_text(encoding="utf-8")
    assert len(text.split()) <= 1500
    decisions = re.findall(r"^- (?:.+\n?)(?:  .+\n?)*", text, re.MULTILINE)
    assert len(decisions) > 50
    assert [decision for decision in decisions if len(decision.splitlines()) > 3] == []


def test_the_index_has_one_line_for_each_page():
    lines = re.findall(r"^- \[(.+?)\]\((.+?)\): .+$", (DOCS / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    pages = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")} - {"README.md"}
    assert sorted(target for title, target in lines if title == target and target.endswith(".md")) == sorted(pages)


def test_each_question_of_a_newcomer_is_answered_by_files_that_exist():
    part = (DOCS / "architecture.md").read_text(encoding="utf-8").split("## ")[1]
    answers = re.findall(r"^\| (.+\?) \| (.+) \|$", part, re.MULTILINE)
    assert len(answers) == 5
    for question, answer in answers:
        files = re.findall(r"`([\w./]+/[\w./]+\.\w+|\.ci/run)`", answer)
        assert 1 <= len(files) <= 2, question
        for file in files:
            assert any(REPOSITORY.glob(file.replace("NN_name", "[0-9]*").replace("NN", "[0-9]*"))), file


def test_each_lesson_has_one_badge_and_a_line_below_links_to_the_rest():
    *rows, elsewhere = lesson_table(LESSONS).split("\n\n")
    assert all(row.count("[![") == 1 for row in rows[0].splitlines()[2:])
    kaggle, binder = elsewhere.split("On Binder")
    assert re.findall(r"\[(\d\d)\]", kaggle) == [lesson.stem[:2] for lesson in LESSONS]
    assert re.findall(r"\[(\d\d)\]", binder) == [lesson.stem[:2] for lesson in LESSONS if fits_binder(lesson.stem)]


def test_the_commands_of_the_readme_are_real():
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    variables = set(re.findall(r"^(\w+) \?=", makefile, re.MULTILINE))
    assert set(re.findall(r"`(?:make \w+ )?([A-Z]+)=", README)) <= variables
    commands = "".join(re.findall(r"```\n(.*?)```", README, re.DOTALL))
    assert set(re.findall(r"^make (\w+)", commands, re.MULTILINE)) <= set(
        re.findall(r"^(\w+):", makefile, re.MULTILINE)
    )
    lesson = (SOURCES / "08_your_own_volume.py").read_text(encoding="utf-8")
    settings = re.findall(r"-p (\w+) ", commands)
    assert settings and all(re.search(rf"^{name} = ", lesson, re.MULTILINE) for name in settings)
    assert re.search(r"^--extra-index-url ", (REPOSITORY / "binder/requirements.txt").read_text(), re.MULTILINE)
