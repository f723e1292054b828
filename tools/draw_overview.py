"""Draw the README's picture, docs/overview.png, with the shipped model on the phantom (`make picture`)."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt

from fgnet_lib import plots
from fgnet_lib.datasets import open_dataset
from fgnet_lib.fgnet import PRETRAINED, load_pretrained, read_notes
from fgnet_lib.inference import predict
from fgnet_lib.meshes import largest_ids, neuron_meshes
from fgnet_lib.segmentation import segment

PICTURE = Path(__file__).resolve().parents[1] / "docs" / "overview.png"


def main() -> None:
    plots.style()
    volume = open_dataset("phantom", "val").load()
    prediction = predict(load_pretrained(), volume.raw)
    threshold = read_notes(PRETRAINED / "fgnet_mini.safetensors")["threshold"]
    neurons = segment(prediction.refined, volume.voxel_size, threshold)
    z = volume.shape[0] // 2

    figure = plt.figure(figsize=(17, 4.2), layout="constrained")
    axes = figure.subplots(1, 4, width_ratios=(1, 1, 1, 1.3))
    plots.show_section(axes[0], volume.raw, voxel_size=volume.voxel_size, z=z, title="EM (phantom)")
    plots.show_affinities(axes[1], prediction.refined, voxel_size=volume.voxel_size, z=z, title="affinities")
    plots.show_section(axes[2], volume.raw, neurons, voxel_size=volume.voxel_size, z=z, title="neurons found")
    axes[3].remove()
    ax = figure.add_subplot(1, 4, 4, projection="3d")
    plots.neurons_3d(ax, neuron_meshes(neurons, volume.voxel_size, largest_ids(neurons, 12)), "the largest in 3D")
    ax.get_legend().remove()
    figure.savefig(PICTURE, dpi=80)


if __name__ == "__main__":
    main()
