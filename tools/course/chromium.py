"""The Chromium of the system, for the tests in a browser and for pictures of the site. Nothing is downloaded."""

from __future__ import annotations

import shutil
import subprocess
import sys

NAMES = ("chromium", "google-chrome", "google-chrome-stable", "chromium-browser")
MAC = "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"
FLAGS = [
    "--no-sandbox",  # root has none, and in containers tests run as root
    "--disable-dev-shm-usage",  # containers have 64 MB there
    "--use-gl=angle",
    "--use-angle=swiftshader",  # WebGL without a GPU
    "--enable-unsafe-swiftshader",
    "--ignore-gpu-blocklist",
]


def find_chromium() -> str | None:
    """The first Chromium that starts: on Ubuntu `chromium-browser` may be a script that only asks for a snap."""
    for path in filter(None, map(shutil.which, (*NAMES, MAC))):
        answer = subprocess.run([path, "--version"], capture_output=True, encoding="utf-8", timeout=60)
        if answer.returncode == 0 and answer.stdout.startswith(("Chromium", "Google Chrome")):
            return path
    return None


if __name__ == "__main__":  # for `make chromium`
    sys.exit(find_chromium() is None)
