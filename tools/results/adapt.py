"""Adapt an encoder to FIB-25 in every declared way, and add the runs to docs/measured/adaptation.

Everything is declared in `fgnet_lib/study/adaptation.py`. You may stop the command at any time and start it again: a
run that is in the table is not done again unless the shipped encoder has changed. Several terminals share the work,
because a run is locked while it is being done. After each run the page docs/measured/adaptation.md is written anew from
the table.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import fgnet_lib  # noqa: F401  before torch: it tells torch's threads how to wait

# isort: split
import torch
from commands import describe_run, measure_on_one_core
from results import choose_threshold, open_choosing_part

from fgnet_lib import REPOSITORY
from fgnet_lib.augment import Augment
from fgnet_lib.datasets import open_dataset
from fgnet_lib.fgnet import FGNet
from fgnet_lib.files.atomic import write_atomically
from fgnet_lib.inference import predict
from fgnet_lib.metrics import evaluate
from fgnet_lib.neighbours.adapters import AdapterConfig, attach_adapters, train_only
from fgnet_lib.patches import PatchDataset
from fgnet_lib.segmentation import segment
from fgnet_lib.study.adaptation import (
    ADAPTATIONS,
    JUDGED_ON,
    METHODS,
    QUESTIONS,
    SECTIONS,
    Adaptations,
    Method,
    adaptation_answer,
    adaptation_scores,
    adaptation_training,
    describe_knee,
    describe_missing_adaptations,
    judge_expectations,
    list_adaptations,
    read_adaptations,
    row_name,
)
from fgnet_lib.study.evaluation import VOLUMES, predict_rescaled
from fgnet_lib.study.rows import SHIPPED
from fgnet_lib.study.runs import add_runs, do_missing, name_weights
from fgnet_lib.study.statistics import summary
from fgnet_lib.training import fit, patch_loss
from fgnet_lib.weights import PRETRAINED

PAGE = REPOSITORY / "docs" / "measured" / "adaptation.md"
INTRODUCTION = """\
# Adapting an encoder with few parameters

<!-- written by tools/results/adapt.py from docs/measured/adaptation; edit that tool instead -->

These are the rows of [lesson 11](../../notebooks/11_adapt_without_retraining.ipynb), declared in
`fgnet_lib/study/adaptation.py`. Every method begins with the same encoder and a new decoder, trains on the first
sections of FIB-25's training part for the same time of one core, and is judged by the coarse affinities A_s. The
threshold of each run is chosen on sections 120-139. No learning rate was tuned for any method. gala and AC4 are tissues
that no row was trained on.

{missing}
"""
PAIRS = """\
## Questions

You see VOI of the first and of the second method, their difference (negative: the first is better), and how often
chance alone separates the runs as much (*p*, by permutation; with three runs of each it is at least 0.10).
"""
KNEE = """\
## Where is the knee?

For each volume and number of sections you see the method of lesson 11's figure that trains the fewest parameters and is
as good as the best one. *As good* means that the means differ by no more than the spread of single runs.
"""


def first_weights(method: Method) -> str:
    """The file of data/pretrained that a method's encoder begins with."""
    return SHIPPED["natural" if method.config.encoder == "natural" else "pretrained"]


def build_adapted(method: Method, seed: int) -> FGNet:
    """The model of a method before its training, the same for the same seed."""
    torch.manual_seed(seed)
    model = FGNet(method.config, PRETRAINED / first_weights(method))
    if method.regime == "adapters":
        attach_adapters(model.encoder, AdapterConfig(method.rank, method.gate, method.spectrum))
    train_only(model, method.regime)
    return model


def count_trained(model: FGNet) -> dict[str, int]:
    """How many parameters training may change, in the encoder and in the rest."""
    trained = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    encoder = sum(count for name, count in trained.items() if name.startswith("encoder."))
    return {"encoder": encoder, "decoder": sum(trained.values()) - encoder}


def train_adapted(name: str, sections: int, seed: int) -> tuple[FGNet, dict[str, Any]]:
    """Train a method on the first sections of FIB-25; also returns what that took."""
    method = METHODS[name]
    model, config = build_adapted(method, seed), adaptation_training(method, seed)
    volume = open_dataset("fib25", "train").load()[:sections, :, :]
    dataset = PatchDataset([volume], config.patch, Augment(), config.seed)
    started = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        history = fit(model, dataset, patch_loss, config, folder)
    return model, {
        "trained": count_trained(model),
        "core_seconds": round(time.process_time() - started, 1),
        "loss": [round(sum(history.loss[k : k + 20]) / 20, 4) for k in range(0, len(history), 20)],
    }


