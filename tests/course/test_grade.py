"""A returned notebook gets the points of its answers, and of nothing else."""

from __future__ import annotations

import subprocess
import sys

import build_notebooks
import grade
import nbformat
import pytest
from helpers.grading import LESSON, SOLUTION, STUB, affinities_alone, returned, row

pytestmark = pytest.mark.slow  # starts a process for each answer


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (SOLUTION, "2/2  passed"),
        (STUB, "0/2  open"),
        (SOLUTION.replace(" & (ids[1:] > 0)", ""), "0/2  wrong    You join voxels of label 0"),
        ("print('✔ 1.1 the affinity target: passed')", "0/2  missing  No cell defines my_affinities"),
        (STUB + "\n\nprint('passed')\nchecks.affinities = lambda answer: print('passed')", "0/2  open"),
        ("1 / 0\n\n" + SOLUTION, "0/2  wrong    The cell stops with ZeroDivisionError"),
        ("def my_affinities(labels:", "0/2  wrong    The cell stops with SyntaxError"),
        ("my_affinities = volume.raw", "0/2  wrong    name 'volume' is not defined. An answer may use what"),
        (SOLUTION.replace("return affinities", "raise SystemExit"), "0/2  wrong    Your code stopped with SystemExit"),
        (SOLUTION.replace("np.zeros", "helper"), "0/2  wrong    Your code stopped with NameError: name 'helper'"),
        (SOLUTION + "\n\nmy_affinities(volume.labels)", "2/2  passed"),
        (SOLUTION + "\n\nmy_affinities(7)\nchecks.affinities(my_affinities)", "2/2  passed"),
        ("crop = volume.labels[:8]\n\n" + SOLUTION, "2/2  passed"),
        ("%%time\n" + SOLUTION + "\n!ls\nmy_affinities?", "2/2  passed"),
        ("display(7)\n\n" + SOLUTION + "\ndisplay(my_affinities)", "2/2  passed"),
        (SOLUTION.replace("    return", "    display(labels)\n    return"), "2/2  passed"),
        ("%matplotlib nonsense\n%no_such_magic\n\n" + SOLUTION, "2/2  passed"),
        ("files = !ls\n\n" + SOLUTION, "2/2  passed"),
        (SOLUTION.replace("my_", "the_") + "\n%time my_affinities = the_affinities", "2/2  passed"),
        ("import asyncio\nawait asyncio.sleep(0)\n\n" + SOLUTION, "2/2  passed"),
        ("import gc\n\n" + SOLUTION, "0/2  wrong    The cell imports gc"),
        (
            "from fgnet_lib.course import checks\n\n" + SOLUTION,
            "0/2  wrong    The cell imports fgnet_lib.course.checks,",
        ),
        (
            "def my_affinities(labels):\n    import fgnet_lib.course.checks.exercise as E",
            "0/2  wrong    The cell imports fgnet_lib.course.checks.exercise",
        ),
    ],
)
def test_points_are_for_right_answers_only(tmp_path, monkeypatch, answer, expected):
    affinities_alone(monkeypatch)
    result = grade.grade(returned(tmp_path, answer=answer))
    assert row(result).startswith(expected) and result.code == 0
    assert str(result).startswith(f"returned.ipynb: {expected[0]} of 2 points")


def test_an_edited_check_counts_for_nothing(tmp_path, monkeypatch):
    affinities_alone(monkeypatch)
    result = grade.grade(returned(tmp_path, check="my_affinities = 7\nprint('1.1 the affinity target: passed')"))
    assert row(result).startswith("0/2  wrong    A function is wanted, not int")


