"""Every stored measurement names the weights that ship today; what was made with other weights is measured again."""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path

import adapt
import bench_blocks
import few_sections
import measure_bits
import pytest
import results
import torch
from safetensors.torch import save_file

from fgnet_lib import REPOSITORY
from fgnet_lib.study import runs
from fgnet_lib.study.adaptation import METHODS
from fgnet_lib.study.few_sections import STARTS
from fgnet_lib.study.runs import MODEL, STUDENT, name_weights
from fgnet_lib.weights import PRETRAINED, fingerprint_weights, load_model, read_notes, save_model

MEASURED = REPOSITORY / "docs" / "measured"
CONTRIBUTING = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")
TIMES = "times.json"  # of lessons; the only file that depends on no weights
Needed = dict[str, tuple[dict, list[str]]]  # a measurement's name -> what is stored, the weights it depends on


def read_json(name: str) -> dict:
    return json.loads((MEASURED / name).read_text(encoding="utf-8"))


def of_table(needs, folder: str) -> Needed:
    table = runs.read_runs(MEASURED / folder)
    return {f"{run['row']}, seed {run['seed']}": (run, needs(run["row"])) for run in table}


def of_bits(file: str) -> Needed:
    table = read_json(file)
    entries = {"exact": table["exact"], **table["runs"], **table["engines"]}
    return {name: (entry, [MODEL]) for name, entry in entries.items()}


def of_blocks(file: str) -> Needed:
    needs = bench_blocks.WITH_NETWORK
    return {name: (entry, [MODEL] * (name in needs)) for name, entry in read_json(file).items()}


def of_file(*needs: str):
    return lambda file: {"all": (read_json(file), list(needs))}


def without_sections(row: str) -> str:
    return row.rpartition("_")[0]


STORED = {  # in docs/measured -> how it is read, and what measures it
    "results": (partial(of_table, results.shipped_weights), "make results"),
    "adaptation": (
        partial(of_table, lambda row: [adapt.first_weights(METHODS[without_sections(row)])]),
        "python tools/results/adapt.py",
    ),
    "few_sections": (
        partial(of_table, lambda row: few_sections.inflated_weights(STARTS[without_sections(row)])),
        "python tools/results/few_sections.py",
    ),
    "denoising": (partial(of_table, lambda row: []), "python tools/results/denoise.py"),
    "student": (partial(of_table, lambda row: [MODEL]), "python tools/results/train_student.py --rows"),
    "targets": (partial(of_table, lambda row: [MODEL]), "python tools/results/adapt_targets.py"),
    "doubt": (partial(of_table, lambda row: [MODEL]), "python tools/results/doubt.py"),
    "super_resolution": (partial(of_table, lambda row: [MODEL]), "python tools/results/super_resolve.py"),
    "bits.json": (of_bits, "make bits"),
    "thresholds.json": (of_file(MODEL), "python tools/results/thresholds.py"),
    "bench.json": (of_file(MODEL), "python tools/benchmarks/bench.py"),
    "bench_blocks.json": (of_blocks, "python tools/benchmarks/bench_blocks.py blocks workers accuracy"),
    "engines.json": (of_file(MODEL, STUDENT), "python tools/benchmarks/measure_engines.py"),
}


def describe_stale(name: str) -> str:
    """Which measurements of a file or folder name other weights than those that ship, and the remedy; empty if none."""
    read, command = STORED[name]
    stale = [key for key, (entry, needs) in read(name).items() if entry.get("weights") != name_weights(*needs)]
    if not stale:
        return ""
    return f"docs/measured/{name}: {len(stale)} not of the weights that ship, first {stale[0]}; run `{command}`"


@pytest.mark.parametrize("name", STORED)
def test_every_stored_measurement_names_the_weights_that_ship(name):
    read, _ = STORED[name]
    assert read(name), f"docs/measured/{name} holds nothing"
    assert not describe_stale(name), describe_stale(name)


def test_no_file_of_measurements_is_left_out():
    files = {path.relative_to(MEASURED).parts[0] for path in MEASURED.rglob("*") if ".json" in path.name}
    assert files == {*STORED, TIMES}


