"""Learn from few labelled sections: consistency between two views, weights carried from 2D to 3D, bending kernels.

From the equations of three papers, in the order of this file:

    consistency     MS-Con (Chen et al., ICASSP 2024, arXiv 2308.09917): two augmented views -> the clean patch (MSE),
                    1 - cosine of their features, and of features that cross-attention has matched softly
    contrast        released with MS-Con: -mean log softmax over the similarities of positive pairs alone;
                    InfoNCE (van den Oord et al. 2018, arXiv 1807.03748): over each positive and its negatives
    inflation       w3[k // 2] = w2 (centre: Arnab et al. 2021, arXiv 2103.15691) or w3 = w2 / k (average: Carreira and
                    Zisserman 2017, arXiv 1705.07750); DINeuro (Cheng et al. 2024, arXiv 2410.22078) inflates a DINO
    snake           offsets accumulate along an axis, at most 1 a step, and are sampled trilinearly (Qi et al. 2023,
                    arXiv 2307.08388; DINeuro's tubular kernels)

Ours: the network (FGNet's Fine-Grained Encoder and decoder, a plain 3D U-Net), how views are made, the pooling before
attention, the weight of each loss, the 3D form of EfficientNet-Lite0, and that a snake begins as a straight kernel.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fgnet_lib.fgnet import FGNet
from fgnet_lib.natural_encoder import DEVIATION, GUIDES, MEAN, NaturalEncoder

Inflation = Literal["centre", "average"]

LEVELS = (2, 3, 4)  # of the pyramid, whose features should be consistent: strides 4, 8, 16
TOKENS = (4, 6, 6)  # cells (z, y, x) in which features are averaged before attention, whose cost grows with the square
CONSISTENCY = 0.1  # weight of both consistency terms beside the reconstruction
SHIFT, NOISE, GAIN = 0.1, 0.1, 0.2  # of a strong view, in grey values from 0 to 1; a weak view has half of each


# Consistency: both views must lead back to the clean patch, and to the same features.


class Reconstruction(nn.Module):
    """A U-Net that paints grey values instead of affinities; `transfer_weights` carries what it has learned on."""

    def __init__(self, network: FGNet) -> None:
        """Give a network a head for grey values, in place.

        Args:
            network: Without SAM2, so that all of it is pretrained.

        Raises:
            ValueError: The network has an encoder of SAM2's kind.
        """
        super().__init__()
        if network.encoder is not None:
            raise ValueError("only a plain U-Net is pretrained here: build it with encoder=None")
        self.network = network
        decoder = network.refined_decoder
        decoder.head = nn.Conv3d(network.config.widths[0], 1, 1).to(decoder.head.weight.device)

    def reconstruct(self, raw: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Compute grey values and features of a patch.

        Args:
            raw: float (B, 1, D, H, W) in [0, 1]; H and W multiples of 16.

        Returns:
            Grey values (B, 1, D, H, W) in standard deviations of the patch, and the features of `LEVELS`.
        """
        pyramid, _ = self.network.fine_encoder(raw, [])
        return self.network.refined_decoder(list(pyramid)), [pyramid[level] for level in LEVELS]

    def forward(self, raw: Tensor, hidden: Tensor) -> Tensor:
        """Paint the grey values of a patch whose hidden part (bool, of the same shape) the network does not see."""
        return self.reconstruct(torch.where(hidden, raw.mean(dim=(2, 3, 4), keepdim=True), raw))[0]


def distort(raw: Tensor, strength: float) -> Tensor:
    """Make a view of patches: another contrast and brightness, and noise; ours, and by torch's random numbers.

    Args:
        raw: float (B, 1, D, H, W) in [0, 1].
        strength: 1 for a strong view, 0 leaves the patches as they are.
    """
    gain, shift = (torch.rand(2, len(raw), 1, 1, 1, 1, device=raw.device) * 2 - 1) * strength
    noise = NOISE * strength * torch.randn_like(raw)
    return ((1 + GAIN * gain) * raw + SHIFT * shift + noise).clamp(0, 1)


def match_softly(queries: Tensor, keys: Tensor) -> Tensor:
    """Compute for each token the mixture of another view's tokens that resembles it: softmax(q k^T / sqrt(C)) k.

    Args:
        queries: (B, N, C), tokens of one view.
        keys: (B, M, C), those of the other.

    Returns:
        (B, N, C); each token lies in the convex hull of `keys`.
    """
    return F.scaled_dot_product_attention(queries, keys, keys)


def inconsistency(first: Tensor, second: Tensor) -> Tensor:
    """Compute how far the features of two views disagree: 1 - cosine at each place, and after soft matching.

    Args:
        first: (B, C, D, h, w), features of one view.
        second: Those of the other, of the same shape.

    Returns:
        A scalar from 0 to 4; 0 for the same features in all places.
    """
    at_place = 1 - F.cosine_similarity(first, second, dim=1).mean()
    a, b = (F.adaptive_avg_pool3d(features, TOKENS).flatten(2).transpose(1, 2) for features in (first, second))
    matched = 1 - F.cosine_similarity(a, match_softly(a, b), dim=2).mean()
    return at_place + matched


