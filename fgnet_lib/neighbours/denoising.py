"""Denoise sections and segment them: noise models, blind spots, and denoiser and segmenter trained as one network.

From the equations of these papers, in the order of this file::

    noise           Gaussian, Poisson and line noise, each with a strength (ours, of textbook models); PSNR
    blind spots     Noise2Void (Krull et al. 2019, arXiv 1811.10980): a pixel is predicted from its neighbourhood alone
    joint training  EM-DenoiSeg (Wang et al., MICCAI 2024): D1 -> S(D1 x) -> affinities -> D2, one loss for all three;
                    its embedding module attends over channels as Restormer does (Zamir et al. 2022, arXiv 2111.09881)

Ours: all networks (2D U-Nets of 8 and 16 channels), that blind spots lie on a grid, the balanced loss of affinities,
and that each section is segmented alone. The package careamics trains Noise2Void, too; it is not required here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
import torch.nn.functional as F
from skimage.measure import label
from torch import Tensor, nn

from fgnet_lib.affinities import affinities_from_labels, affinity_mask, widen_borders
from fgnet_lib.losses import affinity_loss
from fgnet_lib.patches import Samples
from fgnet_lib.segmentation import flood, sweep
from fgnet_lib.volumes import IGNORE, Region, Volume

Noise = Literal["gaussian", "poisson", "line"]
Batch = tuple[Tensor, ...]

SHIFTS = (1, 3, 5, 9, 15)  # pixels to the predecessors in y and x to which S learns affinities
AFFINITY, FIRST_IMAGE, SECOND_IMAGE = 3.0, 1.0, 50.0  # weights of EM-DenoiSeg's loss
GRID = 4  # one pixel in so many, along y and along x, is a blind spot
AROUND = torch.tensor([(dy, dx) for dy in range(-2, 3) for dx in range(-2, 3) if (dy, dx) != (0, 0)])


# Noise, and how much of it there is.


def add_noise(clean: np.ndarray, kind: Noise, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Add noise to sections, before a camera clips them.

    Args:
        clean: Grey values (z, y, x) in [0, 1].
        kind: "gaussian": independent, deviation `strength`. "poisson": white is 1 / strength^2 electrons, so that the
            deviation is strength * sqrt(grey value). "line": one shift for each row, deviation `strength`.
        strength: Above 0; the root mean square error for white tissue, whatever the kind is.
        rng: Draws the noise.

    Returns:
        float32 of the same shape, not clipped.

    Raises:
        ValueError: An unknown kind, or a strength that is not above 0.
    """
    if kind not in get_args(Noise):
        raise ValueError(f"kind is {kind!r}; choose one of {', '.join(get_args(Noise))}")
    if not strength > 0:
        raise ValueError(f"strength is {strength}; noise has a strength above 0")
    if kind == "poisson":
        return (rng.poisson(clean / strength**2) * strength**2).astype(np.float32)
    shape = (*clean.shape[:-1], 1) if kind == "line" else clean.shape
    return (clean + strength * rng.standard_normal(shape)).astype(np.float32)


# Small networks in two dimensions.


class UNet2d(nn.Module):
    """A U-Net of three scales, one convolution a scale on the way down and one on the way up."""

    def __init__(self, inputs: int, outputs: int, width: int) -> None:
        """Random weights, repeatable by `torch.manual_seed`; `width`, 2 `width` and 4 `width` channels."""
        super().__init__()
        widths = (width, 2 * width, 4 * width)
        self.down = nn.ModuleList(
            nn.Conv2d(a, b, 3, padding=1) for a, b in zip((inputs, *widths[:-1]), widths, strict=True)
        )
        self.narrow = nn.ModuleList(nn.Conv2d(b, a, 1) for a, b in zip(widths[:-1], widths[1:], strict=True))
        self.up = nn.ModuleList(nn.Conv2d(a, a, 3, padding=1) for a in widths[:-1])
        self.head = nn.Conv2d(width, outputs, 3, padding=1)

    def encode(self, x: Tensor) -> list[Tensor]:
        """Compute features (B, channels, y, x) at strides 1, 2 and 4 of x (B, inputs, y, x).

        Args:
            x: Values in [0, 1]; y and x are multiples of 4.
        """
        maps: list[Tensor] = []
        for layer in self.down:
            maps.append(F.gelu(layer(F.avg_pool2d(maps[-1], 2) if maps else 4 * x - 2)))
        return maps

    def decode(self, maps: list[Tensor]) -> Tensor:
        """Compute outputs (B, outputs, y, x) from the features at all scales."""
        x = maps[-1]
        for narrow, layer, skip in zip(self.narrow[::-1], self.up[::-1], maps[-2::-1], strict=True):
            x = F.gelu(layer(skip + F.interpolate(narrow(x), scale_factor=2)))
        return self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x))


