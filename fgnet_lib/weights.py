"""Weights and configuration of a model, in one safetensors file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from fgnet_lib import REPOSITORY
from fgnet_lib.configuration import FGNetConfig
from fgnet_lib.fgnet import FGNet
from fgnet_lib.files.atomic import atomic
from fgnet_lib.files.tensors import check_tensors
from fgnet_lib.student import Student, StudentConfig

WIDEST = 1024  # channels; a file that asks for more would fill the memory before anything could be compared
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
    metadata = {"config": json.dumps(asdict(model.config)), "notes": json.dumps(notes or {})}
    return save_tensors(model.state_dict(), path, metadata)


def save_tensors(tensors: Mapping[str, Tensor], path: str | Path, metadata: dict[str, str]) -> Path:
    """Write tensors and texts as one safetensors file, which is there complete or not at all.

    Args:
        tensors: By name, on any device.
        path: Of the file; its folder is made if there is none.
        metadata: Texts by name.

    Returns:
        The path.

    Raises:
        OSError: The disk is full or cannot be written; what was there before is untouched.
    """
    path = Path(path).expanduser()
    content = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic(path) as part:
        part.write_bytes(save(content, metadata))
    return path


def read_notes(path: str | Path) -> dict[str, Any]:
    """Read the notes that `save_model` wrote beside the weights.

    Raises:
        FileNotFoundError, ValueError: As `load_model`.
    """
    return _read_entry(Path(path), "notes")


def find_checkpoint(path: str | Path) -> Path:
    """Give the absolute path of a file of weights; a model that ships with this repository needs its name alone.

    Example:
        >>> find_checkpoint("student") == PRETRAINED / "student.safetensors"
        True
    """
    local, shipped = Path(path).expanduser().absolute(), PRETRAINED / f"{path}.safetensors"
    return shipped if shipped.is_file() and not local.is_file() else local


def fingerprint_weights(weights: Path | Mapping[str, Tensor]) -> str:
    """Compute a short checksum of weights: of the names, types, shapes and values of tensors, but not of notes.

    Args:
        weights: Tensors by name, on any device; or a file of them, safetensors or a checkpoint of SAM2's layout (.pt).

    Example:
        >>> fingerprint_weights({"bias": torch.zeros(2)}) == fingerprint_weights({"bias": torch.zeros(2, 1)})
        False
    """
    if isinstance(weights, Path):
        is_safe = weights.suffix == ".safetensors"
        weights = load_file(weights) if is_safe else torch.load(weights, "cpu", weights_only=True)["model"]
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        values = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}\n".encode())
        digest.update(values.flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def read_config(path: str | Path) -> FGNetConfig | StudentConfig:
    """Read the configuration that `save_model` wrote beside the weights.

    Raises:
        FileNotFoundError, ValueError: As `load_model`.
    """
    settings = _read_entry(Path(path), "config")
    if not settings.get("far"):  # distances of further affinities, which older versions wrote into every file
        settings.pop("far", None)
    try:
        config = StudentConfig(**settings) if "embedding" in settings else FGNetConfig(**settings)
        _check_numbers(config)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: this version does not know its configuration {settings} ({error})") from error
    return config


def _check_numbers(config: FGNetConfig | StudentConfig) -> None:
    """Raise a ValueError for widths and levels that are no numbers, or for which no memory suffices."""
    for width in (*config.widths, config.embedding if isinstance(config, StudentConfig) else config.coarse_width):
        if type(width) is not int or not 1 <= width <= WIDEST:
            raise ValueError(f"a width is {width!r}; expected a whole number from 1 to {WIDEST}")
    if isinstance(config, FGNetConfig) and type(config.dense_levels) is not int:
        raise ValueError(f"dense_levels is {config.dense_levels!r}; expected a whole number")


def load_model(path: str | Path, device: str | torch.device = "cpu") -> FGNet:
    """Rebuild a model that `save_model` wrote, in eval mode, on `device`; a student is called as an FGNet is.

    Args:
        path: Of the file, or the name of a model that ships with this repository, such as "student".
        device: Where to compute.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged, is not ours, or its weights do not fit its configuration, or are not finite.
    """
    file, config = _open(Path(path)), read_config(path)
    try:
        model = Student(config) if isinstance(config, StudentConfig) else FGNet(config)
    except (TypeError, ValueError, RuntimeError) as error:  # RuntimeError: what PyTorch raises
        raise ValueError(f"{path}: no model can be built from its configuration {config} ({error})") from error
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    stored = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (not a dict)
    if wrong := sorted(name for name in expected.keys() | stored.keys() if expected.get(name) != stored.get(name)):
        raise ValueError(
            f"{path}: {len(wrong)} weights do not fit its configuration {model.config}, first {wrong[0]}: "
            f"file {stored.get(wrong[0])}, model {expected.get(wrong[0])}; was it written by another version?"
        )
    tensors = {name: file.get_tensor(name) for name in stored}
    check_tensors(tensors, model, path)
    model.load_state_dict(tensors)
    return model.to(device).eval()


def load_pretrained(device: str | torch.device = "cpu") -> FGNet:
    """Load the mini model that comes with this repository, in eval mode; `data/pretrained/README.md` is its card.

    Example:
        >>> load_pretrained().config.encoder
        'natural'
    """
    return load_model(PRETRAINED / "fgnet_mini.safetensors", device)


def pretrained_threshold() -> float:
    """Read the agglomeration threshold that was chosen for the model of `load_pretrained`, on its training sections.

    Example:
        >>> 0 < pretrained_threshold() < 1
        True
    """
    return read_notes(PRETRAINED / "fgnet_mini.safetensors")["threshold"]


def _read_entry(path: Path, name: str) -> dict[str, Any]:
    """Read a dictionary, "config" or "notes", that a file of ours has as JSON beside the weights."""
    try:
        entry = json.loads(_open(path).metadata()[name])
    except KeyError:
        raise ValueError(
            f"{path}: there is no entry {name!r} beside the weights; write the file with weights.save_model"
        ) from None
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: its entry {name!r} is damaged, or from elsewhere ({error})") from error
    if not isinstance(entry, dict):
        raise ValueError(
            f"{path}: its entry {name!r} is a {type(entry).__name__}, expected a dictionary of weights.save_model"
        )
    return entry


def _open(path: Path) -> Any:
    """Open a file of ours to read single entries (safetensors' `safe_open` has no type of its own)."""
    path = find_checkpoint(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint; shipped ones are in {PRETRAINED}")
    try:
        file = safe_open(path, framework="pt")
    except SafetensorError as error:
        raise ValueError(f"{path}: not a complete safetensors file ({error}); copy or train it again") from error
    if "config" not in (file.metadata() or {}):
        raise ValueError(f"{path}: safetensors without an FGNet configuration; write it with weights.save_model")
    return file
