"""The playground computes what PyTorch computes, its controls change what it says, and everybody can use it."""

from __future__ import annotations

import functools
import gzip
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from http.server import ThreadingHTTPServer
from pathlib import Path

import build_playground
import numpy as np
import pytest
import tifffile
import torch
from helpers.browser import SCREENSHOTS, cannot_test, find_barriers, open_browser, phone
from picture_pages import Quiet
from PIL import Image
from playwright.sync_api import Page

from fgnet_lib.datasets import data_dir
from fgnet_lib.metrics import voi
from fgnet_lib.probing import attention_set_to
from fgnet_lib.segmentation import segment
from fgnet_lib.weights import load_pretrained, pretrained_threshold

pytestmark = pytest.mark.slow  # exports the model and opens a browser

NO_RUNTIME = "NO TEST OF THE PLAYGROUND: run `make runtime`, which needs npm"
SAME = 1e-3  # affinities of the page and of PyTorch


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """What a web server shows: the playground, below a sub-path as on GitHub Pages."""
    root = tmp_path_factory.mktemp("www")
    datasets = ("phantom", "fib25") if data_dir() else ("phantom",)
    try:
        build_playground.build(root / "course" / "playground", datasets)
    except FileNotFoundError:
        cannot_test(NO_RUNTIME)
    return root


@pytest.fixture(scope="module")
def address(folder) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder)) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}/course/playground/"
        server.shutdown()


@pytest.fixture(scope="module")
def desktop(address) -> Iterator[tuple]:
    """A page that has computed the phantom, shared by the tests; each begins by its address."""
    with open_browser(1280, 900) as (page, watch):
        yield page, watch


def show(page: Page, address: str) -> None:
    """Open the page anew, and wait until it has computed."""
    page.goto("about:blank")
    page.goto(address)
    settle(page)


def settle(page: Page) -> None:
    """Wait until the page has computed all that was asked."""
    page.wait_for_selector("body[data-ready=yes]")


