"""The rows of lesson 15: a decoder's doubt against its errors, half resolution against full, and calibration.

Decoders are trained on frozen features of the shipped model on FIB-25's training part and judged on its validation
part. `tools/results/doubt.py` trains and measures what is declared here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from fgnet_lib import REPOSITORY
from fgnet_lib.study.rows import SEEDS_OF_FEW
from fgnet_lib.study.runs import describe_missing, read_runs
from fgnet_lib.study.statistics import difference_cells, permutation_p, summary

DOUBT = REPOSITORY / "docs" / "measured" / "doubt"
SHARES = (0.01, 0.02, 0.05, 0.125, 0.25, 0.5)  # of all voxels that are inspected
BUDGET = 0.125  # the share of the second look
SCORES = ("random", "entropy", "margin", "variance")
CERTAIN = 0.05  # a p value below this is called a difference
EPOCHS, STEPS, PASSES = 25, 16, 8
SIDE, DEPTH = 125, 8  # voxels of a window: a quarter of a section, or a whole one at half resolution
JUDGED_FROM = (0, 16, 32)  # first sections of the windows of the validation part
CALIBRATION = (
    "calibration"  # the row of the shipped model; its seed says which training sections choose the temperature
)
CALIBRATED = {"fib25": "FIB-25", "gala": "gala", "ac4": "AC4", "cremi_b_mini": "CREMI B"}


@dataclass(frozen=True)
class DecoderRow:
    """A decoder that is trained and judged.

    Attributes:
        title: The name that readers see.
        choice: What decides where to look again.
        frequencies: Of the coordinates.
        half: Whether it learns at half resolution and is judged at full resolution.
    """

    title: str
    choice: Literal["random", "entropy", "variance"] = "variance"
    frequencies: int = 10
    half: bool = False


DECODERS = {
    "variance": DecoderRow("second look by variance"),
    "entropy": DecoderRow("second look by entropy", "entropy"),
    "random": DecoderRow("second look anywhere", "random"),
    "half_10": DecoderRow("half resolution, 10 frequencies", half=True),
    "half_5": DecoderRow("half resolution, 5 frequencies", frequencies=5, half=True),
    "half_0": DecoderRow("half resolution, no frequencies", frequencies=0, half=True),
}
Measure = tuple[str, str]  # row, and which share of wrong voxels
QUESTIONS_OF_DOUBT: dict[str, tuple[Measure, Measure]] = {  # the first of each pair is expected to be lower
    "Does a second look help?": (("variance", "fine"), ("variance", "coarse")),
    "Is it better by variance than anywhere?": (("variance", "fine"), ("random", "fine")),
    "Is it better by entropy than anywhere?": (("entropy", "fine"), ("random", "fine")),
    "Is it better by variance than by entropy?": (("variance", "fine"), ("entropy", "fine")),
    "10 frequencies: does asking at 2x beat interpolation?": (("half_10", "asked"), ("half_10", "linear")),
    "5 frequencies: does asking at 2x beat interpolation?": (("half_5", "asked"), ("half_5", "linear")),
    "No frequencies: does asking at 2x beat interpolation?": (("half_0", "asked"), ("half_0", "linear")),
    "Are no frequencies better than 10, asked at 2x?": (("half_0", "asked"), ("half_10", "asked")),
}
DoubtRows = dict[str, list[dict]]  # row -> its runs, by seed
MISSING = "not measured yet: some of the runs are missing"


def list_doubt_runs() -> list[tuple[str, int]]:
    """Row and seed of every declared run in the order of measuring: all rows once, then again."""
    return [(name, seed) for seed in SEEDS_OF_FEW for name in (CALIBRATION, *DECODERS)]


def read_doubt(folder: Path = DOUBT) -> DoubtRows:
    """Read the runs of each row; what was not measured is left out."""
    runs = read_runs(folder)
    rows = {name: [run for run in runs if run["row"] == name] for name in (CALIBRATION, *DECODERS)}
    return {name: of_row for name, of_row in rows.items() if of_row}


def describe_missing_doubt(rows: DoubtRows) -> str:
    """Say how many declared runs are missing, and which command makes them."""
    done = {(name, run["seed"]) for name, runs in rows.items() for run in runs}
    missing = [run for run in list_doubt_runs() if run not in done]
    return describe_missing(len(missing), len(list_doubt_runs()), "run", "python tools/results/doubt.py")


def wrong_percent(rows: DoubtRows, measure: Measure) -> list[float]:
    """Percent of FIB-25's validation voxels that a row has wrong, by seed; empty where nothing was measured."""
    row, key = measure
    return [100 * run["wrong"][key] for run in rows.get(row, [])]


