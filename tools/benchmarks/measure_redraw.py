"""Measure time and memory of a step of an explorer's section slider, at 512 x 512, all sections seen before.

Prints a table with the machine and the date. A step is the whole callback: panels, drawing, encoding, the table below.
Clock time is the time that a student waits; processor time is what remains of it where nothing else runs.
"""

from __future__ import annotations

import io
import os
import platform
import time
from collections.abc import Callable, Mapping
from datetime import date
from statistics import median

import numpy as np
import psutil
import torch
from matplotlib.figure import Figure

from fgnet_lib.phantom import make_phantom
from fgnet_lib.probing import Inspector
from fgnet_lib.sam2_encoder import STRIDES
from fgnet_lib.views import explorers, plots
from fgnet_lib.views.attention_panels import Scene, Settings, attention_panels
from fgnet_lib.views.interactive import Explorer, to_jpeg
from fgnet_lib.views.panels import Canvas
from fgnet_lib.volumes import Volume
from fgnet_lib.weights import load_pretrained

SHAPE = (4, 512, 512)
ROUNDS = 5
MEMORY_STEPS = 300


def time_steps(step: Callable[[int], object]) -> tuple[float, float]:
    """Return median clock and processor times (ms) of a step to another section, after a round to fill the caches."""
    clock, processor = [], []
    for number in range((1 + ROUNDS) * SHAPE[0]):
        start = time.perf_counter(), time.process_time()
        step(number % SHAPE[0])
        clock.append(1000 * (time.perf_counter() - start[0]))
        processor.append(1000 * (time.process_time() - start[1]))
    return median(clock[SHAPE[0] :]), median(processor[SHAPE[0] :])


def slide(explorer: Explorer, **settings: object) -> tuple[float, float]:
    """Return the times of a step of the slider, after setting other controls."""
    explorer.change(**settings)
    return time_steps(lambda z: setattr(explorer.controls["z"], "value", z))


def measure_growth(explorer: Explorer, steps: int) -> float:
    """Return by how many MB the process grows in `steps` steps through sections and points, read out in between."""
    before = psutil.Process().memory_info().rss
    _, height, width = SHAPE
    for number in range(steps):
        explorer.change(z=number % SHAPE[0], y=7 * number % height, x=13 * number % width)
        explorer.hover.value = f"{number % 100 / 100} 0.5"
    return (psutil.Process().memory_info().rss - before) / 1e6


def to_png(figure: Figure) -> bytes:
    """Return a figure as a PNG with its layout computed again, as notebooks show it."""
    picture = io.BytesIO()
    figure.savefig(picture)
    return picture.getvalue()


def explorers_of(volume: Volume, segmentations: Mapping[float, np.ndarray]) -> dict[str, Explorer]:
    """Return the explorers to measure by name."""
    rng, model = np.random.default_rng(0), load_pretrained()
    features = [rng.normal(size=(64, SHAPE[0], SHAPE[1] // s, SHAPE[2] // s)).astype(np.float32) for s in STRIDES]
    return {
        "attention": explorers.attention_explorer(volume, model),
        "two models": explorers.attention_explorer(volume, {"one": model, "two": model}),
        "features": explorers.feature_explorer(volume, features),
        "segmentation": explorers.segmentation_explorer(volume, segmentations),
    }


def main() -> None:
    """Measure all explorers and print the table."""
    plots.style()
    volume = make_phantom(SHAPE)
    even = volume.labels % 2 == 0
    segmentations = {value: np.where(even, volume.labels, value * 10).astype(np.uint64) for value in (1, 2)}
    made = explorers_of(volume, segmentations)
    attention, times = made["attention"], {name: slide(explorer) for name, explorer in made.items()}
    times["attention, ranks, smooth"] = slide(attention, ranks=True, smooth=True)
    times["a1, a2, a3"] = slide(attention, level="all", ranks=False, smooth=False)
    times["what if a1 = 0 in a region"] = slide(attention, level="a1", what_if="0", region="[[32, 150, 150, 150, 300]]")
    times["gradient of an affinity"] = slide(attention, flip="x", what_if="as it is", region="")
    times["plane xz"] = slide(attention, plane="xz", flip="nothing")
    attention.change(plane="xy")
    times["two models, what if a1 = 0"] = slide(made["two models"], what_if="0")
    settings = attention.values()
    scene = Scene.of(volume, {"": Inspector(load_pretrained(), volume.raw)}, None)
    anew = time_steps(lambda z: to_png(Canvas().show(attention_panels(scene, Settings(**settings | {"z": z})))))
    canvas = Canvas()
    again = time_steps(lambda z: to_jpeg(canvas.show(attention_panels(scene, Settings(**settings | {"z": z})))))
    cores, busy = len(os.sched_getaffinity(0)), os.getloadavg()[0]
    print(f"{date.today()}, {platform.machine()}, {cores} cores, {torch.get_num_threads()} threads, load {busy:.1f}")
    print(f"{SHAPE[1]} x {SHAPE[2]}, median of {ROUNDS * SHAPE[0]} steps, ms on the clock and of the processor:")
    for name, (clock, processor) in (times | {"attention, a new figure for each step, as PNG": anew}).items():
        print(f"{clock:6.0f} {processor:6.0f}  {name}")
    print(f"a new figure takes {anew[1] / again[1]:.1f} times as long as the one that is kept")
    measure_growth(attention, MEMORY_STEPS)  # fills what is kept: sections, figures, colours
    growth = [measure_growth(attention, MEMORY_STEPS) for _ in range(3)]
    print(f"memory in {MEMORY_STEPS} steps, three times: {', '.join(f'{mb:+.1f} MB' for mb in growth)}")


if __name__ == "__main__":
    main()
