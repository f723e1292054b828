"""Run the self-checks of returned notebooks and print a score table for each (`make grade SUBMISSION=x.ipynb`).

Only the answers come from a notebook: the last cells that define the names an exercise asks for, with the imports,
functions and plain values of its other cells. The checks and the lesson's imports come from this repository, so an
edited check, or output that says "passed", counts for nothing. Each answer runs in a process of its own, for a limited
time. It is no sandbox: `docs/teach/grading.md` says what it does not protect against.

Exit codes: 0 graded, 1 an answer was stopped (by a limit, or because it ended its process), 2 nothing to grade. For a
folder, the highest of its notebooks.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

import build_notebooks
from exercises import ExerciseCells, read_exercises, read_imports
from grade_answer import Job
from grade_process import adopt_orphans, clean, judge

from fgnet_lib.course.checks import EXERCISES
from fgnet_lib.course.checks.exercise import Outcome

SECONDS = 60.0
LARGEST = 100 * 2**20  # bytes of a notebook
TITLE = re.compile(r"^# (\d\d) · ", re.MULTILINE)


class Unusable(Exception):
    """Raised when there is nothing to grade; the message says why."""


@dataclass(frozen=True)
class Submission:
    """The cells of a returned notebook: the code of its code cells, and all its text."""

    codes: list[str]
    text: str


@dataclass(frozen=True)
class Assignment:
    """The part of a lesson that grading needs: its number, the imports that answers may use, and the exercises."""

    lesson: str
    imports: str
    exercises: list[ExerciseCells]


@dataclass(frozen=True)
class Grade:
    """What a returned notebook got.

    Attributes:
        name: of the file, printable.
        lesson: two digits; empty when it was not graded.
        points: the sum.
        total: what all right answers are worth.
        rows: of the table, one for each exercise.
        states: of the exercises, in order.
        refused: why it was not graded; empty when it was.
    """

    name: str
    lesson: str = ""
    points: int = 0
    total: int = 0
    rows: tuple[str, ...] = ()
    states: tuple[str, ...] = ()
    refused: str = ""

    @property
    def code(self) -> int:
        """The exit code: 0 graded, 1 an answer was stopped, 2 not graded."""
        return 2 if self.refused else int("stopped" in self.states)

    def __str__(self) -> str:
        if self.refused:
            return f"NOT GRADED: {self.refused}"
        return "\n".join([f"{self.name}: {self.points} of {self.total} points", *self.rows])


def read_submission(path: Path) -> Submission:
    """Return the cells of the notebook at `path`.

    Raises:
        Unusable: the file is missing or no notebook.
    """
    if not path.is_file():
        raise Unusable(f"{path} is no file: name the returned notebook, as in SUBMISSION=x.ipynb")
    try:
        if path.stat().st_size > LARGEST:
            raise ValueError(f"it is larger than {LARGEST // 2**20} MB")
        cells = json.loads(path.read_text(encoding="utf-8-sig"))["cells"]
        sources = [(cell["cell_type"], _join(cell["source"])) for cell in cells]
    except (OSError, ValueError, TypeError, KeyError, RecursionError, MemoryError) as error:
        problem = f"no {error} in it" if isinstance(error, KeyError) else str(error)
        raise Unusable(f"{path} is no notebook: {clean(problem, 100)}. Ask for the .ipynb file") from error
    if not any(source for _, source in sources):
        raise Unusable(f"{path} is empty")
    codes = [source for kind, source in sources if kind == "code"]
    return Submission(codes, "\n".join(source for kind, source in sources if kind == "markdown"))


def _join(source: str | list[str]) -> str:
    """Return the source of a cell, which a notebook holds as a string or as a list of lines."""
    if not isinstance(source, str | list):
        raise TypeError(f"the source of a cell is of type {type(source).__name__}")
    return "".join(source)


def read_assignment(submission: Submission, wanted: str | None) -> Assignment:
    """Return the assignment of a submission, by the title in it.

    Args:
        submission: the returned notebook.
        wanted: two digits, to refuse a notebook of any other lesson; None to take any.

    Raises:
        Unusable: no lesson's title, the title of another lesson than `wanted`, or a lesson without exercises.
    """
    title = TITLE.search(submission.text)
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
    return Assignment(number, read_imports(cells), read_exercises(cells))


def find_answer(codes: list[str], exercise: ExerciseCells) -> list[int] | None:
    """Return the numbers of the last cells that define what an exercise asks for; None when a name is nowhere defined.

    A function or class goes before a name that is assigned (often the result of a trial), and both before the stub.
    """
    chosen = []
    for name in exercise.answers:
        ways = (rf"^(?:%\w+[ \t]+)?{name}[ \t]*(?::[^=\n]+)?=[^=]", rf"^(?:(?:async[ \t]+)?def|class)[ \t]+{name}\b")
        ranks = [[re.search(way, code, re.MULTILINE) is not None for way in ways] for code in codes]
        defining = [number for number, rank in enumerate(ranks) if any(rank)]
        if not defining:
            return None
        chosen.append(max(defining, key=lambda at: (codes[at].strip() != exercise.task.strip(), ranks[at][1], at)))
    return sorted(set(chosen))


def grade(path: Path, wanted: str | None = None, seconds: float = SECONDS) -> Grade:
    """Return what a returned notebook gets.

    Args:
        path: the notebook.
        wanted: two digits, to refuse a notebook of any other lesson.
        seconds: time limit of one answer.
    """
    name = clean(path.name)
    try:
        submission = read_submission(path)
        assignment = read_assignment(submission, wanted)
    except Unusable as error:
        return Grade(name, refused=clean(str(error), 600))
    rows, states, points, total = [], [], 0, 0
    for cells in assignment.exercises:
        exercise = EXERCISES[cells.name]
        outcome = judge_exercise(submission.codes, assignment, cells, seconds)
        given = exercise.points if outcome.state == "passed" else 0
        points, total, states = points + given, total + exercise.points, [*states, outcome.state]
        title = f"{int(exercise.lesson)}.{exercise.number} {exercise.title}"
        rows.append(f"{title:40} {given}/{exercise.points}  {outcome.state:8} {outcome.hint}".rstrip())
    return Grade(name, assignment.lesson, points, total, tuple(rows), tuple(states))


def judge_exercise(codes: list[str], assignment: Assignment, cells: ExerciseCells, seconds: float) -> Outcome:
    """Return the outcome of an exercise, "missing" when no cell answers it."""
    numbers = find_answer(codes, cells)
    if numbers is None:
        return Outcome("missing", f"No cell defines {', '.join(sorted(cells.answers))}")
    others = [code for number, code in enumerate(codes) if number not in numbers]
    answer = "\n\n".join(codes[number] for number in numbers)
    return judge(Job(assignment.imports, others, answer, cells, seconds))


def grade_folder(folder: Path, wanted: str | None, seconds: float) -> int:
    """Grade all notebooks of a folder, write `grades/` there, and return the highest exit code.

    `grades/grades.csv` has a row for each notebook, `grades/<name>.txt` the table that its student may read. Names of
    notebooks that differ in their suffix alone keep it.
    """
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() == ".ipynb" and path.name[0] != ".")
    if not paths:
        print(f"NOT GRADED: no notebook (.ipynb) in {clean(str(folder))}", file=sys.stderr)
        return 2
    results = folder / "grades"
    results.mkdir(exist_ok=True)
    stems = [path.stem for path in paths]
    codes = []
    with open(results / "grades.csv", "w", encoding="utf-8", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["file", "lesson", "points", "of", "states", "not graded"])
        for path in paths:
            result = grade(path, wanted, seconds)
            row = [result.name, result.lesson, result.points, result.total, " ".join(result.states), result.refused]
            table.writerow([_as_text(cell) for cell in row])
            stream.flush()  # what is graded stays when grading is stopped
            name = path.stem if stems.count(path.stem) == 1 else path.name  # of a.ipynb beside a.IPYNB none is lost
            (results / f"{name}.txt").write_text(f"{result}\n", encoding="utf-8")
            print(f"{result.name}: {result}\n" if result.refused else f"{result}\n", flush=True)
            codes.append(result.code)
    print(f"{len(codes)} notebooks, {codes.count(2)} of them not graded: {clean(str(results / 'grades.csv'))}")
    return max(codes)


def _as_text(cell: str | int) -> str | int:
    """Return a cell that no spreadsheet takes for a formula."""
    return f"'{cell}" if str(cell).startswith(("=", "+", "-", "@")) else cell


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Score the exercises of a returned notebook, or of a folder of them.")
    parser.add_argument(
        "submission",
        nargs="?",
        default=os.environ.get("SUBMISSION"),
        help="the returned .ipynb file, or a folder of them (by default the variable SUBMISSION)",
    )
    parser.add_argument("--lesson", default=os.environ.get("LESSON"), help="two digits: refuse any other lesson")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="time limit of one answer (%(default)g)")
    options = parser.parse_args()
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")
    if not options.submission:
        parser.error("name the returned notebook, as in SUBMISSION=x.ipynb")
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # ends the answer, removes its folder
    adopt_orphans()
    path = Path(options.submission)
    if path.is_dir():
        return grade_folder(path, options.lesson, options.seconds)
    result = grade(path, options.lesson, options.seconds)
    print(result, file=sys.stderr if result.refused else sys.stdout)
    return result.code


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
