"""A training of seconds: its configuration, the state it leaves, and a way to die in a checkpoint."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from accelerate import Accelerator

from fgnet_lib.checkpoints import CHECKSUMS
from fgnet_lib.training import TrainConfig

CONFIG = TrainConfig(patch=(4, 32, 32), iterations=10, checkpoint_every=3, warmup=2, learning_rate=0.01)


def die_in_a_write() -> None:
    """Make this process die in the first checkpoint that it writes, when its files have half their bytes."""
    save = Accelerator.save_state

    def half(accelerator: Accelerator, folder: str) -> None:
        save(accelerator, folder)
        mine = "*" if accelerator.is_main_process else f"random_states_{accelerator.process_index}.pkl"
        for path in Path(folder).glob(mine):
            os.truncate(path, path.stat().st_size // 2)
        os.kill(os.getpid(), signal.SIGKILL)

    Accelerator.save_state = half


def state(folder: Path) -> dict[str, bytes]:
    """All of the last checkpoint but the history, which has seconds: weights, average, optimiser, generators."""
    return {
        path.name: path.read_bytes()
        for path in folder.glob("checkpoint-*/*")
        if path.name not in ("history.json", CHECKSUMS)
    }
