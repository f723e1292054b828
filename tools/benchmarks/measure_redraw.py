"""Measure how long an explorer takes for one step of its section slider, at 512 x 512, all sections seen before.

Prints a table with the machine and the date. A step is the whole callback: panels, drawing, encoding, the table below.
Time on the clock is what a student waits; time of the processor is what is left of it where nothing else runs.
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
from fgnet_lib.views.panels import Canvas, Explorer, encode
from fgnet_lib.weights import load_pretrained

SHAPE = (4, 512, 512)
ROUNDS = 5


def milliseconds(step: Callable[[int], object]) -> tuple[float, float]:
    """Median times (clock, processor) of a step to another section; the first round fills the caches, not counted."""
    clock, processor = [], []
    for number in range((1 + ROUNDS) * SHAPE[0]):
        start = time.perf_counter(), time.process_time()
        step(number % SHAPE[0])
        clock.append(1000 * (time.perf_counter() - start[0]))
        processor.append(1000 * (time.process_time() - start[1]))
    return median(clock[SHAPE[0] :]), median(processor[SHAPE[0] :])


def slide(explorer: Explorer, **settings: object) -> tuple[float, float]:
    """Times of a step of the slider, with other controls set first."""
    for name, value in settings.items():
        explorer.controls[name].value = value
    return milliseconds(lambda z: setattr(explorer.controls["z"], "value", z))


def png(figure: Figure) -> bytes:
    """As a notebook shows a figure: PNG, the layout found again."""
    picture = io.BytesIO()
    figure.savefig(picture)
    return picture.getvalue()


def main() -> None:
    plots.style()
    rng = np.random.default_rng(0)
    volume, model = make_phantom(SHAPE), load_pretrained()
    tried = {value: np.where(volume.labels % 2 == 0, volume.labels, value * 10).astype(np.uint64) for value in (1, 2)}
    features = [rng.normal(size=(64, SHAPE[0], SHAPE[1] // s, SHAPE[2] // s)).astype(np.float32) for s in STRIDES]
    one = explorers.attention_explorer(volume, model)
    times = {"attention, similarity, response": slide(one), "a1, a2, a3": slide(one, level="all")}
    times["what if a1 = 0"] = slide(one, level="a1", what_if="0")
    times["two models"] = slide(explorers.attention_explorer(volume, {"one": model, "two": model}))
    times["features"] = slide(explorers.feature_explorer(volume, features))
    times["segmentation"] = slide(explorers.segmentation_explorer(volume, tried))
    inspectors = {"": Inspector(model, volume.raw)}
    ranges = explorers.attention_ranges({"": inspectors[""].section(0)})
    settings = one.values() | {"what_if": "as it is"}
    del settings["z"]
    panels = partial(
        explorers.attention_panels, volume, inspectors, ranges, {"ground truth": volume.labels}, **settings
    )
    anew = milliseconds(lambda z: png(Canvas().show(panels(z=z))))
    canvas = Canvas()
    again = milliseconds(lambda z: encode(canvas.show(panels(z=z))))
    cores, busy = len(os.sched_getaffinity(0)), os.getloadavg()[0]
    print(f"{date.today()}, {platform.machine()}, {cores} cores, {torch.get_num_threads()} threads, load {busy:.1f}")
    print(f"{SHAPE[1]} x {SHAPE[2]}, median of {ROUNDS * SHAPE[0]} steps, ms on the clock and of the processor:")
    for name, (clock, processor) in (times | {"attention, a new figure for each step, as PNG": anew}).items():
        print(f"{clock:6.0f} {processor:6.0f}  {name}")
    print(f"a new figure takes {anew[1] / again[1]:.1f} times as long as the one that is kept")


if __name__ == "__main__":
    main()
