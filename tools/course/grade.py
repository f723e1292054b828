"""Run the self-checks of a returned notebook and print a score table (`make grade SUBMISSION=x.ipynb`).

Only the answers come from the notebook: the last cells that define the names an exercise asks for. Imports and checks
come from the lesson's source in this repository, so an edited check, or output that says "passed", counts for nothing.
Each answer runs in a process of its own, for a limited time. It is no sandbox: strangers' work belongs in a container.
Because answer and check share a process, a determined cheat can still change the check; only plain ways are refused. An
answer that calls a function of the library passes: read the answers that you grade.

Exit codes: 0 graded, 1 an answer was stopped (by the time limit, or because it ended its process), 2 nothing to grade.
"""

from __future__ import annotations

import argparse
import ast
import multiprocessing
import os
import re
import sys
import tempfile
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import build_notebooks
import nbformat
from exercises import ExerciseCells, read_exercises, read_imports

from fgnet_lib.course.checks import EXERCISES
from fgnet_lib.course.checks.exercise import Outcome

SECONDS = 60.0
ALONE = "An answer may use what the lesson imports and what its own cell defines, nothing else"
MAGIC = re.compile(r"^([ \t]*)(?:[%!?].*|[\w.]+\?+)$", re.MULTILINE)  # IPython's commands and questions for help
REFUSED = ("builtins", "ctypes", "fgnet_lib.course.checks", "gc", "importlib", "inspect", "sys")  # ways to the check
TITLE = re.compile(r"^# (\d\d) · ", re.MULTILINE)


class Unusable(Exception):
    """Raised when there is nothing to grade; the message says why."""


@dataclass(frozen=True)
class Assignment:
    """The part of a lesson that grading needs: the imports that answers may use, and the exercises."""

    imports: str
    exercises: list[ExerciseCells]


def read_submission(path: Path) -> nbformat.NotebookNode:
    """Return the notebook at `path`.

    Raises:
        Unusable: the file is missing or no notebook.
    """
    if not path.is_file():
        raise Unusable(f"{path} is no file: name the returned notebook, as in SUBMISSION=x.ipynb")
    try:
        notebook = nbformat.read(path, as_version=4)
        sources = [cell.source for cell in notebook.cells]  # nothing else is needed
    except (ValueError, AttributeError, nbformat.ValidationError) as error:
        problem = str(error).splitlines()[0][:100]
        raise Unusable(f"{path} is no notebook: {problem}. Ask for the .ipynb file") from error
    if not any(sources):
        raise Unusable(f"{path} is empty")
    return notebook


def read_assignment(submission: nbformat.NotebookNode, wanted: str | None) -> Assignment:
    """Return the assignment of a submission, by the title in it.

    Args:
        submission: the returned notebook.
        wanted: two digits, to refuse a notebook of any other lesson; None to take any.

    Raises:
        Unusable: no lesson's title, the title of another lesson than `wanted`, or a lesson without exercises.
    """
    text = "\n".join(cell.source for cell in submission.cells if cell.cell_type == "markdown")
    title = TITLE.search(text)
    if title is None:
        raise Unusable(
            "no lesson's title is in this notebook ('# 01 · EM volumes: ...'): is it a lesson of this course?"
        )
    number = title[1]
    if wanted and number != wanted:
        raise Unusable(f"this is lesson {number}, but {wanted} was asked for")
    sources = sorted(build_notebooks.SOURCES.glob(f"{number}_*.py"))
    cells = build_notebooks.read_cells(sources[0]) if sources else []
    if not read_exercises(cells):
        raise Unusable(f"lesson {number} has no exercises")
    return Assignment(read_imports(cells), read_exercises(cells))


def find_answer(submission: nbformat.NotebookNode, exercise: ExerciseCells) -> str | None:
    """Return the code of the last cells that define what an exercise asks for; None when a name is nowhere defined.

    A function or class goes before a name that is assigned (often the result of a trial), and both before the stub.
    """
    codes = [cell.source for cell in submission.cells if cell.cell_type == "code"]
    chosen = []
    for name in exercise.answers:
        ways = (rf"^{name}\s*(?::[^=]+)?=[^=]", rf"^(?:def|class)\s+{name}\b")
        ranks = [[re.search(way, code, re.MULTILINE) is not None for way in ways] for code in codes]
        defining = [number for number, rank in enumerate(ranks) if any(rank)]
        if not defining:
            return None
        chosen.append(max(defining, key=lambda at: (codes[at].strip() != exercise.task.strip(), ranks[at][1], at)))
    return "\n\n".join(codes[number] for number in sorted(set(chosen)))


def read_answer(answer: str) -> list[ast.stmt]:
    """Return the statements of an answer, without IPython's commands.

    Raises:
        SyntaxError: the answer is no Python.
    """
    try:
        return ast.parse(answer).body
    except SyntaxError:
        return ast.parse(MAGIC.sub(r"\1pass", answer)).body


def run_answer(statements: list[ast.stmt], wanted: frozenset[str], names: dict[str, Any]) -> None:
    """Run an answer's statements, so that `names` contains `wanted`.

    A trial call below the answer may fail, as may a line that uses what other cells of the notebook define.

    Raises:
        Exception: an error of the answer before all of `wanted` is defined.
    """
    missing = None
    for statement in statements:
        try:
            exec(compile(ast.Module([statement], []), "<answer>", "exec"), names)
        except NameError as error:
            missing = missing or error
        except (Exception, SystemExit):
            if not wanted <= names.keys():
                raise
    if missing is not None and not wanted <= names.keys():
        raise missing


