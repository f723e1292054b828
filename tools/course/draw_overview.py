"""Draw the README's picture, docs/overview.png, with the shipped model on the phantom (`make picture`)."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt

from fgnet_lib.datasets import open_dataset
from fgnet_lib.inference import predict
from fgnet_lib.segmentation import segment
from fgnet_lib.views import plots
from fgnet_lib.views.meshes import largest_ids, neuron_meshes
from fgnet_lib.weights import load_pretrained, pretrained_threshold

PICTURE = Path(__file__).resolve().parents[2] / "docs" / "overview.png"


def main() -> None:
    plots.style()
    volume = open_dataset("phantom", "val").load()
    prediction = predict(load_pretrained(), volume.raw, progress=False)
    threshold = pretrained_threshold()
    neurons = segment(prediction.refined, volume.voxel_size, threshold)
    z = volume.shape[0] // 2

    figure = plt.figure(figsize=(16, 4.4), layout="none")
    em, joined, found = (figure.add_axes((0.005 + 0.24 * k, 0.07, 0.23, 0.83)) for k in range(3))
    plots.show_section(em, volume.raw, voxel_size=volume.voxel_size, z=z, title="EM (a synthetic phantom)")
    plots.show_affinities(joined, prediction.refined, volume.voxel_size, z, title="affinities")
    plots.show_section(found, volume.raw, neurons, volume.voxel_size, z, title="neurons found")
    solid = figure.add_axes((0.71, 0.02, 0.28, 0.9), projection="3d")
    chosen = largest_ids(neurons, 24)[6:]  # the very largest would hide the others
    plots.neurons_3d(solid, neuron_meshes(neurons, volume.voxel_size, chosen), "some of them in 3D")
    solid.get_legend().remove()
    figure.savefig(PICTURE, dpi=80)


if __name__ == "__main__":
    main()
