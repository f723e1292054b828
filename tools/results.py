"""Train and evaluate the rows of the results table, one JSON file in docs/results/ per row and seed (`make results`).

Everything is declared in `ROWS`. The command stops and resumes anywhere: a run whose file is there is not done again,
a training goes on from its checkpoint, and several terminals share the work, for a run is locked while it is done. The
page and its figures are drawn from the files alone, by tools/render_results.py.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import platform
import resource
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path

import fgnet_lib  # noqa: F401  before torch: it tells torch's threads how to wait

# isort: split
import h5py
import numpy as np
import torch
from scipy import ndimage
from train_mini import THRESHOLDS, best_threshold

from fgnet_lib.affinities import affinities_from_labels, widen_borders
from fgnet_lib.datasets import CROPS, fetch, open_dataset
from fgnet_lib.devices import choose_device
from fgnet_lib.features import roc_auc
from fgnet_lib.fgnet import MINI, PRETRAINED, FGNet, FGNetConfig, load_pretrained
from fgnet_lib.inference import Prediction, predict
from fgnet_lib.interventions import attention_set_to
from fgnet_lib.metrics import evaluate, neuron_report, voi
from fgnet_lib.sam2_encoder import STRIDES
from fgnet_lib.segmentation import fragments, segment, sweep
from fgnet_lib.training import TrainConfig, train
from fgnet_lib.volumes import Volume, atomic, is_anisotropic

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results"
SEEDS = (0, 1, 2)
SECTIONS = 120  # of FIB-25's training part; the last 20 of its 140 choose the threshold
TRAINED_NM = 10.0  # FIB-25's voxel
# Evaluated on: data set -> whether its sections are rescaled to FIB-25's voxel before the network sees them.
VOLUMES = {"fib25": False, "gala": False, "phantom": False, "ac4": True, "cremi_b_mini": True}
UNET = replace(MINI, encoder=None)


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        title: what the reader sees.
        config: the model.
        encoder: "random", "pretrained" (without labels, `make encoder`), or the registry's name of a checkpoint.
        frozen: the encoder's regime.
        sections: labelled sections to train on, from the first on.
        iterations: of training.
    """

    title: str
    config: FGNetConfig
    encoder: str = "pretrained"
    frozen: bool = True
    sections: int = SECTIONS
    iterations: int = 800


ROWS = {
    "unet": Row("3D U-Net (FGE alone)", UNET),
    "unet_longer": Row("3D U-Net, as long as fine-tuned FGNet takes", UNET, iterations=1000),
    "sam2_only": Row("SAM2 alone, pretrained, frozen (A_s)", replace(MINI, refined=False)),
    "random_frozen": Row("FGNet, random encoder, frozen", MINI, "random"),
    "pretrained_frozen": Row("FGNet, pretrained encoder, frozen", MINI),
    "fine_tuned": Row("FGNet, pretrained encoder, fine-tuned", MINI, frozen=False),
    "plain_attention": Row("FGNet frozen, F' = F a", replace(MINI, attention="plain")),
    "per_channel": Row("FGNet frozen, one map per channel", replace(MINI, attention="per_channel")),
}
for _name in ("unet", "random_frozen", "pretrained_frozen", "fine_tuned"):
    for _sections in (5, 20):
        ROWS[f"{_name}_{_sections}"] = replace(
            ROWS[_name], title=f"{ROWS[_name].title}, {_sections} sections", sections=_sections
        )
for _size in ("tiny", "small", "base_plus", "large"):
    ROWS[f"sam2_{_size}"] = Row(
        f"FGNet, SAM2.1 {_size}, frozen", replace(MINI, encoder=_size), f"sam2.1_hiera_{_size}.pt"
    )


def training(row: Row, seed: int) -> TrainConfig:
    """How a row is trained; the same for all but for what the row is about."""
    return TrainConfig(
        patch=(8, 128, 128),
        iterations=row.iterations,
        learning_rate=2e-3,
        warmup=50,
        ema=0.99,
        freeze_encoder=row.frozen,
        checkpoint_every=100,
        seed=seed,
    )


def checkpoint(row: Row) -> Path | None:
    """The encoder's first weights, None for random ones.

    Raises:
        OSError: they are neither here nor in the cache.
    """
    if row.encoder == "random" or row.config.encoder is None:
        return None
    if row.encoder == "pretrained":
        return PRETRAINED / "encoder_mini.pt"
    return fetch(row.encoder, download=False)


def trained(row: Row, seed: int, work: Path) -> tuple[FGNet, dict]:
    """The trained model, and what training took."""
    torch.manual_seed(seed)
    model = FGNet(row.config, checkpoint(row)).to(choose_device())
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
        "loss": [float(np.mean(history.loss[i : i + 20])) for i in range(0, len(history.loss), 20)],
    }


