"""The losses of distillation are their equations, the teacher gets no gradient, and turned embeddings turn back."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fgnet_lib.configuration import FGNetConfig
from fgnet_lib.fgnet import FGNet
from fgnet_lib.neighbours.distillation import (
    SHIFTS,
    Distillation,
    LossWeights,
    TaughtPatches,
    Teaching,
    ask_teacher,
    cross_loss,
    distillation_loss,
    feature_loss,
    grafting_loss,
    truth_loss,
    turn,
    turn_back,
    used_answers,
)
from fgnet_lib.phantom import make_phantom
from fgnet_lib.student import Student, StudentConfig
from fgnet_lib.training import TrainConfig, fit

CONFIG = StudentConfig(widths=(4, 4, 8, 8), embedding=3)
EVERYTHING = LossWeights(graft=1.0, features=0.1)


def make_batch(count: int = 2, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random crops as `distillation_loss` takes them; a teacher of 5 channels, an encoder of 6."""
    random, volume = torch.Generator().manual_seed(seed), (6, 16, 16)
    target = (torch.rand((count, 3, *volume), generator=random) > 0.2).float()
    return {
        "raw": torch.rand((count, 1, *volume), generator=random),
        "turn": torch.arange(count),
        "target": target,
        "mask": torch.ones_like(target).bool(),
        "labels": torch.randint(0, 3, (count, *volume), generator=random),
        "known": torch.ones((count, *volume)).bool(),
        "affinities": torch.rand((count, 3, *volume), generator=random),
        "features": torch.randn((count, 5, *volume), generator=random),
        "guide": torch.randn((count, 6, 6, 4, 4), generator=random),
    }


def make_model(weights: LossWeights) -> Distillation:
    torch.manual_seed(0)
    return Distillation(Student(CONFIG), weights, nn.Conv3d(5, 4, 1), guide_channels=6)


@settings(max_examples=20)
@given(st.integers(0, 1000))
def test_a_student_that_equals_its_teacher_has_no_cross_loss_and_no_gradient(seed):
    affinities = torch.rand((1, 3, 4, 5, 6), generator=torch.Generator().manual_seed(seed)).requires_grad_()
    loss = cross_loss(affinities, affinities.detach().clone())
    loss.backward()
    assert loss == 0 and (affinities.grad == 0).all()
    off = cross_loss(affinities.detach() + 0.5, affinities)
    torch.testing.assert_close(off, torch.tensor(0.25))


def test_no_gradient_reaches_a_teacher():
    ours, theirs = (torch.rand(1, 3, 4, 5, 5).requires_grad_() for _ in range(2))
    labels = torch.ones(1, 4, 5, 5, dtype=torch.int64)
    for loss in (cross_loss, feature_loss, lambda a, b: grafting_loss(a, b, labels, labels.bool())):
        ours.grad = None
        loss(ours, theirs).backward()
        assert theirs.grad is None and ours.grad.abs().sum() > 0


def test_joined_and_separate_pairs_count_alike_in_the_loss_against_the_truth():
    target, affinities = torch.tensor([1.0, 1, 1, 0]), torch.tensor([0.5, 0.5, 0.5, 1.0])
    assert truth_loss(affinities, target, target > -1) == pytest.approx((0.25 + 1) / 2)
    assert truth_loss(affinities, target, target > 0) == pytest.approx(0.25 / 2)  # the last one is unknown
    assert truth_loss(affinities, target, target < 0) == 0
    assert truth_loss(target, target, target > -1) == 0


@pytest.mark.parametrize("shift", SHIFTS)
def test_grafting_counts_every_shift(shift):
    """Only pairs at one distance are known and wrong: a loss that keeps the last shift alone would miss them."""
    labels = torch.ones(1, 1 + max(SHIFTS), 2, 2, dtype=torch.int64)
    right = torch.zeros(1, 3, *labels.shape[1:])
    right[:, 0] = 1
    assert grafting_loss(right, right, labels, labels.bool()) == 0
    known = torch.zeros_like(labels).bool()
    known[:, 0] = known[:, shift] = True
    wrong = right.roll(1, 1)
    loss = grafting_loss(right, wrong, labels, known)
    torch.testing.assert_close(loss, torch.tensor(0.5 / len(SHIFTS)))  # half of one shift: all joined, none separate


def test_grafting_is_its_equation():
    generator = torch.Generator().manual_seed(1)
    ours, theirs = torch.randn((2, 1, 4, 6, 3, 3), generator=generator)
    labels = torch.randint(0, 3, (1, 6, 3, 3), generator=generator)
    ours_unit, theirs_unit = (F.normalize(e, dim=1)[0, :-1].numpy() for e in (ours, theirs))
    expected = []
    for shift in SHIFTS:
        errors: dict[bool, list[float]] = {True: [], False: []}
        for z, y, x in np.ndindex(6 - shift, 3, 3):
            product = float(ours_unit[:, z, y, x] @ theirs_unit[:, z + shift, y, x])
            joined = bool(labels[0, z, y, x] == labels[0, z + shift, y, x] > 0)
            errors[joined].append((min(max(product, 0), 1) - joined) ** 2)
        expected.append(sum(np.mean(e) for e in errors.values() if e) / 2)
    loss = grafting_loss(ours, theirs, labels, torch.ones_like(labels).bool())
    assert float(loss) == pytest.approx(np.mean(expected), rel=1e-5)


@given(st.integers(0, 15))
def test_a_turned_volume_turns_back(number):
    volume = torch.rand(2, 3, 4, 4)
    turned = turn(volume, number)
    assert torch.equal(turn_back(turned, number), volume) and torch.equal(turned, volume) == (number == 0)


