from __future__ import annotations

import hashlib
import io
import os
import threading
import warnings
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import h5py
import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fgnet_lib import datasets, phantom
from fgnet_lib.datasets import DATASETS, fetch, open_dataset
from fgnet_lib.files import locks
from fgnet_lib.files.formats import read_volume, write_volume
from fgnet_lib.volumes import Volume

CONTENT = np.random.default_rng(0).bytes(3_000_000)
NAME = "folder/file.h5"


class Server(BaseHTTPRequestHandler):
    """Serves CONTENT; /half promises all of it and hangs up in the middle, /endless sends as long as somebody reads."""

    asked: list[str] = []
    sent = 0  # bytes, by /endless

    def do_GET(self):
        self.asked.append(self.path)
        if self.path == "/gone":
            return self.send_error(404)
        self.send_response(200)
        if self.path != "/endless":
            self.send_header("Content-Length", "abc" if self.path == "/odd" else str(len(CONTENT)))
        self.end_headers()
        while self.path == "/endless" and Server.sent < 1000 * len(CONTENT):
            self.wfile.write(CONTENT)
            Server.sent += len(CONTENT)
        self.wfile.write(CONTENT[: len(CONTENT) // 2] if self.path == "/half" else CONTENT)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    Server.asked, Server.sent = [], 0
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as running:
        threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """An empty data folder and an empty cache."""
    data, cache = tmp_path / "data", tmp_path / "cache"
    data.mkdir()
    cache.mkdir()
    monkeypatch.setenv("FGNET_DATA_DIR", str(data))
    monkeypatch.setenv("FGNET_CACHE_DIR", str(cache))
    return data, cache


@pytest.fixture
def register(tmp_path, monkeypatch):
    """Replace the registry by one entry."""

    def write(url, name=NAME, content=CONTENT, **changes):
        sha256 = hashlib.sha256(content).hexdigest()
        entry = {"name": name, "url": url, "bytes": len(content), "sha256": sha256, "md5": ""} | changes
        monkeypatch.setattr(datasets, "REGISTRY", tmp_path / "registry.tsv")
        lines = ("\t".join(map(str, row)) for row in (entry.keys(), entry.values()))
        datasets.REGISTRY.write_text("\n".join(lines) + "\n")

    return write


def files(folder):
    paths = (path for path in folder.rglob("*") if path.is_file() and path.name != locks.NAME)
    return sorted(str(path.relative_to(folder)) for path in paths)


# --- fetch -----------------------------------------------------------------------------------------------------------


def test_a_download_is_verified_cached_and_shows_its_progress(server, folders, register, capsys):
    register(f"{server}/file")
    path = fetch(NAME)
    assert path == folders[1] / NAME and path.read_bytes() == CONTENT and files(folders[1]) == [NAME]
    assert NAME in capsys.readouterr().err
    assert fetch(NAME) == path and Server.asked == ["/file"]


def test_md5_serves_where_only_that_is_known(server, folders, register):
    register(f"{server}/file", bytes="", sha256="", md5=hashlib.md5(CONTENT).hexdigest())
    assert fetch(NAME).read_bytes() == CONTENT
    register(f"{server}/file", bytes="", sha256="", md5="0" * 32)
    with pytest.raises(OSError, match="its md5 is"):
        fetch(NAME)


def test_the_data_folder_goes_first(server, folders, register):
    register(f"{server}/file")
    for folder in folders:
        (folder / "folder").mkdir()
        (folder / NAME).write_bytes(CONTENT)
    assert fetch(NAME) == folders[0] / NAME and Server.asked == []


def test_a_wrong_file_in_the_data_folder_is_named_and_left_alone(folders, register):
    register("http://127.0.0.1:1/file")
    own = folders[0] / NAME
    own.parent.mkdir()
    for content, complaint in ((CONTENT[:-1], "2999999 bytes.*3000000"), (CONTENT[:-1] + b"x", "its sha256 is")):
        own.write_bytes(content)
        with pytest.raises(ValueError, match=f"data/folder/file.h5: {complaint}"):
            fetch(NAME)
        assert own.read_bytes() == content


def test_a_broken_file_in_the_cache_is_downloaded_again(server, folders, register):
    register(f"{server}/file")
    cached = folders[1] / NAME
    cached.parent.mkdir()
    cached.write_bytes(CONTENT[:-1])
    assert fetch(NAME).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("page", "changes", "complaint"),
    [
        ("/half", {}, "IncompleteRead|3000000"),
        ("/file", {"sha256": "0" * 64}, "sha256 is"),
        ("/file", {"bytes": 17}, "the server sends more than 17 bytes, the size in the registry"),
        ("/file", {"bytes": 3_000_001}, "3000000 bytes, but it should have 3000001"),
        ("/endless", {}, "the server sends more than 3000000 bytes"),
        ("/endless", {"bytes": ""}, "the server sends more than 4000000 bytes, more than any file of the registry has"),
        ("/odd", {}, "abc"),
        ("/gone", {}, "404"),
    ],
)
def test_a_failed_download_leaves_nothing_and_says_what_to_do(
    server, folders, register, monkeypatch, page, changes, complaint
):
    register(server + page, **changes)
    monkeypatch.setattr(datasets, "LARGEST", 4_000_000)
    with pytest.raises(OSError, match=complaint) as error:
        fetch(NAME)
    assert_helpful(str(error.value), server + page, folders)
    assert files(folders[1]) == []
    assert Server.sent < 20 * len(CONTENT)  # what the buffers between us hold, not what a disk holds


def test_a_failed_download_keeps_what_is_in_the_cache(server, folders, register):
    register(f"{server}/half")
    (folders[1] / "folder").mkdir()
    (folders[1] / NAME).write_bytes(b"an older version")
    with pytest.raises(OSError, match="could not be downloaded"):
        fetch(NAME)
    assert (folders[1] / NAME).read_bytes() == b"an older version" and files(folders[1]) == [NAME]


def test_no_internet_says_what_to_do(folders, register, monkeypatch):
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    url = "http://127.0.0.1:1/file"  # nobody listens there
    register(url)
    with pytest.raises(OSError, match="could not be downloaded") as error:
        fetch(NAME)
    assert_helpful(str(error.value), url, folders)


def assert_helpful(message, url, folders):
    assert message.startswith(f"{NAME} could not be downloaded")
    own, cached = (str(folder / NAME) for folder in folders)
    for hint in (url, own, cached, "FGNET_CACHE_DIR", "DATASET=phantom", "data/pretrained"):
        assert hint in message


def test_nothing_is_downloaded_when_asked_not_to(server, folders, register):
    register(f"{server}/file")
    with pytest.raises(FileNotFoundError, match="not on this machine"):
        fetch(NAME, download=False)
    assert Server.asked == []


def test_a_wrong_file_that_was_put_there_by_hand_is_named(server, folders, register):
    register(f"{server}/file")
    (folders[1] / NAME).parent.mkdir(parents=True, exist_ok=True)
    (folders[1] / NAME).write_bytes(b"<html>")
    with pytest.raises(FileNotFoundError, match=f"{NAME} is there, but is not this file: 6 bytes, but it should have"):
        fetch(NAME, download=False)


@pytest.mark.parametrize(
    ("value", "reason"), [(" ", "not a folder"), ("typo", "not a folder"), ("file", "a file, not")]
)
def test_a_data_folder_that_is_none_is_named_before_a_download_begins(server, folders, register, value, reason):
    register(f"{server}/file")
    (folders[0] / "file").touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folders[0])
        patch.setenv("FGNET_DATA_DIR", value)
        for use in (lambda: fetch(NAME), lambda: open_dataset("fib25", "val"), lambda: open_dataset("gala", "val")):
            with pytest.raises(FileNotFoundError, match=f"FGNET_DATA_DIR '{value}' is {reason}"):
                use()
    assert Server.asked == [] and files(folders[1]) == []


