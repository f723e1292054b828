"""Make notebooks/*.ipynb from notebooks/src/*.py, and the links to lessons in README.md (`make notebooks`).

The repository's address is in pyproject.toml; every other place that needs it is written here.

A source is hand-edited, in jupytext's percent format. Building adds what is the same for every lesson: badges, measured
times, and in the set-up cell what fetches the library on Colab and Kaggle. Each source gives two notebooks: the
student's, where exercises are open, and the one in notebooks/solutions/, where they are solved.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import jupytext
import nbformat
from exercises import read_exercises, tags
from record_times import read_times

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "notebooks" / "src"
TAGS = {"parameters", "setup", "task", "solution"}
CLONE = re.compile(r"(?<=^git clone )\S+ && cd \S+$", re.MULTILINE)
CITED = re.compile(r"(?<=^repository-code: )\S+$", re.MULTILINE)
FIRST = re.compile(r"(?<=<!-- first -->\n).*?(?=<!-- /first -->)", re.DOTALL)
FURTHER = re.compile(r"#{2,3} (\d+ · )?Further: ")  # a heading whose part is folded, and is no part of the path
PLAYED = re.compile(r"https://[\w-]+\.github\.io/[\w.-]+/playground/")
TABLE = re.compile(r"(?<=<!-- lessons -->\n).*?(?=<!-- /lessons -->)", re.DOTALL)

with (ROOT / "pyproject.toml").open("rb") as file:
    PROJECT = tomllib.load(file)["project"]
REPOSITORY, TAG = PROJECT["urls"]["Repository"], f"v{PROJECT['version']}"
SLUG = REPOSITORY.removeprefix("https://github.com/")

OWNER, NAME = SLUG.split("/")
PLAYGROUND = f"https://{OWNER}.github.io/{NAME}/playground/"
BINDER_MB = 1650  # resident memory; Binder gives 2 GB at most, and its notebook server and a longer session need a part

PATH = (
    "**The path of 90 minutes.** Parts that are headed *Further* are folded: click on the arrow beside such a heading "
    "to open its part. The rest of the lesson does not need it."
)

IMAGES = {
    "Colab": "https://colab.research.google.com/assets/colab-badge.svg",
    "Kaggle": "https://kaggle.com/static/images/open-in-kaggle.svg",
    "Binder": "https://mybinder.org/badge_logo.svg",
    "GitHub": "https://img.shields.io/badge/view%20on-GitHub-black?logo=github",
}

# Short, because students scroll past it in every lesson. Git may not ask for a password, which nobody could type there.
BOOTSTRAP = f"""\
import importlib.util, os, subprocess, sys
from pathlib import Path

if importlib.util.find_spec("fgnet_lib") is None:  # on Colab and Kaggle: fetch the library and what it lacks
    here, address = Path.cwd(), "{REPOSITORY}"
    near = [folder / name for folder in (here, *here.parents) for name in ("", "{NAME}")]
    root = next((folder for folder in near if (folder / "fgnet_lib").is_dir()), here / "{NAME}")
    if here.is_relative_to(root) and not {{"COLAB_RELEASE_TAG", "KAGGLE_KERNEL_RUN_TYPE"}} & os.environ.keys():
        raise RuntimeError(f"wrong kernel: choose .venv of {{root}}; if there is none, run `make env` there first")
    for version in ["--branch={TAG}"], []:  # this notebook's own version, and if it has no tag yet, the newest
        if (root / "fgnet_lib").is_dir():
            break
        command = ["git", "clone", "-q", "--depth=1", *version, address, str(root)]
        git = subprocess.run(command, env=os.environ | {{"GIT_TERMINAL_PROMPT": "0"}}, capture_output=True, text=True)
        if version and "Remote branch" in git.stderr:
            print("There is no tag {TAG} yet: fetching the branch main")
        elif git.returncode:
            why = "It is private, or has moved." if "Username" in git.stderr else "Is the internet switched on?"
            raise RuntimeError(f"git cannot fetch {{address}}. {{why}} Git says: {{git.stderr.strip()}}")
    subprocess.run([sys.executable, str(root / "tools/course/install_missing.py")], check=True)
    sys.path.insert(0, str(root))

