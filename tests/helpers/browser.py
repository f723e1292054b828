"""A real browser for tests: a page that remembers what went wrong in it, and a server to open.

Playwright drives the Chromium of the system. Pictures are kept in out/screenshots.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit

import pytest
from axe_playwright_python.sync_playwright import Axe
from chromium import FLAGS, find_chromium
from playwright.sync_api import (
    Browser,
    ConsoleMessage,
    ElementHandle,
    Frame,
    Locator,
    Page,
    Request,
    Response,
    Route,
    sync_playwright,
)

from fgnet_lib import REPOSITORY
from fgnet_lib.machine import _PLATFORM_VARIABLES

SCREENSHOTS = REPOSITORY / "out" / "screenshots"
NO_CHROMIUM = "NO TEST IN A BROWSER: install Chromium (Debian: apt-get install chromium) or Google Chrome"
CODE_CELLS = """() => Array.from(jupyterapp.shell.currentWidget.content.model.cells)
  .filter(cell => cell.type === "code")
  .map(cell => ({done: cell.executionCount !== null && cell.executionState !== "running",
                 error: cell.outputs.toJSON().find(output => output.output_type === "error")}))"""
SETTINGS = {  # of JupyterLab: no questions, and all cells in the page, also those that are scrolled out of view
    "apputils-extension/notification": '{"fetchNews": "false", "checkForUpdates": false}',
    "notebook-extension/tracker": '{"windowingMode": "none"}',
}
SETTLE = """() => Promise.all(document.getAnimations()
  .filter(animation => animation.effect.getComputedTiming().endTime < Infinity)
  .map(animation => animation.finished.catch(() => null)))"""
BLANK = '<svg xmlns="http://www.w3.org/2000/svg" width="1" height="1"/>'


def cannot_test(reason: str) -> NoReturn:
    """Skip, with a warning that pytest repeats at its end, since a skip alone is silent. With CI set: fail."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    warnings.warn(reason, stacklevel=2)
    pytest.skip(reason)


def find_barriers(page: Page) -> list[tuple[str, str]]:
    """The rule and the element of each critical or serious finding of axe, once nothing in the page fades in."""
    page.evaluate(SETTLE)
    return [
        (violation["id"], node["html"][:200])
        for violation in Axe().run(page).response["violations"]
        if violation["impact"] in ("critical", "serious")
        for node in violation["nodes"]
    ]


class Watch:
    """What went wrong in a page, its frames included.

    Attributes:
        problems: error messages of the console, uncaught exceptions, failed requests and answers of 400 and above.
        asked: every address that was requested.
        outside: those of them that are not on this machine; they get an empty picture, as if there were no internet.
    """

    def __init__(self, page: Page) -> None:
        self.problems: list[str] = []
        self.asked: list[str] = []
        self.outside: list[str] = []
        page.on("console", self.said)
        page.on("pageerror", lambda error: self.add("exception", str(error)))
        page.on("requestfailed", self.failed)
        page.on("response", self.answered)
        page.on("request", lambda request: self.asked.append(request.url))
        page.route(lambda url: urlsplit(url).hostname not in (None, "", "127.0.0.1"), self.answer)

    def add(self, kind: str, what: str) -> None:
        self.problems.append(f"{kind}: {what}")

    def said(self, message: ConsoleMessage) -> None:
        if message.type == "error" and not message.text.endswith("status of 412 (Precondition Failed)"):
            self.add("console", message.text)

    def answered(self, response: Response) -> None:
        if response.status >= 400 and response.status != 412:  # neuroglancer's: Python changed the state meanwhile,
            self.add(str(response.status), response.url)  # and the page takes that over instead of reporting its own

    def failed(self, request: Request) -> None:
        if request.failure != "net::ERR_ABORTED":  # the page let go of it: neuroglancer does when the view moves on
            self.add(request.failure or "failed", request.url)

    def answer(self, route: Route) -> None:
        self.outside.append(route.request.url)
        route.fulfill(content_type="image/svg+xml", body=BLANK)


@contextmanager
def open_browser(width: int = 1400, height: int = 1000) -> Iterator[tuple[Page, Watch]]:
    """A fresh page of headless Chromium, and what is watched in it."""
    path = find_chromium() or cannot_test(NO_CHROMIUM)
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=FLAGS)
        page = new_page(browser, viewport={"width": width, "height": height})
        yield page, Watch(page)
        browser.close()


def new_page(browser: Browser, **options: Any) -> Page:
    """A page in a context of its own that waits for a slow machine."""
    context = browser.new_context(**options)
    context.set_default_timeout(120_000)  # ms
    return context.new_page()


@contextmanager
def phone(page: Page) -> Iterator[Page]:
    """Open a page of a phone's size with touch in the same browser, and close it afterwards."""
    small = new_page(page.context.browser, viewport={"width": 390, "height": 844}, has_touch=True)
    try:
        yield small
    finally:
        small.context.close()


