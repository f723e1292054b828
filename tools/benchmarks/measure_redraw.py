"""Measure how long an explorer takes for a step of its section slider, at 512 x 512, all sections seen before.

Prints a table with the machine and the date. A step is the whole callback: panels, drawing, encoding, the table below.
Clock time is the time that a student waits; processor time is what remains of it where nothing else runs.
"""

from __future__ import annotations

import io
import os
import platform
import time
from collections.abc import Callable
from datetime import date
from functools import partial
from statistics import median

import numpy as np
import torch
from matplotlib.figure import Figure

from fgnet_lib.phantom import make_phantom
from fgnet_lib.probing import Inspector
from fgnet_lib.sam2_encoder import STRIDES
from fgnet_lib.views import explorers, plots
from fgnet_lib.views.panels import Canvas, Explorer, to_jpeg
from fgnet_lib.weights import load_pretrained

SHAPE = (4, 512, 512)
ROUNDS = 5


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
    for name, value in settings.items():
        explorer.controls[name].value = value
    return time_steps(lambda z: setattr(explorer.controls["z"], "value", z))


def to_png(figure: Figure) -> bytes:
    """Return a figure as a PNG with its layout computed again, as notebooks show it."""
    picture = io.BytesIO()
    figure.savefig(picture)
    return picture.getvalue()


def main() -> None:
    """Measure all explorers and print the table."""
    plots.style()
    rng = np.random.default_rng(0)
    volume, model = make_phantom(SHAPE), load_pretrained()
    even = volume.labels % 2 == 0
    segmentations = {value: np.where(even, volume.labels, value * 10).astype(np.uint64) for value in (1, 2)}
    features = [rng.normal(size=(64, SHAPE[0], SHAPE[1] // s, SHAPE[2] // s)).astype(np.float32) for s in STRIDES]
    explorer = explorers.attention_explorer(volume, model)
    times = {"attention, similarity, response": slide(explorer), "a1, a2, a3": slide(explorer, level="all")}
    times["what if a1 = 0"] = slide(explorer, level="a1", what_if="0")
    times["two models"] = slide(explorers.attention_explorer(volume, {"one": model, "two": model}))
    times["features"] = slide(explorers.feature_explorer(volume, features))
    times["segmentation"] = slide(explorers.segmentation_explorer(volume, segmentations))
    inspectors = {"": Inspector(model, volume.raw)}
    ranges = explorers.attention_ranges({"": inspectors[""].section(0)})
    settings = explorer.values() | {"what_if": "as it is"}
    del settings["z"]
    panels = partial(
        explorers.attention_panels, volume, inspectors, ranges, {"ground truth": volume.labels}, **settings
    )
    anew = time_steps(lambda z: to_png(Canvas().show(panels(z=z))))
    canvas = Canvas()
    again = time_steps(lambda z: to_jpeg(canvas.show(panels(z=z))))
    cores, busy = len(os.sched_getaffinity(0)), os.getloadavg()[0]
    print(f"{date.today()}, {platform.machine()}, {cores} cores, {torch.get_num_threads()} threads, load {busy:.1f}")
    print(f"{SHAPE[1]} x {SHAPE[2]}, median of {ROUNDS * SHAPE[0]} steps, ms on the clock and of the processor:")
    for name, (clock, processor) in (times | {"attention, a new figure for each step, as PNG": anew}).items():
        print(f"{clock:6.0f} {processor:6.0f}  {name}")
    print(f"a new figure takes {anew[1] / again[1]:.1f} times as long as the one that is kept")


if __name__ == "__main__":
    main()
