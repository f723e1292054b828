"""Serve an exported folder to neuroglancer on this machine: `python serve.py`.

Every export holds a copy of this file, so it needs nothing but Python. Only programs on this machine are answered, and
of all pages in its browsers only neuroglancer's can read the files. To use another neuroglancer than the public one,
name its address after the port: `python serve.py 9180 https://neuroglancer.example.org`.

Any other web server does as well, if it sends the header `Access-Control-Allow-Origin`: the page that reads the files
comes from another address.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

NEUROGLANCER = "https://neuroglancer-demo.appspot.com"
STATE = "neuroglancer.json"  # layers and camera; HERE in it means the address of the folder
HERE = "http://HERE"
PORT = 9180
SAFE = "~@#$&()*!+=:;,.?/'"  # neuroglancer's own links leave these as they are


class Handler(SimpleHTTPRequestHandler):
    """A handler of requests that gives files to neuroglancer's page and to programs of this machine; it lists none."""

    protocol_version = "HTTP/1.1"  # keeps connections open: the viewer asks for many small files
    timeout = 30  # seconds without a byte; then the connection is closed, and its thread ends

    def __init__(self, *args: Any, origin: str, **options: Any) -> None:
        self.origin = origin
        super().__init__(*args, **options)

    def parse_request(self) -> bool:
        """Refuse other pages, and names other than this machine's own that lead here (DNS rebinding)."""
        if not super().parse_request():
            return False
        port = self.server.server_address[1]
        if self.headers.get("Host") not in (f"127.0.0.1:{port}", f"localhost:{port}"):
            self.send_error(HTTPStatus.FORBIDDEN, "This server answers as 127.0.0.1 and localhost only")
            return False
        if self.headers.get("Origin", self.origin) != self.origin:
            self.send_error(HTTPStatus.FORBIDDEN, "Only neuroglancer's page may read these files")
            return False
        return True

    def end_headers(self) -> None:
        """Name the page that may read, in every answer; otherwise it could not even see that a file is missing."""
        self.send_header("Access-Control-Allow-Origin", self.origin)
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")  # other pages cannot embed a file either
        super().end_headers()

    def list_directory(self, path: Any) -> None:
        """Answer that a folder is no file."""
        self.send_error(HTTPStatus.NOT_FOUND, "Folders are not listed")

    def log_message(self, *_: object) -> None:
        """Stay quiet."""


def link(folder: Path, address: str, neuroglancer: str = NEUROGLANCER) -> str:
    """Return the link that opens neuroglancer on a folder served at `address`; both addresses end without a slash."""
    state = (folder / STATE).read_text(encoding="utf-8").replace(HERE, address)
    return f"{neuroglancer}/#!{quote(state, safe=SAFE)}"


def make_server(folder: Path, port: int, neuroglancer: str = NEUROGLANCER) -> ThreadingHTTPServer:
    """Return a server of `folder` on 127.0.0.1 for the page at `neuroglancer`; port 0 means any free port."""
    page = urlsplit(neuroglancer)
    origin = f"{page.scheme}://{page.netloc}"
    return ThreadingHTTPServer(("127.0.0.1", port), partial(Handler, directory=str(folder), origin=origin))


def main(folder: Path, arguments: list[str]) -> None:
    """Serve a folder until ctrl + c; the arguments are those of the command line."""
    parser = argparse.ArgumentParser(description="Serve this folder to neuroglancer, on this machine only.")
    parser.add_argument("port", type=int, nargs="?", default=PORT, help="by default %(default)s")
    parser.add_argument("neuroglancer", nargs="?", default=NEUROGLANCER, help="its address, by default %(default)s")
    options = parser.parse_args(arguments)
    neuroglancer = options.neuroglancer.rstrip("/")
    try:
        server = make_server(folder, options.port, neuroglancer)
    except OSError as error:
        sys.exit(f"port {options.port} cannot be used ({error}); name another port: python serve.py {options.port + 1}")
    print(f"{folder} is served until you press ctrl + c. Open this link:", flush=True)
    print(link(folder, f"http://127.0.0.1:{server.server_port}", neuroglancer), flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        server.server_close()


if __name__ == "__main__":
    main(Path(__file__).resolve().parent, sys.argv[1:])
