"""From a volume that fits no memory to its affinities, block by block.

They are Zarr 3 in the folder of the run, `affinities.zarr`, float16 (3, z, y, x), one shard (one file) for each block.
Windows of the network overlap, and so do their sections: each window is computed by the block that it begins in, and
what several blocks need goes through the disk, in the folder `windows` until the affinities are complete.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from distributed import Client, get_worker

from fgnet_lib.fgnet import FGNet
from fgnet_lib.files.atomic import load_arrays, save_arrays
from fgnet_lib.files.formats import RAW_KEY, read_volume
from fgnet_lib.files.locks import inside, locked
from fgnet_lib.files.stamps import stamp
from fgnet_lib.inference import Place, Windows, encode_sections, predict_windows, windows
from fgnet_lib.machine import choose_device, precision
from fgnet_lib.sam2_encoder import STRIDES
from fgnet_lib.scale.cluster import BlocksFailed, Report, run
from fgnet_lib.scale.grid import Grid
from fgnet_lib.scale.journal import PER_FOLDER, Journal, ToZarr
from fgnet_lib.volumes import Lazy, Region, Volume
from fgnet_lib.weights import PRETRAINED, load_model, read_config

BLOCK = (64, 256, 256)
WINDOWS = "windows"  # folder of what is removed when affinities are complete


@dataclass(frozen=True)
class Source:
    """A volume in a file, as `volumes.read_volume` opens it; each worker opens it for itself."""

    path: Path
    raw_key: str | None = None
    voxel_size: tuple[float, float, float] | None = None

    def open(self) -> Volume:
        """The lazy volume."""
        return _opened(self, str(self.stamp()))

    def stamp(self) -> dict[str, str]:
        """As of `blocks.stamp`; of a folder of sections, that of each."""
        found = stamp(self.path, self.raw_key or RAW_KEY)
        sections = () if found else sorted(Path(self.path).glob("*.tif*"))
        return found | {key: value for path in sections for key, value in stamp(path).items()}

    def place(self) -> dict[str, list[float]]:
        """Voxel size and offset in nm."""
        volume = self.open()
        return {"resolution": list(volume.voxel_size), "offset": list(volume.offset)}

    def read(self, part: Region) -> Lazy:
        """A part of raw in memory, with the shape of the volume."""
        raw = self.open().raw
        held = np.asarray(raw[part])

        def cut(*slices: slice) -> np.ndarray:
            return held[*(slice(s.start - p.start, s.stop - p.start) for s, p in zip(slices, part, strict=True))]

        return Lazy(raw.shape, raw.dtype, cut)


@lru_cache(maxsize=4)
def _opened(source: Source, stamp: str) -> Volume:
    return read_volume(source.path, source.raw_key, voxel_size=source.voxel_size)


class Predictor(Protocol):
    """Turns raw into affinities, a region of the volume at a time; for what has no windows, as `Network` has."""

    def settings(self) -> dict[str, Any]:
        """All that the affinities depend on but raw."""

    def needed(self, shape: tuple[int, int, int], region: Region) -> Region:
        """The part of raw that a region's affinities depend on."""

    def affinities(self, raw: Any, region: Region) -> np.ndarray:
        """Affinities (3, z, y, x) of the region; `raw` has the shape of the volume, and holds what is needed."""


@dataclass(frozen=True)
class Network:
    """FGNet by its weights on disk, which each worker loads once, to the GPU that is its own where there are some."""

    checkpoint: Path = PRETRAINED / "fgnet_mini.safetensors"
    tile: tuple[int, int, int] = (16, 160, 160)
    overlap: float = 0.25
    device: str = "auto"  # as of `devices.choose_device`

    def __post_init__(self) -> None:
        object.__setattr__(self, "checkpoint", Path(self.checkpoint).resolve())  # workers run in other folders

    def settings(self) -> dict[str, Any]:
        """All that the affinities depend on but raw."""
        weights = _sha256(self.checkpoint, str(stamp(self.checkpoint)))
        arithmetic = precision(choose_device(self.device))
        return {"weights": weights, "precision": arithmetic, "tile": list(self.tile), "overlap": self.overlap}

    @property
    def encodes(self) -> bool:
        """Whether SAM2 is in it."""
        return read_config(self.checkpoint).encoder is not None

    def model(self) -> FGNet:
        """On this worker's device; loaded once."""
        return _loaded(self.checkpoint, self.device, str(stamp(self.checkpoint)))

    def windows(self, shape: tuple[int, int, int]) -> Windows:
        """Those of a whole volume."""
        return windows(shape, self.tile, self.overlap)


