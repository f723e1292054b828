"""The blocks of FGNet's encoder and decoders: each adds to its input what a small neighbourhood says.

Shapes are written behind the steps, in the letters of `fgnet`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from fgnet_lib.channel_norm import ChannelNorm
from fgnet_lib.machine import ThinConv3d

Norm = Literal["group", "channel"]


def _norm(norm: Norm, channels: int) -> nn.Module:
    return ChannelNorm(channels) if norm == "channel" else nn.GroupNorm(4, channels)


class DWBlock(nn.Module):
    """Depthwise 3x3x3, normalise, widen, GELU, narrow, add the input. The name is the paper's, the inside ours."""

    def __init__(self, channels: int, expand: int = 2, norm: Norm = "group") -> None:
        super().__init__()
        self.depthwise = nn.Conv3d(channels, channels, 3, padding=1, groups=channels)
        self.norm = _norm(norm, channels)
        self.widen = nn.Conv3d(channels, expand * channels, 1)
        self.narrow = nn.Conv3d(expand * channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        x_mixed = self.norm(self.depthwise(x))  # (B, C, D, h, w)
        x_mixed = F.gelu(self.widen(x_mixed))  # (B, 2C, D, h, w)
        return x + self.narrow(x_mixed)  # (B, C, D, h, w)


class DenseBlock(nn.Module):
    """Dense 3x3x3, normalise, GELU, mix, add the input. Ours, after EfficientNetV2's fused blocks (Tan and Le 2021).

    Where channels are few, a dense convolution costs less time than a depthwise one, which computes little for each
    number it moves, and sees more.
    """

    def __init__(self, channels: int, norm: Norm = "group") -> None:
        super().__init__()
        self.dense = ThinConv3d(channels, channels, 3, padding=1)
        self.norm = _norm(norm, channels)
        self.mix = nn.Conv3d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mix(F.gelu(self.norm(self.dense(x))))  # (B, C, D, h, w) all along


def residual_blocks(widths: Sequence[int], dense_levels: int, norm: Norm) -> list[nn.Module]:
    """One block per level, finest first."""
    return [DenseBlock(c, norm) if i < dense_levels else DWBlock(c, norm=norm) for i, c in enumerate(widths)]
