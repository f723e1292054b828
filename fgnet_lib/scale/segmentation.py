"""From affinities that fit no memory to neurons, block by block: fragments, faces between them, one graph, labels.

`fragments.zarr` and `neurons.zarr` are uint64 (z, y, x), one shard (one file) for each block. Memory holds two blocks
with their halo in each worker, and the graph of all fragments once.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, ClassVar

import fastremap
import numpy as np
import zarr
from distributed import Client

from fgnet_lib.files.atomic import load_arrays, save_arrays
from fgnet_lib.files.locks import inside, locked
from fgnet_lib.files.stamps import checksum, stamp
from fgnet_lib.scale.cluster import Report, run
from fgnet_lib.scale.grid import Grid
from fgnet_lib.scale.journal import PER_FOLDER, Journal, ToZarr, process_block
from fgnet_lib.scale.prediction import BLOCK, Predict
from fgnet_lib.segmentation import agglomerate, check_affinities, connected, flood, linked
from fgnet_lib.volumes import Region, is_anisotropic

HALO_NM = 320.0  # of context for fragments: with 160, one merge at a border of blocks cost 0.19 bits of VOI
MIDDLE = 64  # voxels around the centre in which affinities from elsewhere are checked


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
    wanted = f"{path}: affinities are a Zarr array of floats (3, z, y, x) with the attribute `resolution`, three in nm"
    if not path.is_dir():
        raise ValueError(f"{wanted}; this is {'a file' if path.exists() else 'not there'}")
    array = zarr.open(path, mode="r")
    if isinstance(array, zarr.Group):
        raise ValueError(f"{wanted}; this is a group with {sorted(array)}: name an array in it, as {path}/NAME")
    if array.ndim != 4 or array.dtype.kind != "f" or np.shape(array.attrs.get("resolution")) != (3,):
        raise ValueError(f"{wanted}; this is {array.dtype} {array.shape} with the attributes {dict(array.attrs)}")
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
class Fragments(ToZarr):
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
        """See `ToZarr`."""
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
        save_arrays(self.seams(index), {name: layer for name, layer in result.items() if name != self.output})

    def stored(self, index: int) -> dict[str, np.ndarray]:
        """See `blocks.Step`."""
        return super().stored(index) | load_arrays(self.seams(index))

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
        seams = load_arrays(self.fragments.seams(index))
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
        save_arrays(self.path(index), result)

    def stored(self, index: int) -> dict[str, np.ndarray]:
        """See `blocks.Step`."""
        return load_arrays(self.path(index))


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
class Relabel(ToZarr):
    """Fragments -> neurons, by the table."""

    merge: Merge
    name: ClassVar[str] = "relabel"
    output: ClassVar[str] = "neurons.zarr"

    def settings(self) -> dict[str, Any]:
        """See `blocks.Step`."""
        return self.merge.settings()

    def place(self) -> dict[str, list[float]]:
        """See `ToZarr`."""
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
