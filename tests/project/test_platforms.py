"""Colab, Kaggle, Binder and a course's server, as far as one machine can play them: where files lie, what outlives a
session, and the set-up cell. What is installed there is the matter of test_install_missing.py."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import build_notebooks
import pytest
import run_tutorial

from fgnet_lib import datasets, machine
from fgnet_lib.course.session import PROFILES, start_session
from fgnet_lib.files.formats import write_volume
from fgnet_lib.phantom import make_phantom

ROOT = build_notebooks.ROOT
TRAIN = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from helpers.models import Tiny
from helpers.training import CONFIG
from helpers.volumes import rods
from fgnet_lib.course.session import PROFILES, start_session
from fgnet_lib.training import train
out = start_session("fast", "phantom", "", "", "cpu", 0).out_dir / "04_training"
def tell(history):
    print("iteration", len(history.loss), flush=True)
    if {lost} and len(history.loss) == 7:
        os.kill(os.getpid(), signal.SIGKILL)  # as when a notebook server is taken away
train(Tiny(), [rods()], CONFIG, out, tell)
"""


def contents(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of the last change of all files in a folder, and of the folders (changed when a file is added)."""
    stats = {str(path): path.stat() for path in (folder, *folder.rglob("*"))}
    return {name: (status.st_size, status.st_mtime_ns) for name, status in stats.items()}


@pytest.fixture
def shared(tmp_path):
    """A folder as a course shares it, which nobody may write to. What it calls FIB-25 is a phantom."""
    folder = tmp_path / "shared"
    write_volume(make_phantom((16, 192, 192), seed=5), folder / datasets.CROPS["fib25", "val"])
    paths = [folder, *folder.rglob("*")]
    for path in paths:
        path.chmod(0o555 if path.is_dir() else 0o444)
    yield folder
    for path in paths:
        path.chmod(0o755)


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """FGNET_HOME, and no other folder for results or downloads."""
    monkeypatch.delenv("FGNET_CACHE_DIR", raising=False)
    monkeypatch.setenv("FGNET_HOME", str(tmp_path / "drive" / "fgnet"))
    return tmp_path / "drive" / "fgnet"


@pytest.mark.slow
def test_one_variable_keeps_results_and_downloads(home, monkeypatch):
    session = start_session("fast", "phantom", "", "", "cpu", 0)
    session.volume("val")
    assert session.out_dir == home / "out" and session.out_dir.is_dir()
    kept = {path.suffix or path.name for path in (home / "cache").iterdir()}
    assert kept == {".h5", ".sha256", "lock"}  # the phantom, its checksum, and the lock of the session that made it
    monkeypatch.setenv("FGNET_CACHE_DIR", "elsewhere")
    assert datasets.cache_dir() == Path("elsewhere")


@pytest.mark.slow
def test_a_lesson_leaves_a_shared_folder_as_it_is(shared, home, tmp_path):
    before = contents(shared)
    lesson = ROOT / "notebooks" / "00_welcome.ipynb"
    parameters = {"PROFILE": "fast", "DATASET": "fib25", "DATA_DIR": str(shared), "DEVICE": "cpu"}
    code, _, _, log = run_tutorial.execute(lesson, tmp_path / "done.ipynb", parameters, folder=tmp_path, limit=600)
    assert code == 0, log[-3000:]
    assert contents(shared) == before
    assert (home / "out").is_dir()


def test_real_em_is_read_and_not_written(em_data):
    before = contents(em_data)
    for name, part in datasets.CROPS:
        datasets.open_dataset(name, part)[:2, :32, :32].load()
    assert contents(em_data) == before


def test_a_place_for_results_that_is_read_only_is_said(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"file.*Set OUT_DIR or FGNET_HOME to a folder of yours"):
        start_session("fast", "phantom", "", str(tmp_path / "file" / "out"), "cpu", 0)
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)  # root may write everywhere
    with pytest.raises(OSError, match=r"out: it is read-only\. Set OUT_DIR"):
        start_session("fast", "phantom", "", str(tmp_path / "out"), "cpu", 0)


@pytest.mark.slow
def test_training_goes_on_in_a_new_session_from_what_was_kept(home, tmp_path):
    def session(name: str, lost: bool) -> tuple[int, list[str]]:
        folder = tmp_path / name  # another machine: nothing is left but FGNET_HOME
        folder.mkdir()
        script = TRAIN.format(tests=str(ROOT / "tests"), lost=lost)
        environment = os.environ | {"XDG_CACHE_HOME": str(folder)}
        result = subprocess.run(
            [sys.executable, "-c", script], cwd=folder, env=environment, capture_output=True, text=True
        )
        return result.returncode, re.findall(r"iteration (\d+)", result.stdout)

    assert session("first", lost=True) == (-9, [str(k) for k in range(1, 8)])
    assert session("second", lost=False) == (0, ["7", "8", "9", "10"])  # from the checkpoint of iteration 6


GIT = """\
#!/bin/sh
echo "$@" >> "$(dirname "$0")/calls"
case "$*" in *--branch=*) code=$WITH_TAG;; *) code=$WITHOUT_TAG;; esac
if [ -n "$code" ]; then echo "$code" >&2; exit 128; fi
for folder; do :; done
mkdir -p "$folder/fgnet_lib" "$folder/tools/course"
echo > "$folder/fgnet_lib/__init__.py"
echo "print('installing nothing')" > "$folder/tools/course/install_missing.py"
"""
NO_TAG = f"fatal: Remote branch {build_notebooks.TAG} not found in upstream origin"
OFFLINE = "fatal: unable to access 'https://github.com/x/y/': Could not resolve host: github.com"
PRIVATE = "fatal: could not read Username for 'https://github.com': terminal prompts disabled"


class Server:
    """A bare server without our library, on which a made-up git fails with the words that it is given."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.git = folder / "content", folder / "bin" / "git"
        self.git.parent.mkdir()
        self.folder.mkdir()
        self.git.write_text(GIT)
        self.git.chmod(0o755)

    def run(self, where: str = ".", with_tag: str = "", without_tag: str = "", **variables: str):
        """Run the set-up cell in a folder; -S: our own installation is not seen."""
        folder = self.folder / where
        folder.mkdir(parents=True, exist_ok=True)
        kept = {name: value for name, value in os.environ.items() if name not in HOSTS and name != "PYTHONPATH"}
        path = f"{self.git.parent}{os.pathsep}{os.environ['PATH']}"
        words = {"PATH": path, "WITH_TAG": with_tag, "WITHOUT_TAG": without_tag}
        cell = build_notebooks.BOOTSTRAP + 'print("uses", importlib.util.find_spec("fgnet_lib").origin)'
        command = [sys.executable, "-S", "-c", cell]
        return subprocess.run(command, cwd=folder, env=kept | words | variables, capture_output=True, text=True)

    def calls(self) -> list[list[str]]:
        """Return the words of each call of git."""
        file = self.git.with_name("calls")
        return [line.split() for line in file.read_text().splitlines()] if file.exists() else []


