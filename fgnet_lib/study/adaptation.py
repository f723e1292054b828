"""The rows of lesson 11: how an encoder is adapted to FIB-25, with how many labelled sections, and what the runs say.

All begin with the same encoder, train for the same time of one core, and are judged by A_s, which depends on the
encoder more than A_r does. `tools/results/adapt.py` trains and measures what is declared here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from statistics import mean

from fgnet_lib import REPOSITORY
from fgnet_lib.configuration import FGNetConfig
from fgnet_lib.study.rows import NATURAL, SEEDS, SMALL
from fgnet_lib.study.runs import describe_missing, read_runs
from fgnet_lib.study.statistics import difference_cells, judge_expectation, pooled_spread, summary
from fgnet_lib.training import TrainConfig

ADAPTATIONS = REPOSITORY / "docs" / "measured" / "adaptation"
SECTIONS = (5, 20, 120)  # of FIB-25's training part, from the first on
JUDGED_ON = {"fib25": "FIB-25", "gala": "gala", "ac4": "AC4"}  # the tissue that it trains on, and two that are new


@dataclass(frozen=True)
class Method:
    """A way to adapt the encoder.

    Attributes:
        title: The name that readers see.
        regime: What learns beside the decoder: "frozen", "norms", "adapters" or "full".
        iterations: So many that the training takes as long as that of the other methods.
        rank: Of low-rank updates; 0 for none.
        gate: Whether a gate scales them.
        spectrum: What a frequency adapter sees, "raw" or "log1p"; None for none.
        factor: Of the encoder's learning rate, the decoder's being 1.
        config: The model.
    """

    title: str
    regime: str
    iterations: int
    rank: int = 0
    gate: bool = False
    spectrum: str | None = None
    factor: float = 1.0
    config: FGNetConfig = replace(SMALL, refined=False)


PHOTOGRAPHS = replace(NATURAL, refined=False)
METHODS = {  # those of the figure first
    "frozen": Method("frozen", "frozen", 400),
    "norms": Method("norm layers only", "norms", 285),
    "rank_2": Method("LoRA, r = 2", "adapters", 260, rank=2),
    "rank_4": Method("LoRA, r = 4", "adapters", 260, rank=4),
    "rank_8": Method("LoRA, r = 8", "adapters", 260, rank=8),
    "log1p": Method("LoRA, r = 4, with spectrum (log1p)", "adapters", 255, rank=4, spectrum="log1p"),
    "full": Method("fully fine-tuned", "full", 270, factor=0.1),
    "raw": Method("LoRA, r = 4, with spectrum (raw)", "adapters", 265, rank=4, spectrum="raw"),
    "gate": Method("LoRA, r = 4, a gate for each image", "adapters", 240, rank=4, gate=True),
    "natural_frozen": Method("photographs: frozen", "frozen", 355, config=PHOTOGRAPHS),
    "natural_rank_4": Method("photographs: LoRA, r = 4", "adapters", 185, rank=4, config=PHOTOGRAPHS),
    "natural_full": Method("photographs: fully fine-tuned", "full", 150, factor=0.1, config=PHOTOGRAPHS),
}
SHOWN = tuple(METHODS)[:7]
QUESTIONS = {  # the first of each pair is compared with the second
    "Does low-rank adaptation help?": ("rank_4", "frozen"),
    "Do the norm layers alone help?": ("norms", "frozen"),
    "Does full fine-tuning help?": ("full", "frozen"),
    "Does full fine-tuning beat LoRA?": ("full", "rank_4"),
    "Does a higher rank help?": ("rank_8", "rank_2"),
    "Does the frequency adapter help?": ("log1p", "rank_4"),
    "Does the logarithm help it?": ("log1p", "raw"),
    "Does the gate help?": ("gate", "rank_4"),
    "Photographs: does low-rank adaptation help?": ("natural_rank_4", "natural_frozen"),
    "Photographs: does full fine-tuning beat LoRA?": ("natural_full", "natural_rank_4"),
}
EXPECTATIONS = {  # method that was expected to have the lower VOI, the other method, sections, volume
    "Full fine-tuning gains over a frozen encoder, with 120 sections": ("full", "frozen", 120, "fib25"),
    "LoRA gains over a frozen encoder, with 120 sections": ("rank_4", "frozen", 120, "fib25"),
    "With 5 sections full fine-tuning overfits, and LoRA is better": ("rank_4", "full", 5, "fib25"),
    "With 120 sections rank 8 is better than rank 2": ("rank_8", "rank_2", 120, "fib25"),
    "With 5 sections the frequency adapter helps": ("log1p", "rank_4", 5, "fib25"),
    "With 5 sections the frequency adapter needs the logarithm": ("log1p", "raw", 5, "fib25"),
    "With 5 sections a gate for each image helps": ("gate", "rank_4", 5, "fib25"),
    "On AC4, which is new to both, LoRA has lost less than full fine-tuning": ("rank_4", "full", 5, "ac4"),
}


def adaptation_training(method: Method, seed: int) -> TrainConfig:
    """Declare the recipe of a method: lesson 07's with a shorter warm-up and average, since its runs are shorter."""
    return TrainConfig(
        patch=(8, 128, 128),
        iterations=method.iterations,
        learning_rate=2e-3,
        warmup=20,
        ema=0.98,
        encoder_lr_factor=method.factor,
        checkpoint_every=10_000,  # only at the end: a run takes a minute or two, and is done again if it is stopped
        seed=seed,
    )


