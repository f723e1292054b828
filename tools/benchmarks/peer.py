"""The field's 3D U-Net for neurites, which speeds are compared with; nothing here trains it.

Residual symmetric U-Net of Lee et al. 2017 (arXiv 1706.00120): five levels of 28 to 80 features, modules of three
convolutions of which two have a residual beside them, pooling within sections, sums instead of concatenations,
1 x 5 x 5 filters at both ends and 1 x 3 x 3 in the first level, batch norms and ELU after convolutions. How an
upsampled level comes to the width of the next, by 1 x 1 x 1 filters, is our choice.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

WIDTHS = (28, 36, 48, 64, 80)


def convolve(inputs: int, outputs: int, kernel: tuple[int, int, int]) -> nn.Sequential:
    """A convolution that keeps the size, with its norm and activation."""
    padding = [k // 2 for k in kernel]
    return nn.Sequential(
        nn.Conv3d(inputs, outputs, kernel, padding=padding, bias=False), nn.BatchNorm3d(outputs), nn.ELU()
    )


class Module(nn.Module):
    """Three convolutions; what the first gives is added to what the others make of it."""

    def __init__(self, inputs: int, outputs: int, kernel: tuple[int, int, int]) -> None:
        super().__init__()
        self.first = convolve(inputs, outputs, kernel)
        self.rest = nn.Sequential(convolve(outputs, outputs, kernel), convolve(outputs, outputs, kernel))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return x + self.rest(x)


class ResidualUNet(nn.Module):
    """Logits of affinities (B, 3, D, H, W) from grey values (B, 1, D, H, W); H and W are multiples of 16."""

    def __init__(self) -> None:
        super().__init__()
        kernels = [(1, 3, 3)] + [(3, 3, 3)] * (len(WIDTHS) - 1)
        self.embed = convolve(1, WIDTHS[0], (1, 5, 5))
        self.down = nn.ModuleList(
            Module(inputs, outputs, kernel)
            for inputs, outputs, kernel in zip((WIDTHS[0], *WIDTHS), WIDTHS, kernels, strict=False)
        )
        self.narrow = nn.ModuleList(nn.Conv3d(wide, slim, 1) for slim, wide in pairwise(WIDTHS))
        self.up = nn.ModuleList(Module(slim, slim, kernel) for slim, kernel in zip(WIDTHS, kernels[:-1], strict=False))
        self.head = nn.Conv3d(WIDTHS[0], 3, (1, 5, 5), padding=(0, 2, 2))

    def forward(self, x: Tensor) -> Tensor:
        """Compute the logits."""
        levels = [self.down[0](self.embed(x))]
        for module in self.down[1:]:
            levels.append(module(nn.functional.max_pool3d(levels[-1], (1, 2, 2))))
        x = levels.pop()
        for module, narrow, level in reversed(list(zip(self.up, self.narrow, levels, strict=True))):
            upsampled = nn.functional.interpolate(narrow(x), scale_factor=(1.0, 2.0, 2.0), mode="trilinear")
            x = module(level + upsampled)
        return self.head(x)


def build_peer() -> ResidualUNet:
    """The network with the same random weights each time, ready to predict."""
    torch.manual_seed(0)
    return ResidualUNet().eval()
