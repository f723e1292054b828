"""Distil: what a 3D network knows, taught to a 2D network that is many times faster.

The losses are those of CAD (CVPR 2024), from their equations, with weight 1 each:

    L_2D:     the student's affinities against the ground truth
    L_cross:  (A_2D - A_3D)^2, the student's affinities against the teacher's, which get no gradient
    FGI:      clamp(e_student(z) . e_teacher(z + s)) against "same neuron at z and z + s?", for s = 1, 2, 3, 4

and an option of EM-SliceCrafter, with weight 0.1: features close to those of a frozen encoder. Ours: errors against the
ground truth are squared, and joined and separate pairs count alike; the teacher is an FGNet, which has no embeddings,
so a head on its refined decoder's features is trained for FGI; features are compared by their direction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fgnet_lib.affinities import affinities_from_labels, affinity_mask, widen_borders
from fgnet_lib.fgnet import FGNet
from fgnet_lib.inference import predict
from fgnet_lib.patches import Samples
from fgnet_lib.student import Student, embedding_affinities
from fgnet_lib.training import TrainConfig
from fgnet_lib.volumes import IGNORE, Region, Volume, is_anisotropic

GRID = 4  # crops begin at multiples of it in y and x, so that an encoder's features at stride 4 can be cut, too
SLAB, MARGIN = 16, 2  # sections that the teacher sees at once, and those at both ends that are left out
SHIFTS = (1, 2, 3, 4)  # sections, of feature grafting
POOL = 2  # from the student's finest features, at stride 2, to the encoder's, at stride 4


@dataclass(frozen=True)
class LossWeights:
    """How much each loss counts; 0 leaves it out.

    Attributes:
        label: L_2D.
        cross: L_cross.
        graft: FGI.
        features: Of the frozen encoder.
    """

    label: float = 1.0
    cross: float = 1.0
    graft: float = 0.0
    features: float = 0.0


def truth_loss(affinities: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Compute the mean squared error of affinities, those that are 1 and those that are 0 counting alike.

    Args:
        affinities: In [0, 1], any shape.
        target: 0 or 1, same shape.
        mask: bool, same shape; False where the target is unknown.

    Returns:
        Scalar; 0 where nothing is known.
    """
    error = (affinities - target).square()
    joined, apart = mask * target, mask * (1 - target)
    return sum((error * part).sum() / part.sum().clamp(min=1) for part in (joined, apart)) / 2


def cross_loss(affinities: Tensor, teacher: Tensor) -> Tensor:
    """Compute the mean of (A_2D - A_3D)^2; no gradient reaches the teacher.

    The low face of each axis is left out, where neither has a predecessor to join.

    Args:
        affinities: Of the student, (B, 3, D, H, W) in [0, 1].
        teacher: Of the teacher, same shape.
    """
    return (affinities - teacher.detach())[..., 1:, 1:, 1:].square().mean()


def grafting_loss(embeddings: Tensor, teacher: Tensor, labels: Tensor, known: Tensor) -> Tensor:
    """Compute FGI: embeddings of the student and of the teacher, some sections apart, should say what labels say.

    All shifts count: their mean is taken.

    Args:
        embeddings: Of the student, (B, E, D, H, W), any length; the last channel is the boundary.
        teacher: Of the teacher, same shape; no gradient reaches it.
        labels: int64 ids (B, D, H, W) with widened borders, 0 at the boundary.
        known: bool (B, D, H, W).
    """
    student, teacher = (F.normalize(e, dim=1)[:, :-1] for e in (embeddings, teacher.detach()))
    losses = []
    for shift in (s for s in SHIFTS if s < labels.shape[1]):
        product = (student[:, :, :-shift] * teacher[:, :, shift:]).sum(1).clamp(0, 1)
        target = ((labels[:, :-shift] == labels[:, shift:]) & (labels[:, shift:] > 0)).float()
        losses.append(truth_loss(product, target, known[:, :-shift] & known[:, shift:]))
    return torch.stack(losses).mean()


