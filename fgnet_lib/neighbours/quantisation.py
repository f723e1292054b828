"""Fewer bits: weights and activations rounded to a few levels, and what repairs the loss without training again.

A layer's activations have one step (per tensor), because then its product is one of integers, and its weights have one
step for each output channel. Channels with a wide range make that one step coarse. Two changes, which do nothing in
floating point, move the width from the activations into the weights: SmoothQuant (Xiao et al. 2023) scales each
channel; PQ-SAM (Liu et al., ECCV 2024; no public code) shifts and scales groups of channels and learns both, block by
block. Rounding is simulated in floating point; `integer_linear` computes a layer with integers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from scipy.cluster.hierarchy import fcluster, linkage
from torch import Tensor, nn
from torch.func import functional_call

from fgnet_lib.fgnet import FGNet
from fgnet_lib.natural_encoder import GUIDES, NaturalEncoder

Range = Literal["min-max", "percentile"]
SAMPLES = 4096  # rows of activations kept of each layer
ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)
KEPT = 0.9995  # share of the values that a percentile range covers
# Few weights, whose errors do most harm: the first and the last layer, and convolutions that see one channel alone.
KEEP_8_BITS = ("stem", "head", "depthwise")


class Quantiser(nn.Module):
    """Round values to 2^bits levels, `step * (code - zero)`, of which one is exactly 0.

    Gradients pass the rounding as if it were not there (straight through), so that the step can be learned.

    Attributes:
        bits: 2 to 8.
        log_step: Logarithm of the distance of two levels; its shape broadcasts to that of the values.
        zero: The code of the level 0, of the same shape.

    Example:
        >>> quantiser = Quantiser(torch.tensor(-1.0), torch.tensor(2.0), bits=2)
        >>> quantiser(torch.tensor([-3.0, -0.4, 0.6, 1.9])).tolist()
        [-1.0, 0.0, 1.0, 2.0]
    """

    zero: Tensor

    def __init__(self, low: Tensor, high: Tensor, bits: int) -> None:
        """Lay the levels from `low` to `high`, a range that is widened until it contains 0."""
        super().__init__()
        if not 2 <= bits <= 8:
            raise ValueError(f"bits must be from 2 to 8; got {bits}")
        self.bits = bits
        low, high = low.clamp(max=0), high.clamp(min=0)
        step = ((high - low) / (2**bits - 1)).clamp(min=1e-8)  # of a channel that is always 0
        self.log_step = nn.Parameter(step.log())
        self.register_buffer("zero", (-low / step).round())

    @property
    def step(self) -> Tensor:
        """The distance of two levels."""
        return self.log_step.exp()

    def codes(self, x: Tensor) -> Tensor:
        """Compute the code of each value: a whole number from 0 to 2^bits - 1, as float."""
        scaled = x / self.step
        rounded = scaled + (scaled.round() - scaled).detach()
        return (rounded + self.zero).clamp(0, 2**self.bits - 1)

    def forward(self, x: Tensor) -> Tensor:
        """Round each value to its level; values outside of the range become the first or the last level."""
        return (self.codes(x) - self.zero) * self.step


def integer_linear(x: Tensor, weight: Tensor, bias: Tensor, inputs: Quantiser, weights: Quantiser) -> Tensor:
    """Compute a linear layer with whole numbers inside: what `x` and `weight` become after rounding, multiplied.

    Args:
        x: Activations (n, C).
        weight: (K, C).
        bias: (K,).
        inputs: Quantiser of `x`, one step for all.
        weights: Quantiser of `weight`, steps (K, 1) or one for all.

    Returns:
        float (n, K); only the last line of the computation is in floating point.
    """
    x_codes = (inputs.codes(x) - inputs.zero).to(torch.int32)
    weight_codes = (weights.codes(weight) - weights.zero).to(torch.int32)
    total = x_codes @ weight_codes.T  # int32: 8 by 8 bits, summed over up to 2^15 channels, cannot overflow
    return total * (inputs.step * weights.step).reshape(1, -1) + bias


@dataclass
class Activations:
    """What a layer was given while it was observed.

    Attributes:
        rows: A sample of positions (n, C).
        low: The least value of each channel, (C,).
        high: The largest value of each channel, (C,).
    """

    rows: Tensor
    low: Tensor
    high: Tensor


@torch.no_grad()
def observe(model: nn.Module, run: Callable[[], Any], layers: Sequence[str]) -> dict[str, Activations]:
    """Record the inputs of layers while `run` calls the model.

    Args:
        model: Contains the layers.
        run: Calls `model`, once or several times.
        layers: Names of linear layers or convolutions.

    Returns:
        Layer -> its activations; a sample of at most `SAMPLES` rows, always the same positions.
    """
    seen: dict[str, list[Tensor]] = {name: [] for name in layers}
    bounds: dict[str, list[Tensor]] = {name: [] for name in layers}

    def hook(name: str) -> Callable:
        def record(layer: nn.Module, given: tuple[Tensor]) -> None:
            rows = _by_channel(given[0], layer)
            bounds[name].append(torch.stack([rows.amin(0), rows.amax(0)]))
            seen[name].append(rows[:: max(1, len(rows) // SAMPLES)].clone())

        return record

    handles = [model.get_submodule(name).register_forward_pre_hook(hook(name)) for name in layers]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    kept = {}
    for name, parts in seen.items():
        rows, low_high = torch.cat(parts), torch.stack(bounds[name])
        kept[name] = Activations(rows[:: -(-len(rows) // SAMPLES)], low_high[:, 0].amin(0), low_high[:, 1].amax(0))
    return kept


def outlier_ratio(activations: Activations) -> float:
    """Compute how many times as wide as the median channel the widest channel of a layer's input is."""
    width = activations.high - activations.low
    return float(width.max() / width.median().clamp(min=1e-8))


