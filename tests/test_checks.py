"""Each exercise passes its solution, is open as it stands, and tells wrong answers apart by their hints."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import build_notebooks
import pytest
from exercises import exercises, imports

from fgnet_lib import checks
from fgnet_lib.checks.exercise import Outcome, of_lesson

SOURCES = sorted(build_notebooks.SOURCES.glob("[0-9][0-9]_*.py"))
CELLS = {source.stem[:2]: build_notebooks.read_cells(source) for source in SOURCES}
EXERCISES = {one.name: (lesson, one) for lesson, cells in CELLS.items() for one in exercises(cells)}
MUTANTS = {}
for file in sorted((Path(__file__).parent / "mutants").glob("lesson*.py")):
    MUTANTS |= importlib.import_module(f"mutants.{file.stem}").MUTANTS


def outcome(name: str, answer: str) -> Outcome:
    """Run a cell of an answer with what its lesson imports and nothing else, then the lesson's check cell."""
    lesson, one = EXERCISES[name]
    names = {}
    for code in (imports(CELLS[lesson]), answer, one.check):
        exec(compile(code, f"<{name}>", "exec"), names)
    return checks.EXERCISES[name].outcome


def test_every_check_is_used_once_in_the_order_of_its_lesson():
    for lesson, cells in CELLS.items():
        in_lesson = [one.name for one in exercises(cells)]
        assert in_lesson == [one.name for one in of_lesson(lesson)]
        ends = [cell.source for cell in cells if cell.source.startswith("checks.report")]
        assert ends == ([f'checks.report("{lesson}")'] if in_lesson else [])
        titles = re.findall(r"\*\*Exercise (.+?)\.\*\*", "\n".join(cell.source for cell in cells))
        assert titles == [f"{int(lesson)}.{one.number}: {one.title}" for one in of_lesson(lesson)]


@pytest.mark.parametrize("name", EXERCISES)
def test_a_stub_is_open(name, capsys):
    assert outcome(name, EXERCISES[name][1].task) == Outcome("open")
    assert "Replace the three dots" in capsys.readouterr().out


@pytest.mark.parametrize("name", EXERCISES)
def test_a_solution_passes(name, capsys):
    assert outcome(name, EXERCISES[name][1].solution) == Outcome("passed"), capsys.readouterr().out
    assert ": passed" in capsys.readouterr().out


@pytest.mark.parametrize("name", EXERCISES)
def test_at_least_three_wrong_answers_get_hints_of_their_own(name):
    hints = {hint for _, _, hint in MUTANTS[name]}
    assert len(hints) >= 3 and not any(hint in other for hint in hints for other in hints - {hint})


@pytest.mark.parametrize(
    ("name", "old", "new", "hint"), [(name, *mutant) for name, mutants in MUTANTS.items() for mutant in mutants]
)
def test_a_wrong_answer_gets_its_hint(name, old, new, hint):
    solution = EXERCISES[name][1].solution
    assert old in solution
    judged = outcome(name, solution.replace(old, new))
    assert judged.state == "wrong" and hint in judged.hint, judged
    right = [line.strip() for line in solution.splitlines() if line not in EXERCISES[name][1].task.splitlines()]
    assert not any(line in judged.hint for line in right if len(line) > 8), "a hint, not the answer"
