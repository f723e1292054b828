"""Copy the times and memory of the runs under out/ to docs/measured/, as times.json and times.md (`make times`)."""

from __future__ import annotations

import json
import os
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[2]
TIMES = ROOT / "docs" / "measured" / "times.json"
MEASURES = ("seconds", "peak_memory_mb")
FLAG = 2  # times its figure, on a machine that is as fast as the one that recorded it
FEWEST = 3  # lessons from which the speed of a machine can be told

HEAD = """# Times and memory

Each column is one run of `make tutorial` after installation, without a GPU: seconds, and the peak resident memory of
the lesson's processes together in MB. `make times` writes this page from `out/tutorial-*/run.json`. `make test` and
`make tutorial` compare with it and name a lesson that took over twice its figure, beside the others of the same run.
Not measured here: a T4. `make tutorial PROFILE=gpu && make times` measures the machine that you have.
"""


def recorded() -> dict[str, dict]:
    """The runs in times.json by "dataset-profile": cores, python, and per lesson seconds and peak memory."""
    return json.loads(TIMES.read_text(encoding="utf-8"))


def summary(run: dict) -> dict:
    """What is worth keeping of a run.json."""
    lessons = {lesson["name"]: {key: lesson[key] for key in MEASURES} for lesson in run["lessons"]}
    return {"cores": run["cores"], "python": run["python"], **{key: run[key] for key in MEASURES}, "lessons": lessons}


def page(runs: dict[str, dict]) -> str:
    """docs/measured/times.md."""
    return f"{HEAD}\n{table(runs)}\n"


def table(runs: dict[str, dict]) -> str:
    """The runs side by side in Markdown, one row for each lesson and the total at the end."""
    heads = [f"{name.replace('-', ', ')} ({run['cores']} cores)" for name, run in runs.items()]
    lines = ["| lesson | " + " | ".join(heads) + " |", "| --- " + "| --- " * len(runs) + "|"]
    for lesson in sorted({name for run in runs.values() for name in run["lessons"]}):
        cells = [run["lessons"].get(lesson) for run in runs.values()]
        lines.append(f"| {lesson} | " + " | ".join(measures(cell) if cell else "" for cell in cells) + " |")
    lines.append("| **all** | " + " | ".join(measures(run) for run in runs.values()) + " |")
    return "\n".join(lines)


def measures(entry: dict) -> str:
    """One cell of the table."""
    return f"{entry['seconds']:.0f} s, {entry['peak_memory_mb']:.0f} MB"


def slow(lessons: list[dict], known: dict[str, dict]) -> tuple[float | None, dict[str, float]]:
    """How much longer than recorded a run took, and which of its lessons took over twice as long as that.

    A slower machine, or one that is busy, takes longer for all lessons; the median says how much. A single lesson that
    falls out of line has changed.

    Args:
        lessons: with "name" and "seconds", as in run.json.
        known: name -> recorded "seconds".

    Returns:
        The median of seconds / recorded seconds, and the ratio of each lesson that is over `FLAG` times the median.
        With fewer than `FEWEST` lessons in common nothing can be said: None and no lesson.
    """
    common = [one for one in lessons if one["name"] in known]
    ratios = {one["name"]: one["seconds"] / known[one["name"]]["seconds"] for one in common}
    if len(ratios) < FEWEST:
        return None, {}
    machine = median(ratios.values())
    return machine, {name: ratio for name, ratio in ratios.items() if ratio > FLAG * machine}


def report(lessons: list[dict], dataset: str, profile: str) -> str:
    """How the times of a run compare with the recorded ones, in lines; what to look at is a warning on GitHub."""
    name = f"{dataset}-{profile}"
    known = recorded().get(name, {"lessons": {}})["lessons"]
    machine, flagged = slow(lessons, known)
    if machine is None:
        return ""
    warning = "::warning title=Times::" if "GITHUB_ACTIONS" in os.environ else "WARNING: "
    lines = [f"Lessons took {machine:.1f} times their seconds in docs/measured/times.json (median, {name})"]
    for lesson, ratio in flagged.items():
        figure = f"{known[lesson]['seconds']:.0f} s"
        lines.append(f"{warning}{lesson} took {ratio:.1f} times its {figure}, over twice the median")
    for lesson in sorted({one["name"] for one in lessons} - known.keys()):
        lines.append(f"{warning}{lesson} has no figure yet: run `make tutorial` and `make times`")
    return "\n".join(lines) + "\n"


def record(out: Path) -> dict[str, dict]:
    """The recorded runs, with those under `out` in the place of older ones; a run that failed is left out."""
    runs = recorded()
    for path in sorted(out.glob("tutorial-*/run.json")):
        run = json.loads(path.read_text(encoding="utf-8"))
        if all(lesson["status"] == "done" for lesson in run["lessons"]):
            runs[f"{run['dataset']}-{run['profile']}"] = summary(run)
    return runs


if __name__ == "__main__":
    runs = record(ROOT / "out")
    TIMES.write_text(json.dumps(runs, indent=1) + "\n", encoding="utf-8")
    (ROOT / "docs" / "measured" / "times.md").write_text(page(runs), encoding="utf-8")
