"""Measure bits against VOI, the table of lesson 16, and add its runs to docs/measured/bits.json (`make bits`).

Everything is declared in `fgnet_lib/study/bits.py`. You may stop the command at any time and start it again: a run that
is in the table is not done again unless the shipped model has changed. After each run the page docs/measured/bits.md is
written anew, and at the end its figures.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict
from datetime import date
from functools import cache
from itertools import product
from typing import Any

import fgnet_lib  # noqa: F401  before torch: it tells torch's threads how to wait

# isort: split
import matplotlib
import numpy as np
import torch

from fgnet_lib import REPOSITORY
from fgnet_lib.datasets import open_dataset
from fgnet_lib.engines.quantisation import quantise
from fgnet_lib.engines.runtimes import Converted, installed_engines, record_parts
from fgnet_lib.fgnet import FGNet
from fgnet_lib.files.atomic import atomic, write_atomically
from fgnet_lib.inference import Prediction
from fgnet_lib.machine import hardware
from fgnet_lib.metrics import evaluate
from fgnet_lib.neighbours.quantisation import Recipe, megabytes, plant_outliers, quantise_fgnet
from fgnet_lib.segmentation import segment
from fgnet_lib.study.bits import (
    BITS,
    ENGINE_HEADS,
    ENGINES,
    JUDGED_ON,
    METHODS,
    NETWORKS,
    OUTPUTS,
    QUESTIONS,
    SEEDS,
    WIDTHS,
    Cell,
    bits_answer,
    bits_panels,
    bits_scores,
    bits_sizes,
    describe_figure,
    describe_unmeasured,
    engine_rows,
    exact_score,
    list_cells,
    read_bits,
    run_name,
)
from fgnet_lib.study.evaluation import VOLUMES, predict_rescaled
from fgnet_lib.study.runs import MODEL, is_current, name_weights
from fgnet_lib.study.statistics import summary
from fgnet_lib.views import charts, plots
from fgnet_lib.volumes import Volume
from fgnet_lib.weights import load_pretrained, pretrained_threshold

PAGE = REPOSITORY / "docs" / "measured" / "bits.md"
FIGURES = {output: PAGE.with_name(f"bits_{output}.png") for output in OUTPUTS}
CALIBRATION = (4, 128, 128)  # voxels of FIB-25's training part that a cell is calibrated and learned on
WINDOW, WINDOWS = (8, 128, 128), 12  # voxels and number of the windows that calibrate an engine
INTRODUCTION = """\
# Bits against neurons

<!-- written by tools/results/measure_bits.py from docs/measured/bits.json; edit that tool instead -->

These are the runs of [lesson 16](../../notebooks/16_fewer_bits.ipynb), declared in `fgnet_lib/study/bits.py`. W4A8
means weights of 4 bits and activations of 8; the first and the last layer and depthwise convolutions keep 8 bits.
Every run is calibrated on {calibration} voxels of FIB-25's training part, whose position its seed chooses, and needs no
labels. *Planted outliers*: in each stage of the encoder, two channels of what its blocks add up are made 100 times as
large and what reads them 100 times as small, which changes nothing in floating point; the seed chooses the channels.
All runs, of both outputs, are judged at the threshold that was chosen for A_r with 32 bits. The model was trained on
other parts of FIB-25 and of gala. AC4 and CREMI B are wholly new to it; they are rescaled to FIB-25's voxel.

Rounding is simulated in these runs, so they have no times. To fit a busy laptop they are judged on crops: {crops}.
Scores of crops are those of no other page.

{missing}
"""
ANSWERS = """\
## What was expected, and whether it came

You see VOI of the first and of the second, their difference, how often chance alone separates the runs as much (*p*,
by permutation; with three runs of each it is at least 0.10), and whether the sign was the expected one: in all runs (no
run of one side reaches the other side) or only in the mean.
"""
WHOLE_NUMBERS = """\
## Whole numbers at work

