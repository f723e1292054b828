"""Train FGNet from the shell, on one device or on many: what lesson 04 does in a notebook.

    python tools/results/train.py --dataset cremi_a --encoder tiny --out out/cremi_a
    accelerate launch --multi_gpu --num_processes 4 tools/results/train.py --dataset cremi_a --encoder tiny --out out/c

Started again with the same arguments it goes on from its last checkpoint.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import fgnet_lib  # noqa: F401  before torch: it tells torch's threads how to wait

# isort: split
import torch

from fgnet_lib.configuration import MINI, FGNetConfig
from fgnet_lib.datasets import DATASETS, fetch, open_dataset
from fgnet_lib.fgnet import FGNet
from fgnet_lib.machine import choose_device
from fgnet_lib.sam2_encoder import SIZES
from fgnet_lib.training import TrainConfig, train
from fgnet_lib.weights import PRETRAINED, save_model


def build(encoder: str) -> FGNet:
    """An FGNet with a pretrained encoder; everything else starts at random."""
    if encoder != "mini":
        return FGNet(FGNetConfig(encoder=encoder), fetch(f"sam2.1_hiera_{encoder}.pt"))
    return FGNet(MINI, PRETRAINED / "encoder_mini.pt")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", choices=sorted(DATASETS), default="phantom")
    parser.add_argument("--encoder", choices=sorted(SIZES), default="mini")
    parser.add_argument("--fine-tune", action="store_true", help="train SAM2's encoder too")
    parser.add_argument("--patch", type=int, nargs=3, default=(16, 160, 160), metavar=("Z", "Y", "X"))
    parser.add_argument("--batch", type=int, default=1, help="patches at a time on each device")
    parser.add_argument("--iterations", type=int, default=10_000)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--out", type=Path, required=True, help="folder of checkpoints and of model.safetensors")
    arguments = parser.parse_args()

    config = TrainConfig(
        patch=tuple(arguments.patch),
        batch=arguments.batch,
        iterations=arguments.iterations,
        learning_rate=arguments.learning_rate,
        warmup=arguments.iterations // 50,
        ema=0.999,
        freeze_encoder=not arguments.fine_tune,
        try_bfloat16=True,
    )
    torch.manual_seed(config.seed)
    model = build(arguments.encoder).to(choose_device())
    train(model, [open_dataset(arguments.dataset, "train").load()], config, arguments.out)
    if os.environ.get("RANK", "0") == "0":  # all processes hold the same weights; the first writes them
        print(save_model(model, arguments.out / "model.safetensors"))


if __name__ == "__main__":
    main()
