from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import psutil
import pytest
import run_tutorial
from nbformat import v4

pytestmark = pytest.mark.slow  # runs notebooks

PARAMETERS = {"PROFILE": "fast", "DATASET": "phantom"}
FILL = "import time\nblock = b'x' * 200_000_000\ntime.sleep(1)"  # long enough to be sampled
QUIET = "try:\n    1 / 0\nexcept ZeroDivisionError as error:\n    print(f'refused, an error: {error}. 0 ERRORS.')"
NOISY = (
    "import threading\nthread = threading.Thread(target=lambda: 1 / 0)\nthread.start()\nthread.join()",
    "import os, sys\n_ = os.system(f'{sys.executable} -c \"import logging; logging.critical(7)\"')",
    "import logging\nlogging.basicConfig(format='%(name)s - %(levelname)s - %(message)s')\nlogging.error('no')",
    "import sys\nprint('[IPKernelApp] ERROR | no', file=sys.stderr)",  # as Jupyter's own programs log
)
DRAW = "import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()"


def write(folder: Path, name: str, *cells: str) -> Path:
    notebook = v4.new_notebook(cells=[v4.new_code_cell(source) for source in ('PROFILE = "cpu"', *cells)])
    notebook.cells[0].metadata["tags"] = ["parameters"]
    notebook.metadata = {"kernelspec": {"name": "python3", "language": "python", "display_name": "Python 3"}}
    nbformat.write(notebook, folder / f"{name}.ipynb")
    return folder / f"{name}.ipynb"


@pytest.fixture
def out(tmp_path, monkeypatch):
    """A folder for results, with a stand-in for what the key of a lesson hashes of the repository."""
    (tmp_path / "fgnet_lib").mkdir()
    (tmp_path / "fgnet_lib" / "module.py").write_text("")
    monkeypatch.setattr(run_tutorial, "ROOT", tmp_path)
    return tmp_path / "out"


def test_a_run_stops_at_a_failure_and_goes_on_when_it_is_mended(out, tmp_path, capsys):
    count = f"open({str(tmp_path / 'runs')!r}, 'a').write('x')"  # one x for each time that the first lesson runs
    good = write(tmp_path, "00_good", count, DRAW, "print(PROFILE, DATASET)", FILL)
    bad = write(tmp_path, "01_bad", "pass", "raise ValueError('no such voxel')")

    assert run_tutorial.run_tutorial([good, bad], out, PARAMETERS) == 1
    *_, where, error = capsys.readouterr().out.strip().splitlines()
    assert "01_bad" in where and "cell" in where and error == "ValueError: no such voxel"
    run = json.loads((out / "run.json").read_text())
    assert [lesson["status"] for lesson in run["lessons"]] == ["done", "failed"]
    assert nbformat.read(out / "01_bad.ipynb", 4).cells[run["lessons"][1]["cell"]].source.startswith("raise")

    write(tmp_path, "01_bad", "pass")
    assert run_tutorial.run_tutorial([good, bad], out, PARAMETERS) == 0
    printed = capsys.readouterr().out
    assert "[1/2] 00_good" in printed and "done before" in printed and str(out / "index.html") in printed
    assert (tmp_path / "runs").read_text() == "x"
    run = json.loads((out / "run.json").read_text())
    assert [lesson["status"] for lesson in run["lessons"]] == ["done", "done"]
    assert run["lessons"][0]["peak_memory_mb"] > 300 and 0 < run["lessons"][0]["seconds"] < 120
    page = (out / "index.html").read_text()
    assert 'href="00_good.html"' in page and 'src="figures/00_good-1.png"' in page
    assert (out / "figures" / "00_good-1.png").read_bytes().startswith(b"\x89PNG")
    assert "fast phantom" in (out / "00_good.ipynb").read_text()

    write(tmp_path, "00_good", "pass")
    assert run_tutorial.run_tutorial([good, bad], out, PARAMETERS) == 0
    assert [lesson["name"] for lesson in json.loads((out / "run.json").read_text())["lessons"]] == ["00_good", "01_bad"]


