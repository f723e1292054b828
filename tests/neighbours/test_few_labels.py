"""Inflated and bending kernels are what their equations say, the two contrasts reward what they reward, views agree."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fgnet_lib.configuration import MINI
from fgnet_lib.fgnet import FGNet
from fgnet_lib.natural_encoder import build_natural_encoder
from fgnet_lib.neighbours.few_labels import (
    Reconstruction,
    SnakeConv3d,
    VolumeEncoder,
    accumulate_offsets,
    consistency_loss,
    distort,
    inconsistency,
    inflate,
    info_nce,
    match_softly,
    released_contrast,
    sample_taps,
    transfer_weights,
    without_depth,
)

SMALL = replace(MINI, encoder=None, widths=(4, 4, 8, 8, 8), dense_levels=2)
SIZES = st.tuples(st.integers(1, 3), st.integers(1, 3), st.sampled_from([1, 3, 5]))  # outputs, inputs, side
CHECKED = settings(max_examples=20)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


@CHECKED
@given(sizes=SIZES, depth=st.sampled_from([1, 3, 5]), sections=st.integers(1, 6))
def test_centre_inflation_filters_each_section_as_before(sizes, depth, sections):
    outputs, inputs, side = sizes
    weight, volume = random(outputs, inputs, side, side), random(2, inputs, sections, 7, 6, seed=1)
    result = F.conv3d(volume, inflate(weight, depth, "centre"), padding=(depth // 2, side // 2, side // 2))
    for z in range(sections):
        close(result[:, :, z], F.conv2d(volume[:, :, z], weight, padding=side // 2))


@CHECKED
@given(sizes=SIZES, depth=st.sampled_from([1, 3, 5]))
def test_average_inflation_of_equal_sections_is_the_2d_result_inside(sizes, depth):
    outputs, inputs, side = sizes
    weight, section = random(outputs, inputs, side, side), random(1, inputs, 7, 6, seed=1)
    volume = section[:, :, None].repeat(1, 1, depth + 2, 1, 1)
    result = F.conv3d(volume, inflate(weight, depth, "average"), padding=(depth // 2, side // 2, side // 2))
    inside = result[:, :, depth // 2 : result.shape[2] - depth // 2]
    close(inside, F.conv2d(section, weight, padding=side // 2)[:, :, None].expand_as(inside))


@CHECKED
@given(sizes=SIZES, depth=st.sampled_from([3, 5]))
def test_the_mean_of_shifted_centres_is_the_average(sizes, depth):
    outputs, inputs, side = sizes
    weight = random(outputs, inputs, side, side)
    shifted = [inflate(weight, depth, "centre").roll(shift, 2) for shift in range(depth)]
    close(torch.stack(shifted).mean(0), inflate(weight, depth, "average"))


@torch.no_grad()
def test_a_network_inflated_at_the_centre_sees_each_section_alone():
    torch.manual_seed(0)
    network = FGNet(replace(SMALL, norm="channel")).eval()  # statistics of a voxel, so that sections do not mix there
    twin = without_depth(FGNet(network.config)).eval()
    head = network.refined_decoder.head.weight.clone()
    transfer_weights(network, twin)
    assert torch.equal(network.refined_decoder.head.weight, head) and not torch.equal(
        twin.refined_decoder.head.weight, head
    )
    network.refined_decoder.head.load_state_dict(twin.refined_decoder.head.state_dict())
    raw = torch.rand(1, 1, 4, 32, 32)
    result = network(raw).refined
    for z in range(4):
        close(result[:, :, z], twin(raw[:, :, z : z + 1]).refined[:, :, 0])
    transfer_weights(network, twin, "average")
    assert not torch.allclose(network(raw).refined, result, atol=1e-3)
    kernels = [layer.kernel_size for layer in twin.modules() if isinstance(layer, nn.Conv3d)]
    assert {size[0] for size in kernels} == {1} and (1, 3, 3) in kernels


def test_a_twin_and_a_painter_are_where_their_network_is():
    twin = without_depth(FGNet(SMALL).to("meta"))
    assert {parameter.device.type for parameter in Reconstruction(twin).parameters()} == {"meta"}


@torch.no_grad()
def test_an_inflated_encoder_of_photographs_begins_with_its_2d_features():
    torch.manual_seed(0)
    photographs, encoder = build_natural_encoder(), VolumeEncoder()
    raw = torch.rand(1, 1, 3, 48, 64)
    assert not torch.allclose(photographs(raw)[0], encoder(raw)[0], atol=1e-3)
    transfer_weights(encoder, photographs)
    for flat, inflated in zip(photographs(raw), encoder(raw), strict=True):
        close(flat, inflated)
    depths = {layer.kernel_size[0] for layer in encoder.modules() if isinstance(layer, nn.Conv3d)}
    assert depths == {1, 3} and not any(isinstance(layer, nn.Conv2d) for layer in encoder.modules())


@CHECKED
@given(values=st.lists(st.floats(-20, 20), min_size=1, max_size=8), shift=st.floats(-50, 50), equal=st.floats(-20, 20))
def test_the_released_loss_ignores_a_shift_and_is_least_where_all_are_equal(values, shift, equal):
    similarities = torch.tensor(values, dtype=torch.float64)
    loss, least = released_contrast(similarities), math.log(len(values))
    close(released_contrast(similarities + shift), loss)
    close(released_contrast(torch.full_like(similarities, equal)), torch.tensor(least, dtype=torch.float64))
    assert loss >= least - 1e-9


@CHECKED
@given(n=st.integers(2, 8), value=st.floats(-20, 20))
def test_info_nce_rewards_partners_and_not_identical_pairs(n, value):
    close(info_nce(torch.full((n, n), value, dtype=torch.float64)), torch.tensor(math.log(n), dtype=torch.float64))
    losses = [info_nce(value * torch.ones(n, n) + margin * torch.eye(n)) for margin in (0.0, 1.0, 30.0)]
    assert losses[0] > losses[1] > losses[2] and losses[2] < 1e-6


@CHECKED
@given(taps=st.sampled_from([3, 5]), shape=st.tuples(st.integers(1, 5), st.integers(1, 6), st.integers(1, 6)))
def test_a_snake_without_offsets_is_a_straight_kernel(taps, shape):
    features = random(2, 3, *shape)
    torch.manual_seed(0)
    snake = SnakeConv3d(3, 4, taps)
    close(snake(features), snake.straight(features))
    straight = SnakeConv3d(3, 4, taps, bend=False)
    straight.straight.load_state_dict(snake.straight.state_dict())
    assert torch.equal(straight(features), snake.straight(features))


@CHECKED
@given(half=st.integers(1, 3), size=st.floats(0, 100))
def test_the_taps_of_a_snake_lie_at_most_a_step_from_one_another(half, size):
    steps = torch.tanh(size * random(1, 2, 2 * half, 2, 3, 3))
    offsets = accumulate_offsets(steps)
    assert offsets.shape == (1, 2, 2 * half + 1, 2, 3, 3) and (offsets[:, :, half] == 0).all()
    assert offsets.diff(dim=2).abs().max() <= 1 + 1e-5
    close(offsets[:, :, -1], steps[:, :, half:].sum(2))
    close(offsets[:, :, 0], steps[:, :, :half].sum(2))


def test_a_snake_follows_a_slanted_line_and_samples_between_voxels():
    volume = torch.zeros(1, 1, 7, 9, 9)
    for z in range(7):
        volume[0, 0, z, 1 + z, 4] = 1  # one voxel further in y in each section
    steps = torch.zeros(1, 2, 6, 7, 9, 9)
    steps[:, 0, :3], steps[:, 0, 3:] = -1, 1
    taps = sample_taps(volume, accumulate_offsets(steps))
    close(taps[0, 0, :, 3, 4, 4], torch.ones(7))
    straight = sample_taps(volume, torch.zeros(1, 2, 7, 7, 9, 9))[0, 0, :, 3, 4, 4]
    assert straight.sum() == 1
    between = sample_taps(volume, torch.full((1, 2, 1, 7, 9, 9), 0.25))[0, 0, 0, 3, 4, 4]
    close(between, torch.tensor(0.75 * 0.75))


def test_a_snake_learns_to_bend():
    torch.manual_seed(0)
    snake, features = SnakeConv3d(2, 1, 3), random(1, 2, 3, 5, 5)
    optimizer = torch.optim.SGD(snake.parameters(), lr=1.0)
    for _ in range(2):
        snake(features).square().mean().backward()
        optimizer.step()
    assert snake.offsets(features).abs().max() > 0


def test_matched_tokens_are_mixtures_of_the_other_view():
    keys = random(1, 5, 4)
    matched = match_softly(1000 * keys, keys)  # sharp attention: the key that resembles each query most
    best = keys[0][(keys[0] @ keys[0].T).argmax(1)]
    close(matched[0], best)
    assert (match_softly(random(1, 7, 4), keys).amax(1) <= keys.amax(1) + 1e-6).all()
    same = torch.ones(1, 4, 2, 6, 6)
    assert inconsistency(same, 3 * same).abs() < 1e-5  # the length of a feature does not matter
    close(inconsistency(same, -same), torch.tensor(4.0))


@pytest.mark.slow
def test_consistency_pretrains_a_u_net_and_leaves_a_clean_view_alone():
    torch.manual_seed(0)
    raw = torch.rand(1, 1, 4, 32, 32)
    assert torch.equal(distort(raw, 0.0), raw) and not torch.equal(distort(raw, 1.0), raw)
    model = Reconstruction(FGNet(SMALL))
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
    losses = []
    for _ in range(25):
        losses.append(consistency_loss(model, (raw, raw)))
        losses[-1].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.95 * losses[0]
    hidden = torch.rand_like(raw) < 0.5
    assert torch.equal(model(raw, hidden), model(torch.where(hidden, raw.mean(), raw), torch.zeros_like(hidden)))


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="depth is 2"):
        inflate(torch.zeros(1, 1, 3, 3), 2, "centre")
    with pytest.raises(ValueError, match="way is 'middle'"):
        inflate(torch.zeros(1, 1, 3, 3), 3, "middle")
    with pytest.raises(ValueError, match="taps is 4"):
        SnakeConv3d(1, 1, 4)
    with pytest.raises(ValueError, match="encoder=None"):
        Reconstruction(FGNet(replace(SMALL, encoder="mini")))
    with pytest.raises(RuntimeError):
        transfer_weights(FGNet(SMALL), build_natural_encoder())


def test_views_have_contrast_brightness_and_noise_of_their_own():
    raw = torch.full((40, 1, 2, 8, 8), 0.5)
    raw[:, :, 1] = 0.3
    for strength in (0.5, 1.0):
        views = distort(raw, strength)
        noise = views.std((3, 4))
        assert (noise - 0.1 * strength).abs().max() < 0.05 * strength
        contrast, brightness = (views[:, 0, 0] - views[:, 0, 1]).mean((1, 2)) / 0.2, views.mean((1, 2, 3, 4)) - 0.4
        assert 0.1 * strength < contrast.std() < 0.2 * strength and brightness.std() > 0.04 * strength
    assert distort(torch.rand(4, 1, 2, 8, 8), 1.0).min() == 0  # as grey values end there


def test_the_loss_of_consistency_is_of_a_weak_and_a_strong_view_and_of_all_scales():
    raw, painted = torch.rand(2, 1, 2, 32, 32), [torch.randn(2, 1, 2, 32, 32) for _ in range(2)]
    levels = [[random(2, 3, 2, 6, 6, seed=k + 3 * view) - 0.5 for k in range(3)] for view in range(2)]
    views: list[torch.Tensor] = []

    class Stub:
        def reconstruct(self, view):
            views.append(view)
            return painted[len(views) - 1], levels[len(views) - 1]

    loss = consistency_loss(Stub(), (raw,))
    deviation, mean = torch.std_mean(raw, (1, 2, 3, 4), keepdim=True)
    errors = sum(F.mse_loss(each, (raw - mean) / deviation) for each in painted)
    close(loss, errors + 0.1 * sum(inconsistency(a, b) for a, b in zip(*levels, strict=True)) / 3)
    assert F.mse_loss(views[0], raw) < 0.6 * F.mse_loss(views[1], raw)
