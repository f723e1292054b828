"""Cheap work for tests of what surrounds it, and a run to be killed: `python stand_ins.py RAW FOLDER [ADDRESS]`.

Its traps are in the folder `traps` beside FOLDER.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
from distributed import Client

from fgnet_lib.scale import cluster
from fgnet_lib.scale.prediction import Blend, Decode, Encode, Network, Predict, Source, predict_blocks
from fgnet_lib.scale.segmentation import Faces, Fragments, Merge, Relabel, segment_blocks

BLOCK = (4, 32, 32)


@dataclass(frozen=True)
class Grey:
    """Affinities are grey values; a file "z-y-x" in `traps` makes the block that begins there fail."""

    traps: Path | None = None
    seconds: float = 0.0
    version: int = 1

    def settings(self):
        return {"stand-in": self.version}

    def input_region(self, shape, region):
        return region

    def affinities(self, raw, region):
        time.sleep(self.seconds)
        trap = self.traps and self.traps / "-".join(map(str, region.start))
        if trap and trap.exists():
            kind = trap.read_text()
            while kind == "hold" and trap.exists():
                time.sleep(0.1)
            if kind == "kill once":
                trap.unlink()
            if kind.startswith("kill"):
                os.kill(os.getpid(), signal.SIGKILL)
            if kind == "raise":
                raise ValueError("this block cannot be done")
        return np.stack([raw[region]] * 3) / np.float32(255)


STEPS = (Predict, Encode, Decode, Blend, Fragments, Faces, Merge, Relabel)


def die(name: str, moment: str, block: int) -> None:
    """Make the process that this is called in die in a block of a step: when it has computed, or has written half."""
    (kind,) = (kind for kind in STEPS if kind.__name__.lower() == name)
    method = getattr(kind, moment)

    def last(step, index, given):
        result = method(step, index, given)
        if index == min(block, len(step.grid) - 1):
            for path in written(step, index) if moment == "write" else ():
                os.truncate(path, path.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(kind, moment, last)


def written(step, index: int) -> list[Path]:
    """The files of a block."""
    if isinstance(step, Merge):
        return [step.path("fragments"), step.path("neurons")]
    if isinstance(step, Encode | Decode | Faces):
        return [step.path(index)]
    chunk = (0,) * len(step.channels) + step.grid.position(index)
    shard = step.folder / step.output / step.array.metadata.encode_chunk_key(chunk)
    return [shard, step.seams(index)] if isinstance(step, Fragments) else [shard]


def segment(client, affinities: Path, folder: Path) -> list[cluster.Report]:
    """All steps after the prediction."""
    return segment_blocks(client, affinities, folder, 0.5, BLOCK, progress=False)


def by_network(client, raw: Path, folder: Path) -> list[cluster.Report]:
    """A prediction in 4 blocks whose windows share sections."""
    network = Network(tile=(4, 32, 32))
    source = Source(raw)
    return [predict_blocks(client, source, folder, network, (6, 32, 64), progress=False)]


def die_in_every_step(work, names: tuple[str, ...], data: Path, folder: Path) -> list[int]:
    """Whole runs, each with scheduler and workers in one process, that die in each step, in a block and in a write.

    Each goes on where the one before it died. Call it in a process without threads: it forks.

    Returns:
        How each ended.
    """
    ends = []
    for name, moment in product(names, ("compute", "write")):
        if not os.fork():
            die(name, moment, 3)
            with Client(processes=False, n_workers=1, dashboard_address=None) as client:
                work(client, data, folder)
            os._exit(0)
        ends.append(os.waitstatus_to_exitcode(os.wait()[1]))
    return ends


def truncate(array: Path, index: int, grid) -> Path:
    """Cut the file of a block in half."""
    shard = array.joinpath("c", "0", *map(str, grid.position(index)))
    os.truncate(shard, shard.stat().st_size // 2)
    return shard


def files(folder: Path) -> dict[str, bytes]:
    """Everything below a folder but the lock of a run, which says who it was."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "lock"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


if __name__ == "__main__":
    raw, folder, *address = sys.argv[1:]
    with cluster.cluster(workers=1, address=address[0] if address else None) as client:
        work = Grey(Path(folder).with_name("traps"))
        predict_blocks(client, Source(raw), folder, work, BLOCK, progress=False)
