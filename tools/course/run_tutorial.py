"""Run every lesson in order; write executed notebooks, an HTML index of all figures and run.json (`make tutorial`).

Each lesson runs by papermill in a process of its own. A lesson that was done with the same notebook, library, weights,
tables and parameters is not run again. One that was stopped starts anew, but goes on with a training that left a
checkpoint.
"""

from __future__ import annotations

import argparse
import base64
import errno
import hashlib
import html
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TextIO
from urllib.parse import quote

import nbformat
import psutil
from nbconvert import HTMLExporter
from record_times import TIMES, report
from still_pages import make_still

from fgnet_lib.course.session import PROFILES
from fgnet_lib.datasets import DATASETS, data_dir, named_folder, open_dataset, results_dir
from fgnet_lib.files.atomic import atomic, write_atomically
from fgnet_lib.files.locks import LockedError, clear, lock
from fgnet_lib.machine import usable_cores

ROOT = Path(__file__).resolve().parents[2]
PAPERMILL = Path(__file__).with_name("run_notebook.py")
FULL = tuple(os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT))
POLL_SECONDS = 0.2
PRINTED = "printed an error"  # status of a lesson that ran to its end with a traceback or an error log on its page
ERROR = re.compile(
    r"Traceback \(most recent call last\)|Exception (in thread|in callback|ignored in)|exception was never retrieved"
    r"|Fatal Python error|\b(ERROR|CRITICAL)( -| \|(?! KeyboardInterrupt caught in kernel)|:)"  # papermill ends it so
)


@dataclass
class Lesson:
    """One line of run.json."""

    name: str
    status: str  # "done", "failed" or PRINTED
    seconds: float
    peak_memory_mb: float  # resident memory of the lesson's processes together
    key: str  # hash of everything that the result depends on
    figures: list[str] = field(default_factory=list)
    cell: int | None = None  # of a lesson that is not done: the notebook's cell, and its error
    error: str | None = None
    resumed: bool = False  # it went on with the training of a run that was stopped, so `seconds` is only a part

    def __post_init__(self) -> None:
        numbers = (self.seconds, self.peak_memory_mb)
        texts = (self.name, self.status, self.key, self.error or "", *self.figures)
        if not all(isinstance(text, str) for text in texts) or not all(map(math.isfinite, numbers)):
            raise TypeError("a lesson has other values than expected")


def sources_key(notebook: Path, parameters: dict[str, str]) -> str:
    """Hash of the notebook, the library, the shipped data and weights, the measured tables, and the parameters."""
    digest = hashlib.sha256(json.dumps(parameters, sort_keys=True).encode())
    shipped = [path for folder in ("fgnet_lib", "data") for path in (ROOT / folder).rglob("*") if path.is_file()]
    tables = (path for pattern in ("*.json", "*.gz", "*.npz") for path in (ROOT / "docs" / "measured").rglob(pattern))
    shipped += [path for path in tables if path != TIMES]  # that is made of what lessons took, and none reads it
    for path in [notebook, *sorted(path for path in shipped if "__pycache__" not in path.parts)]:
        digest.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def resident_memory(process: psutil.Process, seen: dict[psutil.Process, float]) -> int:
    """Bytes of resident memory of a process and all its descendants.

    Without those first seen less than a second ago: until it runs its own program, a child shows its parent's memory.

    Args:
        process: The oldest of them.
        seen: When each descendant was first seen, in seconds of the monotonic clock; new ones are added.
    """
    total, now = 0, time.monotonic()
    for member in [process, *process.children(recursive=True)]:
        try:
            if member == process or now - seen.setdefault(member, now) >= 1:
                total += member.memory_info().rss
        except psutil.NoSuchProcess:  # ended since the list was made
            continue
    return total


