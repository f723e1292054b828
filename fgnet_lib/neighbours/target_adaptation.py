"""Adapt a trained model to a volume that looks different, without a single label of it.

Three kinds of methods, by what they change:

    grey values          histogram matching, CLAHE (both by scikit-image); `study.evaluation` rescales voxels
    feature statistics   every channel gets the mean and the deviation that it had in training
    weights              gradient steps on the target, for norm layers alone; an EMA of them is what predicts

The losses follow the equations of style and structure guidance at test time (Zhou et al., AAAI 2024, which registers
histological images):

    style        squares of mu(f) - mu_source and sigma(f) - sigma_source, summed over levels of features
    structure    the square of HOG(section) - HOG(predicted boundary), the mean over blocks of a section
    EMA          teacher <- decay * teacher + (1 - decay) * student, after each step

Ours: which features (the guided ones of FGNet's Fine-Grained Encoder), the frozen guide, affinities as the output.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from itertools import cycle, islice, product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from skimage.exposure import equalize_adapthist, match_histograms
from torch import Tensor, nn

from fgnet_lib.channel_norm import ChannelNorm
from fgnet_lib.fgnet import FGNet
from fgnet_lib.inference import window_starts
from fgnet_lib.volumes import Region, Volume
from fgnet_lib.weights import PRETRAINED, load_model, read_notes, save_model

SHIPPED_SOURCE = PRETRAINED / "fgnet_mini.safetensors"  # it also holds what FIB-25's training sections look like
TOWARDS_SOURCE = ("voxel_size", "histogram")  # steps that bring a volume to the shipped models' training sections
STEPS = (*TOWARDS_SOURCE, "clahe")  # what may be done to a volume before a model sees it
NORMS = (nn.GroupNorm, nn.LayerNorm, ChannelNorm)
CELL, BLOCK, ORIENTATIONS = 8, 2, 9  # pixels of a cell's side, cells of a block's side, angles from 0 to 180 degrees
LEAST_VARIANCE = 1e-12  # of a constant channel, so that nothing is divided by 0


class Statistics(NamedTuple):
    """Mean and standard deviation of each channel of a feature map, both (C,)."""

    mean: Tensor
    deviation: Tensor


class SourceStatistics(NamedTuple):
    """What travels with a model of the sections that it was trained on, instead of these sections.

    Attributes:
        histogram: How often each of the 256 grey values occurs, (256,).
        levels: Statistics of the guided features at each level, fine to coarse.
    """

    histogram: np.ndarray
    levels: list[Statistics]


def feature_statistics(features: Tensor) -> Statistics:
    """Compute mean and standard deviation of each channel of features (B, C, ...)."""
    values = features.transpose(0, 1).flatten(1)  # (C, n)
    return Statistics(values.mean(1), (values.var(1, correction=0) + LEAST_VARIANCE).sqrt())


def restandardise(features: Tensor, source: Statistics) -> Tensor:
    """Shift and scale each channel of features (B, C, ...) so that it has the source's mean and deviation."""
    per_channel = (-1, *[1] * (features.ndim - 2))
    mean, deviation = (values.view(per_channel) for values in feature_statistics(features))
    return (features - mean) / deviation * source.deviation.view(per_channel) + source.mean.view(per_channel)


def style_loss(levels: Sequence[Tensor], source: Sequence[Statistics]) -> Tensor:
    """Compute how far the statistics of features are from the source's: a sum of squares over channels and levels.

    Args:
        levels: Features (B, C, ...) of each level.
        source: Statistics of each level.

    Returns:
        Scalar; 0, with a gradient of 0, exactly where the statistics are the source's.
    """
    pairs = zip((feature_statistics(level) for level in levels), source, strict=True)
    return torch.stack([(a - b).square().sum() for of, to in pairs for a, b in zip(of, to, strict=True)]).sum()


