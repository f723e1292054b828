"""Synapses by their points: drawn into a phantom, detected by a network, adapted to another volume, paired.

The steps are those of AdaSyn (Chen et al., ISBI 2024, arXiv 2308.16461), from its description, on synapses of ours:

    points -> balls of radius 3 -> a network that gives two maps, pre and post (weighted cross-entropy) -> detections
    detections on the target -> square pseudo-labels -> training goes on, on the target -> detections
    each post-synaptic site belongs to the nearest pre-synaptic one

Ours: the phantom's synapses have one site on each side, where a fly's have several post-synaptic ones; squares lie in
the section of their point; optimal assignment beside the nearest site. Points are voxels (z, y, x).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from skimage.feature import peak_local_max
from torch import Tensor

from fgnet_lib.configuration import FGNetConfig
from fgnet_lib.fgnet import FGNet
from fgnet_lib.inference import predict
from fgnet_lib.volumes import IGNORE, Region, Volume

RADIUS = 3  # voxels of a ball around a point: 123 voxels
SITE = 48.0  # nm from the membrane to each site
APART = 260.0  # least nm between the membranes of two synapses, so that their pictures do not cover each other
DENSITY = 8.0  # synapses per cubic micron
SIDE = 7  # voxels of a square pseudo-label
DETECTOR = FGNetConfig(encoder=None, widths=(8, 12, 16, 24, 24), dense_levels=2)  # a small U-Net; two maps of three


class Synapses(NamedTuple):
    """Both sites of n synapses, each (n, 3) whole voxels z, y, x; row k of one belongs to row k of the other."""

    pre: np.ndarray
    post: np.ndarray


class DetectionScores(NamedTuple):
    """Precision, recall and F1 of detections, from 0 to 1."""

    precision: float
    recall: float
    f1: float


def place_synapses(volume: Volume, seed: int = 0) -> Synapses:
    """Choose synapses between neighbouring neurites of a phantom, with exact points inside both.

    The membrane between the sites is a face along y or x; both sites lie `SITE` nm behind it.

    Args:
        volume: With labels; isotropic in y and x.
        seed: Of the choice, and of which side is pre-synaptic.

    Raises:
        ValueError: The volume has no labels.
    """
    if volume.labels is None:
        raise ValueError(f"{volume.name} has no labels, between which synapses could lie")
    rng, size = np.random.default_rng(seed), np.array(volume.voxel_size)
    step = max(1, round(SITE / size[1]))
    faces = np.concatenate([_faces_with_room(volume.labels, axis, step) for axis in (1, 2)])
    wanted = round(DENSITY * np.prod(np.array(volume.shape) * size) / 1e9)
    chosen: list[np.ndarray] = []
    for face in rng.permutation(faces):
        if len(chosen) == wanted:
            break
        near = [np.linalg.norm((face[:3] - other[:3]) * size) for other in chosen]
        if min(near, default=np.inf) >= APART:
            chosen.append(face)
    rows = np.array(chosen, int).reshape(-1, 4)
    offset = np.eye(3, dtype=int)[rows[:, 3]] * step
    sides = np.stack([rows[:, :3] + offset, rows[:, :3] - offset])  # (2, n, 3)
    turn = rng.integers(2, size=len(rows))
    return Synapses(sides[turn, np.arange(len(rows))], sides[1 - turn, np.arange(len(rows))])


def _faces_with_room(labels: np.ndarray, axis: int, step: int) -> np.ndarray:
    """Voxels (z, y, x) after which another label begins along an axis, with that axis: (n, 4).

    On both sides the label goes on for `step` voxels.
    """
    along = np.moveaxis(labels, axis, 0)
    end = len(along) - step
    ours, theirs = along[step:end], along[step + 1 : end + 1]
    room = (ours != theirs) & ~np.isin(ours, (0, IGNORE)) & ~np.isin(theirs, (0, IGNORE))
    for k in range(1, step + 1):
        room &= (along[step - k : end - k] == ours) & (along[step + k : end + k] == theirs)
    faces = np.argwhere(np.moveaxis(room, 0, axis))
    faces[:, axis] += step
    return np.column_stack([faces, np.full(len(faces), axis)])


def stain_synapses(volume: Volume, synapses: Synapses, seed: int = 0) -> Volume:
    """Draw synapses into an imaged phantom: a dark density behind the membrane, and vesicles around the pre site.

    The density lies on the post-synaptic side, 60 nm long, and in the sections beside it, too. Vesicles lie within
    130 nm of the pre-synaptic site, inside its neurite. All other voxels keep their grey values.
    """
    rng, size = np.random.default_rng(seed), np.array(volume.voxel_size)
    dark = np.zeros(volume.shape, np.float32)
    reach = np.ceil(np.array([60.0, 160, 160]) / size).astype(int)
    for pre, post in zip(*synapses, strict=True):
        box = Region.at(pre, (1, 1, 1)).grow(reach, volume.shape)
        at = np.stack(np.meshgrid(*(np.arange(s.start, s.stop) for s in box), indexing="ij"), -1)
        neurite = volume.labels[box] == volume.labels[tuple(pre)]
        across = (post - pre) * size / np.linalg.norm((post - pre) * size)
        away = (at - (0.45 * pre + 0.55 * post)) * size  # nm from a point just behind the membrane
        depth = away @ across
        spread = np.linalg.norm(away - depth[..., None] * across, axis=-1)
        density = np.exp(-((depth / 22) ** 2) - (spread / 60) ** 2)
        middles = (rng.random(at.shape[:3]) < 0.02 * np.prod(size[1:]) / 64) & neurite
        middles &= np.linalg.norm((at - pre) * size, axis=-1) < 130
        rings = np.exp(-(((_distance(middles, volume.voxel_size) - 14) / 6) ** 2)) * neurite
        dark[box] = np.maximum(dark[box], np.maximum(95 * density, 45 * rings))
    raw = np.where(dark > 1, np.clip(np.round(volume.raw - dark), 0, 255), volume.raw).astype(np.uint8)
    return Volume(raw, volume.voxel_size, volume.labels, volume.offset, f"{volume.name}, with synapses")


def _distance(mask: np.ndarray, voxel_size: tuple[float, float, float]) -> np.ndarray:
    """Nm to the nearest voxel of a mask in the same section; far away where a section has none."""
    sections = [ndimage.distance_transform_edt(~cut, voxel_size[1:]) if cut.any() else cut + 1e3 for cut in mask]
    return np.stack(sections)


def draw_balls(points: np.ndarray, shape: tuple[int, int, int], radius: int = RADIUS) -> np.ndarray:
    """Mark all voxels within `radius` voxels of a point; bool (z, y, x). A lone ball of radius 3 has 123 voxels."""
    near = np.indices([2 * radius + 1] * 3) - radius
    return _draw(points, np.argwhere((near**2).sum(0) <= radius**2) - radius, shape)


def draw_squares(points: np.ndarray, shape: tuple[int, int, int], side: int = SIDE) -> np.ndarray:
    """Mark a square around each point in its own section; bool (z, y, x). `side` is odd."""
    return _draw(points, np.argwhere(np.ones((1, side, side))) - [0, side // 2, side // 2], shape)


def _draw(points: np.ndarray, offsets: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Mark voxels around each point, as far as they lie in the volume."""
    voxels = (np.asarray(points, int).reshape(-1, 1, 3) + offsets).reshape(-1, 3)
    voxels = voxels[((voxels >= 0) & (voxels < shape)).all(1)]
    mask = np.zeros(shape, bool)
    mask[tuple(voxels.T)] = True
    return mask


