"""Pictures with controls: redrawn once, clicked, driven by keys, read out at the mouse, saved whole or not at all."""

from __future__ import annotations

import html
import io
import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager

import ipywidgets as widgets
import numpy as np
import pytest
import tifffile
from matplotlib.figure import Figure
from matplotlib.image import imread

from fgnet_lib.views.interactive import Explorer, explore, save_arrays_of, to_jpeg
from fgnet_lib.views.panels import Box, Canvas, Panel, Values

VOXEL = (40.0, 8.0, 4.0)
NUMBERS = np.random.default_rng(1).random((10, 15)).astype(np.float16)


def panel(seed: int = 0, **options) -> Panel:
    image = np.random.default_rng(seed).integers(0, 256, (40, 60, 3), np.uint8)
    return Panel(f"panel {seed}", image, Box(0, 0, 40, 60), VOXEL, **options)


def test_a_change_is_drawn_once():
    calls = []

    def draw(**values) -> Figure:
        calls.append(values)
        return Figure(figsize=(1, 1))

    slider, box = widgets.IntSlider(1, 0, 5), widgets.Checkbox(True)
    explore(draw, z=slider, outlines=box)
    slider.value = 4
    box.value = False
    assert calls == [{"z": 1, "outlines": True}, {"z": 4, "outlines": True}, {"z": 4, "outlines": False}]


def explorer_of_a_point(calls: list):
    def draw(z: int, y: int, x: int) -> list[list[Panel]]:
        calls.append((z, y, x))
        left, right = Values("a1", NUMBERS, (4, 4)), Values("EM", np.full((40, 60), z, np.uint8))
        return [[panel(z, cross=(y, x), values=left), panel(z, values=right)]]

    sliders = {name: widgets.IntSlider(0, 0, n - 1) for name, n in zip("zyx", (3, 40, 60), strict=True)}
    return explore(draw, **sliders)


def at(explorer: Explorer, y: int, x: int) -> list[float]:
    """The position of a voxel of the first panel in the picture."""
    ax = explorer.draw().axes[0]
    right, up = ax.transData.transform((x, y)) / ax.figure.bbox.size
    return [right, 1 - up]


def do(explorer: Explorer, *events: list) -> None:
    """What the listener in the page types."""
    explorer.pick.value = json.dumps(
        [[explorer._seen + number, *event] for number, event in enumerate(events, start=1)]
    )


def test_a_click_moves_the_point_and_draws_once():
    calls = []
    explorer = explorer_of_a_point(calls)
    position = at(explorer, 30, 50)
    calls.clear()
    do(explorer, ["click", *position])
    assert calls == [(0, 30, 50)]
    assert (explorer.controls["y"].value, explorer.controls["x"].value) == (30, 50)
    do(explorer, ["click", 0.001, 0.001])  # beside the section
    assert len(calls) == 1


def test_a_click_without_a_point_to_move_does_nothing():
    explorer = explore(lambda z: [[panel(z)]], z=widgets.IntSlider(0, 0, 2))
    before = explorer.picture.value
    do(explorer, ["click", 0.5, 0.5], ["paint", 0.4, 0.4, 0.5, 0.5])
    assert explorer.picture.value == before


def test_events_that_came_together_are_drawn_once_and_none_twice():
    calls = []
    explorer = explorer_of_a_point(calls)
    calls.clear()
    events = [[100, "key", "z"], [101, "key", "z"], [102, "key", "ArrowDown"]]
    explorer.pick.value = json.dumps(events)
    assert calls == [(2, 1, 0)]
    explorer.pick.value = json.dumps([*events, [103, "key", "Z"]])  # the page repeats the last events
    assert calls == [(2, 1, 0), (1, 1, 0)]
    do(explorer, ["key", "z"], ["key", "z"], ["key", "z"])  # the last section stays the last one
    assert calls[-1] == (2, 1, 0)


def test_strokes_of_the_brush_are_kept_in_voxels():
    brushes = {"region": widgets.Text(), "brush": widgets.IntSlider(3, 0, 9)}
    explorer = explore(lambda region, brush: [[panel(brush=brush), panel(1, brush=brush)]], **brushes)
    assert explorer.values_at.value.startswith("Drag on a picture to paint")
    about = json.loads(html.unescape(explorer._about.value))
    (left, *_), (right, *_) = (at(explorer, 0, x) for x in (0, 7))
    assert about["panels"][0][5] == pytest.approx((right - left) / 2, abs=1e-4)  # radius 3: 7 voxels wide
    do(explorer, ["paint", *at(explorer, 30, 50), *at(explorer, 10, 40), 0.001, 0.001])  # the last is beside the panel
    explorer.controls["brush"].value = 8
    do(explorer, ["paint", *at(explorer, 5, 6)])
    assert json.loads(explorer.controls["region"].value) == [[3, 30, 50, 10, 40], [8, 5, 6]]
    explorer.controls["brush"].value = 0
    do(explorer, ["paint", *at(explorer, 5, 6)])
    assert len(json.loads(explorer.controls["region"].value)) == 2