The whole model, converted by `fgnet_lib/engines/quantisation.py` to whole numbers of 8 bits (weights of 7, because
without VNNI sums of two products of 8 bits overflow), on whole volumes. The seeds choose the windows of calibration:
{windows} of {window} voxels from FIB-25's training part. VOI is that of A_r. Seconds are those of the processor on one
thread for all volumes together; 32 and 8 bits took turns, and other programs ran meanwhile.
"""


def crop_middle(volume: Volume, largest: tuple[int, int, int]) -> Volume:
    """Cut a box of at most so many voxels from the middle of a volume."""
    starts = [max(0, (n - size) // 2) for n, size in zip(volume.shape, largest, strict=True)]
    return volume[tuple(slice(start, start + size) for start, size in zip(starts, largest, strict=True))]


def cut_training(shape: tuple[int, int, int], count: int, seed: int) -> list[np.ndarray]:
    """Cut boxes of a shape from FIB-25's training part, at positions that the seed chooses."""
    raw, rng = open_dataset("fib25", "train").load().raw, np.random.default_rng(seed)
    corners = [[rng.integers(0, n - size + 1) for n, size in zip(raw.shape, shape, strict=True)] for _ in range(count)]
    return [raw[tuple(slice(a, a + size) for a, size in zip(corner, shape, strict=True))] for corner in corners]


def build_rounded(cell: Cell, seed: int) -> FGNet:
    """Round the shipped model as a cell says, calibrated on the crop of a seed."""
    model, method = load_pretrained(), METHODS[cell.method]
    if cell.network == "planted":
        model = plant_outliers(model, seed=seed)
    recipe = Recipe(*WIDTHS[cell.width], how=method.how, transform=method.transform, steps=method.steps)
    (crop,) = cut_training(CALIBRATION, 1, seed)
    raw = torch.from_numpy(crop / np.float32(255))[None, None]
    return quantise_fgnet(model, recipe, raw, part="" if cell.network == "whole" else "encoder")


@cache
def judged_volumes(whole: bool) -> dict[str, Volume]:
    """The volumes of `JUDGED_ON` that are on this machine: whole, or the crops on which cells are judged."""
    volumes = {}
    for name, (_, largest) in JUDGED_ON.items():
        try:
            volume = open_dataset(name, "val").load()
        except OSError as error:
            print(f"not judged on {name}: {error}")
            continue
        volumes[name] = volume if whole else crop_middle(volume, largest)
    return volumes


def score_affinities(affinities: np.ndarray, volume: Volume, exact: np.ndarray) -> dict[str, float]:
    """VOI split and merge and ARAND at the shipped model's threshold, and the mean change of an affinity."""
    scores = evaluate(segment(affinities, volume.voxel_size, pretrained_threshold(), strict=False), volume.labels)
    numbers = {key: value for key, value in asdict(scores).items() if key != "cremi"}
    numbers["change"] = float(np.abs(affinities - exact).mean())
    return {key: round(value, 5) for key, value in numbers.items()}


@cache
def predict_exactly() -> dict[str, Prediction]:
    """What the shipped model predicts with 32 bits in the crops."""
    model = load_pretrained()
    return {name: predict_rescaled(model, volume, VOLUMES[name]) for name, volume in judged_volumes(False).items()}


def score_rounded(model: FGNet | None) -> dict[str, dict[str, dict[str, float]]]:
    """Score A_r and A_s of a model in the crops: volume -> output -> scores. None is the shipped model."""
    scores = {}
    for name, volume in judged_volumes(False).items():
        exact = predict_exactly()[name]
        prediction = exact if model is None else predict_rescaled(model, volume, VOLUMES[name])
        scores[name] = {
            output: score_affinities(getattr(prediction, output), volume, getattr(exact, output)) for output in OUTPUTS
        }
    return scores


def count_megabytes(model: FGNet) -> dict[str, float]:
    """MB of a model's encoder and of all of it."""
    return {"encoder": round(megabytes(model.encoder), 4), "model": round(megabytes(model), 4)}


def measure_exact() -> dict[str, Any]:
    """The run with 32 bits, with which all others are compared."""
    return {"megabytes": count_megabytes(load_pretrained()), "volumes": score_rounded(None)}


