from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest
import record_times


def write_run(folder, dataset, status, **more):
    folder.mkdir()
    lesson = {"name": "00_welcome", "status": status, "seconds": 12.4, "peak_memory_mb": 801, "figures": [], **more}
    measures = {"cores": 2, "python": "3.11.7", "seconds": 12.4, "peak_memory_mb": 801}
    run = {"dataset": dataset, "profile": "fast", **measures, "lessons": [lesson]}
    (folder / "run.json").write_text(json.dumps(run))


def test_runs_that_finished_are_recorded_and_shown(tmp_path, monkeypatch):
    times = tmp_path / "times.json"
    figures = {"seconds": 5, "peak_memory_mb": 900}
    before = {"01_em_volumes": figures, "00_welcome": figures, "99_no_more": figures}
    column = {"seconds": 15, "peak_memory_mb": 900, "cores": 4}
    times.write_text(
        json.dumps({"phantom-cpu": column | {"lessons": {}}, "phantom-fast": column | {"lessons": before}})
    )
    monkeypatch.setattr(record_times, "TIMES", times)
    write_run(tmp_path / "tutorial-phantom-fast", "phantom", "done")
    write_run(tmp_path / "tutorial-fib25-fast", "fib25", "failed")
    write_run(tmp_path / "tutorial-gala-fast", "gala", "done", resumed=True)
    runs = record_times.record(tmp_path)
    assert set(runs) == {"phantom-cpu", "phantom-fast"}
    anew = {"seconds": 12.4, "peak_memory_mb": 801}
    assert runs["phantom-fast"]["lessons"] == {"00_welcome": anew, "01_em_volumes": figures}  # that was not run again
    head, _, lesson, _, total = record_times.table(runs).splitlines()
    assert head == "| lesson | phantom, cpu (4 cores) | phantom, fast (2 cores) |"
    assert lesson == "| 00_welcome |  | 12 s, 801 MB |" and total.endswith("| 17 s, 900 MB |")


def test_the_page_shows_what_is_recorded():
    shown = (record_times.ROOT / "docs" / "measured" / "times.md").read_text(encoding="utf-8")
    assert shown == record_times.page(record_times.read_times()), "run `make times`"


KNOWN = {name: {"seconds": 10} for name in "abcde"}


def lessons(**seconds: float) -> list[dict]:
    return [{"name": name, "seconds": value} for name, value in seconds.items()]


def test_a_lesson_out_of_line_is_flagged_on_a_fast_and_on_a_slow_machine():
    for machine in (0.5, 1, 4):
        run = lessons(a=10 * machine, b=11 * machine, c=9 * machine, d=21 * machine, new=1000)
        machine_ratio, flagged = record_times.find_slow(run, KNOWN)
        assert machine_ratio == pytest.approx(1.05 * machine)  # the median of four
        assert flagged == {}  # 2.1 times its figure, but not twice the median
        run = lessons(a=10 * machine, b=11 * machine, c=9 * machine, d=25 * machine)
        assert record_times.find_slow(run, KNOWN)[1].keys() == {"d"}


def test_two_lessons_tell_nothing_about_a_machine():
    assert record_times.find_slow(lessons(a=10, b=100), KNOWN) == (None, {})


def test_a_slow_lesson_is_a_line_and_on_github_a_warning(tmp_path, monkeypatch):
    times = tmp_path / "times.json"
    times.write_text(json.dumps({"phantom-fast": {"lessons": KNOWN}}))
    monkeypatch.setattr(record_times, "TIMES", times)
    run = lessons(a=20, b=20, c=50, new=1)
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)
    head, flagged, unknown = record_times.report(run, "phantom", "fast").splitlines()
    assert head.startswith("Lessons took 2.0 times") and flagged.startswith("WARNING: c took 5.0 times its 10 s")
    assert unknown.startswith("WARNING: new has no figure yet")
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    assert record_times.report(run, "phantom", "fast").splitlines()[1].startswith("::warning title=Times::c took")
    assert record_times.report(run, "fib25", "fast") == ""


@pytest.mark.slow
def test_pytest_says_it_at_the_end(pytestconfig, tmp_path):
    times = json.loads(record_times.TIMES.read_text())["phantom-fast"]["lessons"]
    test = """
import json, pytest
@pytest.mark.parametrize("lesson", json.load(open("lessons.json")), ids=lambda lesson: lesson["name"])
def test_lesson(lesson, record_property):
    record_property("lesson on phantom, fast", lesson)
"""
    lessons = [{"name": name, "seconds": 5 * times[name]["seconds"]} for name in times]
    lessons[0]["seconds"] *= 3
    (tmp_path / "lessons.json").write_text(json.dumps(lessons))
    (tmp_path / "test_made_up.py").write_text(test)
    shutil.copy(pytestconfig.rootpath / "tests" / "conftest.py", tmp_path)
    command = [sys.executable, "-m", "pytest", "--quiet", "-p", "no:cacheprovider", "-c", "/dev/null"]
    command += [
        "--rootdir",
        str(tmp_path),
        "-o",
        f"pythonpath={pytestconfig.rootpath / 'tools' / 'course'}",
        str(tmp_path),
    ]
    environment = {key: value for key, value in os.environ.items() if key != "GITHUB_ACTIONS"}
    output = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True).stdout
    assert "Lessons took 5.0 times" in output and f"WARNING: {lessons[0]['name']} took 15.0 times" in output