def test_the_values_under_the_mouse_are_those_of_all_panels():
    explorer = explorer_of_a_point([])
    hint = explorer.values_at.value
    assert "z Z: " in hint and "↑ ↓" in hint
    explorer.hover.value = " ".join(map(str, at(explorer, 30, 50)))
    assert explorer.values_at.value == f"Mouse at y = 30, x = 50: a1 {NUMBERS[7, 12]:.3f} · EM 0"
    explorer.hover.value = ""
    assert explorer.values_at.value == hint


@pytest.mark.parametrize("besides", ["draw", "save_gif"])
def test_the_mouse_reads_the_picture_shown_whatever_is_drawn_besides(besides, tmp_path):
    explorer = explorer_of_a_point([])
    explorer._folder, position = tmp_path, " ".join(map(str, at(explorer, 30, 50)))
    explorer.draw(z=2) if besides == "draw" else explorer.save_gif.click()
    explorer.hover.value = position
    assert explorer.values_at.value.endswith("EM 0")  # the section that the picture shows


def test_the_page_is_told_alt_text_keys_and_where_the_panels_are():
    explorer = explorer_of_a_point([])
    explorer.controls["z"].value = 2
    about = json.loads(html.unescape(explorer._about.value))
    assert about["alt"] == "panel 2; panel 2" and {"z", "Z", "ArrowLeft"} <= set(about["keys"])
    left, top, width, height, plane, brush = about["panels"][0]
    right, down = at(explorer, 0, 0)
    assert left < right < left + width / 50 and top < down < top + height / 30
    assert (plane, brush) == ("yx", 0)


def test_a_picture_that_cannot_be_drawn_says_why():
    def draw(z: int) -> Figure:
        if z == 1:
            raise ValueError("no <section> 1")
        return Figure(figsize=(1, 1))

    explorer = explore(draw, z=widgets.IntSlider(0, 0, 2))
    with pytest.raises(ValueError, match="section"):
        explorer.controls["z"].value = 1
    assert explorer.status.value == "ValueError: no &lt;section&gt; 1"
    explorer.controls["z"].value = 2
    assert explorer.status.value == ""


def test_a_static_figure_leaves_the_controls():
    explorer = explorer_of_a_point([])
    before = explorer.picture.value
    figure = explorer.draw(z=2)
    assert figure.axes[0].get_title() == "panel 2"
    assert explorer.values() == {"z": 0, "y": 0, "x": 0} and explorer.picture.value == before
    assert explorer.draw(z=1) is not figure and figure.axes[0].get_title() == "panel 2"


def test_the_picture_has_the_pixels_of_the_figure():
    figure = Canvas().show([[panel()]])
    picture = imread(io.BytesIO(to_jpeg(figure)), format="jpeg")
    assert picture.shape == (*figure.canvas.get_width_height()[::-1], 3)
    assert np.abs(picture.astype(int) - np.asarray(figure.canvas.buffer_rgba())[..., :3]).mean() < 8  # noise: the worst


def test_the_view_and_the_run_through_z_are_saved(tmp_path):
    calls = []
    explorer = explorer_of_a_point(calls)
    explorer._folder = tmp_path / "new"
    explorer.save_png.click()
    assert imread(tmp_path / "new" / "view-0000.png").shape[1] > explorer.draw().bbox.width
    calls.clear()
    explorer.save_gif.click()
    assert {z for z, _, _ in calls} == {0, 1, 2}
    with (tmp_path / "new" / "view.gif").open("rb") as file:
        content = file.read()
    assert content.startswith(b"GIF89a") and content.count(b"\x21\xf9\x04") == 3  # one control block for each frame
    assert explorer.progress.value == explorer.progress.max == 3 and "view.gif" in explorer.status.value


