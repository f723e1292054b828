"""Blocks cover a volume once, and the journal knows what is done whatever happened before."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import h5py
import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

from fgnet_lib.files.atomic import load_arrays
from fgnet_lib.files.formats import read_volume
from fgnet_lib.files.locks import inside, lock
from fgnet_lib.memory import peak_bytes
from fgnet_lib.scale.grid import Grid
from fgnet_lib.scale.journal import Journal, Seconds, process_block
from fgnet_lib.volumes import Region

sizes = st.tuples(*[st.integers(1, 9)] * 3)


@given(sizes, sizes)
def test_blocks_cover_every_voxel_once(shape, block):
    grid, seen = Grid(shape, block), np.zeros(shape, int)
    assert grid.block == tuple(np.minimum(block, shape))  # memory and files are for no more than the volume
    for index in range(len(grid)):
        seen[grid.region(index)] += 1
        assert grid.region(index).voxels <= np.prod(block)
        assert grid.index(grid.position(index)) == index
    assert (seen == 1).all()


@given(sizes, sizes, sizes, sizes)
def test_blocks_that_overlap_a_region_are_those_that_share_a_voxel_with_it(shape, block, start, size):
    grid, start = Grid(shape, block), [a % n for a, n in zip(start, shape, strict=True)]
    region = Region.at(start, size).intersect(Region.whole(shape))
    assert grid.overlapping(region) == [i for i in range(len(grid)) if grid.region(i).intersect(region).voxels]


@given(sizes, sizes, sizes)
def test_a_halo_ends_with_the_volume(shape, block, halo):
    grid = Grid(shape, block)
    for index in range(len(grid)):
        for grown, own, n, h in zip(grid.region(index, halo), grid.region(index), shape, halo, strict=True):
            assert grown == slice(max(own.start - h, 0), min(own.stop + h, n))


@pytest.mark.parametrize("block", [(0, 4, 4), (4, 4)])
def test_impossible_blocks_are_refused(block):
    with pytest.raises(ValueError, match="z, y, x"):
        Grid((8, 8, 8), block)


class Doubling:
    """A step in memory: a block of ones becomes twos."""

    name = "doubling"

    def __init__(self, folder):
        self.folder, self.grid, self.data, self.calls = folder, Grid((4, 2, 2), (2, 2, 2)), np.ones((4, 2, 2)), 0

    def settings(self):
        return {"factor": 2}

    def read(self, index):
        return np.ones((2, 2, 2))

    def compute(self, index, data):
        self.calls += 1
        return {"data": 2 * data}

    def write(self, index, result):
        self.data[self.grid.region(index)] = result["data"]

    def load(self, index):
        return {"data": self.data[self.grid.region(index)]}


def test_a_block_is_done_once_and_again_only_when_its_data_changed(tmp_path):
    step = Doubling(tmp_path)
    journal = Journal(tmp_path, step.name)
    journal.begin(step.settings())
    assert journal.missing(step.grid) == [0, 1]
    assert [process_block(step, 1).kept for _ in range(3)] == [False, True, True]
    assert step.calls == 1 and journal.missing(step.grid) == [0]
    step.data[3, 0, 0] += 1
    assert not process_block(step, 1).kept
    assert step.calls == 2 and step.data[3, 0, 0] == 2


def test_seconds_of_blocks_are_added_up():
    seconds = Seconds(1, 2, 4) + Seconds(8, 16, 32)
    assert seconds == Seconds(9, 18, 36) and seconds.total() == 63


def test_one_block_is_read_while_another_computes_and_no_two_compute_at_once(tmp_path):
    class Meeting(Doubling):
        read_of, computing = {0: threading.Event(), 1: threading.Event()}, 0

        def read(self, index):
            self.read_of[index].set()
            return super().read(index)

        def compute(self, index, data):
            self.computing += 1
            met = self.read_of[1 - index].wait(30)
            assert met and self.computing == 1
            self.computing -= 1
            return super().compute(index, data)

    step = Meeting(tmp_path)
    Journal(tmp_path, step.name).begin(step.settings())
    with ThreadPoolExecutor(2) as pool:
        assert [done.kept for done in pool.map(partial(process_block, step), range(2))] == [False, False]


@pytest.mark.parametrize("note", ["", "12"])
def test_a_note_that_is_damaged_or_wrong_is_not_trusted(tmp_path, note):
    step = Doubling(tmp_path)
    Journal(tmp_path, step.name).begin(step.settings())
    process_block(step, 0)
    next((tmp_path / "journal").rglob("done/0/0")).write_text(note)
    assert not process_block(step, 0).kept


def test_other_settings_are_refused_and_named(tmp_path):
    journal = Journal(tmp_path, "predict")
    journal.begin({"block": [1, 2, 3], "tile": 4})
    journal.begin({"block": [1, 2, 3], "tile": 4})
    with pytest.raises(ValueError, match=r"tile was 4, is now 5; new was None, is now 1\."):
        journal.begin({"block": [1, 2, 3], "tile": 5, "new": 1})


def test_settings_that_were_cut_are_named_with_the_remedy(tmp_path):
    journal = Journal(tmp_path, "predict")
    journal.begin({"tile": 4})
    settings = journal.folder / "settings.json"
    settings.write_text(settings.read_text()[:6])
    with pytest.raises(ValueError, match=r"settings.json is damaged .*remove .* and run again"):
        journal.begin({"tile": 4})


def test_an_error_that_is_kept_keeps_no_array_of_its_block(tmp_path):
    seen = []

    class Failing(Doubling):
        def read(self, index):
            data = np.ones((2, 2, 2))
            seen.append(weakref.ref(data))
            return data

        def compute(self, index, data):
            raise MemoryError

    step = Failing(tmp_path)
    Journal(tmp_path, step.name).begin(step.settings())
    with pytest.raises(MemoryError) as kept:
        process_block(step, 0)
    assert seen[0]() is None and kept.traceback[-1].name == "compute"


def test_a_worker_that_outlived_its_run_writes_nothing(tmp_path):
    step = Doubling(tmp_path)
    Journal(tmp_path, step.name).begin({"factor": 3})
    with pytest.raises(RuntimeError, match="other settings"):
        process_block(step, 0)
    shutil.rmtree(tmp_path / "journal")
    with pytest.raises(RuntimeError, match="was removed while this run"):
        process_block(step, 0)
    assert (step.data == 1).all()


@pytest.mark.slow
def test_a_process_does_not_count_the_memory_of_its_parent():
    def peak_of_child() -> int:
        code = "from fgnet_lib.memory import peak_bytes; print(peak_bytes())"
        return int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)

    before, held = peak_of_child(), np.ones(40_000_000)  # 320 MB
    assert peak_of_child() < before + held.nbytes / 2 and held.nbytes < peak_bytes()


@pytest.mark.parametrize("late", ["compute", "write"])
def test_a_worker_whose_run_ends_while_it_works_notes_nothing(tmp_path, late):
    class Late(Doubling):
        def end(self, when):
            if when == late:
                (tmp_path / "journal" / self.name / "settings.json").write_text('{"factor": 3}')

        def compute(self, index, data):
            self.end("compute")
            return super().compute(index, data)

        def write(self, index, result):
            super().write(index, result)
            self.end("write")

    step, journal = Late(tmp_path), Journal(tmp_path, Late.name)
    journal.begin(step.settings())
    with pytest.raises(RuntimeError, match="factor was 3, is now 2"):
        process_block(step, 0)
    assert journal.checksum(0) is None and (step.data[0, 0, 0] == 1) == (late == "compute")


def test_what_reads_back_other_than_it_was_computed_is_not_noted(tmp_path):
    class Lossy(Doubling):
        def write(self, index, result):
            super().write(index, result)
            self.data[self.grid.region(index)][0, 0, 0] = 0

    step, journal = Lossy(tmp_path), Journal(tmp_path, Lossy.name)
    journal.begin(step.settings())
    with pytest.raises(OSError, match="reads back"):
        process_block(step, 0)
    assert journal.checksum(0) is None


def test_a_second_run_is_refused_and_told_who_is_there(tmp_path):
    load = "from pathlib import Path; from fgnet_lib.files.locks import lock"
    code = f"{load}\nwith lock(Path({str(tmp_path)!r})): pass"
    with lock(tmp_path):
        other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert other.returncode and "is being written by process" in other.stderr
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_link_out_of_the_folder_is_refused(tmp_path):
    folder, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    folder.mkdir(), elsewhere.mkdir()
    (folder / "affinities.zarr").symlink_to(elsewhere)
    with pytest.raises(ValueError, match="leads out of"):
        inside(folder, "affinities.zarr")
    with pytest.raises(ValueError, match="leads out of"):
        inside(folder, "../elsewhere")
    assert inside(folder, "neurons.zarr") == folder / "neurons.zarr"


@pytest.mark.parametrize("name", ["lock", "journal", "journal/doubling/done"])
def test_neither_lock_nor_journal_is_written_through_a_link(tmp_path, name):
    folder, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    (folder / name).parent.mkdir(parents=True)
    elsewhere.write_text("precious") if name == "lock" else elsewhere.mkdir()
    (folder / name).symlink_to(elsewhere)
    step = Doubling(folder)
    with pytest.raises(ValueError, match="leads out of"), lock(folder):
        Journal(folder, step.name).begin(step.settings())
        process_block(step, 0)
    assert elsewhere.read_text() == "precious" if name == "lock" else not list(elsewhere.iterdir())


def external_storage(file, folder):
    (folder / "secret").write_bytes(bytes(64))
    file.create_dataset("raw", (4, 4, 4), "uint8", external=[(str(folder / "secret"), 0, 64)])


def external_link(file, folder):
    with h5py.File(folder / "other.h5", "w") as other:
        other["raw"] = np.zeros((4, 4, 4), np.uint8)
    file["raw"] = h5py.ExternalLink(str(folder / "other.h5"), "raw")


def virtual(file, folder):
    external_link(file, folder)
    layout = h5py.VirtualLayout((4, 4, 4), "uint8")
    layout[:] = h5py.VirtualSource(str(folder / "other.h5"), "raw", (4, 4, 4))
    del file["raw"]
    file.create_virtual_dataset("raw", layout)


@pytest.mark.parametrize("trick", [external_storage, external_link, virtual])
def test_a_file_cannot_name_other_files_to_be_read(tmp_path, trick):
    with h5py.File(tmp_path / "volume.h5", "w") as file:
        trick(file, tmp_path)
    with pytest.raises(ValueError, match="from another file"):
        read_volume(tmp_path / "volume.h5", voxel_size=(8, 8, 8))


class Code:
    """Unpickled, it leaves a file behind."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return open, (str(self.mark), "w")


@pytest.mark.parametrize("place", ["compressor", "filters"])
def test_a_zarr_that_would_run_code_is_refused(tmp_path, place):
    path, mark = tmp_path / "volume.zarr", tmp_path / "mark"
    zarr.create_array(path, shape=(4, 4, 4), chunks=(4, 4, 4), dtype="uint8", zarr_format=2, compressors=None)
    codec = {"id": "pickle"}
    metadata = json.loads((path / ".zarray").read_text()) | {place: codec if place == "compressor" else [codec]}
    (path / ".zarray").write_text(json.dumps(metadata))
    (path / "0.0.0").write_bytes(pickle.dumps(Code(mark)))
    with pytest.raises(ValueError):
        read_volume(path, voxel_size=(8, 8, 8)).load()
    assert not mark.exists()


def test_faces_and_tables_are_numbers(tmp_path):
    np.savez(tmp_path / "faces.npz", ids=np.array([Code(tmp_path / "mark")]))
    with pytest.raises(ValueError, match="allow_pickle"):
        load_arrays(tmp_path / "faces.npz")
    assert not (tmp_path / "mark").exists()
