"""Change one thing inside a network and see what follows: attention maps set to a value while the rest computes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

from fgnet_lib.fgnet import FGNet


@contextmanager
def attention_set_to(model: FGNet, level: int, value: float | Literal["mean"]) -> Iterator[None]:
    """Within the context, the model computes with the attention map `level` replaced by a constant.

    The guided features of that level follow from the model's own equation (`FGNetConfig.attention`), as does all that
    comes after. Contexts for several levels may be nested.

    Args:
        model: FGNet with attention.
        level: 1, 2 or 3 for a1, a2, a3.
        value: in [0, 1]; "mean" for the mean of the map over z, y and x, which keeps how much and removes where. It is
            that of the volume which the model is given: with `predict`, of each window.

    Raises:
        ValueError: the model has no such map, or the value is no weight.
    """
    guides = model.fine_encoder.guides if model.config.refined else ()
    if level not in range(1, len(guides) + 1):
        raise ValueError(f"there is no attention {level!r} in this model; it has {len(guides)} maps")
    if value != "mean" and not (isinstance(value, int | float) and 0 <= value <= 1):
        raise ValueError(f"attention lies in [0, 1]; got {value!r}; choose such a number, or 'mean'")

    def replace(_layer: nn.Module, _inputs: tuple[Tensor, ...], logits: Tensor) -> Tensor:
        a = logits.sigmoid().mean((2, 3, 4), keepdim=True) if value == "mean" else torch.tensor(float(value)).to(logits)
        return torch.logit(a).expand_as(logits)  # in front of the sigmoid, so that the model's own equation goes on

    handle = guides[level - 1].to_map.register_forward_hook(replace)
    try:
        yield
    finally:
        handle.remove()
