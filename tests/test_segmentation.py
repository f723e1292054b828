"""Segmentations of affinities whose objects are known, waterz' traps, and what is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial

import bioimage_cpp
import h5py
import numpy as np
import pytest
from helpers.volumes import affinities_of, cells, parts_of, thin_cells
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.ndimage import gaussian_filter
from scipy.spatial import cKDTree

from fgnet_lib.affinities import affinities_from_labels, widen_borders
from fgnet_lib.metrics import evaluate, voi
from fgnet_lib.phantom import make_phantom
from fgnet_lib.segmentation import check_affinities, fragments, remove_small, segment, sweep

ISOTROPIC, ANISOTROPIC = (8.0, 8.0, 8.0), (40.0, 8.0, 8.0)


@pytest.mark.parametrize("voxel_size", [ISOTROPIC, ANISOTROPIC])
def test_objects_are_found_again(voxel_size: tuple[float, float, float]) -> None:
    labels = cells()
    segmentation = segment(affinities_of(labels), voxel_size, 0.5)
    assert segmentation.dtype == np.uint64 and segmentation.shape == labels.shape and segmentation.min() > 0
    inside = evaluate(segmentation, widen_borders(labels))
    assert inside.voi_split + inside.voi_merge < 0.2 and inside.arand < 0.02


@pytest.mark.slow
@pytest.mark.parametrize("voxel_size", [ISOTROPIC, ANISOTROPIC])
@given(st.integers(1, 60), st.integers(0, 10**6), st.tuples(*[st.sampled_from([0.3, 1.0, 2.0])] * 3))
@settings(max_examples=40)
def test_nothing_is_swallowed_however_thin(voxel_size, number: int, seed: int, stretch: tuple[float, ...]) -> None:
    """Of perfect affinities each connected part comes back, and a fragment lies in one of them."""
    objects = widen_borders(thin_cells((6, 24, 24), number, seed, stretch), voxel_size == ISOTROPIC)
    affinities, known = affinities_from_labels(objects).astype(np.float32), parts_of(objects)
    start = fragments(affinities, voxel_size)
    assert voi(start, known)[1] == pytest.approx(0, abs=1e-12)
    segmentation = sweep(affinities, voxel_size, [0.999], start)[0.999]
    assert voi(np.where(known > 0, segmentation, 0), known) == pytest.approx((0, 0), abs=1e-12)


def test_fragments_are_flat_in_anisotropic_data_and_can_be_asked_for() -> None:
    affinities = affinities_of(cells())
    flat = fragments(affinities, ANISOTROPIC)
    assert np.array_equal(flat, fragments(affinities, ISOTROPIC, per_section=True))
    sections = [set(np.unique(section)) for section in flat]
    assert sum(map(len, sections)) == len(set().union(*sections)) == flat.max()
    for solid in (fragments(affinities, ISOTROPIC), fragments(affinities, ANISOTROPIC, per_section=False)):
        assert set(np.unique(solid)) == set(range(1, solid.max() + 1))
        assert np.isin(solid[:-1], solid[-1]).any()
        assert flat.dtype == solid.dtype == np.uint64


@pytest.mark.parametrize("value", [0, 1])
@pytest.mark.parametrize("voxel_size", [ISOTROPIC, ANISOTROPIC])
def test_a_section_without_boundary_or_of_nothing_else_is_one_fragment(value: float, voxel_size) -> None:
    """A missing section, or the inside of a soma."""
    labels = fragments(np.full((3, 2, 8, 9), value, np.float32), voxel_size)
    assert labels.max() == (1 if voxel_size == ISOTROPIC else 2) and labels.min() == 1


@pytest.mark.parametrize(
    ("voxel_size", "flooded"),
    [(ISOTROPIC, ISOTROPIC), ((12.0, 8.0, 6.5), (12.0, 8.0, 6.5)), ((40.0, 8.0, 5.0), (8.0, 5.0))],
)
def test_fragments_are_those_of_scipys_distances_and_of_one_thread(voxel_size, flooded, monkeypatch) -> None:
    labels = make_phantom((16, 128, 128), seed=1, voxel_size=voxel_size).labels
    noise = gaussian_filter(np.random.default_rng(0).normal(0, 1, (3, *labels.shape)), (0, 1, 1, 1))
    affinities = np.clip(affinities_of(labels) + noise, 0, 1).astype(np.float32)
    monkeypatch.setattr("torch.get_num_threads", lambda: 3)
    ours = fragments(affinities, voxel_size, strict=False)
    monkeypatch.setattr("torch.get_num_threads", lambda: 1)
    in_nm = partial(ndimage.distance_transform_edt, sampling=flooded)
    monkeypatch.setattr(bioimage_cpp.distance, "distance_transform", lambda inside, _: in_nm(inside))
    np.testing.assert_array_equal(ours, fragments(affinities, voxel_size, strict=False))
    assert ours.max() > 50


def test_a_section_without_a_seed_is_a_fragment_of_its_own() -> None:
    affinities = np.zeros((3, 3, 16, 16), np.float32)
    affinities[1:, :, :, [4, 6]] = 1  # profiles of one voxel: smoothed, the distance is highest between them
    affinities[1:, 0] = np.random.default_rng(0).random((2, 16, 16))
    first, *others = (np.unique(section).tolist() for section in fragments(affinities, (40.0, 8.0, 8.0)))
    assert others == [[max(first) + 1], [max(first) + 2]]


def test_sweep_merges_more_and_more_and_returns_independent_arrays() -> None:
    affinities = affinities_of(cells())
    start = fragments(affinities, ISOTROPIC)
    segmentations = sweep(affinities, ISOTROPIC, [0.6, 0, 0.3, 1], start)
    assert list(segmentations) == [0, 0.3, 0.6, 1]
    assert voi(segmentations[0], start) == (0, 0)
    for finer, coarser in zip(list(segmentations.values())[:-1], list(segmentations.values())[1:], strict=True):
        assert voi(finer, coarser)[1] == pytest.approx(0, abs=1e-12) and not np.shares_memory(finer, coarser)
    assert len(np.unique(segmentations[1])) == 1
    for threshold, segmentation in segmentations.items():
        assert np.array_equal(segmentation, segment(affinities, ISOTROPIC, threshold))


@given(st.lists(st.floats(0.0625, 0.9375, width=32), min_size=2, max_size=5, unique=True))
@settings(max_examples=20)
def test_mean_affinity_of_the_face_decides(values: list[float]) -> None:
    """A row of bricks, each joined to the next by a face of one affinity: those above 1 - threshold hold."""
    affinities = np.ones((3, 2, 4, 4 * len(values) + 4), np.float32)
    affinities[2, :, :, 4::4] = values
    bricks = np.broadcast_to(np.arange(affinities.shape[3]) // 4 + 7, affinities.shape[1:]).astype(np.uint64)
    joined = segment_from(bricks, affinities, 0.5)[0, 0, ::4]
    assert [a == b for a, b in zip(joined[:-1], joined[1:], strict=True)] == [value > 0.5 for value in values]


def segment_from(start: np.ndarray, affinities: np.ndarray, threshold: float) -> np.ndarray:
    return sweep(affinities, ISOTROPIC, [threshold], start)[threshold]


def test_huge_fragment_ids_and_background_are_taken() -> None:
    """waterz alone would allocate by the largest id; background stays and nothing merges across it."""
    start = np.array([2**60, 2**60, 0, 5, 5, 5], np.uint64)[None, None]
    segmentation = segment_from(start, np.ones((3, 1, 1, 6), np.float32), 0.5)[0, 0]
    assert segmentation[2] == 0 and segmentation[0] == segmentation[1] != segmentation[3] == segmentation[5]


def test_inputs_are_left_as_they_were_also_when_not_contiguous() -> None:
    labels = cells()
    affinities = np.asfortranarray(affinities_of(labels))
    start = np.asfortranarray(fragments(affinities, ANISOTROPIC))
    affinities.flags.writeable = start.flags.writeable = False
    segmentation = segment_from(start, affinities, 0.4)
    plain = segment_from(np.ascontiguousarray(start), np.ascontiguousarray(affinities), 0.4)
    assert voi(segmentation, plain) == (0, 0) and start.max() > len(np.unique(segmentation))


def test_nothing_is_printed_and_printing_works_afterwards(capfd) -> None:
    affinities = affinities_of(cells())
    segment(affinities, ISOTROPIC, 0.5)
    assert capfd.readouterr() == ("", "")
    with pytest.raises(ValueError, match="thresholds"):
        segment(affinities, ISOTROPIC, 2)
    print("python")
    os.write(1, b"descriptor\n")
    assert set(capfd.readouterr().out.split()) == {"python", "descriptor"}


def test_two_threads_leave_printing_as_it_was() -> None:
    code = """
