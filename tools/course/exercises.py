"""The exercises in a lesson's cells: the stub, the solution and the check of each, and the imports of an answer."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from dataclasses import dataclass

from nbformat import NotebookNode

CHECK = re.compile(r"^checks\.(\w+)\(", re.MULTILINE)


@dataclass(frozen=True)
class ExerciseCells:
    """The three cells of an exercise in a lesson.

    Attributes:
        name: of the check, in `fgnet_lib.course.checks`.
        task: source of the stub.
        solution: source of the full answer.
        check: source of the cell that calls the check.
        answers: names that task and solution define and that the check is called with; functions and values begin with
            `my_`, classes with `My`.
    """

    name: str
    task: str
    solution: str
    check: str
    answers: frozenset[str]


def tags(cell: NotebookNode) -> set[str]:
    """Return the tags of a cell."""
    return set(cell.metadata.get("tags", []))


def read_names(code: str) -> frozenset[str]:
    """Return the names that code defines at its top level: functions, classes, variables."""
    names = set()
    for statement in ast.parse(code).body:
        if isinstance(statement, ast.FunctionDef | ast.ClassDef):
            names.add(statement.name)
        elif isinstance(statement, ast.Assign | ast.AnnAssign):
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            names |= {node.id for target in targets for node in ast.walk(target) if isinstance(node, ast.Name)}
    return frozenset(names)


def read_imports(cells: Sequence[NotebookNode]) -> str:
    """Return all import statements at the top level of a lesson's cells but the exercises': what an answer may use."""
    lines = []
    for cell in cells:
        if cell.cell_type == "code" and not tags(cell) & {"task", "solution"}:
            body = ast.parse(cell.source).body
            lines += [ast.unparse(line) for line in body if isinstance(line, ast.Import | ast.ImportFrom)]
    return "\n".join(lines)


def read_exercises(cells: Sequence[NotebookNode]) -> list[ExerciseCells]:
    """Return the exercises of a lesson's cells, in order.

    Raises:
        ValueError: a task without a solution behind it or the reverse, or a check that does not fit.
    """
    exercises = []
    for number, cell in enumerate(cells):
        if cell.cell_type != "code" or not tags(cell) & {"task", "solution"}:
            continue
        if "task" in tags(cell):
            exercises.append(_read_exercise(number, cells[number : number + 3]))
        elif "task" not in tags(cells[number - 1]) or cells[number - 1].cell_type != "code":
            raise ValueError(f"cell {number}: a solution without a task directly before it")
    used = {name for cell in _others(cells) for name in _names(cell.source)}
    for exercise in exercises:
        if reused := sorted(exercise.answers & used):
            raise ValueError(f"the lesson goes on with {reused}, which a student may leave open")
    return exercises


def _read_exercise(number: int, cells: Sequence[NotebookNode]) -> ExerciseCells:
    """Return the exercise whose task is cell `number` of a lesson: this cell and the two behind it."""
    if len(cells) < 3 or tags(cells[1]) != {"solution"} or cells[1].cell_type != "code":
        raise ValueError(f"cell {number}: a task without a solution directly behind it")
    task, solution, check = (cell.source for cell in cells)
    names = CHECK.findall(check)
    if tags(cells[2]) or cells[2].cell_type != "code" or len(names) != 1:
        raise ValueError(f"cell {number}: behind task and solution a cell has to call a single check: checks.name(...)")
    answers = read_names(task)
    if answers != read_names(solution) or not answers <= _names(check):
        raise ValueError(f"cell {number}: task, solution and check disagree: {sorted(answers ^ read_names(solution))}")
    if not all(name.startswith(("my_", "My")) for name in answers):
        raise ValueError(f"cell {number}: names of answers begin with my_ or My, and these are {sorted(answers)}")
    return ExerciseCells(names[0], task, solution, check, answers)


def _others(cells: Sequence[NotebookNode]) -> list[NotebookNode]:
    """Return the code cells that are no part of an exercise."""
    parts = set()
    for number, cell in enumerate(cells):
        if cell.cell_type == "code" and "task" in tags(cell):
            parts |= {number, number + 1, number + 2}
    return [cell for number, cell in enumerate(cells) if cell.cell_type == "code" and number not in parts]


def _names(code: str) -> set[str]:
    return {node.id for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Name)}
