"""Rules that every lesson keeps, read off its source; a message names the lesson, the cell and the remedy."""

from __future__ import annotations

import ast
import functools
import re
from collections import defaultdict
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path

import jupytext
import nbformat
import pytest
from nbformat import NotebookNode

from fgnet_lib import REPOSITORY

SOURCES = sorted((REPOSITORY / "notebooks" / "src").glob("[0-9][0-9]_*.py"))
NOTEBOOKS = sorted((REPOSITORY / "notebooks").rglob("[0-9][0-9]_*.ipynb"))
CELL_LINES, FUNCTION_LINES, WIDTH = 25, 15, 120

# Lesson 03 writes these out, loads the trained weights into them, and compares them with the library's.
BUILT_ANEW = {"DWBlock", "DenseBlock"}
ABSOLUTE = re.compile(r"(/[\w.-]+/|~/|[A-Za-z]:[\\/])")
HOME = re.compile(r"(?<![\w./:-])/(?:home|Users|root|tmp|mnt|work)/")
ASKING = {"is_available", "is_bf16_supported", "device_count"}  # of torch.cuda, harmless without a GPU


def returns_figure(path: Path) -> set[str]:
    """Names of the functions and methods of a module that return a figure, and so show one as a cell's last value."""
    functions = (node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.FunctionDef))
    return {node.name for node in functions if isinstance(node.returns, ast.Name) and node.returns.id == "Figure"}


VIEWS = REPOSITORY / "fgnet_lib" / "views"
PICTURES = {"subplots", "figure", "draw"}  # draw: of an Explorer
PICTURES |= returns_figure(VIEWS / "plots.py") | returns_figure(VIEWS / "attention.py")


@functools.cache
def cells_of(source: Path) -> list[NotebookNode]:
    return jupytext.reads(source.read_text(encoding="utf-8"), fmt="py:percent").cells


def has_tag(cell: NotebookNode, *names: str) -> bool:
    return bool(set(names) & set(cell.metadata.get("tags", [])))


