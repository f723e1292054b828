"""Each exercise passes its solution, is open as it stands, and tells wrong answers apart by their hints."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import build_notebooks
import numpy as np
import pytest
from exercises import read_exercises, read_imports
from torch import Tensor, nn

from fgnet_lib.affinities import affinities_from_labels
from fgnet_lib.course import checks
from fgnet_lib.course.checks import exercise, pictures
from fgnet_lib.course.checks.exercise import Exercise, Outcome, call, of_lesson
from fgnet_lib.fgnet import FeatureGuidedAttention

SOURCES = sorted(build_notebooks.SOURCES.glob("[0-9][0-9]_*.py"))
CELLS = {source.stem[:2]: build_notebooks.read_cells(source) for source in SOURCES}
EXERCISES = {entry.name: (lesson, entry) for lesson, cells in CELLS.items() for entry in read_exercises(cells)}
MUTANTS, RIGHT = {}, {}
for file in sorted((Path(__file__).parent / "mutants").glob("lesson*.py")):
    answers = importlib.import_module(f"mutants.{file.stem}")
    MUTANTS |= answers.MUTANTS
    RIGHT |= answers.RIGHT


CALLED = Exercise(lambda answer: call(answer, np.zeros(2)), "99", 1, "to call", "a first hint", 1)


def stops(array: np.ndarray) -> float:
    return 1 / len(array[2:])


def changes(array: np.ndarray) -> np.ndarray:
    array += 1
    return array


class Borrowed(FeatureGuidedAttention):
    pass


def solve(name: str) -> Any:
    """Return the function or class that solves an exercise."""
    lesson, cells = EXERCISES[name]
    names = {}
    for code in (read_imports(CELLS[lesson]), cells.solution):
        exec(compile(code, f"<{name}>", "exec"), names)
    (answer,) = cells.answers
    return names[answer]


def instead(name: str, change: Callable[[Callable], Callable]) -> Any:
    """Return the solution of an exercise with its function, or its class's `forward`, changed."""
    solution = solve(name)
    if not isinstance(solution, type):
        return change(solution)
    return type(solution.__name__, (solution,), {"forward": change(solution.forward)})


def remember(answer: Callable) -> Callable:
    """Return a function that always gives the result of an answer's first call."""
    results = []

    def constant(*arguments):
        results.append(answer(*arguments) if not results else results[0])
        return results[0]

    return constant


def spoil(answer: Callable) -> Callable:
    """Return an answer that at its end overwrites all arrays, tensors, dictionaries and lists that it was given."""

    def spoiler(*arguments):
        result = answer(*arguments)
        for argument in arguments:
            if isinstance(argument, np.ndarray | Tensor):
                argument[:] = 0
            elif isinstance(argument, dict | list):
                argument.clear()
        return result

    return spoiler


def outcome(name: str, answer: str) -> Outcome:
    """Run a cell of an answer with what its lesson imports and nothing else, then the lesson's check cell."""
    lesson, cells = EXERCISES[name]
    names = {}
    for code in (read_imports(CELLS[lesson]), answer, cells.check):
        exec(compile(code, f"<{name}>", "exec"), names)
    return checks.EXERCISES[name].outcome


def test_every_check_is_used_once_in_the_order_of_its_lesson():
    for lesson, cells in CELLS.items():
        in_lesson = [entry.name for entry in read_exercises(cells)]
        assert in_lesson == [entry.name for entry in of_lesson(lesson)]
        ends = [cell.source for cell in cells if cell.source.startswith("checks.report")]
        assert ends == ([f'checks.report("{lesson}")'] if in_lesson else [])
        titles = re.findall(r"\*\*Exercise (.+?)\.\*\*", "\n".join(cell.source for cell in cells))
        assert titles == [f"{int(lesson)}.{entry.number}: {entry.title}" for entry in of_lesson(lesson)]


@pytest.mark.parametrize("name", EXERCISES)
def test_a_stub_is_open(name, capsys):
    assert outcome(name, EXERCISES[name][1].task) == Outcome("open")
    assert "Replace the three dots" in capsys.readouterr().out


@pytest.mark.parametrize("name", EXERCISES)
def test_a_solution_passes(name, capsys):
    assert outcome(name, EXERCISES[name][1].solution) == Outcome("passed"), capsys.readouterr().out
    assert ": passed" in capsys.readouterr().out


