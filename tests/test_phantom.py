"""The phantom: repeatable, exact, and made of what it says."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage as ndi

from fgnet_lib.phantom import ORGANELLES, label_organelles, make_phantom
from fgnet_lib.volumes import IGNORE, Volume

pytestmark = pytest.mark.slow  # makes whole phantoms

SMALL = (8, 96, 96)


@pytest.fixture(scope="module")
def default() -> Volume:
    return make_phantom()


def test_types_and_shape():
    phantom = make_phantom(SMALL, seed=3, voxel_size=(30, 6, 6))
    assert phantom.raw.dtype == np.uint8 and phantom.labels.dtype == np.uint64
    assert phantom.shape == phantom.labels.shape == SMALL
    assert phantom.voxel_size == (30, 6, 6)


def test_the_seed_decides_everything():
    first, same, other = (make_phantom(SMALL, seed) for seed in (5, 5, 6))
    assert np.array_equal(first.raw, same.raw) and np.array_equal(first.labels, same.labels)
    assert not np.array_equal(first.raw, other.raw) and not np.array_equal(first.labels, other.labels)


@pytest.mark.parametrize(
    "shape, voxel_size",
    [((1, 1, 1), (40, 8, 8)), ((1, 7, 300), (40, 8, 8)), ((3, 40, 30), (50, 4, 4)), ((20, 40, 40), (10, 10, 10))],
)
def test_any_shape_and_voxel_size(shape, voxel_size):
    phantom = make_phantom(shape, voxel_size=voxel_size)
    assert phantom.shape == shape
    assert np.array_equal(np.unique(phantom.labels), np.arange(1, phantom.labels.max() + 1))


def test_every_label_is_one_object_and_no_voxel_is_without(default):
    labels = default.labels.astype(int)
    assert labels.min() == 1
    for value, box in enumerate(ndi.find_objects(labels), start=1):
        assert ndi.label(labels[box] == value)[1] == 1


def test_many_neurites_of_all_calibres_run_through_most_sections(default):
    labels = default.labels.astype(int)
    profiles = np.stack([np.bincount(section.ravel(), minlength=labels.max() + 1)[1:] for section in labels])
    assert 60 <= labels.max() <= 200
    assert np.median((profiles > 0).sum(0)) > len(labels) / 2
    thin, thick = np.percentile(profiles[profiles > 0], (10, 95))
    assert thick > 15 * thin  # area of a profile


def test_neurites_branch_and_taper(default):
    labels = default.labels.astype(int)
    branched = tapered = 0
    for value, box in enumerate(ndi.find_objects(labels), start=1):
        mask = labels[box] == value
        apart = [np.sum(np.bincount(ndi.label(section)[0].ravel())[1:] > 40) for section in mask]
        calibre = ndi.uniform_filter1d(np.sqrt(mask.sum((1, 2))), 5)
        branched += min(apart) <= 1 and max(apart) >= 2
        tapered += calibre.max() > 1.5 * calibre.min()
    assert branched > 5 and tapered > 20


def test_membranes_are_dark_and_lie_on_the_labels_borders(default):
    border = np.zeros(default.shape, bool)
    border[:, :, 1:] = default.labels[:, :, 1:] != default.labels[:, :, :-1]
    inside = ndi.minimum_filter(default.labels, (1, 9, 9)) == ndi.maximum_filter(default.labels, (1, 9, 9))
    assert default.raw[border].mean() < default.raw[inside].mean() - 40


def test_sections_differ_in_contrast(default):
    means = default.raw.mean((1, 2))
    assert 2 < means.std() < 15


def test_a_missing_section_is_black_and_keeps_its_labels():
    whole, missing = make_phantom(SMALL), make_phantom(SMALL, missing_section=4)
    assert not missing.raw[4].any() and np.array_equal(missing.labels, whole.labels)
    assert np.array_equal(np.delete(missing.raw, 4, 0), np.delete(whole.raw, 4, 0))


def test_a_misaligned_section_slips_with_its_labels():
    size = 40, 8, 4
    whole, slipped = (make_phantom(SMALL, 1, size, misaligned_section=z) for z in (None, 2))
    known = slipped.labels[2] != IGNORE
    rows, columns = np.flatnonzero(known.any(1)), np.flatnonzero(known.any(0))
    height, width = len(rows), len(columns)
    assert np.hypot((96 - height) * 8, (96 - width) * 4) == pytest.approx(96, abs=6)  # nm
    y, x = 96 - height if rows[0] == 0 else 0, 96 - width if columns[0] == 0 else 0
    for changed, original in ((slipped.raw, whole.raw), (slipped.labels, whole.labels)):
        assert np.array_equal(changed[2][known].reshape(height, width), original[2, y : y + height, x : x + width])
        assert np.array_equal(np.delete(changed, 2, 0), np.delete(original, 2, 0))


@pytest.mark.parametrize(
    "wrong",
    [
        {"shape": (8, 96)},
        {"shape": (0, 96, 96)},
        {"voxel_size": (40, -8, 8)},
        {"shape": SMALL, "missing_section": 8},
        {"shape": SMALL, "misaligned_section": -1},
    ],
)
def test_bad_input_is_named(wrong):
    with pytest.raises(ValueError, match=str(list(wrong.values())[-1]).strip("()")):
        make_phantom(**wrong)


def test_organelles_lie_inside_neurites_and_mitochondria_are_dark(default):
    phantom, organelles = default, label_organelles()
    assert organelles.shape == phantom.shape and organelles.dtype == np.uint8
    means = dict(zip(ORGANELLES, ndi.mean(phantom.raw, organelles, range(len(ORGANELLES))), strict=True))
    assert means["mitochondrion"] < min(means["none"], means["reticulum"]) - 10
    borders = phantom.labels[:, :, 1:] != phantom.labels[:, :, :-1]
    assert not organelles[:, :, 1:][borders].any()
