"""Train and measure every declared row of lesson 17, and add the runs to docs/measured/super_resolution.

Everything is declared in `fgnet_lib/study/super_resolution.py`. You may stop the command at any time and start it
again: a run that is in the table is not done again unless the shipped model has changed. Several terminals share the
work, because a run is locked while it is being done. After each run the page docs/measured/super_resolution.md is
written anew from the table.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

import fgnet_lib  # noqa: F401  before torch: it tells torch's threads how to wait

# isort: split
import numpy as np
import torch
from commands import describe_run, measure_on_one_core
from torch import Tensor, nn

from fgnet_lib import REPOSITORY
from fgnet_lib.datasets import open_dataset
from fgnet_lib.files.atomic import write_atomically
from fgnet_lib.inference import predict
from fgnet_lib.metrics import evaluate, psnr
from fgnet_lib.neighbours.super_resolution import (
    STRIDE,
    Indexer,
    SectionAutoencoder,
    SectionEncoder,
    SuperResolver,
    autoencoder_loss,
    count_membranes,
    enlarge_volume,
    indexer_loss,
    perplexity,
    reduce_sections,
    resolver_loss,
)
from fgnet_lib.segmentation import segment
from fgnet_lib.study.pretraining import MaskedSections
from fgnet_lib.study.runs import MODEL, add_runs, do_missing, name_weights
from fgnet_lib.study.statistics import summary
from fgnet_lib.study.super_resolution import (
    ENLARGED_VOLUMES,
    ENLARGINGS,
    MEASURES,
    PAIRS_OF_ENLARGINGS,
    SUPER_RESOLUTION,
    EnlargedRows,
    Enlarging,
    describe_missing_enlargings,
    enlarged_answer,
    enlarged_scores,
    enlarging_training,
    judge_enlargings,
    list_enlargings,
    read_enlarged,
)
from fgnet_lib.training import fit
from fgnet_lib.volumes import Volume
from fgnet_lib.weights import load_pretrained, pretrained_threshold

PAGE = REPOSITORY / "docs" / "measured" / "super_resolution.md"
CODED, ENLARGED = (8, 64, 64), (6, 96, 96)  # patches (z, y, x) that a codebook and a resolver learn from
INTRODUCTION = """\
# Fewer pixels

<!-- written by tools/results/super_resolve.py from docs/measured/super_resolution; edit that tool instead -->

These are the rows of [lesson 17](../../notebooks/17_fewer_pixels.ipynb), declared in
`fgnet_lib/study/super_resolution.py`. Sections are reduced 4 times in y and x by the mean of each square, and enlarged
again; z stays as it is. Networks learn from FIB-25's unlabelled sections, each row for about the same time of one core,
a codebook included. Judged are the validation parts of FIB-25 and of gala, whose voxels are 10 nm wide as well. A
membrane is a dark ridge; invented are those of the result that the truth lacks, lost are those of the truth that the
result lacks, both with a tolerance of 2 voxels and in percent of all membrane voxels. VOI is that of the shipped model
at its own threshold: it was trained on other sections of FIB-25 at full size, and on another part of gala, and never on
enlarged ones. No learning rate was tuned.

{missing}
"""
PAIRS = """\
## Questions

You see VOI (bits) of the first and of the second row, their difference (negative: the first is better), and how often
chance alone separates the runs as much (*p*, by permutation; with three runs of each it is at least 0.10). Bicubic has
a single run, because it learns nothing.
"""


def train_part(
    model: nn.Module, loss_function: Callable, iterations: int, patch: tuple[int, int, int], seed: int, volume: Volume
) -> None:
    """Train one of a row's networks on sections without labels."""
    with tempfile.TemporaryDirectory() as folder:
        sections = MaskedSections([volume], patch, seed)
        fit(model, sections, loss_function, enlarging_training(iterations, patch, seed), folder)


def train_enlarging(way: Enlarging, seed: int) -> SuperResolver | Indexer | None:
    """Train what a row needs; None for a row that learns nothing."""
    if not way.iterations and not way.autoencoder:
        return None
    torch.manual_seed(seed)
    volume, indexer = open_dataset("fib25", "unlabelled").load(), None
    if way.autoencoder:
        autoencoder = SectionAutoencoder()
        train_part(autoencoder, autoencoder_loss, way.autoencoder, CODED, seed, volume)
        indexer = Indexer(autoencoder, SectionEncoder(2))
        train_part(indexer, indexer_loss, way.indexer, CODED, seed, volume)
    if not way.iterations:
        return indexer
    resolver = SuperResolver(way.sections, indexer)
    train_part(resolver, resolver_loss, way.iterations, ENLARGED, seed, volume)
    return resolver


