"""The rows of lesson 14: which noise is added to FIB-25, which way of denoising meets it, and what the runs say.

Each run trains a segmenter of its own on pictures of its own kind. `tools/results/denoise.py` trains and measures what
is declared here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from fgnet_lib import REPOSITORY
from fgnet_lib.study.runs import describe_missing, read_runs
from fgnet_lib.study.statistics import difference_cells, swapped_pairs

DENOISING = REPOSITORY / "docs" / "measured" / "denoising"
NOISES = {"gaussian": "Gaussian noise", "poisson": "Poisson noise", "line": "line noise"}
STRENGTHS = (0.15, 0.3)
SEEDS = (0, 1, 2)
PATCH, BATCH = 64, 4  # pixels of a patch's side, and patches
DENOISING_STEPS, SEGMENTING_STEPS = 150, 250  # of a denoiser, and of every segmenter, whether alone or in one network
COMPARED = {"PSNR": "psnr", "VOI": "voi"}


@dataclass(frozen=True)
class NoiseMethod:
    """A way from noisy sections to a picture and to neurons.

    Attributes:
        title: The name that readers see.
        denoiser: What cleans sections before a segmenter is trained on them; "joint" is one network for both.
        embedding: Whether the affinities enter D2 of that network.
    """

    title: str
    denoiser: Literal["none", "smoothing", "noise2void", "supervised", "transfer", "joint"]
    embedding: bool = False


METHODS = {
    "noisy": NoiseMethod("noisy, as it is", "none"),
    "smoothed": NoiseMethod("Gaussian smoothing", "smoothing"),
    "noise2void": NoiseMethod("Noise2Void", "noise2void"),
    "transfer": NoiseMethod("DADn's pairs", "transfer"),
    "supervised": NoiseMethod("denoise, then segment", "supervised"),
    "joint": NoiseMethod("joint, no embedding", "joint"),
    "embedded": NoiseMethod("joint, with embedding", "joint", embedding=True),
}
QUESTIONS_OF_NOISE = {  # the first of each pair is compared with the second
    "Does smoothing help?": ("smoothed", "noisy"),
    "Does Noise2Void help?": ("noise2void", "noisy"),
    "Does a supervised denoiser help?": ("supervised", "noisy"),
    "Are DADn's pairs as good as real ones?": ("transfer", "supervised"),
    "Is joint training better than two steps?": ("joint", "supervised"),
    "Does the embedding module help?": ("embedded", "joint"),
}


class NoiseRow(NamedTuple):
    """A method, a kind of noise and its strength; the runs of a row differ in their seed."""

    method: str
    kind: str
    strength: float


def list_noise_runs() -> list[tuple[NoiseRow, int]]:
    """List every declared row with each seed in the order of measuring: all rows once, then again.

    >>> len(list_noise_runs()), list_noise_runs()[0]
    (126, (NoiseRow(method='noisy', kind='gaussian', strength=0.15), 0))
    """
    return [(NoiseRow(m, k, s), seed) for seed, s, k, m in product(SEEDS, STRENGTHS, NOISES, METHODS)]


def noise_row_name(row: NoiseRow) -> str:
    """Name a row in the table of runs.

    >>> noise_row_name(NoiseRow("joint", "line", 0.15))
    'joint_line_15'
    """
    return f"{row.method}_{row.kind}_{round(100 * row.strength)}"


NoiseRows = dict[NoiseRow, list[dict]]  # a row -> its runs, by seed


def read_noise_rows(folder: Path = DENOISING) -> NoiseRows:
    """Read the runs of each row; what was not measured is left out."""
    runs = read_runs(folder)
    rows = {row: [run for run in runs if run["row"] == noise_row_name(row)] for row, _ in list_noise_runs()}
    return {row: of_row for row, of_row in rows.items() if of_row}


def noise_values(rows: NoiseRows, row: NoiseRow, key: str) -> list[float]:
    """Return "psnr" (dB) or "voi" (bits) of a row's runs by seed; empty where nothing was measured."""
    runs = rows.get(row, [])
    if key == "psnr":
        return [run["psnr"] for run in runs]
    return [run["scores"]["voi_split"] + run["scores"]["voi_merge"] for run in runs]


def describe_missing_noise(rows: NoiseRows) -> str:
    """Say how many declared runs are missing, and which command makes them."""
    done = {(row, run["seed"]) for row, runs in rows.items() for run in runs}
    missing = [run for run in list_noise_runs() if run not in done]
    return describe_missing(len(missing), len(list_noise_runs()), "run", "python tools/results/denoise.py")


