"""The table of lesson 16: two cells and an engine through all of their runs, what it answers, and the current page."""

from __future__ import annotations

import re

import measure_bits
import numpy as np
import pytest
from helpers.packages import need

from fgnet_lib import REPOSITORY
from fgnet_lib.phantom import make_phantom
from fgnet_lib.study import bits
from fgnet_lib.study.bits import JUDGED_ON, Cell, Question, bits_answer, bits_panels, describe_unmeasured, list_cells
from fgnet_lib.views import charts, plots

CELLS = [Cell("planted", "min_max", "W4A4"), Cell("trained", "min_max", "W4A4")]


@pytest.fixture
def small(monkeypatch, tmp_path):
    """Two cells and one engine, judged on a phantom in the place of FIB-25; the table and its page in a folder."""
    volume = make_phantom((4, 64, 96), seed=0)
    monkeypatch.setattr(measure_bits, "JUDGED_ON", {"fib25": ("a phantom", (4, 64, 64))})
    monkeypatch.setattr(measure_bits, "open_dataset", lambda name, part: volume)
    monkeypatch.setattr(measure_bits, "cut_training", lambda shape, count, seed: [volume.raw[:4, :64, :64]] * count)
    monkeypatch.setattr(measure_bits, "list_cells", lambda: CELLS)
    monkeypatch.setattr(measure_bits, "ENGINES", {"onnxruntime": "ONNX Runtime"})
    settings = {"SEEDS": (0,), "WINDOWS": 1, "BITS": tmp_path / "bits.json", "PAGE": tmp_path / "bits.md"}
    for name, value in settings.items():
        monkeypatch.setattr(measure_bits, name, value)
    yield tmp_path
    measure_bits.judged_volumes.cache_clear()
    measure_bits.predict_exactly.cache_clear()


@pytest.mark.slow
@need("onnx", "onnxruntime")
def test_what_is_missing_is_measured_and_not_done_again(small, capsys):
    for _ in range(2):
        measure_bits.measure_missing(60)
    assert capsys.readouterr().out.count(" of 4: ") == 4
    table = bits.read_bits(small / "bits.json")
    assert table["exact"]["volumes"]["fib25"]["refined"]["change"] == 0
    planted, trained = (bits.bits_scores(table, cell, "fib25", "coarse", "change")[0] for cell in CELLS)
    assert planted > trained > 0, "two wide channels leave the others few levels"
    assert bits.bits_sizes(table, CELLS[0])["encoder"] < table["exact"]["megabytes"]["encoder"] / 5
    engine = table["engines"]["onnxruntime 0"]
    assert engine["8 bits"]["megabytes"] < engine["32 bits"]["megabytes"] / 2
    assert engine["32 bits"]["volumes"]["fib25"]["change"] == 0 < engine["8 bits"]["volumes"]["fib25"]["change"] < 0.1
    page = (small / "bits.md").read_text(encoding="utf-8")
    assert page == measure_bits.page() and "| ONNX Runtime, 8 bits |" in page


def test_crops_are_cut_from_the_middle_and_by_seed(monkeypatch):
    volume = make_phantom((8, 64, 96), seed=0)
    crop = measure_bits.crop_middle(volume, (4, 200, 32))
    assert np.array_equal(crop.raw, volume.raw[2:6, :, 32:64]) and crop.labels.shape == crop.raw.shape
    monkeypatch.setattr(measure_bits, "open_dataset", lambda name, part: volume)
    first, again, other = (measure_bits.cut_training((4, 32, 32), 2, seed) for seed in (0, 0, 1))
    assert all(map(np.array_equal, first, again)) and not np.array_equal(first[0], other[0])
    assert not np.array_equal(first[0], first[1]) and first[0].shape == (4, 32, 32)


def run_of(voi: float) -> dict:
    scores = {"voi_split": voi - 0.25, "voi_merge": 0.25, "arand": 0.1, "change": 0.01}
    volumes = {name: {"refined": scores, "coarse": scores} for name in JUDGED_ON}
    return {"megabytes": {"encoder": 1.0, "model": 2.0}, "volumes": volumes}


def table_of(**vois: tuple[float, ...]) -> dict:
    """A table of cells with a width of W4A4 and the method min-max, by network."""
    runs = {
        bits.run_name(Cell(network, "min_max", "W4A4"), seed): run_of(voi)
        for network, values in vois.items()
        for seed, voi in enumerate(values)
    }
    return {"exact": run_of(1.0), "runs": runs, "engines": {}}


