"""The viewer's server answers a browser's requests, on every platform; real Chromium shows things where they are."""

from __future__ import annotations

import base64
import gc
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import warnings
import weakref
import zlib
from pathlib import Path

import numpy as np
import psutil
import pytest
from matplotlib.image import imread

from fgnet_lib import viewer
from fgnet_lib.plots import label_colors
from fgnet_lib.volumes import Lazy, Volume

REPOSITORY = Path(__file__).resolve().parents[1]
SHAPE, VOXEL = (10, 60, 80), (40.0, 8.0, 4.0)
BOX = (slice(2, 5), slice(10, 30), slice(20, 70))
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-quic",
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--ignore-gpu-blocklist",
]
NO_BROWSER = "NO BROWSER TEST OF THE 3D VIEWER: install Chromium (Debian: apt-get install chromium)"
if CHROMIUM is None:
    warnings.warn(NO_BROWSER, stacklevel=1)  # pytest says it at the end, a skip alone is silent
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason=NO_BROWSER)


def make_volume() -> Volume:
    labels = np.zeros(SHAPE, np.uint64)
    labels[BOX] = 7
    labels[8:, :3, :3] = 2**40
    raw = np.random.default_rng(0).integers(0, 256, SHAPE, dtype=np.uint8)
    return Volume(raw, VOXEL, labels, offset=(400.0, 72.0, 20.0))  # no multiples of the attention's voxels


@pytest.fixture
def volume() -> Volume:
    return make_volume()


def get(path: str) -> bytes:
    return urllib.request.urlopen(f"http://127.0.0.1:{viewer.server.global_server.port}{path}", timeout=60).read()


def sources(view: viewer.View) -> dict[str, dict]:
    """Layer name -> its data source, as the browser is told."""
    return {layer["name"]: layer["source"][0] for layer in view.viewer.state.to_json()["layers"]}


def key(view: viewer.View, layer: str) -> str:
    return sources(view)[layer]["url"].removeprefix("python://volume/")


def chunk(view: viewer.View, layer: str, start: str, end: str) -> np.ndarray:
    scale = ",".join("1" * len(start.split(",")))
    data = get(f"/neuroglancer/npz/{key(view, layer)}/{scale}/{start}/{end}")
    return np.load(io.BytesIO(zlib.decompress(data)))  # neuroglancer's npz is a compressed npy