class Denoiser(UNet2d):
    """D1: a noisy picture (B, 1, y, x) in [0, 1] -> a clean one, which may leave that range a little."""

    def __init__(self, width: int = 8) -> None:
        super().__init__(1, 1, width)

    def decode(self, maps: list[Tensor]) -> Tensor:
        return 0.5 + super().decode(maps) / 4


class Segmenter(UNet2d):
    """S: a picture (B, 1, y, x) in [0, 1] -> logits of affinities (B, 10, y, x), y and x for each of `SHIFTS`."""

    def __init__(self, width: int = 16) -> None:
        super().__init__(1, 2 * len(SHIFTS), width)


def denoising_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Compute the mean squared error of a denoiser against the clean patches, which it has to know."""
    noisy, clean = batch[:2]
    return F.mse_loss(model(noisy), clean)


def segmentation_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Compute the balanced loss of affinities (lesson 04) that `model` predicts from the noisy patches."""
    noisy, _, target, mask = batch
    return affinity_loss(model(noisy), target, mask)


# Noise2Void: no clean picture is needed where noise is independent from pixel to pixel.


def hide_pixels(noisy: Tensor) -> tuple[Tensor, Tensor]:
    """Replace the pixels of a grid, which begins anywhere, by one of the 24 pixels around each.

    No pixel of the grid is put into another one, so nothing tells the network what a hidden pixel was. By torch's
    random numbers.

    Args:
        noisy: (B, 1, y, x); y and x multiples of `GRID`.

    Returns:
        The patches with hidden pixels, and a bool mask (y, x), True where they are.

    Raises:
        ValueError: A side is no multiple of `GRID`.
    """
    height, width = noisy.shape[-2:]
    if height % GRID or width % GRID:
        raise ValueError(f"patches are {height} x {width}; blind spots need multiples of {GRID}")
    top, left = torch.randint(GRID, (2,)).tolist()
    y, x = torch.meshgrid(torch.arange(top, height, GRID), torch.arange(left, width, GRID), indexing="ij")
    dy, dx = AROUND[torch.randint(len(AROUND), y.shape)].unbind(-1)
    hidden = noisy.clone()
    hidden[..., y, x] = noisy[..., (y + dy) % height, (x + dx) % width]
    mask = torch.zeros(height, width, dtype=torch.bool, device=noisy.device)
    mask[y, x] = True
    return hidden, mask


def blind_spot_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Compute Noise2Void's loss: the noisy value of each hidden pixel is predicted from what is around it."""
    hidden, mask = hide_pixels(batch[0])
    return (model(hidden) - batch[0]).square()[..., mask].mean()


# EM-DenoiSeg: the segmenter tells the denoiser what neurons need.


class ChannelAttention(nn.Module):
    """softmax(t q k^T) v over channels: C x C weights, whatever the size of the picture; q comes from a guide."""

    def __init__(self, channels: int, depthwise: bool = True) -> None:
        """Random weights.

        Args:
            channels: C.
            depthwise: A 3 x 3 filter on each channel of q, k and v, as in Restormer; without it, pixels may be in any
                order.
        """
        super().__init__()

        def project(parts: int) -> nn.Module:
            mix = nn.Conv2d(channels, parts * channels, 1)
            size = parts * channels
            return nn.Sequential(mix, nn.Conv2d(size, size, 3, padding=1, groups=size)) if depthwise else mix

        self.query, self.key_value = project(1), project(2)
        self.temperature = nn.Parameter(torch.ones(()))
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, features: Tensor, guide: Tensor) -> Tensor:
        q = self.query(guide).flatten(2)  # (B, C, pixels)
        k, v = self.key_value(features).flatten(2).chunk(2, 1)
        q, k = F.normalize(q, dim=2), F.normalize(k, dim=2)
        shares = torch.softmax(self.temperature * q @ k.transpose(1, 2), dim=2)  # (B, C, C)
        return self.out((shares @ v).view_as(features))


