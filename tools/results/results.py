"""Train and evaluate the rows of the results table, and add their runs to docs/measured/results (`make results`).

Everything is declared in `fgnet_lib/study/rows.py`. You may stop the command at any time and start it again: a run that
is in the table is not done again unless the weights that it begins with have changed, and a training goes on from its
checkpoint. Several terminals share the work, because a run is locked while it is being done.
tools/results/render_results.py draws the pages from the table alone.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

# isort: split
import fastremap
import h5py
import numpy as np
import torch
from commands import describe_run
from scipy import ndimage
from train_mini import THRESHOLDS, best_threshold

from fgnet_lib.affinities import affinities_from_labels, widen_borders
from fgnet_lib.datasets import CROPS, open_dataset
from fgnet_lib.fgnet import FGNet
from fgnet_lib.files.atomic import atomic
from fgnet_lib.files.locks import clear, lock
from fgnet_lib.files.stamps import differences
from fgnet_lib.inference import predict
from fgnet_lib.machine import choose_device
from fgnet_lib.memory import peak_bytes
from fgnet_lib.metrics import error_masks, evaluate, neuron_report, roc_auc, segment_report, voi
from fgnet_lib.probing import attention_set_to
from fgnet_lib.segmentation import fragments, segment, sweep
from fgnet_lib.study.evaluation import (
    VOLUMES,
    label_pieces,
    perfect_affinities,
    predict_rescaled,
)
from fgnet_lib.study.rows import (
    OFFICIAL,
    ROWS,
    SECTIONS,
    SEEDS_OF_FEW,
    SHIPPED,
    Row,
    build_model,
    checkpoint,
    seeds,
    training,
)
from fgnet_lib.study.runs import (
    MODEL,
    RESULTS,
    add_runs,
    is_current,
    keeps_pictures,
    merge,
    name_weights,
    picture_path,
    read_current_keys,
    read_runs,
    remove_rows,
)
from fgnet_lib.training import train
from fgnet_lib.views.meshes import bounding_box, largest_ids
from fgnet_lib.volumes import Volume, is_anisotropic
from fgnet_lib.weights import PRETRAINED, load_model, read_notes

ROOT = Path(__file__).resolve().parents[2]
PARTS = 8  # at most so many segments are kept of the neuron in 3D


def train_row(row: Row, seed: int, work: Path) -> tuple[FGNet, dict]:
    """Train the model of a row; returns it with the costs of its training, which go into the run."""
    model = build_model(row, seed).to(choose_device())
    history = train(
        model, [open_dataset("fib25", "train").load()[: row.sections, :, :]], training(row, seed), work / "training"
    )
    parameters = {True: 0, False: 0}
    for parameter in model.parameters():
        parameters[parameter.requires_grad] += parameter.numel()
    return model, {
        "trainable": parameters[True],
        "parameters": sum(parameters.values()),
        "iterations": len(history.loss),
        "minutes": history.seconds[-1] / 60,
        "device": str(choose_device()),
        "peak_memory_mb": peak_bytes() / 1e6,
        "loss": [float(np.mean(history.loss[i : i + 20])) for i in range(0, len(history.loss), 20)],
    }


def score_segmentation(segmentation: np.ndarray, volume: Volume) -> dict:
    """VOI split, VOI merge and ARAND of a segmentation, and the neurons with the largest shares of them."""
    report = neuron_report(segmentation, volume.labels, volume.voxel_size, top=5)
    worst = [
        {"kind": error.kind, "label": error.label, "bits": error.bits, "parts": len(error.parts), "voxel": error.voxel}
        for error in (*report.splits, *report.merges)
    ]
    pieces = label_pieces(volume.labels)
    return {
        **asdict(evaluate(segmentation, volume.labels)),
        "against_components": asdict(evaluate(segmentation, pieces)),
        "segments": len(np.unique(segmentation)),
        "worst": worst,
    }


def choose_neuron(labels: np.ndarray) -> int:
    """The neuron that every row shows in 3D: of the ten largest that are in one piece, the least compact."""

    def fill_ratio(neuron: int) -> float:
        mask = labels == neuron
        mask = mask[bounding_box(mask)]
        pieces = np.bincount(ndimage.label(mask)[0].ravel())[1:]
        return mask.mean() if pieces.max() > 0.99 * pieces.sum() else np.inf

    return min(largest_ids(labels, 10), key=fill_ratio)


def make_pictures(segmentation: np.ndarray, volume: Volume) -> dict[str, np.ndarray]:
    """What the pictures need of a segmentation: its middle section with the errors there, and one neuron in 3D.

    Nothing of the data itself is kept: neither grey values nor ground truth. The arrays are those of
    `fgnet_lib.study.runs.load_pictures`.
    """
    z = volume.shape[0] // 2
    splits, merges = (mask[z] for mask in error_masks(segmentation, volume.labels))
    neuron = choose_neuron(volume.labels)
    covering = segment_report(segmentation, volume.labels, neuron=neuron).segments[:PARTS]
    parts = np.zeros(volume.shape, np.uint8)
    for rank, (segment_id, _) in enumerate(covering, start=1):
        parts[segmentation == segment_id] = rank
    return {
        "z": np.array(z),
        "section": fastremap.renumber(segmentation[z].astype(np.uint64), preserve_zero=True)[0].astype(np.uint16),
        "errors": splits.astype(np.uint8) + 2 * merges.astype(np.uint8),
        "parts": parts,
        "covered": np.array([voxels for _, voxels in covering]),
    }


def measure_volumes(
    model: FGNet, thresholds: dict[str, float], three_views: bool
) -> tuple[dict[str, dict], dict[str, np.ndarray]]:
    """Score A_r and A_s, and the fragments of each, on every volume that is here; also returns the pictures.

    Thresholds come with A_r first.
    """
    results, pictures = {}, {}
    for name, rescale in VOLUMES.items():
        try:
            volume = open_dataset(name, "val").load()
        except OSError as error:
            print(f"not judged on {name}: {error}")
            continue
        start = time.perf_counter()
        prediction = predict_rescaled(model, volume, rescale, three_views)
        results[name] = {"seconds": time.perf_counter() - start, "voxels": int(np.prod(volume.shape))}
        for output, threshold in thresholds.items():
            affinities = getattr(prediction, output)
            pieces = fragments(affinities, volume.voxel_size, strict=False)  # ours, however badly trained
            tried = THRESHOLDS if name == "fib25" else [threshold]  # all for the pictures; nothing is chosen here
            steps = sweep(affinities, volume.voxel_size, tried, pieces, strict=False)
            results[name][output] = score_segmentation(steps[threshold], volume)
            results[name][f"{output}_fragments"] = score_segmentation(pieces, volume)
            if name == "fib25":
                pictures = pictures or make_pictures(steps[threshold], volume)  # of A_r, if the model has it
                results[name][f"{output}_curve"] = [[t, *voi(step, volume.labels)] for t, step in steps.items()]
    return results, pictures


def choose_threshold(affinities: np.ndarray, volume: Volume) -> float:
    """The threshold with the least VOI."""
    steps = sweep(affinities, volume.voxel_size, THRESHOLDS, strict=False)
    return best_threshold({threshold: asdict(evaluate(step, volume.labels)) for threshold, step in steps.items()})


def open_choosing_part() -> Volume:
    """The last 20 sections of the training part, which choose thresholds."""
    return open_dataset("fib25", "train").load()[SECTIONS:, :, :]


def choose_thresholds(model: FGNet, three_views: bool) -> dict[str, float]:
    """The thresholds of A_r and A_s, as far as the model has them."""
    volume = open_choosing_part()
    prediction = predict(model, volume.raw, progress=False, three_views=three_views)
    outputs = {output: getattr(prediction, output) for output in ("refined", "coarse")}
    return {output: choose_threshold(a, volume) for output, a in outputs.items() if a is not None}


def measure_attention(model: FGNet, threshold: float) -> dict:
    """Is attention used? Its relation to membranes and errors, and VOI when it is set to 0, to its mean, or to 1."""
    volume = open_dataset("fib25", "val").load()
    widened = widen_borders(volume.labels, in_3d=not is_anisotropic(volume.voxel_size))
    prediction = predict(model, volume.raw, progress=False)
    error = np.abs(prediction.refined - affinities_from_labels(widened)).mean(axis=0)
    maps: dict = {}
    for level, (a, stride) in enumerate(zip(prediction.attention, model.config.strides, strict=True), start=1):
        weights = a.repeat(stride, 1).repeat(stride, 2)[:, : volume.shape[1], : volume.shape[2]]
        maps[f"a{level}"] = {
            "auc_membrane": roc_auc(weights, widened == 0),
            "correlation_with_error": float(np.corrcoef(weights.ravel(), error.ravel())[0, 1]),
            "mean": float(weights.mean()),
            "std": float(weights.std()),
        }
        for value in (0.0, "mean", 1.0):
            with attention_set_to(model, level, value):
                affinities = predict(model, volume.raw, progress=False).refined
            maps[f"a{level}"][f"set_to_{value}"] = asdict(
                evaluate(segment(affinities, volume.voxel_size, threshold, strict=False), volume.labels)
            )
    return maps


def run_row(name: str, seed: int, work: Path) -> tuple[dict, dict[str, np.ndarray]]:
    """Train and evaluate one row with one seed."""
    return evaluate_model(*train_row(ROWS[name], seed, work))


def evaluate_model(model: FGNet, costs: dict, three_views: bool = False) -> tuple[dict, dict[str, np.ndarray]]:
    """Thresholds, scores on all volumes, and what attention does, measured for every row alike; and the pictures."""
    thresholds = choose_thresholds(model, three_views)
    volumes, pictures = measure_volumes(model, thresholds, three_views)
    results = {"training": costs, "thresholds": thresholds, "volumes": volumes}
    if model.config.encoder and model.config.refined and not three_views:  # attention is that of one view
        results["attention"] = measure_attention(model, thresholds["refined"])
    return results, pictures


def run_shipped(three_views: bool = False) -> tuple[dict, dict[str, np.ndarray]]:
    """Evaluate the shipped model like a row; the costs of its training are in the notes of its own file."""
    weights = PRETRAINED / MODEL
    model, notes = load_model(weights, choose_device()), read_notes(weights)
    parameters = sum(p.numel() for p in model.parameters())
    return evaluate_model(
        model,
        {
            "trainable": parameters,
            "parameters": parameters,
            "iterations": sum(stage["iterations"] for stage in notes["stages"]),
            "minutes": notes["minutes"],
            "device": notes["device"],
            "tried": [] if three_views else notes["tried"],
        },
        three_views,
    )


def run_references() -> tuple[dict, dict[str, np.ndarray]]:
    """Score what the rows are compared with.

    Published: the fragments that came with the crops, and the FFN segmentation of FIB-25. The ceiling: perfect
    affinities through the steps that all rows take, and the pieces that a crop's faces leave of the ground truth.
    """
    folder, results, part = Path(os.environ["FGNET_DATA_DIR"]), {}, open_choosing_part()
    threshold = choose_threshold(perfect_affinities(part), part)
    for name in VOLUMES:
        if (name, "val") not in CROPS or not (folder / CROPS[name, "val"]).is_file():
            continue
        volume = open_dataset(name, "val").load()
        with h5py.File(folder / CROPS[name, "val"]) as file:
            segmentations = {key: file[f"volumes/labels/{key}"][:] for key in ("fragments", "ffn_baseline")
                             if f"volumes/labels/{key}" in file}  # fmt: skip
        if "ffn_baseline" in segmentations:
            ffn = segmentations.pop("ffn_baseline")
            nearest = ndimage.distance_transform_edt(ffn == 0, return_distances=False, return_indices=True)
            segmentations["ffn_filled"] = ffn[tuple(nearest)]
            covered = replace(volume, labels=np.where(ffn == 0, 0, volume.labels))
            results.setdefault(name, {})["ffn_ignored"] = score_segmentation(ffn, covered) | {
                "coverage": float((ffn > 0).mean())
            }
        segmentations["perfect"] = segment(perfect_affinities(volume), volume.voxel_size, threshold)
        segmentations["components"] = label_pieces(volume.labels)
        for key, segmentation in segmentations.items():
            results.setdefault(name, {})[key] = score_segmentation(segmentation, volume)
    return {"volumes": results}, {}


SPECIAL = {  # rows that are only measured
    "references": run_references,
    "shipped": run_shipped,
    "shipped_three_views": partial(run_shipped, three_views=True),
}


def list_runs() -> list[tuple[str, int]]:
    """Every run in order: one seed of all rows before the next, so that a table cut short can be compared.

    The rows with SAM2.1's encoders, which take longest, come last.
    """
    rows = [(name, seed) for seed in SEEDS_OF_FEW for name in ROWS if seed in seeds(name)]
    return [*((name, 0) for name in SPECIAL), *sorted(rows, key=lambda run: ROWS[run[0]].config.encoder in OFFICIAL)]


def shipped_weights(name: str) -> list[str]:
    """The files of data/pretrained that a row is measured with, or begins with."""
    if name in ROWS:
        row = ROWS[name]
        return [SHIPPED[row.encoder]] if row.config.encoder and row.encoder in SHIPPED else []
    return [] if name == "references" else [MODEL]


def run_once(name: str, seed: int, work: Path) -> None:
    """Do one run and add it to the table; in a process of its own, so that its peak of memory is its own."""
    weights = name_weights(*shipped_weights(name))
    folder = work / "-".join(weights.values())  # a training that began with other weights is not gone on with
    results, pictures = SPECIAL[name]() if name in SPECIAL else run_row(name, seed, folder)
    costs = {"load": round(os.getloadavg()[2], 1), "cores": os.cpu_count(), "peak_memory_mb": peak_bytes() / 1e6}
    if torch.cuda.is_available():
        costs["peak_gpu_mb"] = torch.cuda.max_memory_allocated() / 1e6
    if pictures and keeps_pictures(name, seed):
        with atomic(picture_path(name, seed, RESULTS)) as part, part.open("wb") as file:
            np.savez_compressed(file, **pictures)
    run = describe_run(name, seed, declare(name, seed), weights, **costs, **results)
    add_runs([run], RESULTS)  # last: a run in the table is done


def find_obstacle(name: str) -> str:
    """What a row needs and this machine lacks, with the remedy; empty if nothing."""
    if name in ROWS:
        row = ROWS[name]
        if (size := row.config.encoder) in OFFICIAL:  # also for random weights, which serve to compare
            row = replace(row, encoder=f"sam2.1_hiera_{size}.pt")
        try:
            checkpoint(row)
        except OSError as error:
            return str(error)
    return "" if os.environ.get("FGNET_DATA_DIR") else "FGNET_DATA_DIR is not set: the rows need FIB-25"


def declare(name: str, seed: int) -> dict:
    """Return what a run stores of its row's declaration, as JSON gives it back; empty where nothing is trained."""
    row = ROWS.get(name)
    return json.loads(json.dumps(asdict(row) | {"training": asdict(training(row, seed))})) if row else {}