def noise_panels(rows: NoiseRows) -> dict[str, dict[str, dict[str, tuple[list[float], list[float]]]]]:
    """Arrange the runs for `views.charts.psnr_figure`: noise -> method -> strength -> PSNR and VOI of each run."""
    panels: dict[str, dict[str, dict[str, tuple[list[float], list[float]]]]] = {}
    for kind, title in NOISES.items():
        panels[title] = {}
        for name, method in METHODS.items():
            keys = {strength: NoiseRow(name, kind, strength) for strength in STRENGTHS}
            points = {
                f"strength {strength}": (noise_values(rows, row, "psnr"), noise_values(rows, row, "voi"))
                for strength, row in keys.items()
                if row in rows
            }
            if points:
                panels[title][method.title] = points
    return panels


def noise_winners(rows: NoiseRows) -> dict[str, dict[str, tuple[str, str]]]:
    """Say which methods win: noise -> strength -> titles of the one with the best PSNR and of that with the best VOI.

    There are none where runs are missing.
    """
    winners: dict[str, dict[str, tuple[str, str]]] = {title: {} for title in NOISES.values()}
    for (kind, title), strength in product(NOISES.items(), STRENGTHS):
        if best := _best(rows, kind, strength):
            winners[title][f"strength {strength}"] = METHODS[best[0]].title, METHODS[best[1]].title
    return winners


def noise_verdicts(rows: NoiseRows) -> dict[str, dict[str, str]]:
    """Say in a few words whether the cleanest pictures gave the best neurons: noise -> strength -> title of a panel.

    Where runs are missing, the title says how many are measured.
    """
    verdicts: dict[str, dict[str, str]] = {title: {} for title in NOISES.values()}
    for (kind, title), strength in product(NOISES.items(), STRENGTHS):
        if best := _best(rows, kind, strength):
            if best[0] == best[1]:
                verdict = "the cleanest is the best, too"
            elif best in _swapped(rows, kind, strength):
                verdict = "the cleanest is not the best, in all runs"
            else:
                verdict = "the cleanest is not the best, but runs overlap"
        else:
            measured = sum(len(rows.get(NoiseRow(name, kind, strength), [])) for name in METHODS)
            verdict = f"{measured} of {len(METHODS) * len(SEEDS)} runs measured"
        verdicts[title][f"strength {strength}"] = verdict
    return verdicts


def judge_ranks(rows: NoiseRows, kind: str, strength: float) -> str:
    """Say which method has the cleanest pictures, which the best neurons, and how many pairs of methods swap.

    A pair swaps if in all runs the first has the higher PSNR and the higher VOI.
    """
    best = _best(rows, kind, strength)
    if best is None:
        return "not measured yet: some of the runs are missing"
    cleanest, correct = (METHODS[name].title for name in best)
    verdict = f'"{cleanest}" is best in both' if cleanest == correct else f'cleanest "{cleanest}", best "{correct}"'
    swapped = _swapped(rows, kind, strength)
    pairs = len(METHODS) * (len(METHODS) - 1) // 2
    return f"{verdict}; {len(swapped)} of {pairs} pairs swap"


def _swapped(rows: NoiseRows, kind: str, strength: float) -> list[tuple[str, str]]:
    """Pairs of methods of which the first has the higher PSNR and the higher VOI, in all runs."""
    psnr, voi = (
        {name: noise_values(rows, NoiseRow(name, kind, strength), key) for name in METHODS} for key in ("psnr", "voi")
    )
    return swapped_pairs(psnr, voi)


def _best(rows: NoiseRows, kind: str, strength: float) -> tuple[str, str] | None:
    """The methods with the highest mean PSNR and with the lowest mean VOI; None where runs are missing."""
    keys = {name: NoiseRow(name, kind, strength) for name in METHODS}
    if any(len(rows.get(row, [])) < len(SEEDS) for row in keys.values()):
        return None
    means = {name: [np.mean(noise_values(rows, row, key)) for key in COMPARED.values()] for name, row in keys.items()}
    return max(means, key=lambda name: means[name][0]), min(means, key=lambda name: means[name][1])


def noise_answers(rows: NoiseRows) -> dict[str, Sequence[Sequence[str]]]:
    """Answer each question for each noise: group -> question, both rows with spread, difference and p.

    A group is a measure (VOI first), a noise and a strength; a question whose runs are missing is left out.
    """
    groups: dict[str, Sequence[Sequence[str]]] = {}
    for measure, (kind, title), strength in product(reversed(COMPARED), NOISES.items(), STRENGTHS):
        lines = []
        for question, pair in QUESTIONS_OF_NOISE.items():
            values = (noise_values(rows, NoiseRow(name, kind, strength), COMPARED[measure]) for name in pair)
            if cells := difference_cells(*values):
                lines.append([question, *cells])
        groups[f"{measure}, {title}, strength {strength}"] = lines
    return groups
