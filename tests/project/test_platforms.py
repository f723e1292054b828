"""Colab, Kaggle, Binder and a course's server, as far as one machine can play them: where files lie, what outlives a
session, and the set-up cell. What is installed there is the matter of test_install_missing.py."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import build_notebooks
import pytest
import run_tutorial

from fgnet_lib import datasets
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
    assert {path.suffix for path in (home / "cache").iterdir()} == {".h5", ".sha256"}  # the phantom, its checksum
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


@pytest.fixture
def origin(tmp_path, monkeypatch) -> Path:
    """A repository with what the set-up cell uses, found by git under our address."""
    folder = tmp_path / "origin"
    for name in ("fgnet_lib/__init__.py", "tools/course/install_missing.py", "requirements-lib.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text((ROOT / name).read_text(encoding="utf-8"))
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
        result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
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