def execute(
    notebook: Path, executed: Path, parameters: dict[str, str], folder: Path, show: str = "", limit: float = math.inf
) -> tuple[int, float, float, str]:
    """Run a notebook by papermill, in `folder`, for `limit` seconds at most.

    Returns:
        Its exit code, seconds, peak resident memory in MB (of papermill and the kernel together), and papermill's log.
    """
    command = [sys.executable, str(PAPERMILL), str(notebook), str(executed.resolve()), "--kernel", "python3"]
    command += ["--no-progress-bar", "--cwd", str(folder)]
    for name, value in parameters.items():
        command += ["-r", name, value]
    for path in (executed, executed.with_suffix(".log")):  # of an earlier run: they would be taken for this one's
        path.unlink(missing_ok=True)
    start, peak, log, seen = time.monotonic(), 0, [], {}
    process = psutil.Popen(
        command,
        stdin=subprocess.PIPE,  # ends with this process, however that ends, and papermill with it
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        env=os.environ | {"PYTHONUTF8": "1"},  # lessons write UTF-8, whatever the terminal can show
    )
    arguments = (process.stdout, executed.with_suffix(".log"), log)
    reader = threading.Thread(target=copy_log, args=arguments, daemon=True)
    reader.start()
    try:
        while process.poll() is None and time.monotonic() - start < limit:
            try:
                peak = max(peak, resident_memory(process, seen))
            except psutil.NoSuchProcess:
                break
            if sys.stdout.isatty():
                print(f"\r{show} {clock(time.monotonic() - start)}", end="", flush=True)
            time.sleep(POLL_SECONDS)
    finally:  # also when the run is interrupted or too long: leave no kernel behind
        for member in [*process.children(recursive=True), process] if process.is_running() else []:
            member.terminate()
        process.wait()
        process.stdin.close()
        reader.join(5)  # longer only if a process that the lesson has left behind holds its output open
    return process.returncode, time.monotonic() - start, peak / 1e6, "".join(log)


def copy_log(stream: TextIO, path: Path, log: list[str]) -> None:
    """Copy what a process prints to a file while it runs, and to a list, which a full disk does not cut."""
    for line in stream:
        log.append(line)
        with suppress(OSError), path.open("a", encoding="utf-8") as file:
            file.write(line)


def failure(executed: Path, log: str) -> tuple[int | None, str]:
    """The number of the failed cell and its error; without one (the kernel died, the disk is full) the log's end."""
    cells = nbformat.read(executed, as_version=4).cells if executed.exists() else []
    for number, cell in enumerate(cells):
        for output in cell.get("outputs", []):
            if output.output_type == "error":
                return number, f"{output.ename}: {output.evalue}"
    states = [cell.metadata.get("papermill", {}).get("status") for cell in cells]
    stopped = next((number for number, state in enumerate(states) if state != "completed"), None)
    return stopped, "\n".join(log.strip().splitlines()[-3:])


def find_errors(executed: Path, log: str) -> list[tuple[int | None, str]]:
    """The lines of an executed notebook, threads and other processes included, that begin a traceback or log an error.

    Args:
        executed: The executed notebook.
        log: Papermill's log, which also has what the kernel wrote outside of cells.

    Returns:
        The number of the cell, or None for the log, and the line.
    """
    texts: list[tuple[int | None, str]] = []
    for number, cell in enumerate(nbformat.read(executed, as_version=4).cells):
        for output in cell.get("outputs", []):
            plain = output.get("data", {}).get("text/plain", "")
            texts += [(number, text) for text in (output.get("text", ""), plain, *output.get("traceback", []))]
    texts.append((None, log))
    return [(number, line.strip()) for number, text in texts for line in text.splitlines() if ERROR.search(line)]


def extract_figures(executed: Path, folder: Path) -> list[str]:
    """Write every PNG output of an executed notebook to `folder`; returns the file names."""
    names = []
    for cell in nbformat.read(executed, as_version=4).cells:
        for output in cell.get("outputs", []):
            png = output.get("data", {}).get("image/png")
            if png:
                names.append(f"{executed.stem}-{len(names) + 1}.png")
                with atomic(folder / names[-1]) as part:
                    part.write_bytes(base64.b64decode(png))
    return names


