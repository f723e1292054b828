"""neuroglancer on the volume in memory, wherever the notebook runs, and a file of 3D neurons to hand on.

The server listens on 127.0.0.1 alone; on a remote host the page reaches it through the notebook server's proxy. The
random token in the address is the only guard, so treat the address like a password.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
from matplotlib.colors import to_hex

from fgnet_lib.devices import platform
from fgnet_lib.meshes import largest_ids, neuron_mesh, neuron_meshes
from fgnet_lib.plots import label_colors
from fgnet_lib.sam2_encoder import STRIDES
from fgnet_lib.volumes import Volume, atomic

if platform() == "colab":
    import google.colab  # noqa: F401  neuroglancer looks for it once, when it is imported

import neuroglancer
from neuroglancer import server
from neuroglancer.local_volume import InvalidObjectIdForMesh

# toRaw: affinities come as float32 in [0, 1] or as targets, uint8 0 and 1
AFFINITY_SHADER = """void main() {
  emitRGB(vec3(toRaw(getDataValue(0)), toRaw(getDataValue(1)), toRaw(getDataValue(2))));
}"""
# the ramp of matplotlib's afmhot, plots.WARM
ATTENTION_SHADER = """#uicontrol invlerp normalized
void main() {
  float weight = normalized();
  emitRGB(clamp(vec3(2.0 * weight, 2.0 * weight - 0.5, 2.0 * weight - 1.0), 0.0, 1.0));
}"""
TRIANGLES = 120_000  # in an exported file: 5 MB
COLORED = 1000  # this many of the largest neurons have in the viewer the colour that they have in figures

_shown: list[View] = []  # the last viewer: its arrays are let go when the next one comes


class View:
    """A neuroglancer viewer in this process.

    Attributes:
        viewer: neuroglancer's own object, for all that it can do.
    """

    def __init__(self, viewer: neuroglancer.Viewer) -> None:
        self.viewer = viewer

    @property
    def port(self) -> int:
        """The port that the server listens on; the same for all viewers of a kernel."""
        return server.global_server.port

    @property
    def url(self) -> str:
        """The address for the browser that shows the notebook."""
        return f"{_proxy(self.port)}/v/{self.viewer.token}/"

    def __repr__(self) -> str:
        return f"neuroglancer at {self.url} (port {self.port} of this kernel's machine; lives as long as the kernel)"

    def _repr_html_(self) -> str:
        link = f'<a href="{self.url}" target="_blank">Open neuroglancer in a tab of its own</a>'
        if platform() == "kaggle":
            return "Kaggle lets no port through to your browser: use <code>viewer.export_html</code> and download it."
        if {"VSCODE_PID", "VSCODE_CWD"} & os.environ.keys():  # its notebooks show no frames of other servers
            return f"{link} (with VS Code on a remote machine, forward port {self.port} in its Ports view first)."
        return f'<iframe src="{self.url}" width="100%" height="640" allow="fullscreen"></iframe><br>{link}'

    def close(self) -> None:
        """Let go of the arrays; a page that still shows this viewer goes empty."""
        self.viewer.set_state(neuroglancer.ViewerState())


def show(
    volume: Volume,
    segmentations: Mapping[str, np.ndarray] | None = None,
    affinities: Mapping[str, np.ndarray] | None = None,
    attention: Sequence[np.ndarray] = (),
    neurons: int = 10,
) -> View:
    """Open a volume in neuroglancer; as the last line of a cell it appears below the cell.

    The layers share the arrays' memory. What an earlier call showed is let go.

    Args:
        volume: raw, and labels as the layer "ground truth" when there are any. Raw may be lazy.
        segmentations: layer name -> ids (z, y, x), any integer type.
        affinities: layer name -> (3, z, y, x) in [0, 1], shown as red (z), green (y), blue (x).
        attention: a1, a2, a3 at strides 4, 8, 16: (z, ceil(y / stride), ceil(x / stride)) in [0, 1].
        neurons: so many of the largest neurons of each segmentation are selected, that is, coloured and in 3D.

    Raises:
        ValueError: an array that does not fit the volume, or ids that are no integers >= 0.
    """
    truth = {} if volume.labels is None else {"ground truth": volume.labels}
    layers = [("raw", neuroglancer.ImageLayer(source=_source(volume, volume.raw)))]
    for name, labels in (truth | dict(segmentations or {})).items():
        layers.append((name, _segmentation_layer(volume, name, labels, neurons)))
    for name, array in (affinities or {}).items():
        _check(array, (3, *volume.shape), name)
        layers.append((name, _image_layer(volume, array, AFFINITY_SHADER)))
    for level, (array, stride) in enumerate(zip(attention, STRIDES, strict=False), start=1):
        _check(array, (volume.shape[0], *(-(-n // stride) for n in volume.shape[1:])), f"attention a{level}")
        layers.append((f"attention a{level}", _image_layer(volume, array, ATTENTION_SHADER, stride)))
    for view in _shown:
        view.close()
    _shown[:] = [View(neuroglancer.Viewer(allow_credentials=False))]
    with _shown[0].viewer.txn() as state:
        _camera(state, volume)
        front = [name for name, layer in layers if isinstance(layer, neuroglancer.SegmentationLayer)][-1:]
        for name, layer in layers:
            state.layers.append(name=name, layer=layer, visible=name in ("raw", *front))
    return _shown[0]


def _proxy(port: int) -> str:
    """Address of the server as the notebook's browser reaches it, without a slash at the end."""
    if platform() == "colab":
        from google.colab.output import eval_js

        return eval_js(f"google.colab.kernel.proxyPort({port})").rstrip("/")  # a second slash would lead to a 404
    if hub := os.environ.get("JUPYTERHUB_SERVICE_PREFIX"):  # JupyterHub and Binder, by jupyter-server-proxy
        return f"{hub}proxy/{port}"
    return f"http://127.0.0.1:{port}"