def called(node: ast.AST) -> str:
    """The last name of what a call calls: `subplots` of `plt.subplots(1, 2)`; empty for other nodes."""
    if not isinstance(node, ast.Call):
        return ""
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def run_at_once(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes of a cell, bodies of functions left out: they run when they are called."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.FunctionDef | ast.Lambda):
            yield child
            yield from run_at_once(child)


# Rules: from the cells of a lesson and the place of one code cell to messages.


def short(cells: list[NotebookNode], k: int) -> Iterator[str]:
    lines = cells[k].source.splitlines()
    if len(lines) > CELL_LINES:
        yield f"{len(lines)} lines, {CELL_LINES} at most: split it, or move plumbing into fgnet_lib"
    if max(map(len, lines), default=0) > WIDTH:
        yield f"a line of {max(map(len, lines))} characters, {WIDTH} at most: wrap it"


def short_functions(cells: list[NotebookNode], k: int) -> Iterator[str]:
    for node in ast.walk(ast.parse(cells[k].source)):
        if isinstance(node, ast.FunctionDef) and not has_tag(cells[k], "task", "solution"):
            lines = node.end_lineno - node.lineno + 1
            if lines > FUNCTION_LINES:
                yield f"{node.name} has {lines} lines, {FUNCTION_LINES} at most: what is no idea goes into fgnet_lib"


def explained(cells: list[NotebookNode], k: int) -> Iterator[str]:
    read = [cell for cell in cells[: k + 1] if not has_tag(cell, "solution")]  # it replaces its task
    if not any(cell.cell_type == "markdown" for cell in read[-3:]):  # a figure may follow the cell that computes it
        yield "no prose in the two cells before it: say first, in Markdown, what it does and why"


def portable_paths(cells: list[NotebookNode], k: int) -> Iterator[str]:
    for node in ast.walk(ast.parse(cells[k].source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and ABSOLUTE.match(node.value):
            yield f"the absolute path {node.value!r}: build it from session.out_dir, DATA_DIR or fgnet_lib.REPOSITORY"


def any_device(cells: list[NotebookNode], k: int) -> Iterator[str]:
    remedy = "use session.device, and ask `if session.device.type == 'cuda'` for what only a GPU has"
    tree = ast.parse(cells[k].source)
    branches = [node for node in ast.walk(tree) if isinstance(node, ast.If | ast.IfExp)]
    guarded = {id(node) for branch in branches if "cuda" in ast.unparse(branch.test) for node in ast.walk(branch)}
    for node in ast.walk(tree):
        if id(node) in guarded:
            continue
        if isinstance(node, ast.Constant) and re.fullmatch(r"cuda(:\d+)?", str(node.value)):
            yield f"the device {node.value!r} by name: {remedy}"
        code = ast.unparse(node) if isinstance(node, ast.Call) else ""
        if re.match(r"[\w.()]+\.cuda\(", code) or (code.startswith("torch.cuda.") and called(node) not in ASKING):
            yield f"{code} without a GPU stops the lesson: {remedy}"


def described(cells: list[NotebookNode], k: int) -> Iterator[str]:
    shows = [node for node in run_at_once(ast.parse(cells[k].source)) if called(node) in PICTURES | {"show"}]
    figure = any(called(node) != "show" or ast.unparse(node.func) == "plt.show" for node in shows)
    alt = str(cells[k].metadata.get("alt", ""))
    if figure and not re.fullmatch(r".{30,400}[.!?]", alt):
        yield 'a figure without alternative text: begin it with # %% alt="One or two sentences on what it shows."'
    others = [cell for n, cell in enumerate(cells) if n != k and cell.metadata.get("alt") == alt]
    if figure and alt and others and not has_tag(cells[k], "task", "solution"):
        yield f"the alternative text {alt[:40]!r}... is that of another figure: say what this one shows"


def tables_shown(cells: list[NotebookNode], k: int) -> Iterator[str]:
    tree = ast.parse(cells[k].source)
    for node in run_at_once(tree):
        table = isinstance(node, ast.Expr) and any(called(part) == "fold_table" for part in ast.walk(node))
        if table and node is not tree.body[-1] and called(node.value) != "display":
            yield "a table that nobody sees, because Jupyter shows the value of a cell's last line: put it there"


RULES = (short, short_functions, explained, portable_paths, any_device, described, tables_shown)


# What is headed "Further" is folded: JupyterLab hides all cells up to the next heading of the same or a higher level.

HEADING = re.compile(r"^(##+) (\d+ · )?(Further: )?", re.MULTILINE)


def folded(cells: list[NotebookNode]) -> tuple[set[int], set[int]]:
    """The numbers of the cells in folds, headings included, and of cells in whose middle a fold begins or ends."""
    hidden, broken, level = set(), set(), 0
    for k, cell in enumerate(cells):
        for heading in HEADING.finditer(cell.source if cell.cell_type == "markdown" else ""):
            marks, _, further = heading.groups()
            if further or len(marks) <= level:
                level = len(marks) if further else 0
                broken |= {k} if heading.start() else set()
        hidden |= {k} if level else set()
    return hidden, broken


def names_of(cell: NotebookNode) -> tuple[set[str], set[str]]:
    """The names that a code cell gives to all cells (imports, functions, variables), and the names that it uses."""
    tree, given = ast.parse(cell.source), set()
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    for node in (tree, *run_at_once(tree)):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            given.add(node.id)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            given |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
    bodies = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.Lambda)]
    for node in (node for body in bodies for node in ast.walk(body)):  # what is local to a function
        used -= {node.arg} if isinstance(node, ast.arg) else set()
        used -= {node.id} if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) else set()
    return given | {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}, used


def fold_problems(cells: list[NotebookNode]) -> Iterator[tuple[int, str]]:
    """For each fault of the folds, the number of its cell and what to do about it."""
    hidden, broken = folded(cells)
    yield from ((k, "a fold begins or ends inside this cell: begin a cell with this heading") for k in broken)
    only_folded: set[str] = set()
    for k, cell in enumerate(cells):
        if cell.cell_type == "code":
            given, used = names_of(cell)
            if k not in hidden and (lacking := sorted(used & only_folded - given)):
                yield k, f"the path uses {lacking} of a part that is headed Further: define it again in the path"
            only_folded = only_folded | given if k in hidden else only_folded - given
    for k, cell in enumerate(cells):
        tasks = cell.source.partition("## Try it")[2] if cell.cell_type == "markdown" and k not in hidden else ""
        for task in re.split(r"^\d+\. ", tasks, flags=re.MULTILINE):
            if "part " not in task and (lacking := sorted(only_folded & set(re.findall(r"`(\w+)\b(?!=)", task)))):
                yield k, f"a task needs {lacking} of a part that is headed Further: name the part"


