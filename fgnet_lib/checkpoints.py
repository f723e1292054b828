"""Checkpoints of a training, each complete from the moment it has its name."""

from __future__ import annotations

import json
import os
import re
import shutil
import zlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import SCALER_NAME
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.optim.swa_utils import AveragedModel

from fgnet_lib.files.stamps import differences

CHECKSUMS = "checksums.json"
NAME = re.compile(r"checkpoint-\d{7,}")  # a folder of another name is somebody else's


@dataclass
class History:
    """What happened, one entry per iteration.

    Attributes:
        loss: Mean over the batches of the iteration.
        learning_rate: Of the parts that are not SAM2.
        seconds: Training time until the end of the iteration, over all sessions.
        bfloat16: Whether a run on a CPU chose bfloat16 when it began (`TrainConfig.try_bfloat16`); not of an iteration.
    """

    loss: list[float] = field(default_factory=list)
    learning_rate: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    bfloat16: bool = False

    def append(self, loss: float, learning_rate: float, seconds: float) -> None:
        self.loss.append(loss)
        self.learning_rate.append(learning_rate)
        self.seconds.append(seconds)

    def __len__(self) -> int:
        """The number of iterations so far, which is also the index of the next one."""
        return len(self.loss)


@dataclass
class Checkpoints:
    """Folders `checkpoint-<iteration>` of one training; only the newest is kept.

    Attributes:
        accelerator: Writes and reads model, optimizer and random generators, each process its own.
        folder: Of all checkpoints.
        settings: What must be the same when the training is resumed, as JSON gives it back.
        history: Of the training; filled by `resume`.
        average: Moving average of the weights, if there is one.
    """

    accelerator: Accelerator
    folder: Path
    settings: dict[str, Any]
    history: History
    average: AveragedModel | None
    saved: int = 0  # the iteration of the newest

    def save(self) -> None:
        """Write the present state, unless it is written already, and remove older checkpoints.

        Raises:
            OSError: If the disk is full, or the folder cannot be written; the checkpoint before is kept.
        """
        iteration = len(self.history)
        if iteration == self.saved:
            return
        # Not `files.atomic`: all processes write into one folder, and the next run clears it if this one is killed.
        partial, final = self.folder / "partial", self.folder / f"checkpoint-{iteration:07d}"
        if self.accelerator.is_main_process:
            shutil.rmtree(partial, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        try:
            self._write(partial)
        except (OSError, RuntimeError, SafetensorError) as error:  # RuntimeError is what PyTorch raises
            if self.accelerator.is_main_process:
                shutil.rmtree(partial, ignore_errors=True)
            raise OSError(f"{final} could not be written, the checkpoint before is kept: {error}") from error
        if self.accelerator.is_main_process:
            os.replace(partial, final)
            for old in set(self._complete()) - {final}:
                shutil.rmtree(old)
        self.accelerator.wait_for_everyone()
        self.saved = iteration

    def _write(self, folder: Path) -> None:
        """Write all files of a checkpoint, the checksums of the others last."""
        self.accelerator.save_state(str(folder))
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            (folder / "settings.json").write_text(json.dumps(self.settings, indent=1), encoding="utf-8")
            # not as accelerate's custom state, which is read by pickle and could run code
            (folder / "history.json").write_text(json.dumps(asdict(self.history)), encoding="utf-8")
            if self.average:
                average = {name: value.contiguous() for name, value in self.average.state_dict().items()}
                save_file(average, folder / "average.safetensors")
            (folder / CHECKSUMS).write_text(json.dumps(_checksums(folder)), encoding="utf-8")

    def _complete(self) -> list[Path]:
        """List the folders of all checkpoints."""
        return [path for path in self.folder.glob("checkpoint-*") if NAME.fullmatch(path.name) and path.is_dir()]

    def resume(self) -> None:
        """Put everything back as the newest checkpoint has it; without a checkpoint, do nothing.

        Raises:
            OSError: If the checkpoint is damaged.
            ValueError: If it was made with other settings, or by a model with other weights.
        """
        newest = max(self._complete(), key=lambda path: int(path.name.split("-")[1]), default=None)
        if newest is None:
            return
        if not _is_whole(newest):
            raise OSError(f"{newest} is damaged; remove it, and train again")
        if changed := differences(json.loads((newest / "settings.json").read_text(encoding="utf-8")), self.settings):
            raise ValueError(
                f"{newest} was made with another configuration: {'; '.join(changed)}. "
                "Go back to it, or train in a new folder"
            )
        scaler = self.accelerator.scaler
        if not (newest / SCALER_NAME).is_file():  # not from float16: a new scaler finds its scale in some iterations
            self.accelerator.scaler = None
        try:
            self.accelerator.load_state(str(newest))
        except RuntimeError as error:  # as PyTorch says that names or shapes of weights differ
            reason = " ".join(str(error).split())[:300]
            raise ValueError(f"{newest} was made by another model ({reason}). Train in a new folder") from error
        self.accelerator.scaler = scaler
        self.history.__dict__.update(json.loads((newest / "history.json").read_text(encoding="utf-8")))
        if self.average:
            self.average.load_state_dict(load_file(newest / "average.safetensors"))
        self.saved = len(self.history)


def _checksums(folder: Path) -> dict[str, int]:
    """Compute a checksum of every file in a checkpoint but the file that holds them, by name."""
    files = (path for path in sorted(folder.iterdir()) if path.name != CHECKSUMS and path.is_file())
    return {path.name: zlib.crc32(path.read_bytes()) for path in files}


def _is_whole(checkpoint: Path) -> bool:
    """Tell whether all files of a checkpoint are as they were written; accelerate overlooks some damage.

    What others put there does not matter: a file browser its settings, say.
    """
    try:
        written = json.loads((checkpoint / CHECKSUMS).read_text(encoding="utf-8"))
        return {"settings.json", "history.json"} <= written.keys() and written.items() <= _checksums(checkpoint).items()
    except (OSError, ValueError, RecursionError, AttributeError):  # a file that is missing, text that is not such JSON
        return False
