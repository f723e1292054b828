"""A prediction in JupyterLab: choose, commit, read the reason."""

from __future__ import annotations

import nbformat
import pytest
from helpers.browser import SCREENSHOTS, jupyterlab, open_browser, open_notebook, run_all

from fgnet_lib.course import quiz

pytestmark = pytest.mark.slow  # opens a browser


def test_a_reader_commits_and_sees_the_reason(tmp_path):
    ask = 'from fgnet_lib.course import quiz\n\nquiz.ask("01", "most-changes")'
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(ask)])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, tmp_path / "quiz.ipynb")
    asked = quiz.load_quiz("01", "most-changes")
    with jupyterlab(tmp_path) as address, open_browser(width=800, height=700) as (page, watch):
        open_notebook(page, address, "quiz.ipynb")
        run_all(page)
        output = page.locator(".jp-OutputArea-output")
        commit = output.get_by_role("button", name="commit")
        assert commit.is_disabled()
        output.get_by_text(f"B: {asked.options[1]}").click()
        page.screenshot(path=SCREENSHOTS / "quiz-open.png")
        commit.click()
        output.get_by_text("✘ You said B").wait_for()
        assert asked.reason in output.inner_text()
        assert commit.is_disabled() and output.locator("input[type=radio]:enabled").count() == 0
        page.screenshot(path=SCREENSHOTS / "quiz.png")
        assert watch.problems == [] and watch.outside == []
