"""Scores against scikit-image and by hand; the report against errors that were planted."""

from __future__ import annotations

import tracemalloc

import h5py
import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from skimage.metrics import adapted_rand_error, peak_signal_noise_ratio, variation_of_information

from fgnet_lib.metrics import (
    NeuronError,
    NoKnownVoxelError,
    Scores,
    SegmentReport,
    by_second_part,
    error_masks,
    evaluate,
    neuron_report,
    psnr,
    roc_auc,
    segment_report,
    voi,
)
from fgnet_lib.volumes import IGNORE

IDS = np.array([0, 1, 2, 7, 2**31, 2**32 + 5, 10**15, 2**63, int(IGNORE)], np.uint64)


def labels(ids: np.ndarray):
    shapes = st.shared(st.tuples(*[st.integers(1, 5)] * 3), key="shape")
    return shapes.flatmap(lambda shape: arrays(np.intp, shape, elements=st.integers(0, len(ids) - 1))).map(ids.take)


def scikit_image(seg: np.ndarray, gt: np.ndarray) -> tuple[float, float, float]:
    """VOI split, merge and ARAND of scikit-image; ids are made small first, or it would allocate by the largest."""
    gt = np.where(gt == IGNORE, 0, gt)
    gt = np.unique(np.append(gt, 0), return_inverse=True)[1][:-1]
    seg = np.unique(seg, return_inverse=True)[1].reshape(-1)
    split, merge = variation_of_information(gt, seg, ignore_labels=(0,))
    with np.errstate(invalid="ignore"):
        return split, merge, np.nan_to_num(adapted_rand_error(gt, seg)[0])


@pytest.mark.slow
@given(labels(IDS), labels(IDS))
def test_scores_equal_scikit_image_for_any_ids(seg: np.ndarray, gt: np.ndarray) -> None:
    assume(np.any((gt != 0) & (gt != IGNORE)))
    split, merge, rand = scikit_image(seg, gt)
    scores = evaluate(seg, gt)
    assert (scores.voi_split, scores.voi_merge) == pytest.approx((split, merge), abs=1e-9) == voi(seg, gt)
    assert scores.arand == pytest.approx(rand, abs=1e-9)
    assert scores.cremi == pytest.approx(np.sqrt(max(rand * (split + merge), 0)), abs=1e-7)


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.uint32, np.int64, np.uint64])
def test_one_bit_for_a_neuron_cut_in_halves_or_two_joined(dtype: type) -> None:
    whole, halves = np.full((2, 4, 4), 5, dtype), np.repeat(np.array([3, 9], dtype), 16).reshape(2, 4, 4)
    assert voi(halves, whole) == (1, 0)
    assert voi(whole, halves) == (0, 1)
    assert evaluate(whole, whole) == evaluate(halves, halves) == Scores(0, 0, 0, 0)
    pairs_in_halves, pairs_in_whole = 2 * 16 * 15, 32 * 31
    assert evaluate(halves, whole).arand == pytest.approx(1 - 2 * pairs_in_halves / (pairs_in_halves + pairs_in_whole))


def test_unknown_ground_truth_does_not_count_but_unsegmented_voxels_do() -> None:
    gt = np.array([[[4, 4, 0, 0]], [[4, 4, IGNORE, IGNORE]]], np.uint64)
    seg = np.array([[[1, 1, 2, 3]], [[1, 1, 4, 5]]], np.uint64)
    assert evaluate(seg, gt) == evaluate(np.ones_like(gt), np.ones_like(gt))
    seg[1, :, :2] = 0
    assert voi(seg, gt) == (1, 0)


INTEGERS = [np.dtype(order + kind) for kind in ("u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8") for order in "<>"]