def weighted_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Compute the binary cross-entropy in which the few voxels of each map's sites weigh as much as all others.

    Args:
        logits: (B, C, ...).
        target: 0 or 1, of the same shape. A map without any site counts its background alone.

    Returns:
        Scalar: the mean over maps of (mean over sites + mean over the rest) / 2.
    """
    losses = F.binary_cross_entropy_with_logits(logits, target, reduction="none").transpose(0, 1).flatten(1)
    sites = target.transpose(0, 1).flatten(1)
    inside = (losses * sites).sum(1) / sites.sum(1).clamp(min=1)
    outside = (losses * (1 - sites)).sum(1) / (1 - sites).sum(1).clamp(min=1)
    return ((inside + outside) / 2).mean()


def train_detector(
    raw: np.ndarray, masks: np.ndarray, iterations: int, seed: int, model: FGNet | None = None
) -> tuple[FGNet, list[float]]:
    """Train a small U-Net to mark sites, or go on with one; crops are drawn around sites and anywhere in turn.

    Args:
        raw: uint8 (z, y, x).
        masks: bool (2, z, y, x): pre and post.
        iterations: Steps, one crop each.
        seed: Of weights and crops.
        model: To go on with; it stays as it is. None for a new one.

    Returns:
        The detector in eval mode; its refined output's first two maps are pre and post. And the loss of each step.
    """
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    detector = FGNet(DETECTOR).train()
    if model is not None:
        detector.load_state_dict(model.state_dict())
    optimizer = torch.optim.AdamW(detector.parameters(), lr=3e-3 if model is None else 1e-3)
    shape, sites, losses = np.array(raw.shape), np.argwhere(masks.any(0)), []
    size = np.minimum((8, 64, 64), shape)
    for iteration in range(iterations):
        middle = rng.choice(sites) if iteration % 2 == 0 and len(sites) else rng.integers(shape)
        window = Region.at(np.clip(middle - size // 2 + rng.integers(-8, 9, 3), 0, shape - size), size)
        section = torch.from_numpy(np.ascontiguousarray(raw[window]))[None, None].float() / 255
        target = torch.from_numpy(masks[:, *window])[None].float()
        loss = weighted_cross_entropy(detector(section).refined[:, :2], target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return detector.eval(), losses


def predict_sites(detector: FGNet, raw: np.ndarray) -> np.ndarray:
    """Predict both maps of a volume, pre and post: float32 (2, z, y, x) from 0 to 1."""
    return predict(detector, raw, tile=(8, 96, 96), progress=False, engine="torch").refined[:2]


def detect_points(probabilities: np.ndarray, threshold: float, apart: int = 2 * RADIUS) -> np.ndarray:
    """Find the points where a map (z, y, x) is highest and above a threshold: (n, 3), the surest first.

    Args:
        probabilities: From 0 to 1; smoothed by a voxel before its peaks are taken.
        threshold: Least value of a peak.
        apart: Least voxels between two points.
    """
    smooth = ndimage.gaussian_filter(probabilities, 1)
    return peak_local_max(smooth, min_distance=apart, threshold_abs=threshold, exclude_border=False)


def match_detections(
    points: np.ndarray, truth: np.ndarray, voxel_size: tuple[float, float, float], distance: float
) -> DetectionScores:
    """Score detections: each counts if it has a true point of its own within a distance.

    As many pairs as possible are made, and of these the closest. Where nothing is detected and nothing is there, all
    three scores are 1.

    Args:
        points: Detected, (n, 3) voxels.
        truth: (m, 3) voxels.
        voxel_size: nm along z, y, x.
        distance: Farthest in nm that counts.
    """
    if not len(points) and not len(truth):
        return DetectionScores(1.0, 1.0, 1.0)
    if not len(points) or not len(truth):
        return DetectionScores(0.0, 0.0, 0.0)
    far = cdist(points * np.array(voxel_size), truth * np.array(voxel_size))
    cost = np.where(far <= distance, far / max(distance, 1e-9) / (len(far) + 1), 2.0)  # one pair more beats all else
    hits = int((far[linear_sum_assignment(cost)] <= distance).sum())
    precision, recall = hits / len(points), hits / len(truth)
    return DetectionScores(precision, recall, 2 * hits / (len(points) + len(truth)))


def pair_nearest(pre: np.ndarray, post: np.ndarray, voxel_size: tuple[float, float, float]) -> np.ndarray:
    """Give each post-synaptic site the row of the nearest pre-synaptic one: (m,); several may share one.

    Args:
        pre: (n, 3) voxels, at least one.
        post: (m, 3) voxels.
        voxel_size: nm along z, y, x.
    """
    return cdist(post * np.array(voxel_size), pre * np.array(voxel_size)).argmin(1)


def pair_optimally(pre: np.ndarray, post: np.ndarray, voxel_size: tuple[float, float, float]) -> np.ndarray:
    """Give each post-synaptic site a pre-synaptic one of its own, so that the sum of distances is least.

    Arguments are those of `pair_nearest`.

    Returns:
        Rows of `pre`, (m,); -1 where there are more post-synaptic sites than pre-synaptic ones.
    """
    rows, columns = linear_sum_assignment(cdist(post * np.array(voxel_size), pre * np.array(voxel_size)))
    partners = np.full(len(post), -1)
    partners[rows] = columns
    return partners
