"""Collaborative vectors: who is followed by the same items is near, whatever the order of users; the unseen is zero."""

import numpy as np
import pytest

from asymrec.data import Sequences
from asymrec.data.pairs import followers
from asymrec.vectors import collaborative, collaborative_vectors


def cosine(a, b):
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def walks(groups=4, size=10, users=300, seed=0):
    """Every user stays in one group of items."""
    random = np.random.default_rng(seed)
    return Sequences.of([random.integers(size, size=8) + size * random.integers(groups) for _ in range(users)])


def test_followers_against_a_plain_loop():
    random = np.random.default_rng(1)
    sequences = Sequences.of([random.integers(9, size=length) for length in (1, 7, 2, 12, 3)])
    expected = np.zeros((9, 9))
    for i in range(len(sequences)):
        items = sequences[i]
        for a in range(len(items)):
            for b in range(a + 1, min(a + 4, len(items))):
                expected[items[a], items[b]] += 0.5 ** (b - a - 1)
    np.testing.assert_allclose(followers(sequences, 9, 3, 0.5).toarray(), expected)


def test_items_of_one_crowd_are_near():
    vectors = collaborative_vectors(walks(), 41, 16)
    assert vectors.shape == (41, 16) and vectors.dtype == np.float32
    inside = [cosine(vectors[a], vectors[a + 1]) for a in range(0, 38) if a % 10 != 9]
    across = [cosine(vectors[a], vectors[(a + 10) % 40]) for a in range(40)]
    assert np.mean(inside) > np.mean(across) + 0.3
    assert not vectors[40].any()  # never seen


def test_equal_data_give_equal_vectors_whatever_the_order_of_users():
    sequences = walks()
    shuffled = sequences.take(np.random.default_rng(2).permutation(len(sequences)))
    np.testing.assert_allclose(collaborative_vectors(sequences, 40, 8), collaborative_vectors(shuffled, 40, 8), atol=1e-4)
    np.testing.assert_array_equal(collaborative_vectors(sequences, 40, 8), collaborative_vectors(sequences, 40, 8))


@pytest.mark.parametrize("width", [2, 200])
def test_few_items_leave_the_rest_zero(width):
    vectors = collaborative_vectors(Sequences.of([[0, 1, 2, 3], [1, 2, 3, 4], [2, 0]]), 6, width)
    assert vectors.shape == (6, width) and np.isfinite(vectors).all() and vectors.any()


def test_without_pairs_there_is_nothing_to_tell():
    assert not collaborative_vectors(Sequences.of([[0], [1]]), 5, 8).any()


def test_unseen_items_are_zero_where_there_are_more_directions_than_items_with_pairs():
    sequences = Sequences.of([np.random.default_rng(seed).permutation(25)[:8] for seed in range(60)])
    for n_items in (40, 60, 1000):  # decomposed whole, and truncated
        vectors = collaborative_vectors(sequences, n_items, 64)
        assert vectors[:25].any(1).all() and not vectors[25:].any()


def test_the_whole_and_the_truncated_decomposition_agree(monkeypatch):
    sequences = walks()
    truncated = collaborative_vectors(sequences, 70, 8)
    monkeypatch.setattr(collaborative, "DENSE", 100)
    np.testing.assert_allclose(collaborative_vectors(sequences, 70, 8), truncated, atol=1e-4)


def test_where_no_pair_is_more_frequent_than_chance_there_is_nothing_to_tell():
    assert not collaborative_vectors(Sequences.of([[0, 1]] * 9), 4, 8).any()
    assert not collaborative_vectors(Sequences.of([[0, 1]] * 9), 2, 64).any()
