"""A volume block by block, and a journal on disk of what is done, so that nothing is lost when something dies.

A step turns blocks into blocks. `process_block` does one of them: read, compute, write, read back, and only then note a
checksum of the result. Whatever dies, and whenever: a rerun keeps the blocks whose data still have the checksum, and
does the others.
"""

from __future__ import annotations

import fcntl
import itertools
import json
import math
import os
import re
import resource
import socket
import sys
import threading
import time
import traceback
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
import zarr

from fgnet_lib.volumes import CHUNK

Region = tuple[slice, slice, slice]  # z, y, x, with start and stop
PER_FOLDER = 1000  # notes in one folder of the journal


@dataclass(frozen=True)
class Grid:
    """A volume of `shape` cut into blocks (z, y, x); those at the far sides may be smaller. Blocks count from 0."""

    shape: tuple[int, int, int]
    block: tuple[int, int, int]

    def __post_init__(self) -> None:
        if np.shape(self.block) != (3,) or min(self.block) < 1:
            raise ValueError(f"a block is (z, y, x) in voxels, all above 0; got {self.block}")
        object.__setattr__(self, "shape", tuple(map(int, self.shape)))
        object.__setattr__(self, "block", tuple(min(int(b), n) for b, n in zip(self.block, self.shape, strict=True)))

    @property
    def counts(self) -> tuple[int, ...]:
        """Blocks along z, y, x."""
        return tuple(-(-n // b) for n, b in zip(self.shape, self.block, strict=True))

    def __len__(self) -> int:
        return math.prod(self.counts)

    def region(self, index: int, halo: tuple[int, int, int] = (0, 0, 0)) -> Region:
        """The voxels of a block, grown by a halo (z, y, x) as far as the volume goes."""
        place = np.unravel_index(index, self.counts)
        sides = zip(place, self.block, self.shape, halo, strict=True)
        return tuple(slice(max(int(i) * b - h, 0), min((int(i) + 1) * b + h, n)) for i, b, n, h in sides)

    def voxels(self, index: int) -> int:
        """How many voxels a block has."""
        return math.prod(s.stop - s.start for s in self.region(index))


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


def checksum(arrays: Mapping[str, np.ndarray]) -> int:
    """CRC-32 of the contents of arrays, in the order of their names."""
    found = 0
    for name in sorted(arrays):
        found = zlib.crc32(np.ascontiguousarray(arrays[name]).view(np.uint8).data, found)
    return found


def peak_bytes() -> int:
    """Most memory that this process has had at once."""
    status = Path("/proc/self/status")  # Linux hands `ru_maxrss` on to children: a worker would begin with its parent's
    if status.exists():
        found = re.search(r"VmHWM:\s*(\d+) kB", status.read_text())
        if found:
            return 1024 * int(found[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def stamp(path: Path, *inner: str) -> dict[str, str]:
    """When a file was last written and its size in bytes; of a Zarr folder, that of its metadata, also at inner paths.

    Settings and caches hold it, so that a file that was replaced under the same name is not taken for the old one.
    """
    found = {}
    marks = [f"{key}/{mark}".lstrip("/") for key in ("", *inner) for mark in ("zarr.json", ".zarray", ".zgroup")]
    for name in ("", *marks):
        place = Path(path) / name
        if place.is_file():
            state = place.stat()
            found[name or place.name] = f"{np.datetime64(state.st_mtime_ns, 'ns')}, {state.st_size} bytes"
    return found


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Settings that changed, each as "block was [1, 2, 3], is now [1, 2, 4]"."""
    return [
        f"{key} was {before.get(key)}, is now {now.get(key)}"
        for key in before | now
        if before.get(key) != now.get(key)
    ]  # fmt: skip


def write_text(path: Path, text: str) -> None:
    """Write a small file that is there complete or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.{threading.get_ident()}")
    try:
        part.write_text(text)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


_held: ContextVar[frozenset[Path]] = ContextVar("_held", default=frozenset())  # folders that this thread has locked


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep a folder to oneself; the lock goes with the process, however that ends. Who has it gets it again.

    Raises:
        RuntimeError: another run has it; says which.
        ValueError, OSError: the lock is a link.
    """
    folder = folder.resolve()
    if folder in _held.get():
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with os.fdopen(os.open(inside(folder, "lock"), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666), "r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RuntimeError(
                f"{folder} is being written by {file.read() or 'another run'}; wait for it, or use another folder"
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}")
        file.flush()
        before = _held.set(_held.get() | {folder})
        try:
            yield
        finally:
            _held.reset(before)


def inside(folder: Path, name: str) -> Path:
    """The path of `name` in a folder.

    Raises:
        ValueError: it is a link that leads out of the folder.
    """
    path = Path(folder) / name
    if not path.resolve().is_relative_to(Path(folder).resolve()):
        raise ValueError(f"{path} leads out of {folder}, to {path.resolve()}; nothing is written there")
    return path


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


def save_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """To one file, and its folder with it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **arrays)


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """All arrays of a file of `save_arrays`; nothing is unpickled."""
    with np.load(path, allow_pickle=False) as file:
        return dict(file)
