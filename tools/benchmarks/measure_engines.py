"""Measure what each engine makes of the shipped model, and of the field's U-Net; a part of `make bench`.

Also measures how far bfloat16 moves VOI, where the processor has it.
Writes engines.json and engines.md in docs/measured. Networks take turns, so that the machine's pace is the same for all
of them. Seconds are those of the processor, on one thread: they count what else runs on the machine least.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from datetime import date
from functools import partial
from itertools import product
from statistics import median
from unittest import mock

import numpy as np
import torch
from peer import build_peer

from fgnet_lib import REPOSITORY, inference
from fgnet_lib.configuration import MINI
from fgnet_lib.datasets import open_dataset
from fgnet_lib.engines.export import EXAMPLE, noise, to_onnx
from fgnet_lib.engines.quantisation import quantise
from fgnet_lib.engines.runtimes import BFLOAT16, LOADERS, choose_engine, installed_engines
from fgnet_lib.fgnet import FGNet
from fgnet_lib.inference import TILE, WIDE_TILE, Prediction, predict
from fgnet_lib.machine import hardware
from fgnet_lib.metrics import evaluate
from fgnet_lib.segmentation import sweep
from fgnet_lib.study.runs import MODEL, STUDENT, name_weights
from fgnet_lib.volumes import Volume
from fgnet_lib.weights import load_model, load_pretrained, pretrained_threshold, read_notes

DOCS = REPOSITORY / "docs" / "measured"
BEFORE = "before"  # the network that shipped until 2026-11-29, at random: what it computes takes as long
DEEP_TILE = (40, *WIDE_TILE[1:])  # as deep as the volume, so that no section is computed twice
SAMPLES = 24  # windows that calibrate 8 bits
EIGHT_BITS = "openvino, 8 bits"
CHECKPOINTS = {"shipped": "fgnet_mini", "student": "student"}  # model -> its name in `weights`
VOLUMES = ("fib25", "gala", "ac4", "cremi_b_mini")  # validation parts that bfloat16 is scored on
THRESHOLDS = (0.7, 0.75, 0.8, 0.85, 0.9)
PAGE = """\
# How fast each engine is

<!-- written by tools/benchmarks/measure_engines.py from engines.json; edit that tool instead -->

[Engines](../understand/engines.md) says what they are. Measured on {date}: {machine}.
Seconds of the processor on one thread, the networks by turns; medians of {window_rounds} rounds of a window and of
{rounds} of a volume. In the last minute of it {load:.1f} programs wanted a core, this one included; on a quiet machine
that is 1.

## The shipped model

A window has {tile} random voxels. The volume is FIB-25's validation part, {shape} voxels.
VOI is that at the shipped threshold; differences are those of refined affinities from PyTorch's.

| engine | window, ms | times PyTorch's speed | volume, s | times PyTorch's speed | mean difference | largest | VOI |
| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
{engines}{refused}

## Windows

The same volume in small and in wide windows. GroupNorm needs small ones; `ChannelNorm` does not see the window, so that
affinities move by what a window's rim lacks alone. The first row is the network that shipped until 2026-11-29
(GroupNorm, `MINI` with random weights), computed as it was then, in a process of its own. `predict` takes
16 x 256 x 256 by itself where there are 4 GB; windows as deep as this volume (`tile=(40, 256, 256)`) compute no section
twice, and take 1 GB more.

| engine | window | volume, s | times the first row's speed | mean difference from small windows | VOI |
| --- | --- | ---: | ---: | ---: | ---: |
{windows}

## Beside the field's 3D U-Net

The residual U-Net of Lee et al. 2017 with {peer_parameters:,} random weights, in the same engine and on the same window
(`tools/benchmarks/peer.py`; the shipped model has {parameters:,}, the shipped student {student_parameters:,}).

| engine | U-Net, ms | shipped model, ms | times the U-Net's speed | student, ms | times the U-Net's speed |
| --- | ---: | ---: | ---: | ---: | ---: |
{peers}

