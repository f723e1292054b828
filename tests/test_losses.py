"""The loss against its formula in NumPy, its indifference to what is unknown, and its arithmetic in half precision."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fgnet_lib.fgnet import FGNetOutput
from fgnet_lib.losses import affinity_loss, fgnet_loss


def batch(seed: int = 0, share: float = 0.8) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    shape = (2, 3, 4, 8, 8)
    logits, target, mask = rng.normal(0, 3, shape), rng.random(shape) < share, rng.random(shape) < 0.7
    return torch.tensor(logits, dtype=torch.float32), torch.tensor(target, dtype=torch.float32), torch.tensor(mask)


def in_numpy(logits, target, mask) -> float:
    return np.mean([of_one_sample(*sample) for sample in zip(logits, target, mask, strict=True)])


def of_one_sample(logits, target, mask) -> float:
    p = 1 / (1 + np.exp(-logits[mask].astype(float)))
    t = target[mask]
    bce = -(np.log(p[t == 1]).mean() + np.log(1 - p[t == 0]).mean()) / 2
    border, predicted = 1 - t, 1 - p
    return bce + 0.5 * (1 - (2 * (border * predicted).sum() + 1) / ((border**2).sum() + (predicted**2).sum() + 1))


@settings(max_examples=20)
@given(st.integers(0, 1000), st.sampled_from([0.1, 0.5, 0.95]))
def test_equals_the_formula(seed: int, share: float) -> None:
    example = batch(seed, share)
    assert affinity_loss(*example).item() == pytest.approx(in_numpy(*(x.numpy() for x in example)), rel=1e-5)


def test_what_is_unknown_changes_nothing() -> None:
    logits, target, mask = batch()
    elsewhere = torch.where(mask, logits, 100 * torch.randn_like(logits)).requires_grad_()
    loss = affinity_loss(elsewhere, torch.where(mask, target, 1 - target), mask)
    assert loss.item() == pytest.approx(affinity_loss(logits, target, mask).item())
    loss.backward()
    assert (elsewhere.grad[~mask] == 0).all() and (elsewhere.grad[mask] != 0).all()


def test_right_is_better_than_undecided_is_better_than_wrong() -> None:
    _, target, mask = batch()
    right, undecided, wrong = (affinity_loss(s * (2 * target - 1), target, mask).item() for s in (20.0, 0.0, -20.0))
    assert right < 1e-3 < undecided < wrong


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_a_rare_class_weighs_as_much_as_a_frequent_one(share: float) -> None:
    """Answering "all joined" costs half the cross-entropy of a wrong answer, however rare the borders are."""
    _, target, _ = batch(share=share)
    everything = torch.ones_like(target, dtype=torch.bool)
    bce = affinity_loss(torch.full_like(target, 10.0), target, everything).item() - 0.5
    assert bce == pytest.approx(5.0, abs=0.1)


def test_nothing_known_or_one_class_only_stays_finite() -> None:
    logits, target, mask = batch()
    logits.requires_grad_()
    nothing = affinity_loss(logits, target, torch.zeros_like(mask))
    assert nothing.item() == 0
    for only in (torch.zeros_like(target), torch.ones_like(target)):
        affinity_loss(logits, only, mask).backward()
        assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_is_computed_in_float32_also_under_autocast(dtype: torch.dtype) -> None:
    logits, target, mask = batch()
    logits = (logits * 1000).to(dtype)  # squares and exponentials of these overflow in float16
    with torch.autocast("cpu", torch.bfloat16):
        loss = affinity_loss(logits, target, mask)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(affinity_loss(logits.float(), target, mask).item()) and torch.isfinite(loss)


def test_sums_both_decoders_and_leaves_out_what_is_not_there() -> None:
    refined, target, mask = batch(0)
    coarse = batch(1)[0]
    fine, rough = affinity_loss(refined, target, mask), affinity_loss(coarse, target, mask)
    assert fgnet_loss(FGNetOutput(coarse, refined, ()), target, mask, weight=0.3) == pytest.approx(fine + 0.3 * rough)
    assert fgnet_loss(FGNetOutput(None, refined, ()), target, mask) == fine
    assert fgnet_loss(FGNetOutput(coarse, None, ()), target, mask) == rough
    with pytest.raises(ValueError, match="nothing to train"):
        fgnet_loss(FGNetOutput(None, None, ()), target, mask)
