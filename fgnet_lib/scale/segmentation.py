"""From affinities too large for memory to neurons, block by block: fragments, faces, one graph of them, labels.

`fragments.zarr` and `neurons.zarr` are uint64 (z, y, x), one shard (one file) for each block. Memory holds two blocks
with their halo in each worker, and the graph of all fragments once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import fastremap
import numpy as np
import zarr
from distributed import Client

from fgnet_lib.files.atomic import load_arrays, save_arrays
from fgnet_lib.files.geometry import describe_axes, mention
from fgnet_lib.files.lengths import NM_PER_UNIT, SPACE, is_plausible, split_units
from fgnet_lib.files.locks import inside, lock
from fgnet_lib.files.ngff import claim_zarr
from fgnet_lib.files.stamps import checksum, stamp, stamp_all
from fgnet_lib.scale.cluster import Report, run
from fgnet_lib.scale.grid import Grid
from fgnet_lib.scale.journal import Journal, Seconds, Step, ToFiles, ToZarr, block_path, process_block
from fgnet_lib.scale.prediction import BLOCK, Predict, check_memory
from fgnet_lib.segmentation import agglomerate, check_affinities, connected_components, flood, link_mask, middle
from fgnet_lib.volumes import Region, is_anisotropic, triple

BYTES_FLOODED = 38  # of a voxel of a block and its halo, as measured: three affinities, distances, fragments
HALO_NM = 320.0  # of context for fragments: with 160, one merge at a border of blocks cost 0.19 bits of VOI


def segment_blocks(
    client: Client,
    affinities: str | Path,
    folder: str | Path,
    threshold: float,
    block: tuple[int, int, int] = BLOCK,
    progress: bool = True,
    strict: bool = True,
) -> list[Report]:
    """Segment affinities into neurons, to `neurons.zarr` in a folder; ids are unique over the volume.

    Fragments are made in each block with a halo. The faces between all fragments make one graph, which is merged as
    `segmentation.segment` merges it, and then fragments are relabelled.

    Args:
        client: Dask's client, as `cluster.cluster` yields it.
        affinities: Path of a Zarr array (3, z, y, x) of floats in [0, 1] with the attribute `resolution` in nm, as
            `predict_blocks` writes it. Lost files are noticed where `predict_blocks` wrote them, beside its journal; in
            any other array Zarr reads zeros for them, and a warning says how many. Values that were changed in place
            are noticed in any other array, too, but not beside the journal: copy the array before you change it.
        folder: Folder for the results; may be the one of `predict_blocks`.
        threshold: Score, 1 - mean affinity, up to which fragments merge.
        block: Voxels (z, y, x) of a block.
        progress: Show a bar for each step.
        strict: Refuse affinities whose channel order looks wrong; False only warns.

    Returns:
        A report for each step.

    Raises:
        ValueError: As `cluster.run`, or for affinities that do not qualify or are not complete.
        RuntimeError, ConnectionError: As `cluster.run`.
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"a threshold is a score (1 - mean affinity) in [0, 1], not {threshold}")
    threshold = float(threshold)  # it is written as JSON, which knows no numbers of NumPy
    affinities, folder = (Path(path).expanduser().resolve() for path in (affinities, folder))
    array = _open_affinities(affinities, strict)
    grid = Grid(array.shape[1:], block)
    fragments = Fragments(folder, grid, affinities, _voxel_size(affinities, array), _stamp_affinities(affinities))
    largest = [min(b + 2 * h, n) for b, h, n in zip(grid.block, fragments.halo, grid.shape, strict=True)]
    check_memory(client, Region.at((0, 0, 0), largest), BYTES_FLOODED, f"with a halo of {fragments.halo} voxels")
    faces = Faces(folder, grid, fragments)
    merge = Merge(folder, Grid(grid.shape, grid.shape), faces, threshold)
    with lock(folder):
        Journal(folder, merge.name).check(merge.settings())  # now, and not after hours of fragments and faces
        reports = [run(client, fragments, progress), run(client, faces, progress), run_here(merge)]
        return [*reports, run(client, Relabel(folder, grid, merge), progress)]


def run_here(step: Merge) -> Report:
    """Do a step of one block in this process: it takes the memory of a whole graph, and workers have little."""
    with lock(step.folder):
        Journal(step.folder, step.name).begin(step.settings())
        done = process_block(step, 0)
    seconds = Seconds() if done.kept else done.seconds
    return Report(step.name, int(not done.kept), int(done.kept), seconds, done.peak_bytes)


