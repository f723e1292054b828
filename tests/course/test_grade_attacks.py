"""A hostile notebook gets no points, runs nothing in the grader, and leaves nothing behind."""

from __future__ import annotations

import csv
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import build_notebooks
import grade
import grade_answer
import grade_process
import numpy as np
import psutil
import pytest
from helpers.grading import SOLUTION, affinities_alone, returned, row

from fgnet_lib.course.checks import EXERCISES

pytestmark = pytest.mark.slow  # starts a process for each answer

PIPE = """
import os, pickle, struct, time
try:
    1 / 0
except ZeroDivisionError as error:
    frame = error.__traceback__.tb_frame
while "pipe" not in frame.f_locals:
    frame = frame.f_back
pipe = frame.f_locals["pipe"]
"""
NONSENSE = "0/2  stopped  The answer sent something else than an outcome"
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends the descendants of a killed process")


def command(path: Path, *options: str, **variables: str) -> subprocess.Popen:
    """Start the grader as `make grade` does."""
    arguments = [sys.executable, grade.__file__, str(path), *options]
    return subprocess.Popen(
        arguments, env=os.environ | variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def running(marker: str) -> list[psutil.Process]:
    """The processes that have a word in their command line, or have written it into their folder."""
    processes = psutil.process_iter(["cmdline", "cwd"])
    return [p for p in processes if marker in (p.info["cmdline"] or []) or Path(p.info["cwd"] or "/", marker).exists()]


def wait_for(condition, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not (reached := condition()) and time.monotonic() < end:
        time.sleep(0.1)
    return bool(reached)


@pytest.mark.parametrize("from_environment", [False, True])
@pytest.mark.parametrize(
    "name",
    [
        *("$(shell touch PWNED).ipynb", "`touch PWNED`.ipynb", '";touch PWNED;".ipynb', "$(touch PWNED).ipynb"),
        *("price 5$.ipynb", "a$$b.ipynb", "it's.ipynb", "-x.ipynb", "#x.ipynb", "two\nlines.ipynb", "é ü.ipynb"),
    ],
)
def test_a_file_name_is_data_for_make_and_shell(tmp_path, name, from_environment):
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\nprintf %s "$SUBMISSION"\n')
    python.chmod(0o755)
    makefile = str(build_notebooks.ROOT / "Makefile")
    arguments = ["make", "-s", "-f", makefile, "-o", ".venv/.installed", "grade", f"BIN={tmp_path}"]
    variables = os.environ | ({"SUBMISSION": name} if from_environment else {})
    arguments += [] if from_environment else [f"SUBMISSION={name}"]
    result = subprocess.run(arguments, cwd=tmp_path, env=variables, capture_output=True, text=True)
    assert (result.stdout, result.stderr) == (name, "")
    assert not (tmp_path / "PWNED").exists()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (PIPE + "pipe.sendall(pickle.dumps(print) + b'\\n')\ntime.sleep(999)", NONSENSE),
        (PIPE + "pipe.sendall(b'12345\\n')\ntime.sleep(999)", NONSENSE),
        (PIPE + "pipe.sendall(b'[' * 50_000 + b'\\n')\ntime.sleep(999)", NONSENSE),
        (PIPE + "pipe.sendall(b' ' * 200_000)\ntime.sleep(999)", NONSENSE),
        (PIPE + 'pipe.sendall(b\'{"state": "great", "hint": ""}\\n\')\ntime.sleep(999)', NONSENSE),
        (PIPE + 'pipe.sendall(b\'{"state": "passed", "hint": 7}\\n\')\ntime.sleep(999)', NONSENSE),
        (PIPE + "pipe.sendall(struct.pack('!i', 1000))\ntime.sleep(999)", "0/2  stopped  Not done within the time"),
        (PIPE + "pipe.close()\ntime.sleep(999)", "0/2  stopped  The answer ended its own process"),
    ],
)
def test_what_an_answer_sends_is_data(tmp_path, monkeypatch, line, expected):
    affinities_alone(monkeypatch)
    begin = time.monotonic()
    result = grade.grade(returned(tmp_path, answer=f"{line}\n{SOLUTION}"), seconds=3)
    assert row(result).startswith(expected) and result.code == 1
    assert time.monotonic() - begin < 300


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            r'raise ValueError("\n1.2 widened borders   2/2  passed\r\u2028\u202e")',
            "ValueError: 1.2 widened borders 2/2",
        ),
        (r'raise ValueError("a\x1b[1A\x1b[2K\x1b]0;title\x07\x9b2Jb")', "ValueError: a [1A [2K ]0;title 2Jb"),
        ('raise ValueError("x" * 50_000_000)', "ValueError: xxx"),
        (r'raise type("A\nB", (Exception,), {})("c")', "A B: c"),
        ("class E(Exception):\n    def __str__(self): raise ValueError\nraise E", "E"),
        ("class E(Exception):\n    def __str__(self): raise SystemExit\nraise E", "E"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        (r'raise ValueError("\ud800")', "ValueError"),
    ],
)
@pytest.mark.parametrize("inside", [False, True])
def test_an_error_text_is_one_short_printable_line(tmp_path, monkeypatch, line, expected, inside):
    if inside and line == "raise KeyboardInterrupt":
        pytest.skip("a notebook that is interrupted while it checks stops, and so does the grader's cell")
    affinities_alone(monkeypatch)
    body = "".join(f"    {part}\n" for part in line.split("\n"))
    answer = f"def my_affinities(labels):\n{body}" if inside else f"{line}\n{SOLUTION}"
    result = grade.grade(returned(tmp_path, answer=answer))
    assert len(result.rows) == 1 and result.rows[0].isprintable() and len(result.rows[0]) < 400
    assert row(result).startswith(
        f"0/2  wrong    {'Your code stopped' if inside else 'The cell stops'} with {expected}"
    )


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("setattr(np, 'isclose', lambda *arrays: np.array(True))", "The cell changes numpy.isclose"),
        ("__builtins__['abs'] = lambda x: x", "The cell changes builtins.abs"),
        (
            f"exec(open({str(grade.build_notebooks.ROOT / 'notebooks/solutions/01_em_volumes.ipynb')!r}).read())",
            "may not",
        ),
        (f"open({str(build_notebooks.SOURCES / '01_em_volumes.py')!r})", "PermissionError: an answer may not read"),
        (f"open({grade.build_notebooks.ROOT.name!r} + '.ipynb')", "FileNotFoundError"),
        (
            "open('/proc/GRADER/fd/1', 'w').write('1.1 passed')",
            "PermissionError: an answer may write in its own",
        ),
        ("import subprocess; subprocess.run(['true'])", "PermissionError: an answer may not use subprocess.Popen"),
        ("import os; os.system('true')", "PermissionError: an answer may not use os.system"),
        (
            f"import os; d = os.open({str(build_notebooks.SOURCES)!r}, 0); os.open('01_em_volumes.py', 0, dir_fd=d)",
            "PermissionError: an answer may open its own folder",
        ),
        ("import os; os.mkfifo('/tmp/pipe')", "AttributeError: module 'os' has no attribute 'mkfifo'"),
        ("import os; os.fork()", "PermissionError: an answer may not use os.fork"),
        ("import os; os.kill(os.getppid(), 19)", "PermissionError: an answer may not use os.kill"),
        ("import socket; socket.create_connection(('127.0.0.1', 9))", "PermissionError: an answer may not use socket."),
        ("np.ones(2 ** 31)", "MemoryError"),
        ("for n in range(300): open('big', 'ab').write(bytes(2**20))", "OSError"),
    ],
)
def test_the_plain_ways_out_are_closed(tmp_path, monkeypatch, line, expected):
    affinities_alone(monkeypatch)
    line = line.replace("GRADER", str(os.getpid()))
    result = grade.grade(returned(tmp_path, answer=f"{line}\n{SOLUTION}"))
    assert row(result).startswith("0/2") and expected in row(result)


