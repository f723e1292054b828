"""Run an answer in a process of its own, wait for its outcome until a deadline, and leave nothing of it behind."""

from __future__ import annotations

import ctypes
import errno
import json
import multiprocessing
import os
import re
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing import forkserver
from multiprocessing.context import BaseContext

import grade_answer
import psutil

from fgnet_lib.course.checks.exercise import Outcome

IMPORTING = 600  # seconds for the lesson's imports, which do not count
MESSAGE = 100_000  # bytes
TOOLS = os.path.dirname(os.path.abspath(__file__))
STATES = ("passed", "open", "wrong")


class Stopped(Exception):
    """Raised when an answer is stopped; the message says why."""


def clean(text: str, length: int = 300) -> str:
    """Return text of others as a single line of printable characters, cut to `length`."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text[: 10 * length]).split())
    return line if len(line) <= length else f"{line[: length - 4]} ..."


def adopt_orphans() -> None:
    """Make this process the parent of orphaned descendants, so that they can be ended too (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(36, 1)  # 36: PR_SET_CHILD_SUBREAPER


def judge(job: grade_answer.Job) -> Outcome:
    """Run an answer and the lesson's check of it in a process of its own, and return the outcome.

    The outcome is "stopped" when that takes longer than `job.seconds` after the imports, writes too much or sends
    nonsense, or when the process ends itself. The process and all that it started have ended on return.
    """
    context = process_context(job.imports)
    others = set(psutil.Process().children(recursive=True))
    ours, theirs = socket.socketpair()
    with ours, temporary_folder() as folder:
        process = context.Process(target=grade_answer.work, args=(job, folder, theirs), daemon=True)
        try:
            process.start()
            theirs.close()
            receive(ours, IMPORTING, folder, most=1)
            return read_outcome(receive(ours, job.seconds, folder))
        except EOFError:
            process.join(5)
            return Outcome("stopped", f"The answer ended its own process (exit code {process.exitcode})")
        except Stopped as error:
            return Outcome("stopped", str(error))
        finally:
            theirs.close()
            end_all_but(others)


def process_context(imports: str) -> BaseContext:
    """Return the way to start processes: forked, where the system can, from a process with the imports of answers."""
    if "forkserver" not in multiprocessing.get_all_start_methods():  # Windows
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    modules = re.findall(r"^(?:import|from) ([\w.]+)", imports, re.MULTILINE)
    context.set_forkserver_preload(["build_notebooks", grade_answer.__name__, *modules])
    try:
        with importable(TOOLS):
            forkserver.ensure_running()  # so that it is no descendant of an answer
    except OSError as error:
        print(
            f"NOT GRADED: the path {tempfile.gettempdir()} is too long for the grader's sockets ({error}): set TMPDIR"
        )
        raise SystemExit(2) from None
    return context


@contextmanager
def importable(folder: str) -> Iterator[None]:
    """Let processes started meanwhile import from a folder: Python 3.11 and 3.12 give the forkserver no `sys.path`."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [folder, before]))
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


def receive(pipe: socket.socket, seconds: float, folder: str, most: int = MESSAGE) -> bytes:
    """Return what an answer's process sends up to a line end, at most `most` bytes.

    Raises:
        EOFError: the process has ended.
        Stopped: it sent nothing complete in time, sent too much, or wrote too much into `folder`.
    """
    deadline, message = time.monotonic() + seconds, b""
    while not message.endswith(b"\n"):
        left = deadline - time.monotonic()
        if left <= 0:
            raise Stopped(f"Not done within the time limit of {seconds:g} s: does a loop never end?")
        if disk_use(folder) > grade_answer.DISK:
            raise Stopped(f"The answer wrote more than {grade_answer.DISK // 2**20} MB")
        if len(message) >= most:
            raise Stopped("The answer sent something else than an outcome")
        pipe.settimeout(min(left, 0.5))
        try:
            part = pipe.recv(most - len(message))
        except TimeoutError:
            continue
        except ConnectionError:
            part = b""
        if not part:
            raise EOFError
        message += part
    return message


def read_outcome(message: bytes) -> Outcome:
    """Return the outcome that a line of JSON holds.

    Raises:
        Stopped: the line holds anything else.
    """
    try:
        content = json.loads(message)
        state, hint = content["state"], clean(content["hint"])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise Stopped("The answer sent something else than an outcome") from error
    if state not in STATES:
        raise Stopped("The answer sent something else than an outcome")
    return Outcome(state, hint)


def disk_use(folder: str) -> int:
    """Return about how many bytes lie in a folder; counting stops above the limit, or where paths get too long."""
    total, paths = 0, [folder]
    while paths and total <= grade_answer.DISK:
        path = paths.pop()
        try:
            state = os.lstat(path)
            total += 4096 + state.st_size
            if stat.S_ISDIR(state.st_mode):
                paths += [os.path.join(path, name) for name in os.listdir(path)]
        except OSError as error:  # removed meanwhile, closed, or too deep to be counted
            total += (grade_answer.DISK + 1) * (error.errno == errno.ENAMETOOLONG)
    return total


def end_all_but(others: set[psutil.Process]) -> None:
    """Kill all descendants of this process except `others`, and what they start meanwhile."""
    for _ in range(20):
        processes = [process for process in psutil.Process().children(recursive=True) if process not in others]
        if not processes:
            return
        for process in processes:
            with suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(processes, timeout=1)


@contextmanager
def temporary_folder() -> Iterator[str]:
    """Give a temporary folder and remove it, whatever an answer has made of it."""
    folder = os.path.realpath(tempfile.mkdtemp(prefix="grade-"))
    try:
        yield folder
    finally:
        if os.path.islink(folder) or not os.path.isdir(folder):
            with suppress(OSError):
                os.unlink(folder)
        elif os.name == "posix":
            # Python's own ways end at a thousand folders in each other; these follow no links, which are not ours
            subprocess.run(["chmod", "-R", "u+rwX", folder], stderr=subprocess.DEVNULL)
            subprocess.run(["rm", "-rf", folder], stderr=subprocess.DEVNULL)
        else:
            shutil.rmtree(folder, ignore_errors=True)
