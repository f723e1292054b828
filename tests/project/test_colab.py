"""Lessons by the rules of Colab: its old IPython, kernel and widgets, and a stand-in for google.colab.

Colab's versions of August 2026 shadow those of .venv in the kernel alone. What this cannot show: Colab's page itself,
and its Python, which is 3.13; here it is the one that runs the tests.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import build_notebooks
import nbformat
import pytest
from helpers.browser import cannot_test
from packaging.utils import canonicalize_name

pytestmark = pytest.mark.slow  # runs lessons

PINS = [
    *("ipython==7.34.0", "ipykernel==6.17.1", "ipywidgets==7.7.1", "widgetsnbextension==3.6.10"),
    *("jupyterlab_widgets==3.0.16", "jupyter_client==7.4.9", "traitlets==5.7.1", "tornado==6.5.7", "pyzmq==26.2.1"),
    *("ipython-genutils==0.2.0", "backcall==0.2.0", "decorator==4.4.2", "pickleshare==0.7.5", "nest-asyncio==1.6.0"),
    *("matplotlib==3.10.0", "plotly==5.24.1"),
]
STAND_IN = """
def eval_js(code):  # all that neuroglancer and we ask of Colab's page
    return "https://" + code.removeprefix("google.colab.kernel.proxyPort(").rstrip(")") + "-colab.example/"
"""
# appended to a lesson: every slider goes to its other end, and each picture has to follow the first one; predictions
# are made and answered
MOVE_SLIDERS = """
import ipywidgets, IPython
from ipywidgets import Box, Image, IntSlider, Widget

def within(widget):
    yield widget
    for child in getattr(widget, "children", ()):
        yield from within(child)

def pictures(explorer):
    return [widget.value for widget in within(explorer) if isinstance(widget, Image)]

assert (IPython.__version__, ipywidgets.__version__) == ("7.34.0", "7.7.1")
boxes = [list(within(widget)) for widget in Widget.widgets.values() if isinstance(widget, Box)]
inner = {id(widget) for box in boxes for widget in box[1:]}
explorers = [box for box in boxes if id(box[0]) not in inner and pictures(box[0])]
for box in explorers:
    sliders = [widget for widget in box if isinstance(widget, IntSlider) and widget.min < widget.max]
    before = pictures(box[0])
    for slider in sliders:
        slider.value = slider.min if slider.value != slider.min else slider.max
        assert slider is not sliders[0] or pictures(box[0]) != before, f"no picture follows {slider.description!r}"
predictions = [box[0] for box in boxes if [getattr(one, "description", "") for one in box[3:4]] == ["commit"]]
for question, choice, commit, below in (one.children for one in predictions):
    choice.value = "A"
    commit.click()
    assert choice.disabled and below.value.startswith("<b>")
print("predictions:", len(predictions))
core = {"@jupyter-widgets/base", "@jupyter-widgets/controls", "@jupyter-widgets/output"}
assert {widget._model_module for widget in Widget.widgets.values()} <= core  # others need Colab's custom manager
print("explorers:", len(explorers))
"""


@pytest.fixture(scope="module")
def kernel(request, tmp_path_factory) -> dict[str, str]:
    """The environment in which Jupyter finds the kernel "colab"; its packages are fetched once."""
    packages = request.config.cache.mkdir("colab") / f"python{sys.version_info.major}.{sys.version_info.minor}"
    wanted = "\n".join(PINS)
    if not (packages / "pins.txt").exists() or (packages / "pins.txt").read_text() != wanted:
        shutil.rmtree(packages, ignore_errors=True)
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--retries=10"]
        result = subprocess.run([*command, f"--target={packages}", *PINS], capture_output=True, text=True)
        if result.returncode:
            cannot_test(f"NO TEST BY THE RULES OF COLAB: its packages cannot be installed\n{result.stderr[-1000:]}")
        (packages / "google" / "colab").mkdir(parents=True)
        (packages / "google" / "colab" / "__init__.py").touch()
        (packages / "google" / "colab" / "output.py").write_text(STAND_IN)
        (packages / "pins.txt").write_text(wanted)
    jupyter = tmp_path_factory.mktemp("jupyter")
    spec = {
        "argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        "display_name": "Colab",
        "language": "python",
        "env": {
            "PYTHONPATH": os.pathsep.join([str(packages), str(build_notebooks.ROOT)]),  # before .venv's own
            "COLAB_RELEASE_TAG": "release-colab-20261120",
            "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        },
    }
    (jupyter / "kernels" / "colab").mkdir(parents=True)
    (jupyter / "kernels" / "colab" / "kernel.json").write_text(json.dumps(spec))
    return os.environ | {"JUPYTER_PATH": str(jupyter)}


def run(name: str, kernel: dict[str, str], folder: Path) -> str:
    """Run a solved lesson in Colab's kernel, move its sliders; gives all that it printed and showed as text or HTML."""
    lesson = nbformat.read(build_notebooks.ROOT / "notebooks" / "solutions" / f"{name}.ipynb", as_version=4)
    lesson.cells.append(nbformat.v4.new_code_cell(MOVE_SLIDERS))
    nbformat.write(lesson, folder / "lesson.ipynb")
    command = [sys.executable, "-m", "papermill", "lesson.ipynb", "done.ipynb", "--kernel=colab", "--start-timeout=300"]
    for key, value in {
        "PROFILE": "fast",
        "DATASET": "phantom",
        "OUT_DIR": str(folder / "out"),
        "DEVICE": "cpu",
    }.items():
        command += ["-r", key, value]
    result = subprocess.run(command, cwd=folder, env=kernel, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert result.returncode == 0, result.stderr[-3000:]
    cells = nbformat.read(folder / "done.ipynb", as_version=4).cells
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    texts = [
        part for output in outputs for part in (output.get("text"), output.get("data", {}).get("text/html")) if part
    ]
    return "\n".join(texts)


def test_the_versions_are_colabs(colab_list):
    assert [pin for pin in PINS if colab_list[canonicalize_name(pin.split("==")[0])] != pin.split("==")[1]] == []


@pytest.mark.parametrize("name", ("02_sam2_features", "03_feature_guided_attention"))
def test_a_lesson_runs_and_its_pictures_follow_the_sliders(name, kernel, tmp_path):
    output = run(name, kernel, tmp_path)
    assert "colab: cpu" in output  # the lesson's first line names the platform
    assert int(re.search(r"explorers: (\d+)", output)[1]) > 0
    assert int(re.search(r"predictions: (\d+)", output)[1]) > 1


def test_neuroglancer_goes_through_the_proxy_of_colab(kernel, tmp_path):
    output = run("06_neurons_in_3d", kernel, tmp_path)
    port = re.search(r"port (\d+)", output)[1]
    assert re.search(rf'<iframe src="https://{port}-colab\.example/v/\w+/"', output)
