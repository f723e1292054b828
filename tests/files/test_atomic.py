"""What is written atomically is complete or absent, whoever else writes and whatever fails."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fgnet_lib import REPOSITORY
from fgnet_lib.files.atomic import atomic


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError, ValueError])
def test_an_interrupted_replacement_leaves_the_old_file(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(error), atomic(path) as part:
        part.write_text("half")
        raise error
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_disk_that_cannot_be_written_is_named_with_the_file(tmp_path: Path, number: int) -> None:
    (tmp_path / "a.txt").write_text("old")
    named = f"cannot write {tmp_path}/a.txt, what was there before is untouched: {os.strerror(number)}"
    message = named if number != errno.EACCES else "of the context"
    with pytest.raises(OSError, match=message) as caught, atomic(tmp_path / "a.txt") as part:
        part.write_text("new")
        raise OSError(number, "of the context")
    assert caught.value.errno == number
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a.txt", "old")]


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "volume.zarr"
    for name in ("old", "new"):
        with atomic(path) as part:
            part.mkdir()
            (part / name).touch()
    assert [file.name for file in path.iterdir()] == ["new"] and list(tmp_path.iterdir()) == [path]


def test_threads_that_write_the_same_file_leave_one_of_their_versions(tmp_path: Path) -> None:
    path = tmp_path / "new" / "note"
    versions = [str(number) * 10_000 for number in range(8)]

    def write(version: str) -> None:
        for _ in range(20):
            with atomic(path) as part:
                part.write_text(version)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, versions))
    assert path.read_text() in versions and list(path.parent.iterdir()) == [path]


KILLED = """
import os, signal, sys
from pathlib import Path
from fgnet_lib.files.atomic import atomic

path, moment = Path(sys.argv[1]), sys.argv[2]
renames, rename = [], Path.rename

def rename_once(self, target):
    if renames and moment == "exchange":
        os.kill(os.getpid(), signal.SIGKILL)
    renames.append(target)
    return rename(self, target)

Path.rename = rename_once
with atomic(path) as part:
    part.mkdir() if moment == "exchange" else part.write_text("half")
    if moment == "write":
        os.kill(os.getpid(), signal.SIGKILL)
"""


def write_and_die(path: Path, moment: str) -> None:
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    run = subprocess.run([sys.executable, "-c", KILLED, str(path), moment], env=environment)
    assert run.returncode == -signal.SIGKILL


def test_the_next_writer_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    """Of the same name and this computer; what a running process or another computer writes stays."""
    path = tmp_path / "note.txt"
    write_and_die(path, "write")
    (abandoned,) = tmp_path.iterdir()
    host, (process, thread) = socket.gethostname(), abandoned.name.split(".")[-3:-1]
    others = [f".note.txt.elsewhere.{process}.{thread}.part", f".note.txt.{host}.{os.getppid()}.1.part"]
    for name in [*others, f".other.txt.{host}.{process}.{thread}.part"]:
        (tmp_path / name).touch()
    with atomic(path) as part:
        part.write_text("whole")
    assert path.read_text() == "whole" and not abandoned.exists() and len(list(tmp_path.iterdir())) == 4


def test_a_folder_survives_a_kill_in_the_moment_of_its_exchange(tmp_path: Path) -> None:
    """Even if the next writer fails as well."""
    path = tmp_path / "volume.zarr"
    path.mkdir()
    (path / "old").touch()
    write_and_die(path, "exchange")
    assert not path.exists()
    with pytest.raises(ValueError), atomic(path):
        raise ValueError
    assert [file.name for file in path.iterdir()] == ["old"] and list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_exchanged_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "volume.zarr"
    path.mkdir()
    (path / "old").touch()
    with pytest.raises(FileNotFoundError), atomic(path):
        pass  # nothing was written, so there is nothing to rename
    assert [file.name for file in path.iterdir()] == ["old"] and list(tmp_path.iterdir()) == [path]
