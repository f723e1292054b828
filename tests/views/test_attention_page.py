"""Attention to explore without a kernel: what the file holds is what the model computes, and a browser shows it."""

from __future__ import annotations

import base64
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.browser import SCREENSHOTS, find_barriers, open_browser, phone
from playwright.sync_api import Page

from fgnet_lib.configuration import MINI, FGNetConfig
from fgnet_lib.fgnet import FGNet
from fgnet_lib.phantom import make_phantom
from fgnet_lib.probing import Inspector
from fgnet_lib.views import attention_page
from fgnet_lib.views.feature_maps import cosine_similarity
from fgnet_lib.volumes import Volume


@pytest.fixture(scope="module")
def volume() -> Volume:
    return make_phantom((5, 72, 104), seed=1)  # neither side is a multiple of 16


@pytest.fixture(scope="module")
def model() -> FGNet:
    return FGNet(MINI).eval()


@pytest.fixture(scope="module")
def path(volume, model, tmp_path_factory) -> Path:
    return attention_page.export_attention(volume, model, tmp_path_factory.mktemp("page") / "attention.html")


@pytest.fixture(scope="module")
def content(path) -> dict:
    """The data that the page holds."""
    return json.loads(re.search(r'<script type="application/json"[^>]*>(.*?)</script>', path.read_text("utf-8"))[1])


def stored(text: str, type_: type) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), type_)


# --- what the file holds ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_attention_is_stored_to_less_than_half_a_percent_of_its_range(volume, model, content):
    inspector = Inspector(model, volume.raw)
    assert content["shape"] == list(volume.shape) and len(content["em"]) == 5
    for i, level in enumerate(content["levels"]):
        true = np.stack([inspector.section(z).attention[i] for z in range(5)])
        kept = np.array(level["values"])[stored(level["attention"], np.uint8)].reshape(true.shape)
        assert np.abs(kept - true).max() < 0.005 * np.ptp(true)
        assert np.corrcoef(kept.argsort(axis=None).argsort(), true.argsort(axis=None).argsort())[0, 1] > 0.98


def test_dot_products_of_what_is_stored_are_sam2s_similarities(volume, model, content):
    features = Inspector(model, volume.raw).section(2).sam2
    for level, exact in zip(content["levels"], features, strict=True):
        rows, columns = level["size"]
        codes = stored(level["features"], np.int8).reshape(5, rows, columns, -1)[2] * np.array(level["scale"])
        codes /= np.linalg.norm(codes, axis=-1, keepdims=True)
        errors = codes @ codes[1, 2] - cosine_similarity(exact, 1, 2)
        assert np.abs(errors).mean() < 0.08 and 0 < level["error"] < 0.08


