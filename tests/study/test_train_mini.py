"""What `make weights` does beside training: heads for far affinities that come, learn and go, and stages in order."""

from __future__ import annotations

from dataclasses import replace

import far_affinities
import numpy as np
import pytest
import teacher
import torch
from monai.transforms import Compose

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


def test_far_heads_are_where_the_model_is(model: FGNet) -> None:
    model.to("meta")  # stands for a GPU, which not every machine has
    for change in (far_affinities.add_far_heads, far_affinities.remove_far_heads):
        change(model)
        assert {value.device.type for value in model.state_dict().values()} == {"meta"}


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


def test_what_is_taught_moves_with_the_sections(monkeypatch) -> None:
    """Whatever the turns and flips: targets are the affinities of the neurons that the patch shows."""
    monkeypatch.setattr(teacher, "SHARE", 1.0)
    labels = np.random.default_rng(0).integers(1, 4, (12, 12, 12))
    taught = (affinities_from_labels(labels) * 255).astype(np.uint8)
    config = replace(teacher.STAGES[0], patch=(4, 6, 8), weights=None)
    patches = teacher.TeacherPatches([make_phantom((6, 16, 16), seed=0)], config, labels.astype(np.uint8), taught)
    patches.grey = Compose([])
    corners = set()
    for index in range(40):
        raw, target, mask = patches[index]
        shown = (raw[0].numpy() * 255).round().astype(int)
        corners.add(shown.tobytes())
        inner = (
            slice(None),
            slice(1, None),
            slice(1, None),
            slice(1, None),
        )  # the first voxels' neighbours lie outside
        np.testing.assert_array_equal(target[:3][inner], affinities_from_labels(shown)[inner])
        assert mask[:3].all() and not mask[3:].any()
    assert len(corners) > 35


def test_only_what_the_teacher_is_sure_of_is_a_target(monkeypatch, volume: Volume) -> None:
    monkeypatch.setattr(teacher, "SHARE", 1.0)
    taught = np.random.default_rng(0).integers(0, 256, (3, *volume.shape), np.uint8)
    config = replace(teacher.STAGES[0], patch=PATCH, weights=None)
    _, target, mask = teacher.TeacherPatches(
        [volume], config, volume.raw[: PATCH[0] + 1].repeat(9, 0), taught.repeat(9, 1)
    )[0]
    assert 0.3 < mask[:3].float().mean() < 0.8 and 0.4 < target[:3].mean() < 0.6


def test_a_teacher_that_was_trained_anew_teaches_anew(monkeypatch, tmp_path) -> None:
    taught = []
    monkeypatch.setattr(teacher, "teach", lambda model, _: taught.append(model) or np.full((3, 1, 1, 1), len(taught)))
    first, second = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
    for model, expected in ((first, 1), (first, 1), (second, 2), (first, 1)):
        affinities = teacher.teach_once(model, None, teacher.taught_folder(model, tmp_path))
        assert (affinities == expected).all()
    assert taught == [first, second]


def test_teaching_is_the_least_of_three_views_slab_by_slab(monkeypatch) -> None:
    """Slabs overlap by what the model sees, and each voxel is written once."""
    raw = make_phantom((60, 32, 32), seed=1).raw
    seen = []

    def spy(_model: object, slab: np.ndarray, three_views: bool, engine: str) -> object:
        seen.append((len(slab), three_views))
        return type("Prediction", (), {"refined": np.stack([slab / 255] * 3)})

    monkeypatch.setattr(teacher, "predict", spy)
    np.testing.assert_array_equal(teacher.teach(None, raw), np.stack([raw] * 3))
    assert seen == [(56, True), (20, True)]
