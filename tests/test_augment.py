"""Augmentation: the same from the same seed, raw and labels together, ids of any size, the section faults by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fgnet_lib.augment import Augment, Misalignment, MissingSection, grey_changes
from fgnet_lib.volumes import IGNORE


def sample(seed: int = 0, shape: tuple[int, int, int] = (6, 64, 64)) -> dict[str, np.ndarray]:
    """Large blocks, dark where the id is odd, bright where it is even."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(1, 40, (shape[0], shape[1] // 16, shape[2] // 16)).astype(np.uint64)
    labels = blocks.repeat(16, 1).repeat(16, 2) + np.uint64(2**60)
    return {"raw": np.where(labels % np.uint64(2), 60, 190).astype(np.uint8), "labels": labels}


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return all(np.array_equal(a[key], b[key]) for key in ("raw", "labels"))


@pytest.mark.slow
@settings(max_examples=15)
@given(st.integers(0, 2**32 - 1))
def test_a_seed_gives_one_result_and_no_new_ids(seed: int) -> None:
    before = sample()
    copy = {key: value.copy() for key, value in before.items()}
    after = Augment(seed)(before)
    assert same(before, copy)  # the input is not touched
    assert after["raw"].dtype == np.uint8 and after["labels"].dtype == np.uint64
    assert after["raw"].shape == after["labels"].shape == before["raw"].shape
    assert np.isin(after["labels"], [*np.unique(before["labels"]), IGNORE]).all()
    again = Augment(seed + 1)
    again(before)
    assert same(after, again.reseed(seed)(before))


def test_seeds_differ() -> None:
    results = [Augment(seed)(sample()) for seed in range(8)]
    assert not any(same(a, b) for i, a in enumerate(results) for b in results[:i])


def test_raw_and_labels_move_together() -> None:
    """Wherever a section is not lost, bright voxels carry even ids, but for interpolation at the edges of blocks."""
    agreements = []
    for seed in range(20):
        after = Augment(seed)(sample())
        for raw, labels in zip(after["raw"].astype(float), after["labels"], strict=True):
            known, odd = labels != IGNORE, labels % np.uint64(2) == 1
            if raw.std() > 25:
                middle = (raw[known & odd].mean() + raw[known & ~odd].mean()) / 2
                agreements.append(((raw < middle) == odd)[known].mean())
    assert len(agreements) > 90 and np.min(agreements) > 0.9


@pytest.mark.slow
def test_flips_and_quarter_turns_all_occur() -> None:
    """A single marked corner column must be seen in every corner, at both ends of z."""
    marked = {"raw": np.zeros((4, 64, 64), np.uint8), "labels": np.ones((4, 64, 64), np.uint64)}
    marked["labels"][0, :16, :16] = 2
    corners = set()
    augment = Augment()
    for seed in range(60):
        where = np.argwhere(augment.reseed(seed)(marked)["labels"] == 2)
        corners.add(tuple(where.mean(axis=0) > (1.5, 31.5, 31.5)) if len(where) else None)
    assert len(corners - {None}) == 8


def test_tissue_is_deformed_faded_lost_and_slips_each_at_times() -> None:
    """Seen on two halves; in the black one, of what changes grey values, only brightness shows."""
    half = np.zeros((6, 32, 32), int) + (np.arange(32) < 16)
    before = {"raw": np.where(half, 0, 150).astype(np.uint8), "labels": half + 1}
    kinds, seen, augment = {"lost", "slipped", "deformed", "faded"}, set(), Augment()
    for seed in range(200):
        after = augment.reseed(seed)(before)
        raw, labels = after["raw"].astype(float), after["labels"]
        lost, slipped = ~raw.any((1, 2)), (labels == IGNORE).any()
        kept = list(zip(raw[~lost], labels[~lost], strict=True))
        black = np.array([section[part == 2].mean() for section, part in kept])
        facts = {
            "lost": lost.any(),
            "slipped": slipped,
            "deformed": not slipped and (labels == 1).sum() != labels.size / 2,
            "faded": black.std() > 4,  # of sections
        }
        seen |= {kind for kind, is_so in facts.items() if is_so}
        if seen == kinds:
            return
    assert seen == kinds


