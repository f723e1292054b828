"""The files of `make results`, and what they say about the rows."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fgnet_lib import REPOSITORY
from fgnet_lib.study.rows import OFFICIAL, QUESTIONS, REFERENCES, ROWS, SECTIONS, SEEDS, TITLES
from fgnet_lib.study.statistics import either_sign

RESULTS = REPOSITORY / "docs" / "results"
SET_TO = ("0.0", "mean", "1.0")  # what `make results` replaces attention maps by


def load(folder: Path = RESULTS) -> dict[str, list[dict]]:
    """Row -> its runs, by seed. Rows are in the order of the table; those that nobody has run are left out."""
    found = defaultdict(list)
    for path in sorted(folder.glob("*-*.json")):
        run = json.loads(path.read_text(encoding="utf-8"))
        found[run["row"]].append(run)
    return {name: found[name] for name in TITLES if name in found}


def pictures(run: dict, folder: Path = RESULTS) -> dict[str, np.ndarray]:
    """What a run keeps for pictures of its main output: `z`, `section`, `errors`, `parts`, `covered`.

    `tools/results/results.py` says what each is. Empty where the file is not there.
    """
    path = folder / f"{run['row']}-{run['seed']}.npz"
    if not path.is_file():
        return {}
    with np.load(path) as file:
        return dict(file)


def trained(found: dict[str, list[dict]]) -> dict[str, list[dict]]:
    """The rows that somebody trained: all but the references."""
    return {name: runs for name, runs in found.items() if name != "references"}


def fully_labelled(found: dict[str, list[dict]]) -> dict[str, list[dict]]:
    """Of `trained`, those with all labelled sections."""
    return {name: runs for name, runs in trained(found).items() if name not in ROWS or ROWS[name].sections == SECTIONS}


def begun(found: dict[str, list[dict]]) -> list[str]:
    """Those of SAM2.1's encoders that some run was guided by."""
    return [size for size in OFFICIAL if any(name in ROWS and ROWS[name].config.encoder == size for name in found)]


def lacking(found: dict[str, list[dict]]) -> dict[str, str]:
    """What has not been measured, row -> what to say about it, with the command that measures it.

    An encoder of SAM2.1 that no run was guided by is one line for all of its rows.
    """
    said, idle = {}, set(OFFICIAL) - set(begun(found))
    for name in TITLES:
        seeds = len(SEEDS) if name in ROWS else 1
        runs = len(found.get(name, []))
        if name in ROWS and (size := ROWS[name].config.encoder) in idle:
            said.setdefault(f"pretrained_frozen_{size}", f"not measured here: `make results ENCODER={size}`")
        elif runs < seeds:
            count = f"{runs} of {seeds} seeds measured here; the others" if runs else "not measured here"
            said[name] = f"{count}: `make results ROWS={name}`"
    return said


def questions(found: dict[str, list[dict]]) -> dict[str, tuple[str, str]]:
    """`QUESTIONS`, and the same with each of SAM2.1's encoders that some run was guided by.

    None at equal time: how long an iteration takes with another encoder depends on the machine.
    """
    asked = dict(QUESTIONS)
    for size, (question, (one, other)) in product(begun(found), QUESTIONS.items()):
        other = other if ROWS[other].config.encoder is None else f"{other}_{size}"
        if f"{one}_{size}" in ROWS and other in ROWS and other != "unet_longer":
            asked[f"SAM2.1 {size}: {question}"] = f"{one}_{size}", other
    return asked


def postprocessings(found: dict[str, list[dict]]) -> dict[str, list[str]]:
    """Version of the post-processing -> runs that were measured with it; rows of two versions must not be compared."""
    versions = defaultdict(list)
    for run in (run for runs in trained(found).values() for run in runs):
        version = run.get("postprocessing")
        versions[f"{version:08x}" if version else "not noted"].append(f"{TITLES[run['row']]}, seed {run['seed']}")
    return dict(versions)


