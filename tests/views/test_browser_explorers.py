"""An explorer in JupyterLab, in a real browser: a click moves the cross, play runs, what is saved is there."""

from __future__ import annotations

import nbformat
import pytest
from helpers.browser import SCREENSHOTS, jupyterlab, open_browser, open_notebook, run_all, wait_until
from playwright.sync_api import Page

pytestmark = pytest.mark.slow  # opens a browser

CELL = """\
import numpy as np
from fgnet_lib.views import explorers
from fgnet_lib.volumes import Volume

rng = np.random.default_rng(0)
volume = Volume(rng.integers(0, 256, (4, 64, 96), np.uint8), (40.0, 8.0, 8.0))
features = [rng.normal(size=(5, 4, 64 // s, 96 // s)) for s in (4, 8, 16)]
explorers.feature_explorer(volume, features, "saved")"""


def shown(page: Page, control: str) -> int:
    """The number beside a slider."""
    return int(page.locator(f".fgnet-{control} .widget-readout").inner_text())


def test_click_play_and_save(tmp_path):
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CELL)], metadata={"kernelspec": kernel})
    nbformat.write(notebook, tmp_path / "explorer.ipynb")
    with jupyterlab(tmp_path) as address, open_browser() as (page, watch):
        open_notebook(page, address, "explorer.ipynb")
        run_all(page)
        picture = page.locator("img.fgnet-picture")
        picture.wait_for()
        wait_until(page, lambda: page.evaluate("window.fgnetClicks === true"), "the listener is not there")
        assert (shown(page, "y"), shown(page, "x")) == (32, 48)
        before, box = picture.get_attribute("src"), picture.bounding_box()
        page.mouse.click(box["x"] + 0.05 * box["width"], box["y"] + 0.5 * box["height"])  # left in the first panel
        wait_until(page, lambda: picture.get_attribute("src") != before, "a click changes nothing")
        assert shown(page, "x") < 24
        page.screenshot(path=SCREENSHOTS / "explorer-click.png")
        page.locator(".fgnet-play button").first.click()
        wait_until(page, lambda: shown(page, "z") == 3, "the sections do not play")
        for button, path in (("save-png", "features-0003.png"), ("save-gif", "features.gif")):
            page.locator(f"button.fgnet-{button}").click()
            wait_until(page, lambda p=path: p in page.locator(".fgnet-status").inner_text(), f"{path} is not announced")
            assert (tmp_path / "saved" / path).stat().st_size > 1000
        assert watch.problems == []
