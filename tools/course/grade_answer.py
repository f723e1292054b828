"""The process of a single answer: it runs the answer and the lesson's check, and sends back a line of JSON.

Answer and check share this process. What is closed here are the plain ways to the solutions, to other processes, to the
network and to files of others; `docs/teach/grading.md` says what stays open.
"""

from __future__ import annotations

import ast
import asyncio
import ctypes
import inspect
import json
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from multiprocessing import forkserver
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from exercises import ExerciseCells
from IPython.core.inputtransformer2 import TransformerManager
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.text import SList
from traitlets.config import Config

from fgnet_lib import REPOSITORY
from fgnet_lib.course.checks import EXERCISES
from fgnet_lib.course.checks.exercise import Outcome, explain

MEMORY, DISK = 8 * 2**30, 200 * 2**20  # bytes that an answer may allocate, and write
# what a plain value is made of, as 10**-6 or (4, 2 * 8): neither a call nor a name
PLAIN = ast.Constant | ast.Tuple | ast.List | ast.Dict | ast.Set | ast.UnaryOp | ast.BinOp | ast.unaryop | ast.operator
ALONE = "An answer may use what the notebook imports, its functions and plain values, but none of its data"
REFUSED = (  # ways to the check, and around the audit
    *("builtins", "ctypes", "fgnet_lib.course.checks", "gc", "importlib", "inspect", "sys"),
    *("_posixshmem", "_posixsubprocess", "posix"),
)
SECRET = [REPOSITORY / "notebooks", REPOSITORY / "tests", REPOSITORY / "fgnet_lib" / "course" / "checks"]
FORBIDDEN = {  # audit events: what starts or stops processes, opens connections or lists all objects
    *("os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.system", "pty.spawn", "subprocess.Popen"),
    *("os.kill", "os.killpg", "gc.get_objects", "gc.get_referents", "gc.get_referrers", "sys.addaudithook"),
    *("socket.bind", "socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"),
    *("resource.prlimit", "resource.setrlimit", "socket.gethostbyaddr", "socket.getnameinfo", "socket.sendmsg"),
}
CHANGES = {
    *("os.chmod", "os.chown", "os.link", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.symlink", "os.truncate"),
    *("os.chflags", "os.removexattr", "os.setxattr", "os.utime", "sqlite3.connect"),
}
UNHEARD = ("memfd_create", "mkfifo", "mknod", "pidfd_open")  # of `os`; they raise no audit event
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


@dataclass(frozen=True)
class Job:
    """What an answer's process gets.

    Attributes:
        imports: of the lesson.
        others: code of the notebook's cells that are no part of the answer.
        answer: code of the answer.
        exercise: the cells of the exercise in this repository.
        seconds: time limit.
    """

    imports: str
    others: list[str]
    answer: str
    exercise: ExerciseCells
    seconds: float


def work(job: Job, folder: str, pipe: socket.socket) -> None:
    """Run imports, answer and check; send a line end after the imports, and then the outcome as a line of JSON."""
    end_with_parent()
    os.chdir(folder)
    tempfile.tempdir = folder
    os.environ |= {"IPYTHONDIR": folder, "MPLBACKEND": "agg", "TMPDIR": folder}
    silence()
    names: dict[str, Any] = {}
    exec(job.imports, names)
    names.pop("checks", None)
    names = start_shell(names).user_ns
    pipe.sendall(b"\n")
    limit(job.seconds)
    for name in UNHEARD:
        vars(os).pop(name, None)
    sys.addaudithook(guard(Path(folder).resolve()))
    try:
        outcome = run_check(job, names)
    except NameError as error:
        outcome = Outcome("wrong", f"{explain(error).partition(': ')[2]}. {ALONE}")
    except BaseException as error:  # whatever a student raises is a wrong answer
        outcome = Outcome("wrong", f"The cell stops with {explain(error)}")
    pipe.sendall(json.dumps(asdict(outcome)).encode() + b"\n")


def end_with_parent() -> None:
    """Make this process the first of its session; on Linux the kernel kills it when its parent ends."""
    if hasattr(os, "setsid"):
        os.setsid()
    alive = getattr(forkserver._forkserver, "_forkserver_alive_fd", None)
    if alive is not None:  # while we hold it, the server from which we are forked outlives the grader
        os.close(alive)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # 1: PR_SET_PDEATHSIG


def silence() -> None:
    """Send what this process prints to nowhere, in an encoding that has every character."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for number, stream in ((1, sys.stdout), (2, sys.stderr)):
        os.dup2(nowhere, number)
        stream.reconfigure(encoding="utf-8", errors="backslashreplace")


def limit(seconds: float) -> None:
    """Limit this process's time on all cores, memory and size of files, where the system can (not on Windows)."""
    with suppress(ImportError):
        import resource

        time = int(sum(os.times()[:2]) + seconds * (os.cpu_count() or 1)) + 10
        limits = {"RLIMIT_CORE": 0, "RLIMIT_CPU": time}
        limits["RLIMIT_FSIZE"] = int(0.99 * DISK)  # one large file is refused before the whole is too much
        if sys.platform == "linux":  # macOS takes this limit and ignores it
            limits["RLIMIT_DATA"] = MEMORY
        for name, most in limits.items():
            hard = resource.getrlimit(getattr(resource, name))[1]
            most = most if hard == resource.RLIM_INFINITY else min(most, hard)
            resource.setrlimit(getattr(resource, name), (most, most))


def guard(folder: Path) -> Callable[[str, tuple], None]:
    """Return an audit hook that lets Python code write in `folder` only and keeps it from the solutions."""

    def is_writing(path: Any, mode: str | None, flags: int) -> bool:
        return bool(set(mode or "") & set("wax+")) or bool(flags & WRITING)

    def hook(event: str, arguments: tuple) -> None:
        if event in FORBIDDEN:
            raise PermissionError(f"an answer may not use {event}")
        if event not in CHANGES and event != "open":
            return
        for path in arguments[: 1 if event == "open" else 2]:
            if not isinstance(path, str | bytes | os.PathLike):
                continue
            target = Path(os.path.realpath(os.fsdecode(path)))
            if target.is_relative_to(folder) or str(target) == os.devnull:
                continue
            if event != "open" or is_writing(*arguments):
                raise PermissionError("an answer may write in its own folder only")
            if target.is_dir():  # paths relative to it would be taken for paths in its own
                raise PermissionError("an answer may open its own folder only")
            if target.suffix == ".ipynb" or any(target.is_relative_to(secret) for secret in SECRET):
                raise PermissionError("an answer may not read notebooks, tests or checks")

    return hook


def start_shell(names: dict[str, Any]) -> InteractiveShell:
    """Return IPython, which gives an answer `display` and magics as in a notebook; commands to the shell do nothing."""
    settings = Config()
    settings.HistoryManager.enabled = False
    shell = InteractiveShell.instance(user_ns=names, config=settings)
    shell.system = lambda command: None
    shell.getoutput = lambda command, *rest, **options: SList()
    return shell


def read_code(code: str) -> list[ast.stmt]:
    """Return the statements of a cell, with IPython's commands as calls; a magic for the whole cell is left out.

    Raises:
        SyntaxError: the code is no Python.
    """
    first, end, rest = code.lstrip().partition("\n")
    return ast.parse(TransformerManager().transform_cell(end + rest if first.startswith("%%") else code)).body


def read_helpers(codes: Iterable[str]) -> list[ast.stmt]:
    """Return the imports, functions, classes and plain values at the top level of cells."""
    helpers: list[ast.stmt] = []
    for code in codes:
        with suppress(Exception):  # a cell that is no Python helps nobody
            helpers += [statement for statement in read_code(code) if _is_helper(statement)]
    return helpers


def _is_helper(statement: ast.stmt) -> bool:
    if isinstance(statement, ast.Import | ast.ImportFrom):
        return find_refused_import([statement]) is None
    if isinstance(statement, ast.Assign | ast.AnnAssign) and (value := statement.value):
        return isinstance(value, ast.Lambda) or all(isinstance(node, PLAIN | ast.Load) for node in ast.walk(value))
    return isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)