HOSTS = ("COLAB_RELEASE_TAG", "KAGGLE_KERNEL_RUN_TYPE")
NAME = build_notebooks.NAME


@pytest.fixture
def server(tmp_path) -> Server:
    return Server(tmp_path)


def test_the_set_up_cell_fetches_the_tag_of_its_own_version(server):
    result = server.run()
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"installing nothing\nuses {server.folder / NAME / 'fgnet_lib' / '__init__.py'}\n"
    (call,) = server.calls()
    assert call[0] == "clone" and f"--branch={build_notebooks.TAG}" in call
    cited = re.search(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(encoding="utf-8"), re.MULTILINE)[1]
    assert f"v{cited}" == build_notebooks.TAG and build_notebooks.REPOSITORY in call


def test_without_such_a_tag_it_says_so_and_fetches_main(server):
    result = server.run(with_tag=NO_TAG)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"There is no tag {build_notebooks.TAG} yet: fetching the branch main\n")
    assert [any("--branch" in word for word in call) for call in server.calls()] == [True, False]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ((OFFLINE, ""), "Is the internet switched on?"),
        ((PRIVATE, ""), "It is private, or has moved."),
        ((NO_TAG, PRIVATE), "It is private, or has moved."),
        (
            ("fatal: cannot mkdir: No space left on device", ""),
            "Git says: fatal: cannot mkdir: No space left on device",
        ),
    ],
)
def test_what_git_cannot_do_is_said_in_a_sentence(server, words, sentence):
    result = server.run(with_tag=words[0], without_tag=words[1])
    last = result.stderr.strip().splitlines()[-1]
    assert result.returncode == 1 and "CalledProcessError" not in result.stderr
    assert last.startswith(f"RuntimeError: git cannot fetch {build_notebooks.REPOSITORY}. ") and sentence in last
    assert len(server.calls()) == (2 if words[1] else 1)  # nothing is tried again that cannot help


