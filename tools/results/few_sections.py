"""Train and measure every declared row of lesson 13, and add the runs to docs/measured/few_sections.

Everything is declared in `fgnet_lib/study/few_sections.py`. You may stop the command at any time and start it again: a
run that is in the table is not done again unless the shipped encoder has changed. Several terminals share the work,
because a run is locked while it is being done. After each run the page docs/measured/few_sections.md is written anew
from the table.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import fgnet_lib  # noqa: F401  before torch: it tells torch's threads how to wait

# isort: split
import numpy as np
import torch
from commands import describe_run, measure_on_one_core
from results import choose_threshold, open_choosing_part
from which_first import write_which_first

from fgnet_lib import REPOSITORY
from fgnet_lib.augment import Augment
from fgnet_lib.datasets import open_dataset
from fgnet_lib.fgnet import FGNet
from fgnet_lib.files.atomic import write_atomically
from fgnet_lib.inference import predict
from fgnet_lib.metrics import evaluate
from fgnet_lib.natural_encoder import build_natural_encoder
from fgnet_lib.neighbours.few_labels import (
    Reconstruction,
    VolumeEncoder,
    consistency_loss,
    transfer_weights,
    without_depth,
)
from fgnet_lib.patches import PatchDataset
from fgnet_lib.segmentation import segment
from fgnet_lib.study.few_sections import (
    FEW_SECTIONS,
    LABELLED_SECTIONS,
    PATCH,
    QUESTIONS_OF_FEW,
    STARTS,
    FewRows,
    Start,
    describe_missing_runs,
    few_answer,
    few_pretraining,
    few_row,
    few_scores,
    few_training,
    judge_free_lunch,
    label_few,
    list_few_runs,
    read_few_rows,
)
from fgnet_lib.study.pretraining import MaskedSections, painting_loss
from fgnet_lib.study.rows import SHIPPED
from fgnet_lib.study.runs import add_runs, do_missing, name_weights
from fgnet_lib.study.statistics import summary
from fgnet_lib.training import fit, patch_loss
from fgnet_lib.volumes import Volume
from fgnet_lib.weights import PRETRAINED

PAGE = REPOSITORY / "docs" / "measured" / "few_sections.md"
INTRODUCTION = """\
# Few labelled sections

<!-- written by tools/results/few_sections.py from docs/measured/few_sections; edit that tool instead -->

These are the rows of [lesson 13](../../notebooks/13_five_sections.ipynb), declared in
`fgnet_lib/study/few_sections.py`. Iterations were chosen so that every run takes about the same time of one core, its
pretraining included; "core seconds" are what they took, and a row that took longer has that advantage. Each seed has a
pretraining of its own, on FIB-25's unlabelled volume. Labels are those of 1, 5 or 20 neighbouring sections; grey values
around them may be looked at. Judged is the validation part. A single section says nothing about affinities along z, so
all rows take these from the volume turned on its side, which only works for isotropic voxels. The threshold of each run
is chosen on sections 120-139, whose labels a user with five sections would not have. No learning rate was tuned.

{missing}
"""
LUNCH = """\
## Is there a free lunch?

Each row is compared with the U-Net that trains on labels all the time. "Better" and "worse" mean *p* < 0.05 by
permutation.
"""
PAIRS = """\
## Questions

