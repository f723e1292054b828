"""A decoder between the voxels agrees with itself on them, and its doubt is counted right."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from fgnet_lib.configuration import MINI
from fgnet_lib.fgnet import FGNet
from fgnet_lib.neighbours.calibration import (
    calibration_error,
    errors_found,
    fit_temperature,
    queue_places,
    reliability,
    risk_coverage,
    set_temperature,
)
from fgnet_lib.neighbours.continuous import (
    OPENING,
    ContinuousDecoder,
    choose_doubtful,
    decode,
    decoding_loss,
    dice_ce_loss,
    draw_passes,
    dropout_alone,
    fine_weight,
    fourier_coordinates,
    frozen_features,
    grid_points,
    halve_sections,
    label_sections,
    mark_boundaries,
    sample_features,
    score_doubt,
    train_decoder,
)
from fgnet_lib.phantom import make_phantom
from fgnet_lib.volumes import Volume

SIDES = st.tuples(st.integers(1, 9), st.integers(1, 9))
SEEDS = st.integers(0, 10_000)
CHECKED = settings(max_examples=30)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def build_decoder(channels: int = 3, frequencies: int = 4) -> ContinuousDecoder:
    torch.manual_seed(0)
    return ContinuousDecoder(channels, frequencies)


@CHECKED
@given(shape=SIDES, channels=st.integers(1, 4), seed=SEEDS)
def test_a_query_of_the_grid_is_the_output_of_the_training_grid(shape, channels, seed):
    decoder, features, points = build_decoder(channels).eval(), random(channels, *shape, seed=seed), grid_points(shape)
    trained_on = decoder.embed(features.flatten(1).T, points)  # as in training, where nothing is interpolated
    torch.testing.assert_close(sample_features(features, points), features.flatten(1).T, atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        expected = torch.sigmoid(decoder.look(trained_on)[1])
    torch.testing.assert_close(decode(decoder, features, points).coarse, expected, atol=1e-3, rtol=1e-3)


@CHECKED
@given(shape=SIDES, factor=st.sampled_from([1, 2, 3]))
def test_points_are_the_middles_of_equal_parts(shape, factor):
    points = grid_points(shape, factor).reshape(shape[0] * factor, shape[1] * factor, 2)
    coarse = points.reshape(shape[0], factor, shape[1], factor, 2).mean((1, 3))
    torch.testing.assert_close(coarse.flatten(0, 1), grid_points(shape), atol=1e-5, rtol=1e-5)
    assert points.abs().max() < 1 and len(grid_points(shape, factor)) == math.prod(shape) * factor**2


def test_half_as_many_points_lie_between_four_voxels():
    assert grid_points((4, 2), 0.5).tolist() == [[-0.5, 0.0], [0.5, 0.0]]
    features = torch.arange(8.0).reshape(1, 4, 2)
    assert sample_features(features, grid_points((4, 2), 0.5))[:, 0].tolist() == pytest.approx([1.5, 5.5])
    assert (sample_features(torch.ones(1, 4, 2), grid_points((4, 2), 2)) == 1).all()  # up to the edges


@CHECKED
@given(frequencies=st.integers(0, 6), opened=st.floats(0, 1), seed=SEEDS)
def test_coordinates_open_one_frequency_after_the_other(frequencies, opened, seed):
    points = torch.rand(5, 2, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    waves = fourier_coordinates(points, frequencies, opened)
    assert waves.shape == (5, 2 + 4 * frequencies) and torch.equal(waves[:, :2], points)
    n = math.floor(opened * frequencies)
    assert torch.equal(waves[:, : 2 + 4 * n], fourier_coordinates(points, n))
    assert (waves[:, 2 + 4 * n :] == 0).all()
    squares = waves[:, 2:].unflatten(1, (frequencies, 2, 2)).square().sum(2) if frequencies else torch.zeros(5, 0, 2)
    torch.testing.assert_close(squares[:, :n], torch.ones(5, n, 2), atol=1e-4, rtol=1e-4)  # sin^2 + cos^2


@CHECKED
@given(points=st.integers(1, 200), seed=SEEDS)
def test_eval_makes_the_variance_exactly_zero_and_dropout_alone_does_not(points, seed):
    decoder, inputs = build_decoder(), random(points, 3 + 2 + 16, seed=seed)
    decoder.eval()
    assert (draw_passes(decoder, inputs, 4).var(0) == 0).all()  # the trap
    with dropout_alone(decoder):
        drawn = draw_passes(decoder, inputs, 4)
        assert all(module.training == isinstance(module, nn.Dropout) for module in decoder.modules())
    assert drawn.shape == (4, points) and (points < 20 or drawn.var(0).max() > 0)
    assert not any(module.training for module in decoder.modules())


@CHECKED
@given(points=st.integers(1, 500), share=st.sampled_from([0.125, 0.5, 0.01, 1.0]), seed=SEEDS)
def test_the_budget_is_the_floor_of_the_share_and_goes_to_the_highest(points, share, seed):
    scores = torch.from_numpy(np.random.default_rng(seed).integers(0, 9, points))  # with equal ones
    chosen = choose_doubtful(scores, share)
    assert len(chosen) == math.floor(share * points) and len(set(chosen.tolist())) == len(chosen)
    left = sorted(set(range(points)) - set(chosen.tolist()))
    assert not len(chosen) or not left or scores[chosen].min() >= scores[left].max()
    assert chosen.tolist() == sorted(chosen.tolist(), key=lambda i: (-scores[i], i))


@CHECKED
@given(a=st.floats(0, 1), b=st.floats(0, 1))
def test_the_variance_of_two_passes_is_half_their_squared_distance(a, b):
    drawn = torch.tensor([[a], [b]], dtype=torch.float64)
    torch.testing.assert_close(score_doubt("variance", drawn[0], drawn), (drawn[0] - drawn[1]) ** 2 / 2)


@CHECKED
@given(seed=SEEDS)
def test_with_two_classes_entropy_and_margin_put_points_into_the_same_order(seed):
    p = torch.rand(40, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    orders = [score_doubt(kind, p, p[None]).argsort() for kind in ("entropy", "margin")]
    assert torch.equal(*orders)
    ends = score_doubt("entropy", torch.tensor([0.0, 0.5, 1.0]), p[None])
    assert ends.tolist() == [0, 1, 0]


def test_the_second_look_changes_the_chosen_points_alone():
    decoder, features = build_decoder(), random(3, 8, 8)
    decoding = decode(decoder, features, grid_points((8, 8)))
    others = sorted(set(range(64)) - set(decoding.chosen.tolist()))
    assert len(decoding.chosen) == 8 and torch.equal(decoding.coarse[others], decoding.fine[others])
    assert not torch.equal(decoding.coarse[decoding.chosen], decoding.fine[decoding.chosen])
    assert decoding.variance[decoding.chosen].min() >= decoding.variance[others].max()
    decoding = decode(ContinuousDecoder(3, 4, "entropy"), features, grid_points((8, 8)))
    assert set(decoding.chosen.tolist()) == set((decoding.coarse - 0.5).abs().argsort()[:8].tolist())


def test_the_loss_goes_from_coarse_to_fine():
    assert [fine_weight(epoch) for epoch in (0, 3, 4, 9)] == [0.2, 0.8, 1, 1]
    truth = torch.tensor([1.0, 0, 0, 1])
    assert dice_ce_loss(40 * (truth - 0.5), truth) < 1e-6
    wrong = dice_ce_loss(torch.zeros(4), truth)
    assert wrong.item() == pytest.approx(0.8 * (1 - (2 * 1 + 1) / (1 + 2 + 1)) + 0.2 * math.log(2))
    decoder, features, points = build_decoder(), random(64, 3), grid_points((8, 8))
    for epoch in (0, OPENING):
        decoding_loss(decoder, features, points, torch.ones(64), epoch).backward()
        assert decoder.fine_head.weight.grad.abs().sum() > 0
    highest = decoder.coarse[0].weight.grad[:, -4:]
    assert highest.abs().sum() > 0  # open in the second of the two epochs
    with pytest.raises(ValueError, match="choice is 'luck'"):
        ContinuousDecoder(3, 4, "luck")
    decoder.eval()  # without dropout both passes are equal, and the second look is at the first points
    for epoch, opened in ((0, 0), (4, 1), (8, 1), (OPENING, 4)):
        inputs = decoder.embed(features, points, opened / 4)
        hidden, coarse = decoder.look(inputs)
        fine = decoder.look_again(inputs, hidden, coarse, torch.arange(8))
        losses = dice_ce_loss(fine, torch.ones(64)), dice_ce_loss(coarse, torch.ones(64))
        expected = np.average([loss.item() for loss in losses], weights=[fine_weight(epoch), 1 - fine_weight(epoch)])
        loss = decoding_loss(decoder, features, points, torch.ones(64), epoch)
        assert loss.item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.slow
def test_a_decoder_of_frozen_features_learns_a_boundary():
    volume = make_phantom((3, 48, 40), seed=0)
    model = FGNet(MINI).eval()
    features, (truth, known) = frozen_features(model, volume.raw), mark_boundaries(volume)
    assert features.shape == (16, 3, 48, 40) and 0.02 < truth.mean() < 0.9 and known.all()
    with torch.no_grad():
        raw = torch.from_numpy(volume.raw / np.float32(255))[None, None]
        expected, head = model(raw).refined, model.refined_decoder.head(features[None])
    torch.testing.assert_close(head, expected, atol=1e-4, rtol=1e-4)
    decoder = build_decoder(17)
    seen = torch.cat([features, torch.from_numpy(truth.astype(np.float32))[None]])  # with a feature that tells all
    known[:, :20] = False
    losses = train_decoder(decoder, label_sections(seen, truth, known), epochs=4, steps=15, seed=0)
    assert len(losses) == 4 and losses[-1] < 0.5 * losses[0] and not decoder.training
    fine = decode(decoder, seen[:, 0], grid_points((48, 40))).fine.reshape(48, 40).numpy() > 0.5
    assert (fine == truth[0]).mean() > 0.95


def test_a_boundary_is_within_a_section_where_sections_are_thick():
    labels = np.ones((2, 6, 6), np.uint64)
    labels[1] = 2  # another neuron in the next section
    raw = np.zeros(labels.shape, np.uint8)
    assert not mark_boundaries(Volume(raw, (40.0, 8.0, 8.0), labels))[0].any()
    assert mark_boundaries(Volume(raw, (8.0, 8.0, 8.0), labels))[0].all()


def test_training_pairs_a_point_with_its_own_voxel_and_its_rate_falls_to_0():
    truth = np.zeros((1, 10, 40), bool)
    truth[:, :, 20:] = True  # a matter of x alone, and no feature tells it
    sections, rates = label_sections(torch.ones(1, *truth.shape), truth, np.ones_like(truth)), []
    hook = register_optimizer_step_post_hook(lambda optimizer, *_: rates.append(optimizer.param_groups[0]["lr"]))
    decoder = build_decoder(1, 0)
    train_decoder(decoder, sections, epochs=5, steps=20, seed=0)
    hook.remove()
    fine = decode(decoder, sections[0].features, grid_points((10, 40))).coarse.reshape(10, 40).numpy() > 0.5
    assert (fine == truth[0]).mean() > 0.9
    assert rates == sorted(rates, reverse=True) and rates[-1] < 0.01 * rates[0]


def test_half_a_section_is_the_mean_of_four_voxels():
    array = np.arange(30).reshape(1, 5, 6)
    assert halve_sections(array).tolist() == [[[3.5, 5.5, 7.5], [15.5, 17.5, 19.5]]]


# Calibration


@CHECKED
@given(n=st.integers(1, 60), bins=st.integers(1, 12), seed=SEEDS)
def test_the_calibration_error_against_a_loop_over_bins(n, bins, seed):
    rng = np.random.default_rng(seed)
    p, truth = rng.choice([0.0, 1.0, *rng.random(6)], n), rng.random(n) < 0.4
    total = 0.0
    for k in range(bins):
        inside = [i for i in range(n) if min(int(p[i] * bins), bins - 1) == k]
        if inside:
            total += abs(sum(p[i] for i in inside) - sum(truth[i] for i in inside))
    assert calibration_error(p, truth, bins) == pytest.approx(total / n)
    assert reliability(p, truth, bins)[:, 0].sum() == n


def test_a_temperature_repairs_logits_that_were_multiplied_or_divided():
    rng = np.random.default_rng(0)
    honest = rng.random(20_000)
    truth = rng.random(20_000) < honest
    loud = set_temperature(honest, 1 / 3)
    assert calibration_error(loud, truth) > 0.1 > 0.02 > calibration_error(honest, truth)
    temperature = fit_temperature(loud, truth)
    assert temperature == pytest.approx(3, rel=0.05)
    assert calibration_error(set_temperature(loud, temperature), truth) < 0.02
    assert fit_temperature(set_temperature(honest, 5), truth) == pytest.approx(0.2, rel=0.05)  # or were divided
    stored = np.array([0, 1], np.float16)  # as affinities are
    np.testing.assert_allclose(set_temperature(stored, 7), set_temperature(stored.astype(float), 7))
    np.testing.assert_allclose(set_temperature(honest, 1), honest, atol=1e-6)
    assert (np.argsort(set_temperature(honest[:99], 7)) == np.argsort(honest[:99])).all()


@CHECKED
@given(n=st.integers(2, 80), seed=SEEDS)
def test_with_an_oracle_the_risk_never_falls_as_coverage_grows(n, seed):
    wrong = np.random.default_rng(seed).random(n) < 0.3
    coverage, risk = risk_coverage(wrong.astype(float), wrong)
    assert (np.diff(risk) >= -1e-12).all() and coverage[-1] == 1 and risk[-1] == pytest.approx(wrong.mean())


@CHECKED
@given(n=st.integers(1, 80), seed=SEEDS)
def test_an_oracle_finds_the_most_errors_at_any_budget(n, seed):
    rng = np.random.default_rng(seed)
    wrong, shares = np.append(rng.random(n) < 0.3, True), [0, 0.1, 0.125, 0.5, 1]
    best, other = errors_found(wrong.astype(float), wrong, shares), errors_found(rng.random(n + 1), wrong, shares)
    assert (best >= other).all() and best[0] == 0 and best[-1] == other[-1] == 1
    budget = math.floor(0.125 * (n + 1))
    assert best[2] == pytest.approx(min(1, budget / wrong.sum()))


def test_the_queue_begins_with_the_most_doubtful_place_and_keeps_its_distance():
    scores = np.zeros((3, 10, 10))
    scores[1, 4, 4], scores[1, 4, 5], scores[1, 8, 8], scores[0, 4, 4] = 9, 8, 7, 6
    assert queue_places(scores, 3, (0, 2, 2)) == [(1, 4, 4), (1, 8, 8), (0, 4, 4)]
    assert len(queue_places(scores, 99, (3, 10, 10))) == 1
    scores[0, 0, 0] = np.nan
    with pytest.raises(ValueError, match=r"1 of \d+ scores are nan or infinite"):
        queue_places(scores, 3, (0, 2, 2))


def test_errors_are_found_in_the_order_of_whole_numbers_and_at_exact_shares():
    assert errors_found(np.array([0, 10, 200], np.uint8), np.array([False, False, True]), [0.34]) == 1
    wrong = np.arange(100) == 28  # the 29th place
    assert errors_found(-np.arange(100.0), wrong, [0.28, 0.29]).tolist() == [0, 1]


def test_unknown_voxels_teach_nothing():
    truth, features = np.random.default_rng(0).random((2, 12, 10)) > 0.5, torch.randn(4, 2, 12, 10)
    known = np.ones_like(truth)
    known[0] = known[1, :5] = False
    losses = [
        train_decoder(build_decoder(4), label_sections(features, labels, known), epochs=4, steps=4, seed=0)
        for labels in (truth, truth ^ ~known)
    ]
    assert np.isfinite(losses).all() and losses[0] == losses[1]
