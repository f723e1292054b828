"""Steps that work block by block, and a journal on disk of the blocks that are complete.

`process_block` does one block of a step: read, compute, write, read back, and only then note a checksum of the result.
Whatever dies, and whenever: a rerun keeps the blocks whose data still have their checksum, and does the others.
"""

from __future__ import annotations

import itertools
import json
import threading
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import zarr

from fgnet_lib.files.atomic import load_arrays, save_arrays, write_atomically
from fgnet_lib.files.formats import CHUNK
from fgnet_lib.files.locks import inside
from fgnet_lib.files.stamps import checksum, differences
from fgnet_lib.memory import peak_bytes
from fgnet_lib.scale.grid import Grid

PER_FOLDER = 1000  # files in one folder, of the journal and of blocks


@dataclass(frozen=True)
class Step(ABC):
    """Work that is done on each block. A step travels to the workers, so it is small and holds paths instead of data.

    Attributes:
        folder: folder of the run, which the results go to.
        grid: the volume and its blocks.
        name: name of the step and of its journal.
    """

    folder: Path
    grid: Grid
    name: ClassVar[str]

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Everything that the result depends on, as JSON gives it back."""

    def prepare(self) -> None:  # noqa: B027 (most steps have nothing to prepare)
        """Make ready for the first block, in the process that runs the step; a second call changes nothing."""

    @abstractmethod
    def read(self, index: int) -> Any:
        """Read what `compute` needs for a block; other blocks compute meanwhile."""

    @abstractmethod
    def compute(self, index: int, data: Any) -> dict[str, np.ndarray]:
        """Compute the arrays of a block, from `data` alone; a process computes one block at a time."""

    @abstractmethod
    def write(self, index: int, result: dict[str, np.ndarray]) -> None:
        """Write the arrays of a block to disk, where no other block writes."""

    @abstractmethod
    def load(self, index: int) -> Mapping[str, np.ndarray]:
        """Read the arrays of a block from disk; raises when they cannot be read."""


class Journal:
    """The record of a step: `settings.json`, and a small file with a checksum for each block that is complete."""

    def __init__(self, folder: Path, name: str) -> None:
        self.run, self.name = Path(folder), f"journal/{name}"
        self.folder = inside(self.run, self.name)

    def settings(self) -> dict[str, Any] | None:
        """The settings that the step began with, or None if it has not begun.

        Raises:
            ValueError: the file is damaged.
        """
        path = self.folder / "settings.json"
        try:
            return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
        except ValueError as error:  # cut by something else than this library, which writes it whole or not at all
            raise ValueError(f"{path} is damaged ({error}); remove {self.run} and run again") from error

    def begin(self, settings: dict[str, Any]) -> None:
        """Write the settings, or compare them with those that the step began with.

        Raises:
            ValueError: they differ; names every difference.
        """
        self.check(settings)
        if self.settings() is None:
            write_atomically(inside(self.run, f"{self.name}/settings.json"), json.dumps(settings, indent=1))

    def check(self, settings: dict[str, Any]) -> None:
        """Compare the settings with those that the step began with, if it has begun.

        Raises:
            ValueError: they differ; names every difference.
        """
        if changed := differences(self.settings() or settings, settings):
            raise ValueError(
                f"{self.folder} began with another configuration: {'; '.join(changed)}. "
                "Go back to it, or use a new folder"
            )

    def check_owner(self, step: Step) -> None:
        """Stop a worker that outlived its run before it writes into the next one.

        Raises:
            RuntimeError: the folder was removed, or belongs to a run with other settings by now; names them.
        """
        if (began := self.settings()) is None:
            raise RuntimeError(f"{self.folder} was removed while this run was writing into it")
        if changed := differences(began, step.settings()):
            raise RuntimeError(f"{self.folder} belongs to a run with other settings by now: {'; '.join(changed)}")

    def checksum(self, index: int) -> int | None:
        """The checksum of a block that is complete, or None."""
        try:
            return int((self.folder / self._note(index)).read_text(encoding="ascii"))
        except (FileNotFoundError, ValueError):
            return None

    def note(self, index: int, checksum: int) -> None:
        """Note that a block is complete."""
        write_atomically(inside(self.run, f"{self.name}/{self._note(index)}"), str(checksum))

    def missing(self, grid: Grid) -> list[int]:
        """The numbers of the blocks that are not complete."""
        return [index for index in range(len(grid)) if self.checksum(index) is None]

    def _note(self, index: int) -> str:
        return f"done/{index // PER_FOLDER}/{index}"


@dataclass(frozen=True)
class Seconds:
    """The seconds that blocks took.

    Attributes:
        read: for reading what they need.
        compute: for computing, without the wait for other blocks of the process.
        write: for writing and reading back.
    """

    read: float = 0.0
    compute: float = 0.0
    write: float = 0.0

    def __add__(self, other: Seconds) -> Seconds:
        return Seconds(self.read + other.read, self.compute + other.compute, self.write + other.write)

    def total(self) -> float:
        """The sum of the three."""
        return self.read + self.compute + self.write


class Done(NamedTuple):
    """The outcome of a block.

    Attributes:
        block: its number.
        kept: whether it was complete before.
        seconds: what it took.
        peak_bytes: most memory that the process has had so far.
    """

    block: int
    kept: bool
    seconds: Seconds
    peak_bytes: int


_COMPUTE = threading.Lock()  # one block of a process computes while others read and write


def process_block(step: Step, index: int) -> Done:
    """Do one block of a step, unless it is complete already.

    Raises:
        RuntimeError: the folder belongs to a run with other settings by now.
        OSError: the block reads back other than it was written.
    """
    try:
        return _process(step, index)
    except Exception as error:
        traceback.clear_frames(error.__traceback__)  # an error that is kept would keep the arrays of the block
        raise


def _process(step: Step, index: int) -> Done:
    journal = Journal(step.folder, step.name)
    journal.check_owner(step)
    clock = [time.perf_counter()]
    noted = journal.checksum(index)
    if noted is not None and noted == _stored_checksum(step, index):
        return Done(index, True, Seconds(read=time.perf_counter() - clock[0]), peak_bytes())
    data = step.read(index)
    clock.append(time.perf_counter())
    with _COMPUTE:
        waited = time.perf_counter() - clock[-1]
        result = step.compute(index, data)
    clock.append(time.perf_counter())
    journal.check_owner(step)  # computing takes long
    step.write(index, result)
    if (computed := checksum(result)) != checksum(step.load(index)):
        raise OSError(f"{step.name}: block {index} reads back from {step.folder} other than it was written")
    journal.check_owner(step)
    journal.note(index, computed)
    clock.append(time.perf_counter())
    read, compute, write = (b - a for a, b in itertools.pairwise(clock))
    return Done(index, False, Seconds(read, compute - waited, write), peak_bytes())


def _stored_checksum(step: Step, index: int) -> int | None:
    """None if the block cannot be read: a truncated chunk raises whatever its codec raises."""
    try:
        return checksum(step.load(index))
    except Exception:
        return None


@dataclass(frozen=True)
class ToFiles(Step):
    """A step that writes the arrays of each block to a file of its own, in `subfolder` of the run's folder."""

    subfolder: ClassVar[str]

    def path(self, index: int) -> Path:
        """The file of a block."""
        return block_path(self.folder, self.subfolder, index)

    def write(self, index: int, result: dict[str, np.ndarray]) -> None:
        save_arrays(self.path(index), result)

    def load(self, index: int) -> dict[str, np.ndarray]:
        return load_arrays(self.path(index))