def test_an_answer_has_difference_p_and_whether_it_was_expected():
    table = table_of(trained=(1.0, 1.1, 1.2), planted=(1.5, 1.6, 1.7))
    higher = Question(CELLS[0], CELLS[1], "higher")
    answer = bits_answer(table, higher, "gala", "coarse")
    assert answer == ["1.600 ± 0.100", "1.100 ± 0.100", "+0.500", "0.10", "came in all runs"]
    assert bits_answer(table, Question(CELLS[0], CELLS[1], "lower"), "gala", "coarse")[-1] == "did not come"
    assert bits_answer(table, Question(CELLS[0], CELLS[0], "lower"), "gala", "coarse")[-1] == "no difference"
    assert bits_answer(table, Question(CELLS[0], list_cells()[0], "lower"), "gala", "coarse") == []
    single = bits_answer(table_of(trained=(1,), planted=(2,)), higher, "gala", "coarse")
    assert single[3:] == ["single run", "came in a single run"]
    overlapping = table_of(trained=(1.0, 1.5), planted=(1.4, 1.6))
    rows = {title: verdicts for title, _, *verdicts in bits.expectation_rows(overlapping, "coarse")}
    assert rows.keys() == bits.QUESTIONS.keys()
    assert rows["Do planted outliers cost neurons?"] == ["came in the mean"] * len(JUDGED_ON)
    assert rows["Planted: do groups?"] == [""] * len(JUDGED_ON)


def test_what_is_missing_is_said():
    everything = {bits.run_name(cell, seed): {} for cell in list_cells() for seed in bits.SEEDS}
    engines = {f"{engine} {seed}": {} for engine in bits.ENGINES for seed in bits.SEEDS}
    assert describe_unmeasured({"runs": everything, "engines": engines}) == "Every declared run is measured."
    assert "107 of 108 runs of the table, and 6 of 6 of the" in describe_unmeasured(
        {"runs": {"planted groups W4A4 0": {}}, "engines": {}}
    )


def test_a_panel_shows_the_cells_of_its_network_and_volume():
    panels = bits_panels(table_of(trained=(1.0, 1.2), planted=(1.5,)))
    exact, methods = panels["the encoder, with planted outliers"]["gala"]
    assert exact == 1.0 and methods["min-max"] == {"W8A8": [], "W4A8": [], "W4A4\n1.0 MB": [1.5]}
    figure = charts.bits_figure(panels)
    assert len(figure.axes) == len(bits.NETWORKS) * len(JUDGED_ON)
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    assert lines["32 bits"].get_ydata()[0] == 1.0
    assert all(ax.get_ylim()[0] == 0 and ax.get_ylim()[1] > 1.5 for ax in figure.axes), "no line is cut off"
    bars = figure.axes[0].containers[0]
    assert bars.get_label() == "min-max" and bars[0].get_ydata()[-1] == pytest.approx(1.1)
    assert figure.axes[0].get_ylabel().startswith("the encoder,\nas trained") and figure.axes[1].get_title() == "gala"
    plots.plt.close(figure)


@pytest.mark.parametrize("output", ["coarse", "refined"])
def test_the_figure_s_text_says_what_the_table_says(output):
    (lesson,) = (REPOSITORY / "notebooks" / "src").glob("16_*.py")
    alt = re.search(rf'alt="(.+)"\n.+bits_panels\(table, "{output}"\)', lesson.read_text(encoding="utf-8"))[1]
    table = bits.read_bits()

    def rise(method: str, volume: str) -> float:
        scores = bits.bits_scores(table, Cell("planted", method, "W4A4"), volume, output)
        return np.mean(scores) - bits.exact_score(table, volume, output)

    rises = [rise(method, volume) for method in ("min_max", "percentile") for volume in JUDGED_ON]
    assert f"min-max and percentile rise by {min(rises):.1f} to {max(rises):.1f} bits" in alt
    if output == "coarse":
        assert f"SmoothQuant except on AC4, where it rises by {rise('smooth', 'ac4'):.1f} bits" in alt
        others = [rise("smooth", volume) for volume in JUDGED_ON if volume != "ac4"]
        assert max(map(abs, [*others, *(rise("groups", volume) for volume in JUDGED_ON)])) < 0.2


def test_the_page_says_what_the_table_says():
    assert measure_bits.PAGE.read_text(encoding="utf-8") == measure_bits.page(), "run make bits MINUTES=0"