def predicted(model: FGNet, volume: Volume, rescale: bool) -> Prediction:
    """Affinities in the volume's own voxels, predicted in FIB-25's voxels in-plane where `rescale`."""
    if not rescale:
        return predict(model, volume.raw, progress=False)
    zoom = (1, *(size / TRAINED_NM for size in volume.voxel_size[1:]))
    small = ndimage.zoom(volume.raw, zoom, order=1, grid_mode=True, mode="nearest")
    found = predict(model, small, progress=False)
    back = (1, *(n / m for n, m in zip(volume.shape, small.shape, strict=True)))

    def grown(affinities: np.ndarray | None) -> np.ndarray | None:
        if affinities is None:
            return None
        return ndimage.zoom(affinities, back, order=1, grid_mode=True, mode="nearest").clip(0, 1)

    return Prediction(grown(found.refined), grown(found.coarse), found.attention)


def scored(segmentation: np.ndarray, volume: Volume) -> dict:
    """VOI split, VOI merge, ARAND, and the neurons with the largest shares of them."""
    report = neuron_report(segmentation, volume.labels, volume.voxel_size, top=5)
    worst = [[error.kind, error.label, error.bits] for error in (*report.splits, *report.merges)]
    return {**asdict(evaluate(segmentation, volume.labels)), "segments": len(np.unique(segmentation)), "worst": worst}


def measured(model: FGNet, thresholds: dict[str, float]) -> dict[str, dict]:
    """Scores of A_r and A_s on every volume that is here, and of the fragments that A_r's segmentation starts from."""
    found = {}
    for name, rescale in VOLUMES.items():
        try:
            volume = open_dataset(name, "val").load()
        except OSError:
            continue
        start = time.perf_counter()
        prediction = predicted(model, volume, rescale)
        found[name] = {"seconds": time.perf_counter() - start, "voxels": int(np.prod(volume.shape))}
        for output, threshold in thresholds.items():
            affinities = getattr(prediction, output)
            found[name][output] = scored(segment(affinities, volume.voxel_size, threshold), volume)
            found[name][f"{output}_fragments"] = scored(fragments(affinities, volume.voxel_size), volume)
            if name == "fib25":  # for the plot of split against merge; nothing is chosen here
                steps = sweep(affinities, volume.voxel_size, THRESHOLDS)
                found[name][f"{output}_curve"] = [[t, *voi(step, volume.labels)] for t, step in steps.items()]
    return found


def chosen_thresholds(model: FGNet) -> dict[str, float]:
    """For A_r and A_s, the threshold with the least VOI on the last 20 sections of the training part."""
    volume = open_dataset("fib25", "train").load()[SECTIONS:, :, :]
    prediction = predict(model, volume.raw, progress=False)
    found = {}
    for output in ("refined", "coarse"):
        if (affinities := getattr(prediction, output)) is not None:
            steps = sweep(affinities, volume.voxel_size, THRESHOLDS)
            found[output] = best_threshold({t: asdict(evaluate(step, volume.labels)) for t, step in steps.items()})
    return found


def attention_measured(model: FGNet, threshold: float) -> dict:
    """Is attention used? Its relation to membranes and errors, and VOI when it is set to 0, to its mean, or to 1."""
    volume = open_dataset("fib25", "val").load()
    widened = widen_borders(volume.labels, in_3d=not is_anisotropic(volume.voxel_size))
    prediction = predict(model, volume.raw, progress=False)
    error = np.abs(prediction.refined - affinities_from_labels(widened)).mean(axis=0)
    found: dict = {}
    for level, (a, stride) in enumerate(zip(prediction.attention, STRIDES, strict=True), start=1):
        weights = a.repeat(stride, 1).repeat(stride, 2)[:, : volume.shape[1], : volume.shape[2]]
        found[f"a{level}"] = {
            "auc_membrane": roc_auc(weights, widened == 0),
            "correlation_with_error": float(np.corrcoef(weights.ravel(), error.ravel())[0, 1]),
            "mean": float(weights.mean()),
            "std": float(weights.std()),
        }
        for value in (0.0, "mean", 1.0):
            with attention_set_to(model, level, value):
                affinities = predict(model, volume.raw, progress=False).refined
            found[f"a{level}"][f"set_to_{value}"] = asdict(
                evaluate(segment(affinities, volume.voxel_size, threshold), volume.labels)
            )
    return found


def run_row(name: str, seed: int, work: Path) -> dict:
    """Train and evaluate one row with one seed."""
    row = ROWS[name]
    model, took = trained(row, seed, work)
    thresholds = chosen_thresholds(model)
    found = {"training": took, "thresholds": thresholds, "volumes": measured(model, thresholds)}
    if model.config.encoder and model.config.refined:
        found["attention"] = attention_measured(model, thresholds["refined"])
    return found