import numpy as np
from concurrent.futures import ThreadPoolExecutor
from fgnet_lib.segmentation import segment
affinities = np.random.default_rng(0).random((3, 4, 40, 40), np.float32)
with ThreadPoolExecutor(4) as pool:
    list(pool.map(lambda k: segment(affinities, (10, 10, 10), 0.5, strict=False), range(24)))
print("heard")
"""
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert run.stdout == "heard\n", run.stderr


def test_a_closed_stdout_stops_nothing() -> None:
    code = "import numpy as np, sys; from fgnet_lib.segmentation import segment; "
    code += "print(segment(np.ones((3, 2, 8, 8), np.float32), (10, 10, 10), 0.5).max(), file=sys.stderr)"
    run = subprocess.run(["sh", "-c", 'exec "$0" -c "$1" >&-', sys.executable, code], capture_output=True, text=True)
    assert run.stderr == "1\n"


@pytest.mark.slow
def test_works_without_a_compiler_and_silently_where_stdout_is_not_descriptor_1() -> None:
    """As in Jupyter: sys.stdout is an object of the kernel, and nothing that could compile is on PATH."""
    program = """if True:
        import io, sys
        sys.stdout = kernel = io.StringIO()
        import numpy as np
        from fgnet_lib.segmentation import segment
        before = sys.stdout
        n = len(np.unique(segment(np.ones((3, 4, 8, 8), np.float32), (8, 8, 8), 0.5)))
        assert sys.stdout is before and kernel.getvalue() == ""
        sys.stderr.write(f"{n} segment")
    """
    environment = {key: value for key, value in os.environ.items() if key not in ("CC", "CXX")} | {"PATH": ""}
    run = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "1 segment")


def wrong(change) -> np.ndarray:
    return change(affinities_of(cells()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.astype(np.float64), "float64"),
        (lambda a: (a * 255).astype(np.uint8), "uint8"),
        (lambda a: a > 0.5, "bool"),
        (lambda a: np.where(np.arange(64) == 3, np.nan, a).astype(np.float32), "NaN in 768 voxels"),
        (lambda a: a * np.float32(np.inf), "NaN|inf"),
        (lambda a: a * 4 - 2, "sigmoid"),
        (lambda a: a[:2], r"\(2, 12, 64, 64\)"),
        (lambda a: a[0], r"\(12, 64, 64\)"),
        (lambda a: a[:, :0], r"\(3, 0, 64, 64\)"),
        (lambda a: np.moveaxis(a, 0, -1), "moveaxis"),
        (lambda a: a.tolist(), "list"),
        (lambda a: a[::-1], "channel order"),
        (lambda a: a[[0, 2, 1]], "channel order"),
        (lambda a: np.stack([np.roll(a[axis], -1, axis) for axis in range(3)]), "fit best as successor along z, succ"),
        (lambda a: np.stack([a[0], np.roll(a[1], -1, 1), a[2]]), "predecessor along z, successor along y, predecessor"),
        (lambda a: a[[1, 2, 0]], "predecessor along y, predecessor along x, predecessor along z"),
    ],
)
def test_affinities_that_do_not_qualify_are_refused(change, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fragments(wrong(change), ISOTROPIC)
    with pytest.raises(ValueError, match=message):
        sweep(wrong(change), ISOTROPIC, [0.5], cells())


@pytest.mark.parametrize("seed", range(4))
def test_no_channel_order_is_refused_by_chance(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for shape in ((1, 1, 1), (1, 6, 6), (2, 3, 40), (8, 32, 32)):
        fragments(rng.random((3, *shape), np.float32).round(), ISOTROPIC)


def fibres(slope: float, seed: int, shape: tuple[int, int, int] = (16, 64, 64)) -> np.ndarray:
    """Parallel axons that move by `slope` voxels along y, and half as much along x, from section to section."""
    z, y, x = np.indices(shape)
    where = np.stack([y + slope * z, x + slope / 2 * z], -1)
    extent = where.reshape(-1, 2).max(0) + 1
    points = np.random.default_rng(seed).random((int(extent.prod() / 150), 2)) * extent
    return cKDTree(points).query(where)[1].astype(np.uint64) + np.uint64(1)


@pytest.mark.slow
@pytest.mark.parametrize("slope", [0, 0.25, 0.5, 1, 2, 3.3, 6, 8])
@pytest.mark.parametrize("seed", range(3))
def test_right_affinities_of_oblique_fibres_are_accepted(slope: float, seed: int) -> None:
    labels = fibres(slope, seed)
    hard = affinities_from_labels(labels).astype(np.float32)
    for affinities in (hard, gaussian_filter(hard, (0, 0.5, 0.7, 0.7)), affinities_of(labels)):
        check_affinities(affinities)
    if slope not in (0, 1):  # where two channels do not differ
        with pytest.raises(ValueError, match="channel order"):
            check_affinities(hard[[1, 0, 2]])


def test_a_refused_channel_order_can_be_overruled() -> None:
    wrong_order, labels = wrong(lambda a: a[::-1]), cells()
    with pytest.warns(UserWarning, match="another channel order: .* predecessor along x"):
        start = fragments(wrong_order, ISOTROPIC, strict=False)
    with pytest.warns(UserWarning, match="another channel order"):
        segmentation = segment(wrong_order, ISOTROPIC, 0.5, strict=False)
    assert start.shape == segmentation.shape == labels.shape
    with pytest.warns(UserWarning, match="another channel order"):
        sweep(wrong_order, ISOTROPIC, [0.5], labels, strict=False)


@pytest.mark.parametrize("dtype", ["<u4", ">u4", ">u8", ">i2", "u1"])
def test_fragments_and_labels_may_have_any_byte_order(dtype: str) -> None:
    start = cells()
    segmentation = sweep(affinities_of(start), ISOTROPIC, [0.5], start.astype(dtype))[0.5]
    assert voi(segmentation, sweep(affinities_of(start), ISOTROPIC, [0.5], start)[0.5]) == (0, 0)
    assert np.array_equal(remove_small(start.astype(dtype), 1500), remove_small(start, 1500))


@pytest.mark.parametrize("thresholds", [[], [-0.1], [0.5, 1.1], [float("nan")]])
def test_thresholds_outside_of_the_scores_are_refused(thresholds: list[float]) -> None:
    with pytest.raises(ValueError, match="thresholds"):
        sweep(np.ones((3, 2, 4, 4), np.float32), ISOTROPIC, thresholds)


@pytest.mark.parametrize("start", [np.ones((2, 4, 5), np.uint64), np.ones((2, 4, 4))])
def test_fragments_that_do_not_fit_are_refused(start: np.ndarray) -> None:
    with pytest.raises(ValueError, match="fragments"):
        sweep(np.ones((3, 2, 4, 4), np.float32), ISOTROPIC, [0.5], start)


@pytest.mark.parametrize("dtype", [np.uint32, np.uint64])
def test_small_segments_go_to_the_nearest_large_one_and_background_stays(dtype: type) -> None:
    row = np.array([4, 4, 4, 9, 2**31, 2**31, 2**31, 0, 8, 0], dtype)
    labels = np.stack([row, row])[None]
    before = labels.copy()
    assert np.array_equal(remove_small(labels, 2), labels)
    cleaned = remove_small(labels, 3)
    assert cleaned.dtype == dtype and np.array_equal(labels, before)
    assert cleaned[0, 0].tolist()[:3] + cleaned[0, 0].tolist()[4:] == [4, 4, 4, 2**31, 2**31, 2**31, 0, 2**31, 0]
    assert cleaned[0, 0, 3] in (4, 2**31)
    assert np.array_equal(remove_small(labels, 100), labels)


def test_labels_of_fib25_are_found_again_from_their_affinities(em_data) -> None:
    """Twin: `test_objects_are_found_again`."""
    with h5py.File(em_data / "train" / "fib25_t2_train_z000-139.h5") as file:
        labels = file["volumes/labels/neuron_ids"][:16, :128, :128]
    scores = evaluate(remove_small(segment(affinities_of(labels), (10.0, 10.0, 10.0), 0.5), 100), labels)
    assert scores.voi_split + scores.voi_merge < 0.5 and scores.arand < 0.1
