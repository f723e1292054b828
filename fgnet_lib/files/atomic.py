"""Files and folders that appear complete or not at all."""

from __future__ import annotations

import os
import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`, for a file or a folder, which becomes `path` if the context ends well.

    An error leaves what was there before; a process that is killed leaves the temporary file as well, which is hidden.
    Threads, processes and computers may write the same path at the same time; the last writer wins.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     with atomic(Path(folder) / "note.txt") as part:
    ...         _ = part.write_text("complete")
    ...     print(*(path.name for path in Path(folder).iterdir()))
    note.txt
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = f".{path.name}.{socket.gethostname()}.{os.getpid()}.{threading.get_ident()}"
    part, old = path.with_name(f"{writer}.part"), path.with_name(f"{writer}.old")
    try:
        yield part
        if path.is_dir():  # a folder cannot be replaced in one step: put the old one aside for the moment
            path.rename(old)
            part.rename(path)
            shutil.rmtree(old)
        else:
            part.replace(path)
    finally:
        shutil.rmtree(part) if part.is_dir() else part.unlink(missing_ok=True)


def save_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write arrays to one `.npz` file, and make its folder; a kill may leave it incomplete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **arrays)


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read all arrays of a file of `save_arrays` into memory; nothing is unpickled."""
    with np.load(path, allow_pickle=False) as file:
        return dict(file)
