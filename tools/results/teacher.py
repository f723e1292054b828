"""The teacher of the shipped model: five stages of training from labels, and what it makes of a volume without labels.

It looks along all three axes, because a model sees a membrane worst that lies in a section, and the least of its three
affinities is what the shipped model learns to see at once (`TeacherPatches`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import fgnet_lib  # noqa: F401  before torch: it tells torch's threads how to wait

# isort: split
import numpy as np
import torch
from far_affinities import FAR_CHANNELS, FarPatches, add_far_heads, far_loss, remove_far_heads
from monai.transforms import Compose
from torch import Tensor

from fgnet_lib.augment import Augment, MissingSection, grey_changes
from fgnet_lib.checkpoints import History
from fgnet_lib.engines.runtimes import Engine
from fgnet_lib.fgnet import FGNet
from fgnet_lib.files.atomic import atomic
from fgnet_lib.inference import predict
from fgnet_lib.sam2_encoder import load_checkpoint
from fgnet_lib.study.rows import SHIPPED
from fgnet_lib.study.runs import name_weights
from fgnet_lib.training import TrainConfig, fit, train
from fgnet_lib.volumes import Volume
from fgnet_lib.weights import PRETRAINED, fingerprint_weights

ORDERS = ((0, 1, 2), (1, 0, 2), (2, 1, 0))  # axes of a volume whose sections lie along z, y or x; each undoes itself
ENCODER = SHIPPED["pretrained"]  # of the teacher's last stage
SLAB, MARGIN = 48, 8  # sections that the teacher predicts at once, and those before and after that it sees, too
SHARE = 0.35  # of the patches comes from the volume without labels
BORDER, INSIDE = 0.3, 0.75  # the teacher is sure of affinities below the first and above the second
_STAGE = TrainConfig(
    patch=(16, 128, 128),
    iterations=3600,
    learning_rate=2e-3,
    warmup=100,
    ema=0.995,
    freeze_encoder=False,  # the encoder is far from what it should be: first at random, then pretrained on phantoms
    encoder_lr_factor=0.25,
    checkpoint_every=100,
    weights=(7, 1, 2),
    seed=0,
    try_bfloat16=True,
)
STAGES = (
    _STAGE,
    replace(_STAGE, iterations=1000, learning_rate=1e-3, warmup=20, ema=0.99, weights=(7, 1.5, 1.5), seed=1),
    replace(_STAGE, iterations=700, learning_rate=7e-4, warmup=20, ema=0.99, weights=(8, 1, 1), seed=2),
    replace(_STAGE, iterations=4000, learning_rate=1.5e-3, warmup=50, ema=0.998, weights=(8, 1, 1), seed=3),
    replace(_STAGE, iterations=4000, learning_rate=1.5e-3, warmup=50, ema=0.998, weights=(8, 1, 1), seed=4),
)


def train_stage(number: int, model: FGNet, volumes: Sequence[Volume], work: Path) -> History:
    """Train `model` in place, by stage `number` (from 1 on).

    The last two stages learn far affinities too; before the last, the encoder is replaced by the pretrained one.
    """
    stage, folder = STAGES[number - 1], work / f"stage{number}"
    torch.manual_seed(stage.seed)  # of the heads for far affinities
    if number < len(STAGES) - 1:
        return train(model, volumes, stage, folder)
    if number == len(STAGES):
        load_checkpoint(model.encoder, PRETRAINED / ENCODER)
        folder = folder / name_weights(ENCODER)[ENCODER]  # not to go on with what another encoder began
    add_far_heads(model)
    model.freeze_encoder(stage.freeze_encoder)
    patches = FarPatches(volumes, stage.patch, Augment(), stage.seed, stage.weights)
    history = fit(model, patches, far_loss, stage, folder)
    remove_far_heads(model)
    return history


def turn_volume(volume: Volume, order: tuple[int, int, int]) -> Volume:
    """Exchange two axes of a volume with cubic voxels, so that its sections lie along another axis."""
    raw, labels = (np.ascontiguousarray(array.transpose(order)) for array in (volume.raw, volume.labels))
    return replace(volume, raw=raw, labels=labels)


def teach(teacher: FGNet, raw: np.ndarray, engine: Engine = "auto") -> np.ndarray:
    """Compute what a teacher makes of a volume without labels: the least affinities of three views.

    Returns:
        uint8 (3, z, y, x), 255 for an affinity of 1.
    """
    taught = np.empty((3, *raw.shape), np.uint8)
    for z in range(0, len(raw), SLAB):
        first = max(0, z - MARGIN)
        slab = np.ascontiguousarray(raw[first : z + SLAB + MARGIN])
        affinities = predict(teacher, slab, three_views=True, engine=engine).refined
        taught[:, z : z + SLAB] = (affinities[:, z - first :][:, :SLAB] * 255).round()
    return taught


def taught_folder(teacher: FGNet, work: Path) -> Path:
    """Name the folder for what this teacher, and no other, teaches."""
    return work / f"taught-by-{fingerprint_weights(teacher.state_dict())}"


def teach_once(teacher: FGNet, raw: np.ndarray, folder: Path) -> np.ndarray:
    """Give what `teach` makes of a volume, from the teacher's folder if it was done before."""
    path = folder / "affinities.npy"
    if not path.is_file():
        with atomic(path) as part, part.open("wb") as file:
            np.save(file, teach(teacher, raw))
    return np.load(path, mmap_mode="r")


