"""Papermill's command line, changed for `make tutorial`: its notebook is always whole, it waits for slow machines and
reaches the kernel without ports where it can, and it never outlives the process that started it, whose end of the pipe
to standard input must stay open."""

from __future__ import annotations

import os
import sys
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from papermill.__main__ import papermill
from papermill.engines import NBClientEngine, papermill_engines
from papermill.iorw import LocalHandler, papermill_io
from traitlets.config import Config

from fgnet_lib.files.atomic import write_atomically


class WholeFiles(LocalHandler):
    """Write a notebook so that a full disk leaves the last whole one, which tells how far the lesson came."""

    def write(self, buf: str, path: str) -> None:
        write_atomically(Path(path), buf)


class PatientEngine(NBClientEngine):
    """Wait a minute, not 4 seconds, for what a cell showed, and 5 minutes for the kernel: a busy machine is slow.

    On Linux the kernel is reached by files, since a port may be taken by another program before the kernel binds it.
    """

    @classmethod
    def execute_managed_notebook(cls, *given: Any, **named: Any) -> None:
        own: dict[str, Any] = {"iopub_timeout": 60, "start_timeout": 300}
        with tempfile.TemporaryDirectory() as folder:
            if sys.platform == "linux" and len(folder) < 80:  # a socket's path has 107 characters at most
                files = {"transport": "ipc", "connection_file": str(Path(folder) / "kernel.json")}
                own["config"] = Config(KernelManager=files)
            super().execute_managed_notebook(*given, **named | own)


def watch_parent() -> None:
    """Wait for the end of standard input, then end this process and the kernel that it has started."""
    os.read(0, 1)
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            process.kill()
    os._exit(1)


def main() -> None:
    """Run papermill with the arguments of this command line."""
    threading.Thread(target=watch_parent, daemon=True).start()
    papermill_io.register("", WholeFiles())  # for every path
    papermill_engines.register(None, PatientEngine)
    papermill()


if __name__ == "__main__":
    main()
