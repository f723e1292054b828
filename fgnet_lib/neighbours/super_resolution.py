"""Draw sections that were imaged with fewer pixels at full size again, and count the membranes that this invents.

After GPEMSR (Shou et al., CVPR 2024), from its equations, in the order of this file::

    pixels       sections reduced 4 times in y and x by the mean of each square; bicubic enlargement as the baseline
    codebook     a vector-quantised autoencoder (van den Oord et al. 2017, arXiv 1711.00937): encoder -> nearest of K
                 codes -> decoder; straight-through gradient (Bengio et al. 2013, arXiv 1308.3432); loss
                 |x - x'| + |sg(z) - e|^2 + beta |z - sg(e)|^2
    indexer      low resolution -> the code that the autoencoder chose at full resolution (cross-entropy)
    fusion       features of neighbouring sections, aligned and mixed with the decoder's features; pixel shuffle (Shi et
                 al. 2016, arXiv 1609.05158)
    membranes    dark ridges of the result without one in the truth (invented), and the other way round (lost)

Ours: the sizes (128 codes of 64 numbers, stride 8, against 1024 of 512), an indexer's logits as negative distances to
the codes, alignment by attention in a window of 3 x 3 low pixels, 3 sections against 5, mean absolute errors, the last
step that makes a result agree with the measured pixels, when codes begin (anew), and how membranes are compared. There
is no adversarial loss.

Sections are float tensors in [0, 1]. Shapes in comments: B batch, D sections, H and W full size, h and w low size.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from skimage.measure import label
from torch import Tensor, nn

FACTOR = 4  # by which sections are reduced in y and x
STRIDE = 8  # voxels in y and x for which a code is chosen
CODES, WIDTH = 128, 64  # of the codebook: number of codes, and numbers in a code
COMMITMENT = 0.25  # beta: how strongly the encoder is drawn to its codes
PATIENCE = 20  # batches after which codes begin, and an unused code begins anew
RIDGE = 1.5  # voxels; the width of the filter for membranes
MEMBRANES, POSSIBLE = 0.15, 0.20  # shares of a section that are membrane, and that may be membrane
FAINTEST, FLATTEST = 0.05, 0.02  # least strength of a line, in deviations of its section, and least deviation
TOLERANCE = 2.0  # voxels that a membrane may be off
SMALLEST = 12  # voxels of a piece of membrane; smaller ones are noise


# Pixels: what is measured, and what agrees with it.


def reduce_sections(sections: Tensor, factor: int = FACTOR) -> Tensor:
    """Reduce sections (..., H, W) to (..., h, w): each low pixel is the mean of a square of `factor` voxels a side.

    Raises:
        ValueError: H or W is no multiple of `factor`.
    """
    if any(side % factor for side in sections.shape[-2:]):
        raise ValueError(f"sections of {tuple(sections.shape[-2:])} are not made of squares of {factor}: crop them")
    return sections.unflatten(-1, (-1, factor)).unflatten(-3, (-1, factor)).mean(dim=(-3, -1))


def enlarge_bicubic(low: Tensor, factor: int = FACTOR) -> Tensor:
    """Enlarge sections (N, C, h, w) in y and x by bicubic interpolation, clipped to [0, 1]."""
    return F.interpolate(low, scale_factor=factor, mode="bicubic", align_corners=False).clamp(0, 1)


def make_consistent(sections: Tensor, low: Tensor, factor: int = FACTOR) -> Tensor:
    """Move sections as little as possible so that reducing them gives exactly what was measured.

    This is the orthogonal projection onto the sections that agree with `low`. The truth is one of these, so the squared
    error never grows. `sections` (..., H, W) are any guess, `low` (..., h, w) is what was measured.
    """
    missing = low - reduce_sections(sections, factor)
    return sections + missing.repeat_interleave(factor, -1).repeat_interleave(factor, -2)


# Codebook: sections in words, of which there are few.


def nearest_codes(vectors: Tensor, codes: Tensor) -> Tensor:
    """Find for each vector (N, C) the code (K, C) at the least Euclidean distance; integers (N,)."""
    return (codes.square().sum(1) - 2 * vectors @ codes.T).argmin(1)  # the vector's own length changes no order


def pass_straight(vectors: Tensor, quantised: Tensor) -> Tensor:
    """Return the quantised vectors, with a gradient that reaches `vectors` unchanged and `quantised` not at all."""
    return vectors + (quantised - vectors).detach()


def perplexity(indices: Tensor, size: int) -> float:
    """Compute how many codes are in use, as the exponential of their entropy: from 1, a single one, to `size`."""
    shares = torch.bincount(indices.flatten(), minlength=size).double() / indices.numel()
    return math.exp(torch.special.entr(shares).sum().item())


class Codebook(nn.Module):
    """K codes that learn to be near the vectors that choose them; those that nothing chooses begin anew."""

    def __init__(self, size: int = CODES, width: int = WIDTH) -> None:
        super().__init__()
        self.codes = nn.Parameter(torch.randn(size, width))
        self.register_buffer("unused", torch.zeros(size, dtype=torch.long))  # for so many batches
        self.register_buffer("batches", torch.zeros((), dtype=torch.long))

    def index(self, features: Tensor) -> Tensor:
        """Find the nearest code of each place of features (N, C, y, x); integers (N, y, x)."""
        vectors = features.movedim(1, -1)
        return nearest_codes(vectors.flatten(0, -2), self.codes).view(vectors.shape[:-1])

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Quantise features (N, C, y, x), but for the first batches of a training; also compute the codebook's loss."""
        if self.training:
            self.batches += 1
            self._begin_anew(features.detach().movedim(1, -1).flatten(0, -2))
            if self.batches <= PATIENCE:
                return features, features.new_zeros(())
        indices = self.index(features)
        quantised = self.codes[indices].movedim(-1, 1)
        loss = F.mse_loss(quantised, features.detach()) + COMMITMENT * F.mse_loss(features, quantised.detach())
        self.unused[indices.unique()] = 0
        return pass_straight(features, quantised), loss

    @torch.no_grad()
    def _begin_anew(self, vectors: Tensor) -> None:
        self.unused += 1
        late = self.unused > PATIENCE
        self.codes[late] = vectors[torch.randint(len(vectors), (int(late.sum()),), device=vectors.device)]
        self.unused[late] = 0


