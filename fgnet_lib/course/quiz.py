"""Predictions: before a key figure the reader commits to an answer, and then sees the right one and the reason.

It needs core widgets only. Where no kernel runs (a page of an executed lesson, GitHub) the same question appears as
HTML, with the answer folded away. The questions of lesson NN are in `data/quizzes/NN.toml`, so that no cell gives the
answer away::

    [name]
    question = "One sentence that ends with a question mark?"
    options = ["short", "one line each", "two to four"]
    right = "B"
    reason = "Why, also for readers who were right by chance."
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from html import escape

import ipywidgets as widgets
from IPython.display import display

from fgnet_lib import REPOSITORY

QUIZZES = REPOSITORY / "data" / "quizzes"
LETTERS = "ABCD"


@dataclass(frozen=True)
class Quiz:
    """A question with two to four options.

    Attributes:
        question: plain text.
        options: plain text, one line each.
        right: the letter of the right option.
        reason: plain text, shown after the reader has committed.
    """

    question: str
    options: list[str]
    right: str
    reason: str

    def __post_init__(self) -> None:
        if not (2 <= len(self.options) <= 4 and self.right in list(LETTERS[: len(self.options)])):
            raise ValueError(f"right is {self.right!r}, and there are {len(self.options)} options: {self.question}")

    def answer(self, choice: str | None = None) -> str:
        """Return HTML of the right option and the reason, as an answer to the reader's choice (a letter, or None)."""
        right = f"{self.right}: {escape(self.options[LETTERS.index(self.right)])}"
        verdicts = {None: f"<b>{right}.</b>", self.right: f"<b>✔ Yes, {right}.</b>"}
        verdict = verdicts.get(choice, f"<b>✘ You said {choice}; it is {right}.</b>")
        return f"{verdict} {escape(self.reason)}"

    def label_options(self) -> list[str]:
        """Return the options as readers see them, "A: along z"."""
        return [f"{letter}: {option}" for letter, option in zip(LETTERS, self.options, strict=False)]

    def page(self) -> str:
        """Return the question and its folded answer as HTML for readers without a kernel."""
        options = "<br/>".join(map(escape, self.label_options()))  # no list: some pages number it themselves
        return f"<p><b>Predict.</b> {escape(self.question)}</p><p>{options}</p>{self.fold_answer('The answer')}"

    def fold_answer(self, summary: str) -> str:
        """Return HTML of the answer, folded behind a line that opens it."""
        return f"<details><summary>{summary}</summary>{self.answer()}</details>"


def load_quiz(lesson: str, name: str) -> Quiz:
    """Return the question `name` of a lesson (two digits).

    Raises:
        KeyError: the lesson has no such question.
    """
    with (QUIZZES / f"{lesson}.toml").open("rb") as file:
        quizzes = tomllib.load(file)
    if name not in quizzes:
        raise KeyError(f"lesson {lesson} has no question {name!r}: it has {', '.join(quizzes)}")
    return Quiz(**quizzes[name])


def build_form(quiz: Quiz) -> widgets.VBox:
    """Return a form of the question, its options, a button to commit, and below them the answer once committed."""
    wide = widgets.Layout(width="auto")
    labels = list(zip(quiz.label_options(), LETTERS, strict=False))
    choice = widgets.RadioButtons(options=labels, value=None, layout=wide)
    commit = widgets.Button(description="commit", disabled=True, tooltip="Choose first; you cannot change it later")
    below = widgets.HTML(quiz.fold_answer("No kernel? The answer"), layout=wide)

    def allow_commit(_change: dict[str, object]) -> None:
        commit.disabled = False

    def show_answer(_button: widgets.Button) -> None:
        choice.disabled = commit.disabled = True
        below.value = quiz.answer(choice.value)

    choice.observe(allow_commit, "value")
    commit.on_click(show_answer)
    return widgets.VBox([widgets.HTML(f"<b>Predict.</b> {escape(quiz.question)}", layout=wide), choice, commit, below])


def ask(lesson: str, name: str) -> None:
    """Show a question of a lesson (two digits), to be answered before reading on: `ask("01", "most-changes")`."""
    quiz = load_quiz(lesson, name)
    view = {"version_major": 2, "version_minor": 0, "model_id": build_form(quiz).model_id}
    display(
        {
            "text/plain": quiz.question,
            "text/html": quiz.page(),
            "application/vnd.jupyter.widget-view+json": view,  # shown instead of the others where a kernel runs
        },
        raw=True,
    )
