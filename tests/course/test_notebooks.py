"""The notebooks are what their sources say, all have the same skeleton, no solution leaks, and each one runs cold.

How cells are written is the matter of test_lesson_style.py.

The two versions of a lesson differ in their exercises alone, and nothing else uses an answer (`exercises` refuses it).
So the student version of every lesson runs in full, and test_checks.py runs every solution with its check; of the
solved versions one runs here, and two run on Colab's versions of packages (test_colab.py).
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import build_notebooks
import nbformat
import pytest
import run_tutorial
import still_pages
from exercises import read_exercises

from fgnet_lib.neighbours.adapters import AdapterConfig

SOURCES = sorted(build_notebooks.SOURCES.glob("[0-9][0-9]_*.py"))
NAMES = [source.stem for source in SOURCES]
PARAMETERS = {"PROFILE", "DATASET", "DATA_DIR", "OUT_DIR", "DEVICE", "SEED"}
ON_REAL_EM = ("00_welcome", "05_affinities_to_neurons", "08_your_own_volume")

EXERCISE = """
# %% tags=["task"]
def my_sum(a, b):
    return ...

# %% tags=["solution"]
def my_sum(a, b):
    return a + b

# %%
checks.sum(my_sum)
"""
THREAD = "import threading\nthread = threading.Thread(target=lambda: 1 / 0)\nthread.start()\nthread.join()"
SOURCE = """\
# %% [markdown]
# # 99 · Test: to test
#
# <!-- badges -->
#
# <!-- times -->

