"""An executed lesson for readers without its kernel: pictures in place of widgets, and the HTML files it wrote, framed.

Both the pages of `make tutorial` and those of `make site` are made of what `make_still` leaves.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from nbformat import NotebookNode
from nbformat.v4 import new_output

VIEW = "application/vnd.jupyter.widget-view+json"
STATE = "application/vnd.jupyter.widget-state+json"
PROGRESS = re.compile(r"\d%\|")
SERVER = "//127.0.0.1"  # a viewer that only this machine has
FOR_PHONES = "width=device-width"  # a page that says this fits a narrow screen by itself
FRAME = '<div class="{kind}"><iframe src="{address}" loading="lazy" title="{title}"></iframe></div>'
ALT = "What the controls of this cell showed when the lesson ran."
NEXT = "In a running notebook, controls appear here. The next picture shows one of their states."
HERE = "In a running notebook, controls appear here. This is what they showed when the lesson ran."
NOTHING = "In a running notebook, controls appear here. Open the lesson by a link at its head to use them."
VIEWER = "In a running notebook, the viewer opens here."
SCENE = "In a running notebook, the viewer opens here. This is the scene that the lesson exports further below."

Address = Callable[[Path], str]  # of a file that a lesson wrote, as its page has to link to it


def make_still(notebook: NotebookNode, results: Path, address: Address) -> None:
    """Replace every output that needs a kernel or a server, in place; frame HTML files where a cell says it wrote them.

    Args:
        notebook: an executed lesson, with the state of its widgets.
        results: folder of what the lesson saved.
        address: gives the link to a file of `results`.
    """
    states = notebook.metadata.pop("widgets", {}).get(STATE, {}).get("state", {})
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    frames = {cell.id: [embed(path, address) for path in written_pages(cell, results)] for cell in code}
    scene = next((text for texts in frames.values() for text in texts if 'class="scene"' in text), None)
    for cell, following in zip(code, [*code[1:], None], strict=True):
        outputs: list[NotebookNode] = []
        for output in cell.outputs:
            data = output.get("data", {})
            if SERVER in data.get("text/html", ""):
                outputs += [note(SCENE), html(scene)] if scene else [note(VIEWER)]
            elif VIEW in data and data.keys() <= {VIEW, "text/plain"}:
                outputs += without_kernel(cell, output, states, following)
            else:
                data.pop(VIEW, None)
                outputs.append(output)
        cell.outputs = outputs + [html(text) for text in frames[cell.id]]


def without_kernel(
    cell: NotebookNode, output: NotebookNode, states: dict[str, Any], following: NotebookNode | None
) -> list[NotebookNode]:
    """What a page shows for a widget: the picture of the next cell, the widget's own, its text, or a note alone."""
    if PROGRESS.search(output.data.get("text/plain", "")):
        return []
    shown = list(contents(output.data[VIEW]["model_id"], states))
    pictures = [data for data in shown if "text/html" not in data]
    if following is not None and has_picture(following):
        return [note(NEXT)]
    if pictures:
        cell.metadata.setdefault("alt", ALT)
    notes = [note(HERE if pictures else NOTHING)] if pictures or not shown else []
    return [*notes, *(new_output("display_data", data) for data in shown)]


def contents(model_id: str, states: dict[str, Any]) -> Iterator[dict[str, str]]:
    """The pictures and the HTML that a widget and the widgets in it hold, as data of outputs."""
    model = states.get(model_id, {})
    state, kind = model.get("state", {}), model.get("model_name")
    if kind == "ImageModel":
        yield from ({f"image/{state['format']}": buffer["data"]} for buffer in model.get("buffers", []))
    elif kind == "HTMLModel" and state["value"].strip():
        yield {"text/html": state["value"]}
    for child in state.get("children", []):
        yield from contents(child.removeprefix("IPY_MODEL_"), states)


def has_picture(cell: NotebookNode) -> bool:
    """Whether a cell shows a picture by itself."""
    return any(kind.startswith("image/") for output in cell.outputs for kind in output.get("data", {}))


def written_pages(cell: NotebookNode, results: Path) -> list[Path]:
    """The HTML files in the results of a lesson that a cell says it wrote."""
    text = "".join(str(output.get("text", "")) for output in cell.outputs)
    names = re.findall(r"(?<![\w-])[\w-]+\.html", text)  # from a word's beginning, or a long word would take hours
    return [results / name for name in names if (results / name).is_file()]


def embed(path: Path, address: Address) -> str:
    """The HTML that shows a page in a page: an explorer, which fits any width, or a 3D scene, which does not."""
    page = path.read_text(encoding="utf-8")
    title = re.search(r"<title>(.*?)</title>", page)
    explorer = FOR_PHONES in page[:2000]
    return FRAME.format(
        kind="explorer" if explorer else "scene",
        address=address(path),
        title=title[1] if explorer and title else "3D scene, turns when dragged",
    )


def note(text: str) -> NotebookNode:
    """An output that tells the reader something."""
    return html(f'<p class="still">{text}</p>')


def html(text: str) -> NotebookNode:
    """An output of HTML."""
    return new_output("display_data", {"text/html": text})
