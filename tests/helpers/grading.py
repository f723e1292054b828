"""A returned notebook to grade, and its row of the table."""

from __future__ import annotations

from pathlib import Path

import build_notebooks
import grade
import nbformat
from exercises import read_exercises

LESSON = "01_em_volumes"
STUB, SOLUTION = next(
    (cells.task, cells.solution)
    for cells in read_exercises(build_notebooks.read_cells(build_notebooks.SOURCES / f"{LESSON}.py"))
    if cells.name == "affinities"
)
ROW = "1.1 the affinity target"


def returned(folder: Path, *, answer: str | None = None, check: str | None = None, below: str = "") -> Path:
    """The student version of the lesson, as somebody returns it."""
    notebook = nbformat.read(build_notebooks.ROOT / "notebooks" / f"{LESSON}.ipynb", as_version=4)
    for cell in notebook.cells:
        if answer is not None and cell.source == STUB:
            cell.source = answer
        elif check is not None and cell.source == "checks.affinities(my_affinities)":
            cell.source = check
    notebook.cells.append(nbformat.v4.new_code_cell(below))
    nbformat.write(notebook, folder / "returned.ipynb")
    return folder / "returned.ipynb"


def affinities_alone(monkeypatch) -> None:
    """Grade the first exercise only, which saves a process for each of the others."""
    read_assignment = grade.read_assignment

    def first(*arguments):
        whole = read_assignment(*arguments)
        return grade.Assignment(whole.lesson, whole.imports, whole.exercises[:1])

    monkeypatch.setattr(grade, "read_assignment", first)


def row(result: grade.Grade) -> str:
    (match,) = [line for line in str(result).splitlines() if line.startswith(ROW)]
    return match.removeprefix(ROW).strip()
