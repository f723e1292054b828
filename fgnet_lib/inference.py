"""A whole volume through the network: overlapping tiles, blended by Gaussian weights.

SAM2 costs most and sees sections one by one, so each section of a tile column is encoded once, and its features serve
every window along z that contains it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad
from tqdm.auto import tqdm

from fgnet_lib.fgnet import FGNet, FGNetOutput
from fgnet_lib.machine import precision
from fgnet_lib.sam2_encoder import MULTIPLE, STRIDES
from fgnet_lib.volumes import Region

Place = tuple[int, int, int]  # of a section of a tile: the section, and the y and x where the tile begins
Encode = Callable[[Tensor, Place], list[Tensor]]  # sections (1, 1, d, h, w), and the place of the first -> features
Patches = dict[str | int, Tensor]  # affinities by name, attention by stride


class Prediction(NamedTuple):
    """What the network says of a volume of shape (z, y, x); float32, values in [0, 1]."""

    refined: np.ndarray | None  # A_r, affinities (3, z, y, x); None for a model without it (SAM2 only)
    coarse: np.ndarray | None  # A_s, likewise; None for a model without SAM2
    attention: tuple[np.ndarray, ...]  # a1, a2, a3: (z, ceil(y / s), ceil(x / s)) at strides s = 4, 8, 16


@dataclass(frozen=True)
class Windows:
    """Windows of one `size` in a volume of `shape` (z, y, x): all combinations of their `starts` along the axes."""

    shape: tuple[int, int, int]
    size: tuple[int, int, int]
    starts: tuple[list[int], list[int], list[int]]

    def __len__(self) -> int:
        return int(np.prod([len(along) for along in self.starts]))

    @property
    def columns(self) -> list[tuple[int, int]]:
        """Where (y, x) tiles begin that have windows above each other."""
        return list(product(*self.starts[1:]))

    @property
    def reach(self) -> Region:
        """The part of the volume that they cover; nothing along an axis without starts."""
        ends = zip(self.starts, self.size, self.shape, strict=True)
        return tuple(slice(along[0], min(along[-1] + s, n)) if along else slice(0, 0) for along, s, n in ends)

    def touching(self, region: Region) -> Windows:
        """Those that share a voxel with a region."""
        return self._those(lambda a, s, part: a < part.stop and a + s > part.start, region)

    def beginning(self, region: Region) -> Windows:
        """Those whose first voxel is in a region."""
        return self._those(lambda a, s, part: part.start <= a < part.stop, region)

    def _those(self, wanted: Callable[[int, int, slice], bool], region: Region) -> Windows:
        axes = zip(self.starts, self.size, region, strict=True)
        return replace(self, starts=tuple([a for a in along if wanted(a, s, part)] for along, s, part in axes))

    def weight(self, region: Region) -> np.ndarray:
        """The sum of their blending weights in a region, a product over the axes because `starts` is one."""
        axes = []
        for along, s, part in zip(self.starts, self.size, region, strict=True):
            at = np.arange(part.start, part.stop)[:, None] - np.array(along)  # of each place in each window
            axes.append(np.pad(_gaussian(s).numpy(), 1)[np.clip(at + 1, 0, s + 1)].sum(1))
        return axes[0][:, None, None] * axes[1][:, None] * axes[2]


def windows(shape: tuple[int, int, int], tile: tuple[int, int, int], overlap: float) -> Windows:
    """The windows of a volume (z, y, x); those at its far sides may end beyond it, up to the next multiple of 32.

    Args:
        shape: Of the volume.
        tile: As of `predict`.
        overlap: Likewise.

    Raises:
        ValueError: If tile or overlap do not fit.
    """
    if len(tile) != 3 or min(tile) < 1 or tile[1] % MULTIPLE or tile[2] % MULTIPLE:
        raise ValueError(f"tile must be (z, y, x) with y and x multiples of {MULTIPLE}; got {tile}")
    if not 0 <= overlap < 1:
        raise ValueError(f"overlap is the shared fraction of a window, from 0 to below 1; got {overlap}")
    padded = [shape[0], *(-(-n // MULTIPLE) * MULTIPLE for n in shape[1:])]
    size = tuple(map(min, tile, padded))
    starts = [window_starts(n, s, overlap, m) for n, s, m in zip(padded, size, (1, MULTIPLE, MULTIPLE), strict=True)]
    return Windows(tuple(shape), size, tuple(starts))


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
    if len(raw.shape) != 3 or raw.dtype != np.uint8 or 0 in raw.shape:
        raise ValueError(f"raw must be a non-empty uint8 volume (z, y, x); got {raw.dtype} of shape {tuple(raw.shape)}")
    device = torch.device(device or next(model.parameters()).device)
    model = model.to(device).eval()
    region = region or tuple(slice(0, n) for n in raw.shape)
    those = windows(raw.shape, tile, overlap).touching(region)
    with tqdm(total=len(those), desc="predict", unit="tile", disable=not progress) as bar:
        blended = _blended(_patches(model, raw, those, lambda sections, place: model.encode(sections), bar), region)
    return Prediction(
        blended.get("refined"), blended.get("coarse"), tuple(blended[stride] for stride in STRIDES if stride in blended)
    )


@torch.inference_mode()
def predict_windows(
    model: FGNet, raw: np.ndarray, those: Windows, stored: Mapping[Place, list[np.ndarray]]
) -> np.ndarray:
    """Affinities of some windows alone, refined ones where the model has them, blended over all that they reach.

    Args:
        model: An FGNet, on its device and in eval mode.
        raw: uint8 volume (z, y, x), or anything lazy that gives it when sliced.
        those: At least one window.
        stored: Features of sections, as `encode_sections` gives them, by their place; the others are encoded here.

    Returns:
        float32 (3, z, y, x) of the region `those.reach`.
    """

    def encode(sections: Tensor, place: Place) -> list[Tensor]:
        z, y, x = place
        places = [(z + i, y, x) for i in range(sections.shape[2])]
        new = [i for i, at in enumerate(places) if at not in stored]
        fresh = [level.unbind(2) for level in model.encode(sections[:, :, new])] if new else []
        found = dict(zip(new, zip(*fresh, strict=True), strict=False))
        for i in set(range(len(places))) - set(new):
            found[i] = [torch.from_numpy(level)[None].to(sections.device) for level in stored[places[i]]]
        return [torch.stack(level, 2) for level in zip(*(found[i] for i in sorted(found)), strict=True)]

    bar = tqdm(disable=True)
    best = (
        (corner, {"best": patches.get("refined", patches.get("coarse"))})
        for corner, patches in _patches(model, raw, those, encode, bar)
    )
    return _blended(best, those.reach)["best"]


@torch.inference_mode()
def encode_sections(model: FGNet, raw: np.ndarray, size: tuple[int, int, int]) -> list[np.ndarray]:
    """SAM2's features of sections of one tile, for `predict_windows`.

    Args:
        model: An FGNet, on its device and in eval mode.
        raw: uint8 sections (n, y, x), smaller than a tile where the volume ends.
        size: Of the windows.

    Returns:
        For each stride (n, C, h, w), float32, or float16 where the encoder computes in half precision. An empty list
        for a model without SAM2.
    """
    device = next(model.parameters()).device
    with _autocast(device) as autocast:
        found = model.encode(_to_tensor(raw, size, device))
    dtype = torch.float16 if autocast else torch.float32
    return [level[0].transpose(0, 1).to("cpu", dtype).contiguous().numpy() for level in found]


def _blended(patches: Iterable[tuple[Place, Patches]], region: Region) -> dict[str | int, np.ndarray]:
    """The mean of all patches, each with the place of its first voxel, in a region."""
    outputs: dict[str | int, _Blend] = {}
    for (z, y, x), found in patches:
        for key, patch in found.items():
            stride = key if isinstance(key, int) else 1
            if key not in outputs:
                outputs[key] = _Blend(tuple(patch.shape[:-3]), _strided(region, stride))
            outputs[key].add(patch, (z, y // stride, x // stride))
    return {key: blend.mean() for key, blend in outputs.items()}


def _strided(region: Region, stride: int) -> Region:
    """The voxels of a map with a stride in y and x that a region touches."""
    return region[0], *(slice(s.start // stride, -(-s.stop // stride)) for s in region[1:])


def _patches(
    model: FGNet, raw: np.ndarray, those: Windows, encode: Encode, bar: tqdm
) -> Iterator[tuple[Place, Patches]]:
    """What the model says of each window. A section is encoded once for a tile, and dropped when no window needs it."""
    device, (depth, height, width) = next(model.parameters()).device, those.size
    for y, x in those.columns:
        encoded = first = those.starts[0][0]
        window = []  # raw sections and their features for z in [first, encoded)
        for z in those.starts[0]:
            sections = _to_tensor(raw[encoded : z + depth, y : y + height, x : x + width], those.size, device)
            with _autocast(device):
                new = [sections, *encode(sections, (encoded, y, x))]
                window = (
                    [torch.cat([a[:, :, z - first :], b], 2) for a, b in zip(window, new, strict=True)]
                    if window
                    else new
                )
                output = model(window[0], window[1:])
            first, encoded = z, z + depth
            yield (z, y, x), _probabilities(output)
            bar.update()


def _probabilities(output: FGNetOutput) -> Patches:
    maps = {"refined": output.refined, "coarse": output.coarse}
    patches: Patches = {k: logits[0].float().sigmoid() for k, logits in maps.items() if logits is not None}
    # per-channel attention is shown as its mean, so that one map per stride comes out of every switch
    return patches | {stride: a[0].mean(0) for stride, a in zip(STRIDES, output.attention, strict=False)}


@contextmanager
def _autocast(device: torch.device) -> Iterator[bool]:
    """The precision that is good on a device; says whether it is half precision."""
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(precision(device), torch.float32)
    half = dtype != torch.float32
    with torch.autocast(device.type, dtype, enabled=half):
        yield half


def window_starts(length: int, window: int, overlap: float, multiple: int = 1) -> list[int]:
    """Starts of windows that cover [0, length) with at least the wanted overlap, each a multiple of `multiple`."""
    step = max(int(window * (1 - overlap)) // multiple, 1) * multiple
    return [*range(0, max(length - window, 0), step), max(length - window, 0)]


def gaussian_window(shape: tuple[int, ...]) -> Tensor:
    """Blending weights: a separable Gaussian, 1 near the centre, sigma a quarter of the window."""
    z, y, x = map(_gaussian, shape)
    return z[:, None, None] * y[:, None] * x


def _gaussian(n: int) -> Tensor:
    return torch.exp(-0.5 * ((torch.arange(n) - (n - 1) / 2) / (n / 4)) ** 2)


def _to_tensor(raw: np.ndarray, size: tuple[int, int, int], device: torch.device) -> Tensor:
    """uint8 sections (d, h, w) as float (1, 1, d, H, W) in [0, 1], the far edges repeated up to the tile's size."""
    sections = torch.from_numpy(np.ascontiguousarray(raw))[None, None].to(device).float() / 255
    height, width = sections.shape[-2:]
    return pad(sections, (0, size[2] - width, 0, size[1] - height, 0, 0), mode="replicate")