@pytest.mark.slow
@given(labels(np.arange(100)), labels(np.arange(100)), *[st.sampled_from(INTEGERS)] * 2, st.sampled_from("CF"))
def test_integer_type_byte_order_and_memory_order_change_nothing(seg, gt, seg_dtype, gt_dtype, order) -> None:
    assume(gt.any())
    wanted = evaluate(seg, gt), neuron_report(seg, gt, (1, 1, 1)), segment_report(seg, gt, neuron=gt.max())
    masks = error_masks(seg, gt)
    seg, gt = seg.astype(seg_dtype, order), gt.astype(gt_dtype, order)
    assert (evaluate(seg, gt), neuron_report(seg, gt, (1, 1, 1)), segment_report(seg, gt, neuron=gt.max())) == wanted
    assert np.array_equal(error_masks(seg, gt), masks)


UNKNOWN = [("u8", 2**64 - 1), ("u8", 2**32 - 1), ("i8", 2**32 - 1), ("u4", 2**32 - 1), *(("i" + n, -1) for n in "1248")]


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize(("kind", "unknown"), UNKNOWN)
def test_every_spelling_of_unknown_is_left_out(kind: str, unknown: int, order: str, recwarn) -> None:
    gt = np.repeat(np.array([3, 4, unknown], order + kind), 8).reshape(2, 3, 4)
    seg = np.arange(24).reshape(gt.shape)
    known = np.where(gt == unknown, 0, gt)
    assert evaluate(seg, gt) == evaluate(seg, known)
    assert np.array_equal(error_masks(seg, gt), error_masks(seg, known))
    assert neuron_report(seg, gt, (1, 1, 1)) == neuron_report(seg, known, (1, 1, 1))
    assert segment_report(seg, gt, 23).neuron is None
    assert [str(warning.message) for warning in recwarn] == []


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_the_highest_id_of_a_narrow_type_is_unknown_with_a_warning(dtype: type) -> None:
    """A neuron may have this id: the message says how to count it."""
    gt = np.array([5, 5, 5, -1, -1]).astype(dtype)
    seg = np.array([1, 1, 2, 2, 2])
    with pytest.warns(UserWarning, match=f"{gt.max()} in the ground truth is taken for unknown.*uint32"):
        assert evaluate(seg, gt) == evaluate(seg[:3], gt[:3])
    with pytest.warns(UserWarning, match="taken for unknown"):
        assert segment_report(seg, gt, 2).neurons == ((5, 1),)
    assert evaluate(seg, gt.astype(np.uint32)) == evaluate(seg, np.array([5, 5, 5, 6, 6]))


@pytest.mark.parametrize("unknown", [[], [IGNORE], [2**32 - 1, IGNORE]])
def test_a_ground_truth_without_a_known_voxel_has_an_error_of_its_own(unknown: list[int]) -> None:
    gt = np.array([0, 0, *unknown], np.uint64)
    for score in (evaluate, voi, error_masks):
        with pytest.raises(NoKnownVoxelError, match=f"{gt.size} voxels, 2 are 0"):
            score(np.ones(gt.shape, int), gt)


def test_the_cremi_score_differs_from_cremi_python_as_the_docstring_says() -> None:
    """Counted by hand. Of eight voxels two are not segmented (0), one is boundary (0) and one is unknown."""
    gt = np.array([1, 1, 1, 1, 2, 2, 0, IGNORE], np.uint64)
    seg = np.array([5, 5, 5, 0, 0, 7, 7, 7], np.uint64)
    three_to_one = 2 - 0.75 * np.log2(3)  # bits: the entropy of 3/4 and 1/4
    # Neuron 1 is cut 3 : 1 and neuron 2 is cut 1 : 1; segment 0 joins one voxel of each; six voxels count.
    split, merge = 4 / 6 * three_to_one + 2 / 6, 2 / 6
    # Ordered pairs of different voxels: in the same neuron 4 * 3 + 2 * 1, in the same segment 3 * 2 + 2 * 1, in both 6.
    arand = 1 - 2 * 6 / (14 + 8)
    assert evaluate(seg, gt) == Scores(*map(pytest.approx, (split, merge, arand, np.sqrt(arand * (split + merge)))))
    # cremi_python: truth 0 is a third neuron, of one voxel, which segment 7 joins with neuron 2; seven voxels count.
    their_voi = 4 / 7 * three_to_one + 2 / 7 + 2 / 7 + 2 / 7
    # Pairs with itself included, none in segment 0, whose share of all voxels is 2/8: in the same neuron 4² + 2² + 1²,
    # in the same segment 3² + 2² + 2/8, in both 3² + 1² + 1² + 2/8.
    their_arand = 1 - 2 * 11.25 / (21 + 13.25)
    assert (arand, their_arand) == pytest.approx((0.4545, 0.3431), abs=1e-4)
    assert cremi_python(seg, gt) == pytest.approx((their_voi, their_arand))


