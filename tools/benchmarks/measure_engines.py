"""Measure what each engine makes of the shipped model: speed, and VOI on FIB-25's validation part; prints a table.

Engines take turns, so that the machine's pace is the same for all of them. Seconds are those of the processor, on one
thread: they count what else runs on the machine least. The table of docs/measured/engines.md is this output.
"""

from __future__ import annotations

import argparse
import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch

import time
from collections.abc import Callable
from datetime import date
from statistics import median

import numpy as np
import torch

from fgnet_lib.datasets import open_dataset
from fgnet_lib.engines.quantisation import quantise
from fgnet_lib.engines.runtimes import choose_engine, installed_engines
from fgnet_lib.inference import Prediction, predict
from fgnet_lib.machine import hardware
from fgnet_lib.metrics import evaluate
from fgnet_lib.segmentation import sweep
from fgnet_lib.weights import load_pretrained, pretrained_threshold

TILE = (16, 160, 160)  # of `predict`
SAMPLES = 24  # windows that calibrate 8 bits


def calibration_windows(count: int) -> list[np.ndarray]:
    """Choose windows of FIB-25's training part, at random but always the same ones."""
    raw, rng = open_dataset("fib25", "train").load().raw, np.random.default_rng(0)
    corners = [[rng.integers(0, n - s + 1) for n, s in zip(raw.shape, TILE, strict=True)] for _ in range(count)]
    return [raw[tuple(slice(a, a + s) for a, s in zip(corner, TILE, strict=True))] for corner in corners]


def time_in_turns(tasks: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of the processor of each task, after a round that warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(1 + rounds):
        for name, task in tasks.items():
            start = time.process_time()
            task()
            seconds[name].append(time.process_time() - start)
    return {name: median(times[1:]) for name, times in seconds.items()}


@torch.inference_mode()
def time_window(networks: dict[str, torch.nn.Module], rounds: int) -> dict[str, float]:
    """Median seconds of one window of random values."""
    raw = torch.rand((1, 1, *TILE))
    return time_in_turns({name: lambda network=network: network(raw) for name, network in networks.items()}, rounds)


def compare(prediction: Prediction, reference: Prediction) -> tuple[float, float]:
    """The mean and the largest difference of two predictions' refined affinities."""
    difference = np.abs(prediction.refined - reference.refined)
    return float(difference.mean()), float(difference.max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="of each measurement of time")
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    model, volume = load_pretrained(), open_dataset("fib25", "val").load()
    networks: dict[str, torch.nn.Module] = {"torch": model}
    networks |= {engine: choose_engine(model, engine, TILE, 0) for engine in installed_engines()[1:]}
    networks["openvino, 8 bits"] = quantise(model, calibration_windows(SAMPLES))
    windows = time_window(networks, 3 * rounds)
    predictions: dict[str, Prediction] = {}

    def predict_with(name: str) -> None:
        predictions[name] = predict(networks[name], volume.raw, TILE, progress=False)

    volumes = time_in_turns({name: lambda name=name: predict_with(name) for name in networks}, rounds)
    print(f"{date.today()}, {hardware()}, FIB-25's validation part of {volume.shape} voxels\n")
    print("| engine | a window, ms | ratio | the volume, s | ratio | difference: mean | largest | VOI |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name in networks:
        threshold = pretrained_threshold()
        segmentation = sweep(predictions[name].refined, volume.voxel_size, [threshold])[threshold]
        scores = evaluate(segmentation, volume.labels)
        mean, largest = compare(predictions[name], predictions["torch"])
        print(
            f"| {name} | {1000 * windows[name]:.0f} | {windows['torch'] / windows[name]:.2f} | {volumes[name]:.1f} "
            f"| {volumes['torch'] / volumes[name]:.2f} | {mean:.1e} | {largest:.1e} "
            f"| {scores.voi_split + scores.voi_merge:.3f} |"
        )


if __name__ == "__main__":
    main()
