"""Lessons in JupyterLab, as a student has them: open, Run All, move a slider, and the picture changes."""

from __future__ import annotations

import base64
import io
import json
import os
import sys
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import build_notebooks
import numpy as np
import pytest
from helpers.browser import (
    SCREENSHOTS,
    bring_into_view,
    jupyterlab,
    open_browser,
    open_notebook,
    run_all,
    run_cell,
    show_frame,
    wait_until,
)
from matplotlib.image import imread
from papermill.iorw import load_notebook_node, write_ipynb
from papermill.parameterize import parameterize_notebook
from PIL import Image
from playwright.sync_api import Locator, Page

pytestmark = pytest.mark.slow  # opens a browser

PICTURE = """async image => {
  const bytes = new Uint8Array(await (await fetch(image.src)).arrayBuffer());
  return btoa(Array.from(bytes, byte => String.fromCharCode(byte)).join(""));
}"""
EXPLORERS = ".jp-OutputArea-output:has(.widget-slider):has(img.widget-image)"


@pytest.fixture
def opened(tmp_path) -> Callable[[str], AbstractContextManager[Page]]:
    """Runs all of a lesson in JupyterLab with profile fast; gives the page with its outputs."""

    @contextmanager
    def run(name: str) -> Iterator[Page]:
        lesson = load_notebook_node(str(build_notebooks.ROOT / "notebooks" / f"{name}.ipynb"))
        parameters = {"PROFILE": "fast", "DATASET": "phantom", "OUT_DIR": str(tmp_path / "out"), "DEVICE": "cpu"}
        write_ipynb(parameterize_notebook(lesson, parameters), str(tmp_path / f"{name}.ipynb"))
        with jupyterlab(tmp_path) as address, open_browser() as (page, watch):
            open_notebook(page, address, f"{name}.ipynb")
            run_all(page)
            yield page
            assert watch.problems == []
            badges = build_notebooks.badges(name)  # pictures at the head of a lesson; nothing else comes from outside
            assert [url for url in watch.outside if url not in badges] == []

    return run


def pictures(explorer: Locator) -> list[bytes]:
    """The image files that an explorer shows."""
    return [base64.b64decode(image.evaluate(PICTURE)) for image in explorer.locator("img.widget-image").all()]


def move(slider: Locator) -> None:
    """Drag the handle, as with a mouse, far into the other half of its rail."""
    bring_into_view(slider.page, slider)
    handle, rail = (slider.locator(part).first.bounding_box() for part in (".noUi-handle", ".noUi-target"))
    x, y = (handle[start] + handle[size] / 2 for start, size in (("x", "width"), ("y", "height")))
    on_the_left = x < rail["x"] + rail["width"] / 2
    slider.page.mouse.move(x, y)
    slider.page.mouse.down()
    slider.page.mouse.move(rail["x"] + rail["width"] * (7 / 8 if on_the_left else 1 / 8), y, steps=4)
    slider.page.mouse.up()


def test_a_slider_moves_the_picture(opened):
    name = "05_affinities_to_neurons"  # test_colab.py moves the sliders of 02 and 03
    with opened(name) as page:
        explorers = page.locator(EXPLORERS)
        wait_until(page, lambda: explorers.count() > 0, "no explorer appears")
        for number, explorer in enumerate(explorers.all(), start=1):
            before = pictures(explorer)
            move(explorer.locator(".widget-slider:visible").first)
            wait_until(page, lambda e=explorer, b=before: pictures(e) != b, f"explorer {number} shows the same picture")
            page.screenshot(path=SCREENSHOTS / f"{name}-explorer-{number}.png")
            assert all(np.std(Image.open(io.BytesIO(file))) > 10 for file in pictures(explorer)), "an empty picture"


def test_neurons_in_3d_are_shown_in_the_lesson(opened):
    with opened("06_neurons_in_3d") as page:
        frame = show_frame(page)
        page.screenshot(path=SCREENSHOTS / "06_neurons_in_3d.png")
        canvas = frame.frame_element()
        box, before = canvas.bounding_box(), canvas.screenshot()
        panels = imread(io.BytesIO(before))[60:, :, :3]  # two rows, two columns: xy, xz, 3D, yz; tabs of layers above
        height, width = (size // 2 for size in panels.shape[:2])
        for panel in (
            panels[:height, :width],
            panels[:height, width:],
            panels[height:, :width],
            panels[height:, width:],
        ):
            assert (np.ptp(panel, axis=-1) > 0.1).mean() > 0.03, "neurons are coloured in every panel"
        position = frame.evaluate("Array.from(viewer.position.value)")
        page.mouse.move(box["x"] + 100, box["y"] + 150)  # over the xy panel
        frame.wait_for_function("document.activeElement.classList.contains('neuroglancer-rendered-data-panel')")
        page.keyboard.press(",")  # one section back
        behind = [position[0], position[1], position[2] - 1]
        wait_until(page, lambda: frame.evaluate("Array.from(viewer.position.value)") == behind, "it does not move")
        wait_until(page, lambda: canvas.screenshot() != before, "the picture stays the same")


def write_wrong_kernel(folder: Path) -> None:
    """Write a "python3" that starts as in another environment: with Jupyter's kernel, but without the library."""
    command = [sys.executable, "-S", "-m", "ipykernel_launcher", "-f", "{connection_file}"]  # -S: no editable install
    spec = {"argv": command, "display_name": "Python 3", "language": "python"}
    spec["env"] = {"PYTHONPATH": sysconfig.get_path("purelib")}
    (folder / "kernels" / "python3").mkdir(parents=True)
    (folder / "kernels" / "python3" / "kernel.json").write_text(json.dumps(spec))


def test_the_wrong_kernel_is_named_below_the_set_up_cell(tmp_path):
    root = tmp_path / build_notebooks.NAME
    for folder in ("fgnet_lib", "notebooks"):
        (root / folder).mkdir(parents=True)
    name = "00_welcome.ipynb"
    (root / "notebooks" / name).write_bytes((build_notebooks.ROOT / "notebooks" / name).read_bytes())
    write_wrong_kernel(tmp_path / "jupyter")
    with (
        jupyterlab(root, JUPYTER_PATH=os.fspath(tmp_path / "jupyter")) as address,
        open_browser() as (page, _),
    ):
        open_notebook(page, address, f"notebooks/{name}")
        run_cell(page, 1)
        with pytest.raises(AssertionError, match="wrong kernel"):
            run_cell(page, 2)
        page.screenshot(path=SCREENSHOTS / "wrong-kernel.png")
        sentence = f"RuntimeError: wrong kernel: choose .venv of {root}; if there is none, run `make env` there first"
        assert sentence in " ".join(page.locator(".jp-OutputArea-output").last.inner_text().split())
    assert sorted(path.name for path in root.iterdir() if not path.name.startswith(".")) == ["fgnet_lib", "notebooks"]
