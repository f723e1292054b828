"""Adapters change nothing before training, are what their equations say, and fit one base model alone."""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fgnet_lib.configuration import MINI, FGNetConfig
from fgnet_lib.fgnet import FGNet
from fgnet_lib.natural_encoder import build_natural_encoder
from fgnet_lib.neighbours.adapters import (
    AdapterConfig,
    amplitude_spectrum,
    attach_adapters,
    detach_adapters,
    has_adapters,
    load_adapters,
    merge_adapters,
    save_adapters,
    train_only,
)
from fgnet_lib.sam2_encoder import build_encoder

SMALL = replace(MINI, widths=(4, 4, 8, 8, 8), coarse_width=8, refined=False)
EVERYTHING = AdapterConfig(rank=4, gate=True, spectrum="log1p")


@pytest.fixture(scope="module")
def model() -> FGNet:
    torch.manual_seed(0)
    return FGNet(SMALL).eval()


@pytest.fixture
def base(model) -> FGNet:
    return deepcopy(model)


def raw(seed: int = 1, sections: int = 2) -> Tensor:
    return torch.rand(1, 1, sections, 64, 96, generator=torch.Generator().manual_seed(seed))


def stir(encoder: nn.Module, size: float = 0.1) -> None:
    """Give all adapters random weights, as training would."""
    torch.manual_seed(7)
    for name, parameter in encoder.named_parameters():
        if "lora_" in name or "adapters." in name:
            nn.init.normal_(parameter, std=size)


def lora_layers(encoder: nn.Module) -> dict[str, nn.Module]:
    return {name: module for name, module in encoder.named_modules() if hasattr(module, "lora_A")}


@pytest.mark.slow
@settings(max_examples=5)
@given(bias=st.floats(-5, 5), seed=st.integers(0, 9))
def test_nothing_changes_at_first_whatever_the_gates_are(model, bias, seed):
    base = deepcopy(model)
    expected = base(raw(seed)).coarse
    attach_adapters(base.encoder, EVERYTHING)
    for gate in base.encoder.adapters.gates:
        nn.init.normal_(gate.score.weight)
        nn.init.constant_(gate.score.bias, bias)
    assert torch.equal(base(raw(seed)).coarse, expected)


@pytest.mark.parametrize("build", [lambda: build_encoder("mini"), build_natural_encoder], ids=["sam2", "photographs"])
@torch.no_grad()
def test_merged_weights_give_the_same_features(build):
    torch.manual_seed(0)
    encoder = build().eval()
    before, names = encoder(raw()), set(encoder.state_dict())
    attach_adapters(encoder, AdapterConfig(rank=3))
    stir(encoder)
    adapted = encoder(raw())
    detached, merged = deepcopy(encoder), deepcopy(encoder)
    detach_adapters(detached)
    merge_adapters(merged)
    for layer in lora_layers(encoder).values():
        a, b = (side["default"].weight.flatten(1) for side in (layer.lora_A, layer.lora_B))
        torch.testing.assert_close(layer.get_delta_weight("default").flatten(1), b @ a)  # whatever the rank is
    for encoder_without in (detached, merged):
        assert set(encoder_without.state_dict()) == names and not has_adapters(encoder_without)
    for first, second, third, last in zip(before, detached(raw()), adapted, merged(raw()), strict=True):
        assert torch.equal(first, second)
        torch.testing.assert_close(third, last, atol=1e-4, rtol=1e-4)
        assert not torch.allclose(first, third, atol=1e-3)


@settings(max_examples=20)
@given(inputs=st.integers(1, 12), outputs=st.integers(1, 12), rank=st.integers(1, 5))
def test_an_update_has_r_times_both_sides_and_its_product_distributes(inputs, outputs, rank):
    from peft import LoraConfig, inject_adapter_in_model  # takes seconds, and only here

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv = nn.Linear(inputs, outputs)

    layer, x = Layer(), torch.randn(5, inputs)
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=["qkv"]), layer)
    nn.init.normal_(layer.qkv.lora_B["default"].weight)
    a, b = (getattr(layer.qkv, name)["default"].weight.double() for name in ("lora_A", "lora_B"))
    assert a.numel() + b.numel() == rank * (inputs + outputs)  # 2 r d where both sides are d
    weight, bias = (parameter.double() for parameter in layer.qkv.get_base_layer().parameters())
    together = x.double() @ (weight + b @ a).T + bias
    torch.testing.assert_close(together, x.double() @ weight.T + bias + (x.double() @ a.T) @ b.T)
    torch.testing.assert_close(layer.qkv(x).double(), together, atol=1e-4, rtol=1e-4)


