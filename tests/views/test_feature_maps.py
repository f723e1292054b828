"""Principal components against an SVD, cosine similarity and ROC AUC against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fgnet_lib.metrics import roc_auc
from fgnet_lib.views.feature_maps import cosine_similarity, principal_components, stretch

MAPS = hnp.arrays(
    np.float32, hnp.array_shapes(min_dims=3, max_dims=3, min_side=3, max_side=7), elements=st.floats(-10, 10, width=16)
)


@pytest.mark.parametrize("shape", [(8, 6, 5), (8, 3, 6, 5)])
def test_components_span_what_an_svd_finds(shape):
    features = np.random.default_rng(0).normal(size=shape) * np.arange(1, 9).reshape(-1, *[1] * (len(shape) - 1))
    components = principal_components(features)
    assert components.shape == (*shape[1:], 3)
    centred = features.reshape(8, -1) - features.reshape(8, -1).mean(1, keepdims=True)
    left, singular, right = np.linalg.svd(centred, full_matrices=False)
    expected = (singular[:, None] * right)[:3]
    overlap = np.sum(components.reshape(-1, 3).T * expected, axis=1)
    np.testing.assert_allclose(np.abs(overlap), singular[:3] ** 2, rtol=1e-9)


@given(MAPS)
def test_components_are_centred_uncorrelated_and_in_order(features):
    components = principal_components(features).reshape(-1, 3)
    np.testing.assert_allclose(components.mean(0), 0, atol=1e-9)
    spread = components.T @ components
    np.testing.assert_allclose(spread, np.diag(np.diag(spread)), atol=1e-7 * max(1, spread.max()))
    assert (np.diff(np.diag(spread)) <= 1e-7 * max(1, spread.max())).all()


def test_the_sign_of_a_component_does_not_depend_on_where_one_looks():
    features = np.random.default_rng(1).normal(size=(4, 6, 6))
    np.testing.assert_allclose(principal_components(features[:, ::-1]), principal_components(features)[::-1], atol=1e-9)


@given(MAPS, st.data())
def test_similarity_is_the_cosine(features, data):
    y, x = (data.draw(st.integers(0, size - 1)) for size in features.shape[1:])
    similarity = cosine_similarity(features, y, x)
    lengths = np.linalg.norm(features.astype(float), axis=0)
    expected = np.tensordot(features[:, y, x].astype(float), features.astype(float), axes=1)
    np.testing.assert_allclose(similarity * lengths * lengths[y, x], expected, atol=1e-6)
    assert np.abs(similarity).max() <= 1 + 1e-9
    assert similarity[y, x] == pytest.approx(1.0 if lengths[y, x] else 0.0)


def test_a_pixel_without_signal_is_similar_to_nothing():
    features = np.ones((3, 2, 2))
    features[:, 0, 1] = 0
    np.testing.assert_array_equal(cosine_similarity(features, 0, 1), 0)
    np.testing.assert_allclose(cosine_similarity(features, 0, 0), [[1, 0], [1, 1]])


def test_components_are_stretched_one_by_one_without_their_extremes():
    ramp = np.linspace(0, 1, 101)
    shares = stretch(np.stack([ramp, 5 - 40 * ramp, np.full(101, 7.0)], axis=-1))
    np.testing.assert_allclose(shares[..., 0], np.clip((ramp - 0.01) / 0.98, 0, 1), atol=1e-9)
    np.testing.assert_allclose(shares[..., 1], shares[::-1, 0], atol=1e-9)
    assert not shares[..., 2].any()  # constant


def test_tensors_are_taken_as_they_are():
    features = torch.rand(5, 4, 4)
    np.testing.assert_array_equal(principal_components(features), principal_components(features.numpy()))
    np.testing.assert_array_equal(cosine_similarity(features, 1, 2), cosine_similarity(features.numpy(), 1, 2))


@given(hnp.arrays(np.int8, (4, 6), elements=st.integers(0, 9)), hnp.arrays(bool, (4, 6)))
def test_auc_counts_won_pairs(scores, structure):
    inside, outside = scores[structure].astype(int), scores[~structure].astype(int)
    if not inside.size or not outside.size:
        with pytest.raises(ValueError, match="nothing to tell apart"):
            roc_auc(scores, structure)
        return
    difference = inside[:, None] - outside[None]
    assert roc_auc(scores, structure) == pytest.approx(np.mean((difference > 0) + 0.5 * (difference == 0)))
    assert roc_auc(-scores, structure) == pytest.approx(1 - roc_auc(scores, structure))
