"""Data sets by name: found in your data folder or the cache, downloaded and verified if not, opened as a `Volume`.

`data/registry.tsv` lists every file that can be fetched, with its licence and what to cite. Environment variables say
where files lie: FGNET_DATA_DIR is your own folder, which is only read; downloads go to FGNET_CACHE_DIR, or to `cache`
in FGNET_HOME, a folder for all that should outlive a session.
"""

from __future__ import annotations

import csv
import io
import os
import shutil
import warnings
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pooch
from tqdm.auto import tqdm

from fgnet_lib import REPOSITORY, phantom
from fgnet_lib.files.atomic import atomic
from fgnet_lib.files.formats import read_volume, write_volume
from fgnet_lib.files.locks import lock
from fgnet_lib.volumes import Volume

REGISTRY = REPOSITORY / "data" / "registry.tsv"
LARGEST = 2**34  # bytes that a download may have whose size the registry does not know
OFFLINE = "Without internet, DATASET=phantom and the weights in data/pretrained need no download."

DATASETS = ("phantom", "fib25", "gala", "ac4", "cremi_b_mini", "cremi_a", "cremi_b", "cremi_c", "snemi3d")
PHANTOMS = {"train": ((64, 256, 256), 0), "val": ((32, 256, 256), 1), "deep": ((64, 256, 256), 6)}  # shape, seed
CROPS = {  # small crops of public data sets, in your data folder
    ("fib25", "train"): "train/fib25_t2_train_z000-139.h5",
    ("fib25", "val"): "val/fib25_t2_val_z144-183.h5",
    ("fib25", "unlabelled"): "unlabelled/fib25_validation_sample_z000-239.h5",
    ("gala", "train"): "train/gala_train.h5",
    ("gala", "val"): "val/gala_test.h5",
    ("ac4", "val"): "val/ac4_dojo_10x400x400.h5",
    ("cremi_b_mini", "val"): "val/cremi_b_mini_5x500x500.h5",
}
SECTIONS = {  # first and last + 1 of the sections of a download; the rest of fib25 is a test that nobody looks at
    ("fib25", "train"): (0, 140),
    ("fib25", "val"): (144, 184),
    ("fib25", "unlabelled"): (0, 240),
    **{(f"cremi_{sample}", "train"): (0, 100) for sample in "abc"},
    **{(f"cremi_{sample}", "val"): (100, 125) for sample in "abc"},
    ("snemi3d", "train"): (0, 80),
    ("snemi3d", "val"): (80, 100),
}


def cache_dir() -> Path:
    """Name the folder for downloads and phantoms: FGNET_CACHE_DIR, or in FGNET_HOME, or the system's cache folder."""
    home = named_folder("FGNET_HOME")
    return named_folder("FGNET_CACHE_DIR") or (home / "cache" if home else Path(pooch.os_cache("fgnet-tutorials")))


def results_dir() -> Path:
    """Name the folder for results: `out` in FGNET_HOME, or else in the repository."""
    return (named_folder("FGNET_HOME") or REPOSITORY) / "out"


def data_dir() -> Path | None:
    """Name your own folder of data sets, FGNET_DATA_DIR; None if the variable is not set, or empty.

    Raises:
        OSError: the variable names no folder, or a folder that cannot be read; says which.
    """
    name = os.environ.get("FGNET_DATA_DIR")
    return check_data_dir(name, "FGNET_DATA_DIR") if name else None


def check_data_dir(name: object, variable: str) -> Path:
    """Return the folder of data sets that a setting names, with `~` expanded, if it can be read.

    Raises:
        FileNotFoundError: there is no such folder.
        PermissionError: you may not list the folder.
    """
    folder = expand_home(name, variable)
    advice = "name the folder that holds your data sets"
    if not os.path.isdir(folder):
        reason = "a file, not a folder" if os.path.isfile(folder) else "not a folder"
        raise FileNotFoundError(f"{variable} {name!r} is {reason}: {advice}, or leave {variable} empty")
    if not os.access(folder, os.R_OK | os.X_OK):
        raise PermissionError(f"{variable} {name!r} cannot be read by you: ask its owner for access, or {advice}")
    return folder


def named_folder(variable: str) -> Path | None:
    """Read the folder that an environment variable names; None if the variable is not set, or empty."""
    name = os.environ.get(variable)
    return expand_home(name, variable) if name else None


def expand_home(name: object, variable: str) -> Path:
    """Return the path that a setting names, with `~` replaced by the home folder, which no shell does in a notebook.

    Raises:
        FileNotFoundError: the path begins with the home folder of an unknown user.
    """
    try:
        return Path(str(name)).expanduser()  # papermill makes a number of the folder 2024
    except RuntimeError as error:
        raise FileNotFoundError(f"{variable} {name!r} begins with ~, and its home folder is unknown") from error


