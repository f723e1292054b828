"""A small 2D network to use in an FGNet's place where speed counts more than the best segmentation.

Sections go through one 2D U-Net, and each pixel gets an embedding, a vector of unit length. An affinity is the product
of two neighbours' embeddings, so also the affinities along z come from a network that sees sections alone. The design
is that of CAD's student (CVPR 2024). Ours: `sections` neighbouring sections as input channels; the boundary as one more
channel, which no product takes part in; no normalisation layers; all convolutions at stride 2 and coarser.
`neighbours.distillation` has the losses that it is trained by.

Shapes are written behind the steps, in the letters of `fgnet`; E: channels of an embedding, the boundary included.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fgnet_lib.fgnet import FGNet, FGNetOutput

MULTIPLE = 16  # the stride of the coarsest level; H and W are padded to multiples of it
LEAST = 1e-4  # affinities are kept so far from 0 and 1 that their logits are finite


@dataclass(frozen=True)
class StudentConfig:
    """Everything that is needed to build a student again; a file of weights holds it too.

    Attributes:
        widths: Channels at in-plane strides 2, 4, 8, 16.
        embedding: Channels of an embedding without the boundary.
        sections: How many sections are the input of one: 1, or 3 with a neighbour on each side (2.5D).
    """

    widths: tuple[int, ...] = (16, 24, 40, 64)
    embedding: int = 4
    sections: int = 3
    encoder: ClassVar[None] = None  # as in `FGNetConfig`: there is no SAM2 in a student
    refined: ClassVar[bool] = False  # nor a Fine-Grained Encoder with attention

    def __post_init__(self) -> None:
        object.__setattr__(self, "widths", tuple(self.widths))  # JSON knows lists only
        if len(self.widths) != 4:
            raise ValueError(f"widths needs four channel counts, for strides 2, 4, 8, 16; got {self.widths}")
        if self.sections not in (1, 3):
            raise ValueError(f"sections is {self.sections!r}; a student sees 1 or 3 at once")


def embedding_affinities(embeddings: Tensor) -> Tensor:
    """Compute the affinities of neighbouring voxels as products of their embeddings, clamped to 0 to 1.

    Embeddings are scaled to unit length here. Their last channel is the boundary: no product takes part in it, so a
    voxel that is all boundary is joined to nothing.

    Args:
        embeddings: Float (B, E, D, H, W), of any length.

    Returns:
        Affinities (B, 3, D, H, W), channel order z, y, x; 0 on the low face of each axis, which has no predecessor.
    """
    scale = _product(embeddings, embeddings).clamp(min=1e-12).rsqrt()  # (B, D, H, W): 1 / length
    inner = embeddings[:, :-1]
    affinities = []
    for axis in (1, 2, 3):
        count = scale.shape[axis] - 1
        voxel, predecessor = inner.narrow(axis + 1, 1, count), inner.narrow(axis + 1, 0, count)
        product = _product(voxel, predecessor) * scale.narrow(axis, 1, count) * scale.narrow(axis, 0, count)
        face = [0, 0] * (3 - axis) + [1, 0]
        affinities.append(F.pad(product.clamp(0, 1), face))
    return torch.stack(affinities, 1)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """The sum over channels of a b; channel by channel, since all products at once would not fit the fast memory."""
    total = a[:, 0] * b[:, 0]
    for channel in range(1, a.shape[1]):
        total.addcmul_(a[:, channel], b[:, channel])
    return total


class Block(nn.Module):
    """A dense 3x3 convolution and ReLU, added to the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.dense = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + F.relu_(self.dense(x))


