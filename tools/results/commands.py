"""What the commands share that fill a table of runs and write the page beside it."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path
from typing import Any

import torch

from fgnet_lib import REPOSITORY
from fgnet_lib.machine import hardware
from fgnet_lib.study.evaluation import postprocessing_version


def describe_run(
    row: str, seed: int, declared: Mapping[str, Any], weights: Mapping[str, str], **measured: Any
) -> dict[str, Any]:
    """Put together what the table keeps of a run: what was declared and measured, with what, on what, and when.

    Args:
        row: name of the row.
        seed: of the run.
        declared: what was asked for.
        weights: files that ship, with the fingerprints that `name_weights` gives; the run counts for these alone.
        measured: what came out.

    Returns:
        The run as the table gives it back: JSON knows no tuples.
    """
    run = {
        "row": row,
        "seed": seed,
        "declared": declared,
        "weights": weights,
        "machine": hardware(),
        "load": round(os.getloadavg()[0], 1),  # of the last minute, when the run ended
        "postprocessing": postprocessing_version(),
        "date": date.today().isoformat(),
    }
    return json.loads(json.dumps(run | measured))


def measure_on_one_core(description: str | None, name: str, measure: Callable[[float, Path], None]) -> None:
    """Serve a command: measure what is missing, for as long as its user allows.

    Args:
        description: of the command, for `--help`.
        name: of the folder for locks, below `out`.
        measure: takes minutes and that folder.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no further run after so long")
    parser.add_argument("--work", type=Path, default=REPOSITORY / "out" / name, help="folder for the locks")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # rows are compared by the seconds of one core
    measure(arguments.minutes, arguments.work)
