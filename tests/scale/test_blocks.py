"""What comes out block by block is what comes out in one piece."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from dataclasses import replace

import h5py
import numpy as np
import pytest
import tifffile
import torch
import zarr
from distributed import Client
from helpers.models import Echo
from helpers.stand_ins import BLOCK, Grey, files, truncate
from helpers.volume_files import grey, hdf5, ome_image, ome_zarr, turn
from helpers.volumes import affinities_of, cells, parts_of, thin_cells
from hypothesis import given, settings
from hypothesis import strategies as st

from fgnet_lib.affinities import affinities_from_labels, widen_borders
from fgnet_lib.configuration import FGNetConfig
from fgnet_lib.fgnet import FGNet
from fgnet_lib.files.formats import write_volume
from fgnet_lib.inference import lay_windows, predict
from fgnet_lib.metrics import evaluate, voi
from fgnet_lib.phantom import make_phantom
from fgnet_lib.scale.cluster import BlocksFailed
from fgnet_lib.scale.grid import Grid
from fgnet_lib.scale.journal import Journal, process_block
from fgnet_lib.scale.prediction import Blend, Decode, Encode, Network, Source, gpu_of, predict_blocks
from fgnet_lib.scale.segmentation import segment_blocks
from fgnet_lib.segmentation import agglomerate, segment, sweep
from fgnet_lib.volumes import Region, Volume
from fgnet_lib.weights import load_model, load_pretrained, pretrained_threshold, save_model

pytestmark = pytest.mark.slow  # predicts and segments in blocks

ISOTROPIC, ANISOTROPIC = (32.0, 32.0, 32.0), (80.0, 32.0, 32.0)  # a halo of 10 voxels is less than the volumes


@pytest.fixture(scope="module")
def client():
    """Workers as threads of this process: all that the network of processes adds is in test_cluster.py."""
    with Client(processes=False, n_workers=1, threads_per_worker=2, dashboard_address=None) as client:
        yield client


# --- prediction ------------------------------------------------------------------------------------------------------


regions = st.tuples(*[st.tuples(st.integers(0, 30), st.integers(1, 40)) for _ in range(3)])


@given(regions, st.sampled_from([0.0, 0.25, 0.5]))
@settings(max_examples=25)
def test_a_region_is_predicted_as_in_the_whole_volume(corners, overlap):
    raw = np.random.default_rng(0).integers(1, 255, (31, 70, 50), np.uint8)
    region = Region.at(*zip(*corners, strict=True)).intersect(Region.whole(raw.shape))
    whole = predict(Echo(), raw, (8, 32, 32), overlap, progress=False)
    part = predict(Echo(), raw, (8, 32, 32), overlap, progress=False, region=region)
    assert np.array_equal(part.refined, whole.refined[:, *region])
    z, y, x = region
    for stride, a, b in zip((4, 8, 16), part.attention, whole.attention, strict=True):
        y_s, x_s = (slice(s.start // stride, -(-s.stop // stride)) for s in (y, x))
        assert np.array_equal(a, b[z, y_s, x_s])


def test_only_what_is_needed_is_read():
    raw = np.random.default_rng(0).integers(1, 255, (31, 70, 90), np.uint8)
    region = Region.at((9, 0, 40), (3, 20, 20))
    part = lay_windows(raw.shape, (8, 32, 32), 0.25).overlapping(region).reach
    assert part != Region.whole(raw.shape)
    blanked = np.zeros_like(raw)
    blanked[part] = raw[part]
    whole, cut = (predict(Echo(), array, (8, 32, 32), 0.25, progress=False, region=region) for array in (raw, blanked))
    assert np.array_equal(whole.refined, cut.refined)


def test_each_section_of_a_region_is_encoded_once_per_column():
    model, region = Echo(), Region.at((10, 0, 0), (10, 32, 32))
    predict(model, np.zeros((40, 32, 64), np.uint8), (4, 32, 32), 0.5, progress=False, region=region)
    assert model.sections_encoded == 14  # of one column, windows from 8 to 22


volumes = st.tuples(st.integers(1, 20), st.integers(1, 80), st.integers(1, 110))
pieces = st.tuples(st.integers(1, 16), st.integers(9, 80), st.integers(9, 80))


@given(volumes, pieces, st.sampled_from([0.0, 0.25, 0.6]), st.randoms(use_true_random=False))
@settings(max_examples=10)
def test_every_window_is_computed_and_every_section_of_a_tile_encoded_once(
    tmp_path_factory, shape, block, overlap, order
):
    """In any blocks, done in any order. `Echo` looks by itself whether features belong to their sections."""
    folder, model = tmp_path_factory.mktemp("once"), Echo()
    raw = np.random.default_rng(0).integers(1, 255, shape, np.uint8)
    source = Source(write_volume(Volume(raw, ISOTROPIC), folder / "raw.zarr"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Network, "model", lambda network, windows: model)
        network, grid = Network(tile=(4, 64, 64), overlap=overlap), Grid(shape, block)
        decode = Decode(folder, grid, Encode(folder, grid, source, network))
        for step in (*decode.steps(), Blend(folder, grid, source, network, decode)):
            Journal(folder, step.name).begin(step.settings())
            step.prepare()
            for index in order.sample(range(len(step.grid)), len(step.grid)):
                process_block(step, index)
    windows = lay_windows(shape, (4, 64, 64), overlap)
    assert (model.windows, model.sections_encoded) == (len(windows), shape[0] * len(windows.columns))
    np.testing.assert_allclose(zarr.open_array(folder / "affinities.zarr")[1], raw / 255, atol=1e-3)  # float16


@pytest.fixture
def network(client, tmp_path, monkeypatch):
    """Eighteen windows in twelve blocks: (predict, folder, what `predict` gives, how often a section was encoded)."""
    torch.manual_seed(0)
    model = FGNet(FGNetConfig("mini", widths=(4,) * 5, coarse_width=4))
    network = Network(save_model(model.eval(), tmp_path / "w.safetensors"), (8, 64, 64))
    raw = np.random.default_rng(0).integers(0, 255, (20, 70, 100), np.uint8)
    path = write_volume(Volume(raw, ISOTROPIC), tmp_path / "raw.h5")
    whole = predict(load_model(network.checkpoint), raw, (8, 64, 64), progress=False).refined
    encoded, encode = Counter(), FGNet.encode

    def counted(model, sections):
        encoded.update(section.numpy().tobytes() for section in sections.unbind(2))
        return encode(model, sections)

    monkeypatch.setattr(FGNet, "encode", counted)

    def again():
        return predict_blocks(client, Source(path), tmp_path / "run", network, (8, 40, 50), progress=False)

    return again, tmp_path / "run", whole, encoded


def test_the_network_gives_the_same_in_blocks(network):
    predict_again, folder, whole, encoded = network
    report, array = predict_again(), zarr.open_array(folder / "affinities.zarr")
    assert (report.step, report.done) == ("predict", 12) and report.seconds.compute > 0
    assert array.metadata.zarr_format == 3 and array.shards == (3, 8, 40, 50)
    assert array.attrs["resolution"] == list(ISOTROPIC)
    np.testing.assert_allclose(array[:], whole, atol=1e-3)  # float16
    assert len(encoded) == 20 * 6 and set(encoded.values()) == {1}  # sections, tiles
    report = predict_again()
    assert (report.kept, report.seconds.total(), encoded.total()) == (12, 0, 20 * 6)


def test_a_lost_block_is_made_again_though_its_windows_were_removed(network):
    predict_again, folder, _, encoded = network
    predict_again()
    assert not (folder / "windows").exists()
    before = files(folder / "affinities.zarr")
    truncate(folder / "affinities.zarr", 0, Grid((20, 70, 100), (8, 40, 50)))
    assert predict_again().done == 1 and files(folder / "affinities.zarr") == before
    next((folder / "journal" / "predict").rglob("done/0/0")).unlink()
    assert predict_again().done == 1 and files(folder / "affinities.zarr") == before
    assert 1 in encoded.values()  # sections of tiles that do not reach the block


@pytest.mark.parametrize("removed", [False, True])
def test_encoding_goes_on_and_encodes_nothing_again(network, monkeypatch, removed):
    """Unless somebody has removed the features meanwhile."""
    predict_again, folder, whole, encoded = network

    def fail(*args):
        raise OSError("stopped")

    with monkeypatch.context() as patch, pytest.raises(BlocksFailed, match="stopped"):
        patch.setattr(Decode, "compute", fail)
        predict_again()
    assert 0 < len(encoded) < 20 * 6
    if removed:
        shutil.rmtree(folder / "windows")
    predict_again()
    assert len(encoded) == 20 * 6 and (set(encoded.values()) == {1}) != removed
    np.testing.assert_allclose(zarr.open_array(folder / "affinities.zarr")[:], whole, atol=1e-3)


def test_windows_that_fail_leave_holes_where_they_reach(network, monkeypatch):
    predict_again, folder, whole, _ = network
    compute, grid = Decode.compute, Grid((20, 70, 100), (8, 40, 50))

    def fail(step, index, data):
        if index == 5:  # z 8 to 16, the second along x; its windows begin at 12, 0, 64
            raise OSError("cannot be done")
        return compute(step, index, data)

    with monkeypatch.context() as patch, pytest.raises(BlocksFailed, match="decode: 1 of 12 .*\n.*cannot be done"):
        patch.setattr(Decode, "compute", fail)
        predict_again()
    assert Journal(folder, "predict").missing(grid) == [5, 7, 9, 11]
    assert predict_again().done == 4
    np.testing.assert_allclose(zarr.open_array(folder / "affinities.zarr")[:], whole, atol=1e-3)


def test_a_model_without_sam2_encodes_nothing(client, tmp_path):
    weights = save_model(FGNet(FGNetConfig(None, widths=(4,) * 5)).eval(), tmp_path / "w.safetensors")
    volume = make_phantom((10, 32, 64), seed=0)
    source = Source(write_volume(volume, tmp_path / "raw.zarr"))
    predict_blocks(client, source, tmp_path / "run", Network(weights, (8, 32, 32)), (8, 32, 48), progress=False)
    whole = predict(load_model(weights), volume.raw, (8, 32, 32), progress=False).refined
    np.testing.assert_allclose(zarr.open_array(tmp_path / "run" / "affinities.zarr")[:], whole, atol=1e-3)
    assert Journal(tmp_path / "run", "encode").settings() is None


def test_gpus_are_dealt_out_by_the_workers_number():
    assert [gpu_of(name, 4) for name in ("0", "1", "5", "SLURMCluster-2-3", "tcp")] == [0, 1, 1, 3, 0]


@pytest.fixture
def run(client, tmp_path):
    """Twelve blocks of a stand-in: (predict, folder, grid)."""
    raw = np.random.default_rng(0).integers(0, 255, (12, 64, 64), np.uint8)
    path = write_volume(Volume(raw, ISOTROPIC), tmp_path / "raw.zarr")

    def again(predictor=Grey(), block=BLOCK):  # noqa: B008 (frozen)
        return predict_blocks(client, Source(path), tmp_path / "run", predictor, block, progress=False)

    return again, tmp_path / "run", Grid(raw.shape, BLOCK)


def test_a_completed_run_does_no_block_again(run):
    predict_again, folder, grid = run
    first, second = predict_again(), predict_again()
    assert (first.done, first.kept, second.done, second.kept) == (12, 0, 0, 12)
    assert first.seconds.compute > 0 and second.seconds.total() == 0


def test_a_truncated_a_missing_and_a_half_written_shard_are_found(run):
    """Zarr writes beside a shard, and renames; SIGKILL leaves that file."""
    predict_again, folder, grid = run
    predict_again()
    before = files(folder / "affinities.zarr")
    truncate(folder / "affinities.zarr", 5, grid)
    missing = truncate(folder / "affinities.zarr", 7, grid)
    missing.rename(f"{missing}.0a1b.partial")
    assert predict_again().done == 2
    assert files(folder / "affinities.zarr") == before


def test_no_shard_is_written_or_removed_through_a_link(run, tmp_path):
    predict_again, folder, grid = run
    predict_again()
    shards = folder / "affinities.zarr" / "c"
    truncate(folder / "affinities.zarr", 5, grid)
    shards.rename(tmp_path / "elsewhere")
    shards.symlink_to(tmp_path / "elsewhere")
    before = files(tmp_path / "elsewhere")
    with pytest.raises(BlocksFailed, match="leads out of"):
        predict_again()
    assert files(tmp_path / "elsewhere") == before


def test_a_changed_configuration_is_refused(run):
    predict_again, folder, grid = run
    predict_again()
    with pytest.raises(ValueError, match="stand-in was 1, is now 2"):
        predict_again(Grey(version=2))
    with pytest.raises(ValueError, match=r"block was \[4, 32, 32\], is now \[6, 32, 32\]"):
        predict_again(block=(6, 32, 32))


def test_another_voxel_size_is_refused(run, client):
    predict_again, folder, grid = run
    predict_again()
    other = Source(folder.parent / "raw.zarr", voxel_size=(40, 4, 4))
    with pytest.raises(ValueError, match=r"resolution was \[32.0, 32.0, 32.0\], is now \[40.0, 4.0, 4.0\]"):
        predict_blocks(client, other, folder, Grey(), BLOCK, progress=False)


def test_raw_that_was_replaced_is_refused_and_read_anew_in_another_folder(run, client):
    predict_again, folder, grid = run
    predict_again()
    raw = write_volume(Volume(np.full((6, 64, 64), 255, np.uint8), ISOTROPIC), folder.parent / "raw.zarr")
    with pytest.raises(ValueError, match="raw files was"):
        predict_again()
    predict_blocks(client, Source(raw), folder.parent / "new", Grey(), BLOCK, progress=False)
    affinities = zarr.open_array(folder.parent / "new" / "affinities.zarr")
    assert affinities.shape == (3, 6, 64, 64) and affinities[:].min() == 1


def test_a_chunk_that_changed_in_place_is_another_volume(run):
    predict_again, folder, grid = run
    predict_again()
    chunk = next(file for file in (folder.parent / "raw.zarr" / "volumes").rglob("c/*/*/*") if file.is_file())
    os.utime(chunk)
    with pytest.raises(ValueError, match="raw files was.*volumes/raw"):
        predict_again()


def test_level_0_of_an_ome_zarr_that_was_replaced_is_another_volume(tmp_path):
    image = ome_image("0.4", "zyx", ISOTROPIC, (0, 0, 0), "nanometer")
    source = Source(ome_zarr(tmp_path / "a.zarr", grey(), image))
    before = source.stamp()
    shutil.rmtree(tmp_path / "a.zarr" / "0")
    zarr.open_group(tmp_path / "a.zarr").create_array("0", data=255 - grey(), chunks=grey().shape)
    assert source.stamp().keys() == before.keys() and source.stamp() != before


@pytest.mark.parametrize("kind", ["h5", "sections", "tif", "zarr"])
def test_a_volume_may_be_named_by_a_link(client, tmp_path, kind):
    volume, link = tmp_path / f"stored {kind}", tmp_path / f"a.{kind}"  # a cache may store a file without its suffix
    if kind in ("h5", "zarr"):
        write_volume(Volume(grey(), ISOTROPIC), tmp_path / f"b.{kind}").rename(volume)
    elif kind == "tif":
        tifffile.imwrite(volume, grey())
    else:
        volume.mkdir()
        for z, section in enumerate(grey()):
            tifffile.imwrite(volume / f"{z}.tif", section)
    link.symlink_to(volume)
    source = Source(link, voxel_size=list(ISOTROPIC))
    predict_blocks(client, source, tmp_path / "out", Grey(), block=(6, 16, 16), progress=False)
    np.testing.assert_allclose(zarr.open_array(tmp_path / "out" / "affinities.zarr")[0], grey() / 255, atol=1e-3)


def test_a_volume_that_changes_while_it_is_read_is_reported(tmp_path):
    source = Source(write_volume(Volume(grey(), ISOTROPIC), tmp_path / "a.h5")).begin()
    source.check_unchanged()
    write_volume(Volume(255 - grey(), ISOTROPIC), tmp_path / "a.h5")
    with pytest.raises(ValueError, match="a.h5 has changed while it was read.*another folder"):
        source.check_unchanged()


def test_a_source_has_axes(client, tmp_path):
    """The order that is given by hand holds in the workers, too."""
    raw = grey((12, 64, 64))
    path = hdf5(tmp_path / "a.h5", {"raw": turn(raw, "xyz")})
    source = Source(path, voxel_size=ISOTROPIC, axes="xyz")
    predict_blocks(client, source, tmp_path / "run", Grey(), BLOCK, progress=False)
    affinities = zarr.open_array(tmp_path / "run" / "affinities.zarr")[0]
    np.testing.assert_allclose(affinities, raw / 255, atol=1e-3)
    with pytest.raises(ValueError, match="axes was xyz, is now zyx"):  # blocks in other axes are not mixed
        predict_blocks(client, replace(source, axes="zyx"), tmp_path / "run", Grey(), BLOCK, progress=False)


def test_a_block_that_no_memory_holds_is_refused_before_it_is_read(client, tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("raw", (2000, 10_000, 10_000), "u1", chunks=(16, 128, 128)).attrs["resolution"] = ISOTROPIC
    with pytest.raises(ValueError, match=r"block of \(2000, 10000, 10000\) voxels takes .* GiB.*smaller blocks"):
        predict_blocks(client, tmp_path / "a.h5", tmp_path / "run", Grey(), (2000, 10_000, 10_000), progress=False)
    zarr.create_array(
        tmp_path / "b.zarr",
        shape=(3, 1000, 4000, 4000),
        chunks=(3, 16, 128, 128),
        dtype="f4",
        fill_value=0.5,
        attributes={"resolution": [0.2, 0.2, 0.2]},
    )
    with pytest.raises(ValueError, match=r"with a halo of \(1600, 1600, 1600\) voxels"):
        segment_blocks(client, tmp_path / "b.zarr", tmp_path / "run", 0.5, progress=False)


@pytest.mark.parametrize("voxel_size", [(0.04, 0.008, 0.008), (0, 8, 8), (-40, 8, 8), (40_000, 8, 8), (np.nan, 8, 8)])
def test_affinities_with_voxels_that_no_microscope_has_are_refused(client, tmp_path, voxel_size):
    saved(tmp_path / "a.zarr", np.full((3, 8, 16, 16), 0.5, np.float32), voxel_size)
    with pytest.raises(ValueError, match="a.zarr: `resolution` says voxels of.*mend the attribute"):
        segment_blocks(client, tmp_path / "a.zarr", tmp_path / "run", 0.5, progress=False)


def test_weights_that_were_replaced_are_other_weights(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    weights = tmp_path / "w.safetensors"
    weights.write_bytes(b"1")
    before = Network("w.safetensors").settings()
    weights.write_bytes(b"another")
    monkeypatch.chdir("/")
    assert Network(weights).settings()["weights"] != before["weights"] and before["precision"]


def test_bfloat16_is_a_setting_and_other_engines_are_none(tmp_path):
    weights = tmp_path / "w.safetensors"
    weights.write_bytes(b"1")
    torch, openvino, bfloat16 = (
        Network(weights, device="cpu", engine=engine).settings() for engine in ("torch", "openvino", "openvino_bf16")
    )
    assert torch == openvino == bfloat16 | {"precision": "no"} and bfloat16["precision"] == "bf16"


def test_an_array_of_somebody_else_is_not_overwritten(run):
    predict_again, folder, grid = run
    zarr.create_array(folder / "affinities.zarr", data=np.ones((3, 12, 64, 64), np.float32))
    for _ in range(2):
        with pytest.raises(
            ValueError, match=r"affinities.zarr already exists with shape \(3, 12, 64, 64\).* float32, expected"
        ):
            predict_again()
    assert (zarr.open_array(folder / "affinities.zarr")[:] == 1).all()


# --- segmentation ----------------------------------------------------------------------------------------------------


def saved(path, affinities, voxel_size):
    zarr.create_array(path, data=affinities, chunks=(3, 8, 16, 16), attributes={"resolution": list(voxel_size)})
    return path


def same_partition(a, b):
    return voi(a, b) == pytest.approx((0, 0), abs=1e-12)


blocks = st.tuples(st.integers(2, 8), st.integers(10, 28), st.integers(10, 28))


@pytest.mark.parametrize("voxel_size", [ISOTROPIC, ANISOTROPIC])
@given(st.integers(2, 40), st.integers(0, 10**6), st.tuples(*[st.sampled_from([0.3, 1.0, 2.0])] * 3), blocks)
@settings(max_examples=6)
def test_perfect_affinities_give_the_same_in_any_blocks(
    client, tmp_path_factory, voxel_size, number, seed, stretch, block
):
    """The objects, however thin: as in one piece, on every voxel but those of membranes, which go to one side or other.

    Where a face is mostly membrane even perfect affinities have a small mean, hence the threshold.
    """
    folder = tmp_path_factory.mktemp("perfect")
    objects = widen_borders(thin_cells((8, 28, 28), number, seed, stretch), voxel_size == ISOTROPIC)
    array, known = affinities_from_labels(objects).astype(np.float32), parts_of(objects)
    path = saved(folder / "a.zarr", array, voxel_size)
    segment_blocks(client, path, folder / "run", 0.999, block, progress=False)
    segmentation = zarr.open_array(folder / "run" / "neurons.zarr")[:]
    assert segmentation.dtype == np.uint64 and segmentation.min() > 0
    for expected in (known, segment(array, voxel_size, 0.999)):
        assert same_partition(*(np.where(known > 0, labels, 0) for labels in (segmentation, expected)))


@pytest.fixture
def affinities(tmp_path):
    """As a good network would predict them, of a few cells: (path, array, labels)."""
    labels = cells((12, 48, 48), 20)
    array = affinities_of(labels)
    return saved(tmp_path / "a.zarr", array, ISOTROPIC), array, labels


def neurons(client, affinities, folder, block, threshold=0.5):
    segment_blocks(client, affinities, folder, threshold, block, progress=False)
    return zarr.open_array(folder / "neurons.zarr")[:]


def test_one_block_is_the_segmentation_in_memory(client, affinities, tmp_path):
    path, array, _ = affinities
    segmentation = neurons(client, path, tmp_path / "run", (12, 48, 48))
    assert same_partition(segmentation, segment(array, ISOTROPIC, 0.5))
    assert np.array_equal(np.unique(segmentation), np.arange(1, segmentation.max() + 1))


def test_borders_of_blocks_cost_little(client, affinities, tmp_path):
    """Twin on real EM below."""
    path, array, labels = affinities
    scores = [evaluate(neurons(client, path, tmp_path / str(n), (12, n, n)), labels) for n in (48, 24)]
    assert (
        abs(
            sum(score.voi_split + score.voi_merge for score in scores) - 2 * (scores[0].voi_split + scores[0].voi_merge)
        )
        < 0.02
    )


def test_fragments_stay_in_their_block_and_no_id_occurs_twice(client, affinities, tmp_path):
    neurons(client, affinities[0], tmp_path / "run", (5, 20, 48))
    fragments, grid = zarr.open_array(tmp_path / "run" / "fragments.zarr")[:], Grid((12, 48, 48), (5, 20, 48))
    ids = [np.unique(fragments[grid.region(index)]) for index in range(len(grid))]
    assert (
        fragments.dtype == np.uint64
        and len(np.unique(np.concatenate(ids))) == sum(map(len, ids))
        and fragments.min() > 0
    )


def test_another_threshold_is_refused_in_the_same_folder(client, affinities, tmp_path):
    neurons(client, affinities[0], tmp_path / "run", (12, 48, 48))
    with pytest.raises(ValueError, match=r"threshold was 0\.5, is now 0\.6"):
        neurons(client, affinities[0], tmp_path / "run", (12, 48, 48), 0.6)


@pytest.mark.parametrize("threshold", [-0.1, 7, float("nan")])
def test_a_threshold_that_is_no_score_is_refused_before_anything_is_done(client, affinities, tmp_path, threshold):
    with pytest.raises(ValueError, match=r"score \(1 - mean affinity\) in \[0, 1\], not"):
        neurons(client, affinities[0], tmp_path / "run", (12, 48, 48), threshold)
    assert not (tmp_path / "run").exists()


def test_a_hole_in_the_prediction_is_refused(client, run):
    predict_again, folder, grid = run
    predict_again()
    next((folder / "journal").rglob("done/0/3")).unlink()
    with pytest.raises(ValueError, match=r"blocks \[3\] are missing"):
        segment_blocks(client, folder / "affinities.zarr", folder, 0.5, progress=False)


def test_a_lost_file_of_the_prediction_is_not_taken_for_zeros(run, client):
    predict_again, folder, grid = run
    predict_again()
    truncate(folder / "affinities.zarr", 5, grid).unlink()
    with pytest.raises(BlocksFailed, match="the file of block 5 is lost"):
        segment_blocks(client, folder / "affinities.zarr", folder, 0.5, BLOCK, progress=False)


def test_affinities_of_zeros_have_no_file_and_are_segmented(client, tmp_path):
    raw = write_volume(Volume(np.zeros((4, 32, 64), np.uint8), ISOTROPIC), tmp_path / "raw.zarr")
    predict_blocks(client, str(raw), tmp_path / "run", Grey(), BLOCK, progress=False)
    assert neurons(client, tmp_path / "run" / "affinities.zarr", tmp_path / "run", BLOCK).min() > 0


def test_affinities_that_were_replaced_are_refused(client, affinities, tmp_path):
    path, array, _ = affinities
    neurons(client, path, tmp_path / "run", (12, 48, 48))
    zarr.create_array(path, data=array, attributes={"resolution": list(ISOTROPIC)}, overwrite=True)
    with pytest.raises(ValueError, match="affinities files was"):
        neurons(client, path, tmp_path / "run", (12, 48, 48))


@pytest.mark.parametrize(
    ("array", "attributes"),
    [
        (np.ones((3, 2, 2, 2), np.uint8), {"resolution": [8, 8, 8]}),
        (np.ones((2, 2, 2), np.float32), {"resolution": [8, 8, 8]}),
        (np.ones((3, 2, 2, 2), np.float32), {}),
        (np.ones((3, 2, 2, 2), np.float32), {"resolution": [8, 8]}),
        (np.ones((3, 2, 2, 2), np.float32), {"resolution": [8, 8, 8], "axis_names": list("cxyz")}),
        (np.ones((3, 2, 2, 2), np.float32), {"resolution": [8, 8, 8], "units": ["um"] * 3}),
        (np.ones((3, 2, 2, 2), np.float32), {"resolution": [8, 8, 8], "units": "parsec"}),
        (np.full((3, 2, 2, 2), 3, np.float32), {"resolution": [8, 8, 8]}),
    ],
)
def test_affinities_that_do_not_qualify_are_refused(client, tmp_path, array, attributes):
    zarr.create_array(tmp_path / "a.zarr", data=array, attributes=attributes)
    with pytest.raises(ValueError, match="affinities"):
        segment_blocks(client, tmp_path / "a.zarr", tmp_path / "run", 0.5, progress=False)


def test_what_is_no_array_of_affinities_is_refused_with_what_it_is(client, tmp_path):
    (tmp_path / "a.h5").touch()
    zarr.create_group(tmp_path / "group.zarr").create_array("affinities", shape=(3, 2, 2, 2), dtype="f4")
    for name, what in (("a.h5", "a file"), ("none.zarr", "missing"), ("group.zarr", r"group with \['affinities'\]")):
        with pytest.raises(ValueError, match=rf"{name}: affinities are a Zarr array.*{what}"):
            segment_blocks(client, tmp_path / name, tmp_path / "run", 0.5, progress=False)


def test_chunks_that_strangers_affinities_lack_are_mentioned(client, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    array = affinities_from_labels(make_phantom((8, 64, 64), seed=3).labels).astype(np.float32)
    zarr.create_array(tmp_path / "a.zarr", data=array, chunks=(3, 8, 32, 32), attributes={"resolution": [40, 8, 8]})
    (tmp_path / "a.zarr/c/0/0/1/1").unlink()
    with pytest.warns(UserWarning, match=r"a.zarr: 1 of 4 chunks are not on disk and read as 0"):
        segment_blocks(client, "~/a.zarr", "~/run", 0.5, (8, 32, 32), progress=False)
    assert (tmp_path / "run/neurons.zarr").is_dir()


@given(st.integers(0, 10**6), st.floats(0.1, 0.9))
@settings(max_examples=25)
def test_the_graph_is_merged_as_waterz_merges_it(seed, threshold):
    rng = np.random.default_rng(seed)
    array, start = rng.random((3, 3, 6, 6), np.float32), rng.integers(1, 15, (3, 6, 6)).astype(np.uint64)
    faces = {}
    for axis in range(3):
        here, before = np.moveaxis(start, axis, 0)[1:], np.moveaxis(start, axis, 0)[:-1]
        for a, b, value in zip(here.flat, before.flat, np.moveaxis(array[axis], axis, 0)[1:].flat, strict=True):
            if a != b:
                faces.setdefault((min(a, b), max(a, b)), []).append(float(value))
    pairs, sums = np.array([*faces], int), np.array([sum(values) for values in faces.values()])
    merged = agglomerate(pairs, sums, np.array([len(values) for values in faces.values()]), 15, threshold)
    assert same_partition(merged[start.astype(int)], sweep(array, ISOTROPIC, [threshold], start)[threshold])


def test_a_graph_without_faces_stays_as_it_is():
    empty = np.zeros(0)
    assert agglomerate(np.zeros((0, 2), int), empty, empty, 3, 0.5).tolist() == [0, 1, 2]


def test_borders_of_blocks_cost_little_on_real_em(client, em_data, tmp_path):
    """Twin: `test_borders_of_blocks_cost_little`. The whole part is measured by tools/benchmarks/bench_blocks.py."""
    with h5py.File(em_data / "val" / "fib25_t2_val_z144-183.h5") as file:
        raw, labels = (file[key][:16, :160, :160] for key in ("volumes/raw", "volumes/labels/neuron_ids"))
    array = predict(load_pretrained(), raw, progress=False).refined
    path = saved(tmp_path / "a.zarr", array, (10.0, 10.0, 10.0))
    threshold = pretrained_threshold()
    scores = [evaluate(neurons(client, path, tmp_path / str(n), (16, n, n), threshold), labels) for n in (160, 80)]
    single, four = (score.voi_split + score.voi_merge for score in scores)
    assert abs(single - four) <= 0.02
