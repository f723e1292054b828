"""The rows of the results table as they are declared, and what the files of `make results` say about them.

A row is a model, a regime and an amount of labelled data, trained once per seed. `tools/results.py` trains and measures
the rows; the page of results and lessons 03 and 07 read the files, with the same functions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from fgnet_lib.datasets import fetch
from fgnet_lib.fgnet import MINI, PRETRAINED, FGNetConfig
from fgnet_lib.training import TrainConfig

SEEDS = (0, 1, 2)
SECTIONS = 120  # of FIB-25's training part; the last 20 of its 140 choose the threshold
UNET = replace(MINI, encoder=None)


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        title: what the reader sees.
        config: the model.
        encoder: "random", "pretrained" (without labels, `make encoder`), or the registry's name of a checkpoint.
        frozen: the encoder's regime.
        sections: labelled sections to train on, from the first on.
        iterations: of training.
    """

    title: str
    config: FGNetConfig
    encoder: str = "pretrained"
    frozen: bool = True
    sections: int = SECTIONS
    iterations: int = 800


ROWS = {
    "unet": Row("3D U-Net (FGE alone)", UNET),
    "unet_longer": Row("3D U-Net, as long as fine-tuned FGNet takes", UNET, iterations=1000),
    "sam2_only": Row("SAM2 alone, pretrained, frozen (A_s)", replace(MINI, refined=False)),
    "random_frozen": Row("FGNet, random encoder, frozen", MINI, "random"),
    "pretrained_frozen": Row("FGNet, pretrained encoder, frozen", MINI),
    "fine_tuned": Row("FGNet, pretrained encoder, fine-tuned", MINI, frozen=False),
    "plain_attention": Row("FGNet frozen, F' = F a", replace(MINI, attention="plain")),
    "per_channel": Row("FGNet frozen, one map per channel", replace(MINI, attention="per_channel")),
}
for _name in ("unet", "random_frozen", "pretrained_frozen", "fine_tuned"):
    for _sections in (5, 20):
        ROWS[f"{_name}_{_sections}"] = replace(
            ROWS[_name], title=f"{ROWS[_name].title}, {_sections} sections", sections=_sections
        )
for _size in ("tiny", "small", "base_plus", "large"):
    ROWS[f"sam2_{_size}"] = Row(
        f"FGNet, SAM2.1 {_size}, frozen", replace(MINI, encoder=_size), f"sam2.1_hiera_{_size}.pt"
    )


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