def test_a_learned_update_has_at_most_rank_r(base):
    attach_adapters(base.encoder, AdapterConfig(rank=2))
    train_only(base, "adapters")
    learning = torch.optim.AdamW([p for p in base.parameters() if p.requires_grad], lr=0.05)
    for step in range(4):
        base(raw(step)).coarse.square().mean().backward()
        learning.step()
        learning.zero_grad()
    layers = lora_layers(base.encoder)
    assert len(layers) == 6
    for layer in layers.values():
        values = torch.linalg.svdvals(layer.get_delta_weight("default").double())
        assert values[0] > 0 and (values[2:] < 1e-6 * values[0]).all()


@settings(max_examples=20)
@given(
    shape=st.tuples(st.integers(2, 24), st.integers(2, 24)),
    shift=st.tuples(st.integers(-30, 30), st.integers(-30, 30)),
    spectrum=st.sampled_from(["raw", "log1p"]),
)
def test_a_spectrum_does_not_move_with_the_tissue(shape, shift, spectrum):
    section = torch.rand(shape, generator=torch.Generator().manual_seed(sum(shape)))
    moved = amplitude_spectrum(section.roll(shift, (0, 1)), spectrum)
    result = amplitude_spectrum(section, spectrum)
    torch.testing.assert_close(moved, result, atol=1e-4, rtol=0)
    assert result.min() == 0 and result.max() == 1
    assert result[shape[0] // 2, shape[1] // 2] == 1  # frequency 0, the mean grey value
    amplitudes = torch.fft.fft2(section.double()).abs()
    torch.testing.assert_close(amplitudes.square().mean(), section.double().square().sum())  # Parseval


def test_a_logarithm_brings_the_amplitudes_to_the_middle():
    section = torch.rand(128, 128, generator=torch.Generator().manual_seed(0))
    assert (
        amplitude_spectrum(section, "raw").median() < 0.02 < 0.3 < amplitude_spectrum(section, "log1p").median() < 0.8
    )
    assert amplitude_spectrum(torch.zeros(4, 4), "log1p").abs().max() == 0


@torch.no_grad()
def test_a_spectrum_is_embedded_as_sections_are_and_counts_half(base):
    trunk, embedded, given = base.encoder.image_encoder.trunk, [], []
    attach_adapters(base.encoder, AdapterConfig(rank=0, spectrum="raw"))
    trunk.patch_embed.register_forward_hook(lambda _, __, output: embedded.append(output))
    trunk.blocks[0].register_forward_hook(lambda _, __, output: given.append(output))
    base.encoder(raw())
    nn.init.constant_(base.encoder.adapters.frequency.branches[0][-1].bias, 3)
    base.encoder(raw())
    torch.testing.assert_close(given[1] - given[0], torch.full_like(given[0], 1.5), atol=1e-4, rtol=0)
    base.encoder(amplitude_spectrum(raw(), "raw"))
    torch.testing.assert_close(embedded[0], embedded[-1])  # of the spectrum, and of a section that looks like it


@torch.no_grad()
def test_a_gate_and_a_spectrum_are_those_of_one_image(base):
    attach_adapters(base.encoder, EVERYTHING)
    stir(base.encoder, size=0.5)
    together = base.encoder(torch.cat([raw(1, 3), raw(2, 3)]))
    alone = base.encoder(raw(2, 3)[:, :, 1:2])
    for both, single in zip(together, alone, strict=True):
        torch.testing.assert_close(both[1:, :, 1:2], single, atol=1e-4, rtol=1e-4)
    without = deepcopy(base.encoder)
    for gate in without.adapters.gates:
        nn.init.constant_(gate.score.bias, -100)  # closed, so that the update is lost
    detach_adapters(base.encoder)
    attach_adapters(base.encoder, replace(EVERYTHING, gate=False))
    base.encoder.adapters.frequency.load_state_dict(without.adapters.frequency.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(without(raw()), base.encoder(raw()), strict=True))


REGIMES = {"frozen": 0, "adapters": 2 * 2720, "norms": 2496, "full": 1400576}


@pytest.mark.parametrize("regime", REGIMES)
def test_a_regime_trains_what_it_names(base, regime):
    if regime == "adapters":
        attach_adapters(base.encoder, AdapterConfig(rank=2))
    train_only(base, regime)
    base.train()
    base(raw()).coarse.sum().backward()
    trained = {name: p.numel() for name, p in base.named_parameters() if p.grad is not None}
    assert sum(count for name, count in trained.items() if name.startswith("encoder.")) == REGIMES[regime]
    assert {name.split(".")[0] for name in trained} >= {"project", "coarse_decoder"}


@pytest.mark.slow
@pytest.mark.parametrize(("encoder", "mouse"), [("mini", EVERYTHING), ("natural", AdapterConfig(rank=2))])
@torch.no_grad()
def test_one_base_serves_several_tissues_by_small_files(encoder, mouse, tmp_path):
    torch.manual_seed(0)
    base = FGNet(replace(SMALL, encoder=encoder)).eval()
    expected, untouched = {}, deepcopy(base)
    for tissue, config in {"fly": AdapterConfig(rank=4), "mouse": mouse}.items():
        detach_adapters(base.encoder)
        attach_adapters(base.encoder, config)
        train_only(base, "adapters")
        stir(base.encoder)
        nn.init.normal_(base.coarse_decoder.head.weight)
        expected[tissue] = base(raw()).coarse
        path = save_adapters(base, tmp_path / f"{tissue}.safetensors", config, {"tissue": tissue})
        assert path.stat().st_size <= 200_000
    for tissue in ("mouse", "fly", "mouse"):
        assert load_adapters(untouched, tmp_path / f"{tissue}.safetensors") == {"tissue": tissue}
        assert torch.equal(untouched(raw()).coarse, expected[tissue])


def test_a_file_of_adapters_is_refused_where_it_does_not_belong(base, tmp_path):
    attach_adapters(base.encoder, AdapterConfig(rank=2))
    train_only(base, "adapters")
    path = save_adapters(base, tmp_path / "fly.safetensors", AdapterConfig(rank=2), {})
    torch.manual_seed(5)
    for other in (FGNet(SMALL), FGNet(replace(SMALL, coarse_width=4)), FGNet(replace(SMALL, refined=True))):
        with pytest.raises(ValueError, match=r"fly.safetensors belongs to another base model"):
            load_adapters(other, path)
        assert not has_adapters(other.encoder)
    broken = []
    for value in (math.nan, -math.inf):
        nn.init.constant_(base.coarse_decoder.head.bias, value)
        broken.append(save_adapters(base, tmp_path / f"{value}.safetensors", AdapterConfig(rank=2), {}))
    for file in broken:
        with pytest.raises(ValueError, match="coarse_decoder.head.bias holds NaN or infinite"):
            load_adapters(base, file)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(ValueError, match="no file of adapters, or damaged"):
        load_adapters(base, path)
    with pytest.raises(FileNotFoundError, match="no such file of adapters"):
        load_adapters(base, tmp_path / "none.safetensors")


@pytest.mark.slow
@torch.no_grad()
def test_sam2_s_official_checkpoints_take_adapters_by_one_parameter(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "sam2.1_hiera_tiny.pt"
    official = {**build_encoder("tiny").state_dict(), "sam_mask_decoder.iou_token.weight": torch.zeros(1, 256)}
    torch.save({"model": official}, path)
    models = [FGNet(FGNetConfig(encoder="tiny", refined=False, coarse_width=8), path).eval() for _ in range(2)]
    expected = models[0](raw()).coarse
    config = AdapterConfig(rank=2)
    attach_adapters(models[0].encoder, config)
    assert len(lora_layers(models[0].encoder)) == 12
    assert torch.equal(models[0](raw()).coarse, expected)
    train_only(models[0], "adapters")
    stir(models[0].encoder)
    file = save_adapters(models[0], tmp_path / "fly.safetensors", config, {})
    assert file.stat().st_size <= 200_000
    load_adapters(models[1], file)
    assert torch.equal(models[0](raw()).coarse, models[1](raw()).coarse)


@pytest.mark.parametrize("config", [EVERYTHING, AdapterConfig(rank=0, spectrum="raw")])
def test_adapters_are_where_the_encoder_is(base, config):
    encoder = base.to("meta").encoder
    attach_adapters(encoder, config)
    assert {parameter.device.type for parameter in encoder.parameters()} == {"meta"}


def test_what_does_not_fit_is_refused(base):
    with pytest.raises(ValueError, match="rank is -1"):
        AdapterConfig(rank=-1)
    with pytest.raises(ValueError, match="spectrum is 'phase'"):
        AdapterConfig(spectrum="phase")
    with pytest.raises(ValueError, match="rank 0 has none"):
        AdapterConfig(rank=0, gate=True)
    with pytest.raises(ValueError, match="photographs has no attention"):
        attach_adapters(build_natural_encoder(), EVERYTHING)
    with pytest.raises(ValueError, match="has no adapters"):
        train_only(base, "adapters")
    with pytest.raises(ValueError, match="regime is 'all'"):
        train_only(base, "all")
    with pytest.raises(ValueError, match="no encoder to adapt"):
        train_only(FGNet(replace(SMALL, encoder=None, refined=True)), "norms")
    attach_adapters(base.encoder, EVERYTHING)
    with pytest.raises(ValueError, match="has adapters already"):
        attach_adapters(base.encoder, EVERYTHING)
    for config in (EVERYTHING, AdapterConfig(gate=True), AdapterConfig(spectrum="raw")):
        detach_adapters(base.encoder)
        attach_adapters(base.encoder, config)
        with pytest.raises(ValueError, match="depends on the image"):
            merge_adapters(base.encoder)
