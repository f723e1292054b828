"""Measure what fewer bits cost, and write docs/measured/quantisation.md (`make bits`).

The shipped model is rounded in several ways (`METHODS`), calibrated on a crop of FIB-25's training part that a seed
draws, and judged on the middle sections of validation parts, with the threshold that was chosen for it in floating
point. Rounding is simulated, so sizes are counted and not times. Where other engines are installed, the whole model is
also converted to them with whole numbers of 8 bits inside, and timed. What is measured already is not measured again.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec

import fgnet_lib  # noqa: F401  before torch: it tells torch's threads how to wait

# isort: split
import numpy as np
import torch
from render_results import table
from torch import Tensor, nn

from fgnet_lib import REPOSITORY
from fgnet_lib.affinities import affinities_from_labels, widen_borders
from fgnet_lib.datasets import open_dataset
from fgnet_lib.engines.quantisation import quantise
from fgnet_lib.engines.runtimes import Converted, installed_engines, record_parts
from fgnet_lib.fgnet import FGNet
from fgnet_lib.machine import hardware
from fgnet_lib.metrics import evaluate, roc_auc
from fgnet_lib.neighbours.quantisation import Recipe, megabytes, plant_outliers, quantise_fgnet
from fgnet_lib.segmentation import segment
from fgnet_lib.study.evaluation import postprocessing_version, predict_rescaled
from fgnet_lib.study.runs import add_runs, read_runs
from fgnet_lib.study.statistics import compare_runs, summary
from fgnet_lib.volumes import IGNORE, Volume, is_anisotropic
from fgnet_lib.weights import load_pretrained, pretrained_threshold

MEASURED = REPOSITORY / "docs" / "measured"
FOLDER = MEASURED / "quantisation"
SEEDS = (0, 1, 2)
CROP = (4, 128, 128)  # voxels (z, y, x) to calibrate on, and to learn from
STEPS = 30
SECTIONS = 20  # of a validation part at most, from its middle
TILE, WINDOWS = (16, 160, 160), 4  # to time, and to calibrate an engine
BITS = ((8, 8), (4, 8), (4, 4))  # of weights, of activations
METHODS = {
    "min-max": {},
    "percentile": {"how": "percentile"},
    "SmoothQuant": {"transform": "smooth"},
    "4 groups": {"transform": "groups", "groups": 4, "steps": STEPS},
    "16 groups": {"transform": "groups", "groups": 16, "steps": STEPS},
}
VOLUMES = {"fib25": False, "gala": False, "ac4": True, "cremi_b_mini": True}  # rescaled to FIB-25's voxel?
PARTS = {"encoder": "encoder", "encoder with planted outliers": "encoder", "whole model": ""}


@dataclass(frozen=True)
class Case:
    """One row: which part of the model is rounded, to how many bits, by which method."""

    part: str
    bits: tuple[int, int]
    method: str

    @property
    def name(self) -> str:
        return f"{self.part}, W{self.bits[0]}A{self.bits[1]}, {self.method}"

    @property
    def volumes(self) -> tuple[str, ...]:
        """8 bits with the plainest method are judged on every volume, all else on FIB-25."""
        return tuple(VOLUMES) if self.bits == (8, 8) and self.method == "min-max" else ("fib25",)


def cases() -> Iterator[Case]:
    """All rows, the most telling first; of the whole model only the plainest and the strongest method."""
    for method in ("min-max", "16 groups", "SmoothQuant", "percentile", "4 groups"):
        for bits in BITS:
            yield from (Case(part, bits, method) for part in PARTS if PARTS[part] or method in ("min-max", "16 groups"))


def draw_crop(seed: int) -> Tensor:
    """A crop of FIB-25's training part as float (1, 1, z, y, x) in [0, 1]; no labels."""
    volume = open_dataset("fib25", "train")
    corner = [
        int(np.random.default_rng([seed, axis]).integers(n - side + 1))
        for axis, (n, side) in enumerate(zip(volume.shape, CROP, strict=True))
    ]
    z, y, x = (slice(at, at + side) for at, side in zip(corner, CROP, strict=True))
    return torch.from_numpy(volume[z, y, x].raw / np.float32(255))[None, None]