def test_a_training_that_was_stopped_goes_on_and_other_results_start_cold(out, tmp_path, capsys):
    """A training of hours is not begun anew because the run was stopped; but it is, if the lesson changes."""
    begin = "from pathlib import Path\nfolder = Path(OUT_DIR)\nfolder.mkdir(parents=True, exist_ok=True)"
    train = f"{begin}\n(folder / 'run' / 'checkpoint-0000200').mkdir(parents=True, exist_ok=True)"
    draw = f"{begin}\n(folder / 'left').touch()"
    stops = f"{begin}\nassert (folder / 'again').exists() or (folder / 'again').touch()"
    training, drawing = write(tmp_path, "00_train", train, stops), write(tmp_path, "01_draw", draw, stops)

    assert run_tutorial.run_tutorial([training], out, PARAMETERS) == 1
    assert run_tutorial.run_tutorial([training], out, PARAMETERS) == 0
    (lesson,) = json.loads((out / "run.json").read_text())["lessons"]
    assert lesson["resumed"]
    write(tmp_path, "00_train", train, stops, "pass")
    assert run_tutorial.run_tutorial([training], out, PARAMETERS) == 1
    assert [run_tutorial.run_tutorial([drawing], out, PARAMETERS) for _ in range(2)] == [1, 1]


def test_a_lesson_that_prints_an_error_is_marked_and_the_run_goes_on(out, tmp_path, capsys):
    noisy, quiet = write(tmp_path, "00_noisy", *NOISY), write(tmp_path, "01_quiet", QUIET)
    assert run_tutorial.run_tutorial([noisy, quiet], out, PARAMETERS) == 1
    assert "lesson 00_noisy printed an error in cell 2 " in capsys.readouterr().out
    lessons = json.loads((out / "run.json").read_text())["lessons"]
    assert [lesson["status"] for lesson in lessons] == [run_tutorial.PRINTED, "done"]
    assert "Exception in thread" in lessons[0]["error"] and lessons[1]["error"] is None
    marks = re.findall('<td class="(done|wrong)"', (out / "index.html").read_text())
    assert marks == ["wrong", "done"]
    lines = {line for _, line in run_tutorial.find_errors(out / "00_noisy.ipynb", (out / "00_noisy.log").read_text())}
    logged = {"CRITICAL:root:7", "root - ERROR - no", "[IPKernelApp] ERROR | no"}
    assert lines >= {"Traceback (most recent call last):", *logged}
    log = "Executing notebook\nTask exception was never retrieved\n"
    log += "[IPKernelApp] ERROR | KeyboardInterrupt caught in kernel.\n"  # how the kernel ends
    assert run_tutorial.find_errors(out / "01_quiet.ipynb", log) == [(None, "Task exception was never retrieved")]


def test_a_kernel_that_dies_is_reported(out, tmp_path, capsys):
    notebook = write(tmp_path, "00_dies", "import os\nos._exit(1)")
    assert run_tutorial.run_tutorial([notebook], out, PARAMETERS) == 1
    assert "00_dies, the kernel died" in capsys.readouterr().out


def test_a_lesson_beyond_its_limit_is_stopped_with_its_kernel(tmp_path):
    notebook = write(tmp_path, "00_endless", "import time\ntime.sleep(3600)")
    before = set(psutil.Process().children(recursive=True))
    code, *_ = run_tutorial.execute(notebook, tmp_path / "x.ipynb", PARAMETERS, tmp_path, limit=1)
    assert code != 0 and set(psutil.Process().children(recursive=True)) <= before


