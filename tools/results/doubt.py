"""Train and measure every declared row of lesson 15, and add the runs to docs/measured/doubt.

Everything is declared in `fgnet_lib/study/doubt.py`. You may stop the command at any time and start it again: a run
that is in the table is not done again unless the shipped model has changed. Several terminals share the work, because a
run is locked while it is being done. After each run the page docs/measured/doubt.md is written anew from the table.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import fgnet_lib  # noqa: F401  before torch: it tells torch's threads how to wait

# isort: split
import numpy as np
import torch
import torch.nn.functional as F
from commands import describe_run, measure_on_one_core
from torch import Tensor

from fgnet_lib import REPOSITORY
from fgnet_lib.affinities import affinities_from_labels, affinity_mask, widen_borders
from fgnet_lib.datasets import open_dataset
from fgnet_lib.fgnet import FGNet
from fgnet_lib.files.atomic import write_atomically
from fgnet_lib.neighbours.calibration import (
    calibration_error,
    errors_found,
    fit_temperature,
    risk_coverage,
    set_temperature,
)
from fgnet_lib.neighbours.continuous import (
    ContinuousDecoder,
    decode,
    frozen_features,
    grid_points,
    halve_sections,
    label_sections,
    mark_boundaries,
    score_doubt,
    train_decoder,
)
from fgnet_lib.study.doubt import (
    BUDGET,
    CALIBRATED,
    CALIBRATION,
    DECODERS,
    DEPTH,
    DOUBT,
    EPOCHS,
    JUDGED_FROM,
    PASSES,
    QUESTIONS_OF_DOUBT,
    SCORES,
    SHARES,
    SIDE,
    STEPS,
    DecoderRow,
    DoubtRows,
    calibration_rows,
    describe_missing_doubt,
    doubt_answer,
    found_shares,
    judge_between,
    judge_calibration,
    judge_doubt,
    judge_second_look,
    list_doubt_runs,
    read_doubt,
    wrong_percent,
)
from fgnet_lib.study.evaluation import VOLUMES, predict_rescaled
from fgnet_lib.study.runs import MODEL, add_runs, do_missing, name_weights
from fgnet_lib.study.statistics import summary
from fgnet_lib.volumes import Region, Volume, is_anisotropic
from fgnet_lib.weights import load_pretrained

PAGE = REPOSITORY / "docs" / "measured" / "doubt.md"
WINDOWS = 4  # of training, drawn anew for each seed
TEMPERATURE_SECTIONS = 16  # of the training part that choose a temperature, other ones for each seed
INTRODUCTION = """\
# Between the voxels: doubt, calibration, resolution

<!-- written by tools/results/doubt.py from docs/measured/doubt; edit that tool instead -->

These are the rows of [lesson 15](../../notebooks/15_between_the_voxels.ipynb), declared in `fgnet_lib/study/doubt.py`.
Small decoders read frozen features of the shipped model and say where a boundary between neurons is. They learn from
four windows of 8 sections of FIB-25's training part, other ones for each seed, and are judged on 24 sections of its
validation part. A voxel is wrong where the decoder and the ground truth disagree; one that is wrong at the rim of a
boundary costs no neuron. The MLPs are much smaller than I-MedSAM's, and nothing was tuned.

{missing}
"""
VERDICTS = """\
## What the rows say

"Fewer" and "more" mean *p* < 0.05 by permutation, over five seeds.
"""


def cut_window(volume: Volume, corner: tuple[int, int, int], half: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cut raw, boundary and known voxels of a window; at half resolution it takes twice as many voxels in y and x."""
    side = SIDE * (1 + half)
    window = volume[Region.at(corner, (DEPTH, side, side))]
    boundary, known = mark_boundaries(window)
    if not half:
        return window.raw, boundary, known
    raw = halve_sections(window.raw).round().astype(np.uint8)
    return raw, halve_sections(boundary) >= 0.5, halve_sections(known) == 1


def train_row_decoder(row: DecoderRow, model: FGNet, seed: int) -> tuple[ContinuousDecoder, list[float]]:
    """Train the decoder of a row; also returns the loss of each epoch."""
    volume, rng = open_dataset("fib25", "train").load(), np.random.default_rng(seed)
    size = (DEPTH, *[SIDE * (1 + row.half)] * 2)
    sections = []
    for _ in range(WINDOWS):
        corner = tuple(int(rng.integers(n - m + 1)) for n, m in zip(volume.shape, size, strict=True))
        raw, boundary, known = cut_window(volume, corner, row.half)
        sections += label_sections(frozen_features(model, raw), boundary, known)
    torch.manual_seed(seed)
    decoder = ContinuousDecoder(sections[0].features.shape[0], row.frequencies, row.choice)
    return decoder, train_decoder(decoder, sections, EPOCHS, STEPS, seed)