def complaints(lesson: str, cells: list[NotebookNode]) -> list[str]:
    """What the rules have to say about a lesson, one line for each fault."""
    problems = [f"{lesson}, cell {k}: {message}" for k, message in fold_problems(cells)]
    for k, cell in enumerate(cells):
        where = f"{lesson}, cell {k} ({cell.source.splitlines()[0][:50] if cell.source else 'empty'})"
        if cell.cell_type == "code":
            problems += [f"{where}: {message}" for rule in RULES for message in rule(cells, k)]
        elif HOME.search(cell.source):
            problems.append(f"{where}: a path of one machine: write it as readers have it, as `OUT_DIR` or out/")
    return problems


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_a_lesson_keeps_the_rules(source):
    problems = complaints(source.stem, cells_of(source))
    assert not problems, "\n" + "\n".join(problems)


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_a_path_of_90_minutes_leaves_a_fifth_for_questions(source):
    """Minutes are estimated as docs/teach/instructors.md says."""
    cells = cells_of(source)
    hidden, _ = folded(cells)
    path = [cell for k, cell in enumerate(cells) if k not in hidden]
    code = [cell for cell in path if cell.cell_type == "code"]
    words = sum(len(cell.source.split()) for cell in path if cell.cell_type == "markdown")
    tasks = sum(has_tag(cell, "task") for cell in code)
    predictions = sum(cell.source.startswith("quiz.ask") for cell in code)
    minutes = words / 150 + len(code) + 8 * tasks + 3 * predictions
    assert minutes <= 72, f"{source.stem}: {minutes:.0f} minutes; head more parts Further"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_generated_notebook_is_valid_clean_and_short(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert set(notebook.metadata) == {"kernelspec", "language_info"}, "no widget state: run `make notebooks`"
    for k, cell in enumerate(notebook.cells):
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None, f"cell {k} has outputs: run `make notebooks`"
            assert list(short(notebook.cells, k)) == [], f"{path.stem}, cell {k}"


def test_the_map_in_the_first_lesson_names_all_others_in_their_order():
    first, *others = SOURCES
    rows = re.findall(r"^# \| \[(\d\d) ([^\]]+)\]\((\w+)\.ipynb\) \|", first.read_text(encoding="utf-8"), re.MULTILINE)
    titles = [re.search(r"^# # (\d\d) · ([^:\n]+):", source.read_text("utf-8"), re.MULTILINE) for source in others]
    assert rows == [(*title.groups(), source.stem) for title, source in zip(titles, others, strict=True)]


# The same body in two places, whatever its names are.


class Nameless(ast.NodeTransformer):
    """Takes its own names, annotations and the docstring off a function, so that copies look alike."""

    def __init__(self, function: ast.FunctionDef) -> None:
        nodes = list(ast.walk(function))
        self.own = {node.arg for node in nodes if isinstance(node, ast.arg)}
        self.own |= {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}

    def visit_Name(self, node: ast.Name) -> ast.Name:
        return ast.Name("_" if node.id in self.own else node.id, node.ctx)

    def visit_arg(self, node: ast.arg) -> ast.arg:
        return ast.arg("_")

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        return self.generic_visit(ast.Assign([node.target], node.value) if node.value else ast.Pass())

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        body = node.body[1:] if ast.get_docstring(node) is not None else node.body
        return self.generic_visit(ast.FunctionDef("_", node.args, body, decorator_list=[]))


def functions(code: str) -> Iterator[ast.FunctionDef]:
    """All functions and methods, those of the classes in `BUILT_ANEW` left out."""
    tree = ast.parse(code)
    classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name in BUILT_ANEW]
    anew = {id(method) for node in classes for method in node.body}
    yield from (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and id(node) not in anew)


def repeated(codes: dict[str, str]) -> list[str]:
    """Functions with the same body, by where their code is; the library by itself is not looked at."""
    places = defaultdict(set)
    for where, code in codes.items():
        for function in functions(code):
            places[ast.dump(Nameless(function).visit(deepcopy(function)))].add(f"{where}: {function.name}")
    copies = [sorted(same) for same in places.values() if len(same) > 1 and min(same)[:2].isdigit()]
    return [f"{same} have one body: keep one, in fgnet_lib, and import it" for same in copies]


def lesson_code(source: Path) -> str:
    cells = [cell for cell in cells_of(source) if cell.cell_type == "code" and not has_tag(cell, "task", "solution")]
    return "\n".join(cell.source for cell in cells)


@pytest.mark.slow
def test_no_function_is_repeated_across_lessons_or_copied_from_the_library():
    codes = {source.stem: lesson_code(source) for source in SOURCES}
    codes |= {
        str(path.relative_to(REPOSITORY)): path.read_text("utf-8") for path in (REPOSITORY / "fgnet_lib").rglob("*.py")
    }
    copies = repeated(codes)
    assert not copies, "\n" + "\n".join(copies)


# The rules themselves: each finds what it is there for, and nothing in what is right.


def lesson(code: str, prose: bool = True) -> list[NotebookNode]:
    text = "# %% [markdown]\n# Prose.\n\n" if prose else "# %%\na = 1\n\n# %%\nb = 2\n\n"
    return jupytext.reads(text + code, fmt="py:percent").cells