def test_a_data_folder_that_cannot_be_read_is_named(folders, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may read everywhere
    with pytest.raises(PermissionError, match="FGNET_DATA_DIR .*data' cannot be read by you"):
        open_dataset("fib25", "val")


def test_the_home_folder_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "em").mkdir()
    monkeypatch.delenv("FGNET_CACHE_DIR", raising=False)
    for variable in ("FGNET_DATA_DIR", "FGNET_HOME"):
        monkeypatch.setenv(variable, "~/em")
    assert datasets.data_dir() == tmp_path / "em"
    assert datasets.cache_dir() == tmp_path / "em" / "cache" and datasets.results_dir() == tmp_path / "em" / "out"
    monkeypatch.setenv("FGNET_CACHE_DIR", "~nobody-here/em")
    with pytest.raises(FileNotFoundError, match="FGNET_CACHE_DIR '~nobody-here/em' begins with ~, and"):
        datasets.cache_dir()


def test_a_cache_that_cannot_be_written_is_named_with_its_variable(server, folders, register, monkeypatch):
    register(f"{server}/file")
    (folders[1] / "file").touch()
    monkeypatch.setenv("FGNET_CACHE_DIR", str(folders[1] / "file" / "cache"))
    with pytest.raises(OSError, match="file/cache.*FGNET_CACHE_DIR"):
        fetch(NAME)


