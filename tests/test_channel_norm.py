"""The channel norm: its formula and gradient, and what a model made of it does not see."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fgnet_lib.channel_norm import EPSILON, ChannelNorm, _UnitChannels
from fgnet_lib.configuration import MINI, FGNetConfig
from fgnet_lib.fgnet import FGNet
from fgnet_lib.weights import load_model, save_model

UNET = replace(MINI, encoder=None, widths=(4, 4, 8, 8, 8), norm="channel")
REACH = 64  # voxels in-plane from which a plain U-Net of this depth sees, rounded up to whole pixels at stride 16


def affinities(config: FGNetConfig, raw: torch.Tensor) -> torch.Tensor:
    torch.manual_seed(0)
    with torch.inference_mode():
        return FGNet(config).eval()(raw).refined


def test_channels_are_divided_by_their_root_mean_square():
    torch.manual_seed(0)
    x, norm = torch.randn(2, 6, 3, 4, 5), ChannelNorm(6)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    unit = x / (x.pow(2).sum(1, keepdim=True) / 6 + EPSILON).sqrt()
    expected = torch.einsum("bczyx,c->bczyx", unit, norm.weight) + norm.bias.view(1, 6, 1, 1, 1)
    torch.testing.assert_close(norm(x), expected)


def test_the_gradient_is_that_of_the_formula():
    torch.manual_seed(0)
    x = torch.randn(2, 5, 2, 3, 3, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(_UnitChannels.apply, (x,))


def test_large_values_in_half_precision_do_not_overflow():
    x = torch.full((1, 4, 1, 2, 2), 3e4, dtype=torch.float16)
    torch.testing.assert_close(ChannelNorm(4)(x), torch.ones(1, 4, 1, 2, 2))


@pytest.mark.parametrize("norm", ["channel", "group"])
def test_a_far_corner_changes_nothing_but_with_a_group_norm(norm):
    torch.manual_seed(1)
    raw = torch.rand(1, 1, 4, 160, 192)
    grey = raw.clone()
    grey[..., 96:, 96:] = 0.5
    config = replace(UNET, norm=norm)
    before, after = (affinities(config, window)[..., : 96 - REACH, :] for window in (raw, grey))
    if norm == "channel":
        torch.testing.assert_close(before, after, rtol=0, atol=1e-5)
    else:
        assert (before - after).abs().max() > 1e-3


def test_windows_of_two_sizes_agree_away_from_the_rim():
    torch.manual_seed(2)
    large = torch.rand(1, 1, 4, 224, 192)
    small = large[..., 32:192, :]
    inside = affinities(UNET, small)[..., REACH : 160 - REACH, :]
    torch.testing.assert_close(inside, affinities(UNET, large)[..., 32 + REACH : 192 - REACH, :], rtol=0, atol=1e-5)


def test_a_model_with_it_survives_saving_and_loading(tmp_path):
    model = FGNet(UNET).eval()
    loaded, raw = load_model(save_model(model, tmp_path / "model.safetensors")), torch.rand(1, 1, 2, 40, 30)
    assert loaded.config == UNET and not any(isinstance(m, torch.nn.GroupNorm) for m in loaded.modules())
    with torch.inference_mode():
        assert torch.equal(model(raw).refined, loaded(raw).refined)


def test_an_unknown_norm_is_refused():
    with pytest.raises(ValueError, match="norm is 'batch'; choose one of group, channel"):
        FGNetConfig(norm="batch")
