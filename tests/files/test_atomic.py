"""What is written atomically is complete or absent, whoever else writes and whatever fails."""

from __future__ import annotations

import errno
import os
import shutil
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


def write_folder(path: Path, name: str) -> None:
    """Write a folder with one empty file."""
    with atomic(path) as part:
        part.mkdir()
        (part / name).touch()


def test_a_link_stays_one_and_what_it_leads_to_is_written(tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    (tmp_path / "volume.zarr").symlink_to(scratch / "volume.zarr")
    (tmp_path / "note.txt").symlink_to("scratch/note.txt")
    for name in ("old", "new"):
        write_folder(tmp_path / "volume.zarr", name)
        with atomic(tmp_path / "note.txt") as part:
            part.write_text(name)
    links = [path for path in tmp_path.iterdir() if path != scratch]
    assert len(links) == 2 and all(path.is_symlink() for path in links)
    assert sorted(str(path.relative_to(scratch)) for path in scratch.rglob("*")) == [
        "note.txt", "volume.zarr", "volume.zarr/new"
    ]  # fmt: skip
    assert (scratch / "note.txt").read_text() == "new"


def test_an_old_folder_that_cannot_be_removed_does_not_stop_this_write_nor_the_next(tmp_path, monkeypatch) -> None:
    def refuse(path, ignore_errors=False):
        if not ignore_errors:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr("shutil.rmtree", refuse)
    for name in ("a", "b", "c", "d"):
        write_folder(tmp_path / "volume.zarr", name)
        assert [file.name for file in (tmp_path / "volume.zarr").iterdir()] == [name]
    assert not list(tmp_path.glob(".*.old"))  # which would come back if the folder were removed


@pytest.mark.parametrize("other", ["put its own there", "put the old one aside"])
def test_a_writer_of_the_same_folder_that_is_quicker_is_no_error(tmp_path: Path, monkeypatch, other: str) -> None:
    path, rename, seen = tmp_path / "volume.zarr", Path.rename, []
    write_folder(path, "old")

    def rename_between(source: Path, target: Path) -> Path:
        if source == path and not seen:
            seen.append(source)
            if other == "put the old one aside":
                rename(path, tmp_path / "aside")
            moved = rename(source, target)
            path.mkdir()
            (path / "other").touch()
            return moved
        return rename(source, target)

    monkeypatch.setattr(Path, "rename", rename_between)
    write_folder(path, "new")
    monkeypatch.undo()
    shutil.rmtree(tmp_path / "aside", ignore_errors=True)
    assert seen and [file.name for file in path.iterdir()] == ["new"] and list(tmp_path.iterdir()) == [path]


def test_a_file_does_not_replace_a_folder_nor_a_folder_a_file(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "precious").touch()
    (tmp_path / "file").write_text("precious")
    with pytest.raises(IsADirectoryError), atomic(tmp_path / "folder") as part:
        part.touch()
    with pytest.raises(NotADirectoryError):
        write_folder(tmp_path / "file", "new")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder", "precious"]