def list_adaptations() -> list[tuple[str, int, int]]:
    """Method, sections and seed of every declared run in the order of training: five sections first."""
    groups = (SHOWN, tuple(METHODS)[len(SHOWN) :])
    return [run for names in groups for sections in SECTIONS for run in _runs(names, sections)]


def _runs(names: tuple[str, ...], sections: int) -> list[tuple[str, int, int]]:
    return [(name, sections, seed) for seed, name in product(SEEDS, names)]


def row_name(method: str, sections: int) -> str:
    """Name the row of a method and a number of sections in the table of runs.

    >>> row_name("rank_4", 5)
    'rank_4_5'
    """
    return f"{method}_{sections}"


Adaptations = dict[tuple[str, int], list[dict]]  # method, sections -> its runs, by seed


def read_adaptations(folder: Path = ADAPTATIONS) -> Adaptations:
    """Read the runs of each method and number of sections; what was not trained is left out."""
    runs = read_runs(folder)
    named = {key: [run for run in runs if run["row"] == row_name(*key)] for key in product(METHODS, SECTIONS)}
    return {key: of_row for key, of_row in named.items() if of_row}


def adaptation_scores(rows: Adaptations, method: str, sections: int, volume: str, key: str = "voi") -> list[float]:
    """VOI (or "arand") of the runs of a row on a volume, by seed; empty where nothing was measured."""
    keys = ("voi_split", "voi_merge") if key == "voi" else (key,)
    runs = rows.get((method, sections), [])
    return [sum(run["volumes"][volume][k] for k in keys) for run in runs if volume in run["volumes"]]


def describe_missing_adaptations(rows: Adaptations) -> str:
    """Say how many declared runs are missing, and which command makes them."""
    done = {(*key, run["seed"]) for key, runs in rows.items() for run in runs}
    missing = [run for run in list_adaptations() if run not in done]
    return describe_missing(len(missing), len(list_adaptations()), "run", "python tools/results/adapt.py")


def adaptation_answer(rows: Adaptations, pair: tuple[str, str], sections: int, volume: str) -> list[str]:
    """Compare two methods: VOI of both with spread, difference, p by permutation; empty where runs are missing."""
    ours, theirs = (adaptation_scores(rows, name, sections, volume) for name in pair)
    return difference_cells(ours, theirs)


def judge_expectations(rows: Adaptations) -> list[str]:
    """Say of each of the `EXPECTATIONS` in one line whether it came, with VOI of both methods and how many runs."""
    lines = []
    for expectation, (first, second, sections, volume) in EXPECTATIONS.items():
        ours, theirs = (adaptation_scores(rows, name, sections, volume) for name in (first, second))
        if verdict := judge_expectation(ours, theirs):
            runs = f"{len(ours)} and {len(theirs)} runs"
            lines.append(f"{expectation}: {verdict} ({summary(ours)} against {summary(theirs)}, {runs})")
        else:
            lines.append(f"{expectation}: not measured yet")
    return lines


def describe_knee(rows: Adaptations, sections: int, volume: str) -> str:
    """Name the method in the figure with the fewest trained parameters that is as good as the best one.

    As good means that its mean VOI is above the best mean by at most the spread of single runs, pooled over the two.
    Methods with a single run do not count, because their spread is unknown.

    Returns:
        A sentence, or an empty text if fewer than two methods have two runs.
    """
    scores = {name: adaptation_scores(rows, name, sections, volume) for name in SHOWN}
    scores = {name: vois for name, vois in scores.items() if len(vois) > 1}
    if len(scores) < 2:
        return ""
    best = min(scores, key=lambda name: mean(scores[name]))
    good = [n for n, vois in scores.items() if mean(vois) - mean(scores[best]) <= pooled_spread(vois, scores[best])]
    trained = {name: rows[name, sections][0]["trained"]["encoder"] for name in scores}
    knee = min(good, key=trained.__getitem__)
    words = [f"{METHODS[name].title} ({trained[name]:,} parameters), {summary(scores[name])}" for name in (knee, best)]
    return f"{words[0]}, which is also the best" if knee == best else f"{words[0]}; the best is {words[1]}"
