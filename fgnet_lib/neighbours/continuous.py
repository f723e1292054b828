"""Decode features at any point of a section, and look again where the network doubts.

From the equations of I-MedSAM (Wei et al., ECCV 2024, arXiv 2311.17081): features and Fourier coordinates of a point go
through a coarse MLP with dropout; the floor(0.125 N) points of highest variance over T passes go on to a fine MLP;
the loss is 0.8 Dice + 0.2 CE, of the fine output with weight w = min((epoch + 1) / 5, 1), of the coarse one with 1 - w.
Dropout whose passes are compared: Gal and Ghahramani, ICML 2016, arXiv 1506.02142.

Ours: much smaller MLPs without batch norm; features of a frozen FGNet instead of SAM's; dropout behind the hidden
layers, where the released code drops outputs; the variance of probabilities; whole frequencies that open one after the
other; the boundary between neurons as what is decoded; other doubts than variance; the recipe of training.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fgnet_lib.affinities import widen_borders
from fgnet_lib.fgnet import FGNet
from fgnet_lib.volumes import IGNORE, Volume, is_anisotropic

Doubt = Literal["random", "entropy", "margin", "variance"]

COARSE, FINE = (64, 32), (64, 32, 32)  # widths; the paper's are (1024, 512) and (512, 256, 256, 128)
DROPOUT, SHARE = 0.5, 0.125  # of hidden values that are dropped; of points that are looked at again
OPENING, HANDOVER = 20, 5  # epochs until all frequencies are open, and until the fine output has all the weight
POINTS, RATE = 2048, 3e-3  # of a step of training: points of a section, and the learning rate at first


# Between the voxels: where a point lies, and what the frozen network knows about it.


def grid_points(shape: tuple[int, int], factor: float = 1.0) -> Tensor:
    """Lay points over a section: the middles of its voxels, or of voxels that are `factor` times as fine.

    Args:
        shape: Voxels of the section (y, x).
        factor: 1 for its own grid, 2 for a grid with two points a voxel, 0.5 for half as many.

    Returns:
        (N, 2), y and x of each point, from -1 at one edge of the section to 1 at the other, row by row.
    """
    axes = [(2 * torch.arange(int(n * factor)) + 1) / int(n * factor) - 1 for n in shape]
    return torch.cartesian_prod(*axes)


def fourier_coordinates(points: Tensor, frequencies: int, opened: float = 1.0) -> Tensor:
    """Describe points by waves: p, sin(2^k pi p), cos(2^k pi p) for k = 0, 1, ... (Mildenhall et al. 2020).

    Args:
        points: (N, 2), from -1 to 1.
        frequencies: How many, lowest first.
        opened: Share of the frequencies that are open; the others, the highest, are 0.

    Returns:
        (N, 2 + 4 * frequencies): y, x; then for each frequency sin of y, sin of x, cos of y, cos of x.
    """
    columns = [points]
    for k in range(frequencies):
        waves = torch.cat([f(2**k * math.pi * points) for f in (torch.sin, torch.cos)], dim=1)
        columns.append(waves * (k < math.floor(opened * frequencies)))
    return torch.cat(columns, dim=1)


def sample_features(features: Tensor, points: Tensor) -> Tensor:
    """Sample features of a section at points, bilinearly between the middles of voxels.

    Args:
        features: (C, h, w).
        points: (N, 2), as `grid_points` gives them.

    Returns:
        (N, C); at the middle of a voxel its own features.
    """
    grid = points.flip(1)[None, None]  # grid_sample wants x, y
    return F.grid_sample(features[None], grid, padding_mode="border", align_corners=False)[0, :, 0].T


@torch.no_grad()
def frozen_features(model: FGNet, raw: np.ndarray) -> Tensor:
    """Compute the features that a model's refined decoder gives to its head.

    Args:
        model: In eval mode, on the CPU.
        raw: uint8 (z, y, x); seen at once, so take no more than some sections.

    Returns:
        float32 (C, z, y, x).
    """
    seen: list[Tensor] = []
    hook = model.refined_decoder.head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        model(torch.from_numpy(raw / np.float32(255))[None, None])
    finally:
        hook.remove()
    return seen[0][0, :, :, : raw.shape[1], : raw.shape[2]].contiguous()


def mark_boundaries(volume: Volume) -> tuple[np.ndarray, np.ndarray]:
    """Mark what is decoded: voxels within one voxel of another neuron, and those that belong to none.

    Returns:
        bool (z, y, x): where a boundary is, and where that is known.
    """
    labels = volume.labels.astype(np.uint64)
    return widen_borders(labels, in_3d=not is_anisotropic(volume.voxel_size)) == 0, labels != IGNORE


def halve_sections(array: np.ndarray) -> np.ndarray:
    """Take the mean of each 2 x 2 voxels of (z, y, x); a last odd row or column is left out. float32."""
    z, y, x = array.shape
    even = array[:, : y // 2 * 2, : x // 2 * 2].astype(np.float32)
    return even.reshape(z, y // 2, 2, x // 2, 2).mean((2, 4))


# Coarse and fine: a quick look everywhere, and a second one where it is worth it.


class ContinuousDecoder(nn.Module):
    """A coarse MLP for all points and a fine one for those that are doubtful."""

    def __init__(self, channels: int, frequencies: int = 10, choice: Doubt = "variance") -> None:
        """Random weights, repeatable by `torch.manual_seed`.

        Args:
            channels: Of the features.
            frequencies: Of the coordinates; 0 leaves the position itself alone.
            choice: What decides where to look again.

        Raises:
            ValueError: An unknown choice.
        """
        super().__init__()
        if choice not in get_args(Doubt):
            raise ValueError(f"choice is {choice!r}; choose one of {', '.join(get_args(Doubt))}")
        self.frequencies, self.choice = frequencies, choice
        self.norm = nn.LayerNorm(channels)
        inputs = channels + 2 + 4 * frequencies
        self.coarse = _layers((inputs, *COARSE), dropout=True)
        self.coarse_head = nn.Linear(COARSE[-1], 1)
        self.fine = _layers((inputs + COARSE[-1], *FINE), dropout=False)
        self.fine_head = nn.Linear(FINE[-1], 1)

    def embed(self, features: Tensor, points: Tensor, opened: float = 1.0) -> Tensor:
        """Join features (N, C) and Fourier coordinates of points (N, 2) to what both MLPs read."""
        return torch.cat([self.norm(features), fourier_coordinates(points, self.frequencies, opened)], dim=1)

    def look(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Compute hidden values (N, H) and logits (N,) of the coarse MLP."""
        hidden = self.coarse(inputs)
        return hidden, self.coarse_head(hidden)[:, 0]

    def look_again(self, inputs: Tensor, hidden: Tensor, logits: Tensor, chosen: Tensor) -> Tensor:
        """Replace the logits (N,) of the chosen points by those of the fine MLP."""
        fine = self.fine_head(self.fine(torch.cat([inputs, hidden], dim=1)[chosen]))[:, 0]
        return logits.index_copy(0, chosen, fine)