def measure_adapted(model: FGNet) -> dict[str, Any]:
    """Choose the threshold of A_s on sections that no row is trained on, and score every volume that is here."""
    part = open_choosing_part()
    threshold = choose_threshold(predict(model, part.raw, progress=False).coarse, part)
    scores = {}
    for name in JUDGED_ON:
        try:
            volume = open_dataset(name, "val").load()
        except OSError as error:
            print(f"not judged on {name}: {error}")
            continue
        affinities = predict_rescaled(model, volume, VOLUMES[name]).coarse
        segmentation = segment(affinities, volume.voxel_size, threshold, strict=False)
        scores[name] = asdict(evaluate(segmentation, volume.labels))
    return {"threshold": threshold, "volumes": scores}


def run_adaptation(name: str, sections: int, seed: int) -> None:
    """Do one run and add it to the table."""
    weights = name_weights(first_weights(METHODS[name]))
    model, costs = train_adapted(name, sections, seed)
    declared = asdict(METHODS[name]) | {"sections": sections}
    run = describe_run(row_name(name, sections), seed, declared, weights, **costs, **measure_adapted(model))
    add_runs([run], ADAPTATIONS)
    write_atomically(PAGE, page())


def train_missing(minutes: float, work: Path) -> None:
    """Do every declared run that is neither in the table nor being done by another terminal."""
    runs = {
        (row_name(name, sections), seed): partial(run_adaptation, name, sections, seed)
        for name, sections, seed in list_adaptations()
    }
    do_missing(runs, ADAPTATIONS, work, minutes)


def _scores_table(rows: Adaptations, volume: str) -> list[str]:
    lines = ["| method | trained in the encoder | " + " | ".join(f"{n} sections" for n in SECTIONS) + " |"]
    lines.append("| --- | ---: |" + " ---: |" * len(SECTIONS))
    for name, method in METHODS.items():
        of_method = [runs for (key, _), runs in rows.items() if key == name]
        if not of_method:
            continue
        cells = [adaptation_scores(rows, name, n, volume) for n in SECTIONS]
        written = [f"{summary(values)} ({len(values)})" if values else "" for values in cells]
        lines.append(f"| {method.title} | {of_method[0][0]['trained']['encoder']:,} | {' | '.join(written)} |")
    return lines


def _questions_table(rows: Adaptations) -> list[str]:
    lines = [
        "| question | volume | sections | first | second | difference | p |",
        "| --- | --- | ---: |" + " ---: |" * 4,
    ]
    for question, pair in QUESTIONS.items():
        for volume, title in JUDGED_ON.items():
            for sections in SECTIONS:
                if answer := adaptation_answer(rows, pair, sections, volume):
                    lines.append(f"| {question} | {title} | {sections} | {' | '.join(answer)} |")
    return lines


def _knee_lines(rows: Adaptations) -> list[str]:
    return [
        f"- {title}, {sections} sections: {knee}."
        for volume, title in JUDGED_ON.items()
        for sections in SECTIONS
        if (knee := describe_knee(rows, sections, volume))
    ]


def _times_line(rows: Adaptations) -> str:
    seconds = {
        name: [run["core_seconds"] for (key, _), runs in rows.items() if key == name for run in runs]
        for name in METHODS
    }
    spans = [f"{METHODS[name].title} {sum(values) / len(values):.0f}" for name, values in seconds.items() if values]
    return f"Mean seconds of one core in training: {'; '.join(spans)}."


def page() -> str:
    """The page of the runs."""
    rows = read_adaptations(ADAPTATIONS)
    lines = [INTRODUCTION.format(missing=describe_missing_adaptations(rows))]
    if rows:
        lines += [_times_line(rows), ""]
        for volume, title in JUDGED_ON.items():
            lines += [f"## VOI on {title}", "", "Bits, mean ± spread over seeds, in brackets the number of runs.", ""]
            lines += [*_scores_table(rows, volume), ""]
        knees = _knee_lines(rows)
        lines += [KNEE, *knees, ""] if knees else []
        lines += ["## What was expected, and whether it came", ""]
        lines += [*(f"- {line}." for line in judge_expectations(rows)), ""]
        answers = _questions_table(rows)
        lines += [PAIRS, *answers, ""] if len(answers) > 2 else []
    return "\n".join(lines)


def main() -> None:
    measure_on_one_core(__doc__, "adapt", train_missing)
    write_atomically(PAGE, page())


if __name__ == "__main__":
    main()
