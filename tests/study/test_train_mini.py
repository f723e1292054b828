"""What `make weights` does beside training: heads for far affinities that come, learn and go, and stages in order."""

from __future__ import annotations

from dataclasses import replace

import far_affinities
import numpy as np
import pytest
import teacher
import torch

from fgnet_lib.affinities import affinities_from_labels, affinity_mask, widen_borders
from fgnet_lib.augment import Augment
from fgnet_lib.configuration import MINI
from fgnet_lib.fgnet import FGNet, FGNetOutput
from fgnet_lib.losses import fgnet_loss
from fgnet_lib.patches import PatchDataset
from fgnet_lib.phantom import make_phantom
from fgnet_lib.volumes import Volume
from fgnet_lib.weights import fingerprint_weights

PATCH = (4, 32, 32)


@pytest.fixture(scope="module")
def volume() -> Volume:
    return make_phantom((4, 48, 48), seed=0)


@pytest.fixture
def model() -> FGNet:
    torch.manual_seed(0)
    return FGNet(replace(MINI, widths=(4, 4, 8, 8, 8), coarse_width=8))


def weights(model: FGNet) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_far_affinities_come_after_the_nearest(volume: Volume) -> None:
    _, near, known = PatchDataset([volume], volume.shape, augment=None)[0]
    _, target, mask = far_affinities.FarPatches([volume], volume.shape, augment=None)[0]
    assert torch.equal(target[:3], near) and torch.equal(mask[:3], known)
    widened = widen_borders(volume.labels)
    for channels, distance in zip((slice(3, 6), slice(6, 9)), far_affinities.FAR, strict=True):
        np.testing.assert_array_equal(target[channels], affinities_from_labels(widened, distance))
        np.testing.assert_array_equal(mask[channels], affinity_mask(volume.labels, distance))


def test_far_heads_change_nothing_for_the_nearest_and_leave_no_trace(model: FGNet) -> None:
    before, raw = weights(model), torch.rand(1, 1, *PATCH)
    with torch.inference_mode():
        expected = model(raw)
        far_affinities.add_far_heads(model)
        output = model(raw)
    for wide, narrow in zip(output[:2], expected[:2], strict=True):
        assert wide.shape[1] == 9
        torch.testing.assert_close(wide[:, :3], narrow)
    far_affinities.remove_far_heads(model)
    after = weights(model)
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)


def test_the_far_loss_is_a_weighted_sum(model: FGNet, volume: Volume) -> None:
    far_affinities.add_far_heads(model)
    batch = [tensor[None] for tensor in far_affinities.FarPatches([volume], PATCH, Augment())[0]]
    raw, target, mask = batch
    coarse, refined, attention = model(raw)
    near, far = (
        fgnet_loss(FGNetOutput(coarse[:, cut], refined[:, cut], attention), target[:, cut], mask[:, cut])
        for cut in (slice(0, 3), slice(3, 9))
    )
    assert far > 0
    torch.testing.assert_close(far_affinities.far_loss(model, batch), near + 0.5 * far)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "far"), [(1, False), (4, True), (5, True)])
def test_a_stage_trains_the_model_and_keeps_its_form(monkeypatch, tmp_path, volume, number: int, far: bool) -> None:
    """The last two stages learn far affinities; before the last, the encoder is the pretrained one."""
    quick = {"patch": PATCH, "iterations": 1, "weights": None, "warmup": 1, "ema": None, "try_bfloat16": False}
    short = [replace(stage, **quick) for stage in teacher.STAGES]
    monkeypatch.setattr(teacher, "STAGES", short)
    seen, loss = [], teacher.far_loss
    pretrained = torch.load(teacher.PRETRAINED / "encoder_mini.pt", weights_only=True)["model"]

    def spy(model: FGNet, batch: tuple) -> torch.Tensor:
        encoder = model.encoder.state_dict()
        seen.append(all(torch.equal(encoder[name], value) for name, value in pretrained.items()))
        return loss(model, batch)

    monkeypatch.setattr(teacher, "far_loss", spy)
    torch.manual_seed(0)
    model = FGNet(replace(MINI, widths=(4, 4, 8, 8, 8), coarse_width=8))
    before = weights(model)
    history = teacher.train_stage(number, model, [volume], tmp_path)
    folder = tmp_path / f"stage{number}" / (fingerprint_weights(pretrained) if number == 5 else "")
    assert len(history.loss) == 1 and (folder / "checkpoint-0000001").is_dir()
    assert seen == [number == 5] * far
    after = weights(model)
    assert after.keys() == before.keys() and not model.training
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert {"coarse_decoder.head.weight", "refined_decoder.head.weight", "fine_encoder.stem.weight"} <= changed
