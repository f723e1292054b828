"""Locks on folders, and paths that stay inside a folder."""

from __future__ import annotations

import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

_held: ContextVar[frozenset[Path]] = ContextVar("_held", default=frozenset())  # folders that this thread has locked


@contextmanager
def lock(folder: Path, wait: bool = False) -> Iterator[None]:
    """Keep other runs out of a folder within the context. The lock ends with the process, however that ends.

    With `wait`, it comes when the others are gone. Reentrant: a thread that holds the lock may take it again.

    Raises:
        RuntimeError: another run holds the lock, and `wait` is not set; says which.
        ValueError, OSError: the file `lock` is a link, which could name any file of the reader's to be overwritten.
    """
    folder = folder.resolve()
    if folder in _held.get():
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with os.fdopen(os.open(inside(folder, "lock"), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666), "r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise RuntimeError(
                f"{folder} is being written by {file.read() or 'another run'}; wait for it, or use another folder"
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}")
        file.flush()
        before = _held.set(_held.get() | {folder})
        try:
            yield
        finally:
            _held.reset(before)


def inside(folder: Path, name: str) -> Path:
    """Return the path of `name` in a folder, to write to.

    No library checks this: a link in a folder that came from elsewhere could name any file that you may write.

    Raises:
        ValueError: a link or `..` leads out of the folder.
    """
    path = Path(folder) / name
    if not path.resolve().is_relative_to(Path(folder).resolve()):
        raise ValueError(f"{path} leads out of {folder}, to {path.resolve()}; nothing is written there")
    return path