def _check(array: np.ndarray, shape: tuple[int, ...], name: str) -> None:
    if tuple(array.shape) != shape:
        raise ValueError(f"{name} has shape {tuple(array.shape)}; with this volume it must have {shape}")


class _LocalVolume(neuroglancer.LocalVolume):
    """neuroglancer's, with our meshes: its own lie half a voxel off the sections and are made for all ids at once."""

    def get_object_mesh(self, object_id: int) -> bytes:
        """Number of vertices, vertices in metres in the order of the array's axes, triangles."""
        nm = self.dimensions.scales * 1e9
        try:
            vertices, triangles = neuron_mesh(self.data[:], object_id, nm)
        except ValueError as error:
            raise InvalidObjectIdForMesh from error
        parts = np.uint32(len(vertices)), np.float32(vertices * 1e-9), np.uint32(triangles)
        return b"".join(part.astype(part.dtype.newbyteorder("<")).tobytes() for part in parts)


def _source(volume: Volume, array: np.ndarray, stride: int = 1) -> neuroglancer.LayerDataSource:
    """The array where it belongs: voxels of `stride` raw voxels in y and x, the volume's offset, in nm."""
    size = np.multiply(volume.voxel_size, (1, stride, stride))
    names, scales, units, shift = ["z", "y", "x"], list(size), ["nm"] * 3, list(np.divide(volume.offset, size))
    if array.ndim == 4:  # "^" marks a channel
        names, scales, units, shift = ["c^", *names], [1, *scales], ["", *units], [0, *shift]
    space = neuroglancer.CoordinateSpace(names=names, units=units, scales=scales)
    transform = neuroglancer.CoordinateSpaceTransform(
        output_dimensions=space, matrix=np.column_stack([np.eye(len(names)), shift])
    )
    return neuroglancer.LayerDataSource(_LocalVolume(array, space), transform=transform)


def _image_layer(volume: Volume, array: np.ndarray, shader: str, stride: int = 1) -> neuroglancer.ImageLayer:
    return neuroglancer.ImageLayer(source=_source(volume, array, stride), shader=shader, opacity=0.7)


