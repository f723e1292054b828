"""What the set-up cell installs: only what is missing, and nothing that is there changes.

pip itself decides, in an environment that holds the names and versions of a server and not their files: once a made-up
server, and once Colab's own list (FGNET_COLAB_LIST), with the wheels of its Python 3.13.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import install_missing
import pytest
from helpers.browser import cannot_test
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

LINES = ["# a comment", "", "h5py>=3.11,<4", "zarr>=3.0,<4", "waterz>=0.10,<0.11  # compiled", "sam2>=1.1,<2"]
HAVE = {"h5py": "3.16.0", "scipy": "1.16.3", "zarr": "2.18.0"}
REQUIREMENTS = install_missing.REQUIREMENTS.read_text(encoding="utf-8").splitlines()
NO_TEST = "NO TEST OF WHAT IS INSTALLED ON COLAB"
PYTHON = "python3.13"  # Colab's
ONLY_SOURCES = {"iopath", "atomicwrites"}  # no wheels of these are published; pure Python


def server(folder: Path, present: dict[str, str], python: str) -> Path:
    """An environment without pip, in which these distributions are installed by name; gives its interpreter."""
    subprocess.run([python, "-m", "venv", "--without-pip", str(folder)], check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    for name, version in present.items():
        info = packages / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    return folder / "bin" / "python"


def would_install(
    lines: list[str],
    present: dict[str, str],
    folder: Path,
    python: str = sys.executable,
    pip: tuple[str, ...] = ("-m", "pip"),
    options: tuple[str, ...] = (),
) -> list[dict]:
    """What pip reports that it would put on the server for these requirements; sam2 is left out."""
    wanted = [requirement for requirement in install_missing.missing(lines, present) if requirement.name != "sam2"]
    (folder / "constraints.txt").write_text("\n".join(install_missing.pin_others(wanted, present)))
    (command,) = install_missing.commands(wanted, folder / "constraints.txt")
    run = [sys.executable, *pip, "--python", str(server(folder / "server", present, python)), *command[3:]]
    run += ["--dry-run", "--report", str(folder / "report.json"), *options]
    result = subprocess.run(run, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if "connection broken" in result.stderr:
        cannot_test(f"{NO_TEST}: no package index can be reached\n{result.stderr[-500:]}")
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads((folder / "report.json").read_text())["install"]


def versions(report: list[dict]) -> dict[str, str]:
    return {canonicalize_name(entry["metadata"]["name"]): entry["metadata"]["version"] for entry in report}


def wheel(folder: Path, name: str, version: str, *needs: str) -> None:
    """A wheel without content."""
    info = f"{name}-{version}.dist-info"
    head = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as file:
        file.writestr(f"{info}/METADATA", head + "".join(f"Requires-Dist: {need}\n" for need in needs))
        file.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(f"{info}/RECORD", "")


def test_only_what_is_missing_or_too_old_is_wanted():
    assert [requirement.name for requirement in install_missing.missing(LINES, HAVE)] == ["zarr", "waterz", "sam2"]


def test_names_are_compared_as_pip_does():
    assert install_missing.missing(["fast_simplification>=0.1"], {"fast-simplification": "0.2"}) == []
    assert {"scikit-image", "fast-simplification"} <= install_missing.read_versions().keys()


def test_nothing_to_do_means_no_command():
    assert install_missing.commands(install_missing.missing(["h5py>=3.11,<4"], HAVE), Path("c.txt")) == []


def test_everything_is_held_but_what_is_wanted():
    assert install_missing.pin_others(install_missing.missing(LINES, HAVE), HAVE) == ["h5py==3.16.0", "scipy==1.16.3"]


def test_the_server_keeps_its_torch_numpy_and_notebook():
    outdated = dict.fromkeys(install_missing.PROTECTED, "0.1")
    for present in ({}, outdated):
        wanted = install_missing.missing(REQUIREMENTS, present)
        assert {requirement.name for requirement in wanted} & install_missing.PROTECTED == set()
        for command in install_missing.commands(wanted, Path("kept.txt")):
            assert command[command.index("--constraint") + 1] == "kept.txt"


def test_sam2_comes_alone():
    wanted = install_missing.missing(REQUIREMENTS, {})
    plain, sam2 = install_missing.commands(wanted, Path("c.txt"))
    assert {"--no-deps", "--no-build-isolation"} <= set(sam2) and sam2[-1].startswith("sam2")
    assert not any(part.startswith("sam2") for part in plain)


@pytest.mark.slow
def test_an_older_release_is_taken_rather_than_changing_what_is_there(tmp_path):
    present = {"torch": "2.11.0+cu128", "numpy": "2.1.3", "tornado": "6.5", "old": "0.9"}
    for name, version, *needs in (
        ("numpy", "2.4"),
        ("tornado", "7.0"),
        ("viewer", "1.0", "tornado>=6", "helper"),
        ("viewer", "2.0", "tornado>=7", "helper"),  # would change a package that the notebook runs on
        ("model", "1.0", "numpy>=2.4"),
        ("model", "0.5", "numpy>=2", "torch>=2.8"),
        ("helper", "3.1"),
        ("old", "1.5"),
    ):
        wheel(tmp_path, name, version, *needs)
    lines = ["numpy>=2.4", "viewer>=1", "model>=0.1", "old>=1"]
    report = would_install(lines, present, tmp_path, options=("--no-index", f"--find-links={tmp_path}"))
    assert versions(report) == {"viewer": "1.0", "helper": "3.1", "model": "0.5", "old": "1.5"}


@pytest.fixture(scope="module")
def python() -> str:
    """An interpreter of Colab's version."""
    environment = os.environ | {"PYENV_VERSION": PYTHON.removeprefix("python")}  # where pyenv keeps several
    ask = [PYTHON, "-c", "import sys; print(sys.executable)"]
    try:
        return subprocess.run(ask, env=environment, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        cannot_test(f"{NO_TEST}: there is no {PYTHON} here")


@pytest.mark.slow
def test_nothing_that_colab_has_changes(colab_list, python, tmp_path):
    own = [f"--target={tmp_path / 'own'}", f"pip=={colab_list['pip']}"]  # as old as Colab's
    result = subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *own], capture_output=True, text=True)
    if result.returncode:
        cannot_test(f"{NO_TEST}: its pip cannot be installed\n{result.stderr[-500:]}")
    report = would_install(REQUIREMENTS, colab_list, tmp_path, python, (str(tmp_path / "own" / "pip"),))
    added = versions(report)
    print(
        "\n".join(f"{name}: {colab_list.get(name, 'missing')} -> {version}" for name, version in sorted(added.items()))
    )
    assert added and added.keys() & colab_list.keys() == set()
    sources = [entry for entry in report if not entry["download_info"]["url"].endswith(".whl")]
    assert versions(sources).keys() <= ONLY_SOURCES  # nothing has to be compiled there

    after = colab_list | added | {"sam2": metadata.version("sam2")}
    assert install_missing.missing(REQUIREMENTS, after) == []  # the cell has nothing to do when it is run again
    for line in (line for line in REQUIREMENTS if re.match(r"\w", line)):
        requirement = Requirement(line.split("#")[0])  # what is protected fits as well
        assert after[canonicalize_name(requirement.name)] in requirement.specifier, line
    for need in map(Requirement, metadata.requires("sam2")):  # nobody installs these for it
        if need.marker is None or need.marker.evaluate({"extra": ""}):
            assert after[canonicalize_name(need.name)] in need.specifier, need