def _by_channel(x: Tensor, layer: nn.Module) -> Tensor:
    """Inputs of a layer as rows (n, C): a linear layer has its channels last, a convolution second."""
    return (x if isinstance(layer, nn.Linear) else x.movedim(1, -1)).reshape(-1, _channels(layer))


def _channels(layer: nn.Module) -> int:
    return layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels


def is_pointwise(layer: nn.Module) -> bool:
    """Whether a layer mixes the channels of one position only; then a shift and a scale of its input are harmless."""
    return isinstance(layer, nn.Linear) or (layer.groups == 1 and max(layer.kernel_size) == max(layer.stride) == 1)


def layer_names(model: nn.Module, part: str = "") -> list[str]:
    """Name the linear layers and convolutions of a model whose name begins with `part`, in the order of building."""
    kinds = (nn.Linear, nn.Conv2d, nn.Conv3d)
    return [name for name, layer in model.named_modules() if isinstance(layer, kinds) and name.startswith(part)]


def value_range(activations: Activations, how: Range) -> tuple[Tensor, Tensor]:
    """Choose the range of one quantiser for all channels: from the least to the largest value, or of `KEPT` of them."""
    if how == "min-max":
        return activations.low.amin(), activations.high.amax()
    values = activations.rows.flatten().numpy()
    low, high = np.quantile(values, [(1 - KEPT) / 2, (1 + KEPT) / 2])
    return torch.tensor(low, dtype=torch.float32), torch.tensor(high, dtype=torch.float32)


@dataclass
class Transform:
    """A shift and a scale of each group of a layer's input channels: X^ = (X - shift) / scale.

    Attributes:
        group: Of each channel, int64 (C,).
        shift: Of each group, (k,).
        scale: Of each group, positive (k,).
    """

    group: Tensor
    shift: Tensor
    scale: Tensor


def fold_transform(weight: Tensor, bias: Tensor, transform: Transform) -> tuple[Tensor, Tensor]:
    """Change a linear layer so that it computes from X^ = (X - z) / s what it computed from X.

    Args:
        weight: W, (K, C).
        bias: b, (K,).
        transform: z and s of each channel.

    Returns:
        W^ = W s and b^ = b + W z.
    """
    z, s = transform.shift[transform.group], transform.scale[transform.group]
    return weight * s, bias + weight @ z


def identity(channels: int) -> Transform:
    """Return the transform that changes nothing: one group, shift 0, scale 1."""
    return Transform(torch.zeros(channels, dtype=torch.int64), torch.zeros(1), torch.ones(1))


