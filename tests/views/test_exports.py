"""Exported files are small, complete and right; a browser opens them without this library."""

from __future__ import annotations

import base64
import io
import json
import re
import resource
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import combinations
from pathlib import Path
from urllib.parse import urlsplit

import neuroglancer
import numpy as np
import pytest
from helpers.browser import SCREENSHOTS, free_port, open_browser, wait_until
from helpers.viewing import BOX, SHAPE, VOXEL, alike, assert_box_in_3d, center, make_volume, screenshot
from matplotlib.colors import to_hex, to_rgb
from matplotlib.image import imread
from playwright.sync_api import Error as PlaywrightError
from playwright.sync_api import Page
from skimage.color import rgb2lab

from fgnet_lib.views import exports, plots
from fgnet_lib.volumes import Lazy, Volume

FIRST = plots.neighbour_colors(np.array([7]), first=[7])[7]  # the colour of the first neuron of any export

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


def test_neurons_of_an_export_have_colours_far_apart(tmp_path):
    labels = np.kron(np.arange(1, 13).reshape(1, 3, 4), np.ones((2, 2, 2), int))
    ids = list(range(12, 0, -1))
    text = exports.export_html(labels, VOXEL, tmp_path / "neurons.html", ids).read_text(encoding="utf-8")
    written = re.findall(r'"color":"(#[0-9a-f]{6})"', text[text.rindex("Plotly.newPlot(") :])[:12]  # then the template
    assert written == [to_hex(plots.neighbour_colors(labels, first=ids)[i]) for i in ids]
    lab = rgb2lab([to_rgb(color) for color in written])
    assert min(np.linalg.norm(a - b) for a, b in combinations(lab, 2)) > 20


@pytest.mark.slow
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


def share_of_first(page: Page) -> float:
    """The share of a page's picture that has the colour of the first neuron."""
    picture = imread(io.BytesIO(page.screenshot()))[..., :3]
    return (alike(picture, FIRST) & (np.ptp(picture, axis=-1) > 0.2)).mean()


@pytest.mark.slow
def test_html_opens_from_disk_and_asks_for_nothing(tmp_path):
    names = {7: "the box", 2**40: "</script><script>document.title = 'let in'</script><b>corner</b>"}
    path = exports.export_html(make_volume().labels, VOXEL, tmp_path / "neurons.html", names)
    with open_browser(900, 700) as (page, watch):
        page.goto(path.as_uri())
        page.wait_for_selector("canvas")
        wait_until(page, lambda: share_of_first(page) > 0.02, "no neuron is drawn")
        page.screenshot(path=SCREENSHOTS / "export-html.png")
        legend = page.locator(".legendtext").all_text_contents()
        assert page.title() != "let in"
        before = page.screenshot()
        page.mouse.move(400, 400)
        page.mouse.down()
        page.mouse.move(500, 450, steps=5)
        page.mouse.up()
        wait_until(page, lambda: page.screenshot() != before, "it does not turn")
    assert legend == list(names.values()), "a name from a file is text"
    assert watch.asked == [path.as_uri()]
    assert watch.problems == []


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


@pytest.mark.slow
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


def test_a_path_may_begin_with_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    volume = make_volume()
    assert exports.export_html(volume.labels, VOXEL, "~/a.html") == tmp_path / "a.html"
    assert exports.export_precomputed(volume, volume.labels, "~/p").path == tmp_path / "p"
    assert (tmp_path / "a.html").is_file() and (tmp_path / "p" / exports.serve.STATE).is_file()


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


@pytest.mark.parametrize(
    "name",
    ["thesis.docx", "raw/notes.txt", "raw/8_8_40/0-64_0-64.txt", "segmentation/mesh/7.stl", "sub/neuroglancer.json"],
)
def test_a_file_beside_an_earlier_export_is_never_deleted(tmp_path, name):
    volume = make_volume()
    export = exports.export_precomputed(volume, volume.labels, tmp_path / "p")
    (export.path / name).parent.mkdir(exist_ok=True)
    (export.path / name).write_text("years of work")
    with pytest.raises(ValueError, match=f"holds an earlier export and other files: {name}. They would be deleted"):
        exports.export_precomputed(volume, volume.labels, export.path)
    (export.path / name).unlink()
    (export.path / name).symlink_to(tmp_path)
    with pytest.raises(ValueError, match=f"other files: {name}"):
        exports.export_precomputed(volume, volume.labels, export.path)
    (export.path / name).unlink()
    exports.export_precomputed(volume, volume.labels, export.path)


