"""Where the time goes, in ratios within one run (`make bench`); writes bench.json and bench.md in docs/measured/.

Absolute times belong to the machine that is named on the page. Nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
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
from torch.utils.flop_counter import FlopCounterMode

from fgnet_lib import inference
from fgnet_lib.configuration import MINI, FGNetConfig
from fgnet_lib.datasets import open_dataset
from fgnet_lib.fgnet import FGNet
from fgnet_lib.inference import TILE, predict
from fgnet_lib.losses import fgnet_loss
from fgnet_lib.machine import ThinConv3d, choose_device, hardware
from fgnet_lib.memory import peak_bytes
from fgnet_lib.phantom import make_phantom
from fgnet_lib.segmentation import fragments, sweep
from fgnet_lib.study.rows import ROWS, SMALL, training
from fgnet_lib.study.runs import MODEL, name_weights
from fgnet_lib.volumes import Volume
from fgnet_lib.weights import load_pretrained

DOCS = Path(__file__).resolve().parents[2] / "docs" / "measured"
UNET = FGNetConfig(encoder=None, widths=(28, 36, 48, 64, 80), dense_levels=5)  # a slim one; the field's is in peer.py
PATCH = (1, 1, 16, 128, 128)
REPEATS = 3
STEPS = {  # of a prediction: what the page calls them, and the model's part
    "guide": "encoder",
    "Fine-Grained Encoder and attention": "fine_encoder",
    "refined decoder": "refined_decoder",
    "coarse decoder": "coarse_decoder",
}
T4_BYTES = 15 * 2**30  # the memory that a course's GPU has for this


def seconds(task: Callable[[], object]) -> float:
    """Median time of a few calls after one that warms up."""
    task()
    return statistics.median(time_call(task) for _ in range(REPEATS))


def time_call(task: Callable[[], object]) -> float:
    """Time of one call, work on a GPU included."""
    start = now()
    task()
    return now() - start


def now() -> float:
    """Seconds on a clock, read when a GPU has done its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def naive_patches(model, raw, windows, encode, bar):
    """What `inference._patches` does, with every window encoded anew."""
    (depth, height, width), device = windows.size, next(model.parameters()).device
    for (y, x), z in product(windows.columns, windows.starts[0]):
        sections = inference._to_tensor(raw[z : z + depth, y : y + height, x : x + width], windows.size, device)
        output = model(sections)
        yield (z, y, x), {"refined": output.refined[0].sigmoid(), "coarse": output.coarse[0].sigmoid()}


def feature_reuse(name: str, model: FGNet, raw: np.ndarray) -> list[dict]:
    """Encoding each section once per tile column, against once per window; the affinities must be equal."""
    rows = []
    for overlap in (0.25, 0.5, 0.75):
        task = partial(predict, model, raw, overlap=overlap, progress=False)
        every = mock.patch.object(inference, "_patches", naive_patches)(task)
        np.testing.assert_allclose(task().refined, every().refined, atol=1e-4)
        pairs = [(time_call(task), time_call(every)) for _ in range(REPEATS)]  # in turn: the machine's pace changes
        reused, naive = map(statistics.median, zip(*pairs, strict=True))
        windows = inference.lay_windows(raw.shape, TILE, overlap)
        rows.append({
            "model": name, "overlap": overlap, "windows": len(windows.starts[0]) * windows.size[0] / raw.shape[0],
            "reused_s": reused, "naive_s": naive, "ratio": naive / reused,
        })  # fmt: skip
    return rows


def reuse(mini: FGNet, column: np.ndarray) -> list[dict]:
    """For the shipped guide and one of SAM2's, whose share of the time is larger."""
    torch.manual_seed(0)
    tiny = FGNet(FGNetConfig(encoder="tiny")).to(next(mini.parameters()).device).eval()
    return feature_reuse("the shipped model", mini, column) + feature_reuse("SAM2.1 tiny", tiny, column)


def models(raw: np.ndarray) -> list[dict]:
    """FGNet, its parts and the plain U-Net: speed and memory of inference and of training."""
    candidates = {
        "the shipped model": load_pretrained().config,
        "FGNet mini": MINI,
        "FGNet mini, DW Blocks at all strides": replace(MINI, dense_levels=0),
        "FGE alone (no SAM2)": replace(MINI, encoder=None),
        "SAM2 alone": replace(MINI, refined=False),
        "plain 3D U-Net 28/36/48/64/80": UNET,
    }
    rows, fresh = [], multiprocessing.get_context("spawn")
    for name, config in candidates.items():  # a process each, so that its peak of memory is its own
        with ProcessPoolExecutor(1, fresh) as pool:
            rows.append({"model": name, **pool.submit(one_model, config, raw).result()})
    return rows


