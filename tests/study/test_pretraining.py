"""Masked pretraining: what is hidden stays hidden, what is learned stays in the encoder."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pretrain_guide
import pytest
import torch
from safetensors import safe_open

from fgnet_lib.configuration import MINI
from fgnet_lib.fgnet import FGNet
from fgnet_lib.natural_encoder import build_natural_encoder
from fgnet_lib.sam2_encoder import build_encoder
from fgnet_lib.study.pretraining import BLOCK, HIDDEN, MaskedSections, Painter, painting_loss, pretrain
from fgnet_lib.training import TrainConfig
from fgnet_lib.volumes import Volume
from fgnet_lib.weights import PRETRAINED

PATCH = (2, 64, 64)


@pytest.fixture
def volume() -> Volume:
    """Stripes, alike in all sections: what is hidden can be told from what is not."""
    stripes = 127 + 80 * np.sin(np.arange(128) / 3)
    return Volume(np.tile(stripes, (4, 96, 1)).astype(np.uint8), (40.0, 8.0, 8.0))


@pytest.fixture
def painter() -> Painter:
    torch.manual_seed(0)
    return Painter(build_encoder("mini"))


def test_samples_are_functions_of_seed_and_index(volume):
    first, second = MaskedSections([volume], PATCH, seed=1), MaskedSections([volume], PATCH, seed=1)
    for index in (5, 0):
        assert all(torch.equal(a, b) for a, b in zip(first[index], second[index], strict=True))
    assert not torch.equal(first[0][1], first[1][1])


def test_whole_blocks_are_hidden(volume):
    samples = MaskedSections([volume], PATCH)
    hidden = torch.stack([samples[i][1][0] for i in range(30)])
    blocks = hidden.unflatten(-1, (-1, BLOCK)).unflatten(-3, (-1, BLOCK)).float()
    assert set(blocks.mean(dim=(-3, -1)).unique().tolist()) == {0.0, 1.0}
    assert abs(hidden.float().mean() - HIDDEN) < 0.05
    assert not torch.equal(hidden[0, 0], hidden[0, 1])  # sections differ


def test_hidden_grey_values_do_not_reach_the_painter(volume, painter):
    raw, hidden = (tensor[None] for tensor in MaskedSections([volume], PATCH)[0])
    shuffled = raw.clone()
    shuffled[hidden] = raw[hidden][torch.randperm(int(hidden.sum()))]  # the same mean
    with torch.inference_mode():
        torch.testing.assert_close(painter(shuffled, hidden), painter(raw, hidden))
        assert not torch.allclose(painter(raw.flip(-1), hidden), painter(raw, hidden))


def test_only_hidden_voxels_count(volume, painter):
    raw, hidden = (tensor[None] for tensor in MaskedSections([volume], PATCH)[0])
    with torch.inference_mode():
        target = (raw - raw.mean()) / raw.std()
        expected = (painter(raw, hidden) - target)[hidden].abs().mean()
        torch.testing.assert_close(painting_loss(painter, (raw, hidden)), expected)
        constant = torch.full_like(raw, 0.5)
        assert torch.isfinite(painting_loss(painter, (constant, hidden)))


@pytest.mark.slow
def test_pretraining_learns_and_leaves_it_in_the_encoder(volume, tmp_path):
    torch.manual_seed(0)
    encoder = build_encoder("mini")
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    config = TrainConfig(
        patch=PATCH, iterations=150, learning_rate=4e-3, warmup=5, freeze_encoder=False, encoder_lr_factor=1.0
    )
    history = pretrain(encoder, [volume], config, tmp_path)
    ignorant = np.abs(volume.raw - volume.raw.mean()).mean() / volume.raw.std()  # painting the mean everywhere
    assert np.mean(history.loss[-10:]) < 0.8 * ignorant
    assert any(not torch.equal(before[name], value) for name, value in encoder.state_dict().items())
    assert len(pretrain(encoder, [volume], config, tmp_path).loss) == 150  # nothing is trained again


def test_a_guide_of_photographs_keeps_its_licence_and_says_what_changed(tmp_path):
    torch.manual_seed(0)
    model, path = FGNet(replace(MINI, encoder="natural", refined=False)), tmp_path / "guide.safetensors"
    pretrain_guide.save_guide(model, "natural", path)
    stored = build_natural_encoder(path).state_dict()
    assert all(torch.equal(stored[name], value) for name, value in model.encoder.state_dict().items())
    with safe_open(path, framework="pt") as file:
        assert "Apache-2.0" in file.metadata()["licence"] and "trained on EM" in file.metadata()["changes"]


def test_the_shipped_guide_of_photographs_and_em_began_with_that_of_photographs():
    """EM moved every layer, and none far: its weights still correlate with ImageNet's."""
    before, after = (
        build_natural_encoder(PRETRAINED / name).state_dict()
        for name in ("encoder_natural.safetensors", pretrain_guide.WEIGHTS["natural"])
    )
    kernels = {name: value for name, value in before.items() if value.ndim == 4}
    alike = [float(torch.corrcoef(torch.stack([before[k].ravel(), after[k].ravel()]))[0, 1]) for k in kernels]
    assert all(not torch.equal(before[name], after[name]) for name in kernels)
    assert min(alike) > 0.5


@pytest.mark.parametrize(
    ("patch", "match"), [((2, 64, 48), "square|n, n"), ((2, 40, 40), "multiple of 16"), ((9, 64, 64), "fit")]
)
def test_patches_that_do_not_fit(volume, patch, match):
    with pytest.raises(ValueError, match=match):
        MaskedSections([volume], patch)
