"""The rows of the results table as they are declared, and what the files of `make results` say about them.

A row is a model, a regime and an amount of labelled data, trained once per seed. `tools/results.py` trains and measures
the rows; the page of results and lessons 03 and 07 read the files, with the same functions.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations, product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from fgnet_lib.datasets import fetch
from fgnet_lib.fgnet import MINI, PRETRAINED, FGNet, FGNetConfig
from fgnet_lib.sam2_encoder import SIZES
from fgnet_lib.training import TrainConfig

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results"
SEEDS = (0, 1, 2)
OFFICIAL = SIZES[1:]  # encoders that have checkpoints of Meta's
SECTIONS = 120  # of FIB-25's training part; the last 20 of its 140 choose the threshold
# Small enough that a run comes near the end of its learning in some ten minutes of one core.
SMALL = replace(MINI, widths=(8, 16, 24, 32, 48), coarse_width=16)
UNET = replace(SMALL, encoder=None)


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        title: what the reader sees.
        config: the model.
        encoder: "random", "pretrained" (by `make encoder`), or the registry's name of a checkpoint.
        frozen: the encoder's regime.
        sections: labelled sections to train on, from the first on.
        iterations: of training.
    """

    title: str
    config: FGNetConfig
    encoder: str = "pretrained"
    frozen: bool = True
    sections: int = SECTIONS
    iterations: int = 1200


ROWS = {
    "unet": Row("3D U-Net (FGE alone)", UNET),
    "unet_longer": Row("3D U-Net, as long as fine-tuned FGNet takes", UNET, iterations=2050),
    "sam2_only": Row("SAM2 alone, pretrained, frozen (A_s)", replace(SMALL, refined=False)),
    "sam2_only_random": Row("SAM2 alone, random, frozen (A_s)", replace(SMALL, refined=False), "random"),
    "random_frozen": Row("FGNet, random encoder, frozen", SMALL, "random"),
    "pretrained_frozen": Row("FGNet, pretrained encoder, frozen", SMALL),
    "pretrained_frozen_longer": Row("FGNet frozen, trained as long as fine-tuned", SMALL, iterations=1600),
    "fine_tuned": Row("FGNet, pretrained encoder, fine-tuned", SMALL, frozen=False),
    "plain_attention": Row("FGNet frozen, F' = F a", replace(SMALL, attention="plain")),
    "per_channel": Row("FGNet frozen, one map per channel", replace(SMALL, attention="per_channel")),
    "additive": Row("FGNet frozen, F' = F + W_v S a", replace(SMALL, attention="additive")),
    "additive_random": Row("FGNet frozen, F' = F + W_v S a, random", replace(SMALL, attention="additive"), "random"),
}
GUIDED = ("random_frozen", "pretrained_frozen", "fine_tuned", "additive", "additive_random")
for _name in ("unet", "unet_longer", "sam2_only", "pretrained_frozen_longer", *GUIDED):
    for _sections in (5, 20):
        ROWS[f"{_name}_{_sections}"] = replace(
            ROWS[_name], title=f"{ROWS[_name].title}, {_sections} sections", sections=_sections
        )
QUESTIONS = {  # what the rows were made for: the first of each pair is compared with the second
    "a guide at all, without knowledge": ("random_frozen", "unet"),
    "the same, the U-Net with more time": ("random_frozen", "unet_longer"),
    "a guide that knows, at equal iterations": ("pretrained_frozen", "unet"),
    "a guide that knows, at equal time": ("pretrained_frozen_longer", "unet_longer"),
    "what pretraining knows, by A_s alone": ("sam2_only", "sam2_only_random"),
    "pretraining, encoder frozen": ("pretrained_frozen", "random_frozen"),
    "fine-tuning, at equal iterations": ("fine_tuned", "pretrained_frozen"),
    "fine-tuning, at equal time": ("fine_tuned", "pretrained_frozen_longer"),
    "all of it, at equal iterations": ("fine_tuned", "unet"),
    "all of it, at equal time": ("fine_tuned", "unet_longer"),
    "F' = F a instead of F + F a": ("plain_attention", "pretrained_frozen"),
    "a map for each channel instead of one": ("per_channel", "pretrained_frozen"),
    "F + W_v S a: what SAM2 sees is added": ("additive", "pretrained_frozen"),
    "pretraining, in F + W_v S a": ("additive", "additive_random"),
}
# The same comparison with each of SAM2.1's encoders instead of the mini one: "fine_tuned_tiny_5" and so on.
for _size, _name in product(OFFICIAL, GUIDED):
    for _sections in (SECTIONS, 20, 5):
        _row = ROWS[_name if _sections == SECTIONS else f"{_name}_{_sections}"]
        ROWS[f"{_name}_{_size}" + f"_{_sections}" * (_sections != SECTIONS)] = replace(
            _row,
            title=f"SAM2.1 {_size}: {_row.title}",
            config=replace(_row.config, encoder=_size),
            encoder=_row.encoder if _row.encoder == "random" else f"sam2.1_hiera_{_size}.pt",
        )