A conversion takes some seconds (10 s of the processor for OpenVINO), which is why `"auto"` converts for large volumes
only. On processors with bfloat16 or VNNI other ratios are to be expected: `make bench` measures them.

## How far bfloat16 moves VOI

{bfloat16}
"""
MOVED = """\
VOI in bits with affinities of `openvino_bf16` less VOI with PyTorch's: at the threshold of each model, and at {number}
thresholds from {first} to {last}, on average (without signs) and at most. 0.02 is what we tolerate.

| model | validation part of | mean difference of affinities | VOI, PyTorch | it moves by | on average | at most |
| --- | --- | ---: | ---: | ---: | ---: | ---: |
{rows}"""
NOT_MOVED = "Not measured, since this processor computes no bfloat16."
ALL_REFUSED = "Not measured, since no model that ships was near enough to PyTorch's affinities."


def calibration_windows(count: int) -> list[np.ndarray]:
    """Choose windows of FIB-25's training part, at random but always the same ones."""
    raw, rng = open_dataset("fib25", "train").load().raw, np.random.default_rng(0)
    corners = [[rng.integers(0, n - s + 1) for n, s in zip(raw.shape, TILE, strict=True)] for _ in range(count)]
    return [raw[tuple(slice(a, a + s) for a, s in zip(corner, TILE, strict=True))] for corner in corners]


