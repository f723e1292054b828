"""Copy the times and memory of the runs under out/ to docs/times.json and docs/times.md (`make times`)."""

from __future__ import annotations

import json
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TIMES = ROOT / "docs" / "times.json"
MEASURES = ("seconds", "peak_memory_mb")

HEAD = """# Times and memory

Each column is one run of `make tutorial` after installation, without a GPU: seconds, and the peak resident memory of
the lesson's processes together in MB. `make times` writes this page from `out/tutorial-*/run.json`.
Not measured here: a T4. `make tutorial PROFILE=gpu && make times` measures the machine that you have.
"""


def recorded() -> dict[str, dict]:
    """The runs in docs/times.json by "dataset-profile": cores, python, and per lesson its seconds and peak memory."""
    return json.loads(TIMES.read_text(encoding="utf-8"))


def summary(run: dict) -> dict:
    """What is worth keeping of a run.json."""
    lessons = {lesson["name"]: {key: lesson[key] for key in MEASURES} for lesson in run["lessons"]}
    return {"cores": run["cores"], "python": run["python"], **{key: run[key] for key in MEASURES}, "lessons": lessons}


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
    (ROOT / "docs" / "times.md").write_text(f"{HEAD}\n{table(runs)}\n", encoding="utf-8")