@pytest.mark.parametrize(
    ("answer", "below", "expected"),
    [
        (SOLUTION.replace("np.", "numbers."), "import numpy as numbers", "2/2  passed"),
        (SOLUTION.replace("np.zeros", "helper"), "def helper(*args):\n    return np.zeros(*args)", "2/2  passed"),
        (SOLUTION.replace("(3, ", "(AXES, "), "AXES = 3", "2/2  passed"),
        (SOLUTION.replace("(3, ", "(AXES, "), "AXES: int = 2**2 - 1", "2/2  passed"),
        (SOLUTION.replace("np.zeros", "helper"), "helper = lambda *args: np.zeros(*args)", "2/2  passed"),
        (SOLUTION.replace("(3, ", "(AXES, "), "AXES = len('abc')", "0/2  wrong    Your code stopped with NameError"),
        ("1 / 0\n\n" + SOLUTION, STUB, "0/2  wrong    The cell stops with ZeroDivisionError"),
        (SOLUTION, "my_affinities = my_affinities(volume.labels)", "2/2  passed"),  # a trial
        (SOLUTION, STUB, "2/2  passed"),
        (STUB, SOLUTION, "2/2  passed"),
        (STUB, "my_affinities = lambda labels: 7", "0/2  wrong    The result has the shape ()"),
    ],
)
def test_of_several_cells_the_answer_is_graded(tmp_path, monkeypatch, answer, below, expected):
    affinities_alone(monkeypatch)
    result = grade.grade(returned(tmp_path, answer=answer, below=below))
    assert row(result).startswith(expected)


@pytest.mark.parametrize(
    ("line", "seconds", "expected"),
    [
        ("while True: pass", 2, "0/2  stopped  Not done within the time limit of 2 s"),
        ("import os; os._exit(3)", 60, "0/2  stopped  The answer ended its own process (exit code 3)"),
    ],
)
def test_an_answer_that_is_stopped_is_named(tmp_path, monkeypatch, line, seconds, expected):
    affinities_alone(monkeypatch)
    result = grade.grade(returned(tmp_path, answer=f"{SOLUTION}\n{line}"), seconds=seconds)
    assert row(result).startswith(expected) and result.code == 1


def test_a_cell_that_raises_does_not_cost_the_others(tmp_path):
    solved = nbformat.read(build_notebooks.ROOT / "notebooks" / "solutions" / f"{LESSON}.ipynb", as_version=4)
    for cell in solved.cells:
        if cell.source == SOLUTION:
            cell.source = "1 / 0\n\n" + cell.source
    nbformat.write(solved, tmp_path / "x.ipynb")
    rows = grade.grade(tmp_path / "x.ipynb").rows
    assert "ZeroDivisionError" in rows[0] and len(rows) > 1 and all("passed" in row for row in rows[1:])


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "is no file"),
        ("my answers", "is no notebook"),
        ("[1, 2]", "is no notebook"),
        ('{"cells": [{"a": 1}], "nbformat": 4, "nbformat_minor": 5, "metadata": {}}', "no 'cell_type' in it"),
        ('{"cells": [{"source": "x"}]}', "is no notebook: no 'cell_type' in it"),
        ('{"cells": [{"cell_type": "code", "source": 7}]}', "is no notebook: the source of a cell is of type int"),
        ('{"cells": [{"cell_type": "code", "source": [7]}]}', "is no notebook"),
        ('{"cells": [7]}', "is no notebook"),
        ('{"cells": 7}', "is no notebook"),
        ("[" * 100_000, "is no notebook"),
        ('{"cells": ' + "[" * 100_000, "is no notebook"),
        ('{"cells": [], "nbformat": 4, "nbformat_minor": 5, "metadata": {}}', "is empty"),
        (nbformat.writes(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1")])), "no lesson's title is in"),
    ],
)
def test_what_is_no_lesson_is_refused(tmp_path, content, complaint):
    path = tmp_path / "x.ipynb"
    if content is not None:
        path.write_text(content)
    result = grade.grade(path)
    assert complaint in result.refused and result.code == 2


@pytest.mark.parametrize(
    ("title", "complaint"), [("# 98 · New: moon", "98 has no exercises"), ("# 01 · EM: x", "asked")]
)
def test_another_lesson_is_refused(tmp_path, title, complaint):
    cells = [nbformat.v4.new_markdown_cell(title)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "x.ipynb")
    assert complaint in grade.grade(tmp_path / "x.ipynb", wanted="98").refused


def test_the_command_says_what_cannot_be_graded(tmp_path):
    (tmp_path / "x.ipynb").write_text("my answers")
    command = [sys.executable, grade.__file__, str(tmp_path / "x.ipynb")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 2 and result.stderr.startswith("NOT GRADED: ") and result.stdout == ""
