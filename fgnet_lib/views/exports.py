"""Exports to share: neurons in an HTML file, or raw, segmentation and meshes as a folder that neuroglancer reads."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import tensorstore

from fgnet_lib.files.atomic import atomic, list_foreign, refuse_to_delete
from fgnet_lib.metrics import check_ids
from fgnet_lib.views import serve
from fgnet_lib.views.meshes import Mesh, largest_ids, mesh_bytes, neuron_mesh, neuron_meshes
from fgnet_lib.views.plots import neighbour_colors
from fgnet_lib.views.viewer import neuroglancer, set_camera
from fgnet_lib.volumes import Volume

TRIANGLES = 120_000  # in an exported file: 5 MB
CHUNK = 64  # voxels along each axis, in one file
SMALL = 256  # a copy of half the resolution is added until all axes have at most this many voxels
_CHUNK_FILE = r"(-?\d+--?\d+_){2}-?\d+--?\d+"  # first and last voxel along x, y and z
_EXPORTED = re.compile(  # the files of an export, by their path in its folder
    rf"{re.escape(serve.STATE)}|serve\.py|(raw|segmentation)/(info|[\d._e+-]+/{_CHUNK_FILE})"
    r"|segmentation/(mesh/(info|\d+(:0)?)|segment_properties/info)"
)


def export_html(
    segmentation: np.ndarray,
    voxel_size: tuple[float, float, float],
    path: str | Path,
    ids: Iterable[int] | Mapping[int, str] | None = None,
) -> Path:
    """Write neurons as an HTML file that rotates in any browser, offline, and return its path.

    `export_html(neurons, (40, 8, 8), "neurons.html", {7: "axon", 9: "dendrite"})` writes two named neurons.

    Args:
        segmentation: ids (z, y, x).
        voxel_size: nm (z, y, x).
        path: of the file.
        ids: of the neurons to write, or id -> name; by default the 10 largest.

    Returns:
        The path. The file has 5 MB for the drawing library and at most 5 MB for all neurons together.

    Raises:
        ValueError: an id that is not in the segmentation, or no id at all.
    """
    names = _names(segmentation, ids, 10)
    figure = go.Figure()
    colors = _colors(names)
    meshes = neuron_meshes(segmentation, voxel_size, names, TRIANGLES // len(names))
    for neuron, (vertices, triangles) in meshes.items():
        (z, y, x), (i, j, k) = vertices.T, triangles.T
        figure.add_mesh3d(
            x=x,
            y=y,
            z=z,
            i=i,
            j=j,
            k=k,
            name=escape(names[neuron]),  # plotly reads a part of HTML in names
            showlegend=True,
            flatshading=True,
            color=colors[neuron],
            hoverinfo="name",
        )
    down = {"autorange": "reversed"}  # as in the sections: y and z count from the top left of the first section
    figure.update_layout(
        title=f"{len(names)} neurons",
        font_size=14,
        margin={"l": 0, "r": 0, "b": 0, "t": 50},
        scene={
            "aspectmode": "data",
            "camera_eye": {"x": 0.7, "y": -1.9, "z": 1.4},  # as in the viewer
            "xaxis_title": "x (nm)",
            "yaxis": down | {"title": "y (nm)"},
            "zaxis": down | {"title": "z (nm)", "nticks": 4},
        },
    )
    path = Path(path).expanduser()
    with atomic(path) as part:
        figure.write_html(part, include_plotlyjs=True, default_height="92vh", config={"displaylogo": False})
    return path


def _names(segmentation: np.ndarray, ids: Iterable[int] | Mapping[int, str] | None, largest: int) -> dict[int, str]:
    """Return id -> name of the neurons to write."""
    chosen = largest_ids(segmentation, largest) if ids is None else ids
    names = chosen if isinstance(chosen, Mapping) else {int(i): f"neuron {i}" for i in chosen}
    if not names:
        raise ValueError("no neuron to write: the segmentation holds nothing but 0, or `ids` is empty")
    return dict(names)


def _colors(ids: Iterable[int]) -> dict[int, str]:
    """Return id -> #rrggbb: colours far apart, those of `neighbour_colors(..., first=ids)`."""
    ids = list(ids)
    colors = neighbour_colors(np.array(ids, np.uint64), first=ids)
    return {i: f"#{np.rint(255 * color).astype(np.uint8).tobytes().hex()}" for i, color in colors.items()}


