"""The rows of the results table as they are declared, and what the files of `make results` say about them.

A row is a model, a regime and an amount of labelled data, trained once per seed. `tools/results/results.py` trains and
measures the rows; the page of results and lessons 03 and 07 read the files, with the same functions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import torch

from fgnet_lib.datasets import fetch
from fgnet_lib.fgnet import MINI, FGNet, FGNetConfig
from fgnet_lib.sam2_encoder import SIZES
from fgnet_lib.training import TrainConfig
from fgnet_lib.weights import PRETRAINED

SEEDS = (0, 1, 2)
OFFICIAL = SIZES[1:]  # encoders that have checkpoints of Meta's
SECTIONS = 120  # of FIB-25's training part; the last 20 of its 140 choose the threshold
# Small enough that a run comes near the end of its learning in some ten minutes of one core.
SMALL = replace(MINI, widths=(8, 16, 24, 32, 48), coarse_width=16)
UNET = replace(SMALL, encoder=None)


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        title: what the reader sees.
        config: the model.
        encoder: "random", "pretrained" (by `make encoder`), or the registry's name of a checkpoint.
        frozen: the encoder's regime.
        sections: labelled sections to train on, from the first on.
        iterations: of training.
    """

    title: str
    config: FGNetConfig
    encoder: str = "pretrained"
    frozen: bool = True
    sections: int = SECTIONS
    iterations: int = 1200


ROWS = {
    "unet": Row("3D U-Net (FGE alone)", UNET),
    "unet_longer": Row("3D U-Net, as long as fine-tuned FGNet takes", UNET, iterations=2050),
    "sam2_only": Row("SAM2 alone, pretrained, frozen (A_s)", replace(SMALL, refined=False)),
    "sam2_only_random": Row("SAM2 alone, random, frozen (A_s)", replace(SMALL, refined=False), "random"),
    "random_frozen": Row("FGNet, random encoder, frozen", SMALL, "random"),
    "pretrained_frozen": Row("FGNet, pretrained encoder, frozen", SMALL),
    "pretrained_frozen_longer": Row("FGNet frozen, trained as long as fine-tuned", SMALL, iterations=1600),
    "fine_tuned": Row("FGNet, pretrained encoder, fine-tuned", SMALL, frozen=False),
    "plain_attention": Row("FGNet frozen, F' = F a", replace(SMALL, attention="plain")),
    "per_channel": Row("FGNet frozen, one map per channel", replace(SMALL, attention="per_channel")),
    "additive": Row("FGNet frozen, F' = F + W_v S a", replace(SMALL, attention="additive")),
    "additive_random": Row("FGNet frozen, F' = F + W_v S a, random", replace(SMALL, attention="additive"), "random"),
}
GUIDED = ("random_frozen", "pretrained_frozen", "fine_tuned", "additive", "additive_random")

for _name in ("unet", "unet_longer", "sam2_only", "pretrained_frozen_longer", *GUIDED):
    for _sections in (5, 20):
        ROWS[f"{_name}_{_sections}"] = replace(
            ROWS[_name], title=f"{ROWS[_name].title}, {_sections} sections", sections=_sections
        )

QUESTIONS = {  # what the rows were made for: the first of each pair is compared with the second
    "a guide at all, without knowledge": ("random_frozen", "unet"),
    "the same, the U-Net with more time": ("random_frozen", "unet_longer"),
    "a guide that knows, at equal iterations": ("pretrained_frozen", "unet"),
    "a guide that knows, at equal time": ("pretrained_frozen_longer", "unet_longer"),
    "what pretraining knows, by A_s alone": ("sam2_only", "sam2_only_random"),
    "pretraining, encoder frozen": ("pretrained_frozen", "random_frozen"),
    "fine-tuning, at equal iterations": ("fine_tuned", "pretrained_frozen"),
    "fine-tuning, at equal time": ("fine_tuned", "pretrained_frozen_longer"),
    "all of it, at equal iterations": ("fine_tuned", "unet"),
    "all of it, at equal time": ("fine_tuned", "unet_longer"),
    "F' = F a instead of F + F a": ("plain_attention", "pretrained_frozen"),
    "a map for each channel instead of one": ("per_channel", "pretrained_frozen"),
    "F + W_v S a: what SAM2 sees is added": ("additive", "pretrained_frozen"),
    "pretraining, in F + W_v S a": ("additive", "additive_random"),
}

# The same comparison with each of SAM2.1's encoders instead of the mini one: "fine_tuned_tiny_5" and so on.
for _size, _name in product(OFFICIAL, GUIDED):
    for _sections in (SECTIONS, 20, 5):
        _row = ROWS[_name if _sections == SECTIONS else f"{_name}_{_sections}"]
        ROWS[f"{_name}_{_size}" + f"_{_sections}" * (_sections != SECTIONS)] = replace(
            _row,
            title=f"SAM2.1 {_size}: {_row.title}",
            config=replace(_row.config, encoder=_size),
            encoder=_row.encoder if _row.encoder == "random" else f"sam2.1_hiera_{_size}.pt",
        )

TITLES = {
    "references": "what came with the data",
    "shipped": "the shipped model",
    **{name: row.title for name, row in ROWS.items()},
}
REFERENCES = {
    "fragments": "fragments that came with the data",
    "ffn_ignored": "published FFN, zeros ignored",
    "ffn_filled": "published FFN, zeros filled by the nearest",
}


def training(row: Row, seed: int) -> TrainConfig:
    """How a row is trained; the same for all but for what the row is about."""
    return TrainConfig(
        patch=(8, 128, 128),
        iterations=row.iterations,
        learning_rate=2e-3,
        warmup=50,
        ema=0.99,
        freeze_encoder=row.frozen,
        checkpoint_every=100,
        seed=seed,
    )


def checkpoint(row: Row) -> Path | None:
    """The encoder's first weights, None for random ones.

    Raises:
        OSError: they are neither here nor in the cache.
    """
    if row.encoder == "random" or row.config.encoder is None:
        return None
    path = PRETRAINED / "encoder_mini.pt" if row.encoder == "pretrained" else fetch(row.encoder, download=False)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not here: make encoder")
    return path


def untrained(row: Row, seed: int) -> FGNet:
    """The model of a row before its training.

    Raises:
        OSError: its encoder's checkpoint is not here.
    """
    torch.manual_seed(seed)
    return FGNet(row.config, checkpoint(row))