def score_volumes(model: FGNet, names: tuple[str, ...], expected: dict[str, np.ndarray]) -> dict[str, dict]:
    """Score A_r on volumes that are here: VOI and ARAND, AUC of affinities, and the mean change against `expected`."""
    scores = {}
    for name in names:
        try:
            volume = open_dataset(name, "val")
        except OSError:
            continue
        first = max(0, (volume.shape[0] - SECTIONS) // 2)
        volume = volume[first : first + SECTIONS]
        affinities = predict_rescaled(model, volume, VOLUMES[name]).refined
        own = asdict(evaluate(segment(affinities, volume.voxel_size, pretrained_threshold(), False), volume.labels))
        before = expected.setdefault(name, affinities)
        change = float(np.abs(affinities - before).mean())
        scores[name] = {**own, "auc": affinity_auc(affinities, volume), "change": change}
    return scores


def affinity_auc(affinities: np.ndarray, volume: Volume) -> float:
    """How well affinities tell joined voxels from cut ones: the AUC on every second voxel along each axis."""
    widened = widen_borders(volume.labels, in_3d=not is_anisotropic(volume.voxel_size))
    every = (slice(None), *[slice(1, None, 2)] * 3)
    known = np.broadcast_to(widened != IGNORE, affinities.shape)[every]
    return roc_auc(affinities[every][known], affinities_from_labels(widened)[every][known] > 0.5)


def float_run(model: FGNet, expected: dict[str, np.ndarray]) -> dict:
    """The shipped model as it is, on all volumes."""
    sizes = {"megabytes": megabytes(model), "encoder_megabytes": megabytes(model.encoder)}
    scores = score_volumes(model, tuple(VOLUMES), expected)
    return {"row": "float", "seed": 0, **sizes, "postprocessing": postprocessing_version(), "volumes": scores}


def rounded_run(case: Case, seed: int, model: FGNet, expected: dict[str, np.ndarray]) -> dict:
    """One row and seed."""
    changed = deepcopy(model)
    if "planted" in case.part:
        changed.encoder = plant_outliers(model.encoder)
    recipe = Recipe(*case.bits, **METHODS[case.method])
    torch.manual_seed(seed)
    start = time.perf_counter()
    quantised = quantise_fgnet(changed, recipe, draw_crop(seed), PARTS[case.part])
    return {
        "row": case.name,
        "seed": seed,
        "seconds_to_quantise": time.perf_counter() - start,
        "megabytes": megabytes(quantised),
        "encoder_megabytes": megabytes(quantised.encoder),
        "volumes": score_volumes(quantised, case.volumes, expected),
    }


def engine_run(engine: str, seed: int, model: FGNet, expected: dict[str, np.ndarray]) -> dict:
    """The whole model in another engine with 8 bits, on all volumes, and its times on one thread."""
    network = quantise(model, draw_windows(seed), engine)
    exact = Converted(model, engine, record_parts(model)).eval()
    tile = torch.rand(1, 1, *TILE, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        features = model.encode(tile)
        times = [milliseconds(each, tile, features) for each in (network, exact, model)]
    return {
        "row": f"whole model in {engine}, 8 bits",
        "seed": seed,
        "ms": dict(zip(("8 bits", "32 bits", "32 bits in PyTorch"), times, strict=True)),
        "machine": hardware(),
        "volumes": score_volumes(network, tuple(VOLUMES), expected),
    }


def draw_windows(seed: int) -> list[np.ndarray]:
    """Windows of FIB-25's training part, uint8 (z, y, x), to calibrate an engine."""
    raw, rng = open_dataset("fib25", "train").load().raw, np.random.default_rng(seed)
    size = np.minimum(TILE, raw.shape)
    corners = [[int(rng.integers(n - s + 1)) for n, s in zip(raw.shape, size, strict=True)] for _ in range(WINDOWS)]
    return [raw[tuple(slice(a, a + s) for a, s in zip(corner, size, strict=True))] for corner in corners]


def milliseconds(model: nn.Module, tile: Tensor, features: list[Tensor]) -> tuple[float, float]:
    """The median times of the encoder and of the rest for a section, over five runs after one that is not counted."""
    taken = []
    for _ in range(6):
        start = time.perf_counter()
        model.encode(tile)
        between = time.perf_counter()
        model(tile, features)
        taken.append((between - start, time.perf_counter() - between))
    encoder, rest = 1000 / tile.shape[2] * np.median(taken[1:], axis=0)
    return float(encoder), float(rest)


def measure(minutes: float) -> None:
    """Measure what is missing of the table, seed by seed, until the time is over."""
    torch.set_num_threads(1)
    model, end = load_pretrained(), time.monotonic() + 60 * minutes
    done = {(run["row"], run["seed"]) for run in read_runs(FOLDER)}
    expected: dict[str, np.ndarray] = {}
    engines = installed_engines()[1:] if find_spec("onnxruntime") else []  # it calibrates, whatever computes then
    reference = float_run(model, expected)
    if ("float", 0) not in done:
        add_runs([reference], FOLDER)
    for seed in SEEDS:
        work: dict[str, Callable[[], dict]] = {
            f"whole model in {engine}, 8 bits": partial(engine_run, engine, seed, model, expected) for engine in engines
        }
        work |= {case.name: partial(rounded_run, case, seed, model, expected) for case in cases()}
        for name, run in work.items():
            if (name, seed) not in done and time.monotonic() < end:
                add_runs([run()], FOLDER)
                print(f"{name}, seed {seed}", flush=True)


def page(runs: list[dict]) -> str:
    """docs/measured/quantisation.md."""
    rows: dict[str, list[dict]] = {}
    for run in runs:
        rows.setdefault(run["row"], []).append(run)
    (reference,) = rows["float"]
    on_fib25 = [fib25_line(name, rows[name], reference) for name in order(rows)]
    real = [line for name, own in rows.items() if "ms" in own[0] for line in time_lines(name, own)]
    return PAGE.format(
        fib25=table("row | encoder, MB | VOI | ARAND | AUC of A_r | mean change of A_r | seeds", on_fib25),
        volumes=table(f"row | {' | '.join(VOLUMES)} | seeds", volume_lines(rows)),
        real=table("engine | encoder, ms | the rest, ms | seeds", real),
        comparisons=table("question | VOI on FIB-25", comparison_lines(rows)),
        machine=next((own[0]["machine"] for own in rows.values() if "machine" in own[0]), "not measured yet"),
    )


def order(rows: dict[str, list[dict]]) -> list[str]:
    """The rows in the order of the page: floating point, the real models, then part by part."""
    first = ["float", *(name for name in rows if " bits" in name)]
    own = sorted(cases(), key=lambda case: (list(PARTS).index(case.part), BITS.index(case.bits)))
    return [name for name in (*first, *(case.name for case in own)) if name in rows]


def fib25_line(name: str, runs: list[dict], reference: dict) -> list[str]:
    scores = [run["volumes"]["fib25"] for run in runs]
    change = "0" if runs == [reference] else summary([each["change"] for each in scores], 4)
    return [
        name,
        f"{runs[0]['encoder_megabytes']:.2f}" if "encoder_megabytes" in runs[0] else "",
        summary(voi_of(runs)),
        summary([each["arand"] for each in scores]),
        summary([each["auc"] for each in scores], 4),
        change,
        str(len(runs)),
    ]


def voi_of(runs: list[dict], volume: str = "fib25") -> list[float]:
    """VOI of each run on a volume; none where it was not judged there."""
    scores = [run["volumes"][volume] for run in runs if volume in run["volumes"]]
    return [each["voi_split"] + each["voi_merge"] for each in scores]


def volume_lines(rows: dict[str, list[dict]]) -> list[list[str]]:
    wide = [name for name in order(rows) if len(rows[name][0]["volumes"]) > 1]
    return [[name, *(summary(voi_of(rows[name], each)) for each in VOLUMES), str(len(rows[name]))] for name in wide]


def time_lines(name: str, runs: list[dict]) -> list[list[str]]:
    """A line for each kind of numbers that an engine was timed with."""
    engine = name.removeprefix("whole model in ").partition(",")[0]
    return [
        [f"{engine}, {kind}", *(summary([run["ms"][kind][part] for run in runs], 1) for part in (0, 1)), str(len(runs))]
        for kind in runs[0]["ms"]
    ]


def comparison_lines(rows: dict[str, list[dict]]) -> list[list[str]]:
    """Each method against min-max, with as many bits in the same part."""
    lines = []
    for part in PARTS:
        for bits in BITS:
            plain = rows.get(Case(part, bits, "min-max").name, [])
            for method in list(METHODS)[1:]:
                if own := rows.get(Case(part, bits, method).name, []):
                    question = f"{part}, W{bits[0]}A{bits[1]}: {method} against min-max"
                    lines.append([question, compare_runs(voi_of(own), voi_of(plain))])
    return lines


PAGE = """\
# Fewer bits

Written by `make bits`; [lesson 16](../../notebooks/16_fewer_bits.ipynb) explains the methods.

The shipped model, with weights and activations rounded after training. W4A8 means weights of 4 bits and activations of
8. Steps, shifts and scales are chosen, and where groups are formed also learned, on one crop of 4 x 128 x 128 voxels of
FIB-25's training part, without labels. A seed draws the crop; means ± standard deviation are over seeds. All volumes
are segmented with the threshold of the model in floating point. *Planted*: outliers of ours, see the lesson. *AUC of
A_r*: how well refined affinities tell joined voxels from cut ones. *Mean change*: of an affinity, against the model in
floating point. Rounding is simulated, but for the rows of [other engines](engines.md): there the whole model is
converted, calibrated on 4 windows that the seed draws, and computes with whole numbers of 8 bits.

## FIB-25, the middle 20 sections of the validation part

{fib25}

## VOI on every volume

At most 20 sections of each, from the middle.
{volumes}

AC4 and CREMI B are rescaled to FIB-25's voxel, as in [the rows of the results](rows.md).

## A method against the plainest one

{comparisons}

With three seeds each, the smallest p that is possible is 0.10.

## Time

Milliseconds a section: the median of five runs on a tile of 16 x 160 x 160 voxels, one thread, beside other work, on
this machine: {machine}. PyTorch was timed right after each engine.

{real}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=600, help="begin no new row after so many minutes")
    measure(parser.parse_args().minutes)
    (MEASURED / "quantisation.md").write_text(page(read_runs(FOLDER)), encoding="utf-8")


if __name__ == "__main__":
    main()
