"""Haar and couplings can be undone, Haar keeps energy, two swaps change nothing, and the network learns to swap."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fgnet_lib.neighbours.noise_transfer import (
    CLAMP,
    Coupling,
    NoiseSplit,
    haar,
    inverse_haar,
    swap_loss,
    transfer_loss,
)

CHECKED = settings(max_examples=20)
SIDES = st.tuples(st.sampled_from([2, 6, 8]), st.sampled_from([4, 10]))


def disturb(model: nn.Module, seed: int) -> nn.Module:
    """Give each weight a random change, so that no network inside is 0."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


def picture(sides: tuple[int, int], seed: int) -> Tensor:
    return torch.rand((2, 1, *sides), generator=torch.Generator().manual_seed(seed))


@CHECKED
@given(sides=SIDES, seed=st.integers(0, 999))
def test_haar_is_undone_and_keeps_energy(sides, seed):
    x = picture(sides, seed)
    bands = haar(x)
    assert (inverse_haar(bands) - x).abs().max() < 1e-5
    assert torch.isclose(bands.square().sum(), x.square().sum(), rtol=1e-5)
    flat = haar(torch.full_like(x, 0.5))
    assert torch.allclose(flat[:, :1], torch.ones_like(flat[:, :1])) and flat[:, 1:].abs().max() < 1e-6


@pytest.mark.slow
@CHECKED
@given(sides=SIDES, seed=st.integers(0, 999))
@torch.no_grad()
def test_couplings_are_undone_whatever_their_networks_are(sides, seed):
    coupling, split = disturb(Coupling(8), seed), disturb(NoiseSplit(3, 8), seed)
    content, noise = torch.randn(1, 1, *sides), torch.randn(1, 3, *sides)
    after = coupling(content, noise)
    assert not torch.allclose(after[1], noise, atol=1e-2)
    for a, b in zip(coupling.inverse(*after), (content, noise), strict=True):
        assert (a - b).abs().max() < 1e-5
    assert coupling._scale(after[0]).abs().max() <= CLAMP
    x = picture(sides, seed)
    assert (split.join(*split(x)) - x).abs().max() < 1e-5


@pytest.mark.slow
@CHECKED
@given(sides=SIDES, seed=st.integers(0, 999))
@torch.no_grad()
def test_swapping_noise_twice_returns_the_input(sides, seed):
    split, (a, b) = disturb(NoiseSplit(2, 8), seed), (picture(sides, seed), picture(sides, seed + 1))
    swapped = split.swap(a, b)
    assert not torch.allclose(swapped[0], a, atol=1e-2)
    for again, before in zip(split.swap(*swapped), (a, b), strict=True):
        assert (again - before).abs().max() < 1e-5


def test_an_untrained_network_swaps_details():
    a, b = picture((8, 8), 0), picture((8, 8), 1)
    with torch.no_grad():
        swapped = NoiseSplit().swap(a, b)[0]
    bands = haar(swapped)
    assert torch.allclose(bands[:, :1], haar(a)[:, :1], atol=1e-5)
    assert torch.allclose(bands[:, 1:], haar(b)[:, 1:], atol=1e-5)


@pytest.mark.slow
def test_the_network_learns_to_swap_and_a_denoiser_from_its_pairs():
    torch.manual_seed(0)
    clean = nn.functional.interpolate(torch.rand(4, 1, 4, 4), scale_factor=4)
    noisy = clean.flip(0) + 0.2 * torch.randn_like(clean)
    split, denoiser = NoiseSplit(2, 8), nn.Conv2d(1, 1, 3, padding=1)
    for model, loss in ((split, swap_loss), (denoiser, partial(transfer_loss, split=split))):
        optimizer, losses = torch.optim.AdamW(model.parameters(), 5e-3), []
        for _ in range(60):
            torch.manual_seed(1)  # the same simulated noise, so that losses can be compared
            losses.append(loss(model, (noisy, clean)))
            losses[-1].backward()
            optimizer.step()
            optimizer.zero_grad()
        assert losses[-1] < 0.9 * losses[0]
    assert all(parameter.grad is None for parameter in split.parameters())  # a denoiser does not change the split


def test_losses_are_0_for_who_knows_the_noise_and_pairs_have_the_noise_of_the_noisy_one():
    clean, noisy = torch.rand(4, 1, 8, 8), torch.rand(4, 1, 8, 8)
    noises: list[Tensor] = []

    class Knowing(NoiseSplit):
        def swap(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
            partners = clean.roll(1, 0)
            noises[:] = first - clean, second - partners
            return clean + noises[1], partners + noises[0]

    assert swap_loss(Knowing(), (noisy, clean)) < 1e-10
    strengths = noises[0].std((1, 2, 3))
    assert strengths.max() > 1.5 * strengths.min() and not torch.allclose(*noises)
    given: list[Tensor] = []
    transfer_loss(lambda picture: given.append(picture) or picture, (noisy, clean), NoiseSplit())
    bands = haar(given[0])  # an untrained network takes differences for noise
    assert torch.allclose(bands[:, :1], haar(clean)[:, :1], atol=1e-5)
    assert torch.allclose(bands[:, 1:], haar(noisy)[:, 1:], atol=1e-5)
    assert transfer_loss(lambda picture: clean, (noisy, clean), NoiseSplit()) == 0