def test_memory_that_a_new_child_only_shares_is_not_counted(tmp_path):
    started = "import os, time\nif not os.fork():\n    time.sleep(0.4)\n    os.execlp('true', 'true')\n_ = os.wait()"
    notebook = write(tmp_path, "00_starts_a_program", FILL, started)
    code, _, peak, log = run_tutorial.execute(notebook, tmp_path / "x.ipynb", {}, folder=tmp_path)
    alone = run_tutorial.execute(write(tmp_path, "01_alone", FILL), tmp_path / "y.ipynb", {}, folder=tmp_path)[2]
    assert code == 0, log
    assert abs(peak - alone) < 100  # its 200 MB are counted once


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere kernels have ports")
def test_a_kernel_has_no_port_that_another_program_could_take(tmp_path):
    app = "from ipykernel.kernelapp import IPKernelApp\napp = IPKernelApp.instance()\n"
    notebook = write(tmp_path, "00_kernel", f"{app}assert app.transport == 'ipc', app.transport")
    code, _, _, log = run_tutorial.execute(notebook, tmp_path / "x.ipynb", {}, folder=tmp_path)
    assert code == 0, log


def test_the_key_depends_on_notebook_library_and_parameters(out, tmp_path):
    notebook = write(tmp_path, "00_a", "pass")
    keys = {run_tutorial.sources_key(notebook, PARAMETERS)}
    assert run_tutorial.sources_key(notebook, dict(PARAMETERS)) in keys
    keys.add(run_tutorial.sources_key(notebook, {**PARAMETERS, "PROFILE": "cpu"}))
    write(tmp_path, "00_a", "pass", "pass")
    keys.add(run_tutorial.sources_key(notebook, PARAMETERS))
    (tmp_path / "fgnet_lib" / "module.py").write_text("changed = True")
    keys.add(run_tutorial.sources_key(notebook, PARAMETERS))
    table = tmp_path / "docs" / "measured" / "doubt" / "runs.jsonl.gz"
    table.parent.mkdir(parents=True)
    table.write_bytes(b"runs")
    keys.add(run_tutorial.sources_key(notebook, PARAMETERS))
    assert len(keys) == 5


@pytest.mark.parametrize(
    ("wrong", "known"), [(["--dataset", "phantm"], "phantom"), (["--profile", "turbo"], "fast")], ids=str
)
def test_unknown_names_are_refused_with_the_list(wrong, known, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["run_tutorial.py", *wrong])
    with pytest.raises(SystemExit) as stop:
        run_tutorial.main()
    said = capsys.readouterr().err
    assert stop.value.code == 2 and wrong[1] in said and known in said


@pytest.mark.parametrize("value", [" ", "/no/such/folder", __file__])
def test_a_data_folder_that_is_none_is_told_before_any_lesson(out, monkeypatch, capsys, value):
    monkeypatch.setenv("FGNET_DATA_DIR", value)
    monkeypatch.setattr(run_tutorial, "open_dataset", None)  # not called
    monkeypatch.setattr(sys, "argv", ["run_tutorial.py"])
    assert run_tutorial.main() == 1
    assert f"FGNET_DATA_DIR {value!r} is" in capsys.readouterr().out


def test_data_that_cannot_be_had_are_told_before_any_lesson(out, monkeypatch, capsys):
    def nothing(dataset, part):
        raise FileNotFoundError("fib25: no such file")

    monkeypatch.setattr(run_tutorial, "open_dataset", nothing)
    monkeypatch.setattr(sys, "argv", ["run_tutorial.py", "--dataset", "fib25"])
    assert run_tutorial.main() == 1
    assert "fib25: no such file" in capsys.readouterr().out


@pytest.fixture
def small_disk(out):
    """A disk of 2 MB at `out`, and a function that mounts it with other options."""
    out.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(out)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"a small disk takes the right to mount (root): {mounted.stderr.decode()}")
    try:
        yield lambda options: subprocess.run(["mount", "-o", f"remount,{options}", str(out)], check=True)
    finally:
        subprocess.run(["umount", "--lazy", str(out)], check=True)


SAVE = "import os\nos.makedirs(OUT_DIR)\nopen(f'{OUT_DIR}/x', 'wb').write(bytes(3_000_000))"