def _segmentation_layer(volume: Volume, name: str, labels: np.ndarray, neurons: int) -> neuroglancer.SegmentationLayer:
    _check(labels, volume.shape, name)
    labels = np.asarray(labels)
    if labels.dtype.kind not in "iub" or (labels.dtype.kind == "i" and labels.min() < 0):
        raise ValueError(f"{name} holds {labels.dtype}; ids are integers >= 0")
    if labels.dtype not in (np.uint32, np.uint64):  # neuroglancer makes meshes of no other types
        labels = labels.astype(np.uint64)
    largest = largest_ids(labels, COLORED)
    return neuroglancer.SegmentationLayer(
        source=_source(volume, labels),
        segments=largest[:neurons],
        selected_alpha=0.35,
        segment_colors=dict(zip(largest, map(to_hex, label_colors(np.array(largest, np.uint64))), strict=True)),
    )


def _camera(state: neuroglancer.ViewerState, volume: Volume) -> None:
    """Four panels on the middle of the volume, all of it in view; the 3D panel shows meshes alone, from aside."""
    state.dimensions = neuroglancer.CoordinateSpace(names=["x", "y", "z"], units="nm", scales=volume.voxel_size[::-1])
    middle = np.divide(volume.offset, volume.voxel_size) + np.divide(volume.shape, 2)
    state.position = middle[::-1]
    voxels = max(np.multiply(volume.shape, volume.voxel_size)) / min(volume.voxel_size)  # of the finest axis
    state.layout = "4panel"
    state.cross_section_scale = voxels / 260  # screen pixels: the height of a panel
    state.projection_scale = 1.3 * voxels
    state.projection_orientation = [0.416, -0.073, 0.157, 0.893]  # tilted by 50 degrees, turned by 20
    state.show_slices = False


def export_html(
    segmentation: np.ndarray, voxel_size: tuple[float, float, float], path: str | Path, ids: Iterable[int] | None = None
) -> Path:
    """Write neurons as one HTML file that rotates in any browser, offline.

    Args:
        segmentation: ids (z, y, x).
        voxel_size: nm (z, y, x).
        path: of the file.
        ids: of the neurons to write; by default the 10 largest.

    Returns:
        The path; the file has 5 MB for the drawing library and at most 5 MB for all neurons together.

    Raises:
        ValueError: an id that is not in the segmentation, or no id at all.
    """
    chosen = largest_ids(segmentation, 10) if ids is None else list(ids)
    if not chosen:
        raise ValueError("no neuron to write: the segmentation holds nothing but 0, or `ids` is empty")
    figure = go.Figure()
    meshes = neuron_meshes(segmentation, voxel_size, chosen, TRIANGLES // len(chosen))
    for neuron, (vertices, triangles) in meshes.items():
        (z, y, x), (i, j, k) = vertices.T, triangles.T
        figure.add_mesh3d(
            x=x,
            y=y,
            z=z,
            i=i,
            j=j,
            k=k,
            name=f"neuron {neuron}",
            showlegend=True,
            flatshading=True,
            color=to_hex(label_colors(np.array(neuron))),
            hoverinfo="name",
        )
    down = {"autorange": "reversed"}  # as in the sections: y and z count away from the top left of the first one
    figure.update_layout(
        title=f"{len(chosen)} neurons",
        margin={"l": 0, "r": 0, "b": 0, "t": 50},
        scene={
            "aspectmode": "data",
            "camera_eye": {"x": 0.7, "y": -1.9, "z": 1.4},  # as in the viewer
            "xaxis_title": "x (nm)",
            "yaxis": down | {"title": "y (nm)"},
            "zaxis": down | {"title": "z (nm)", "nticks": 4},
        },
    )
    with atomic(Path(path)) as part:
        figure.write_html(part, include_plotlyjs=True, default_height="92vh", config={"displaylogo": False})
    return Path(path)
