"""Pretrain the mini encoder on sections without labels (`make encoder`).

FIB-25's unlabelled sections and the phantom, in the proportion of their voxels. The file has the layout of an official
SAM2 checkpoint, so whatever takes one, `FGNet(config, checkpoint)` or `build_encoder("mini", checkpoint)`, takes this.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import fgnet_lib  # noqa: F401  before torch: it tells torch's threads how to wait

# isort: split
import torch

from fgnet_lib.datasets import open_dataset
from fgnet_lib.fgnet import PRETRAINED
from fgnet_lib.pretraining import pretrain
from fgnet_lib.sam2_encoder import build_encoder
from fgnet_lib.training import TrainConfig
from fgnet_lib.volumes import atomic

RECIPE = TrainConfig(
    patch=(16, 128, 128),
    iterations=6000,
    learning_rate=2e-3,
    warmup=200,
    ema=0.999,
    encoder_lr_factor=1.0,
    checkpoint_every=500,
    seed=0,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=PRETRAINED / "encoder_mini.pt")
    parser.add_argument("--work", type=Path, default=Path("out/encoder"), help="checkpoints, to resume from")
    arguments = parser.parse_args()

    volumes = [open_dataset("fib25", "unlabelled").load(), open_dataset("phantom", "train").load()]
    torch.manual_seed(RECIPE.seed)
    encoder = build_encoder("mini")
    history = pretrain(encoder, volumes, RECIPE, arguments.work)
    with atomic(arguments.out) as part:
        torch.save({"model": encoder.state_dict()}, part)
    last = sum(history.loss[-100:]) / len(history.loss[-100:])
    print(f"{arguments.out}: {history.seconds[-1] / 60:.0f} minutes, mean loss of the last 100 iterations {last:.3f}")


if __name__ == "__main__":
    main()