@pytest.mark.parametrize("fill", ["print('x' * 3_000_000)", SAVE], ids=["the notebook", "what the lesson saves"])
def test_a_full_disk_is_named_with_lesson_and_cell_and_the_run_goes_on_with_space(
    out, tmp_path, capsys, small_disk, fill
):
    notebooks = [write(tmp_path, "00_good", "pass"), write(tmp_path, "01_large", "pass", fill, "pass")]
    assert run_tutorial.run_tutorial(notebooks, out, PARAMETERS) == 1
    printed = capsys.readouterr().out
    assert re.search(r"THE DISK IS FULL. \d\.\d MB are free in .*out: make space, or set FGNET_HOME", printed)
    assert "FAILED: lesson 01_large, cell 3 " in printed and "No space left on device" in printed
    assert [lesson["name"] for lesson in json.loads((out / "run.json").read_text())["lessons"]][0] == "00_good"
    assert not list(out.rglob("*.part"))

    small_disk("size=64m")
    assert run_tutorial.run_tutorial(notebooks, out, PARAMETERS) == 0
    assert "00_good                          done before" in capsys.readouterr().out
    assert [lesson["status"] for lesson in json.loads((out / "run.json").read_text())["lessons"]] == ["done", "done"]


def test_a_disk_that_is_full_when_a_page_is_written_fails_the_lesson(out, tmp_path, capsys, monkeypatch):
    def no_space(executed):
        raise OSError(28, "No space left on device", str(executed))

    notebook = write(tmp_path, "00_good", "pass")
    with monkeypatch.context() as patch:
        patch.setattr(run_tutorial, "write_html", no_space)
        assert run_tutorial.run_tutorial([notebook], out, PARAMETERS) == 1
    printed = capsys.readouterr().out
    assert "THE DISK IS FULL" in printed and "FAILED: lesson 00_good, outside of its cells" in printed
    assert not (out / "run.json").exists()
    assert run_tutorial.run_tutorial([notebook], out, PARAMETERS) == 0


def test_a_folder_that_cannot_be_written_is_named(out, tmp_path, capsys, small_disk):
    notebook = write(tmp_path, "00_good", "pass")
    small_disk("ro")
    (tmp_path / "file").touch()
    for folder in (out, tmp_path / "file" / "out"):
        assert run_tutorial.run_tutorial([notebook], folder, PARAMETERS) == 1
        assert re.search(
            f"No results can be written to {folder}: .*Set FGNET_HOME to a folder", capsys.readouterr().out
        )


