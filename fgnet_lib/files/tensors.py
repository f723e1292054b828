"""Tensors from files of weights, compared with the model that they are meant for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn


def check_tensors(tensors: Mapping[str, Tensor], model: nn.Module, path: str | Path) -> None:
    """Raise an error unless a file's tensors have the dtypes of the model's, and only finite values.

    PyTorch would load integers for fractions, and NaN, without a word.

    Args:
        tensors: Of the file, by the names of the model's state.
        model: What they are for.
        path: The file, which an error names.

    Raises:
        ValueError: Another dtype, NaN or an infinite value; names the file and the first such tensor.
    """
    state = model.state_dict()
    for name, tensor in tensors.items():
        if tensor.dtype != state[name].dtype:
            raise ValueError(
                f"{path}: {name} is {tensor.dtype}, expected {state[name].dtype}; save the weights as that"
            )
        if not tensor.isfinite().all():
            raise ValueError(
                f"{path}: {name} holds NaN or infinite values; no prediction could be right, train it again"
            )