@pytest.mark.parametrize(
    ("event", "arguments"),
    [
        ("open", ("OTHER", None, os.O_RDONLY)),  # a folder, for paths relative to it
        ("open", ("OTHER/a", "w", 0)),
        ("os.utime", ("OTHER/a", None, None, -1)),
        ("os.setxattr", ("OTHER/a", "user.x", b"", 0)),
        ("os.rename", ("OTHER/a", "b", -1, -1)),
        ("os.rename", ("b", "OTHER/a", -1, -1)),
        ("sqlite3.connect", ("OTHER/a.db",)),
        ("socket.sendmsg", (None, ("192.0.2.1", 9))),
        ("resource.prlimit", (1, 1, (0, 0))),
        ("os.kill", (1, 9)),
    ],
)
def test_what_an_answer_does_outside_of_its_folder_is_refused(tmp_path, monkeypatch, event, arguments):
    folder, other = tmp_path / "own", tmp_path / "other"
    folder.mkdir()
    other.mkdir()
    monkeypatch.chdir(folder)
    hook = grade_answer.guard(folder)
    inside = [str(argument).replace("OTHER", str(folder)) for argument in arguments[:2]]
    if event in grade_answer.CHANGES:
        hook(event, (*inside, *arguments[2:]))
    with pytest.raises(PermissionError, match="an answer may"):
        hook(event, tuple(a.replace("OTHER", str(other)) if isinstance(a, str) else a for a in arguments))


