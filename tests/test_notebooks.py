"""The notebooks are what their sources say, all have the same skeleton, and each one runs cold."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import build_notebooks
import nbformat
import pytest

SOURCES = sorted(build_notebooks.SOURCES.glob("[0-9][0-9]_*.py"))
NAMES = [source.stem for source in SOURCES]
PARAMETERS = {"PROFILE", "DATASET", "DATA_DIR", "OUT_DIR", "DEVICE", "SEED"}
ON_REAL_EM = ("00_welcome", "01_em_volumes", "05_affinities_to_neurons", "08_your_own_volume")

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


@pytest.fixture(params=NAMES)
def notebook(request) -> nbformat.NotebookNode:
    path = build_notebooks.ROOT / "notebooks" / f"{request.param}.ipynb"
    return nbformat.read(path, as_version=4)


def tagged(notebook: nbformat.NotebookNode, tag: str) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if tag in cell.metadata.get("tags", [])]


def test_all_lessons_are_there():
    assert [name[:2] for name in NAMES] == ["00", "01", "02", "03", "04", "05", "06", "08"]


def test_what_is_committed_is_what_building_makes():
    for path, text in build_notebooks.outputs().items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name} is not current: run `make notebooks`"
    assert sorted(path.stem for path in (build_notebooks.ROOT / "notebooks").glob("*.ipynb")) == NAMES


def test_a_mistyped_tag_is_refused(tmp_path):
    source = tmp_path / "99_test.py"
    source.write_text(SOURCE.format(tag="setup"))
    assert "fgnet_lib" in build_notebooks.build(source)
    source.write_text(SOURCE.format(tag="set-up"))
    with pytest.raises(ValueError, match="99_test.py, cell 1: unknown tags.*set-up"):
        build_notebooks.build(source)


@pytest.mark.parametrize("placeholder", ["badges", "times"])
def test_a_missing_placeholder_is_refused(tmp_path, placeholder):
    source = tmp_path / "99_test.py"
    source.write_text(SOURCE.format(tag="setup").replace(f"<!-- {placeholder} -->", ""))
    with pytest.raises(ValueError, match=placeholder):
        build_notebooks.build(source)


def test_a_notebook_is_valid_and_clean(notebook):
    nbformat.validate(notebook)
    assert set(notebook.metadata) == {"kernelspec", "language_info"}  # no widget state
    for cell in notebook.cells:
        assert cell.cell_type == "markdown" or (cell.outputs == [] and cell.execution_count is None)


def test_a_notebook_has_the_same_head(notebook):
    head = notebook.cells[0].source
    assert re.match(r"# \d\d · [^:\n]+: ", head)
    parts = ["[![Colab]", "[![Binder]", "[![GitHub]", "**What you will learn**", "**Before you start.**", "On a T4"]
    assert [part for part in parts if part not in head] == []
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


def test_a_cell_is_short_and_prose_comes_first(notebook):
    for number, cell in enumerate(notebook.cells):
        if cell.cell_type == "code":
            before = notebook.cells[max(number - 2, 0) : number]  # a figure may follow the cell that computes it
            prose = any(one.cell_type == "markdown" for one in before)
            longest = max(map(len, cell.source.splitlines()))
            assert prose and longest <= 120 and cell.source.count("\n") < 25, f"cell {number}:\n{cell.source}"


def execute(name: str, out, **parameters: str) -> None:
    path = build_notebooks.ROOT / "notebooks" / f"{name}.ipynb"
    command = [sys.executable, "-m", "papermill", str(path), str(out / "x.ipynb"), "--kernel", "python3"]
    for key, value in {"PROFILE": "fast", "OUT_DIR": str(out), **parameters}.items():
        command += ["-r", key, value]
    result = subprocess.run(command, cwd=out, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=600)
    assert result.returncode == 0, result.stderr[-3000:]


@pytest.mark.parametrize("name", NAMES)
def test_a_lesson_runs_cold_on_the_phantom(name, tmp_path):
    execute(name, tmp_path, DATASET="phantom")


@pytest.mark.parametrize("name", ON_REAL_EM)
def test_a_lesson_runs_cold_on_real_em(name, tmp_path, em_data):
    execute(name, tmp_path, DATASET="fib25", DATA_DIR=os.fspath(em_data))
