"""The library is a walk: no module imports a later one, and each third-party package stays where it belongs."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = ROOT / "fgnet_lib"
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
WALK = re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE)  # the page's table is the rule
ONLY = {  # the modules that may import a package; computing never draws
    "matplotlib": {"plots", "interactive", "explorers", "viewer"},
    "ipywidgets": {"interactive", "quiz", "explorers", "viewer"},
    "neuroglancer": {"viewer", "exports"},
    "plotly": {"exports"},
    "tensorstore": {"exports"},
    "sam2": {"sam2_encoder"},
    "monai": {"augment", "losses"},
    "accelerate": {"training"},
    "waterz": {"segmentation"},
    "pooch": {"datasets"},
    "distributed": {"cluster", "block_prediction", "block_segmentation"},
}
PROVIDED_BY = metadata.packages_distributions()  # "skimage" -> ["scikit-image"]


def imports(module: str) -> set[str]:
    """Dotted names that a module of the library (or any file of a package) imports anywhere, also inside functions."""
    found = set()
    files = sorted((LIBRARY / module).glob("*.py")) or [LIBRARY / f"{module}.py"]
    for node in (node for file in files for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: imports are absolute"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_the_page_names_every_module_once():
    files = [path for path in LIBRARY.glob("[!_]*") if path.suffix == ".py" or path.is_dir()]
    assert sorted(WALK) == sorted(path.stem for path in files)


@pytest.mark.parametrize("module", WALK)
def test_a_module_imports_only_earlier_ones(module):
    earlier = set(WALK[: WALK.index(module) + 1])  # files of one package may import each other
    own = {name.split(".")[1] for name in imports(module) if name.startswith("fgnet_lib.")}
    assert own <= earlier, f"{module} imports {sorted(own - earlier)}, which come later in the walk"


@pytest.mark.parametrize("module", WALK)
def test_a_package_is_imported_only_where_it_belongs(module):
    packages = {name.split(".")[0] for name in imports(module)}
    assert {package for package in packages & ONLY.keys() if module not in ONLY[package]} == set()


@pytest.mark.parametrize("module", WALK)
def test_what_a_module_imports_is_required(module):
    text = (ROOT / "requirements-lib.txt").read_text(encoding="utf-8")
    required = set(re.findall(r"^([\w-]+)", text, re.MULTILINE))
    known = sys.stdlib_module_names | {"fgnet_lib", "google"}  # google.colab is only there on Colab
    packages = {name.split(".")[0] for name in imports(module)} - known
    providers = {package: {name.replace("_", "-") for name in PROVIDED_BY[package]} for package in packages}
    assert {package for package in packages if not providers[package] & required} == set()


def test_reading_a_volume_does_not_load_torch():
    code = "import sys, fgnet_lib.datasets; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