def one_model(config: FGNetConfig, raw: np.ndarray) -> dict:
    """Speed and peak memory of predicting a volume and of training, in this process or on its GPU."""
    torch.manual_seed(0)
    model = FGNet(config).to(choose_device())
    inferred, with_inference = seconds(partial(predict, model, raw, progress=False)), peak()
    trained = seconds(partial(training_step, model.train()))
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "mvox_per_s": raw.size / 1e6 / inferred,
        "inference_mb": with_inference / 1e6,
        "iterations_per_s": 1 / trained,
        "training_mb": peak() / 1e6,
    }


def peak() -> int:
    """Bytes of this process, or of its GPU where there is one."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else peak_bytes()


def thin(raw: np.ndarray) -> dict[str, float]:
    """The small model of the results with PyTorch's own convolution, over with `ThinConv3d`, on one thread."""
    torch.manual_seed(0)
    model, threads = FGNet(SMALL), torch.get_num_threads()
    tasks = {
        "training": partial(training_step, model.train(), (1, 1, *training(ROWS["unet"], 0).patch)),
        "prediction": partial(predict, model, raw, progress=False),
    }
    torch.set_num_threads(1)
    try:
        ours = {name: seconds(task) for name, task in tasks.items()}
        with mock.patch.object(ThinConv3d, "forward", nn.Conv3d.forward):
            return {name: seconds(task) / ours[name] for name, task in tasks.items()}
    finally:
        torch.set_num_threads(threads)


def throughput(model: FGNet, dtype: torch.dtype, compiled: bool, tile: tuple[int, ...] = TILE) -> dict:
    """A window through the network: MVox/s, 10^12 operations a second, and the most memory of the GPU."""
    patch = torch.rand((1, 1, *tile), device=next(model.parameters()).device)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(patch)
    network = torch.compile(model) if compiled else model

    @torch.no_grad()
    def once() -> None:
        with torch.autocast(patch.device.type, dtype):
            network(patch)

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    elapsed = seconds(once)
    return {
        "mvox_per_s": patch.numel() / 1e6 / elapsed,
        "tflops": counter.get_total_flops() / 1e12 / elapsed,
        "peak_mb": peak() / 1e6,
    }


def matrix_rate(device: torch.device, dtype: torch.dtype, side: int = 8192) -> float:
    """10^12 operations a second of a product of two square matrices: what the device gives at best."""
    matrix = torch.rand((side, side), device=device).to(dtype)
    return 2 * side**3 / 1e12 / seconds(lambda: matrix @ matrix)


def on_gpu() -> list[dict]:
    """FGNet around SAM2's smallest and largest encoder, in half precisions, with and without torch.compile."""
    device, rows = choose_device("cuda"), []
    torch.cuda.set_per_process_memory_fraction(min(1.0, T4_BYTES / torch.cuda.get_device_properties(0).total_memory))
    for dtype in (torch.float16, torch.bfloat16):
        best = matrix_rate(device, dtype)
        for size, compiled in product(("tiny", "large"), (False, True)):
            model = FGNet(FGNetConfig(encoder=size)).to(device).eval()
            rates = throughput(model, dtype, compiled)
            rows.append({"encoder": size, "dtype": str(dtype), "compiled": compiled, "best_tflops": best, **rates})
    return rows


def training_step(model: nn.Module, patch: tuple[int, ...] = PATCH) -> None:
    """Forwards, loss, backwards of one patch."""
    device = next(model.parameters()).device
    raw = torch.rand(patch, device=device)
    target = (torch.rand((1, 3, *patch[2:]), device=device) > 0.1).float()
    fgnet_loss(model(raw), target, torch.ones_like(target, dtype=torch.bool)).backward()
    model.zero_grad()


@torch.inference_mode()
def parts(model: FGNet, volume: Volume) -> dict[str, float]:
    """Seconds of each step from grey values to neurons, for one volume."""
    prediction = predict(model, volume.raw, progress=False)
    pieces = fragments(prediction.refined, volume.voxel_size)
    runs = [prediction_steps(model, volume.raw) for _ in range(REPEATS)]
    times = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
    times["fragments"] = seconds(lambda: fragments(prediction.refined, volume.voxel_size))
    times["agglomeration"] = seconds(lambda: sweep(prediction.refined, volume.voxel_size, [0.5], pieces))
    return times