def time_in_turns(tasks: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of the processor of each task, after a round that warms up; a task may give its own seconds."""
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(1 + rounds):
        for name, task in tasks.items():
            start = time.process_time()
            own = task()
            seconds[name].append(own if isinstance(own, float) else time.process_time() - start)
    return {name: median(times[1:]) for name, times in seconds.items()}


def peer_tasks(raw: torch.Tensor) -> dict[str, Callable[[], object]]:
    """A window through the field's U-Net, by engine."""
    peer = build_peer()
    tasks: dict[str, Callable[[], object]] = {"torch": lambda: peer(raw)}
    with torch.inference_mode(False):
        content = to_onnx(peer, {"raw": noise(EXAMPLE)}, ["affinities"], free=True)
    for engine in installed_engines()[1:]:
        network = LOADERS[engine](content, 1)
        tasks[engine] = partial(network, {"raw": raw.numpy()})
    return tasks


@torch.inference_mode()
def time_windows(networks: dict[str, dict[str, torch.nn.Module]], rounds: int) -> dict[str, dict[str, float]]:
    """Median seconds of one window of random values: of `networks` by whose they are and by engine, and of "peer"."""
    raw = torch.rand((1, 1, *TILE))
    tasks = {(whose, name): partial(net, raw) for whose, nets in networks.items() for name, net in nets.items()}
    tasks |= {("peer", name): task for name, task in peer_tasks(raw).items()}
    seconds: dict[str, dict[str, float]] = {}
    for (whose, name), value in time_in_turns(tasks, rounds).items():
        seconds.setdefault(whose, {})[name] = value
    return seconds


def by_engine(model: FGNet) -> tuple[dict[str, torch.nn.Module], dict[str, str]]:
    """A model by engine, PyTorch first; and of each engine that was refused, why."""
    networks, refused = {}, {}
    for engine in installed_engines():
        try:
            networks[engine] = choose_engine(model, engine, TILE, 0)
        except ArithmeticError as error:
            refused[engine] = str(error)
    return networks, refused


def list_refused(refused: dict[str, dict[str, str]], engines: Sequence[str]) -> str:
    """List in Markdown which of the engines were refused for which model, below a table; empty if none was."""
    lines = [
        f"- Refused, {model}: {reasons[engine]}."
        for engine, (model, reasons) in product(engines, refused.items())
        if engine in reasons
    ]
    return "\n".join(["\n", *lines]) if lines else ""


def compare(prediction: Prediction, reference: Prediction) -> tuple[float, float]:
    """The mean and the largest difference of two predictions' refined affinities."""
    difference = np.abs(prediction.refined - reference.refined)
    return float(difference.mean()), float(difference.max())


def score_voi(affinities: np.ndarray, volume: Volume, thresholds: Sequence[float]) -> list[float]:
    """VOI at each threshold."""
    segmentations = sweep(affinities, volume.voxel_size, thresholds, strict=False)
    scores = [evaluate(segmentations[threshold], volume.labels) for threshold in thresholds]
    return [each.voi_split + each.voi_merge for each in scores]


def measure_bfloat16(refused: dict[str, dict[str, str]]) -> list[dict]:
    """How far bfloat16 moves VOI of the models for which it is not refused; empty where the processor has none."""
    if BFLOAT16 not in installed_engines():
        return []
    rows = []
    for name, checkpoint in CHECKPOINTS.items():
        if BFLOAT16 in refused[name]:
            continue
        model, threshold = load_model(checkpoint), float(read_notes(checkpoint)["threshold"])
        for dataset in VOLUMES:
            volume = open_dataset(dataset, "val").load()
            ours, theirs = (
                predict(model, volume.raw, TILE, progress=False, engine=engine).refined
                for engine in ("torch", BFLOAT16)
            )
            ours_voi, theirs_voi = (np.array(score_voi(a, volume, (threshold, *THRESHOLDS))) for a in (ours, theirs))
            rows.append({
                "model": name, "dataset": dataset, "mean": float(np.abs(theirs - ours).mean()),
                "voi": float(ours_voi[0]), "moved": [float(move) for move in theirs_voi - ours_voi],
            })  # fmt: skip
    return rows


def time_before(raw: np.ndarray) -> float:
    """Seconds of the processor for a volume through the network of `BEFORE`, computed as it was then."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, start = FGNet(MINI).eval(), time.process_time()
    with mock.patch.multiple(inference, freed_memory_kept=nullcontext, ENCODED=2**63):
        predict(model, raw, TILE, progress=False, engine="torch")
    return time.process_time() - start


def measure_volume(networks: dict[str, torch.nn.Module], volume: Volume, rounds: int) -> tuple[list[dict], list[dict]]:
    """Time and score a volume by engine, in windows of `TILE`; and by engine and window, with what shipped before."""
    predictions: dict[tuple[str, tuple], Prediction] = {}

    def predict_with(name: str, tile: tuple[int, int, int]) -> None:
        predictions[name, tile] = predict(networks[name], volume.raw, tile, progress=False, engine="torch")

    runs = list(product(networks, (TILE, WIDE_TILE, DEEP_TILE)))
    tasks = {run: partial(predict_with, *run) for run in runs}
    # a process of its own: in this one, memory is not given back any more as it was then
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as then:
        tasks[BEFORE, TILE] = lambda: then.submit(time_before, volume.raw).result()
        seconds = time_in_turns(tasks, rounds)
    engines, windows = [], [{"engine": BEFORE, "tile": TILE, "volume_s": seconds[BEFORE, TILE]}]
    for name, tile in runs:
        prediction, row = predictions[name, tile], {"engine": name, "volume_s": seconds[name, tile]}
        row["voi"] = score_voi(prediction.refined, volume, [pretrained_threshold()])[0]
        windows.append(row | {"tile": tile, "mean": compare(prediction, predictions[name, TILE])[0]})
        if tile == TILE:
            mean, largest = compare(prediction, predictions["torch", TILE])
            engines.append(row | {"mean": mean, "largest": largest})
    return engines, windows


def measure(rounds: int) -> dict:
    """Measure everything that the page shows."""
    torch.set_num_threads(1)
    weights = name_weights(MODEL, STUDENT)
    model, volume = load_pretrained(), open_dataset("fib25", "val").load()
    student, refused = load_model("student"), {}
    networks, refused["shipped"] = by_engine(model)
    students, refused["student"] = by_engine(student)
    networks[EIGHT_BITS] = quantise(model, calibration_windows(SAMPLES))
    windows = time_windows({"model": networks, "student": students}, 3 * rounds)
    engines, in_windows = measure_volume(networks, volume, rounds)
    engines = [row | {"window_s": windows["model"][row["engine"]]} for row in engines]
    return {
        "date": date.today().isoformat(), "machine": hardware(), "rounds": rounds, "shape": list(volume.shape),
        "load": os.getloadavg()[0], "bfloat16": measure_bfloat16(refused), "refused": refused,
        "engines": engines, "windows": in_windows, "peer_s": windows["peer"], "student_s": windows["student"],
        "parameters": sum(p.numel() for p in model.parameters()),
        "student_parameters": sum(p.numel() for p in student.parameters()),
        "weights": weights,
        "peer_parameters": sum(p.numel() for p in build_peer().parameters()),
    }  # fmt: skip


def _beside(peer: float, seconds: float | None, digits: int) -> str:
    """Two cells: ms of a window, and how often as fast as the U-Net; where the engine was refused, that."""
    return "refused |" if seconds is None else f"{1000 * seconds:.0f} | {peer / seconds:.{digits}f}"


def page(results: dict) -> str:
    """docs/measured/engines.md."""
    rows = {row["engine"]: row for row in results["engines"]}
    window, volume = (rows["torch"][key] for key in ("window_s", "volume_s"))
    engines = [
        f"| {name} | {1000 * row['window_s']:.0f} | {window / row['window_s']:.2f} | {row['volume_s']:.1f} "
        f"| {volume / row['volume_s']:.2f} | {row['mean']:.1e} | {row['largest']:.1e} | {row['voi']:.3f} |"
        for name, row in rows.items()
    ]
    ours = {name: row["window_s"] for name, row in rows.items()}
    peers = [
        f"| {name} | {1000 * peer:.0f} | {_beside(peer, ours.get(name), 2)} "
        f"| {_beside(peer, results['student_s'].get(name), 1)} |"
        for name, peer in results["peer_s"].items()
    ]
    before = results["windows"][0]["volume_s"]
    windows = [
        f"| {row['engine']} | {' x '.join(map(str, row['tile']))} | {row['volume_s']:.1f} "
        f"| {before / row['volume_s']:.2f} | "
        + (f"{row['mean']:.1e} | {row['voi']:.3f} |" if "voi" in row else "random weights | |")
        for row in results["windows"]
    ]
    moved = [
        f"| {row['model']} | {row['dataset']} | {row['mean']:.1e} | {row['voi']:.3f} | {row['moved'][0]:+.3f} "
        f"| {np.abs(row['moved'][1:]).mean():.3f} | {max(row['moved'][1:], key=abs):+.3f} |"
        for row in results["bfloat16"]
    ]
    numbers = {"number": len(THRESHOLDS), "first": THRESHOLDS[0], "last": THRESHOLDS[-1]}
    in_bfloat16 = list_refused(results["refused"], [BFLOAT16])
    unmoved = ALL_REFUSED if in_bfloat16 else NOT_MOVED
    moves = MOVED.format(rows="\n".join(moved), **numbers) if moved else unmoved
    texts = {"bfloat16": moves + in_bfloat16, "refused": list_refused(results["refused"], LOADERS)}
    texts |= {"tile": " x ".join(map(str, TILE)), "shape": " x ".join(map(str, results["shape"]))}
    texts |= {
        "engines": "\n".join(engines),
        "windows": "\n".join(windows),
        "peers": "\n".join(peers),
        "window_rounds": 3 * results["rounds"],
    }
    return PAGE.format(**results | texts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="of each measurement of a volume's time")
    results = measure(parser.parse_args().rounds)
    (DOCS / "engines.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (DOCS / "engines.md").write_text(page(results), encoding="utf-8")
    print(page(results))


if __name__ == "__main__":
    main()
