"""Where the time goes, in ratios within one run (`make bench`); writes docs/bench.json and docs/bench.md.

Absolute times belong to the machine that is named on the page. Nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from functools import partial
from itertools import product
from pathlib import Path
from unittest import mock

import fgnet_lib  # noqa: F401  before torch: it tells torch's threads how to wait

# isort: split
import numpy as np
import torch
from torch import nn

from fgnet_lib import inference
from fgnet_lib.datasets import open_dataset
from fgnet_lib.devices import choose_device
from fgnet_lib.fgnet import MINI, FGNet, FGNetConfig, load_pretrained
from fgnet_lib.inference import predict
from fgnet_lib.losses import fgnet_loss
from fgnet_lib.segmentation import fragments, sweep

DOCS = Path(__file__).resolve().parents[1] / "docs"
UNET = FGNetConfig(encoder=None, widths=(28, 36, 48, 64, 80), dense_levels=5)  # the field's plain 3D U-Net
PATCH = (1, 1, 16, 128, 128)
REPEATS = 3


def seconds(task: Callable[[], object]) -> float:
    """Median time of a few calls after one that warms up."""
    times = []
    for _ in range(REPEATS + 1):
        start = time.perf_counter()
        task()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def naive_patches(model, raw, those, encode, bar):
    """What `inference._patches` does, with every window encoded anew."""
    (depth, height, width), device = those.size, next(model.parameters()).device
    for (y, x), z in product(those.columns, those.starts[0]):
        sections = inference._to_tensor(raw[z : z + depth, y : y + height, x : x + width], those.size, device)
        output = model(sections)
        yield (z, y, x), {"refined": output.refined[0].sigmoid(), "coarse": output.coarse[0].sigmoid()}


def feature_reuse(model: FGNet, raw: np.ndarray) -> list[dict]:
    """Encoding each section once per tile column, against once per window; the affinities must be equal."""
    found = []
    for overlap in (0.25, 0.5, 0.75):
        task = partial(predict, model, raw, overlap=overlap, progress=False)
        reused, ours = seconds(task), task().refined
        with mock.patch.object(inference, "_patches", naive_patches):
            naive = seconds(task)
            np.testing.assert_allclose(task().refined, ours, atol=1e-4)
        found.append({"overlap": overlap, "reused_s": reused, "naive_s": naive, "ratio": naive / reused})
    return found


def models(raw: np.ndarray, device: torch.device) -> list[dict]:
    """FGNet, its parts and the plain U-Net: speed of inference and of training."""
    candidates = {
        "FGNet mini": MINI,
        "FGNet mini, DW Blocks at all strides": replace(MINI, dense_levels=0),
        "FGE alone (no SAM2)": replace(MINI, encoder=None),
        "SAM2 alone": replace(MINI, refined=False),
        "plain 3D U-Net 28/36/48/64/80": UNET,
    }
    found = []
    for name, config in candidates.items():
        torch.manual_seed(0)
        model = FGNet(config).to(device)
        inferred = seconds(partial(predict, model, raw, progress=False))
        trained = seconds(partial(training_step, model.train()))
        found.append({
            "model": name, "parameters": sum(p.numel() for p in model.parameters()),
            "mvox_per_s": raw.size / 1e6 / inferred, "iterations_per_s": 1 / trained,
        })  # fmt: skip
    return found


def training_step(model: nn.Module) -> None:
    """Forwards, loss, backwards of one patch."""
    device = next(model.parameters()).device
    raw = torch.rand(PATCH, device=device)
    target = (torch.rand((1, 3, *PATCH[2:]), device=device) > 0.1).float()
    fgnet_loss(model(raw), target, torch.ones_like(target, dtype=torch.bool)).backward()
    model.zero_grad()


@torch.inference_mode()
def parts(model: FGNet, volume) -> dict[str, float]:
    """Seconds of each step from grey values to neurons, for one volume."""
    device = next(model.parameters()).device
    tile = torch.rand((1, 1, 16, 160, 160), device=device)
    features = model.encode(tile)
    pyramid = model.fine_encoder(tile, features)[0]
    projected = [conv(f) for conv, f in zip(model.project, features, strict=True)]
    prediction = predict(model, volume.raw, progress=False)
    pieces = fragments(prediction.refined, volume.voxel_size)
    tiles = _tiles(volume.raw.shape)
    per_tile = {
        "SAM2 encoder": lambda: model.encode(tile),
        "Fine-Grained Encoder and attention": lambda: model.fine_encoder(tile, features),
        "refined decoder": lambda: model.refined_decoder(pyramid),
        "coarse decoder": lambda: model.coarse_decoder(projected),
    }
    found = {name: tiles * seconds(task) for name, task in per_tile.items()}
    found["blending and the rest"] = seconds(lambda: predict(model, volume.raw, progress=False)) - sum(found.values())
    found["fragments"] = seconds(lambda: fragments(prediction.refined, volume.voxel_size))
    found["agglomeration"] = seconds(lambda: sweep(prediction.refined, volume.voxel_size, [0.5], pieces))
    return found


def _tiles(shape: tuple[int, int, int], tile: tuple[int, int, int] = (16, 160, 160), overlap: float = 0.25) -> int:
    """How many windows `predict` needs for a volume; in y and x it is padded to multiples of 32."""
    return len(inference.windows(shape, tile, overlap))


def page(found: dict) -> str:
    """docs/bench.md."""
    lines = [
        "# Benchmarks\n",
        f"`make bench`, {found['date']}, {found['machine']}. Medians of {REPEATS}: compare within a table,",
        "not across machines. Not measured here: a GPU. The same command measures yours.\n",
        f"## A volume of {' x '.join(map(str, found['shape']))} voxels, step by step (mini model)\n",
        "| step | seconds | share |\n|---|---|---|",
    ]
    total = sum(found["parts"].values())
    lines += [f"| {name} | {value:.2f} | {value / total:.0%} |" for name, value in found["parts"].items()]
    lines += [
        "\n## Models\n",
        "| model | parameters | inference, MVox/s | training, patches/s | inference against FGNet mini |",
        "|---|---|---|---|---|",
    ]
    base = found["models"][0]["mvox_per_s"]
    for one in found["models"]:
        lines.append(
            f"| {one['model']} | {one['parameters']:,} | {one['mvox_per_s']:.2f} | {one['iterations_per_s']:.2f} "
            f"| {one['mvox_per_s'] / base:.2f} |"
        )
    lines += [
        "\n## SAM2's features reused along z\n",
        "Each section encoded once per tile column, against once per window; same affinities. Windows that overlap by",
        "a share p meet a section 1 / (1 - p) times, so that is the most that reuse can save of the encoder's time.\n",
        "| overlap | reused, s | every window, s | ratio | most possible for the encoder alone |",
        "|---|---|---|---|---|",
    ]
    for one in found["reuse"]:
        lines.append(
            f"| {one['overlap']} | {one['reused_s']:.1f} | {one['naive_s']:.1f} | {one['ratio']:.2f} "
            f"| {1 / (1 - one['overlap']):.2f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=DOCS)
    out = parser.parse_args().out
    device = choose_device()
    model, volume = load_pretrained(device=device), open_dataset("phantom", "val").load()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    found = {
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, {gpu}",
        "shape": list(volume.shape),
        "parts": parts(model, volume),
        "models": models(volume.raw, device),
        "reuse": feature_reuse(model, volume.raw),
    }
    (out / "bench.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (out / "bench.md").write_text(page(found), encoding="utf-8")
    print(page(found))


if __name__ == "__main__":
    main()
