"""The rows of lesson 13: what helps a 3D U-Net that learns from 1, 5 or 20 labelled sections, and what the runs say.

Each run takes about the same time of one core, its pretraining on unlabelled sections of FIB-25 included.
`tools/results/few_sections.py` trains and measures what is declared here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Literal

import numpy as np

from fgnet_lib import REPOSITORY
from fgnet_lib.configuration import FGNetConfig
from fgnet_lib.study.rows import NATURAL, SEEDS_OF_FEW, UNET
from fgnet_lib.study.runs import describe_missing, read_runs
from fgnet_lib.study.statistics import difference_cells, permutation_p
from fgnet_lib.training import TrainConfig
from fgnet_lib.volumes import IGNORE, Volume

FEW_SECTIONS = REPOSITORY / "docs" / "measured" / "few_sections"
LABELLED_SECTIONS = (1, 5, 20)  # of FIB-25's training part, from section FIRST on
FIRST = 4  # so that there are grey values on both sides of the first labelled section
CERTAIN = 0.05  # a p value below this is called a difference
PATCH = (8, 64, 64)


@dataclass(frozen=True)
class Start:
    """Where a network begins before it learns from labels.

    Attributes:
        title: The name that readers see.
        iterations: Of training on labels; so many that a run takes as long as that of the other rows.
        task: What is learned from unlabelled sections before: "painting" or "consistency"; None for nothing.
        pretraining: Iterations of that task.
        way: How 2D weights are inflated, "centre" or "average"; None where nothing is inflated.
        config: The network.
        factor: Of the learning rate of the encoder that learned from photographs.
    """

    title: str
    iterations: int
    task: Literal["painting", "consistency"] | None = None
    pretraining: int = 0
    way: Literal["centre", "average"] | None = None
    config: FGNetConfig = UNET
    factor: float = 1.0


PHOTOGRAPHS = replace(NATURAL, refined=False)
STARTS = {
    "unet": Start("3D U-Net from scratch", 360),
    "painted": Start("masked painting in 3D", 250, "painting", 110),
    "consistent": Start("consistency of two views", 250, "consistency", 55),
    "centre": Start("2D painting, inflated at the centre", 250, "painting", 190, "centre"),
    "average": Start("2D painting, inflated by averaging", 250, "painting", 190, "average"),
    "photographs": Start("photographs, inflated at the centre", 290, way="centre", config=PHOTOGRAPHS, factor=0.1),
    "photographs_random": Start("the network of photographs from scratch", 290, config=PHOTOGRAPHS),
}
SCRATCH = "unet"  # what every free lunch has to beat
QUESTIONS_OF_FEW = {  # the first of each pair is compared with the second
    "Does masked painting help?": ("painted", SCRATCH),
    "Does consistency help?": ("consistent", SCRATCH),
    "Does inflation at the centre help?": ("centre", SCRATCH),
    "Does inflation by averaging help?": ("average", SCRATCH),
    "Is the centre better than the average?": ("centre", "average"),
    "Does 2D pretraining beat 3D pretraining?": ("centre", "painted"),
    "Do photographs help their own network?": ("photographs", "photographs_random"),
    "Do photographs beat the U-Net?": ("photographs", SCRATCH),
}


def few_training(start: Start, seed: int) -> TrainConfig:
    """Declare how a row learns from labels: lesson 11's recipe, with smaller patches."""
    return TrainConfig(
        patch=PATCH,
        iterations=start.iterations,
        learning_rate=2e-3,
        warmup=20,
        ema=0.98,
        freeze_encoder=False,
        encoder_lr_factor=start.factor,
        checkpoint_every=10_000,  # only at the end: a run that is stopped is done again
        seed=seed,
    )


def few_pretraining(start: Start, seed: int) -> TrainConfig:
    """Declare how a row learns from unlabelled sections before: the same recipe, without an average of the weights."""
    return replace(few_training(start, seed), iterations=start.pretraining, ema=None)


def label_few(volume: Volume, sections: int) -> Volume:
    """Keep the labels of a few sections of a volume, and the grey values around them, which are free.

    Returns:
        `sections` + 2 `FIRST` sections; labels are `IGNORE` in the first and in the last `FIRST` of them.
    """
    part = volume[: sections + 2 * FIRST, :, :]
    labels = part.labels.astype(np.uint64)
    labels[:FIRST] = labels[FIRST + sections :] = IGNORE
    return replace(part, labels=labels)


FewRun = tuple[str, int, int]  # start, labelled sections, seed


def list_few_runs() -> list[FewRun]:
    """Start, sections and seed of every declared run in the order of training: all rows once, then again."""
    return [(name, n, seed) for seed, n, name in product(SEEDS_OF_FEW, LABELLED_SECTIONS, STARTS)]


def few_row(start: str, sections: int) -> str:
    """Name the row of a start and a number of sections in the table of runs.

    >>> few_row("centre", 5)
    'centre_5'
    """
    return f"{start}_{sections}"


FewRows = dict[tuple[str, int], list[dict]]  # start, sections -> its runs, by seed


def read_few_rows(folder: Path = FEW_SECTIONS) -> FewRows:
    """Read the runs of each start and number of sections; what was not trained is left out."""
    runs = read_runs(folder)
    rows = {key: [run for run in runs if run["row"] == few_row(*key)] for key in product(STARTS, LABELLED_SECTIONS)}
    return {key: of_row for key, of_row in rows.items() if of_row}


def few_scores(rows: FewRows, start: str, sections: int) -> list[float]:
    """VOI (bits) of the runs of a row on FIB-25's validation part, by seed; empty where nothing was measured."""
    return [run["scores"]["voi_split"] + run["scores"]["voi_merge"] for run in rows.get((start, sections), [])]


def few_answer(rows: FewRows, pair: tuple[str, str], sections: int) -> list[str]:
    """Compare two starts: VOI of both with spread, difference, p by permutation; empty where runs are missing."""
    return difference_cells(*(few_scores(rows, name, sections) for name in pair))


def describe_missing_runs(rows: FewRows) -> str:
    """Say how many declared runs are missing, and which command makes them."""
    done = {(*key, run["seed"]) for key, runs in rows.items() for run in runs}
    missing = [run for run in list_few_runs() if run not in done]
    return describe_missing(len(missing), len(list_few_runs()), "run", "python tools/results/few_sections.py")


def judge_free_lunch(rows: FewRows, sections: int) -> str:
    """Say which starts beat the U-Net from scratch, or lose to it, with a number of labelled sections."""
    theirs = few_scores(rows, SCRATCH, sections)
    measured = {name: few_scores(rows, name, sections) for name in STARTS if name != SCRATCH}
    if any(len(values) < len(SEEDS_OF_FEW) for values in (theirs, *measured.values())):
        return "not measured yet: some of the runs are missing"
    certain = {name: values for name, values in measured.items() if permutation_p(values, theirs) < CERTAIN}
    better = [STARTS[name].title for name, values in certain.items() if np.mean(values) < np.mean(theirs)]
    worse = [STARTS[name].title for name, values in certain.items() if np.mean(values) > np.mean(theirs)]
    rest = len(measured) - len(better) - len(worse)
    return f"better than from scratch: {_join(better)}; worse: {_join(worse)}; {rest} cannot be told apart from it"


def _join(titles: Sequence[str]) -> str:
    return ", ".join(titles) or "none"
