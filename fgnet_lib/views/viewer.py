"""neuroglancer on the volume in memory, wherever the notebook runs, with a report on the neuron under the mouse.

The server listens on 127.0.0.1 alone; on a remote host the page reaches it through the notebook server's proxy. The
random token in the address is the only guard, so treat the address like a password.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Mapping, Sequence
from html import escape

import ipywidgets as widgets
import numpy as np
from IPython.display import HTML, display
from matplotlib.colors import to_hex, to_rgb

from fgnet_lib.machine import platform
from fgnet_lib.metrics import NO_NEURON, NeuronError, check_ids, segment_report
from fgnet_lib.sam2_encoder import STRIDES
from fgnet_lib.views.meshes import Mesh, bounding_box, largest_ids, mesh_bytes, neuron_mesh
from fgnet_lib.views.plots import MERGE, SPLIT, label_colors
from fgnet_lib.volumes import Lazy, Volume

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
# opacity is the share of marked voxels, also where neuroglancer shows a block of voxels as a single pixel
ERROR_SHADER = """void main() {
  emitRGBA(vec4(%f, %f, %f, toNormalized(getDataValue())));
}"""
TRUTH = "ground truth"  # the layer of the volume's own labels
ERRORS = {"splits": SPLIT, "merges": MERGE}
PORTS = range(9170, 9180)  # the first free port is used, so that it can be forwarded once and for all
COLORED = 1000  # so many of the largest neurons have the colours that they have in figures

_latest: list[View] = []  # the latest viewer, whose arrays are released when the next viewer opens


class View:
    """A neuroglancer viewer in this process. Point at a neuron and press p, and the panel reports on it.

    Attributes:
        viewer: neuroglancer's own object, for all that it can do.
        panel: the report, a widget below the viewer; as the last line of another cell it appears below that cell, too.
    """

    def __init__(self, volume: Volume, labels: Mapping[str, np.ndarray]) -> None:
        self.viewer = neuroglancer.Viewer(allow_credentials=False)
        self.panel = widgets.HTML("Point at a neuron in the viewer and press <b>p</b>: its report appears here.")
        self._voxel_size = volume.voxel_size
        self._corner = np.divide(volume.offset, volume.voxel_size)
        self._labels = dict(labels)
        self.viewer.actions.add("report", self._point)
        with self.viewer.config_state.txn() as config:
            config.input_event_bindings.viewer["keyp"] = "report"

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
        url = escape(self.url)
        link = f'<a href="{url}" target="_blank">Open neuroglancer in a tab of its own</a>'
        if platform() == "kaggle":
            return "Kaggle lets no port through to your browser: use <code>exports.export_html</code> and download it."
        if {"VSCODE_PID", "VSCODE_CWD"} & os.environ.keys():  # its notebooks show no frames of other servers
            return f"{link} (with VS Code on a remote machine, forward port {self.port} in its Ports view first)."
        if how := _forwarding(self.port):
            return f'{how}, then open <a href="{url}" target="_blank">{url}</a>'
        frame = f'<iframe src="{url}" width="100%" height="640" allow="fullscreen"></iframe><br>{link}'
        if url.startswith("http://127.0.0.1"):
            frame += f" (if the kernel runs on another machine than your browser, forward port {self.port} first)"
        return frame

    def _ipython_display_(self) -> None:
        display(HTML(self._repr_html_()), self.panel)

    def jump(self, error: NeuronError, layer: str | None = None) -> None:
        """Centre the viewer on an error, with all of it in view, and select what takes part in it.

        A split shows the two largest segments of the neuron, a merge the two largest neurons in the segment; what they
        are parts of is selected in its own layer, which is hidden. The error layer of this kind is shown.

        Args:
            error: of `metrics.neuron_report(segmentation, truth, voxel_size)`; its k-th worst merge is `merges[k]`.
            layer: whose error it is; by default the last segmentation.

        Raises:
            ValueError: no such layer, no ground truth, or the viewer has been closed.
        """
        layer = layer or self._front()
        if layer not in self._labels or TRUTH not in self._labels:
            raise ValueError(f"an error needs {TRUTH!r} and the segmentation {layer!r}: {self._contents()}")
        whole, pieces = (TRUTH, layer) if error.kind == "split" else (layer, TRUTH)
        if layer == TRUTH or error.label not in self._labels[whole]:
            raise ValueError(
                f"{whole!r} as shown has no {error.kind} of {error.label}: make the report from what is shown"
            )
        box = bounding_box(self._labels[whole] == error.label)
        reach = [max(at - edge.start, edge.stop - at) for at, edge in zip(error.voxel, box, strict=True)]
        with self.viewer.txn() as state:
            state.position = (self._corner + error.voxel + 0.5)[::-1]
            _zoom(state, 2 * max(np.multiply(reach, self._voxel_size)), self._voxel_size)
            state.layers[whole].segments = [error.label]
            state.layers[pieces].segments = [label for label, _ in error.parts[:2] if label]
            for name in {*self._labels, *ERRORS} & {present.name for present in state.layers}:
                state.layers[name].visible = name in (pieces, f"{error.kind}s")
        whole_kind, part_kind = ("neuron", "segments") if error.kind == "split" else ("segment", "neurons")
        sizes = ", ".join(f"{label} ({voxels:,} voxels)" for label, voxels in error.parts[:2])
        self._tell(f"{error.kind} of {error.bits:.3f} bits: {whole_kind} {error.label}, {part_kind} {sizes}")

    def report(self, layer: str, label: int) -> str:
        """Return the panel's text about an id: its size, its match on the other side, its merges and splits.

        Args:
            layer: name of a segmentation, or "ground truth".
            label: an id of that layer.

        Raises:
            ValueError: no such layer or id, or the viewer has been closed.
        """
        if layer not in self._labels:
            raise ValueError(f"no segmentation {layer!r}: {self._contents()}")
        other = self._front() if layer == TRUTH else TRUTH
        own, what = self._labels[layer], "neuron" if layer == TRUTH else "segment"
        size = np.count_nonzero(own == label)
        if not size or label in NO_NEURON:
            raise ValueError(f"no {what} {label} in the layer {layer!r}: choose an id that it contains")
        lines = [f"{what} {label} ({layer}): {size:,} voxels, {size * np.prod(self._voxel_size) / 1e9:.3g} µm³"]
        if other in self._labels:
            lines += _comparison(
                self._labels[self._front() if layer == TRUTH else layer], self._labels[TRUTH], what, label
            )
        return "\n".join(lines)

    def close(self) -> None:
        """Release the arrays; a page that still shows this viewer becomes empty."""
        self.viewer.set_state(neuroglancer.ViewerState())
        self._labels.clear()

    def _front(self) -> str | None:
        """Return the name of the last segmentation that is not the ground truth."""
        return next((name for name in reversed(self._labels) if name != TRUTH), None)

    def _contents(self) -> str:
        return f"the viewer has {', '.join(self._labels) or 'been closed by a later show'}"

    def _point(self, state: neuroglancer.ActionState) -> None:
        """Report on the neuron under the mouse; called in the server's thread."""
        for name in reversed(self._labels):  # the layer in front first
            value = getattr(state.selected_values.get(name), "value", None)
            label = int(getattr(value, "key", value) or 0)
            if label not in NO_NEURON:
                return self._tell(self.report(name, label))
        self._tell("There is no neuron under the mouse.")

    def _tell(self, text: str) -> None:
        """Show a text in the notebook, and its first line in the viewer, which may be in a tab of its own."""
        self.panel.value = f"<pre>{escape(text)}</pre>"
        with self.viewer.config_state.txn() as config:
            config.status_messages["report"] = text.partition("\n")[0]