def test_an_unknown_file_is_answered_with_the_list():
    with pytest.raises(ValueError, match="'sam3.pt'.*sam2.1_hiera_tiny.pt.*sample_A_20160501.hdf.*snemi.zip"):
        fetch("sam3.pt")


def test_every_entry_of_the_registry_is_complete():
    entries = datasets._registry()
    assert {f"sam2.1_hiera_{size}.pt" for size in ("tiny", "small", "base_plus", "large")} <= entries.keys()
    for entry in entries.values():
        assert entry["url"].startswith("https://") and entry["licence"] and entry["citation"]
        assert len(entry["sha256"]) == 64 or len(entry["md5"]) == 32


# --- open_dataset ----------------------------------------------------------------------------------------------------


@pytest.fixture
def small_phantoms(monkeypatch):
    """Phantoms that take no time; counts how many were made."""
    made = []
    make = phantom.make_phantom
    monkeypatch.setattr(datasets, "PHANTOMS", {"train": ((4, 32, 32), 0), "val": ((3, 32, 32), 1)})
    monkeypatch.setattr(phantom, "make_phantom", lambda *arguments: made.append(arguments) or make(*arguments))
    return made


def test_the_phantom_is_made_once(folders, small_phantoms):
    first = open_dataset("phantom", "val")
    again = open_dataset("phantom", "val")
    assert small_phantoms == [((3, 32, 32), 1)]
    made = phantom.make_phantom((3, 32, 32), 1)
    for volume in (first, again):
        assert volume.voxel_size == (40.0, 8.0, 8.0)
        np.testing.assert_array_equal(volume.raw, made.raw)
        np.testing.assert_array_equal(volume.labels, made.labels)
    assert open_dataset("phantom", "train").shape == (4, 32, 32)


@st.composite
def damages(draw):
    """A function that damages the bytes of a file: some are replaced, lost or added, anywhere in it."""
    at, span = draw(st.floats(0, 1)), draw(st.integers(1, 4000))
    kind, noise = draw(st.sampled_from(["replace", "lose", "add", "all"])), draw(st.binary(min_size=1, max_size=4000))

    def damage(content: bytes) -> bytes:
        first = int(at * len(content))
        keeps = {"replace": first + len(noise), "lose": first + span, "add": first, "all": len(content)}
        head = b"" if kind == "all" else content[:first]
        return head + (b"" if kind == "lose" else noise) + content[keeps[kind] :]

    return damage


@pytest.mark.slow
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(damage=damages(), suffix=st.sampled_from([".h5", ".sha256"]))
def test_a_damaged_phantom_is_made_again(folders, small_phantoms, damage, suffix):
    """Whatever the damage, in the file or in its checksum: never other voxels, and a word about it."""
    expected = open_dataset("phantom", "val")
    small_phantoms.clear()
    (cached,) = folders[1].glob(f"*{suffix}")
    whole = cached.read_bytes()
    cached.write_bytes(damage(whole))
    if cached.read_bytes() == whole:
        return
    with pytest.warns(UserWarning, match=f"{folders[1]}/phantom_val_.*h5 is not the phantom"):
        volume = open_dataset("phantom", "val")
    np.testing.assert_array_equal(volume.raw, expected.raw)
    np.testing.assert_array_equal(volume.labels, expected.labels)
    open_dataset("phantom", "val")
    assert len(small_phantoms) == 1 and len(files(folders[1])) == 2


def test_another_volume_in_the_phantoms_name_is_not_taken_for_it(folders, small_phantoms):
    volumes = {part: open_dataset("phantom", part) for part in ("val", "train")}
    paths = {part: next(folders[1].glob(f"phantom_{part}_*.h5")) for part in volumes}
    for other in (lambda: paths["train"].read_bytes(), lambda: write_volume(volumes["train"], folders[0] / "x.h5")):
        content = other()
        paths["val"].write_bytes(content if isinstance(content, bytes) else content.read_bytes())
        with pytest.warns(UserWarning, match="generated again"):
            np.testing.assert_array_equal(open_dataset("phantom", "val").raw, volumes["val"].raw)