async def run(statements: list[ast.stmt], wanted: frozenset[str], names: dict[str, Any]) -> None:
    """Run statements, so that `names` contains `wanted`; a statement may `await`, as in a notebook.

    A trial call below the answer may fail, as may a magic, or a line that uses what other cells of the notebook define.

    Raises:
        Exception: an error of the answer before all of `wanted` is defined.
    """
    missing = None
    for statement in statements:
        code = ast.Module([statement], [])
        try:
            result = eval(compile(code, "<answer>", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True), names)
            if inspect.iscoroutine(result):
                await result
        except NameError as error:
            missing = missing or error
        except (Exception, SystemExit):
            if not wanted <= names.keys() and not ast.unparse(statement).startswith("get_ipython()."):
                raise
    if missing is not None and not wanted <= names.keys():
        raise missing


def find_refused_import(statements: list[ast.stmt]) -> str | None:
    """Return the name of an imported module by which an answer could change its own check; None if there is none."""
    for node in ast.walk(ast.Module(statements, [])):
        if isinstance(node, ast.ImportFrom):
            modules = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        for module in modules:
            if any(f"{module}.".startswith(f"{refused}.") or refused.startswith(f"{module}.") for refused in REFUSED):
                return module
    return None


def read_functions() -> dict[str, Any]:
    """Return the functions and classes that a check relies on, by module and name."""
    roots = ("builtins", "numpy", "fgnet_lib")
    modules = [(name, module) for name, module in list(sys.modules.items()) if name.partition(".")[0] in roots]
    return {
        f"{name}.{key}": entry for name, module in modules for key, entry in vars(module).items() if callable(entry)
    }


def run_check(job: Job, names: dict[str, Any]) -> Outcome:
    """Run an answer, then its check, with the names of the lesson's imports, and return the outcome.

    Raises:
        Exception: an error of the answer.
    """
    check = EXERCISES[job.exercise.name]  # taken before the answer runs
    before = read_functions()
    statements = read_code(job.answer)
    if module := find_refused_import(statements):
        return Outcome("wrong", f"The cell imports {module}, by which a check could be changed: leave that out")
    for helper in read_helpers(job.others):
        with suppress(Exception):
            asyncio.run(run([helper], frozenset(), names))
    for name in job.exercise.answers | {"checks"}:
        names.pop(name, None)
    asyncio.run(run(statements, job.exercise.answers, names))
    names["checks"] = SimpleNamespace(**{job.exercise.name: check})
    exec(job.exercise.check, names)
    after = read_functions()
    if changed := [name for name, entry in before.items() if after.get(name) is not entry]:
        return Outcome("wrong", f"The cell changes {changed[0]}, on which a check relies: leave that out")
    if "stopped with NameError" in check.outcome.hint:
        return Outcome("wrong", f"{check.outcome.hint}. {ALONE}")
    return check.outcome
