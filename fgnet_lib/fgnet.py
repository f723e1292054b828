"""FGNet, to be read beside Figure 1 of the paper (Li et al., AAAI 2026, doi 10.1609/aaai.v40i8.37606)::

    raw ─┬─ SAM2 encoder ── S1, S2, S3 ───────┬─ D_s ── coarse affinities A_s
         │                   │   │   │        │
         └─ Fine-Grained ─── FGA FGA FGA ─────┴─ D_r ── refined affinities A_r
            Encoder          a1  a2  a3

No official code is public. From the paper: the two encoders, "DW Blocks", attention made of element-wise addition and
multiplication at three scales, two decoders, watershed on A_r. Ours, where the paper's abstract and captions are
silent: the inside of the DW Block, the exact attention formula, all widths, and the decoders' depth.

Shapes are written behind the steps, in these letters:
    B: batch size, the volumes that are computed together
    C: channels of the fine features, one of `FGNetConfig.widths` at each level
    G: channels of SAM2's features, the guide
    D, H, W: sections, rows and columns of the volume (z, y, x), H and W padded to multiples of 32
    h, w: rows and columns at a level, H / stride and W / stride
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fgnet_lib.configuration import AttentionForm, FGNetConfig
from fgnet_lib.machine import ThinConv3d
from fgnet_lib.natural_encoder import NaturalEncoder, build_natural_encoder
from fgnet_lib.residual_blocks import Norm, residual_blocks
from fgnet_lib.sam2_encoder import MULTIPLE, STRIDES, Sam2Encoder, build_encoder


class FGNetOutput(NamedTuple):
    """Logits of affinities (B, 3, D, H, W), channel order z, y, x, and the attention maps at strides 4, 8, 16."""

    coarse: Tensor | None  # A_s; None for a model without SAM2
    refined: Tensor | None  # A_r; None for a model of SAM2 only
    attention: tuple[Tensor, ...]  # each (B, 1 or C, D, h, w), values in [0, 1]


class FeatureGuidedAttention(nn.Module):
    """a = sigmoid(W_a ReLU(W_s S + W_f F)); F' by `FGNetConfig.attention`, F * a in the model that ships.

    Ours, within the paper's addition and multiplication.
    """

    def __init__(self, guide_channels: int, channels: int, form: AttentionForm) -> None:
        super().__init__()
        self.from_guide = nn.Conv3d(guide_channels, channels, 1)  # W_s
        self.from_fine = nn.Conv3d(channels, channels, 1)  # W_f
        self.to_map = nn.Conv3d(channels, channels if form == "per_channel" else 1, 1)  # W_a
        self.value = nn.Conv3d(guide_channels, channels, 1) if form == "additive" else None  # W_v
        self.form = form

    def forward(self, fine: Tensor, guide: Tensor) -> tuple[Tensor, Tensor]:
        """Compute F' and a from the fine features F (B, C, D, h, w) and SAM2's features S (B, G, D, h, w)."""
        mixed = F.relu(self.from_guide(guide) + self.from_fine(fine))  # (B, C, D, h, w)
        a = torch.sigmoid(self.to_map(mixed))  # (B, 1, D, h, w), or one map per channel
        if self.form == "plain":
            return fine * a, a
        if self.value is not None:
            return fine + self.value(guide) * a, a
        return fine + fine * a, a


class FineGrainedEncoder(nn.Module):
    """Five levels at in-plane strides 1 to 16; z keeps its resolution. Guided at the strides of SAM2's maps.

    The first level, of four times the voxels of the second, has the stem alone; its block is in the decoder.
    """

    def __init__(self, config: FGNetConfig, guide_channels: Sequence[int]) -> None:
        super().__init__()
        widths = config.widths
        self.stem = nn.Conv3d(1, widths[0], (1, 5, 5), padding=(0, 2, 2))
        steps = [ThinConv3d(a, b, (1, 2, 2), stride=(1, 2, 2)) for a, b in zip(widths, widths[1:], strict=False)]
        self.downs = nn.ModuleList([nn.Identity(), *steps])  # nothing at level 0, so that an index is a level
        self.blocks = nn.ModuleList([nn.Identity(), *residual_blocks(widths, config.dense_levels, config.norm)[1:]])
        self.guided_from = config.strides[0].bit_length() - 1  # level 2 for strides 4, 8, 16
        pairs = zip(guide_channels, widths[self.guided_from :], strict=False)
        self.guides = nn.ModuleList(FeatureGuidedAttention(s, c, config.attention) for s, c in pairs)

    def forward(self, raw: Tensor, guides: list[Tensor]) -> tuple[list[Tensor], tuple[Tensor, ...]]:
        """Compute the guided pyramid, fine to coarse, and the attention maps (none if `guides` is empty)."""
        x = F.gelu(self.stem(raw))  # (B, C, D, H, W)
        pyramid, attention = [], []
        for level, (down, block) in enumerate(zip(self.downs, self.blocks, strict=True)):
            x = block(down(x))  # (B, C, D, h, w): h and w are halved at every level after the first
            i = level - self.guided_from
            if 0 <= i < len(guides):  # strides 4, 8, 16 or finer ones, where SAM2 has features
                x, a = self.guides[i](x, guides[i])  # (B, C, D, h, w) and (B, 1, D, h, w)
                attention.append(a)
            pyramid.append(x)
        return pyramid, tuple(attention)


class AffinityDecoder(nn.Module):
    """From the coarsest features up: project, double in-plane, add the skip, a block; a pointwise head at the end."""

    def __init__(self, widths: tuple[int, ...], dense_levels: int = 0, norm: Norm = "group") -> None:
        super().__init__()
        self.ups = nn.ModuleList(nn.Conv3d(b, a, 1) for a, b in zip(widths, widths[1:], strict=False))
        self.blocks = nn.ModuleList(residual_blocks(widths[:-1], dense_levels, norm))
        self.head = nn.Conv3d(widths[0], 3, 1)

    def forward(self, pyramid: list[Tensor]) -> Tensor:
        """Compute logits of affinities (B, 3, D, h, w) at the stride of the finest features of `pyramid`."""
        x = pyramid[-1]  # (B, C, D, h, w) of the coarsest level
        for level in reversed(range(len(self.blocks))):
            x = self.ups[level](x)  # (B, C, D, h, w): C of the level above, h and w still of the level below
            x = F.interpolate(x, scale_factor=(1.0, 2.0, 2.0), mode="nearest")  # h and w doubled
            x += pyramid[level]  # in place: a new tensor at full resolution would cost time
            x = self.blocks[level](x)
        return self.head(x)  # (B, 3, D, h, w)


class FGNet(nn.Module):
    """SAM2 encoder, Fine-Grained Encoder, Feature-Guided Attention and the two affinity decoders.

    Example:
        >>> from fgnet_lib.configuration import MINI
        >>> model = FGNet(MINI).eval()
        >>> output = model(torch.rand(1, 1, 2, 40, 50))
        >>> tuple(output.refined.shape)
        (1, 3, 2, 40, 50)
        >>> [tuple(a.shape) for a in output.attention]
        [(1, 1, 2, 10, 13), (1, 1, 2, 5, 7), (1, 1, 2, 3, 4)]
    """

    def __init__(self, config: FGNetConfig, sam2_checkpoint: Path | None = None) -> None:
        """Build the network; SAM2 starts from a checkpoint of the official format, or at random without one."""
        super().__init__()
        self.config = config
        self.encoder = _build_guide(config, sam2_checkpoint)
        self.encoder_frozen = False
        if self.encoder:
            width = config.coarse_width
            self.project = nn.ModuleList(nn.Conv3d(channels, width, 1) for channels in self.encoder.channels)
            self.coarse_decoder = AffinityDecoder((width,) * len(STRIDES), norm=config.norm)
        if config.refined:
            self.fine_encoder = FineGrainedEncoder(config, self.encoder.channels if self.encoder else ())
            self.refined_decoder = AffinityDecoder(config.widths, config.dense_levels, config.norm)

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
        """Compute SAM2's features of every section, for reuse in several calls of `forward`.

        Args:
            raw: float (B, 1, D, H, W) in [0, 1], any size.

        Returns:
            Features (B, G, D, h, w) at the configuration's `strides` of the padded input; none for a model without
            SAM2.
        """
        if not self.encoder:
            return []
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.encoder_frozen):
            return self.encoder(_enlarge(_pad(raw), self.config.guide_zoom))

    def forward(self, raw: Tensor, features: list[Tensor] | None = None) -> FGNetOutput:
        """Compute affinities and attention of a batch of volumes.

        Args:
            raw: float (B, 1, D, H, W) in [0, 1]; any D, H, W, padded inside and cropped back.
            features: What `encode` gave for the same volumes; computed here when None.

        Raises:
            ValueError: If raw has another shape.
        """
        if raw.ndim != 5 or raw.shape[1] != 1:
            raise ValueError(f"raw must have shape (B, 1, D, H, W); got {tuple(raw.shape)}")
        guides = self.encode(raw) if features is None else features  # S1, S2, S3: (B, G, D, h, w) each
        height, width = raw.shape[-2:]
        strides = self.config.strides
        coarse, refined = None, None
        maps: tuple[Tensor, ...] = ()
        if self.encoder:
            pyramid = [project(guide) for project, guide in zip(self.project, guides, strict=True)]
            logits = self.coarse_decoder(pyramid)  # (B, 3, D, h, w) at the first stride
            logits = F.interpolate(logits, scale_factor=(1.0, strides[0], strides[0]), mode="trilinear")
            coarse = logits[..., :height, :width]  # A_s: (B, 3, D, H, W) without the padding
        if self.config.refined:
            pyramid, maps = self.fine_encoder(_pad(raw), guides)
            refined = self.refined_decoder(pyramid)[..., :height, :width]  # A_r: (B, 3, D, H, W)
        sizes = (((height + s - 1) // s, (width + s - 1) // s) for s in strides)  # rounded up
        attention = tuple(a[..., :h, :w] for a, (h, w) in zip(maps, sizes, strict=False))
        return FGNetOutput(coarse, refined, attention)


def _build_guide(config: FGNetConfig, checkpoint: Path | None) -> Sam2Encoder | NaturalEncoder | None:
    if config.encoder is None:
        return None
    if config.encoder == "natural":
        return build_natural_encoder(checkpoint)
    return build_encoder(config.encoder, checkpoint, config.source)


def _pad(raw: Tensor) -> Tensor:
    """Repeat the far edge until H and W are multiples of 32, as SAM2's window position embedding needs."""
    height, width = raw.shape[-2:]
    return F.pad(raw, (0, -width % MULTIPLE, 0, -height % MULTIPLE, 0, 0), mode="replicate")


def _enlarge(raw: Tensor, zoom: int) -> Tensor:
    """Enlarge sections in y and x, bilinearly; z stays as it is."""
    if zoom == 1:
        return raw
    return F.interpolate(raw, scale_factor=(1.0, zoom, zoom), mode="trilinear")
