"""The viewer's server answers a browser's requests, on every platform; real Chromium shows things where they are."""

from __future__ import annotations

import gc
import io
import json
import os
import re
import socket
import subprocess
import sys
import time
import tracemalloc
import urllib.error
import urllib.request
import weakref
import zlib

import nbformat
import numpy as np
import psutil
import pytest
from helpers.browser import (
    SCREENSHOTS,
    free_port,
    jupyterlab,
    open_browser,
    open_notebook,
    run_all,
    show_frame,
    wait_until,
)
from helpers.viewing import BOX, SHAPE, VOXEL, assert_box_in_3d, center, make_volume, screenshot

from fgnet_lib import REPOSITORY, machine
from fgnet_lib.metrics import error_masks, neuron_report
from fgnet_lib.views import viewer
from fgnet_lib.views.plots import label_colors
from fgnet_lib.volumes import IGNORE, Lazy, Volume


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
    errors = volume.labels == 7, volume.labels == 2**40
    view = viewer.show(volume, {"prediction": volume.labels.astype(np.int32)}, {"A_r": affinities}, attention, errors)
    infos = {name: json.loads(get(f"/neuroglancer/info/{key(view, name)}")) for name in sources(view)}
    assert {name: (info["dataType"], info["volumeType"], info["shape"]) for name, info in infos.items()} == {
        "raw": ("uint8", "image", [10, 60, 80]),
        "ground truth": ("uint64", "segmentation", [10, 60, 80]),
        "prediction": ("uint32", "segmentation", [10, 60, 80]),
        "A_r": ("float32", "image", [3, 10, 60, 80]),
        "attention a1": ("float32", "image", [10, 15, 20]),
        "attention a2": ("float32", "image", [10, 8, 10]),
        "attention a3": ("float32", "image", [10, 4, 5]),
        "splits": ("uint8", "image", [10, 60, 80]),
        "merges": ("uint8", "image", [10, 60, 80]),
    }
    scale = {axis: metres for axis, (metres, unit) in infos["attention a2"]["coordinateSpace"].items()}
    assert scale == pytest.approx({"z": 40e-9, "y": 64e-9, "x": 32e-9})
    assert np.array_equal(chunk(view, "raw", "2,10,20", "4,12,25"), volume.raw[2:4, 10:12, 20:25])
    assert np.array_equal(chunk(view, "prediction", "4,29,69", "6,31,71"), volume.labels[4:6, 29:31, 69:71])
    assert np.array_equal(chunk(view, "A_r", "0,1,2,3", "3,2,3,4"), affinities[:, 1:2, 2:3, 3:4])
    assert np.array_equal(chunk(view, "splits", "4,29,69", "6,31,71"), errors[0][4:6, 29:31, 69:71] * 255)
    assert np.array_equal(chunk(view, "merges", "8,0,0", "10,4,4"), errors[1][8:, :4, :4] * 255)
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
    assert color == pytest.approx(label_colors(np.array([7]))[0, :3], abs=0.003)
    visible = {layer["name"]: layer.get("visible", True) for layer in view.viewer.state.to_json()["layers"]}
    assert visible == {"raw": True, "ground truth": False, "prediction": True}


@pytest.mark.slow
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
    with pytest.raises(ValueError, match="closed by a later show"):
        old.report("ground truth", 7)


@pytest.mark.slow
def test_nothing_is_copied_when_a_volume_is_opened():
    """Eight bytes a voxel for signed ids, too: opening needs a fraction of what one layer has."""
    shape = (64, 256, 256)
    truth = np.zeros(shape, np.uint64) + np.arange(1, 257, dtype=np.uint64) * np.uint64(
        10**12
    )  # sparse: sorted to count
    prediction, affinities = truth.astype(np.int64), np.zeros((3, *shape), np.float32)
    volume = Volume(np.zeros(shape, np.uint8), VOXEL, truth)
    errors = np.zeros((2, *shape), bool)
    tracemalloc.start()
    view = viewer.show(volume, {"prediction": prediction}, {"A_r": affinities}, errors=errors)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < truth.nbytes / 2
    layers = [source.data[:] for source in view.viewer.volume_manager.volumes.values() if source.data_type != "uint8"]
    assert sum(np.shares_memory(layer, array) for layer in layers for array in (truth, prediction, affinities)) == 3


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
        ({"p": np.zeros(SHAPE)}, {}, (), "'p' must hold integer ids, not float64"),
        ({"p": np.full(SHAPE, -1)}, {}, (), "'p' holds the id -1"),
        ({}, {"A": np.zeros(SHAPE)}, (), r"A has shape .* must have \(3, 10, 60, 80\)"),
        ({}, {}, [np.zeros((10, 30, 40))], "attention a1"),
    ],
)
def test_what_does_not_fit_is_refused(volume, segmentations, affinities, attention, what):
    with pytest.raises(ValueError, match=what):
        viewer.show(volume, segmentations, affinities, attention)