def block_path(folder: Path, subfolder: str, index: int, suffix: str = ".npz") -> Path:
    """The path of a block's file in a run's folder; one folder holds at most `PER_FOLDER` of them."""
    return inside(folder, f"{subfolder}/{index // PER_FOLDER}/{index}{suffix}")


@dataclass(frozen=True)
class ToZarr(Step):
    """A step whose blocks are shards of one Zarr array, `output` in the run's folder."""

    output: ClassVar[str]
    dtype: ClassVar[str] = "uint64"
    channels: ClassVar[tuple[int, ...]] = ()

    @abstractmethod
    def geometry(self) -> dict[str, list[float]]:
        """Voxel size ("resolution") and offset of the output in nm along z, y, x: its attributes."""

    def prepare(self) -> None:
        path = inside(self.folder, self.output)
        shape, shards = (*self.channels, *self.grid.shape), (*self.channels, *self.grid.block)
        if inside(self.folder, f"{self.output}/zarr.json").exists():
            array = zarr.open_array(path, mode="r")
            if (array.shape, array.shards, str(array.dtype)) != (shape, shards, self.dtype):
                raise ValueError(
                    f"{path} already exists with shape {array.shape}, shards {array.shards} and type {array.dtype}, "
                    f"expected {shape}, {shards} and {self.dtype}. Remove it, or use another folder"
                )
            return
        chunk = tuple(c if b % c == 0 else b for c, b in zip(CHUNK, self.grid.block, strict=True))
        chunks = (*self.channels, *chunk)
        attributes = {**self.geometry(), "axis_names": [*("c" for _ in self.channels), "z", "y", "x"]}
        zarr.create_array(path, shape=shape, shards=shards, chunks=chunks, dtype=self.dtype, attributes=attributes)

    @cached_property
    def array(self) -> zarr.Array:
        """The output, open for writing."""
        return zarr.open_array(inside(self.folder, self.output), mode="r+")

    def write(self, index: int, result: dict[str, np.ndarray]) -> None:
        chunk = (0,) * len(self.channels) + self.grid.position(index)
        shard = inside(self.folder, f"{self.output}/{self.array.metadata.encode_chunk_key(chunk)}")
        # Zarr would read a shard first, and fail on a damaged one; it writes beside it, and a kill leaves that file
        for old in (shard, *shard.parent.glob(f"{shard.name}.*.partial")):
            old.unlink(missing_ok=True)
        self.array[..., *self.grid.region(index)] = result[self.output]

    def load(self, index: int) -> dict[str, np.ndarray]:
        return {self.output: self.array[..., *self.grid.region(index)]}
