"""What rows are compared with: perfect affinities, and what a crop leaves of the ground truth."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fgnet_lib.metrics import evaluate, voi
from fgnet_lib.phantom import make_phantom
from fgnet_lib.segmentation import segment
from fgnet_lib.study.evaluation import label_pieces, perfect_affinities, predict_rescaled, rescale_sections
from fgnet_lib.volumes import IGNORE, Volume
from fgnet_lib.weights import load_pretrained


def test_a_neuron_that_leaves_the_crop_and_comes_back_is_two_pieces():
    labels = np.array([[[7, 0, 7, 7, 3, IGNORE, IGNORE]]], np.uint64)
    pieces = label_pieces(labels)
    assert len({pieces[0, 0, 0], pieces[0, 0, 2], pieces[0, 0, 4]}) == 3
    assert pieces[0, 0, 2] == pieces[0, 0, 3]
    assert np.array_equal(pieces[labels == 0], [0]) and np.all(pieces[labels == IGNORE] == IGNORE)


def test_objects_in_one_piece_stay_as_they_are():
    labels = make_phantom((8, 64, 64), seed=0).labels
    assert sum(voi(label_pieces(labels), labels)) < 1e-9


@pytest.mark.slow
def test_perfect_affinities_of_neurons_give_neurons():
    """Not without any error: what is thinner than a widened border is lost; that is what the row measures."""
    phantom = make_phantom((16, 96, 96), seed=0)
    affinities = perfect_affinities(phantom)
    assert affinities.shape == (3, *phantom.shape) and affinities.dtype == np.float32
    assert evaluate(segment(affinities, phantom.voxel_size, 0.5), phantom.labels).arand < 0.05


@pytest.mark.parametrize("voxel_size, views", [((40.0, 8.0, 8.0), 1), ((8.0, 8.0, 8.0), 3)])
def test_three_views_are_taken_of_isotropic_volumes_only(monkeypatch, voxel_size, views):
    seen: list[bool] = []

    def predict(model, raw, progress, three_views, engine):
        seen.append(three_views)

    monkeypatch.setattr("fgnet_lib.study.evaluation.predict", predict)
    volume: Volume = replace(make_phantom((4, 32, 32), seed=0), voxel_size=voxel_size)
    predict_rescaled(load_pretrained(), volume, rescale=False, three_views=True)
    assert seen == [views == 3]


def test_sections_narrower_than_a_voxel_of_training_are_said_to_have_another_unit():
    volume = Volume(np.ones((6, 70, 90), np.uint8), (0.04, 0.008, 0.008), name="a.tif")
    with pytest.raises(ValueError, match=r"a\.tif: its sections are 0\.56 x 0\.72 nm.*another unit"):
        rescale_sections(volume)