LESSON = {"name": "00_good", "status": "done", "seconds": 1, "peak_memory_mb": 1, "key": "key"}
DAMAGED = {
    "empty": "",
    "cut": json.dumps({"lessons": [LESSON]})[:-20],
    "a list": "[1, 2]",
    "no lessons": "{}",
    "unknown key": json.dumps({"lessons": [LESSON | {"wings": 2}]}),
    "text for a number": json.dumps({"lessons": [LESSON | {"seconds": "<b>"}]}),
    "not a number": json.dumps({"lessons": [LESSON | {"peak_memory_mb": float("nan")}]}),
    "null for a figure": json.dumps({"lessons": [LESSON | {"figures": [None]}]}),
    "deep": "[" * 100_000,
    "binary": "\x00\x80\xff",
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_record_of_a_run_is_set_aside_with_a_word(out, capsys, damage):
    out.mkdir()
    (out / "run.json").write_text(DAMAGED[damage], encoding="latin-1")
    assert run_tutorial.done_before(out, {"00_good": "key"}) == {}
    assert "run.json is damaged (" in capsys.readouterr().out
    assert [path.name for path in out.iterdir()] == ["run.damaged.json"]
    (out / "run.json").write_text(json.dumps({"lessons": [LESSON]}))
    assert list(run_tutorial.done_before(out, {"00_good": "key"})) == ["00_good"]
    assert capsys.readouterr().out == ""


def test_the_index_escapes_what_a_run_holds(out):
    """Every text in run.json, as if somebody else had written it."""
    out.mkdir()
    evil = "<script>alert('\"&')</script>"
    lesson = run_tutorial.Lesson(evil, evil, 1, 1, evil, [evil], None, evil)
    run_tutorial.write_run(out, [lesson], {"PROFILE": evil, "DATASET": evil})
    tags, names = set(), set()
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attributes: (tags.add(tag), names.update(name for name, _ in attributes))
    parser.feed((out / "index.html").read_text(encoding="utf-8"))
    assert {"td", "img"} <= tags and "script" not in tags
    ours = {"alt", "charset", "class", "content", "href", "lang", "loading", "name", "src", "title"}
    assert {"href", "title", "alt"} <= names <= ours


RUN = """
import sys
from pathlib import Path
import run_tutorial
folder = Path(sys.argv[1])
run_tutorial.ROOT = folder
parameters = {"PROFILE": "fast", "DATASET": "phantom"}
sys.exit(run_tutorial.run_tutorial([folder / "00_beats.ipynb"], folder / "out", parameters))
"""
BEATS = (
    "import os, time\nfor _ in range(3000):\n    open({beats!r}, 'a').write(f'{{os.getpid()}}\\n')\n    time.sleep(0.1)"
)


def test_a_second_run_is_refused_and_the_kernel_of_a_killed_runner_ends(out, tmp_path, capsys):
    beats = tmp_path / "beats"
    notebook = write(tmp_path, "00_beats", BEATS.format(beats=str(beats)))
    tools = str(Path(run_tutorial.__file__).parent)
    environment = os.environ | {"PYTHONPATH": f"{tools}{os.pathsep}{Path(tools).parents[1]}"}
    runner = subprocess.Popen([sys.executable, "-c", RUN, str(tmp_path)], env=environment, stdout=subprocess.DEVNULL)
    try:
        wait_until(beats.exists)
        for fresh in (False, True):
            assert run_tutorial.run_tutorial([notebook], out, PARAMETERS, fresh) == 1
            assert f"out is being written by process {runner.pid} on " in capsys.readouterr().out
        kernel = psutil.Process(int(beats.read_text().split()[0]))
    finally:
        runner.kill()
        runner.wait()
    wait_until(lambda: not kernel.is_running() or kernel.status() == psutil.STATUS_ZOMBIE)
    write(tmp_path, "00_beats", "print('it has begun anew')")
    run_tutorial.run_tutorial([notebook], out, PARAMETERS, fresh=True)
    assert "it has begun anew" in (out / "00_beats.ipynb").read_text()


def wait_until(condition) -> None:
    """Wait for 5 minutes at most."""
    for _ in range(3000):
        if condition():
            return
        time.sleep(0.1)
    raise TimeoutError


def test_a_process_that_a_lesson_leaves_behind_does_not_hold_up_the_run(out, tmp_path):
    """It may hold the output open that the log is read from."""
    sleep = "import subprocess\nsubprocess.Popen(['sleep', '300'], start_new_session=True)"
    start = time.monotonic()
    assert run_tutorial.run_tutorial([write(tmp_path, "00_leaves", sleep)], out, PARAMETERS) == 0
    assert time.monotonic() - start < 280


MAIN = """
import sys
from pathlib import Path
import run_tutorial
run_tutorial.ROOT = Path(sys.argv.pop())
sys.exit(run_tutorial.main())
"""


def test_a_terminal_without_utf_8_and_a_path_with_other_letters(tmp_path):
    folder = tmp_path / "Gehäuse 神経"
    (folder / "notebooks").mkdir(parents=True)
    write(folder / "notebooks", "00_letters", "print('ä 神経', OUT_DIR)")
    tools = Path(run_tutorial.__file__).parent
    plain = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "FGNET_HOME": str(folder)}
    environment = os.environ | plain | {"PYTHONPATH": f"{tools}{os.pathsep}{tools.parents[1]}"}
    run = subprocess.run([sys.executable, "-c", MAIN, str(folder)], env=environment, capture_output=True)
    assert run.returncode == 0, run.stderr.decode(errors="replace")
    assert b"index.html" in run.stdout
    executed = folder / "out" / "tutorial-phantom-fast" / "00_letters.ipynb"
    assert "ä 神経" in executed.read_text(encoding="utf-8") and folder.name in executed.read_text(encoding="utf-8")
