"""From a volume that fits no memory to its neurons, block by block: affinities, fragments, faces, one graph, labels.

Everything of a run lies in one folder, as Zarr 3 with one shard (one file) for each block: `affinities.zarr`, float16
(3, z, y, x); `fragments.zarr` and `neurons.zarr`, uint64 (z, y, x). Memory holds two blocks with their halo in each
worker, and the graph of all fragments once.

Windows of the network overlap, and so do their sections: each window is computed by the block that it begins in, and
what several blocks need goes through the disk, in the folder `windows` until the affinities are complete.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import product
from pathlib import Path
from typing import Any, ClassVar, Protocol

import fastremap
import numpy as np
import torch
import zarr
from distributed import Client, get_worker

from fgnet_lib.blocks import PER_FOLDER, Grid, Journal, Region, checksum, inside, locked, process_block, stamp
from fgnet_lib.cluster import BlocksFailed, Report, run
from fgnet_lib.devices import choose_device, precision
from fgnet_lib.fgnet import PRETRAINED, FGNet, load_model, read_config
from fgnet_lib.inference import Place, Windows, encode_sections, predict_windows, windows
from fgnet_lib.sam2_encoder import STRIDES
from fgnet_lib.segmentation import agglomerate, check_affinities, connected, flood, linked
from fgnet_lib.volumes import CHUNK, RAW_KEY, Lazy, Volume, is_anisotropic, read_volume

BLOCK = (64, 256, 256)
HALO_NM = 320.0  # of context for fragments: with 160, one merge at a border of blocks cost 0.19 bits of VOI
WINDOWS = "windows"  # folder of what is removed when affinities are complete
MIDDLE = 64  # voxels around the centre in which affinities from elsewhere are checked


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
    source: Source,
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
        source: The volume, in a place that all workers see.
        folder: For the results; likewise.
        predictor: The shipped model by default; `Network` for another one.
        block: Voxels (z, y, x) of a block.
        progress: Show a bar for each step with the rate and the time left; the last, "predict", blends the windows.

    Returns:
        Blocks of `affinities.zarr`, and the seconds and the memory of all steps.

    Raises:
        ValueError, RuntimeError, ConnectionError: As `cluster.run`.
    """
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


