"""Files and folders that appear complete or not at all."""

from __future__ import annotations

import errno
import os
import re
import shutil
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`, for a file or a folder, which becomes `path` if the context ends well.

    An error leaves what was there before. So does a kill; the next writer removes the temporary file, which is hidden.
    (Of a folder that was killed in the moment of its exchange, the next writer brings back the old one.) Threads,
    processes and computers may write the same path at the same time; the last writer wins. Containers that share a
    host name count as one computer: give each its own, or one may remove what another is writing.

    Raises:
        OSError: the disk is full or cannot be written, with the name of `path`; what else is raised stays.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     with atomic(Path(folder) / "note.txt") as part:
    ...         _ = part.write_text("complete")
    ...     print(*(path.name for path in Path(folder).iterdir()))
    note.txt
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _clear_abandoned(path)
    writer = f".{path.name}.{socket.gethostname()}.{os.getpid()}.{threading.get_ident()}"
    part, old = path.with_name(f"{writer}.part"), path.with_name(f"{writer}.old")
    try:
        yield part
        if path.is_dir():  # a folder cannot be replaced in one step: put the old one aside for the moment
            path.rename(old)
            try:
                part.rename(path)
            except BaseException:
                old.rename(path)
                raise
            shutil.rmtree(old)
        else:
            part.replace(path)
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        reason = os.strerror(error.errno)
        raise OSError(error.errno, f"cannot write {path}, what was there before is untouched: {reason}") from error
    finally:
        _discard(part)  # without an error of its own, which would hide why the context ended


def write_atomically(path: Path, text: str) -> None:
    """Write a file of UTF-8 that appears complete or not at all, and replace what was there.

    Raises:
        OSError: as `atomic`.
    """
    with atomic(path) as part:
        part.write_text(text, encoding="utf-8")


def _clear_abandoned(path: Path) -> None:
    """Remove temporary files for `path` of processes of this computer that are gone; bring back a folder put aside."""
    mine = re.compile(rf"\.{re.escape(path.name)}\.{re.escape(socket.gethostname())}\.(\d+)\.\d+\.(part|old)")
    for entry in sorted(path.parent.iterdir()):
        match = mine.fullmatch(entry.name)
        if match is None or _is_running(int(match[1])):
            continue
        if match[2] == "old" and not path.exists():
            entry.rename(path)
        else:
            _discard(entry)


def _discard(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # somebody else's
    return True


def save_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """Write arrays to one `.npz` file, and make its folder; a kill may leave it incomplete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **arrays)


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read all arrays of a file of `save_arrays` into memory; nothing is unpickled."""
    with np.load(path, allow_pickle=False) as file:
        return dict(file)
