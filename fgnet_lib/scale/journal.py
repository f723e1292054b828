"""A volume block by block, and a journal on disk of what is done, so that nothing is lost when something dies.

A step turns blocks into blocks. `process_block` does one of them: read, compute, write, read back, and only then note a
checksum of the result. Whatever dies, and whenever: a rerun keeps the blocks whose data still have the checksum, and
does the others.
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
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
import zarr

from fgnet_lib.files.atomic import write_text
from fgnet_lib.files.formats import CHUNK
from fgnet_lib.files.locks import inside
from fgnet_lib.files.stamps import checksum, differences
from fgnet_lib.machine import peak_bytes
from fgnet_lib.scale.grid import Grid

PER_FOLDER = 1000  # notes in one folder of the journal


class Step(Protocol):
    """What is done to each block. It travels to the workers: small, and with paths instead of data."""

    name: str
    folder: Path  # of the run
    grid: Grid

    def settings(self) -> dict[str, Any]:
        """All that the result depends on, as JSON gives it back."""

    def prepare(self) -> None:
        """Before the first block, in the process that runs the step; a second call changes nothing."""

    def read(self, index: int) -> Any:
        """What `compute` needs; other blocks compute meanwhile."""

    def compute(self, index: int, data: Any) -> Mapping[str, np.ndarray]:
        """The result; one at a time in each process, and a function of the block alone."""

    def write(self, index: int, result: Mapping[str, np.ndarray]) -> None:
        """To disk, where no other block writes."""

    def stored(self, index: int) -> Mapping[str, np.ndarray]:
        """What is on disk of the result; raises when it cannot be read."""


class Journal:
    """What a step has done: `settings.json`, and a small file for each block that is complete."""

    def __init__(self, folder: Path, name: str) -> None:
        self.run, self.name = Path(folder), f"journal/{name}"
        self.folder = inside(self.run, self.name)

    def settings(self) -> dict[str, Any] | None:
        """Those that the step began with, or None if it did not begin."""
        path = self.folder / "settings.json"
        return json.loads(path.read_text()) if path.exists() else None

    def begin(self, settings: dict[str, Any]) -> None:
        """Write the settings, or compare them with those that the step began with.

        Raises:
            ValueError: they differ; names what differs.
        """
        self.check(settings)
        if self.settings() is None:
            write_text(inside(self.run, f"{self.name}/settings.json"), json.dumps(settings, indent=1))

    def check(self, settings: dict[str, Any]) -> None:
        """Compare the settings with those that the step began with, if it did.

        Raises:
            ValueError: they differ; names what differs.
        """
        if changed := differences(self.settings() or settings, settings):
            raise ValueError(
                f"{self.folder} began with another configuration: {'; '.join(changed)}. "
                "Go back to it, or use a new folder"
            )

    def check_owner(self, step: Step) -> None:
        """Let no worker that outlived its run write into the next one.

        Raises:
            RuntimeError: the folder belongs to a run with other settings by now; names what differs.
        """
        if changed := differences(self.settings() or {}, step.settings()):
            raise RuntimeError(f"{self.folder} belongs to a run with other settings by now: {'; '.join(changed)}")

    def checksum(self, index: int) -> int | None:
        """The checksum that a block was noted with, or None if it was not."""
        try:
            return int((self.folder / self._note(index)).read_text())
        except (FileNotFoundError, ValueError):
            return None

    def note(self, index: int, checksum: int) -> None:
        """Say that a block is complete."""
        write_text(inside(self.run, f"{self.name}/{self._note(index)}"), str(checksum))

    def missing(self, grid: Grid) -> list[int]:
        """Blocks that are not complete."""
        return [index for index in range(len(grid)) if self.checksum(index) is None]

    def _note(self, index: int) -> str:
        return f"done/{index // PER_FOLDER}/{index}"


class Done(NamedTuple):
    """What became of a block, and what it took."""

    index: int
    kept: bool  # it was there already
    read: float  # seconds, as the next two
    compute: float
    write: float
    peak_bytes: int  # of memory, of the process that did it, so far


_COMPUTE = threading.Lock()  # one block of a process computes while others read and write


def process_block(step: Step, index: int) -> Done:
    """Do one block of a step, unless it is there already.

    Raises:
        RuntimeError: the folder belongs to a run with other settings by now.
        OSError: what reads back is not what was written.
    """
    try:
        return _process(step, index)
    except Exception as error:
        traceback.clear_frames(error.__traceback__)  # or whoever keeps the error keeps the arrays of the block
        raise


def _process(step: Step, index: int) -> Done:
    journal = Journal(step.folder, step.name)
    journal.check_owner(step)
    clock = [time.perf_counter()]
    noted = journal.checksum(index)
    if noted is not None and noted == _stored_checksum(step, index):
        return Done(index, True, time.perf_counter() - clock[0], 0.0, 0.0, peak_bytes())
    data = step.read(index)
    clock.append(time.perf_counter())
    with _COMPUTE:
        waited = time.perf_counter() - clock[-1]
        result = step.compute(index, data)
    clock.append(time.perf_counter())
    journal.check_owner(step)  # computing takes long
    step.write(index, result)
    if (computed := checksum(result)) != checksum(step.stored(index)):
        raise OSError(f"{step.name}: block {index} reads back from {step.folder} other than it was written")
    journal.check_owner(step)
    journal.note(index, computed)
    clock.append(time.perf_counter())
    read, compute, write = (b - a for a, b in itertools.pairwise(clock))
    return Done(index, False, read, compute - waited, write, peak_bytes())


def _stored_checksum(step: Step, index: int) -> int | None:
    """None for what cannot be read: a truncated chunk raises whatever its codec raises."""
    try:
        return checksum(step.stored(index))
    except Exception:
        return None


@dataclass(frozen=True)
class ToZarr(ABC):
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
        # Zarr would read a shard first, and fail on a damaged one; it writes beside it, and a kill leaves that file
        for old in (shard, *shard.parent.glob(f"{shard.name}.*.partial")):
            old.unlink(missing_ok=True)
        self.array[(..., *self.grid.region(index))] = result[self.output]

    def stored(self, index: int) -> dict[str, np.ndarray]:
        """See `blocks.Step`."""
        return {self.output: self.array[(..., *self.grid.region(index))]}
