"""Adaptation to a target keeps its identities: statistics, HOG, EMA, norm layers alone, and nothing to do at home."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.feature import hog
from torch import nn

from fgnet_lib.configuration import MINI
from fgnet_lib.fgnet import FGNet
from fgnet_lib.neighbours.target_adaptation import (
    TargetConfig,
    adapt_norms,
    arriving_windows,
    average_into,
    change_grey_values,
    equalise_locally,
    feature_statistics,
    match_histogram,
    measure_source,
    norm_parameters,
    observe_levels,
    oriented_gradients,
    parse_steps,
    read_source,
    restain,
    restandardise,
    standardise_levels,
    store_source,
    structure_loss,
)
from fgnet_lib.phantom import make_phantom
from fgnet_lib.volumes import Region
from fgnet_lib.weights import PRETRAINED, load_model, read_notes, save_model

SMALL = replace(MINI, encoder="natural", widths=(4, 4, 8, 8, 8), coarse_width=8, attention="plain", norm="channel")
WINDOW = (2, 32, 32)


@pytest.fixture(scope="module")
def model() -> FGNet:
    torch.manual_seed(0)
    return FGNet(SMALL).eval()


@pytest.fixture(scope="module")
def raw() -> np.ndarray:
    return make_phantom((3, 48, 64), seed=0).raw


@pytest.fixture(scope="module")
def source(model, raw):
    return measure_source(model, raw, arriving_windows(raw.shape, WINDOW, seed=0))


def same_weights(a: nn.Module, b: nn.Module) -> dict[str, bool]:
    return {name: torch.equal(tensor, b.state_dict()[name]) for name, tensor in a.state_dict().items()}


@settings(max_examples=20)
@given(seed=st.integers(0, 99), scale=st.floats(0.01, 100), shift=st.floats(-50, 50))
def test_restandardised_features_have_the_stored_statistics(seed, scale, shift):
    random = torch.Generator().manual_seed(seed)
    features = torch.randn(2, 5, 3, 8, 8, generator=random, dtype=torch.float64) * scale + shift
    stored = feature_statistics(torch.randn(1, 5, 2, 6, 6, generator=random, dtype=torch.float64))
    for result, expected in zip(feature_statistics(restandardise(features, stored)), stored, strict=True):
        torch.testing.assert_close(result, expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_an_open_model_shows_the_source_s_statistics_and_a_closed_one_is_as_before(model, raw, source):
    section = torch.from_numpy(raw[None, None, :2, :32, :32]) / 255 * 0.5
    before = model(section).refined
    with standardise_levels(model, source.levels), observe_levels(model) as levels:
        inside = model(section).refined
        measured = [feature_statistics(level) for level in levels]
    for of_level, stored in zip(measured, source.levels, strict=True):
        torch.testing.assert_close(of_level, stored, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(inside, before, atol=1e-4) and torch.equal(model(section).refined, before)


@pytest.mark.slow
def test_at_home_style_moves_nothing_and_elsewhere_norm_layers_alone(model, raw):
    window = Region.at((0, 0, 0), (2, 32, 32))
    home = measure_source(model, raw, [window])
    config = TargetConfig(structure=0.0, rate=0.1, steps=3, window=WINDOW)
    teacher, losses = adapt_norms(model, raw[window], home.levels, config, seed=0)
    assert all(step["style"] == 0 for step in losses) and all(same_weights(teacher, model).values())
    other = restain(make_phantom((2, 32, 32), seed=5)).raw
    teacher, losses = adapt_norms(model, other, home.levels, replace(config, structure=1.0), seed=0)
    moved = {name for name, same in same_weights(teacher, model).items() if not same}
    norms = {id(parameter) for parameter in norm_parameters(teacher)}
    assert len(losses) == 3 and losses[0]["style"] > 0
    with torch.no_grad():
        logits = model(torch.from_numpy(other[None, None]) / 255).refined
    assert losses[0]["boundary"] == pytest.approx(1 - logits[:, 1:].sigmoid().mean().item(), abs=1e-5)
    assert moved and moved <= {name for name, parameter in teacher.named_parameters() if id(parameter) in norms}
    assert not any(name.startswith("encoder.") for name in moved)


def test_style_alone_cannot_move_what_lies_behind_the_features(model, raw, source):
    config = TargetConfig(structure=0.0, rate=0.1, steps=2, window=WINDOW)
    teacher, _ = adapt_norms(model, raw // 2, source.levels, config, seed=0)
    moved = {name.split(".")[0] for name, same in same_weights(teacher, model).items() if not same}
    assert moved == {"fine_encoder"}


@pytest.mark.slow
def test_small_steps_on_one_window_lower_the_style_loss(model, raw, source):
    config = TargetConfig(structure=0.0, rate=1e-2, steps=12, window=WINDOW)
    _, losses = adapt_norms(model, raw[:2, :32, :32] // 2, source.levels, config, seed=0)
    assert losses[-1]["style"] < 0.9 * losses[0]["style"]


@settings(max_examples=25)
@given(a=st.floats(0.05, 20), b=st.floats(-5, 5), seed=st.integers(0, 99), sign=st.sampled_from([1, -1]))
def test_hog_does_not_see_contrast_and_brightness(a, b, seed, sign):
    sections = torch.rand(2, 32, 40, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    result = oriented_gradients(sign * a * sections + b)
    if sign == 1:
        torch.testing.assert_close(result, oriented_gradients(sections), atol=1e-5, rtol=0)
    else:  # an angle that is a multiple of 20 degrees may fall into the neighbouring bin by rounding
        assert (result - oriented_gradients(sections)).abs().mean() < 1e-3


def test_hog_is_scikit_image_s():
    section = np.random.default_rng(0).uniform(size=(40, 48))
    settings_of_hog = {"pixels_per_cell": (8, 8), "cells_per_block": (2, 2), "block_norm": "L2"}
    expected = hog(section, orientations=9, feature_vector=False, **settings_of_hog)
    result = oriented_gradients(torch.from_numpy(section)[None])[0]
    np.testing.assert_allclose(result.numpy(), expected.reshape(result.shape), atol=1e-5)


def test_hog_of_a_flat_section_has_a_finite_derivative():
    section = torch.full((1, 16, 16), 0.5, requires_grad=True)
    oriented_gradients(section).sum().backward()
    assert section.grad.isfinite().all()


@settings(max_examples=25)
@given(decay=st.floats(0, 0.99), students=st.lists(st.floats(-3, 3), min_size=1, max_size=8))
def test_the_ema_has_its_closed_form(decay, students):
    teacher = torch.tensor([2.0], dtype=torch.float64)
    for student in students:
        average_into([teacher], [torch.tensor([student], dtype=torch.float64)], decay)
    n = len(students)
    history = sum((1 - decay) * decay ** (n - k) * student for k, student in enumerate(students, 1))
    assert teacher.item() == pytest.approx(decay**n * 2.0 + history, abs=1e-12)


@pytest.mark.parametrize("form", [{}, {"encoder": "mini", "norm": "group"}], ids=["as shipped", "group norm"])
def test_norm_parameters_are_those_of_all_norms_behind_the_guide(form):
    model = FGNet(replace(SMALL, **form))
    chosen = {id(parameter) for parameter in norm_parameters(model)}
    names = {name for name, parameter in model.named_parameters() if id(parameter) in chosen}
    norms = (name for name in model.state_dict() if ".norm." in name and not name.startswith("encoder."))
    assert names == {*norms} and len(names) == 2 * 10  # two decoders' 2 and 4 blocks, 4 of the Fine-Grained Encoder


@torch.no_grad()
@pytest.mark.parametrize("norm", ["group", "channel"])
def test_a_norm_keeps_nothing_that_a_batch_norm_s_adaptation_could_change(norm, raw):
    sections = torch.from_numpy(raw[None, None]) / 255
    model = FGNet(replace(SMALL, norm=norm)).eval()
    learner = deepcopy(model).train()
    for _ in range(3):
        trained = learner(sections).refined
    assert all(same_weights(learner, model).values())
    torch.testing.assert_close(trained, model(sections).refined)
    batch = nn.BatchNorm3d(1).train()
    batch(sections)
    assert batch.running_mean.item() != 0


def test_grey_values_take_the_source_s_histogram_or_their_surroundings_contrast(raw):
    bright = np.bincount(np.random.default_rng(0).integers(150, 200, 10_000), minlength=256)
    matched = match_histogram(raw, bright)
    assert matched.min() >= 150 and matched.max() < 200 and matched.dtype == np.uint8
    order = np.argsort(raw, axis=None)
    assert (np.diff(matched.ravel()[order].astype(int)) >= 0).all()  # no two voxels change places
    own = np.bincount(raw.ravel(), minlength=256)
    assert np.abs(match_histogram(raw, own).astype(int) - raw).max() <= 1
    pale = 100 + raw // 4
    assert equalise_locally(pale).std() > 1.5 * pale.std() and equalise_locally(pale).shape == pale.shape


def test_a_lost_section_stays_as_it_is(raw):
    lost = raw.copy()
    lost[1] = 7
    assert (equalise_locally(lost)[1] == 7).all()
    np.testing.assert_array_equal(equalise_locally(lost)[[0, 2]], equalise_locally(raw)[[0, 2]])


def test_steps_are_done_in_their_order_and_none_gives_the_volume_itself(raw, source):
    before = raw.copy()
    both = change_grey_values(raw, ("clahe", "voxel_size", "histogram"), source)
    np.testing.assert_array_equal(both, match_histogram(equalise_locally(raw), source.histogram))
    assert change_grey_values(raw, ("voxel_size",), source) is raw and np.array_equal(raw, before)


@pytest.mark.parametrize("adapt", ["none", "", None, [], " "])
def test_no_step_is_read_as_none(adapt):
    assert parse_steps(adapt, PRETRAINED / "student.safetensors") == parse_steps(adapt, Path("mine.safetensors")) == ()


def test_another_stain_keeps_the_tissue():
    volume = make_phantom((3, 48, 64), seed=0)
    other = restain(volume)
    assert other.labels is volume.labels and other.raw.std() < 0.8 * volume.raw.std()
    assert np.corrcoef(other.raw.ravel(), volume.raw.ravel())[0, 1] > 0.3


@pytest.mark.parametrize("shape", [(3, 48, 64), (1, 20, 100)])
def test_windows_cover_the_target_in_an_order_of_their_seed(shape):
    windows = arriving_windows(shape, WINDOW, seed=1)
    covered = np.zeros(shape, bool)
    for window in windows:
        covered[window] = True
    assert covered.all() and set(map(str, windows)) == set(map(str, arriving_windows(shape, WINDOW, seed=2)))


def test_a_source_travels_in_the_model_s_file(model, source, tmp_path):
    path = save_model(model, tmp_path / "model.safetensors", {"threshold": 0.4})
    with pytest.raises(ValueError, match="holds no statistics of a source"):
        read_source(path)
    before = path.stat().st_size
    store_source(path, source, {"tissue": "phantom"})
    again = read_source(path)
    assert path.stat().st_size < before + 20_000 and (again.histogram == source.histogram).all()
    for ours, stored in zip(again.levels, source.levels, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, stored, strict=True))
    assert read_notes(path)["threshold"] == 0.4
    same = load_model(path).state_dict()
    assert all(torch.equal(tensor, same[name]) for name, tensor in model.state_dict().items())
    with pytest.raises(FileNotFoundError):
        read_source(tmp_path / "none.safetensors")


def test_a_model_without_fine_features_is_refused(raw, source):
    coarse = FGNet(replace(SMALL, refined=False))
    with pytest.raises(ValueError, match="no Fine-Grained Encoder"):
        adapt_norms(coarse, raw, source.levels, TargetConfig(steps=1, window=WINDOW), seed=0)


def test_a_source_is_the_mean_over_its_windows(model, raw):
    windows = [Region.at((0, 0, x), WINDOW) for x in (0, 32)]
    together, *single = (measure_source(model, raw, chosen) for chosen in (windows, windows[:1], windows[1:]))
    for level, *of_each in zip(together.levels, *(source.levels for source in single), strict=True):
        torch.testing.assert_close(level.mean, sum(statistics.mean for statistics in of_each) / 2)
        torch.testing.assert_close(level.deviation, sum(statistics.deviation for statistics in of_each) / 2)


def test_a_boundary_like_the_section_has_no_structure_loss_whatever_z_says():
    raw = torch.rand(1, 1, 2, 32, 32) * 0.9 + 0.05
    logits = torch.cat([torch.randn_like(raw), *[torch.logit(1 - raw)] * 2], 1)
    assert structure_loss(logits, raw) < 1e-6 < 0.1 < structure_loss(logits.flip(3), raw)


def test_the_first_step_is_the_rate_and_the_teacher_takes_its_share_of_it(model, raw, source):
    config = TargetConfig(structure=0.0, rate=0.01, decay=0.5, steps=1, window=WINDOW)
    teacher, _ = adapt_norms(model, raw // 2, source.levels, config, seed=0)
    before = model.state_dict()
    farthest = max((tensor - before[name]).abs().max().item() for name, tensor in teacher.state_dict().items())
    assert farthest == pytest.approx(0.01 * (1 - 0.5), rel=1e-3)


def test_windows_overlap_by_half_and_do_not_arrive_in_their_order():
    windows = arriving_windows((2, 32, 128), WINDOW, seed=1)
    assert sorted(window.x.start for window in windows) == list(range(0, 97, 16))
    assert windows != arriving_windows((2, 32, 128), WINDOW, seed=2)
