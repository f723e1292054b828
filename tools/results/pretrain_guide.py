"""Pretrain a guide on EM without a label that a person drew (`make encoder`, `make encoder GUIDE=natural`).

First it paints hidden parts of sections: FIB-25's unlabelled ones and the phantom, in the proportion of their voxels.
Then it learns, with a coarse decoder that is thrown away, the affinities of synthetic volumes, whose objects are known.
The mini encoder begins at random; its file has the layout of an official SAM2 checkpoint, so whatever takes one,
`FGNet(config, checkpoint)` or `build_encoder("mini", checkpoint)`, takes this. The natural encoder begins with what it
knows of photographs. It learns at a quarter of the rate, so that it forgets less, and for fewer iterations.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import fgnet_lib  # noqa: F401  before torch: it tells torch's threads how to wait

# isort: split
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from fgnet_lib.configuration import MINI
from fgnet_lib.datasets import open_dataset
from fgnet_lib.fgnet import FGNet
from fgnet_lib.files.atomic import atomic
from fgnet_lib.machine import choose_device
from fgnet_lib.phantom import make_phantom
from fgnet_lib.study.pretraining import pretrain
from fgnet_lib.study.rows import SHIPPED
from fgnet_lib.study.runs import name_weights
from fgnet_lib.training import TrainConfig, train
from fgnet_lib.weights import PRETRAINED

PAINTING = TrainConfig(
    patch=(16, 128, 128),
    iterations=6000,
    learning_rate=2e-3,
    warmup=200,
    ema=0.999,
    encoder_lr_factor=1.0,
    checkpoint_every=500,
    seed=0,
)
AFFINITIES = replace(PAINTING, iterations=4000, ema=0.998, freeze_encoder=False)
FROM_PHOTOGRAPHS = {"iterations": 2000, "encoder_lr_factor": 0.25, "try_bfloat16": True}
PHANTOMS = range(10, 16)  # their seeds; the phantom of the lessons has others
WEIGHTS = {"mini": SHIPPED["pretrained"], "natural": SHIPPED["natural_em"]}


def save_guide(model: FGNet, guide: str, path: Path) -> None:
    """Write the encoder of a model; the natural one with its licence and origin, and what was changed."""
    state = model.encoder.state_dict()
    with atomic(path) as part:
        if guide == "mini":
            torch.save({"model": state}, part)
            return
        with safe_open(PRETRAINED / SHIPPED["natural"], framework="pt") as file:
            notes = {key: value for key, value in file.metadata().items() if key != "features"}
        notes["licence"] = f"CC BY 4.0 (FIB-25, Takemura et al. 2015, Janelia FlyEM); began with {notes['licence']}"
        notes["changes"] += "; then trained on EM without hand-drawn labels by tools/results/pretrain_guide.py"
        save_file(state, part, notes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--guide", choices=WEIGHTS, default="mini")
    parser.add_argument("--out", type=Path, help="of the weights (a file of data/pretrained)")
    parser.add_argument("--work", type=Path, default=Path("out/encoder"), help="checkpoints, to resume from")
    arguments = parser.parse_args()
    out = arguments.out or PRETRAINED / WEIGHTS[arguments.guide]
    change = FROM_PHOTOGRAPHS if arguments.guide == "natural" else {}
    start = name_weights(SHIPPED["natural"]) if arguments.guide == "natural" else {}
    before = PRETRAINED / SHIPPED["natural"] if start else None
    work = arguments.work / "-".join([arguments.guide, *start.values()])  # not to go on from other weights

    torch.manual_seed(PAINTING.seed)
    model = FGNet(replace(MINI, encoder=arguments.guide, refined=False, coarse_width=16), before).to(choose_device())
    volumes = [open_dataset("fib25", "unlabelled").load(), open_dataset("phantom", "train").load()]
    painting = pretrain(model.encoder, volumes, replace(PAINTING, **change), work / "painting")
    phantoms = [make_phantom((48, 256, 256), seed) for seed in PHANTOMS]
    affinities = train(model, phantoms, replace(AFFINITIES, **change), work / "affinities")
    save_guide(model, arguments.guide, out)
    for name, history in (("painting", painting), ("affinities", affinities)):
        last = sum(history.loss[-100:]) / len(history.loss[-100:])
        print(f"{name}: {history.seconds[-1] / 60:.0f} minutes, mean loss of the last 100 iterations {last:.3f}")


if __name__ == "__main__":
    main()