def _layers(widths: Sequence[int], dropout: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in zip(widths, widths[1:], strict=False):
        layers += [nn.Linear(inputs, outputs), nn.ReLU(), *[nn.Dropout(DROPOUT)] * dropout]
    return nn.Sequential(*layers)


class Decoding(NamedTuple):
    """What a decoder gives for N points."""

    coarse: Tensor  # (N,) probabilities of a boundary, after the first look
    fine: Tensor  # (N,) the same after the second one
    variance: Tensor  # (N,) of the coarse probabilities over the passes
    chosen: Tensor  # points that were looked at again


@contextmanager
def dropout_alone(network: nn.Module) -> Iterator[None]:
    """Switch dropout on and all other layers to evaluation, until the block ends.

    `eval()` switches dropout off with the rest: every pass is equal then, and the variance of passes is exactly 0.
    """
    modes = [(module, module.training) for module in network.modules()]
    for module, _ in modes:
        module.training = isinstance(module, nn.Dropout)
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@torch.no_grad()
def draw_passes(decoder: ContinuousDecoder, inputs: Tensor, passes: int) -> Tensor:
    """Compute the coarse probabilities of points several times, in whatever mode the decoder is.

    Returns:
        (passes, N).
    """
    return torch.stack([torch.sigmoid(decoder.look(inputs)[1]) for _ in range(passes)])


@torch.no_grad()
def decode(decoder: ContinuousDecoder, features: Tensor, points: Tensor, passes: int = 8) -> Decoding:
    """Decode a section at points: without dropout, but for the passes whose variance says where to look again.

    Args:
        decoder: Put into eval mode.
        features: (C, h, w).
        points: (N, 2), as `grid_points` gives them; they need not lie on a grid.
        passes: T, at least 2.
    """
    decoder.eval()
    inputs = decoder.embed(sample_features(features, points), points)
    with dropout_alone(decoder):
        drawn = draw_passes(decoder, inputs, passes)
    hidden, coarse = decoder.look(inputs)
    chosen = choose_doubtful(score_doubt(decoder.choice, torch.sigmoid(coarse), drawn))
    fine = decoder.look_again(inputs, hidden, coarse, chosen)
    return Decoding(torch.sigmoid(coarse), torch.sigmoid(fine), drawn.var(0), chosen)


def dice_ce_loss(logits: Tensor, truth: Tensor) -> Tensor:
    """Compute 0.8 Dice + 0.2 cross entropy of logits and truth (N,), 0 or 1; Dice with squares in the denominator."""
    p = torch.sigmoid(logits)
    dice = 1 - (2 * (p * truth).sum() + 1) / (p.square().sum() + truth.square().sum() + 1)
    return 0.8 * dice + 0.2 * F.binary_cross_entropy_with_logits(logits, truth)


def fine_weight(epoch: int) -> float:
    """Compute how much the fine output counts in an epoch, from 0 on: min((epoch + 1) / 5, 1)."""
    return min((epoch + 1) / HANDOVER, 1.0)


def decoding_loss(decoder: ContinuousDecoder, features: Tensor, points: Tensor, truth: Tensor, epoch: int) -> Tensor:
    """Compute the loss of points in an epoch, in training mode: coarse twice, fine where both passes disagree.

    Args:
        decoder: In training mode.
        features: (N, C), at the points.
        points: (N, 2).
        truth: float (N,), 1 on a boundary.
        epoch: From 0 on; opens the frequencies and shifts the weight from coarse to fine.
    """
    inputs = decoder.embed(features, points, min((epoch + 1) / OPENING, 1.0))
    (_, first), (hidden, coarse) = decoder.look(inputs), decoder.look(inputs)
    drawn = torch.sigmoid(torch.stack([first, coarse])).detach()
    chosen = choose_doubtful(score_doubt(decoder.choice, drawn[1], drawn))
    fine, weight = decoder.look_again(inputs, hidden, coarse, chosen), fine_weight(epoch)
    return weight * dice_ce_loss(fine, truth) + (1 - weight) * dice_ce_loss(coarse, truth)


class LabelledSection(NamedTuple):
    """A section that a decoder learns from."""

    features: Tensor  # (C, h, w)
    truth: Tensor  # float (h, w), 1 on a boundary
    known: Tensor  # bool (h, w)


def label_sections(features: Tensor, truth: np.ndarray, known: np.ndarray) -> list[LabelledSection]:
    """Pair features (C, z, y, x) with truth and known voxels (z, y, x), section by section."""
    known = known.astype(bool)
    return [
        LabelledSection(f, torch.from_numpy(t.astype(np.float32)), torch.from_numpy(k))
        for f, t, k in zip(features.unbind(1), truth, known, strict=True)
    ]


def train_decoder(
    decoder: ContinuousDecoder, sections: Sequence[LabelledSection], epochs: int, steps: int, seed: int
) -> list[float]:
    """Train a decoder in place on voxels' middles, with AdamW and a rate that falls to 0; leave it in eval mode.

    Args:
        decoder: Starts from the weights that it has.
        sections: One of those with known voxels is drawn at each step, and points from it.
        epochs: At least `OPENING`, or the highest frequencies never open.
        steps: In an epoch.
        seed: Of what is drawn, dropout included.

    Returns:
        The mean loss of each epoch.
    """
    torch.manual_seed(seed)
    optimizer = torch.optim.AdamW(decoder.parameters(), RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * steps)
    decoder.train()
    sections, losses = [section for section in sections if section.known.any()], []
    for k in range(epochs * steps):
        section = sections[int(torch.randint(len(sections), ()))]
        points = grid_points(tuple(section.truth.shape))
        drawn = torch.randperm(len(points))[:POINTS]
        drawn = drawn[section.known.flatten()[drawn]]
        features = section.features.flatten(1)[:, drawn].T
        loss = decoding_loss(decoder, features, points[drawn], section.truth.flatten()[drawn], k // steps)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    decoder.eval()
    return np.reshape(losses, (epochs, steps)).mean(1).tolist()


# Doubt: which points deserve a second look.


def score_doubt(kind: Doubt, probabilities: Tensor, drawn: Tensor) -> Tensor:
    """Score how doubtful each point is; only the order of the scores has a meaning.

    Args:
        kind: "random"; "entropy" (bits) and "margin" (minus the distance of both probabilities) of a single pass; or
            "variance" over the passes.
        probabilities: (N,) of a boundary.
        drawn: (T, N), those of T passes with dropout.

    Returns:
        (N,), higher where the doubt is larger.
    """
    if kind == "random":
        return torch.rand_like(probabilities)
    if kind == "variance":
        return drawn.var(0)
    if kind == "margin":
        return -(2 * probabilities - 1).abs()
    return -(torch.xlogy(probabilities, probabilities) + torch.xlogy(1 - probabilities, 1 - probabilities)) / math.log(
        2
    )


def choose_doubtful(scores: Tensor, share: float = SHARE) -> Tensor:
    """Choose the floor(share * N) points with the highest scores, highest first; of equal ones the earlier."""
    return scores.argsort(descending=True, stable=True)[: math.floor(share * len(scores))]