@pytest.mark.parametrize("where", (".", "work", "work/deeper"))
def test_in_the_middle_of_the_series_it_uses_what_an_earlier_lesson_fetched(server, where):
    assert server.run().returncode == 0
    result = server.run(where)
    assert result.stdout.endswith(f"uses {server.folder / NAME / 'fgnet_lib' / '__init__.py'}\n"), result.stderr
    assert len(server.calls()) == 1


@pytest.mark.parametrize("where", (f"{NAME}/notebooks", f"{NAME}/notebooks/solutions"))
def test_inside_the_repository_it_names_the_wrong_kernel_and_fetches_nothing(server, where):
    root = server.folder / NAME
    (root / "fgnet_lib").mkdir(parents=True)
    result = server.run(where)
    last = result.stderr.strip().splitlines()[-1]
    assert last == f"RuntimeError: wrong kernel: choose .venv of {root}; if there is none, run `make env` there first"
    assert not server.calls() and not (server.folder / where / NAME).exists()


@pytest.mark.parametrize("host", HOSTS)
def test_inside_the_repository_on_colab_and_kaggle_it_installs(server, host):
    assert server.run().returncode == 0
    result = server.run(f"{NAME}/notebooks", **{host: "1"})
    assert result.stdout == f"installing nothing\nuses {server.folder / NAME / 'fgnet_lib' / '__init__.py'}\n"
    assert len(server.calls()) == 1


def test_every_notebook_has_the_same_set_up_cell():
    for path in sorted((ROOT / "notebooks" / "src").glob("[0-9][0-9]_*.py")):
        text = build_notebooks.build(path)
        (cell,) = [cell for cell in json.loads(text)["cells"] if "setup" in cell["metadata"].get("tags", [])]
        assert "".join(cell["source"]).startswith(build_notebooks.BOOTSTRAP)
        assert len(cell["source"]) <= 25


@pytest.mark.parametrize(("variables", "profile"), [({"BINDER_REPO_URL": "x"}, "fast"), ({}, "cpu")])
def test_binder_begins_with_the_smallest_profile_and_a_hub_does_not(tmp_path, variables, profile):
    shutil.copytree(ROOT / "binder", tmp_path / "binder")
    for name in ("00_test", "solutions/00_test"):
        (tmp_path / "notebooks" / name).parent.mkdir(parents=True, exist_ok=True)
        source = sorted(build_notebooks.SOURCES.glob("00_*.py"))[0]
        (tmp_path / "notebooks" / f"{name}.ipynb").write_text(build_notebooks.build(source), encoding="utf-8")
    kept = {name: value for name, value in os.environ.items() if name != "BINDER_REPO_URL"}
    command = [tmp_path / "binder" / "start", "echo", "the server"]
    result = subprocess.run(command, env=kept | variables, capture_output=True, text=True, check=True)
    assert result.stdout == "the server\n"
    for path in (tmp_path / "notebooks").rglob("*.ipynb"):
        first = json.loads(path.read_text(encoding="utf-8"))["cells"][1]["source"][0]
        assert first.startswith(f'PROFILE = "{profile}"')


