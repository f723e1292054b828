"""From a volume too large for memory to its affinities, block by block.

Affinities are a Zarr 3 array in the folder of the run, `affinities.zarr`, float16 (3, z, y, x), with one shard (one
file) for each block. Windows of the network overlap: each window is computed by the block that it begins in, and what
several blocks need goes through the disk, in the folder `windows` until the affinities are complete.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import product
from pathlib import Path
from types import NoneType
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from distributed import Client, get_worker

from fgnet_lib.engines.runtimes import BFLOAT16, Converted, Engine, choose_engine
from fgnet_lib.fgnet import FGNet
from fgnet_lib.files.formats import fingerprint, read_raw
from fgnet_lib.files.locks import inside, lock
from fgnet_lib.files.stamps import differences, stamp
from fgnet_lib.inference import Corner, Windows, encode_sections, lay_windows, predict_windows
from fgnet_lib.machine import choose_device, precision
from fgnet_lib.sam2_encoder import STRIDES
from fgnet_lib.scale.cluster import BlocksFailed, Report, run
from fgnet_lib.scale.grid import Grid
from fgnet_lib.scale.journal import Journal, Step, ToFiles, ToZarr, block_path
from fgnet_lib.volumes import Lazy, Region, Volume, triple
from fgnet_lib.weights import PRETRAINED, find_checkpoint, load_model, read_config

BLOCK = (64, 256, 256)
BYTES_PREDICTED = 35  # of a voxel of a block, as measured
MEMORY = 2**34  # bytes of a worker that tells no limit
WINDOWS = "windows"  # folder of features and affinities of windows; removed when `affinities.zarr` is complete


@dataclass(frozen=True)
class Source:
    """The raw data of a file, as `read_raw` opens it; each worker opens it for itself.

    Attributes:
        path: the file or folder.
        raw_key: path of raw inside the file, if it is not a usual one.
        voxel_size: nm along z, y, x; overrides the file's own.
        axes: names of the axes in the file's order, as in `read_raw`; overrides the file's own.
        state: what `stamp` gave when a run began, which it then gives without a look at the files: looking at all
            chunks of a volume takes seconds, and each block asks.
    """

    path: Path
    raw_key: str | None = None
    voxel_size: tuple[float, float, float] | None = None
    axes: str | None = None
    state: dict[str, str] | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.voxel_size, (str, tuple, NoneType)):  # a list or an array could be no key of a cache
            object.__setattr__(self, "voxel_size", triple(map(float, self.voxel_size)))

    def open(self) -> Volume:
        """Open the volume, lazy; opened anew only when its files have changed."""
        return _open(self, str(self.stamp()))

    def stamp(self) -> dict[str, str]:
        """Say when the files of the array that is read were last written and their sizes; of many, in a checksum."""
        return self.state or fingerprint(self.path, self.raw_key)

    def begin(self) -> Source:
        """Return the same source with its state of now."""
        path = Path(self.path).expanduser().absolute()  # a link stays one: names of files are a part of the state
        return replace(self, path=path, state=fingerprint(path, self.raw_key))

    def check_unchanged(self) -> None:
        """Raise a ValueError if the files are no longer those that the run began with."""
        if self.state and (changed := differences(self.state, fingerprint(self.path, self.raw_key))):
            raise ValueError(
                f"{self.path} has changed while it was read: {'; '.join(changed)}. Some blocks may come from the new "
                "data; run again in another folder"
            )

    def geometry(self) -> dict[str, list[float]]:
        """Voxel size ("resolution") and offset in nm along z, y, x."""
        volume = self.open()
        return {"resolution": list(volume.voxel_size), "offset": list(volume.offset)}

    def read(self, region: Region) -> Lazy:
        """Read a region of raw into memory; it is indexed as the whole volume is."""
        raw = self.open().raw
        crop = np.asarray(raw[*region])
        return Lazy(raw.shape, raw.dtype, lambda *cut: crop[Region(*cut).within(region)])


@lru_cache(maxsize=4)
def _open(source: Source, stamp: str) -> Volume:
    return read_raw(source.path, source.raw_key, source.voxel_size, source.axes)


class Predictor(Protocol):
    """Anything that turns raw into affinities, a region of the volume at a time; a `Network` needs none of this."""

    def settings(self) -> dict[str, Any]:
        """Everything but raw that the affinities depend on, as JSON gives it back."""

    def input_region(self, shape: tuple[int, int, int], region: Region) -> Region:
        """The part of raw that the affinities of `region` depend on, in a volume of `shape`."""

    def affinities(self, raw: Any, region: Region) -> np.ndarray:
        """Affinities (3, z, y, x) of `region`; `raw` is indexed like the whole volume, and holds its `input_region`."""


@dataclass(frozen=True)
class Network:
    """FGNet by its weights on disk, which each worker loads once, to a GPU of its own if the computer has any.

    Attributes:
        checkpoint: safetensors file of the weights, or the name of a model that ships with this repository.
        tile: voxels of a window along z, y, x; y and x are multiples of 32.
        overlap: least fraction of a window that it shares with the next one, as in `inference.predict`.
        device: "auto", "cpu", "cuda" or "mps".
        engine: what computes, as in `inference.predict`. No setting of a run, since engines differ by less than float16
            does; but "openvino_bf16" is one, and does not continue what another engine began.
    """

    checkpoint: Path = PRETRAINED / "fgnet_mini.safetensors"
    tile: tuple[int, int, int] = (16, 160, 160)
    overlap: float = 0.25
    device: str = "auto"
    engine: Engine = "auto"

    def __post_init__(self) -> None:
        object.__setattr__(self, "checkpoint", find_checkpoint(self.checkpoint))  # workers run in other folders

    def settings(self) -> dict[str, Any]:
        """Everything but raw that the affinities depend on: weights, arithmetic, tile and overlap."""
        weights = _sha256(self.checkpoint, str(stamp(self.checkpoint)))
        arithmetic = "bf16" if self.engine == BFLOAT16 else precision(choose_device(self.device))
        return {"weights": weights, "precision": arithmetic, "tile": list(self.tile), "overlap": self.overlap}

    @property
    def encodes(self) -> bool:
        """Whether the network has a guide."""
        return read_config(self.checkpoint).encoder is not None

    def model(self, windows: Windows) -> FGNet | Converted:
        """The model on this worker's device, loaded once, with the engine that suits `windows`, all of the volume."""
        model = _load(self.checkpoint, self.device, str(stamp(self.checkpoint)))
        return choose_engine(model, self.engine, windows.size, windows.voxels)

    def windows(self, shape: tuple[int, int, int]) -> Windows:
        """All windows of a volume of `shape`."""
        return lay_windows(shape, self.tile, self.overlap)


