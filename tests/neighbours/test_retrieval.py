"""Retrieval of patches: embeddings, ranks and recall against what brute force and chance say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fgnet_lib.neighbours.retrieval import commonest_ids, pool_patches, rank_gallery, recall_at

sizes = st.tuples(st.integers(1, 6), st.integers(1, 30), st.integers(1, 5))  # queries, gallery, channels


@given(sizes, st.integers(0, 99))
@settings(max_examples=30)
def test_ranks_and_recall_are_those_of_brute_force(size, seed):
    (q, n, c), rng = size, np.random.default_rng(seed)
    queries, gallery = rng.normal(size=(q, c)), rng.normal(size=(n, c))
    relevant = rng.random((q, n)) < 0.4
    relevant[0, 0] = True
    ranks = rank_gallery(queries, gallery)
    assert np.array_equal(np.sort(ranks, axis=1), np.tile(np.arange(n), (q, 1)))
    for k in (1, (n + 1) // 2, n):
        shares = []
        for i in range(q):
            if relevant[i].any():
                shares.append(sum(relevant[i, j] for j in ranks[i][:k]) / relevant[i].sum())
            a, b = queries[i] - gallery.mean(0), gallery - gallery.mean(0)
            cosine = [a @ v / max(np.linalg.norm(a) * np.linalg.norm(v), 1e-300) for v in b]
            assert np.all(np.diff(np.array(cosine)[ranks[i]]) < 1e-9)
        assert recall_at(k, ranks, relevant) == pytest.approx(np.mean(shares))
    assert recall_at(n, ranks, relevant) == 1


def test_a_random_order_has_recall_k_over_n():
    rng = np.random.default_rng(0)
    relevant = rng.random((40, 50)) < rng.random((40, 1))  # of some queries nearly all, of others hardly any
    relevant[:, 0] = True
    ranks = [rng.permuted(np.tile(np.arange(50), (40, 1)), axis=1) for _ in range(200)]
    for k in (1, 10, 30):
        assert np.mean([recall_at(k, order, relevant) for order in ranks]) == pytest.approx(k / 50, abs=0.01)


def test_a_patch_finds_itself_first_whatever_is_added_to_all():
    gallery = np.random.default_rng(1).normal(size=(20, 8))
    assert np.array_equal(rank_gallery(gallery, gallery)[:, 0], np.arange(20))
    assert np.array_equal(rank_gallery(gallery + 5, gallery + 5), rank_gallery(gallery, gallery))


def test_pooling_is_the_mean_of_each_square_by_section_row_and_column():
    features = np.random.default_rng(2).normal(size=(3, 2, 9, 7))
    embeddings = pool_patches(features, 3)
    assert embeddings.shape == (2 * 3 * 2, 3)
    np.testing.assert_allclose(embeddings[6 + 2 + 1], features[:, 1, 3:6, 3:6].mean(axis=(1, 2)))


def test_a_patch_has_the_id_of_most_of_its_voxels_or_none():
    labels = np.array([[[7, 7, 3, 4], [7, 5, 5, 6]]], np.uint64)
    assert commonest_ids(labels, 2).tolist() == [7, 3]  # the smallest of ids that are as common
    assert commonest_ids(labels, 2, least=0.5).tolist() == [7, 0]


def test_what_cannot_be_scored_is_refused():
    with pytest.raises(ValueError, match="no patch of 8 x 8"):
        pool_patches(np.zeros((1, 1, 7, 9)), 8)
    ranks = rank_gallery(np.eye(2), np.eye(2))
    with pytest.raises(ValueError, match="k is 3; expected 1 to 2"):
        recall_at(3, ranks, np.ones((2, 2), bool))
    with pytest.raises(ValueError, match="no query has a relevant patch"):
        recall_at(1, ranks, np.zeros((2, 2), bool))