@lru_cache(maxsize=1)
def _loaded(checkpoint: Path, device: str, stamp: str) -> FGNet:
    torch.set_num_threads(1)  # a worker for each core; and what a block gives does not depend on their number
    chosen = choose_device(device)
    if chosen.type == "cuda":
        chosen = torch.device("cuda", gpu_of(str(get_worker().name), torch.cuda.device_count()))
    return load_model(checkpoint, chosen)


def gpu_of(worker: str, gpus: int) -> int:
    """The GPU of a worker, by the last number in its name: Dask numbers the workers that it starts."""
    numbers = re.findall(r"\d+", worker)
    return int(numbers[-1]) % gpus if numbers else 0


@lru_cache(maxsize=4)
def _sha256(path: Path, stamp: str) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def predict_blocks(
    client: Client,
    source: Source | str | Path,
    folder: str | Path,
    predictor: Network | Predictor | None = None,
    block: tuple[int, int, int] = BLOCK,
    progress: bool = True,
) -> Report:
    """Affinities of a volume of any size, to `affinities.zarr` in a folder. What is there already is not done again.

    Values are those of `inference.predict` on the whole volume, whatever the block, up to rounding to float16. Each
    window is computed once, and each section of a tile encoded once, over the whole volume.

    Args:
        client: Of `cluster.cluster`.
        source: The volume, or its path, in a place that all workers see.
        folder: For the results; likewise.
        predictor: The shipped model by default; `Network` for another one.
        block: Voxels (z, y, x) of a block.
        progress: Show a bar for each step with the rate and the time left; the last, "predict", blends the windows.

    Returns:
        Blocks of `affinities.zarr`, and the seconds and the memory of all steps.

    Raises:
        ValueError, RuntimeError, ConnectionError: As `cluster.run`.
    """
    source = source if isinstance(source, Source) else Source(Path(source))
    source = replace(source, path=Path(source.path).resolve())
    place = Path(folder).resolve(), Grid(source.open().shape, block)
    predictor = predictor or Network()
    if not isinstance(predictor, Network):
        return run(client, Predict(*place, source, predictor), progress)
    decode = Decode(*place, Encode(*place, source, predictor))
    blend = Blend(*place, source, predictor, decode)
    report, failed = Report(blend.name), []
    with locked(blend.folder):
        for step in ([] if blend.is_ready() else decode.steps()) + [blend]:
            try:
                one = run(client, step, progress)
            except BlocksFailed as error:
                failed.append(error)  # the steps after it do what they can without
                continue
            report.seconds.update(one.seconds)
            report.done, report.kept, report.peak_bytes = one.done, one.kept, max(report.peak_bytes, one.peak_bytes)
        if failed:
            raise failed[0]
        decode.remove()
    return report


# --- steps -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Predict(ToZarr):
    """Raw -> affinities."""

    source: Source
    predictor: Predictor
    name: ClassVar[str] = "predict"
    output: ClassVar[str] = "affinities.zarr"
    dtype: ClassVar[str] = "float16"
    channels: ClassVar[tuple[int, ...]] = (3,)

    def settings(self) -> dict[str, Any]:
        """See `blocks.Step`."""
        return _settings(self.grid, self.source, self.predictor)

    def place(self) -> dict[str, list[float]]:
        """See `ToZarr`."""
        return self.source.place()

    def read(self, index: int) -> Any:
        """Raw, with all that the block's affinities depend on."""
        return self.source.read(self.predictor.needed(self.grid.shape, self.grid.region(index)))

    def compute(self, index: int, data: Any) -> dict[str, np.ndarray]:
        """See `blocks.Step`."""
        return {self.output: self.predictor.affinities(data, self.grid.region(index)).astype(np.float16)}


def _settings(grid: Grid, source: Source, predictor: Network | Predictor) -> dict[str, Any]:
    """Of all steps from raw to affinities."""
    raw = {"raw": str(source.path), "raw_key": source.raw_key, "shape": list(grid.shape), "raw files": source.stamp()}
    return {**raw, **source.place(), "block": list(grid.block), **predictor.settings()}


