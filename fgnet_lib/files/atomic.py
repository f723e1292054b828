"""Files and folders that appear complete or not at all."""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
TAKEN = (errno.ENOTEMPTY, errno.EEXIST)  # what the system answers where a folder lies already
TRIES = 100  # to put a folder in its place before other writers do


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`, for a file or a folder, which becomes `path` if the context ends well.

    A link stays a link, and what it leads to is written; a file never replaces a folder, nor a folder a file.
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
    target = path.resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    _clear_abandoned(target)
    part = _beside(target, "part")
    try:
        yield part
        if part.is_dir() and not target.is_file():
            _put_folder(part, target)
        else:
            part.replace(target)
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        reason = os.strerror(error.errno)
        raise OSError(error.errno, f"cannot write {path}, what was there before is untouched: {reason}") from error
    finally:
        _discard(part)  # without an error of its own, which would hide why the context ended


def _beside(path: Path, kind: str) -> Path:
    """Return a new hidden name beside `path`: of kind "part" for what is written, "old" for what is replaced."""
    return path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.{secrets.randbits(63)}.{kind}")


def _put_folder(part: Path, path: Path) -> None:
    """Put the folder `part` in the place of `path`, in two steps, because a folder cannot be replaced in one.

    If another writer puts its own there in between, the steps are repeated.
    """
    aside = []
    try:
        for tries_left in reversed(range(TRIES)):
            aside.append(_beside(path, "old"))
            with suppress(FileNotFoundError):  # nothing is there, or another writer has just put it aside
                path.rename(aside[-1])
            try:
                part.rename(path)
                break
            except OSError as error:
                if not tries_left or error.errno not in TAKEN:
                    raise
    except BaseException:
        with suppress(OSError):
            aside.pop().rename(path)
        raise
    finally:
        for old in aside:
            with suppress(OSError):  # under another name: half of a removed folder must not come back as the old one
                _discard(old.rename(_beside(path, "part")))


def list_foreign(folder: Path, own: re.Pattern[str]) -> list[str]:
    """List the files of a folder that `own` does not match, and all links, by their paths in the folder."""
    paths = {entry.relative_to(folder).as_posix(): entry for entry in sorted(folder.rglob("*"))}
    return [name for name, entry in paths.items() if entry.is_symlink() or not (entry.is_dir() or own.fullmatch(name))]


def refuse_to_delete(path: Path, others: Sequence[str], what: str) -> None:
    """Raise a ValueError that says `what` lies in `path`, if there are `others`, which would be deleted with it."""
    if others:
        more = f" and {len(others) - 5} more" * (len(others) > 5)
        raise ValueError(
            f"{path} holds {what}: {', '.join(others[:5])}{more}. They would be deleted with it: move "
            "them away, or choose a new name"
        )


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
            with suppress(OSError):  # another writer has brought it back, or put its own there
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
