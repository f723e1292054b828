"""Tiled inference: blending, coverage, and the reuse of SAM2's features along z."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from helpers.models import Echo
from hypothesis import given, settings
from hypothesis import strategies as st

from fgnet_lib import inference
from fgnet_lib.configuration import MINI, FGNetConfig
from fgnet_lib.fgnet import FGNet
from fgnet_lib.inference import choose_tile, encode_sections, gaussian_window, lay_windows, predict, window_starts
from fgnet_lib.volumes import Region

shapes = st.tuples(st.integers(1, 9), st.integers(1, 80), st.integers(1, 80))


@given(shapes, st.sampled_from([0.0, 0.25, 0.5]), st.integers(1, 254))
@settings(max_examples=25)
def test_constant_in_constant_out(shape, overlap, grey):
    prediction = predict(Echo(), np.full(shape, grey, np.uint8), (4, 32, 64), overlap, progress=False)
    assert prediction.refined.shape == (3, *shape)
    np.testing.assert_allclose(prediction.refined, grey / 255, atol=1e-6)
    for a, stride in zip(prediction.attention, (4, 8, 16), strict=True):
        assert a.shape == (shape[0], -(-shape[1] // stride), -(-shape[2] // stride))
        np.testing.assert_allclose(a, grey / 255, atol=1e-6)


def test_every_voxel_keeps_its_place():
    raw = np.random.default_rng(0).integers(1, 255, (7, 70, 50), np.uint8)
    prediction = predict(Echo(), raw, (3, 32, 32), 0.5, progress=False)
    np.testing.assert_allclose(prediction.refined[1], raw / 255, atol=1e-5)


def test_each_section_is_encoded_once_per_column():
    model = Echo()
    predict(model, np.zeros((20, 32, 64), np.uint8), (4, 32, 32), 0.5, progress=False)
    columns = len(window_starts(64, 32, 0.5, 32))
    assert model.sections_encoded == 20 * columns


@given(st.integers(1, 300), st.integers(1, 64), st.sampled_from([0.0, 0.3, 0.9]))
def test_windows_cover_everything(length, window, overlap):
    starts = window_starts(length, min(window, length), overlap)
    covered = {voxel for start in starts for voxel in range(start, start + min(window, length))}
    assert covered == set(range(length))


@given(st.integers(1, 900), st.integers(1, 8), st.sampled_from([0.0, 0.25, 0.3, 0.5, 0.9]))
def test_windows_share_what_they_should_and_start_on_the_grid(length, tiles, overlap):
    window = 32 * tiles
    starts = window_starts(length, window, overlap, 32)
    steps = np.diff(starts)
    assert all(step <= max(window * (1 - overlap) + 1e-9, 32) for step in steps)
    assert all(start % 32 == 0 for start in starts[:-1])  # the last ends with the volume


def test_a_window_counts_most_in_its_middle():
    side = np.exp(-0.5 * (np.array([-2, -1, 0, 1, 2]) / 1.25) ** 2)  # sigma: a quarter of the side
    weights = gaussian_window((1, 5, 4)).numpy()
    np.testing.assert_allclose(weights[0] / weights[0, 2], side[:, None] * np.ones(4), rtol=1e-6)
    np.testing.assert_allclose(weights[0, 2], np.exp(-0.5 * np.array([-1.5, -0.5, 0.5, 1.5]) ** 2), rtol=1e-6)


@given(shapes, st.sampled_from([0.0, 0.25, 0.5]), st.integers(0, 8), st.integers(0, 79))
@settings(max_examples=25)
def test_weights_of_windows_are_added_up(shape, overlap, z, x):
    windows = lay_windows(shape, (4, 32, 64), overlap)
    region = Region.at((min(z, shape[0] - 1), 0, min(x, shape[2] - 1)), shape).intersect(Region.whole(shape))
    total = np.zeros([a[-1] + n for a, n in zip(windows.starts, windows.size, strict=True)])
    for corner in product(*windows.starts):
        total[Region.at(corner, windows.size)] += gaussian_window(windows.size).numpy()
    np.testing.assert_allclose(windows.weight(region), total[region], rtol=1e-5)


@given(shapes, st.sampled_from([0.0, 0.5]), st.tuples(*[st.integers(0, 40)] * 3), st.tuples(*[st.integers(1, 20)] * 3))
def test_windows_that_overlap_a_region_share_a_voxel_with_it(shape, overlap, start, size):
    windows, region = lay_windows(shape, (4, 32, 64), overlap), Region.at(start, size)
    corners = set(product(*windows.starts))
    boxes = {corner: Region.at(corner, windows.size) for corner in corners}
    overlapping = {corner for corner, box in boxes.items() if box.intersect(region).voxels}
    assert set(product(*windows.overlapping(region).starts)) == overlapping
    assert set(product(*windows.beginning(region).starts)) == {
        corner for corner in corners if Region.at(corner, (1, 1, 1)).intersect(region).voxels
    }


def test_feature_reuse_equals_the_plain_forward_pass():
    torch.manual_seed(0)
    model = FGNet(MINI).eval()
    raw = np.random.default_rng(0).integers(0, 255, (6, 64, 64), np.uint8)
    with torch.inference_mode():
        output = model(torch.from_numpy(raw)[None, None].float() / 255)
    prediction = predict(model, raw, progress=False)
    np.testing.assert_allclose(prediction.refined, output.refined[0].sigmoid(), atol=1e-5)
    np.testing.assert_allclose(prediction.coarse, output.coarse[0].sigmoid(), atol=1e-5)
    np.testing.assert_allclose(prediction.attention[2], output.attention[2][0, 0], atol=1e-5)


@pytest.mark.slow
@given(shapes)
@settings(max_examples=5)
def test_three_views_are_the_least_of_the_volume_turned_by_hand(shape):
    """Affinity c joins a voxel with its predecessor along axis c, so channels are exchanged with the axes."""
    torch.manual_seed(0)
    model, raw = FGNet(FGNetConfig(None, widths=(4,) * 5)), np.random.default_rng(0).integers(0, 255, shape, np.uint8)
    z = predict(model, raw, progress=False).refined
    y = predict(model, raw.transpose(1, 0, 2), progress=False).refined.transpose(0, 2, 1, 3)[[1, 0, 2]]
    x = predict(model, raw.transpose(2, 1, 0), progress=False).refined.transpose(0, 3, 2, 1)[[2, 1, 0]]
    np.testing.assert_allclose(
        predict(model, raw, progress=False, three_views=True).refined, np.minimum(z, np.minimum(y, x)), atol=1e-6
    )


@pytest.mark.slow
def test_three_views_of_a_region_are_those_of_the_whole_volume():
    torch.manual_seed(0)
    model, raw = FGNet(MINI).eval(), np.random.default_rng(0).integers(0, 255, (20, 40, 50), np.uint8)
    region = Region(slice(3, 12), slice(8, 24), slice(10, 33))
    whole, part = (predict(model, raw, progress=False, three_views=True, region=r) for r in (None, region))
    np.testing.assert_allclose(part.refined, whole.refined[:, *region], atol=1e-5)
    np.testing.assert_allclose(part.coarse, whole.coarse[:, *region], atol=1e-5)
    assert part.attention[0].shape == predict(model, raw, progress=False, region=region).attention[0].shape


@pytest.mark.parametrize("config", [FGNetConfig(None, widths=(4,) * 5), FGNetConfig("mini", refined=False)])
def test_models_without_a_part_leave_it_out(config):
    prediction = predict(FGNet(config), np.zeros((2, 33, 31), np.uint8), progress=False)
    assert (prediction.coarse is None) == (config.encoder is None)
    assert (prediction.refined is None) == (not config.refined)
    assert prediction.attention == ()


@pytest.mark.parametrize(
    ("raw", "tile", "overlap", "message"),
    [
        (np.zeros((4, 4)), (16, 160, 160), 0.5, "uint8 volume"),
        (np.zeros((4, 4, 4)), (16, 160, 160), 0.5, "uint8 volume"),
        (np.zeros((0, 4, 4), np.uint8), (16, 160, 160), 0.5, "non-empty"),
        (np.zeros((4, 4, 4), np.uint8), (16, 100, 160), 0.5, "multiples of 32"),
        (np.zeros((4, 4, 4), np.uint8), (16, 160, 160), 1.0, "overlap"),
    ],
)
def test_bad_arguments_are_named(raw, tile, overlap, message):
    with pytest.raises(ValueError, match=message):
        predict(Echo(), raw, tile, overlap)


def test_a_model_that_predict_moved_can_be_trained():
    """Weights that are copied in inference mode never can; the other device is played by a copy."""

    class Moving(FGNet):
        def to(self, *_: object) -> FGNet:
            return self._apply(torch.clone)

    model = Moving(replace(MINI, encoder=None, widths=(4, 4, 4, 4, 4)))
    predict(model, np.zeros((2, 32, 32), np.uint8), (2, 32, 32), progress=False, engine="torch")
    assert not any(parameter.is_inference() for parameter in model.parameters())
    model(torch.zeros(1, 1, 2, 32, 32)).refined.mean().backward()


def test_windows_are_wide_where_they_change_nothing_and_fit(monkeypatch):
    group, channel = FGNet(MINI), FGNet(replace(MINI, norm="channel"))
    cpu = torch.device("cpu")
    monkeypatch.setattr(inference, "memory_limit", lambda: 8 * 10**9)
    assert choose_tile(group, cpu) == (16, 160, 160) and choose_tile(channel, cpu) == (16, 256, 256)
    monkeypatch.setattr(inference, "memory_limit", lambda: 2 * 10**9)
    assert choose_tile(channel, cpu) == (16, 160, 160)
    assert choose_tile(channel, torch.device("cuda")) == (16, 256, 256)


@pytest.mark.parametrize("pixels", [1, 3 * 64 * 64, 2**40])
def test_sections_are_encoded_alike_however_many_at_once(pixels, monkeypatch):
    raw = np.random.default_rng(0).integers(0, 256, (8, 64, 64), np.uint8)
    torch.manual_seed(0)
    model = FGNet(replace(MINI, widths=(4, 4, 8, 8, 8), coarse_width=8)).eval()
    with torch.no_grad():
        directly = model.encode(torch.from_numpy(raw)[None, None].float() / 255)
    monkeypatch.setattr(inference, "ENCODED", pixels)
    for ours, level in zip(encode_sections(model, raw, (8, 64, 64)), directly, strict=True):
        np.testing.assert_allclose(ours, level[0].transpose(0, 1), atol=1e-5)
    assert encode_sections(FGNet(replace(model.config, encoder=None)), raw, (8, 64, 64)) == []


def test_the_windows_of_a_model_are_what_predict_takes(monkeypatch):
    raw = np.random.default_rng(0).integers(0, 256, (9, 64, 96), np.uint8)
    monkeypatch.setattr(inference, "choose_tile", lambda *_: (4, 32, 64))
    torch.manual_seed(0)
    model = FGNet(replace(MINI, widths=(4, 4, 8, 8, 8), coarse_width=8))
    usual, explicit = (predict(model, raw, tile, progress=False).refined for tile in (None, (4, 32, 64)))
    np.testing.assert_array_equal(usual, explicit)
    assert not np.allclose(usual, predict(model, raw, (9, 64, 96), progress=False).refined, atol=1e-6)
