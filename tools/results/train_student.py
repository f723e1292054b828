"""Train the student of lesson 10 (`make student`), and the rows that say what its losses and widths are worth.

The teacher is the shipped FGNet. What it makes of FIB-25's training part (sections 0-119) is computed once and kept in
the work folder. You may stop the command at any time and start it again.
"""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: everything here is equal in the time of one core

import fgnet_lib  # noqa: F401  before torch: it tells torch's threads how to wait

# isort: split
import numpy as np
import torch
from torch import Tensor

from fgnet_lib.affinities import affinities_from_labels, affinity_mask, widen_borders
from fgnet_lib.fgnet import FGNet
from fgnet_lib.files.atomic import atomic
from fgnet_lib.inference import predict
from fgnet_lib.neighbours.distillation import turn
from fgnet_lib.patches import Samples
from fgnet_lib.training import TrainConfig
from fgnet_lib.volumes import IGNORE, Region, Volume
from fgnet_lib.weights import load_pretrained

GRID = 4  # crops begin at multiples, so that the encoder's features at stride 4 can be cut, too
SLAB, MARGIN = 16, 2  # sections that the teacher sees at once, and those at both ends that are left out


@torch.inference_mode()
def teach(model: FGNet, raw: np.ndarray) -> dict[str, np.ndarray]:
    """Compute what a teacher says of a volume (z, y, x), in float16.

    Returns:
        `affinities` (3, z, y, x); `features` of the refined decoder (C, z, y, x); `guide`, the encoder's finest
        features (G, z, y / 4, x / 4).
    """
    seen: list[Tensor] = []
    hook = model.refined_decoder.head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    features, guide = [], []
    for z in range(0, len(raw), SLAB - 2 * MARGIN):
        first, last = max(z - MARGIN, 0), min(z + SLAB - MARGIN, len(raw))
        sections = torch.from_numpy(raw[first:last] / np.float32(255))[None, None]
        encoded = model.encode(sections)
        model(sections, encoded)
        kept = slice(z - first, z - first + SLAB - 2 * MARGIN)
        features.append(seen.pop()[0, :, kept, : raw.shape[1], : raw.shape[2]].half().numpy())
        guide.append(encoded[0][0, :, kept].half().numpy())
    hook.remove()
    affinities = predict(model, raw, progress=False, engine="torch").refined
    return {
        "affinities": affinities.astype(np.float16),
        "features": np.concatenate(features, 1),
        "guide": np.concatenate(guide, 1),
    }


def open_teaching(work: Path, raw: np.ndarray) -> dict[str, np.ndarray]:
    """What the shipped FGNet says of the training volume, computed once and then read from the work folder."""
    names = ("affinities", "features", "guide")
    if not all((work / f"{name}.npy").is_file() for name in names):
        for name, array in teach(load_pretrained(), raw).items():
            with atomic(work / f"{name}.npy") as part, part.open("wb") as file:
                np.save(file, array)
    return {name: np.load(work / f"{name}.npy", mmap_mode="r") for name in names}


class TaughtPatches(Samples):
    """Crops of the training volume with what labels and teacher say, as `distillation_loss` takes them.

    Item k depends on the seed and on k alone. Only raw is turned and varied: brightness, contrast, gamma, noise.
    """

    def __init__(self, volume: Volume, teaching: dict[str, np.ndarray], names: tuple[str, ...], config: TrainConfig):
        self.volumes, self.teaching, self.names = [volume], teaching, names
        self.patch, self.seed = config.patch, config.seed
        widened = widen_borders(volume.labels.astype(np.uint64), in_3d=True)
        self.target, self.mask = affinities_from_labels(widened), affinity_mask(volume.labels)
        self.labels = np.where(widened == IGNORE, 0, widened).astype(np.int64)
        self.known = volume.labels != IGNORE

    def __getitem__(self, index: int) -> dict[str, Tensor | int]:
        rng = np.random.default_rng((self.seed, index))
        volume, number = self.volumes[0], int(rng.integers(16))
        start = [int(rng.integers((n - p) // GRID + 1)) * GRID for n, p in zip(volume.shape, self.patch, strict=True)]
        region = Region.at(start, self.patch)
        raw = turn(torch.from_numpy(vary(volume.raw[*region] / np.float32(255), rng))[None], number)
        item = {
            "raw": raw.contiguous(),
            "turn": number,
            "target": torch.from_numpy(self.target[:, *region].astype(np.float32)),
            "mask": torch.from_numpy(self.mask[:, *region].copy()),
            "labels": torch.from_numpy(self.labels[*region].copy()),
            "known": torch.from_numpy(self.known[*region].copy()),
        }
        coarse = Region(region.z, *(slice(s.start // GRID, s.stop // GRID) for s in (region.y, region.x)))
        for name in self.names:
            cut = coarse if name == "guide" else region
            item[name] = torch.from_numpy(self.teaching[name][:, *cut].astype(np.float32))
        return item


def vary(raw: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Vary brightness and contrast of each section, gamma, and noise of a crop (z, y, x) in [0, 1]."""
    sections = (len(raw), 1, 1)
    raw = raw * rng.uniform(0.8, 1.2, sections) + rng.uniform(-0.1, 0.1, sections)
    raw = raw.clip(0, 1) ** rng.uniform(0.7, 1.4)
    raw = raw + rng.normal(0, rng.uniform(0, 0.05), raw.shape)
    return raw.clip(0, 1).astype(np.float32)