def find_refused_import(statements: list[ast.stmt]) -> str | None:
    """Return the name of an imported module by which an answer could change its own check; None if there is none."""
    for node in ast.walk(ast.Module(statements, [])):
        if isinstance(node, ast.ImportFrom):
            modules = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        for module in modules:
            if any(f"{module}.".startswith(f"{refused}.") or refused.startswith(f"{module}.") for refused in REFUSED):
                return module
    return None


def process_context(assignment: Assignment) -> BaseContext:
    """Return the way to start processes: forked, where the system can, from a process with the imports of answers."""
    if "forkserver" not in multiprocessing.get_all_start_methods():  # Windows
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    modules = re.findall(r"^(?:import|from) ([\w.]+)", assignment.imports, re.MULTILINE)
    context.set_forkserver_preload([__name__, *modules])
    return context


def judge(assignment: Assignment, exercise: ExerciseCells, answer: str, seconds: float) -> Outcome:
    """Run an answer and the lesson's check of it in a process of its own, and return the outcome.

    The outcome is "stopped" when that takes longer than `seconds` after the imports, or when the process ends itself.
    """
    context = process_context(assignment)
    ours, theirs = context.Pipe()
    with tempfile.TemporaryDirectory() as folder:
        job = (assignment.imports, answer, exercise, folder, theirs)
        process = context.Process(target=work, args=job)
        process.start()
        theirs.close()
        try:
            ours.recv()  # imports are done: they do not count
            if ours.poll(seconds):
                return ours.recv()
            return Outcome("stopped", f"Not done within the time limit of {seconds:g} s: does a loop never end?")
        except EOFError:
            process.join()
            return Outcome("stopped", f"The answer ended its own process (exit code {process.exitcode})")
        finally:
            process.kill()
            process.join()


def work(imports: str, answer: str, exercise: ExerciseCells, folder: str, pipe: Connection) -> None:
    """Run imports, answer and check in an answer's process; send None after the imports and the outcome at the end."""
    os.chdir(folder)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)
    names: dict[str, Any] = {}
    exec(imports, names)
    pipe.send(None)
    names.pop("checks", None)
    try:
        pipe.send(run_check(answer, exercise, names))
    except NameError as error:
        pipe.send(Outcome("wrong", f"{error}. {ALONE}"))
    except (Exception, SystemExit) as error:
        pipe.send(Outcome("wrong", f"The cell stops with {type(error).__name__}: {error}"))


def run_check(answer: str, exercise: ExerciseCells, names: dict[str, Any]) -> Outcome:
    """Run an answer, then its check, with the names of the lesson's imports, and return the outcome.

    Raises:
        Exception: an error of the answer.
    """
    check = EXERCISES[exercise.name]  # taken before the answer runs
    statements = read_answer(answer)
    if module := find_refused_import(statements):
        return Outcome("wrong", f"The cell imports {module}, by which a check could be changed: leave that out")
    run_answer(statements, exercise.answers, names)
    names["checks"] = SimpleNamespace(**{exercise.name: check})
    exec(exercise.check, names)
    if "stopped with NameError" in check.outcome.hint:
        return Outcome("wrong", f"{check.outcome.hint}. {ALONE}")
    return check.outcome


def grade(path: Path, wanted: str | None = None, seconds: float = SECONDS) -> tuple[str, bool]:
    """Return the score table of a returned notebook, and whether every answer ran to its end.

    Args:
        path: the notebook.
        wanted: two digits, to refuse a notebook of any other lesson.
        seconds: time limit of one answer.

    Raises:
        Unusable: there is nothing to grade.
    """
    submission = read_submission(path)
    assignment = read_assignment(submission, wanted)
    rows, states, sum_of_points, total = [], [], 0, 0
    for cells in assignment.exercises:
        exercise, answer = EXERCISES[cells.name], find_answer(submission, cells)
        if answer is None:
            outcome = Outcome("missing", f"No cell defines {', '.join(sorted(cells.answers))}")
        else:
            outcome = judge(assignment, cells, answer, seconds)
        points = exercise.points if outcome.state == "passed" else 0
        sum_of_points, total, states = sum_of_points + points, total + exercise.points, [*states, outcome.state]
        title = f"{int(exercise.lesson)}.{exercise.number} {exercise.title}"
        rows.append(f"{title:40} {points}/{exercise.points}  {outcome.state:8} {outcome.hint}".rstrip())
    heading = f"{path.name}: {sum_of_points} of {total} points"
    return "\n".join([heading, *rows]), "stopped" not in states


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("submission", type=Path, help="the returned .ipynb file")
    parser.add_argument("--lesson", help="two digits: refuse a notebook of any other lesson")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="time limit of one answer (%(default)g)")
    options = parser.parse_args()
    try:
        table, complete = grade(options.submission, options.lesson, options.seconds)
    except Unusable as error:
        print(f"NOT GRADED: {error}", file=sys.stderr)
        return 2
    print(table)
    return 0 if complete else 1


if __name__ == "__main__":
    sys.exit(main())