@dataclass(frozen=True)
class Encode:
    """Raw -> SAM2's features of the sections that windows of several blocks along z share.

    `Decode` encodes all others when it comes to them, so they need not be stored. A block of this step has those of its
    sections, for the tiles that begin in it.
    """

    folder: Path
    grid: Grid
    source: Source
    network: Network
    name: ClassVar[str] = "encode"

    def settings(self) -> dict[str, Any]:
        """See `blocks.Step`."""
        return _settings(self.grid, self.source, self.network)

    def prepare(self) -> None:
        """See `blocks.Step`."""

    def path(self, index: int) -> Path:
        """The file with the features of a block."""
        return inside(self.folder, f"{WINDOWS}/features/{index // PER_FOLDER}/{index}.npz")

    @property
    def windows(self) -> Windows:
        """Of the whole volume."""
        return self.network.windows(self.grid.shape)

    def shared(self, layer: int) -> list[int]:
        """Sections that windows of several layers of blocks share, of those in the layer of this number along z."""
        depth = self.grid.block[0]
        sections = range(layer * depth, min((layer + 1) * depth, self.grid.shape[0]))
        rest = [slice(0, n) for n in self.grid.shape[1:]]
        near = self.windows.touching((slice(sections.start, sections.stop), *rest))
        owners = {z: {a // depth for a in near.starts[0] if a <= z < a + near.size[0]} for z in sections}
        return [z for z in sections if len(owners[z]) > 1] if self.network.encodes else []

    def places(self, index: int) -> tuple[list[int], list[tuple[int, int]]]:
        """Sections, and tiles by their y and x, whose features a block has."""
        region = self.grid.region(index)
        return self.shared(region[0].start // self.grid.block[0]), self.windows.beginning(region).columns

    def read(self, index: int) -> list[np.ndarray]:
        """The sections of each tile."""
        sections, columns = self.places(index)
        if not sections or not columns:
            return []
        (_, height, width), (_, *rest) = self.windows.size, self.windows.beginning(self.grid.region(index)).reach
        deep, places = slice(sections[0], sections[-1] + 1), np.array(sections) - sections[0]
        raw = self.source.read((deep, *rest))
        return [raw[deep, y : y + height, x : x + width][places] for y, x in columns]

    def compute(self, index: int, data: list[np.ndarray]) -> dict[str, np.ndarray]:
        """For each stride (tiles, sections, C, h, w)."""
        found = [encode_sections(self.network.model(), sections, self.windows.size) for sections in data]
        return {str(s): np.stack(level) for s, level in zip(STRIDES, zip(*found, strict=True), strict=False)}

    def write(self, index: int, result: dict[str, np.ndarray]) -> None:
        """See `blocks.Step`."""
        save_arrays(self.path(index), result)

    def stored(self, index: int) -> dict[str, np.ndarray]:
        """See `blocks.Step`."""
        return load_arrays(self.path(index))

    def features(self, index: int) -> dict[Place, list[np.ndarray]]:
        """What a block has, by section and tile."""
        sections, columns = self.places(index)
        if not sections or not columns:
            return {}
        found = _there(self, index)
        places = product(enumerate(columns), enumerate(sections))
        return {(z, y, x): [found[str(s)][i, j] for s in STRIDES] for (i, (y, x)), (j, z) in places}


@dataclass(frozen=True)
class Decode:
    """Raw and features -> affinities, float16, of the windows that begin in a block, blended where they reach."""

    folder: Path
    grid: Grid
    encode: Encode
    name: ClassVar[str] = "decode"

    def settings(self) -> dict[str, Any]:
        """See `blocks.Step`."""
        return self.encode.settings()

    def prepare(self) -> None:
        """See `blocks.Step`."""
        inside(self.folder, WINDOWS).mkdir(parents=True, exist_ok=True)

    def path(self, index: int) -> Path:
        """The file with the affinities of a block's windows."""
        return inside(self.folder, f"{WINDOWS}/decoded/{index // PER_FOLDER}/{index}.npy")

    def windows(self, index: int) -> Windows:
        """Those that begin in a block."""
        return self.encode.windows.beginning(self.grid.region(index))

    def read(self, index: int) -> tuple[Lazy, dict[Place, list[np.ndarray]]] | None:
        """Raw and stored features, as far as the windows reach; None without windows."""
        those = self.windows(index)
        if not len(those):
            return None
        layer, *place = np.unravel_index(index, self.grid.counts)
        stored = {}
        for other in range(layer, -(-those.reach[0].stop // self.grid.block[0])):
            stored |= self.encode.features(int(np.ravel_multi_index((other, *place), self.grid.counts)))
        return self.encode.source.read(those.reach), stored

    def compute(self, index: int, data: tuple[Lazy, dict[Place, list[np.ndarray]]] | None) -> dict[str, np.ndarray]:
        """See `blocks.Step`."""
        if data is None:
            return {"affinities": np.zeros((3, 0, 0, 0), np.float16)}
        found = predict_windows(self.encode.network.model(), data[0], self.windows(index), data[1])
        return {"affinities": found.astype(np.float16)}

    def write(self, index: int, result: dict[str, np.ndarray]) -> None:
        """See `blocks.Step`."""
        self.path(index).parent.mkdir(parents=True, exist_ok=True)
        np.save(self.path(index), result["affinities"])

    def stored(self, index: int) -> dict[str, np.ndarray]:
        """Not in memory before it is used: several blocks use a part each."""
        return {"affinities": np.load(self.path(index), mmap_mode="r")}

    def affinities(self, index: int, region: Region) -> np.ndarray:
        """Those of a block's windows, in a region that they reach."""
        reach = self.windows(index).reach
        cut = (slice(s.start - r.start, s.stop - r.start) for s, r in zip(region, reach, strict=True))
        return np.array(_there(self, index)["affinities"][:, *cut])

    def steps(self) -> list[Encode | Decode]:
        """This one, after `encode` where windows of several blocks share sections."""
        return [*([self.encode] if any(map(self.encode.shared, range(self.grid.counts[0]))) else []), self]

    def remove(self) -> None:
        """Features and affinities of windows, from disk; `_there` makes them again."""
        with locked(self.folder):
            shutil.rmtree(inside(self.folder, WINDOWS), ignore_errors=True)  # what still is in use goes next time

    def is_removed(self) -> bool:
        """Whether all was done, and is on disk no more."""
        return not inside(self.folder, WINDOWS).exists() and not Journal(self.folder, self.name).missing(self.grid)


def _there(step: Encode | Decode, index: int) -> dict[str, np.ndarray]:
    """What a step has made of a block, or makes of it now that it was removed.

    Raises:
        ValueError: the step did not come to an end there.
    """
    if Journal(step.folder, step.name).checksum(index) is None:
        raise ValueError(f"block {index} is missing in the step `{step.name}` before this one")
    return step.stored(index) if step.path(index).exists() else step.compute(index, step.read(index))


@dataclass(frozen=True)
class Blend(Predict):
    """Affinities of the windows of each block -> affinities of the volume, their mean where windows overlap."""

    decode: Decode

    def is_ready(self) -> bool:
        """Whether the windows have served already."""
        return self.decode.is_removed() or not Journal(self.folder, self.name).missing(self.grid)

    def read(self, index: int) -> list[tuple[Region, int, np.ndarray]]:
        """From each block whose windows reach this one: where they do, the number of that block, and the affinities."""
        region = self.grid.region(index)
        touching = self.decode.encode.windows.touching(region).starts
        owners = product(*(sorted({a // b for a in along}) for along, b in zip(touching, self.grid.block, strict=True)))
        found = []
        for other in (int(np.ravel_multi_index(place, self.grid.counts)) for place in owners):
            reach = self.decode.windows(other).reach
            both = tuple(slice(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(region, reach, strict=True))
            found.append((both, other, self.decode.affinities(other, both)))
        return found

    def compute(self, index: int, data: list[tuple[Region, int, np.ndarray]]) -> dict[str, np.ndarray]:
        """See `blocks.Step`."""
        region = self.grid.region(index)
        weight = np.zeros([s.stop - s.start for s in region], np.float32)
        total = np.zeros((3, *weight.shape), np.float32)
        for part, other, values in data:
            place = tuple(slice(p.start - r.start, p.stop - r.start) for p, r in zip(part, region, strict=True))
            own = self.decode.windows(other).weight(part)
            for channel, some in zip(total[:, *place], values, strict=True):  # one at a time, for the memory
                channel += some * own
            weight[place] += own
        total /= weight
        return {self.output: total.astype(np.float16)}