"""


def addresses(lesson: str) -> dict[str, str]:
    """Where the lesson opens: Colab, Kaggle, Binder if it fits there, and GitHub to read it."""
    page = f"github.com/{SLUG}/blob/main/notebooks/{lesson}.ipynb"
    links = {
        "Colab": f"https://colab.research.google.com/{page.replace('github.com', 'github', 1)}",
        "Kaggle": f"https://kaggle.com/kernels/welcome?src=https://{page}",
        "Binder": f"https://mybinder.org/v2/gh/{SLUG}/main?urlpath=lab/tree/notebooks/{lesson}.ipynb",
        "GitHub": f"https://{page}",
    }
    if not fits_binder(Path(lesson).name):
        del links["Binder"]
    return links


def badge(name: str, address: str) -> str:
    """A link to one of `addresses` as a Markdown image."""
    return f"[![{name}]({IMAGES[name]})]({address})"


def badges(lesson: str) -> str:
    """All links that open the lesson, as Markdown images."""
    return " ".join(badge(*link) for link in addresses(lesson).items())


def fits_binder(lesson: str) -> bool:
    """Whether a lesson stayed under `BINDER_MB` with `fast`, Binder's default (binder/start); not if unmeasured."""
    run = measurements(lesson).get("fast")
    return run is not None and run["peak_memory_mb"] < BINDER_MB


def measurements(lesson: str) -> dict[str, dict]:
    """By profile, what docs/measured/times.json has of a lesson on the default data: cores, seconds and peak memory."""
    runs = {name: run for name, run in read_times().items() if name.startswith("phantom-") and lesson in run["lessons"]}
    return {name.split("-")[1]: {"cores": run["cores"], **run["lessons"][lesson]} for name, run in runs.items()}


def times(lesson: str) -> str:
    """The lesson's measured time and memory for each profile, as one line of Markdown."""
    runs = [
        f"`{profile}` {duration(run['seconds'])} and {run['peak_memory_mb'] / 1000:.1f} GB ({run['cores']} CPU cores)"
        for profile, run in measurements(lesson).items()
    ]
    here = ", ".join(runs) or "not measured yet"
    return f"**Time and peak memory by `PROFILE`.** {here}. On a T4 not measured here: run `make tutorial PROFILE=gpu`."


def duration(seconds: float) -> str:
    """42 s, or 10 min: as precise as a reader needs."""
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def read_cells(source: Path) -> list[nbformat.NotebookNode]:
    """All cells of a source, tasks and solutions included.

    Raises:
        ValueError: a cell has a tag that is not in `TAGS`, or a task and its solution are not neighbours.
    """
    cells = jupytext.reads(source.read_text(encoding="utf-8"), fmt="py:percent").cells
    for number, cell in enumerate(cells):
        cell.id = f"{source.stem}-{number}"
        if not tags(cell) <= TAGS:
            unknown = sorted(tags(cell) - TAGS)
            raise ValueError(f"{source}, cell {number}: unknown tags {unknown}, known are {sorted(TAGS)}")
    try:
        read_exercises(cells)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    return cells


def in_version(cell: nbformat.NotebookNode, solved: bool) -> bool:
    """Whether a cell is in the solved or in the student version: stubs are in the latter, explained tasks in both."""
    if "solution" in tags(cell):
        return solved
    return not (solved and "task" in tags(cell) and cell.cell_type == "code")