def oriented_gradients(sections: Tensor) -> Tensor:
    """Compute histograms of oriented gradients (HOG, Dalal and Triggs 2005), differentiable with respect to strength.

    In each cell of 8 x 8 pixels, gradients are added up by their angle in nine bins from 0 to 180 degrees; a block of
    2 x 2 cells is scaled to length 1. So a section a x + b has the same histograms as x. Angles have no sign, so a dark
    line on bright ground counts as a bright line on dark ground does.

    Args:
        sections: Float (n, H, W), at least 16 x 16 pixels.

    Returns:
        (n, blocks along y, blocks along x, 36).
    """
    y, x = (torch.zeros_like(sections) for _ in range(2))
    y[:, 1:-1] = sections[:, 2:] - sections[:, :-2]
    x[:, :, 1:-1] = sections[:, :, 2:] - sections[:, :, :-2]
    strength = (y.square() + x.square() + 1e-20).sqrt()  # the derivative of a root is not finite at 0
    angles = torch.atan2(y.detach(), x.detach()).rad2deg() % 180
    bins = (angles * (ORIENTATIONS / 180)).long().clamp(max=ORIENTATIONS - 1)
    by_angle = strength[:, None] * F.one_hot(bins, ORIENTATIONS).movedim(-1, 1)
    cells = F.avg_pool2d(by_angle, CELL)  # (n, 9, H / 8, W / 8)
    blocks = cells.unfold(2, BLOCK, 1).unfold(3, BLOCK, 1).permute(0, 2, 3, 4, 5, 1).flatten(3)
    return F.normalize(blocks, dim=-1, eps=1e-9)


def structure_loss(logits: Tensor, raw: Tensor) -> Tensor:
    """Compute how much the edges of a predicted boundary point in other directions than those of the section.

    Args:
        logits: Of affinities (B, 3, D, H, W).
        raw: (B, 1, D, H, W).

    Returns:
        Scalar from 0 to 2: the mean over blocks of ``|HOG(section) - HOG(boundary)|^2``, where the boundary is
        1 - the mean of the affinities along y and x.
    """
    boundary = 1 - logits[:, 1:].sigmoid().mean(1)
    return (oriented_gradients(boundary.flatten(0, 1)) - oriented_gradients(raw.flatten(0, 2))).square().sum(-1).mean()


@contextmanager
def observe_levels(model: FGNet) -> Iterator[list[Tensor]]:
    """Open a list that holds the guided features of each level, fine to coarse, after every call of the model."""
    levels: list[Tensor] = []

    def keep(_: nn.Module, __: Any, output: tuple[list[Tensor], Any]) -> None:
        levels[:] = output[0]

    hook = _fine_encoder(model).register_forward_hook(keep)
    try:
        yield levels
    finally:
        hook.remove()


@contextmanager
def standardise_levels(model: FGNet, source: Sequence[Statistics]) -> Iterator[None]:
    """While this is open, the model's guided features have the source's statistics in every window.

    The model keeps its weights. Predict with `engine="torch"`: other engines do not see what is changed here.
    """

    def replace(_: nn.Module, __: Any, output: tuple[list[Tensor], Any]) -> tuple[list[Tensor], Any]:
        levels, attention = output
        return [restandardise(*pair) for pair in zip(levels, source, strict=True)], attention

    hook = _fine_encoder(model).register_forward_hook(replace)
    try:
        yield
    finally:
        hook.remove()


def _fine_encoder(model: FGNet) -> nn.Module:
    if not model.config.refined:
        raise ValueError("the model has no Fine-Grained Encoder, whose features are adapted here")
    return model.fine_encoder


@torch.no_grad()
def measure_source(model: FGNet, raw: np.ndarray, windows: Iterable[Region]) -> SourceStatistics:
    """Measure what a model's training sections look like to it; no section is kept.

    Args:
        model: In eval mode, on the CPU.
        raw: Sections that it was trained on, uint8 (z, y, x).
        windows: Of these sections; statistics are means over the windows.

    Raises:
        ValueError: The model has no Fine-Grained Encoder.
    """
    seen = []
    with observe_levels(model) as levels:
        for window in windows:
            model(_as_tensor(raw[window]))
            seen.append([feature_statistics(level) for level in levels])
    means = [
        Statistics(*(torch.stack(values).mean(0) for values in zip(*of_level, strict=True)))
        for of_level in zip(*seen, strict=True)
    ]
    return SourceStatistics(np.bincount(np.asarray(raw[:]).ravel(), minlength=256), means)


def store_source(path: str | Path, source: SourceStatistics, about: dict[str, Any]) -> None:
    """Put a source into a model's own file, where it takes some ten kilobytes; the weights stay as they are.

    Args:
        path: Of a model that `save_model` wrote.
        source: The source.
        about: What JSON can hold about it, such as which sections it is of.
    """
    levels = [{name: values.tolist() for name, values in level._asdict().items()} for level in source.levels]
    entry = {"histogram": source.histogram.tolist(), "levels": levels, "of": about}
    save_model(load_model(path), path, read_notes(path) | {"source": entry})