You see VOI of the first and of the second row, their difference (negative: the first is better), and how often chance
alone separates the runs as much (*p*, by permutation).
"""


def inflated_weights(start: Start) -> list[str]:
    """The file of data/pretrained that a row begins with; empty for a row that begins at random."""
    return [SHIPPED["natural"]] if start.config.encoder == "natural" and start.way else []


def build_start(start: Start, seed: int, unlabelled: Sequence[Volume]) -> FGNet:
    """The network of a row before its training on labels, the same for the same seed."""
    torch.manual_seed(seed)
    network = FGNet(start.config)
    if start.config.encoder == "natural":
        network.encoder = VolumeEncoder()
        for file in inflated_weights(start):
            transfer_weights(network.encoder, build_natural_encoder(PRETRAINED / file), start.way)
    if start.task:
        pretrained = without_depth(network) if start.way else FGNet(start.config)
        task = {"painting": painting_loss, "consistency": consistency_loss}[start.task]
        sections = MaskedSections(unlabelled, PATCH, seed)
        with tempfile.TemporaryDirectory() as folder:
            fit(Reconstruction(pretrained), sections, task, few_pretraining(start, seed), folder)
        transfer_weights(network, pretrained, start.way or "centre")
    return network


def train_few(start: Start, sections: int, seed: int) -> tuple[FGNet, dict[str, Any]]:
    """Train a row on its labelled sections; also returns what that took."""
    unlabelled = [open_dataset("fib25", "unlabelled").load()] if start.task else []
    volume = label_few(open_dataset("fib25", "train").load(), sections)
    started = time.process_time()
    model = build_start(start, seed, unlabelled)
    pretrained = time.process_time()
    config = few_training(start, seed)
    with tempfile.TemporaryDirectory() as folder:
        history = fit(model, PatchDataset([volume], config.patch, Augment(), seed), patch_loss, config, folder)
    return model, {
        "pretraining_seconds": round(pretrained - started, 1),
        "core_seconds": round(time.process_time() - started, 1),
        "loss": [round(float(np.mean(history.loss[k : k + 20])), 4) for k in range(0, len(history), 20)],
    }


def predict_turned(model: FGNet, raw: np.ndarray) -> np.ndarray:
    """Affinities (3, z, y, x) of an isotropic volume: those along z are those along y of the volume on its side."""

    def see(volume: np.ndarray) -> np.ndarray:
        prediction = predict(model, volume, progress=False)
        return prediction.coarse if prediction.refined is None else prediction.refined

    upright, on_its_side = see(raw), see(np.ascontiguousarray(raw.transpose(1, 0, 2)))
    return np.stack([on_its_side[1].transpose(1, 0, 2), upright[1], upright[2]])


def measure_few(model: FGNet) -> dict[str, Any]:
    """Choose the threshold on sections that no row is trained on, and score the validation part."""
    part, volume = open_choosing_part(), open_dataset("fib25", "val").load()
    threshold = choose_threshold(predict_turned(model, part.raw), part)
    segmentation = segment(predict_turned(model, volume.raw), volume.voxel_size, threshold, strict=False)
    return {"threshold": threshold, "scores": asdict(evaluate(segmentation, volume.labels))}


def run_few(name: str, sections: int, seed: int) -> None:
    """Do one run and add it to the table."""
    weights = name_weights(*inflated_weights(STARTS[name]))
    model, costs = train_few(STARTS[name], sections, seed)
    costs["parameters"] = sum(parameter.numel() for parameter in model.parameters())
    declared = asdict(STARTS[name]) | {"sections": sections}
    run = describe_run(few_row(name, sections), seed, declared, weights, **costs, **measure_few(model))
    add_runs([run], FEW_SECTIONS)
    write_atomically(PAGE, page())


def train_missing_few(minutes: float, work: Path) -> None:
    """Do every declared run that is neither in the table nor being done by another terminal."""
    runs = {
        (few_row(name, sections), seed): partial(run_few, name, sections, seed)
        for name, sections, seed in list_few_runs()
    }
    do_missing(runs, FEW_SECTIONS, work, minutes)


def _few_scores_table(rows: FewRows) -> list[str]:
    lines = ["| where it begins | core seconds | " + " | ".join(f"{n} labelled" for n in LABELLED_SECTIONS) + " |"]
    lines.append("| --- | ---: |" + " ---: |" * len(LABELLED_SECTIONS))
    for name, start in STARTS.items():
        runs = [run for (key, _), of_row in rows.items() if key == name for run in of_row]
        if not runs:
            continue
        cells = [few_scores(rows, name, n) for n in LABELLED_SECTIONS]
        scores = " | ".join(f"{summary(values)} ({len(values)})" if values else "" for values in cells)
        before, all_in_all = (np.mean([run[key] for run in runs]) for key in ("pretraining_seconds", "core_seconds"))
        lines.append(f"| {start.title} | {all_in_all:.0f}, {before:.0f} of them before labels | {scores} |")
    return lines


def _few_questions(rows: FewRows) -> list[str]:
    lines = ["| question | labelled sections | first | second | difference | p |", "| --- | ---: |" + " ---: |" * 4]
    for question, pair in QUESTIONS_OF_FEW.items():
        for sections in LABELLED_SECTIONS:
            if answer := few_answer(rows, pair, sections):
                lines.append(f"| {question} | {sections} | {' | '.join(answer)} |")
    return lines


def page() -> str:
    """The page of the runs."""
    rows = read_few_rows(FEW_SECTIONS)
    lines = [INTRODUCTION.format(missing=describe_missing_runs(rows)), LUNCH]
    lines += [f"- With {n} labelled: {judge_free_lunch(rows, n)}." for n in LABELLED_SECTIONS]
    if rows:
        lines += ["", "## VOI", "", "Bits, mean ± spread over seeds, in brackets the number of runs.", ""]
        lines += [*_few_scores_table(rows), ""]
        answers = _few_questions(rows)
        lines += [PAIRS, *answers, ""] if len(answers) > 2 else []
    return "\n".join(lines).rstrip("\n") + "\n"


def main() -> None:
    measure_on_one_core(__doc__, "few_sections", train_missing_few)
    write_atomically(PAGE, page())
    write_which_first()


if __name__ == "__main__":
    main()