def found_shares(rows: DoubtRows, score: str) -> np.ndarray:
    """Share of errors seen in the row "variance" by a score, (seeds, `SHARES`); "oracle" inspects errors alone."""
    return np.array([run["seen"][score] for run in rows.get("variance", [])])


def doubt_answer(rows: DoubtRows, question: str) -> list[str]:
    """Answer a question in four cells: % wrong of both with spread, difference, p; empty where runs are missing."""
    return difference_cells(*(wrong_percent(rows, measure) for measure in QUESTIONS_OF_DOUBT[question]))


def _complete(rows: DoubtRows, *names: str) -> bool:
    return all(len(rows.get(name, [])) == len(SEEDS_OF_FEW) for name in names)


def _compare(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """Say how the first of two rows of errors differs from the second, if the runs let you claim it."""
    if permutation_p(ours, theirs) >= CERTAIN:
        return "cannot be told apart from"
    return "has fewer errors than" if np.mean(ours) < np.mean(theirs) else "has more errors than"


def judge_second_look(rows: DoubtRows) -> str:
    """Say whether a second look leaves fewer errors where the network doubts than anywhere else."""
    if not _complete(rows, "variance", "entropy", "random"):
        return f"Second look: {MISSING}."
    verdicts = [
        f"by {name} {_compare(wrong_percent(rows, (name, 'fine')), wrong_percent(rows, ('random', 'fine')))} anywhere"
        for name in ("variance", "entropy")
    ]
    return f"Second look: {'; '.join(verdicts)}."


def judge_doubt(rows: DoubtRows) -> str:
    """Say which score sees most errors at the budget of the second look, and where ranks swap on the way."""
    if not _complete(rows, "variance"):
        return f"Errors per place inspected: {MISSING}."
    means = {name: found_shares(rows, name).mean(0) for name in SCORES}
    at = {name: float(values[SHARES.index(BUDGET)]) for name, values in means.items()}
    ranked = ", ".join(f"{name} {at[name]:.0%}" for name in sorted(at, key=lambda name: -at[name]))
    order = [_leader(means, k) for k in range(len(SHARES))]
    swaps = [f"{100 * share:g} %" for share, a, b in zip(SHARES[1:], order, order[1:], strict=False) if a != b]
    ahead = f"the leader changes at {', '.join(swaps)}" if swaps else f"{order[0]} leads at every share"
    return f"Errors seen at {100 * BUDGET:g} % inspected: {ranked}; between entropy and variance, {ahead}."


def _leader(means: Mapping[str, np.ndarray], k: int) -> str:
    return max(("entropy", "variance"), key=lambda name: means[name][k])


def judge_between(rows: DoubtRows) -> str:
    """Say for each number of frequencies whether asking at full resolution beats linear interpolation."""
    halves = {name: row for name, row in DECODERS.items() if row.half}
    if not _complete(rows, *halves):
        return f"Half resolution: {MISSING}."
    verdicts = [
        f"with {row.frequencies} frequencies asking at 2x "
        f"{_compare(wrong_percent(rows, (name, 'asked')), wrong_percent(rows, (name, 'linear')))} interpolation"
        for name, row in halves.items()
    ]
    return f"Half resolution: {'; '.join(verdicts)}."


def calibration_errors(rows: DoubtRows, volume: str, when: Literal["before", "after"]) -> list[float]:
    """ECE of the shipped model's refined affinities on a volume, by seed of the temperature."""
    return [run["volumes"][volume][when] for run in rows.get(CALIBRATION, []) if volume in run["volumes"]]


def calibration_rows(rows: DoubtRows) -> list[list[str]]:
    """Volume, ECE before, ECE after with spread over temperatures, temperature with spread; for a table."""
    lines = []
    for volume, title in CALIBRATED.items():
        before, after = (calibration_errors(rows, volume, when) for when in ("before", "after"))
        if before:
            temperatures = [run["temperature"] for run in rows[CALIBRATION]]
            lines.append([title, f"{before[0]:.4f}", summary(after, 4), summary(temperatures, 2)])
    return lines


def judge_calibration(rows: DoubtRows) -> str:
    """Say on which volumes the temperature lowers the calibration error."""
    if not _complete(rows, CALIBRATION):
        return f"Calibration: {MISSING}."
    verdicts = []
    for volume, title in CALIBRATED.items():
        before, after = (calibration_errors(rows, volume, when) for when in ("before", "after"))
        if before:
            falls = "lower in all runs" if max(after) < min(before) else "lower in the mean"
            verdicts.append(f"{title}: {falls if np.mean(after) < np.mean(before) else 'not lower'}")
    return f"Calibration: we expected a lower error after the temperature. {'; '.join(verdicts)}."
