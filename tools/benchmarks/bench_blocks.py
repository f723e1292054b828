"""What blocks, workers and volumes larger than memory cost; a part of `make bench`, or alone for some of its tables.

    python tools/benchmarks/bench_blocks.py [memory] [overhead] [blocks] [workers] [accuracy] [perfect]

Writes docs/measured/bench_blocks.json, where all other tables stay as they are, and from it the page
docs/measured/bench_blocks.md. Nothing else should run meanwhile; the page says how busy the machine was.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import fgnet_lib  # noqa: F401  before torch: it tells torch's threads how to wait
from fgnet_lib.scale.journal import Seconds

# isort: split
import numpy as np
import torch
import zarr
from distributed import Client

from fgnet_lib.affinities import affinities_from_labels, widen_borders
from fgnet_lib.datasets import open_dataset
from fgnet_lib.files.formats import read_volume, write_volume
from fgnet_lib.inference import predict
from fgnet_lib.machine import hardware
from fgnet_lib.memory import peak_bytes
from fgnet_lib.metrics import evaluate, voi
from fgnet_lib.phantom import make_phantom
from fgnet_lib.scale.cluster import cluster, run
from fgnet_lib.scale.grid import Grid
from fgnet_lib.scale.prediction import Network, Source, predict_blocks
from fgnet_lib.scale.segmentation import Faces, Fragments, Merge, Relabel, run_here, segment_blocks
from fgnet_lib.segmentation import segment
from fgnet_lib.study.evaluation import VOLUMES, predict_rescaled
from fgnet_lib.study.runs import MODEL, name_weights
from fgnet_lib.volumes import Volume, is_anisotropic
from fgnet_lib.weights import load_pretrained, pretrained_threshold

DOCS = Path(__file__).resolve().parents[2] / "docs" / "measured"
GVOX = (0.1, 0.5, 1.0, 2.0)
BLOCK, SIDE = (128, 256, 256), 1024  # voxels; of the phantom along y and x
THRESHOLD = pretrained_threshold()
CELL = 48  # voxels; of the phantom's cells, cubes with a membrane, which blocks cut


@dataclass(frozen=True)
class Grey:
    """A predictor that costs next to nothing: membranes are dark."""

    def settings(self) -> dict:
        return {"predictor": "grey"}

    def input_region(self, shape, region):
        return region

    def affinities(self, raw, region) -> np.ndarray:
        return np.stack([raw[region] > 127] * 3).astype(np.float32)


def phantom(path: Path, gvox: float) -> Path:
    """A volume of cubes with dark sides, written block by block, so that it never is in memory."""
    depth = round(gvox * 1e9 / SIDE**2 / BLOCK[0]) * BLOCK[0]
    grid = Grid((depth, SIDE, SIDE), BLOCK)
    array = zarr.create_array(
        path, shape=grid.shape, chunks=BLOCK, dtype="uint8", attributes={"resolution": [10.0] * 3, "offset": [0.0] * 3}
    )
    for index in range(len(grid)):
        region = grid.region(index)
        z, y, x = (np.isin(voxels % CELL, (0, CELL - 1), invert=True) for voxels in np.ogrid[region])
        array[region] = (z & y & x) * np.uint8(200)
    return path


@dataclass(frozen=True)
class Cubes(Fragments):
    """The phantom's cells, cut by blocks, as fragments: a watershed would take most of the time."""

    def read(self, index: int) -> None:
        """Read nothing: cells are computed."""

    def compute(self, index: int, data: None) -> dict[str, np.ndarray]:
        """Number the cells by their position in the block and the voxels before it."""
        block = self.grid.region(index)
        grown = block.grow((1, 1, 1), block.stop)
        z, y, x = np.ix_(*(np.arange(s.start, s.stop) // CELL - s.start // CELL for s in grown))
        most = [n // CELL + 2 for n in self.grid.block]
        ids = ((z * most[1] + y) * most[2] + x + self.first(index)).astype(np.uint64)
        inner = block.within(grown)
        return {self.output: ids[inner]} | {f"before{axis}": ids[inner.before(axis)] for axis in range(3)}


def memory_and_merge(work: Path, sizes: tuple[float, ...] = GVOX) -> list[dict]:
    """Peak memory of a worker, and the time of each step, against the size of the volume."""
    rows = []
    for gvox in sizes:
        folder = work / f"{gvox}"
        folder.mkdir()
        with cluster(workers=1, memory="8GiB") as client:  # a new one for each size: a peak never falls
            raw, start = phantom(folder / "raw.zarr", gvox), time.perf_counter()
            reports = [predict_blocks(client, Source(raw), folder, Grey(), BLOCK)]
            predicted = time.perf_counter() - start
            grid = Grid(zarr.open_array(raw).shape, BLOCK)
            faces = Faces(folder, grid, Cubes(folder, grid, folder / "affinities.zarr", (10.0, 10.0, 10.0)))
            merge = Merge(folder, Grid(grid.shape, grid.shape), faces, 0.5)
            reports += [run(client, faces.fragments), run(client, faces), run_here(merge)]
            reports += [run(client, Relabel(folder, grid, merge))]
        seconds = sum((report.seconds for report in reports), start=Seconds())
        neurons = np.load(folder / "table" / "neurons.npy", mmap_mode="r")
        rows.append({
            "gvox": np.prod(grid.shape) / 1e9, "blocks": len(grid),
            "fragments": len(neurons), "neurons": int(neurons.max()),
            "peak_bytes": {report.step: report.peak_bytes for report in reports}, "predict_s": predicted,
            "merge_s": reports[3].seconds.total(), "io_share": (seconds.read + seconds.write) / seconds.total(),
        })  # fmt: skip
        print(rows[-1], flush=True)
        shutil.rmtree(folder)
    return rows


def overhead(work: Path) -> dict:
    """What a block costs that has nothing to do: the engine, the journal, and reading and writing next to nothing."""
    raw = np.zeros((200, 16, 16), np.uint8)
    zarr.create_array(work / "raw.zarr", data=raw, attributes={"resolution": [10.0] * 3, "offset": [0.0] * 3})
    with cluster(workers=1) as client:
        predict_blocks(client, Source(work / "raw.zarr"), work / "warm", Grey(), (100, 16, 16), progress=False)
        start = time.perf_counter()
        report = predict_blocks(client, Source(work / "raw.zarr"), work / "run", Grey(), (1, 16, 16), progress=False)
        total = time.perf_counter() - start
        start = time.perf_counter()
        for future in client.map(abs, range(report.done), pure=False):
            future.result()
        engine = time.perf_counter() - start
    return {"blocks": report.done, "ms_per_block": 1e3 * total / report.done, "engine_ms": 1e3 * engine / report.done}


def in_memory(raw: Path, tile: tuple[int, int, int], out: Path | None) -> dict:
    """Seconds and memory of a volume in one piece, or without `out` of its first window, on one thread of a worker."""
    torch.set_num_threads(1)
    volume, model = read_volume(raw).load(), load_pretrained()
    if out is None:
        predict(model, volume.raw[tuple(map(slice, tile))], tile, progress=False)
        return {"predict_bytes": peak_bytes()}
    start = time.perf_counter()
    affinities = predict(model, volume.raw, tile, progress=False).refined
    costs = {"predict_s": time.perf_counter() - start, "predict_bytes": peak_bytes()}
    segment(affinities, volume.voxel_size, THRESHOLD)
    costs |= {"s": time.perf_counter() - start, "bytes": peak_bytes()}
    np.save(out, affinities)
    return costs


def in_blocks(client: Client, raw: Path, folder: Path, tile: tuple[int, int, int], block: tuple[int, int, int]) -> dict:
    """Seconds and memory of the same volume block by block."""
    start = time.perf_counter()
    reports = [predict_blocks(client, Source(raw), folder, Network(tile=tile), block, progress=False)]
    predicted = time.perf_counter() - start
    reports += segment_blocks(client, folder / "affinities.zarr", folder, THRESHOLD, block, progress=False)
    total = time.perf_counter() - start
    seconds = sum((report.seconds for report in reports), start=Seconds())
    return {
        "predict_s": predicted, "predict_bytes": reports[0].peak_bytes,
        "s": total, "bytes": max(report.peak_bytes for report in reports),
        "io_share": (seconds.read + seconds.write) / seconds.total(),
    }  # fmt: skip


def blocks_against_one(work: Path) -> dict:
    """The network and the segmentation in one piece and in blocks, each alone in a new worker: seconds, peak memory."""
    tile, shape = (16, 128, 128), (40, 320, 320)  # windows fit without a rest: 3 along each axis
    raw = write_volume(make_phantom(shape, seed=1), work / "raw.zarr")
    ways = {
        "window": lambda client: client.submit(in_memory, raw, tile, None).result(),
        "memory": lambda client: client.submit(in_memory, raw, tile, work / "memory.npy").result(),
        "one_block": lambda client: in_blocks(client, raw, work / "one", tile, shape),
        "eight_blocks": lambda client: in_blocks(client, raw, work / "eight", tile, tuple(n // 2 for n in shape)),
    }
    costs = {"shape": list(shape)}
    for name, way in ways.items():
        with cluster(workers=1, memory="8GiB") as client:  # a new one each time: a peak never falls
            costs[name] = way(client)
    difference = zarr.open_array(work / "eight" / "affinities.zarr")[:] - np.load(work / "memory.npy")
    return costs | {"largest_difference": float(abs(difference).max())}


def workers(work: Path) -> dict:
    """The same blocks by the network with one worker and with two; two cores should be free."""
    volume = make_phantom((32, 320, 320), seed=1)
    raw, costs = write_volume(volume, work / "raw.zarr"), {"load_before": os.getloadavg()[0]}
    for number in (1, 2):
        with cluster(workers=number) as client:
            network = Network(tile=(16, 96, 96))
            client.run(network.model, network.windows(volume.shape))  # in every worker: a start is no matter of scaling
            start = time.perf_counter()
            predict_blocks(client, Source(raw), work / f"{number}", network, (16, 160, 160), progress=False)
            costs[f"workers_{number}_s"] = time.perf_counter() - start
    return costs | {"ratio": costs["workers_1_s"] / costs["workers_2_s"]}


def accuracy(work: Path, volumes: dict[str, bool] = VOLUMES) -> list[dict]:
    """VOI in one piece and in blocks of several sizes, of each validation volume that is here."""
    model, rows = load_pretrained(), []
    for name, volume in load_volumes(volumes):
        affinities = predict_rescaled(model, volume, volumes[name]).refined
        whole = segment(affinities, volume.voxel_size, THRESHOLD)
        for block, blocks in neurons_in_blocks(work / name, affinities, volume.voxel_size):
            scores = {key: evaluate(labels, volume.labels) for key, labels in (("one", whole), ("blocks", blocks))}
            rows.append({"volume": name, "block": list(block), "threshold": THRESHOLD})
            rows[-1] |= {key: score.voi_split + score.voi_merge for key, score in scores.items()}
            rows[-1]["between"] = sum(voi(blocks, whole))
            print(rows[-1], flush=True)
    return rows


def perfect(work: Path, volumes: dict[str, bool] = VOLUMES) -> list[dict]:
    """VOI between one piece and blocks from the ground truth's own affinities: inside of objects, and everywhere."""
    rows = []
    for name, volume in load_volumes(volumes):
        objects = widen_borders(volume.labels, in_3d=not is_anisotropic(volume.voxel_size))
        affinities, inside = affinities_from_labels(objects).astype(np.float32), objects > 0
        whole = segment(affinities, volume.voxel_size, THRESHOLD)
        for block, blocks in neurons_in_blocks(work / name, affinities, volume.voxel_size):
            rows.append({"volume": name, "block": list(block), "threshold": THRESHOLD})
            rows[-1]["objects"] = sum(voi(np.where(inside, blocks, 0), np.where(inside, whole, 0)))
            rows[-1]["everywhere"] = sum(voi(blocks, whole))
            print(rows[-1], flush=True)
    return rows


def load_volumes(volumes: Iterable[str]) -> Iterator[tuple[str, Volume]]:
    """The validation volumes that this computer has, by name."""
    for name in volumes:
        with suppress(OSError):
            yield name, open_dataset(name, "val").load()


def neurons_in_blocks(folder: Path, affinities: np.ndarray, voxel_size: tuple) -> Iterator[tuple[tuple, np.ndarray]]:
    """Blocks of several sizes, and the neurons that they give at the shipped model's threshold."""
    saved = zarr.create_array(folder / "a.zarr", data=affinities, chunks=(3, 8, 64, 64))
    saved.attrs["resolution"] = list(voxel_size)
    deep, *_ = shape = affinities.shape[1:]
    halves = tuple(-(-n // 2) for n in shape)
    for block in ((deep, *halves[1:]), (halves[0], 100, 100), (deep, 84, 84), (deep, 64, 64)):
        with cluster(workers=1) as client:
            segment_blocks(client, folder / "a.zarr", folder / str(block), THRESHOLD, block, progress=False)
        yield block, zarr.open_array(folder / str(block) / "neurons.zarr")[:]


TABLES = {
    "memory": memory_and_merge,
    "overhead": overhead,
    "blocks": blocks_against_one,
    "workers": workers,
    "accuracy": accuracy,
    "perfect": perfect,
}
WITH_NETWORK = {"blocks", "workers", "accuracy"}
LONG = {"accuracy", "perfect"}  # not by default: they measure no time


def describe_machine() -> str:
    """The day, the machine, and how busy it was before."""
    busy = os.getloadavg()[0] / os.cpu_count()
    return f"{date.today().isoformat()}, {hardware()}, load before {busy:.1f} a core"


def page(tables: dict) -> str:
    """The text of docs/measured/bench_blocks.md."""
    lines = [
        "# Benchmarks of blocks\n",
        "`make bench`, or one table by `python tools/benchmarks/bench_blocks.py NAME`.\n",
    ]
    for name, entry in tables.items():
        lines += [f"## {TITLES[name]}\n", f"`{name}`, {entry['machine']}.\n", *PAGES[name](entry["results"]), ""]
    return "\n".join(lines)


def table(heads: str, rows: list[list]) -> list[str]:
    """Lines of a Markdown table."""
    return [heads, "|---" * heads.count("| ") + "|", *("| " + " | ".join(map(str, row)) + " |" for row in rows)]


def memory_page(rows: list[dict]) -> list[str]:
    """The table without network and watershed: they do not depend on the volume's size, and take hours at 2 GVox."""
    steps = ("predict", "fragments", "faces", "relabel", "merge")
    heads = "| GVox | blocks | fragments | neurons | " + " | ".join(f"{step}, peak MiB" for step in steps)
    return table(heads + " | prediction, s | merging, s | reading and writing, of all work |", [
        [f"{row['gvox']:.2f}", row["blocks"], row["fragments"], row["neurons"]]
        + [round(row["peak_bytes"][step] / 2**20) for step in steps]
        + [round(row["predict_s"]), f"{row['merge_s']:.1f}", f"{row['io_share']:.0%}"]
        for row in rows
    ])  # fmt: skip


def overhead_page(costs: dict) -> list[str]:
    return [
        f"{costs['blocks']} blocks of 256 voxels: {costs['ms_per_block']:.1f} ms a block with journal, checksum, read "
        f"and write; {costs['engine_ms']:.1f} ms of it are the engine's (a task that does nothing)."
    ]


def blocks_page(costs: dict) -> list[str]:
    rows, memory = [], costs["memory"]
    for name in ("memory", "one_block", "eight_blocks"):
        way, row = costs[name], [name.replace("_", " ")]
        for seconds, size in (("predict_s", "predict_bytes"), ("s", "bytes")):
            row += [f"{way[seconds]:.1f}", f"{way[seconds] / memory[seconds]:.2f}", round(way[size] / 2**20)]
        rows.append([*row, f"{way['io_share']:.1%}" if "io_share" in way else ""])
    heads = "| way | prediction, s | ratio | peak, MiB | with segmentation, s | ratio | peak, MiB "
    window = costs["window"]["predict_bytes"] / 2**20
    return [
        f"{costs['shape']} voxels; one worker, one thread; {window:.0f} MiB are the peak for one window alone.\n",
        *table(heads + "| reading and writing, of all work |", rows),
        f"\nLargest difference of affinities: {costs['largest_difference']:.5f} (float16).",
    ]


def workers_page(costs: dict) -> list[str]:
    alone, pair = costs["workers_1_s"], costs["workers_2_s"]
    return [f"{alone:.1f} s with one worker, {pair:.1f} s with two: {costs['ratio']:.2f} times as fast."]


def accuracy_page(rows: list[dict]) -> list[str]:
    heads = "| volume | block (z, y, x) | VOI in one piece | VOI in blocks | difference | VOI between the two |"
    return [
        f"The shipped model at its threshold {rows[0]['threshold']}, VOI in bits. Serial sections (ac4, cremi_b_mini) "
        "are not what it was trained on.\n",
        *table(heads, [
            [row["volume"], " x ".join(map(str, row["block"])), f"{row['one']:.3f}", f"{row['blocks']:.3f}",
             f"{row['blocks'] - row['one']:+.3f}", f"{row['between']:.3f}"]
            for row in rows
        ]),
    ]  # fmt: skip


def perfect_page(rows: list[dict]) -> list[str]:
    heads = "| volume | block (z, y, x) | VOI between the two, of objects | of all voxels |"
    return [
        f"Those of the ground truth with borders widened as for training; threshold {rows[0]['threshold']}. Nothing "
        "tells which side a voxel of a membrane goes to, so all voxels differ more than those of objects.\n",
        *table(heads, [
            [row["volume"], " x ".join(map(str, row["block"])), f"{row['objects']:.5f}", f"{row['everywhere']:.4f}"]
            for row in rows
        ]),
    ]  # fmt: skip


TITLES = {
    "memory": "Memory and time against the size of the volume, without network and watershed",
    "overhead": "A block with nothing to do",
    "blocks": "Blocks against one piece",
    "workers": "One worker and two",
    "accuracy": "Segmentation in blocks against one piece",
    "perfect": "The same from perfect affinities",
}
PAGES = {
    "memory": memory_page,
    "overhead": overhead_page,
    "blocks": blocks_page,
    "workers": workers_page,
    "accuracy": accuracy_page,
    "perfect": perfect_page,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = [name for name in TABLES if name not in LONG]
    parser.add_argument("tables", nargs="*", choices=[[], *TABLES], help=f"by default {', '.join(default)}")
    parser.add_argument("--gvox", type=float, nargs="+", default=GVOX, help="sizes of the table `memory`")
    parser.add_argument("--out", type=Path, default=DOCS)
    options = parser.parse_args()
    path = options.out / "bench_blocks.json"
    tables = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for name in options.tables or default:
        with tempfile.TemporaryDirectory() as work:
            machine = describe_machine()
            more = {"sizes": options.gvox} if name == "memory" else {}
            weights = name_weights(MODEL) if name in WITH_NETWORK else {}
            tables[name] = {"machine": machine, "weights": weights, "results": TABLES[name](Path(work), **more)}
        tables = {name: tables[name] for name in TABLES if name in tables}
        path.write_text(json.dumps(tables, indent=1) + "\n", encoding="utf-8")
        (options.out / "bench_blocks.md").write_text(page(tables), encoding="utf-8")
    print(page(tables))


if __name__ == "__main__":
    main()