def output(page: Page, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """An array that the page holds: "edited", "result.neurons", "result.maps.A_r"."""
    return np.array(page.evaluate(f"Array.from(playground.{name})")).reshape(shape)


def numbers(page: Page) -> dict[str, list[str]]:
    """The table: what -> its figures now and for the untouched sample."""
    rows = page.locator("#numbers tr").all()
    return {row.locator("th").inner_text(): row.locator("td").all_inner_texts() for row in rows}


def predict(raw: np.ndarray, **settings: float | str) -> dict[str, np.ndarray]:
    """What PyTorch computes, with attention set to values by `probing`."""
    model = load_pretrained()
    with torch.inference_mode(), ExitStack() as stack:
        for name, value in settings.items():
            stack.enter_context(attention_set_to(model, int(name[1]), value))
        output = model(torch.from_numpy(raw.astype(np.float32))[None, None] / 255)
    maps = dict(zip(("a1", "a2", "a3"), (a[0, 0].numpy() for a in output.attention), strict=True))
    return maps | {"A_s": output.coarse[0].sigmoid().numpy(), "A_r": output.refined[0].sigmoid().numpy()}


# --- it computes what PyTorch and our segmentation compute -----------------------------------------------------------


@pytest.mark.parametrize("dataset", ["phantom", "fib25"])
def test_affinities_attention_and_neurons_are_those_of_the_library(desktop, address, dataset):
    if dataset == "fib25" and not data_dir():
        pytest.skip("set FGNET_DATA_DIR to the folder of real EM volumes to run this test")
    page, watch = desktop
    show(page, f"{address}#sample={dataset}")
    volume = build_playground.cut_sample(dataset)
    shape = volume.shape
    assert np.array_equal(output(page, "edited", shape), volume.raw)
    expected = predict(volume.raw)
    for name, values in expected.items():
        assert np.abs(output(page, f"result.maps.{name}", values.shape) - values).max() < SAME, name
    ours = segment(expected["A_r"], volume.voxel_size, pretrained_threshold())
    neurons = output(page, "result.neurons", shape).astype(int)
    assert sum(voi(neurons, ours)) < 0.05
    split, merge = voi(neurons, volume.labels)
    assert numbers(page)["VOI split"][0] == f"{split:.2f}" and numbers(page)["VOI merge"][0] == f"{merge:.2f}"
    assert (watch.problems, watch.outside) == ([], [])


def test_attention_is_set_as_the_lessons_set_it(desktop, address):
    page, _ = desktop
    show(page, f"{address}#a1=mean&a2=0&a3=1&noise=20&contrast=0.7")
    edited = output(page, "edited", build_playground.SHAPE).astype(np.uint8)
    untouched = build_playground.cut_sample("phantom").raw
    assert np.std(edited.astype(float) - (0.7 * untouched + 0.3 * untouched.mean())) == pytest.approx(20, rel=0.05)
    for name, values in predict(edited, a1="mean", a2=0, a3=1).items():
        assert np.abs(output(page, f"result.maps.{name}", values.shape) - values).max() < SAME, name
    assert float(numbers(page)["mean change of Ar"][0]) > 0


# --- each control changes what it says -------------------------------------------------------------------------------


def test_each_control_changes_the_picture_the_numbers_and_the_address(desktop, address):
    page, watch = desktop
    show(page, address)
    plain = output(page, "result.maps.A_r", (3, *build_playground.SHAPE))
    assert page.url == f"{address}#" and numbers(page)["mean change of Ar"] == ["0.000", ""]
    for control, value, kept in [("noise", "30", "noise=30"), ("contrast", "0.5", "contrast=0.5")]:
        page.locator(f"#{control}").fill(value)
        settle(page)
        assert page.url.endswith(kept) and float(numbers(page)["mean change of Ar"][0]) > 0.001
        page.locator("#reset").click()
        settle(page)
    for name in ("a1", "a2", "a3"):
        page.locator(f"#{name}-setting").select_option("0")
        settle(page)
        assert page.url.endswith(f"{name}=0") and output(page, f"result.maps.{name}", (-1,)).max() < 1e-6
    page.locator("#reset").click()
    settle(page)
    assert np.array_equal(output(page, "result.maps.A_r", plain.shape), plain)
    counts = []
    for threshold in ("0.2", "0.95"):
        page.locator("#threshold").fill(threshold)
        settle(page)
        counts.append(int(numbers(page)["neurons in the 8 sections"][0]))
    assert counts[0] > int(numbers(page)["neurons in the 8 sections"][1]) > counts[1]
    before = page.locator("#neurons").screenshot()
    page.locator("#z").fill("0")
    settle(page)
    assert page.locator("#neurons").screenshot() != before and page.url.endswith("#z=0&threshold=0.95")
    assert (watch.problems, watch.outside) == ([], [])


def test_a_membrane_is_drawn_and_erased_by_mouse_and_kept_in_the_address(desktop, address):
    page, _ = desktop
    show(page, address)
    box = page.locator("#em").bounding_box()
    page.get_by_label("draw a membrane").check()
    page.mouse.move(box["x"] + 20, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] - 20, box["y"] + box["height"] / 2, steps=12)
    page.mouse.up()
    settle(page)
    before = build_playground.cut_sample("phantom").raw
    drawn = output(page, "edited", before.shape)
    rows = np.flatnonzero((drawn != before).any(axis=(0, 2)))
    assert 62 <= rows.min() <= rows.max() <= 67 and (drawn != before)[:, 64].mean() > 0.7  # through all sections
    told = numbers(page)
    assert float(told["mean change of Ar"][0]) > 0.002
    kept = page.url
    page.get_by_label("erase").check()
    page.mouse.click(box["x"] + 60, box["y"] + box["height"] / 2)
    settle(page)
    assert len(page.url) > len(kept)
    page.locator("#undo").click()
    settle(page)
    page.reload()
    settle(page)
    assert page.url == kept and numbers(page) == told
    assert np.array_equal(output(page, "edited", before.shape), drawn)


def test_keys_alone_reach_the_section_and_draw(desktop, address):
    page, _ = desktop
    show(page, address)
    reached = []
    for _ in range(17):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.name"))
    controls = "sample file nm reset share em z tool through radius noise contrast threshold"
    assert [name for name in reached if name in controls.split()] == controls.split()
    assert {"a1-setting", "a2-setting", "a3-setting"} <= set(reached)
    page.locator("#em").focus()
    for key in ("d", "Shift+ArrowRight", "d", "PageUp", "ArrowUp", "e"):
        page.keyboard.press(key)
    settle(page)
    strokes = page.evaluate("playground.state.strokes")
    assert [(stroke["tool"], stroke["points"]) for stroke in strokes] == [
        ("draw", [[64, 64], [64, 72]]),
        ("erase", [[63, 72]]),
    ]
    assert page.evaluate("playground.state.z") == 5


def test_an_address_that_makes_no_sense_is_told(desktop, address):
    page, watch = desktop
    show(page, f"{address}#z=99&a1=7&sample=nothing&strokes=d2&more=1&noise=10")
    alert = page.locator("#alert").inner_text()
    assert alert.endswith("leaves out: z, a1, sample, strokes, more.")
    assert page.url == f"{address}#noise=10" and watch.problems == []


def test_a_link_is_copied_or_the_reader_is_told_to_copy_the_address(desktop, address):
    """Browsers have no clipboard for pages that come over http from another computer."""
    page, watch = desktop
    show(page, f"{address}#noise=10")
    page.evaluate("Object.defineProperty(navigator, 'clipboard', {value: undefined, configurable: true})")
    page.locator("#share").click()
    page.wait_for_function("document.getElementById('status').textContent.startsWith('Copy the address')")
    page.evaluate("delete navigator.clipboard")
    assert watch.problems == []


