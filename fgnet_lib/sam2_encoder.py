"""SAM2's image encoder as a feature extractor for EM sections: Hiera trunk and FPN neck, nothing else of SAM2.

The classes and configurations come from the `sam2` package, so official SAM2.1 checkpoints load as they are.
"""

from __future__ import annotations

import pickle
from pathlib import Path

import sam2
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from fgnet_lib.files.tensors import check_tensors

CONFIGS = {"tiny": "t", "small": "s", "base_plus": "b+", "large": "l"}
SIZES = ("mini", *CONFIGS)
STRIDES = (4, 8, 16)
MULTIPLE = 32  # H and W: the trunk tiles 8 x 8 windows at stride 4

# Ours: small enough to train on a CPU; no global attention, so that a pixel's view does not grow with the tile.
MINI = {
    "trunk": {"embed_dim": 32, "stages": [1, 1, 3, 1], "window_spec": [8, 4, 8, 4], "global_att_blocks": []},
    "neck": {"d_model": 64, "backbone_channel_list": [256, 128, 64, 32]},
}


class Sam2Encoder(nn.Module):
    """Encode every section of an EM patch on its own with SAM2's image encoder.

    Parameter names are those of an official checkpoint (`image_encoder.…`).

    Args:
        size: one of `SIZES`; "mini" is ours, the others are SAM2.1's.
        source: "fpn" for the neck's maps (all of one width), "trunk" for the raw Hiera pyramid.

    Attributes:
        channels: channels of the three feature maps, finest first.

    Raises:
        ValueError: an unknown size or source.

    Example:
        >>> encoder = Sam2Encoder("mini")
        >>> [tuple(features.shape) for features in encoder(torch.rand(1, 1, 2, 64, 64))]
        [(1, 64, 2, 16, 16), (1, 64, 2, 8, 8), (1, 64, 2, 4, 4)]
    """

    mean: Tensor
    std: Tensor

    def __init__(self, size: str = "tiny", source: str = "fpn") -> None:
        super().__init__()
        if size not in SIZES:
            raise ValueError(f"unknown SAM2 size {size!r}; choose one of {', '.join(SIZES)}")
        if source not in ("fpn", "trunk"):
            raise ValueError(f"unknown feature source {source!r}; choose 'fpn' or 'trunk'")
        self.size, self.source = size, source
        config = _image_encoder_config(size)
        self.image_encoder = instantiate(config)
        trunk_channels = tuple(self.image_encoder.trunk.channel_list[:0:-1])  # finest first, without stride 32
        self.channels: tuple[int, ...] = (config.neck.d_model,) * 3 if source == "fpn" else trunk_channels
        # ImageNet statistics, as SAM2 was trained with; not saved, so that the keys stay the official ones.
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1), persistent=False)

    def forward(self, raw: Tensor) -> list[Tensor]:
        """Compute the features of every section at strides 4, 8 and 16.

        Args:
            raw: float (B, 1, D, H, W) in [0, 1]; H and W multiples of 32.

        Returns:
            Three tensors (B, C_i, D, H / s, W / s), C_i from `channels`, s from `STRIDES`.

        Raises:
            ValueError: wrong dimensions, dtype, or H, W not multiples of 32.
        """
        if raw.ndim != 5 or raw.shape[1] != 1 or not raw.is_floating_point():
            raise ValueError(f"expected float (B, 1, D, H, W) in [0, 1], got {raw.dtype} {tuple(raw.shape)}")
        batch, _, depth, height, width = raw.shape
        if height % MULTIPLE or width % MULTIPLE:
            raise ValueError(f"H and W must be multiples of {MULTIPLE}, got {height} x {width}: pad the patch first")
        sections = raw.transpose(1, 2).reshape(batch * depth, 1, height, width).expand(-1, 3, -1, -1)
        sections = (sections - self.mean) / self.std
        if self.source == "fpn":
            maps = self.image_encoder(sections)["backbone_fpn"]
        else:
            maps = self.image_encoder.trunk(sections)[:3]
        return [features.unflatten(0, (batch, depth)).transpose(1, 2) for features in maps]


