"""How the rows are evaluated: on which volumes, and in which voxels."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Literal

import fastremap
import numpy as np
from scipy import ndimage
from skimage.measure import label

from fgnet_lib.affinities import affinities_from_labels, widen_borders
from fgnet_lib.fgnet import FGNet
from fgnet_lib.inference import Prediction, predict
from fgnet_lib.phantom import make_phantom
from fgnet_lib.segmentation import sweep
from fgnet_lib.volumes import IGNORE, Volume, is_anisotropic

TRAINED_NM = 10.0  # FIB-25's voxel
BLUR_NM = 5.0  # of perfect affinities: half a voxel of FIB-25
# Evaluated on: data set -> whether its sections are rescaled to FIB-25's voxel before the network sees them.
VOLUMES = {"fib25": False, "gala": False, "phantom": False, "ac4": True, "cremi_b_mini": True}


def rescale_sections(volume: Volume) -> np.ndarray:
    """Bring a volume's sections to FIB-25's voxels in y and x; z stays as it is.

    Raises:
        ValueError: a section is narrower than one of those voxels.
    """
    if min(extent := [n * size for n, size in zip(volume.shape[1:], volume.voxel_size[1:], strict=True)]) < TRAINED_NM:
        raise ValueError(
            f"{volume.name}: its sections are {extent[0]:g} x {extent[1]:g} nm, less than a voxel of {TRAINED_NM} nm; "
            f"is its voxel size, {volume.voxel_size} nm, in another unit?"
        )
    zoom = (1, *(size / TRAINED_NM for size in volume.voxel_size[1:]))
    return ndimage.zoom(volume.raw, zoom, order=1, grid_mode=True, mode="nearest")


def restore_voxels(affinities: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Bring affinities (3, z, y, x) of rescaled sections back to the voxels of their volume, of `shape` (z, y, x).

    Returns:
        float32 from 0 to 1; the affinities themselves where they have this shape.
    """
    if affinities.shape[1:] == tuple(shape):
        return affinities
    back = (1, *(n / m for n, m in zip(shape, affinities.shape[1:], strict=True)))
    return ndimage.zoom(affinities, back, order=1, grid_mode=True, mode="nearest").clip(0, 1)


def predict_rescaled(
    model: FGNet, volume: Volume, rescale: bool, three_views: bool = False, engine: Literal["auto", "torch"] = "auto"
) -> Prediction:
    """Affinities in the volume's own voxels, predicted in FIB-25's voxels in-plane where `rescale`.

    Three views are taken of isotropic volumes only.
    """
    if not rescale:
        views = three_views and not is_anisotropic(volume.voxel_size)
        return predict(model, volume.raw, progress=False, three_views=views, engine=engine)
    *outputs, attention = predict(model, rescale_sections(volume), progress=False, engine=engine)
    refined, coarse = (None if output is None else restore_voxels(output, volume.shape) for output in outputs)
    return Prediction(refined, coarse, attention)


def label_pieces(labels: np.ndarray) -> np.ndarray:
    """Number each connected piece of each label (z, y, x): what a crop leaves of neurons that go out and come back.

    Unlabelled and unknown voxels keep their value.
    """
    pieces = label(np.where(labels == IGNORE, 0, labels), background=0, connectivity=1)
    return np.where((labels == 0) | (labels == IGNORE), labels, pieces.astype(labels.dtype))


def perfect_affinities(volume: Volume) -> np.ndarray:
    """The affinities (3, z, y, x) of a network without faults.

    They are the ground truth's, with borders widened as in training, and blurred a little, so that the watershed finds
    slopes instead of plateaus.
    """
    borders = widen_borders(volume.labels, in_3d=not is_anisotropic(volume.voxel_size))
    sigma = BLUR_NM / np.array(volume.voxel_size)
    return ndimage.gaussian_filter(affinities_from_labels(borders).astype(np.float32), (0, *sigma))


def postprocessing_version() -> int:
    """Compute a number that changes when fragments or agglomeration do: a checksum of what they make of fixed input.

    Rows of two versions must not be compared. The input is a phantom's affinities with noise, isotropic and not.
    """
    labels = make_phantom((8, 96, 96), seed=0).labels
    noise = np.random.default_rng(0).normal(0, 0.15, (3, *labels.shape))
    smooth = ndimage.gaussian_filter(affinities_from_labels(widen_borders(labels)).astype(float), (0, 0.5, 1, 1))
    affinities = (np.clip(smooth + noise, 0, 1) * 255).round().astype(np.float32) / 255  # the same on every machine
    checksum = 0
    for voxel_size in ((40.0, 8.0, 8.0), (10.0, 10.0, 10.0)):
        for segmentation in sweep(affinities, voxel_size, [0.2, 0.5, 0.8]).values():
            checksum = zlib.crc32(np.ascontiguousarray(fastremap.renumber(segmentation)[0], np.uint32), checksum)
    return checksum
