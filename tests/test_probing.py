"""What a model does in one section, computed once and cropped; with attention set to a value, the same equation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from fgnet_lib import probing
from fgnet_lib.fgnet import MINI, FGNet
from fgnet_lib.probing import Inspector, attention_set_to

SHAPE = (7, 50, 70)  # no multiple of a stride
SMALL = replace(MINI, widths=(4, 4, 8, 8, 8), coarse_width=8)


def make(**switches) -> FGNet:
    torch.manual_seed(0)
    return FGNet(replace(SMALL, **switches)).eval()


@pytest.fixture
def raw() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, SHAPE, np.uint8)


@pytest.fixture
def calls(monkeypatch) -> list:
    """Which blocks of sections were computed."""
    made, compute = [], Inspector._compute
    monkeypatch.setattr(Inspector, "_compute", lambda self, *block: made.append(block) or compute(self, *block))
    return made


@torch.inference_mode()
def test_a_section_is_what_the_model_says(raw):
    model = make()
    whole = torch.from_numpy(raw / np.float32(255))[None, None]
    expected, guides = model(whole), model.encode(whole)
    section = Inspector(model, raw).section(5)
    for level, (height, width) in enumerate(((13, 18), (7, 9), (4, 5))):
        np.testing.assert_allclose(section.attention[level], expected.attention[level][0, 0, 5], atol=1e-5)
        np.testing.assert_allclose(section.sam2[level], guides[level][0, :, 5, :height, :width], atol=1e-2)
        assert section.response[level].shape == (height, width)
    np.testing.assert_allclose(section.affinities, expected.refined[0, :, 5].sigmoid(), atol=1e-3)


def test_neighbours_are_seen_where_sections_are_computed_one_by_one(raw, monkeypatch):
    together = Inspector(make(), raw).section(3)
    monkeypatch.setattr(probing, "VOXELS", 1)
    alone = Inspector(make(), raw).section(3)
    np.testing.assert_allclose(alone.attention[0], together.attention[0], atol=0.02)
    assert (alone.attention[0] == together.attention[0]).mean() < 1  # two sections of context, not all


def test_the_response_is_the_length_of_the_guided_features(raw):
    as_it_is, doubled = (Inspector(make(), raw).section(2, ask) for ask in (((1,), 0.0), ((1,), 1.0)))
    np.testing.assert_allclose(doubled.response[0], 2 * as_it_is.response[0], rtol=1e-5)  # F' = F + F * a


def test_nothing_is_computed_twice(raw, calls, monkeypatch):
    monkeypatch.setattr(probing, "VOXELS", 6 * SHAPE[1] * SHAPE[2])  # two sections and their neighbours
    inspector = Inspector(make(), raw)
    for z in (0, 1, 6, 1, 0):
        inspector.section(z)
    inspector.section(0, ((1, 2), 0.0))
    assert calls == [(0, None), (6, None), (0, ((1, 2), 0.0))]


def test_what_was_not_used_for_longest_is_dropped(raw, calls, monkeypatch):
    monkeypatch.setattr(probing, "VOXELS", 1)
    monkeypatch.setattr(probing, "CACHE", 0)
    inspector = Inspector(make(), raw)
    for z in (0, 0, 1, 0):
        inspector.section(z)
    assert [first for first, _ in calls] == [0, 1, 0]


@pytest.mark.parametrize("switches", [{"encoder": None}, {"refined": False}])
def test_models_that_lack_a_part(switches, raw):
    section = Inspector(make(**switches), raw).section(6, ((1, 2, 3), 0.0))
    assert section.attention == ()
    assert [len(section.sam2), len(section.response)] == ([0, 3] if "encoder" in switches else [3, 0])
    assert section.affinities.shape == (3, *SHAPE[1:])


# --- attention set to a value -----------------------------------------------------------------------------------------


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
        pytest.raises(ValueError, match="this model has no attention map 1; it has 0 maps"),
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