FIGURE = '# %% alt="Two curves that cross at the threshold which was chosen."\nplt.subplots()\nplt.show()'
FAULTS = {
    "26 lines": "# %%\n" + "x = 1\n" * 26,
    "130 characters": "# %%\n" + f"x = {'1' * 126}",
    "f has 16 lines": "# %%\ndef f():\n" + "    x = 1\n" * 15,
    "absolute path '/data/x.h5'": '# %%\nopen("/data/x.h5")',
    "absolute path '~/x.h5'": '# %%\nopen("~/x.h5")',
    "device 'cuda' by name": '# %%\nmodel.to("cuda")',
    "device 'cuda:1' by name": '# %%\ntorch.zeros(3, device="cuda:1")',
    "model.cuda()": "# %%\nmodel.cuda()",
    "torch.cuda.synchronize()": "# %%\ntorch.cuda.synchronize()",
    "without alternative text": "# %%\nplots.orthogonal_views(raw, size)",
    'begin it with # %% alt="': '# %% alt="A figure."\nplt.show()',
    "is that of another figure": f"{FIGURE}\n\n{FIGURE}",
    "a table that nobody sees": '# %%\nfold_table(heads, {"": lines}) if lines else None\nassert lines',
    "a path of one machine": "# %% [markdown]\n# Look into /home/ada/results first.",
}
FINE = {
    "25 lines": "# %%\n" + "x = 1\n" * 25,
    "a long function in an exercise": '# %% tags=["solution"]\ndef my_f():\n' + "    x = 1\n" * 20,
    "a path in the results": '# %%\nopen(session.out_dir / "neurons.html")',
    "a link": "# %% [markdown]\n# See https://example.org/home/page.",
    "a question about the device": '# %%\nif device.type == "cuda":\n    print(torch.cuda.max_memory_allocated())',
    "a figure with its text": FIGURE,
    "a function that makes figures": "# %%\ndef draw(z):\n    return plt.figure()",
    "the viewer, which is no picture": "# %%\nview = viewer.show(volume)",
    "a table on the last line": '# %%\nassert lines\nfold_table(heads, {"": lines})',
}


@pytest.mark.parametrize("message", FAULTS)
def test_a_fault_is_found_with_its_place(message):
    problems = complaints("99_test", lesson(FAULTS[message]))
    assert problems and all(re.match(r"99_test, cell [12] \(", line) for line in problems)
    assert any(message in line for line in problems), problems


@pytest.mark.parametrize("name", FINE)
def test_what_is_right_is_left_alone(name):
    assert complaints("99_test", lesson(FINE[name])) == []


def test_code_without_prose_is_found():
    assert "99_test, cell 2 (c = 3): no prose" in complaints("99_test", lesson("# %%\nc = 3", prose=False))[-1]


FURTHER = "# %% [markdown]\n# ## 2 · Further: more\n\n# %%\nx = 1\n\n"
FOLDS = {
    "": FURTHER + "# %% [markdown]\n# ### Still further\n\n# %%\nx\n\n# %% [markdown]\n# ## 3\n\n# %%\nx = 2\nx",
    "cell 1: a fold begins or ends": FURTHER.replace("# ## 2", "# Prose.\n#\n# ## 2"),
    "cell 3: a fold begins or ends": FURTHER + "# %% [markdown]\n# Prose.\n#\n# ## 3 · Next",
    "cell 3: a task needs ['x']": FURTHER + "# %% [markdown]\n# ## Try it\n#\n# 1. Change `x`.",
    "cell 4: the path uses ['x']": FURTHER + "# %% [markdown]\n# ## 3 · Next\n\n# %%\nprint(x)",
}


@pytest.mark.parametrize("message", FOLDS)
def test_faults_of_folds_are_found_with_their_place(message):
    problems = complaints("99_test", lesson(FOLDS[message]))
    assert len(problems) == bool(message) and message in "".join(problems), problems


def test_what_goes_further_is_folded_in_jupyterlab():
    for path in NOTEBOOKS:
        cells = nbformat.read(path, as_version=4).cells
        closed = {k for k, cell in enumerate(cells) if cell.metadata.get("jp-MarkdownHeadingCollapsed")}
        headed = {k for k, cell in enumerate(cells) if re.match(r"##+ (\d+ · )?Further: ", cell.source)}
        assert closed == headed, path.name
        assert bool(closed) == ("path of 90 minutes" in cells[0].source), path.name


def test_a_copy_is_found_under_other_names_and_an_unlike_function_is_not():
    original = 'def grow(x: int) -> int:\n    """Once more."""\n    y: int = x + 1\n    return y'
    copy = "class A:\n    def more(this):\n        z = this + 1\n        return z"
    assert repeated({"05": original, "06": copy})[0].startswith("['05: grow', '06: more'] have one body")
    assert repeated({"05": original, "06": copy.replace("1", "2")}) == []
    assert repeated({"05": copy.replace("A", "DWBlock"), "06": copy}) == []  # written out on purpose
