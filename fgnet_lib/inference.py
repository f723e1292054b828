"""A whole volume through the network: overlapping tiles, blended by Gaussian weights.

The guide sees sections one by one, so each section of a tile column is encoded once, and its features serve
every window along z that contains it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad
from tqdm.auto import tqdm

from fgnet_lib.engines.runtimes import Converted, Engine, choose_engine
from fgnet_lib.fgnet import FGNet, FGNetOutput
from fgnet_lib.machine import memory_limit, precision
from fgnet_lib.memory import freed_memory_kept
from fgnet_lib.sam2_encoder import MULTIPLE
from fgnet_lib.volumes import Lazy, Region, triple

Corner = tuple[int, int, int]  # of a section of a tile: the section, and the y and x where the tile begins
FeatureSource = Callable[[Tensor, Corner], list[Tensor]]  # sections (1, 1, d, h, w), corner of the first -> features
Patches = dict[str | int, Tensor]  # affinities by name, attention by stride
TILE, WIDE_TILE = (16, 160, 160), (16, 256, 256)  # windows (z, y, x) in voxels: see `choose_tile`
WIDE_MEMORY = 4 * 10**9  # bytes, from which on a machine computes wide windows
ENCODED = 2**17  # pixels that a CPU encodes at once: more take longer each, up to three times where memory is not kept


class Prediction(NamedTuple):
    """Affinities and attention of a volume of shape (z, y, x); float32, values in [0, 1]."""

    refined: np.ndarray | None  # A_r, affinities (3, z, y, x); None for a model without it (guide only)
    coarse: np.ndarray | None  # A_s, likewise; None for a model without a guide
    attention: tuple[np.ndarray, ...]  # a1, a2, a3: (z, ceil(y / s), ceil(x / s)) at strides s = 4, 8, 16, or finer


@dataclass(frozen=True)
class Windows:
    """Windows of one `size` in a volume of `shape` (z, y, x): all combinations of their `starts` along the axes."""

    shape: tuple[int, int, int]
    size: tuple[int, int, int]
    starts: tuple[list[int], list[int], list[int]]

    def __len__(self) -> int:
        return math.prod(map(len, self.starts))

    @property
    def voxels(self) -> int:
        """Voxels to compute; those in several windows count several times."""
        return len(self) * math.prod(self.size)

    @property
    def columns(self) -> list[tuple[int, int]]:
        """The y and x where tiles begin; the windows of a tile lie above each other."""
        return list(product(*self.starts[1:]))

    @property
    def reach(self) -> Region:
        """The part of the volume that the windows cover; empty along an axis without starts."""
        ends = zip(self.starts, self.size, self.shape, strict=True)
        return Region(*(slice(along[0], min(along[-1] + s, n)) if along else slice(0, 0) for along, s, n in ends))

    def overlapping(self, region: Region) -> Windows:
        """The windows that overlap `region`."""
        return self.beginning(region.grow([s - 1 for s in self.size], region.stop))

    def beginning(self, region: Region) -> Windows:
        """The windows whose first voxel is in `region`."""
        axes = zip(self.starts, region, strict=True)
        return replace(self, starts=triple([a for a in along if s.start <= a < s.stop] for along, s in axes))

    def weight(self, region: Region) -> np.ndarray:
        """The sum of the windows' blending weights (z, y, x) in `region`; a product over the axes, as `starts` is."""
        z, y, x = (
            np.pad(_gaussian(size).numpy(), 1)[np.clip(voxels.reshape(-1, 1) - along + 1, 0, size + 1)].sum(1)
            for along, size, voxels in zip(map(np.array, self.starts), self.size, np.ogrid[region], strict=True)
        )
        return z[:, None, None] * y[:, None] * x


