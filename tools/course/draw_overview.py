"""Draw the README's picture, docs/overview.png, with the shipped model on a deep phantom (`make picture`, minutes)."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from mpl_toolkits.mplot3d import Axes3D

from fgnet_lib.inference import predict
from fgnet_lib.metrics import error_masks
from fgnet_lib.phantom import make_phantom
from fgnet_lib.segmentation import segment
from fgnet_lib.views import plots
from fgnet_lib.views.meshes import neuron_meshes, slender_ids
from fgnet_lib.volumes import Volume
from fgnet_lib.weights import load_pretrained, pretrained_threshold

PICTURE = Path(__file__).resolve().parents[2] / "docs" / "overview.png"
SHAPE = (128, 256, 256)  # deep enough for neurites to bend and branch
SHOWN = 16  # neurons in 3D: more would hide each other


def draw_floor(ax: Axes3D, volume: Volume) -> None:
    """Draw the last section below the neurons, to scale."""
    depth, height, width = np.multiply(volume.shape, volume.voxel_size)
    y, x = (np.linspace(0, side, 129) for side in (height, width))
    grey = np.repeat(volume.raw[-1, ::2, ::2, None] / 255, 3, axis=2)
    x, y = np.meshgrid(x, y)
    ax.plot_surface(x, y, np.full(x.shape, depth), facecolors=grey, rcount=128, ccount=128, shade=False, zorder=0)
    ax.set(xlim=(0, width), ylim=(height, 0), zlim=(depth, 0))
    ax.set_box_aspect((width, height, depth), zoom=1.25)


def draw(volume: Volume, affinities: np.ndarray, neurons: np.ndarray) -> Figure:
    """Return the figure: the last section four times, from EM to errors, and neurons in 3D standing on it."""
    figure = plt.figure(figsize=(14.6, 9.2), layout="none")
    corners = [(0.005 + 0.29 * column, 0.545 - 0.475 * row) for column in (0, 1) for row in (0, 1)]
    em, joined, segments, errors = (figure.add_axes((*corner, 0.27, 0.428)) for corner in corners)
    z, voxel_size, chosen = volume.shape[0] - 1, volume.voxel_size, slender_ids(neurons, SHOWN)
    colors = plots.neighbour_colors(neurons, first=chosen)
    plots.show_section(em, volume.raw, None, voxel_size, z, "1. an EM section of a synthetic phantom")
    plots.show_affinities(joined, affinities, voxel_size, z, "2. affinities between neighbours")
    plots.show_section(segments, volume.raw, neurons, voxel_size, z, "3. neurons, a colour for each", colors=colors)
    plots.error_map(errors, volume.raw, *error_masks(neurons, volume.labels), voxel_size, z, "4. their errors")
    solid = figure.add_axes((0.56, -0.08, 0.45, 1.12), projection="3d", computed_zorder=False)
    solid.view_init(25, -60)
    plots.neurons_3d(solid, neuron_meshes(neurons, voxel_size, chosen, 8000), colors=colors)
    solid.get_legend().remove()
    draw_floor(solid, volume)
    solid.patch.set_visible(False)
    for surface in solid.collections:  # they reach beyond the square of the axes
        surface.set_clip_on(False)
    figure.text(0.79, 0.985, "5. some of the neurons in 3D, above this section", ha="center", fontsize=13)
    return figure


def main() -> None:
    """Compute and save the picture."""
    plots.style()
    volume = make_phantom(SHAPE)
    affinities = predict(load_pretrained(), volume.raw, progress=False).refined
    threshold = pretrained_threshold()
    neurons = segment(affinities, volume.voxel_size, threshold)
    draw(volume, affinities, neurons).savefig(PICTURE, dpi=85)


if __name__ == "__main__":
    main()