@pytest.mark.parametrize("lost", [".h5", ".sha256"])
def test_a_phantom_of_which_a_file_is_gone_is_made_again(folders, small_phantoms, lost):
    expected = open_dataset("phantom", "val")
    next(folders[1].glob(f"*{lost}")).unlink()
    np.testing.assert_array_equal(open_dataset("phantom", "val").raw, expected.raw)
    assert len(small_phantoms) == 2 and len(files(folders[1])) == 2


def test_sessions_that_begin_at_once_keep_the_phantom_without_a_word(folders, small_phantoms):
    start = threading.Barrier(6)

    def begin(_):
        start.wait()
        return open_dataset("phantom", "val").raw.sum()

    with warnings.catch_warnings(), ThreadPoolExecutor(6) as pool:
        warnings.simplefilter("error")
        for _ in range(4):
            for file in folders[1].glob("phantom_*"):
                file.unlink()
            assert len({*pool.map(begin, range(6))}) == 1


def test_a_changed_recipe_gives_another_phantom(folders, small_phantoms, monkeypatch):
    open_dataset("phantom", "val")
    monkeypatch.setitem(datasets.PHANTOMS, "val", ((2, 16, 16), 7))
    assert open_dataset("phantom", "val").shape == (2, 16, 16)


def test_without_a_cache_there_is_a_phantom_and_a_word(folders, small_phantoms, monkeypatch):
    expected = open_dataset("phantom", "val")
    cache = next(folders[1].glob("*.h5")) / "cache"  # a folder that cannot be made
    monkeypatch.setenv("FGNET_CACHE_DIR", str(cache))
    with pytest.warns(UserWarning, match=f"cannot be kept in {cache}.*Set FGNET_CACHE_DIR to a folder of yours"):
        volume = open_dataset("phantom", "val")
    assert volume.name == expected.name == "phantom val" and volume.offset == expected.offset
    np.testing.assert_array_equal(volume.labels, expected.labels)


def test_a_phantom_in_the_cache_is_read_without_a_word(folders, small_phantoms):
    open_dataset("phantom", "val")
    with warnings.catch_warnings(action="error"):
        open_dataset("phantom", "val")
    assert len(small_phantoms) == 1


@pytest.mark.parametrize(("name", "part"), [("fib25", "train"), ("fib25", "val"), ("gala", "val"), ("ac4", "val")])
def test_crops_come_from_the_data_folder(folders, name, part):
    volume = Volume(np.zeros((2, 3, 4), np.uint8), (30, 6, 6), np.ones((2, 3, 4), np.uint64))
    path = write_volume(volume, folders[0] / datasets.CROPS[name, part])
    opened = open_dataset(name, part)
    assert opened.shape == (2, 3, 4) and opened.name == path.name and opened.labels is not None


@pytest.mark.parametrize("name", ["gala", "ac4", "cremi_b_mini"])
def test_a_crop_that_is_not_there_says_where_it_should_be(folders, monkeypatch, name):
    with pytest.raises(FileNotFoundError, match=f"{datasets.CROPS[name, 'val']}.*{folders[0]}.*DATASET=phantom"):
        open_dataset(name, "val")
    monkeypatch.delenv("FGNET_DATA_DIR")
    with pytest.raises(FileNotFoundError, match="not set"):
        open_dataset(name, "val")


def fake_cremi():
    shape = (125, 6, 6)
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        for key, dtype in (("volumes/raw", np.uint8), ("volumes/labels/neuron_ids", np.uint64)):
            file[key] = np.broadcast_to(np.arange(125, dtype=dtype)[:, None, None], shape)
            file[key].attrs["resolution"] = (40.0, 4.0, 4.0)
    return buffer.getvalue()


def test_cremi_is_split_by_sections(folders, register):
    content = fake_cremi()
    register("http://127.0.0.1:1", name="sample_B_20160501.hdf", content=content)
    (folders[0] / "sample_B_20160501.hdf").write_bytes(content)
    train, val = (open_dataset("cremi_b", part) for part in ("train", "val"))
    assert val.offset == (4000.0, 0.0, 0.0) and val.voxel_size == (40.0, 4.0, 4.0)
    np.testing.assert_array_equal(train.load().labels[:, 0, 0], np.arange(100))
    np.testing.assert_array_equal(val.load().raw[:, 0, 0], np.arange(100, 125))


