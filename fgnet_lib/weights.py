"""Weights and configuration of a model, in one safetensors file."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from fgnet_lib import REPOSITORY
from fgnet_lib.fgnet import FGNet, FGNetConfig
from fgnet_lib.files.atomic import atomic

PRETRAINED = REPOSITORY / "data" / "pretrained"


def save_model(model: FGNet, path: str | Path, notes: dict[str, Any] | None = None) -> Path:
    """Write weights, configuration and notes as one safetensors file, which is there complete or not at all.

    Args:
        model: Weights on any device.
        path: Of the file; its folder is made if there is none.
        notes: What JSON can hold about the model: training data, threshold, scores.

    Returns:
        The path.
    """
    path = Path(path)
    metadata = {"config": json.dumps(asdict(model.config)), "notes": json.dumps(notes or {})}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    with atomic(path) as part:
        save_file(tensors, part, metadata)
    return path


def read_notes(path: str | Path) -> dict[str, Any]:
    """Read the notes that `save_model` wrote beside the weights.

    Raises:
        FileNotFoundError, ValueError: As `load_model`.
    """
    return json.loads(_open(Path(path)).metadata()["notes"])


def read_config(path: str | Path) -> FGNetConfig:
    """Read the configuration that `save_model` wrote beside the weights.

    Raises:
        FileNotFoundError, ValueError: As `load_model`.
    """
    settings = json.loads(_open(Path(path)).metadata()["config"])
    if not settings.get("far"):  # distances of further affinities, which older versions wrote into every file
        settings.pop("far", None)
    try:
        return FGNetConfig(**settings)
    except TypeError as error:
        raise ValueError(f"{path}: this version does not know its configuration {settings} ({error})") from error


def load_model(path: str | Path, device: str | torch.device = "cpu") -> FGNet:
    """Rebuild a model that `save_model` wrote, in eval mode, on `device`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged, is not ours, or its weights do not fit its configuration.
    """
    file, model = _open(Path(path)), FGNet(read_config(path))
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    stored = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (not a dict)
    if wrong := sorted(name for name in expected.keys() | stored.keys() if expected.get(name) != stored.get(name)):
        raise ValueError(
            f"{path}: {len(wrong)} weights do not fit its configuration {model.config}, first {wrong[0]}: "
            f"file {stored.get(wrong[0])}, model {expected.get(wrong[0])}; was it written by another version?"
        )
    model.load_state_dict({name: file.get_tensor(name) for name in stored})
    return model.to(device).eval()


def load_pretrained(device: str | torch.device = "cpu") -> FGNet:
    """Load the mini model that comes with this repository, in eval mode; `data/pretrained/README.md` is its card.

    Example:
        >>> load_pretrained().config.encoder
        'mini'
    """
    return load_model(PRETRAINED / "fgnet_mini.safetensors", device)


def pretrained_threshold() -> float:
    """Read the agglomeration threshold that was chosen for the model of `load_pretrained`, on its training sections.

    Example:
        >>> 0 < pretrained_threshold() < 1
        True
    """
    return read_notes(PRETRAINED / "fgnet_mini.safetensors")["threshold"]


def _open(path: Path) -> Any:
    """Open a file of ours to read single entries (safetensors' `safe_open` has no type of its own)."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint; shipped ones are in {PRETRAINED}")
    try:
        file = safe_open(path, framework="pt")
    except SafetensorError as error:
        raise ValueError(f"{path}: not a complete safetensors file ({error}); copy or train it again") from error
    if "config" not in (file.metadata() or {}):
        raise ValueError(f"{path}: safetensors without an FGNet configuration; write it with weights.save_model")
    return file