def fetch(name: str, download: bool = True) -> Path:
    """Find a file of the registry on this machine, or download it, and give its path.

    FGNET_DATA_DIR comes first, then the cache; downloads go into the cache. Size and checksum are verified every time;
    a download that is broken off or wrong leaves nothing behind.

    Args:
        name: as in `data/registry.tsv`.
        download: False raises FileNotFoundError where a download would begin.

    Raises:
        ValueError: a name that is not in the registry, or a file in FGNET_DATA_DIR that is not what it should be.
        FileNotFoundError: not here, and `download` is False.
        OSError: FGNET_DATA_DIR is not a folder that can be read; or the download failed, and the message says where to
            put the file by hand and what works offline.
    """
    entries = _registry()
    if name not in entries:
        raise ValueError(f"unknown file {name!r}: choose one of {', '.join(entries)}")
    entry, cached, folder = entries[name], cache_dir() / name, data_dir()
    own = folder / name if folder else None
    if own and own.is_file():
        if difference := _difference(own, entry):
            raise ValueError(f"{own}: {difference}. Remove it, or replace it by {entry['url']}")
        return own
    wrong = _difference(cached, entry) if cached.is_file() else None
    if wrong == "":
        return cached
    by_hand = f"{cached} is there, but is not this file: {wrong}. " if wrong else ""
    by_hand += (
        f"To put it there by hand, save {entry['url']} as {cached}{f' or {own}' if own else ''}; "
        f"FGNET_CACHE_DIR names another folder for downloads. {OFFLINE}"
    )
    if not download:
        raise FileNotFoundError(f"{name} is not on this machine. {by_hand}")
    try:
        _download(name, entry, cached)
    except (OSError, ValueError) as error:  # requests raises OSErrors, and ValueErrors for headers that make no sense
        raise OSError(f"{name} could not be downloaded: {error}. {by_hand}") from error
    return cached


def open_dataset(name: str, part: str) -> Volume:
    """Open a part of a data set as a lazy `Volume`.

    fib25, gala, ac4 and cremi_b_mini are small crops that are looked for in FGNET_DATA_DIR. fib25, cremi_a, cremi_b,
    cremi_c and snemi3d can be downloaded. The phantom is generated once and cached.

    Args:
        name: one of `DATASETS`.
        part: "train" or "val"; of fib25 also "unlabelled", other tissue without labels, for pretraining; of the phantom
            also "deep", for views in 3D.

    Raises:
        ValueError: an unknown name, or a part that the data set does not have.
        FileNotFoundError: a crop that is not in FGNET_DATA_DIR and nowhere else.
        OSError: FGNET_DATA_DIR is not a folder that can be read, or a download failed.
    """
    if name not in DATASETS:
        raise ValueError(f"unknown data set {name!r}: choose one of {', '.join(DATASETS)}")
    if part not in _parts(name):
        having = [other for other in DATASETS if part in _parts(other)]
        others = f", or another data set: {part!r} is a part of {', '.join(having)}" if having else ""
        raise ValueError(f"{name} has no part {part!r}: choose one of {', '.join(_parts(name))}{others}")
    if name == "phantom":
        return _open_phantom(part)
    crop, folder = CROPS.get((name, part)), data_dir()
    if crop and folder and (folder / crop).is_file():
        return read_volume(folder / crop)
    if (name, part) in SECTIONS:
        return _open_download(name, part).sections(*SECTIONS[name, part])
    raise FileNotFoundError(
        f"no {crop} in FGNET_DATA_DIR ({folder or 'which is not set'}), and {name} cannot be downloaded. {OFFLINE}"
    )


def _parts(name: str) -> list[str]:
    """List the parts of a data set."""
    return list(dict.fromkeys(part for dataset, part in (CROPS | SECTIONS) if dataset == name)) or list(PHANTOMS)


def _registry() -> dict[str, dict[str, str]]:
    with REGISTRY.open(encoding="utf-8", newline="") as file:
        return {row["name"]: row for row in csv.DictReader(file, delimiter="\t")}


def _difference(path: Path, entry: dict[str, str]) -> str:
    """Say how a file differs from its registry entry; empty if it does not."""
    size = path.stat().st_size
    if entry["bytes"] and size != int(entry["bytes"]):
        return f"{size} bytes, but it should have {entry['bytes']}"
    kind = "sha256" if entry["sha256"] else "md5"
    checksum = pooch.file_hash(str(path), alg=kind)
    return "" if checksum == entry[kind] else f"its {kind} is {checksum}, but should be {entry[kind]}"