def wait_until(page: Page, condition: Callable[[], bool], what: str, seconds: float = 120) -> None:
    """Let the page go on until a condition holds; fails with `what` after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        page.wait_for_timeout(200)


def free_port() -> int:
    """A port of 127.0.0.1 that nothing listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextmanager
def jupyterlab(folder: Path, prefix: str = "/", **environment: str) -> Iterator[str]:
    """JupyterLab on 127.0.0.1 for the notebooks in `folder`; gives its address with `{}` for the path, token included.

    It asks nobody about news, updates or extensions, and neither reads nor writes this user's settings.

    Args:
        folder: what is served; configuration goes to `folder`/.jupyter.
        prefix: base URL, as a hub sets it.
        environment: more variables for the server and its kernels.
    """
    own, port, token = folder / ".jupyter", free_port(), "tests"
    options = {
        "ServerApp.port": port,
        "ServerApp.port_retries": 0,
        "ServerApp.base_url": prefix,
        "ServerApp.root_dir": folder,
        "IdentityProvider.token": token,
        "LabApp.extension_manager": "readonly",
        "LabApp.expose_app_in_browser": True,
    }
    folders = {f"JUPYTER_{name}_DIR": str(own / name.lower()) for name in ("CONFIG", "DATA", "RUNTIME")}
    folders |= {f"JUPYTERLAB_{name}_DIR": str(own / name.lower()) for name in ("SETTINGS", "WORKSPACES")}
    command = [sys.executable, "-m", "jupyterlab", "--ip=127.0.0.1", "--no-browser", "--allow-root"]
    command += [f"--{name}={value}" for name, value in options.items()]
    for name, values in SETTINGS.items():
        settings = own / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        settings.parent.mkdir(parents=True)
        settings.write_text(values)
    remote = {variable for variable, _ in _PLATFORM_VARIABLES}  # as where somebody tests by ssh
    inherited = {name: value for name, value in os.environ.items() if name not in remote}
    with (own / "log.txt").open("w") as log:
        server = subprocess.Popen(command, env=inherited | folders | environment, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}{prefix}{{}}?token={token}"
    try:
        deadline = time.monotonic() + 120
        while not answers(address.format("api/status")):
            assert server.poll() is None and time.monotonic() < deadline, (own / "log.txt").read_text()[-3000:]
            time.sleep(0.5)
        yield address
    finally:
        server.terminate()  # ends its kernels, too
        try:
            server.wait(60)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def answers(url: str) -> bool:
    """Whether a server answers there."""
    try:
        return urllib.request.urlopen(url, timeout=10).status == 200
    except OSError:  # refused, or closed before it answered
        return False


def open_notebook(page: Page, address: str, name: str) -> None:
    """Open a notebook in JupyterLab (`address` as `jupyterlab` gives it) and wait until its kernel is ready."""
    page.goto(address.format(f"lab/tree/{name}"))
    page.wait_for_function("window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'")


def wait_for_cells(page: Page, number: int | None = None) -> None:
    """Wait until the first `number` code cells (all of them without a number) are done; the first error fails."""
    part = f"({CODE_CELLS})().slice(0, {number or 'undefined'})"
    done = f"{part}.some(cell => cell.error) || {part}.every(cell => cell.done)"
    page.wait_for_function(done, timeout=600_000, polling=500)  # ms; at each frame, asking takes a core from the kernel
    error = page.evaluate(f"{part}.find(cell => cell.error)?.error")
    assert error is None, "\n".join(error["traceback"])


def bring_into_view(page: Page, thing: Locator | ElementHandle) -> None:
    """Scroll until a thing stays in view: JupyterLab lays out cells when they appear, which moves those below."""
    boxes: list[object] = [None]

    def stays() -> bool:
        thing.scroll_into_view_if_needed()
        boxes.append(thing.bounding_box())
        return boxes[-1] == boxes[-2]

    wait_until(page, stays, "the page does not come to rest")


def run_cell(page: Page, number: int) -> None:
    """Run the code cell with this number, from 1, by Shift+Enter, and wait until it and those before it are done."""
    page.locator(".jp-CodeCell .cm-content").nth(number - 1).click()
    page.keyboard.press("Shift+Enter")
    wait_for_cells(page, number)


def show_frame(page: Page, part: str = "/v/") -> Frame:
    """The frame whose address has `part`, scrolled into view, when neuroglancer has drawn all in it."""
    wait_until(page, lambda: any(part in frame.url for frame in page.frames), f"no frame of {part}")
    frame = next(frame for frame in page.frames if part in frame.url)
    bring_into_view(page, frame.frame_element())
    frame.wait_for_function("window.viewer?.isReady()")
    return frame


def run_all(page: Page) -> None:
    """Unfold all parts, then Run > Run All Cells, and wait until the last one is done."""
    page.evaluate("jupyterapp.commands.execute('notebook:expand-all-headings')")
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    wait_for_cells(page)
