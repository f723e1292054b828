"""Noise has the strength it says, blind spots are blind, channels attend alike in any order, gradients reach D1."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fgnet_lib.losses import affinity_loss
from fgnet_lib.metrics import evaluate, psnr
from fgnet_lib.neighbours.denoising import (
    SHIFTS,
    ChannelAttention,
    DenoiSeg,
    Denoiser,
    InstanceEmbedding,
    SectionPatches,
    Segmenter,
    add_noise,
    apply_to_sections,
    blind_spot_loss,
    cut_into_sections,
    denoising_loss,
    hide_pixels,
    joint_loss,
    sections_to_affinities,
    segment_sections,
    segmentation_loss,
)
from fgnet_lib.phantom import make_phantom
from fgnet_lib.volumes import IGNORE, Volume

CHECKED = settings(max_examples=20)
STRENGTHS = st.floats(0.02, 0.6)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def batch() -> tuple[Tensor, ...]:
    """Two noisy patches of 32 x 32 pixels of a phantom."""
    volume = make_phantom((4, 48, 48), seed=0)
    noisy = add_noise(volume.raw / 255, "gaussian", 0.2, np.random.default_rng(0)).clip(0, 1)
    patches = SectionPatches(volume, noisy, side=32)
    return tuple(torch.stack(parts) for parts in zip(patches[0], patches[1], strict=True))


@CHECKED
@given(strength=STRENGTHS, grey=st.floats(0, 1), seed=st.integers(0, 99))
def test_psnr_of_added_noise_is_what_its_strength_says_before_clipping(strength, grey, seed):
    clean = np.full((8, 64, 64), grey, np.float32)
    rng = np.random.default_rng(seed)
    expected = -20 * math.log10(strength)
    assert abs(psnr(add_noise(clean, "gaussian", strength, rng), clean) - expected) < 0.3
    assert abs(psnr(add_noise(clean, "line", strength, rng), clean) - expected) < 1.5  # 512 shifts, not 32768 values
    white = add_noise(np.ones_like(clean), "poisson", strength, rng)
    assert abs(psnr(white, 1) - expected) < 0.3
    exact = clean + strength * np.where(np.indices(clean.shape).sum(0) % 2, 1, -1)  # no chance: equality
    assert math.isclose(psnr(exact, clean), expected, abs_tol=1e-3)


def test_each_noise_has_its_structure():
    clean, rng = np.full((2, 40, 40), 0.25, np.float32), np.random.default_rng(0)
    line = add_noise(clean, "line", 0.2, rng) - clean
    assert np.ptp(line, axis=2).max() < 1e-6 and line[..., 0].std() > 0.1
    counts = add_noise(clean, "poisson", 0.2, rng) / 0.2**2
    assert np.abs(counts - counts.round()).max() < 1e-3
    assert abs((counts * 0.2**2).std() - 0.2 * math.sqrt(0.25)) < 0.01  # darker tissue has less of it
    assert clean.min() == clean.max() == 0.25


@CHECKED
@given(seed=st.integers(0, 999), sides=st.tuples(st.sampled_from([8, 12, 20]), st.sampled_from([8, 16])))
def test_a_blind_spot_has_derivative_0_at_itself(seed, sides):
    torch.manual_seed(seed)
    noisy = random(1, 1, *sides, seed=seed).requires_grad_()
    hidden, mask = hide_pixels(noisy)
    assert mask.float().mean() == 1 / 16
    changed = (hidden != noisy)[0, 0] & ~mask
    assert not changed.any()  # all others are as they were
    denoiser = Denoiser(8)
    y, x = np.argwhere(mask.numpy())[seed % int(mask.sum())]
    (gradient,) = torch.autograd.grad(denoiser(hidden)[0, 0, y, x], noisy)
    assert gradient[0, 0, y, x] == 0 and gradient.abs().sum() > 0
    assert not gradient[0, 0, mask].any()  # no other blind spot gives it away either
    values = {round(float(value), 6) for value in noisy.detach().flatten()}
    assert {round(float(value), 6) for value in hidden.detach()[0, 0, mask]} <= values


@CHECKED
@given(channels=st.sampled_from([2, 4, 8]), seed=st.integers(0, 999))
def test_attention_without_its_depthwise_part_commutes_with_any_permutation_of_pixels(channels, seed):
    torch.manual_seed(seed)
    features, guide, order = torch.randn(1, channels, 5, 6), torch.randn(1, channels, 5, 6), torch.randperm(30)

    def permute(x: Tensor) -> Tensor:
        return x.flatten(2)[..., order].view_as(x)

    for depthwise in (False, True):
        attention = ChannelAttention(channels, depthwise)
        before, after = permute(attention(features, guide)), attention(permute(features), permute(guide))
        assert torch.allclose(before, after, atol=1e-5) == (not depthwise)


def test_an_embedding_listens_to_its_guide():
    torch.manual_seed(0)
    embed, features = InstanceEmbedding(8), torch.randn(1, 8, 6, 6)
    guided = [embed(features, torch.randn(1, 8, 6, 6)) for _ in range(2)]
    assert guided[0].shape == features.shape and not torch.allclose(*guided)


def test_the_gradient_of_affinities_reaches_d1_when_joint_and_not_when_detached(batch):
    torch.manual_seed(0)
    model = DenoiSeg(width=8)
    for joint in (True, False):
        model.zero_grad()
        model(batch[0], joint).logits.square().mean().backward()
        reached = [p.grad is not None and bool(p.grad.any()) for p in model.denoiser.parameters()]
        assert all(reached) if joint else not any(reached)
        assert all(bool(p.grad.any()) for p in model.segmenter.parameters())


def test_affinities_reach_d2_only_through_the_embedding(batch):
    torch.manual_seed(0)
    first = torch.rand(1, 1, 16, 16)
    for embedding in (True, False):
        model = DenoiSeg(embedding)
        pictures = [model.refine(first, torch.randn(1, 10, 16, 16)) for _ in range(2)]
        assert torch.equal(*pictures) == (not embedding)


@pytest.mark.slow
def test_every_loss_falls(batch):
    for model, loss in (
        (Denoiser(), denoising_loss),
        (Denoiser(), blind_spot_loss),
        (Segmenter(8), segmentation_loss),
        (DenoiSeg(), joint_loss),
    ):
        torch.manual_seed(0)
        optimizer, losses = torch.optim.AdamW(model.parameters(), 3e-3), []
        for _ in range(15):
            losses.append(loss(model, batch))
            losses[-1].backward()
            optimizer.step()
            optimizer.zero_grad()
        assert losses[-1] < losses[0], loss.__name__


def test_losses_are_of_what_they_say(batch):
    noisy, clean, target, mask = batch
    first, logits, second = torch.zeros_like(clean), torch.zeros_like(target), torch.full_like(clean, 0.5)
    expected = 3 * affinity_loss(logits, target, mask) + clean.square().mean() + 50 * (clean - 0.5).square().mean()
    torch.testing.assert_close(joint_loss(lambda given: (first, logits, second), batch), expected)
    seen: list[Tensor] = []
    loss = blind_spot_loss(lambda hidden: seen.append(hidden) or torch.zeros_like(hidden), (noisy, clean))
    places = (seen[0] != noisy).any(0)[0]
    torch.testing.assert_close(loss, noisy.square()[..., places].mean())  # of hidden pixels, and without a clean one


def test_blind_spots_begin_at_any_row_and_any_column():
    assert len({tuple(hide_pixels(torch.rand(1, 1, 8, 8))[1].nonzero()[0].tolist()) for _ in range(300)}) == 16


def test_patches_are_of_one_place_and_their_affinities_of_their_shifts():
    volume = make_phantom((3, 40, 44), seed=1)
    patches = SectionPatches(volume, volume.raw.astype(np.float32) / 255, side=32, seed=3)
    noisy, clean, target, mask = patches[7]
    assert torch.equal(noisy, clean) and torch.equal(patches[7][2], target)  # the noise is none, the item its own
    assert noisy.shape == (1, 32, 32) and target.shape == mask.shape == (2 * len(SHIFTS), 32, 32)
    for k, shift in enumerate(SHIFTS):
        assert not mask[2 * k, :shift].any() and mask[2 * k, shift:].all()
        assert not mask[2 * k + 1, :, :shift].any() and mask[2 * k + 1, :, shift:].all()
    assert 0 < target.mean() < 1


def test_patches_are_flipped_either_way_and_learn_wide_borders():
    y, x = np.indices((1, 40, 40))[1:]
    raw = (5 * y + x).astype(np.uint8)  # which tells the way up
    volume = Volume(raw, (8.0, 8.0, 8.0), np.where(x < 20, np.uint64(1), np.uint64(2)))
    poses = []
    for seed, first in ((1, 1), (2, 0)):
        patches = SectionPatches(volume, raw / np.float32(255), side=40, seed=seed)
        poses.append([])
        for index in range(first, first + 20):
            noisy, _, target, _ = patches[index]
            steps = 255 * (noisy[0, [1, 0], [0, 1]] - noisy[0, 0, 0])
            poses[-1].append(tuple(steps.round().int().tolist()))
            assert (target[1, :, 19:22] == 0).all() and target[1, :, 1:19].all() and target[1, :, 22:].all()
    assert {*poses[0]} == {(a, b) for a in (5, -5) for b in (1, -1)} and poses[0] != poses[1]


def test_sections_of_any_size_pass_through_a_network():
    sections = np.random.default_rng(0).random((2, 9, 14), np.float32)
    assert np.array_equal(apply_to_sections(lambda x: x, sections)[:, 0], sections)
    logits = apply_to_sections(Segmenter(8), sections)
    affinities = sections_to_affinities(logits)
    assert affinities.shape == (3, 2, 9, 14) and not affinities[0].any()
    np.testing.assert_allclose(affinities[1:, 1], 1 / (1 + np.exp(-logits[1, :2])), rtol=1e-5)


def test_sections_are_segmented_alone_and_judged_alone():
    labels = np.zeros((2, 24, 24), np.uint64)
    labels[:, :, :11], labels[:, :, 13:] = 5, 7
    labels[1, :, 20], labels[1, :, 21:] = IGNORE, 5  # the first neuron comes back on the other side
    pieces = cut_into_sections(labels)
    assert len(np.unique(pieces[labels == 5])) == 3 and len(np.unique(pieces[labels == 7])) == 2
    corners = np.array([[[1, 0], [0, 1]]] * 3, np.uint64)
    assert cut_into_sections(corners).tolist() == [[[k, 0], [0, k + 1]] for k in (1, 3, 5)]
    assert (pieces[labels == 0] == 0).all() and (pieces[labels == IGNORE] == IGNORE).all()
    affinities = np.ones((3, 2, 24, 24), np.float32)
    affinities[0], affinities[1:, :, :, 11:13], affinities[1:, 1, :, 20] = 0, 0, 0
    segments = segment_sections(affinities, [0.5, 0.2])
    assert list(segments) == [0.5, 0.2]
    scores = evaluate(segments[0.5], pieces)
    assert scores.voi_split == scores.voi_merge == 0
    assert not set(np.unique(segments[0.2][0])) & set(np.unique(segments[0.2][1]))


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="kind is 'salt'"):
        add_noise(np.zeros((1, 2, 2)), "salt", 0.1, np.random.default_rng(0))
    with pytest.raises(ValueError, match="strength is 0"):
        add_noise(np.zeros((1, 2, 2)), "line", 0, np.random.default_rng(0))
    with pytest.raises(ValueError, match="multiples of 4"):
        hide_pixels(torch.zeros(1, 1, 10, 8))
    with pytest.raises(ValueError, match="patches need labels"):
        SectionPatches(make_phantom((2, 32, 32)), np.zeros((1, 32, 32), np.float32))
