"""A whole volume through the network: overlapping tiles, blended by Gaussian weights.

SAM2 costs most and sees sections one by one, so each section of a tile column is encoded once, and its features serve
every window along z that contains it.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad
from tqdm.auto import tqdm

from fgnet_lib.devices import precision
from fgnet_lib.fgnet import FGNet
from fgnet_lib.sam2_encoder import MULTIPLE, STRIDES

Region = tuple[slice, slice, slice]  # z, y, x, with start and stop


class Prediction(NamedTuple):
    """What the network says of a volume of shape (z, y, x); float32, values in [0, 1]."""

    refined: np.ndarray | None  # A_r, affinities (3, z, y, x); None for a model without it (SAM2 only)
    coarse: np.ndarray | None  # A_s, likewise; None for a model without SAM2
    attention: tuple[np.ndarray, ...]  # a1, a2, a3: (z, ceil(y / s), ceil(x / s)) at strides s = 4, 8, 16


class _Blend:
    """A Gaussian-weighted mean of overlapping patches, kept for a region (z, y, x) of the volume."""

    def __init__(self, channels: tuple[int, ...], region: Region) -> None:
        self.region = region
        self.weight = torch.zeros([s.stop - s.start for s in region])
        self.total = torch.zeros((*channels, *self.weight.shape))

    def add(self, patch: Tensor, corner: tuple[int, int, int]) -> None:
        """Add a patch (..., d, h, w) whose first voxel lies at `corner` (z, y, x) of the volume."""
        weight = gaussian_window(tuple(patch.shape[-3:]))
        ends = [
            (max(a, s.start), min(a + n, s.stop)) for a, n, s in zip(corner, weight.shape, self.region, strict=True)
        ]
        cut = tuple(slice(lo - a, hi - a) for (lo, hi), a in zip(ends, corner, strict=True))
        place = tuple(slice(lo - s.start, hi - s.start) for (lo, hi), s in zip(ends, self.region, strict=True))
        self.total[(..., *place)] += patch.float().cpu()[(..., *cut)] * weight[cut]
        self.weight[place] += weight[cut]

    def mean(self) -> np.ndarray:
        """The blend; call it once."""
        return self.total.div_(self.weight).numpy()


@torch.inference_mode()
def predict(
    model: FGNet,
    raw: np.ndarray,
    tile: tuple[int, int, int] = (16, 160, 160),
    overlap: float = 0.25,
    device: str | torch.device | None = None,
    progress: bool = True,
    region: Region | None = None,
) -> Prediction:
    """Affinities and attention of a volume of any size, also smaller than a tile, or of a region of it.

    Windows lie where the shape of the whole volume puts them, and all that touch the region are computed. So a region's
    values are those of the whole volume, up to rounding, wherever its borders are.

    Args:
        model: An FGNet; put into eval mode and moved to `device`.
        raw: uint8 volume (z, y, x), or anything lazy that gives it when sliced.
        tile: Window (z, y, x) in voxels; y and x multiples of 32.
        overlap: Least fraction of a window that it shares with the next one, from 0 to below 1.
        device: Where to compute; None for where the model is.
        progress: Show a progress bar with the time left.
        region: Three slices (z, y, x) with start and stop, inside the volume; None for all of it.

    Raises:
        ValueError: If raw is not a non-empty uint8 volume, or tile or overlap do not fit.
    """
    _check(raw, tile, overlap)
    device = torch.device(device or next(model.parameters()).device)
    model = model.to(device).eval()
    region = region or tuple(slice(0, n) for n in raw.shape)
    size, (z_starts, *in_plane) = _windows(raw.shape, tile, overlap, region)
    columns = list(product(*in_plane))
    outputs: dict[str | int, _Blend] = {}
    with tqdm(total=len(columns) * len(z_starts), desc="predict", unit="tile", disable=not progress) as bar:
        for y, x in columns:
            for z, patches in _column(model, raw, (y, x), size, z_starts, device):
                for key, patch in patches.items():
                    stride = key if isinstance(key, int) else 1
                    if key not in outputs:
                        outputs[key] = _Blend(tuple(patch.shape[:-3]), _strided(region, stride))
                    outputs[key].add(patch, (z, y // stride, x // stride))
                bar.update()
    blended = {key: blend.mean() for key, blend in outputs.items()}
    return Prediction(
        blended.get("refined"), blended.get("coarse"), tuple(blended[stride] for stride in STRIDES if stride in blended)
    )


def needed(shape: tuple[int, int, int], tile: tuple[int, int, int], overlap: float, region: Region) -> Region:
    """The part of a volume (z, y, x) that `predict` reads for a region of it: all windows that touch the region."""
    size, starts = _windows(shape, tile, overlap, region)
    return tuple(slice(a[0], min(a[-1] + s, n)) for a, s, n in zip(starts, size, shape, strict=True))


def _windows(
    shape: tuple[int, int, int], tile: tuple[int, int, int], overlap: float, region: Region
) -> tuple[list[int], list[list[int]]]:
    """Size of the windows of a volume, and along each axis the starts of those that touch the region."""
    padded = [shape[0], *(-(-n // MULTIPLE) * MULTIPLE for n in shape[1:])]
    size = list(map(min, tile, padded))
    starts = [window_starts(n, s, overlap, m) for n, s, m in zip(padded, size, (1, MULTIPLE, MULTIPLE), strict=True)]
    return size, [
        [a for a in along if a < part.stop and a + s > part.start]
        for along, s, part in zip(starts, size, region, strict=True)
    ]


def _strided(region: Region, stride: int) -> Region:
    """The voxels of a map with a stride in y and x that a region touches."""
    return region[0], *(slice(s.start // stride, -(-s.stop // stride)) for s in region[1:])


def _column(
    model: FGNet, raw: np.ndarray, corner: tuple[int, int], size: list[int], z_starts: list[int], device: torch.device
) -> Iterator[tuple[int, dict[str | int, Tensor]]]:
    """All windows along z of one in-plane tile; every section is encoded once and dropped when no window needs it."""
    y, x = corner
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(precision(device), torch.float32)
    encoded = first = z_starts[0]
    window = []  # raw sections and their features for z in [first, encoded)
    for z in z_starts:
        sections = _to_tensor(raw[encoded : z + size[0], y : y + size[1], x : x + size[2]], size, device)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            new = [sections, *model.encode(sections)]
            window = (
                [torch.cat([a[:, :, z - first :], b], 2) for a, b in zip(window, new, strict=True)] if window else new
            )
            first, encoded = z, z + size[0]
            output = model(window[0], window[1:])
        maps = {"refined": output.refined, "coarse": output.coarse}
        patches: dict[str | int, Tensor] = {
            k: logits[0].float().sigmoid() for k, logits in maps.items() if logits is not None
        }
        # per-channel attention is shown as its mean, so that one map per stride comes out of every switch
        patches |= {stride: a[0].mean(0) for stride, a in zip(STRIDES, output.attention, strict=False)}
        yield z, patches


def window_starts(length: int, window: int, overlap: float, multiple: int = 1) -> list[int]:
    """Starts of windows that cover [0, length) with at least the wanted overlap, each a multiple of `multiple`."""
    step = max(int(window * (1 - overlap)) // multiple, 1) * multiple
    return [*range(0, max(length - window, 0), step), max(length - window, 0)]


def gaussian_window(shape: tuple[int, ...]) -> Tensor:
    """Blending weights: a separable Gaussian, 1 near the centre, sigma a quarter of the window."""
    axes = [torch.exp(-0.5 * ((torch.arange(n) - (n - 1) / 2) / (n / 4)) ** 2) for n in shape]
    return axes[0][:, None, None] * axes[1][:, None] * axes[2]


def _to_tensor(raw: np.ndarray, size: list[int], device: torch.device) -> Tensor:
    """uint8 sections (d, h, w) as float (1, 1, d, H, W) in [0, 1], the far edges repeated up to the tile's size."""
    sections = torch.from_numpy(np.ascontiguousarray(raw))[None, None].to(device).float() / 255
    height, width = sections.shape[-2:]
    return pad(sections, (0, size[2] - width, 0, size[1] - height, 0, 0), mode="replicate")


def _check(raw: np.ndarray, tile: tuple[int, int, int], overlap: float) -> None:
    if len(raw.shape) != 3 or raw.dtype != np.uint8 or 0 in raw.shape:
        raise ValueError(f"raw must be a non-empty uint8 volume (z, y, x); got {raw.dtype} of shape {tuple(raw.shape)}")
    if len(tile) != 3 or min(tile) < 1 or tile[1] % MULTIPLE or tile[2] % MULTIPLE:
        raise ValueError(f"tile must be (z, y, x) with y and x multiples of {MULTIPLE}; got {tile}")
    if not 0 <= overlap < 1:
        raise ValueError(f"overlap is the shared fraction of a window, from 0 to below 1; got {overlap}")
