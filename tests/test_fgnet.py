"""The model as specified: shapes, switches, regimes, files."""

from __future__ import annotations

import json
import resource
from dataclasses import asdict, replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from fgnet_lib.configuration import MINI, FGNetConfig
from fgnet_lib.fgnet import FeatureGuidedAttention, FGNet
from fgnet_lib.weights import load_model, read_notes, save_model

SMALL = replace(MINI, widths=(4, 4, 8, 8, 8), coarse_width=8)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return FGNet(SMALL).eval()


@pytest.mark.slow
@given(st.integers(1, 5), st.integers(1, 70), st.integers(1, 70))
@settings(max_examples=10)
def test_any_size_works(model, depth, height, width):
    with torch.inference_mode():
        output = model(torch.rand(1, 1, depth, height, width))
    assert output.coarse.shape == output.refined.shape == (1, 3, depth, height, width)
    for a, stride in zip(output.attention, (4, 8, 16), strict=True):
        assert a.shape == (1, 1, depth, -(-height // stride), -(-width // stride))
        assert a.min() >= 0 and a.max() <= 1


@torch.inference_mode()
def test_what_is_added_to_reach_a_size_repeats_the_far_edge(model):
    raw = torch.rand(1, 1, 2, 40, 50)
    padded = torch.nn.functional.pad(raw, (0, 14, 0, 24, 0, 0), mode="replicate")
    for ours, whole in zip(model(raw)[:2], model(padded)[:2], strict=True):
        torch.testing.assert_close(ours, whole[..., :40, :50])


@pytest.mark.slow
@pytest.mark.parametrize("zoom, strides", [(2, (2, 4, 8)), (4, (1, 2, 4))])
@pytest.mark.parametrize("encoder", ["mini", "natural"])
def test_enlarged_sections_give_finer_attention(encoder, zoom, strides):
    """With equal weights the guide's maps are those of the enlarged sections; nothing else of the model changes."""
    model = FGNet(replace(SMALL, encoder=encoder, widths=(8,) * 5, guide_zoom=zoom)).eval()
    plain = FGNet(replace(model.config, guide_zoom=1)).eval()
    plain.load_state_dict(model.state_dict())  # of equal widths, so that guides fit wherever they are attached
    raw = torch.rand(1, 1, 2, 40, 30)
    with torch.inference_mode():
        output, features = model(raw), model.encode(raw)
        padded = torch.nn.functional.pad(raw, (0, 2, 0, 24, 0, 0), mode="replicate")
        large = torch.nn.functional.interpolate(padded[0], scale_factor=zoom, mode="bilinear")[None]
        for ours, theirs in zip(features, plain.encoder(large), strict=True):
            torch.testing.assert_close(ours, theirs)
        assert [f.shape[-2:] for f in features] == [(64 // s, 32 // s) for s in strides]
        assert output.coarse.shape == output.refined.shape == (1, 3, 2, 40, 30)
        assert [a.shape[-2:] for a in output.attention] == [(-(-40 // s), -(-30 // s)) for s in strides]
        assert torch.equal(output.refined, model(raw, features).refined)


def test_an_unknown_zoom_is_refused():
    with pytest.raises(ValueError, match="guide_zoom is 3; choose one of 1, 2, 4"):
        replace(MINI, guide_zoom=3)


@pytest.mark.parametrize("kind", ["residual", "plain", "per_channel", "additive"])
def test_attention_is_the_documented_equation(kind):
    torch.manual_seed(0)
    fga = FeatureGuidedAttention(6, 4, kind)
    fine, guide = torch.randn(1, 4, 2, 3, 3), torch.randn(1, 6, 2, 3, 3)

    def pointwise(conv, x):
        return torch.einsum("oi,bizyx->bozyx", conv.weight.flatten(1), x) + conv.bias.view(1, -1, 1, 1, 1)

    a = torch.sigmoid(
        pointwise(fga.to_map, torch.relu(pointwise(fga.from_guide, guide) + pointwise(fga.from_fine, fine)))
    )
    assert a.shape[1] == (4 if kind == "per_channel" else 1)
    guided, weights = fga(fine, guide)
    torch.testing.assert_close(weights, a)
    weighted = pointwise(fga.value, guide) if kind == "additive" else fine
    torch.testing.assert_close(guided, weighted * a + (0 if kind == "plain" else fine))


def test_coarse_affinities_read_sam2_only(model):
    """SAM2's features decide A_s alone; the raw section under fixed features changes A_r only."""
    raw, other = torch.rand(2, 1, 1, 2, 32, 32)
    with torch.inference_mode():
        features = model.encode(raw)
        output, changed = model(raw, features), model(other, features)
        guided = model(raw, model.encode(other))
    torch.testing.assert_close(output.coarse, changed.coarse)
    assert not torch.allclose(output.refined, changed.refined)
    assert not torch.allclose(output.coarse, guided.coarse)
    assert not torch.allclose(output.refined, guided.refined)


def test_frozen_encoder_gets_no_gradient_and_stays_in_eval_mode(model):
    model = FGNet(SMALL)
    model.freeze_encoder()
    model.train()
    assert not model.encoder.training and model.fine_encoder.training
    output = model(torch.rand(1, 1, 2, 32, 32))
    (output.refined.sum() + output.coarse.sum()).backward()
    assert all(p.grad is None for p in model.encoder.parameters())
    assert all(p.grad is not None for p in model.fine_encoder.parameters())
    model.freeze_encoder(False)
    assert model.encoder.training
    model(torch.rand(1, 1, 2, 32, 32)).refined.sum().backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.encoder.parameters())


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"encoder": None},
        {"refined": False},
        {"source": "trunk"},
        {"attention": "per_channel"},
        {"attention": "additive"},
        {"dense_levels": 0},
        {"guide_zoom": 2, "encoder": "natural"},
    ],
)
def test_switches_survive_saving_and_loading(tmp_path, changes):
    torch.manual_seed(1)
    model = FGNet(replace(SMALL, **changes)).eval()
    path = save_model(model, tmp_path / "sub" / "model.safetensors", {"threshold": 0.4})
    loaded, raw = load_model(path), torch.rand(1, 1, 2, 40, 30)
    assert loaded.config == model.config and read_notes(path) == {"threshold": 0.4} and not loaded.training
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    with torch.inference_mode():
        for a, b in zip(model(raw)[:2], loaded(raw)[:2], strict=True):
            assert (a is None and b is None) or torch.equal(a, b)


def test_a_path_may_begin_with_the_home_folder(tmp_path, model, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert save_model(model, "~/model.safetensors", {"threshold": 0.4}) == tmp_path / "model.safetensors"
    assert read_notes("~/model.safetensors") == {"threshold": 0.4}


def test_a_full_disk_is_named_with_the_file_of_weights(tmp_path, model):
    before = save_model(model, tmp_path / "a.safetensors").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))  # the system refuses to write on
    try:
        with pytest.raises(OSError, match="cannot write .*a.safetensors, what was there before is untouched"):
            save_model(model, tmp_path / "a.safetensors")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [before]


def test_mini_stays_small():
    assert sum(p.numel() for p in FGNet(MINI).parameters()) <= 5e6


def test_bad_files_are_refused_with_their_name(tmp_path, model):
    path = save_model(model, tmp_path / "good.safetensors")
    with pytest.raises(FileNotFoundError, match="nowhere.safetensors"):
        load_model(tmp_path / "nowhere.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="cut.safetensors: not a complete"):
        load_model(tmp_path / "cut.safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    with pytest.raises(ValueError, match="foreign.safetensors.*without an FGNet configuration"):
        load_model(tmp_path / "foreign.safetensors")
    wrong = json.dumps(asdict(replace(SMALL, widths=(4, 4, 8, 8, 16))))
    save_file(load_file(path), tmp_path / "other.safetensors", {"config": wrong, "notes": "{}"})
    with pytest.raises(ValueError, match="other.safetensors.*do not fit its configuration"):
        load_model(tmp_path / "other.safetensors")


METADATA = {  # of a file whose weights are right -> what is said about it
    "not JSON": ({"config": "{widths"}, "its entry 'config' is damaged"),
    "a list": ({"config": "[4, 4]"}, "its entry 'config' is a list"),
    "null": ({"config": "null"}, "its entry 'config' is a NoneType"),
    "unknown key": ({"wings": 2}, "does not know its configuration.*wings"),
    "text as widths": ({"widths": "wide!"}, "a width is 'w'"),
    "widths in words": ({"widths": ["4", 4, 8, 8, 8]}, "a width is '4'"),
    "no widths": ({"widths": None}, "does not know its configuration"),
    "wide": ({"widths": [10**9] * 5}, "a width is 1000000000; expected a whole number from 1 to 1024"),
    "narrow": ({"coarse_width": -4}, "a width is -4"),
    "widths in fractions": ({"widths": [4.5, 4, 8, 8, 8]}, "a width is 4.5"),
    "levels": ({"dense_levels": "all"}, "dense_levels is 'all'"),
    "encoder": ({"encoder": [1]}, "no model can be built from its configuration"),
    "source": ({"source": "head"}, "no model can be built from its configuration"),
    "deep": ({"config": "[" * 100_000}, "its entry 'config' is damaged"),
}


@pytest.mark.parametrize("fault", METADATA)
def test_a_file_with_an_odd_configuration_is_refused_with_its_name(tmp_path, model, fault):
    weights, (changes, message) = save_model(model, tmp_path / "good.safetensors"), METADATA[fault]
    config = changes.get("config") or json.dumps(asdict(model.config) | changes)
    save_file(load_file(weights), tmp_path / "odd.safetensors", {"config": config, "notes": "{}"})
    with pytest.raises(ValueError, match=f"odd.safetensors: .*{message}"):
        load_model(tmp_path / "odd.safetensors")


@pytest.mark.parametrize(
    ("notes", "message"),
    [
        ({}, "no entry 'notes' beside"),
        ({"notes": "[]"}, "its entry 'notes' is a list"),
        ({"notes": "{"}, "its entry 'notes' is damaged"),
    ],
)
def test_a_file_with_odd_notes_is_refused_with_its_name(tmp_path, model, notes, message):
    tensors = load_file(save_model(model, tmp_path / "good.safetensors"))
    save_file(tensors, tmp_path / "odd.safetensors", {"config": json.dumps(asdict(model.config)), **notes})
    assert load_model(tmp_path / "odd.safetensors").config == model.config
    with pytest.raises(ValueError, match=f"odd.safetensors: .*{message}"):
        read_notes(tmp_path / "odd.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda tensor: tensor.to(torch.int32), "is torch.int32, expected torch.float32"),
        (lambda tensor: tensor.half(), "is torch.float16, expected torch.float32"),
        (lambda tensor: tensor.log() * torch.nan, "holds NaN or infinite values"),
        (lambda tensor: tensor.clone().index_fill_(0, torch.tensor([0]), torch.inf), "holds NaN or infinite values"),
    ],
)
def test_weights_that_cannot_be_right_are_refused_with_their_name(tmp_path, model, spoil, message):
    tensors = load_file(save_model(model, tmp_path / "good.safetensors"))
    name = next(name for name in reversed(tensors) if tensors[name].ndim == 5)
    tensors[name] = spoil(tensors[name])
    metadata = {"config": json.dumps(asdict(model.config)), "notes": "{}"}
    save_file(tensors, tmp_path / "odd.safetensors", metadata)
    with pytest.raises(ValueError, match=f"odd.safetensors: {name} {message}"):
        load_model(tmp_path / "odd.safetensors")


@pytest.mark.slow
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.floats(0, 1), noise=st.binary(min_size=1, max_size=40))
def test_a_damaged_head_of_a_file_is_refused_or_changes_nothing(tmp_path, model, at, noise):
    """The head has names, shapes, configuration and notes; random bytes among the values could be weights."""
    content = save_model(model, tmp_path / "good.safetensors").read_bytes()
    first = int(at * (8 + int.from_bytes(content[:8], "little")))
    (tmp_path / "odd.safetensors").write_bytes(content[:first] + noise + content[first + len(noise) :])
    try:
        loaded = load_model(tmp_path / "odd.safetensors")
    except ValueError as error:
        assert "odd.safetensors" in str(error)
    else:
        assert all(torch.isfinite(tensor).all() for tensor in loaded.state_dict().values())


@pytest.mark.parametrize(("far", "loads"), [([], True), ([3, 9], False)])
def test_files_of_older_versions_load_unless_they_have_heads_for_far_affinities(tmp_path, model, far, loads):
    path = save_model(model, tmp_path / "model.safetensors")
    older = json.dumps(asdict(model.config) | {"far": far})
    save_file(load_file(path), tmp_path / "older.safetensors", {"config": older, "notes": "{}"})
    if loads:
        assert load_model(tmp_path / "older.safetensors").config == model.config
    else:
        with pytest.raises(ValueError, match=r"older.safetensors: this version does not know .*'far': \[3, 9\]"):
            load_model(tmp_path / "older.safetensors")


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"widths": (4, 8)}, "five"), ({"attention": "soft"}, "soft"), ({"encoder": None, "refined": False}, "nothing"),
     ({"encoder": "huge"}, "huge")],
)  # fmt: skip
def test_bad_configurations_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        FGNet(replace(FGNetConfig(encoder="mini"), **changes))
