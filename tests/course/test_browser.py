"""Without a browser a test says so: skipped on a student's machine, failed in continuous integration."""

from __future__ import annotations

import chromium
import pytest
from helpers import browser


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """The only folder of programs; the function puts one there that prints a line."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(chromium, "MAC", "no such file")

    def add(name: str, line: str, status: int = 0) -> None:
        (tmp_path / name).write_text(f"#!/bin/sh\necho '{line}'\nexit {status}\n")
        (tmp_path / name).chmod(0o755)

    return add


def test_a_program_that_only_asks_for_a_snap_is_no_chromium(programs, tmp_path):
    programs("chromium-browser", "requires the chromium snap to be installed", status=1)
    assert chromium.find_chromium() is None
    programs("google-chrome", "Google Chrome 156.0")
    assert chromium.find_chromium() == str(tmp_path / "google-chrome")


@pytest.mark.filterwarnings("ignore:NO TEST")
@pytest.mark.parametrize(("ci", "outcome"), [("", pytest.skip.Exception), ("true", pytest.fail.Exception)])
def test_no_chromium_is_skipped_but_fails_in_ci(programs, monkeypatch, ci, outcome):
    monkeypatch.setenv("CI", ci)
    with pytest.raises(outcome, match="install Chromium"), browser.open_browser():
        pass


@pytest.mark.slow
def test_what_goes_wrong_in_a_page_or_its_frames_is_noticed():
    nobody = f"http://127.0.0.1:{browser.free_port()}/x.js"
    inner = "<script>console.error('said'); throw Error('thrown')</script>"
    with browser.open_browser() as (page, watch):
        page.set_content(
            f'<iframe srcdoc="{inner}"></iframe><script src="{nobody}"></script><img src="http://a.example/">'
        )
        wanted = ("console: said", "exception: thrown", nobody)
        browser.wait_until(page, lambda: all(one in "\n".join(watch.problems) for one in wanted), "not all is noticed")
        assert watch.outside == ["http://a.example/"]
