"""The rows of lesson 17: sections with 16 times fewer pixels, enlarged in several ways, and what the runs say.

Every network learns from FIB-25's unlabelled sections, which are reduced 4 times in y and x, for about the same time of
one core; a codebook is part of that time. `tools/results/super_resolve.py` trains and measures what is declared here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fgnet_lib import REPOSITORY
from fgnet_lib.study.runs import describe_missing, read_runs
from fgnet_lib.study.statistics import difference_cells, swapped_pairs
from fgnet_lib.training import TrainConfig

SUPER_RESOLUTION = REPOSITORY / "docs" / "measured" / "super_resolution"
ENLARGED_VOLUMES = {"fib25": "FIB-25", "gala": "gala"}  # validation parts; both have voxels of 10 nm
ENLARGING_SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Enlarging:
    """A way from low sections to sections at full size.

    Attributes:
        title: The name that readers see.
        sections: That a network looks at, 1 or 3; 0 for no network.
        iterations: Of that network; so many that a run takes as long as that of the other rows.
        autoencoder: Iterations of the autoencoder with its codebook; 0 for no codebook.
        indexer: Iterations of the indexer.
    """

    title: str
    sections: int = 0
    iterations: int = 0
    autoencoder: int = 0
    indexer: int = 0


ENLARGINGS = {
    "truth": Enlarging("true sections"),
    "bicubic": Enlarging("bicubic"),
    "codes": Enlarging("codes alone", 0, 0, 300, 390),
    "plain": Enlarging("small CNN", 1, 240),
    "plain_3": Enlarging("small CNN, 3 sections", 3, 168),
    "codebook": Enlarging("codebook, 1 section", 1, 98, 170, 140),
    "codebook_3": Enlarging("codebook, 3 sections", 3, 71, 170, 140),
}
MEASURES = {  # key -> name for readers, and what the best row has
    "psnr": ("PSNR (dB)", "highest PSNR"),
    "invented": ("invented membranes (%)", "fewest invented membranes"),
    "lost": ("lost membranes (%)", "fewest lost membranes"),
    "voi": ("VOI (bits)", "lowest VOI"),
}
PAIRS_OF_ENLARGINGS = {  # the first of each pair is compared with the second
    "Does a small CNN beat bicubic?": ("plain", "bicubic"),
    "Do codes alone beat bicubic?": ("codes", "bicubic"),
    "Does a codebook help?": ("codebook", "plain"),
    "Does a codebook help with three sections?": ("codebook_3", "plain_3"),
    "Do three sections help?": ("plain_3", "plain"),
    "Do three sections help beside a codebook?": ("codebook_3", "codebook"),
}


def enlarging_training(iterations: int, patch: tuple[int, int, int], seed: int) -> TrainConfig:
    """Declare how a network of lesson 17 learns: two patches (z, y, x) of full-size voxels an iteration."""
    return TrainConfig(
        patch=patch,
        batch=2,
        iterations=iterations,
        learning_rate=2e-3,
        warmup=10,
        checkpoint_every=10_000,  # only at the end: a run that is stopped is done again
        seed=seed,
    )


def list_enlargings() -> list[tuple[str, int]]:
    """Name and seed of every declared run in the order of measuring; what learns nothing has seed 0 alone.

    >>> len(list_enlargings()), list_enlargings()[:2]
    (17, [('truth', 0), ('bicubic', 0)])
    """
    return [
        (name, seed)
        for seed in ENLARGING_SEEDS
        for name, way in ENLARGINGS.items()
        if seed == 0 or way.iterations or way.autoencoder
    ]


EnlargedRows = dict[str, list[dict]]  # name -> its runs, by seed


def read_enlarged(folder: Path = SUPER_RESOLUTION) -> EnlargedRows:
    """Read the runs of each row; what was not measured is left out."""
    runs = read_runs(folder)
    rows = {name: [run for run in runs if run["row"] == name] for name in ENLARGINGS}
    return {name: of_row for name, of_row in rows.items() if of_row}


def enlarged_scores(rows: EnlargedRows, name: str, volume: str, measure: str) -> list[float]:
    """A measure of `MEASURES` of each run of a row by seed; empty where nothing was measured.

    PSNR of the true sections is infinite, so it is left out.
    """
    scores = [run["volumes"][volume] for run in rows.get(name, [])]
    return [score[measure] for score in scores if measure in score]


def enlarged_panels(rows: EnlargedRows, volume: str) -> dict[str, dict[str, list[float]]]:
    """Arrange a volume's scores for figures: name of a measure -> title of a row -> its runs."""
    return {
        title: {way.title: enlarged_scores(rows, name, volume, measure) for name, way in ENLARGINGS.items()}
        for measure, (title, _) in MEASURES.items()
    }


def summarise_enlarged(rows: EnlargedRows, volume: str) -> str:
    """Say in a line what enlarged sections of a volume cost in VOI, by the rows that are measured; for a title."""
    vois = {
        name: float(np.mean(values)) for name in ENLARGINGS if (values := enlarged_scores(rows, name, volume, "voi"))
    }
    networks = {name: voi for name, voi in vois.items() if name not in ("truth", "bicubic")}
    parts = [f"{ENLARGINGS[name].title} {vois[name]:.2f}" for name in ("truth", "bicubic") if name in vois]
    if networks:
        best = min(networks, key=networks.__getitem__)
        parts.append(f"best network {networks[best]:.2f} ({ENLARGINGS[best].title})")
    title = ENLARGED_VOLUMES[volume]
    return f"VOI on {title}: {', '.join(parts)}" if parts else f"{title}: no run is measured yet"


def enlarged_answer(rows: EnlargedRows, pair: tuple[str, str], volume: str, measure: str = "voi") -> list[str]:
    """Compare two rows: a measure of both with spread, difference, p by permutation; empty where runs are missing."""
    return difference_cells(*(enlarged_scores(rows, name, volume, measure) for name in pair))


def describe_missing_enlargings(rows: EnlargedRows) -> str:
    """Say how many declared runs are missing, and which command makes them."""
    done = {(name, run["seed"]) for name, runs in rows.items() for run in runs}
    missing = [run for run in list_enlargings() if run not in done]
    return describe_missing(len(missing), len(list_enlargings()), "run", "python tools/results/super_resolve.py")


def judge_enlargings(rows: EnlargedRows, volume: str) -> list[str]:
    """Say which row wins by each measure on a volume, and which pairs PSNR and VOI rank differently in all runs.

    Returns:
        Sentences; a single one where a run is missing.
    """
    if set(list_enlargings()) - {(name, run["seed"]) for name, runs in rows.items() for run in runs}:
        return ["not measured yet: some of the runs are missing"]
    compared = [name for name in ENLARGINGS if name != "truth"]
    scores = {m: {name: enlarged_scores(rows, name, volume, m) for name in compared} for m in MEASURES}
    sentences = []
    for measure, (_, praise) in MEASURES.items():
        means = {name: np.mean(runs) for name, runs in scores[measure].items()}
        winner = (max if measure == "psnr" else min)(means, key=means.__getitem__)
        sentences.append(f"{praise}: {ENLARGINGS[winner].title} ({means[winner]:.2f})")
    pairs = swapped_pairs(scores["psnr"], scores["voi"])
    listed = ", ".join(f"{ENLARGINGS[a].title} / {ENLARGINGS[b].title}" for a, b in pairs)
    count = f"PSNR and VOI disagree in all runs on {len(pairs)} of {math.comb(len(compared), 2)} pairs"
    return [*sentences, f"{count}: {listed}" if pairs else count]
