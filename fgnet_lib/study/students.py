"""The rows of lesson 10: which student learns by which losses, and what the runs say.

All train on the same crops of FIB-25 for as many iterations, and are judged on its validation part by the same steps.
`tools/results/train_student.py` trains and measures what is declared here.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from statistics import median

import torch
from torch import nn

from fgnet_lib import REPOSITORY
from fgnet_lib.configuration import FGNetConfig
from fgnet_lib.student import StudentConfig
from fgnet_lib.study.rows import SEEDS
from fgnet_lib.study.runs import describe_missing, read_runs
from fgnet_lib.study.statistics import difference_cells
from fgnet_lib.training import TrainConfig

STUDENTS = REPOSITORY / "docs" / "measured" / "student"
SLIM_UNET = FGNetConfig(
    encoder=None, widths=(28, 36, 48, 64, 80), dense_levels=5
)  # as `UNET` of tools/benchmarks/bench.py
WINDOW = (16, 160, 160)  # of `scale.prediction.Network`
ITERATIONS = 600
LABEL, CROSS = {"cross": 0.0}, {}  # the weights of the losses that differ from `LossWeights`
GRAFT, FEATURES = {"graft": 1.0}, {"features": 0.1}


@dataclass(frozen=True)
class Pupil:
    """A student and how it learns: one line of the table.

    Attributes:
        title: The name that readers see.
        config: The network.
        losses: Weights of the losses, as `LossWeights` takes them.
    """

    title: str
    config: StudentConfig = StudentConfig()
    losses: dict[str, float] = field(default_factory=dict)


PUPILS = {
    "label": Pupil("labels alone", losses=LABEL),
    "cross": Pupil("labels and the teacher's affinities", losses=CROSS),
    "graft": Pupil("the same, with feature grafting", losses=GRAFT),
    "features": Pupil("the same, with frozen features", losses=FEATURES),
    "single": Pupil("the same, one section as input", StudentConfig(sections=1)),
    "narrow": Pupil("the same, half the channels", StudentConfig(widths=(8, 16, 24, 32))),
    "wide": Pupil("the same, twice the channels", StudentConfig(widths=(32, 48, 80, 128))),
    "embedding": Pupil("the same, 16 channels in an embedding", StudentConfig(embedding=16)),
}
LOSSES, SIZES = ("label", "cross", "graft", "features"), ("narrow", "cross", "wide")
QUESTIONS = {  # the first of each pair is compared with the second
    "Does the teacher help?": ("cross", "label"),
    "Does feature grafting help?": ("graft", "cross"),
    "Do frozen features help?": ("features", "cross"),
    "Do the neighbouring sections help?": ("cross", "single"),
    "Do more channels help?": ("wide", "cross"),
    "Do longer embeddings help?": ("embedding", "cross"),
}


def student_training(seed: int, iterations: int = ITERATIONS) -> TrainConfig:
    """Declare the recipe of a student; only the number of iterations and the seed differ."""
    return TrainConfig(
        patch=(8, 128, 128),
        batch=2,
        iterations=iterations,
        learning_rate=2e-3,
        warmup=50,
        ema=0.99,
        checkpoint_every=500,
        seed=seed,
    )


@torch.inference_mode()
def section_milliseconds(
    networks: Mapping[str, nn.Module], window: tuple[int, int, int] = WINDOW, rounds: int = 3
) -> dict[str, float]:
    """Measure the time of the processor that networks take for a section of a window of random values.

    Networks take turns, so that the machine's pace is the same for all, and each has one round to warm up.

    Returns:
        Median milliseconds of one section by name; those of several threads are added up.
    """
    raw, seconds = torch.rand((1, 1, *window)), {name: [] for name in networks}
    for _ in range(1 + rounds):
        for name, network in networks.items():
            start = time.process_time()
            network(raw)
            seconds[name].append(time.process_time() - start)
    return {name: 1000 * median(times[1:]) / window[0] for name, times in seconds.items()}


def list_students() -> list[tuple[str, int]]:
    """Row and seed of every declared run, in the order of training."""
    return [(name, seed) for seed, name in product(SEEDS, PUPILS)]


def read_students(folder: Path = STUDENTS) -> dict[str, list[dict]]:
    """Read the runs of each row, by seed; rows without runs are left out."""
    runs = read_runs(folder)
    named = {name: [run for run in runs if run["row"] == name] for name in PUPILS}
    return {name: of_row for name, of_row in named.items() if of_row}


def student_scores(rows: dict[str, list[dict]], name: str) -> list[float]:
    """VOI of the runs of a row on FIB-25's validation part, by seed."""
    return [run["voi_split"] + run["voi_merge"] for run in rows.get(name, [])]


def student_answer(rows: dict[str, list[dict]], pair: tuple[str, str]) -> list[str]:
    """Compare two rows: VOI of both with spread, difference, p by permutation; empty where runs are missing."""
    ours, theirs = (student_scores(rows, name) for name in pair)
    return difference_cells(ours, theirs)


def describe_missing_students(rows: dict[str, list[dict]]) -> str:
    """Say how many declared runs are missing, and which command makes them."""
    done = {(name, run["seed"]) for name, runs in rows.items() for run in runs}
    missing = [run for run in list_students() if run not in done]
    return describe_missing(len(missing), len(list_students()), "run", "python tools/results/train_student.py --rows")
