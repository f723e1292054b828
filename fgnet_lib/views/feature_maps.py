"""Ways to look at the features of a network: principal components, their colours, similarity to a pixel."""

from __future__ import annotations

import numpy as np


def principal_components(features: np.ndarray, count: int = 3) -> np.ndarray:
    """Return features projected on the directions in which they vary most.

    Args:
        features: (C, ...) with any spatial axes, array or CPU tensor without gradient.
        count: components to keep, at most C.

    Returns:
        float64 (..., count), mean 0, in falling order of variance. A component's sign is arbitrary; here its
        largest loading is positive, so that colours do not flip from run to run.
    """
    features = np.asarray(features, dtype=np.float64)
    pixels = features.reshape(len(features), -1)
    pixels = pixels - pixels.mean(axis=1, keepdims=True)
    _, axes = np.linalg.eigh(pixels @ pixels.T)  # in rising order
    axes = axes[:, : -count - 1 : -1]
    axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), range(count)])
    return (pixels.T @ axes).reshape(*features.shape[1:], count)


def stretch(components: np.ndarray) -> np.ndarray:
    """Return components (..., n) as shares in [0, 1], each from its 1st to its 99th percentile over all other axes."""
    low, high = np.percentile(components, (1, 99), axis=tuple(range(components.ndim - 1)))
    return np.clip((components - low) / np.maximum(high - low, 1e-12), 0, 1)


def cosine_similarity(features: np.ndarray, y: int, x: int) -> np.ndarray:
    """Return the cosine of the angle between the features of pixel (y, x) and the features of every pixel.

    Args:
        features: (C, y, x), array or CPU tensor without gradient.
        y, x: the pixel, in pixels of the feature map.

    Returns:
        (y, x) in [-1, 1]; 1 at the pixel itself, 0 where all channels are 0.
    """
    features = np.asarray(features, dtype=np.float64)
    length = np.sqrt(np.einsum("cyx,cyx->yx", features, features))  # features as they are: no copy of unit length
    length[length == 0] = 1
    return np.tensordot(features[:, y, x] / length[y, x], features, axes=1) / length