# --- errors and reports ----------------------------------------------------------------------------------------------


@pytest.fixture
def wrong(volume) -> tuple[Volume, np.ndarray]:
    """A volume, and a segmentation that cuts neuron 7 in two and joins its smaller part with neuron 2^40."""
    prediction = np.where(volume.labels == 7, np.uint64(70), np.uint64(1))
    prediction[4][volume.labels[4] == 7] = 71
    prediction[volume.labels == 2**40] = 71
    return volume, prediction


def test_jump_goes_to_an_error_and_selects_what_takes_part(wrong):
    volume, prediction = wrong
    errors = error_masks(prediction, volume.labels)
    view = viewer.show(volume, {"other": volume.labels, "prediction": prediction}, errors=errors)
    report = neuron_report(prediction, volume.labels, VOXEL)
    corner = np.divide(volume.offset, VOXEL)

    view.jump(report.splits[0])
    state = view.viewer.state
    assert np.allclose(state.position, (corner + report.splits[0].voxel + 0.5)[::-1])
    assert state.layers["prediction"].segments == {70, 71}
    assert state.layers["ground truth"].segments == {7}
    assert {layer.name for layer in state.layers if layer.visible} == {"raw", "prediction", "splits"}
    assert "neuron 7, segments 70 (2,000 voxels), 71 (1,000 voxels)" in view.panel.value
    assert state.cross_section_scale * 260 == pytest.approx(50, abs=2)  # a panel holds the neuron, 50 voxels along x

    view.jump(report.merges[0], "prediction")
    state = view.viewer.state
    assert prediction[report.merges[0].voxel] == 71
    assert np.allclose(state.position, (corner + report.merges[0].voxel + 0.5)[::-1])
    assert state.layers["prediction"].segments == {71}
    assert state.layers["ground truth"].segments == {7, 2**40}
    assert {layer.name for layer in state.layers if layer.visible} == {"raw", "ground truth", "merges"}


def test_jump_needs_both_sides(wrong):
    volume, prediction = wrong
    (split,) = neuron_report(prediction, volume.labels, VOXEL).splits
    with pytest.raises(ValueError, match="the viewer has ground truth$"):
        viewer.show(volume).jump(split)
    with pytest.raises(ValueError, match="'q': the viewer has ground truth, prediction"):
        viewer.show(volume, {"prediction": prediction}).jump(split, "q")


def test_jump_refuses_an_error_of_other_labels(wrong):
    volume, prediction = wrong
    report = neuron_report(prediction, volume.labels, VOXEL)
    view = viewer.show(volume, {"prediction": prediction + 1000})
    with pytest.raises(ValueError, match="'prediction' as shown has no merge of .*make the report"):
        view.jump(report.merges[0])
    with pytest.raises(ValueError, match="as shown has no split"):
        view.jump(report.splits[0], viewer.TRUTH)


def test_what_is_unknown_is_no_neuron(volume):
    volume.labels[0] = IGNORE
    view = viewer.show(volume)
    assert "no neuron under the mouse" in press(view, ground_truth=str(int(IGNORE)))
    for label in (0, int(IGNORE)):
        with pytest.raises(ValueError, match=f"no neuron {label}"):
            view.report(viewer.TRUTH, label)