@pytest.mark.slow
def test_a_large_volume_is_cut_to_its_middle_and_to_the_limit(model, tmp_path, monkeypatch):
    monkeypatch.setattr(attention_page, "SIDE", 96)
    monkeypatch.setattr(attention_page, "LIMIT", 120_000)
    volume = make_phantom((9, 128, 112), seed=2)
    path = attention_page.export_attention(volume, model, tmp_path / "part.html")
    part = json.loads(re.search(r"json[^>]*>(.*?)</script>", path.read_text("utf-8"))[1])
    count = part["shape"][0]
    assert part["shape"] == [count, 96, 96] and 1 < count < 9
    assert part["corner"] == [(9 - count) // 2, 16, 8] and part["of"] == [9, 128, 112]
    assert path.stat().st_size - attention_page.TEMPLATE.stat().st_size < 120_000


def test_a_model_without_attention_is_refused(volume, tmp_path):
    with pytest.raises(ValueError, match="this model has no attention to show"):
        attention_page.export_attention(volume, FGNet(FGNetConfig(encoder=None)), tmp_path / "none.html")
    assert list(tmp_path.iterdir()) == []


# --- in a browser ----------------------------------------------------------------------------------------------------


def shown(page: Page) -> tuple[str, list[str]]:
    """Where the cross is, and the values there."""
    return page.locator("#where").inner_text(), page.locator("#values td").all_inner_texts()


def value_at(content: dict, level: int, z: int, y: int, x: int) -> float:
    part = content["levels"][level]
    steps = stored(part["attention"], np.uint8).reshape(5, *part["size"])
    return part["values"][steps[z, y // part["stride"], x // part["stride"]]]


def center_of(page: Page, panel: int, y: int, x: int) -> tuple[float, float]:
    """Where a voxel of the 72 x 104 is on the screen."""
    box = page.locator("canvas.picture").nth(panel).bounding_box()
    return box["x"] + (x + 0.5) / 104 * box["width"], box["y"] + (y + 0.5) / 72 * box["height"]


@pytest.mark.slow
def test_mouse_moves_the_cross_in_all_pictures_and_a_click_compares(path, content):
    with open_browser(1280, 900) as (page, watch):
        page.goto(path.as_uri())
        page.wait_for_selector("body[data-ready]")
        before = page.locator("canvas.picture").nth(4).screenshot()
        page.mouse.move(*center_of(page, 2, 20, 70))
        where, values = shown(page)
        assert where.startswith("At z 2, y 20, x 70; ring at z 2, y 36, x 52")
        assert [float(text.lstrip("< ")) for text in values[1:4]] == pytest.approx(
            [value_at(content, level, 2, 20, 70) for level in range(3)], abs=0.05
        )
        page.mouse.click(*center_of(page, 0, 20, 70))
        where, values = shown(page)
        assert where.endswith("ring at z 2, y 20, x 70") and values[4] == "1.00"
        assert page.locator("canvas.picture").nth(4).screenshot() != before
        dark = page.locator("canvas.picture").nth(1).screenshot()
        for slider, value in {"low": 20, "high": 80, "gamma": 2}.items():
            page.locator(f"#{slider}").fill(str(value))
        assert page.locator("output[for=gamma]").inner_text() == "2.0"
        assert page.locator("canvas.picture").nth(1).screenshot() != dark
        level = content["levels"][0]
        values = np.array(level["values"])[stored(level["attention"], np.uint8)]
        low, middle, high = (float(text) for text in page.locator(".ends").nth(0).locator("span").all_inner_texts())
        assert (low, high) == pytest.approx(np.percentile(values, (20, 80)), abs=0.01)
        assert middle == pytest.approx(low + (high - low) * 0.5**0.5, abs=0.01)  # by value, with gamma 2
        page.locator("#level").select_option(label="guide, stride 16")
        assert page.locator("figcaption").nth(4).inner_text() == "similarity, stride 16"
        page.screenshot(path=SCREENSHOTS / "attention-page.png")
        assert (watch.problems, watch.outside) == ([], [])
        assert watch.asked == [path.as_uri()]


@pytest.mark.slow
def test_a_section_is_drawn_as_wide_and_high_as_it_is(volume, model, tmp_path):
    path = attention_page.export_attention(replace(volume, voxel_size=(40.0, 16.0, 4.0)), model, tmp_path / "a.html")
    with open_browser(1280, 900) as (page, _):
        page.goto(path.as_uri())
        page.wait_for_selector("body[data-ready]")
        for picture in range(5):
            box = page.locator("canvas.picture").nth(picture).bounding_box()
            assert box["height"] / box["width"] == pytest.approx(72 * 16 / (104 * 4), rel=0.01)
        page.mouse.move(*center_of(page, 0, 70, 3))
        assert shown(page)[0].startswith("At z 2, y 70, x 3;")


@pytest.mark.slow
def test_keys_alone_reach_every_control(path):
    with open_browser(1280, 900) as (page, watch):
        page.goto(path.as_uri())
        page.wait_for_selector("body[data-ready]")
        page.keyboard.press("Tab")
        page.keyboard.press("ArrowRight")
        assert shown(page)[0].startswith("At z 3, y 36, x 52")
        reached = []
        for _ in range(5):
            page.keyboard.press("Tab")
            reached.append(page.evaluate("document.activeElement.id"))
        assert reached == ["low", "high", "gamma", "level", "panels"]
        for key in ("ArrowUp", "Shift+ArrowLeft", "Enter", "PageDown"):
            page.keyboard.press(key)
        assert shown(page)[0] == "At z 2, y 35, x 44; ring at z 3, y 35, x 44"
        assert page.locator("#spoken").inner_text().startswith("At z 2, y 35, x 44")
        assert watch.problems == []


@pytest.mark.slow
def test_a_finger_does_the_same_on_a_phone(path):
    with open_browser(1280, 900) as (desktop, _), phone(desktop) as page:
        page.goto(path.as_uri())
        page.wait_for_selector("body[data-ready]")
        page.touchscreen.tap(*center_of(page, 0, 50, 30))
        where, values = shown(page)
        assert where == "At z 2, y 50, x 30; ring at z 2, y 50, x 30" and values[4] == "1.00"
        box = page.locator("#section").bounding_box()
        page.touchscreen.tap(box["x"] + box["width"] - 3, box["y"] + box["height"] / 2)
        assert shown(page)[0].startswith("At z 4")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_no_serious_barrier(path, width, scheme):
    with open_browser(width, 900) as (page, _):
        page.emulate_media(color_scheme=scheme)
        page.goto(path.as_uri())
        page.wait_for_selector("body[data-ready]")
        assert find_barriers(page) == []
