"""The switches of FGNet: everything that is needed to build a model again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from fgnet_lib.residual_blocks import Norm
from fgnet_lib.sam2_encoder import STRIDES

AttentionForm = Literal["residual", "plain", "per_channel", "additive"]
ZOOMS = (1, 2, 4)  # how many times sections may be enlarged for the guide


@dataclass(frozen=True)
class FGNetConfig:
    """Everything that is needed to build a model again; a file of weights holds it too.

    Attributes:
        encoder: Size of SAM2's encoder, one of `sam2_encoder.SIZES`, or "natural", a stand-in that knows photographs
            (`natural_encoder`); None leaves SAM2 out (a plain 3D U-Net).
        source: Where SAM2's features come from: its feature pyramid network ("fpn") or its trunk ("trunk").
        widths: Channels of the Fine-Grained Encoder at in-plane strides 1, 2, 4, 8, 16.
        coarse_width: Channels of the coarse decoder D_s.
        attention: "residual": F' = F + F * a; "plain": F' = F * a; "per_channel": residual, one map per channel;
            "additive": F' = F + W_v S * a, where SAM2 decides not only where to look, but also what to add.
        refined: False leaves the Fine-Grained Encoder and A_r out (SAM2 only).
        dense_levels: How many levels, from the finest on, have a `DenseBlock` instead of a `DWBlock`.
        guide_zoom: How many times sections are enlarged in y and x before the encoder sees them, one of `ZOOMS`. The
            guide's maps, and attention with them, then come at strides 4, 2 or 1 of the raw and at twice and four
            times that, so that they are finer, and the encoder costs 4 or 16 times as much.
        norm: "group": GroupNorm, whose statistics are those of the window; "channel": `ChannelNorm`, those of a voxel.
    """

    encoder: str | None = "tiny"
    source: Literal["fpn", "trunk"] = "fpn"
    widths: tuple[int, ...] = (32, 64, 96, 128, 160)
    coarse_width: int = 64
    attention: AttentionForm = "residual"
    refined: bool = True
    dense_levels: int = 0
    norm: Norm = "group"
    guide_zoom: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "widths", tuple(self.widths))  # JSON knows lists only
        if len(self.widths) != 5:
            raise ValueError(f"widths needs five channel counts, for strides 1, 2, 4, 8, 16; got {self.widths}")
        if self.attention not in get_args(AttentionForm):
            raise ValueError(f"attention is {self.attention!r}; choose one of {', '.join(get_args(AttentionForm))}")
        if self.norm not in get_args(Norm):
            raise ValueError(f"norm is {self.norm!r}; choose one of {', '.join(get_args(Norm))}")
        if self.guide_zoom not in ZOOMS:
            raise ValueError(f"guide_zoom is {self.guide_zoom!r}; choose one of {', '.join(map(str, ZOOMS))}")
        if self.encoder is None and not self.refined:
            raise ValueError("encoder=None and refined=False leave nothing to compute; switch one of them on")

    @property
    def strides(self) -> tuple[int, ...]:
        """Strides of the guide's maps in voxels of the raw, finest first: 4, 8, 16 where sections are not enlarged."""
        return tuple(stride // self.guide_zoom for stride in STRIDES)


MINI = FGNetConfig(encoder="mini", widths=(16, 32, 48, 64, 96), coarse_width=32, dense_levels=3)