def test_halves_are_served_as_float32(volume):
    affinities = np.random.default_rng(1).random((3, *SHAPE)).astype(np.float16)
    view = viewer.show(volume, affinities={"A_r": affinities})
    assert json.loads(get(f"/neuroglancer/info/{key(view, 'A_r')}"))["dataType"] == "float32"
    assert np.array_equal(chunk(view, "A_r", "0,1,2,3", "3,2,3,4"), affinities[:, 1:2, 2:3, 3:4])


def press(view: viewer.View, **values: object) -> str:
    """What the panel says after a browser has sent what is under the mouse."""
    selected = {layer.replace("_", " "): {"value": value} for layer, value in values.items()}
    action = {"action": "report", "state": {"viewerState": {}, "selectedValues": selected, "mousePosition": [1, 2, 3]}}
    address = f"http://127.0.0.1:{view.port}/action/{view.viewer.token}"
    urllib.request.urlopen(address, data=json.dumps(action).encode(), timeout=60).close()
    get(f"/v/{view.viewer.token}/")  # the server has one thread: after this answer the action has been handled
    return view.panel.value


def test_pointing_reports_size_match_merges_and_splits(wrong):
    volume, prediction = wrong
    view = viewer.show(volume, {"prediction": prediction})
    assert view.viewer.config_state.state.input_event_bindings.viewer["keyp"] == "report"
    assert press(view, raw=120, ground_truth="7", prediction="71").strip("<pre>/").splitlines() == [
        "segment 71 (prediction): 1,018 voxels, 0.0013 µm³",
        "match: segment 71, 98% of it in neuron 7, covers 33% of that",
        "merge: also neuron 1099511627776 (18 voxels) in segment 71",
        "split: also segment 70 (2,000 voxels) in neuron 7",
    ]
    assert view.viewer.config_state.state.status_messages["report"].startswith("segment 71 (prediction)")
    assert press(view, ground_truth={"key": "7", "value": "7"}).strip("<pre>/").splitlines() == [
        "neuron 7 (ground truth): 3,000 voxels, 0.00384 µm³",
        "match: segment 70, 100% of it in neuron 7, covers 67% of that",
        "merge: no other neuron in segment 70",
        "split: also segment 71 (1,000 voxels) in neuron 7",
    ]
    assert "no neuron under the mouse" in press(view, raw=3)
    assert "does not say" in press(view, prediction=1)


def test_report_without_ground_truth_has_the_size(volume):
    view = viewer.show(Volume(volume.raw, VOXEL), {"p": volume.labels})
    assert view.report("p", 7) == "segment 7 (p): 3,000 voxels, 0.00384 µm³"
    for layer, label, what in (("p", 8, "no segment 8"), ("q", 7, "no segmentation 'q': the viewer has p")):
        with pytest.raises(ValueError, match=what):
            view.report(layer, label)


def test_a_report_names_three_parts_and_counts_the_rest():
    gt = np.repeat(np.arange(1, 9, dtype=np.uint32), 8).reshape(1, 8, 8)
    gt[0, 0] = 8
    view = viewer.show(Volume(np.zeros((1, 8, 8), np.uint8), VOXEL, gt), {"p": np.ones_like(gt)})
    *_, merge, split = view.report("p", 1).splitlines()
    assert merge == "merge: also neuron 2 (8 voxels), neuron 3 (8 voxels), neuron 4 (8 voxels) and 3 more in segment 1"
    assert split == "split: no other segment in neuron 8"


# --- platforms -------------------------------------------------------------------------------------------------------


