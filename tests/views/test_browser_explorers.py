"""Explorers in JupyterLab, in a real browser: mouse, keys and touch reach the kernel, and what is saved is there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nbformat
import numpy as np
import pytest
from helpers.browser import (
    SCREENSHOTS,
    Watch,
    bring_into_view,
    jupyterlab,
    open_browser,
    open_notebook,
    run_all,
    wait_until,
)
from PIL import Image
from playwright.sync_api import Locator, Page

pytestmark = pytest.mark.slow  # opens a browser

VOLUME = """\
import numpy as np
from fgnet_lib.views import explorers
from fgnet_lib.volumes import Volume

rng = np.random.default_rng(0)
volume = Volume(rng.integers(0, 256, (4, 64, 96), np.uint8), (40.0, 8.0, 8.0))
"""
FEATURES = """\
features = [rng.normal(size=(5, 4, 64 // s, 96 // s)) for s in (4, 8, 16)]
explorers.feature_explorer(volume, features, "saved")"""
ATTENTION = """\
from dataclasses import replace
from fgnet_lib.configuration import MINI
from fgnet_lib.fgnet import FGNet

model = FGNet(replace(MINI, widths=(4, 4, 8, 8, 8), coarse_width=8))
explorers.attention_explorer(volume, model, folder="saved")"""


@contextmanager
def explorer_in_the_page(folder: Path, code: str) -> Iterator[tuple[Page, Watch]]:
    """The page of a notebook whose only cell, which shows an explorer, has run."""
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    cell = nbformat.v4.new_code_cell(VOLUME + code)
    notebook = nbformat.v4.new_notebook(cells=[cell], metadata={"kernelspec": kernel})
    nbformat.write(notebook, folder / "explorer.ipynb")
    with jupyterlab(folder) as address, open_browser() as (page, watch):
        open_notebook(page, address, "explorer.ipynb")
        run_all(page)
        page.locator("img.fgnet-picture").wait_for()
        wait_until(page, lambda: page.evaluate("window.fgnetListens === true"), "the listener is not there")
        yield page, watch


def shown(page: Page, control: str) -> int:
    """The number beside a slider."""
    return int(page.locator(f".fgnet-{control} .widget-readout").inner_text())


def chosen(page: Page, control: str) -> str:
    """The button that is down."""
    return page.locator(f".fgnet-{control} button.mod-active").inner_text()


def choose(page: Page, file: Path) -> None:
    """Choose a file of one's own."""
    with page.expect_file_chooser() as chooser:
        page.locator("button.fgnet-upload").click()
    chooser.value.set_files(file)


def swipe(page: Page, picture: Locator, x: float, y: float) -> None:
    """Move a finger over the picture, as the browser itself tells a page of touches."""
    assert picture.evaluate("picture => getComputedStyle(picture).touchAction") == "none"  # or the page would scroll
    session = page.context.new_cdp_session(page)
    for number, step in enumerate(range(0, 50, 6)):
        points = [{"x": x + step, "y": y + step / 2}]
        session.send(
            "Input.dispatchTouchEvent", {"type": "touchMove" if number else "touchStart", "touchPoints": points}
        )
    session.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})


def test_click_play_and_save(tmp_path):
    with explorer_in_the_page(tmp_path, FEATURES) as (page, watch):
        picture = page.locator("img.fgnet-picture")
        assert (shown(page, "y"), shown(page, "x")) == (32, 48)
        bring_into_view(page, picture)
        before, box = picture.get_attribute("src"), picture.bounding_box()
        page.mouse.click(box["x"] + 0.05 * box["width"], box["y"] + 0.5 * box["height"])  # left in the first panel
        wait_until(page, lambda: picture.get_attribute("src") != before, "a click changes nothing")
        assert shown(page, "x") < 24
        page.screenshot(path=SCREENSHOTS / "explorer-click.png")
        page.locator(".fgnet-play button").first.click()
        wait_until(page, lambda: shown(page, "z") == 3, "the sections do not play")
        saved = {"png": "features-0003.png", "gif": "features.gif", "arrays": "features-0003/EM.npy"}
        for button, path in saved.items():
            page.locator(f"button.fgnet-save-{button}").click()
            announced = path.partition("/")[0]
            status = page.locator(".fgnet-status")
            wait_until(page, lambda a=announced, s=status: f"saved saved/{a}" in s.inner_text(), f"no word of {path}")
            assert (tmp_path / "saved" / path).stat().st_size > 1000
        assert watch.problems == []


def test_keys_hover_brush_and_a_file_of_ones_own(tmp_path):
    with explorer_in_the_page(tmp_path, ATTENTION) as (page, watch):
        picture = page.locator("img.fgnet-picture")
        page.screenshot(path=SCREENSHOTS / "explorer-attention.png")
        cut = "all => all.filter(one => one.offsetParent && one.scrollWidth > one.clientWidth).length"
        assert page.locator(".widget-readout, .widget-label").evaluate_all(cut) == 0
        assert picture.get_attribute("alt").startswith("EM, z = 2; a1; ") and picture.get_attribute("tabindex") == "0"
        picture.scroll_into_view_if_needed()
        picture.focus()
        for key in ("z", "3", "ArrowLeft", "ArrowLeft"):
            page.keyboard.press(key)
        wait_until(page, lambda: (shown(page, "z"), shown(page, "x")) == (3, 46), "keys move nothing")
        wait_until(page, lambda: chosen(page, "level") == "a3", "a key chooses no level")
        wait_until(page, lambda: "a3" in picture.get_attribute("alt"), "the text stays that of another picture")
        for _ in range(12):
            page.keyboard.press("Z")
        wait_until(page, lambda: shown(page, "z") == 0, "keys get lost")
        before = picture.get_attribute("src")
        page.keyboard.press("o")
        wait_until(page, lambda: picture.get_attribute("src") != before, "the map stays")
        assert page.evaluate("jupyterapp.shell.currentWidget.content.model.cells.length") == 1  # no command of the page
        assert page.evaluate("document.activeElement.classList.contains('fgnet-picture')")

        box = picture.bounding_box()
        first = [box["x"] + 0.05 * box["width"], box["y"] + 0.5 * box["height"]]
        page.mouse.move(*first)
        values = page.locator(".fgnet-values")
        wait_until(page, lambda: values.inner_text().startswith("Mouse at y = "), "no values at the mouse")
        assert " · a3 0." in values.inner_text() and "EM " in values.inner_text()
        marks = [mark.bounding_box() for mark in page.locator(".fgnet-mark").all()]
        assert len(marks) == 3 and all(abs(mark["y"] + mark["height"] / 2 - first[1]) < 2 for mark in marks)
        page.screenshot(path=SCREENSHOTS / "explorer-hover.png")

        page.locator(".fgnet-what_if select").select_option("1")
        wait_until(page, lambda: "its change" in picture.get_attribute("alt"), "attention is not set")
        painted = page.locator(".fgnet-region input")
        picture.scroll_into_view_if_needed()
        box = picture.bounding_box()
        first = [box["x"] + 0.05 * box["width"], box["y"] + 0.5 * box["height"]]
        page.mouse.move(*first)
        page.mouse.down()
        page.mouse.move(first[0] + 60, first[1] + 40, steps=8)
        assert page.locator(".fgnet-stroke polyline").count() == 1
        page.screenshot(path=SCREENSHOTS / "explorer-brush.png")
        page.mouse.up()
        wait_until(page, lambda: painted.input_value(), "the brush paints nothing")
        radius, *ends = json.loads(painted.input_value())[0]
        assert radius == 4 and len(ends) > 8 and ends[-2] > ends[0] and ends[-1] > ends[1]
        wait_until(page, lambda: page.locator(".fgnet-stroke").count() == 0, "the stroke stays over the picture")
        page.screenshot(path=SCREENSHOTS / "explorer-region.png")
        swipe(page, picture, *first)
        wait_until(page, lambda: len(json.loads(painted.input_value())) == 2, "a finger paints nothing")
        page.locator("button.fgnet-clear").click()
        wait_until(page, lambda: painted.input_value() == "", "the painting stays")

        Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 48), np.uint8)).save(tmp_path / "own.png")
        (tmp_path / "notes.png").write_text("no image")
        status = page.locator(".fgnet-status")
        choose(page, tmp_path / "notes.png")
        wait_until(page, lambda: "cannot be read as an image" in status.inner_text(), "a wrong file is not told")
        choose(page, tmp_path / "own.png")
        wait_until(page, lambda: "own.png: (1, 40, 48)" in status.inner_text(), "the image is not taken")
        assert (shown(page, "z"), shown(page, "y"), shown(page, "x")) == (0, 20, 24)
        page.screenshot(path=SCREENSHOTS / "explorer-own.png")

        page.set_viewport_size({"width": 390, "height": 844})
        wide = "picture => picture.getBoundingClientRect().width >= 0.69 * picture.naturalWidth"
        wait_until(page, lambda: picture.evaluate(wide), "the picture is too small to read on a phone")
        picture.scroll_into_view_if_needed()
        page.screenshot(path=SCREENSHOTS / "explorer-phone.png")
        assert watch.problems == []
