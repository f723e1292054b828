"""What the instructor guide promises: a section for every lesson, exercises that exist, minutes as they are set."""

from __future__ import annotations

import json
import re

import jupytext
import numpy as np
import pytest

from fgnet_lib import REPOSITORY
from fgnet_lib.course.checks import EXERCISES
from fgnet_lib.course.session import PROFILES

GUIDE = (REPOSITORY / "docs" / "teach" / "instructors.md").read_text("utf-8")
LESSONS = [path.stem for path in sorted((REPOSITORY / "notebooks" / "src").glob("[0-9][0-9]_*.py"))]
PARTS = ("**Aims.**", "**Common errors.**", "**To discuss.**", "**To examine.**")
TIMES = json.loads((REPOSITORY / "docs" / "measured" / "times.json").read_text("utf-8"))


@pytest.mark.parametrize("lesson", LESSONS)
def test_every_lesson_has_its_section_and_its_row(lesson):
    section = re.search(rf"^### Lesson {lesson[:2]} · .*?(?=^##)", GUIDE, re.MULTILINE | re.DOTALL)
    assert section and [part for part in PARTS if part not in section[0]] == []
    assert len(re.findall(r"^\d\. \*", section[0], re.MULTILINE)) >= 3, "three questions to examine, with answers"
    title = re.search(
        r"^# # (\d\d) · ([^:]+):", (REPOSITORY / "notebooks/src" / f"{lesson}.py").read_text("utf-8"), re.M
    )
    assert f"### Lesson {title[1]} · {title[2]}" in GUIDE and f"| {title[1]} {title[2]} |" in GUIDE


@pytest.mark.parametrize("lesson", LESSONS)
def test_minutes_are_estimated_as_the_guide_says(lesson):
    cells = jupytext.read(REPOSITORY / "notebooks" / "src" / f"{lesson}.py").cells
    code = [cell for cell in cells if cell.cell_type == "code"]
    tasks = sum("task" in cell.metadata.get("tags", []) for cell in code)
    words = sum(len(cell.source.split()) for cell in cells if cell.cell_type == "markdown")
    read = words / 150 + len(code) - 2 * tasks  # stubs and solutions belong to the exercises
    practise = 10 * tasks + 3 * sum(cell.source.startswith("quiz.ask") for cell in code)
    row = re.search(rf"^\| {lesson[:2]} .*?\| (\d+) min.*?\| (\d+) min \| (\d+) min \|$", GUIDE, re.MULTILINE)
    claimed = [int(minutes) for minutes in row.groups()]
    assert np.allclose(claimed, (read, practise, read + practise), atol=8), (read, practise)
    assert claimed[0] + claimed[1] == claimed[2]


def test_the_lessons_that_fold_nothing_are_named():
    named = re.search(r"all lessons but ([\d, and]+), some parts are headed", " ".join(GUIDE.split()))[1]
    sources = {lesson: (REPOSITORY / "notebooks" / "src" / f"{lesson}.py").read_text("utf-8") for lesson in LESSONS}
    whole = [name[:2] for name, text in sources.items() if not re.search(r"^# ##+ (\d+ · )?Further: ", text, re.M)]
    assert re.findall(r"\d+", named) == whole


def test_exercises_that_are_named_exist():
    named = {name for run in re.findall(r"xercises? ([\d., and]+)", GUIDE) for name in re.findall(r"\d+\.\d", run)}
    assert len(named) > 20
    assert named <= {f"{int(exercise.lesson)}.{exercise.number}" for exercise in EXERCISES.values()}


def test_minutes_of_training_are_those_of_the_profiles():
    assert PROFILES["cpu"].minutes == 10 and "it trains for ten minutes" in GUIDE
    assert f"{PROFILES['gpu'].minutes:g} minutes of training" in GUIDE
    seconds = {name: lesson["seconds"] for name, lesson in TIMES["phantom-cpu"]["lessons"].items()}
    assert max(seconds, key=seconds.get) == "04_training", "the one to plan for"


def test_every_exercise_is_handed_in_during_the_semester():
    plan = GUIDE.partition("### A semester")[2].partition("Project ideas")[0]
    assert set(re.findall(r"\d+\.\d", plan)) == {
        f"{int(exercise.lesson)}.{exercise.number}" for exercise in EXERCISES.values()
    }
