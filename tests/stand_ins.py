"""Cheap work for tests of what surrounds it, and a run to be killed: `python stand_ins.py RAW FOLDER [ADDRESS]`.

Its traps are in the folder `traps` beside FOLDER.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fgnet_lib import blockwise, cluster

BLOCK = (4, 32, 32)


@dataclass(frozen=True)
class Grey:
    """Affinities are grey values; a file "z-y-x" in `traps` makes the block that begins there fail."""

    traps: Path | None = None
    seconds: float = 0.0
    version: int = 1

    def settings(self):
        return {"stand-in": self.version}

    def needed(self, shape, region):
        return region

    def affinities(self, raw, region):
        time.sleep(self.seconds)
        trap = self.traps and self.traps / "-".join(str(s.start) for s in region)
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


def die_while_writing(start: int) -> None:
    """Make the process that this is called in die once it has written half of the shard at z = `start`."""
    write = blockwise.Predict.write

    def half(step, index, result):
        write(step, index, result)
        region = step.grid.region(index)
        if region[0].start == start:
            truncate(step.folder / step.output, index, step.grid)
            os.kill(os.getpid(), signal.SIGKILL)

    blockwise.Predict.write = half


def truncate(array: Path, index: int, grid) -> Path:
    """Cut the file of a block in half."""
    shard = array.joinpath("c", "0", *map(str, np.unravel_index(index, grid.counts)))
    os.truncate(shard, shard.stat().st_size // 2)
    return shard


def files(folder: Path) -> dict[str, bytes]:
    """Everything below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


if __name__ == "__main__":
    raw, folder, *address = sys.argv[1:]
    with cluster.cluster(workers=1, address=address[0] if address else None) as client:
        work = Grey(Path(folder).with_name("traps"))
        blockwise.predict_blocks(client, blockwise.Source(raw), folder, work, BLOCK, progress=False)
