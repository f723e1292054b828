"""Copy the times and memory of the runs under out/ to docs/measured/, as times.json and times.md (`make times`)."""

from __future__ import annotations

import json
import os
from pathlib import Path
from statistics import median

from fgnet_lib.datasets import results_dir

ROOT = Path(__file__).resolve().parents[2]
TIMES = ROOT / "docs" / "measured" / "times.json"
MEASURES = ("seconds", "peak_memory_mb")
FLAG = 2  # times its figure, on a machine that is as fast as the one that recorded it
FEWEST = 3  # lessons from which the speed of a machine can be told

HEAD = """# Times and memory

Each figure is that of the lesson's last run by `make tutorial` in which no lesson failed or went on with a stopped
training, without a GPU: seconds, and the peak resident memory of all processes of the lesson together in MB. The last
row has the sum of the seconds and the largest peak. `make times` writes this page from `out/tutorial-*/run.json`;
lessons that are missing there keep their figures. `make test` and `make tutorial` compare with it and name a lesson
that takes over twice its figure, relative to the rest of its run. A T4 is not measured. `make tutorial PROFILE=gpu &&
make times` measures the machine that you have.
"""


def read_times() -> dict[str, dict]:
    """The runs of times.json by "dataset-profile": cores, Python, and seconds and peak memory of each lesson."""
    return json.loads(TIMES.read_text(encoding="utf-8"))


def update(known: dict[str, dict], run: dict) -> dict:
    """A column of times.json: its lessons so far, with what a run.json measured anew, and their total."""
    lessons = known | {lesson["name"]: {key: lesson[key] for key in MEASURES} for lesson in run["lessons"]}
    lessons = {name: lessons[name] for name in sorted(lessons) if (ROOT / "notebooks" / f"{name}.ipynb").is_file()}
    seconds, peaks = ([lesson[key] for lesson in lessons.values()] for key in MEASURES)
    totals = {"seconds": round(sum(seconds), 1), "peak_memory_mb": max(peaks)}
    return {"cores": run["cores"], "python": run["python"], **totals, "lessons": lessons}


def page(runs: dict[str, dict]) -> str:
    """docs/measured/times.md."""
    return f"{HEAD}\n{table(runs)}\n"


def table(runs: dict[str, dict]) -> str:
    """The runs side by side in Markdown, one row for each lesson and the total at the end."""
    heads = [f"{name.replace('-', ', ')} ({run['cores']} cores)" for name, run in runs.items()]
    lines = ["| lesson | " + " | ".join(heads) + " |", "| --- " + "| --- " * len(runs) + "|"]
    for lesson in sorted({name for run in runs.values() for name in run["lessons"]}):
        cells = [run["lessons"].get(lesson) for run in runs.values()]
        lines.append(f"| {lesson} | " + " | ".join(format_cell(cell) if cell else "" for cell in cells) + " |")
    lines.append("| **all** | " + " | ".join(format_cell(run) for run in runs.values()) + " |")
    return "\n".join(lines)


def format_cell(entry: dict) -> str:
    """One cell of the table."""
    return f"{entry['seconds']:.0f} s, {entry['peak_memory_mb']:.0f} MB"


def find_slow(lessons: list[dict], figures: dict[str, dict]) -> tuple[float | None, dict[str, float]]:
    """How much longer than recorded a run took, and which of its lessons took over twice as long as that.

    A slower machine, or a busy one, takes longer over all lessons; the median tells how much. A single lesson that is
    out of line has changed.

    Args:
        lessons: with "name" and "seconds", as in run.json.
        figures: name -> recorded "seconds".

    Returns:
        The median of seconds / recorded seconds, and the ratio of each lesson that is over `FLAG` times the median.
        With fewer than `FEWEST` lessons in common nothing can be said: None and no lesson.
    """
    common = [lesson for lesson in lessons if lesson["name"] in figures]
    ratios = {lesson["name"]: lesson["seconds"] / figures[lesson["name"]]["seconds"] for lesson in common}
    if len(ratios) < FEWEST:
        return None, {}
    machine = median(ratios.values())
    return machine, {name: ratio for name, ratio in ratios.items() if ratio > FLAG * machine}


def report(lessons: list[dict], dataset: str, profile: str) -> str:
    """Lines that compare the times of a run with the recorded ones; a lesson to look at is a warning on GitHub."""
    name = f"{dataset}-{profile}"
    figures = read_times().get(name, {"lessons": {}})["lessons"]
    machine, flagged = find_slow(lessons, figures)
    if machine is None:
        return ""
    warning = "::warning title=Times::" if "GITHUB_ACTIONS" in os.environ else "WARNING: "
    lines = [f"Lessons took {machine:.1f} times their seconds in docs/measured/times.json (median, {name})"]
    for lesson, ratio in flagged.items():
        seconds = f"{figures[lesson]['seconds']:.0f} s"
        lines.append(f"{warning}{lesson} took {ratio:.1f} times its {seconds}, over twice the median")
    for lesson in sorted({lesson["name"] for lesson in lessons} - figures.keys()):
        lines.append(f"{warning}{lesson} has no figure yet: run `make tutorial` and `make times`")
    return "\n".join(lines) + "\n"


def record(out: Path) -> dict[str, dict]:
    """The recorded runs, updated by the runs under `out`.

    A run that failed is left out, and one with a lesson that went on with a stopped training: its seconds are a part.
    """
    runs = read_times()
    for path in sorted(out.glob("tutorial-*/run.json")):
        run = json.loads(path.read_text(encoding="utf-8"))
        if all(lesson["status"] == "done" and not lesson.get("resumed") for lesson in run["lessons"]):
            name = f"{run['dataset']}-{run['profile']}"
            runs[name] = update(runs.get(name, {"lessons": {}})["lessons"], run)
    return runs


if __name__ == "__main__":
    runs = record(results_dir())
    TIMES.write_text(json.dumps(runs, indent=1) + "\n", encoding="utf-8")
    (ROOT / "docs" / "measured" / "times.md").write_text(page(runs), encoding="utf-8")
