"""A small volume with a known object, and pictures of it that a browser took of neuroglancer."""

from __future__ import annotations

import io
import threading

import neuroglancer
import numpy as np
from matplotlib.image import imread
from playwright.sync_api import Page

from fgnet_lib.volumes import Volume
from helpers.browser import SCREENSHOTS, wait_until

SHAPE, VOXEL = (10, 60, 80), (40.0, 8.0, 4.0)
BOX = (slice(2, 5), slice(10, 30), slice(20, 70))  # of neuron 7


def make_volume() -> Volume:
    labels = np.zeros(SHAPE, np.uint64)
    labels[BOX] = 7
    labels[8:, :3, :3] = 2**40
    raw = np.random.default_rng(0).integers(0, 256, SHAPE, dtype=np.uint8)
    return Volume(raw, VOXEL, labels, offset=(400.0, 72.0, 20.0))  # no multiples of the attention's voxels


def screenshot(page: Page, viewer: neuroglancer.Viewer, layers: set[str], layout: object, name: str) -> np.ndarray:
    """Float (y, x, 3) picture of some layers in one panel, without lines, also kept as a file called `name`."""
    with viewer.txn() as state:
        state.layout, state.show_axis_lines, state.show_scale_bar = layout, False, False
        state.show_default_annotations = False
        state.cross_section_scale = 1
        for layer in state.layers:
            layer.visible = layer.name in layers
    taken = []
    thread = threading.Thread(target=lambda: taken.append(viewer.screenshot(size=[600, 400])), daemon=True)
    thread.start()
    wait_until(page, lambda: bool(taken), "no screenshot from the browser")
    image = taken[0].screenshot.image
    (SCREENSHOTS / f"{name}.png").write_bytes(image)
    return imread(io.BytesIO(image))[..., :3]


def alike(picture: np.ndarray, color: np.ndarray) -> np.ndarray:
    """Where a picture has the hue of a colour, in light or in shade."""
    return picture @ color > 0.99 * np.linalg.norm(picture, axis=-1) * np.linalg.norm(color)


def center(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Middle and size (y, x) of what is True."""
    places = np.argwhere(mask)
    return (places.max(0) + places.min(0)) / 2, np.ptp(places, axis=0) + 1


def assert_box_in_3d(page: Page, viewer: neuroglancer.Viewer, layer: str, name: str, color: np.ndarray) -> None:
    """The mesh of neuron 7, seen along z: lengths as in nm, its middle where the box has it; nothing swapped."""
    with viewer.txn() as state:
        state.projection_orientation, state.projection_scale = [0, 0, 0, 1], 150
    panel = neuroglancer.DataPanelLayout("3d", orthographic_projection=True)
    solid = screenshot(page, viewer, {layer}, panel, name)
    middle, size = center(alike(solid, color) & (solid.max(-1) > 0.1))
    pixel = size[1] / 50
    assert abs(size[0] / pixel - 20 * 2) < 2
    assert np.allclose((middle - np.array(solid.shape[:2]) / 2) / pixel, ((20 - 30) * 2, 45 - 40), atol=2)
