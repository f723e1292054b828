"""Pretrain the mini encoder without a label that a person drew (`make encoder`).

First it paints hidden parts of sections: FIB-25's unlabelled ones and the phantom, in the proportion of their voxels.
Then it learns, with a coarse decoder that is thrown away, the affinities of synthetic volumes, whose objects are known.
The file has the layout of an official SAM2 checkpoint, so whatever takes one, `FGNet(config, checkpoint)` or
`build_encoder("mini", checkpoint)`, takes this.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import fgnet_lib  # noqa: F401  before torch: it tells torch's threads how to wait

# isort: split
import torch

from fgnet_lib.configuration import MINI
from fgnet_lib.datasets import open_dataset
from fgnet_lib.fgnet import FGNet
from fgnet_lib.files.atomic import atomic
from fgnet_lib.phantom import make_phantom
from fgnet_lib.study.pretraining import pretrain
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
PHANTOMS = range(10, 16)  # their seeds; the phantom of the lessons has others


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=PRETRAINED / "encoder_mini.pt")
    parser.add_argument("--work", type=Path, default=Path("out/encoder"), help="checkpoints, to resume from")
    arguments = parser.parse_args()

    torch.manual_seed(PAINTING.seed)
    model = FGNet(replace(MINI, refined=False, coarse_width=16))
    volumes = [open_dataset("fib25", "unlabelled").load(), open_dataset("phantom", "train").load()]
    painting = pretrain(model.encoder, volumes, PAINTING, arguments.work / "painting")
    phantoms = [make_phantom((48, 256, 256), seed) for seed in PHANTOMS]
    affinities = train(model, phantoms, AFFINITIES, arguments.work / "affinities")
    with atomic(arguments.out) as part:
        torch.save({"model": model.encoder.state_dict()}, part)
    for name, history in (("painting", painting), ("affinities", affinities)):
        last = sum(history.loss[-100:]) / len(history.loss[-100:])
        print(f"{name}: {history.seconds[-1] / 60:.0f} minutes, mean loss of the last 100 iterations {last:.3f}")


if __name__ == "__main__":
    main()