def show(
    volume: Volume,
    segmentations: Mapping[str, np.ndarray] | None = None,
    affinities: Mapping[str, np.ndarray] | None = None,
    attention: Sequence[np.ndarray] = (),
    errors: Sequence[np.ndarray] = (),
    neurons: int = 10,
) -> View:
    """Open a volume in neuroglancer; as the last line of a cell the viewer appears below the cell.

    `viewer.show(volume, {"prediction": neurons})` shows raw, the volume's own labels and a segmentation. The layers
    share the arrays' memory; the arrays of an earlier call are released.

    Args:
        volume: raw, and labels, if any, as the layer "ground truth". Raw may be lazy.
        segmentations: layer name -> ids (z, y, x), any integer type.
        affinities: layer name -> (3, z, y, x) in [0, 1], shown as red (z), green (y), blue (x).
        attention: a1, a2, a3 at strides 4, 8, 16: (z, ceil(y / stride), ceil(x / stride)) in [0, 1].
        errors: masks of splits and merges, bool (z, y, x), as `metrics.error_masks` returns them.
        neurons: number of the largest neurons of each segmentation to select, that is, to colour and show in 3D.

    Raises:
        ValueError: an array does not fit the volume, or ids are no integers >= 0.
    """
    labels = ({} if volume.labels is None else {TRUTH: volume.labels}) | dict(segmentations or {})
    labels = {name: _ids(volume, name, array) for name, array in labels.items()}
    layers = [("raw", neuroglancer.ImageLayer(source=_source(volume, volume.raw)))]
    layers += [(name, _segmentation_layer(volume, array, neurons)) for name, array in labels.items()]
    for name, array in (affinities or {}).items():
        _check(array, (3, *volume.shape), name)
        layers.append((name, _image_layer(volume, array, AFFINITY_SHADER)))
    for level, (array, stride) in enumerate(zip(attention, STRIDES, strict=False), start=1):
        _check(array, (volume.shape[0], *(-(-n // stride) for n in volume.shape[1:])), f"attention a{level}")
        layers.append((f"attention a{level}", _image_layer(volume, array, ATTENTION_SHADER, stride)))
    for (name, color), mask in zip(ERRORS.items(), errors, strict=False):
        _check(mask, volume.shape, name)
        layers.append((name, _image_layer(volume, _bytes(mask), ERROR_SHADER % to_rgb(color))))
    for view in _latest:
        view.close()
    _listen()
    _latest[:] = [View(volume, labels)]
    with _latest[0].viewer.txn() as state:
        set_camera(state, volume)
        for name, layer in layers:
            state.layers.append(name=name, layer=layer, visible=name in ("raw", *list(labels)[-1:]))
    return _latest[0]


def _listen() -> None:
    """Start the server, unless it is running: on a port of `PORTS`, or on any other when all of them are taken."""
    for port in (*PORTS, 0):
        neuroglancer.set_server_bind_address("127.0.0.1", port)
        try:
            return server.start()
        except OSError:  # another kernel listens on this port
            continue


def _proxy(port: int) -> str:
    """Return the server's address as the notebook's browser reaches it, without a slash at its end."""
    if platform() == "colab":
        from google.colab.output import eval_js

        return eval_js(f"google.colab.kernel.proxyPort({port})").rstrip("/")  # a second slash would lead to a 404
    if hub := os.environ.get("JUPYTERHUB_SERVICE_PREFIX"):  # JupyterHub and Binder, by jupyter-server-proxy
        return f"{hub}proxy/{port}"
    if platform() == "codespaces":
        domain = os.environ.get("GITHUB_CODESPACES_PORT_FORWARDING_DOMAIN", "app.github.dev")
        return f"https://{os.environ['CODESPACE_NAME']}-{port}.{domain}"
    if platform() == "gitpod":
        return os.environ["GITPOD_WORKSPACE_URL"].replace("://", f"://{port}-", 1)
    if platform() == "sagemaker":
        return f"/{os.environ['SAGEMAKER_APP_TYPE'].lower()}/default/proxy/{port}"
    return f"http://127.0.0.1:{port}"


def _forwarding(port: int) -> str:
    """Return, as HTML, how to forward a port from a remote machine; empty where the server's frame needs no help."""
    host = platform()
    if host in ("codespaces", "gitpod"):
        return f"Forward port {port} in the Ports view of this workspace, and keep it private"
    if host == "sagemaker":
        return f"Port {port} is forwarded by jupyter-server-proxy: install it in the space and restart JupyterLab"
    if host not in ("ssh", "cluster"):
        return ""
    machine = os.environ["SSH_CONNECTION"].split()[2] if host == "ssh" else socket.gethostname()
    through = " -J LOGIN-NODE" * (host == "cluster")
    command = escape(f"ssh -N -L {port}:127.0.0.1:{port}{through} {machine}")
    return f"The kernel runs on another machine: forward port {port} by <code>{command}</code> on your own computer"


def _check(array: np.ndarray, shape: tuple[int, ...], name: str) -> None:
    if tuple(array.shape) != shape:
        raise ValueError(f"{name} has shape {tuple(array.shape)}; with this volume it must have {shape}")


class _LocalVolume(neuroglancer.LocalVolume):
    """A volume of neuroglancer with our meshes: its own lie half a voxel off and are made for all ids at once."""

    def get_object_mesh(self, object_id: int) -> bytes:
        """Return the surface in metres, in the order of the array's axes."""
        try:
            mesh = neuron_mesh(self.data[:], object_id, self.dimensions.scales * 1e9)
        except ValueError as error:
            raise InvalidObjectIdForMesh from error
        return mesh_bytes(Mesh(mesh.vertices * 1e-9, mesh.triangles))


def _source(volume: Volume, array: np.ndarray, stride: int = 1) -> neuroglancer.LayerDataSource:
    """Return the array at its position in nm: the volume's offset, voxels of `stride` raw voxels in y and x."""
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
    if array.dtype == np.float16:  # browsers cannot read it: converted piece by piece
        array = Lazy(array.shape, np.float32, lambda *cut, half=array: half[cut].astype(np.float32))
    return neuroglancer.ImageLayer(source=_source(volume, array, stride), shader=shader, opacity=0.7)


def _bytes(mask: np.ndarray) -> Lazy:
    """Return a bool array as 0 and 255, converted piece by piece."""
    return Lazy(mask.shape, np.uint8, lambda *cut: mask[cut] * np.uint8(255))


def _ids(volume: Volume, name: str, labels: np.ndarray) -> np.ndarray:
    """Return labels as uint32 or uint64, since neuroglancer makes meshes of no other types; copied only if smaller."""
    _check(labels, volume.shape, name)
    labels = check_ids(labels, f"layer {name!r}")
    if labels.dtype.kind == "i":
        labels = labels.view(labels.dtype.str.replace("i", "u"))  # none is negative
    return labels.astype(f"u{max(labels.dtype.itemsize, 4)}", copy=False)


def _segmentation_layer(volume: Volume, labels: np.ndarray, neurons: int) -> neuroglancer.SegmentationLayer:
    largest = largest_ids(labels, COLORED)
    return neuroglancer.SegmentationLayer(
        source=_source(volume, labels),
        segments=largest[:neurons],
        selected_alpha=0.35,
        segment_colors=segment_colors(largest),
    )


def segment_colors(ids: Iterable[int]) -> dict[int, str]:
    """Return id -> the colour that it has in figures, as #rrggbb."""
    ids = list(ids)
    return dict(zip(ids, map(to_hex, label_colors(np.array(ids, np.uint64))), strict=True))


def _comparison(segmentation: np.ndarray, truth: np.ndarray, what: str, label: int) -> list[str]:
    """Return lines on the match, the merges and the splits of a "segment" or a "neuron" (`what`)."""
    report = segment_report(segmentation, truth, **{what: label})
    if report.neuron is None:
        return ["the ground truth does not say which neuron it belongs to"]
    shared = dict(report.neurons)[report.neuron]
    inside, covered = (shared / sum(n for _, n in parts) for parts in (report.neurons, report.segments))
    return [
        f"match: segment {report.segment}, {inside:.0%} of it in neuron {report.neuron}, covers {covered:.0%} of that",
        f"merge: {_others('neuron', report.neurons, report.neuron)} in segment {report.segment}",
        f"split: {_others('segment', report.segments, report.segment)} in neuron {report.neuron}",
    ]


def _others(what: str, parts: Sequence[tuple[int, int]], match: int) -> str:
    others = [f"{what} {label} ({voxels:,} voxels)" for label, voxels in parts if label != match]
    more = f" and {len(others) - 3} more" * (len(others) > 3)
    return f"also {', '.join(others[:3])}{more}" if others else f"no other {what}"


def set_camera(state: neuroglancer.ViewerState, volume: Volume) -> None:
    """Show four panels on the middle of the volume, all of it in view; the 3D panel shows meshes alone, from aside."""
    state.dimensions = neuroglancer.CoordinateSpace(names=["x", "y", "z"], units="nm", scales=volume.voxel_size[::-1])
    middle = np.divide(volume.offset, volume.voxel_size) + np.floor_divide(volume.shape, 2) + 0.5  # a voxel's middle
    state.position = middle[::-1]
    _zoom(state, max(np.multiply(volume.shape, volume.voxel_size)), volume.voxel_size)
    state.layout = "4panel"
    state.projection_orientation = [0.416, -0.073, 0.157, 0.893]  # tilted by 50 degrees, turned by 20
    state.show_slices = False


def _zoom(state: neuroglancer.ViewerState, nm: float, voxel_size: Sequence[float]) -> None:
    """Make a length in nm fit into a panel."""
    voxels = nm / min(voxel_size)  # of the finest axis
    state.cross_section_scale = voxels / 260  # screen pixels: the height of a panel
    state.projection_scale = 1.3 * voxels