def smooth(activations: Activations, weight: Tensor, alpha: float = 0.5) -> Transform:
    """Choose SmoothQuant's scale of each channel: max|X|^alpha / max|W|^(1 - alpha); no shift.

    Args:
        activations: Of the layer.
        weight: (K, C).
        alpha: 0 leaves the width in the activations, 1 moves all of it into the weights.
    """
    width = torch.maximum(-activations.low, activations.high).clamp(min=1e-5)
    scale = width**alpha / weight.abs().amax(0).clamp(min=1e-5) ** (1 - alpha)
    return Transform(torch.arange(len(scale)), torch.zeros_like(scale), scale)


def group_channels(activations: Activations, groups: int, alpha: float = 0.5) -> Transform:
    """Choose groups of channels with similar ranges, and a first shift and scale of each.

    Extremes are cut off first (values outside of `KEPT` of a channel's own), so that a single voxel does not found a
    group. Ranges are compared after asinh, which is linear near 0 and logarithmic far away. The shift is the middle of
    the group's range.

    Args:
        activations: Of the layer.
        groups: k; fewer where there are fewer channels.
        alpha: The scale is the group's width, in units of a typical channel's, to this power: 0 leaves the width in the
            activations, 1 moves all of it into the weights.
    """
    cut = np.quantile(activations.rows.numpy(), [(1 - KEPT) / 2, (1 + KEPT) / 2], axis=0)  # (2, C)
    typical = max(float(np.median(np.diff(cut, axis=0))) / 2, 1e-5)
    group = torch.zeros(cut.shape[1], dtype=torch.long)
    if len(group) > 1:
        tree = linkage(np.arcsinh(cut.T / typical), method="ward")
        group = torch.from_numpy(fcluster(tree, groups, criterion="maxclust") - 1).long()
    low, high = torch.from_numpy(cut).float()
    ends = torch.tensor([[low[group == k].min(), high[group == k].max()] for k in range(int(group.max()) + 1)])
    width = (ends[:, 1] - ends[:, 0]).clamp(min=1e-5) / 2
    return Transform(group, ends.mean(1), (width / typical) ** alpha)


class QuantisedLayer(nn.Module):
    """A linear layer or convolution whose input and weights are rounded, after a shift and scale of its input.

    Attributes:
        layer: With its original weights.
        group: Of each input channel.
        shift: Of each group; learned by `learn_blocks`.
        log_scale: Logarithm of the scale of each group; learned too.
        inputs: The quantiser of the input.
        weights: The quantiser of the weights, a step for each output channel.
    """

    group: Tensor

    def __init__(self, layer: nn.Module, transform: Transform, inputs: Quantiser, weight_bits: int) -> None:
        super().__init__()
        self.layer, self.inputs = layer, inputs
        self.register_buffer("group", transform.group)
        self.shift, self.log_scale = nn.Parameter(transform.shift.clone()), nn.Parameter(transform.scale.log())
        largest = self.folded()[0].detach().flatten(1).abs().amax(1)
        largest = largest.reshape(-1, *[1] * (layer.weight.ndim - 1))
        self.weights = Quantiser(-largest, largest, weight_bits)

    def folded(self) -> tuple[Tensor, Tensor]:
        """Return the layer's weights and bias with the transform folded in, before rounding."""
        weight, bias = self.layer.weight, self.layer.bias
        if not is_pointwise(self.layer):
            return weight, bias
        now = Transform(self.group, self.shift, self.log_scale.exp())
        flat, bias = fold_transform(weight.flatten(1), bias, now)
        return flat.reshape(weight.shape), bias

    def forward(self, x: Tensor) -> Tensor:
        if is_pointwise(self.layer):
            per_channel = (-1,) if isinstance(self.layer, nn.Linear) else (-1, *[1] * (x.ndim - 2))
            shift, scale = self.shift[self.group], self.log_scale[self.group].exp()
            x = (x - shift.reshape(per_channel)) / scale.reshape(per_channel)
        weight, bias = self.folded()
        return functional_call(self.layer, {"weight": self.weights(weight), "bias": bias}, (self.inputs(x),))


@dataclass(frozen=True)
class Recipe:
    """How to quantise.

    Attributes:
        weight_bits: Of the weights; the layers of `KEEP_8_BITS` keep 8.
        input_bits: Of the activations; likewise.
        how: How the range of the activations is chosen.
        transform: "none", "smooth" (SmoothQuant), or "groups" (a shift and scale of `groups` groups of channels).
        groups: k.
        steps: Steps in which `learn_blocks` learns each block; 0 learns nothing.
    """

    weight_bits: int = 8
    input_bits: int = 8
    how: Range = "min-max"
    transform: Literal["none", "smooth", "groups"] = "none"
    groups: int = 16
    steps: int = 0


