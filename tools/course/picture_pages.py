"""Picture ten pages of the site as it looks on a desktop, on a phone and in dark mode: docs/measured/pages.

It takes the site that `make site` has built, playground included, and needs a Chromium (`make chromium`).
"""

from __future__ import annotations

import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path

from build_site import OUT
from chromium import FLAGS, find_chromium
from PIL import Image
from playwright.sync_api import Page, sync_playwright

from fgnet_lib import REPOSITORY

SITE = OUT / "html"
PICTURES = REPOSITORY / "docs" / "measured" / "pages"
LOOKS = {"desktop": (1280, 900, "light"), "phone": (390, 844, "light"), "dark": (1280, 900, "dark")}
PAGES = {  # and the heading or figure that is in view
    "index.html": "h1",
    "playground/index.html": "h1",
    "notebooks/00_welcome.html": "figure 3",
    "notebooks/03_feature_guided_attention.html": "figure 5",
    "notebooks/05_affinities_to_neurons.html": "figure 4",
    "notebooks/06_neurons_in_3d.html": "figure 3",
    "notebooks/07_ablations_and_results.html": "table",
    "notebooks/09_scaling_out.html": "figure 2",
    "notebooks/13_five_sections.html": "figure 2",
    "docs/learn/glossary.html": "h1",
}
SHOW = """wanted => {
  const [kind, number] = wanted.split(' ');
  const selector = {figure: '.cell_output img', table: '.cell_output table'}[kind] ?? kind;
  const shown = [...document.querySelectorAll(selector)].filter(part => !part.closest('details:not([open])'));
  const part = shown[Math.min(number ?? 1, shown.length) - 1];
  const panels = part.parentElement.querySelector('.stacked') ?? part;
  panels.scrollIntoView({block: kind === 'h1' ? 'end' : 'center', behavior: 'instant'});
}"""


class Quiet(SimpleHTTPRequestHandler):
    """Serves the site without a line for each request."""

    def log_message(self, *arguments: object) -> None:
        """Print nothing."""


def picture(page: Page, address: str, wanted: str) -> Image.Image:
    """What a visitor sees of a page with this heading or figure in view."""
    page.goto(address, wait_until="load")
    page.wait_for_timeout(1500)  # ms, until panels are stacked
    page.wait_for_function("!document.body.innerText.includes('Loading the model')", timeout=120_000)
    page.evaluate(SHOW, wanted)
    page.wait_for_timeout(800)
    return Image.open(BytesIO(page.screenshot())).convert("RGB")


def lay_out(pictures: list[Image.Image], columns: int = 5, gap: int = 12) -> Image.Image:
    """Put pictures of one size beside each other, in rows."""
    width, height = pictures[0].width + gap, pictures[0].height + gap
    sheet = Image.new("RGB", (columns * width, -(-len(pictures) // columns) * height), "gray")
    for number, image in enumerate(pictures):
        sheet.paste(image, (number % columns * width, number // columns * height))
    return sheet


def main() -> int:
    """Write one sheet of pictures for each look."""
    chromium = find_chromium()
    missing = [path for path in PAGES if not (SITE / path).is_file()]
    if chromium is None or missing:
        print(f"not in {SITE}: {', '.join(missing)}; run: make site" if missing else "run: make chromium")
        return 1
    PICTURES.mkdir(exist_ok=True)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=SITE)) as server, sync_playwright() as driver:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        browser = driver.chromium.launch(executable_path=chromium, args=FLAGS)
        for name, (width, height, scheme) in LOOKS.items():
            page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
            address = f"http://127.0.0.1:{server.server_port}"
            sheet = lay_out([picture(page, f"{address}/{path}", wanted) for path, wanted in PAGES.items()])
            sheet.thumbnail((3600, 3600))
            path = Path(PICTURES / f"{name}.webp")
            sheet.save(path, quality=70)
            print(path.relative_to(REPOSITORY), f"{path.stat().st_size / 1e3:.0f} kB")
            page.close()
        browser.close()
        server.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
