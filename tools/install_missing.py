"""Install what fgnet_lib needs and this notebook server lacks, and leave what it has as it is (Colab, Kaggle).

PyTorch, NumPy and the notebook machinery are already loaded or tied to the server's driver and page: another version of
them breaks the session. They are never installed or changed here.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

REQUIREMENTS = Path(__file__).resolve().parents[1] / "requirements-lib.txt"
PROTECTED = {"torch", "torchvision", "numpy", "ipython", "ipykernel", "ipywidgets"}


def installed_version(name: str) -> str | None:
    """The installed version of a distribution, or None."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def missing(lines: Iterable[str], version: Callable[[str], str | None] = installed_version) -> list[Requirement]:
    """The requirements among `lines` that are not met; what is protected is never among them."""
    found = (Requirement(bare) for line in lines if (bare := line.split("#")[0].strip()))
    return [
        requirement
        for requirement in found
        if requirement.name not in PROTECTED
        and ((present := version(requirement.name)) is None or present not in requirement.specifier)
    ]


def commands(wanted: list[Requirement], constraints: Path) -> list[list[str]]:
    """The pip commands for `wanted`: sam2 alone and without dependencies, for it would be built with a second torch."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--constraint", str(constraints)]
    plain = [str(requirement) for requirement in wanted if requirement.name != "sam2"]
    sam2 = [str(requirement) for requirement in wanted if requirement.name == "sam2"]
    return [pip + plain] * bool(plain) + [[*pip, "--no-deps", "--no-build-isolation", *sam2]] * bool(sam2)


if __name__ == "__main__":
    wanted = missing(REQUIREMENTS.read_text(encoding="utf-8").splitlines())
    print("installing", ", ".join(requirement.name for requirement in wanted) or "nothing: all is there")
    with tempfile.TemporaryDirectory() as folder:
        constraints = Path(folder) / "constraints.txt"  # what no command may change
        kept = [f"{name}=={version}" for name in sorted(PROTECTED) if (version := installed_version(name))]
        constraints.write_text("\n".join(kept), encoding="utf-8")
        for command in commands(wanted, constraints):
            subprocess.run(command, check=True, env={**os.environ, "SAM2_BUILD_CUDA": "0"})