class TeacherPatches(FarPatches):
    """Training patches of which a share comes from a volume without labels, with a teacher's affinities as targets.

    Targets are the affinities of which the teacher is sure; those that it does not predict are unknown. Sections lie
    along z, y or x, flips and turns move raw and targets alike, and grey values change as in `Augment`; nothing is bent
    or misaligned.
    """

    def __init__(self, volumes: Sequence[Volume], config: TrainConfig, raw: np.ndarray, taught: np.ndarray) -> None:
        """Draw from labelled volumes, and from `raw` with the affinities `taught`, as `teach` gives them."""
        super().__init__(volumes, config.patch, Augment(), config.seed, config.weights)
        self.raw, self.taught = raw, taught
        self.grey = Compose([MissingSection(prob=0.1), *grey_changes()])

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        rng = np.random.default_rng((self.seed, index, 7))
        if rng.random() >= SHARE:
            return super().__getitem__(index)
        raw, taught = self._cut(rng)
        self.grey.set_random_state(int(rng.integers(2**31)))
        grey = np.asarray(self.grey({"raw": raw.astype(np.float32) / 255})["raw"])
        target, mask = np.zeros((2, FAR_CHANNELS, *raw.shape), np.float32)
        target[:3], mask[:3] = taught > 0.5, (taught < BORDER) | (taught > INSIDE)
        raw = ((grey * 255).round().clip(0, 255) / 255).astype(np.float32)
        return torch.from_numpy(raw[None]), torch.from_numpy(target), torch.from_numpy(mask).bool()

    def _cut(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Cut out a patch at random, turned at random: its raw, and its affinities in [0, 1]."""
        order = list(ORDERS[rng.integers(3)])
        size = (np.array(self.patch) + 1)[order]  # a margin of one voxel: see _flip
        start = [int(rng.integers(n - s + 1)) for n, s in zip(self.raw.shape, size, strict=True)]
        box = tuple(slice(a, a + s) for a, s in zip(start, size, strict=True))
        raw = self.raw[box].transpose(order)
        taught = self.taught[(slice(None), *box)][order].transpose(0, *(axis + 1 for axis in order))
        for axis in range(3):
            if rng.random() < 0.5:
                raw, taught = _flip(raw, taught, axis)
        if rng.random() < 0.5:
            raw, taught = raw.swapaxes(1, 2), taught[[0, 2, 1]].swapaxes(2, 3)
        return raw[1:, 1:, 1:], taught[:, 1:, 1:, 1:] / np.float32(255)


def _flip(raw: np.ndarray, taught: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Flip a patch along one axis; the first affinities along it are wrong, and the caller cuts them off.

    An affinity joins a voxel to its predecessor. After a flip the predecessor follows, so that this affinity belongs to
    the next voxel.
    """
    taught = np.flip(taught, axis + 1).copy()
    taught[axis] = np.roll(taught[axis], 1, axis)
    return np.flip(raw, axis), taught