def output_of(run: dict) -> str:
    """What a row is judged by: A_r, or A_s where there is no other."""
    return "refined" if "refined" in run["thresholds"] else "coarse"


def scores(runs: Sequence[dict], key: str, volume: str = "fib25", output: str = "") -> list[float]:
    """A score of each run that has it.

    Args:
        runs: of one row.
        key: "voi_split", "voi_merge", "arand", or "voi" for the sum of the first two.
        volume: a data set.
        output: "refined", "coarse", these with "_fragments", or a name in `REFERENCES`; empty for `output_of` the run.
    """
    measured = [run["volumes"].get(volume, {}).get(output or output_of(run)) for run in runs]
    keys = ("voi_split", "voi_merge") if key == "voi" else (key,)
    return [sum(one[k] for k in keys) for one in measured if one]


def rates(runs: Sequence[dict]) -> list[float]:
    """MVox/s of inference on FIB-25's validation part, of each run."""
    return [run["volumes"]["fib25"]["voxels"] / 1e6 / run["volumes"]["fib25"]["seconds"] for run in runs]


def curve(run: dict) -> tuple[np.ndarray, np.ndarray, int]:
    """VOI merge and VOI split of a run on FIB-25 at each threshold, and the index of the chosen one."""
    output = output_of(run)
    thresholds, split, merge = np.array(run["volumes"]["fib25"][f"{output}_curve"]).T
    return merge, split, int(np.argmin(abs(thresholds - run["thresholds"][output])))


def references(found: dict[str, list[dict]]) -> dict[str, tuple[float, float]]:
    """VOI merge and VOI split on FIB-25 of what came with the data: title -> point."""
    runs = found.get("references", [])
    points = {title: [scores(runs, key, output=name) for key in ("voi_merge", "voi_split")]
              for name, title in REFERENCES.items()}  # fmt: skip
    return {title: (merge[0], split[0]) for title, (merge, split) in points.items() if merge}


class AttentionStatistics(NamedTuple):
    """One attention map of one row on FIB-25's validation part, a value for each run.

    Attributes:
        row: name of the row.
        level: "a1", "a2" or "a3".
        auc: of weights, for membrane against interior, counted with either sign (`either_sign`).
        darker: runs in which membranes have lower weights than interiors.
        correlation: with the error of A_r, without its sign, which is as free.
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


def attention_statistics(found: dict[str, list[dict]]) -> list[AttentionStatistics]:
    """What was measured about attention, for each row that has any and each map."""
    maps = []
    for row, runs in found.items():
        for level in runs[0].get("attention", {}):
            of_runs = [run["attention"][level] for run in runs]
            auc, correlation, std = (
                [one[key] for one in of_runs] for key in ("auc_membrane", "correlation_with_error", "std")
            )
            set_to = {
                value: [one[f"set_to_{value}"]["voi_split"] + one[f"set_to_{value}"]["voi_merge"] for one in of_runs]
                for value in SET_TO
            }
            darker = sum(one < 0.5 for one in auc)
            signless = either_sign(auc), darker, [abs(one) for one in correlation]
            maps.append(AttentionStatistics(row, level, *signless, std, scores(runs, "voi"), set_to))
    return maps


def by_sections(found: dict[str, list[dict]]) -> dict[str, dict[int, list[float]]]:
    """Rows that were trained on several amounts of data: title -> labelled sections -> VOI of each run on FIB-25."""
    amounts = defaultdict(dict)
    for name, row in ROWS.items():
        base = name.removesuffix(f"_{row.sections}")
        if name in found and f"{base}_5" in ROWS:
            amounts[ROWS[base].title][row.sections] = scores(found[name], "voi")
    return dict(amounts)


def with_sections(name: str, sections: int) -> str | None:
    """The row that is `name` trained on so many labelled sections, None if there is none."""
    found = name if sections == SECTIONS else f"{name}_{sections}"
    return found if found in ROWS else None