def consistency_loss(model: Reconstruction, batch: tuple[Tensor, ...]) -> Tensor:
    """Compute MS-Con's loss of a batch: both views are reconstructed, and their features agree at several scales.

    Args:
        model: The network that is pretrained.
        batch: Raw first, float (B, 1, D, H, W) in [0, 1]; what follows is not looked at.
    """
    raw = batch[0]
    deviation, mean = torch.std_mean(raw, dim=(2, 3, 4), keepdim=True)
    clean = (raw - mean) / deviation.clamp(min=1e-3)
    (first, of_first), (second, of_second) = (model.reconstruct(distort(raw, strength)) for strength in (0.5, 1.0))
    terms = [inconsistency(a, b) for a, b in zip(of_first, of_second, strict=True)]
    return F.mse_loss(first, clean) + F.mse_loss(second, clean) + CONSISTENCY * torch.stack(terms).mean()


# Contrast: what the released loss rewards, and what InfoNCE does.


def released_contrast(similarities: Tensor) -> Tensor:
    """Compute the contrastive loss as it was released: a softmax over the positive pairs alone.

    It is least, log N, where all similarities are equal, whatever their value is. So it does not reward alignment.

    Args:
        similarities: (N,), of each positive pair, divided by the temperature.

    Example:
        >>> print(f"{released_contrast(torch.zeros(4)):.3f} {released_contrast(torch.full((4,), 9.0)):.3f}")
        1.386 1.386
    """
    return -F.log_softmax(similarities, dim=0).mean()


def info_nce(similarities: Tensor) -> Tensor:
    """Compute InfoNCE: each sample of one view should resemble its own partner more than all others.

    Args:
        similarities: (N, N), of samples of one view (rows) and of the other; partners on the diagonal; divided by the
            temperature.

    Example:
        >>> print(f"{info_nce(torch.zeros(4, 4)):.3f} {info_nce(9 * torch.eye(4)):.3f}")
        1.386 0.000
    """
    return F.cross_entropy(similarities, torch.arange(len(similarities), device=similarities.device))


# Inflation: weights of two dimensions become weights of three.


def inflate(weight: Tensor, depth: int, way: Inflation) -> Tensor:
    """Make a 3D kernel of a 2D one.

    Args:
        weight: (outputs, inputs, y, x).
        depth: Sections of the new kernel, an odd number.
        way: "centre" puts it into the middle section, so that each section is filtered as before; "average" spreads it
            over all sections.

    Returns:
        (outputs, inputs, depth, y, x).

    Raises:
        ValueError: An even depth or an unknown way.
    """
    if depth < 1 or depth % 2 == 0:
        raise ValueError(f"depth is {depth}; a kernel with a middle section has an odd depth")
    if way not in get_args(Inflation):
        raise ValueError(f"way is {way!r}; choose one of {', '.join(get_args(Inflation))}")
    if way == "average":
        return weight[:, :, None].repeat(1, 1, depth, 1, 1) / depth
    inflated = weight.new_zeros((*weight.shape[:2], depth, *weight.shape[2:]))
    inflated[:, :, depth // 2] = weight
    return inflated


def without_depth(network: nn.Module) -> nn.Module:
    """Build the 2D twin of a 3D network: a copy whose kernels see their own section only, with new random weights."""
    twin = deepcopy(network)
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Conv3d) and layer.kernel_size[0] > 1:
            flat = type(layer)(
                layer.in_channels,
                layer.out_channels,
                (1, *layer.kernel_size[1:]),
                stride=layer.stride,
                padding=(0, *layer.padding[1:]),
                groups=layer.groups,
            ).to(layer.weight.device)
            parent, _, child = name.rpartition(".")
            setattr(twin.get_submodule(parent), child, flat)
    return twin


def transfer_weights(network: nn.Module, pretrained: nn.Module, way: Inflation = "centre") -> None:
    """Give a network all weights of a pretrained one but those of its head, in place, inflated where it has depth.

    Args:
        network: Takes the weights.
        pretrained: The same network, its 2D twin, or a network with 2D convolutions of the same names.
        way: How kernels are inflated.

    Raises:
        RuntimeError: The networks have other layers.
    """
    state = network.state_dict()
    for name, tensor in pretrained.state_dict().items():
        if "head." in name:
            continue
        wanted = state.get(name, tensor).shape
        if len(wanted) == 5 and tensor.shape != wanted:
            sections = tensor if tensor.ndim == 4 else tensor[:, :, 0]
            tensor = inflate(sections, wanted[2], way)
        state[name] = tensor
    network.load_state_dict(state)


