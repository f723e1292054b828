"""Weights and configuration of a model, in one safetensors file."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from fgnet_lib import REPOSITORY
from fgnet_lib.fgnet import FGNet, FGNetConfig

PRETRAINED = REPOSITORY / "data" / "pretrained"


def save_model(model: FGNet, path: str | Path, notes: dict | None = None) -> Path:
    """Write weights, configuration and notes (training data, threshold, ...) as safetensors, appearing atomically."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"config": json.dumps(asdict(model.config)), "notes": json.dumps(notes or {})}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    partial = path.with_name(path.name + ".tmp")
    save_file(tensors, partial, metadata)
    os.replace(partial, path)
    return path


def read_notes(path: str | Path) -> dict:
    """The notes that `save_model` wrote beside the weights.

    Raises:
        FileNotFoundError, ValueError: As `load_model`.
    """
    return json.loads(_open(Path(path)).metadata()["notes"])


def read_config(path: str | Path) -> FGNetConfig:
    """The configuration that `save_model` wrote beside the weights.

    Raises:
        FileNotFoundError, ValueError: As `load_model`.
    """
    return FGNetConfig(**json.loads(_open(Path(path)).metadata()["config"]))


def load_model(path: str | Path, device: str | torch.device = "cpu") -> FGNet:
    """Rebuild a model that `save_model` wrote, in eval mode.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged, is not ours, or its weights do not fit its configuration.
    """
    file, model = _open(Path(path)), FGNet(read_config(path))
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (not a dict)
    if wrong := sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)):
        raise ValueError(
            f"{path}: {len(wrong)} weights do not fit its configuration {model.config}, first {wrong[0]}: "
            f"file {found.get(wrong[0])}, model {expected.get(wrong[0])}; was it written by another version?"
        )
    model.load_state_dict({name: file.get_tensor(name) for name in found})
    return model.to(device).eval()


def load_pretrained(name: str = "fgnet_mini", device: str | torch.device = "cpu") -> FGNet:
    """A model that comes with this repository, see `data/pretrained/README.md` for how it was trained."""
    return load_model(PRETRAINED / f"{name}.safetensors", device)


def _open(path: Path) -> safe_open:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint; shipped ones are in {PRETRAINED}")
    try:
        file = safe_open(path, framework="pt")
    except SafetensorError as error:
        raise ValueError(f"{path}: not a complete safetensors file ({error}); copy or train it again") from error
    if "config" not in (file.metadata() or {}):
        raise ValueError(f"{path}: safetensors without an FGNet configuration; write checkpoints with fgnet.save_model")
    return file
