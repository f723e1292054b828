"""What a model does in one section, computed once and cropped; with attention set to a value, the same equation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from fgnet_lib import probing
from fgnet_lib.configuration import MINI
from fgnet_lib.fgnet import FGNet
from fgnet_lib.inference import predict
from fgnet_lib.probing import Inspector, WhatIf, attention_set_to

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


@pytest.mark.parametrize("kind", ["residual", "per_channel"])
@torch.inference_mode()
def test_a_section_is_what_the_model_says(kind, raw):
    model = make(attention=kind)
    whole = torch.from_numpy(raw / np.float32(255))[None, None]
    expected, guides = model(whole), model.encode(whole)
    section = Inspector(model, raw).section(5)
    for level, (height, width) in enumerate(((13, 18), (7, 9), (4, 5))):
        np.testing.assert_allclose(section.attention[level], expected.attention[level][0, :, 5].mean(0), atol=1e-5)
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
    as_it_is, doubled = (Inspector(make(), raw).section(2, WhatIf((1,), value)) for value in (0.0, 1.0))
    np.testing.assert_allclose(doubled.response[0], 2 * as_it_is.response[0], rtol=1e-5)  # F' = F + F * a


def test_nothing_is_computed_twice(raw, calls, monkeypatch):
    monkeypatch.setattr(probing, "VOXELS", 6 * SHAPE[1] * SHAPE[2])  # two sections and their neighbours
    inspector = Inspector(make(), raw)
    for z in (0, 1, 6, 1, 0):
        inspector.section(z)
    inspector.section(0, WhatIf((1, 2), 0.0))
    assert calls == [(0, None), (6, None), (0, WhatIf((1, 2), 0.0))]


def test_what_was_not_used_for_longest_is_dropped(raw, calls, monkeypatch):
    monkeypatch.setattr(probing, "VOXELS", 1)
    monkeypatch.setattr(probing, "CACHE", 0)
    inspector = Inspector(make(), raw)
    for z in (0, 0, 1, 0):
        inspector.section(z)
    assert [first for first, _ in calls] == [0, 1, 0]


@pytest.mark.parametrize("switches", [{"encoder": None}, {"refined": False}])
def test_models_that_lack_a_part(switches, raw):
    section = Inspector(make(**switches), raw).section(6, WhatIf((1, 2, 3), 0.0))
    assert section.attention == ()
    assert [len(section.sam2), len(section.response)] == ([0, 3] if "encoder" in switches else [3, 0])
    assert section.affinities.shape == (3, *SHAPE[1:])


def packed(rows: slice, columns: slice) -> bytes:
    """A rectangle of voxels, as a what-if holds it."""
    region = np.zeros(SHAPE[1:], bool)
    region[rows, columns] = True
    return np.packbits(region).tobytes()


def test_the_attention_of_all_sections_is_that_of_each(raw, calls):
    inspector = Inspector(make(), raw)
    for what_if in (None, WhatIf((2,), 1.0, packed(slice(0, 16), slice(0, 16)))):
        maps = inspector.attention(what_if)
        assert [level.shape for level in maps] == [(7, 13, 18), (7, 7, 9), (7, 4, 5)]
        np.testing.assert_array_equal(maps[1][4], inspector.section(4, what_if).attention[1])
        assert inspector.attention(what_if) is maps
    assert Inspector(make(encoder=None), raw).attention() == ()


def test_a_region_of_the_map_is_set_alone(raw):
    regions = packed(slice(10, 17), slice(20, 70)), packed(slice(49, 50), slice(69, 70))
    plain, *changed = (
        Inspector(make(), raw).section(3, ask) for ask in (None, *(WhatIf((2,), 1.0, region) for region in regions))
    )
    expected = np.zeros((2, 7, 9), bool)
    expected[0, 1:3, 2:9] = expected[1, 6, 8] = True  # the pixels of stride 8 that hold rows 10 to 16; the last pixel
    for section, pixels in zip(changed, expected, strict=True):
        np.testing.assert_array_equal(section.attention[1] != plain.attention[1], pixels)
        assert (section.attention[1][pixels] == 1).all()


@torch.no_grad()
def slope(model: FGNet, raw: np.ndarray, level: int, where: tuple, step: float = 0.02) -> float:
    """How the logit of the y affinity of voxel (2, 20, 30) changes with weights `where`, by small steps both ways.

    Of several channels, all change.
    """
    whole, logits = torch.from_numpy(raw / np.float32(255))[None, None], []
    for sign in (1, -1):

        def push(_layer, _inputs, map_, sign=sign):
            a = map_.sigmoid()
            a[(0, slice(None), *where)] += sign * step
            return torch.logit(a)

        handle = model.fine_encoder.guides[level - 1].to_map.register_forward_hook(push)
        logits.append(model(whole).refined[0, 1, 2, 20, 30].item())
        handle.remove()
    return (logits[0] - logits[1]) / (2 * step)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "level", "pixel"),
    [("residual", 1, (5, 7)), ("residual", 2, (2, 3)), ("residual", 3, (1, 1)), ("per_channel", 2, (2, 3))],
)
def test_the_gradient_is_what_small_steps_say(kind, level, pixel, raw):
    model, raw = make(attention=kind), raw[:5]  # as many sections as it sees at once
    gradient = Inspector(model, raw).gradient(1, 2, 20, 30)
    assert [part.shape for part in gradient.maps] == [(13, 18), (7, 9), (4, 5)]
    assert abs(gradient.maps[level - 1][pixel]) > 1e-4
    np.testing.assert_allclose(gradient.maps[level - 1][pixel], slope(model, raw, level, (2, *pixel)), rtol=0.05)
    np.testing.assert_allclose(gradient.sums[level - 1], slope(model, raw, level, (slice(None),) * 3), rtol=0.05)
    affinity = Inspector(model, raw).section(2).affinities[1, 20, 30]
    np.testing.assert_allclose(1 / (1 + np.exp(-gradient.logit)), affinity, atol=1e-3)


def test_the_gradient_leaves_the_model_as_it_was(raw):
    model = make()
    model.freeze_encoder()
    wanted = [parameter.requires_grad for parameter in model.parameters()]
    inspector = Inspector(model, raw)
    first = inspector.gradient(0, 3, 20, 30)
    assert inspector.gradient(0, 3, 20, 30) is first  # kept
    assert [parameter.requires_grad for parameter in model.parameters()] == wanted
    assert not any(guide.to_map._forward_hooks for guide in model.fine_encoder.guides)


@pytest.mark.slow
@pytest.mark.parametrize("point", [(0, 0, 0), (6, 299, 309), (3, 150, 160)])
def test_a_gradient_in_a_large_section_lies_where_its_voxel_is(point):
    raw = np.random.default_rng(1).integers(0, 256, (7, 300, 310), np.uint8)
    gradient = Inspector(make(), raw).gradient(2, *point)
    assert [part.shape for part in gradient.maps] == [(75, 78), (38, 39), (19, 20)]
    y, x = np.unravel_index(np.abs(gradient.maps[0]).argmax(), gradient.maps[0].shape)
    assert abs(y - point[1] // 4) <= 3 and abs(x - point[2] // 4) <= 3


@pytest.mark.parametrize("switches", [{"encoder": None}, {"refined": False}])
def test_a_model_without_attention_has_no_gradient(switches, raw):
    gradient = Inspector(make(**switches), raw).gradient(1, 2, 20, 30)
    assert gradient.maps == gradient.sums == () and np.isfinite(gradient.logit)


# --- attention set to a value -----------------------------------------------------------------------------------------


@pytest.mark.slow
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
def test_a_region_needs_sections_of_its_size():
    model, raw = FGNet(MINI).eval(), np.random.default_rng(0).integers(0, 256, (2, 60, 100)).astype(np.uint8)
    region = np.zeros(raw.shape[1:], bool)
    region[:32, 64:] = True
    with attention_set_to(model, 1, np.float32(0), region):
        a1 = predict(model, raw, tile=(2, 64, 128), progress=False).attention[0]
        assert (a1[:, :8, 16:25] < 1e-6).all() and a1[:, 8:].min() > 0 < a1[:, :, :16].min()
        with pytest.raises(ValueError, match=r"region is \(60, 100\).*sections of \(64, 64\)"):
            predict(model, raw, tile=(2, 64, 64), progress=False)


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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("level", "value"),
    [(0, 0), (4, 0), ("a1", 0), (1.5, 0), (1, -0.1), (1, 1.1), (1, "median"), (1, None), (1, float("nan"))],
)
def test_levels_and_values_that_do_not_exist_are_refused(level, value):
    with pytest.raises(ValueError, match="no attention|attention lies in"), attention_set_to(make(), level, value):
        pass
