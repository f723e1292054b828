"""The rows of lesson 16: which networks are rounded, how and with how many bits, and what their cells say.

A cell is a network, a method, a width in bits and a seed, which chooses the crop for calibration and the channels in
which outliers are planted. `tools/results/measure_bits.py` measures what is declared here.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from fgnet_lib import REPOSITORY
from fgnet_lib.study.statistics import difference_cells, judge_expectation, summary

BITS = REPOSITORY / "docs" / "measured" / "bits.json"
SEEDS = (0, 1, 2)
NETWORKS = {
    "trained": "the encoder, as trained",
    "planted": "the encoder, with planted outliers",
    "whole": "the whole model, as trained",
}
WIDTHS = {"W8A8": (8, 8), "W4A8": (4, 8), "W4A4": (4, 4)}  # bits of weights and of activations
JUDGED_ON = {  # volume -> its name for readers, and the largest crop that a cell is judged on, in voxels
    "fib25": ("FIB-25", (28, 160, 160)),
    "gala": ("gala", (28, 100, 160)),
    "ac4": ("AC4", (10, 266, 266)),
    "cremi_b_mini": ("CREMI B", (5, 400, 400)),
}
OUTPUTS = {"refined": "A_r", "coarse": "A_s"}
ENGINES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
ENGINE_HEADS = [
    "engine",
    *(f"VOI, {title}" for title, _ in JUDGED_ON.values()),
    "change on FIB-25",
    "MB",
    "seconds",
    "seconds / those of 32 bits",
]


@dataclass(frozen=True)
class Rounding:
    """A method of lesson 16, with the fields of `neighbours.quantisation.Recipe` but for the bits.

    Attributes:
        title: The name that readers see.
        how: How the range of activations is chosen.
        transform: What is done to them before.
        steps: In which each block is learned.
    """

    title: str
    how: str = "min-max"
    transform: str = "none"
    steps: int = 0


METHODS = {
    "min_max": Rounding("min-max"),
    "percentile": Rounding("percentile", how="percentile"),
    "smooth": Rounding("SmoothQuant", transform="smooth"),
    "groups": Rounding("16 groups, learned", transform="groups", steps=20),
}


class Cell(NamedTuple):
    """A network, a method and a width; its runs differ in their seed."""

    network: str
    method: str
    width: str


@dataclass(frozen=True)
class Question:
    """Two cells to compare, and whether the VOI of the first was expected to be higher or lower."""

    first: Cell
    second: Cell
    expected: str


ROUNDED = Cell("trained", "min_max", "W4A4")
PLANTED = Cell("planted", "min_max", "W4A4")
QUESTIONS = {
    "Do weights of 4 bits cost neurons?": Question(
        Cell("trained", "min_max", "W4A8"), Cell("trained", "min_max", "W8A8"), "higher"
    ),
    "And activations of 4 bits?": Question(ROUNDED, Cell("trained", "min_max", "W4A8"), "higher"),
    "Do planted outliers cost neurons?": Question(PLANTED, ROUNDED, "higher"),
    "Planted: does a percentile repair that?": Question(Cell("planted", "percentile", "W4A4"), PLANTED, "lower"),
    "Planted: does SmoothQuant?": Question(Cell("planted", "smooth", "W4A4"), PLANTED, "lower"),
    "Planted: do groups?": Question(Cell("planted", "groups", "W4A4"), PLANTED, "lower"),
    "Planted: do groups beat SmoothQuant?": Question(
        Cell("planted", "groups", "W4A4"), Cell("planted", "smooth", "W4A4"), "lower"
    ),
    "As trained: do groups help?": Question(Cell("trained", "groups", "W4A4"), ROUNDED, "lower"),
    "Does the whole model lose more than its encoder?": Question(Cell("whole", "min_max", "W4A4"), ROUNDED, "higher"),
}


def list_cells() -> list[Cell]:
    """List every declared cell in the order of measuring; each is measured once for each seed.

    >>> len(list_cells()), list_cells()[0]
    (36, Cell(network='trained', method='min_max', width='W8A8'))
    """
    return [Cell(*names) for names in product(NETWORKS, METHODS, WIDTHS)]


def run_name(cell: Cell, seed: int) -> str:
    """Name a run of a cell in the table.

    >>> run_name(Cell("planted", "smooth", "W4A8"), 2)
    'planted smooth W4A8 2'
    """
    return f"{' '.join(cell)} {seed}"


def read_bits(path: Path = BITS) -> dict[str, Any]:
    """Read the table; where there is no file, an empty one.

    Returns:
        "exact": scores with 32 bits in the same crops; "runs": name -> scores of a run and its size in MB; "engines":
        engine and seed -> the model of 32 and of 8 bits on whole volumes.
    """
    if not path.is_file():
        return {"exact": {}, "runs": {}, "engines": {}}
    return json.loads(path.read_text(encoding="utf-8"))


def bits_scores(table: dict[str, Any], cell: Cell, volume: str, output: str = "refined", key: str = "voi") -> list:
    """Return VOI (or "change", the mean change of an affinity) of a cell's runs by seed; empty if not measured."""
    runs = [table["runs"][run_name(cell, seed)] for seed in SEEDS if run_name(cell, seed) in table["runs"]]
    return [_score(run["volumes"][volume][output], key) for run in runs if volume in run["volumes"]]