TITLES = {
    "references": "what came with the data",
    "shipped": "the shipped model",
    **{name: row.title for name, row in ROWS.items()},
}
REFERENCES = {
    "fragments": "fragments that came with the data",
    "ffn_ignored": "published FFN, zeros ignored",
    "ffn_filled": "published FFN, zeros filled by the nearest",
}
SET_TO = ("0.0", "mean", "1.0")  # what `make results` replaces attention maps by


def training(row: Row, seed: int) -> TrainConfig:
    """How a row is trained; the same for all but for what the row is about."""
    return TrainConfig(
        patch=(8, 128, 128),
        iterations=row.iterations,
        learning_rate=2e-3,
        warmup=50,
        ema=0.99,
        freeze_encoder=row.frozen,
        checkpoint_every=100,
        seed=seed,
    )


def checkpoint(row: Row) -> Path | None:
    """The encoder's first weights, None for random ones.

    Raises:
        OSError: they are neither here nor in the cache.
    """
    if row.encoder == "random" or row.config.encoder is None:
        return None
    path = PRETRAINED / "encoder_mini.pt" if row.encoder == "pretrained" else fetch(row.encoder, download=False)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not here: make encoder")
    return path


def untrained(row: Row, seed: int) -> FGNet:
    """The model of a row before its training.

    Raises:
        OSError: its encoder's checkpoint is not here.
    """
    torch.manual_seed(seed)
    return FGNet(row.config, checkpoint(row))


def load(folder: Path = RESULTS) -> dict[str, list[dict]]:
    """Row -> its runs, by seed. Rows are in the order of the table; those that nobody has run are left out."""
    found = defaultdict(list)
    for path in sorted(folder.glob("*-*.json")):
        run = json.loads(path.read_text(encoding="utf-8"))
        found[run["row"]].append(run)
    return {name: found[name] for name in TITLES if name in found}


def pictures(run: dict, folder: Path = RESULTS) -> dict[str, np.ndarray]:
    """What a run keeps for pictures of its main output: `z`, `section`, `errors`, `parts`, `covered`.

    `tools/results.py` says what each is. Empty where the file is not there.
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


class Attention(NamedTuple):
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


def attention(found: dict[str, list[dict]]) -> list[Attention]:
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
            maps.append(Attention(row, level, *signless, std, scores(runs, "voi"), set_to))
    return maps


def either_sign(aucs: Sequence[float]) -> list[float]:
    """AUCs from 0.5, no relation, to 1: which sign a training finds is chance, and signs must not cancel in a mean."""
    return [max(auc, 1 - auc) for auc in aucs]


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


def spread(values: Sequence[float]) -> float | None:
    """Standard deviation of single runs; None for a single run, of which no spread is known."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def summary(values: Sequence[float], digits: int = 3) -> str:
    """Mean and spread in words: "0.950 ± 0.200", or "0.950" for a single run."""
    around = spread(values)
    return f"{np.mean(values):.{digits}f}" + ("" if around is None else f" ± {around:.{digits}f}")


def chance(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """How often runs that are dealt at random into two groups of these sizes differ at least as much in the mean."""
    values, found = np.array([*ours, *theirs]), abs(np.mean(ours) - np.mean(theirs))
    deals = [np.isin(np.arange(len(values)), list(one)) for one in combinations(range(len(values)), len(ours))]
    return float(np.mean([abs(values[deal].mean() - values[~deal].mean()) >= found - 1e-12 for deal in deals]))


def compared(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """What may be said about the difference of the first from the second of two rows' scores.

    The spread that it is compared with is that of single runs, pooled over both rows.
    """
    if not ours or not theirs:
        return "not measured here"
    difference = float(np.mean(ours) - np.mean(theirs))
    said = f"{abs(difference):.3f} {'lower' if difference < 0 else 'higher'}"
    if min(len(ours), len(theirs)) == 1:
        return f"{said}; one seed only, so no spread is known and nothing follows"
    around = float(np.sqrt((spread(ours) ** 2 + spread(theirs) ** 2) / 2))
    verdict = "more" if abs(difference) > around else "not more"
    odds = f"dealt at random, the runs differ at least as much in {chance(ours, theirs):.0%} of all cases"
    return f"{said}, which is {verdict} than the spread of single runs, {around:.3f}; {odds}"


def paired(after: Sequence[float], before: Sequence[float]) -> str:
    """What may be said about a change made to each of the same runs: its mean and spread, and how many rose."""
    if not after:
        return "not measured here"
    change = np.subtract(after, before)
    if len(change) == 1:
        return f"{change[0]:+.3f} in the only run; another training may differ"
    return f"{change.mean():+.3f} ± {spread(change):.3f}, up in {np.sum(change > 0)} of {len(change)} runs"