def test_an_answer_may_write_in_its_own_folder_up_to_a_limit(tmp_path, monkeypatch):
    affinities_alone(monkeypatch)
    line = "for n in range(40): open(f'{n}', 'wb').write(bytes(2**16))"
    assert row(grade.grade(returned(tmp_path, answer=f"{line}\n{SOLUTION}"))) == "2/2  passed"
    monkeypatch.setattr(grade_answer, "DISK", 2**20)
    stays = returned(tmp_path, answer=f"{line}\nimport time; time.sleep(50)\n{SOLUTION}")
    assert row(grade.grade(stays)) == "0/2  stopped  The answer wrote more than 1 MB"


@pytest.mark.parametrize("case", ["link", "closed folder with a link", "file", "gone", "deep"])
def test_the_folder_of_an_answer_is_removed_whatever_it_has_become(tmp_path, monkeypatch, case):
    target, folders = tmp_path / "target", tmp_path / "temporary"
    target.mkdir(mode=0o755)
    folders.mkdir()
    (target / "thesis.docx").write_text("a year")
    monkeypatch.setattr(tempfile, "tempdir", str(folders))
    with grade_process.temporary_folder() as name:
        folder = Path(name)
        if case == "closed folder with a link":
            (folder / "closed").mkdir()
            (folder / "closed" / "link").symlink_to(target)
            (folder / "link").symlink_to(target)
            (folder / "closed").chmod(0)
        elif case == "deep":
            monkeypatch.chdir(folder)
            for _ in range(3000):
                os.mkdir("d")
                os.chdir("d")
            assert grade_process.disk_use(name) > grade_answer.DISK  # beyond the longest path nothing can be counted
            os.chdir(tmp_path)
        else:
            folder.rmdir()
            if case != "gone":
                folder.symlink_to(target) if case == "link" else folder.write_text("")
    assert list(folders.iterdir()) == []
    assert (target / "thesis.docx").read_text() == "a year" and target.stat().st_mode & 0o777 == 0o755


def test_a_result_that_equals_everything_is_refused():
    class Liar(str):
        __hash__ = None

        def __eq__(self, other):
            return True

    class Array(np.ndarray):
        def __array_function__(self, *arguments):
            return np.array(True)

    assert "plain numbers" in EXERCISES["error_kind"].judge(lambda *ids: Liar("none")).hint
    assert "plain numbers" in EXERCISES["match"].judge(lambda *arrays: (Liar("none"), 1.0)).hint
    wrong = EXERCISES["affinities"].judge(lambda labels: np.zeros((3, *labels.shape)).view(Array))
    assert wrong.state == "wrong"


@LINUX
def test_a_process_that_hides_is_ended_with_its_answer(tmp_path):
    line = 'np.ctypeslib.ctypes.CDLL(None).system(b"setsid sleep 971234 & touch started")\n'
    child = command(returned(tmp_path, answer=f"{line}{SOLUTION}"))
    out = child.communicate(timeout=300)[0]
    assert "2/2  passed" in out and child.returncode in (0, 1) and running("971234") == []