def build(source: Path, solved: bool = False) -> str:
    """The notebook of one source, as the text of its .ipynb file: the student version, or the solved one.

    Raises:
        ValueError: as `read_cells`, or a placeholder is not there exactly once.
    """
    lesson = source.stem
    cells = [cell for cell in read_cells(source) if in_version(cell, solved)]
    head, links = cells[0], badges(lesson)
    if solved:
        links = f"{badges(f'solutions/{lesson}')}\n\nThe **solved** version of [this lesson](../{lesson}.ipynb)."
        for cell in cells:
            if cell.cell_type == "markdown":
                cell.source = cell.source.replace("](../", "](../../")  # one folder deeper
    folds = [cell for cell in cells if cell.cell_type == "markdown" and FURTHER.match(cell.source)]
    for cell in folds:
        cell.metadata["jp-MarkdownHeadingCollapsed"] = True  # JupyterLab folds what lies below, and still runs it
    below = [times(lesson)] + [PATH] * bool(folds)
    for placeholder, content in {"badges": links, "times": "\n\n".join(below)}.items():
        if head.source.count(f"<!-- {placeholder} -->") != 1:
            raise ValueError(f"{source}: the line '# <!-- {placeholder} -->' has to be there exactly once")
        head.source = head.source.replace(f"<!-- {placeholder} -->", content)
    for cell in cells:
        cell.source = PLAYED.sub(PLAYGROUND, cell.source)
        if "setup" in tags(cell):
            cell.source = BOOTSTRAP + cell.source
    notebook = nbformat.v4.new_notebook(cells=cells)
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    nbformat.validate(notebook)
    return nbformat.writes(notebook, version=4) + "\n"


def lesson_table(sources: list[Path]) -> str:
    """The README's table of lessons, a Colab badge a row, and below it the line of `elsewhere`.

    Raises:
        ValueError: a lesson's title is not in the form that the table needs.
    """
    rows = ["| lesson | what you do | on a CPU (`cpu`) | open it |", "| --- | --- | --- | --- |"]
    for source in sources:
        title = re.search(r"^# # (\d\d) · ([^:\n]+): (.+)$", source.read_text(encoding="utf-8"), re.MULTILINE)
        if title is None:
            raise ValueError(f"{source}: the title has to read '# # NN · Name: goal'")
        number, name, goal = title.groups()
        run = measurements(source.stem).get("cpu")
        cost = f"{duration(run['seconds'])}, {run['peak_memory_mb'] / 1000:.1f} GB" if run else ""
        link = f"[{number} {name}](notebooks/{source.stem}.ipynb)"
        rows.append(f"| {link} | {goal} | {cost} | {badge('Colab', addresses(source.stem)['Colab'])} |")
    return "\n".join([*rows, "", elsewhere([source.stem for source in sources])]) + "\n"


def elsewhere(lessons: list[str]) -> str:
    """Links by number to lessons on Kaggle and on Binder, in one line of Markdown."""
    numbers = {
        host: " ".join(f"[{name[:2]}]({links[host]})" for name in lessons if host in (links := addresses(name)))
        for host in ("Kaggle", "Binder")
    }
    return (
        f"A lesson's name opens it for reading. On Kaggle: {numbers['Kaggle']}. "
        f"On Binder, which has 1 to 2 GB, only the lessons that fit: {numbers['Binder']}."
    )


def fill(path: Path, places: dict[re.Pattern, str]) -> str:
    """The text of a hand-edited file with what is generated put in its places.

    Raises:
        ValueError: a place is not there exactly once.
    """
    text = path.read_text(encoding="utf-8")
    for pattern, content in places.items():
        if len(pattern.findall(text)) != 1:
            raise ValueError(
                f"{path}: {pattern.pattern!r} has to be there exactly once, for what `make notebooks` writes"
            )
        text = pattern.sub(lambda _, content=content: content, text)
    return text


def outputs() -> dict[Path, str]:
    """Every file that building makes, with its text."""
    sources = sorted(SOURCES.glob("[0-9][0-9]_*.py"))
    folder = ROOT / "notebooks"
    files = {folder / f"{source.stem}.ipynb": build(source) for source in sources}
    files |= {folder / "solutions" / f"{source.stem}.ipynb": build(source, solved=True) for source in sources}
    first = badge("Colab", addresses(sources[0].stem)["Colab"]) + "\n"
    readme = {FIRST: first, TABLE: lesson_table(sources), CLONE: f"{REPOSITORY} && cd {NAME}", PLAYED: PLAYGROUND}
    for path, places in {"README.md": readme, "CITATION.cff": {CITED: REPOSITORY}}.items():
        files[ROOT / path] = fill(ROOT / path, places)
    return files


if __name__ == "__main__":
    for path, text in outputs().items():
        path.write_text(text, encoding="utf-8")
        print(path.relative_to(ROOT))
