"""Measure what enlarging sections before the encoder brings and costs (`FGNetConfig.guide_zoom`), without training.

Prints a table: how well a weighted sum of a guide's channels tells membranes from interiors on training sections of
FIB-25, and milliseconds for a section.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator

import fgnet_lib  # noqa: F401  before torch: it tells torch's threads how to wait

# isort: split
import numpy as np
import torch
import torch.nn.functional as F

from fgnet_lib.affinities import widen_borders
from fgnet_lib.configuration import MINI, ZOOMS, FGNetConfig
from fgnet_lib.datasets import open_dataset
from fgnet_lib.fgnet import FGNet
from fgnet_lib.metrics import roc_auc
from fgnet_lib.study.rows import SHIPPED
from fgnet_lib.volumes import Volume
from fgnet_lib.weights import PRETRAINED

FIT, JUDGE = slice(0, 4), slice(120, 124)  # sections of FIB-25's training part, 250 x 250 voxels each
PENALTY = 0.01
REPEATS = 3
GUIDES = {  # name -> encoder, file of its weights
    "mini, random": ("mini", None),
    "mini, pretrained": ("mini", SHIPPED["pretrained"]),
    "natural, random": ("natural", None),
    "natural, ImageNet": ("natural", SHIPPED["natural"]),
}


def build(guide: str, zoom: int) -> FGNet:
    """A model of nothing but a guide and its coarse decoder; random weights are the same at every zoom."""
    torch.manual_seed(0)
    encoder, weights = GUIDES[guide]
    config = FGNetConfig(encoder, widths=MINI.widths, coarse_width=MINI.coarse_width, refined=False, guide_zoom=zoom)
    return FGNet(config, PRETRAINED / weights if weights else None).eval()


@torch.inference_mode()
def features_of(model: FGNet, section: np.ndarray) -> torch.Tensor:
    """Features (C + 1, y x) of a section (y, x) at every voxel: a constant, then those of all maps, finest first."""
    raw = torch.from_numpy(section[None, None, None].astype(np.float32) / 255)
    height, width = section.shape
    maps = [
        F.interpolate(features[:, :, 0], scale_factor=stride, mode="bilinear")[0, :, :height, :width].flatten(1)
        for features, stride in zip(model.encode(raw), model.config.strides, strict=True)
    ]
    return torch.cat([torch.ones(1, height * width), *maps])


def read_out(model: FGNet, volume: Volume) -> list[float]:
    """AUC for membranes of weighted sums of channels, fitted by least squares on some sections, tested on others.

    Returns:
        AUC of all maps together, of the finest alone, and of the coarsest alone.
    """
    borders = widen_borders(volume.labels, in_3d=True) == 0
    channels = model.encoder.channels
    size, total = 1 + sum(channels), 0
    squares, products = torch.zeros(size, size, dtype=torch.float64), torch.zeros(size, dtype=torch.float64)
    for z in range(*FIT.indices(len(borders))):
        x = features_of(model, volume.raw[z])
        squares += (x @ x.T).double()
        products += (x @ torch.from_numpy(borders[z].ravel()).float()).double()
        total += x.shape[1]
    everything = torch.arange(size)
    kept = [everything, everything[: 1 + channels[0]], torch.cat([everything[:1], everything[-channels[2] :]])]
    weights = [solve(squares[own][:, own] / total, products[own] / total) for own in kept]
    scores: list[list[np.ndarray]] = [[] for _ in kept]
    for section in volume.raw[JUDGE]:
        x = features_of(model, section)
        for own, w, values in zip(kept, weights, scores, strict=True):
            values.append((w.float() @ x[own]).numpy())
    return [roc_auc(np.concatenate(values), borders[JUDGE]) for values in scores]


def solve(squares: torch.Tensor, products: torch.Tensor) -> torch.Tensor:
    """Least squares with a penalty that is as hard on every channel, whatever its size."""
    scale = squares.diag().sqrt().clamp(min=1e-6)
    scaled = squares / scale / scale[:, None] + PENALTY * torch.eye(len(squares), dtype=torch.float64)
    return torch.linalg.solve(scaled, products / scale) / scale


@torch.inference_mode()
def milliseconds(model: FGNet, section: np.ndarray) -> float:
    """Median time of encoding a section, after a first run to warm up."""
    raw, seconds = torch.from_numpy(section[None, None, None].astype(np.float32) / 255), []
    for _ in range(REPEATS + 1):
        start = time.perf_counter()
        model.encode(raw)
        seconds.append(time.perf_counter() - start)
    return 1e3 * statistics.median(seconds[1:])


def table(volume: Volume) -> Iterator[str]:
    yield "| guide | zoom | strides | AUC of all maps | finest map | coarsest map | ms a section |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for guide in GUIDES:
        for zoom in ZOOMS:
            model = build(guide, zoom)
            aucs = read_out(model, volume)
            strides = ", ".join(map(str, model.config.strides))
            yield f"| {guide} | {zoom} | {strides} | {' | '.join(f'{auc:.3f}' for auc in aucs)} | " + (
                f"{milliseconds(model, volume.raw[0]):.0f} |"
            )


def main() -> None:
    for line in table(open_dataset("fib25", "train").load()):
        print(line, flush=True)


if __name__ == "__main__":
    main()