@lru_cache(maxsize=1)
def _load(checkpoint: Path, device: str, stamp: str) -> FGNet:
    torch.set_num_threads(1)  # each core has a worker; and results do not depend on the number of threads
    chosen = choose_device(device)
    if chosen.type == "cuda":
        chosen = torch.device("cuda", gpu_of(str(get_worker().name), torch.cuda.device_count()))
    return load_model(checkpoint, chosen)


def gpu_of(worker: str, gpus: int) -> int:
    """Choose the GPU of a worker by the last number in its name: Dask numbers the workers that it starts.

    >>> gpu_of("SLURMCluster-2-3", gpus=2)
    1
    """
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
    """Predict the affinities of a volume of any size, to `affinities.zarr` in a folder; complete blocks are kept.

    Values are those of `inference.predict` on the whole volume with the same tile and overlap, whatever the block, up
    to rounding to float16. Over the whole volume, each window is computed once, and each section of a tile encoded
    once.

    Args:
        client: Dask's client, as `cluster.cluster` yields it.
        source: The volume or its path; all workers must see the file.
        folder: Folder for the results, which all workers must see, too.
        predictor: The shipped model by default; a `Network` for another model.
        block: Voxels (z, y, x) of a block.
        progress: Show a bar for each step with the rate and the time left; the last, "predict", blends the windows.

    Returns:
        Number of blocks of `affinities.zarr`, and the seconds and the memory of all steps.

    Raises:
        ValueError: As `cluster.run`; or a block is too large for the memory of a worker, or the volume has changed
            meanwhile.
        RuntimeError, ConnectionError: As `cluster.run`.
    """
    source = (source if isinstance(source, Source) else Source(Path(source))).begin()
    folder, grid = Path(folder).expanduser().resolve(), Grid(source.open().shape, block)
    check_memory(client, Region.at((0, 0, 0), grid.block), BYTES_PREDICTED, "to predict its affinities")
    predictor = predictor or Network()
    if not isinstance(predictor, Network):
        report = run(client, Predict(folder, grid, source, predictor), progress)
        source.check_unchanged()
        return report
    decode = Decode(folder, grid, Encode(folder, grid, source, predictor))
    blend = Blend(folder, grid, source, predictor, decode)
    report, failed = Report(blend.name), []
    with lock(folder):
        for step in ([] if blend.is_ready() else decode.steps()) + [blend]:
            try:
                last = run(client, step, progress)
            except BlocksFailed as error:
                failed.append(error)  # the following steps do the blocks that they can do without
                continue
            report.seconds += last.seconds
            report.done, report.kept, report.peak_bytes = last.done, last.kept, max(report.peak_bytes, last.peak_bytes)
        if failed:
            raise failed[0]
        source.check_unchanged()
        decode.remove()
    return report