def list_corners(volume: Volume) -> list[tuple[int, int, int]]:
    """First voxels of the windows, of the full resolution, that are judged."""
    starts = [range(0, n - SIDE + 1, SIDE) for n in volume.shape[1:]]
    return [(z, y, x) for z in JUDGED_FROM for y in starts[0] for x in starts[1]]


@torch.no_grad()
def judge_full(decoder: ContinuousDecoder, model: FGNet, seed: int) -> dict[str, Any]:
    """Measure a decoder on its own grid: wrong voxels, errors seen by each score, and risk."""
    volume = open_dataset("fib25", "val").load()
    parts: dict[str, list[Tensor]] = {"coarse": [], "fine": [], "variance": [], "truth": []}
    points = grid_points((SIDE, SIDE))
    torch.manual_seed(seed)
    for corner in list_corners(volume):
        raw, boundary, known = cut_window(volume, corner, half=False)
        for section, truth, seen in zip(frozen_features(model, raw).unbind(1), boundary, known, strict=True):
            decoding, kept = decode(decoder, section, points, PASSES), torch.from_numpy(seen.ravel())
            for name in ("coarse", "fine", "variance"):
                parts[name].append(getattr(decoding, name)[kept])
            parts["truth"].append(torch.from_numpy(truth.ravel())[kept])
    coarse, fine, variance, truth = (torch.cat(parts[name]) for name in parts)
    wrong = {name: ((p >= 0.5) != truth).numpy() for name, p in (("coarse", coarse), ("fine", fine))}
    scores = {kind: score_doubt(kind, fine, variance[None]) for kind in SCORES if kind != "variance"}
    scores |= {"variance": variance, "oracle": torch.from_numpy(wrong["fine"].astype(np.float32))}
    seen_shares = {name: errors_found(score.numpy(), wrong["fine"], SHARES).round(5) for name, score in scores.items()}
    last = len(truth) - int(len(truth) * BUDGET) - 1  # of the voxels that are kept
    return {
        "wrong": {name: float(mask.mean()) for name, mask in wrong.items()},
        "seen": {name: values.tolist() for name, values in seen_shares.items()},
        "risk": {name: float(risk_coverage(s.numpy(), wrong["fine"])[1][last]) for name, s in scores.items()},
    }


@torch.no_grad()
def judge_half(decoder: ContinuousDecoder, model: FGNet, seed: int) -> dict[str, Any]:
    """Measure a decoder of half resolution at the full one: asked there, and its own answers interpolated."""
    volume = open_dataset("fib25", "val").load()
    torch.manual_seed(seed)
    wrong: dict[str, list[float]] = {"asked": [], "linear": [], "nearest": []}
    for z in JUDGED_FROM:
        raw, _, _ = cut_window(volume, (z, 0, 0), half=True)
        boundary, known = mark_boundaries(volume[z : z + DEPTH, : 2 * SIDE, : 2 * SIDE])
        for section, truth, seen in zip(frozen_features(model, raw).unbind(1), boundary, known, strict=True):
            own = decode(decoder, section, grid_points((SIDE, SIDE)), PASSES).fine.reshape(1, 1, SIDE, SIDE)
            answers = {
                "asked": decode(decoder, section, grid_points((SIDE, SIDE), 2), PASSES).fine,
                "linear": F.interpolate(own, scale_factor=2, mode="bilinear", align_corners=False),
                "nearest": F.interpolate(own, scale_factor=2, mode="nearest"),
            }
            for name, answer in answers.items():
                marked = answer.reshape(2 * SIDE, 2 * SIDE).numpy() >= 0.5
                wrong[name].append(float((marked != truth)[seen].mean()))
    return {"wrong": {name: float(np.mean(shares)) for name, shares in wrong.items()}}


def read_affinities(model: FGNet, volume: Volume, rescale: bool) -> tuple[np.ndarray, np.ndarray]:
    """Refined affinities and truth of all pairs of voxels that are known, as flat arrays."""
    borders = widen_borders(volume.labels.astype(np.uint64), in_3d=not is_anisotropic(volume.voxel_size))
    mask = affinity_mask(volume.labels)
    refined = predict_rescaled(model, volume, rescale, engine="torch").refined
    return refined[mask], affinities_from_labels(borders)[mask] > 0


def measure_calibration(model: FGNet, seed: int) -> dict[str, Any]:
    """Choose a temperature on some training sections, and measure ECE before and after it on every volume at hand."""
    first = seed * 31  # 0, 31, ... 124: parts that do not overlap
    chosen = open_dataset("fib25", "train")[first : first + TEMPERATURE_SECTIONS, :, :].load()
    temperature = fit_temperature(*read_affinities(model, chosen, False))
    results: dict[str, dict[str, float]] = {}
    for name in CALIBRATED:
        try:
            volume = open_dataset(name, "val").load()
        except OSError as error:
            print(f"not judged on {name}: {error}")
            continue
        affinities, truth = read_affinities(model, volume, VOLUMES[name])
        after = set_temperature(affinities, temperature)
        results[name] = {"before": calibration_error(affinities, truth), "after": calibration_error(after, truth)}
    return {"temperature": temperature, "volumes": results}