@torch.no_grad()
def quantise_layers(model: nn.Module, recipe: Recipe, run: Callable[[nn.Module], Any], part: str = "") -> nn.Module:
    """Return a copy of a model with rounded weights and activations.

    Args:
        model: In eval mode; its biases are all there, as FGNet's are.
        recipe: How.
        run: Calls a model on sections that show what its activations are like (calibration).
        part: The beginning of the names of the layers that are rounded; empty for all.
    """
    activations = observe(model, lambda: run(model), layer_names(model, part))
    copy = deepcopy(model)
    for name, seen in activations.items():
        layer = copy.get_submodule(name)
        spared = name.endswith(KEEP_8_BITS)
        own = replace(recipe, weight_bits=8, input_bits=8) if spared else recipe
        plain = spared or not is_pointwise(layer)
        transform = identity(_channels(layer)) if plain else choose_transform(seen, layer, own)
        copy.set_submodule(name, _round_layer(layer, seen, transform, own))
    return copy.eval().requires_grad_(False)


def _round_layer(layer: nn.Module, seen: Activations, transform: Transform, recipe: Recipe) -> QuantisedLayer:
    """Round a layer; the range of its input is that of the activations after the transform."""
    shift, scale = transform.shift[transform.group], transform.scale[transform.group]
    moved = Activations(*((values - shift) / scale for values in (seen.rows, seen.low, seen.high)))
    inputs = Quantiser(*value_range(moved, recipe.how), recipe.input_bits)
    return QuantisedLayer(layer, transform, inputs, recipe.weight_bits)


def choose_transform(seen: Activations, layer: nn.Module, recipe: Recipe) -> Transform:
    """Choose the transform that a recipe names for one layer, before anything is learned.

    Of groups it tries several powers `ALPHAS`, and keeps the one with which the rounded layer is nearest to the layer.
    """
    weight, bias = layer.weight.detach().flatten(1), layer.bias.detach()
    if recipe.transform == "smooth":
        return smooth(seen, weight)
    if recipe.transform == "none":
        return identity(weight.shape[1])
    wanted = nn.functional.linear(seen.rows, weight, bias)
    best, least = identity(weight.shape[1]), float("inf")
    for alpha in ALPHAS:
        transform = group_channels(seen, recipe.groups, alpha)
        rounded = _round_layer(_linear(weight, bias), seen, transform, recipe)
        error = float((rounded(seen.rows) - wanted).square().mean())
        if error < least:
            best, least = transform, error
    return best


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.weight, layer.bias = nn.Parameter(weight), nn.Parameter(bias)
    return layer


def learn_blocks(
    quantised: NaturalEncoder, original: NaturalEncoder, raw: Tensor, steps: int, rate: float = 0.01
) -> None:
    """Learn shifts, scales and step sizes, one block of the encoder after the other; the weights stay as they are.

    Each block sees what the rounded blocks before it give, and is to give what the original block gives: no labels, and
    no gradient through more than one block. A block without a rounded layer has nothing to learn.

    Args:
        quantised: Of `quantise_fgnet`; changed.
        original: The same encoder in floating point.
        raw: float (1, 1, D, H, W) in [0, 1], sections to learn from.
        steps: Of Adam, for each block.
        rate: Adam's; all that is learned is a logarithm, or a shift in units of its scale.
    """
    theirs, ours = ([block for stage in encoder.stages for block in stage] for encoder in (original, quantised))
    for before, after in zip(theirs, ours, strict=True):
        layers = [layer for layer in after.modules() if isinstance(layer, QuantisedLayer)]
        if not layers:
            continue
        wanted, given = _passing(original, before, raw)[1], _passing(quantised, after, raw)[0]
        learned = [p for layer in layers for p in (layer.shift, layer.log_scale)]
        learned += [q.log_step for layer in layers for q in (layer.inputs, layer.weights)]
        _fit(after, given, wanted, learned, steps, rate)


