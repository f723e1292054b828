"""Serve an exported folder to neuroglancer on this machine alone: `python serve.py`.

Every export holds a copy of this file, so it needs nothing but Python. Any other web server does as well, if it sends
the header `Access-Control-Allow-Origin`: the page that reads the files comes from another address.
"""

from __future__ import annotations

import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote

NEUROGLANCER = "https://neuroglancer-demo.appspot.com"
STATE = "neuroglancer.json"  # layers and camera; HERE in it means the address of the folder
HERE = "http://HERE"
PORT = 9180
SAFE = "~@#$&()*!+=:;,.?/'"  # neuroglancer's own links leave these as they are


class Handler(SimpleHTTPRequestHandler):
    """A handler of requests that lets pages of any address read the files."""

    protocol_version = "HTTP/1.1"  # keeps connections open: the viewer asks for many small files

    def end_headers(self) -> None:
        """Add the header to every answer; without it a page could not even see that a file is missing."""
        self.send_header("Access-Control-Allow-Origin", "*")
        super().end_headers()

    def log_message(self, *_: object) -> None:
        """Stay quiet."""


def link(folder: Path, address: str) -> str:
    """Return the link that opens neuroglancer on a folder served at `address`, which has no slash at its end."""
    state = (folder / STATE).read_text(encoding="utf-8").replace(HERE, address)
    return f"{NEUROGLANCER}/#!{quote(state, safe=SAFE)}"


def make_server(folder: Path, port: int) -> ThreadingHTTPServer:
    """Return a server of `folder` on 127.0.0.1; port 0 means any free port."""
    return ThreadingHTTPServer(("127.0.0.1", port), partial(Handler, directory=str(folder)))


def main(folder: Path, port: int) -> None:
    """Serve a folder until ctrl + c."""
    try:
        server = make_server(folder, port)
    except OSError as error:
        sys.exit(f"port {port} cannot be used ({error}); name another port: python serve.py {port + 1}")
    print(f"{folder} is served until you press ctrl + c. Open this link:", flush=True)
    print(link(folder, f"http://127.0.0.1:{server.server_port}"), flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        server.server_close()


if __name__ == "__main__":
    main(Path(__file__).resolve().parent, int(sys.argv[1]) if len(sys.argv) > 1 else PORT)