def run_shipped() -> dict:
    """The shipped model, by the same yardstick."""
    model = load_pretrained(device=choose_device())
    thresholds = chosen_thresholds(model)
    parameters = sum(p.numel() for p in model.parameters())
    return {
        "training": {"trainable": parameters, "parameters": parameters},
        "thresholds": thresholds,
        "volumes": measured(model, thresholds),
        "attention": attention_measured(model, thresholds["refined"]),
    }


def run_references() -> dict:
    """What came with the crops: watershed fragments, and the published FFN segmentation of FIB-25's validation part."""
    folder, found = Path(os.environ["FGNET_DATA_DIR"]), {}
    for name in VOLUMES:
        if (name, "val") not in CROPS or not (folder / CROPS[name, "val"]).is_file():
            continue
        volume = open_dataset(name, "val").load()
        with h5py.File(folder / CROPS[name, "val"]) as file:
            there = {key: file[f"volumes/labels/{key}"][:] for key in ("fragments", "ffn_baseline")
                     if f"volumes/labels/{key}" in file}  # fmt: skip
        if "ffn_baseline" in there:
            ffn = there.pop("ffn_baseline")
            nearest = ndimage.distance_transform_edt(ffn == 0, return_distances=False, return_indices=True)
            there["ffn_filled"] = ffn[tuple(nearest)]
            known = replace(volume, labels=np.where(ffn == 0, 0, volume.labels))
            found.setdefault(name, {})["ffn_ignored"] = scored(ffn, known) | {"coverage": float((ffn > 0).mean())}
        for key, labels in there.items():
            found.setdefault(name, {})[key] = scored(labels, volume)
    return {"volumes": found}


def runs() -> list[tuple[str, int]]:
    """Every run in order: one seed of all rows before the next, so that a table cut short compares what it has."""
    return [("references", 0), ("shipped", 0)] + [(name, seed) for seed in SEEDS for name in ROWS]


def path_of(name: str, seed: int) -> Path:
    return RESULTS / f"{name}-{seed}.json"


def do(name: str, seed: int, work: Path) -> None:
    """One run, in a process of its own so that its peak of memory is its own; writes its file."""
    found = {"references": run_references, "shipped": run_shipped}.get(name, lambda: run_row(name, seed, work))()
    declared = asdict(ROWS[name]) | {"training": asdict(training(ROWS[name], seed))} if name in ROWS else {}
    found = {
        "row": name,
        "seed": seed,
        "declared": json.loads(json.dumps(declared)),
        "machine": machine(),
        "date": date.today().isoformat(),
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        **found,
    }
    with atomic(path_of(name, seed)) as part:
        part.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def machine() -> str:
    """What ran this, for whoever compares minutes."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, {gpu}"


def missing(name: str) -> str:
    """What a row cannot run without and is not here; empty if nothing."""
    if name in ROWS:
        try:
            path = checkpoint(ROWS[name])
        except OSError as error:
            return str(error)
        if path is not None and not path.is_file():
            return f"{path} is not here: make encoder"
    return "" if os.environ.get("FGNET_DATA_DIR") else "FGNET_DATA_DIR is not set: the rows need FIB-25"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", nargs="*", help="only these")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no further run after so long")
    parser.add_argument("--work", type=Path, default=ROOT / "out" / "results", help="checkpoints, to resume from")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)  # row and seed: what the subprocess does
    arguments = parser.parse_args()
    if arguments.one:
        name, seed = arguments.one[0], int(arguments.one[1])
        return do(name, seed, arguments.work / f"{name}-{seed}")
    started, failed = time.monotonic(), []
    for name, seed in runs():
        if (arguments.rows and name not in arguments.rows) or path_of(name, seed).exists():
            continue
        if lacking := missing(name):
            print(f"{name}, seed {seed}: not measured. {lacking}")
            continue
        if time.monotonic() - started > 60 * arguments.minutes:
            break
        folder = arguments.work / f"{name}-{seed}"
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue  # another terminal does it
            if path_of(name, seed).exists():
                continue  # another terminal was quicker
            print(f"{name}, seed {seed}, after {(time.monotonic() - started) / 60:.0f} minutes", flush=True)
            command = [sys.executable, __file__, "--work", str(arguments.work), "--one", name, str(seed)]
            if subprocess.run(command).returncode:
                failed.append(f"{name}, seed {seed}")
    if failed:
        sys.exit(f"failed, and will be tried again by the next make results: {'; '.join(failed)}")


if __name__ == "__main__":
    main()
