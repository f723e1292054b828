"""The start of every lesson: a profile, a data set, a device, a seed and a folder for results."""

from __future__ import annotations

import os
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from fgnet_lib import datasets
from fgnet_lib.datasets import DATASETS, check_data_dir, expand_home, open_dataset, results_dir
from fgnet_lib.machine import choose_device, platform, precision
from fgnet_lib.views import plots
from fgnet_lib.volumes import Region, Volume


@dataclass(frozen=True)
class Profile:
    """How much a lesson does.

    Attributes:
        name: what the `PROFILE` parameter says.
        crop: shape (z, y, x) in voxels of the volume that a lesson works on; None for all of it.
        deep_crop: the same for a lesson that shows whole neurites in 3D.
        iterations: most training steps of lesson 04.
        minutes: most minutes of training of lesson 04.
        encoder: the guide that lesson 04 trains with: "natural", which knows photographs, or a size of SAM2's.
    """

    name: str
    crop: tuple[int, int, int] | None
    deep_crop: tuple[int, int, int] | None
    iterations: int
    minutes: float
    encoder: str


PROFILES = {
    profile.name: profile
    for profile in (
        Profile("fast", (16, 192, 192), (64, 160, 160), iterations=12, minutes=0.5, encoder="natural"),
        Profile("cpu", (32, 256, 256), (64, 256, 256), iterations=2_000, minutes=10, encoder="natural"),
        Profile("gpu", (40, 256, 256), (64, 256, 256), iterations=10_000, minutes=24, encoder="tiny"),
        Profile("full", None, None, iterations=100_000, minutes=24 * 60, encoder="large"),
    )
}


@dataclass(frozen=True)
class Session:
    """The settings of one run of a lesson, checked by `start_session`."""

    profile: Profile
    dataset: str
    data_dir: Path | None
    out_dir: Path
    device: torch.device
    seed: int

    def volume(self, part: str = "val", crop: tuple[int, int, int] | None = None) -> Volume:
        """Return the middle of the data set's `part` ("train" or "val") in memory.

        Args:
            part: "train" or "val".
            crop: voxels (z, y, x), where a lesson needs another shape than the profile's crop.
        """
        return _middle(open_dataset(self.dataset, part), crop or self.profile.crop)

    def deep_volume(self) -> Volume:
        """Return a volume in which neurites bend and branch: of the phantom its part "deep", of other data "val"."""
        return _middle(
            open_dataset(self.dataset, "deep" if self.dataset == "phantom" else "val"), self.profile.deep_crop
        )


def _middle(volume: Volume, crop: tuple[int, int, int] | None) -> Volume:
    """Read the middle of a volume, as large as `crop` or as the volume is; all of it if `crop` is None."""
    if crop is None:
        return volume.load()
    starts = [max(0, (size - side) // 2) for size, side in zip(volume.shape, crop, strict=True)]
    return volume[Region.at(starts, crop)]


def start_session(profile: str, dataset: str, data_dir: str, out_dir: str, device: str, seed: int) -> Session:
    """Return the session of a lesson's parameters, and print the line of `describe_session`.

    It also seeds every random generator and sets the figure style.

    Args:
        profile: a name in `PROFILES`.
        dataset: a name in `datasets.DATASETS`.
        data_dir: folder with the data sets; empty for the environment variable FGNET_DATA_DIR, if set.
        out_dir: folder for results, made when missing; empty for `out` in FGNET_HOME (a folder for all that should
            outlive a session), if set, or else `out` in the repository.
        device: "auto", "cpu", "cuda" or "mps".
        seed: for Python, NumPy and PyTorch.

    Raises:
        ValueError: an unknown profile, data set or device, or a seed that is none.
        FileNotFoundError: `data_dir`, or else FGNET_DATA_DIR, is not a folder.
        PermissionError: it cannot be read.
        OSError: results cannot be written to `out_dir`.
    """
    if profile not in PROFILES:
        raise ValueError(f"unknown PROFILE {profile!r}: choose one of {', '.join(PROFILES)}")
    if dataset not in DATASETS:
        raise ValueError(f"unknown DATASET {dataset!r}: choose one of {', '.join(DATASETS)}")
    if not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise ValueError(f"SEED is {seed!r}: give a whole number from 0 to 2^32 - 1")
    _look_first_in(data_dir)
    session = Session(
        profile=PROFILES[profile],
        dataset=dataset,
        data_dir=datasets.data_dir(),
        out_dir=_writable(expand_home(out_dir, "OUT_DIR") if out_dir not in ("", None) else results_dir()),
        device=choose_device(device),
        seed=seed,
    )
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    plots.style()
    print(describe_session(session))
    return session


_replaced: dict[str | None, str | None] = {}  # a DATA_DIR -> the FGNET_DATA_DIR that it took the place of


def _look_first_in(data_dir: str) -> None:
    """Put a folder into FGNET_DATA_DIR, where `datasets.fetch` looks first; without one, put back what was there."""
    now = os.environ.get("FGNET_DATA_DIR")
    if data_dir not in ("", None):
        folder = str(check_data_dir(data_dir, "DATA_DIR"))
        _replaced[folder] = _replaced.get(now, now)
        os.environ["FGNET_DATA_DIR"] = folder
    elif now in _replaced:
        del os.environ["FGNET_DATA_DIR"]
        if (given := _replaced.pop(now)) is not None:
            os.environ["FGNET_DATA_DIR"] = given


def _writable(folder: Path) -> Path:
    """Return a folder for results, made when missing; on a course's server the repository may be read-only."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        reason = "" if os.access(folder, os.W_OK) else "it is read-only"
    except OSError as error:
        reason = str(error)
    if reason:
        raise OSError(
            f"no results can be written to {folder}: {reason}. Set OUT_DIR or FGNET_HOME to a folder of yours"
        )
    return folder


def describe_session(session: Session) -> str:
    """Return a line that names the device, the work of the profile, and the profiles that the device allows."""
    if session.device.type == "cuda":
        properties = torch.cuda.get_device_properties(session.device)
        hardware = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
        allows = "every PROFILE"
    else:
        threads = torch.get_num_threads()
        hardware = f"{session.device.type}, {threads} thread{'s' * (threads > 1)}"
        allows = "PROFILE fast and cpu; gpu and full want a CUDA GPU"
    arithmetic = precision(session.device).replace("no", "fp32")
    crop = session.profile.crop
    work = f"at most {' x '.join(map(str, crop))} voxels" if crop else "the whole volume"
    return (
        f"{platform()}: {hardware}, {arithmetic}; this allows {allows}. "
        f"PROFILE {session.profile.name} works on {work} of {session.dataset}."
    )
