"""Measure how much faster than other networks the students are, in one run and in PyTorch; prints a table (a minute).

Networks take turns, so that the machine's pace is the same for all of them. Milliseconds are those of the processor, on
one thread; weights are random but for the teacher's and the shipped student's, since time does not depend on them.
"""

from __future__ import annotations

import argparse
import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch

from datetime import date

import torch
from peer import build_peer

from fgnet_lib.fgnet import FGNet
from fgnet_lib.machine import hardware
from fgnet_lib.student import Student
from fgnet_lib.study.students import PUPILS, SLIM_UNET, WINDOW, section_milliseconds
from fgnet_lib.weights import load_model, load_pretrained


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    peer = "the field's 3D U-Net (peer.py)"
    networks = {peer: build_peer(), "a slim 3D U-Net of the same widths": FGNet(SLIM_UNET).eval()}
    networks |= {"FGNet mini, the teacher": load_pretrained(), "the shipped student": load_model("student")}
    sizes = {pupil.config: pupil.title for pupil in reversed(PUPILS.values())}  # rows of the same size: the first title
    networks |= {title: Student(config).eval() for config, title in sizes.items()}
    times = section_milliseconds(networks, WINDOW, rounds)
    print(f"{date.today()}, {hardware()}, windows of {' x '.join(map(str, WINDOW))}, median of {rounds} rounds\n")
    print("| network | parameters | ms a section | times as fast as the field's 3D U-Net |")
    print("| --- | ---: | ---: | ---: |")
    for name, milliseconds in times.items():
        count = sum(parameter.numel() for parameter in networks[name].parameters())
        print(f"| {name} | {count:,} | {milliseconds:.2f} | {times[peer] / milliseconds:.1f} |")


if __name__ == "__main__":
    main()