@torch.no_grad()
def test_the_student_is_judged_in_the_pose_of_the_labels():
    """Item k was turned k times, so the loss of turned raw differs, and that of a pointwise student stays as it is."""
    model, batch = make_model(LossWeights()), make_batch(16)
    for name, parameter in model.student.named_parameters():  # each embedding depends on the mean of 2 x 2 pixels alone
        parameter.zero_()
        if name in ("stem.weight", "head.weight"):
            parameter[..., parameter.shape[2] // 2, parameter.shape[3] // 2] = torch.randn(parameter.shape[:2])
    model.student.stem.weight[:] = model.student.stem.weight.mean((1,), keepdim=True)
    head = model.student.head.weight
    head[:] = head.unflatten(0, (-1, 4)).mean(1, keepdim=True).expand(-1, 4, -1, -1, -1).flatten(0, 1)
    straight = distillation_loss(model, batch | {"turn": torch.zeros(16, dtype=torch.int64)})
    turned = batch | {"raw": torch.stack([turn(raw, number) for number, raw in enumerate(batch["raw"])])}
    torch.testing.assert_close(distillation_loss(model, turned), straight)


def test_the_loss_is_the_weighted_sum_and_only_students_and_projections_learn():
    batch = make_batch()
    alone = [
        distillation_loss(make_model(weights), batch).item()
        for weights in (
            LossWeights(cross=0.0),
            LossWeights(label=0.0),
            LossWeights(0.0, 0.0, graft=1.0),
            LossWeights(0.0, 0.0, features=1.0),
        )
    ]
    model = make_model(EVERYTHING)
    loss = distillation_loss(model, batch)
    assert loss.item() == pytest.approx(alone[0] + alone[1] + alone[2] + 0.1 * alone[3], rel=1e-5)
    loss.backward()
    assert all(p.grad is None for p in model.graft_head.parameters())
    assert all(p.grad.abs().sum() > 0 for p in model.project.parameters())
    assert all(p.grad is not None for p in model.student.parameters())
    without = make_model(replace(EVERYTHING, graft=0.0, features=0.0))
    assert without.graft_head is None and without.project is None


@pytest.fixture(scope="module")
def teacher() -> FGNet:
    torch.manual_seed(0)
    form = {"attention": "plain", "norm": "channel"}  # as the shipped model has them
    return FGNet(FGNetConfig("natural", widths=(4, 4, 8, 8, 8), coarse_width=4, **form)).eval()


@pytest.fixture(scope="module")
def teaching(teacher) -> Teaching:
    volume = make_phantom((20, 64, 96), seed=0)
    return Teaching(volume, ask_teacher(teacher, volume.raw))


def test_a_teacher_answers_for_every_voxel(teaching):
    answers = {name: array.shape for name, array in teaching.answers.items()}
    assert answers == {"affinities": (3, 20, 64, 96), "features": (4, 20, 64, 96), "guide": (24, 20, 16, 24)}
    assert all(np.isfinite(array).all() for array in teaching.answers.values())


@torch.inference_mode()
def test_answers_are_what_head_and_guide_of_the_teacher_give(teacher, teaching):
    raw, features = teaching.volume.raw / np.float32(255), teaching.answers["features"].astype(np.float32)
    guide = teacher.encode(torch.from_numpy(raw[None, None]))[0][0].numpy()
    np.testing.assert_allclose(teaching.answers["guide"], guide, rtol=1e-3, atol=1e-3)
    logits = teacher(torch.from_numpy(raw[None, None, :14])).refined[0, :, :12]  # sections that are seen at once, kept
    ours = teacher.refined_decoder.head(torch.from_numpy(features[None, :, :12]))[0]
    torch.testing.assert_close(ours, logits, rtol=1e-2, atol=1e-2)


def test_crops_depend_on_seed_and_index_and_everything_in_them_comes_from_one_region(teaching):
    config = TrainConfig(patch=(6, 32, 32), seed=3)
    patches = TaughtPatches([teaching], ("affinities", "features", "guide"), config)
    first, second = patches[5], patches[5]
    assert first.keys() == make_batch().keys() and all(np.array_equal(first[k], second[k]) for k in first)
    assert not torch.equal(first["raw"], patches[6]["raw"])
    region = next(
        (z, y, x)
        for z, y, x in np.ndindex(15, 9, 17)
        if np.array_equal(teaching.labels[z : z + 6, 4 * y : 4 * y + 32, 4 * x : 4 * x + 32], first["labels"])
    )
    z, y, x = region
    for name, step in (("affinities", 4), ("features", 4), ("guide", 1)):
        side = 8 * step
        cut = teaching.answers[name][:, z : z + 6, y * step : y * step + side, x * step : x * step + side]
        np.testing.assert_array_equal(first[name], cut.astype(np.float32))
    raw = turn_back(first["raw"], first["turn"])[0].numpy()
    seen = teaching.volume.raw[z : z + 6, 4 * y : 4 * y + 32, 4 * x : 4 * x + 32]
    alike = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(raw, seen, strict=True)]
    assert np.mean(alike) > 0.8  # varied, but in the pose of the labels


@pytest.mark.slow
def test_a_student_learns_from_its_teacher_alone(teaching, tmp_path):
    model = make_model(LossWeights(label=0.0))
    config = TrainConfig(patch=(6, 32, 32), batch=2, iterations=40, learning_rate=5e-3, warmup=5)
    patches = TaughtPatches([teaching], used_answers(model.weights), config)
    history = fit(model, patches, distillation_loss, config, tmp_path)
    assert np.mean(history.loss[-5:]) < 0.8 * np.mean(history.loss[:5])


def test_only_the_answers_that_losses_use_are_cut():
    assert used_answers(LossWeights()) == ("affinities",)
    assert used_answers(LossWeights(cross=0.0)) == ()
    assert used_answers(EVERYTHING) == ("affinities", "features", "guide")
