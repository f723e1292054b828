"""The table of results: what the runs of `make results` say about each row."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fgnet_lib.study.rows import OFFICIAL, QUESTIONS, REFERENCES, ROWS, SECTIONS, TITLES, seeds
from fgnet_lib.study.runs import RESULTS, read_runs
from fgnet_lib.study.statistics import ignore_sign

Rows = dict[str, list[dict]]  # name of a row -> its runs, by seed

SET_TO = ("0.0", "mean", "1.0")  # what `make results` replaces attention maps by


def load_rows(folder: Path = RESULTS) -> Rows:
    """The runs of each row, by seed. Rows are in the order of the table; a row without runs is left out."""
    rows = defaultdict(list)
    for run in read_runs(folder):
        rows[run["row"]].append(run)
    return {name: rows[name] for name in TITLES if name in rows}


def trained_rows(rows: Rows) -> Rows:
    """The rows that were trained: all but the references."""
    return {name: runs for name, runs in rows.items() if name != "references"}


def fully_labelled_rows(rows: Rows) -> Rows:
    """The trained rows that had all labelled sections."""
    return {
        name: runs for name, runs in trained_rows(rows).items() if name not in ROWS or ROWS[name].sections == SECTIONS
    }


def official_guides(rows: Rows) -> list[str]:
    """The sizes of SAM2.1's encoders that guide at least one run."""
    return [size for size in OFFICIAL if any(name in ROWS and ROWS[name].config.encoder == size for name in rows)]


def describe_gaps(rows: Rows) -> str:
    """Which declared runs are missing, and the commands that make them, in one sentence."""
    idle = [size for size in OFFICIAL if size not in official_guides(rows)]
    declared = {name: len(seeds(name)) if name in ROWS else 1 for name in TITLES}
    declared = {name: runs for name, runs in declared.items() if name not in ROWS or _encoder(name) not in idle}
    missing = {name: runs - len(rows.get(name, [])) for name, runs in declared.items()}
    incomplete = [name for name, runs in missing.items() if runs > 0]
    gaps = []
    if idle:
        gaps.append(f"SAM2.1's own encoders {', '.join(idle)} as guides (`make results ENCODER={idle[0]}` and so on)")
    if incomplete:
        runs = sum(missing[name] for name in incomplete)
        choice = f' ROWS="{" ".join(incomplete)}"' if len(incomplete) < 6 else ""
        gaps.append(f"other runs: {runs} (`make results{choice}`)")
    return f"Not measured yet: {'; '.join(gaps)}." if gaps else "Every declared run is measured."


def questions(rows: Rows) -> dict[str, tuple[str, str]]:
    """`QUESTIONS`, and the same with each of SAM2.1's encoders that guides a run.

    None at equal time: how long an iteration takes with another encoder depends on the machine.
    """
    pairs = dict(QUESTIONS)
    for size, (question, (ours, theirs)) in product(official_guides(rows), QUESTIONS.items()):
        theirs = theirs if _encoder(theirs) is None else f"{theirs}_{size}"
        if f"{ours}_{size}" in ROWS and theirs in ROWS and theirs != "unet_longer":
            pairs[f"SAM2.1 {size}: {question}"] = f"{ours}_{size}", theirs
    return pairs


TOPICS = {  # a row that others are compared with -> what these comparisons ask
    "unet": "What helps a 3D U-Net, at equal iterations?",
    "unet_longer": "What helps more than a 3D U-Net that trains longer?",
    "unet_channel": "What does a guide add to a 3D U-Net whose norm sees one voxel?",
    "sam2_only_random": "What does pretraining bring, seen in A_s alone?",
    "random_frozen": "What does pretraining bring to a frozen guide?",
    "pretrained_frozen": "Do fine-tuning or other forms of attention help?",
    "pretrained_frozen_longer": "Does fine-tuning help, at equal time?",
    "additive_random": "What does pretraining bring, with F' = F + W_v S a?",
    "natural_only_random": "What do photographs teach, seen in A_s alone?",
    "natural_residual_random": "What do photographs teach a guide, with F' = F + F a?",
    "natural_additive_random": "What do photographs teach a guide, with F' = F + W_v S a?",
    "natural_additive_random_channel": "What do photographs teach a guide, if the norm sees one voxel?",
    "natural_residual": "Does fine-tuning help a guide that knows photographs, with F' = F + F a?",
    "natural_only": "Do EM or fine-tuning help a guide that knows photographs, seen in A_s alone?",
    "natural_additive": "Do EM, fine-tuning, another norm or larger sections help F' = F + W_v S a around photographs?",
    "additive": "Do photographs or larger sections help, with F' = F + W_v S a?",
}


def by_topic(
    questions: Mapping[str, tuple[str, str]], rows: Rows | None = None, sections: int = SECTIONS
) -> dict[str, dict[str, tuple[str, str]]]:
    """Questions grouped by the row that they compare with: topic -> question -> the pair of rows.

    Args:
        questions: as `questions` returns them.
        rows: if given, a question is left out where one of its two rows has no run.
        sections: labelled sections of the rows; a question is left out where one of its rows has no such variant.
    """
    groups = defaultdict(dict)
    for question, (first, second) in questions.items():
        pair = with_sections(first, sections), with_sections(second, sections)
        if None not in pair and (rows is None or {*pair} <= rows.keys()):
            groups[TOPICS.get(second, f"What differs from: {TITLES[second]}?")][question] = pair
    return dict(groups)