def test_every_exercise_has_another_right_answer():
    assert RIGHT.keys() == EXERCISES.keys() and all(RIGHT.values())


@pytest.mark.slow
@pytest.mark.parametrize(("name", "answer"), [(name, answer) for name, answers in RIGHT.items() for answer in answers])
def test_a_right_answer_unlike_the_solution_passes(name, answer):
    assert outcome(name, answer) == Outcome("passed")


@pytest.mark.parametrize("name", EXERCISES)
def test_at_least_three_wrong_answers_get_hints_of_their_own(name):
    hints = {hint for _, _, hint in MUTANTS[name]}
    assert len(hints) >= 3 and not any(hint in other for hint in hints for other in hints - {hint})


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize("name", EXERCISES)
def test_an_answer_that_gives_always_the_same_is_wrong(name):
    for change in (remember, *(lambda _, value=value: lambda *_: value for value in (0, 1, True, "none", [], {}))):
        judged = checks.EXERCISES[name].judge(instead(name, change))
        assert judged.state == "wrong" and judged.hint, judged


@pytest.mark.slow
@pytest.mark.parametrize("name", EXERCISES)
def test_an_answer_that_gives_back_what_it_got_is_wrong(name):
    for number in range(5):
        judged = checks.EXERCISES[name].judge(instead(name, lambda _, number=number: lambda *given: given[number]))
        assert judged.state == "wrong" and judged.hint, judged