@pytest.mark.parametrize("name", STORED)
def test_contributors_read_which_weights_a_table_depends_on(name):
    read, command = STORED[name]
    written, files = set(), ""
    for line in re.findall(r"^ +\| (?!---)(.*) \|$", CONTRIBUTING, re.MULTILINE):
        weights, table, told, *_ = (cell.strip() for cell in f" {line} ".split("|"))
        files = weights or files  # an empty cell repeats the one above
        if f"`{name}`" in table and command.removeprefix("python ") in told:
            written |= set(re.findall(r"`(.+?)`", files))
    assert written == {file for _, needs in read(name).values() for file in needs}


def test_the_shipped_student_names_its_teacher():
    assert read_notes("student")["weights"] == name_weights(MODEL), "the student has another teacher: `make student`"


@pytest.fixture
def shipped(monkeypatch, tmp_path) -> Path:
    """A folder in the place of data/pretrained, with weights that a test may change."""
    monkeypatch.setattr(runs, "PRETRAINED", tmp_path / "pretrained")
    (tmp_path / "pretrained").mkdir()
    save_file({"bias": torch.zeros(2)}, tmp_path / "pretrained" / MODEL)
    return tmp_path / "pretrained"


def test_other_weights_make_the_test_fail_with_the_file_and_the_command(shipped):
    assert describe_stale("doubt").endswith("run `python tools/results/doubt.py`")
    number = len(runs.read_runs(MEASURED / "doubt"))
    assert f"docs/measured/doubt: {number} not of the weights that ship" in describe_stale("doubt")
    assert "docs/measured/bits.json" in describe_stale("bits.json") and "`make bits`" in describe_stale("bits.json")
    assert not describe_stale("denoising")


def test_what_was_made_with_other_weights_is_done_again_and_replaced(shipped, tmp_path, capsys):
    table, work = tmp_path / "table", tmp_path / "work"

    def run(row: str, needs: tuple[str, ...], voi: float) -> None:
        runs.add_runs([{"row": row, "seed": 0, "weights": name_weights(*needs), "voi": voi}], table)

    def measure(voi: float) -> list[tuple[str, float]]:
        todo = {("model", 0): partial(run, "model", (MODEL,), voi), ("none", 0): partial(run, "none", (), voi)}
        runs.do_missing(todo, table, work, 60)
        return [(entry["row"], entry["voi"]) for entry in runs.read_runs(table)]

    assert measure(1.0) == measure(2.0) == [("model", 1.0), ("none", 1.0)]
    save_file({"bias": torch.ones(2)}, shipped / MODEL)
    assert measure(3.0) == [("model", 3.0), ("none", 1.0)]
    assert [entry["voi"] for entry in runs.read_runs(table) if runs.is_current(entry)] == [3.0, 1.0]


def test_a_measurement_that_names_no_weights_is_not_current():
    assert runs.is_current({"weights": {}}) and not runs.is_current({"row": "a"}) and not runs.is_current({})


def test_bits_of_another_model_are_missing(monkeypatch, tmp_path):
    table, changed = read_json("bits.json"), "trained min_max W8A8 0"
    for entry in (table["exact"], *table["runs"].values(), *table["engines"].values()):
        entry["weights"] = name_weights(MODEL)
    table["exact"]["weights"] = table["runs"][changed]["weights"] = {MODEL: "of another model"}
    (tmp_path / "bits.json").write_text(json.dumps(table))
    monkeypatch.setattr(measure_bits, "BITS", tmp_path / "bits.json")
    assert [(part, name) for part, name, _ in measure_bits.list_missing()] == [("exact", None), ("runs", changed)]


def test_a_fingerprint_is_of_tensors_and_not_of_notes(tmp_path):
    model, path = load_model("student"), tmp_path / "student.safetensors"
    shipped = fingerprint_weights(PRETRAINED / STUDENT)
    assert (
        fingerprint_weights(save_model(model, path, {"note": "another"}))
        == shipped
        == fingerprint_weights(model.state_dict())
    )
    with torch.no_grad():
        next(model.parameters()).view(-1)[-1] += 1e-6
    assert fingerprint_weights(save_model(model, path)) != shipped
    torch.save({"model": load_model("student").state_dict()}, tmp_path / "student.pt")
    assert fingerprint_weights(tmp_path / "student.pt") == shipped
    half = {"a": torch.ones(2, dtype=torch.bfloat16)}
    same = [{"a": half["a"].view(torch.float16)}, {"b": half["a"]}, {"a": half["a"][None]}]
    assert len({fingerprint_weights(tensors) for tensors in (half, *same)}) == 4
