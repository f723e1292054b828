from __future__ import annotations

from pathlib import Path

import install_missing

HAVE = {"h5py": "3.16.0", "scipy": "1.16.3", "zarr": "2.18.0"}
LINES = ["# a comment", "", "h5py>=3.11,<4", "zarr>=3.0,<4", "waterz>=0.10,<0.11  # compiled", "sam2>=1.1,<2"]


def test_only_what_is_missing_or_too_old_is_installed():
    assert [one.name for one in install_missing.missing(LINES, HAVE.get)] == ["zarr", "waterz", "sam2"]


def test_nothing_to_do_means_no_command():
    assert install_missing.commands(install_missing.missing(["h5py>=3.11,<4"], HAVE.get), Path("c.txt")) == []


def test_the_server_keeps_its_torch_numpy_and_notebook():
    lines = install_missing.REQUIREMENTS.read_text(encoding="utf-8").splitlines()
    wanted = install_missing.missing(lines, {}.get)  # even on a machine that has nothing
    assert {one.name for one in wanted} & install_missing.PROTECTED == set()
    for command in install_missing.commands(wanted, Path("kept.txt")):
        assert command[command.index("--constraint") + 1] == "kept.txt"


def test_sam2_comes_without_its_torch_and_with_what_else_it_needs():
    lines = install_missing.REQUIREMENTS.read_text(encoding="utf-8").splitlines()
    plain, sam2 = install_missing.commands(install_missing.missing(lines, {}.get), Path("c.txt"))
    assert {"--no-deps", "--no-build-isolation"} <= set(sam2) and sam2[-1].startswith("sam2")
    assert any(part.startswith("hydra-core") for part in plain) and any(part.startswith("iopath") for part in plain)