@dataclass(frozen=True)
class Export:
    """A folder that neuroglancer reads.

    Attributes:
        path: of the folder.
        command: the command that serves the folder on this machine.
        link: the link that opens neuroglancer on the folder while it is served.
    """

    path: Path
    command: str
    link: str

    def __str__(self) -> str:
        return f"{self.path}\nserve it:  {self.command}\nthen open: {self.link}"


def export_precomputed(
    volume: Volume,
    segmentation: np.ndarray,
    path: str | Path,
    ids: Iterable[int] | Mapping[int, str] | None = None,
) -> Export:
    """Write raw, a segmentation and meshes as a folder in neuroglancer's precomputed format, for any web server.

    The folder also holds `serve.py`, a server for your own machine, and the state that the link opens. Both volumes
    come at full resolution and in coarser copies. File names of meshes hold a colon, which Windows does not allow.

    Args:
        volume: raw, voxel size and offset, which is rounded to whole voxels as the format wants it. Raw may be lazy.
        segmentation: ids (z, y, x), any integer type.
        path: of the folder; an earlier export at this path is replaced, unless other files lie in it.
        ids: of the neurons that get a mesh and are selected, or id -> name; by default the 50 largest.

    Raises:
        ValueError: shapes differ, an id is negative or missing, or the folder holds something else than an export.
        OSError: the disk is full or cannot be written; what was at `path` is untouched.
    """
    path = Path(path).expanduser()
    _check_replaceable(path)
    segmentation = check_ids(segmentation, "segmentation")
    if segmentation.shape != volume.shape:
        raise ValueError(f"the segmentation has shape {segmentation.shape} and raw {volume.shape}: they must be equal")
    names = _names(segmentation, ids, 50)
    with _os_errors(path), atomic(path) as part:
        _write_pyramid(part / "raw", volume.raw, volume, "image", "mean")
        _write_pyramid(part / "segmentation", segmentation, volume, "segmentation", "mode")
        _write_meshes(part / "segmentation", segmentation, volume, names)
        _write_json(part / serve.STATE, _state(volume, names).to_json())
        shutil.copy(serve.__file__, part / "serve.py")
        _check_replaceable(path)  # writing may have taken an hour
    command = shlex.join([sys.executable, str(path.resolve() / "serve.py")])
    return Export(path, command, serve.link(path, f"http://127.0.0.1:{serve.PORT}"))


def _check_replaceable(path: Path) -> None:
    """Raise a ValueError unless there is nothing at `path`, or an earlier export and no file beside those of it."""
    if not path.exists() and not path.is_symlink():
        return
    if path.is_symlink() or not (path / serve.STATE).is_file():
        raise ValueError(f"{path} already exists and is no earlier export: name a new folder")
    refuse_to_delete(path, list_foreign(path, _EXPORTED), "an earlier export and other files")


@contextmanager
def _os_errors(path: Path) -> Iterator[None]:
    """Turn tensorstore's errors of the operating system, which are ValueErrors, into OSErrors that name `path`."""
    try:
        yield
    except (OSError, ValueError) as error:
        code = re.search(r"os_error_code='(\d+)'", str(error))
        number = int(code[1]) if code else getattr(error, "errno", None)
        if number is None:
            raise
        raise OSError(
            number, f"cannot write {path}, what was there before is untouched: {os.strerror(number)}"
        ) from error


def _corner(volume: Volume) -> np.ndarray:
    """Return the index (z, y, x) of the first voxel, counted from the origin of nm."""
    return np.round(np.divide(volume.offset, volume.voxel_size)).astype(int)


def _write_pyramid(folder: Path, array: Any, volume: Volume, kind: str, method: str) -> None:
    """Write an "image" or a "segmentation" (z, y, x) slab by slab, then its coarser copies."""
    voxel_size = np.array(volume.voxel_size[::-1])  # the format is x, y, z, channel
    store = _create(folder, kind, volume.shape[::-1], _corner(volume)[::-1], voxel_size)
    for z in range(0, volume.shape[0], CHUNK):
        slab = np.asarray(array[z : z + CHUNK]).astype(store.dtype.numpy_dtype, copy=False)
        first = store.origin[2] + z
        part = store[:, :, first : first + len(slab)]
        _write_chunks(part, tensorstore.array(slab.T[..., None])[tensorstore.d[:].translate_to[part.origin]])
    while max(store.shape) > SMALL:
        factor = np.where(voxel_size < 2 * voxel_size.min(), 2, 1)  # towards voxels as thick as they are wide
        coarse = tensorstore.downsample(store, [*factor, 1], method)
        voxel_size = voxel_size * factor
        store = _create(folder, kind, coarse.shape[:3], coarse.origin[:3], voxel_size)
        _write_chunks(store, coarse)