def _convolution(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Conv2d:
    """A convolution that keeps the variance of what it sees, or deep features would be nearly constant at first."""
    layer = nn.Conv2d(inputs, outputs, size, stride, padding=(size - 1) // 2)
    nn.init.kaiming_normal_(layer.weight)
    return layer


class _Residual(nn.Sequential):
    """Two 3 x 3 convolutions, whose result is added to the input."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(WIDTH, WIDTH, 3, padding=1), nn.GELU(), nn.Conv2d(WIDTH, WIDTH, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


class SectionEncoder(nn.Module):
    """Sections (N, 1, y, x) -> features (N, WIDTH, y / stride, x / stride), by convolutions of stride 2."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        widths = [32, WIDTH, WIDTH][-int(math.log2(stride)) :]
        layers: list[nn.Module] = []
        for inputs, outputs in zip([1, *widths], widths, strict=False):
            layers += [_convolution(inputs, outputs, 4, stride=2), nn.GELU()]
        self.layers = nn.Sequential(*layers, _Residual(), _Residual(), _convolution(WIDTH, WIDTH, 1))

    def forward(self, sections: Tensor) -> Tensor:
        return self.layers(2 * sections - 1)


class SectionAutoencoder(nn.Module):
    """Sections -> codes -> sections: one of `CODES` codes for each square of `STRIDE` x `STRIDE` voxels."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.codebook = SectionEncoder(STRIDE), Codebook()
        self.to_prior = nn.Sequential(_Residual(), _convolution(WIDTH, 4 * WIDTH, 3), nn.PixelShuffle(2))
        drawing = _convolution(WIDTH, WIDTH, 3), nn.GELU(), nn.Conv2d(WIDTH, FACTOR**2, 3, padding=1)
        self.to_pixels = nn.Sequential(nn.GELU(), *drawing)

    def index(self, sections: Tensor) -> Tensor:
        """Choose the codes (N, H / STRIDE, W / STRIDE) of sections (N, 1, H, W)."""
        return self.codebook.index(self.encoder(sections))

    def decode(self, quantised: Tensor) -> tuple[Tensor, Tensor]:
        """Draw sections (N, 1, H, W) of codes (N, WIDTH, y, x), and before it the features that serve as a prior."""
        prior = self.to_prior(quantised)  # (N, WIDTH, h, w)
        return prior, F.pixel_shuffle(self.to_pixels(prior), FACTOR) + 0.5

    def forward(self, sections: Tensor) -> tuple[Tensor, Tensor]:
        """Draw sections (N, 1, H, W) as well as their codes can, and compute the codebook's loss."""
        quantised, loss = self.codebook(self.encoder(sections))
        return self.decode(quantised)[1], loss


def autoencoder_loss(model: SectionAutoencoder, batch: tuple[Tensor, ...]) -> Tensor:
    """Compute the loss of an autoencoder; of a batch, raw (B, 1, D, H, W) comes first and the rest is not looked at."""
    sections = batch[0].transpose(1, 2).flatten(0, 1)  # (B D, 1, H, W)
    drawn, of_codes = model(sections)
    return F.l1_loss(drawn, sections) + of_codes


# Indexer: which code would the section at full size have chosen?


class Indexer(nn.Module):
    """Guesses an autoencoder's codes from other sections, for example from reduced ones."""

    def __init__(self, autoencoder: SectionAutoencoder, encoder: SectionEncoder) -> None:
        """Join an encoder, which learns, to a trained autoencoder; with the autoencoder's own, codes are the same."""
        super().__init__()
        self.autoencoder, self.look = autoencoder.requires_grad_(False), encoder

    def forward(self, sections: Tensor) -> Tensor:
        """Logits (N, CODES, y, x) of the codes: minus half the squared distance, up to what is the same for all."""
        codes = self.autoencoder.codebook.codes
        dot = torch.einsum("ncyx,kc->nkyx", self.look(sections), codes)
        return dot - codes.square().sum(1)[:, None, None] / 2

    def decode(self, sections: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the decoder's features (N, WIDTH, h, w) and drawing (N, 1, H, W) for the likeliest codes."""
        codes = self.autoencoder.codebook.codes[self(sections).argmax(1)]
        return self.autoencoder.decode(codes.movedim(-1, 1))


def indexer_loss(model: Indexer, batch: tuple[Tensor, ...]) -> Tensor:
    """Compute an indexer's cross-entropy (nats) on reduced sections; of a batch, raw (B, 1, D, H, W) comes first."""
    sections = batch[0].transpose(1, 2).flatten(0, 1)
    with torch.no_grad():
        codes = model.autoencoder.index(sections)
    return F.cross_entropy(model(reduce_sections(sections)), codes)


# Fusion: what the neighbouring sections and the codes add.


def align(features: Tensor, reference: Tensor) -> Tensor:
    """Align features of a section to those of its neighbour, (N, C, h, w) both, by attention in windows of 3 x 3.

    Returns:
        (N, C, h, w): softmax over the window of (reference . feature / sqrt(C)), times the features.
    """
    padded = F.pad(features, (1, 1, 1, 1), mode="replicate")
    window = F.unfold(padded, 3).view(len(features), features.shape[1], 9, *features.shape[2:])
    weights = torch.einsum("nchw,ncphw->nphw", reference, window) / math.sqrt(features.shape[1])
    return torch.einsum("nphw,ncphw->nchw", weights.softmax(1), window)


def neighbourhoods(low: Tensor, count: int) -> Tensor:
    """Collect each section of (D, h, w) with those around it, itself in the middle, ends repeated: (D, count, h, w)."""
    rows = torch.arange(len(low), device=low.device)[:, None] + torch.arange(count, device=low.device) - count // 2
    return low[rows.clamp(0, len(low) - 1)]


class SuperResolver(nn.Module):
    """Low sections -> sections at full size: bicubic plus what a small network adds, agreeing with every low pixel."""

    def __init__(self, count: int = 1, indexer: Indexer | None = None) -> None:
        """Random weights, repeatable by `torch.manual_seed`.

        Args:
            count: Sections that are looked at, 1 or 3; the middle one is enlarged.
            indexer: Trained, no longer learns; None for a plain network without a codebook.
        """
        super().__init__()
        self.count = count
        self.indexer = indexer.requires_grad_(False) if indexer is not None else None
        self.look = nn.Sequential(nn.Conv2d(1, WIDTH, 3, padding=1), nn.GELU(), _Residual())
        self.fuse = nn.Conv2d((count + (indexer is not None)) * WIDTH, WIDTH, 1)
        self.mix = nn.Sequential(*(_Residual() for _ in range(3)))
        self.to_pixels = nn.Conv2d(WIDTH, FACTOR**2, 3, padding=1)
        nn.init.zeros_(self.to_pixels.weight)
        nn.init.zeros_(self.to_pixels.bias)

    def forward(self, low: Tensor) -> Tensor:
        """Enlarge the middle of low sections (N, count, h, w); returns (N, 1, H, W)."""
        middle = low[:, self.count // 2 : self.count // 2 + 1]
        features = self.look(2 * low.flatten(0, 1)[:, None] - 1).unflatten(0, low.shape[:2])  # (N, count, C, h, w)
        reference = features[:, self.count // 2]
        parts = [align(features[:, k], reference) for k in range(self.count) if k != self.count // 2]
        if self.indexer is not None:
            with torch.no_grad():
                parts.append(self.indexer.decode(middle)[0])
        added = self.to_pixels(self.mix(self.fuse(torch.cat([reference, *parts], 1))))  # (N, 16, h, w)
        return make_consistent(enlarge_bicubic(middle) + F.pixel_shuffle(added, FACTOR), middle)


def resolver_loss(model: SuperResolver, batch: tuple[Tensor, ...]) -> Tensor:
    """Compute the mean absolute error of enlarged sections; of a batch, raw (B, 1, D, H, W) comes first."""
    sections = batch[0][:, 0]
    inside = slice(model.count // 2, sections.shape[1] - model.count // 2)
    low = [neighbourhoods(reduce_sections(each), model.count)[inside] for each in sections]
    return F.l1_loss(model(torch.cat(low))[:, 0], sections[:, inside].flatten(0, 1))


@torch.no_grad()
def enlarge_volume(model: SuperResolver | Indexer | None, low: Tensor, batch: int = 4) -> Tensor:
    """Enlarge a volume (D, h, w) -> (D, H, W), in [0, 1]: with an `Indexer` by codes alone, with None bicubically."""
    count = model.count if isinstance(model, SuperResolver) else 1
    parts = []
    for part in neighbourhoods(low, count).split(batch):
        parts.append(model.decode(part)[1] if isinstance(model, Indexer) else (model or enlarge_bicubic)(part))
    return torch.cat(parts)[:, 0].clamp(0, 1)


# Membranes: dark ridges, and which of them another picture lacks.


def membrane_map(sections: np.ndarray, share: float = MEMBRANES) -> np.ndarray:
    """Mark the voxels of sections (D, H, W) that lie on the darkest lines, whatever contrast and brightness are.

    A voxel's strength is the larger eigenvalue of the Hessian of its section, smoothed by `RIDGE` voxels. `share` of
    each section's voxels are marked, the strongest ones; fewer where there are not so many lines.
    """
    deviation = np.maximum(sections.std((1, 2), keepdims=True), FLATTEST)
    yy, yx, xx = (
        RIDGE**2 * ndimage.gaussian_filter(sections / deviation, (0, RIDGE, RIDGE), order=(0, *order))
        for order in ((2, 0), (1, 1), (0, 2))
    )
    strength = (yy + xx) / 2 + np.sqrt(np.square((yy - xx) / 2) + np.square(yx))
    return strength > np.maximum(np.quantile(strength, 1 - share, axis=(1, 2), keepdims=True), FAINTEST)


def unmatched_membranes(sections: np.ndarray, others: np.ndarray, tolerance: float = TOLERANCE) -> np.ndarray:
    """Mark the membranes of some sections that are missing from others, even as a weaker line nearby.

    With a result and the truth these are invented membranes; with the truth and a result they are lost ones.

    Returns:
        bool (D, H, W): pieces of at least `SMALLEST` voxels, farther than `tolerance` from what may be membrane.
    """
    unmatched = membrane_map(sections)
    for mask, possible in zip(unmatched, membrane_map(others, POSSIBLE), strict=True):
        if possible.any():
            mask &= ndimage.distance_transform_edt(~possible) > tolerance
        pieces = label(mask, connectivity=2)
        mask &= (np.bincount(pieces.ravel()) >= SMALLEST)[pieces]
    return unmatched


def count_membranes(result: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Count invented and lost membranes of a result (D, H, W).

    Returns:
        "invented", a share of the result's membrane voxels; "lost", a share of the truth's; and "invented_pieces" and
        "lost_pieces" per section.
    """
    counts = {}
    for name, (sections, others) in {"invented": (result, truth), "lost": (truth, result)}.items():
        missing = unmatched_membranes(sections, others)
        counts[name] = float(missing.sum() / max(membrane_map(sections).sum(), 1))
        counts[f"{name}_pieces"] = sum(int(label(mask, connectivity=2).max()) for mask in missing) / len(missing)
    return counts