def prediction_steps(model: FGNet, raw: np.ndarray) -> dict[str, float]:
    """Seconds of each part of the model while one volume is predicted, and of the rest of that prediction."""
    times, began, hooks = dict.fromkeys(STEPS, 0.0), {}, []

    def start(name: str, *_) -> None:
        began[name] = now()

    def stop(name: str, *_) -> None:
        times[name] += now() - began[name]

    for name, module in STEPS.items():
        hooks.append(getattr(model, module).register_forward_pre_hook(partial(start, name)))
        hooks.append(getattr(model, module).register_forward_hook(partial(stop, name)))
    total = time_call(lambda: predict(model, raw, progress=False))
    for hook in hooks:
        hook.remove()
    return times | {"blending and the rest": total - sum(times.values())}


def page(results: dict) -> str:
    """docs/measured/bench.md."""
    lines = [
        "# Benchmarks\n",
        f"`make bench`, {results['date']}, {results['machine']}. Medians of {REPEATS}: compare within a table,",
        "not across machines.\n",
        f"## A volume of {' x '.join(map(str, results['shape']))} voxels, step by step (the shipped model)\n",
        "| step | seconds | share |\n|---|---|---|",
    ]
    total = sum(results["parts"].values())
    lines += [f"| {name} | {value:.2f} | {value / total:.0%} |" for name, value in results["parts"].items()]
    lines += [
        "\nA single patch that is thin in z goes to PyTorch's slow loop; with its axes turned (`machine.ThinConv3d`)",
        f"the small models of docs/results.md train {results['thin']['training']:.2f} times and predict",
        f"{results['thin']['prediction']:.2f} times as fast on one thread (patches of 8 x 128 x 128).",
        "\n## Models\n",
        "On 32 of these sections. The rate depends on how well windows fit; they fit FIB-25's validation part better: "
        "see results.md.\n",
        "| model | parameters | inference, MVox/s | peak, MB | training, patches/s | peak, MB | inference, ratio |",
        "|---|---|---|---|---|---|---|",
    ]
    base = results["models"][0]["mvox_per_s"]
    for row in results["models"]:
        lines.append(
            f"| {row['model']} | {row['parameters']:,} | {row['mvox_per_s']:.2f} | {row['inference_mb']:.0f} "
            f"| {row['iterations_per_s']:.2f} | {row['training_mb']:.0f} | {row['mvox_per_s'] / base:.2f} |"
        )
    lines += [
        "\n## The guide's features reused along z\n",
        "Each section encoded once per tile column, against once per window; same affinities. Reuse cannot make the",
        "encoder faster by more than the number of windows that a section is in, and nothing else. Far from the ends",
        "of a volume that is 1 / (1 - overlap); the default is 0.25. A column of tiles, 64 sections deep; SAM2.1's",
        "weights are random.\n",
        "| encoder | overlap | windows that a section is in | reused, s | every window, s | ratio |",
        "|---|---|---|---|---|---|",
    ]
    for row in results["reuse"]:
        lines.append(
            f"| {row['model']} | {row['overlap']} | {row['windows']:.2f} "
            f"| {row['reused_s']:.1f} | {row['naive_s']:.1f} | {row['ratio']:.2f} |"
        )
    lines += gpu_lines(results["gpu"])
    return "\n".join(lines) + "\n"


def gpu_lines(results: list[dict]) -> list[str]:
    """The page's part about a GPU."""
    lines = ["\n## Half precision on a GPU, within the memory of a T4\n"]
    if not results:
        return [*lines, "Not measured: this machine has no GPU. `make bench` measures it where there is one."]
    lines += [
        f"One window of {' x '.join(map(str, TILE))} voxels; share of the rate of a product of large matrices.\n",
        "| encoder | precision | torch.compile | MVox/s | peak, MB | share of the matrix rate |",
        "|---|---|---|---|---|---|",
    ]
    return lines + [
        f"| {row['encoder']} | {row['dtype'].removeprefix('torch.')} | {'yes' if row['compiled'] else 'no'} "
        f"| {row['mvox_per_s']:.2f} | {row['peak_mb']:.0f} | {row['tflops'] / row['best_tflops']:.0%} |"
        for row in results
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=DOCS)
    out = parser.parse_args().out
    device = choose_device()
    model, volume = load_pretrained(device=device), open_dataset("phantom", "train").load()
    results = {
        "date": date.today().isoformat(),
        "machine": hardware(),
        "weights": name_weights(MODEL),
        "shape": list(volume.shape),
        "parts": parts(model, volume),
        "thin": thin(volume.raw[:32]),
        "models": models(volume.raw[:32]),
        "reuse": reuse(model, make_phantom((64, *TILE[1:]), seed=1).raw),
        "gpu": on_gpu() if device.type == "cuda" else [],
    }
    (out / "bench.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (out / "bench.md").write_text(page(results), encoding="utf-8")
    print(page(results))


if __name__ == "__main__":
    main()
