"""Pages without a kernel: a widget leaves its picture, a viewer the scene, and what a cell wrote is framed."""

from __future__ import annotations

from pathlib import Path

import pytest
import still_pages
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_notebook, new_output

VIEW = {still_pages.VIEW: {"model_id": "box"}, "text/plain": "Explorer()"}
STATES = {
    "box": {"model_name": "VBoxModel", "state": {"children": ["IPY_MODEL_picture", "IPY_MODEL_text", "IPY_MODEL_no"]}},
    "picture": {
        "model_name": "ImageModel",
        "state": {"format": "jpeg"},
        "buffers": [{"path": ["value"], "encoding": "base64", "data": "anBlZw=="}],
    },
    "text": {"model_name": "HTMLModel", "state": {"value": "<b>7</b>"}},
    "no": {"model_name": "HTMLModel", "state": {"value": " "}},
}


def still(results: Path, *outputs: list[NotebookNode]) -> list[NotebookNode]:
    """The cells of a notebook with these outputs, without what needs a kernel."""
    notebook = new_notebook(cells=[new_code_cell("x", outputs=part) for part in outputs])
    notebook.metadata["widgets"] = {still_pages.STATE: {"state": STATES}}
    still_pages.make_still(notebook, results, lambda path: f"files/{path.name}")
    assert "widgets" not in notebook.metadata
    return notebook.cells


def show(data: dict) -> NotebookNode:
    return new_output("display_data", dict(data))


def texts(cell: NotebookNode) -> str:
    return " ".join(output.get("data", {}).get("text/html", "") for output in cell.outputs)


def test_a_widget_leaves_its_picture_and_its_text(tmp_path):
    (cell,) = still(tmp_path, [show(VIEW)])
    assert still_pages.HERE in texts(cell) and "<b>7</b>" in texts(cell)
    assert [output.data["image/jpeg"] for output in cell.outputs if "image/jpeg" in output.data] == ["anBlZw=="]
    assert cell.metadata.alt == still_pages.ALT and len(cell.outputs) == 3


def test_a_widget_before_a_picture_leaves_a_note_alone(tmp_path):
    cell, _ = still(tmp_path, [show(VIEW)], [show({"image/png": "x"})])
    assert texts(cell) == f'<p class="still">{still_pages.NEXT}</p>' and "alt" not in cell.metadata


def test_a_widget_that_says_the_same_as_html_is_shown_as_html_and_a_progress_bar_not_at_all(tmp_path):
    cell, bar = still(tmp_path, [show(VIEW | {"text/html": "<i>same</i>"})], [show(VIEW | {"text/plain": " 10%|# |"})])
    assert cell.outputs[0].data == {"text/html": "<i>same</i>", "text/plain": "Explorer()"}
    assert bar.outputs == []


@pytest.mark.parametrize(
    ("page", "kind", "title"),
    [
        ("<title>Where?</title><meta name=viewport content='width=device-width'>", "explorer", "Where?"),
        ("<p>plotly</p>", "scene", "3D scene, turns when dragged"),
    ],
)
def test_an_html_file_is_framed_where_a_cell_says_that_it_wrote_it(tmp_path, page, kind, title):
    (tmp_path / "made.html").write_text(page)
    printing, other = still(
        tmp_path,
        [new_output("stream", text="/somewhere/made.html (1 MB), not gone.html")],
        [show({"text/html": '<iframe src="http://127.0.0.1:80/v/">'})],
    )
    framed = f'<div class="{kind}"><iframe src="files/made.html" loading="lazy" title="{title}"></iframe></div>'
    assert texts(printing).strip() == framed
    assert "127.0.0.1" not in texts(other) and (framed in texts(other)) == (kind == "scene")


def test_a_word_of_megabytes_takes_no_time(tmp_path):
    (printing,) = still(tmp_path, [new_output("stream", text="x" * 3_000_000)])
    assert texts(printing) == ""  # with a pattern that tries every beginning, this line would come after hours