def feature_loss(projected: Tensor, frozen: Tensor) -> Tensor:
    """Compute 1 - cosine of the student's projected features and a frozen encoder's, both (N, C, h, w)."""
    return 1 - F.cosine_similarity(projected, frozen.detach(), dim=1).mean()


def turn(volume: Tensor, number: int) -> Tensor:
    """Turn a volume (..., D, H, W) with H = W into one of its 16 poses; 0 leaves it as it is."""
    volume = volume.flip(-3) if number & 8 else volume
    volume = volume.flip(-1) if number & 4 else volume
    return volume.rot90(number & 3, (-2, -1))


def turn_back(volume: Tensor, number: int) -> Tensor:
    """Undo `turn`. Embeddings may be turned, since each belongs to one voxel; affinities may not, being of pairs."""
    volume = volume.rot90(-(number & 3), (-2, -1))
    volume = volume.flip(-1) if number & 4 else volume
    return volume.flip(-3) if number & 8 else volume


class Distillation(nn.Module):
    """A student and what it needs only while it learns; trained by `training.fit` with `distillation_loss`."""

    def __init__(
        self, student: Student, weights: LossWeights, graft_head: nn.Module | None, guide_channels: int
    ) -> None:
        """Hold a student together with its helpers.

        Args:
            student: That learns.
            weights: Of the losses.
            graft_head: From the teacher's features to embeddings, as `train_graft_head` gives it; None without FGI.
            guide_channels: Of the frozen encoder's features.
        """
        super().__init__()
        self.student, self.weights = student, weights
        self.config = (student.config, weights)  # what a checkpoint belongs to
        self.graft_head = graft_head.requires_grad_(False) if graft_head and weights.graft else None
        width = student.config.widths[0]
        self.project = nn.Conv2d(width, guide_channels, 1) if weights.features else None


def distillation_loss(model: Distillation, batch: dict[str, Tensor]) -> Tensor:
    """Compute the weighted sum of the losses of a batch.

    Args:
        model: Student and helpers.
        batch: `raw` (B, 1, D, H, W), turned by `turn` (B,); the rest is not turned: `target` and `mask`
            (B, 3, D, H, W), `labels` (widened) and `known` (B, D, H, W), the teacher's `affinities` (B, 3, D, H, W)
            and, where their losses count, its `features` (B, C, D, H, W) and the encoder's `guide` (B, G, D, h, w).
    """
    weights, student = model.weights, model.student
    turns = batch["turn"].tolist()
    features = student.features(batch["raw"])  # H and W are multiples of 16
    embeddings = student.embed_features(features, len(turns)).float()  # losses are sums over many voxels
    embeddings = torch.stack([turn_back(e, number) for e, number in zip(embeddings, turns, strict=True)])
    affinities = embedding_affinities(embeddings)
    loss = weights.label * truth_loss(affinities, batch["target"], batch["mask"])
    if weights.cross:
        loss = loss + weights.cross * cross_loss(affinities, batch["affinities"])
    if model.graft_head is not None:
        teacher = model.graft_head(batch["features"])
        loss = loss + weights.graft * grafting_loss(embeddings, teacher, batch["labels"], batch["known"])
    if model.project is not None:
        pooled = model.project(F.avg_pool2d(features, POOL)).float().unflatten(0, (len(turns), -1)).transpose(1, 2)
        pooled = torch.stack([turn_back(p, number) for p, number in zip(pooled, turns, strict=True)])
        frozen = batch["guide"].transpose(1, 2).flatten(0, 1)
        loss = loss + weights.features * feature_loss(pooled.transpose(1, 2).flatten(0, 1), frozen)
    return loss