def cremi_python(seg: np.ndarray, gt: np.ndarray) -> tuple[float, float]:
    """VOI and ARAND by the rules of cremi_python without a rim, from the table of shares; for small ids."""
    known = gt != IGNORE
    table = np.zeros((gt[known].max() + 1, seg.max() + 1))
    np.add.at(table, (gt[known], seg[known]), 1)
    unsegmented = table[:, 0].sum() / gt.size
    both, neuron, segment = (
        (table[:, 1:] ** 2).sum() + unsegmented,
        (table.sum(axis=1) ** 2).sum(),
        (table[:, 1:].sum(axis=0) ** 2).sum() + unsegmented,
    )
    p = table / table.sum()
    entropies = [-(q[q > 0] * np.log2(q[q > 0])).sum() for q in (p, p.sum(axis=0), p.sum(axis=1))]
    return 2 * entropies[0] - entropies[1] - entropies[2], 1 - 2 * both / (neuron + segment)


def planted() -> tuple[np.ndarray, np.ndarray]:
    """Three neurons; the first is cut into 3/4 and 1/4, the other two are joined."""
    gt = np.ones((4, 8, 12), np.uint64)
    gt[:, :, 4:8], gt[:, :, 8:] = 2, 10**12
    seg = np.where(gt == 1, 50, 60).astype(np.uint64)
    seg[3, :, :4] = 2**63
    return seg, gt


def test_report_finds_planted_errors_and_their_place() -> None:
    seg, gt = planted()
    report = neuron_report(seg, gt, (40.0, 8.0, 4.0))
    (split,), (merge,) = report.splits, report.merges
    assert (split.kind, merge.kind) == ("split", "merge")
    assert (split.label, split.parts) == (1, ((50, 96), (2**63, 32)))
    assert split.voxel[0] == 3 and split.voxel[1] in (3, 4) and split.voxel[2] in (1, 2)
    assert split.position_nm == (120, 8 * split.voxel[1], 4 * split.voxel[2])
    assert merge.label == 60 and dict(merge.parts) == {2: 128, 10**12: 128}
    assert gt[merge.voxel] == merge.parts[1][0]
    assert (split.bits, merge.bits) == pytest.approx(voi(seg, gt))


def test_report_points_into_a_bent_neurite_not_at_its_empty_centre() -> None:
    ring = np.full((1, 21, 21), 1, np.uint64)
    ring[0, 3:18, 3:18] = 2
    ring[0, 5:16, 5:16] = 1
    (split,) = neuron_report(ring, np.ones_like(ring), (1, 1, 1)).splits
    assert ring[split.voxel] == split.parts[1][0] == 2


@pytest.mark.slow
@given(labels(IDS[:6]), labels(IDS))
def test_report_is_sorted_and_its_shares_add_up_to_voi(seg: np.ndarray, gt: np.ndarray) -> None:
    assume(np.any((gt != 0) & (gt != IGNORE)))
    report = neuron_report(seg, gt, (1, 1, 1), top=100)
    for errors, total in zip((report.splits, report.merges), voi(seg, gt), strict=True):
        bits = [error.bits for error in errors]
        assert bits == sorted(bits, reverse=True) and sum(bits) == pytest.approx(total)
    best = neuron_report(seg, gt, (1, 1, 1), top=1)
    assert (best.splits, best.merges) == (report.splits[:1], report.merges[:1])