def test_a_file_that_comes_while_an_export_is_written_is_not_deleted(tmp_path):
    volume = make_volume()
    exports.export_precomputed(volume, volume.labels, tmp_path / "p")

    def cut(*region: slice) -> np.ndarray:
        (tmp_path / "p" / "thesis.docx").touch()
        return volume.raw[region]

    with pytest.raises(ValueError, match="thesis.docx"):
        exports.export_precomputed(Volume(Lazy(SHAPE, np.uint8, cut), VOXEL), volume.labels, tmp_path / "p")
    assert (tmp_path / "p" / "thesis.docx").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["p"]


def test_an_export_that_cannot_be_written_says_why_and_leaves_nothing(tmp_path):
    """As on a full disk, here by a limit on the size of files; many chunks are being written when one fails."""
    raw = np.random.default_rng(0).integers(0, 256, (64, 320, 320), dtype=np.uint8)
    small = make_volume()
    exports.export_precomputed(small, small.labels, tmp_path / "p")
    before = sorted(tmp_path.rglob("*"))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        with pytest.raises(OSError, match=rf"cannot write {tmp_path}/p, what was there .* untouched: File too large"):
            exports.export_precomputed(Volume(raw, VOXEL), raw, tmp_path / "p")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert sorted(tmp_path.rglob("*")) == before


def make_export(folder: Path) -> exports.Export:
    """An export with a bright block in raw."""
    volume = make_volume()
    raw = np.zeros(SHAPE, np.uint8)
    raw[:, 8:12, 32:36] = 255
    return exports.export_precomputed(Volume(raw, VOXEL, offset=volume.offset), volume.labels, folder)


@contextmanager
def serve_by_command(export: exports.Export, *arguments: str) -> Iterator[str]:
    """Run an export's own copy of the server; yields the link that it prints."""
    port = str(free_port())
    command = [sys.executable, "-I", export.path / "serve.py", port, *arguments]  # -I: without this repository
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    server.stdout.readline()
    try:
        yield server.stdout.readline().strip()
    finally:
        server.terminate()
        server.wait()
        server.stdout.close()


@pytest.fixture
def served(tmp_path):
    """An export served by its own command; yields what the command prints as the link."""
    export = make_export(tmp_path / "a b")
    assert export.command == f"{sys.executable} '{tmp_path}/a b/serve.py'"
    with serve_by_command(export) as link:
        port = re.search(r"127\.0\.0\.1:(\d+)", link)[1]
        assert link == export.link.replace(f"127.0.0.1:{exports.serve.PORT}", f"127.0.0.1:{port}")
        yield link


def address_in(link: str) -> str:
    """The address of the served folder, as neuroglancer reads it from the link."""
    source = neuroglancer.parse_url(link).layers["raw"].source[0].url
    return source.removeprefix("precomputed://").removesuffix("/raw")


def ask(address: str, **headers: str) -> tuple[int, str, str | None]:
    """Status, text and allowed origin of an answer."""
    try:
        answer = urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=60)
    except urllib.error.HTTPError as error:
        answer = error
    with answer:
        return answer.status, answer.read().decode(), answer.headers["Access-Control-Allow-Origin"]


def test_the_command_serves_files_to_neuroglancer_and_to_this_machine(served):
    address = address_in(served)
    for headers in ({}, {"Origin": exports.serve.NEUROGLANCER}):
        status, text, allowed = ask(f"{address}/raw/info", **headers)
        assert (status, allowed) == (200, exports.serve.NEUROGLANCER)
        assert json.loads(text)["@type"] == "neuroglancer_multiscale_volume"
        status, _, allowed = ask(f"{address}/segmentation/mesh/8:0", **headers)
        assert (status, allowed) == (404, exports.serve.NEUROGLANCER), "neuroglancer has to see what is missing"
    assert ask(address.replace("127.0.0.1", "localhost") + "/raw/info")[0] == 200


