"""The rows of lesson 10: one through all of its run on a phantom, what the table answers, and the current page."""

from __future__ import annotations

from dataclasses import replace

import bench
import pytest
import results
import torch
import train_student
from torch import nn

from fgnet_lib.phantom import make_phantom
from fgnet_lib.student import StudentConfig
from fgnet_lib.study import students
from fgnet_lib.study.students import (
    PUPILS,
    describe_missing_students,
    list_students,
    section_milliseconds,
    student_answer,
)
from fgnet_lib.weights import load_model, read_notes


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """Two rows of two iterations on a small phantom in the place of every volume; their runs in a folder."""
    volume = make_phantom((20, 96, 96), seed=0)
    config = StudentConfig(widths=(4, 4, 8, 8), embedding=2)
    pupils = {name: replace(PUPILS[name], config=config) for name in ("cross", "graft", "features")}
    recipe = replace(students.student_training(0, 2), patch=(6, 64, 64))
    for module in (train_student, students):
        monkeypatch.setattr(module, "PUPILS", pupils)
        monkeypatch.setattr(module, "student_training", lambda seed, n=2: replace(recipe, iterations=n, seed=seed))
    monkeypatch.setattr(train_student, "HEAD_ITERATIONS", 2)
    monkeypatch.setattr(train_student, "SHIPPED", pupils["cross"])
    monkeypatch.setattr(train_student, "SLIM_UNET", replace(students.SLIM_UNET, widths=(4,) * 5))
    monkeypatch.setattr(train_student, "open_dataset", lambda name, part: volume)
    monkeypatch.setattr(train_student, "open_choosing_part", lambda: volume[:8, :, :])
    monkeypatch.setattr(results, "THRESHOLDS", [0.3, 0.6])
    monkeypatch.setattr(train_student, "STUDENTS", tmp_path / "runs")
    monkeypatch.setattr(train_student, "PAGE", tmp_path / "page.md")
    monkeypatch.setattr(train_student, "list_students", lambda: [(name, 0) for name in pupils])
    monkeypatch.setattr(train_student, "read_students", lambda: students.read_students(tmp_path / "runs"))
    return tmp_path


@pytest.mark.slow
def test_rows_are_trained_once_and_the_student_is_shipped_with_its_card(tiny, capsys):
    data = train_student.open_fib25(tiny)
    for _ in range(2):
        train_student.train_students(data, 60, tiny / "work")
    assert capsys.readouterr().out.count("seed 0, after") == 3
    rows = students.read_students(tiny / "runs")
    for (run,) in rows.values():
        assert run["threshold"] in (0.3, 0.6) and run["core_seconds"] >= 0
        assert run["milliseconds"]["student"] > 0 and run["voi_split"] + run["voi_merge"] > 0
    assert [*rows] == ["cross", "graft", "features"]
    assert f"| {PUPILS['graft'].title} |" in train_student.PAGE.read_text(encoding="utf-8")
    train_student.ship(tiny, tiny / "student.safetensors", minutes=0.02)
    notes = read_notes(tiny / "student.safetensors")
    assert notes["threshold"] > 0 and notes["milliseconds"]["unet"] > 0
    assert f"{notes['voi_split']:.3f}" in (tiny / "STUDENT.md").read_text(encoding="utf-8")
    assert load_model(tiny / "student.safetensors").config.embedding == 2


def test_the_card_says_what_the_shipped_file_says():
    card = train_student.PRETRAINED / "STUDENT.md"
    assert card.read_text(encoding="utf-8") == train_student.student_card(
        train_student.PRETRAINED / "student.safetensors"
    )


def test_an_answer_has_difference_and_p():
    def runs(*vois: float) -> list[dict]:
        return [{"voi_split": voi - 0.25, "voi_merge": 0.25} for voi in vois]

    rows = {"cross": runs(1.0, 1.1, 1.2), "label": runs(1.5, 1.6, 1.7)}
    assert student_answer(rows, ("cross", "label")) == ["1.100 ± 0.100", "1.600 ± 0.100", "-0.500", "0.10"]
    assert student_answer(rows, ("cross", "graft")) == []
    single = {name: of_row[:1] for name, of_row in rows.items()}
    assert student_answer(single, ("cross", "label"))[-1] == "single run"


def test_what_is_missing_is_said():
    runs = list_students()
    assert len(set(runs)) == len(runs) == 3 * len(PUPILS)
    complete = {name: [{"seed": seed} for seed in range(3)] for name in PUPILS}
    assert describe_missing_students(complete) == "Every declared run is measured."
    del complete["wide"]
    assert f"3 of {len(runs)} runs" in describe_missing_students(complete)


def test_time_is_that_of_a_section_and_the_unet_is_the_one_of_the_benchmark():
    times = section_milliseconds({"a": nn.Conv3d(1, 1, 3), "b": nn.Conv3d(1, 64, 7)}, (8, 32, 32), rounds=3)
    assert 0 < times["a"] < times["b"]
    assert students.SLIM_UNET == bench.UNET and students.WINDOW == bench.TILE
    assert torch.is_grad_enabled()


def test_the_page_says_what_the_table_says():
    assert train_student.PAGE.read_text(encoding="utf-8") == train_student.page(), (
        "run train_student.py --rows --minutes 0"
    )