def measure_codes(indexer: Indexer, sections: Tensor) -> dict[str, float]:
    """How many codes the sections (D, H, W) use, and how many of them the indexer guesses from low sections."""
    with torch.no_grad():
        codes = indexer.autoencoder.index(sections[:, None])
        guessed = indexer(reduce_sections(sections)[:, None]).argmax(1)
    return {
        "perplexity": round(perplexity(codes, len(indexer.autoencoder.codebook.codes)), 2),
        "right_codes": round((codes == guessed).float().mean().item(), 4),
    }


def score_enlarged(name: str, model: SuperResolver | Indexer | None, volume: Volume) -> dict[str, float]:
    """Enlarge the reduced sections of a volume, and compare them, their membranes and their neurons with the truth."""
    truth = torch.from_numpy(volume.raw).float() / 255
    result = truth if name == "truth" else enlarge_volume(model, reduce_sections(truth))
    raw = (255 * result).round().byte().numpy()
    affinities = predict(load_pretrained(), raw, progress=False, engine="torch").refined
    segmentation = segment(affinities, volume.voxel_size, pretrained_threshold(), strict=False)
    scores = evaluate(segmentation, volume.labels)
    counts = count_membranes(result.numpy(), truth.numpy())
    measures = {"invented": 100 * counts["invented"], "lost": 100 * counts["lost"]}
    measures |= {"invented_pieces": counts["invented_pieces"], "lost_pieces": counts["lost_pieces"]}
    measures |= {"voi": scores.voi_split + scores.voi_merge, **asdict(scores)}
    if name != "truth":
        measures["psnr"] = psnr(result, truth)
    indexer = model if isinstance(model, Indexer) else getattr(model, "indexer", None)
    if indexer is not None:
        measures |= measure_codes(indexer, truth)
    return {key: round(value, 4) for key, value in measures.items()}


def open_enlarged(name: str) -> Volume:
    """The validation part of a volume, without the voxels beyond the last whole square of a code."""
    volume = open_dataset(name, "val").load()
    return volume[:, *(slice(0, n - n % STRIDE) for n in volume.shape[1:])]


def run_enlarging(name: str, seed: int) -> None:
    """Do one run and add it to the table."""
    way, started = ENLARGINGS[name], time.process_time()
    model = train_enlarging(way, seed)
    trained = time.process_time()
    run = describe_run(
        name,
        seed,
        asdict(way),
        name_weights(MODEL),  # which judges
        core_seconds=round(trained - started, 1),
        volumes={volume: score_enlarged(name, model, open_enlarged(volume)) for volume in ENLARGED_VOLUMES},
    )
    add_runs([run], SUPER_RESOLUTION)
    write_atomically(PAGE, page())


def enlarge_missing(minutes: float, work: Path) -> None:
    """Do every declared run that is neither in the table nor being done by another terminal."""
    runs = {(name, seed): partial(run_enlarging, name, seed) for name, seed in list_enlargings()}
    do_missing(runs, SUPER_RESOLUTION, work, minutes)


def _enlarged_table(rows: EnlargedRows, volume: str) -> list[str]:
    heads = [ENLARGED_VOLUMES[volume], "runs", "core seconds", *(title for title, _ in MEASURES.values())]
    lines = [f"| {' | '.join(heads)} |"]
    lines.append("| --- |" + " ---: |" * (len(MEASURES) + 2))
    for name, runs in rows.items():
        scores = [enlarged_scores(rows, name, volume, measure) for measure in MEASURES]
        cells = [summary(values, 2) if values else "" for values in scores]
        seconds = np.mean([run["core_seconds"] for run in runs])
        lines.append(f"| {ENLARGINGS[name].title} | {len(runs)} | {seconds:.0f} | {' | '.join(cells)} |")
    return lines


def _enlarged_questions(rows: EnlargedRows) -> list[str]:
    lines = ["| question | volume | first | second | difference | p |", "| --- | --- |" + " ---: |" * 4]
    for question, pair in PAIRS_OF_ENLARGINGS.items():
        for volume, title in ENLARGED_VOLUMES.items():
            if answer := enlarged_answer(rows, pair, volume):
                lines.append(f"| {question} | {title} | {' | '.join(answer)} |")
    return lines


def page() -> str:
    """The page of the runs."""
    rows = read_enlarged(SUPER_RESOLUTION)
    lines = [INTRODUCTION.format(missing=describe_missing_enlargings(rows)), "## Who wins?", ""]
    for volume, title in ENLARGED_VOLUMES.items():
        lines += [f"- {title}: {sentence}." for sentence in judge_enlargings(rows, volume)]
    if rows:
        lines += ["", "## Scores", "", "Mean ± spread over seeds.", ""]
        for volume in ENLARGED_VOLUMES:
            lines += [*_enlarged_table(rows, volume), ""]
        answers = _enlarged_questions(rows)
        lines += [PAIRS, *answers, ""] if len(answers) > 2 else []
    return "\n".join(lines).rstrip("\n") + "\n"


def main() -> None:
    measure_on_one_core(__doc__, "enlarged", enlarge_missing)
    write_atomically(PAGE, page())


if __name__ == "__main__":
    main()