class _VolumeConvolution(nn.Conv3d):
    """A convolution of `NaturalEncoder`, with a section above and one below where it looks around in the plane."""

    def __init__(self, flat: nn.Conv2d) -> None:
        depth = 1 if flat.kernel_size == (1, 1) else 3
        sizes = {"kernel_size": (depth, *flat.kernel_size), "stride": (1, *flat.stride), "groups": flat.groups}
        super().__init__(flat.in_channels, flat.out_channels, **sizes)
        plane = (getattr(flat, "before", 0), getattr(flat, "after", 0))
        self.around = (*plane, *plane, depth // 2, depth // 2)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, self.around))


class VolumeEncoder(NaturalEncoder):
    """`NaturalEncoder` with 3D kernels: inflated at the centre, it gives the same features before training. Ours.

    Example:
        >>> photographs, encoder = NaturalEncoder(), VolumeEncoder()
        >>> transfer_weights(encoder, photographs)
        >>> raw = torch.rand(1, 1, 3, 32, 32)
        >>> all(torch.allclose(a, b, atol=1e-4) for a, b in zip(photographs(raw), encoder(raw)))
        True
    """

    def __init__(self) -> None:
        """Random weights, repeatable by `torch.manual_seed`: those of a 2D encoder, inflated at the centre."""
        super().__init__()
        flat = {name: layer for name, layer in self.named_modules() if isinstance(layer, nn.Conv2d)}
        state = deepcopy(self)
        for name, layer in flat.items():
            parent, _, child = name.rpartition(".")
            setattr(self.get_submodule(parent), child, _VolumeConvolution(layer))
        transfer_weights(self, state)

    def forward(self, raw: Tensor) -> list[Tensor]:
        """Features at strides 4, 8 and 16 of raw (B, 1, D, H, W) in [0, 1]; H and W multiples of 16."""
        x = F.relu6(self.stem((raw - MEAN) / DEVIATION))  # (B, 32, D, H / 2, W / 2)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return [maps[stage] for stage in GUIDES]


# Snake: a kernel along z that bends with the neurite.


def accumulate_offsets(steps: Tensor) -> Tensor:
    """Add up a snake's steps from its middle outwards, so that each tap lies at most one step from the one before.

    Args:
        steps: (B, 2, K - 1, D, H, W), in y and x, each from -1 to 1: to the taps below the middle, then above it.

    Returns:
        Offsets (B, 2, K, D, H, W) of the taps in voxels; 0 for the middle one.
    """
    half = steps.shape[2] // 2
    below = steps[:, :, :half].flip(2).cumsum(2).flip(2)
    above = steps[:, :, half:].cumsum(2)
    return torch.cat([below, torch.zeros_like(steps[:, :, :1]), above], dim=2)


def sample_taps(features: Tensor, offsets: Tensor) -> Tensor:
    """Sample features at the taps of a snake along z, trilinearly; outside of the volume they are 0.

    Args:
        features: (B, C, D, H, W).
        offsets: (B, 2, K, D, H, W), voxels in y and x of the taps at z - K // 2 to z + K // 2.

    Returns:
        (B, C, K, D, H, W).
    """
    sizes = features.shape[2:]
    z, y, x = torch.meshgrid(*(torch.arange(n, device=features.device) for n in sizes), indexing="ij")
    taps = offsets.shape[2]
    sampled = []
    for tap in range(taps):
        dy, dx = offsets[:, :, tap].unbind(1)
        points = [(z + tap - taps // 2).expand_as(dy), y + dy, x + dx]
        scaled = [(2 * p + 1) / n - 1 for p, n in zip(points, sizes, strict=True)]
        grid = torch.stack(scaled[::-1], dim=-1)  # grid_sample wants x, y, z
        sampled.append(F.grid_sample(features, grid.to(features.dtype), align_corners=False))
    return torch.stack(sampled, dim=2)


class SnakeConv3d(nn.Module):
    """A convolution of K taps along z, each moved in y and x by what the features say; begins as a straight kernel."""

    def __init__(self, inputs: int, outputs: int, taps: int = 9, bend: bool = True) -> None:
        """Random taps, repeatable by `torch.manual_seed`.

        Args:
            inputs: Channels.
            outputs: Channels.
            taps: K, an odd number, at least 3.
            bend: False keeps the kernel straight, for comparison.
        """
        super().__init__()
        if taps < 3 or taps % 2 == 0:
            raise ValueError(f"taps is {taps}; a kernel that bends has an odd number of taps, at least 3")
        self.straight = nn.Conv3d(inputs, outputs, (taps, 1, 1), padding=(taps // 2, 0, 0))
        self.steer = nn.Conv3d(inputs, 2 * (taps - 1), 3, padding=1) if bend else None
        if self.steer is not None:
            nn.init.zeros_(self.steer.weight)
            nn.init.zeros_(self.steer.bias)

    def offsets(self, features: Tensor) -> Tensor:
        """Compute where the taps lie, (B, 2, K, D, H, W) in voxels of y and x; only where the kernel bends."""
        return accumulate_offsets(torch.tanh(self.steer(features)).unflatten(1, (2, -1)))

    def forward(self, features: Tensor) -> Tensor:
        if self.steer is None:
            return self.straight(features)
        taps = sample_taps(features, self.offsets(features))  # (B, C, K, D, H, W)
        weight = self.straight.weight[..., 0, 0]  # (outputs, C, K)
        return torch.einsum("bckdhw,ock->bodhw", taps, weight) + self.straight.bias[:, None, None, None]
