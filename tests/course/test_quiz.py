"""A prediction is answered after the reader has committed, and reads well without a kernel."""

from __future__ import annotations

import re
import tomllib

import build_notebooks
import ipywidgets as widgets
import nbformat
import pytest
import run_tutorial
from nbclient import NotebookClient

from fgnet_lib.course import quiz
from fgnet_lib.course.quiz import QUIZZES, Quiz

TWO = Quiz("Is 1 < 2?", ["yes", "no & never"], "A", "Count: 1 & then 2.")
FILES = sorted(QUIZZES.glob("*.toml"))


def parts(box: widgets.VBox) -> tuple[widgets.RadioButtons, widgets.Button, widgets.HTML]:
    return box.children[1], box.children[2], box.children[3]


def test_the_answer_depends_on_the_choice():
    assert TWO.answer("A") == "<b>✔ Yes, A: yes.</b> Count: 1 &amp; then 2."
    assert TWO.answer("B") == "<b>✘ You said B; it is A: yes.</b> Count: 1 &amp; then 2."


def test_a_page_has_question_options_and_the_folded_answer():
    page = TWO.page()
    assert "Is 1 &lt; 2?" in page and "<p>A: yes<br/>B: no &amp; never</p>" in page
    assert re.search("<details>.*<b>A: yes.</b> Count: 1 &amp; then 2.*</details>", page)


@pytest.mark.parametrize(
    ("options", "right"), [(["one"], "A"), (["a", "b"], "C"), (["a", "b"], ""), (list("abcde"), "A")]
)
def test_an_answer_that_is_no_option_is_refused(options, right):
    with pytest.raises(ValueError, match="right is"):
        Quiz("Which?", options, right, "Because.")


def test_a_reader_chooses_commits_and_cannot_change_it():
    choice, commit, below = parts(quiz.build_form(TWO))
    assert choice.value is None and commit.disabled and "<details>" in below.value
    choice.value = "B"
    assert not commit.disabled and "You said" not in below.value
    commit.click()
    assert choice.disabled and commit.disabled
    assert below.value == TWO.answer("B")


def test_an_unknown_question_is_refused():
    with pytest.raises(KeyError, match="lesson 01 has no question 'moon'"):
        quiz.load_quiz("01", "moon")


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_question_is_asked_once_in_its_lesson(file):
    quizzes = {name: Quiz(**entry) for name, entry in tomllib.loads(file.read_text(encoding="utf-8")).items()}
    assert 2 <= len(quizzes) <= 4
    assert all(entry.question.endswith("?") and entry.reason.endswith(".") for entry in quizzes.values())
    assert max(len(option) for entry in quizzes.values() for option in entry.options) <= 90, "options are one line each"
    (source,) = build_notebooks.SOURCES.glob(f"{file.stem}_*.py")
    asked = re.findall(r'^quiz\.ask\("(\d\d)", "([\w-]+)"\)', source.read_text(encoding="utf-8"), re.MULTILINE)
    assert asked == [(file.stem, name) for name in quizzes]


@pytest.mark.slow
def test_a_page_of_an_executed_notebook_shows_question_and_answer(tmp_path):
    ask = 'from fgnet_lib.course import quiz\nquiz.ask("01", "most-changes")'
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(ask)])
    NotebookClient(notebook, kernel_name="python3", startup_timeout=300, iopub_timeout=60).execute()
    nbformat.write(notebook, tmp_path / "x.ipynb")
    run_tutorial.write_html(tmp_path / "x.ipynb")
    page = (tmp_path / "x.html").read_text(encoding="utf-8")
    assert quiz.load_quiz("01", "most-changes").page() in page