def _encoder(name: str) -> str | None:
    return ROWS[name].config.encoder


def postprocessings(rows: Rows) -> dict[str, list[str]]:
    """Version of the post-processing -> the runs that it made; rows of two versions must not be compared."""
    versions = defaultdict(list)
    for run in (run for runs in trained_rows(rows).values() for run in runs):
        version = run.get("postprocessing")
        versions[f"{version:08x}" if version else "not noted"].append(f"{TITLES[run['row']]}, seed {run['seed']}")
    return dict(versions)


def output_of(run: dict) -> str:
    """The output that a run is judged by: "refined", or "coarse" where the model has no other."""
    return "refined" if "refined" in run["thresholds"] else "coarse"


def scores(runs: Sequence[dict], key: str, volume: str = "fib25", output: str = "") -> list[float]:
    """A score of each run that has it.

    Args:
        runs: of one row.
        key: "voi_split", "voi_merge", "arand", "voi" for the sum of the first two, or "voi_components": the same sum
            against the connected pieces of the ground truth, which runs from before 2026-11-28 do not have.
        volume: a data set.
        output: "refined", "coarse", these with "_fragments", or a name in `REFERENCES`; empty for `output_of` the run.
    """
    evaluations = [run["volumes"].get(volume, {}).get(output or output_of(run)) for run in runs]
    if key == "voi_components":
        key, evaluations = "voi", [evaluation and evaluation.get("against_components") for evaluation in evaluations]
    keys = ("voi_split", "voi_merge") if key == "voi" else (key,)
    return [sum(evaluation[k] for k in keys) for evaluation in evaluations if evaluation]


def rates(runs: Sequence[dict]) -> list[float]:
    """MVox/s of inference on FIB-25's validation part, of each run."""
    return [run["volumes"]["fib25"]["voxels"] / 1e6 / run["volumes"]["fib25"]["seconds"] for run in runs]


def curve(run: dict) -> tuple[np.ndarray, np.ndarray, int]:
    """VOI merge and VOI split of a run on FIB-25 at each threshold, and the index of the chosen one."""
    output = output_of(run)
    thresholds, split, merge = np.array(run["volumes"]["fib25"][f"{output}_curve"]).T
    return merge, split, int(np.argmin(abs(thresholds - run["thresholds"][output])))


def references(rows: Rows) -> dict[str, tuple[float, float]]:
    """VOI merge and VOI split on FIB-25 of the segmentations that came with the data: title -> point."""
    runs = rows.get("references", [])
    points = {title: [scores(runs, key, output=name) for key in ("voi_merge", "voi_split")]
              for name, title in REFERENCES.items()}  # fmt: skip
    return {title: (merge[0], split[0]) for title, (merge, split) in points.items() if merge}


class AttentionStatistics(NamedTuple):
    """One attention map of one row on FIB-25's validation part, a value for each run.

    Attributes:
        row: name of the row.
        level: "a1", "a2" or "a3".
        auc: of weights, for membrane against interior, counted with either sign (`ignore_sign`).
        darker: runs in which membranes have lower weights than interiors.
        correlation: with the error of A_r, without its sign, which is as arbitrary.
        std: standard deviation of the weights.
        voi: of the segmentation of A_r.
        set_to: the same VOI with the map replaced by each value of `SET_TO`.
    """

    row: str
    level: str
    auc: list[float]
    darker: int
    correlation: list[float]
    std: list[float]
    voi: list[float]
    set_to: dict[str, list[float]]


def attention_statistics(rows: Rows) -> list[AttentionStatistics]:
    """What was measured about attention, for each row that has any and each map."""
    statistics = []
    for row, runs in rows.items():
        for level in runs[0].get("attention", {}):
            maps = [run["attention"][level] for run in runs]
            auc, correlation, std = (
                [values[key] for values in maps] for key in ("auc_membrane", "correlation_with_error", "std")
            )
            replaced = {value: [values[f"set_to_{value}"] for values in maps] for value in SET_TO}
            statistics.append(
                AttentionStatistics(
                    row,
                    level,
                    auc=ignore_sign(auc),
                    darker=sum(value < 0.5 for value in auc),
                    correlation=[abs(value) for value in correlation],
                    std=std,
                    voi=scores(runs, "voi"),
                    set_to={value: [e["voi_split"] + e["voi_merge"] for e in own] for value, own in replaced.items()},
                )
            )
    return statistics


def by_sections(rows: Rows) -> dict[str, dict[int, list[float]]]:
    """Rows that were trained on several amounts of data: title -> labelled sections -> VOI of each run on FIB-25."""
    amounts = defaultdict(dict)
    for name, row in ROWS.items():
        base = name.removesuffix(f"_{row.sections}")
        if name in rows and f"{base}_5" in ROWS:
            amounts[ROWS[base].title][row.sections] = scores(rows[name], "voi")
    return dict(amounts)


def with_sections(name: str, sections: int) -> str | None:
    """The row that is `name` trained on so many labelled sections, None if there is none."""
    row = name if sections == SECTIONS else f"{name}_{sections}"
    return row if row in ROWS else None
