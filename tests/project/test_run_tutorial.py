from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import nbformat
import psutil
import pytest
import run_tutorial
from nbformat import v4

pytestmark = pytest.mark.slow  # runs notebooks

PARAMETERS = {"PROFILE": "fast", "DATASET": "phantom"}
FILL = "import time\nblock = b'x' * 200_000_000\ntime.sleep(1)"  # long enough to be sampled
QUIET = "try:\n    1 / 0\nexcept ZeroDivisionError as error:\n    print(f'refused, an error: {error}. 0 ERRORS.')"
NOISY = (
    "import threading\nthread = threading.Thread(target=lambda: 1 / 0)\nthread.start()\nthread.join()",
    "import os, sys\n_ = os.system(f'{sys.executable} -c \"import logging; logging.critical(7)\"')",
    "import logging\nlogging.basicConfig(format='%(name)s - %(levelname)s - %(message)s')\nlogging.error('no')",
)
DRAW = "import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()"


def write(folder: Path, name: str, *cells: str) -> Path:
    notebook = v4.new_notebook(cells=[v4.new_code_cell(source) for source in ('PROFILE = "cpu"', *cells)])
    notebook.cells[0].metadata["tags"] = ["parameters"]
    notebook.metadata = {"kernelspec": {"name": "python3", "language": "python", "display_name": "Python 3"}}
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
    good = write(tmp_path, "00_good", count, DRAW, "print(PROFILE, DATASET)", FILL)
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
    assert run["lessons"][0]["peak_memory_mb"] > 300 and 0 < run["lessons"][0]["seconds"] < 120
    page = (out / "index.html").read_text()
    assert 'href="00_good.html"' in page and 'src="figures/00_good-1.png"' in page
    assert (out / "figures" / "00_good-1.png").read_bytes().startswith(b"\x89PNG")
    assert "fast phantom" in (out / "00_good.ipynb").read_text()


def test_a_lesson_that_prints_an_error_is_marked_and_the_run_goes_on(out, tmp_path, capsys):
    noisy, quiet = write(tmp_path, "00_noisy", *NOISY), write(tmp_path, "01_quiet", QUIET)
    assert run_tutorial.run_tutorial([noisy, quiet], out, PARAMETERS) == 1
    assert "lesson 00_noisy printed an error in cell 2 " in capsys.readouterr().out
    lessons = json.loads((out / "run.json").read_text())["lessons"]
    assert [lesson["status"] for lesson in lessons] == [run_tutorial.PRINTED, "done"]
    assert "Exception in thread" in lessons[0]["error"] and lessons[1]["error"] is None
    marks = re.findall('<td class="(done|wrong)"', (out / "index.html").read_text())
    assert marks == ["wrong", "done"]
    lines = {line for _, line in run_tutorial.find_errors(out / "00_noisy.ipynb", (out / "00_noisy.log").read_text())}
    assert lines >= {"Traceback (most recent call last):", "CRITICAL:root:7", "root - ERROR - no"}
    log = "Executing notebook\nTask exception was never retrieved\n"
    assert run_tutorial.find_errors(out / "01_quiet.ipynb", log) == [(None, "Task exception was never retrieved")]


def test_a_kernel_that_dies_is_reported(out, tmp_path, capsys):
    notebook = write(tmp_path, "00_dies", "import os\nos._exit(1)")
    assert run_tutorial.run_tutorial([notebook], out, PARAMETERS) == 1
    assert "00_dies, the kernel died" in capsys.readouterr().out


def test_a_lesson_beyond_its_limit_is_stopped_with_its_kernel(tmp_path):
    notebook = write(tmp_path, "00_endless", "import time\ntime.sleep(3600)")
    before = set(psutil.Process().children(recursive=True))
    code, *_ = run_tutorial.execute(notebook, tmp_path / "x.ipynb", PARAMETERS, tmp_path, limit=1)
    assert code != 0 and set(psutil.Process().children(recursive=True)) <= before


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
def test_unknown_names_are_refused_with_the_list(wrong, known, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["run_tutorial.py", *wrong])
    with pytest.raises(SystemExit) as stop:
        run_tutorial.main()
    said = capsys.readouterr().err
    assert stop.value.code == 2 and wrong[1] in said and known in said


def test_data_that_cannot_be_had_are_told_before_any_lesson(out, monkeypatch, capsys):
    def nothing(dataset, part):
        raise FileNotFoundError("fib25: no such file")

    monkeypatch.setattr(run_tutorial, "open_dataset", nothing)
    monkeypatch.setattr(sys, "argv", ["run_tutorial.py", "--dataset", "fib25"])
    assert run_tutorial.main() == 1
    assert "fib25: no such file" in capsys.readouterr().out
