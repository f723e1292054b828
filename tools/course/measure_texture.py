"""Measure real EM for lesson 01: FGNET_DATA_DIR -> data/texture.json, which lesson 01 reads where there are no data.

The file has only summary numbers of volumes whose licence is known: a histogram and a power spectrum, from which no
image can be made. The lesson compares the phantom with them.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from fgnet_lib.course.texture import grey_histogram, power_spectrum
from fgnet_lib.datasets import open_dataset

MEASURED = {  # data set, part -> the name in a legend
    ("fib25", "train"): "FIB-25, fly, 10 nm (FIB-SEM)",
    ("gala", "train"): "gala, 10 nm assumed (FIB-SEM)",
    ("ac4", "val"): "AC4, mouse, 6 nm (serial sections)",
}
TEXTURE = Path(__file__).resolve().parents[2] / "data" / "texture.json"


def measure_textures() -> dict[str, dict[str, list[float]]]:
    """Return the grey histogram and power spectrum of each volume by its title; None where a band is unknown."""
    textures = {}
    for (dataset, part), title in MEASURED.items():
        volume = open_dataset(dataset, part).load()
        power = power_spectrum(volume.raw, volume.voxel_size[2])
        textures[title] = {
            "histogram": grey_histogram(volume.raw).round(5).tolist(),
            "power": [None if np.isnan(band) else round(band, 2) for band in power.tolist()],
        }
    return textures


if __name__ == "__main__":
    lines = [f"{json.dumps(title)}: {json.dumps(numbers)}" for title, numbers in measure_textures().items()]
    TEXTURE.write_text("{" + ",\n ".join(lines) + "}\n", encoding="utf-8")
    print(TEXTURE)