def segment_blocks(
    client: Client,
    affinities: str | Path,
    folder: str | Path,
    threshold: float,
    block: tuple[int, int, int] = BLOCK,
    progress: bool = True,
) -> list[Report]:
    """Neurons from affinities, to `neurons.zarr` in a folder; ids are unique over the volume.

    Fragments are made in each block with a halo, all faces between fragments are collected, merged in one graph as
    `segmentation.segment` merges them, and the fragments relabelled.

    Args:
        client: Of `cluster.cluster`.
        affinities: A Zarr array (3, z, y, x) of floats in [0, 1] with the attribute `resolution` in nm, as
            `predict_blocks` writes it. Lost files are noticed under the name and beside the journal that it gave them;
            of other arrays Zarr reads zeros there.
        folder: For the results; may be the one of `predict_blocks`.
        threshold: Score as of `segmentation.segment`.
        block: Voxels (z, y, x) of a block.
        progress: Show bars.

    Raises:
        ValueError: As `cluster.run`, or for affinities that do not qualify or are not complete.
        RuntimeError, ConnectionError: As `cluster.run`.
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"a threshold is a score (1 - mean affinity) in [0, 1], not {threshold}")
    affinities, folder = Path(affinities).resolve(), Path(folder).resolve()
    array = _checked(affinities)
    grid = Grid(array.shape[1:], block)
    fragments = Fragments(folder, grid, affinities, tuple(map(float, array.attrs["resolution"])))
    faces = Faces(folder, grid, fragments)
    merge = Merge(folder, Grid(grid.shape, grid.shape), faces, threshold)
    with locked(folder):
        Journal(folder, merge.name).check(merge.settings())  # now, and not after hours of fragments and faces
        reports = [run(client, fragments, progress), run(client, faces, progress), run_here(merge)]
        return [*reports, run(client, Relabel(folder, grid, merge), progress)]


def run_here(step: Merge) -> Report:
    """Do a step of one block in this process: the graph is one, and workers have little memory."""
    with locked(step.folder):
        Journal(step.folder, step.name).begin(step.settings())
        done = process_block(step, 0)
    seconds = Counter(read=done.read, compute=done.compute, write=done.write)
    return Report(step.name, int(not done.kept), int(done.kept), seconds, done.peak_bytes)


def _checked(path: Path) -> zarr.Array:
    """Affinities from a file, looked at in their middle."""
    array = zarr.open_array(path, mode="r")
    if array.ndim != 4 or array.dtype.kind != "f" or "resolution" not in array.attrs:
        raise ValueError(
            f"{path}: affinities are floats (3, z, y, x) with the attribute `resolution` in nm; this is {array.dtype} "
            f"{array.shape} with the attributes {list(array.attrs)}"
        )
    middle = (slice(max(n // 2 - MIDDLE, 0), n // 2 + MIDDLE) for n in array.shape[1:])
    check_affinities(array[:, *middle].astype(np.float32))
    predicted = Journal(path.parent, Predict.name)
    if path.name == Predict.output and (settings := predicted.settings()):
        missing = predicted.missing(Grid(array.shape[1:], settings["block"]))
        if missing:
            raise ValueError(f"{path}: blocks {missing[:10]} are not there yet; run the prediction again to fill them")
    return array


def _read_affinities(path: Path, region: Region) -> np.ndarray:
    """Affinities (3, z, y, x) of a region, float32.

    Raises:
        OSError: a file of `predict_blocks` is lost: Zarr reads zeros then. Noticed only where its journal lies beside.
        ValueError: they are not in [0, 1].
    """
    array, predicted = zarr.open_array(path, mode="r"), Journal(path.parent, Predict.name)
    if path.name == Predict.output and (settings := predicted.settings()):
        grid = Grid(array.shape[1:], settings["block"])
        touched = (range(s.start // b, -(-s.stop // b)) for s, b in zip(region, grid.block, strict=True))
        for place in product(*touched):
            block = int(np.ravel_multi_index(place, grid.counts))
            if (path / array.metadata.encode_chunk_key((0, *place))).exists():
                continue
            zeros = np.zeros((3, *(s.stop - s.start for s in grid.region(block))), array.dtype)
            if checksum({Predict.output: zeros}) != predicted.checksum(block):  # Zarr stores no file for zeros only
                raise OSError(f"{path}: the file of block {block} is lost; run the prediction again to fill the hole")
    found = array[:, *region].astype(np.float32)
    if not (found.min() >= -1e-3 and found.max() <= 1 + 1e-3):  # also for NaN; float16 rounds
        raise ValueError(f"{path}: affinities lie in [0, 1], these in [{found.min():g}, {found.max():g}]")
    return found


# --- steps -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _ToZarr(ABC):
    """A step whose blocks are shards of one Zarr array."""

    folder: Path
    grid: Grid
    output: ClassVar[str]
    dtype: ClassVar[str] = "uint64"
    channels: ClassVar[tuple[int, ...]] = ()

    @abstractmethod
    def place(self) -> dict[str, list[float]]:
        """Voxel size and offset in nm, as attributes."""

    def prepare(self) -> None:
        """Make the array, unless it is there."""
        path = inside(self.folder, self.output)
        if inside(self.folder, f"{self.output}/zarr.json").exists():
            self._refuse_another()
            return
        chunk = tuple(c if b % c == 0 else b for c, b in zip(CHUNK, self.grid.block, strict=True))
        zarr.create_array(
            path,
            shape=(*self.channels, *self.grid.shape),
            shards=(*self.channels, *self.grid.block),
            chunks=(*self.channels, *chunk),
            dtype=self.dtype,
            attributes=self.place(),
        )

    def _refuse_another(self) -> None:
        array = zarr.open_array(inside(self.folder, self.output), mode="r")
        there = (array.shape, array.shards, str(array.dtype))
        wanted = ((*self.channels, *self.grid.shape), (*self.channels, *self.grid.block), self.dtype)
        if there != wanted:
            raise ValueError(
                f"{self.folder / self.output} is there already, and another array: shape, shards and type are {there}, "
                f"these would be {wanted}. Remove it, or use another folder"
            )

    @cached_property
    def array(self) -> zarr.Array:
        """The output, to write to."""
        return zarr.open_array(inside(self.folder, self.output), mode="r+")

    def write(self, index: int, result: dict[str, np.ndarray]) -> None:
        """See `blocks.Step`."""
        place = (0,) * len(self.channels) + tuple(map(int, np.unravel_index(index, self.grid.counts)))
        shard = inside(self.folder, f"{self.output}/{self.array.metadata.encode_chunk_key(place)}")
        shard.unlink(missing_ok=True)  # Zarr would read it first, and fail on one that is damaged
        self.array[(..., *self.grid.region(index))] = result[self.output]

    def stored(self, index: int) -> dict[str, np.ndarray]:
        """See `blocks.Step`."""
        return {self.output: self.array[(..., *self.grid.region(index))]}


@dataclass(frozen=True)
class Predict(_ToZarr):
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
        """See `_ToZarr`."""
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
        _save(self.path(index), result)

    def stored(self, index: int) -> dict[str, np.ndarray]:
        """See `blocks.Step`."""
        return _load(self.path(index))

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


@dataclass(frozen=True)
class Fragments(_ToZarr):
    """Affinities -> fragments, none of which leaves its block; ids begin anew in each block, far from all others."""

    affinities: Path
    voxel_size: tuple[float, float, float]
    name: ClassVar[str] = "fragments"
    output: ClassVar[str] = "fragments.zarr"

    def settings(self) -> dict[str, Any]:
        """See `blocks.Step`."""
        before = Journal(self.affinities.parent, Predict.name).settings() or {}
        here = {"affinities": str(self.affinities), "affinities files": stamp(self.affinities)}
        here |= {"block": list(self.grid.block), "voxel_size": list(self.voxel_size)}
        return here | {f"predict: {key}": value for key, value in before.items()}

    def place(self) -> dict[str, list[float]]:
        """See `_ToZarr`."""
        attributes = zarr.open_array(self.affinities, mode="r").attrs
        return {"resolution": list(self.voxel_size), "offset": list(attributes.get("offset", (0.0, 0.0, 0.0)))}

    @property
    def halo(self) -> tuple[int, int, int]:
        """Voxels (z, y, x); where sections are flooded one by one, the next one only tells what its affinities join."""
        z, y, x = (round(HALO_NM / nm) for nm in self.voxel_size)
        return 1 if is_anisotropic(self.voxel_size) else z, y, x

    def read(self, index: int) -> np.ndarray:
        """See `blocks.Step`."""
        return _read_affinities(self.affinities, self.grid.region(index, self.halo))

    def compute(self, index: int, data: np.ndarray) -> dict[str, np.ndarray]:
        """Fragments of the block and, as "before0" to "before2", of the layers before it without their membranes."""
        grown, block = self.grid.region(index, self.halo), self.grid.region(index)
        sides = tuple((s.start > 0, s.stop < n) for s, n in zip(grown, self.grid.shape, strict=True))
        labels = flood(data, self.voxel_size, is_anisotropic(self.voxel_size), sides)
        cut = [slice(b.start - g.start, b.stop - g.start) for b, g in zip(block, grown, strict=True)]
        ids = fastremap.unique(labels[*cut])
        table = np.zeros(int(labels.max()) + 1, np.uint64)  # 0 for what is in the halo only
        table[ids] = np.arange(len(ids), dtype=np.uint64) + np.uint64(self.first(index))
        found = {self.output: table[labels[*cut]]}
        labels[~linked(data)] = 0
        for axis, here in enumerate(cut):
            layer = [*cut]
            layer[axis] = slice(max(here.start - 1, 0), here.start)
            found[f"before{axis}"] = table[labels[*layer]]
        return found

    def seams(self, index: int) -> Path:
        """The file with what a block's fragments are in the layers before it."""
        return inside(self.folder, f"seams/{index // PER_FOLDER}/{index}.npz")

    def write(self, index: int, result: dict[str, np.ndarray]) -> None:
        """See `blocks.Step`."""
        super().write(index, result)
        _save(self.seams(index), {name: layer for name, layer in result.items() if name != self.output})

    def stored(self, index: int) -> dict[str, np.ndarray]:
        """See `blocks.Step`."""
        return super().stored(index) | _load(self.seams(index))

    def first(self, index: int) -> int:
        """The lowest id of a block."""
        return index * int(np.prod(self.grid.block)) + 1