@torch.inference_mode()
def ask_teacher(model: FGNet, raw: np.ndarray) -> dict[str, np.ndarray]:
    """Compute what a teacher says of a volume.

    Args:
        model: With both encoders; on the CPU.
        raw: uint8 (z, y, x).

    Returns:
        float16 arrays: `affinities` (3, z, y, x); `features` of the refined decoder (C, z, y, x); `guide`, the
        encoder's finest features (G, z, y / 4, x / 4), y and x padded to multiples of 32.
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
    arrays = {"features": np.concatenate(features, 1), "guide": np.concatenate(guide, 1)}
    return arrays | {"affinities": affinities.astype(np.float16)}


class Teaching:
    """A labelled volume, the targets that its labels give, and what a teacher says of it (`ask_teacher`)."""

    def __init__(self, volume: Volume, answers: dict[str, np.ndarray]) -> None:
        """Hold a volume in memory and the teacher's answers, in memory or mapped from files."""
        widened = widen_borders(volume.labels.astype(np.uint64), in_3d=not is_anisotropic(volume.voxel_size))
        self.volume, self.answers = volume, answers
        self.target, self.mask = affinities_from_labels(widened), affinity_mask(volume.labels)
        self.labels = np.where(widened == IGNORE, 0, widened).astype(np.int64)

    def cut(self, region: Region, names: Sequence[str]) -> dict[str, Tensor]:
        """Cut targets and the named answers of a region, as `distillation_loss` takes them, but for raw."""
        coarse = Region(region.z, *(slice(s.start // GRID, s.stop // GRID) for s in (region.y, region.x)))
        arrays = {
            "target": self.target[:, *region].astype(np.float32),
            "mask": self.mask[:, *region],
            "labels": self.labels[*region],
            "known": self.volume.labels[*region] != IGNORE,
        }
        for name in names:
            arrays[name] = self.answers[name][:, *(coarse if name == "guide" else region)].astype(np.float32)
        return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}


class TaughtPatches(Samples):
    """An endless source of crops with what labels and teacher say, as `distillation_loss` takes them.

    Item k depends on the seed and on k alone. Raw is turned into one of 16 poses and varied; the rest stays as it is,
    since a teacher's affinities cannot be turned.
    """

    def __init__(self, teachings: Sequence[Teaching], names: Sequence[str], config: TrainConfig) -> None:
        """Draw from some volumes.

        Args:
            teachings: At least as large as a patch.
            names: Of the teacher's answers that an item has.
            config: Its patch (y and x multiples of 16), seed, and weights of the volumes.
        """
        self.volumes = [teaching.volume for teaching in teachings]
        self.teachings, self.names, self.patch, self.seed = teachings, names, config.patch, config.seed
        share = np.array(config.weights or [volume.raw.size for volume in self.volumes], float)
        self.share = share / share.sum()

    def __getitem__(self, index: int) -> dict[str, Tensor | int]:
        rng = np.random.default_rng((self.seed, index))
        teaching, number = self.teachings[rng.choice(len(self.share), p=self.share)], int(rng.integers(16))
        shape = teaching.volume.shape
        steps = (1, GRID, GRID)
        start = [int(rng.integers((n - p) // s + 1)) * s for n, p, s in zip(shape, self.patch, steps, strict=True)]
        region = Region.at(start, self.patch)
        raw = torch.from_numpy(vary(teaching.volume.raw[*region] / np.float32(255), rng))
        raw = turn(raw[None], number).contiguous()
        return {"raw": raw, "turn": number, **teaching.cut(region, self.names)}


def vary(raw: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Vary brightness and contrast of each section, gamma, and noise of a crop (z, y, x) in [0, 1]."""
    sections = (len(raw), 1, 1)
    raw = raw * rng.uniform(0.8, 1.2, sections) + rng.uniform(-0.1, 0.1, sections)
    raw = raw.clip(0, 1) ** rng.uniform(0.7, 1.4)
    raw = raw + rng.normal(0, rng.uniform(0, 0.05), raw.shape)
    return raw.clip(0, 1).astype(np.float32)


def used_answers(weights: LossWeights) -> tuple[str, ...]:
    """Name the teacher's answers that losses with these weights use."""
    used = {"affinities": weights.cross, "features": weights.graft, "guide": weights.features}
    return tuple(name for name, weight in used.items() if weight)
