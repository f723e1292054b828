"""The rows of the results table as they are declared, and the questions that they answer.

A row is a model, a regime and an amount of labelled data, trained once per seed. `tools/results/results.py` trains and
measures the rows; `fgnet_lib.study.table` reads the runs for the page of results and for lesson 07.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import torch

from fgnet_lib.configuration import MINI, FGNetConfig
from fgnet_lib.datasets import fetch
from fgnet_lib.fgnet import FGNet
from fgnet_lib.sam2_encoder import SIZES
from fgnet_lib.training import TrainConfig
from fgnet_lib.weights import PRETRAINED

SEEDS = (0, 1, 2)
SEEDS_OF_FEW = (0, 1, 2, 3, 4)  # of the natural guide's rows with 5 or 20 sections, which vary more
OFFICIAL = SIZES[1:]  # encoders that have checkpoints of Meta's
SECTIONS = 120  # of FIB-25's training part; the last 20 of its 140 choose the threshold
# Small enough that a run has nearly learned what it can after ten minutes of one core.
SMALL = replace(MINI, widths=(8, 16, 24, 32, 48), coarse_width=16)
UNET = replace(SMALL, encoder=None)
NATURAL = replace(SMALL, encoder="natural")
SHIPPED = {
    "pretrained": "encoder_mini.pt",
    "natural": "encoder_natural.safetensors",
    "natural_em": "encoder_natural_em.safetensors",
}
MADE_BY = {
    "pretrained": "make encoder",
    "natural": "python tools/results/convert_natural.py",
    "natural_em": "make encoder GUIDE=natural",
}


@dataclass(frozen=True)
class Row:
    """A model, how it is trained, and on how much: one line of the table.

    Attributes:
        title: the name that readers see.
        config: the model.
        encoder: "random", "pretrained" (`make encoder`), "natural" (ImageNet), "natural_em" (ImageNet, then EM: `make
            encoder GUIDE=natural`), or a checkpoint's name in the registry.
        frozen: the encoder's regime.
        sections: how many labelled sections it is trained on, from the first on.
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
    "unet_channel": Row("3D U-Net, channel norm", replace(UNET, norm="channel")),
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
_FORMS = {  # what is made of the guide with a natural-image prior: name -> title, configuration
    "only": ("Natural images alone (A_s)", replace(NATURAL, refined=False)),
    "residual": ("FGNet, natural images, F' = F + F a", NATURAL),
    "additive": ("FGNet, natural images, F' = F + W_v S a", replace(NATURAL, attention="additive")),
}
for _name, (_title, _config) in _FORMS.items():
    ROWS[f"natural_{_name}"] = Row(f"{_title}, frozen", _config, "natural")
    ROWS[f"natural_{_name}_random"] = Row(f"{_title}, random, frozen", _config, "random")
    if _name != "residual":  # EM on top is asked of A_s, which shows the guide alone, and of F' = F + W_v S a
        ROWS[f"natural_{_name}_em"] = Row(f"{_title.replace('images', 'images and EM')}, frozen", _config, "natural_em")
    ROWS[f"natural_{_name}_tuned"] = Row(f"{_title}, fine-tuned", _config, "natural", frozen=False)
for _name in ("natural_additive", "natural_additive_random"):  # is it photographs that help, or a norm of one voxel?
    ROWS[f"{_name}_channel"] = replace(
        ROWS[_name],
        title=f"{ROWS[_name].title}, channel norm",
        config=replace(ROWS[_name].config, norm="channel"),
    )
ZOOMED = tuple(f"{name}_zoom{zoom}" for name in ("additive", "natural_additive") for zoom in (2, 4))
for _name in ZOOMED:  # sections enlarged before the encoder, so that attention is as fine as membranes
    _base, _, _zoom = _name.rpartition("_zoom")
    ROWS[_name] = replace(
        ROWS[_base],
        title=f"{ROWS[_base].title}, sections enlarged {_zoom} times",
        config=replace(ROWS[_base].config, guide_zoom=int(_zoom)),
    )
GUIDED = ("random_frozen", "pretrained_frozen", "fine_tuned", "additive", "additive_random")

_NATURAL = [name for name in ROWS if name.startswith("natural_") and name not in ZOOMED]
_PLAIN = ("unet", "unet_channel", "unet_longer", "sam2_only", "pretrained_frozen_longer")
for _name in (*_PLAIN, *GUIDED, *_NATURAL, *ZOOMED):
    for _sections in (5, 20):
        ROWS[f"{_name}_{_sections}"] = replace(
            ROWS[_name], title=f"{ROWS[_name].title}, {_sections} sections", sections=_sections
        )

