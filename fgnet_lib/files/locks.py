"""Locks on folders, and paths that stay inside a folder."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TextIO

NAME = "lock"  # of the file in the folder


class LockedError(RuntimeError):
    """Another run holds the lock of a folder; the message says which."""


_held: ContextVar[frozenset[Path]] = ContextVar("_held", default=frozenset())  # folders that this thread has locked


@contextmanager
def lock(folder: Path, wait: bool = False) -> Iterator[None]:
    """Keep other runs out of a folder within the context. The lock ends with the process, however that ends.

    With `wait`, it comes when the others are gone. Reentrant: a thread that holds the lock may take it again.

    Raises:
        LockedError: another run holds the lock, and `wait` is not set; says which.
        ValueError, OSError: the file `lock` is a link, which could name any file of the reader's to be overwritten.
    """
    folder = folder.resolve()
    if folder in _held.get():
        yield
        return
    with _lock_file(folder, wait) as file:
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}")
        file.flush()
        before = _held.set(_held.get() | {folder})
        try:
            yield
        finally:
            _held.reset(before)


def _lock_file(folder: Path, wait: bool) -> TextIO:
    """Open a folder's lock file and lock it; if somebody removed the file meanwhile, lock the new one."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        path = inside(folder, NAME)
        with ExitStack() as stack:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
            file = stack.enter_context(os.fdopen(descriptor, "r+", encoding="utf-8"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                raise LockedError(
                    f"{folder} is being written by {file.read() or 'another run'}; wait for it, or use another folder"
                ) from None
            if _is_file_at(path, descriptor):
                stack.pop_all()
                return file


def _is_file_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def clear(folder: Path) -> None:
    """Remove a folder with all that it holds, unless another run writes into it; a folder with a lock file stays.

    A lock file that is removed while somebody holds it would be made anew, and the lock be granted twice.

    Raises:
        LockedError: another run holds the lock of the folder or of a folder in it; says which. Nothing is removed.
    """
    for file in sorted(folder.rglob(NAME)):
        if file.is_file() and not file.is_symlink():
            with lock(file.parent):
                pass
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != NAME:
            path.unlink()
    if folder.is_dir() and not (folder / NAME).exists():
        folder.rmdir()


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