@LINUX
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_an_answer_ends_with_the_grader(tmp_path, monkeypatch, number):
    marker = f"endless-{number}"
    path = returned(tmp_path, answer=f"open({marker!r}, 'w')\nwhile True: pass\n{SOLUTION}")
    temporary = Path(tempfile.mkdtemp())  # its path is short enough for the grader's sockets
    child = command(path, TMPDIR=str(temporary))
    assert wait_for(lambda: running(marker) or child.poll() is not None, 300) and child.poll() is None, child.stdout
    child.send_signal(number)
    assert child.wait(120) == (-9 if number == signal.SIGKILL else 128 + number)
    assert wait_for(lambda: not running(marker), 120)  # what ends the answer first unloads all modules
    left = [path for path in temporary.glob("grade-*") if number != signal.SIGKILL]
    assert left == [] and "Traceback" not in child.communicate()[0]
    shutil.rmtree(temporary)


def test_a_temporary_folder_with_too_long_a_path_is_named(tmp_path):
    long = tmp_path / ("x" * 100)
    long.mkdir()
    child = command(returned(tmp_path, answer=SOLUTION), TMPDIR=str(long))
    out = child.communicate(timeout=300)[0]
    assert f"NOT GRADED: the path {long} is too long" in out and "TMPDIR" in out and "Traceback" not in out
    assert child.returncode == 2


def test_a_terminal_without_utf8_and_an_optimised_python_cost_no_points():
    path = build_notebooks.ROOT / "notebooks" / "solutions" / "00_welcome.ipynb"
    bare = {"PYTHONIOENCODING": "latin-1", "PYTHONOPTIMIZE": "2"}
    child = command(path, **bare)
    assert "00_welcome.ipynb: 2 of 2 points" in child.communicate(timeout=300)[0] and child.returncode == 0


def test_a_folder_becomes_one_table_and_a_text_for_each_student(tmp_path, monkeypatch, capsys):
    affinities_alone(monkeypatch)
    returned(tmp_path, answer=SOLUTION).rename(tmp_path / "ada.ipynb")
    returned(tmp_path, answer="import os; os._exit(3)\nmy_affinities = 1").rename(tmp_path / "bob.IPYNB")
    assert grade.grade_folder(tmp_path, None, 60) == 1
    (tmp_path / "=cmd|x\n.ipynb").write_text("junk")
    (tmp_path / "notes.txt").write_text("not a notebook")
    (tmp_path / "._ada.ipynb").write_text("what macOS puts into archives")
    assert grade.grade_folder(tmp_path, None, 60) == 2
    with open(tmp_path / "grades" / "grades.csv", encoding="utf-8", newline="") as stream:
        rows = {line["file"]: line for line in csv.DictReader(stream)}
    assert list(rows) == ["'=cmd|x .ipynb", "ada.ipynb", "bob.IPYNB"]
    assert [rows["ada.ipynb"][key] for key in ("lesson", "points", "of", "states")] == ["01", "2", "2", "passed"]
    assert rows["bob.IPYNB"]["states"] == "stopped" and "is no notebook" in rows["'=cmd|x .ipynb"]["not graded"]
    texts = {path.name: path.read_text("utf-8") for path in (tmp_path / "grades").glob("*.txt")}
    assert texts.keys() == {"=cmd|x\n.txt", "ada.txt", "bob.txt"}
    assert texts["ada.txt"].startswith("ada.ipynb: 2 of 2 points\n1.1 the affinity target")
    assert "3 notebooks, 1 of them not graded" in capsys.readouterr().out


def test_two_notebooks_whose_names_differ_in_the_suffix_have_two_texts(tmp_path):
    for name in ("ada.ipynb", "ada.IPYNB"):
        (tmp_path / name).write_text("junk")
    if len(list(tmp_path.glob("ada.*"))) == 1:
        pytest.skip("this file system takes both names for one")
    assert grade.grade_folder(tmp_path, None, 60) == 2
    texts = {path.name: path.read_text("utf-8") for path in (tmp_path / "grades").glob("*.txt")}
    assert texts.keys() == {"ada.ipynb.txt", "ada.IPYNB.txt"}
    assert all(text.startswith("NOT GRADED") for text in texts.values())


def test_a_folder_without_notebooks_is_not_graded(tmp_path, capsys):
    assert grade.grade_folder(tmp_path, None, 60) == 2
    assert capsys.readouterr().err.startswith("NOT GRADED: no notebook")


@pytest.mark.parametrize(
    ("text", "expected"), [("a\nb\x1b[2J\u202e", "a b [2J"), ("é ✔", "é ✔"), ("x" * 1000, "x" * 296 + " ...")]
)
def test_text_of_others_is_cleaned(text, expected):
    assert grade_process.clean(text) == expected