def _write_chunks(store: tensorstore.TensorStore, source: tensorstore.TensorStore) -> None:
    """Write a volume; after an error all chunks are waited for, or tensorstore would write on in a removed folder."""
    last = store.domain.exclusive_max
    writes = []
    for first in product(*map(range, store.domain.inclusive_min, last, [CHUNK] * store.ndim)):
        chunk = tuple(slice(a, min(a + CHUNK, b)) for a, b in zip(first, last, strict=True))
        writes.append(store[chunk].write(source[chunk]))
    errors = [error for error in [write.exception() for write in writes] if error]
    if errors:
        raise errors[0]


def _create(folder: Path, kind: str, size: Any, corner: Any, voxel_size: Any) -> tensorstore.TensorStore:
    """Create a resolution of a precomputed volume, still empty; all arguments are x, y, z."""
    blocks = {"encoding": "compressed_segmentation", "compressed_segmentation_block_size": [8, 8, 8]}
    spec = {
        "driver": "neuroglancer_precomputed",
        "kvstore": {"driver": "file", "path": str(folder)},
        "multiscale_metadata": {
            "type": kind,
            "data_type": "uint8" if kind == "image" else "uint64",
            "num_channels": 1,
        },
        "scale_metadata": {
            "size": [int(n) for n in size],
            "voxel_offset": [int(n) for n in corner],
            "resolution": [float(nm) for nm in voxel_size],
            "chunk_size": [CHUNK] * 3,
        }
        | ({"encoding": "raw"} if kind == "image" else blocks),
        "store_data_equal_to_fill_value": True,  # a missing file would mean 0, but browsers report it as an error
    }
    return tensorstore.open(spec, create=True).result()


def _write_meshes(folder: Path, segmentation: np.ndarray, volume: Volume, names: Mapping[int, str]) -> None:
    """Add the surfaces, names and sizes of neurons to a precomputed segmentation."""
    offset = tuple(_corner(volume) * volume.voxel_size)
    sizes = []
    (folder / "mesh").mkdir()
    for neuron in names:
        mesh = neuron_mesh(segmentation, neuron, volume.voxel_size, offset=offset)
        _write_json(folder / "mesh" / f"{neuron}:0", {"fragments": [f"{neuron}"]})
        (folder / "mesh" / f"{neuron}").write_bytes(mesh_bytes(Mesh(mesh.vertices[:, ::-1], mesh.triangles)))
        sizes.append(int(np.count_nonzero(segmentation == neuron)))
    properties = [
        {"id": "name", "type": "label", "values": list(names.values())},
        {"id": "voxels", "type": "number", "data_type": "float32", "values": sizes},
    ]
    inline = {"ids": [str(neuron) for neuron in names], "properties": properties}
    (folder / "segment_properties").mkdir()
    _write_json(folder / "mesh" / "info", {"@type": "neuroglancer_legacy_mesh"})
    _write_json(folder / "segment_properties" / "info", {"@type": "neuroglancer_segment_properties", "inline": inline})
    info = json.loads((folder / "info").read_text(encoding="utf-8"))
    _write_json(folder / "info", info | {"mesh": "mesh", "segment_properties": "segment_properties"})


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, separators=(",", ":")), encoding="utf-8")


def _state(volume: Volume, names: Mapping[int, str]) -> neuroglancer.ViewerState:
    """Return the state of a viewer with both layers and the camera of `viewer.show`."""
    state = neuroglancer.ViewerState()
    set_camera(state, volume)
    state.layers["raw"] = neuroglancer.ImageLayer(source=f"precomputed://{serve.HERE}/raw")
    state.layers["neurons"] = neuroglancer.SegmentationLayer(
        source=f"precomputed://{serve.HERE}/segmentation",
        segments=list(names),
        selected_alpha=0.35,
        segment_colors=_colors(names),
    )
    return state
