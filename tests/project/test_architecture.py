"""The library is a walk with rooms beside it: what may import what, and where each third-party package belongs."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from importlib import metadata

import pytest

from fgnet_lib import REPOSITORY

LIBRARY = REPOSITORY / "fgnet_lib"
PAGE = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")
MODULES = re.findall(r"^\| `([\w.]+)` \|", PAGE, re.MULTILINE)  # the page's tables are the rule
WALK = [module for module in MODULES if "." not in module]
MAY_IMPORT = {  # a subpackage -> the others that it may import; all may import the walk, but for `files`
    "files": set(),
    "engines": {"files"},
    "scale": {"files", "engines"},
    "views": {"files"},
    "study": {"files"},
    "neighbours": set(),  # nor each other
    "course": {"files", "views"},
}
ONLY = {  # the modules that may import a package; computing never draws
    "matplotlib": {
        *(f"views.{name}" for name in ("plots", "charts", "attention", "panels", "interactive", "explorers", "viewer")),
        "course.checks",  # its pictures
    },
    "ipywidgets": {"views.interactive", "course.quiz", "views.explorers", "views.viewer"},
    "neuroglancer": {"views.viewer", "views.exports"},
    "plotly": {"views.exports"},
    "tensorstore": {"views.exports"},
    "sam2": {"sam2_encoder"},
    "monai": {"augment", "losses"},
    "accelerate": {"training", "checkpoints"},
    "waterz": {"segmentation"},
    "pooch": {"datasets"},
    "peft": {"neighbours.adapters"},
    "onnxruntime": {"engines.export", "engines.quantisation"},
    "openvino": {"engines.runtimes"},
    "distributed": {"scale.cluster", "scale.prediction", "scale.segmentation"},
}
PROVIDED_BY = metadata.packages_distributions()  # "skimage" -> ["scikit-image"]


def files(module: str) -> list:
    """The files of a row of the page: one, or all of a package such as `course.checks`."""
    path = LIBRARY / module.replace(".", "/")
    return sorted(path.glob("*.py")) or [path.with_suffix(".py")]


def imports(module: str) -> set[str]:
    """Dotted names that a module imports anywhere, also inside functions."""
    names = set()
    for node in (node for file in files(module) for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: imports are absolute"
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def own_imports(module: str) -> set[str]:
    """The other rows of the page that a module imports."""
    names = {name.removeprefix("fgnet_lib.") for name in imports(module) if name.startswith("fgnet_lib.")}
    return {row for row in MODULES if any(name == row or name.startswith(f"{row}.") for name in names)} - {module}


def test_the_page_names_every_module_once():
    packages = [path.parent for path in LIBRARY.glob("*/*/__init__.py")]  # `course.checks` is one row
    paths = [path for path in LIBRARY.rglob("[!_]*.py") if path.parent not in packages]
    names = [
        path.relative_to(LIBRARY).with_suffix("") for path in [*paths, *packages] if "__pycache__" not in path.parts
    ]
    assert sorted(MODULES) == sorted(".".join(name.parts) for name in names)


def test_every_subpackage_has_a_rule():
    assert {path.parent.name for path in LIBRARY.glob("*/__init__.py")} <= MAY_IMPORT.keys()


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_earlier_rows_hence_no_cycle(module):
    rows = [*(m for m in MODULES if m.startswith("files.")), *(m for m in MODULES if not m.startswith("files."))]
    rows = ["volumes", *(row for row in rows if row != "volumes")]  # files are read into volumes, data sets read files
    engines = [row for row in rows if row.startswith("engines.")]  # they compute models, and inference chooses one
    rows = [row for row in rows if row not in engines]
    rows[rows.index("inference") : rows.index("inference")] = engines
    later = own_imports(module) - set(rows[: rows.index(module)])
    assert not later, f"{module} imports {sorted(later)}, which come later"


@pytest.mark.parametrize("module", MODULES)
def test_the_top_level_imports_no_room_but_files(module):
    rooms = {name.split(".")[0] for name in own_imports(module) if "." in name}
    room = module.split(".")[0]
    walk = {"files", "engines"} if module == "inference" else {"files"}
    allowed = walk if module in WALK else MAY_IMPORT[room] | ({room} - {"neighbours"})
    assert rooms <= allowed, f"{module} imports from {sorted(rooms - allowed)}"


@pytest.mark.parametrize("module", MODULES)
def test_a_package_is_imported_only_where_it_belongs(module):
    packages = {name.split(".")[0] for name in imports(module)}
    assert {package for package in packages & ONLY.keys() if module not in ONLY[package]} == set()


@pytest.mark.parametrize("module", MODULES)
def test_what_a_module_imports_is_required(module):
    lists = ["requirements-lib.txt", *["requirements-engines.txt"] * module.startswith("engines.")]
    text = "\n".join((REPOSITORY / file).read_text(encoding="utf-8") for file in lists)
    required = set(re.findall(r"^([\w-]+)", text, re.MULTILINE))
    known = sys.stdlib_module_names | {"fgnet_lib", "google"}  # google.colab is only there on Colab
    packages = {name.split(".")[0] for name in imports(module)} - known
    providers = {package: {name.replace("_", "-") for name in PROVIDED_BY[package]} for package in packages}
    assert {package for package in packages if not providers[package] & required} == set()


@pytest.mark.slow
def test_reading_a_volume_does_not_load_torch():
    code = "import sys, fgnet_lib.datasets; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY).returncode == 0