@pytest.mark.slow
@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://example.org"},
        {"Origin": "null"},
        {"Origin": exports.serve.NEUROGLANCER + ".example.org"},
        {"Host": "example.org"},
        {"Host": "127.0.0.1"},
        {"Host": "127.0.0.1.example.org:9180"},
    ],
)
def test_other_pages_and_names_are_refused(served, headers):
    status, text, allowed = ask(f"{address_in(served)}/raw/info", **headers)
    assert (status, allowed) == (403, exports.serve.NEUROGLANCER)
    assert "multiscale" not in text


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["/", "/raw/", "/raw", "/segmentation/mesh/", "/%2e%2e/", "//"])
def test_folders_are_not_listed(served, folder):
    status, text, _ = ask(address_in(served) + folder)
    assert status == 404
    assert "info" not in text


@pytest.mark.slow
def test_slow_clients_are_let_go(tmp_path, monkeypatch):
    monkeypatch.setattr(exports.serve.Handler, "timeout", 2)
    export = make_export(tmp_path / "p")
    server = exports.serve.make_server(export.path, 0)
    assert server.server_address[0] == "127.0.0.1"
    before = set(threading.enumerate())
    threading.Thread(target=server.serve_forever).start()
    clients = [socket.create_connection(server.server_address) for _ in range(5)]
    for client in clients:
        client.sendall(b"GET /raw/info HTTP/1.1\r\nHost: ")
    assert ask(f"http://127.0.0.1:{server.server_port}/raw/info")[0] == 200
    for client in clients:
        client.settimeout(60)
        assert client.recv(1000) == b"", "the server has closed it"
        client.close()
    server.shutdown()
    server.server_close()
    for thread in set(threading.enumerate()) - before:
        thread.join(60)
        assert not thread.is_alive()


def test_another_neuroglancer_is_named_on_the_command_line(tmp_path):
    with serve_by_command(make_export(tmp_path / "p"), "https://neuroglancer.example.org/v2/") as link:
        assert link.startswith("https://neuroglancer.example.org/v2/#!")
        address = address_in(link)
        status, _, allowed = ask(f"{address}/raw/info", Origin="https://neuroglancer.example.org")
        assert (status, allowed) == (200, "https://neuroglancer.example.org")
        assert ask(f"{address}/raw/info", Origin=exports.serve.NEUROGLANCER)[0] == 403


@pytest.mark.slow
@pytest.mark.parametrize("origin", [exports.serve.NEUROGLANCER, "https://example.org"])
def test_a_browser_lets_no_page_but_neuroglancers_read(served, origin):
    read = 'address => fetch(address).then(answer => answer.json()).then(info => info["@type"], error => String(error))'
    with open_browser(400, 300) as (page, _):
        with suppress(PlaywrightError):  # an older Chromium does not ask
            page.context.grant_permissions(["local-network-access"])
        page.goto(origin)
        text = page.evaluate(read, f"{address_in(served)}/raw/info")
    assert text == (
        "neuroglancer_multiscale_volume" if origin == exports.serve.NEUROGLANCER else "TypeError: Failed to fetch"
    )


def test_a_taken_port_is_named(served, tmp_path):
    port = re.search(r"127\.0\.0\.1:(\d+)", served)[1]
    again = subprocess.run([sys.executable, tmp_path / "a b" / "serve.py", port], capture_output=True, text=True)
    assert again.returncode == 1
    assert f"port {port} cannot be used" in again.stderr


@pytest.mark.slow
def test_neuroglancer_shows_the_folder(tmp_path):
    """The client that comes with neuroglancer's Python package, in the state of the link."""
    viewer = neuroglancer.Viewer(allow_credentials=False)
    page_of_it = urlsplit(viewer.get_viewer_url())
    origin = f"{page_of_it.scheme}://{page_of_it.netloc}"
    with (
        serve_by_command(make_export(tmp_path / "p"), origin) as link,
        open_browser(800, 600) as (page, watch),
    ):
        viewer.set_state(neuroglancer.parse_url(link.replace(origin, exports.serve.NEUROGLANCER)))
        page.goto(viewer.get_viewer_url())
        page.wait_for_selector("canvas")
        page.wait_for_timeout(3000)
        page.screenshot(path=SCREENSHOTS / "precomputed-link.png")
        gray = screenshot(page, viewer, {"raw"}, "xy", "precomputed-raw")
        middle, size = center(gray.min(-1) > 0.9)
        assert np.allclose(size, (8, 4), atol=1)
        assert np.allclose(middle - np.array(gray.shape[:2]) / 2, ((10 - 30.5) * 2, 34 - 40.5), atol=1)
        assert_box_in_3d(page, viewer, "neurons", "precomputed-3d", FIRST)
        assert watch.problems == []
        assert watch.outside == []
