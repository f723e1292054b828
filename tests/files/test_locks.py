"""A folder has one run at a time, also when somebody removes it; who comes second is told who is there."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from fgnet_lib import REPOSITORY
from fgnet_lib.files.locks import LockedError, clear, lock

HOLD = """
import sys
from pathlib import Path
from fgnet_lib.files.locks import lock
with lock(Path(sys.argv[1])):
    print("locked", flush=True)
    sys.stdin.read()
"""


@contextmanager
def another_run(folder: Path) -> Iterator[int]:
    """Let another process lock a folder; gives its number."""
    command = [sys.executable, "-c", HOLD, str(folder)]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout.readline() == b"locked\n"
        yield process.pid
        process.stdin.close()


@pytest.mark.slow
@pytest.mark.parametrize("locked", [".", "results/04/training"])
def test_a_folder_is_not_cleared_while_another_run_writes_into_it(tmp_path: Path, locked: str) -> None:
    folder = tmp_path / "out"
    (folder / locked).mkdir(parents=True)
    (folder / "notes.txt").touch()
    with another_run(folder / locked) as process:
        before = sorted(folder.rglob("*"))
        with pytest.raises(LockedError, match=f"is being written by process {process} on "):
            clear(folder)
        with pytest.raises(LockedError, match=f"process {process} "), lock(folder / locked):
            pass
        assert sorted(folder.rglob("*")) == before
    clear(folder)
    assert [path.name for path in tmp_path.rglob("*")] == (["out", "lock"] if locked == "." else [])


def test_clearing_keeps_the_lock_that_this_run_holds(tmp_path: Path) -> None:
    with lock(tmp_path):
        (tmp_path / "results" / "deep").mkdir(parents=True)
        (tmp_path / "results" / "deep" / "lock").touch()  # of a run that is gone
        (tmp_path / "link").symlink_to(tmp_path / "results")
        clear(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["lock"]
        with ThreadPoolExecutor(1) as thread, pytest.raises(LockedError):
            thread.submit(lambda: lock(tmp_path).__enter__()).result()
    clear(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


def test_clearing_does_not_follow_links(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    folder.mkdir(), elsewhere.mkdir()
    (elsewhere / "thesis.docx").touch()
    (folder / "link").symlink_to(elsewhere)
    (folder / "lock").symlink_to(elsewhere / "thesis.docx")
    clear(folder)
    assert (elsewhere / "thesis.docx").exists() and [path.name for path in folder.iterdir()] == ["lock"]


def test_a_lock_file_that_is_removed_is_not_what_a_waiting_run_ends_with(tmp_path: Path) -> None:
    """It would hold a lock that no later run could see."""
    (tmp_path / "lock").touch()
    waiting = ThreadPoolExecutor(1)

    def wait_for_the_lock() -> bool:
        with lock(tmp_path, wait=True):
            with ThreadPoolExecutor(1) as third, pytest.raises(LockedError):
                third.submit(lambda: lock(tmp_path).__enter__()).result()
            return (tmp_path / "lock").exists()

    with lock(tmp_path):
        result = waiting.submit(wait_for_the_lock)
        while not is_waiting(tmp_path / "lock"):
            assert not result.done()
        (tmp_path / "lock").unlink()
    assert result.result(timeout=60)


def is_waiting(file: Path) -> bool:
    """Tell whether this process has a file open twice: by who holds its lock, and by who waits for it."""
    return [opened.path for opened in psutil.Process().open_files()].count(str(file)) == 2
