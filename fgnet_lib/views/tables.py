"""Tables of results that fit the page: a few rows open, the rest folded, in groups."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape

from IPython.display import HTML

OPEN = 5  # rows that are shown without a click
FIRST = 34  # percent of the width for the first column, which holds the names
_TABLE = "width: 100%; table-layout: fixed; border-collapse: collapse; margin: 0; font-size: 0.85em"
_CELL = "padding: 0.25em 0.5em; overflow-wrap: anywhere; white-space: normal; vertical-align: top; text-align: "


def fold_table(heads: Sequence[str], groups: Mapping[str, Sequence[Sequence[str]]], missing: str = "") -> HTML:
    """Return a table whose first rows are open, and whose other rows unfold group by group.

    The first group's first `OPEN` rows are open. Each further group is a line with its name and the number of its rows,
    which a click opens. Columns share the width of the page and break their text, so a table is never wider than it.

    Args:
        heads: of the columns; the first column holds the names of rows. Columns of numbers are aligned right.
        groups: name of a group -> its rows, each a text for every column.
        missing: A sentence that takes the place of a table without rows, such as the command that measures them.

    Raises:
        ValueError: a row has more or fewer cells than there are heads.
    """
    lines = [line for rows in groups.values() for line in rows]
    if wrong := [line for line in lines if len(line) != len(heads)]:
        raise ValueError(f"a row has {len(wrong[0])} cells, the table {len(heads)} columns: {list(wrong[0])}")
    if missing and not lines:
        return HTML(f"<p>{escape(missing)}</p>")
    first, *others = [(name, list(rows)) for name, rows in groups.items() if rows] or [("", [])]
    caption = f"<caption style='text-align: left'><b>{escape(first[0])}</b></caption>" if first[0] else ""
    sides = (
        ["left", *(_side(column) for column in list(zip(*lines, strict=True))[1:])] if lines else ["left"] * len(heads)
    )
    html = _rows(heads, first[1][:OPEN], sides, caption)
    if first[1][OPEN:]:
        others = [(f"{first[0]}, continued" if first[0] else "more", first[1][OPEN:]), *others]
    for name, rows in others:
        summary = f"<summary>{escape(name)} ({len(rows)})</summary>"
        html += f"<details style='max-width: 100%'>{summary}{_rows(heads, rows, sides)}</details>"
    return HTML(f"<div class='fgnet-table' style='max-width: 100%; overflow-x: auto'>{html}</div>")


def _side(column: Sequence[str]) -> str:
    """Return where the text of a column goes: right if most of its cells are numbers."""
    numbers = sum(bool(re.match(r"[+-]?\d", cell)) for cell in column)
    return "right" if 2 * numbers > sum(map(bool, column)) else "left"


def _text(cell: str) -> str:
    """Return a cell in HTML; a long name breaks behind an underscore rather than anywhere."""
    return escape(cell).replace("_", "_<wbr>")


def _rows(heads: Sequence[str], rows: Sequence[Sequence[str]], sides: Sequence[str], caption: str = "") -> str:
    """Return a table in HTML; all tables of the same heads have columns of the same width."""
    widths = [FIRST] + [(100 - FIRST) / max(len(heads) - 1, 1)] * (len(heads) - 1)
    columns = "".join(f"<col style='width: {width:.1f}%'>" for width in widths)
    head = "".join(
        f"<th scope='col' style='{_CELL}{side}'>{_text(name)}</th>" for name, side in zip(heads, sides, strict=True)
    )
    body = "".join(
        "<tr>"
        + "".join(f"<td style='{_CELL}{side}'>{_text(cell)}</td>" for cell, side in zip(row, sides, strict=True))
        + "</tr>"
        for row in rows
    )
    top = f"{caption}<colgroup>{columns}</colgroup><thead><tr>{head}</tr></thead>"
    return f"<table style='{_TABLE}'>{top}<tbody>{body}</tbody></table>"