def check_memory(client: Client, region: Region, bytes_per_voxel: int, purpose: str) -> None:
    """Raise a ValueError if a block needs more memory than a worker has, before anything is read.

    Args:
        client: Dask's client.
        region: The voxels that the block reads.
        bytes_per_voxel: What it holds at once for each of them, at least.
        purpose: What the memory is for, in words.
    """
    limits = [worker.get("memory_limit") for worker in client.scheduler_info()["workers"].values()]
    least = min(filter(None, limits), default=0) or MEMORY
    needed = region.voxels * bytes_per_voxel
    if needed > least:
        raise ValueError(
            f"a block of {region.shape} voxels takes {needed / 2**30:.1f} GiB {purpose}, and a worker has "
            f"{least / 2**30:.1f} GiB; use smaller blocks, or give workers more memory"
        )


# --- steps -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ToAffinities(ToZarr):
    """A step that writes the affinities of a volume, whatever computes them."""

    source: Source
    predictor: Any
    name: ClassVar[str] = "predict"
    output: ClassVar[str] = "affinities.zarr"
    dtype: ClassVar[str] = "float16"
    channels: ClassVar[tuple[int, ...]] = (3,)

    def settings(self) -> dict[str, Any]:
        return _settings(self.grid, self.source, self.predictor)

    def geometry(self) -> dict[str, list[float]]:
        return self.source.geometry()


@dataclass(frozen=True)
class Predict(ToAffinities):
    """The step from raw to affinities with a predictor that has no windows."""

    predictor: Predictor

    def read(self, index: int) -> Any:
        return self.source.read(self.predictor.input_region(self.grid.shape, self.grid.region(index)))

    def compute(self, index: int, data: Any) -> dict[str, np.ndarray]:
        return {self.output: self.predictor.affinities(data, self.grid.region(index)).astype(np.float16)}


def _settings(grid: Grid, source: Source, predictor: Network | Predictor) -> dict[str, Any]:
    """The settings of all steps from raw to affinities."""
    raw = {"raw": str(source.path), "raw_key": source.raw_key, "axes": source.axes, "raw files": source.stamp()}
    return {**raw, "shape": list(grid.shape), **source.geometry(), "block": list(grid.block), **predictor.settings()}


