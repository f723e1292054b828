"""Look inside a network: the features, attention and affinities of a section, also with attention set to a value."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from fgnet_lib.fgnet import FeatureGuidedAttention, FGNet
from fgnet_lib.sam2_encoder import MULTIPLE, STRIDES
from fgnet_lib.volumes import Region


@contextmanager
def attention_set_to(
    model: FGNet, level: int, value: float | Literal["mean"], region: np.ndarray | None = None
) -> Iterator[None]:
    """Let the model compute, within the context, with the attention map `level` replaced by a constant.

    The guided features of that level follow from the model's own equation (`FGNetConfig.attention`), as does all that
    comes after. Contexts for several levels may be nested.

    Args:
        model: FGNet with attention.
        level: 1, 2 or 3 for a1, a2, a3.
        value: in [0, 1]; "mean" for the mean of the map over z, y and x, which keeps how strong the attention is and
            removes where it is. The mean is taken over what the model is given: with `predict`, over each window.
        region: bool (y, x), which raw voxels, in every section; only the pixels of the map that they touch are
            replaced. None for the whole map. It has to be as large as the sections that the model is given, so with
            `predict` only a volume of a single window has regions.

    Raises:
        ValueError: the model has no such map, or the value is not in [0, 1]; while the model computes, its sections are
            not as large as `region`.
    """
    guides = model.fine_encoder.guides if model.config.refined else ()
    if level not in range(1, len(guides) + 1):
        raise ValueError(f"this model has no attention map {level!r}; it has {len(guides)} maps, counted from 1")
    if value != "mean" and not (isinstance(value, numbers.Real) and 0 <= value <= 1):
        raise ValueError(f"attention lies in [0, 1]; got {value!r}; choose such a number, or 'mean'")

    def replace(_layer: nn.Module, _inputs: tuple[Tensor, ...], logits: Tensor) -> Tensor:
        a = logits.sigmoid().mean((2, 3, 4), keepdim=True) if value == "mean" else torch.tensor(float(value)).to(logits)
        constant = torch.logit(a).expand_as(logits)  # in front of the sigmoid, so that the model's own equation goes on
        if region is None:
            return constant
        voxels = torch.from_numpy(region).to(logits)[None, None]
        touched = functional.max_pool2d(voxels, stride, ceil_mode=True)[0, 0] > 0
        (height, width), (rows, columns) = logits.shape[-2:], touched.shape
        most = [-(-n // MULTIPLE) * MULTIPLE // stride for n in region.shape]  # the model may have padded its input
        if not (rows <= height <= most[0] and columns <= width <= most[1]):
            raise ValueError(
                f"the region is {region.shape} voxels in y and x, but the model was given sections of "
                f"{(height * stride, width * stride)}; use windows as large as the region, or region=None"
            )
        return torch.where(functional.pad(touched, (0, width - columns, 0, height - rows)), constant, logits)

    guide, stride = guides[level - 1], model.config.strides[level - 1]
    assert isinstance(guide, FeatureGuidedAttention)
    handle = guide.to_map.register_forward_hook(replace)
    try:
        yield
    finally:
        handle.remove()


CONTEXT = 2  # sections before and after the ones that are kept; a1 sees 3 to each side, with falling weight
VOXELS = 1_000_000  # at once: about 0.5 GB with the mini model; at least five sections
CACHE = 512 * 2**20  # bytes

GRADIENTS = 64  # kept; one takes 0.1 MB in a section of 512 x 512
GRADIENT_WINDOW = 256  # voxels in y and x: with gradients the network needs several times the memory


class WhatIf(NamedTuple):
    """Attention set to a value.

    Attributes:
        levels: 1, 2, 3 for a1, a2, a3.
        value: as `attention_set_to` takes it.
        region: which raw voxels (y, x), as `np.packbits` packs them, in bytes; None for everywhere.
    """

    levels: tuple[int, ...]
    value: float | Literal["mean"]
    region: bytes | None = None


def _unpack(bits: bytes, shape: Sequence[int]) -> np.ndarray:
    """Return the region (y, x) that `WhatIf` holds."""
    return np.unpackbits(np.frombuffer(bits, np.uint8), count=math.prod(shape)).reshape(shape).astype(bool)


class Gradient(NamedTuple):
    """How a single affinity answers to attention.

    Attributes:
        logit: of the affinity, in front of the sigmoid; it flips where this passes 0.
        maps: for a1, a2, a3 the change of the logit for a change of 1 of a pixel, float32 (y, x), of the voxel's
            section; what follows in the levels behind is included.
        sums: for a1, a2, a3 the change of the logit if all of the map, in all sections, changed by 1 (to first order).
    """

    logit: float
    maps: tuple[np.ndarray, ...]
    sums: tuple[float, ...]


class Inspected(NamedTuple):
    """What a model computes for one section (y, x); maps have ceil(y / s) x ceil(x / s) pixels at strides s = 4, 8, 16.

    Attributes:
        attention: a1, a2, a3, float32 in [0, 1]; none for a model without attention.
        sam2: SAM2's features (C, ...), float16; none for a model without SAM2.
        response: length of the Fine-Grained Encoder's feature vectors F', as they go on to the decoder, float32; none
            for a model without that encoder.
        affinities: A_r, or A_s of a model without A_r, float32 (3, y, x) in [0, 1].
    """

    attention: tuple[np.ndarray, ...]
    sam2: tuple[np.ndarray, ...]
    response: tuple[np.ndarray, ...]
    affinities: np.ndarray


class Inspector:
    """Computes what a model makes of a volume, section by section, for exploring.

    Sections are computed whole, a few at a time with their neighbours, and the last used ones are kept (512 MB).
    Values differ a little from those of `inference.predict`, which sees more sections at once and blends tiles.
    """

    def __init__(self, model: FGNet, raw: np.ndarray) -> None:
        """
        Args:
            model: put into eval mode; computes where it is.
            raw: uint8 (z, y, x), in memory or lazy; at most about 768 x 768 in y and x if memory is short.
        """
        self.model = model.eval()
        self._raw = raw
        self._together = max(1, VOXELS // (raw.shape[1] * raw.shape[2]) - 2 * CONTEXT)
        self._cache: dict[tuple[int, WhatIf | None], list[Inspected]] = {}  # the last used at the end
        self._maps: dict[WhatIf | None, tuple[np.ndarray, ...]] = {}
        self._gradients: dict[tuple[int, ...], Gradient] = {}

    def section(self, z: int, what_if: WhatIf | None = None) -> Inspected:
        """Return section `z`, with attention as it is or with the maps of `what_if` set to its value.

        Levels of `what_if` that the model does not have are ignored.
        """
        block, k = divmod(z, self._together)
        sections = self._cache.pop((block, what_if), None) or self._compute(block * self._together, what_if)
        self._cache[block, what_if] = sections
        size = sum(array.nbytes for section in sections for arrays in section for array in arrays)
        while len(self._cache) * size > CACHE and len(self._cache) > 1:
            del self._cache[next(iter(self._cache))]
        return sections[k]

    def attention(self, what_if: WhatIf | None = None) -> tuple[np.ndarray, ...]:
        """Return a1, a2, a3 of all sections, float32 (z, y, x); none for a model without attention.

        The last two answers are kept.
        """
        if what_if not in self._maps:
            sections = (self.section(z, what_if).attention for z in range(self._raw.shape[0]))
            self._maps[what_if] = tuple(np.stack(level) for level in zip(*sections, strict=True))
            if len(self._maps) > 2:
                del self._maps[next(iter(self._maps))]
        return self._maps[what_if]

    def gradient(self, channel: int, z: int, y: int, x: int) -> Gradient:
        """Return how the affinity `channel` (0, 1, 2 for z, y, x) of a voxel answers to attention.

        It is computed in a window of at most 256 x 256 voxels around the voxel and two sections to each side; outside
        of the window the maps are 0. A model without attention gives no maps. The last 64 answers are kept.
        """
        key = (channel, z, y, x)
        if key not in self._gradients:
            self._gradients[key] = self._compute_gradient(*key)
            if len(self._gradients) > GRADIENTS:
                del self._gradients[next(iter(self._gradients))]
        return self._gradients[key]

    def _compute_gradient(self, channel: int, z: int, y: int, x: int) -> Gradient:
        shape, side, coarse = self._raw.shape, GRADIENT_WINDOW, STRIDES[-1]
        last = (-(-(n - side) // coarse) for n in shape[1:])
        # the window begins where pixels of all levels begin
        top, left = (max(0, min((at - side // 2) // coarse, n)) * coarse for at, n in zip((y, x), last, strict=True))
        window = Region.at((max(z - CONTEXT, 0), top, left), (2 * CONTEXT + 1, side, side))
        window = window.intersect(Region.whole(shape))
        at = [n - start for n, start in zip((z, y, x), window.start, strict=True)]
        leaves: list[Tensor] = []
        with self._leaves(leaves):
            raw = self._load(window)
            output = self.model(raw, self.model.encode(raw))
            logits = output.coarse if output.refined is None else output.refined
            assert logits is not None
            logit = logits[0, channel][*at]
            gradients = torch.autograd.grad(logit, leaves) if leaves else ()
        maps = []
        for gradient, stride in zip(gradients, self.model.config.strides, strict=False):
            whole = np.zeros([-(-n // stride) for n in shape[1:]], np.float32)
            inside = whole[top // stride :, left // stride :]  # and of the gradient no more: the model pads
            part = gradient[0, :, at[0]].sum(0)[: inside.shape[0], : inside.shape[1]].cpu().numpy()
            inside[: part.shape[0], : part.shape[1]] = part
            maps.append(whole)
        return Gradient(logit.item(), tuple(maps), tuple(float(gradient.sum()) for gradient in gradients))

    @contextmanager
    def _leaves(self, leaves: list[Tensor]) -> Iterator[None]:
        """Let the model add a zero to each attention map, collected in `leaves`: its gradient is that of the map."""

        def add_leaf(_layer: nn.Module, _inputs: tuple[Tensor, ...], logits: Tensor) -> Tensor:
            leaves.append(torch.zeros_like(logits).requires_grad_())
            return torch.logit(logits.sigmoid() + leaves[-1], eps=1e-6)

        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        with ExitStack() as stack, torch.enable_grad():
            for parameter in trained:  # their gradients would need most of the memory
                stack.callback(parameter.requires_grad_)
                parameter.requires_grad_(False)
            for guide in self.model.fine_encoder.guides if self.model.config.refined else ():
                assert isinstance(guide, FeatureGuidedAttention)
                stack.callback(guide.to_map.register_forward_hook(add_leaf).remove)
            yield

    def _load(self, region: Region) -> Tensor:
        """Return raw values in [0, 1] of a part, where the model computes."""
        device = next(self.model.parameters()).device
        return torch.from_numpy(np.asarray(self._raw[*region])).to(device)[None, None].float() / 255

    @torch.inference_mode()
    def _compute(self, first: int, what_if: WhatIf | None) -> list[Inspected]:
        """Sections `first` and following, as many as are kept together."""
        shape = self._raw.shape
        block = Region.at((first, 0, 0), (self._together, *shape[1:])).intersect(Region.whole(shape))
        context = block.grow((CONTEXT, 0, 0), shape)
        raw = self._load(context)
        pyramid: list[Tensor] = []
        with ExitStack() as stack:
            if self.model.config.refined:
                hook = self.model.fine_encoder.register_forward_hook(
                    lambda m, _in, out: pyramid.extend(out[0][m.guided_from :])
                )
                stack.callback(hook.remove)
                levels, value, bits = what_if or WhatIf((), 0.0)
                region = None if bits is None else _unpack(bits, shape[1:])
                for level in levels if self.model.fine_encoder.guides else ():
                    stack.enter_context(attention_set_to(self.model, level, value, region))
            sam2 = self.model.encode(raw)
            output = self.model(raw, sam2)
        logits = output.coarse if output.refined is None else output.refined
        attention = [a[0].mean(0).float() for a in output.attention]  # per-channel attention is shown as its mean
        features = [level[0].half() for level in sam2]
        response = [level[0].float().norm(dim=0) for level in pyramid]
        affinities = logits[0].sigmoid().float()
        sizes = [
            (-(-shape[1] // s), -(-shape[2] // s)) for s in self.model.config.strides
        ]  # without what the model had to pad

        def crop(maps: list[Tensor], k: int) -> tuple[np.ndarray, ...]:
            return tuple(part[..., k, :h, :w].cpu().numpy().copy() for part, (h, w) in zip(maps, sizes, strict=False))

        sections = block.within(context).z
        return [
            Inspected(crop(attention, k), crop(features, k), crop(response, k), affinities[:, k].cpu().numpy().copy())
            for k in range(sections.start, sections.stop)
        ]