QUESTIONS = {  # the rows were made for these: the first of each pair is compared with the second
    "a guide with random weights": ("random_frozen", "unet"),
    "a guide with random weights, and the U-Net trains longer": ("random_frozen", "unet_longer"),
    "a pretrained guide, at equal iterations": ("pretrained_frozen", "unet"),
    "a pretrained guide, at equal time": ("pretrained_frozen_longer", "unet_longer"),
    "pretraining, seen in A_s alone": ("sam2_only", "sam2_only_random"),
    "pretraining, encoder frozen": ("pretrained_frozen", "random_frozen"),
    "fine-tuning, at equal iterations": ("fine_tuned", "pretrained_frozen"),
    "fine-tuning, at equal time": ("fine_tuned", "pretrained_frozen_longer"),
    "pretrained and fine-tuned, at equal iterations": ("fine_tuned", "unet"),
    "pretrained and fine-tuned, at equal time": ("fine_tuned", "unet_longer"),
    "F' = F a instead of F + F a": ("plain_attention", "pretrained_frozen"),
    "one map per channel instead of one for all": ("per_channel", "pretrained_frozen"),
    "F' = F + W_v S a instead of F + F a": ("additive", "pretrained_frozen"),
    "pretraining, with F' = F + W_v S a": ("additive", "additive_random"),
    "a norm that sees one voxel": ("unet_channel", "unet"),
    "a guide with random weights, where both have a norm of one voxel": (
        "natural_additive_random_channel",
        "unet_channel",
    ),
    "what photographs teach, in A_s alone": ("natural_only", "natural_only_random"),
    "what photographs teach, with F' = F + F a": ("natural_residual", "natural_residual_random"),
    "what photographs teach, with F' = F + W_v S a": ("natural_additive", "natural_additive_random"),
    "what photographs teach, if the norm sees one voxel": (
        "natural_additive_channel",
        "natural_additive_random_channel",
    ),
    "a norm that sees one voxel, around a guide of photographs": ("natural_additive_channel", "natural_additive"),
    "EM on top of photographs, in A_s alone": ("natural_only_em", "natural_only"),
    "EM on top of photographs, with F' = F + W_v S a": ("natural_additive_em", "natural_additive"),
    "fine-tuning the guide that knows photographs, in A_s alone": ("natural_only_tuned", "natural_only"),
    "fine-tuning the guide that knows photographs, with F' = F + W_v S a": (
        "natural_additive_tuned",
        "natural_additive",
    ),
    "fine-tuning the guide that knows photographs, with F' = F + F a": ("natural_residual_tuned", "natural_residual"),
    "a guide that knows photographs, at equal iterations": ("natural_additive", "unet"),
    "a guide that knows photographs, and the U-Net trains longer": ("natural_additive", "unet_longer"),
    "a guide that knows photographs, and the U-Net has a norm of one voxel": ("natural_additive", "unet_channel"),
    "a guide that knows photographs, where both have a norm of one voxel": ("natural_additive_channel", "unet_channel"),
    "photographs against EM, with F' = F + W_v S a": ("natural_additive", "additive"),
    "sections enlarged twice before a guide of EM": ("additive_zoom2", "additive"),
    "sections enlarged four times before a guide of EM": ("additive_zoom4", "additive"),
    "sections enlarged twice before a guide of photographs": ("natural_additive_zoom2", "natural_additive"),
    "sections enlarged four times before a guide of photographs": ("natural_additive_zoom4", "natural_additive"),
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
    "references": "published with the data",
    "shipped": "the shipped model",
    "shipped_three_views": "the shipped model, three views",
    **{name: row.title for name, row in ROWS.items()},
}
REFERENCES = {
    "fragments": "published fragments",
    "ffn_ignored": "published FFN, its gaps ignored",
    "ffn_filled": "published FFN, its gaps filled by the nearest label",
    "perfect": "perfect affinities through the same steps",
    "components": "ground truth, in the pieces that the crop leaves",
}


def training(row: Row, seed: int) -> TrainConfig:
    """The recipe of a row: the same for all rows, except for iterations and the encoder's regime."""
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


def seeds(name: str) -> tuple[int, ...]:
    """The seeds that a row is trained with."""
    few = ROWS[name].config.encoder == "natural" and ROWS[name].sections < SECTIONS
    return SEEDS_OF_FEW if few else SEEDS


def checkpoint(row: Row) -> Path | None:
    """The file of the weights that the encoder starts from, None for random ones.

    Raises:
        OSError: the file is neither in the repository nor in the cache.
    """
    if row.encoder == "random" or row.config.encoder is None:
        return None
    path = PRETRAINED / SHIPPED[row.encoder] if row.encoder in SHIPPED else fetch(row.encoder, download=False)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not here: {MADE_BY[row.encoder]}")
    return path


def build_model(row: Row, seed: int) -> FGNet:
    """The model of a row before its training, the same for the same seed.

    Raises:
        OSError: its encoder's checkpoint is not here.
    """
    torch.manual_seed(seed)
    return FGNet(row.config, checkpoint(row))