class InstanceEmbedding(nn.Module):
    """The instance-aware embedding module: attention from affinity features, then a gated feed-forward layer."""

    def __init__(self, channels: int) -> None:
        """Random weights; both parts are added to the features."""
        super().__init__()
        self.before, self.between = nn.GroupNorm(1, channels), nn.GroupNorm(1, channels)
        self.attention = ChannelAttention(channels)
        self.expand = nn.Conv2d(channels, 4 * channels, 1)
        self.shrink = nn.Conv2d(2 * channels, channels, 1)

    def forward(self, features: Tensor, guide: Tensor) -> Tensor:
        x = features + self.attention(self.before(features), guide)
        gate, value = self.expand(self.between(x)).chunk(2, 1)
        return x + self.shrink(F.gelu(gate) * value)


class DenoisedAndSegmented(NamedTuple):
    """What EM-DenoiSeg makes of a picture: D1's picture, logits of affinities, and D2's picture."""

    first: Tensor
    logits: Tensor
    second: Tensor


class DenoiSeg(nn.Module):
    """D1 -> S(D1 x) -> affinities -> D2, trained as one network."""

    def __init__(self, embedding: bool = True, width: int = 8) -> None:
        """Random weights, repeatable by `torch.manual_seed`.

        Args:
            embedding: Whether affinities enter D2, at its three scales; without, it sees D1's picture alone.
            width: Of D1 and D2; S has twice as many channels.
        """
        super().__init__()
        self.denoiser, self.segmenter, self.refiner = Denoiser(width), Segmenter(2 * width), Denoiser(width)
        self.guide = UNet2d(2 * len(SHIFTS), 1, width).down if embedding else None
        self.embeddings = nn.ModuleList(InstanceEmbedding(width * 2**scale) for scale in range(3) if embedding)

    def refine(self, first: Tensor, logits: Tensor) -> Tensor:
        """D2: clean a picture (B, 1, y, x) once more, guided by affinities (B, 10, y, x) if there is an embedding."""
        maps = self.refiner.encode(first)
        if self.guide is not None:
            guide = torch.sigmoid(logits)
            for scale, (layer, embed) in enumerate(zip(self.guide, self.embeddings, strict=True)):
                guide = F.gelu(layer(F.avg_pool2d(guide, 2) if scale else guide))
                maps[scale] = embed(maps[scale], guide)
        return self.refiner.decode(maps)

    def forward(self, noisy: Tensor, joint: bool = True) -> DenoisedAndSegmented:
        """Denoise and segment patches (B, 1, y, x); without `joint`, no gradient of S reaches D1."""
        first = self.denoiser(noisy)
        logits = self.segmenter(first if joint else first.detach())
        return DenoisedAndSegmented(first, logits, self.refine(first, logits))


def joint_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Compute EM-DenoiSeg's loss: 3 times that of affinities, plus the error of D1, plus 50 times that of D2."""
    noisy, clean, target, mask = batch
    first, logits, second = model(noisy)
    errors = FIRST_IMAGE * F.mse_loss(first, clean) + SECOND_IMAGE * F.mse_loss(second, clean)
    return AFFINITY * affinity_loss(logits, target, mask) + errors


# Patches to learn from, and whole sections.


