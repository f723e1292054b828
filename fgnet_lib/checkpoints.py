"""Checkpoints of a training, each complete from the moment it has its name."""

from __future__ import annotations

import json
import os
import shutil
import zlib
from dataclasses import asdict, dataclass, field
from pathlib import Path

from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch.optim.swa_utils import AveragedModel

CHECKSUMS = "checksums.json"


@dataclass
class History:
    """What happened, one entry per iteration; `seconds` counts training time over all sessions."""

    loss: list[float] = field(default_factory=list)
    learning_rate: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def append(self, loss: float, learning_rate: float, seconds: float) -> None:
        self.loss.append(loss)
        self.learning_rate.append(learning_rate)
        self.seconds.append(seconds)


def _checksums(folder: Path) -> dict[str, int]:
    """Of the files of a checkpoint but the one that holds them."""
    return {path.name: zlib.crc32(path.read_bytes()) for path in sorted(folder.iterdir()) if path.name != CHECKSUMS}


@dataclass
class _Checkpoints:
    """Folders `checkpoint-<iteration>`, each complete from the moment it has that name; only the newest is kept."""

    accelerator: Accelerator
    folder: Path
    settings: dict
    history: History
    average: AveragedModel | None
    saved: int = 0  # the iteration of the newest

    def save(self) -> None:
        iteration = len(self.history.loss)
        if iteration == self.saved:
            return
        partial, final = self.folder / "partial", self.folder / f"checkpoint-{iteration:07d}"
        if self.accelerator.is_main_process:
            shutil.rmtree(partial, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self.accelerator.save_state(str(partial))
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            (partial / "settings.json").write_text(json.dumps(self.settings, indent=1))
            # not as accelerate's custom state, which is read by pickle and could run code
            (partial / "history.json").write_text(json.dumps(asdict(self.history)))
            if self.average:
                average = {name: value.contiguous() for name, value in self.average.state_dict().items()}
                save_file(average, partial / "average.safetensors")
            (partial / CHECKSUMS).write_text(json.dumps(_checksums(partial)))
            os.replace(partial, final)
            for old in set(self.folder.glob("checkpoint-*")) - {final}:
                shutil.rmtree(old)
        self.accelerator.wait_for_everyone()
        self.saved = iteration

    def resume(self) -> None:
        newest = max(self.folder.glob("checkpoint-*"), default=None)
        if newest is None:
            return
        if _checksums(newest) != json.loads((newest / CHECKSUMS).read_text()):  # accelerate overlooks some damage
            raise OSError(f"{newest} is damaged; remove it, and train again")
        before = json.loads((newest / "settings.json").read_text())
        changed = [
            f"{key} was {before.get(key)}, is now {self.settings.get(key)}"
            for key in before | self.settings
            if before.get(key) != self.settings.get(key)
        ]
        if changed:
            raise ValueError(
                f"{newest} was made with another configuration: {'; '.join(changed)}. "
                "Go back to it, or train in a new folder"
            )
        self.accelerator.load_state(str(newest))
        self.history.__dict__.update(json.loads((newest / "history.json").read_text()))
        if self.average:
            self.average.load_state_dict(load_file(newest / "average.safetensors"))
        self.saved = len(self.history.loss)