def write_html(executed: Path) -> None:
    """Convert an executed notebook to a page beside it that needs no kernel."""
    notebook = nbformat.read(executed, as_version=4)
    make_still(
        notebook, executed.parent / "results" / executed.stem, lambda path: f"results/{executed.stem}/{path.name}"
    )
    page, _ = HTMLExporter().from_notebook_node(notebook, resources={"metadata": {"name": executed.stem}})
    write_atomically(executed.with_suffix(".html"), page.replace("</head>", f"{FRAMES}</head>", 1))


# What a lesson wrote as HTML is shown in its page; an explorer says how high it is
FRAMES = """<style>
.explorer iframe, .scene iframe { display: block; width: 100%; height: 44rem; border: 1px solid #bbb; background: #fff }
</style><script>
addEventListener("message", event => {
  const frame = [...document.querySelectorAll(".explorer iframe")].find(frame => frame.contentWindow === event.source);
  if (frame && Number.isFinite(event.data.fgnetHeight)) frame.style.height = `${event.data.fgnetHeight + 2}px`;
});
</script>
"""

PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark }}
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem }}
table {{ border-collapse: collapse }} td, th {{ padding: .25rem 1rem .25rem 0; text-align: left }}
td.number, th.number {{ text-align: right }}
td.done {{ color: light-dark(#17692f, #7fd69a) }}
td.wrong {{ color: light-dark(#b3261e, #ffb4ab); font-weight: bold }}
h2 {{ margin: 2.5rem 0 .5rem; border-top: 1px solid #ddd; padding-top: 1rem }}
.figures {{ display: flex; flex-wrap: wrap; gap: 1rem }}
.figures img {{ height: 13rem; max-width: 100%; object-fit: contain; border: 1px solid #ddd; background: #fff }}
</style>
<h1>{title}</h1>
<p>Profile {profile}, data set {dataset}, {cores} CPU cores: {minutes:.1f} minutes in all, peak memory {peak:.1f} GB.
The same numbers for a program: <a href="run.json">run.json</a>. What the lessons saved: <a href="results/">results</a>.
</p>
<table><tr><th>lesson</th><th>status</th><th class="number">seconds</th><th class="number">memory, MB</th></tr>
{rows}
</table>
{galleries}
</html>
"""


def write_index(out: Path, run: dict) -> None:
    """Write index.html: a table of the lessons and, under each, its figures, which open the executed lesson."""
    rows, galleries = [], []
    for lesson in run["lessons"]:
        name = html.escape(lesson["name"])
        numbers = "".join(f'<td class="number">{lesson[key]:.0f}</td>' for key in ("seconds", "peak_memory_mb"))
        color = "done" if lesson["status"] == "done" else "wrong"
        status = (
            f'<td class="{color}" title="{html.escape(lesson["error"] or "")}">{html.escape(lesson["status"])}</td>'
        )
        rows.append(f'<tr><td><a href="{name}.html">{name}</a></td>{status}{numbers}</tr>')
        images = "".join(
            f'<a href="{name}.html"><img loading="lazy" src="figures/{quote(figure)}" alt="figure {k} of {name}"></a>\n'
            for k, figure in enumerate(lesson["figures"], start=1)
        )
        links = f'<a href="{name}.html">read it</a> · <a href="{name}.ipynb">notebook</a>'
        galleries.append(f'<h2>{name}</h2>\n<p>{links}</p>\n<div class="figures">\n{images}</div>')
    page = PAGE.format(
        title="FGNet Tutorials: executed lessons",
        profile=html.escape(run["profile"]),
        dataset=html.escape(run["dataset"]),
        cores=run["cores"],
        minutes=run["seconds"] / 60,
        peak=run["peak_memory_mb"] / 1000,
        rows="\n".join(rows),
        galleries="\n".join(galleries),
    )
    write_atomically(out / "index.html", page)


def write_run(out: Path, lessons: list[Lesson], parameters: dict[str, str]) -> dict:
    """Write run.json (atomically: a killed run leaves the last whole one) and index.html; returns what was written."""
    run = {
        "profile": parameters["PROFILE"],
        "dataset": parameters["DATASET"],
        "cores": usable_cores(),
        "python": sys.version.split()[0],
        "seconds": sum(lesson.seconds for lesson in lessons),
        "peak_memory_mb": max(lesson.peak_memory_mb for lesson in lessons),
        "lessons": [asdict(lesson) for lesson in lessons],
    }
    write_atomically(out / "run.json", json.dumps(run, indent=1))
    write_index(out, run)
    return run


def done_before(out: Path, keys: dict[str, str]) -> dict[str, Lesson]:
    """The lessons that an earlier run finished with the same keys, by name; a damaged run.json is set aside."""
    path = out / "run.json"
    if not path.exists():
        return {}
    try:
        lessons = [Lesson(**entry) for entry in json.loads(path.read_text(encoding="utf-8"))["lessons"]]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        aside = path.replace(path.with_name("run.damaged.json"))
        print(f"{path} is damaged ({error}) and set aside as {aside.name}: what was done is not known, and done again")
        return {}
    return {
        lesson.name: lesson for lesson in lessons if lesson.status == "done" and lesson.key == keys.get(lesson.name)
    }


def clock(seconds: float) -> str:
    """Minutes and seconds as 3:07."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def run_lesson(notebook: Path, out: Path, parameters: dict[str, str], key: str, show: str) -> Lesson:
    """Execute one notebook into `out` and describe how it went."""
    executed, results = out / notebook.name, out / "results" / notebook.stem
    stamp = results.with_name(f"{notebook.stem}.key")
    resumed = stamp.is_file() and stamp.read_text(encoding="utf-8") == key and any(results.rglob("checkpoint-*"))
    if not resumed:  # else a training of hours that was stopped goes on; all other lessons start cold
        clear(results)
        stamp.parent.mkdir(exist_ok=True)
        write_atomically(stamp, key)
    parameters = {**parameters, "OUT_DIR": str(results)}
    code, seconds, peak, log = execute(notebook, executed, parameters, notebook.parent, show)
    lesson = Lesson(notebook.stem, "failed" if code else "done", round(seconds, 1), round(peak), key, resumed=resumed)
    if code:
        lesson.cell, lesson.error = failure(executed, log)
    elif errors := find_errors(executed, log):
        lesson.status, (lesson.cell, lesson.error) = PRINTED, errors[0]
    return lesson


def publish(lesson: Lesson, lessons: list[Lesson], out: Path, parameters: dict[str, str]) -> None:
    """Write a lesson's figures and page, then run.json; a lesson whose files cannot be written has failed."""
    executed = out / f"{lesson.name}.ipynb"
    try:
        if executed.exists():
            lesson.figures = extract_figures(executed, out / "figures")
            write_html(executed)
        write_run(out, lessons, parameters)
    except OSError as error:
        lesson.status, lesson.error = "failed", lesson.error or f"{type(error).__name__}: {error}"


def run_tutorial(notebooks: list[Path], out: Path, parameters: dict[str, str], fresh: bool = False) -> int:
    """Run the notebooks that are not done yet, until one fails, as the only run in `out`.

    Returns:
        0, or 1 when a lesson failed or printed an error, another run is at work, or `out` cannot be written.
    """
    try:
        with lock(out):
            if fresh:
                clear(out)
            (out / "figures").mkdir(parents=True, exist_ok=True)
            return run_lessons(notebooks, out, parameters)
    except LockedError as error:
        print(f"\n{error}")
    except OSError as error:
        print(f"\nNo results can be written to {out}: {error}. {advice(out, str(error))}")
    return 1


def run_lessons(notebooks: list[Path], out: Path, parameters: dict[str, str]) -> int:
    """Run the notebooks that are not done yet, until one fails; returns 0, or 1 when one failed or printed an error."""
    keys = {notebook.stem: sources_key(notebook, parameters) for notebook in notebooks}
    lessons = done_before(out, keys)
    spent = []
    for number, notebook in enumerate(notebooks, start=1):
        show = f"[{number}/{len(notebooks)}] {notebook.stem:32}"
        if notebook.stem in lessons:
            print(f"{show} done before")
            continue
        print(show, end="", flush=True)
        lesson = lessons[notebook.stem] = run_lesson(notebook, out, parameters, keys[notebook.stem], show)
        publish(lesson, [lessons[name] for name in keys if name in lessons], out, parameters)
        if lesson.status == "failed":
            report_failure(lesson, out)
            return 1
        spent.append(lesson.seconds)
        left = sum(spent) / len(spent) * sum(name not in lessons for name in keys)
        again = f"\r{show}" if sys.stdout.isatty() else ""
        print(f"{again} {clock(lesson.seconds)}  {lesson.peak_memory_mb:5.0f} MB  about {clock(left)} left")
    run = write_run(out, [lessons[name] for name in keys], parameters)
    print(f"{len(lessons)} lessons in {clock(run['seconds'])}, peak memory {run['peak_memory_mb'] / 1000:.1f} GB")
    print(report(run["lessons"], run["dataset"], run["profile"]), end="")
    print(f"Open {out / 'index.html'}")
    wrong = [lesson for lesson in lessons.values() if lesson.status == PRINTED]
    for lesson in wrong:
        where = "papermill's log" if lesson.cell is None else f"cell {lesson.cell}"
        print(f"lesson {lesson.name} printed an error in {where} (see {out / lesson.name}.ipynb): {lesson.error}")
    return int(bool(wrong))


def lesson_parameters(dataset: str, profile: str) -> dict[str, str]:
    """What every lesson is run with."""
    folder = named_folder("FGNET_DATA_DIR")
    return {"PROFILE": profile, "DATASET": dataset, "DATA_DIR": str(folder.resolve()) if folder else ""}


def report_failure(lesson: Lesson, out: Path) -> None:
    """Say which cell of which lesson failed, with its error at the end."""
    print(f"\n\nThe lessons that were done are kept in {out}; the same command goes on from there.")
    if any(reason in lesson.error for reason in FULL):
        print(f"THE DISK IS FULL. {advice(out, lesson.error)}")
    if lesson.cell is not None:
        where = f"cell {lesson.cell}"
    else:
        where = "the kernel died" if "Kernel died" in lesson.error else "outside of its cells"
    print(f"FAILED: lesson {lesson.name}, {where} (see {out / lesson.name}.ipynb)\n{lesson.error}")


def advice(out: Path, error: str) -> str:
    """What to do when a folder cannot be written."""
    other = "set FGNET_HOME to a folder of yours, which gets the results"
    if any(reason in error for reason in FULL):
        disk = next(folder for folder in (out, *out.parents) if folder.exists())
        return f"{shutil.disk_usage(disk).free / 1e6:.1f} MB are free in {disk}: make space, or {other}."
    return f"{other[0].upper()}{other[1:]}."


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", default="phantom", choices=DATASETS)
    parser.add_argument("--profile", default="fast", choices=PROFILES)
    parser.add_argument("--fresh", action="store_true", help="forget what was done before")
    options = parser.parse_args()
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")
    try:
        out = results_dir() / f"tutorial-{options.dataset}-{options.profile}"
        data_dir()
        for part in ("train", "val"):
            open_dataset(options.dataset, part)
    except (OSError, ValueError) as error:  # before an hour of lessons, not in the middle of it
        return print(error) or 1
    parameters = lesson_parameters(options.dataset, options.profile)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # told to stop: end the lesson's kernel as for Ctrl-C
    try:
        return run_tutorial(sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb")), out, parameters, options.fresh)
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here")
        return 130


if __name__ == "__main__":
    sys.exit(main())
