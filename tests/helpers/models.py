"""Models for tests: FGNet's interface with next to nothing behind it."""

from __future__ import annotations

import torch
from torch import nn

from fgnet_lib.configuration import FGNetConfig
from fgnet_lib.fgnet import FGNetOutput


class Echo(nn.Module):
    """Answers with the grey value itself, as logits, so that a right blend gives the volume back."""

    def __init__(self):
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(1))
        self.sections_encoded = self.windows = 0

    def encode(self, raw):
        self.sections_encoded += raw.shape[2]
        return [raw[..., ::s, ::s] for s in (4, 8, 16)]

    def forward(self, raw, features):
        self.windows += 1
        assert torch.equal(features[0], raw[..., ::4, ::4])  # features and sections stay in step
        logits = torch.logit(raw.expand(-1, 3, -1, -1, -1), eps=1e-6)
        return FGNetOutput(None, logits, tuple(features))


class Tiny(nn.Module):
    """FGNet's interface in few weights, and chance in its forward pass, which resuming must get right too."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Conv3d(1, 4, 1)
        self.dropout = nn.Dropout(0.1)
        self.head = nn.Conv3d(4, 3, (1, 3, 3), padding=(0, 1, 1))
        self.calls, self.in_half, self.config = 0, set(), FGNetConfig()

    def freeze_encoder(self, frozen: bool) -> None:
        self.encoder.requires_grad_(not frozen)

    def forward(self, raw: torch.Tensor) -> FGNetOutput:
        self.calls += 1
        self.in_half.add(torch.is_autocast_enabled("cpu"))
        return FGNetOutput(None, self.head(self.dropout(torch.relu(self.encoder(raw)))), ())