# %% tags=["{tag}"]
x = 1
"""


def read(name: str) -> nbformat.NotebookNode:
    return nbformat.read(build_notebooks.ROOT / "notebooks" / f"{name}.ipynb", as_version=4)


@pytest.fixture(params=[*NAMES, *(f"solutions/{name}" for name in NAMES)])
def notebook(request) -> nbformat.NotebookNode:
    return read(request.param)


def tagged(notebook: nbformat.NotebookNode, tag: str) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if tag in cell.metadata.get("tags", [])]


def test_all_lessons_are_there():
    assert [name[:2] for name in NAMES] == [f"{number:02}" for number in range(19)]


def test_what_is_committed_is_what_building_makes():
    for path, text in build_notebooks.outputs().items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name} is not current: run `make notebooks`"
    for folder in ("notebooks", "notebooks/solutions"):
        assert sorted(path.stem for path in (build_notebooks.ROOT / folder).glob("*.ipynb")) == NAMES


def test_a_mistyped_tag_is_refused(tmp_path):
    source = tmp_path / "99_test.py"
    source.write_text(SOURCE.format(tag="setup"))
    assert "fgnet_lib" in build_notebooks.build(source)
    source.write_text(SOURCE.format(tag="set-up"))
    with pytest.raises(ValueError, match="99_test.py, cell 1: unknown tags.*set-up"):
        build_notebooks.build(source)


def test_the_two_versions_of_an_exercise(tmp_path):
    source = tmp_path / "99_test.py"
    source.write_text(SOURCE.format(tag="setup") + EXERCISE)
    student, solved = build_notebooks.build(source), build_notebooks.build(source, solved=True)
    assert "return ..." in student and "a + b" not in student
    assert "return ..." not in solved and "a + b" in solved
    assert "checks.sum" in student and "checks.sum" in solved


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ('tags=["solution"]', 'tags=["solutoin"]', r"unknown tags \['solutoin'\]"),
        ('tags=["solution"]', "", "cell 2: a task without a solution"),
        ('tags=["task"]', "", "cell 3: a solution without a task"),
        ("checks.sum(my_sum)", "print(my_sum)", "call a single check"),
        ("def my_sum(a, b):\n    return a", "def my_add(a, b):\n    return a", "disagree.*my_add"),
        ("my_sum", "add", "begin with my_ or My"),
        ("checks.sum(my_sum)", "checks.sum(my_sum)\n\n# %%\nmy_sum(1, 2)", "goes on with.*my_sum"),
    ],
)
def test_an_exercise_that_does_not_fit_together_is_refused(tmp_path, old, new, complaint):
    source = tmp_path / "99_test.py"
    assert old in EXERCISE
    source.write_text(SOURCE.format(tag="setup") + EXERCISE.replace(old, new))
    with pytest.raises(ValueError, match=f"99_test.py.*{complaint}"):
        build_notebooks.build(source)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_no_solution_leaks_into_the_student_version(name):
    student = {line.strip() for cell in read(name).cells for line in cell.source.splitlines()}
    for one in read_exercises(build_notebooks.read_cells(build_notebooks.SOURCES / f"{name}.py")):
        own = [line.strip() for line in one.solution.splitlines() if line not in one.task.splitlines()]
        assert own and [line for line in own if len(line) > 8 and line in student] == [], one.name


@pytest.mark.parametrize("placeholder", ["badges", "times"])
def test_a_missing_placeholder_is_refused(tmp_path, placeholder):
    source = tmp_path / "99_test.py"
    source.write_text(SOURCE.format(tag="setup").replace(f"<!-- {placeholder} -->", ""))
    with pytest.raises(ValueError, match=placeholder):
        build_notebooks.build(source)


def test_a_notebook_has_the_same_head(notebook):
    head = notebook.cells[0].source
    assert re.match(r"# \d\d · [^:\n]+: ", head)
    parts = ["[![Colab]", "[![GitHub]", "**What you will learn**", "**Before you start.**", "On a T4"]
    assert [part for part in parts if part not in head] == []
    lesson = notebook.cells[0].id.rpartition("-")[0]
    assert ("[![Binder]" in head) == build_notebooks.fits_binder(lesson)
    assert "parameters" in notebook.cells[1].metadata.tags and "setup" in notebook.cells[2].metadata.tags
    assert len(tagged(notebook, "parameters")) == len(tagged(notebook, "setup")) == 1
    names = set(re.findall(r"^(\w+) = ", notebook.cells[1].source, re.MULTILINE))
    if head.startswith("# 08"):  # the lesson that is a command too
        assert names >= PARAMETERS | {"VOLUME", "CHECKPOINT"}
    else:
        assert names == PARAMETERS


def test_a_notebook_ends_with_what_was_learned(notebook):
    end = "\n".join(cell.source for cell in notebook.cells[-3:] if cell.cell_type == "markdown")
    assert [part for part in ("What you learned", "Try it", "References") if part not in end] == []


def execute(name: str, out: Path, **parameters: str) -> tuple[str, dict[str, float]]:
    """Run a notebook (by its place in notebooks/, or a file); gives all that it printed, its seconds and peak MB."""
    path = build_notebooks.ROOT / "notebooks" / f"{name}.ipynb"
    parameters = {"PROFILE": "fast", "OUT_DIR": str(out), "DEVICE": "cpu", **parameters}
    code, seconds, peak, log = run_tutorial.execute(path, out / "x.ipynb", parameters, folder=out, limit=600)
    assert code == 0, log[-3000:]
    assert run_tutorial.find_errors(out / "x.ipynb", log) == []  # threads and workers print theirs and fail no cell
    notebook = nbformat.read(out / "x.ipynb", as_version=4)
    said = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
    still_pages.make_still(notebook, out, lambda written: written.name)
    assert still_pages.NOTHING not in str(notebook), "a widget leaves no picture to readers without a kernel"
    return said, {"seconds": seconds, "peak_memory_mb": peak}


@pytest.mark.slow
def test_a_traceback_of_a_thread_fails_a_lesson(tmp_path):
    metadata = {"kernelspec": {"name": "python3", "language": "python", "display_name": "Python 3"}}
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(THREAD)], metadata=metadata)
    nbformat.write(notebook, tmp_path / "thread.ipynb")
    with pytest.raises(AssertionError, match="Exception in thread"):
        execute(os.fspath(tmp_path / "thread"), tmp_path)


def number_of_exercises(name: str) -> int:
    return len(read_exercises(build_notebooks.read_cells(build_notebooks.SOURCES / f"{name}.py")))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_lesson_runs_cold_on_the_phantom(name, tmp_path, record_property):
    (said, measured), count = execute(name, tmp_path, DATASET="phantom"), number_of_exercises(name)
    record_property("lesson on phantom, fast", {"name": name, **measured})  # compared at the end, in conftest.py
    assert f"Exercises of lesson {name[:2]}: 0 passed, {count} open, 0 wrong" in said or count == 0
    if build_notebooks.fits_binder(name):
        assert measured["peak_memory_mb"] < build_notebooks.BINDER_MB, "too much for its Binder badge: run `make times`"


def test_lesson_11_keeps_runs_with_other_adapters_apart():
    code = "\n".join(cell.source for cell in read("11_adapt_without_retraining").cells)
    (folder,) = re.findall(r'^folder = (f".+?")', code, re.MULTILINE)
    names = {"DATASET": "phantom", "PROFILE": "fast", "SEED": 0, "ENCODER": "mini", "start": "1a2b3c"}
    changes = ({}, {"rank": 2}, {"gate": True}, {"spectrum": "raw"}, {"spectrum": "log1p"})
    folders = {eval(folder, names | {"CONFIG": AdapterConfig(**change)}) for change in changes}
    assert len(folders) == len(changes)


@pytest.mark.slow
def test_lesson_11_takes_the_guide_that_knows_photographs_by_one_parameter(tmp_path):
    notebook = read("11_adapt_without_retraining")
    measured = next(k for k, cell in enumerate(notebook.cells) if cell.source.startswith("## 8 · Measured"))
    notebook.cells = notebook.cells[:measured]  # what follows reads the table of runs, whatever the encoder is
    (chosen,) = (cell for cell in notebook.cells if cell.source.startswith('ENCODER = "mini"'))
    chosen.source = chosen.source.replace('"mini"', '"natural"', 1)
    nbformat.write(notebook, tmp_path / "natural.ipynb")
    said, _ = execute(os.fspath(tmp_path / "natural"), tmp_path, DATASET="phantom")
    assert "the encoder has 692,112 parameters" in said and "same affinities True" in said


@pytest.mark.slow
def test_a_solved_lesson_runs_cold_on_the_phantom(tmp_path):
    name = "01_em_volumes"
    said, _ = execute(f"solutions/{name}", tmp_path, DATASET="phantom")
    assert f"Exercises of lesson {name[:2]}: {number_of_exercises(name)} passed, 0 open, 0 wrong" in said


@pytest.mark.slow
@pytest.mark.parametrize("name", ON_REAL_EM)
def test_a_lesson_runs_cold_on_real_em(name, tmp_path, em_data):
    execute(name, tmp_path, DATASET="fib25", DATA_DIR=os.fspath(em_data))