def exact_score(table: dict[str, Any], volume: str, output: str = "refined") -> float | None:
    """Return VOI with 32 bits in the crop of a volume, or None if it was not measured."""
    volumes = table["exact"].get("volumes", {})
    return _score(volumes[volume][output], "voi") if volume in volumes else None


def _score(scores: dict[str, float], key: str) -> float:
    return scores["voi_split"] + scores["voi_merge"] if key == "voi" else scores[key]


def bits_sizes(table: dict[str, Any], cell: Cell) -> dict[str, float]:
    """Return MB of the encoder and of the whole model, rounded as a cell says; empty if not measured."""
    runs = (table["runs"].get(run_name(cell, seed)) for seed in SEEDS)
    return next((run["megabytes"] for run in runs if run), {})


def bits_panels(table: dict[str, Any], output: str = "refined") -> dict[str, dict[str, tuple[float, dict]]]:
    """Arrange the table for `views.charts.bits_figure`: network -> volume -> VOI with 32 bits, method -> width -> VOIs.

    A width is written with the MB that the rounded part then needs.
    """
    panels: dict[str, dict[str, tuple[float, dict]]] = {}
    for network, network_title in NETWORKS.items():
        part = "model" if network == "whole" else "encoder"
        sizes = {width: bits_sizes(table, Cell(network, "min_max", width)) for width in WIDTHS}
        words = {width: f"{width}\n{mb[part]:.1f} MB" if mb else width for width, mb in sizes.items()}
        for volume, (title, _) in JUDGED_ON.items():
            exact = exact_score(table, volume, output)
            if exact is None:
                continue
            vois = {
                method.title: {words[w]: bits_scores(table, Cell(network, name, w), volume, output) for w in WIDTHS}
                for name, method in METHODS.items()
            }
            panels.setdefault(network_title, {})[title] = exact, vois
    return panels


def describe_figure(output: str) -> str:
    """Write the title of a figure of `bits_panels`, which explains the widths too."""
    return f"VOI of {OUTPUTS[output]} (lower is better). W4A8: weights of 4 bits and activations of 8 bits"


def bits_answer(table: dict[str, Any], question: Question, volume: str, output: str) -> list[str]:
    """Compare two cells: VOI of both with spread, difference, p by permutation, and whether it is what was expected.

    Returns:
        Five texts, or an empty list if a cell is not measured.
    """
    first, second = (bits_scores(table, cell, volume, output) for cell in (question.first, question.second))
    if not first or not second:
        return []
    lower, higher = (first, second) if question.expected == "lower" else (second, first)
    return [*difference_cells(first, second), judge_expectation(lower, higher)]


def expectation_rows(table: dict[str, Any], output: str) -> list[list[str]]:
    """Say what came of each question on each volume: its text, what was expected, and a verdict for each volume.

    A verdict is that of `judge_expectation`; it is empty where a cell is not measured.
    """
    rows = []
    for title, question in QUESTIONS.items():
        answers = [bits_answer(table, question, volume, output) for volume in JUDGED_ON]
        rows.append([title, question.expected, *(answer[-1] if answer else "" for answer in answers)])
    return rows


def engine_rows(table: dict[str, Any]) -> list[list[str]]:
    """Write what an engine makes of the whole model with 32 and with 8 bits, a row each, below `ENGINE_HEADS`.

    Returns:
        Of each: name and bits, VOI of A_r on each whole volume, mean change of an affinity on FIB-25, MB, seconds of
        one core for all volumes, and their ratio to those with 32 bits; means ± spread over calibrations.
    """
    rows = []
    for engine, name in ENGINES.items():
        runs = [table["engines"][f"{engine} {seed}"] for seed in SEEDS if f"{engine} {seed}" in table["engines"]]
        for bits in ("32 bits", "8 bits") if runs else ():
            volumes = [run[bits]["volumes"] for run in runs]
            vois = [[_score(of[volume], "voi") for of in volumes if volume in of] for volume in JUDGED_ON]
            written = [summary(values) if values else "" for values in vois]
            changes = summary([of["fib25"]["change"] for of in volumes], 4)
            seconds = [run[bits]["core_seconds"] for run in runs]
            ratios = [run[bits]["core_seconds"] / run["32 bits"]["core_seconds"] for run in runs]
            size = f"{runs[0][bits]['megabytes']:.2f}"
            rows.append([f"{name}, {bits}", *written, changes, size, summary(seconds, 0), summary(ratios, 2)])
    return rows


def describe_unmeasured(table: dict[str, Any]) -> str:
    """Say in one sentence which declared runs are missing, and how to make them."""
    names = [run_name(cell, seed) for seed in SEEDS for cell in list_cells()]
    missing = sum(name not in table["runs"] for name in names)
    engines = sum(f"{engine} {seed}" not in table["engines"] for engine in ENGINES for seed in SEEDS)
    if not missing and not engines:
        return "Every declared run is measured."
    return (
        f"Not measured yet: {missing} of {len(names)} runs of the table, and {engines} of {len(ENGINES) * len(SEEDS)} "
        "of the engines; `make bits` measures them."
    )
