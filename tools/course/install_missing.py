"""Install what fgnet_lib needs and this notebook server lacks, and leave what it has as it is (Colab, Kaggle).

Part of what is there is loaded already, or tied to the server's driver and page: another version of it would ask for a
restart, or break the session. So every package that is there is held at its version, whatever a new one would prefer,
except those of ours that are too old. PyTorch, NumPy and the notebook itself are held even then.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

REQUIREMENTS = Path(__file__).resolve().parents[2] / "requirements-lib.txt"
PROTECTED = {"torch", "torchvision", "numpy", "ipython", "ipykernel", "ipywidgets"}


def read_versions() -> dict[str, str]:
    """The version of every distribution that this Python sees, by canonical name; the first on its path counts."""
    versions = {}
    for distribution in metadata.distributions():
        try:
            versions.setdefault(canonicalize_name(distribution.name), str(Version(distribution.version)))
        except (InvalidVersion, TypeError):  # remains of what was removed, or a system package: pip cannot name these
            continue
    return versions


def missing(lines: Iterable[str], present: Mapping[str, str]) -> list[Requirement]:
    """The requirements among `lines` that `present` (name -> version) does not meet; never what is protected."""
    requirements = [Requirement(bare) for line in lines if (bare := line.split("#")[0].strip())]
    unmet = []
    for requirement in requirements:
        version = present.get(canonicalize_name(requirement.name))
        if requirement.name not in PROTECTED and (version is None or version not in requirement.specifier):
            unmet.append(requirement)
    return unmet


def pin_others(wanted: Iterable[Requirement], present: Mapping[str, str]) -> list[str]:
    """pip's constraints that keep all that is present at its version, except what is wanted in another one."""
    changing = {canonicalize_name(requirement.name) for requirement in wanted}
    return [f"{name}=={version}" for name, version in sorted(present.items()) if name not in changing]


def commands(wanted: list[Requirement], constraints: Path) -> list[list[str]]:
    """The pip commands for `wanted`: sam2 alone, no dependencies, because pip would build it with a second torch."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--constraint", str(constraints)]
    plain = [str(requirement) for requirement in wanted if requirement.name != "sam2"]
    sam2 = [str(requirement) for requirement in wanted if requirement.name == "sam2"]
    return [pip + plain] * bool(plain) + [[*pip, "--no-deps", "--no-build-isolation", *sam2]] * bool(sam2)


if __name__ == "__main__":
    present = read_versions()
    wanted = missing(REQUIREMENTS.read_text(encoding="utf-8").splitlines(), present)
    print("installing", ", ".join(requirement.name for requirement in wanted) or "nothing: all is there", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        constraints = Path(folder) / "constraints.txt"
        constraints.write_text("\n".join(pin_others(wanted, present)), encoding="utf-8")
        for command in commands(wanted, constraints):
            subprocess.run(command, check=True, env={**os.environ, "SAM2_BUILD_CUDA": "0"})