def _open_affinities(path: Path, strict: bool) -> zarr.Array:
    """Open affinities and check them as far as that is quick: kind, shape, values in the middle, missing blocks."""
    wanted = f"{path}: affinities are a Zarr array of floats (3, z, y, x) with the attribute `resolution`, three in nm"
    if not path.is_dir():
        raise ValueError(f"{wanted}; this path is {'a file' if path.exists() else 'missing'}")
    array = zarr.open(path, mode="r")
    if isinstance(array, zarr.Group):
        raise ValueError(f"{wanted}; this is a group with {sorted(array)}: name an array in it, as {path}/NAME")
    if array.ndim != 4 or array.dtype.kind != "f" or np.shape(array.attrs.get("resolution")) != (3,):
        raise ValueError(f"{wanted}; this is {array.dtype} {array.shape} with the attributes {dict(array.attrs)}")
    claims = claim_zarr(array, "", path)
    order, lengths = describe_axes(claims), [*claims.sizes.values(), *claims.origins.values()]
    units = {str(unit) for length in lengths for unit in split_units(length.unit)}
    in_nm = all(NM_PER_UNIT.get(unit.lower().removesuffix("s")) == 1 for unit in units)
    if not in_nm or (order and order[-3:] != tuple(SPACE)):
        raise ValueError(f"{wanted}; this one has the axes {order or 'c, z, y, x'} and lengths in {', '.join(units)}")
    check_affinities(array[:, *middle(array.shape[1:])].astype(np.float32), strict)
    predicted = Journal(path.parent, Predict.name)
    if path.name == Predict.output and (settings := predicted.settings()):
        missing = predicted.missing(Grid(array.shape[1:], settings["block"]))
        if missing:
            raise ValueError(f"{path}: blocks {missing[:10]} are missing; run the prediction again to fill them")
    elif (stored := array.nchunks_initialized) < array.nchunks:
        mention(
            f"{path}: {array.nchunks - stored} of {array.nchunks} chunks are not on disk and read as "
            f"{array.fill_value}; if nothing is meant to be empty there, a copy or a download was not complete"
        )
    return array


def _voxel_size(path: Path, array: zarr.Array) -> tuple[float, float, float]:
    try:
        return triple(map(float, array.attrs["resolution"]))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: affinities have the attribute `resolution`, three numbers in nm ({error})"
        ) from error


def _stamp_affinities(path: Path) -> dict[str, str]:
    """Stamps of the metadata and, where no journal of `predict_blocks` vouches for them, of all chunks."""
    if path.name == Predict.output and Journal(path.parent, Predict.name).settings():
        return stamp(path)
    return {path.name: stamp_all(path.rglob("*"), path)}


def _read_affinities(path: Path, region: Region) -> np.ndarray:
    """Affinities (3, z, y, x) of a region, float32.

    Raises:
        OSError: a file of `predict_blocks` is lost: Zarr reads zeros then. Noticed only beside its journal.
        ValueError: values are not in [0, 1].
    """
    array, predicted = zarr.open_array(path, mode="r"), Journal(path.parent, Predict.name)
    if path.name == Predict.output and (settings := predicted.settings()):
        grid = Grid(array.shape[1:], settings["block"])
        for block in grid.overlapping(region):
            if (path / array.metadata.encode_chunk_key((0, *grid.position(block)))).exists():
                continue
            zeros = np.zeros((3, *grid.region(block).shape), array.dtype)
            if checksum({Predict.output: zeros}) != predicted.checksum(block):  # Zarr stores no file for zeros only
                raise OSError(f"{path}: the file of block {block} is lost; run the prediction again to fill the hole")
    affinities = array[:, *region].astype(np.float32)
    low, high = affinities.min(), affinities.max()
    if not (low >= -1e-3 and high <= 1 + 1e-3):  # also for NaN; float16 rounds
        raise ValueError(f"{path}: affinities must lie in [0, 1], not [{low:g}, {high:g}]")
    return affinities


