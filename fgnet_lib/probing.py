"""Look inside a network: the features, attention and affinities of a section, also with attention set to a value."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fgnet_lib.fgnet import FeatureGuidedAttention, FGNet
from fgnet_lib.sam2_encoder import STRIDES
from fgnet_lib.volumes import Region


@contextmanager
def attention_set_to(model: FGNet, level: int, value: float | Literal["mean"]) -> Iterator[None]:
    """Let the model compute, within the context, with the attention map `level` replaced by a constant.

    The guided features of that level follow from the model's own equation (`FGNetConfig.attention`), as does all that
    comes after. Contexts for several levels may be nested.

    Args:
        model: FGNet with attention.
        level: 1, 2 or 3 for a1, a2, a3.
        value: in [0, 1]; "mean" for the mean of the map over z, y and x, which keeps how strong the attention is and
            removes where it is. The mean is taken over what the model is given: with `predict`, over each window.

    Raises:
        ValueError: the model has no such map, or the value is not in [0, 1].
    """
    guides = model.fine_encoder.guides if model.config.refined else ()
    if level not in range(1, len(guides) + 1):
        raise ValueError(f"this model has no attention map {level!r}; it has {len(guides)} maps, counted from 1")
    if value != "mean" and not (isinstance(value, int | float) and 0 <= value <= 1):
        raise ValueError(f"attention lies in [0, 1]; got {value!r}; choose such a number, or 'mean'")

    def replace(_layer: nn.Module, _inputs: tuple[Tensor, ...], logits: Tensor) -> Tensor:
        a = logits.sigmoid().mean((2, 3, 4), keepdim=True) if value == "mean" else torch.tensor(float(value)).to(logits)
        return torch.logit(a).expand_as(logits)  # in front of the sigmoid, so that the model's own equation goes on

    guide = guides[level - 1]
    assert isinstance(guide, FeatureGuidedAttention)
    handle = guide.to_map.register_forward_hook(replace)
    try:
        yield
    finally:
        handle.remove()


CONTEXT = 2  # sections before and after the ones that are kept; a1 sees 3 to each side, with falling weight
VOXELS = 1_000_000  # at once: about 0.5 GB with the mini model; at least five sections
CACHE = 512 * 2**20  # bytes

WhatIf = tuple[tuple[int, ...], float | Literal["mean"]]  # levels whose attention is set, and to what


class Inspected(NamedTuple):
    """What a model computes for one section (y, x); maps have ceil(y / s) x ceil(x / s) pixels at strides s = 4, 8, 16.

    Attributes:
        attention: a1, a2, a3, float32 in [0, 1]; none for a model without attention.
        sam2: SAM2's features (C, ...), float16; none for a model without SAM2.
        response: length of the Fine-Grained Encoder's feature vectors F', as they go on to the decoder, float32; none
            for a model without that encoder.
        affinities: A_r, or A_s of a model without A_r, float16 (3, y, x) in [0, 1].
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

    @torch.inference_mode()
    def _compute(self, first: int, what_if: WhatIf | None) -> list[Inspected]:
        """Sections `first` and following, as many as are kept together."""
        shape = self._raw.shape
        block = Region.at((first, 0, 0), (self._together, *shape[1:])).intersect(Region.whole(shape))
        context = block.grow((CONTEXT, 0, 0), shape)
        device = next(self.model.parameters()).device
        raw = torch.from_numpy(np.asarray(self._raw[*context])).to(device)[None, None].float() / 255
        pyramid: list[Tensor] = []
        with ExitStack() as stack:
            if self.model.config.refined:
                hook = self.model.fine_encoder.register_forward_hook(lambda _m, _in, out: pyramid.extend(out[0][2:]))
                stack.callback(hook.remove)
                levels, value = what_if or ((), 0.0)
                for level in levels if self.model.fine_encoder.guides else ():
                    stack.enter_context(attention_set_to(self.model, level, value))
            sam2 = self.model.encode(raw)
            output = self.model(raw, sam2)
        logits = output.coarse if output.refined is None else output.refined
        attention = [a[0].mean(0).float() for a in output.attention]  # per-channel attention is shown as its mean
        features = [level[0].half() for level in sam2]
        response = [level[0].float().norm(dim=0) for level in pyramid]
        affinities = logits[0].sigmoid().half()
        sizes = [(-(-shape[1] // s), -(-shape[2] // s)) for s in STRIDES]  # without what the model had to pad

        def crop(maps: list[Tensor], k: int) -> tuple[np.ndarray, ...]:
            return tuple(part[..., k, :h, :w].cpu().numpy().copy() for part, (h, w) in zip(maps, sizes, strict=False))

        sections = block.within(context).z
        return [
            Inspected(crop(attention, k), crop(features, k), crop(response, k), affinities[:, k].cpu().numpy().copy())
            for k in range(sections.start, sections.stop)
        ]
