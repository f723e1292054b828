"""Find patches of EM that look like a given one: embeddings of patches, ranked by similarity.

Image to image alone, with features that a network has already computed, and scored by what is known of a phantom.
Retrieval systems such as MedFinder (Chen et al. 2024, arXiv 2403.15992) also learn to match images with reports.
"""

from __future__ import annotations

import numpy as np
from scipy import stats


def pool_patches(features: np.ndarray, side: int) -> np.ndarray:
    """Compute the embedding of each patch: the mean of a map over squares of a section.

    Args:
        features: (C, z, y, x), a map of any stride.
        side: of a patch, in pixels of the map; what is left over at the far sides belongs to no patch.

    Returns:
        float64 (patches, C), by section, row and column.

    Raises:
        ValueError: If not one patch fits.
    """
    squares = _squares(np.asarray(features, np.float64), side)
    return np.moveaxis(squares.mean(axis=(3, 5)), 0, -1).reshape(-1, len(features))


def commonest_ids(labels: np.ndarray, side: int, least: float = 0.0) -> np.ndarray:
    """Compute the id that most voxels of each patch have.

    Args:
        labels: Integer ids (z, y, x).
        side: of a patch, in voxels.
        least: A patch in which no id has more than this share of the voxels gets 0.

    Returns:
        Ids (patches,), in the order of `pool_patches`.

    Raises:
        ValueError: If not one patch fits.
    """
    squares = _squares(labels[None], side)[0].swapaxes(2, 3)
    ids, counts = stats.mode(squares.reshape(-1, side * side), axis=1)
    return np.where(counts > least * side * side, ids, 0)


def rank_gallery(queries: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    """Sort a gallery by similarity to each query: by the cosine of embeddings from which the gallery's mean is taken.

    Args:
        queries: Embeddings (q, C).
        gallery: Embeddings (n, C).

    Returns:
        Indices of the gallery, the most similar first (q, n).
    """
    mean = gallery.mean(axis=0)
    directions = [_unit_rows(embeddings - mean) for embeddings in (queries, gallery)]
    return np.argsort(-directions[0] @ directions[1].T, axis=1, kind="stable")


def recall_at(k: int, ranks: np.ndarray, relevant: np.ndarray) -> float:
    """Compute recall@k: the share of a query's relevant patches that are among the first k, averaged over queries.

    A random order has k / n in expectation, whatever is relevant, and k = n gives 1.

    Args:
        k: from 1 to n.
        ranks: Indices (q, n), as `rank_gallery` gives them.
        relevant: bool (q, n), which patches of the gallery a query should find; queries without any do not count.

    Raises:
        ValueError: If k is not from 1 to n, or no query has a relevant patch.
    """
    if not 1 <= k <= ranks.shape[1]:
        raise ValueError(f"k is {k}; expected 1 to {ranks.shape[1]}, the patches of the gallery")
    counts = relevant.sum(axis=1)
    if not counts.any():
        raise ValueError("no query has a relevant patch in the gallery")
    hits = np.take_along_axis(relevant, ranks[:, :k], axis=1).sum(axis=1)
    return float((hits[counts > 0] / counts[counts > 0]).mean())


def _squares(array: np.ndarray, side: int) -> np.ndarray:
    """Cut (C, z, y, x) into squares (C, z, rows, side, columns, side)."""
    rows, columns = (n // side for n in array.shape[-2:])
    if not rows * columns:
        raise ValueError(f"no patch of {side} x {side} fits into sections of {array.shape[-2]} x {array.shape[-1]}")
    whole = array[..., : rows * side, : columns * side]
    return whole.reshape(*array.shape[:2], rows, side, columns, side)


def _unit_rows(embeddings: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(embeddings, axis=1, keepdims=True)
    return embeddings / np.where(length > 0, length, 1)