@dataclass(frozen=True)
class Faces:
    """Fragments and affinities -> faces between fragments, each with the sum and the number of its affinities.

    A pair of voxels belongs to the block of the later one, so each pair is counted once.
    """

    folder: Path
    grid: Grid
    fragments: Fragments
    name: ClassVar[str] = "faces"

    def settings(self) -> dict[str, Any]:
        """See `blocks.Step`."""
        return self.fragments.settings()

    def prepare(self) -> None:
        """See `blocks.Step`."""

    def path(self, index: int) -> Path:
        """The file with the faces of a block."""
        return inside(self.folder, f"faces/{index // PER_FOLDER}/{index}.npz")

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        """Fragments with one voxel more before the block, its affinities, and what its fragments are before it."""
        region = self.grid.region(index)
        before = tuple(slice(max(s.start - 1, 0), s.stop) for s in region)
        seams = _load(self.fragments.seams(index))
        return self.fragments.array[before], _read_affinities(self.fragments.affinities, region), seams

    def compute(self, index: int, data: tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """See `blocks.Step`."""
        labels, affinities, seams = data
        grown = tuple(n - m for n, m in zip(labels.shape, affinities.shape[1:], strict=True))
        inner = [slice(g, None) for g in grown]
        same = []
        for axis in range(3):
            layer = [*inner]
            layer[axis] = slice(0, grown[axis])
            same.append(_same(seams[f"before{axis}"], labels[*layer]))
        dense = fastremap.renumber(labels)[0].astype(np.int64)
        ids = np.zeros(dense.max() + 1, np.uint64)
        ids[dense] = labels
        pairs, values = zip(*(_pairs(dense, affinities[axis], axis, grown) for axis in range(3)), strict=True)
        keys, face = np.unique(np.concatenate(pairs), return_inverse=True)
        sums, counts = np.bincount(face, np.concatenate(values), len(keys)), np.bincount(face, minlength=len(keys))
        faces = np.stack([ids[keys // len(ids)], ids[keys % len(ids)]], 1)
        found = {"ids": fastremap.unique(labels[*inner]), "faces": faces, "sums": sums, "counts": counts}
        return {**found, "same": np.concatenate(same)}

    def write(self, index: int, result: dict[str, np.ndarray]) -> None:
        """See `blocks.Step`."""
        _save(self.path(index), result)

    def stored(self, index: int) -> dict[str, np.ndarray]:
        """See `blocks.Step`."""
        return _load(self.path(index))


def _save(path: Path, arrays: dict[str, np.ndarray]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **arrays)


def _load(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def _same(mine: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Pairs of fragments (n, 2) that a border of blocks has parted: on a layer, each covers most of the other.

    Args:
        mine: Fragments of a block in the layer before it, 0 where it has none.
        theirs: Fragments of the block before, in the same voxels.
    """
    mine, theirs = mine[mine > 0], theirs[mine > 0]
    pairs, overlap = np.unique(np.stack([mine, theirs], 1), axis=0, return_counts=True)
    sizes = [dict(zip(*np.unique(side, return_counts=True), strict=True)) for side in (mine, theirs)]
    most = [
        2 * n > max(sizes[0][a], sizes[1][b]) for (a, b), n in zip(pairs, overlap, strict=True)
    ]  # fmt: skip
    return pairs[np.array(most, bool)]


def _pairs(dense: np.ndarray, affinities: np.ndarray, axis: int, grown: tuple[int, ...]) -> tuple[np.ndarray, ...]:
    """Keys of the two fragments of each pair of voxels along an axis whose fragments differ, and their affinities."""
    here = [slice(g, None) for g in grown]
    first = 1 - grown[axis]  # at the low side of the volume a voxel has no predecessor
    here[axis] = slice(1, None)
    before = [*here]
    before[axis] = slice(0, -1)
    a, b = dense[*here], dense[*before]
    differ = a != b
    low, high = np.minimum(a, b)[differ], np.maximum(a, b)[differ]
    values = affinities[*(slice(first, None) if i == axis else slice(None) for i in range(3))]
    return low * (dense.max() + 1) + high, values[differ]


@dataclass(frozen=True)
class Merge:
    """All faces -> a table of fragments and the neurons they belong to, which are numbered from 1."""

    folder: Path
    grid: Grid  # one block: the graph is one
    faces: Faces
    threshold: float
    name: ClassVar[str] = "merge"

    def settings(self) -> dict[str, Any]:
        """See `blocks.Step`."""
        return {**self.faces.settings(), "threshold": self.threshold}

    def prepare(self) -> None:
        """See `blocks.Step`."""

    def path(self, column: str) -> Path:
        """The file with a column of the table."""
        return inside(self.folder, f"table/{column}.npy")

    def read(self, index: int) -> dict[str, np.ndarray]:
        """The faces of all blocks; what lies on the border of two blocks has parts in both."""
        if missing := Journal(self.folder, Faces.name).missing(self.faces.grid):
            raise ValueError(f"{self.folder}: the faces of blocks {missing[:10]} are not there")
        parts = [self.faces.stored(block) for block in range(len(self.faces.grid))]
        return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}

    def compute(self, index: int, data: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """See `blocks.Step`."""
        ids = np.unique(data["ids"])
        node = connected(np.searchsorted(ids, data["same"]), len(ids))
        low, high = np.sort(node[np.searchsorted(ids, data["faces"])], axis=1).T
        between = low < high  # what a border of blocks has parted is one node, and has no face with itself
        keys, face = np.unique(low[between] * len(ids) + high[between], return_inverse=True)
        faces = np.stack([keys // len(ids), keys % len(ids)], 1)
        sums, counts = (np.bincount(face, data[key][between], len(keys)) for key in ("sums", "counts"))
        neuron = agglomerate(faces, sums, counts, len(ids), self.threshold)[node]
        return {"fragments": ids, "neurons": np.unique(neuron, return_inverse=True)[1].astype(np.uint64) + np.uint64(1)}

    def write(self, index: int, result: dict[str, np.ndarray]) -> None:
        """See `blocks.Step`."""
        for column, values in result.items():
            self.path(column).parent.mkdir(parents=True, exist_ok=True)
            np.save(self.path(column), values)

    def stored(self, index: int) -> dict[str, np.ndarray]:
        """The table, not in memory before it is used."""
        return {column: np.load(self.path(column), mmap_mode="r") for column in ("fragments", "neurons")}


@dataclass(frozen=True)
class Relabel(_ToZarr):
    """Fragments -> neurons, by the table."""

    merge: Merge
    name: ClassVar[str] = "relabel"
    output: ClassVar[str] = "neurons.zarr"

    def settings(self) -> dict[str, Any]:
        """See `blocks.Step`."""
        return self.merge.settings()

    def place(self) -> dict[str, list[float]]:
        """See `_ToZarr`."""
        return self.merge.faces.fragments.place()

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Fragments of the block, and its rows of the table, which lie together."""
        labels = self.merge.faces.fragments.array[self.grid.region(index)]
        table = self.merge.stored(0)
        rows = slice(*np.searchsorted(table["fragments"], [labels.min(), labels.max() + np.uint64(1)]))
        return labels, np.array(table["fragments"][rows]), np.array(table["neurons"][rows])

    def compute(self, index: int, data: tuple[np.ndarray, np.ndarray, np.ndarray]) -> dict[str, np.ndarray]:
        """See `blocks.Step`."""
        labels, fragments, neurons = data
        return {self.output: neurons[np.searchsorted(fragments, labels)]}