class SectionPatches(Samples):
    """An endless source of patches of single sections; item k depends on the seed and on k alone.

    An item is a tuple of noisy and clean grey values, float32 (1, side, side), affinities to `SHIFTS` in y and x,
    float32 (10, side, side), and the bool mask of where these are known. Patches are flipped at random.
    """

    def __init__(self, volume: Volume, noisy: np.ndarray, side: int = 64, seed: int = 0) -> None:
        """Draw from the sections of a volume.

        Args:
            volume: Clean, with labels.
            noisy: float32 (z, y, x), what the network is given instead of the clean sections.
            side: Pixels.
            seed: Of everything that is random.

        Raises:
            ValueError: No labels, or another shape of `noisy`.
        """
        if volume.labels is None or noisy.shape != volume.shape:
            raise ValueError(f"patches need labels, and noise on all of {volume.shape} voxels; got {noisy.shape}")
        self.volumes, self.noisy, self.side, self.seed = [volume], noisy, side, seed

    def __getitem__(self, index: int) -> Batch:
        rng = np.random.default_rng((self.seed, index))
        (volume,), shape = self.volumes, (1, self.side, self.side)
        region = Region.at([int(rng.integers(n - m + 1)) for n, m in zip(volume.shape, shape, strict=True)], shape)
        flips = [axis for axis in (1, 2) if rng.random() < 0.5]
        crop = volume[region]
        arrays = (self.noisy[region], crop.raw.astype(np.float32) / 255, crop.labels.astype(np.uint64))
        noisy, clean, labels = (np.ascontiguousarray(np.flip(array, flips)) for array in arrays)
        target, mask = _shifted(affinities_from_labels, widen_borders(labels)), _shifted(affinity_mask, labels)
        return tuple(map(torch.from_numpy, (noisy, clean, target.astype(np.float32), mask)))


def _shifted(function: Callable[[np.ndarray, int], np.ndarray], labels: np.ndarray) -> np.ndarray:
    """Affinities of a single section, or their mask, to all of `SHIFTS`: (10, y, x)."""
    return np.concatenate([function(labels, shift)[1:, 0] for shift in SHIFTS])


@torch.no_grad()
def apply_to_sections(function: Callable[[Tensor], Tensor], sections: np.ndarray) -> np.ndarray:
    """Compute what a network makes of each section of a volume, sections of any size.

    Args:
        function: Takes pictures (1, 1, y, x) whose sides are multiples of 4, and returns (1, channels, y, x).
        sections: float32 (z, y, x).

    Returns:
        float32 (z, channels, y, x).
    """
    height, width = sections.shape[1:]
    pad = (0, -width % 4, 0, -height % 4)
    pictures = F.pad(torch.from_numpy(sections)[:, None], pad, mode="replicate")
    return torch.cat([function(picture[None])[..., :height, :width] for picture in pictures]).numpy()


def sections_to_affinities(logits: np.ndarray) -> np.ndarray:
    """Turn logits (z, 10, y, x) into affinities (3, z, y, x) to the nearest neighbours; nothing is joined along z."""
    in_plane = 1 / (1 + np.exp(-logits[:, :2].transpose(1, 0, 2, 3)))
    return np.concatenate([np.zeros_like(in_plane[:1]), in_plane]).astype(np.float32)


def segment_sections(affinities: np.ndarray, thresholds: Iterable[float]) -> dict[float, np.ndarray]:
    """Segment each section alone, at several thresholds; no two sections share an id.

    Args:
        affinities: float32 (3, z, y, x) in [0, 1].
        thresholds: Scores in [0, 1].

    Returns:
        Threshold -> uint64 ids from 1 (z, y, x).
    """
    labels = {threshold: np.zeros(affinities.shape[1:], np.uint64) for threshold in thresholds}
    for z in range(affinities.shape[1]):
        section, voxel = affinities[:, z : z + 1], (1.0, 1.0, 1.0)
        steps = sweep(section, voxel, labels, flood(section, voxel, per_section=True), strict=False)
        for threshold, step in steps.items():
            labels[threshold][z] = step[0] + labels[threshold].max()
    return labels


def cut_into_sections(labels: np.ndarray) -> np.ndarray:
    """Give each connected piece of a neuron in each section (z, y, x) an id of its own; 0 and `IGNORE` stay."""
    pieces = labels.astype(np.uint64)
    last = 0
    for z, section in enumerate(labels):
        outside = (section == 0) | (section == IGNORE)
        numbers, count = label(np.where(outside, 0, section), background=0, connectivity=1, return_num=True)
        pieces[z] = np.where(outside, section, numbers.astype(np.uint64) + np.uint64(last))
        last += count
    return pieces
