"""Attention to explore in any browser, without a kernel: one HTML file that holds its data and asks no other host."""

from __future__ import annotations

import json
from base64 import b64encode
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np

from fgnet_lib.fgnet import FGNet
from fgnet_lib.files.atomic import write_atomically
from fgnet_lib.probing import Inspector
from fgnet_lib.volumes import Volume

LIMIT = 3_000_000  # bytes of the file
SIDE = 256  # voxels in y and x at most; a3 then has 16 x 16 values
DIRECTIONS = 12  # of the guide's features, enough for a mean error of the similarity of about 0.02
LEVELS = 256  # of attention that are told apart in each map
QUALITY = 85  # of JPEG
PAIRS = 5000  # of pixels, to measure that error
TEMPLATE = Path(__file__).with_suffix(".html")


def export_attention(volume: Volume, model: FGNet, path: str | Path) -> Path:
    """Write EM, attention a1, a2, a3 and the guide's features as an HTML file to explore, and return its path.

    The file shows the middle of the volume: at most 256 x 256 voxels in y and x, and as many sections as fit into 3 MB.
    Attention is stored in 256 steps and features as their 12 main directions; the page tells how exact that is.

    Args:
        volume: with raw, in memory or lazy.
        model: with a guide and attention; computes where it is.
        path: of the file; an earlier file at this path is replaced.

    Raises:
        ValueError: the model has no attention.
    """
    corner = [max(0, (size - SIDE) // 2) for size in volume.shape[1:]]
    piece = volume[:, *(slice(first, first + SIDE) for first in corner)]
    inspector = Inspector(model, piece.raw)
    middle = piece.shape[0] // 2
    if not inspector.section(middle).attention:
        raise ValueError("this model has no attention to show: its configuration needs an `encoder` and `refined`")
    maps = sum(level.size for level in inspector.section(middle).attention)
    bytes_each = len(_jpeg(piece, middle)) + maps * (1 + DIRECTIONS)
    count = max(1, min(piece.shape[0], int(0.7 * LIMIT) // bytes_each))  # base64 needs four bytes for three
    first = (piece.shape[0] - count) // 2
    sections = [inspector.section(z) for z in range(first, first + count)]
    content = {
        "name": volume.name,
        "voxelSize": volume.voxel_size,
        "shape": (count, *piece.shape[1:]),
        "of": volume.shape,
        "corner": (first, *corner),
        "em": [f"data:image/jpeg;base64,{_text(_jpeg(piece, z))}" for z in range(first, first + count)],
        "levels": [
            {"stride": stride}
            | _quantise([section.attention[i] for section in sections])
            | _reduce([section.sam2[i] for section in sections])
            for i, stride in enumerate(model.config.strides)
        ],
    }
    data = json.dumps(content, separators=(",", ":")).replace("<", "\\u003c")  # no tag can end the script
    path = Path(path).expanduser()
    write_atomically(path, TEMPLATE.read_text(encoding="utf-8").replace("/* volume */", data))
    return path


def _jpeg(volume: Volume, z: int) -> bytes:
    return imagecodecs.jpeg8_encode(np.ascontiguousarray(volume.raw[z]), level=QUALITY)


def _text(content: bytes) -> str:
    return b64encode(content).decode("ascii")


def _quantise(maps: list[np.ndarray]) -> dict[str, Any]:
    """Return the maps (y, x) of a level as bytes, which are indices into a list of values, too.

    Half of the values are equally spaced, so that none is off by more than 0.4 % of the range. The other half are
    quantiles, so that percentiles are kept where most values are nearly 0.
    """
    attention = np.stack(maps)
    even = np.linspace(attention.min(), attention.max(), LEVELS // 2)
    values = np.unique(
        np.concatenate([even, np.quantile(attention, np.linspace(0, 1, LEVELS // 2))]).astype(np.float32)
    )
    indices = np.searchsorted((values[1:] + values[:-1]) / 2, attention).astype(np.uint8)
    size = attention.shape[1:]
    return {"size": size, "values": [float(f"{v:.4g}") for v in values], "attention": _text(indices.tobytes())}


def _reduce(features: list[np.ndarray]) -> dict[str, Any]:
    """Return features (C, y, x) as signed bytes along their main directions, whose dot products are similarities.

    Each feature vector is scaled to length 1 before, so that a dot product is the cosine of an angle.
    """
    vectors = np.concatenate([np.moveaxis(section, 0, -1).reshape(-1, len(section)) for section in features])
    vectors = vectors.astype(np.float32)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
    _, directions = np.linalg.eigh(vectors.T @ vectors)  # in rising order
    along = vectors @ directions[:, ::-1][:, :DIRECTIONS]
    scale = np.maximum(np.abs(along).max(axis=0), 1e-9) / 127
    codes = np.round(along / scale).astype(np.int8)
    kept = codes * scale
    kept /= np.maximum(np.linalg.norm(kept, axis=1, keepdims=True), 1e-9)
    p, q = np.random.default_rng(0).integers(0, len(vectors), (2, PAIRS))
    error = np.abs((kept[p] * kept[q]).sum(axis=1) - (vectors[p] * vectors[q]).sum(axis=1)).mean()
    return {"scale": scale.tolist(), "features": _text(codes.tobytes()), "error": float(error)}
