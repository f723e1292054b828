from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import run_tutorial
from nbformat import v4

PARAMETERS = {"PROFILE": "fast", "DATASET": "phantom"}
DRAW = "import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()"


def write(folder: Path, name: str, *cells: str) -> Path:
    notebook = v4.new_notebook(cells=[v4.new_code_cell(source) for source in ('PROFILE = "cpu"', *cells)])
    notebook.cells[0].metadata["tags"] = ["parameters"]
    nbformat.write(notebook, folder / f"{name}.ipynb")
    return folder / f"{name}.ipynb"


@pytest.fixture
def out(tmp_path, monkeypatch):
    """A folder for results, with a stand-in for what the key of a lesson hashes of the repository."""
    (tmp_path / "fgnet_lib").mkdir()
    (tmp_path / "fgnet_lib" / "module.py").write_text("")
    monkeypatch.setattr(run_tutorial, "ROOT", tmp_path)
    return tmp_path / "out"


def test_a_run_stops_at_a_failure_and_goes_on_when_it_is_mended(out, tmp_path, capsys):
    count = f"open({str(tmp_path / 'runs')!r}, 'a').write('x')"  # one x for each time that the first lesson runs
    good = write(tmp_path, "00_good", count, DRAW, "print(PROFILE, DATASET)", "block = bytes(200_000_000)")
    bad = write(tmp_path, "01_bad", "pass", "raise ValueError('no such voxel')")

    assert run_tutorial.run_tutorial([good, bad], out, PARAMETERS) == 1
    *_, where, error = capsys.readouterr().out.strip().splitlines()
    assert "01_bad" in where and "cell" in where and error == "ValueError: no such voxel"
    run = json.loads((out / "run.json").read_text())
    assert [lesson["status"] for lesson in run["lessons"]] == ["done", "failed"]
    assert nbformat.read(out / "01_bad.ipynb", 4).cells[run["lessons"][1]["cell"]].source.startswith("raise")

    write(tmp_path, "01_bad", "pass")
    assert run_tutorial.run_tutorial([good, bad], out, PARAMETERS) == 0
    printed = capsys.readouterr().out
    assert "[1/2] 00_good" in printed and "done before" in printed and str(out / "index.html") in printed
    assert (tmp_path / "runs").read_text() == "x"
    run = json.loads((out / "run.json").read_text())
    assert [lesson["status"] for lesson in run["lessons"]] == ["done", "done"]
    assert run["lessons"][0]["peak_memory_mb"] > 200 and 0 < run["lessons"][0]["seconds"] < 120
    page = (out / "index.html").read_text()
    assert 'href="00_good.html"' in page and 'src="figures/00_good-1.png"' in page
    assert (out / "figures" / "00_good-1.png").read_bytes().startswith(b"\x89PNG")
    assert "fast phantom" in (out / "00_good.ipynb").read_text()


def test_a_kernel_that_dies_is_reported(out, tmp_path, capsys):
    notebook = write(tmp_path, "00_dies", "import os\nos._exit(1)")
    assert run_tutorial.run_tutorial([notebook], out, PARAMETERS) == 1
    assert "00_dies, the kernel died" in capsys.readouterr().out


def test_the_key_depends_on_notebook_library_and_parameters(out, tmp_path):
    notebook = write(tmp_path, "00_a", "pass")
    keys = {run_tutorial.sources_key(notebook, PARAMETERS)}
    assert run_tutorial.sources_key(notebook, dict(PARAMETERS)) in keys
    keys.add(run_tutorial.sources_key(notebook, {**PARAMETERS, "PROFILE": "cpu"}))
    write(tmp_path, "00_a", "pass", "pass")
    keys.add(run_tutorial.sources_key(notebook, PARAMETERS))
    (tmp_path / "fgnet_lib" / "module.py").write_text("changed = True")
    keys.add(run_tutorial.sources_key(notebook, PARAMETERS))
    assert len(keys) == 4


@pytest.mark.parametrize(
    ("wrong", "known"), [(["--dataset", "phantm"], "phantom"), (["--profile", "turbo"], "fast")], ids=str
)
def test_unknown_names_are_refused_before_anything_runs(wrong, known):
    script = Path(run_tutorial.__file__)
    result = subprocess.run([sys.executable, script, *wrong], capture_output=True, text=True)
    assert result.returncode and wrong[1] in result.stderr and known in result.stderr
