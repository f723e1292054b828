from __future__ import annotations

import json

import record_times


def write_run(folder, dataset, status):
    folder.mkdir()
    lesson = {"name": "00_welcome", "status": status, "seconds": 12.4, "peak_memory_mb": 801, "figures": []}
    measures = {"cores": 2, "python": "3.11.7", "seconds": 12.4, "peak_memory_mb": 801}
    run = {"dataset": dataset, "profile": "fast", **measures, "lessons": [lesson]}
    (folder / "run.json").write_text(json.dumps(run))


def test_runs_that_finished_are_recorded_and_shown(tmp_path, monkeypatch):
    times = tmp_path / "times.json"
    times.write_text(
        json.dumps({"phantom-cpu": {**dict.fromkeys(record_times.MEASURES, 1), "cores": 4, "lessons": {}}})
    )
    monkeypatch.setattr(record_times, "TIMES", times)
    write_run(tmp_path / "tutorial-phantom-fast", "phantom", "done")
    write_run(tmp_path / "tutorial-fib25-fast", "fib25", "failed")
    runs = record_times.record(tmp_path)
    assert set(runs) == {"phantom-cpu", "phantom-fast"}
    assert runs["phantom-fast"]["lessons"] == {"00_welcome": {"seconds": 12.4, "peak_memory_mb": 801}}
    head, _, lesson, total = record_times.table(runs).splitlines()
    assert head == "| lesson | phantom, cpu (4 cores) | phantom, fast (2 cores) |"
    assert lesson == "| 00_welcome |  | 12 s, 801 MB |" and total.endswith("| 12 s, 801 MB |")
