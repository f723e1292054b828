"""A whole volume through the network: overlapping tiles, blended by Gaussian weights.

SAM2 costs most and sees sections one by one, so each section of a tile column is encoded once, and its features serve
every window along z that contains it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad
from tqdm.auto import tqdm

from fgnet_lib.devices import precision
from fgnet_lib.fgnet import FGNet
from fgnet_lib.sam2_encoder import MULTIPLE, STRIDES


class Prediction(NamedTuple):
    """What the network says of a volume of shape (z, y, x); float32, values in [0, 1]."""

    refined: np.ndarray | None  # A_r, affinities (3, z, y, x); None for a model without it (SAM2 only)
    coarse: np.ndarray | None  # A_s, likewise; None for a model without SAM2
    attention: tuple[np.ndarray, ...]  # a1, a2, a3: (z, ceil(y / s), ceil(x / s)) at strides s = 4, 8, 16


class _Blend:
    """A Gaussian-weighted mean of overlapping patches."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.total = torch.zeros(shape)
        self.weight = torch.zeros(shape[-3:])

    def add(self, patch: Tensor, corner: tuple[int, int, int]) -> None:
        """Add a patch (..., d, h, w) whose first voxel lies at `corner` (z, y, x)."""
        weight = gaussian_window(tuple(patch.shape[-3:]))
        place = tuple(slice(a, a + n) for a, n in zip(corner, weight.shape, strict=True))
        self.total[(..., *place)] += patch.float().cpu() * weight
        self.weight[place] += weight

    def mean(self, shape: tuple[int, int, int]) -> np.ndarray:
        """The blend, cropped to `shape` (z, y, x)."""
        return self.total.div_(self.weight)[..., : shape[0], : shape[1], : shape[2]].numpy()


@torch.inference_mode()
def predict(
    model: FGNet,
    raw: np.ndarray,
    tile: tuple[int, int, int] = (16, 160, 160),
    overlap: float = 0.25,
    device: str | torch.device | None = None,
    progress: bool = True,
) -> Prediction:
    """Affinities and attention of a volume of any size, also smaller than a tile.

    Args:
        model: An FGNet; put into eval mode and moved to `device`.
        raw: uint8 volume (z, y, x), or anything lazy that gives it when sliced.
        tile: Window (z, y, x) in voxels; y and x multiples of 32.
        overlap: Least fraction of a window that it shares with the next one, from 0 to below 1.
        device: Where to compute; None for where the model is.
        progress: Show a progress bar with the time left.

    Raises:
        ValueError: If raw is not a non-empty uint8 volume, or tile or overlap do not fit.
    """
    _check(raw, tile, overlap)
    device = torch.device(device or next(model.parameters()).device)
    model = model.to(device).eval()
    depth, *plane = raw.shape
    padded = [-(-size // MULTIPLE) * MULTIPLE for size in plane]
    size = [min(tile[0], depth), *map(min, tile[1:], padded)]
    z_starts = window_starts(depth, size[0], overlap)
    columns = [
        (y, x) for y in window_starts(padded[0], size[1], overlap, MULTIPLE)
        for x in window_starts(padded[1], size[2], overlap, MULTIPLE)
    ]  # fmt: skip
    outputs: dict[str | int, _Blend] = {}
    with tqdm(total=len(columns) * len(z_starts), desc="predict", unit="tile", disable=not progress) as bar:
        for y, x in columns:
            for z, patches in _column(model, raw, (y, x), size, z_starts, device):
                for key, patch in patches.items():
                    stride = key if isinstance(key, int) else 1
                    if key not in outputs:
                        outputs[key] = _Blend((*patch.shape[:-3], depth, padded[0] // stride, padded[1] // stride))
                    outputs[key].add(patch, (z, y // stride, x // stride))
                bar.update()
    shapes = {key: (depth, *(-(-n // (key if isinstance(key, int) else 1)) for n in plane)) for key in outputs}
    blended = {key: blend.mean(shapes[key]) for key, blend in outputs.items()}
    return Prediction(
        blended.get("refined"), blended.get("coarse"), tuple(blended[stride] for stride in STRIDES if stride in blended)
    )


def _column(
    model: FGNet, raw: np.ndarray, corner: tuple[int, int], size: list[int], z_starts: list[int], device: torch.device
) -> Iterator[tuple[int, dict[str | int, Tensor]]]:
    """All windows along z of one in-plane tile; every section is encoded once and dropped when no window needs it."""
    y, x = corner
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(precision(device), torch.float32)
    encoded, first, window = 0, 0, []  # window: raw sections and their features for z in [first, encoded)
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