def _fit(block: nn.Module, given: Tensor, wanted: Tensor, learned: list[Tensor], steps: int, rate: float) -> None:
    """Fit what is learned of a block by Adam, and keep the best of all steps, the start included.

    An error counts in units of its channel's standard deviation, or a few wide channels would decide alone.
    """
    optimiser = torch.optim.Adam(learned, rate)
    weight = 1 / wanted.var((0, 2, 3), keepdim=True).clamp(min=1e-8)
    best, kept = float("inf"), [p.detach().clone() for p in learned]
    for parameter in learned:
        parameter.requires_grad_(True)
    for step in range(steps + 1):
        loss = ((block(given) - wanted).square() * weight).mean()
        if loss.item() < best:
            best, kept = loss.item(), [p.detach().clone() for p in learned]
        if step < steps:
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    for parameter, value in zip(learned, kept, strict=True):
        parameter.requires_grad_(False).copy_(value)


@torch.no_grad()
def _passing(encoder: NaturalEncoder, block: nn.Module, raw: Tensor) -> tuple[Tensor, Tensor]:
    """Return what a block of an encoder is given, and what it gives."""
    seen: list[tuple[Tensor, Tensor]] = []
    handle = block.register_forward_hook(lambda _, given, result: seen.append((given[0].clone(), result.clone())))
    try:
        encoder(raw)
    finally:
        handle.remove()
    return seen[0]


@torch.no_grad()
def plant_outliers(model: FGNet, channels: int = 2, factor: float = 100.0, seed: int = 0) -> FGNet:
    """Return a copy of a model with outliers in its encoder's activations that computes the same affinities.

    In each stage of the encoder a few channels of what its blocks add up become `factor` times as large, and the
    columns of all layers that read them `factor` times as small. The outliers are planted: ReLU6 keeps the values
    between a block's own layers from 0 to 6, so there the encoder has none of its own.

    Args:
        model: With the encoder that learned from photographs.
        channels: How many channels of each stage.
        factor: How much larger.
        seed: Which channels.
    """
    copy, generator = deepcopy(model), torch.Generator().manual_seed(seed)
    stages = list(copy.encoder.stages)
    for k, stage in enumerate(stages):
        readers = [block.widen for block in (*stage[1:], *(stages[k + 1][:1] if k + 1 < len(stages) else []))]
        if k in GUIDES:
            readers.append(copy.project[GUIDES.index(k)])
            readers += _read_guide(copy, GUIDES.index(k))
        chosen = torch.randperm(len(stage[0].narrow.bias), generator=generator)[:channels]
        for block in stage:
            block.narrow.weight[chosen] *= factor
            block.narrow.bias[chosen] *= factor
        for reader in readers:
            reader.weight[:, chosen] /= factor
    return copy


def _read_guide(model: FGNet, level: int) -> list[nn.Module]:
    """The layers of attention that read a map of the guide."""
    if not model.config.refined:
        return []
    attention = model.fine_encoder.guides[level]
    return [layer for layer in (attention.from_guide, attention.value) if layer is not None]


def megabytes(model: nn.Module) -> float:
    """Count what the weights of a model need on disk, in 10^6 bytes.

    A rounded weight needs its bits, a step or a zero of a quantiser, a shift, a scale and any other number 4 bytes, the
    group of a channel 1.
    """
    size = 0.0
    inside = set()
    for layer in (module for module in model.modules() if isinstance(module, QuantisedLayer)):
        size += layer.layer.weight.numel() * layer.weights.bits / 8 + 4 * layer.layer.bias.numel() + len(layer.group)
        size += 4 * sum(2 * quantiser.zero.numel() for quantiser in (layer.inputs, layer.weights))
        size += 4 * 2 * layer.shift.numel()
        inside |= {id(parameter) for parameter in layer.parameters()}
    return (size + 4 * sum(p.numel() for p in model.parameters() if id(p) not in inside)) / 1e6


def quantise_fgnet(model: FGNet, recipe: Recipe, raw: Tensor, part: str = "encoder") -> FGNet:
    """Return a copy of an FGNet with rounded weights and activations, calibrated and learned on a crop.

    Args:
        model: In eval mode, on the CPU, with the encoder that learned from photographs.
        recipe: How.
        raw: float (1, 1, D, H, W) in [0, 1], of the training part; no labels are needed.
        part: "encoder" for the encoder alone, empty for the whole model.
    """
    quantised = quantise_layers(model, recipe, lambda each: each(raw), part)
    if recipe.steps:
        learn_blocks(quantised.encoder, model.encoder, raw, recipe.steps)
    return quantised