def read_source(path: str | Path) -> SourceStatistics:
    """Read what `store_source` put into a model's file.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no model of ours, or holds no source.
    """
    try:
        entry = read_notes(path)["source"]
        levels = [Statistics(torch.tensor(a["mean"]), torch.tensor(a["deviation"])) for a in entry["levels"]]
        return SourceStatistics(np.array(entry["histogram"], dtype=np.int64), levels)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} holds no statistics of a source ({error}); write them with store_source") from error


def match_histogram(raw: np.ndarray, histogram: np.ndarray) -> np.ndarray:
    """Give a volume (uint8) the grey values of the source in the same order: its darkest become the source's darkest.

    Args:
        raw: uint8 (z, y, x).
        histogram: Of the source, (256,).

    Returns:
        uint8 (z, y, x).
    """
    shares = np.round(histogram / histogram.sum() * 1e5).astype(int)
    reference = np.repeat(np.arange(256, dtype=np.uint8), shares)
    return np.round(match_histograms(raw.ravel(), reference)).astype(np.uint8).reshape(raw.shape)


def equalise_locally(raw: np.ndarray) -> np.ndarray:
    """Equalise the contrast of each section in its surroundings (CLAHE: contrast-limited, adaptive, by histograms).

    A section of one grey value, such as a lost one, stays as it is.
    """
    out = raw.copy()
    for section in out:
        if np.ptp(section):
            section[:] = np.round(255 * equalize_adapthist(section, clip_limit=0.01))
    return out


def parse_steps(adapt: Any, checkpoint: Path) -> tuple[str, ...]:
    """Read the steps that a person gives as ADAPT, as in "none", "clahe" or "voxel_size, histogram".

    Args:
        adapt: Names of `STEPS`, in a text or a list; "none" or nothing for no step.
        checkpoint: The model's file.

    Returns:
        The steps in the order given, each once.

    Raises:
        ValueError: Unknown steps, or steps towards training sections of which nothing is known: those of a model
            that does not come with the repository.

    Example:
        >>> parse_steps("voxel_size clahe", PRETRAINED / "fgnet_mini.safetensors")
        ('voxel_size', 'clahe')
    """
    words = " ".join(map(str, adapt)) if isinstance(adapt, list | tuple) else str("" if adapt is None else adapt)
    steps = tuple(dict.fromkeys(words.replace(",", " ").replace("+", " ").split()))
    steps = () if steps == ("none",) else steps
    if unknown := [step for step in steps if step not in STEPS]:
        raise ValueError(
            f"ADAPT is {adapt!r}, and {unknown[0]!r} is no step: give none, or one or several of {', '.join(STEPS)}, "
            "as in 'voxel_size clahe'"
        )
    towards = [step for step in steps if step in TOWARDS_SOURCE]
    if towards and checkpoint.parent != PRETRAINED:
        raise ValueError(
            f"ADAPT is {adapt!r}, but {towards[0]} needs the sections that a model was trained on, and those of "
            f"{checkpoint} are not known: give clahe or none, or a CHECKPOINT that comes with the repository"
        )
    return steps


def change_grey_values(raw: np.ndarray, steps: Sequence[str], source: SourceStatistics) -> np.ndarray:
    """Match the histogram of a volume and apply CLAHE, if `steps` names them, in its order.

    Args:
        raw: uint8 (z, y, x); it stays as it is.
        steps: Further names change no grey values.
        source: The source, whose histogram is matched.

    Returns:
        uint8 (z, y, x); `raw` itself where no step changes it.
    """
    for step in steps:
        if step == "histogram":
            raw = match_histogram(raw, source.histogram)
        elif step == "clahe":
            raw = equalise_locally(raw)
    return raw


def restain(volume: Volume, seed: int = 0) -> Volume:
    """Show the tissue of a volume as another laboratory might: paler, less sharp, unevenly lit; labels stay.

    Returns:
        A volume with grey values 90 + 0.45 g, blurred by 0.8 pixels, darker by up to 50 grey values in places.
    """
    shade = np.random.default_rng(seed).normal(size=(1, 3, 3))
    zoom = [1, *(n / 3 for n in volume.shape[1:])]
    light = ndimage.zoom(shade, zoom, order=1, grid_mode=True, mode="nearest")
    light = 50 * (light - light.max()) / np.ptp(light)
    pale = 90 + 0.45 * ndimage.gaussian_filter(volume.raw.astype(np.float32), (0, 0.8, 0.8)) + light
    raw = np.clip(np.round(pale), 0, 255).astype(np.uint8)
    return Volume(raw, volume.voxel_size, volume.labels, volume.offset, f"{volume.name}, restained")


