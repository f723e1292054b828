"""Draw the README's picture, docs/overview.png, with the shipped model on a deep phantom (`make picture`, minutes)."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from mpl_toolkits.mplot3d import Axes3D

from fgnet_lib.inference import Prediction, predict
from fgnet_lib.phantom import make_phantom
from fgnet_lib.segmentation import segment
from fgnet_lib.views import plots
from fgnet_lib.views.meshes import largest_ids, neuron_meshes
from fgnet_lib.volumes import Volume
from fgnet_lib.weights import PRETRAINED, load_pretrained, read_notes

PICTURE = Path(__file__).resolve().parents[2] / "docs" / "overview.png"
SHAPE = (112, 256, 256)  # deep enough for neurites to bend and branch
CANDIDATES = slice(14, 80)  # of the neurons by size: larger ones would hide the others


def choose_neurons(neurons: np.ndarray) -> list[int]:
    """Return the ids of long neurites that hardly touch the sides of the volume, where a cut would show a flat face."""
    sides = np.concatenate([neurons[:, [0, -1]].ravel(), neurons[:, :, [0, -1]].ravel()])
    return [
        neuron
        for neuron in largest_ids(neurons, CANDIDATES.stop)[CANDIDATES]
        if np.count_nonzero((neurons == neuron).any(axis=(1, 2))) > SHAPE[0] // 2
        and np.count_nonzero(sides == neuron) < 0.02 * np.count_nonzero(neurons == neuron)
    ]


def draw_floor(ax: Axes3D, volume: Volume) -> None:
    """Draw the last section at its place below the neurons."""
    depth, height, width = np.multiply(volume.shape, volume.voxel_size)
    y, x = (np.linspace(0, side, 129) for side in (height, width))
    grey = np.repeat(volume.raw[-1, ::2, ::2, None] / 255, 3, axis=2)
    x, y = np.meshgrid(x, y)
    ax.plot_surface(x, y, np.full(x.shape, depth), facecolors=grey, rcount=128, ccount=128, shade=False, zorder=0)
    ax.set(xlim=(0, width), ylim=(height, 0), zlim=(depth, 0))
    ax.set_box_aspect((width, height, depth), zoom=0.98)


def draw(volume: Volume, prediction: Prediction, neurons: np.ndarray) -> Figure:
    """Return the figure: the last section four times, from EM to neurons, and neurons in 3D standing on it."""
    figure = plt.figure(figsize=(14.6, 9.2), layout="none")
    corners = [(0.005 + 0.285 * column, 0.53 - 0.465 * row) for row in (0, 1) for column in (0, 1)]
    em, attention, affinities, segmentation = (figure.add_axes((*corner, 0.275, 0.435)) for corner in corners)
    z, voxel_size = volume.shape[0] - 1, volume.voxel_size
    plots.show_section(em, volume.raw, None, voxel_size, z, "EM section (a synthetic phantom)")
    plots.show_attention(
        attention, prediction.attention[0], 4, voxel_size, z, "attention: where to look closely", colorbar=False
    )
    plots.show_affinities(affinities, prediction.refined, voxel_size, z, "affinities: dark parts neighbours")
    plots.show_section(segmentation, volume.raw, neurons, voxel_size, z, "neurons, a colour for each")
    solid = figure.add_axes((0.57, 0.01, 0.40, 0.95), projection="3d", computed_zorder=False)
    solid.view_init(25, -60)
    plots.neurons_3d(solid, neuron_meshes(neurons, voxel_size, choose_neurons(neurons), 8000))
    solid.get_legend().remove()
    draw_floor(solid, volume)
    figure.text(0.78, 0.975, "some of them in 3D, above this section", ha="center", fontsize=13)
    return figure


def main() -> None:
    """Compute and save the picture."""
    plots.style()
    volume = make_phantom(SHAPE)
    prediction = predict(load_pretrained(), volume.raw, progress=False)
    threshold = read_notes(PRETRAINED / "fgnet_mini.safetensors")["threshold"]
    neurons = segment(prediction.refined, volume.voxel_size, threshold)
    draw(volume, prediction, neurons).savefig(PICTURE, dpi=85)


if __name__ == "__main__":
    main()