@pytest.mark.slow
@given(labels(IDS[:6]), labels(IDS))
def test_error_masks_equal_counting_voxel_by_voxel(seg: np.ndarray, gt: np.ndarray) -> None:
    known = (gt != 0) & (gt != IGNORE)
    assume(known.any())
    wanted = np.zeros((2, *gt.shape), bool)
    for voxel in zip(*known.nonzero(), strict=True):
        for mask, own, other in ((wanted[0], gt, seg), (wanted[1], seg, gt)):
            ids, counts = np.unique(other[known & (own == own[voxel])], return_counts=True)
            mask[voxel] = other[voxel] != ids[counts.argmax()]  # argmax: the first, so the smaller id
    assert np.array_equal(error_masks(seg, gt), wanted)


def test_error_masks_show_planted_errors() -> None:
    seg, gt = planted()
    splits, merges = error_masks(seg, gt)
    assert np.array_equal(splits, seg == 2**63)
    assert np.array_equal(merges, gt == 10**12)  # as large as neuron 2, whose id is smaller
    assert splits.dtype == merges.dtype == bool
    assert not np.any(error_masks(np.where(gt == 2, 77, gt), gt))


def test_segment_report_counts_what_is_shared() -> None:
    seg, gt = planted()
    seg[:, :2, 4:8] = 0  # a part of neuron 2 is not segmented
    gt[0, :, 8:] = IGNORE
    assert segment_report(seg, gt, 60) == SegmentReport(60, 224, 2, ((2, 96), (10**12, 96)), ((60, 96), (0, 32)))
    assert segment_report(seg, gt, 2**63) == SegmentReport(2**63, 32, 1, ((1, 32),), ((50, 96), (2**63, 32)))
    assert segment_report(seg, gt, neuron=10**12) == SegmentReport(
        60, 224, 10**12, ((2, 96), (10**12, 96)), ((60, 96),)
    )
    gt[seg == 50] = 0
    assert segment_report(seg, gt, 50) == SegmentReport(50, 96, None, (), ())


@pytest.mark.parametrize("what", ["segment", "neuron"])
def test_segment_report_refuses_an_id_that_is_not_there(what: str) -> None:
    with pytest.raises(ValueError, match=f"no {what} 99"):
        segment_report(*planted(), **{what: 99})


def test_memory_follows_the_volume_not_the_ids() -> None:
    """Ids up to 2^62 in 300 000 voxels, a good part of them objects: an array indexed by id would need exabytes."""
    rng = np.random.default_rng(0)
    seg = np.repeat(rng.integers(1, 2**62, 75_000, dtype=np.uint64), 4).reshape(30, 100, 100)
    gt = np.repeat(rng.integers(1, 2**62, 3_000, dtype=np.uint64), 100).reshape(30, 100, 100)
    tracemalloc.start()
    scores = evaluate(seg, gt)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (scores.voi_split, scores.voi_merge) == pytest.approx((np.log2(25), 0))
    assert peak < 40 * seg.size


@given(seed=st.integers(0, 99))
def test_psnr_equals_scikit_image_for_arrays_and_tensors(seed: int) -> None:
    image, truth = np.random.default_rng(seed).random((2, 3, 8, 8), np.float32)
    expected = pytest.approx(peak_signal_noise_ratio(truth, image, data_range=1), abs=1e-4)
    assert psnr(image, truth) == expected
    assert psnr(torch.from_numpy(image), torch.from_numpy(truth)) == expected


def test_whole_numbers_neither_wrap_nor_become_indices() -> None:
    bright, dark = np.array([20, 10], np.uint8), np.array([10, 20], np.uint8)
    assert psnr(bright, dark) == psnr(dark, bright) == pytest.approx(-20)
    assert roc_auc(np.array([0.1, 0.9, 0.6, 0.7]), np.array([0, 1, 0, 1], np.uint8)) == 1


def test_inputs_are_left_as_they_were() -> None:
    seg, gt = planted()
    seg.flags.writeable = gt.flags.writeable = False
    neuron_report(seg, gt, (1, 1, 1))


