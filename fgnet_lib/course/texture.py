"""Grey values and power spectra, by which two EM volumes compare without showing the same tissue."""

from __future__ import annotations

import numpy as np
from scipy import ndimage as ndi

GREY_BINS = np.arange(0, 257, 8)
WAVELENGTHS = np.geomspace(400, 20, 14)  # nm, edges of the bands of a spectrum


def grey_histogram(raw: np.ndarray) -> np.ndarray:
    """Return the share of voxels (uint8, any shape) in each bin between `GREY_BINS`; the shares sum to 1."""
    return np.histogram(raw, GREY_BINS)[0] / raw.size


def overlap(histogram: np.ndarray, other: np.ndarray) -> float:
    """Return the area that two histograms share: 1 if they are equal, 0 if they are apart (histogram intersection)."""
    return float(np.minimum(histogram, other).sum())


def power_spectrum(raw: np.ndarray, nm: float) -> np.ndarray:
    """Return how much structures of each size contribute to the in-plane contrast, whatever the contrast itself.

    Each section is brought to mean 0 and variance 1, faded out at its rim (Hann window), and Fourier transformed; the
    power is averaged over sections and over all directions (periodogram).

    Args:
        raw: sections (z, y, x); the largest square at their low corner counts.
        nm: pixel size, at most 10, since a wave needs two pixels.

    Returns:
        Power per band between `WAVELENGTHS`, in nm²; NaN where the sections are too small to hold such waves.

    Raises:
        ValueError: pixels larger than 10 nm.
    """
    if nm > WAVELENGTHS[-1] / 2:
        raise ValueError(
            f"pixels of {nm} nm cannot show waves of {WAVELENGTHS[-1]:g} nm: give sections of 10 nm or less"
        )
    side = min(raw.shape[1:])
    image = raw[:, :side, :side].astype(np.float64)
    image -= image.mean((1, 2), keepdims=True)
    image /= np.maximum(image.std((1, 2), keepdims=True), 1e-12)
    window = np.hanning(side + 2)[1:-1, None] * np.hanning(side + 2)[1:-1]
    power = np.mean(np.abs(np.fft.fft2(image * window)) ** 2, axis=0) * nm**2 / np.sum(window**2)
    waves = np.fft.fftfreq(side, nm)
    band = np.digitize(np.hypot(waves[:, None], waves), 1 / WAVELENGTHS)
    with np.errstate(invalid="ignore"):
        return ndi.mean(power, band, np.arange(1, len(WAVELENGTHS)))