def describe_change(run: dict) -> str:
    """Say what a row declares otherwise than it did when a run was made; empty if nothing, or where no row declares."""
    then, now = run.get("declared"), declare(run["row"], run["seed"])
    if not then or not now:
        return ""
    parts = [[{key: row[key] for key in ("encoder", "frozen", "sections", "iterations")} for row in (then, now)]]
    for part in ("config", "training"):  # settings that came later had their defaults
        both = then[part].keys() & now[part].keys()
        parts.append([{key: row[part][key] for key in sorted(both)} for row in (then, now)])
    return "; ".join(line for before, after in parts for line in differences(before, after))


def run_missing(rows: list[str], minutes: float, work: Path) -> list[str]:
    """Do every run of these rows that is neither in the table nor being done by another terminal; returns failures."""
    started, failed = time.monotonic(), []
    done = {(run["row"], run["seed"]): run for run in read_runs(RESULTS) if is_current(run)}
    for name, seed in list_runs():
        if name not in rows:
            continue
        if run := done.get((name, seed)):
            if change := describe_change(run):
                print(f"{name}, seed {seed}: not measured again, though {change}; first --remove {name}")
            continue
        if why := find_obstacle(name):
            print(f"{name}, seed {seed}: not measured. {why}")
            continue
        elapsed = (time.monotonic() - started) / 60
        if elapsed > minutes:
            break
        try:
            with lock(work / f"{name}-{seed}"):
                if (name, seed) in read_current_keys(RESULTS):
                    continue  # another terminal was quicker
                print(f"{name}, seed {seed}, after {elapsed:.0f} minutes", flush=True)
                command = [sys.executable, __file__, "--work", str(work), "--run", name, str(seed)]
                if subprocess.run(command).returncode:
                    failed.append(f"{name}, seed {seed}")
        except RuntimeError:
            continue  # another terminal does it
    return failed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", nargs="*", help="only these rows")
    parser.add_argument("--encoder", choices=OFFICIAL, help="only the rows that this encoder of SAM2.1's guides")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no further run after so long")
    parser.add_argument("--work", type=Path, default=ROOT / "out" / "results", help="checkpoints, to resume from")
    parser.add_argument("--merge", type=Path, metavar="FOLDER", help="only add the runs of a folder of loose files")
    parser.add_argument("--remove", nargs="+", metavar="ROW", help="only take rows out of the table, to measure anew")
    parser.add_argument("--run", nargs=2, help=argparse.SUPPRESS)  # row and seed: what the subprocess does
    arguments = parser.parse_args()
    if arguments.run:
        name, seed = arguments.run[0], int(arguments.run[1])
        return run_once(name, seed, arguments.work / f"{name}-{seed}")
    if arguments.merge:
        return print(f"{merge(arguments.merge, RESULTS)} runs added to the table")
    if arguments.remove:
        for name, seed in list_runs():
            if name in arguments.remove:  # or a row that is declared otherwise would go on from them
                clear(arguments.work / f"{name}-{seed}")
        return print(f"{remove_rows(arguments.remove, RESULTS)} runs removed from the table, with their checkpoints")
    rows = arguments.rows or [*SPECIAL, *ROWS]
    if unknown := [name for name in rows if name not in SPECIAL and name not in ROWS]:
        parser.error(f"fgnet_lib/study/rows.py declares no row {', '.join(unknown)}")
    if arguments.encoder:
        rows = [name for name in rows if name in ROWS and ROWS[name].config.encoder == arguments.encoder]
        if not rows:
            parser.error(f"none of these rows is guided by SAM2.1's encoder {arguments.encoder}")
    if failed := run_missing(rows, arguments.minutes, arguments.work):
        sys.exit(f"failed, and will be tried again by the next make results: {'; '.join(failed)}")


if __name__ == "__main__":
    main()