@pytest.mark.parametrize(
    ("seg", "gt", "message"),
    [
        (np.ones((2, 2, 2), np.uint64), np.ones((2, 2, 3), np.uint64), r"\(2, 2, 2\).*\(2, 2, 3\)"),
        (np.ones((2, 2, 2)), np.ones((2, 2, 2), np.uint64), "segmentation.*float64"),
        (np.ones((2, 2, 2), np.uint64), np.ones((2, 2, 2), bool), "ground truth.*bool"),
        (np.full((2, 2, 2), -1), np.ones((2, 2, 2), int), "-1"),
        (np.ones((2, 2, 2), int), np.zeros((2, 2, 2), int), "nothing to compare"),
        (np.ones((2, 2, 2), np.uint64), np.full((2, 2, 2), IGNORE), "nothing to compare"),
        (np.ones((0, 2, 2), int), np.ones((0, 2, 2), int), "nothing to compare"),
    ],
)
def test_bad_input_is_named(seg: np.ndarray, gt: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate(seg, gt)
    with pytest.raises(ValueError, match=message):
        neuron_report(seg, gt, (1, 1, 1))
    with pytest.raises(ValueError, match=message):
        error_masks(seg, gt)


def test_blocks_equal_scikit_image() -> None:
    """The twin of the test on real data: 2 000 blocks against the same blocks cut elsewhere."""
    z, y, x = np.ogrid[:20, :100, :100]
    gt, seg = z // 10 * 100 + y // 10 * 10 + x // 10 + 1, z * 400 + y // 5 * 20 + (x + 2) // 5
    scores = evaluate(seg, gt)
    assert (scores.voi_split, scores.voi_merge, scores.arand) == pytest.approx(scikit_image(seg, gt), abs=1e-9)


@pytest.mark.slow
def test_published_segmentations_of_fib25_equal_scikit_image(em_data) -> None:
    with h5py.File(em_data / "val" / "fib25_t2_val_z144-183.h5") as file:
        gt = file["volumes/labels/neuron_ids"][:]
        for name in ("fragments", "ffn_baseline"):
            seg = file["volumes/labels"][name][:]
            scores = evaluate(seg, gt)
            assert (scores.voi_split, scores.voi_merge, scores.arand) == pytest.approx(scikit_image(seg, gt), abs=1e-9)


def test_errors_come_by_their_second_part_and_not_from_the_rim() -> None:
    gt = np.repeat(np.arange(1, 5), 24 * 24).reshape(4, 24, 24).transpose(1, 0, 2).repeat(6, 1).astype(np.uint64)
    seg = gt.copy()
    seg[10:14, 8:10, 8:14] = 90  # a small split of neuron 2 in the middle
    seg[6:18, 13:17, 4:20] = 91  # a large one of neuron 3
    seg[2:22, 22:24, :] = 92  # the largest one, of neuron 4, at the rim
    seg[0, 4:6] = 93  # one of neuron 1, in the first section
    splits = neuron_report(seg, gt, (40, 8, 8)).splits
    assert {error.label for error in splits} == {1, 2, 3, 4}
    assert [error.label for error in by_second_part(splits, gt.shape, rim=4)] == [3, 2]
    assert by_second_part(splits, gt.shape, rim=12) == []


@pytest.mark.parametrize(
    ("voxel", "seen"),
    [
        ((0, 9, 9), False), ((1, 9, 9), True), ((4, 9, 9), True), ((5, 9, 9), False),
        ((2, 3, 9), False), ((2, 4, 9), True), ((2, 15, 9), True), ((2, 16, 9), False),
        ((2, 9, 3), False), ((2, 9, 4), True), ((2, 9, 25), True), ((2, 9, 26), False),
    ],
)  # fmt: skip
def test_the_rim_ends_where_it_says(voxel, seen) -> None:
    error = NeuronError("split", 1, 0.5, ((1, 9), (2, 3)), voxel, (0.0, 0.0, 0.0))
    assert by_second_part([error], (6, 20, 30), rim=4) == [error] * seen