@pytest.fixture
def bare(monkeypatch):
    """No sign of any host."""
    for name in (*(variable for variable, _ in machine._PLATFORM_VARIABLES), "VSCODE_PID", "VSCODE_CWD"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_the_port_stays_the_same_unless_it_is_taken(volume, monkeypatch):
    """So that VS Code or ssh can forward it once and for all."""
    first, second = free_port(), free_port()
    monkeypatch.setattr(viewer, "PORTS", [first, second])
    try:
        for _ in range(2):
            viewer.neuroglancer.stop()
            assert viewer.show(volume).port == first
        viewer.neuroglancer.stop()
        with socket.create_server(("127.0.0.1", first)):
            view = viewer.show(volume)
        assert view.port == second
        assert f"port {second}" in repr(view)
        assert get(f"/v/{view.viewer.token}/")
    finally:
        viewer.neuroglancer.stop()  # the next test starts one on a port of the library's


@pytest.mark.parametrize(
    ("environment", "address", "words"),
    [
        (
            {"SSH_CONNECTION": "10.0.0.1 50000 192.0.2.7 22"},
            "http://127.0.0.1:{port}",
            "ssh -N -L {port}:127.0.0.1:{port} 192.0.2.7</code>",
        ),
        (
            {"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "sys/dashboard/sys/jupyter"},  # as Open OnDemand starts it
            "http://127.0.0.1:{port}",
            "ssh -N -L {port}:127.0.0.1:{port} -J LOGIN-NODE {host}</code>",
        ),
        ({"PBS_JOBID": "7"}, "http://127.0.0.1:{port}", "-J LOGIN-NODE {host}"),
        ({"CODESPACE_NAME": "ada-x7"}, "https://ada-x7-{port}.app.github.dev", "in the Ports view"),
        ({"GITPOD_WORKSPACE_URL": "https://ada.ws.gitpod.io"}, "https://{port}-ada.ws.gitpod.io", "in the Ports view"),
        ({"SAGEMAKER_APP_TYPE": "JupyterLab"}, "/jupyterlab/default/proxy/{port}", "jupyter-server-proxy"),
    ],
)
def test_a_remote_machine_names_the_port_and_the_address_in_place_of_a_frame(volume, bare, environment, address, words):
    view = viewer.show(volume)
    assert f"another machine than your browser, forward port {view.port}" in view._repr_html_(), "it may be any"
    for name, value in environment.items():
        bare.setenv(name, value)
    assert view.url == f"{address.format(port=view.port)}/v/{view.viewer.token}/"
    text = view._repr_html_()
    assert "<iframe" not in text
    assert f">{view.url}</a>" in text
    assert re.search(f"[Pp]ort {view.port}", text)
    assert words.format(port=view.port, host=socket.gethostname()) in text


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


@pytest.mark.slow
@pytest.mark.parametrize("first", ["viewer", "exports"])
def test_colab(tmp_path, bare, first):
    """With a stand-in for google.colab, which neuroglancer looks for when it is imported."""
    (tmp_path / "google/colab").mkdir(parents=True)
    (tmp_path / "google/colab/__init__.py").touch()
    (tmp_path / "google/colab/output.py").write_text(
        "def eval_js(code):\n    return 'https://' + code.split('(')[1][:-1] + '-colab.googleusercontent.com/'\n"
    )
    code = (
        f"import numpy as np; from fgnet_lib.views import {first}, viewer; from fgnet_lib.volumes import Volume\n"
        "view = viewer.show(Volume(np.zeros((2, 4, 4), np.uint8), (1, 1, 1)))\n"
        "print(viewer.server._IS_GOOGLE_COLAB, view.port, view.viewer.token, view.url, view._repr_html_())"
    )
    environment = os.environ | {"COLAB_RELEASE_TAG": "x", "PYTHONPATH": f"{tmp_path}{os.pathsep}{REPOSITORY}"}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    is_colab, port, token, url, html = run.stdout.split(maxsplit=4)
    assert is_colab == "True"
    assert url == f"https://{port}-colab.googleusercontent.com/v/{token}/"
    assert f'<iframe src="{url}"' in html


@pytest.mark.slow
def test_jupyter_server_proxy_reaches_it(volume, bare, tmp_path):
    """As behind a hub: index, script, volume info and a state update through jupyter-server-proxy under a prefix."""
    port = free_port()
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
        host, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 300
        while True:
            try:
                page = urllib.request.urlopen(host + view.url, timeout=60).read().decode()
                break
            except OSError:  # refused, or closed before it answered
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
def page():
    with open_browser(800, 600) as (page, watch):
        yield page
        assert watch.problems == []
        assert watch.outside == []


@pytest.mark.slow
def test_browser_shows_each_thing_in_its_place(volume, page):
    raw, attention = np.zeros(SHAPE, np.uint8), np.zeros((10, 15, 20), np.float32)
    mark = np.zeros(SHAPE, bool)
    mark[:, 8:12, 32:36] = True
    raw[mark], attention[:, 2, 8] = 255, 1
    affinities = np.zeros((3, *SHAPE), np.float32)
    affinities[0][mark] = 1
    volume = Volume(raw, VOXEL, volume.labels, volume.offset)
    view = viewer.show(volume, {}, {"A_r": affinities}, [attention], (mark, mark))
    page.goto(view.url)
    pictures = {
        layer: screenshot(page, view.viewer, {layer}, "xy", f"viewer-{layer.replace(' ', '-')}")
        for layer in ("raw", "A_r", "attention a1", "splits", "merges")
    }
    # one screen pixel is one voxel of the finest axis, x: y has two; centred on the middle of the voxel (30, 40)
    gray = pictures["raw"]
    middle, size = center(gray.min(-1) > 0.9)
    assert np.allclose(size, (8, 4), atol=1)
    assert np.allclose(middle - np.array(gray.shape[:2]) / 2, ((10 - 30.5) * 2, 34 - 40.5), atol=1)
    red, warm, blue, orange = (pictures[layer] for layer in ("A_r", "attention a1", "splits", "merges"))
    for shown in (
        red[..., 0] - red[..., 1] > 0.3,
        warm.min(-1) > 0.55,
        blue[..., 2] - blue[..., 0] > 0.2,
        orange[..., 0] - orange[..., 2] > 0.2,
    ):
        assert np.allclose(center(shown), (middle, size), atol=1)
    assert_box_in_3d(page, view.viewer, "ground truth", "viewer-3d", label_colors(np.array([7]))[0, :3])


@pytest.mark.slow
def test_browser_jumps_and_a_key_reports_what_is_under_the_mouse(wrong, page):
    volume, prediction = wrong
    view = viewer.show(volume, {"prediction": prediction}, errors=error_masks(prediction, volume.labels))
    page.goto(view.url)
    page.wait_for_selector("canvas")
    view.jump(neuron_report(prediction, volume.labels, VOXEL).merges[0])
    with view.viewer.txn() as state:
        state.layout, state.cross_section_scale = "xy", 0.1  # the middle of the page is the voxel of the error

    def point() -> bool:
        page.mouse.move(400, 320)
        page.wait_for_timeout(500)
        page.keyboard.press("p")
        page.wait_for_timeout(500)
        page.mouse.move(410, 325)
        return "neuron 1099511627776 (ground truth): 18 voxels" in view.panel.value

    wait_until(page, point, "no report")
    page.screenshot(path=SCREENSHOTS / "viewer-report.png")
    assert page.get_by_text("neuron 1099511627776 (ground truth)").is_visible()


@pytest.mark.slow
def test_the_report_appears_in_the_notebook(page, tmp_path):
    """In JupyterLab: the viewer's frame and the panel below it, which the server's thread writes to."""
    code = (
        f"import sys; sys.path[:] = {sys.path!r}\n"
        "from fgnet_lib.views import viewer\nfrom helpers.viewing import make_volume\nviewer.show(make_volume())"
    )
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)], metadata=kernel)
    nbformat.write(notebook, tmp_path / "show.ipynb")
    page.set_viewport_size({"width": 1400, "height": 1000})
    with jupyterlab(tmp_path) as address:
        open_notebook(page, address, "show.ipynb")
        run_all(page)
        frame = show_frame(page)
        panel = page.locator(".jp-OutputArea-output:has(.widget-html)")
        assert "its report appears here" in panel.inner_text()
        frame.evaluate(
            "viewer.position.value = Float32Array.of(45.5, 20.5, 13.5)"
        )  # in the box, in voxels of the data set
        box = frame.frame_element().bounding_box()
        x, y = box["x"] + box["width"] * 0.25, box["y"] + 50 + (box["height"] - 50) * 0.25  # the middle of the xy panel

        def point() -> bool:
            page.mouse.move(x, y)
            page.wait_for_timeout(500)
            page.keyboard.press("p")
            page.wait_for_timeout(500)
            page.mouse.move(x + 3, y + 3)
            return "neuron 7 (ground truth): 3,000 voxels" in panel.inner_text()

        wait_until(page, point, "no report in the notebook")
        page.screenshot(path=SCREENSHOTS / "viewer-jupyterlab.png")