def measure_cell(cell: Cell, seed: int) -> dict[str, Any]:
    """A run of a cell."""
    model = build_rounded(cell, seed)
    return {"megabytes": count_megabytes(model), "volumes": score_rounded(model)}


def measure_engine(engine: str, seed: int) -> dict[str, Any]:
    """Score an engine's model of 32 bits and its model of 8 bits on whole volumes: VOI of A_r, MB, seconds."""
    model = load_pretrained()
    networks = {
        "32 bits": Converted(model, engine, record_parts(model)).eval(),
        "8 bits": quantise(model, cut_training(WINDOW, WINDOWS, seed), engine),
    }
    results = {
        bits: {"megabytes": round(network.megabytes, 4), "core_seconds": 0.0, "volumes": {}}
        for bits, network in networks.items()
    }
    for name, volume in judged_volumes(True).items():
        exact = None
        for bits, network in networks.items():
            started = time.process_time()
            affinities = predict_rescaled(network, volume, VOLUMES[name]).refined
            results[bits]["core_seconds"] += round(time.process_time() - started, 2)
            exact = affinities if exact is None else exact
            results[bits]["volumes"][name] = score_affinities(affinities, volume, exact)
    return results


def add_entry(part: str, name: str | None, entry: dict[str, Any], weights: Mapping[str, str]) -> None:
    """Add what was measured to the table, with weights, machine and day, and write the page anew."""
    entry |= {"weights": weights, "machine": hardware()}
    entry |= {"load": round(os.getloadavg()[0], 1), "date": date.today().isoformat()}
    table = read_bits(BITS)
    if name is None:
        table[part] = entry
    else:
        table[part][name] = entry
    write_atomically(BITS, json.dumps(table, separators=(",", ":")))
    write_atomically(PAGE, page())


def list_missing() -> list[tuple[str, str | None, Any]]:
    """What the table lacks, or has of other weights: part, name, and a function to measure it; the first seed first."""
    table = read_bits(BITS)
    jobs: list[tuple[str, str | None, Any]] = [] if is_current(table["exact"]) else [("exact", None, measure_exact)]
    for seed in SEEDS:
        for cell in list_cells():
            jobs.append(("runs", run_name(cell, seed), lambda cell=cell, seed=seed: measure_cell(cell, seed)))
        for engine in [engine for engine in ENGINES if engine in installed_engines()]:
            jobs.append(("engines", f"{engine} {seed}", lambda e=engine, seed=seed: measure_engine(e, seed)))
    return [job for job in jobs if job[1] is None or not is_current(table[job[0]].get(job[1], {}))]


def measure_missing(minutes: float) -> None:
    """Measure what is not in the table, until the time is over."""
    started, jobs, weights = time.monotonic(), list_missing(), name_weights(MODEL)
    for number, (part, name, measure) in enumerate(jobs, start=1):
        elapsed = (time.monotonic() - started) / 60
        if elapsed >= minutes:
            return
        print(f"{number} of {len(jobs)}: {name or '32 bits'}, after {elapsed:.1f} minutes", flush=True)
        add_entry(part, name, measure(), weights)


def table(heads: list[str], rows: list[list[str]]) -> list[str]:
    """Lines of a Markdown table; the first column is text, the others are numbers."""
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return [*("| " + " | ".join(cells) + " |" for cells in lines), ""]


def scores_tables(rows: dict[str, Any]) -> list[str]:
    """The tables of VOI: one for each volume and output."""
    lines = []
    for (volume, (title, _)), (output, name) in product(JUDGED_ON.items(), OUTPUTS.items()):
        exact = exact_score(rows, volume, output)
        if exact is None:
            continue
        cells = []
        for network, method in product(NETWORKS, METHODS):
            vois = [bits_scores(rows, Cell(network, method, width), volume, output) for width in WIDTHS]
            written = [summary(values) if values else "" for values in vois]
            cells.append([NETWORKS[network], METHODS[method].title, *written])
        lines += [f"## VOI of {name} on {title}", "", f"Bits, mean ± spread over seeds; {exact:.3f} with 32 bits.", ""]
        lines += table(["network", "method", *WIDTHS], cells)
    return lines


