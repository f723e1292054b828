"""Rounding is what it says it is, and what is folded into weights changes nothing before it."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fgnet_lib.configuration import MINI
from fgnet_lib.fgnet import FGNet
from fgnet_lib.neighbours.quantisation import (
    SAMPLES,
    Activations,
    QuantisedLayer,
    Quantiser,
    Recipe,
    Transform,
    fold_transform,
    group_channels,
    identity,
    integer_linear,
    layer_names,
    learn_blocks,
    megabytes,
    observe,
    outlier_ratio,
    plant_outliers,
    quantise_fgnet,
    smooth,
    value_range,
)
from fgnet_lib.sam2_encoder import Sam2Encoder

SEEDS = st.integers(0, 2**16)
BITS = st.integers(2, 8)


def normal(seed: int, *shape: int, width: float = 1.0) -> Tensor:
    return width * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def activations_of(rows: Tensor) -> Activations:
    return Activations(rows, rows.amin(0), rows.amax(0))


@pytest.fixture(scope="module")
def model() -> FGNet:
    torch.manual_seed(0)
    small = replace(MINI, encoder="natural", widths=(4, 4, 8, 8, 8), coarse_width=8, norm="channel", attention="plain")
    return FGNet(small).eval().requires_grad_(False)


def read_guide(model: FGNet, raw: Tensor) -> Tensor:
    """The finest features of the guide, as the coarse decoder reads them."""
    with torch.no_grad():
        return model.project[0](model.encode(raw)[0])


@pytest.fixture(scope="module")
def raw() -> Tensor:
    return torch.rand(1, 1, 2, 64, 64, generator=torch.Generator().manual_seed(1))


@settings(max_examples=50)
@given(SEEDS, BITS, st.floats(-50, 50), st.floats(0.01, 100))
def test_an_error_is_at_most_half_a_step_within_the_range(seed, bits, middle, width):
    x = middle + normal(seed, 200, width=width)
    quantiser = Quantiser(x.min(), x.max(), bits)
    assert float((quantiser(x) - x).detach().abs().max() / quantiser.step.detach()) <= 0.5 + 1e-3
    assert len(quantiser(x).detach().unique()) <= 2**bits
    assert quantiser(torch.zeros(1)).item() == 0


@settings(max_examples=50)
@given(SEEDS, BITS, st.floats(0.01, 100))
def test_rounding_twice_is_rounding_once(seed, bits, width):
    x = normal(seed, 200, width=width)
    quantiser = Quantiser(x.quantile(0.1), x.quantile(0.9), bits)  # some values are outside
    once = quantiser(x)
    assert torch.equal(quantiser(once), once)


@pytest.mark.parametrize("bits", [1, 9])
def test_bits_that_make_no_sense_are_refused(bits):
    with pytest.raises(ValueError, match=f"from 2 to 8; got {bits}"):
        Quantiser(torch.tensor(-1.0), torch.tensor(1.0), bits)


def test_gradients_pass_the_rounding_within_the_range_and_reach_the_step():
    quantiser = Quantiser(torch.tensor(-1.0), torch.tensor(1.0), 4)
    x = torch.tensor([-5.0, 0.3, 0.31, 5.0], requires_grad=True)
    quantiser(x).sum().backward()
    assert x.grad.tolist() == [0, 1, 1, 0]
    assert quantiser.log_step.grad.abs() > 0


@settings(max_examples=30)
@given(SEEDS, BITS, st.booleans())
def test_whole_numbers_give_what_simulated_rounding_gives(seed, bits, per_channel):
    x, weight, bias = normal(seed, 40, 24) + 1, normal(seed + 1, 10, 24), normal(seed + 2, 10)
    inputs = Quantiser(x.min(), x.max(), 8)
    largest = weight.abs().amax(1, keepdim=True) if per_channel else weight.abs().max()
    weights = Quantiser(-largest, largest, bits)
    simulated = nn.functional.linear(inputs(x), weights(weight), bias)
    torch.testing.assert_close(integer_linear(x, weight, bias, inputs, weights), simulated, rtol=1e-5, atol=1e-4)


@settings(max_examples=30)
@given(SEEDS, st.integers(1, 16))
def test_a_folded_transform_changes_nothing_in_floating_point(seed, groups):
    rows, weight, bias = normal(seed, 50, 16) * torch.arange(1, 17), normal(seed + 1, 6, 16), normal(seed + 2, 6)
    for transform in (group_channels(activations_of(rows), groups), smooth(activations_of(rows), weight)):
        shift, scale = transform.shift[transform.group], transform.scale[transform.group]
        folded = nn.functional.linear((rows - shift) / scale, *fold_transform(weight, bias, transform))
        exact = nn.functional.linear(rows, weight, bias)
        assert (folded - exact).abs().max() <= 1e-5 * exact.abs().max()


def test_groups_are_of_similar_channels_and_a_wide_one_is_alone():
    rows = normal(0, 500, 12)
    rows[:, 3] *= 100
    rows[:, [5, 6]] += 40
    assert group_channels(activations_of(rows[:, :1]), 3).group.tolist() == [0]
    group = group_channels(activations_of(rows), 3).group
    assert len(group.unique()) == 3 and (group == group[3]).sum() == 1
    assert group[5] == group[6] != group[0]
    moved = group_channels(activations_of(rows), 3, alpha=1)
    z, s = moved.shift[group], moved.scale[group]
    assert ((rows - z) / s).abs().amax() < 1.5 * ((rows - z) / s)[:, 0].abs().amax()


def test_one_extreme_voxel_founds_no_group():
    rows = normal(0, 4000, 8)
    rows[0, 2] = 500.0
    wide = group_channels(activations_of(rows), 2, alpha=1)
    assert wide.scale.max() / wide.scale.min() < 3


def test_a_percentile_leaves_extremes_out():
    rows = normal(0, 5000, 4)
    rows[0, 0] = 1000.0
    assert value_range(activations_of(rows), "min-max")[1] == 1000
    assert 3 < value_range(activations_of(rows), "percentile")[1] < 6


def test_what_a_layer_is_given_is_observed():
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))
    x = normal(0, 7, 3)
    seen = observe(model, lambda: model(x), ["0", "2"])
    assert torch.equal(seen["0"].rows, x) and torch.equal(seen["0"].low, x.amin(0))
    assert seen["2"].low.min() >= 0 and not model[0]._forward_pre_hooks


@settings(max_examples=20)
@given(SEEDS)
@pytest.mark.parametrize(
    "make",
    [lambda: nn.Linear(4, 6), lambda: nn.Conv3d(4, 6, 1), lambda: nn.Conv3d(4, 6, 3, padding=1, groups=2)],
    ids=["linear", "pointwise", "grouped"],
)
def test_a_layer_of_8_bits_is_near_the_layer(make, seed):
    torch.manual_seed(seed)
    layer = make()
    x = normal(seed, 2, 5, 4) if isinstance(layer, nn.Linear) else normal(seed, 2, 4, 3, 5, 5)
    transform = Transform(torch.tensor([0, 0, 1, 1]), torch.tensor([0.5, -1]), torch.tensor([1.0, 4.0]))
    inputs = Quantiser(torch.tensor(-6.0), torch.tensor(6.0), 8)
    with torch.no_grad():
        wanted, rounded = layer(x), QuantisedLayer(layer, transform, inputs, 8)(x)
    assert 0 < (rounded - wanted).norm() < 0.12 * wanted.norm()


@torch.no_grad()
@pytest.mark.parametrize("attention", ["plain", "additive"])
def test_planted_outliers_change_activations_and_not_the_function(raw, attention):
    torch.manual_seed(0)
    small = replace(MINI, encoder="natural", widths=(4, 4, 8, 8, 8), coarse_width=8, attention=attention)
    model = FGNet(small).eval()
    planted = plant_outliers(model, channels=2, factor=100)
    for ours, theirs in zip(planted(raw), model(raw), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    name = "encoder.stages.4.1.widen"
    before, after = (observe(each, lambda each=each: each(raw), [name])[name] for each in (model, planted))
    wider = (after.high - after.low) / (before.high - before.low)
    np.testing.assert_allclose(sorted(wider.numpy())[-3:], [1, 100, 100], rtol=1e-3)
    assert outlier_ratio(after) > 20 > outlier_ratio(before) >= 1


@torch.no_grad()
def test_every_stage_is_planted_and_nothing_between_0_and_6(model, raw):
    layers = layer_names(model.encoder)
    planted = plant_outliers(model)
    before, after = (observe(e, lambda e=e: e(raw), layers) for e in (model.encoder, planted.encoder))
    grown = {name for name in layers if outlier_ratio(after[name]) > 10 * outlier_ratio(before[name])}
    assert grown == {name for name in layers if name.endswith("widen")}


@pytest.mark.slow
@torch.no_grad()
def test_channels_of_an_encoder_of_sam2_1_s_size_are_measured(raw):
    encoder = Sam2Encoder("tiny").eval()
    seen = observe(encoder, lambda: encoder(raw), layer_names(encoder, "image_encoder.trunk.blocks"))
    ratios = list(map(outlier_ratio, seen.values()))
    assert len(ratios) == 12 * 4 + 3, "4 layers of each of 12 blocks, and 3 that change the width"
    assert all(1 <= ratio < float("inf") for ratio in ratios)


@settings(max_examples=5)
@given(SEEDS, st.sampled_from([2.0**-6, 2.0, 2.0**7]), st.integers(1, 8))
def test_planting_by_a_power_of_2_changes_no_bit_of_the_result(model, seed, factor, channels):
    raw = torch.rand(1, 1, 1, 32, 32, generator=torch.Generator().manual_seed(seed))
    planted = plant_outliers(model, channels, factor, seed)
    with torch.no_grad():
        ours, theirs = planted(raw), model(raw)
    assert torch.equal(ours.refined, theirs.refined) and torch.equal(ours.coarse, theirs.coarse)
    assert any(not torch.equal(*pair) for pair in zip(planted.parameters(), model.parameters(), strict=True))


def test_moving_the_width_into_the_weights_repairs_planted_outliers(model, raw):
    planted, wanted = plant_outliers(model), read_guide(model, raw)
    recipes = {
        "min-max": Recipe(4, 4),
        "SmoothQuant": Recipe(4, 4, transform="smooth"),
        "groups": Recipe(4, 4, transform="groups", groups=4),
        "8 bits": Recipe(8, 8, transform="groups", groups=4),
    }
    rounded = {name: quantise_fgnet(planted, recipe, raw) for name, recipe in recipes.items()}
    errors = {name: float((read_guide(each, raw) - wanted).norm() / wanted.norm()) for name, each in rounded.items()}
    assert errors["SmoothQuant"] < 0.7 * errors["min-max"] and errors["groups"] < 0.7 * errors["min-max"]
    assert errors["8 bits"] < 0.1 < errors["groups"]


def test_learning_a_block_lowers_its_error(model, raw):
    planted = plant_outliers(model)
    rounded = quantise_fgnet(planted, Recipe(4, 4, transform="groups", groups=4), raw)
    learned = deepcopy(rounded)
    learn_blocks(learned.encoder, planted.encoder, raw, steps=5)
    results = []
    for each in (planted, rounded, learned):  # the first block alone: what it is given is the same in all three
        handle = each.encoder.stages[0][0].register_forward_hook(lambda *call: results.append(call[-1]))
        read_guide(each, raw)
        handle.remove()
    wanted, before, after = results
    weights = [each.encoder.stages[0][0].narrow.layer.weight for each in (rounded, learned)]
    assert torch.equal(*weights), "weights stay as they are"
    width = wanted.std((0, 2, 3), keepdim=True)
    assert ((after - wanted) / width).norm() < ((before - wanted) / width).norm()


def test_blocks_outside_of_the_part_that_is_rounded_have_nothing_to_learn(model, raw):
    part, stages = "encoder.stages.2", []
    for steps in (0, 2):
        recipe = Recipe(4, 4, transform="groups", groups=4, steps=steps)
        stages.append(quantise_fgnet(plant_outliers(model), recipe, raw, part).encoder.stages)
    same = [
        all(torch.equal(a, b) for a, b in zip(before.state_dict().values(), after.state_dict().values(), strict=True))
        for before, after in zip(*stages, strict=True)
    ]
    assert same == [number != 2 for number in range(len(same))]


def test_only_the_part_that_is_named_is_rounded_and_the_model_stays(model, raw):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    quantised = quantise_fgnet(model, Recipe(4, 5), raw)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    rounded = {name for name, module in quantised.named_modules() if isinstance(module, QuantisedLayer)}
    assert rounded == set(layer_names(model, "encoder")) and len(rounded) > 30
    layers = {name.rsplit(".")[-1]: quantised.get_submodule(name) for name in rounded}
    bits = {name: (layer.weights.bits, layer.inputs.bits) for name, layer in layers.items()}
    assert bits == {"stem": (8, 8), "widen": (4, 5), "depthwise": (8, 8), "narrow": (4, 5)}
    everything = quantise_fgnet(model, Recipe(4, 8), raw, part="")
    assert everything.refined_decoder.head.weights.bits == 8 and everything.refined_decoder.ups[0].weights.bits == 4
    with torch.no_grad():
        assert torch.isfinite(everything(raw).refined).all()


def test_megabytes_are_counted():
    layer = nn.Linear(100, 50)
    assert megabytes(layer) == pytest.approx(4 * 5050 / 1e6)
    inputs = Quantiser(torch.tensor(-1.0), torch.tensor(1.0), 8)
    rounded = QuantisedLayer(layer, identity(100), inputs, 4)
    by_hand = 5000 / 2 + 4 * 50 + 100 + 4 * 2 * (1 + 50) + 4 * 2  # weights, bias, groups, quantisers, transform
    assert megabytes(nn.Sequential(rounded, nn.Linear(3, 1))) == pytest.approx((by_hand + 16) / 1e6)


def test_all_calls_and_all_positions_are_observed():
    layer, x = nn.Linear(2, 3), torch.linspace(-1, 1, 3 * SAMPLES)[:, None].repeat(1, 2)
    seen = observe(nn.Sequential(layer), lambda: (layer(x), layer(2 * x)), ["0"])["0"]
    assert seen.low.tolist() == [-2, -2] and seen.high.tolist() == [2, 2] and len(seen.rows) <= SAMPLES
    np.testing.assert_allclose(seen.rows[:, 0].quantile(torch.tensor([0.05, 0.5, 0.95])), [-1.6, 0, 1.6], atol=0.1)


def test_smoothing_divides_the_width_between_activations_and_weights():
    rows, weight = torch.tensor([[-8.0, 1.0], [2.0, 4.0]]), torch.tensor([[2.0, -0.5], [1.0, 0.25]])
    for alpha in (0.0, 0.25, 1.0):
        scale = smooth(activations_of(rows), weight, alpha).scale
        np.testing.assert_allclose(scale, [8**alpha / 2 ** (1 - alpha), 4**alpha / 0.5 ** (1 - alpha)], rtol=1e-5)


def test_steps_that_are_far_too_long_do_no_harm(model, raw):
    rounded = quantise_fgnet(model, Recipe(4, 4), raw, "encoder.stages.0")
    learned = deepcopy(rounded)
    learn_blocks(learned.encoder, model.encoder, raw, steps=1, rate=10)
    assert torch.equal(read_guide(learned, raw), read_guide(rounded, raw))


def test_the_seed_chooses_the_channels_that_are_planted(model):
    first, again, other = (plant_outliers(model, seed=seed).encoder.state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)
