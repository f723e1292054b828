"""The student: affinities are products of embeddings, its file loads by name, and inference takes it as an FGNet."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from torch import Tensor

from fgnet_lib.affinities import affinities_from_labels, widen_borders
from fgnet_lib.inference import predict
from fgnet_lib.phantom import make_phantom
from fgnet_lib.scale.prediction import Network
from fgnet_lib.student import Student, StudentConfig, embedding_affinities
from fgnet_lib.weights import PRETRAINED, find_checkpoint, load_model, read_notes, save_model

SMALL = StudentConfig(widths=(4, 4, 8, 8), embedding=3)


@pytest.fixture(scope="module")
def student() -> Student:
    torch.manual_seed(0)
    return Student(SMALL).eval()


def one_hot(labels: np.ndarray) -> Tensor:
    """Embeddings (1, E, z, y, x) of labels: a channel for each, the last one for label 0, the boundary."""
    channels = torch.from_numpy(np.stack([labels == i for i in (1, 2, 3, 0)])[None])
    return channels.float()


@settings(max_examples=50)
@given(
    arrays(np.int64, array_shapes(min_dims=3, max_dims=3, max_side=5), elements=st.integers(0, 3)), st.floats(0.1, 9)
)
def test_one_hot_embeddings_of_labels_give_their_affinities_at_any_length(labels, length):
    affinities = embedding_affinities(length * one_hot(labels))
    np.testing.assert_allclose(affinities[0].numpy(), affinities_from_labels(labels), atol=1e-6)


@settings(max_examples=25)
@given(st.integers(0, 1000))
def test_affinities_are_half_the_squared_distance_of_unit_embeddings_short_of_one(seed):
    e = torch.randn(1, 5, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    e[:, -1] = 0  # no boundary: then the products are those of unit vectors
    unit = torch.nn.functional.normalize(e, dim=1)
    squared = (unit[:, :, 1:] - unit[:, :, :-1]).square().sum(1)
    torch.testing.assert_close(embedding_affinities(e)[:, 0, 1:], (1 - squared / 2).clamp(0, 1), atol=1e-5, rtol=1e-5)


def test_two_sections_exchanged_have_the_same_affinity_along_z():
    pair = torch.randn(1, 5, 2, 6, 7)
    first, second = embedding_affinities(pair)[:, 0], embedding_affinities(pair.flip(2))[:, 0]
    torch.testing.assert_close(first, second)


@pytest.mark.parametrize("sections", [1, 3])
@torch.no_grad()
def test_a_section_is_embedded_from_the_sections_that_it_should_see(sections):
    torch.manual_seed(0)
    student = Student(StudentConfig(SMALL.widths, 3, sections)).eval()
    raw = torch.rand(1, 1, 7, 32, 32)
    changed = raw.clone()
    changed[:, :, 3] = 0.5
    moved = (student.embed(raw) != student.embed(changed)).any(dim=4).any(dim=3)[0].any(dim=0)
    assert moved.nonzero().flatten().tolist() == ([3] if sections == 1 else [2, 3, 4])
    alone, repeated = student.embed(raw[:, :, :1]), student.embed(raw[:, :, :1].repeat(1, 1, 3, 1, 1))
    torch.testing.assert_close(alone, repeated[:, :, 1:2])  # a neighbour that is not there is the section itself


@torch.no_grad()
def test_the_output_has_the_size_of_the_input_and_far_corners_change_nothing(student):
    raw = torch.rand(2, 1, 3, 50, 170)
    output = student(raw)
    assert output.refined.shape == (2, 3, 3, 50, 170) and output.coarse is None and output.attention == ()
    padded = torch.nn.functional.pad(raw, (0, 6, 0, 14, 0, 0), mode="replicate")
    torch.testing.assert_close(output.refined, student(padded).refined[..., :50, :170])
    changed = raw.clone()
    changed[..., 160:] = 0
    assert torch.equal(student(changed).refined[..., :16], output.refined[..., :16])
    assert torch.equal(output.refined[:, 0, 0], output.refined[:, 0, 1])  # the first section has no predecessor
    assert student(raw[:, :, :1]).refined.shape == (2, 3, 1, 50, 170)
    with pytest.raises(ValueError, match="must have shape"):
        student(raw[0])


def test_its_file_loads_and_is_computed_as_an_fgnet(tmp_path, student):
    path = save_model(student, tmp_path / "small.safetensors", {"threshold": 0.4})
    loaded = load_model(path)
    assert loaded.config == SMALL and read_notes(path) == {"threshold": 0.4} and not Network(path).encodes
    assert not loaded.training
    raw = np.random.default_rng(0).integers(0, 255, (5, 70, 60), np.uint8)
    whole = predict(loaded, raw, (4, 64, 64), progress=False)
    assert whole.refined.shape == (3, 5, 70, 60) and whole.coarse is None and whole.attention == ()
    np.testing.assert_array_equal(whole.refined, predict(student, raw, (4, 64, 64), progress=False).refined)


@pytest.mark.slow
@torch.no_grad()
def test_the_shipped_one_finds_the_borders_of_a_phantom():
    volume = make_phantom((8, 128, 128), seed=7)
    raw = torch.from_numpy(volume.raw / np.float32(255))[None, None]
    inside = np.s_[:, 1:, 1:, 1:]  # the low faces have no predecessor
    predicted = load_model("student")(raw).refined[0].sigmoid().numpy()[inside]
    joined = affinities_from_labels(widen_borders(volume.labels))[inside] == 1
    assert predicted[joined].mean() - predicted[~joined].mean() > 0.75


@pytest.mark.parametrize(
    ("settings", "message"), [({"widths": (8, 8)}, "four channel counts"), ({"sections": 2}, "sees 1 or 3")]
)
def test_bad_configurations_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        StudentConfig(**settings)


def test_the_shipped_one_is_found_by_its_name_unless_a_file_is_called_so(tmp_path, monkeypatch):
    path = PRETRAINED / "student.safetensors"
    assert find_checkpoint("student") == Network("student").checkpoint == path and path.stat().st_size <= 4e6
    assert 0 < read_notes("student")["threshold"] < 1 and isinstance(load_model("student"), Student)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "student").touch()
    assert find_checkpoint("student") == tmp_path / "student"
    with pytest.raises(FileNotFoundError, match="teacher: no such checkpoint"):
        load_model("teacher")