@dataclass(frozen=True)
class TargetConfig:
    """How a model is adapted to a target.

    Attributes:
        style: Weight of the style loss.
        structure: Weight of the structure loss.
        rate: Learning rate of Adam.
        decay: Of the EMA, from 0 (the teacher is the student) to below 1.
        steps: Windows that arrive, one for each gradient step.
        window: Voxels (z, y, x) of a window.
    """

    style: float = 1.0
    structure: float = 1.0
    rate: float = 1e-3
    decay: float = 0.9
    steps: int = 24
    window: tuple[int, int, int] = (8, 96, 96)


def norm_parameters(model: nn.Module) -> list[nn.Parameter]:
    """List weights and biases of all norm layers behind the guide, which itself stays frozen."""
    modules = [module for name, module in model.named_modules() if not name.startswith("encoder.")]
    return [parameter for module in modules if isinstance(module, NORMS) for parameter in module.parameters()]


@torch.no_grad()
def average_into(teacher: Iterable[Tensor], student: Iterable[Tensor], decay: float) -> None:
    """Move a teacher's weights towards a student's, in place: decay * teacher + (1 - decay) * student."""
    for old, new in zip(teacher, student, strict=True):
        old.lerp_(new, 1 - decay)  # in this form weights that are equal stay equal to the last bit


def arriving_windows(shape: Sequence[int], window: Sequence[int], seed: int) -> list[Region]:
    """List windows that overlap by half and cover a volume, in the order that belongs to a seed.

    Args:
        shape: Voxels (z, y, x) of the volume.
        window: Voxels (z, y, x); as many as the volume has where that is less.
        seed: Of the order.
    """
    size = np.minimum(window, shape)
    starts = product(*(window_starts(int(n), int(s), 0.5) for n, s in zip(shape, size, strict=True)))
    windows = [Region.at(start, size) for start in starts]
    return [windows[k] for k in np.random.default_rng(seed).permutation(len(windows))]


def adapt_norms(
    model: FGNet, raw: np.ndarray, source: Sequence[Statistics], config: TargetConfig, seed: int
) -> tuple[FGNet, list[dict[str, float]]]:
    """Adapt the norm layers of a model to a target, window by window, without labels.

    Args:
        model: On the CPU; it stays as it is.
        raw: The target, uint8 (z, y, x).
        source: Statistics of the source, of each level.
        config: Losses, rate, steps.
        seed: Of the order in which windows arrive.

    Returns:
        The teacher, in eval mode, and for each step both losses of the student before that step, and its "boundary":
        the mean of 1 - the affinities along y and x in that window, from 0 to 1.

    Raises:
        ValueError: The model has no Fine-Grained Encoder.
    """
    student, teacher = deepcopy(model).eval(), deepcopy(model).eval()
    student.freeze_encoder()
    student.requires_grad_(False)
    learned = norm_parameters(student)
    for parameter in learned:
        parameter.requires_grad_(True)
    optimizer, losses = torch.optim.Adam(learned, lr=config.rate), []
    windows = arriving_windows(raw.shape, config.window, seed)
    with observe_levels(student) as levels:
        for window in islice(cycle(windows), config.steps):
            section = _as_tensor(raw[window])
            output = student(section)
            style, structure = style_loss(levels, source), structure_loss(output.refined, section)
            boundary = 1 - output.refined[:, 1:].detach().sigmoid().mean()
            losses.append({"style": style.item(), "structure": structure.item(), "boundary": boundary.item()})
            optimizer.zero_grad()
            (config.style * style + config.structure * structure).backward()
            optimizer.step()
            average_into(norm_parameters(teacher), learned, config.decay)
    return teacher, losses


def _as_tensor(raw: np.ndarray) -> Tensor:
    """Sections uint8 (z, y, x) as float (1, 1, z, y, x) from 0 to 1."""
    return torch.from_numpy(np.ascontiguousarray(raw))[None, None].float() / 255