def test_snemi3d_is_unpacked_once_and_split_by_sections(folders, register):
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        for member, dtype in (("image/train-input.tif", np.uint8), ("seg/train-labels.tif", np.uint16)):
            stack = io.BytesIO()
            tifffile.imwrite(stack, np.broadcast_to(np.arange(100, dtype=dtype)[:, None, None], (100, 5, 5)).copy())
            file.writestr(member, stack.getvalue())
    register("http://127.0.0.1:1", name="snemi.zip", content=archive.getvalue())
    (folders[0] / "snemi.zip").write_bytes(archive.getvalue())
    train, val = (open_dataset("snemi3d", part) for part in ("train", "val"))
    assert train.voxel_size == (30.0, 6.0, 6.0)
    np.testing.assert_array_equal(train.load().raw[:, 0, 0], np.arange(80))
    np.testing.assert_array_equal(val.load().labels[:, 0, 0], np.arange(80, 100))
    unpacked = ["snemi/train-input.tif", "snemi/train-labels.tif"]
    assert files(folders[1]) == unpacked
    labels = folders[1] / unpacked[1]
    labels.write_bytes(labels.read_bytes()[:-4] + b"\1\2\3\4")  # of the same size
    np.testing.assert_array_equal(open_dataset("snemi3d", "val").load().labels[:, 0, 0], np.arange(80, 100))
    assert zlib.crc32(labels.read_bytes()) == zipfile.ZipFile(archive).getinfo("seg/train-labels.tif").CRC


def test_the_test_sections_of_fib25_stay_closed(folders, monkeypatch):
    """The download has 250 sections; nothing from section 184 on can be reached through a part."""
    sections = np.arange(250, dtype=np.uint8)[:, None, None].repeat(4, 1).repeat(4, 2)
    table = np.stack([np.arange(251), np.arange(251) + 1000], axis=1).astype(np.uint64)
    content = {"grayscale_maps": {"raw": sections}, "groundtruth": {"stack": sections, "transforms": table}}
    for name, arrays in content.items():
        path = folders[0] / f"fib25/training_sample2/{name}.h5"
        path.parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(path, "w") as file:
            for key, array in arrays.items():
                file[key] = array
    monkeypatch.setattr(datasets, "fetch", lambda name: folders[0] / name)
    for part, expected in (("train", np.arange(140)), ("val", np.arange(144, 184))):
        volume = open_dataset("fib25", part)
        assert volume.voxel_size == (10.0, 10.0, 10.0) and volume.offset[0] == 10.0 * expected[0]
        np.testing.assert_array_equal(volume.load().raw[:, 0, 0], expected)
        np.testing.assert_array_equal(volume.load().labels[:, 0, 0], expected + 1000)


def test_unlabelled_sections_are_a_part_of_fib25(folders, monkeypatch):
    path = folders[0] / "grayscale_maps.h5"
    with h5py.File(path, "w") as file:
        file["raw"] = np.arange(250, dtype=np.uint8)[:, None, None].repeat(4, 1).repeat(4, 2)
    monkeypatch.setattr(datasets, "fetch", {"fib25/validation_sample/grayscale_maps.h5": path}.__getitem__)
    volume = open_dataset("fib25", "unlabelled")
    assert volume.labels is None and volume.shape == (240, 4, 4) and volume.voxel_size == (10.0, 10.0, 10.0)


def test_unknown_names_and_parts_are_answered_with_the_list():
    with pytest.raises(ValueError, match="'cremi'.*" + ".*".join(DATASETS)):
        open_dataset("cremi", "val")
    with pytest.raises(ValueError, match="fib25 has no part 'test': choose one of train, val, unlabelled"):
        open_dataset("fib25", "test")
    with pytest.raises(ValueError, match="phantom has no part 'test': choose one of train, val"):
        open_dataset("phantom", "test")
    with pytest.raises(ValueError, match="ac4 has no part 'train': choose one of val, or .* of phantom, fib25, gala"):
        open_dataset("ac4", "train")


def test_real_crops(em_data):
    for name, part in datasets.CROPS:
        volume = open_dataset(name, part)
        assert (volume.labels is None) == (part == "unlabelled")
        assert read_volume(em_data / datasets.CROPS[name, part]).shape == volume.shape
