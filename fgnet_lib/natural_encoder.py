"""A guide that learned from photographs: EfficientNet-Lite0 (Tan and Le 2019, arXiv 1905.11946) up to stride 16.

A declared stand-in for SAM2's encoder where SAM2.1's weights cannot be downloaded: it knows natural images from
ImageNet's labels, not SAM2's masks, and is forty times smaller. Its weights come with this repository.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from fgnet_lib.files.tensors import check_tensors

# expansion, kernel, stride, channels, blocks; the maps at strides 4, 8 and 16 are those after stages 1, 2 and 4
STAGES = ((1, 3, 1, 16, 1), (6, 3, 2, 24, 2), (6, 5, 2, 40, 2), (6, 3, 2, 80, 3), (6, 5, 1, 112, 3))
GUIDES = (1, 2, 4)
STEM = 32  # channels, at stride 2
MEAN, DEVIATION = 127 / 255, 128 / 255  # of the grey values that it was trained with


class _Convolution(nn.Conv2d):
    """A 2D convolution padded as TensorFlow pads images of even sides: with stride 2, more at the far side."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride, groups=groups)
        self.before, self.after = (kernel - stride) // 2, (kernel - stride + 1) // 2
        _keep_size(self)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (self.before, self.after, self.before, self.after)))


def _keep_size(convolution: nn.Conv2d) -> nn.Conv2d:
    """Give a convolution random weights that keep the size of the features, and return it."""
    nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
    nn.init.zeros_(convolution.get_parameter("bias"))
    return convolution


class _Bottleneck(nn.Module):
    """Widen, look around in each channel alone, narrow; the input is added where shapes allow it."""

    def __init__(self, inputs: int, outputs: int, expansion: int, kernel: int, stride: int) -> None:
        super().__init__()
        wide = inputs * expansion
        self.widen = _keep_size(nn.Conv2d(inputs, wide, 1)) if expansion > 1 else None
        self.depthwise = _Convolution(wide, wide, kernel, stride, groups=wide)
        self.narrow = _keep_size(nn.Conv2d(wide, outputs, 1))
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        wide = F.relu6(self.widen(x)) if self.widen else x
        narrow = self.narrow(F.relu6(self.depthwise(wide)))
        return narrow + x if self.residual else narrow


class NaturalEncoder(nn.Module):
    """Encode every section of an EM patch on its own with EfficientNet-Lite0, as `Sam2Encoder` does with SAM2.

    Its batch normalisation is part of the convolutions' weights, as at inference, so that neither training mode nor
    the other sections of a batch change a feature. Grey sections need one input channel: the stem's weights are the
    sums over the three colours.

    Attributes:
        channels: Channels of the three feature maps, finest first.
    """

    channels = tuple(STAGES[stage][3] for stage in GUIDES)

    def __init__(self) -> None:
        """Random weights, repeatable by `torch.manual_seed`."""
        super().__init__()
        self.stem = _Convolution(1, STEM, 3, 2)
        stages, inputs = [], STEM
        for expansion, kernel, stride, outputs, blocks in STAGES:
            stage = [_Bottleneck(inputs, outputs, expansion, kernel, stride)]
            stage += [_Bottleneck(outputs, outputs, expansion, kernel, 1) for _ in range(blocks - 1)]
            stages.append(nn.Sequential(*stage))
            inputs = outputs
        self.stages = nn.ModuleList(stages)

    def forward(self, raw: Tensor) -> list[Tensor]:
        """Features of every section at strides 4, 8 and 16.

        Args:
            raw: float (B, 1, D, H, W) in [0, 1]; H and W multiples of 16.

        Returns:
            Three tensors (B, C_i, D, H / s, W / s), C_i from `channels`.

        Raises:
            ValueError: If dimensions or dtype are wrong, or H, W are not multiples of 16.
        """
        if raw.ndim != 5 or raw.shape[1] != 1 or not raw.is_floating_point():
            raise ValueError(f"expected float (B, 1, D, H, W) in [0, 1], got {raw.dtype} {tuple(raw.shape)}")
        if raw.shape[3] % 16 or raw.shape[4] % 16:
            raise ValueError(f"H and W must be multiples of 16, got {raw.shape[3]} x {raw.shape[4]}: pad the patch")
        batch, depth = raw.shape[0], raw.shape[2]
        x = F.relu6(self.stem((raw.transpose(1, 2).flatten(0, 1) - MEAN) / DEVIATION))  # (B D, 32, H / 2, W / 2)
        if not torch.jit.is_tracing():  # for another runtime, which has orders of its own
            x = x.contiguous(memory_format=torch.channels_last)  # PyTorch needs half the time for what follows
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x.unflatten(0, (batch, depth)).transpose(1, 2))
        return [maps[stage] for stage in GUIDES]


def build_natural_encoder(checkpoint: Path | None = None) -> NaturalEncoder:
    """An encoder with the weights of a safetensors file, or random ones if None.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged or holds other weights, or weights that are not finite.
    """
    encoder = NaturalEncoder()
    if checkpoint is None:
        return encoder
    if not Path(checkpoint).is_file():
        raise FileNotFoundError(f"{checkpoint}: no such weights")
    try:
        tensors = load_file(checkpoint)
        encoder.load_state_dict(tensors)
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(f"{checkpoint} does not hold the weights of a natural encoder: {error}") from error
    check_tensors(tensors, encoder, checkpoint)
    return encoder