def run_doubt(name: str, seed: int) -> None:
    """Do one run and add it to the table."""
    weights, started, model = name_weights(MODEL), time.process_time(), load_pretrained().eval()
    if name == CALIBRATION:
        declared, results = {"sections": TEMPERATURE_SECTIONS}, measure_calibration(model, seed)
    else:
        row = DECODERS[name]
        declared = asdict(row)
        decoder, losses = train_row_decoder(row, model, seed)
        results = (judge_half if row.half else judge_full)(decoder, model, seed)
        results["loss"] = [round(loss, 4) for loss in losses]
    seconds = round(time.process_time() - started, 1)
    add_runs([describe_run(name, seed, declared, weights, core_seconds=seconds, **results)], DOUBT)
    write_atomically(PAGE, page())


def measure_missing_doubt(minutes: float, work: Path) -> None:
    """Do every declared run that is neither in the table nor being done by another terminal."""
    runs = {(name, seed): partial(run_doubt, name, seed) for name, seed in list_doubt_runs()}
    do_missing(runs, DOUBT, work, minutes)


def _table(heads: list[str], lines: list[list[str]]) -> list[str]:
    rule = "| --- |" + " ---: |" * (len(heads) - 1)
    return [f"| {' | '.join(heads)} |", rule, *(f"| {' | '.join(line)} |" for line in lines), ""]


def _errors_seen(rows: DoubtRows) -> list[str]:
    risks = {name: np.mean([run["risk"][name] for run in rows["variance"]]) for name in ("oracle", *SCORES)}
    lines = [[name, *(f"{x:.1%}" for x in found_shares(rows, name).mean(0)), f"{r:.2%}"] for name, r in risks.items()]
    heads = ["score", *(f"{100 * share:g} % inspected" for share in SHARES), "risk"]
    text = (
        "Mean over seeds of the share of wrong voxels seen, for the decoder whose second look goes by variance. The "
        f"risk is the error rate of what is kept when the {100 * BUDGET:g} % most doubtful voxels are left out."
    )
    return ["## Errors per voxel inspected", "", text, "", *_table(heads, lines)]


def _wrong_voxels(rows: DoubtRows) -> list[str]:
    keys = ("coarse", "fine", "asked", "linear", "nearest")
    lines = []
    for name, row in DECODERS.items():
        cells = [summary(values) if (values := _percent(rows, name, key)) else "" for key in keys]
        seconds = [run["core_seconds"] for run in rows.get(name, [])]
        if seconds:
            lines.append([row.title, f"{len(seconds)}", f"{np.mean(seconds):.0f}", *cells])
    heads = ["decoder", "runs", "core seconds", "first look", "second look", "asked at 2x", "linear", "nearest"]
    return [
        "## Wrong voxels",
        "",
        "Percent of the validation voxels, mean ± spread over seeds.",
        "",
        *_table(heads, lines),
    ]


def _percent(rows: DoubtRows, name: str, key: str) -> list[float]:
    has = all(key in run["wrong"] for run in rows.get(name, []))
    return wrong_percent(rows, (name, key)) if has else []


def page() -> str:
    """The page of the runs."""
    rows = read_doubt(DOUBT)
    judges = (judge_doubt, judge_second_look, judge_between, judge_calibration)
    lines = [INTRODUCTION.format(missing=describe_missing_doubt(rows)), VERDICTS]
    lines += [*(f"- {judge(rows)}" for judge in judges), ""]
    if rows.get("variance"):
        lines += _errors_seen(rows)
    if rows.keys() & DECODERS.keys():
        lines += _wrong_voxels(rows)
    answers = [[question, *cells] for question in QUESTIONS_OF_DOUBT if (cells := doubt_answer(rows, question))]
    if answers:
        lines += ["## Questions", "", "Percent of wrong voxels; a negative difference is what we expected.", ""]
        lines += _table(["question", "expected better", "its rival", "difference", "p"], answers)
    if table := calibration_rows(rows):
        text = "Refined affinities of the shipped model; spread over the training sections that choose the temperature."
        lines += ["## Calibration", "", text, ""]
        lines += _table(["volume", "ECE before", "after", "temperature"], table)
    return "\n".join(lines).rstrip("\n") + "\n"


def main() -> None:
    measure_on_one_core(__doc__, "doubt", measure_missing_doubt)
    write_atomically(PAGE, page())


if __name__ == "__main__":
    main()