@pytest.mark.parametrize("number", [0, 1], ids=["contrast", "brightness"])
def test_sections_differ_in_contrast_and_in_brightness(number: int) -> None:
    change, raw, spreads = grey_changes()[number], np.full((6, 8, 8), 0.5, np.float32), []
    for seed in range(20):
        after = np.asarray(change.set_random_state(seed)({"raw": raw})["raw"])
        spreads.append(after.mean((1, 2)).std())
    assert max(spreads) > 0.01 and min(spreads) == 0  # not in every patch


def test_grey_values_are_interpolated_where_labels_are_not() -> None:
    half = np.zeros((3, 32, 32), int) + (np.arange(32) < 16)
    augment, deformed = Augment(), 0
    for seed in range(60):
        after = augment.reseed(seed)({"raw": np.where(half, 50, 150).astype(np.uint8), "labels": half + 1})
        if (after["labels"] != IGNORE).all() and (after["labels"] == 1).sum() != half.size / 2:
            deformed += 1
            kept = [section for section in after["raw"] if section.any()]
            assert all(len(np.unique(section)) > 2 for section in kept)
    assert deformed > 5


def test_what_a_deformation_brings_in_from_outside_is_like_the_rim() -> None:
    labels = np.full((4, 32, 32), 7)
    labels[:, 12:20, 12:20] = 3
    rim = np.ones((4, 32, 32), bool)
    rim[:, 2:-2, 2:-2] = False
    augment = Augment()
    for seed in range(20):
        after = augment.reseed(seed)({"raw": np.full(labels.shape, 200, np.uint8), "labels": labels})
        assert np.isin(after["labels"][rim], [7, IGNORE]).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint32, np.uint64, np.int64])
def test_labels_of_any_integer_type_and_unknown_ones(dtype: type) -> None:
    labels = np.ones((4, 32, 32), dtype)
    labels[:, :, 16:] = 0
    after = Augment(3)({"raw": np.zeros((4, 32, 32), np.uint8), "labels": labels})
    assert {0, 1} <= set(np.unique(after["labels"]).tolist()) <= {0, 1, int(IGNORE)}
    unknown = Augment(3)({"raw": np.zeros((4, 32, 32), np.uint8), "labels": np.full((4, 32, 32), IGNORE)})
    assert (unknown["labels"] == IGNORE).all()


def test_patches_that_cannot_turn_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(4, 32, 64\)"):
        Augment()({"raw": np.zeros((4, 32, 64), np.uint8), "labels": np.zeros((4, 32, 64), np.uint64)})
    with pytest.raises(ValueError, match=r"\(5, 32, 32\)"):
        Augment()({"raw": np.zeros((4, 32, 32), np.uint8), "labels": np.zeros((5, 32, 32), np.uint64)})


def test_a_missing_section_is_black_and_keeps_its_labels() -> None:
    before = sample()
    lost = set()
    for seed in range(40):
        after = MissingSection(prob=1.0).set_random_state(seed)(before)
        black = [z for z, section in enumerate(after["raw"]) if not section.any()]
        assert len(black) == 1 and np.array_equal(after["labels"], before["labels"])
        lost.update(black)
    assert lost == set(range(6))
    assert same(MissingSection(prob=0.0)(before), before)


def test_misalignment_shifts_one_section_or_all_that_follow() -> None:
    before = sample()
    kinds, shifts = [], set()
    for seed in range(60):
        after = Misalignment(prob=1.0, max_shift=5).set_random_state(seed)(before)
        moved = [z for z in range(6) if (after["labels"][z] == IGNORE).any()]
        if not moved:  # the shift drawn was (0, 0)
            assert same(before, after)
            continue
        assert moved == list(range(moved[0], moved[-1] + 1))
        kinds.append("one" if len(moved) == 1 else "rest" if moved[-1] == 5 else "wrong")
        inside = after["labels"][moved[0]] != IGNORE
        rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
        dy, dx = (axis[0] if axis[0] else axis[-1] - 63 for axis in (rows, columns))
        shifts |= {dy, dx}
        margins, window = ((0, 0), (5, 5), (5, 5)), np.s_[:, 5 - dy : 69 - dy, 5 - dx : 69 - dx]
        raw = np.pad(before["raw"][moved], margins, mode="edge")
        labels = np.pad(before["labels"][moved], margins, constant_values=IGNORE)
        assert np.array_equal(after["raw"][moved], raw[window])
        assert np.array_equal(after["labels"][moved], labels[window])
    assert shifts == set(range(-5, 6)) and set(kinds) == {"one", "rest"} and 25 < kinds.count("one") < 45
    assert same(Misalignment(prob=0.0)(before), before)
