"""neuroglancer as a hub shows it, in a real browser: JupyterLab under a prefix, and the viewer behind its proxy."""

from __future__ import annotations

import io
import re
from urllib.parse import urlsplit

import nbformat
import numpy as np
import pytest
from helpers.browser import SCREENSHOTS, jupyterlab, open_browser, open_notebook, run_cell, show_frame
from matplotlib.image import imread

pytestmark = pytest.mark.slow  # opens a browser

CELLS = [
    """
import numpy as np
from fgnet_lib.views import viewer
from fgnet_lib.volumes import Volume

labels = np.zeros((10, 60, 80), np.uint64)
labels[2:8, 10:50, 20:70] = 7
view = viewer.show(Volume(np.full(labels.shape, 128, np.uint8), (40, 8, 8), labels))
view
""",
    """
with view.viewer.txn() as state:
    state.position = [25, 35, 2]
""",
    "print(view.viewer.state.position)",
]
PARTS = (
    r"v/\w+/$",
    r"v/\w+/main\.\w+\.js$",
    "neuroglancer/info/",
    "neuroglancer/npz/",
    "neuroglancer/mesh/",
    "events/",
)


def test_a_hub_shows_neuroglancer_through_its_proxy(tmp_path):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell.strip()) for cell in CELLS])
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3"}  # or JupyterLab asks for one
    nbformat.write(notebook, tmp_path / "hub.ipynb")
    prefix = "/user/name/"
    with (
        jupyterlab(tmp_path, prefix, JUPYTERHUB_SERVICE_PREFIX=prefix) as address,
        open_browser() as (page, watch),
    ):
        open_notebook(page, address, "hub.ipynb")
        run_cell(page, 1)
        frame = show_frame(page, f"{prefix}proxy/")
        run_cell(page, 2)  # Python moves the viewer, and the browser follows
        frame.wait_for_function("String(viewer.position.value) === '25,35,2' && viewer.isReady()")
        page.screenshot(path=SCREENSHOTS / "hub.png")
        picture = imread(io.BytesIO(frame.frame_element().screenshot()))[..., :3]
        assert (np.ptp(picture, axis=-1) > 0.1).mean() > 0.05  # the neuron, in colour
        with page.expect_response(lambda answer: "/state/" in answer.url and answer.ok):
            frame.evaluate("viewer.position.value = Float32Array.of(26, 36, 3)")  # the browser moves, and Python knows
        run_cell(page, 3)
        assert "[26. 36.  3.]" in page.locator(".jp-OutputArea-output").last.inner_text()
        assert watch.problems == watch.outside == []
        asked = [urlsplit(url) for url in watch.asked if url.startswith("http")]
        proxied = "\n".join(url.path for url in asked if "/proxy/" in url.path)
        for part in PARTS:
            assert re.search(rf"^/user/name/proxy/\d+/{part}", proxied, re.MULTILINE), f"{part} is not in\n{proxied}"
        assert {url.netloc for url in asked} == {urlsplit(address).netloc}  # nothing goes past the hub