class _Limited(io.BufferedWriter):
    """A new file that refuses to grow beyond its size, or `LARGEST` if that is unknown: a server may never stop."""

    def __init__(self, path: Path, size: int | None) -> None:
        super().__init__(io.FileIO(path, "w"))
        self.most = size or LARGEST
        self.source = "the size in the registry" if size else "more than any file of the registry has"

    def write(self, content: Any) -> int:
        if self.tell() + len(content) > self.most:
            raise OSError(f"the server sends more than {self.most} bytes, {self.source}")
        return super().write(content)


def _download(name: str, entry: dict[str, str], path: Path) -> None:
    size = int(entry["bytes"] or 0) or None
    # until the server says better, the bar has a total of 1: a bar without a total breaks pooch
    with atomic(path) as part, tqdm(desc=name, total=size or 1, unit="B", unit_scale=True) as bar:
        with _Limited(part, size) as file:
            pooch.HTTPDownloader(progressbar=bar, chunk_size=2**20, timeout=30)(entry["url"], file, None)
        if difference := _difference(part, entry):
            raise OSError(f"what came from {entry['url']} is not the file in the registry: {difference}")


def _open_download(name: str, part: str) -> Volume:
    if (name, part) == ("fib25", "unlabelled"):
        return read_volume(fetch("fib25/validation_sample/grayscale_maps.h5"), voxel_size=(10, 10, 10))
    if name == "fib25":
        raw, labels = (fetch(f"fib25/training_sample2/{file}.h5") for file in ("grayscale_maps", "groundtruth"))
        return read_volume(raw, labels_path=labels, voxel_size=(10, 10, 10))
    if name == "snemi3d":
        raw, labels = (_unzip(fetch("snemi.zip"), member) for member in ("train-input.tif", "train-labels.tif"))
        return read_volume(raw, labels_path=labels, voxel_size=(30, 6, 6))
    return read_volume(fetch(f"sample_{name[-1].upper()}_20160501.hdf"))


def _unzip(archive: Path, file: str) -> Path:
    """Unpack a file of a zip archive into the cache, whatever its folder in the archive, and give its path.

    A file that is in the cache already is compared with the archive, so that a damaged one is unpacked again.
    """
    path = cache_dir() / archive.stem / file
    with zipfile.ZipFile(archive) as zipped:
        member = next(info for info in zipped.infolist() if Path(info.filename).name == file)
        if not path.is_file() or _crc(path) != member.CRC:
            with atomic(path) as part, zipped.open(member) as source, part.open("wb") as target:
                shutil.copyfileobj(source, target)
    return path


def _crc(path: Path) -> int:
    with path.open("rb") as file:
        crc = 0
        while block := file.read(2**20):
            crc = zlib.crc32(block, crc)
        return crc


def _open_phantom(part: str) -> Volume:
    """Read the phantom from the cache; generate it again if it is missing, of an older recipe, or not as written.

    The file's checksum lies beside it and is compared before HDF5 reads anything: a damaged file could give other
    voxels, and HDF5 would not notice.
    """
    shape, seed = PHANTOMS[part]
    recipe = f"{'x'.join(map(str, shape))}_{seed}_{pooch.file_hash(phantom.__file__)[:8]}"
    path = cache_dir() / f"phantom_{part}_{recipe}.h5"
    mark = path.with_suffix(".sha256")
    try:
        if mark.read_bytes() == _mark(path):
            return replace(read_volume(path).load(), name=f"phantom {part}")
        warnings.warn(f"{path} is not the phantom that was written there: it is generated again", stacklevel=3)
    except OSError:
        pass  # nothing there, or nothing that can be read: writing says more
    volume = phantom.make_phantom(shape, seed)
    try:
        with lock(path.parent, wait=True):  # others may make it at the same time, and have done so
            if not (path.is_file() and mark.is_file() and mark.read_bytes() == _mark(path)):
                path.unlink(missing_ok=True)  # `write_volume` replaces no file that it cannot read
                write_volume(volume, path)
                with atomic(mark) as marked:
                    marked.write_bytes(_mark(path))
    except OSError as error:
        advice = "Set FGNET_CACHE_DIR to a folder of yours with space, or it is generated every time"
        warnings.warn(f"the phantom cannot be kept in {path.parent} ({error}). {advice}", stacklevel=3)
    return replace(volume, name=f"phantom {part}")


def _mark(path: Path) -> bytes:
    """A line as `sha256sum` writes it: the checksum of a file, and its name."""
    return f"{pooch.file_hash(str(path))}  {path.name}\n".encode()