CHANGEABLE = {
    *("affinities", "widened", "mask", "similarity", "attention", "auc", "balanced_loss", "face_mean", "merge"),
    *("honest_threshold", "whole_from", "neuron_volume", "match", "fair_pairs", "seed_summary", "chance_of"),
    *("flat_sections", "block_ids", "low_rank_update", "adapter_size", "log_spectrum", "rounded_values"),
    *("integer_product", "folded_layer", "recall", "embedding_products", "grafting", "matched_values"),
    *("standardised_features", "averaged_weights", "synapse_partners", "released_loss", "info_nce_loss"),
    *("inflated_kernel", "snake_offsets", "best_of", "holm"),
    *("signal_to_noise", "hidden_pixels", "channel_attention", "undone_coupling"),
    *("coordinate_waves", "second_look", "inspected_errors", "expected_calibration"),
    *("consistent_sections", "nearest_code", "invented_voxels"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", EXERCISES)
def test_an_answer_that_overwrites_its_arguments_is_told_so_and_spoils_no_check(name):
    judged = checks.EXERCISES[name].judge(instead(name, spoil))
    assert ("Your function changes the" in judged.hint) == (name in CHANGEABLE), judged
    assert checks.EXERCISES[name].judge(solve(name)) == Outcome("passed")


@pytest.mark.parametrize("name", EXERCISES)
def test_a_first_hint_is_a_sentence_and_gives_no_answer_away(name):
    hint = checks.EXERCISES[name].first_hint
    assert hint[-1] in ".?" and 20 < len(hint) < 120
    right = {line.strip() for line in EXERCISES[name][1].solution.splitlines()}
    assert not any(line in hint for line in right if len(line) > 8)


def test_a_smaller_hint_comes_first(capsys):
    def judge(answer: Any) -> str:
        checks.mask(answer)
        return capsys.readouterr().out

    small = checks.mask.first_hint
    checks.mask.outcome = Outcome("open")
    slip = judge(lambda row: None)  # about the form: at once
    assert "gives nothing back" in slip and small not in slip
    first = judge(lambda row: row > 3)
    assert small in first and "run this cell again" in first and "has no predecessor" not in first
    assert "has no predecessor" in judge(lambda row: row > 3)
    assert "has no predecessor" in judge(lambda row: row > 4)  # another wrong answer: no need to ask twice
    assert "passed" in judge(solve("mask")) and small in judge(lambda row: row > 3)


@pytest.fixture
def shown(monkeypatch) -> list[str]:
    """Pretend that a notebook is open, and collect the titles of what it shows."""
    titles = []
    figures = pictures.plt
    monkeypatch.setattr(exercise, "get_ipython", lambda: SimpleNamespace(kernel=object()))
    monkeypatch.setattr(figures, "show", lambda: titles.extend(ax.get_title() for ax in figures.gcf().axes))
    yield titles
    figures.close("all")


def drawn(part: Any) -> np.ndarray:
    """Return what an image, a line or a rectangle shows, in the coordinates of its axes."""
    reader = next(name for name in ("get_xydata", "get_corners", "get_array") if hasattr(part, name))
    return np.asarray(getattr(part, reader)())


@pytest.mark.slow
@pytest.mark.parametrize("name", pictures.PICTURES)
def test_the_picture_of_a_right_answer_is_beside_the_expected_one(name, shown):
    checks.EXERCISES[name](lambda *_: 7)
    assert shown == []  # a wrong answer is not shown what is right
    checks.EXERCISES[name](solve(name))
    assert [title.partition(":")[0] for title in shown[:2]] == ["yours", "expected"]
    left, right = pictures.plt.gcf().axes[:2]
    for kind in ("images", "lines", "patches"):
        yours, expected = getattr(left, kind), getattr(right, kind)
        assert len(yours) == len(expected)
        for a, b in zip(yours, expected, strict=True):
            np.testing.assert_allclose(drawn(a), drawn(b))
    assert any(getattr(left, kind) for kind in ("images", "lines", "patches"))


def test_without_a_notebook_no_picture_is_drawn(monkeypatch):
    monkeypatch.setattr(pictures.plt, "subplots", lambda *_, **__: pytest.fail("drawn"))
    checks.widened(solve("widened"))
    assert checks.widened.outcome == Outcome("passed")


def test_a_check_with_a_picture_describes_it():
    for cells in CELLS.values():
        for cell in cells:
            if cell.cell_type == "code" and (name := re.match(r"checks\.(\w+)\(my_|checks\.(\w+)\(My", cell.source)):
                assert bool(cell.metadata.get("alt")) == ((name[1] or name[2]) in pictures.PICTURES), cell.source


class Broken(nn.Module):
    def __init__(self, guide_channels, channels):
        super().__init__()
        self.from_guide = nn.Conv3d(guide_channels, channels, 1)
        self.from_fine = nn.Conv3d(channels, channels, 1)
        self.to_map = nn.Conv3d(channels, 1, 1)

    def forward(self, fine, guide):
        return self.from_fine(guide), fine


def test_an_error_inside_pytorch_is_said_with_the_line_of_the_students_cell():
    line = Broken.forward.__code__.co_firstlineno + 1
    judged = checks.attention.judge(Broken)
    assert "stopped with RuntimeError" in judged.hint and judged.hint.endswith(f"(line {line} of your cell)")


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (np.sum, Outcome("passed")),
        (..., Outcome("open")),
        (lambda array: ..., Outcome("open")),
        (7, "A function is wanted, not int"),
        (lambda array: None, "gives nothing back"),
        (changes, "changes the array"),
        (stops, "stopped with ZeroDivisionError: division by zero (line "),
        (lambda: 1, "stopped with TypeError"),
        (affinities_from_labels, "This is affinities_from_labels of the library"),
        (partial(affinities_from_labels), "This is affinities_from_labels of the library"),
        (FeatureGuidedAttention, "This is FeatureGuidedAttention of the library"),
        (Borrowed, "This is FeatureGuidedAttention of the library"),
        (Borrowed(6, 4, "residual"), "This is FeatureGuidedAttention of the library"),
        (Borrowed(6, 4, "residual").forward, "This is forward of the library"),
        (lambda array: exit(), "stopped with SystemExit"),
    ],
)
def test_whatever_an_answer_does_becomes_an_outcome(answer, expected):
    judged = CALLED.judge(answer)
    assert judged == expected if isinstance(expected, Outcome) else expected in judged.hint


def test_the_latest_outcome_is_in_the_report(monkeypatch, capsys):
    for entry in of_lesson("01"):
        monkeypatch.setattr(entry, "outcome", Outcome("open"))
    checks.affinities(7)
    checks.report("01")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "✘ 1.1 the affinity target: wrong" and "A function is wanted" in lines[1]
    assert lines[2:4] == ["Exercises of lesson 01: 0 passed, 2 open, 1 wrong", "  ✘ 1.1 the affinity target: wrong"]
