"""Attention set to a value: what follows is the model's own equation with another a."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fgnet_lib.fgnet import MINI, FGNet
from fgnet_lib.probing import attention_set_to

SMALL = replace(MINI, widths=(4, 4, 8, 8, 8), coarse_width=8)


def make(**switches) -> FGNet:
    torch.manual_seed(0)
    return FGNet(replace(SMALL, **switches)).eval()


@pytest.mark.parametrize("value", [0, 0.25, 1, "mean"])
@pytest.mark.parametrize("kind", ["residual", "plain", "per_channel", "additive"])
@torch.inference_mode()
def test_the_guided_features_follow_the_equation(kind, value):
    model = make(attention=kind)
    fga = model.fine_encoder.guides[1]
    fine, guide = torch.randn(1, 8, 2, 6, 6), torch.randn(1, 64, 2, 6, 6)
    _, own = fga(fine, guide)
    with attention_set_to(model, 2, value):
        guided, a = fga(fine, guide)
    expected = own.mean((2, 3, 4), keepdim=True) if value == "mean" else torch.tensor(float(value))
    torch.testing.assert_close(a, expected.expand_as(own))
    weighted = fga.value(guide) if kind == "additive" else fine
    torch.testing.assert_close(guided, weighted * a + (0 if kind == "plain" else fine))  # F' = F + F * a


@torch.inference_mode()
def test_it_reaches_the_affinities_and_ends_with_the_context():
    model, raw = make(), torch.rand(1, 1, 2, 32, 32)
    before = model(raw)
    with attention_set_to(model, 1, 0), attention_set_to(model, 3, 1):
        within = model(raw)
    after = model(raw)
    assert not within.attention[0].any() and (within.attention[2] == 1).all()
    assert not torch.equal(within.refined, before.refined)
    assert torch.equal(within.coarse, before.coarse)  # decoded from SAM2 alone
    torch.testing.assert_close(after, before)


def test_an_error_inside_ends_the_context_too():
    model = make()
    with pytest.raises(KeyError), attention_set_to(model, 1, 0):
        raise KeyError
    assert not model.fine_encoder.guides[0].to_map._forward_hooks


@pytest.mark.parametrize("switches", [{"encoder": None}, {"refined": False}])
def test_a_model_without_attention_is_refused(switches):
    with (
        pytest.raises(ValueError, match="no attention 1 in this model; it has 0 maps"),
        attention_set_to(make(**switches), 1, 0),
    ):
        pass


@pytest.mark.parametrize(
    ("level", "value"),
    [(0, 0), (4, 0), ("a1", 0), (1.5, 0), (1, -0.1), (1, 1.1), (1, "median"), (1, None), (1, float("nan"))],
)
def test_levels_and_values_that_do_not_exist_are_refused(level, value):
    with pytest.raises(ValueError, match="no attention|attention lies in"), attention_set_to(make(), level, value):
        pass