class Student(FGNet):
    """A 2D U-Net from sections to embeddings; called as an `FGNet` without SAM2 is, and gives refined affinities.

    Example:
        >>> output = Student(StudentConfig()).eval()(torch.rand(1, 1, 3, 40, 50))
        >>> tuple(output.refined.shape), output.coarse, output.attention
        ((1, 3, 3, 40, 50), None, ())
    """

    def __init__(self, config: StudentConfig) -> None:
        """Build the network with random weights."""
        nn.Module.__init__(self)  # none of FGNet's parts
        self.config = config  # type: ignore[assignment]  # of its own kind, with what callers of an FGNet read
        self.encoder, self.encoder_frozen = None, False
        widths = config.widths
        pairs = list(zip(widths, widths[1:], strict=False))
        self.stem = nn.Conv2d(4 * config.sections, widths[0], 3, padding=1)
        self.downs = nn.ModuleList(nn.Conv2d(a, b, 2, stride=2) for a, b in pairs)
        self.blocks = nn.ModuleList(Block(width) for width in widths[1:])
        self.ups = nn.ModuleList(nn.Conv2d(b, a, 1) for a, b in pairs)
        self.up_blocks = nn.ModuleList([nn.ReLU(), *(Block(width) for width in widths[1:-1])])
        self.head = nn.Conv2d(widths[0], 4 * (config.embedding + 1), 1)  # for the four pixels of each place at stride 2

    def features(self, raw: Tensor) -> Tensor:
        """Compute features (B D, C, H / 2, W / 2) of every section of (B, 1, D, H, W), H and W multiples of 16."""
        x = self._gather_sections(raw).contiguous(memory_format=torch.channels_last)  # several times as fast on a CPU
        x = F.relu_(self.stem(x))  # (B D, C, H / 2, W / 2)
        pyramid = []
        for down, block in zip(self.downs, self.blocks, strict=True):
            pyramid.append(x)
            x = block(down(x))  # (B D, C, h, w), to stride 16
        for level in reversed(range(len(pyramid))):
            x = F.interpolate(self.ups[level](x), scale_factor=2.0, mode="nearest")
            x = self.up_blocks[level](x + pyramid[level])
        return x

    def embed(self, raw: Tensor) -> Tensor:
        """Compute the embedding of every voxel, (B, E, D, H, W), not yet of unit length."""
        height, width = raw.shape[-2:]
        raw = F.pad(raw, (0, -width % MULTIPLE, 0, -height % MULTIPLE, 0, 0), mode="replicate")
        return self.embed_features(self.features(raw), len(raw))[..., :height, :width]

    def embed_features(self, features: Tensor, batch: int) -> Tensor:
        """Compute embeddings (B, E, D, H, W) from `features`."""
        x = self.head(features).permute(0, 2, 3, 1)  # (B D, h, w, 4 E)
        x = x.unflatten(3, (-1, 2, 2)).permute(0, 3, 1, 4, 2, 5)  # (B D, E, h, 2, w, 2)
        return x.flatten(4, 5).flatten(2, 3).unflatten(0, (batch, -1)).transpose(1, 2)  # (B, E, D, H, W)

    def forward(self, raw: Tensor, features: list[Tensor] | None = None) -> FGNetOutput:
        """Compute affinities (logits) of a batch of volumes, as `FGNet.forward` does; `features` are ignored.

        The first section has no predecessor, so it gets the affinities along z of the second: a window's border should
        not break neurons.
        """
        if raw.ndim != 5 or raw.shape[1] != 1:
            raise ValueError(f"raw must have shape (B, 1, D, H, W); got {tuple(raw.shape)}")
        affinities = embedding_affinities(self.embed(raw))
        along_z = affinities[:, :1]
        second = along_z[:, :, :2][:, :, -1:]  # the first where there is no second: no `if`, which ONNX would freeze
        along_z = torch.cat([second, along_z[:, :, 1:]], 2)
        return FGNetOutput(None, torch.logit(torch.cat([along_z, affinities[:, 1:]], 1), LEAST), ())

    def _gather_sections(self, raw: Tensor) -> Tensor:
        """Four pixels of each section and of its neighbours as channels: (B D, 4 sections, H / 2, W / 2)."""
        batch, _, depth = raw.shape[:3]
        pixels = F.pixel_unshuffle(raw.transpose(1, 2).flatten(0, 1), 2)  # (B D, 4, H / 2, W / 2)
        if self.stem.in_channels == 4:  # it sees one section at once
            return pixels
        pixels = pixels.unflatten(0, (batch, depth))
        pixels = torch.cat([pixels[:, :1], pixels, pixels[:, -1:]], 1)  # the ends repeated
        return torch.cat([pixels[:, i : i + depth] for i in range(3)], 2).flatten(0, 1)
