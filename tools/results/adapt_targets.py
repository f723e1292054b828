"""Adapt the shipped model to other volumes in every declared way, and add the scores to docs/measured/targets.

Everything is declared in `fgnet_lib/study/targets.py`. You may stop the command at any time and start it again: a cell
that is in the table is not measured again unless the shipped model has changed. Several terminals share the work. After
each cell the page docs/measured/targets.md is written anew from the table. `--source` measures what the training
sections look like to the model instead, and writes that into data/pretrained/fgnet_mini.safetensors.
"""

from __future__ import annotations

import argparse
import time
from contextlib import nullcontext
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import fgnet_lib  # noqa: F401  before torch: it tells torch's threads how to wait

# isort: split
import torch
from commands import describe_run
from which_first import write_which_first

from fgnet_lib import REPOSITORY
from fgnet_lib.datasets import open_dataset
from fgnet_lib.files.atomic import write_atomically
from fgnet_lib.metrics import evaluate
from fgnet_lib.neighbours.target_adaptation import (
    SHIPPED_SOURCE,
    TargetConfig,
    adapt_norms,
    arriving_windows,
    change_grey_values,
    measure_source,
    read_source,
    standardise_levels,
    store_source,
)
from fgnet_lib.segmentation import segment
from fgnet_lib.study.evaluation import VOLUMES, predict_rescaled, rescale_sections
from fgnet_lib.study.runs import MODEL, add_runs, do_missing, name_weights
from fgnet_lib.study.statistics import summary
from fgnet_lib.study.targets import (
    TARGET_METHODS,
    TARGET_VOLUMES,
    TARGETS,
    Cell,
    cell_name,
    describe_missing_cells,
    list_target_cells,
    read_targets,
    target_scores,
)
from fgnet_lib.weights import load_pretrained, pretrained_threshold

PAGE = REPOSITORY / "docs" / "measured" / "targets.md"
SOURCE_SECTIONS, SOURCE_WINDOWS = 120, 24  # of FIB-25's training part, and windows of them
INTRODUCTION = """\
# Adapting the shipped model to another volume

<!-- written by tools/results/adapt_targets.py from docs/measured/targets; edit that tool instead -->

These are the cells of [lesson 12](../../notebooks/12_my_volume_looks_different.ipynb), declared in
`fgnet_lib/study/targets.py`: VOI in bits of the shipped model, lower is better, at its own threshold. No method sees a
label of the target. Every row but *as it is* works at the voxel size of training. Gradient steps change norm layers
alone, for {steps} windows; the number after ± is the spread over orders in which these windows arrive, the one in
brackets how many orders were measured. The model was trained on FIB-25, and on another part of gala; AC4 and CREMI B
are new to it. Statistics and histogram of the source are those of FIB-25's training sections.

{missing}
"""
WHICH = "What follows for a volume of yours: [which of these should I try first?](../understand/which_first.md)"


def write_source() -> None:
    """Measure the shipped model's training sections and put their statistics into its file."""
    raw = open_dataset("fib25", "train").load().raw[:SOURCE_SECTIONS]
    model = load_pretrained()
    windows = arriving_windows(raw.shape, TargetConfig().window, seed=0)[:SOURCE_WINDOWS]
    about = {"sections": f"FIB-25, 0-{SOURCE_SECTIONS - 1}", "windows": SOURCE_WINDOWS}
    store_source(SHIPPED_SOURCE, measure_source(model, raw, windows), about)


def score_adapted(cell: Cell) -> dict[str, Any]:
    """Adapt to a volume by a method, segment it, and score it; also the time and the losses that this took."""
    name, key, order = cell
    method, source, model = TARGET_METHODS[key], read_source(SHIPPED_SOURCE), load_pretrained()
    volume = open_dataset(name, "val").load()
    volume = replace(volume, raw=change_grey_values(volume.raw, [method.kind], source))
    rescale = VOLUMES[name] and method.kind != "as_is"
    started, losses = time.process_time(), []
    if method.kind == "norms":
        raw = rescale_sections(volume) if rescale else volume.raw
        config = TargetConfig(method.style, method.structure, method.rate)
        model, losses = adapt_norms(model, raw, source.levels, config, order)
    adapted = time.process_time()
    with standardise_levels(model, source.levels) if method.kind == "statistics" else nullcontext():
        affinities = predict_rescaled(model, volume, rescale, engine="torch").refined
    segmentation = segment(affinities, volume.voxel_size, pretrained_threshold(), strict=False)
    return {
        "scores": asdict(evaluate(segmentation, volume.labels)),
        "mean_affinity": round(float(affinities.mean()), 4),
        "losses": [{k: round(v, 4) for k, v in step.items()} for step in losses],
        "core_seconds": {
            "adapt": round(adapted - started, 1),
            "predict_and_segment": round(time.process_time() - adapted, 1),
        },
    }


def run_cell(cell: Cell) -> None:
    """Measure one cell and add it to the table."""
    declared = asdict(TARGET_METHODS[cell[1]]) | {"steps": TargetConfig().steps}
    run = describe_run(cell_name(*cell[:2]), cell[2], declared, name_weights(MODEL), **score_adapted(cell))
    add_runs([run], TARGETS)
    write_atomically(PAGE, page())


def adapt_missing(minutes: float, work: Path) -> None:
    """Measure every declared cell that is neither in the table nor being measured by another terminal."""
    runs = {(cell_name(*cell[:2]), cell[2]): partial(run_where_possible, cell) for cell in list_target_cells()}
    do_missing(runs, TARGETS, work, minutes)


def run_where_possible(cell: Cell) -> None:
    """Do one cell, or say why its volume cannot be opened."""
    try:
        run_cell(cell)
    except OSError as error:
        print(f"{cell_name(*cell[:2])}: {error}")


def _scores_table(cells: dict[Cell, dict]) -> list[str]:
    lines = ["| method | " + " | ".join(TARGET_VOLUMES.values()) + " |", "| --- |" + " ---: |" * len(TARGET_VOLUMES)]
    for key, method in TARGET_METHODS.items():
        scores = [target_scores(cells, volume, key) for volume in TARGET_VOLUMES]
        if any(scores):
            written = [f"{summary(values)} ({len(values)})" if values else "" for values in scores]
            lines.append(f"| {method.title} | {' | '.join(written)} |")
    return lines


def page() -> str:
    """The page of the cells."""
    cells = read_targets(TARGETS)
    lines = [INTRODUCTION.format(missing=describe_missing_cells(cells), steps=TargetConfig().steps)]
    if cells:
        lines += ["## VOI", "", *_scores_table(cells), "", WHICH, ""]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no further cell after so long")
    parser.add_argument("--work", type=Path, default=REPOSITORY / "out" / "targets", help="folder for the locks")
    parser.add_argument("--source", action="store_true", help="measure the source instead, and nothing else")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.source:
        write_source()
        return
    adapt_missing(arguments.minutes, arguments.work)
    write_atomically(PAGE, page())
    write_which_first()


if __name__ == "__main__":
    main()
