"""The runs of `make results` on disk: one compressed table, one run a line, and the pictures that lessons show.

A run is a dictionary: row, seed, what was declared, what training took, thresholds, scores on every volume, attention.
`weights` names the shipped weights that a measurement depends on; when they change, it counts as not done.
"""

from __future__ import annotations

import gzip
import json
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from fgnet_lib import REPOSITORY
from fgnet_lib.files.atomic import atomic
from fgnet_lib.files.locks import LockedError, lock
from fgnet_lib.files.stamps import stamp
from fgnet_lib.study.rows import ROWS, SECTIONS, SEEDS
from fgnet_lib.weights import PRETRAINED, fingerprint_weights

RESULTS = REPOSITORY / "docs" / "measured" / "results"
TABLE = "runs.jsonl.gz"
MODEL, STUDENT = "fgnet_mini.safetensors", "student.safetensors"  # files of data/pretrained


def name_weights(*files: str) -> dict[str, str]:
    """Give the fingerprints of files of data/pretrained by their names: what a measurement with them is stored with."""
    return {file: _fingerprint(PRETRAINED / file, str(stamp(PRETRAINED / file))) for file in files}


def is_current(measurement: Mapping[str, Any]) -> bool:
    """Whether a measurement names the weights that it was made with, and they are those that ship today."""
    weights = measurement.get("weights")
    return weights is not None and weights == name_weights(*weights)


@lru_cache(maxsize=8)
def _fingerprint(path: Path, _written: str) -> str:
    """Of a file, computed once for each time that the file is written."""
    return fingerprint_weights(path)


def read_runs(folder: Path = RESULTS) -> list[dict]:
    """All runs in the table of a folder, sorted by row and seed; an empty list where there is no table."""
    if not (folder / TABLE).is_file():
        return []
    return [json.loads(line) for line in gzip.decompress((folder / TABLE).read_bytes()).splitlines()]


def read_current_keys(folder: Path = RESULTS) -> set[tuple[str, int]]:
    """Row and seed of every run in the table of a folder that was made with the weights that ship today."""
    return {(run["row"], run["seed"]) for run in read_runs(folder) if is_current(run)}


def describe_missing(missing: int, declared: int, noun: str, command: str) -> str:
    """Say how many of the declared runs, or whatever `noun` calls them, are missing, and which command makes them."""
    if not missing:
        return f"Every declared {noun} is measured."
    return (
        f"Not measured yet: {missing} of {declared} {noun}s; `{command}` measures them. You may stop that command and "
        "start it again."
    )


def do_missing(runs: Mapping[tuple[str, int], Callable[[], None]], folder: Path, work: Path, minutes: float) -> None:
    """Do the runs that are neither in the table of a folder nor being done by another process; prints which.

    A run in the table that was made with other weights than those that ship today is done again.

    Args:
        runs: row and seed -> what does that run and adds it to the table.
        folder: of the table.
        work: Folder for the locks of runs.
        minutes: Start no run after so long.
    """
    started = time.monotonic()
    for (row, seed), run in runs.items():
        elapsed = (time.monotonic() - started) / 60
        if elapsed >= minutes:
            return
        try:
            with lock(work / f"{row}-{seed}"):
                if (row, seed) not in read_current_keys(folder):
                    print(f"{row}, seed {seed}, after {elapsed:.0f} minutes", flush=True)
                    run()
        except LockedError as error:
            print(f"{row}, seed {seed}: {error}")  # another process does it


def add_runs(runs: Iterable[dict], folder: Path = RESULTS) -> int:
    """Write runs into the table, whole or not at all; several processes may do so at once.

    The same runs give the same bytes, in whatever order they come. A run that was made with other weights than those
    that ship today is replaced.

    Returns:
        How many of the runs were not in the table before.

    Raises:
        ValueError: the table has another run of the same row and seed. Nothing is written then.
    """
    with lock(folder, wait=True):
        table, added = {(run["row"], run["seed"]): run for run in read_runs(folder)}, 0
        for run in runs:
            key = run["row"], run["seed"]
            known = table.get(key)
            if known == run:
                continue
            if known is not None and is_current(known):
                raise ValueError(f"{folder / TABLE} has another run of {key[0]}, seed {key[1]}: remove that row first")
            table[key], added = run, added + 1
        _write(table.values(), folder)
    return added


def remove_rows(names: Iterable[str], folder: Path = RESULTS) -> int:
    """Take all runs of some rows out of the table, with their pictures, and return how many runs that were."""
    names = set(names)
    with lock(folder, wait=True):
        before = read_runs(folder)
        kept = [run for run in before if run["row"] not in names]
        _write(kept, folder)
        for run in before:
            if run["row"] in names:
                picture_path(run["row"], run["seed"], folder).unlink(missing_ok=True)
    return len(before) - len(kept)


def merge(source: Path, folder: Path = RESULTS) -> int:
    """Add the runs of a folder of loose files, `<row>-<seed>.json`, and the pictures that are kept of them.

    Returns:
        How many of the runs were not in the table before.

    Raises:
        ValueError: as `add_runs`.
    """
    runs = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(source.glob("*-*.json"))]
    added = add_runs(runs, folder)
    for run in runs:
        arrays = source / f"{run['row']}-{run['seed']}.npz"
        if arrays.is_file() and keeps_pictures(run["row"], run["seed"]):
            with atomic(picture_path(run["row"], run["seed"], folder)) as part:
                shutil.copyfile(arrays, part)
    return added


def keeps_pictures(row: str, seed: int) -> bool:
    """Whether pictures of a run are kept: lesson 07 shows the first seed of each row with all labelled sections."""
    return seed == SEEDS[0] and row != "references" and (row not in ROWS or ROWS[row].sections == SECTIONS)


def picture_path(row: str, seed: int, folder: Path = RESULTS) -> Path:
    """The file with the pictures of a run, whether it is there or not."""
    return folder / f"{row}-{seed}.npz"


def load_pictures(run: dict, folder: Path = RESULTS) -> dict[str, np.ndarray]:
    """What a run keeps for pictures of its main output, or an empty dictionary where it keeps none.

    Returns:
        `z`, a section; `section`, its ids (y, x); `errors`, 0 right, 1 split, 2 merge, 3 both (y, x); `parts`, the
        segments that cover one neuron, 1 the one that covers most of it (z, y, x); `covered`, its voxels in each part.
    """
    path = picture_path(run["row"], run["seed"], folder)
    if not path.is_file():
        return {}
    with np.load(path) as file:
        return dict(file)


def _write(runs: Iterable[dict], folder: Path) -> None:
    lines = [json.dumps(run, separators=(",", ":")) for run in sorted(runs, key=lambda run: (run["row"], run["seed"]))]
    with atomic(folder / TABLE) as part:
        part.write_bytes(gzip.compress("".join(f"{line}\n" for line in lines).encode(), mtime=0))
