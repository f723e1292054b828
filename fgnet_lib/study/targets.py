"""The rows of lesson 12: the shipped model on volumes that look different, and what adapting it to each changes.

Every method sees the target's grey values alone. The agglomeration threshold stays the shipped model's, because
choosing another would need labels. `tools/results/adapt_targets.py` measures what is declared here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fgnet_lib import REPOSITORY
from fgnet_lib.study.runs import describe_missing, read_runs

TARGETS = REPOSITORY / "docs" / "measured" / "targets"
TARGET_VOLUMES = {"fib25": "FIB-25", "gala": "gala", "ac4": "AC4", "cremi_b_mini": "CREMI B"}
ORDERS = (0, 1, 2)  # in which windows of the target arrive
BASELINE = "voxel_size"
NOISE = 0.02  # bits of VOI; smaller changes count as none


@dataclass(frozen=True)
class TargetMethod:
    """A way to bring a target and the model together.

    Attributes:
        title: The name that readers see.
        kind: "as_is" (the volume's own voxels), "voxel_size" (those of training, which every further kind has, too),
            "histogram", "clahe", "statistics" (re-standardised features) or "norms" (gradient steps).
        style: Weight of the style loss.
        structure: Weight of the structure loss.
        rate: Learning rate.
    """

    title: str
    kind: str
    style: float = 0.0
    structure: float = 0.0
    rate: float = 0.0


TARGET_METHODS = {
    "voxel_size": TargetMethod("voxel size", "voxel_size"),
    "as_is": TargetMethod("as it is", "as_is"),
    "histogram": TargetMethod("histogram matching", "histogram"),
    "clahe": TargetMethod("CLAHE", "clahe"),
    "statistics": TargetMethod("feature statistics", "statistics"),
    "both_0.01": TargetMethod("style and structure, rate 0.01", "norms", 1.0, 1.0, 0.01),
    "both_0.1": TargetMethod("style and structure, rate 0.1", "norms", 1.0, 1.0, 0.1),
    "both_0.001": TargetMethod("style and structure, rate 0.001", "norms", 1.0, 1.0, 0.001),
    "style_0.01": TargetMethod("style alone, rate 0.01", "norms", 1.0, 0.0, 0.01),
    "structure_0.01": TargetMethod("structure alone, rate 0.01", "norms", 0.0, 1.0, 0.01),
}
NEW_TISSUES = ("ac4", "cremi_b_mini")  # only these have other voxels than the model was trained with

Cell = tuple[str, str, int]  # volume, method, order of arrival


def list_target_cells() -> list[Cell]:
    """List every declared cell in the order of measuring: each method once on the new tissues, then on the others."""
    known = tuple(volume for volume in TARGET_VOLUMES if volume not in NEW_TISSUES)
    return [
        (volume, name, order)
        for order in ORDERS
        for volumes in (NEW_TISSUES, known)
        for name, method in TARGET_METHODS.items()
        for volume in volumes
        if (order == 0 or method.kind == "norms") and (method.kind != "as_is" or volume in NEW_TISSUES)
    ]


def cell_name(volume: str, method: str) -> str:
    """Name the row of a volume and a method in the table of runs.

    >>> cell_name("ac4", "clahe")
    'ac4-clahe'
    """
    return f"{volume}-{method}"


def read_targets(folder: Path = TARGETS) -> dict[Cell, dict]:
    """Read the measured cells; what was not measured is left out."""
    runs = {(run["row"], run["seed"]): run for run in read_runs(folder)}
    keys = [(cell, (cell_name(*cell[:2]), cell[2])) for cell in list_target_cells()]
    return {cell: runs[key] for cell, key in keys if key in runs}


def target_scores(cells: dict[Cell, dict], volume: str, method: str) -> list[float]:
    """VOI (bits) of a method on a volume, by order of arrival; empty where nothing was measured."""
    runs = [cells[volume, method, order] for order in ORDERS if (volume, method, order) in cells]
    return [run["scores"]["voi_split"] + run["scores"]["voi_merge"] for run in runs]


def scores_by_rate(cells: dict[Cell, dict], volume: str) -> dict[float, list[float]]:
    """VOI (bits) of style and structure together on a volume, by learning rate and order; only what was measured."""
    names = {method.rate: name for name, method in TARGET_METHODS.items() if method.style and method.structure}
    scores = {rate: target_scores(cells, volume, names[rate]) for rate in sorted(names)}
    return {rate: values for rate, values in scores.items() if values}


def target_changes(cells: dict[Cell, dict], method: str, before: str = BASELINE) -> dict[str, float]:
    """How much a method changes the mean VOI (bits) of each volume where it was measured; below 0 is better."""
    pairs = {
        volume: (target_scores(cells, volume, method), target_scores(cells, volume, before))
        for volume in TARGET_VOLUMES
    }
    return {volume: float(np.mean(a) - np.mean(b)) for volume, (a, b) in pairs.items() if a and b}


def describe_changes(cells: dict[Cell, dict], method: str, before: str = BASELINE) -> str:
    """Say on which volumes a method is better, worse or the same, with the changes, and where it was not measured."""
    changes = target_changes(cells, method, before)
    written = {volume: f"{TARGET_VOLUMES[volume]} ({change:+.2f})" for volume, change in changes.items()}
    names = {
        "better on": [written[volume] for volume, change in changes.items() if change < -NOISE],
        "worse on": [written[volume] for volume, change in changes.items() if change > NOISE],
        "the same on": [written[volume] for volume, change in changes.items() if abs(change) <= NOISE],
        "not measured on": [TARGET_VOLUMES[volume] for volume in _missing_volumes(changes, method, before)],
    }
    return "; ".join(f"{what} {', '.join(volumes)}" for what, volumes in names.items() if volumes)


def advise(cells: dict[Cell, dict], method: str, before: str = BASELINE) -> str:
    """Say in a few words whether to try a method: what it did to new tissue decides, where any of it was measured.

    The model's own tissue needs no help. A method that hurts there alone is no method for a volume like it.
    """
    changes = target_changes(cells, method, before)
    if not changes:
        return "not measured yet"
    new = [change for volume, change in changes.items() if volume in NEW_TISSUES]
    own = [change for volume, change in changes.items() if volume not in NEW_TISSUES]
    deciding = new or own
    helps, hurts = min(deciding) < -NOISE, max(deciding) > NOISE
    verdict = {
        (True, False): "try it",
        (True, True): "may help or hurt: only with labels to judge it",
        (False, True): "leave it",
        (False, False): "changes nothing",
    }[helps, hurts]
    if not hurts and max(own, default=0) > NOISE:
        verdict += " on new tissue; it hurts on the model's own"
    return verdict + (", so far" if _missing_volumes(changes, method, before) else "")


def _missing_volumes(changes: dict[str, float], *methods: str) -> list[str]:
    """The volumes for which all these methods are declared, and that are not among the changes."""
    declared = {(volume, name) for volume, name, _ in list_target_cells()}
    volumes = [volume for volume in TARGET_VOLUMES if all((volume, name) in declared for name in methods)]
    return [volume for volume in volumes if volume not in changes]


def describe_missing_cells(cells: dict[Cell, dict]) -> str:
    """Say how many declared cells are missing, and which command makes them."""
    missing = [cell for cell in list_target_cells() if cell not in cells]
    return describe_missing(len(missing), len(list_target_cells()), "cell", "python tools/results/adapt_targets.py")