def lay_windows(shape: tuple[int, int, int], tile: tuple[int, int, int], overlap: float) -> Windows:
    """All windows of a volume; the last ones may end beyond its far sides, at the next multiple of 32.

    >>> lay_windows((20, 64, 100), tile=(16, 64, 64), overlap=0.25).starts
    ([0, 4], [0], [0, 32, 64])

    Args:
        shape: Voxels of the volume along z, y, x.
        tile: Voxels of a window along z, y, x; y and x are multiples of 32.
        overlap: Least fraction of a window that it shares with the next one, from 0 to below 1, as far as steps of 32
            voxels in y and x allow: windows of 32 share nothing.

    Raises:
        ValueError: If tile or overlap do not fit.
    """
    if len(tile) != 3 or min(tile) < 1 or tile[1] % MULTIPLE or tile[2] % MULTIPLE:
        raise ValueError(f"tile must be (z, y, x) with y and x multiples of {MULTIPLE}; got {tile}")
    if not 0 <= overlap < 1:
        raise ValueError(f"overlap is the shared fraction of a window, from 0 to below 1; got {overlap}")
    padded = [shape[0], *(-(-n // MULTIPLE) * MULTIPLE for n in shape[1:])]
    size = triple(map(min, tile, padded))
    starts = [window_starts(n, s, overlap, m) for n, s, m in zip(padded, size, (1, MULTIPLE, MULTIPLE), strict=True)]
    return Windows(triple(shape), size, triple(starts))


def choose_tile(model: FGNet, device: torch.device) -> tuple[int, int, int]:
    """Choose the windows of a model: wide ones, of which fewer voxels overlap, where they change nothing and fit.

    GroupNorm takes its statistics from the window, and a model that has it learned from small ones. With `ChannelNorm`
    the affinities of a voxel are the same in any window that holds what the voxel sees.
    """
    wide = getattr(model.config, "norm", "group") == "channel" and (
        device.type != "cpu" or memory_limit() >= WIDE_MEMORY
    )
    return WIDE_TILE if wide else TILE


class _Blend:
    """A Gaussian-weighted mean of overlapping patches, kept for a region of the volume."""

    def __init__(self, channels: tuple[int, ...], region: Region) -> None:
        self.region = region
        self.weight = torch.zeros(region.shape)
        self.total = torch.zeros((*channels, *self.weight.shape))

    def add(self, patch: Tensor, corner: Corner) -> None:
        """Add a patch (..., d, h, w) whose first voxel lies at `corner` (z, y, x) of the volume."""
        weight = gaussian_window(tuple(patch.shape[-3:]))
        covered = Region.at(corner, weight.shape)
        shared = covered.intersect(self.region)
        cut, target = shared.within(covered), shared.within(self.region)
        self.total[..., *target] += patch.float().cpu()[..., *cut] * weight[cut]
        self.weight[target] += weight[cut]

    def mean(self) -> np.ndarray:
        """The blended array; the sums are overwritten, so call it once."""
        return self.total.div_(self.weight).numpy()


@torch.inference_mode()
def predict(
    model: FGNet,
    raw: np.ndarray,
    tile: tuple[int, int, int] | None = None,
    overlap: float = 0.25,
    device: str | torch.device | None = None,
    progress: bool = True,
    region: Region | None = None,
    three_views: bool = False,
    engine: Engine = "auto",
) -> Prediction:
    """Predict affinities and attention of a volume of any size, also smaller than a tile, or of a region of it.

    Windows lie where the shape of the whole volume puts them, and every window that overlaps the region is computed. So
    the values in a region are the same, up to rounding, as in a prediction of the whole volume.

    A model sees sections along z, and sees a membrane worst that lies in a section. Where voxels are as long in z as in
    y and x, `three_views` looks at the volume along z, y and x in turn, and keeps the least of the three affinities:
    it is enough that one view shows the membrane. That costs three times as much, more in a flat volume. Ours, not
    the paper's.

    Args:
        model: An FGNet; put into eval mode and moved to `device`.
        raw: uint8 volume (z, y, x), or anything lazy that gives it when sliced.
        tile: Window (z, y, x) in voxels; y and x multiples of 32. None for what `choose_tile` chooses.
        overlap: Least fraction of a window that it shares with the next one, from 0 to below 1, as far as steps of 32
            voxels in y and x allow: windows of 32 share nothing.
        device: Where to compute; None for where the model is.
        progress: Show a progress bar with the time left.
        region: A box inside the volume; None for all of it.
        three_views: Predict along all three axes; for volumes with isotropic voxels. Attention is that along z.
        engine: What computes: "torch", "openvino" or "onnxruntime"; "auto" takes OpenVINO for large volumes on a CPU,
            where it is installed and gives the same affinities (`engines.runtimes`). "openvino_bf16" computes all
            but the guide in bfloat16, so that affinities are slightly other ones. The progress bar names the engine.

    Raises:
        ValueError: If raw is not a non-empty uint8 volume, or tile or overlap do not fit, or the engine is unknown or
            cannot compute this model, or the processor has no bfloat16.
        ModuleNotFoundError: If the engine is not installed.
        ArithmeticError: If the engine's affinities differ from PyTorch's.
    """
    if len(raw.shape) != 3 or raw.dtype != np.uint8 or 0 in raw.shape:
        raise ValueError(f"raw must be a non-empty uint8 volume (z, y, x); got {raw.dtype} of shape {tuple(raw.shape)}")
    device = torch.device(device or _device_of(model))
    with torch.inference_mode(False), torch.no_grad():  # or weights that move could never be trained again
        model = model.to(device).eval()
    region = Region.whole(raw.shape) if region is None else region
    tile = choose_tile(model, device) if tile is None else tile
    views = [_View(raw, region, axis) for axis in range(3 if three_views else 1)]
    layouts = [lay_windows(triple(view.raw.shape), tile, overlap).overlapping(view.region) for view in views]
    network = choose_engine(model, engine, layouts[0].size, sum(windows.voxels for windows in layouts))
    maps: dict[str | int, np.ndarray] = {}
    bar = tqdm(total=sum(map(len, layouts)), desc="predict", unit="tile", disable=not progress)
    with bar, nullcontext() if isinstance(network, Converted) else freed_memory_kept():
        if isinstance(network, Converted):
            bar.set_postfix_str(network.report)
        for view, windows in zip(views, layouts, strict=True):
            patches = _patches(network, view.raw, windows, lambda sections, corner: _encode(network, sections), bar)
            seen = _blend(patches, view.region)
            if not maps:
                maps = seen
                continue
            for output in {"refined", "coarse"} & maps.keys():
                np.minimum(maps[output], view.turn_back(seen[output]), out=maps[output])
    return Prediction(
        maps.get("refined"), maps.get("coarse"), tuple(maps[s] for s in sorted(maps.keys() - {"refined", "coarse"}))
    )


class _View:
    """A volume and a region of it, turned so that its sections lie along another axis; nothing is read yet."""

    def __init__(self, raw: np.ndarray | Lazy, region: Region, axis: int) -> None:
        """Exchange z and `axis`: 0 (nothing changes), 1 for y, 2 for x."""
        self._order = [axis, *range(1, 3)]
        self._order[axis] = 0

        def cut(*box: slice) -> np.ndarray:
            return raw[self._turn(box)].transpose(self._order)

        self.raw = raw if axis == 0 else Lazy(self._turn(raw.shape), raw.dtype, cut)
        self.region = Region(*self._turn(region))

    def turn_back(self, affinities: np.ndarray) -> np.ndarray:
        """Bring affinities (3, ...) of the view into the volume's axes; channels are exchanged as the axes are."""
        return affinities[self._order].transpose(0, *(axis + 1 for axis in self._order))

    def _turn(self, along_axes: Sequence) -> tuple:
        return tuple(along_axes[axis] for axis in self._order)


@torch.inference_mode()
def predict_windows(
    model: FGNet | Converted, raw: np.ndarray | Lazy, windows: Windows, stored: Mapping[Corner, list[np.ndarray]]
) -> np.ndarray:
    """Predict the affinities of some windows alone, blended over everything that they reach.

    Args:
        model: An FGNet, on its device and in eval mode, or one that another engine computes.
        raw: uint8 volume (z, y, x), or anything lazy that gives it when sliced.
        windows: At least one window.
        stored: Features of sections, as `encode_sections` gives them, by their corner; the others are encoded here.

    Returns:
        Refined affinities, or the coarse ones of a model without refined ones: float32 (3, z, y, x) of the region
        `windows.reach`.
    """

    def features_of(sections: Tensor, corner: Corner) -> list[Tensor]:
        z, y, x = corner
        corners = [(z + i, y, x) for i in range(sections.shape[2])]
        new = [i for i, at in enumerate(corners) if at not in stored]
        encoded = [level.unbind(2) for level in _encode(model, sections[:, :, new])] if new else []
        features: dict[int, Sequence[Tensor]] = dict(zip(new, zip(*encoded, strict=True), strict=False))
        for i in set(range(len(corners))) - set(new):
            features[i] = [torch.from_numpy(level)[None].to(sections.device) for level in stored[corners[i]]]
        return [torch.stack(level, 2) for level in zip(*(features[i] for i in sorted(features)), strict=True)]

    best: Iterator[tuple[Corner, Patches]] = (
        (corner, {"best": patches["refined" if "refined" in patches else "coarse"]})
        for corner, patches in _patches(model, raw, windows, features_of, tqdm(disable=True))
    )
    return _blend(best, windows.reach)["best"]


@torch.inference_mode()
def encode_sections(model: FGNet | Converted, raw: np.ndarray, size: tuple[int, int, int]) -> list[np.ndarray]:
    """Encode sections of one tile with the guide, for `predict_windows`.

    Args:
        model: An FGNet, on its device and in eval mode, or one that another engine computes.
        raw: uint8 sections (n, y, x), smaller than a tile where the volume ends.
        size: Voxels of a window along z, y, x; sections are padded to its y and x.

    Returns:
        For each stride (n, C, h, w), float32, or float16 where the encoder computes in half precision. An empty list
        for a model without a guide.
    """
    device = _device_of(model)
    with _autocast(device) as autocast:
        features = _encode(model, _to_tensor(raw, size, device))
    dtype = torch.float16 if autocast else torch.float32
    return [level[0].transpose(0, 1).to("cpu", dtype).contiguous().numpy() for level in features]


def _device_of(model: FGNet | Converted) -> torch.device:
    """The device that computes: other engines use the CPU, wherever the model is now that they were made from."""
    return torch.device("cpu") if isinstance(model, Converted) else next(model.parameters()).device


def _encode(model: FGNet | Converted, sections: Tensor) -> list[Tensor]:
    """Encode sections (1, 1, d, h, w) with the guide, on a CPU a few at a time."""
    few = max(ENCODED // sections[0, 0, 0].numel(), 1) if sections.device.type == "cpu" else sections.shape[2]
    parts = [model.encode(some) for some in sections.split(few, dim=2)]
    return [torch.cat(level, 2) for level in zip(*parts, strict=True)]


def _blend(patches: Iterable[tuple[Corner, Patches]], region: Region) -> dict[str | int, np.ndarray]:
    """The mean of all patches in `region`, by name or stride; each patch comes with its first voxel."""
    blends: dict[str | int, _Blend] = {}
    for (z, y, x), maps in patches:
        for key, patch in maps.items():
            stride = key if isinstance(key, int) else 1
            if key not in blends:
                blends[key] = _Blend(tuple(patch.shape[:-3]), _at_stride(region, stride))
            blends[key].add(patch, (z, y // stride, x // stride))
    return {key: blend.mean() for key, blend in blends.items()}


def _at_stride(region: Region, stride: int) -> Region:
    """The voxels of a map with a stride in y and x that overlap `region`."""
    return Region(region.z, *(slice(s.start // stride, -(-s.stop // stride)) for s in (region.y, region.x)))


def _patches(
    model: FGNet | Converted, raw: np.ndarray | Lazy, windows: Windows, features_of: FeatureSource, bar: tqdm
) -> Iterator[tuple[Corner, Patches]]:
    """The maps of each window. A section is encoded once for a tile, and dropped when no window needs it any more."""
    device, (depth, height, width) = _device_of(model), windows.size
    for y, x in windows.columns:
        encoded = first = windows.starts[0][0]
        window: list[Tensor] = []  # raw sections and their features for z in [first, encoded)
        for z in windows.starts[0]:
            sections = _to_tensor(raw[encoded : z + depth, y : y + height, x : x + width], windows.size, device)
            with _autocast(device):
                new = [sections, *features_of(sections, (encoded, y, x))]
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
    width = next(iter(patches.values())).shape[-1]
    return patches | {width // a.shape[-1]: a[0].mean(0) for a in output.attention}


@contextmanager
def _autocast(device: torch.device) -> Iterator[bool]:
    """Compute in the precision that is fast on `device`; yields whether it is half precision."""
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(precision(device), torch.float32)
    half = dtype != torch.float32
    with torch.autocast(device.type, dtype, enabled=half):
        yield half


def window_starts(length: int, window: int, overlap: float, multiple: int = 1) -> list[int]:
    """Starts of windows that cover [0, length) and share at least a fraction `overlap`.

    They are multiples of `multiple`, which is also the least step, whatever the overlap.

    >>> window_starts(100, 40, 0.25)
    [0, 30, 60]
    """
    step = max(int(window * (1 - overlap)) // multiple, 1) * multiple
    return [*range(0, max(length - window, 0), step), max(length - window, 0)]


def gaussian_window(shape: tuple[int, ...]) -> Tensor:
    """Blending weights of a window (z, y, x): a Gaussian, near 1 at the centre, sigma a quarter of the side."""
    z, y, x = map(_gaussian, shape)
    return z[:, None, None] * y[:, None] * x


def _gaussian(n: int) -> Tensor:
    return torch.exp(-0.5 * ((torch.arange(n) - (n - 1) / 2) / (n / 4)) ** 2)


def _to_tensor(raw: np.ndarray, size: tuple[int, int, int], device: torch.device) -> Tensor:
    """uint8 sections (d, h, w) as float (1, 1, d, H, W) in [0, 1], the far edges repeated up to the tile's size."""
    sections = torch.from_numpy(np.ascontiguousarray(raw))[None, None].to(device).float() / 255
    height, width = sections.shape[-2:]
    return pad(sections, (0, size[2] - width, 0, size[1] - height, 0, 0), mode="replicate")