def test_arrays_are_saved_with_their_settings(tmp_path):
    explorer = explorer_of_a_point([])
    explorer._folder = tmp_path
    for z in (0, 1):
        explorer.controls["z"].value = z
        explorer.save_arrays.click()
    assert {path.name for path in tmp_path.iterdir()} == {"view-0000", "view-0001"}
    folder = tmp_path / "view-0001"
    assert {path.name for path in folder.iterdir()} == {"a1.npy", "a1.tif", "EM.npy", "EM.tif", "settings.json"}
    np.testing.assert_array_equal(np.load(folder / "a1.npy"), NUMBERS)
    np.testing.assert_array_equal(tifffile.imread(folder / "a1.tif"), NUMBERS.astype(np.float32))
    np.testing.assert_array_equal(tifffile.imread(folder / "EM.tif"), np.full((40, 60), 1))
    about = json.loads((folder / "settings.json").read_text())
    assert about["settings"] == {"z": 1, "y": 0, "x": 0}
    assert about["arrays"]["a1"] == {"quantity": "a1", "axes": ["y", "x"], "stride": [4, 4], "pixel_nm": [32, 16]}
    with tifffile.TiffFile(folder / "a1.tif") as file:
        tags = file.pages[0].tags
        assert json.loads(tags["ImageDescription"].value)["settings"] == about["settings"]
        pixels_per_cm = [a / b for a, b in (tags[f"{axis}Resolution"].value for axis in "XY")]
        np.testing.assert_allclose(pixels_per_cm, [1e7 / 16, 1e7 / 32], rtol=1e-5)


@pytest.mark.parametrize(
    ("what", "names"),
    [
        ("save_png", ["view-0000.png", "view-0000-2.png", "view-0000-3.png"]),
        ("save_gif", ["view.gif", "view-2.gif", "view-3.gif"]),
        ("save_arrays", ["view-0000", "view-0000-2", "view-0000-3"]),
    ],
)
def test_what_was_saved_before_stays_beside_what_is_saved_now(what, names, tmp_path):
    explorer = explorer_of_a_point([])
    explorer._folder = tmp_path
    for number, name in enumerate(names, start=1):
        explorer.controls["y"].value = number  # the same section with other settings
        getattr(explorer, what).click()
        assert explorer.status.value.partition(":")[0] == f"saved {tmp_path / name}"
    assert {path.name for path in tmp_path.iterdir()} == set(names)


def test_maps_of_models_whose_names_differ_in_signs_alone_are_all_saved(tmp_path):
    names = ["lr=0.1: a1", "lr 0.1: a1", "LR 0.1: a1"]
    save_arrays_of(
        [panel(values=Values(name, NUMBERS + n, (4, 4))) for n, name in enumerate(names)], {}, tmp_path / "a"
    )
    about = json.loads((tmp_path / "a" / "settings.json").read_text())["arrays"]
    assert [each["quantity"] for each in about.values()] == names
    assert len({name.casefold() for name in about}) == 3  # some disks do not tell upper and lower case apart
    for n, name in enumerate(about):
        np.testing.assert_array_equal(np.load(tmp_path / "a" / f"{name}.npy"), NUMBERS + n)


def test_a_file_of_yours_beside_saved_arrays_is_not_deleted(tmp_path):
    panels = [panel(values=Values("a1", NUMBERS, (4, 4)))]
    for _ in range(2):  # once more over what is there
        save_arrays_of(panels, {}, tmp_path / "arrays")
    (tmp_path / "arrays" / "notes.txt").touch()
    with pytest.raises(ValueError, match="other files: notes.txt"):
        save_arrays_of(panels, {}, tmp_path / "arrays")
    assert (tmp_path / "arrays" / "notes.txt").exists()


@contextmanager
def full_disk(after: int) -> Iterator[None]:
    """Writing ends with an error when a file reaches `after` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (after, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["save_png", "save_gif", "save_arrays"])
def test_a_full_disk_leaves_no_half_file_and_the_old_one(what, tmp_path):
    explorer = explorer_of_a_point([])
    explorer._folder = tmp_path
    with full_disk(2000):
        getattr(explorer, what).click()  # ipywidgets only logs what a button raises
    assert list(tmp_path.iterdir()) == [] and "File too large" in explorer.status.value
    getattr(explorer, what).click()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with full_disk(2000):
        getattr(explorer, what).click()
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before != {}
    assert explorer.progress.layout.visibility == "hidden"


def test_a_picture_without_numbers_has_no_button_for_them():
    explorer = explore(lambda z: Figure(figsize=(1, 1)), z=widgets.IntSlider(0, 0, 2))
    assert explorer.save_arrays.layout.display == "none"
    assert explorer_of_a_point([]).save_arrays.layout.display is None


def test_another_shape_moves_the_ends_of_the_sliders():
    calls = []
    explorer = explorer_of_a_point(calls)
    calls.clear()
    explorer.resize((1, 20, 30))
    assert calls == [(0, 10, 15)] and explorer.controls["x"].max == 29 and explorer.play.max == 0


def test_parts_can_be_found_in_the_page():
    explorer = explorer_of_a_point([])

    def classes(widget: widgets.Widget) -> set[str]:
        return set(widget._dom_classes).union(*map(classes, getattr(widget, "children", ())))

    names = "explorer picture values readout status progress play save-png save-gif save-arrays pick hover about z y x"
    assert classes(explorer) == {f"fgnet-{name}" for name in names.split()}
