"""Give a picture the noise of another: an invertible network that divides content from noise, and pairs made by it.

The parts, in the order of this file::

    Haar        a picture <-> four sub-bands, an orthogonal transform
    couplings   c' = c + f(n), n' = n exp(s) + g(c'), s = clamp (2 sigmoid(h(c')) - 1): invertible whatever f, g and h
                compute (invertible rescaling, Xiao et al. 2020, arXiv 2005.05650)
    DADn        (Deng et al., IEEE TMI 2024) one of the four sub-bands is content, the others are noise; noise is
                swapped between pictures, and a denoiser learns from the pairs

Ours: one invertible network, where DADn has one for simulated and one for real noise, and what it learns from: swaps of
simulated noise, which we know. DADn has six losses and three discriminators instead.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CLAMP = 1.0  # of the logarithm of a coupling's scale
SIMULATED = 0.3  # the largest strength of the Gaussian noise that the network learns from
_HAAR = torch.tensor([(1, 1, 1, 1), (1, -1, 1, -1), (1, 1, -1, -1), (1, -1, -1, 1)]) / 2  # symmetric, its own inverse


def haar(x: Tensor) -> Tensor:
    """Divide pictures (B, 1, y, x) into four sub-bands (B, 4, y / 2, x / 2): mean, differences along x, y and both.

    The transform is orthogonal, so the sum of squares stays the same.
    """
    return torch.einsum("ij,bjyx->biyx", _HAAR.to(x), F.pixel_unshuffle(x, 2))


def inverse_haar(bands: Tensor) -> Tensor:
    """Put four sub-bands together again."""
    return F.pixel_shuffle(torch.einsum("ij,bjyx->biyx", _HAAR.to(bands), bands), 2)


def _subnet(inputs: int, outputs: int, width: int) -> nn.Sequential:
    last = nn.Conv2d(width, outputs, 3, padding=1)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Conv2d(inputs, width, 3, padding=1), nn.GELU(), nn.Conv2d(width, width, 1), nn.GELU(), last)


class Coupling(nn.Module):
    """An affine coupling of content c and noise n, exactly invertible whatever its networks f, g and h compute.

    c' = c + f(n);  n' = n exp(s(c')) + g(c'),  s = CLAMP (2 sigmoid(h) - 1)
    """

    def __init__(self, width: int) -> None:
        """Begins as the identity."""
        super().__init__()
        self.f, self.g, self.h = _subnet(3, 1, width), _subnet(1, 3, width), _subnet(1, 3, width)

    def _scale(self, content: Tensor) -> Tensor:
        return CLAMP * (2 * torch.sigmoid(self.h(content)) - 1)

    def forward(self, content: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        content = content + self.f(noise)
        return content, noise * torch.exp(self._scale(content)) + self.g(content)

    def inverse(self, content: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the input of `forward` from its output."""
        noise = (noise - self.g(content)) * torch.exp(-self._scale(content))
        return content - self.f(noise), noise


class NoiseSplit(nn.Module):
    """An invertible network: a picture <-> content, a quarter of its numbers, and noise, the other three."""

    def __init__(self, couplings: int = 2, width: int = 8) -> None:
        """Begins as the Haar transform: content is the mean of 2 x 2 pixels, noise the three differences."""
        super().__init__()
        self.couplings = nn.ModuleList(Coupling(width) for _ in range(couplings))

    def forward(self, picture: Tensor) -> tuple[Tensor, Tensor]:
        """Divide pictures (B, 1, y, x) into content (B, 1, y / 2, x / 2) and noise (B, 3, y / 2, x / 2)."""
        content, noise = haar(picture).split((1, 3), dim=1)
        for coupling in self.couplings:
            content, noise = coupling(content, noise)
        return content, noise

    def join(self, content: Tensor, noise: Tensor) -> Tensor:
        """Compute the picture that `forward` divides into this content and this noise."""
        for coupling in reversed(self.couplings):
            content, noise = coupling.inverse(content, noise)
        return inverse_haar(torch.cat([content, noise], 1))

    def swap(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Give each of two pictures the noise of the other; twice gives both back."""
        (content_1, noise_1), (content_2, noise_2) = self(first), self(second)
        return self.join(content_1, noise_2), self.join(content_2, noise_1)


def swap_loss(model: NoiseSplit, batch: tuple[Tensor, ...]) -> Tensor:
    """Compute how far swapped pictures are from what they should be, for simulated noise, which we know (ours).

    Args:
        model: The invertible network.
        batch: Its second part, clean patches (B, 1, y, x); each gets noise of a strength of its own, and the next patch
            of the batch is its partner.
    """
    clean = batch[1]
    noise = SIMULATED * torch.rand(len(clean), 1, 1, 1, device=clean.device) * torch.randn_like(clean)
    partners, their_noise = clean.roll(1, 0), noise.roll(1, 0)
    first, second = model.swap(clean + noise, partners + their_noise)
    return F.mse_loss(first, clean + their_noise) + F.mse_loss(second, partners + noise)


def transfer_loss(model: nn.Module, batch: tuple[Tensor, ...], split: NoiseSplit) -> Tensor:
    """Compute the error of a denoiser on pairs that `split` makes: clean patches with the noise of the noisy ones.

    Args:
        model: The denoiser.
        batch: Noisy patches and clean ones, which need not show the same tissue.
        split: Trained, and not changed.
    """
    noisy, clean = batch[:2]
    with torch.no_grad():
        pictures = split.join(split(clean)[0], split(noisy)[1])
    return F.mse_loss(model(pictures), clean)