def test_opened_as_a_file_the_page_says_what_it_needs(desktop, folder):
    with phone(desktop[0]) as page:
        page.goto((folder / "course" / "playground" / "index.html").as_uri())
        assert "python -m http.server" in page.locator("#alert").inner_text()
        assert page.locator("#status").inner_text() == ""


# --- own images ------------------------------------------------------------------------------------------------------


def upload(page: Page, path: Path) -> str:
    """Choose a file, and return what the page complains of."""
    page.locator("#file").set_input_files(path)
    page.wait_for_function("document.getElementById('alert').textContent || playground.state.sample === 'own'")
    settle(page)
    return page.locator("#alert").inner_text()


def test_own_images_stay_here_and_wrong_ones_get_a_sentence(desktop, address, tmp_path):
    page, watch = desktop
    show(page, address)
    asked = len(watch.asked)
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "cut.tif").write_bytes(b"II*\0\x08\0\0\0\x05\0")
    Image.new("L", (60, 40)).save(tmp_path / "small.png")
    grey = np.random.default_rng(0).integers(0, 256, (10, 140, 160), np.uint8)
    tifffile.imwrite(tmp_path / "packed.tif", grey, compression="zlib")
    for file, sentence in {
        "notes.txt": '"notes.txt" is no image that this page can read. Choose a PNG, a JPEG or an uncompressed',
        "cut.tif": '"cut.tif" is a TIFF that this page cannot read: it is damaged or cut short.',
        "packed.tif": '"packed.tif" is a TIFF that this page cannot read: it is compressed.',
        "small.png": '"small.png" has 60 × 40 pixels; at 8 nm a pixel the page needs at least 128 × 128.',
    }.items():
        assert upload(page, tmp_path / file).startswith(sentence)
    Image.fromarray(grey[0]).save(tmp_path / "own.png")
    assert upload(page, tmp_path / "own.png") == ""
    shown = output(page, "edited", build_playground.SHAPE)
    assert np.abs(shown - grey[0, 6:134, 16:144]).max() <= 1
    page.locator("#sample").select_option("phantom")
    settle(page)
    tifffile.imwrite(tmp_path / "pages.tif", grey)
    assert upload(page, tmp_path / "pages.tif") == ""
    assert np.abs(output(page, "edited", build_playground.SHAPE) - grey[:8, 6:134, 16:144]).max() <= 1
    assert numbers(page)["VOI split"] == ["unknown", "unknown"]
    assert len(watch.asked) == asked and watch.problems == []  # nothing was sent, nothing loaded
    page.reload()
    settle(page)
    assert "choose the file again" in page.locator("#alert").inner_text()


# --- for everybody ---------------------------------------------------------------------------------------------------


def test_no_barrier_and_pictures_of_it(desktop, address):
    page, _ = desktop
    for scheme, width in [("light", 1280), ("dark", 1280), ("dark", 390), ("light", 390)]:
        page.set_viewport_size({"width": width, "height": 900})
        page.emulate_media(color_scheme=scheme)
        show(page, f"{address}#a1=0")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.screenshot(path=SCREENSHOTS / f"playground-{width}-{scheme}.png", full_page=True)
        assert find_barriers(page) == []


def test_a_finger_draws_on_a_phone(desktop, address):
    with phone(desktop[0]) as page:
        page.goto(address)
        settle(page)
        page.get_by_label("draw a membrane").check()
        page.locator("#em").tap(position={"x": 100, "y": 100})
        settle(page)
        size = page.locator("#em").bounding_box()["width"]
        (stroke,) = page.evaluate("playground.state.strokes")
        assert stroke["points"] == [[int(100 / size * 128)] * 2]


def test_it_is_small_and_quick(desktop, address, folder):
    """`-s` prints the figures of docs/measured/playground.md."""
    page, _ = desktop
    sizes = {path.name: len(gzip.compress(path.read_bytes(), 6)) for path in folder.rglob("*") if path.is_file()}
    start = time.monotonic()
    show(page, address)
    first = time.monotonic() - start
    paint = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime") / 1000
    redraws = []
    for noise in range(1, 6):
        page.locator("#noise").fill(str(noise))
        settle(page)
        redraws.append(page.evaluate("[playground.result.ms.model, playground.result.ms.neurons]"))
    model, neurons = np.median(redraws, axis=0) / 1000
    largest = {name: f"{size / 1e6:.2f} MB" for name, size in sizes.items() if size > 50_000}
    print(f"\ndownload {sum(sizes.values()) / 1e6:.2f} MB: {largest}; first paint {paint:.2f} s")
    print(f"first result {first:.1f} s, redraw: model {model:.2f} s, neurons {neurons:.2f} s")
    assert sum(sizes.values()) < 12e6
