"""Exported files are small, complete and right; a browser opens them without this library."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import neuroglancer
import numpy as np
import pytest
from helpers.browser import SCREENSHOTS, free_port, open_browser
from helpers.viewing import BOX, SHAPE, VOXEL, alike, assert_box_in_3d, center, make_volume, screenshot
from matplotlib.image import imread

from fgnet_lib.views import exports
from fgnet_lib.volumes import Lazy, Volume

# --- one file --------------------------------------------------------------------------------------------------------


def test_html_holds_neurons_in_nm(tmp_path):
    labels = make_volume().labels
    path = exports.export_html(labels, VOXEL, tmp_path / "neurons.html")
    text = path.read_text(encoding="utf-8")
    figure = text[text.rindex("Plotly.newPlot(") :]
    assert re.findall(r'"name":"(neuron \d+)"', figure) == ["neuron 7", f"neuron {2**40}"]
    for axis, cut, size in zip("zyx", BOX, VOXEL, strict=True):
        data = re.search(rf'"{axis}":{{"dtype":"f4","bdata":"([^"]+)"', figure)[1].encode().decode("unicode_escape")
        nm = np.frombuffer(base64.b64decode(data), "<f4")
        assert (nm.min(), nm.max()) == pytest.approx((cut.start * size, cut.stop * size), abs=0.01)
        assert f'"{axis} (nm)"' in figure
    assert exports.export_html(labels, VOXEL, tmp_path / "one.html", [7]).stat().st_size < 10e6
    assert sorted(p.name for p in tmp_path.iterdir()) == ["neurons.html", "one.html"]


def test_html_stays_small(tmp_path):
    rough = np.random.default_rng(0).integers(1, 11, (20, 40, 40), dtype=np.uint32)  # no surface could be larger
    assert exports.export_html(rough, VOXEL, tmp_path / "rough.html").stat().st_size < 10e6


@pytest.mark.parametrize(
    ("labels", "ids", "what"), [(0, None, "no neuron"), (1, [], "no neuron"), (1, [5], "neuron 5"), (1, {5: "a"}, "5")]
)
def test_what_is_not_there_is_refused(tmp_path, labels, ids, what):
    labels = np.full((2, 2, 2), labels, np.uint32)
    with pytest.raises(ValueError, match=what):
        exports.export_html(labels, VOXEL, tmp_path / "x.html", ids)
    with pytest.raises(ValueError, match=what):
        exports.export_precomputed(Volume(np.zeros((2, 2, 2), np.uint8), VOXEL), labels, tmp_path / "x", ids)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_html_opens_from_disk_and_asks_for_nothing(tmp_path):
    names = {7: "the box", 2**40: "a corner"}
    path = exports.export_html(make_volume().labels, VOXEL, tmp_path / "neurons.html", names)
    with open_browser(900, 700) as (page, watch):
        page.goto(path.as_uri())
        page.wait_for_selector("canvas")
        page.wait_for_timeout(2000)
        page.screenshot(path=SCREENSHOTS / "export-html.png")
        legend = page.locator(".legendtext").all_text_contents()
        before = page.screenshot()
        page.mouse.move(400, 400)
        page.mouse.down()
        page.mouse.move(500, 450, steps=5)
        page.mouse.up()
        page.wait_for_timeout(500)
        assert page.screenshot() != before, "it does not turn"
    assert legend == ["the box", "a corner"]
    assert watch.asked == [path.as_uri()]
    assert watch.problems == []
    picture = imread(SCREENSHOTS / "export-html.png")[..., :3]
    assert (alike(picture, 7) & (np.ptp(picture, axis=-1) > 0.2)).mean() > 0.02


# --- a folder for neuroglancer ---------------------------------------------------------------------------------------


def info(folder: Path) -> dict:
    return json.loads((folder / "info").read_text())


def test_volumes_are_in_neuroglancers_format(tmp_path):
    """Raw chunks read by hand, as the format says: x fastest, named by their first and last voxels."""
    volume = make_volume()
    lazy = Volume(Lazy(SHAPE, np.uint8, lambda *cut: volume.raw[cut]), VOXEL, offset=volume.offset)
    folder = exports.export_precomputed(lazy, volume.labels.astype(np.int64), tmp_path / "p").path
    (scale,) = info(folder / "raw")["scales"]
    assert (scale["resolution"], scale["size"], scale["voxel_offset"]) == ([4, 8, 40], [80, 60, 10], [5, 9, 10])
    assert (info(folder / "raw")["type"], info(folder / "raw")["data_type"]) == ("image", "uint8")
    chunk = np.fromfile(folder / "raw" / scale["key"] / "69-85_9-69_10-20", np.uint8).reshape(10, 60, 16)
    assert np.array_equal(chunk, volume.raw[:, :, 64:])
    segmentation = info(folder / "segmentation")
    assert (segmentation["type"], segmentation["data_type"]) == ("segmentation", "uint64")
    assert segmentation["scales"][0]["encoding"] == "compressed_segmentation"
    assert (segmentation["mesh"], segmentation["segment_properties"]) == ("mesh", "segment_properties")


def test_large_volumes_come_in_coarser_copies_too(tmp_path):
    """First of the axes with the finest voxels."""
    shape = (70, 300, 260)
    z, y, x = np.indices(shape, np.uint32)
    volume = Volume((y // 2 % 2 * 100 + x % 2 * 10).astype(np.uint8), VOXEL, offset=(0, 8, 4))
    folder = exports.export_precomputed(volume, 1 + y // 100 + z // 35 * 1000, tmp_path / "p", [1]).path
    fine, coarse, coarser = info(folder / "raw")["scales"]
    assert [scale["resolution"] for scale in (fine, coarse, coarser)] == [[4, 8, 40], [8, 8, 40], [16, 16, 40]]
    assert (coarse["size"], coarse["voxel_offset"]) == ([131, 300, 70], [0, 1, 0])
    chunk = np.fromfile(folder / "raw" / coarse["key"] / "0-64_1-65_0-64", np.uint8).reshape(64, 64, 64)
    assert np.array_equal(chunk[:, :, 1:], np.broadcast_to(np.arange(64)[:, None] // 2 % 2 * 100 + 5, (64, 64, 63)))
    names = [list((folder / "segmentation" / s["key"]).iterdir()) for s in info(folder / "segmentation")["scales"]]
    assert [len(files) for files in names] == [5 * 5 * 2, 3 * 5 * 2, 2 * 3 * 2]


def test_meshes_names_and_sizes_are_there(tmp_path):
    volume = make_volume()
    folder = exports.export_precomputed(volume, volume.labels, tmp_path / "p", {7: "box", 2**40: "corner"}).path
    properties = info(folder / "segmentation" / "segment_properties")["inline"]
    assert properties["ids"] == ["7", str(2**40)]
    assert [p["values"] for p in properties["properties"]] == [["box", "corner"], [3000, 18]]
    mesh = folder / "segmentation" / "mesh"
    assert info(mesh) == {"@type": "neuroglancer_legacy_mesh"}
    (fragment,) = json.loads((mesh / "7:0").read_text())["fragments"]
    data = (mesh / fragment).read_bytes()
    vertices = np.frombuffer(data, "<f4", 3 * int.from_bytes(data[:4], "little"), 4).reshape(-1, 3)
    triangles = np.frombuffer(data, "<u4", offset=4 + vertices.nbytes)
    assert (len(triangles) % 3, triangles.max()) == (0, len(vertices) - 1)
    edges = [
        [(corner(cut) * size + offset) for cut, size, offset in zip(BOX, VOXEL, volume.offset, strict=True)][::-1]
        for corner in (lambda cut: cut.start, lambda cut: cut.stop)
    ]
    assert np.allclose([vertices.min(0), vertices.max(0)], edges, atol=0.01)


def test_an_export_is_replaced_and_nothing_else(tmp_path):
    volume = make_volume()
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").touch()
    with pytest.raises(ValueError, match="no earlier export"):
        exports.export_precomputed(volume, volume.labels, tmp_path / "thesis")
    with pytest.raises(ValueError, match=r"\(10, 60, 79\)"):
        exports.export_precomputed(volume, volume.labels[:, :, 1:], tmp_path / "p")
    exports.export_precomputed(volume, volume.labels, tmp_path / "p")
    exports.export_precomputed(volume, volume.labels, tmp_path / "p", [7])
    assert not (tmp_path / "p" / "segmentation" / "mesh" / f"{2**40}").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p", "thesis"]
    assert (tmp_path / "thesis" / "chapter.txt").exists()


@pytest.fixture
def served(tmp_path):
    """An export with a bright block in raw, served by its own command; yields what the command prints as the link."""
    volume = make_volume()
    raw = np.zeros(SHAPE, np.uint8)
    raw[:, 8:12, 32:36] = 255
    export = exports.export_precomputed(Volume(raw, VOXEL, offset=volume.offset), volume.labels, tmp_path / "a b")
    assert export.command == f"python '{tmp_path}/a b/serve.py'"
    port = free_port()
    command = [sys.executable, "-I", export.path / "serve.py", str(port)]  # -I: without this repository
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    server.stdout.readline()
    link = server.stdout.readline().strip()
    assert link == export.link.replace(f"127.0.0.1:{exports.serve.PORT}", f"127.0.0.1:{port}")
    yield link
    server.terminate()
    server.wait()
    server.stdout.close()


def test_the_command_serves_the_folder_to_any_page(served):
    state = neuroglancer.parse_url(served)
    address = state.layers["neurons"].source[0].url.removeprefix("precomputed://")
    with urllib.request.urlopen(f"{address}/info", timeout=60) as answer:
        assert answer.headers["Access-Control-Allow-Origin"] == "*"
        assert json.load(answer)["@type"] == "neuroglancer_multiscale_volume"
    with pytest.raises(urllib.error.HTTPError, match="404") as missing:
        urllib.request.urlopen(f"{address}/mesh/8:0", timeout=60)
    assert missing.value.headers["Access-Control-Allow-Origin"] == "*"
    missing.value.close()


def test_a_taken_port_is_named(served, tmp_path):
    port = re.search(r"127\.0\.0\.1:(\d+)", served)[1]
    again = subprocess.run([sys.executable, tmp_path / "a b" / "serve.py", port], capture_output=True, text=True)
    assert again.returncode == 1
    assert f"port {port} cannot be used" in again.stderr


@pytest.mark.slow
def test_neuroglancer_shows_the_folder(served):
    """The client that comes with neuroglancer's Python package, in the state of the link."""
    viewer = neuroglancer.Viewer(allow_credentials=False)
    viewer.set_state(neuroglancer.parse_url(served))
    with open_browser(800, 600) as (page, watch):
        page.goto(viewer.get_viewer_url())
        page.wait_for_selector("canvas")
        page.wait_for_timeout(3000)
        page.screenshot(path=SCREENSHOTS / "precomputed-link.png")
        gray = screenshot(page, viewer, {"raw"}, "xy", "precomputed-raw")
        middle, size = center(gray.min(-1) > 0.9)
        assert np.allclose(size, (8, 4), atol=1)
        assert np.allclose(middle - np.array(gray.shape[:2]) / 2, ((10 - 30) * 2, 34 - 40), atol=1)
        assert_box_in_3d(page, viewer, "neurons", "precomputed-3d")
        assert watch.problems == []
        assert watch.outside == []