# --- steps -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fragments(ToZarr):
    """The step from affinities to fragments, none of which leaves its block; no id occurs in two blocks."""

    affinities: Path
    voxel_size: tuple[float, float, float]
    state: dict[str, str] | None = field(default=None, compare=False, repr=False)  # stamps of when the run began
    name: ClassVar[str] = "fragments"
    output: ClassVar[str] = "fragments.zarr"

    def __post_init__(self) -> None:
        if not is_plausible(self.voxel_size):
            raise ValueError(
                f"{self.affinities}: `resolution` says voxels of {self.voxel_size} nm along z, y, x, which no electron "
                f"microscope has; the halo of {HALO_NM:g} nm depends on it: mend the attribute"
            )

    def settings(self) -> dict[str, Any]:
        predicted = Journal(self.affinities.parent, Predict.name).settings() or {}
        return {
            "affinities": str(self.affinities),
            "affinities files": self.state or _stamp_affinities(self.affinities),
            "block": list(self.grid.block),
            "voxel_size": list(self.voxel_size),
            **{f"predict: {key}": value for key, value in predicted.items()},
        }

    def geometry(self) -> dict[str, list[float]]:
        attributes = zarr.open_array(self.affinities, mode="r").attrs
        return {"resolution": list(self.voxel_size), "offset": list(attributes.get("offset", (0.0, 0.0, 0.0)))}

    @property
    def halo(self) -> tuple[int, int, int]:
        """Voxels (z, y, x); where sections are flooded one by one, the next one only tells what its affinities join."""
        z, y, x = (round(HALO_NM / nm) for nm in self.voxel_size)
        return 1 if is_anisotropic(self.voxel_size) else z, y, x

    def read(self, index: int) -> np.ndarray:
        """Read the affinities (3, z, y, x) of the block and its halo."""
        return _read_affinities(self.affinities, self.grid.region(index, self.halo))

    def compute(self, index: int, data: np.ndarray) -> dict[str, np.ndarray]:
        """Fragments of the block and, as "before0" to "before2", of the layers before it without their membranes."""
        grown = self.grid.region(index, self.halo)
        block = self.grid.region(index).within(grown)
        sides = tuple((s.start > 0, s.stop < n) for s, n in zip(grown, self.grid.shape, strict=True))
        labels = flood(data, self.voxel_size, is_anisotropic(self.voxel_size), sides)
        ids = fastremap.unique(labels[block])
        table = np.zeros(int(labels.max()) + 1, np.uint64)  # 0 for what is in the halo only
        table[ids] = np.arange(len(ids), dtype=np.uint64) + np.uint64(self.first(index))
        fragments = table[labels[block]]
        labels[~link_mask(data)] = 0
        return {self.output: fragments} | {f"before{axis}": table[labels[block.before(axis)]] for axis in range(3)}

    def seams(self, index: int) -> Path:
        """The file with a block's fragments in the layers before it."""
        return block_path(self.folder, "seams", index)

    def write(self, index: int, result: dict[str, np.ndarray]) -> None:
        super().write(index, result)
        save_arrays(self.seams(index), {name: layer for name, layer in result.items() if name != self.output})

    def load(self, index: int) -> dict[str, np.ndarray]:
        return super().load(index) | load_arrays(self.seams(index))

    def first(self, index: int) -> int:
        """The lowest id of a block."""
        return index * int(np.prod(self.grid.block)) + 1


