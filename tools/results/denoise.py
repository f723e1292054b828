"""Train and measure every declared row of lesson 14, and add the runs to docs/measured/denoising.

Everything is declared in `fgnet_lib/study/noise.py`. You may stop the command at any time and start it again: a run
that is in the table is not done again. Several terminals share the work, because a run is locked while it is being
done. After each run the page docs/measured/denoising.md is written anew from the table.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import fgnet_lib  # noqa: F401  before torch: it tells torch's threads how to wait

# isort: split
import numpy as np
import torch
from commands import describe_run, measure_on_one_core
from results import open_choosing_part
from scipy import ndimage
from torch import Tensor, nn
from train_mini import THRESHOLDS, best_threshold

from fgnet_lib import REPOSITORY
from fgnet_lib.datasets import open_dataset
from fgnet_lib.files.atomic import write_atomically
from fgnet_lib.metrics import evaluate, psnr
from fgnet_lib.neighbours.denoising import (
    Batch,
    DenoiSeg,
    Denoiser,
    SectionPatches,
    Segmenter,
    add_noise,
    apply_to_sections,
    blind_spot_loss,
    cut_into_sections,
    denoising_loss,
    joint_loss,
    sections_to_affinities,
    segment_sections,
    segmentation_loss,
)
from fgnet_lib.neighbours.noise_transfer import NoiseSplit, swap_loss, transfer_loss
from fgnet_lib.study.noise import (
    BATCH,
    DENOISING,
    DENOISING_STEPS,
    METHODS,
    NOISES,
    PATCH,
    SEGMENTING_STEPS,
    STRENGTHS,
    NoiseRow,
    NoiseRows,
    describe_missing_noise,
    judge_ranks,
    list_noise_runs,
    noise_answers,
    noise_row_name,
    noise_values,
    read_noise_rows,
)
from fgnet_lib.study.rows import SECTIONS
from fgnet_lib.study.runs import add_runs, do_missing
from fgnet_lib.study.statistics import summary
from fgnet_lib.training import TrainConfig, fit
from fgnet_lib.volumes import Volume

PAGE = REPOSITORY / "docs" / "measured" / "denoising.md"
SIGMAS = (0.5, 0.75, 1.0, 1.5, 2.0, 3.0)  # pixels, of which smoothing takes the one with the best PSNR in training
JUDGED = 20  # sections of the validation part
CHOSEN_ON = slice(0, 20, 2)  # every second section of the part that chooses thresholds
INTRODUCTION = """\
# Denoised sections: PSNR against VOI

<!-- written by tools/results/denoise.py from docs/measured/denoising; edit that tool instead -->

These are the rows of [lesson 14](../../notebooks/14_clean_is_not_correct.ipynb), declared in
`fgnet_lib/study/noise.py`. FIB-25 is clean: **the noise is ours**, added to all of its parts and clipped to 0 to 1.
Each run denoises the sections in its way and trains a small segmenter of its own on pictures of its own kind, because a
model that had only seen clean sections would be surprised by noise. All segmenters take the same number of steps, and
so do all denoisers. Sections are segmented one by one and judged one by one, on the first 20 sections of the validation
part; the threshold is chosen on every second one of sections 120-139. Smoothing has the sigma with the best PSNR on
training sections. DADn's pairs have clean sections 0-59 and the noise of sections 60-119, whose clean versions they do
not see; its invertible network takes as many steps again. The PSNR of joint training is that of D2's picture. The
learning rate, and that a denoiser predicts the picture and not a correction, were chosen by single trainings with
Gaussian noise, by PSNR on four of the judged sections.

{missing}
"""
RANKS = """\
## Does the cleanest picture give the best neurons?

A pair of methods swaps if in all runs the first has the higher PSNR and also the higher VOI.
"""
PAIRS = """\
## Questions