@pytest.mark.parametrize("host", [None, "SSH_CONNECTION", "COLAB_RELEASE_TAG", "BINDER_REPO_URL"])
def test_lesson_09_shows_the_address_of_its_dashboard_only_where_a_browser_may_reach_it(monkeypatch, capsys, host):
    cells = build_notebooks.read_cells(build_notebooks.SOURCES / "09_scaling_out.py")
    (start,) = (cell.source for cell in cells if "dashboard_link" in cell.source)
    client = SimpleNamespace(dashboard_link="http://127.0.0.1:8787/status", run=lambda function: {"worker": 1})
    monkeypatch.setattr("fgnet_lib.scale.cluster.cluster", lambda **options: nullcontext(client))
    for variable, _ in machine._PLATFORM_VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    if host:
        monkeypatch.setenv(host, "x")
    exec(start, {})
    assert ("127.0.0.1" in capsys.readouterr().out) == (host in (None, "SSH_CONNECTION"))


@pytest.fixture
def origin(tmp_path, monkeypatch) -> Path:
    """A repository with what the set-up cell uses, found by git under our address."""
    folder = tmp_path / "origin"
    for name in ("fgnet_lib/__init__.py", "tools/course/install_missing.py", "requirements-lib.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text((ROOT / name).read_text(encoding="utf-8"))
    for name, value in {"GIT_CONFIG_GLOBAL": os.devnull, "LC_ALL": "C"}.items():  # not this user's hooks and language
        monkeypatch.setenv(name, value)
    git = ["git", "-C", str(folder), "-c", "user.name=test", "-c", "user.email=test@example.org"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "All"]):
        subprocess.run([*git, *command], check=True)
    settings = {"COUNT": "1", "KEY_0": f"url.{folder.as_uri()}.insteadOf", "VALUE_0": build_notebooks.REPOSITORY}
    for name, value in settings.items():
        monkeypatch.setenv(f"GIT_CONFIG_{name}", value)
    return folder


@pytest.mark.slow
def test_the_set_up_cell_fetches_once_and_may_be_run_again(origin, tmp_path):
    folder = tmp_path / "content"
    folder.mkdir()
    cell = build_notebooks.BOOTSTRAP + 'print("found", importlib.util.find_spec("fgnet_lib").origin)'
    twice = f"{build_notebooks.BOOTSTRAP}\n{cell}"
    for script in (twice, cell):  # twice in one session, then in another one on the same server
        command = [sys.executable, "-S", "-c", script]  # -S: our own installation is not seen, as on a bare server
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        assert result.stdout.count("nothing: all is there") == 1  # said by a Python that has its packages
        assert result.stdout.endswith(f"found {folder / build_notebooks.NAME / 'fgnet_lib' / '__init__.py'}\n")
        shutil.rmtree(origin, ignore_errors=True)  # what was fetched once is not fetched again


def test_binder_gets_pytorch_for_the_cpu_first_and_a_tested_python():
    binder = ROOT / "binder"
    lines = (binder / "requirements.txt").read_text(encoding="utf-8").splitlines()
    index = next(line for line in lines if line.startswith("--extra-index-url"))
    assert index.endswith("/cpu") and {"torch", "torchvision"} <= set(lines)
    assert "-c ../constraints.txt" in lines
    assert re.fullmatch(r"python-3\.1[123]\n", (binder / "runtime.txt").read_text())
    build = binder / "postBuild"
    assert os.access(build, os.X_OK)
    subprocess.run(["bash", "-n", str(build)], check=True)
    for file in re.findall(r"-[cr] (\S+)", build.read_text()):
        assert (ROOT / file).is_file()
    assert "jupyter-server-proxy" in build.read_text()  # neuroglancer is seen through it


def test_the_training_lesson_leaves_time_for_its_other_parts():
    """Half an hour on a T4: training, and the rest of the lesson as long as it took on a CPU."""
    rest = build_notebooks.measurements("04_training")["cpu"]["seconds"] / 60 - PROFILES["cpu"].minutes
    assert PROFILES["gpu"].minutes + rest <= 30