def test_server_gives_every_layer(volume):
    affinities = np.random.default_rng(1).random((3, *SHAPE), dtype=np.float32)
    attention = [np.full((10, -(-60 // s), -(-80 // s)), 1 / s, np.float32) for s in (4, 8, 16)]
    view = viewer.show(volume, {"prediction": volume.labels.astype(np.int32)}, {"A_r": affinities}, attention)
    infos = {name: json.loads(get(f"/neuroglancer/info/{key(view, name)}")) for name in sources(view)}
    assert {name: (info["dataType"], info["volumeType"], info["shape"]) for name, info in infos.items()} == {
        "raw": ("uint8", "image", [10, 60, 80]),
        "ground truth": ("uint64", "segmentation", [10, 60, 80]),
        "prediction": ("uint64", "segmentation", [10, 60, 80]),
        "A_r": ("float32", "image", [3, 10, 60, 80]),
        "attention a1": ("float32", "image", [10, 15, 20]),
        "attention a2": ("float32", "image", [10, 8, 10]),
        "attention a3": ("float32", "image", [10, 4, 5]),
    }
    scale = {axis: metres for axis, (metres, unit) in infos["attention a2"]["coordinateSpace"].items()}
    assert scale == pytest.approx({"z": 40e-9, "y": 64e-9, "x": 32e-9})
    assert np.array_equal(chunk(view, "raw", "2,10,20", "4,12,25"), volume.raw[2:4, 10:12, 20:25])
    assert np.array_equal(chunk(view, "prediction", "4,29,69", "6,31,71"), volume.labels[4:6, 29:31, 69:71])
    assert np.array_equal(chunk(view, "A_r", "0,1,2,3", "3,2,3,4"), affinities[:, 1:2, 2:3, 3:4])
    assert b"<script" in get(view.url.partition(str(view.port))[2])


def mesh(view: viewer.View, layer: str, neuron: int) -> np.ndarray:
    data = get(f"/neuroglancer/mesh/{key(view, layer)}/{neuron}")
    vertices = np.frombuffer(data, "<f4", 3 * int.from_bytes(data[:4], "little"), 4).reshape(-1, 3)
    triangles = np.frombuffer(data, "<u4", offset=4 + vertices.nbytes)
    assert (len(triangles) % 3, triangles.max()) == (0, len(vertices) - 1)
    return vertices * 1e9


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64, np.uint32, np.uint64])
def test_mesh_of_a_box_is_the_box(volume, dtype):
    """In nm from the first voxel, z y x; the layer's transform adds the volume's offset."""
    view = viewer.show(volume, {"prediction": (volume.labels == 7).astype(dtype) * dtype(7)})
    vertices = mesh(view, "prediction", 7)
    assert np.allclose(vertices.min(0), [s.start * v for s, v in zip(BOX, VOXEL, strict=True)], atol=0.01)
    assert np.allclose(vertices.max(0), [s.stop * v for s, v in zip(BOX, VOXEL, strict=True)], atol=0.01)
    with pytest.raises(urllib.error.HTTPError, match="404"):
        mesh(view, "prediction", 8)


def test_largest_neurons_are_selected_in_the_colours_of_the_figures(volume):
    view = viewer.show(volume, {"prediction": volume.labels}, neurons=1)
    layer = next(layer for layer in view.viewer.state.to_json()["layers"] if layer["name"] == "prediction")
    assert layer["segments"] == ["7"]
    assert layer["segmentColors"].keys() == {"7", str(2**40)}
    color = [int(layer["segmentColors"]["7"][i : i + 2], 16) / 255 for i in (1, 3, 5)]
    assert color == pytest.approx(label_colors(np.array(7))[:3], abs=0.003)
    visible = {layer["name"]: layer.get("visible", True) for layer in view.viewer.state.to_json()["layers"]}
    assert visible == {"raw": True, "ground truth": False, "prediction": True}


def test_arrays_are_shared_and_let_go():
    volume = make_volume()
    raw, labels = weakref.ref(volume.raw), weakref.ref(volume.labels)
    old = viewer.show(volume)
    held = [source.data[:] for source in old.viewer.volume_manager.volumes.values()]
    assert np.shares_memory(held[0], volume.raw)
    assert np.shares_memory(held[1], volume.labels)
    address = f"/neuroglancer/info/{key(old, 'raw')}"
    get(address)
    viewer.show(Volume(np.zeros((2, 4, 4), np.uint8), VOXEL))
    with pytest.raises(urllib.error.HTTPError, match="404"):
        get(address)
    del volume, held
    gc.collect()
    assert raw() is labels() is None


def test_raw_may_be_lazy(volume):
    lazy = Lazy(SHAPE, np.uint8, lambda *cut: volume.raw[cut])
    view = viewer.show(Volume(lazy, VOXEL))
    assert np.array_equal(chunk(view, "raw", "9,0,0", "10,1,80"), volume.raw[9:, :1])


def test_only_this_machine_reaches_it(volume):
    port = viewer.show(volume).port
    listening = [c.laddr for c in psutil.Process().net_connections("tcp") if c.status == psutil.CONN_LISTEN]
    assert {address.ip for address in listening if address.port == port} == {"127.0.0.1"}


@pytest.mark.parametrize(
    ("segmentations", "affinities", "attention", "what"),
    [
        ({"p": np.zeros((10, 60, 79), np.uint64)}, {}, (), r"p has shape \(10, 60, 79\)"),
        ({"p": np.zeros(SHAPE)}, {}, (), "p holds float64"),
        ({"p": np.full(SHAPE, -1)}, {}, (), "p holds int64"),
        ({}, {"A": np.zeros(SHAPE)}, (), r"A has shape .* must have \(3, 10, 60, 80\)"),
        ({}, {}, [np.zeros((10, 30, 40))], "attention a1"),
    ],
)
def test_what_does_not_fit_is_refused(volume, segmentations, affinities, attention, what):
    with pytest.raises(ValueError, match=what):
        viewer.show(volume, segmentations, affinities, attention)


# --- platforms -------------------------------------------------------------------------------------------------------


@pytest.fixture
def bare(monkeypatch):
    """No sign of any host."""
    for name in (
        "COLAB_RELEASE_TAG",
        "KAGGLE_KERNEL_RUN_TYPE",
        "BINDER_REPO_URL",
        "JUPYTERHUB_SERVICE_PREFIX",
        "VSCODE_PID",
        "VSCODE_CWD",
    ):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_each_platform_gets_its_link(volume, bare):
    view = viewer.show(volume)
    path = f"/v/{view.viewer.token}/"
    assert view.url == f"http://127.0.0.1:{view.port}{path}"
    assert f'<iframe src="{view.url}"' in view._repr_html_()
    bare.setenv("VSCODE_PID", "1")
    assert "<iframe" not in view._repr_html_()
    assert f'href="{view.url}"' in view._repr_html_()
    assert f"forward port {view.port}" in view._repr_html_()
    bare.delenv("VSCODE_PID")
    bare.setenv("JUPYTERHUB_SERVICE_PREFIX", "/user/ada/")
    assert view.url == f"/user/ada/proxy/{view.port}{path}"
    assert f'<iframe src="{view.url}"' in view._repr_html_()
    bare.setenv("KAGGLE_KERNEL_RUN_TYPE", "Interactive")
    assert "export_html" in view._repr_html_()


def test_colab(tmp_path, bare):
    """With a stand-in for google.colab, which neuroglancer looks for when it is imported."""
    (tmp_path / "google/colab").mkdir(parents=True)
    (tmp_path / "google/colab/__init__.py").touch()
    (tmp_path / "google/colab/output.py").write_text(
        "def eval_js(code):\n    return 'https://' + code.split('(')[1][:-1] + '-colab.googleusercontent.com/'\n"
    )
    code = (
        "import numpy as np; from fgnet_lib import viewer; from fgnet_lib.volumes import Volume\n"
        "view = viewer.show(Volume(np.zeros((2, 4, 4), np.uint8), (1, 1, 1)))\n"
        "print(viewer.server._IS_GOOGLE_COLAB, view.port, view.viewer.token, view.url, view._repr_html_())"
    )
    environment = os.environ | {"COLAB_RELEASE_TAG": "x", "PYTHONPATH": f"{tmp_path}{os.pathsep}{REPOSITORY}"}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    is_colab, port, token, url, html = run.stdout.split(maxsplit=4)
    assert is_colab == "True"
    assert url == f"https://{port}-colab.googleusercontent.com/v/{token}/"
    assert f'<iframe src="{url}"' in html


def test_jupyter_server_proxy_reaches_it(volume, bare, tmp_path):
    """As behind a hub: index, script, volume info and a state update through jupyter-server-proxy under a prefix."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    bare.setenv("JUPYTERHUB_SERVICE_PREFIX", "/user/ada/")
    view = viewer.show(volume)
    hub = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "jupyter_server",
            "--allow-root",
            "--no-browser",
            f"--port={port}",
            "--ServerApp.port_retries=0",
            "--ServerApp.base_url=/user/ada/",
            "--IdentityProvider.token=",
            f"--ServerApp.root_dir={tmp_path}",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        host, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 60
        while True:
            try:
                page = urllib.request.urlopen(host + view.url, timeout=60).read().decode()
                break
            except urllib.error.URLError:
                assert time.monotonic() < deadline, "jupyter-server-proxy does not answer"
                time.sleep(0.2)
        script = re.search(r'src="(main[^"]+)"', page)[1]
        assert len(urllib.request.urlopen(f"{host}{view.url}{script}", timeout=60).read()) > 100_000
        base = host + view.url.partition("/v/")[0]
        info = json.load(urllib.request.urlopen(f"{base}/neuroglancer/info/{key(view, 'raw')}", timeout=60))
        assert info["shape"] == list(SHAPE)
        updates = urllib.request.Request(
            f"{base}/events/{view.viewer.token}?c=1&gc=&gs=", headers={"Accept": "text/event-stream"}
        )  # what a browser asks for
        with urllib.request.urlopen(updates, timeout=60) as events:
            assert b'"raw"' in b"".join(events.readline() for _ in range(4))
    finally:
        hub.terminate()
        hub.wait()


# --- a real browser --------------------------------------------------------------------------------------------------


@pytest.fixture
def browser(tmp_path):
    """Opens a page; every browser is closed at the end."""
    started = []

    def open_page(url: str) -> None:
        started.append(
            subprocess.Popen(
                [CHROMIUM, *FLAGS, "--window-size=800,600", f"--user-data-dir={tmp_path}", url],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        )

    yield open_page
    for process in started:
        process.terminate()
        process.wait()


def screenshot(view: viewer.View, layers: set[str], layout: str) -> np.ndarray:
    """Float (y, x, 3) picture of some layers in one panel, without lines."""
    with view.viewer.txn() as state:
        state.layout, state.show_axis_lines, state.show_scale_bar = layout, False, False
        state.show_default_annotations = False
        state.cross_section_scale = 1
        for layer in state.layers:
            layer.visible = layer.name in layers
    taken = []
    thread = threading.Thread(target=lambda: taken.append(view.viewer.screenshot(size=[600, 400])), daemon=True)
    thread.start()
    thread.join(90)
    assert taken, "no screenshot from the browser"
    return imread(io.BytesIO(taken[0].screenshot.image))[..., :3]


def alike(picture: np.ndarray, neuron: int) -> np.ndarray:
    """Where a picture has the hue of a neuron, in light or in shade."""
    color = label_colors(np.array(neuron))[:3]
    return picture @ color > 0.99 * np.linalg.norm(picture, axis=-1) * np.linalg.norm(color)


def center(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Middle and size (y, x) of what is True."""
    places = np.argwhere(mask)
    return (places.max(0) + places.min(0)) / 2, np.ptp(places, axis=0) + 1


@needs_chromium
def test_browser_shows_each_thing_in_its_place(volume, browser):
    raw, attention = np.zeros(SHAPE, np.uint8), np.zeros((10, 15, 20), np.float32)
    raw[:, 8:12, 32:36], attention[:, 2, 8] = 255, 1
    affinities = np.zeros((3, *SHAPE), np.float32)
    affinities[0, :, 8:12, 32:36] = 1
    view = viewer.show(Volume(raw, VOXEL, volume.labels, volume.offset), {}, {"A_r": affinities}, [attention])
    browser(view.url)
    gray, red = screenshot(view, {"raw"}, "xy"), screenshot(view, {"A_r"}, "xy")
    warm = screenshot(view, {"attention a1"}, "xy")
    middle = np.array(gray.shape[:2]) / 2
    # one screen pixel is one voxel of the finest axis, x: y has two; the view is centred on (30, 40)
    place, size = center(gray.min(-1) > 0.9)
    assert np.allclose(size, (8, 4), atol=1)
    assert np.allclose(place - middle, ((10 - 30) * 2, 34 - 40), atol=1)
    for picture, shown in ((red, red[..., 0] - red[..., 1] > 0.3), (warm, warm.min(-1) > 0.55)):
        assert picture.shape == gray.shape
        assert np.allclose(center(shown), (place, size), atol=1)
    # the mesh of the box, seen along z: lengths as in nm, its middle where the box has it
    with view.viewer.txn() as state:
        state.layout = viewer.neuroglancer.DataPanelLayout("3d", orthographic_projection=True)
        state.projection_orientation, state.projection_scale = [0, 0, 0, 1], 150
    solid = screenshot(view, {"ground truth"}, view.viewer.state.layout)
    place, size = center(alike(solid, 7) & (solid.max(-1) > 0.1))
    pixel = size[1] / 50
    assert size[0] / pixel == pytest.approx(20 * 2, abs=2)
    assert np.allclose((place - middle) / pixel, ((20 - 30) * 2, 45 - 40), atol=2)


# --- a file to hand on -----------------------------------------------------------------------------------------------


def test_export_holds_neurons_in_nm(volume, tmp_path):
    path = viewer.export_html(volume.labels, VOXEL, tmp_path / "neurons.html")
    text = path.read_text(encoding="utf-8")
    figure = text[text.rindex("Plotly.newPlot(") :]
    assert re.findall(r'"name":"(neuron \d+)"', figure) == ["neuron 7", f"neuron {2**40}"]
    for axis, cut, size in zip("zyx", BOX, VOXEL, strict=True):
        data = re.search(rf'"{axis}":{{"dtype":"f4","bdata":"([^"]+)"', figure)[1].encode().decode("unicode_escape")
        nm = np.frombuffer(base64.b64decode(data), "<f4")
        assert (nm.min(), nm.max()) == pytest.approx((cut.start * size, cut.stop * size), abs=0.01)
        assert f'"{axis} (nm)"' in figure
    assert viewer.export_html(volume.labels, VOXEL, tmp_path / "one.html", [7]).stat().st_size < 10e6
    assert sorted(p.name for p in tmp_path.iterdir()) == ["neurons.html", "one.html"]


def test_export_stays_small_and_whole(tmp_path):
    rough = np.random.default_rng(0).integers(1, 11, (20, 40, 40), dtype=np.uint32)  # no surface could be larger
    path = viewer.export_html(rough, VOXEL, tmp_path / "rough.html")
    assert path.stat().st_size < 10e6
    assert not re.search(r'<(script|link|img)[^>]+(src|href)="?(https?:)?//', path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("labels", "ids", "what"), [(0, None, "no neuron"), (1, [], "no neuron"), (1, [5], "neuron 5")]
)
def test_export_refuses_what_is_not_there(tmp_path, labels, ids, what):
    with pytest.raises(ValueError, match=what):
        viewer.export_html(np.full((2, 2, 2), labels, np.uint32), VOXEL, tmp_path / "x.html", ids)
    assert not list(tmp_path.iterdir())


@needs_chromium
def test_exported_file_renders_offline(volume, tmp_path):
    path = viewer.export_html(volume.labels, VOXEL, tmp_path / "neurons.html", [7])
    subprocess.run(
        [
            CHROMIUM,
            *FLAGS,
            f"--user-data-dir={tmp_path}/profile",
            "--proxy-server=127.0.0.1:9",
            "--window-size=800,600",
            "--virtual-time-budget=5000",
            f"--screenshot={tmp_path}/shot.png",
            path.as_uri(),
        ],
        check=True,
        capture_output=True,
        timeout=120,
    )
    picture = imread(tmp_path / "shot.png")[..., :3]
    assert (alike(picture, 7) & (np.ptp(picture, axis=-1) > 0.2)).mean() > 0.02
