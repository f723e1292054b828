"""Measure whether training under bfloat16 is faster on this CPU, and whether its loss is another; prints a table.

`TrainConfig.try_bfloat16` compares the times alone, when a run begins; this compares the losses, too. It takes a CPU
with instructions for bfloat16 (`avx512_bf16` or `amx_bf16` in /proc/cpuinfo); without them, bfloat16 is many times
slower. Both networks begin with the same weights, see the same patches of FIB-25, and take turns, so that the machine's
pace is the same for them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from datetime import date
from itertools import islice
from statistics import mean, median

import torch
from torch.utils.data import default_collate

from fgnet_lib.augment import Augment
from fgnet_lib.configuration import MINI
from fgnet_lib.datasets import open_dataset
from fgnet_lib.fgnet import FGNet
from fgnet_lib.machine import hardware
from fgnet_lib.patches import PatchDataset
from fgnet_lib.training import patch_loss

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
PATCH = (16, 128, 128)
SEEDS = (0, 1, 2)
LAST = 20  # iterations whose mean loss is compared


def train_in_turns(seed: int, iterations: int) -> Iterator[dict[str, tuple[float, float]]]:
    """Train twins; yields loss and seconds of the processor of each iteration, by the name of the type."""
    twins = {}
    for name in DTYPES:
        torch.manual_seed(seed)
        twins[name] = FGNet(MINI).train()
    optimizers = {name: torch.optim.AdamW(twin.parameters(), 1e-3) for name, twin in twins.items()}
    volume = open_dataset("fib25", "train").load()
    for sample in islice(PatchDataset([volume], PATCH, Augment(), seed, None), iterations):
        step = {}
        for name, twin in twins.items():
            start = time.process_time()
            with torch.autocast("cpu", torch.bfloat16, enabled=name == "bfloat16"):
                loss = patch_loss(twin, default_collate([sample]))
            optimizers[name].zero_grad()
            loss.backward()
            optimizers[name].step()
            step[name] = loss.item(), time.process_time() - start
        yield step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=200, help="of each of the three seeds")
    iterations = parser.parse_args().iterations
    runs = [list(train_in_turns(seed, iterations)) for seed in SEEDS]
    print(f"{date.today()}, {hardware()}, patches of {' x '.join(map(str, PATCH))}, {iterations} iterations\n")
    print(
        f"| type | seconds an iteration (median) | loss of the last {LAST} iterations, by seed |\n| --- | ---: | --- |"
    )
    for name in DTYPES:
        seconds = median(step[name][1] for run in runs for step in run)
        losses = ", ".join(f"{mean(step[name][0] for step in run[-LAST:]):.4f}" for run in runs)
        print(f"| {name} | {seconds:.3f} | {losses} |")


if __name__ == "__main__":
    main()