@dataclass(frozen=True)
class Encode(ToFiles):
    """The step from raw to the guide's features of those sections that windows of several blocks along z share.

    `Decode` encodes all other sections when it comes to them, so they need not be stored. A block of this step holds
    the features of its own sections, for the tiles that begin in it.
    """

    source: Source
    network: Network
    name: ClassVar[str] = "encode"
    subfolder: ClassVar[str] = f"{WINDOWS}/features"

    def settings(self) -> dict[str, Any]:
        return _settings(self.grid, self.source, self.network)

    @property
    def windows(self) -> Windows:
        """All windows of the volume."""
        return self.network.windows(self.grid.shape)

    def shared_sections(self, layer: int) -> list[int]:
        """The sections of a layer of blocks, counted along z, that windows of several layers share."""
        depth = self.grid.block[0]
        sections = range(layer * depth, min((layer + 1) * depth, self.grid.shape[0]))
        region = Region.at((sections.start, 0, 0), (len(sections), *self.grid.shape[1:]))
        near = self.windows.overlapping(region)
        owners = {z: {a // depth for a in near.starts[0] if a <= z < a + near.size[0]} for z in sections}
        return [z for z in sections if len(owners[z]) > 1] if self.network.encodes else []

    def tiles(self, index: int) -> tuple[list[int], list[tuple[int, int]]]:
        """The sections, and the y and x of the tiles, whose features a block holds."""
        sections = self.shared_sections(self.grid.position(index)[0])
        return sections, self.windows.beginning(self.grid.region(index)).columns

    def read(self, index: int) -> list[np.ndarray]:
        """Read the sections (n, y, x) of each tile."""
        sections, columns = self.tiles(index)
        if not sections or not columns:
            return []
        reach, (_, height, width) = self.windows.beginning(self.grid.region(index)).reach, self.windows.size
        region = reach._replace(z=slice(sections[0], sections[-1] + 1))
        raw, shared = self.source.read(region), np.array(sections) - sections[0]
        return [raw[region.z, y : y + height, x : x + width][shared] for y, x in columns]

    def compute(self, index: int, data: list[np.ndarray]) -> dict[str, np.ndarray]:
        """Encode the sections of each tile: for each stride (tiles, sections, C, h, w)."""
        windows = self.windows
        levels = [encode_sections(self.network.model(windows), sections, windows.size) for sections in data]
        return {str(s): np.stack(level) for s, level in zip(STRIDES, zip(*levels, strict=True), strict=False)}

    def features(self, index: int) -> dict[Corner, list[np.ndarray]]:
        """The features of a block, by section and tile."""
        sections, columns = self.tiles(index)
        if not sections or not columns:
            return {}
        levels = _restore(self, index)
        numbered_tiles = product(enumerate(columns), enumerate(sections))
        return {(z, y, x): [levels[str(s)][i, j] for s in STRIDES] for (i, (y, x)), (j, z) in numbered_tiles}


@dataclass(frozen=True)
class Decode(Step):
    """The step from raw and features to affinities, float16, of a block's own windows, blended where they reach.

    A block's own windows are those that begin in it.
    """

    encode: Encode
    name: ClassVar[str] = "decode"

    def settings(self) -> dict[str, Any]:
        return self.encode.settings()

    def prepare(self) -> None:
        inside(self.folder, WINDOWS).mkdir(parents=True, exist_ok=True)

    def path(self, index: int) -> Path:
        """The file with the affinities of a block's windows."""
        return block_path(self.folder, f"{WINDOWS}/decoded", index, ".npy")

    def windows(self, index: int) -> Windows:
        """The windows that begin in a block."""
        return self.encode.windows.beginning(self.grid.region(index))

    def read(self, index: int) -> tuple[Lazy, dict[Corner, list[np.ndarray]]] | None:
        """Read raw and stored features, as far as the block's windows reach; None for a block without windows."""
        windows = self.windows(index)
        if not len(windows):
            return None
        layer, *column = self.grid.position(index)
        stored: dict[Corner, list[np.ndarray]] = {}
        for other in range(layer, -(-windows.reach.z.stop // self.grid.block[0])):
            stored |= self.encode.features(self.grid.index((other, *column)))
        return self.encode.source.read(windows.reach), stored

    def compute(self, index: int, data: tuple[Lazy, dict[Corner, list[np.ndarray]]] | None) -> dict[str, np.ndarray]:
        if data is None:
            return {"affinities": np.zeros((3, 0, 0, 0), np.float16)}
        model = self.encode.network.model(self.encode.windows)
        affinities = predict_windows(model, data[0], self.windows(index), data[1])
        return {"affinities": affinities.astype(np.float16)}

    def write(self, index: int, result: dict[str, np.ndarray]) -> None:
        self.path(index).parent.mkdir(parents=True, exist_ok=True)
        np.save(self.path(index), result["affinities"])

    def load(self, index: int) -> dict[str, np.ndarray]:
        """Open the affinities of a block's windows on disk, of which each block that they reach reads a part."""
        return {"affinities": np.load(self.path(index), mmap_mode="r")}

    def affinities(self, index: int, region: Region) -> np.ndarray:
        """Read the affinities (3, z, y, x) of a block's windows in a region inside their reach."""
        return np.array(_restore(self, index)["affinities"][:, *region.within(self.windows(index).reach)])

    def steps(self) -> list[Step]:
        """This step, after `encode` if windows of several blocks share sections."""
        return [*([self.encode] if any(map(self.encode.shared_sections, range(self.grid.counts[0]))) else []), self]

    def remove(self) -> None:
        """Remove the features and affinities of windows from disk; `_restore` computes them again when needed."""
        with lock(self.folder):
            shutil.rmtree(inside(self.folder, WINDOWS), ignore_errors=True)  # what still is in use goes next time

    def is_removed(self) -> bool:
        """Tell whether all blocks were done and their files are removed."""
        return not inside(self.folder, WINDOWS).exists() and not Journal(self.folder, self.name).missing(self.grid)


def _restore(step: Encode | Decode, index: int) -> Mapping[str, np.ndarray]:
    """The arrays of a complete block: from disk, or computed again if the file was removed.

    Raises:
        ValueError: the block is not complete.
    """
    if Journal(step.folder, step.name).checksum(index) is None:
        raise ValueError(f"block {index} is missing in the step `{step.name}` before this one")
    if step.path(index).exists():
        return step.load(index)
    data: Any = step.read(index)
    return step.compute(index, data)


@dataclass(frozen=True)
class Blend(ToAffinities):
    """The step from affinities of windows to affinities of the volume: their mean where windows overlap."""

    predictor: Network
    decode: Decode

    def is_ready(self) -> bool:
        """Tell whether the steps before this one need not run: all blocks are done, or the windows were removed."""
        return self.decode.is_removed() or not Journal(self.folder, self.name).missing(self.grid)

    def read(self, index: int) -> list[tuple[Region, int, np.ndarray]]:
        """Read, from each block whose windows reach this one: where they do, that block's number, and affinities."""
        region = self.grid.region(index)
        starts = self.decode.encode.windows.overlapping(region).starts
        owners = product(*(sorted({a // b for a in along}) for along, b in zip(starts, self.grid.block, strict=True)))
        parts = []
        for owner in map(self.grid.index, owners):
            shared = region.intersect(self.decode.windows(owner).reach)
            parts.append((shared, owner, self.decode.affinities(owner, shared)))
        return parts

    def compute(self, index: int, data: list[tuple[Region, int, np.ndarray]]) -> dict[str, np.ndarray]:
        region = self.grid.region(index)
        weight = np.zeros(region.shape, np.float32)
        total = np.zeros((3, *region.shape), np.float32)
        for shared, owner, affinities in data:
            target = shared.within(region)
            weights = self.decode.windows(owner).weight(shared)
            for channel, part in zip(total[:, *target], affinities, strict=True):  # one at a time, to save memory
                channel += part * weights
            weight[target] += weights
        total /= weight
        return {self.output: total.astype(np.float16)}
