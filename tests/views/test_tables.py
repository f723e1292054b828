"""Folded tables: five rows open, the rest in groups, and nothing wider than a page or a phone."""

from __future__ import annotations

import re

import pytest
from helpers.browser import SCREENSHOTS, open_browser

from fgnet_lib.views.tables import OPEN, fold_table

HEADS = ["row", "VOI (bits)", "difference", "ARAND", "runs", "p"]
TITLE = "FGNet frozen, trained as long as the fine-tuned one, a_name_of_many_letters_without_a_space <b>"


def rows(count: int) -> list[list[str]]:
    return [[f"{TITLE} {k}", "1.319 ± 0.046", "-0.121 ± 0.046", "0.119 ± 0.015", "3, 3", "0.10"] for k in range(count)]


def test_five_rows_are_open_and_the_rest_is_folded_by_group():
    html = fold_table(HEADS, {"Does a guide help?": rows(7), "not measured": [], "Other questions": rows(2)}).data
    open_part, *folds = html.split("<details")
    assert [part.count("<tr>") - 1 for part in (open_part, *folds)] == [OPEN, 2, 2]  # without the line of heads
    assert re.findall(r"<summary>(.*?)</summary>", html) == ["Does a guide help?, continued (2)", "Other questions (2)"]
    assert "<b>Does a guide help?</b>" in open_part and "not measured" not in html
    assert "&lt;b&gt;" in html


def test_a_short_table_has_no_fold_and_an_empty_one_only_heads():
    assert "<details" not in fold_table(HEADS, {"": rows(5)}).data
    assert fold_table(HEADS, {}).data.count("<tr>") == fold_table(HEADS, {"": rows(1)}, "Run x.").data.count("<tr>") - 1
    assert fold_table(HEADS, {"Does it help?": []}, "Run `a & b`.").data == "<p>Run `a &amp; b`.</p>"
    assert "<summary>more (1)</summary>" in fold_table(HEADS, {"": rows(6)}).data


def test_a_row_of_another_length_is_refused():
    with pytest.raises(ValueError, match="a row has 2 cells, the table 6 columns"):
        fold_table(HEADS, {"": [["a", "b"]]})


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390])
def test_a_table_is_never_wider_than_the_page(width):
    html = fold_table(HEADS, {"Does a guide help?": rows(7), "Other questions": rows(2)}).data
    with open_browser(width=width, height=900) as (page, watch):
        page.set_content(f"<meta name=viewport content='width=device-width'><body style='font-size: 14px'>{html}")
        assert page.locator("tr").filter(visible=True).count() == 1 + OPEN
        for summary in page.locator("summary").all():
            summary.click()
        page.screenshot(path=SCREENSHOTS / f"table-{width}.png", full_page=True)
        assert page.locator("tr").filter(visible=True).count() == 3 + OPEN + 4
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        tables = page.evaluate("[...document.querySelectorAll('table')].map(t => [t.offsetWidth, t.scrollWidth])")
        assert all(inner <= outer <= width for outer, inner in tables) and watch.problems == []
        columns = page.evaluate(
            "[...document.querySelectorAll('table')].map(t => [...t.rows[0].cells].map(c => Math.round(c.offsetLeft)))"
        )
        assert columns == [columns[0]] * 3  # open and folded rows line up