def build_encoder(size: str = "tiny", checkpoint: Path | None = None, source: str = "fpn") -> Sam2Encoder:
    """Build an encoder with the weights of `checkpoint`, or with random weights if None.

    Args:
        size: As of `Sam2Encoder`.
        checkpoint: A file that `load_checkpoint` reads; random weights follow `torch.manual_seed`.
        source: As of `Sam2Encoder`.
    """
    encoder = Sam2Encoder(size, source)
    if checkpoint is not None:
        load_checkpoint(encoder, checkpoint)
    return encoder


def load_checkpoint(encoder: Sam2Encoder, path: Path) -> None:
    """Load the image encoder of an official SAM2 checkpoint, `{"model": state_dict}`; all of it or nothing.

    The file is read without executing anything in it.

    Raises:
        FileNotFoundError: no such file.
        ValueError: damaged file, file that carries code, no image encoder in it, or one of another size or dtype, or
            with values that are not finite.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"no SAM2 checkpoint at {path}")
    if path.suffix == ".safetensors":
        raise ValueError(f"{path} is no checkpoint of SAM2's layout: give the official .pt file")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path} is not a plain file of weights and was refused (it may carry code)") from error
    except Exception as error:  # whatever arbitrary bytes, read as a pickle or as an archive, lead to
        if isinstance(error, (PermissionError, MemoryError)) or "can't allocate memory" in str(error):
            raise  # it says nothing about the file
        raise ValueError(f"{path} is damaged or cut short; delete it and download it again") from error
    state = content.get("model") if isinstance(content, dict) else None
    if not isinstance(state, dict):
        raise ValueError(f"{path} is not in SAM2's layout: expected a dictionary with the key 'model'")
    named = {key: value for key, value in state.items() if isinstance(key, str) and isinstance(value, Tensor)}
    state = {key: value for key, value in named.items() if key.startswith("image_encoder.")}
    # Compared before loading: load_state_dict would report a wrong shape only after copying the tensors that fit.
    expected = {key: tuple(value.shape) for key, value in encoder.state_dict().items()}
    stored = {key: tuple(value.shape) for key, value in state.items()}
    if stored != expected:
        differing = sorted(key for key in expected | stored if expected.get(key) != stored.get(key))
        raise ValueError(
            f"{path} holds {_describe(stored)}, expected size {encoder.size!r}; "
            f"{len(differing)} tensors differ or are missing, first {differing[0]}"
        )
    check_tensors(state, encoder, path)
    encoder.load_state_dict(state)


def _image_encoder_config(size: str) -> DictConfig:
    """The package's own configuration of the image encoder; "mini" is the tiny one made smaller."""
    name = f"sam2.1_hiera_{CONFIGS.get(size, 't')}.yaml"
    config = OmegaConf.load(Path(sam2.__file__).parent / "configs" / "sam2.1" / name).model.image_encoder
    # Position encodings serve SAM2's mask decoder; FGNet has none, so they are not computed.
    config.neck.position_encoding = {"_target_": "torch.nn.Identity"}
    return OmegaConf.merge(config, MINI) if size == "mini" else config


def _describe(shapes: dict[str, tuple[int, ...]]) -> str:
    """Say in words which encoder some parameter shapes belong to, judged by width and number of blocks."""
    width = sum(shapes.get("image_encoder.trunk.patch_embed.proj.bias", ()))  # one axis, or none in an odd file
    blocks = len({key.split(".")[3] for key in shapes if key.startswith("image_encoder.trunk.blocks.")})
    known = {(32, 6): "mini", (96, 12): "tiny", (96, 16): "small", (112, 24): "base_plus", (144, 48): "large"}
    return f"an image encoder of size {known[width, blocks]!r}" if (width, blocks) in known else "no SAM2 image encoder"