You see both rows, their difference (first minus second), and how often chance alone separates the runs as much (*p*, by
permutation; with three runs of each it is at least 0.10). Lower VOI is better, higher PSNR is better.
"""
Sections = dict[str, np.ndarray]  # part of FIB-25 -> sections (z, y, x) in [0, 1]


def open_parts() -> dict[str, Volume]:
    """Open what a run learns from, chooses its threshold on, and is judged on."""
    choosing = open_choosing_part()
    return {
        "training": open_dataset("fib25", "train").load()[:SECTIONS, :, :],
        "choosing": Volume(choosing.raw[CHOSEN_ON], choosing.voxel_size, choosing.labels[CHOSEN_ON]),
        "judged": open_dataset("fib25", "val").load()[:JUDGED, :, :],
    }


def learn(
    model: nn.Module, loss: Callable[[Any, Batch], Tensor], volume: Volume, noisy: np.ndarray, steps: int, seed: int
) -> None:
    """Train a network in place on patches of a volume and of its noisy version."""
    config = TrainConfig(
        patch=(1, PATCH, PATCH),
        batch=BATCH,
        iterations=steps,
        learning_rate=5e-3,
        warmup=20,
        ema=0.98,
        checkpoint_every=100_000,  # only at the end: a run that is stopped is done again
        seed=seed,
    )
    with tempfile.TemporaryDirectory() as folder:
        fit(model, SectionPatches(volume, noisy, PATCH, seed), loss, config, folder)


def train_denoiser(kind: str, training: Volume, noisy: np.ndarray, seed: int) -> Denoiser:
    """Train a denoiser of the kind that `NoiseMethod.denoiser` names."""
    denoiser = Denoiser()
    if kind == "transfer":
        split, half = NoiseSplit(), len(noisy) // 2
        learn(split, swap_loss, training[:half, :, :], noisy[:half], DENOISING_STEPS, seed)
        clean, of_others = training[:half, :, :], noisy[half : 2 * half]
        learn(denoiser, partial(transfer_loss, split=split), clean, of_others, DENOISING_STEPS, seed)
    else:
        loss = {"noise2void": blind_spot_loss, "supervised": denoising_loss}[kind]
        learn(denoiser, loss, training, noisy, DENOISING_STEPS, seed)
    return denoiser


def best_sigma(training: Volume, noisy: np.ndarray) -> float:
    """Choose the smoothing with the best PSNR on ten training sections."""
    clean = training.raw[:10].astype(np.float32) / 255
    return max(SIGMAS, key=lambda sigma: psnr(ndimage.gaussian_filter(noisy[:10], (0, sigma, sigma)), clean))


def denoise(kind: str, training: Volume, noisy: Sections, seed: int) -> Sections:
    """Make pictures of all parts in two steps: what a segmenter is then trained on, and applied to."""
    if kind == "none":
        return noisy
    if kind == "smoothing":
        sigma = best_sigma(training, noisy["training"])
        return {part: ndimage.gaussian_filter(sections, (0, sigma, sigma)) for part, sections in noisy.items()}
    denoiser = train_denoiser(kind, training, noisy["training"], seed)
    return {part: apply_to_sections(denoiser, sections)[:, 0].clip(0, 1) for part, sections in noisy.items()}


def train_and_apply(row: NoiseRow, seed: int, parts: dict[str, Volume], noisy: Sections) -> tuple[np.ndarray, Sections]:
    """Train the networks of a row, and apply them to the parts on which the threshold is chosen and the row is judged.

    Returns:
        Pictures (z, y, x) of the judged part, and affinities (3, z, y, x) of both parts.
    """
    method, training = METHODS[row.method], parts["training"]
    torch.manual_seed(seed)
    if method.denoiser == "joint":
        model = DenoiSeg(method.embedding)
        learn(model, joint_loss, training, noisy["training"], SEGMENTING_STEPS, seed)
        picture = apply_to_sections(lambda x: model(x).second, noisy["judged"])[:, 0].clip(0, 1)
        pictures, segmenter = noisy, lambda x: model(x).logits
    else:
        pictures = denoise(method.denoiser, training, noisy, seed)
        segmenter, picture = Segmenter(), pictures["judged"]
        learn(segmenter, segmentation_loss, training, pictures["training"], SEGMENTING_STEPS, seed)
    affinities = {
        part: sections_to_affinities(apply_to_sections(segmenter, pictures[part])) for part in ("choosing", "judged")
    }
    return picture, affinities


def measure_noise(parts: dict[str, Volume], affinities: Sections) -> dict[str, Any]:
    """Choose the threshold on sections that no row is trained on, and score the validation part, section by section."""
    truth = {part: cut_into_sections(parts[part].labels) for part in affinities}
    steps = segment_sections(affinities["choosing"], THRESHOLDS)
    threshold = best_threshold({t: asdict(evaluate(step, truth["choosing"])) for t, step in steps.items()})
    segmentation = segment_sections(affinities["judged"], [threshold])[threshold]
    return {"threshold": threshold, "scores": asdict(evaluate(segmentation, truth["judged"]))}


def run_noise(row: NoiseRow, seed: int) -> None:
    """Do one run and add it to the table."""
    parts = open_parts()
    clean = {part: volume.raw.astype(np.float32) / 255 for part, volume in parts.items()}
    noisy = {
        part: add_noise(sections, row.kind, row.strength, np.random.default_rng((seed, number))).clip(0, 1)
        for number, (part, sections) in enumerate(clean.items())
    }
    started = time.process_time()
    picture, affinities = train_and_apply(row, seed, parts, noisy)
    run = describe_run(
        noise_row_name(row),
        seed,
        {**row._asdict(), **asdict(METHODS[row.method]), "steps": [DENOISING_STEPS, SEGMENTING_STEPS]},
        weights={},  # none of those that ship
        core_seconds=round(time.process_time() - started, 1),
        psnr_before=psnr(noisy["judged"], clean["judged"]),
        psnr=psnr(picture, clean["judged"]),
        **measure_noise(parts, affinities),
    )
    add_runs([run], DENOISING)
    write_atomically(PAGE, page())


def train_missing_noise(minutes: float, work: Path) -> None:
    """Do every declared run that is neither in the table nor being done by another terminal."""
    runs = {(noise_row_name(row), seed): partial(run_noise, row, seed) for row, seed in list_noise_runs()}
    do_missing(runs, DENOISING, work, minutes)


def _noise_table(rows: NoiseRows, kind: str) -> list[str]:
    heads = [f"{measure}, strength {strength}" for measure in ("PSNR", "VOI") for strength in STRENGTHS]
    lines = [f"| method | core seconds | {' | '.join(heads)} |", "| --- | ---: |" + " ---: |" * len(heads)]
    for name, method in METHODS.items():
        of_method = [NoiseRow(name, kind, strength) for strength in STRENGTHS]
        seconds = [run["core_seconds"] for row in of_method for run in rows.get(row, [])]
        if not seconds:
            continue
        values = [noise_values(rows, row, "psnr") for row in of_method]
        cells = [f"{summary(v, 1)} ({len(v)})" if v else "" for v in values]
        values = [noise_values(rows, row, "voi") for row in of_method]
        cells += [f"{summary(v)} ({len(v)})" if v else "" for v in values]
        lines.append(f"| {method.title} | {np.mean(seconds):.0f} | {' | '.join(cells)} |")
    return lines


def page() -> str:
    """The page of the runs."""
    rows = read_noise_rows(DENOISING)
    lines = [INTRODUCTION.format(missing=describe_missing_noise(rows)), RANKS]
    for kind, title in NOISES.items():
        lines += [f"- {title}, strength {strength}: {judge_ranks(rows, kind, strength)}." for strength in STRENGTHS]
    lines.append("")
    for kind, title in NOISES.items():
        if any(row.kind == kind for row in rows):
            explained = "PSNR in dB and VOI in bits, mean ± spread over seeds, in brackets the number of runs."
            lines += [f"## {title[0].upper()}{title[1:]}", "", explained, "", *_noise_table(rows, kind), ""]
    answers = [(group, line) for group, of_group in noise_answers(rows).items() for line in of_group]
    if answers:
        lines += [PAIRS, "| measure, noise | question | first | second | difference | p |"]
        lines += ["| --- | --- | ---: | ---: | ---: | ---: |"]
        lines += [f"| {group} | {' | '.join(line)} |" for group, line in answers]
    return "\n".join(lines).rstrip("\n") + "\n"


def main() -> None:
    measure_on_one_core(__doc__, "denoise", train_missing_noise)
    write_atomically(PAGE, page())


if __name__ == "__main__":
    main()