@dataclass(frozen=True)
class Faces(ToFiles):
    """The step from fragments and affinities to faces between fragments: sum and number of the affinities of each.

    A pair of voxels belongs to the block of the later one, so each pair is counted once.
    """

    fragments: Fragments
    name: ClassVar[str] = "faces"
    subfolder: ClassVar[str] = "faces"

    def settings(self) -> dict[str, Any]:
        return self.fragments.settings()

    def grown(self, index: int) -> Region:
        """The voxels of a block and their predecessors: one more before it along each axis."""
        region = self.grid.region(index)
        return region.grow((1, 1, 1), region.stop)

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        """Read fragments of the block and the voxels before it, its affinities, and what its seams say."""
        affinities = _read_affinities(self.fragments.affinities, self.grid.region(index))
        return self.fragments.array[self.grown(index)], affinities, load_arrays(self.fragments.seams(index))

    def compute(self, index: int, data: tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """The block's fragments ("ids"), faces with "sums" and "counts", and fragments to be joined ("same")."""
        labels, affinities, seams = data
        block = self.grid.region(index).within(self.grown(index))
        same = [match_layer(seams[f"before{axis}"], labels[block.before(axis)]) for axis in range(3)]
        dense = fastremap.renumber(labels)[0].astype(np.int64)
        ids = np.zeros(dense.max() + 1, np.uint64)
        ids[dense] = labels
        keys, values = zip(*(_face_values(dense, affinities[axis], axis, block) for axis in range(3)), strict=True)
        faces, face = np.unique(np.concatenate(keys), return_inverse=True)
        return {
            "ids": fastremap.unique(labels[block]),
            "faces": np.stack([ids[faces // len(ids)], ids[faces % len(ids)]], 1),
            "sums": np.bincount(face, np.concatenate(values), len(faces)),
            "counts": np.bincount(face, minlength=len(faces)),
            "same": np.concatenate(same),
        }


def match_layer(layer: np.ndarray, previous: np.ndarray) -> np.ndarray:
    """Pairs of fragments (n, 2) that a border of blocks has cut: in one layer of voxels, each covers most of the other.

    Args:
        layer: Fragments of a block in the layer before it, 0 where it has none.
        previous: Fragments of the previous block in the same voxels.
    """
    layer, previous = layer[layer > 0], previous[layer > 0]
    pairs, overlap = np.unique(np.stack([layer, previous], 1), axis=0, return_counts=True)
    sizes = [dict(zip(*np.unique(side, return_counts=True), strict=True)) for side in (layer, previous)]
    largest = [max(sizes[0][a], sizes[1][b]) for a, b in pairs]
    return pairs[2 * overlap > np.array(largest, int)]


def _face_values(dense: np.ndarray, affinities: np.ndarray, axis: int, block: Region) -> tuple[np.ndarray, np.ndarray]:
    """The face (low id * number of ids + high id) and the affinity of each pair of voxels whose fragments differ.

    Args:
        dense: Fragments of the block and of the voxels before it, numbered from 1 without gaps.
        affinities: The block's affinities along `axis`.
        axis: The axis along which the voxels are neighbours.
        block: The block in `dense`.
    """
    followers = Region.at([int(i == axis) for i in range(3)], dense.shape)  # what has a predecessor in `dense`
    later = block.intersect(followers)
    a, b = dense[later], dense[later.within(followers)]  # counted from the second voxel, a voxel is its predecessor
    differ = a != b
    low, high = np.minimum(a, b)[differ], np.maximum(a, b)[differ]
    return low * (dense.max() + 1) + high, affinities[later.within(block)][differ]


@dataclass(frozen=True)
class Merge(Step):
    """The step from all faces to a table of fragments and the neurons they belong to, which are numbered from 1.

    Its grid has one block: the graph is one.
    """

    faces: Faces
    threshold: float
    name: ClassVar[str] = "merge"

    def settings(self) -> dict[str, Any]:
        return {**self.faces.settings(), "threshold": self.threshold}

    def path(self, column: str) -> Path:
        """The file with a column of the table."""
        return inside(self.folder, f"table/{column}.npy")

    def read(self, index: int) -> dict[str, np.ndarray]:
        """Read the faces of all blocks; a face at the border of two blocks has parts in both."""
        if missing := Journal(self.folder, Faces.name).missing(self.faces.grid):
            raise ValueError(f"{self.folder}: the faces of blocks {missing[:10]} are missing; run again to fill them")
        parts = [self.faces.load(block) for block in range(len(self.faces.grid))]
        return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}

    def compute(self, index: int, data: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The columns of the table, "fragments" in rising order and "neurons"."""
        ids = np.unique(data["ids"])
        node = connected_components(np.searchsorted(ids, data["same"]), len(ids))
        low, high = np.sort(node[np.searchsorted(ids, data["faces"])], axis=1).T
        between = low < high  # the parts of a fragment that a border has cut are one node, without a face in between
        keys, face = np.unique(low[between] * len(ids) + high[between], return_inverse=True)
        faces = np.stack([keys // len(ids), keys % len(ids)], 1)
        sums, counts = (np.bincount(face, data[key][between], len(keys)) for key in ("sums", "counts"))
        neuron = agglomerate(faces, sums, counts, len(ids), self.threshold)[node]
        return {"fragments": ids, "neurons": np.unique(neuron, return_inverse=True)[1].astype(np.uint64) + np.uint64(1)}

    def write(self, index: int, result: dict[str, np.ndarray]) -> None:
        for column, values in result.items():
            self.path(column).parent.mkdir(parents=True, exist_ok=True)
            np.save(self.path(column), values)

    def load(self, index: int) -> dict[str, np.ndarray]:
        """Open the table on disk; rows are read when they are used."""
        return {column: np.load(self.path(column), mmap_mode="r") for column in ("fragments", "neurons")}


@dataclass(frozen=True)
class Relabel(ToZarr):
    """The step from fragments to neurons, by the table."""

    merge: Merge
    name: ClassVar[str] = "relabel"
    output: ClassVar[str] = "neurons.zarr"

    def settings(self) -> dict[str, Any]:
        return self.merge.settings()

    def geometry(self) -> dict[str, list[float]]:
        return self.merge.faces.fragments.geometry()

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Read the block's fragments and its rows of the table, which are neighbours."""
        labels = self.merge.faces.fragments.array[self.grid.region(index)]
        table = self.merge.load(0)
        rows = slice(*np.searchsorted(table["fragments"], [labels.min(), labels.max() + np.uint64(1)]))
        return labels, np.array(table["fragments"][rows]), np.array(table["neurons"][rows])

    def compute(self, index: int, data: tuple[np.ndarray, np.ndarray, np.ndarray]) -> dict[str, np.ndarray]:
        labels, fragments, neurons = data
        return {self.output: neurons[np.searchsorted(fragments, labels)]}
