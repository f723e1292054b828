"""FGNet, to be read beside Figure 1 of the paper (Li et al., AAAI 2026, doi 10.1609/aaai.v40i8.37606)::

    raw ─┬─ SAM2 encoder ── S1, S2, S3 ───────┬─ D_s ── coarse affinities A_s
         │                   │   │   │        │
         └─ Fine-Grained ─── FGA FGA FGA ─────┴─ D_r ── refined affinities A_r
            Encoder          a1  a2  a3

No official code is public. From the paper: the two encoders, "DW Blocks", attention made of element-wise addition and
multiplication at three scales, two decoders, watershed on A_r. Ours, where the paper's abstract and captions are
silent: the inside of the DW Block, the exact attention formula, all widths, and the decoders' depth.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fgnet_lib.sam2_encoder import STRIDES, build_encoder

Attention = Literal["residual", "plain", "per_channel", "additive"]


@dataclass(frozen=True)
class FGNetConfig:
    """What a checkpoint must know to be rebuilt.

    Attributes:
        encoder: SAM2 size, see `sam2_encoder.SIZES`; None leaves SAM2 and its guidance out (a plain 3D U-Net).
        source: What of SAM2 is read: its feature pyramid network ("fpn") or the pyramid of its trunk ("trunk").
        widths: Channels of the Fine-Grained Encoder at in-plane strides 1, 2, 4, 8, 16.
        coarse_width: Channels of the coarse decoder D_s.
        attention: "residual": F' = F + F * a; "plain": F' = F * a; "per_channel": residual, one map per channel;
            "additive": F' = F + W_v S * a, where not only where to look comes from SAM2, but also what is there.
        refined: False leaves the Fine-Grained Encoder and A_r out (SAM2 only).
        dense_levels: At so many of the finest levels dense blocks stand in for DW Blocks, see `DenseBlock`.
        far: Distances in voxels of further affinities that are learned beside those of the nearest neighbours, and
            only to learn from them (Lee et al. 2017, arXiv 1706.00120); none by default.
    """

    encoder: str | None = "tiny"
    source: Literal["fpn", "trunk"] = "fpn"
    widths: tuple[int, ...] = (32, 64, 96, 128, 160)
    coarse_width: int = 64
    attention: Attention = "residual"
    refined: bool = True
    dense_levels: int = 0
    far: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "widths", tuple(self.widths))  # JSON knows lists only
        object.__setattr__(self, "far", tuple(self.far))
        if len(self.widths) != 5:
            raise ValueError(
                f"widths needs five channel counts, for in-plane strides 1, 2, 4, 8, 16; got {self.widths}"
            )
        if self.attention not in get_args(Attention):
            raise ValueError(f"attention is {self.attention!r}; choose one of {', '.join(get_args(Attention))}")
        if self.encoder is None and not self.refined:
            raise ValueError("encoder=None and refined=False leave nothing to compute; switch one of them on")


MINI = FGNetConfig(encoder="mini", widths=(16, 32, 48, 64, 96), coarse_width=32, dense_levels=3)


class FGNetOutput(NamedTuple):
    """Logits of affinities (B, 3, D, H, W), channel order z, y, x, and the attention maps at strides 4, 8, 16."""

    coarse: Tensor | None
    refined: Tensor | None
    attention: tuple[Tensor, ...]  # each (B, 1 or C, D, H / stride, W / stride), values in [0, 1]
    coarse_far: Tensor | None = None  # (B, 3 * len(far), D, H, W), one distance after the other; None without `far`
    refined_far: Tensor | None = None


class ThinConv3d(nn.Conv3d):
    """A dense convolution that is fast on a CPU for one volume that is thin in z, too.

    PyTorch leaves a single sample to oneDNN only where channels times all axes but the last exceed a bound
    (`use_mkldnn` in ATen/native/Convolution.cpp), and else takes a loop that is up to six times as slow. There x goes
    first and z last, which gives the same sums, and a larger number.
    """

    ONEDNN_ABOVE = 20480

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or x.shape[0] > 1 or x.shape[1:4].numel() > self.ONEDNN_ABOVE:
            return super().forward(x)
        weight, stride, padding = self.weight.transpose(2, 4), self.stride[::-1], self.padding[::-1]
        return F.conv3d(x.transpose(2, 4), weight, self.bias, stride, padding).transpose(2, 4)


class DWBlock(nn.Module):
    """Depthwise 3x3x3, normalise, widen, GELU, narrow, add the input. The name is the paper's, the inside ours."""

    def __init__(self, channels: int, expand: int = 2) -> None:
        super().__init__()
        self.depthwise = nn.Conv3d(channels, channels, 3, padding=1, groups=channels)
        self.norm = nn.GroupNorm(4, channels)
        self.widen = nn.Conv3d(channels, expand * channels, 1)
        self.narrow = nn.Conv3d(expand * channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.narrow(F.gelu(self.widen(self.norm(self.depthwise(x))))).add_(x)


class DenseBlock(nn.Module):
    """Dense 3x3x3, normalise, GELU, mix, add the input. Ours, after EfficientNetV2's fused blocks (Tan and Le 2021).

    Where channels are few, a dense convolution costs less time than a depthwise one, which computes little for each
    number it moves, and sees more.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.dense = ThinConv3d(channels, channels, 3, padding=1)
        self.norm = nn.GroupNorm(4, channels)
        self.mix = nn.Conv3d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(F.gelu(self.norm(self.dense(x)))).add_(x)


def _blocks(widths: tuple[int, ...], dense_levels: int) -> list[nn.Module]:
    """One block per level, finest first."""
    return [DenseBlock(width) if i < dense_levels else DWBlock(width) for i, width in enumerate(widths)]


class FeatureGuidedAttention(nn.Module):
    """a = sigmoid(W_a ReLU(W_s S + W_f F)); F' = F + F * a. Ours, within the paper's addition and multiplication.

    `kind` may choose another second equation, as `FGNetConfig.attention` tells.
    """

    def __init__(self, guide_channels: int, channels: int, kind: str) -> None:
        super().__init__()
        self.from_guide = nn.Conv3d(guide_channels, channels, 1)
        self.from_fine = nn.Conv3d(channels, channels, 1)
        self.to_map = nn.Conv3d(channels, channels if kind == "per_channel" else 1, 1)
        self.value = nn.Conv3d(guide_channels, channels, 1) if kind == "additive" else None
        self.residual = kind != "plain"

    def forward(self, fine: Tensor, guide: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the guided features F' and the attention map a."""
        a = torch.sigmoid(self.to_map(F.relu(self.from_guide(guide) + self.from_fine(fine))))
        weighted = (fine if self.value is None else self.value(guide)) * a
        return (fine + weighted if self.residual else weighted), a


class FineGrainedEncoder(nn.Module):
    """Five levels at in-plane strides 1 to 16; z keeps its resolution. Guided from stride 4 on, as SAM2 is.

    The first level, of four times the voxels of the second, has the stem alone; its block is in the decoder.
    """

    def __init__(
        self, widths: tuple[int, ...], guide_channels: tuple[int, ...] | None, attention: str, dense_levels: int
    ) -> None:
        super().__init__()
        self.stem = nn.Conv3d(1, widths[0], (1, 5, 5), padding=(0, 2, 2))
        steps = [ThinConv3d(a, b, (1, 2, 2), stride=(1, 2, 2)) for a, b in zip(widths, widths[1:], strict=False)]
        self.downs = nn.ModuleList([nn.Identity(), *steps])
        self.blocks = nn.ModuleList([nn.GELU(), *_blocks(widths, dense_levels)[1:]])
        self.guides = nn.ModuleList(
            FeatureGuidedAttention(guide, width, attention)
            for guide, width in zip(guide_channels or (), widths[2:], strict=False)
        )

    def forward(self, raw: Tensor, guides: list[Tensor]) -> tuple[list[Tensor], tuple[Tensor, ...]]:
        """Returns the guided pyramid, fine to coarse, and the attention maps (none without guides)."""
        x, pyramid, attention = self.stem(raw), [], []
        for level, (down, block) in enumerate(zip(self.downs, self.blocks, strict=True)):
            x = block(down(x))
            if guides and level >= 2:
                x, a = self.guides[level - 2](x, guides[level - 2])
                attention.append(a)
            pyramid.append(x)
        return pyramid, tuple(attention)


class AffinityDecoder(nn.Module):
    """From the coarsest features up: project, double in-plane, add the skip, a block; pointwise heads at the end."""

    def __init__(self, widths: tuple[int, ...], dense_levels: int = 0, far: int = 0) -> None:
        super().__init__()
        self.ups = nn.ModuleList(nn.Conv3d(b, a, 1) for a, b in zip(widths, widths[1:], strict=False))
        self.blocks = nn.ModuleList(_blocks(widths[:-1], dense_levels))
        self.head = nn.Conv3d(widths[0], 3, 1)
        self.far_head = nn.Conv3d(widths[0], 3 * far, 1) if far else None

    def forward(self, pyramid: list[Tensor]) -> tuple[Tensor, Tensor | None]:
        """Returns the affinities of nearest neighbours, and those further away where there is a head for them."""
        x = pyramid[-1]
        for level in reversed(range(len(self.blocks))):
            x = F.interpolate(self.ups[level](x), scale_factor=(1.0, 2.0, 2.0), mode="nearest")
            x = self.blocks[level](x.add_(pyramid[level]))
        return self.head(x), self.far_head(x) if self.far_head else None


class FGNet(nn.Module):
    """SAM2 encoder, Fine-Grained Encoder, Feature-Guided Attention and the two affinity decoders."""

    def __init__(self, config: FGNetConfig, sam2_checkpoint: Path | None = None) -> None:
        """Build the network; SAM2 starts from a checkpoint of the official format, or at random when there is none."""
        super().__init__()
        self.config = config
        self.encoder = build_encoder(config.encoder, sam2_checkpoint, config.source) if config.encoder else None
        self.encoder_frozen = False
        if self.encoder:
            width = config.coarse_width
            self.project = nn.ModuleList(nn.Conv3d(channels, width, 1) for channels in self.encoder.channels)
            self.coarse_decoder = AffinityDecoder((width,) * len(STRIDES), far=len(config.far))
        if config.refined:
            guide_channels = self.encoder.channels if self.encoder else None
            self.fine_encoder = FineGrainedEncoder(config.widths, guide_channels, config.attention, config.dense_levels)
            self.refined_decoder = AffinityDecoder(config.widths, config.dense_levels, len(config.far))

    def freeze_encoder(self, frozen: bool = True) -> None:
        """Choose the regime: SAM2 frozen (eval mode, no gradients) or fine-tuned together with the rest."""
        self.encoder_frozen = frozen
        if self.encoder:
            self.encoder.requires_grad_(not frozen)
        self.train(self.training)

    def train(self, mode: bool = True) -> FGNet:
        super().train(mode)
        if self.encoder and self.encoder_frozen:
            self.encoder.eval()
        return self

    def encode(self, raw: Tensor) -> list[Tensor]:
        """SAM2's features of every section, for reuse in several calls of `forward`.

        Args:
            raw: float (B, 1, D, H, W) in [0, 1], any size.

        Returns:
            Features at strides 4, 8, 16 of the input padded to multiples of 32: (B, C, D, H' / stride, W' / stride).
        """
        if not self.encoder:
            return []
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.encoder_frozen):
            return self.encoder(_pad(raw))

    def forward(self, raw: Tensor, features: list[Tensor] | None = None) -> FGNetOutput:
        """Affinities and attention of a batch of volumes.

        Args:
            raw: float (B, 1, D, H, W) in [0, 1]; any D, H, W, padded inside and cropped back.
            features: What `encode` gave for the same volume; computed here when None.
        """
        if raw.ndim != 5 or raw.shape[1] != 1:
            raise ValueError(f"raw must have shape (B, 1, D, H, W); got {tuple(raw.shape)}")
        guides = self.encode(raw) if features is None else features
        height, width = raw.shape[-2:]
        coarse: list[Tensor | None] = [None, None]
        refined: list[Tensor | None] = [None, None]
        attention: tuple[Tensor, ...] = ()
        if self.encoder:
            logits = self.coarse_decoder([conv(guide) for conv, guide in zip(self.project, guides, strict=True)])
            coarse = [x if x is None else _enlarge(x)[..., :height, :width] for x in logits]
        if self.config.refined:
            pyramid, maps = self.fine_encoder(_pad(raw), guides)
            refined = [x if x is None else x[..., :height, :width] for x in self.refined_decoder(pyramid)]
            attention = tuple(a[..., : -(-height // s), : -(-width // s)] for a, s in zip(maps, STRIDES, strict=False))
        return FGNetOutput(coarse[0], refined[0], attention, coarse[1], refined[1])


def _enlarge(logits: Tensor) -> Tensor:
    """From SAM2's finest stride to all voxels, in-plane."""
    return F.interpolate(logits, scale_factor=(1.0, STRIDES[0], STRIDES[0]), mode="trilinear")


def _pad(raw: Tensor, multiple: int = 32) -> Tensor:
    """Repeat the far edge until H and W are multiples of 32, as SAM2's window position embedding needs."""
    height, width = raw.shape[-2:]
    return F.pad(raw, (0, -width % multiple, 0, -height % multiple, 0, 0), mode="replicate")
