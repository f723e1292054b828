"""A normalisation that sees one voxel at a time, so that a window's size and far corners change nothing.

GroupNorm takes its statistics from the whole window. Here a voxel's channels are divided by their own root mean square
(RMSNorm: Zhang and Sennrich 2019, arXiv 1910.07467), so the affinities of a voxel depend on its receptive field alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

EPSILON = 1e-5


class _UnitChannels(torch.autograd.Function):
    """x / rms(x) over channels. Its own backward pass reads and writes less memory than autograd's."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        scale = x.square().mean(1, keepdim=True).add_(EPSILON).rsqrt_()
        unit = x * scale
        ctx.save_for_backward(unit, scale)
        return unit

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        unit, scale = ctx.saved_tensors
        mean = (grad * unit).mean(1, keepdim=True)
        return torch.addcmul(grad, unit, mean, value=-1).mul_(scale)  # (grad - unit mean(grad unit)) / rms


class ChannelNorm(nn.Module):
    """Each voxel's channels divided by their root mean square, then times a weight plus a bias per channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Returns float32 of the shape of x, (B, C, ...); in half precision squares could overflow.

        Contiguous, as GroupNorm's: what follows a transposed convolution would be several times as slow otherwise.
        """
        per_channel = (-1, *[1] * (x.ndim - 2))
        unit = _UnitChannels.apply(x.float().contiguous())
        return unit * self.weight.view(per_channel) + self.bias.view(per_channel)
