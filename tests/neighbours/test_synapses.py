"""Synapses have exact points, masks exact sizes, pairs what their principle says, and a phantom stays as it was."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fgnet_lib.neighbours.synapses import (
    APART,
    Synapses,
    detect_points,
    draw_balls,
    draw_squares,
    match_detections,
    pair_nearest,
    pair_optimally,
    place_synapses,
    predict_sites,
    stain_synapses,
    train_detector,
    weighted_cross_entropy,
)
from fgnet_lib.phantom import make_phantom
from fgnet_lib.volumes import IGNORE, Volume

ONE = (1.0, 1.0, 1.0)
ANISOTROPIC = (40.0, 8.0, 8.0)
PLACES = st.lists(st.tuples(*[st.integers(0, 20)] * 3), min_size=1, max_size=5, unique=True)


@pytest.fixture(scope="module")
def phantom() -> Volume:
    return make_phantom((12, 128, 128), seed=2)


@pytest.fixture(scope="module")
def synapses(phantom) -> Synapses:
    return place_synapses(phantom, seed=0)


def test_sites_lie_in_two_neurites_at_equal_distance_from_their_membrane(phantom, synapses):
    assert len(synapses.pre) == len(synapses.post) >= 3
    for pre, post in zip(*synapses, strict=True):
        line = np.linspace(pre, post, 13).round().astype(int)  # the voxels from one site to the other
        labels = phantom.labels[tuple(line.T)]
        assert labels[0] != labels[-1] and np.count_nonzero(np.diff(labels.astype(np.int64))) == 1
        assert pre[0] == post[0] and np.abs(pre - post).sum() == 12  # 96 nm in the plane
    middles = (synapses.pre + synapses.post) / 2 * ANISOTROPIC
    far = np.linalg.norm(middles[:, None] - middles, axis=-1)
    assert (far[~np.eye(len(far), dtype=bool)] >= APART).all()
    again = place_synapses(phantom, seed=0)
    assert all(np.array_equal(a, b) for a, b in zip(again, synapses, strict=True))


def test_stain_darkens_around_the_sites_alone_and_the_phantom_stays_as_it_is(phantom, synapses):
    before = phantom.raw.copy()
    stained = stain_synapses(phantom, synapses)
    assert np.array_equal(phantom.raw, before) and stained.labels is phantom.labels
    assert (stained.raw <= phantom.raw).all()
    far = np.ones(phantom.shape, bool)
    for z, y, x in synapses.pre:
        far[max(z - 2, 0) : z + 3, max(y - 20, 0) : y + 21, max(x - 20, 0) : x + 21] = False
    assert np.array_equal(stained.raw[far], phantom.raw[far])
    behind = np.round(0.45 * synapses.pre + 0.55 * synapses.post).astype(int)
    darker = phantom.raw[tuple(behind.T)].astype(int) - stained.raw[tuple(behind.T)]
    assert np.median(darker) > 40


def test_no_site_lies_in_unknown_voxels(phantom):
    labels = phantom.labels.copy()
    labels[:, :, ::40], labels[:, 64:] = 0, IGNORE
    for seed in range(20):
        sites = np.concatenate(place_synapses(replace(phantom, labels=labels), seed))
        assert not np.isin(labels[tuple(sites.T)], (0, IGNORE)).any()


def test_no_labels_no_synapses(phantom):
    with pytest.raises(ValueError, match="has no labels"):
        place_synapses(Volume(phantom.raw, phantom.voxel_size, name="mine"))


@settings(max_examples=20)
@given(point=st.tuples(*[st.integers(3, 8)] * 3))
def test_a_ball_has_123_voxels_and_a_square_49(point):
    points = np.array([point])
    ball, square = draw_balls(points, (12, 12, 12)), draw_squares(points, (12, 12, 12))
    assert ball.sum() == 123 and square.sum() == 49
    away = np.argwhere(ball) - points
    assert (away**2).sum(1).max() == 9 and (np.argwhere(square)[:, 0] == point[0]).all()


def test_masks_end_where_the_volume_ends():
    corner = np.array([[0, 0, 0]])
    assert draw_balls(corner, (9, 9, 9)).sum() == 29 and draw_squares(corner, (9, 9, 9)).sum() == 16
    assert draw_balls(np.zeros((0, 3)), (4, 4, 4)).sum() == 0


def test_sites_weigh_as_much_as_all_the_rest():
    target = torch.zeros(1, 2, 2, 4, 4)
    target[0, 0, 0, 0, 0] = 1
    logits = torch.zeros_like(target)
    assert weighted_cross_entropy(logits, target).item() == pytest.approx(np.log(2) * (1 + 0.5) / 2)
    logits.requires_grad_(True)
    weighted_cross_entropy(logits, target).backward()
    gradient = logits.grad[0, 0]
    assert -gradient[0, 0, 0].item() == pytest.approx(gradient.clamp(min=0).sum().item())


@settings(max_examples=40)
@given(pre=PLACES, post=PLACES)
def test_pairs_are_those_of_brute_force(pre, post):
    pre, post = np.array(pre), np.array(post)
    nearest = pair_nearest(pre, post, ANISOTROPIC)
    far = np.array([[np.linalg.norm((a - b) * ANISOTROPIC) for a in pre] for b in post])
    assert all(far[k, chosen] == min(far[k]) for k, chosen in enumerate(nearest))
    partners = pair_optimally(pre, post, ANISOTROPIC)
    paired = partners >= 0
    assert paired.sum() == min(far.shape) == len(set(partners[paired]))
    small = far if len(post) <= len(pre) else far.T
    best = min(small[range(len(small)), list(order)].sum() for order in permutations(range(small.shape[1]), len(small)))
    assert far[paired, partners[paired]].sum() == pytest.approx(best)
    if len(set(nearest)) == len(post):  # nobody shares a partner: nearest is then optimal, too
        assert far[range(len(post)), nearest].sum() == pytest.approx(best)


def test_in_a_crowd_the_nearest_is_wrong_and_with_several_posts_assignment_is():
    pre, post = np.array([[0, 0, 0], [0, 0, 10]]), np.array([[0, 0, 6], [0, 0, 16]])
    assert pair_nearest(pre, post, ONE).tolist() == [1, 1] and pair_optimally(pre, post, ONE).tolist() == [0, 1]
    post = np.array([[0, 0, 1], [0, 1, 0], [0, 0, 11]])  # the first pre-synaptic site has two partners
    assert pair_nearest(pre, post, ONE).tolist() == [0, 0, 1]
    assert sorted(pair_optimally(pre, post, ONE)) == [-1, 0, 1]


@settings(max_examples=40)
@given(points=PLACES, truth=PLACES, distance=st.integers(1, 12))
def test_as_many_detections_count_as_can_have_a_point_of_their_own(points, truth, distance):
    points, truth = np.array(points), np.array(truth)
    close = np.linalg.norm(points[:, None] - truth, axis=-1) <= distance
    small = close if len(points) <= len(truth) else close.T
    orders = permutations(range(small.shape[1]), len(small))
    hits = max(small[range(len(small)), list(order)].sum() for order in orders)
    scores = match_detections(points, truth, ONE, distance)
    assert scores.precision == pytest.approx(hits / len(points)) and scores.recall == pytest.approx(hits / len(truth))
    expected = 2 * scores.precision * scores.recall / max(scores.precision + scores.recall, 1e-9)
    assert scores.f1 == pytest.approx(expected)


def test_nothing_detected_scores_nothing():
    none, some = np.zeros((0, 3)), np.ones((2, 3))
    assert match_detections(none, none, ONE, 1) == (1, 1, 1)
    assert match_detections(none, some, ONE, 1) == match_detections(some, none, ONE, 1) == (0, 0, 0)


def test_peaks_are_found_where_balls_are():
    points = np.array([[4, 10, 10], [4, 10, 40], [9, 30, 25]])
    detections = detect_points(draw_balls(points, (14, 48, 48)).astype(np.float32), 0.5)
    assert sorted(map(tuple, detections)) == sorted(map(tuple, points))


@pytest.mark.slow
def test_a_detector_learns_a_step_and_goes_on_without_touching_its_model(phantom, synapses):
    masks = np.stack([draw_balls(points, phantom.shape) for points in synapses])
    first, losses = train_detector(phantom.raw, masks, 3, seed=0)
    before = {name: tensor.clone() for name, tensor in first.state_dict().items()}
    second, _ = train_detector(phantom.raw, masks, 1, seed=0, model=first)
    assert len(losses) == 3 and np.isfinite(losses).all()
    assert all(torch.equal(tensor, before[name]) for name, tensor in first.state_dict().items())
    assert any(not torch.equal(tensor, before[name]) for name, tensor in second.state_dict().items())
    maps = predict_sites(second, phantom.raw[:8, :64, :64])
    assert maps.shape == (2, 8, 64, 64) and 0 <= maps.min() <= maps.max() <= 1


def test_either_side_may_be_pre_synaptic(phantom):
    sites = [place_synapses(phantom, seed) for seed in range(5)]
    assert {int(np.sign(step.sum())) for pre, post in sites for step in post - pre} == {-1, 1}


def test_density_lies_behind_the_membrane_and_vesicles_in_the_neurite_before_it(phantom, synapses):
    for pre, post in zip(*synapses, strict=True):
        stained = stain_synapses(phantom, Synapses(pre[None], post[None]))
        darker = phantom.raw.astype(int) - stained.raw
        before, behind = (tuple(np.round(pre + share * (post - pre)).astype(int)) for share in (0.4, 0.7))
        assert darker[behind] > darker[before]
        changed = np.argwhere(darker > 0)
        across = (post - pre) / np.linalg.norm(post - pre)
        depth = ((changed - (pre + post) / 2) * ANISOTROPIC) @ across
        elsewhere = phantom.labels[tuple(changed.T)] != phantom.labels[tuple(pre)]
        assert np.abs(depth[elsewhere]).max() < 60  # nm, as far as the density reaches
        assert np.linalg.norm((changed - pre) * ANISOTROPIC, axis=1).max() < 180


def test_two_peaks_of_one_site_are_one_detection():
    points = np.array([[4, 10, 10], [4, 10, 15]])
    assert len(detect_points(draw_balls(points, (9, 24, 24), 1).astype(np.float32), 0.1)) == 1
    assert len(detect_points(draw_balls(points, (9, 24, 24), 1).astype(np.float32), 0.1, apart=4)) == 2
