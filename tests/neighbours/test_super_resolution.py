"""Fewer pixels: what is measured is kept, codes are the nearest ones, membranes are invented or lost by definition."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from torch import Tensor

from fgnet_lib.neighbours.super_resolution import (
    CODES,
    PATIENCE,
    STRIDE,
    WIDTH,
    Codebook,
    Indexer,
    SectionAutoencoder,
    SectionEncoder,
    SuperResolver,
    align,
    autoencoder_loss,
    count_membranes,
    enlarge_bicubic,
    enlarge_volume,
    indexer_loss,
    make_consistent,
    membrane_map,
    nearest_codes,
    neighbourhoods,
    pass_straight,
    perplexity,
    reduce_sections,
    resolver_loss,
    unmatched_membranes,
)

CHECKED = settings(max_examples=20)
SEEDS = st.integers(0, 1000)
SIDES = st.tuples(st.integers(1, 4), st.integers(1, 4))  # low pixels in y and x


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@CHECKED
@given(sides=SIDES, factor=st.sampled_from([1, 2, 4]), seed=SEEDS)
def test_a_low_pixel_is_the_mean_of_its_square(sides, factor, seed):
    sections = random(2, sides[0] * factor, sides[1] * factor, seed=seed)
    low = reduce_sections(sections, factor)
    for y, x in np.ndindex(*sides):
        square = sections[:, y * factor : (y + 1) * factor, x * factor : (x + 1) * factor]
        close(low[:, y, x], square.mean((1, 2)))


@CHECKED
@given(sides=SIDES, seed=SEEDS)
def test_a_consistent_result_reduces_to_the_input_and_is_never_farther_from_the_truth(sides, seed):
    truth, guess = random(2, 2, 4 * sides[0], 4 * sides[1], seed=seed)
    low = reduce_sections(truth)
    consistent = make_consistent(guess, low)
    close(reduce_sections(consistent), low)
    close(make_consistent(consistent, low), consistent)
    assert (consistent - truth).square().mean() <= (guess - truth).square().mean() + 1e-7
    close(make_consistent(truth, low), truth)


def test_bicubic_leaves_an_even_section_as_it_is():
    low = torch.full((1, 1, 3, 5), 0.25)
    close(enlarge_bicubic(low), torch.full((1, 1, 12, 20), 0.25))


@CHECKED
@given(n=st.integers(1, 20), k=st.integers(1, 9), width=st.integers(1, 6), seed=SEEDS)
def test_the_nearest_code_is_that_of_brute_force(n, k, width, seed):
    vectors, codes = random(n, width, seed=seed).double(), random(k, width, seed=seed + 1).double()
    distances = [[(vector - code).square().sum().item() for code in codes] for vector in vectors]
    chosen = nearest_codes(vectors, codes)
    assert np.take_along_axis(np.array(distances), chosen.numpy()[:, None], 1).ravel() == pytest.approx(
        np.min(distances, 1), abs=1e-6
    )
    assert torch.equal(nearest_codes(codes, codes), torch.arange(k))


@CHECKED
@given(shape=st.tuples(st.integers(1, 4), st.integers(1, 4)), seed=SEEDS)
def test_the_straight_through_gradient_is_the_identity(shape, seed):
    vectors, quantised, slope = (random(*shape, seed=seed + k) for k in range(3))
    vectors.requires_grad_()
    quantised.requires_grad_()
    result = pass_straight(vectors, quantised)
    close(result, quantised)
    (result * slope).sum().backward()
    assert torch.equal(vectors.grad, slope) and quantised.grad is None


@CHECKED
@given(chosen=st.lists(st.integers(0, 7), min_size=1, max_size=40))
def test_perplexity_lies_between_1_and_the_number_of_codes_in_use(chosen):
    value = perplexity(torch.tensor(chosen), 8)
    assert 1 - 1e-9 <= value <= len(set(chosen)) + 1e-9
    assert perplexity(torch.arange(8).repeat(3), 8) == pytest.approx(8)
    assert perplexity(torch.full((5,), chosen[0]), 8) == 1


def test_an_indexer_that_sees_full_size_gets_the_codes_of_the_autoencoder():
    torch.manual_seed(0)
    autoencoder, sections = SectionAutoencoder(), random(2, 1, 32, 40)
    indexer = Indexer(autoencoder, autoencoder.encoder)
    codes = autoencoder.index(sections)
    assert codes.shape == (2, 32 // STRIDE, 40 // STRIDE)
    assert torch.equal(indexer(sections).argmax(1), codes)
    close(indexer.decode(sections)[1], autoencoder.eval()(sections)[0])
    fewer = Indexer(autoencoder, SectionEncoder(2))(reduce_sections(sections))
    assert fewer.shape == (2, CODES, *codes.shape[1:])


def test_codes_begin_among_the_vectors_and_move_to_those_that_choose_them():
    torch.manual_seed(0)
    codebook, features = Codebook(4, 2), torch.zeros(1, 2, 8, 8)
    features[:, 0, :, 4:] = 5.0
    for _ in range(PATIENCE):
        passed, loss = codebook(features)
        assert torch.equal(passed, features) and loss == 0
    codebook(features)
    assert {tuple(code.tolist()) for code in codebook.codes} <= {(0.0, 0.0), (5.0, 0.0)}
    quantised, loss = codebook.eval()(features + 0.1)
    loss.backward()
    assert (codebook.codes.grad <= 0).all() and (codebook.codes.grad < 0).any()  # a step goes up, towards them
    assert set(quantised.unique().tolist()) <= {0.0, 5.0} or torch.allclose(quantised, features, atol=1e-5)


@CHECKED
@given(seed=SEEDS, shift=st.tuples(st.integers(-1, 1), st.integers(-1, 1)))
def test_attention_finds_a_section_that_has_moved_by_a_pixel(seed, shift):
    reference = torch.nn.functional.normalize(random(1, 16, 6, 7, seed=seed) - 0.5, dim=1)
    moved = reference.roll(shift, (2, 3))
    aligned = align(1e3 * moved, reference) / 1e3  # long features: attention picks the most similar place
    close(aligned[..., 1:-1, 1:-1], reference[..., 1:-1, 1:-1])
    mixed = align(moved, reference)
    assert mixed.max() <= moved.max() + 1e-6 and mixed.min() >= moved.min() - 1e-6


def test_a_neighbourhood_has_the_section_in_its_middle_and_repeats_the_ends():
    low = torch.arange(4.0)[:, None, None].expand(4, 2, 2)
    assert neighbourhoods(low, 3)[:, :, 0, 0].tolist() == [[0, 0, 1], [0, 1, 2], [1, 2, 3], [2, 3, 3]]
    assert torch.equal(neighbourhoods(low, 1)[:, 0], low)


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 3])
def test_a_resolver_begins_as_consistent_bicubic_and_learns(count):
    torch.manual_seed(0)
    raw = random(1, 1, 3, 32, 32)
    indexer = Indexer(SectionAutoencoder(), SectionEncoder(2)).eval()
    model = SuperResolver(count, indexer)
    low = reduce_sections(raw[0, 0])
    close(enlarge_volume(model, low), make_consistent(enlarge_volume(None, low), low).clamp(0, 1))
    assert enlarge_volume(indexer, low).shape == raw.shape[2:]
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-3)
    losses = []
    for _ in range(8):
        losses.append(resolver_loss(model, (raw, raw)))
        losses[-1].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert min(losses) < losses[0] and all(p.grad is None for p in indexer.parameters())
    close(reduce_sections(model(neighbourhoods(low, count))[:, 0]), low)


@pytest.mark.slow
def test_an_autoencoder_and_its_indexer_learn():
    torch.manual_seed(0)
    raw, autoencoder = random(1, 1, 2, 32, 32), SectionAutoencoder()
    indexer = None
    for model, loss_function in ((autoencoder, autoencoder_loss), (None, indexer_loss)):
        model = model or (indexer := Indexer(autoencoder, SectionEncoder(2)))
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 2e-3)
        losses = []
        for _ in range(PATIENCE + 12):
            losses.append(loss_function(model, (raw,)))
            losses[-1].backward()
            optimizer.step()
            optimizer.zero_grad()
        assert losses[-1] < losses[0]
    assert all(p.grad is None for p in indexer.autoencoder.codebook.parameters()) or not any(
        p.requires_grad for p in autoencoder.parameters()
    )


def lines(*columns: int, dark: float = -1.0) -> np.ndarray:
    """Two sections with vertical membranes."""
    sections = np.full((2, 64, 64), 0.5)
    for column in columns:
        sections[:, 4:60, column - 1 : column + 2] += 0.3 * dark
    return sections


@CHECKED
@given(gain=st.floats(0.2, 3), brightness=st.floats(-1, 1))
def test_equal_sections_of_any_contrast_neither_invent_nor_lose(gain, brightness):
    truth = lines(16, 44)
    counts = count_membranes(gain * truth + brightness, truth)
    assert set(counts.values()) == {0.0}


def test_an_extra_membrane_is_invented_and_a_missing_one_is_lost():
    few, many = lines(16), lines(16, 44)
    counts = count_membranes(many, few)
    assert 0.3 < counts["invented"] < 0.7 and counts["lost"] == 0
    assert (counts["invented_pieces"], counts["lost_pieces"]) == (1, 0)
    swapped = count_membranes(few, many)
    assert (swapped["lost"], swapped["invented"]) == (counts["invented"], 0)
    invented = unmatched_membranes(many, few)
    assert not invented[..., :36].any() and invented[:, 30, 44].all()


def test_a_membrane_may_move_a_little_or_fade_but_light_lines_are_none():
    truth = lines(16, 44)
    assert unmatched_membranes(lines(17, 43), truth).sum() == 0
    assert unmatched_membranes(lines(16, 36), truth)[:, 30, 36].all()
    faint = truth + 0.3 * 0.4 * (lines(44) < 0.4)  # the second membrane has 60 % of its contrast
    assert unmatched_membranes(truth, faint).sum() == 0
    assert (
        not membrane_map(lines(16, 44, dark=1.0))[:, 30, [16, 44]].any() and membrane_map(truth)[:, 30, [16, 44]].all()
    )
    flat = np.zeros((1, 32, 32))
    assert count_membranes(flat, flat) == {"invented": 0, "invented_pieces": 0, "lost": 0, "lost_pieces": 0}


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"\(30, 32\) are not made of squares of 4"):
        reduce_sections(torch.zeros(1, 30, 32))
    assert SectionEncoder(STRIDE)(torch.zeros(1, 1, 32, 32)).shape == (1, WIDTH, 4, 4)
    assert math.log2(STRIDE) == 3


def test_a_code_in_use_stays_and_its_loss_is_a_quarter_heavier_than_the_distance():
    torch.manual_seed(0)
    codebook, features = Codebook(4, 2), random(1, 2, 4, 4)
    for _ in range(PATIENCE + 1):
        codebook(features)
    used, before = codebook.index(features).unique(), codebook.codes.detach().clone()
    for _ in range(2 * PATIENCE):
        codebook(features)
    assert torch.equal(codebook.codes[used], before[used])
    quantised, loss = codebook(features.requires_grad_())
    away = (features - quantised).detach()
    close(loss, 1.25 * away.square().mean())
    loss.backward()
    close(features.grad, 0.25 * 2 * away / away.numel())


def test_a_resolver_is_judged_on_the_middle_section_and_looks_at_both_neighbours():
    class Copy(torch.nn.Module):
        count = 3

        def forward(self, low: Tensor) -> Tensor:
            return low[:, 1:2].repeat_interleave(4, -1).repeat_interleave(4, -2)

    raw = random(1, 1, 5, 3, 2).repeat_interleave(4, -1).repeat_interleave(4, -2)
    assert resolver_loss(Copy(), (raw,)) < 1e-6
    torch.manual_seed(0)
    model, low = SuperResolver(3), random(1, 3, 4, 4).requires_grad_()
    torch.nn.init.normal_(model.to_pixels.weight)
    model(low).square().sum().backward()
    assert low.grad.abs().sum((0, 2, 3)).min() > 0


def test_membranes_are_where_the_larger_eigenvalue_is_highest_whatever_the_other_sections_are():
    noise, pale = np.random.default_rng(0).random((48, 48)), 0.5 + 0.1 * (lines(16)[0][:48, :48] - 0.5)
    yy, yx, xx = (ndimage.gaussian_filter(noise, 1.5, order=order) for order in ((2, 0), (1, 1), (0, 2)))
    strength = np.linalg.eigvalsh(np.stack([yy, yx, yx, xx], -1).reshape(48, 48, 2, 2))[..., 1]
    alone = [membrane_map(section[None])[0] for section in (noise, pale)]
    assert np.array_equal(alone[0], strength > np.quantile(strength, 0.85)) and alone[1][10:40, 16].all()
    assert np.array_equal(membrane_map(np.stack([noise, pale])), alone)