def sizes_table(rows: dict[str, Any]) -> list[str]:
    """The sizes, which neither volume nor seed changes, and how far affinities of A_r move on FIB-25."""
    exact = rows["exact"].get("megabytes", {})
    if not exact:
        return []
    lines = [
        "## MB, and how far affinities move",
        "",
        f"With 32 bits the encoder needs {exact['encoder']:.2f} MB and the model {exact['model']:.2f} MB. *Change* is "
        "the mean over all voxels of FIB-25's crop of how far an affinity is from that with 32 bits.",
        "",
    ]
    cells = []
    for cell in list_cells():
        sizes = [f"{size:.2f}" for size in bits_sizes(rows, cell).values()]
        changes = [bits_scores(rows, cell, "fib25", output, "change") for output in OUTPUTS]
        written = [summary(values, 4) if values else "" for values in changes]
        if sizes:
            cells.append([NETWORKS[cell.network], METHODS[cell.method].title, cell.width, *sizes, *written])
    heads = ["network", "method", "bits", "encoder, MB", "model, MB", *(f"change of {of}" for of in OUTPUTS.values())]
    return lines + table(heads, cells)


def answers_table(rows: dict[str, Any]) -> list[str]:
    """The answers to `QUESTIONS` on every volume and output."""
    cells = []
    for title, question in QUESTIONS.items():
        for volume, (name, _) in JUDGED_ON.items():
            for output, words in OUTPUTS.items():
                if answer := bits_answer(rows, question, volume, output):
                    cells.append([title, name, words, *answer[:-1], question.expected, answer[-1]])
    heads = ["question", "volume", "output", "first", "second", "difference", "p", "expected", "did it come?"]
    return [ANSWERS, *table(heads, cells)] if cells else []


def engines_table(rows: dict[str, Any]) -> list[str]:
    """What the engines make of 8 bits: VOI on whole volumes, MB, seconds."""
    lines = engine_rows(rows)
    written = WHOLE_NUMBERS.format(windows=WINDOWS, window=" x ".join(map(str, WINDOW)))
    return [written, *table(ENGINE_HEADS, lines)] if lines else []


def describe_runs(rows: dict[str, Any]) -> str:
    """Machine and days of the runs."""
    entries = [*rows["runs"].values(), *rows["engines"].values(), *([rows["exact"]] if rows["exact"] else [])]
    if not entries:
        return ""
    days = sorted({entry["date"] for entry in entries})
    loads = [entry["load"] for entry in entries]
    when = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    machines = "; ".join(sorted({entry["machine"] for entry in entries}))
    return f"Measured {when}; {machines}; load average {min(loads):.1f} to {max(loads):.1f}.\n"


def page() -> str:
    """The page of the runs."""
    rows = read_bits(BITS)
    crops = ", ".join(f"{title} {' x '.join(map(str, crop))}" for title, crop in JUDGED_ON.values())
    calibration = " x ".join(map(str, CALIBRATION))
    lines = [INTRODUCTION.format(calibration=calibration, crops=crops, missing=describe_unmeasured(rows))]
    lines += [describe_runs(rows)]
    for output, name in OUTPUTS.items():
        lines += [f"![Bits against VOI of {name}, a line for each method]({FIGURES[output].name})", ""]
    lines += [*answers_table(rows), *engines_table(rows), *sizes_table(rows), *scores_tables(rows)]
    return "\n".join(lines)


def draw_figures() -> None:
    """Draw bits against VOI, a figure for each output."""
    matplotlib.use("Agg")
    plots.style()
    for output, path in FIGURES.items():
        figure = charts.bits_figure(bits_panels(read_bits(BITS), output))
        figure.suptitle(describe_figure(output))
        with atomic(path) as part:
            figure.savefig(part, dpi=80, format="png", pil_kwargs={"optimize": True})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no further run after so long")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # seconds of the engines are those of one core
    measure_missing(arguments.minutes)
    write_atomically(PAGE, page())
    draw_figures()


if __name__ == "__main__":
    main()
