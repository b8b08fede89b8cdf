"""The rows of a bank most similar to queries: both searches, the one for CPUs and the one for accelerators."""

import numpy as np
import pytest

from ssl_jax.evaluation import device_search, host_search, search
from tests.evaluation.test_knn import BANK, QUERY


@pytest.fixture(params=[host_search, device_search], ids=["host", "device"], autouse=True)
def nearest(request, monkeypatch):
    """`search.nearest`, as it searches on a CPU and as on an accelerator."""
    monkeypatch.setattr(search, "host_search", request.param)
    return search.nearest


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4, 5], [5, 3, 1, 4, 2, 0]])
def test_nearest_by_cosine(order, nearest):
    similarities, rows = nearest(BANK[order], QUERY, k=6, block_size=2)
    np.testing.assert_allclose(similarities, [[1, 0.8, 0.8, 0.6, 0, -1]], atol=1e-6)
    found = np.array(order)[rows[0]].tolist()
    assert set(found[1:3]) == {1, 2} and [found[0], *found[3:]] == [0, 3, 4, 5]


# Queries of two chunks; blocks of the bank of more rows than k, and of fewer.
@pytest.mark.parametrize("k, block_size", [(5, 300), (100, 300), (100, 900), (400, 300)])
def test_equally_near_the_earlier_wins(k, block_size, nearest):
    bank = np.ones((900, 2), np.float32)
    _, rows = nearest(bank, bank[:600], k=k, block_size=block_size)
    np.testing.assert_array_equal(rows, [np.arange(k)] * 600)


@pytest.mark.parametrize("order", [slice(None), slice(None, None, -1)], ids=["nearest first", "nearest last"])
@pytest.mark.parametrize("k", [5, 100, 400])
def test_the_bank_may_come_in_any_order(k, order, nearest):
    """Nearest first, later blocks have nothing to add; nearest last, each replaces all that was found before."""
    angles = np.linspace(0, np.pi, 900, dtype=np.float32)[order]
    bank = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    _, rows = nearest(bank, np.array([[2, 0]] * 600, np.float32), k=k, block_size=300)
    np.testing.assert_array_equal(rows, [np.arange(900)[order][:k]] * 600)


def test_no_queries_have_no_neighbors(nearest):
    similarities, rows = nearest(BANK, BANK[:0], k=6)
    assert similarities.shape == rows.shape == (0, 6)


def sorted_bank(rows, dim=6):
    """Unit vectors of eight clusters, one after the other, as those of a folder of classes."""
    rng = np.random.default_rng(0)
    centers = np.repeat(rng.normal(size=(8, dim)), rows // 8, axis=0)
    return (centers + 0.3 * rng.normal(size=(rows, dim))).astype(np.float32), rng.normal(size=(300, dim)).astype(
        np.float32
    )


@pytest.mark.parametrize("k", [1, 20, 200])
def test_a_large_bank_sorted_by_class(k, nearest):
    bank, queries = sorted_bank(8 * host_search.SAMPLE)
    similarities, rows = nearest(bank, queries, k=k)
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (queries.astype(np.float64), bank.astype(np.float64))]
    expected = unit[0] @ unit[1].T
    np.testing.assert_allclose(similarities, -np.sort(-expected, axis=1)[:, :k], atol=1e-6)
    np.testing.assert_allclose(np.take_along_axis(expected, rows, axis=1), similarities, atol=1e-6)
    assert all(len(set(row)) == k for row in rows.tolist())


def test_collapsed_features_give_the_first_rows(nearest):
    bank = np.ones((5 * host_search.SAMPLE, 3), np.float32)
    _, rows = nearest(bank, bank[:300], k=7)
    np.testing.assert_array_equal(rows, [np.arange(7)] * 300)


def test_few_candidates_at_a_time_change_nothing(monkeypatch):
    bank, queries = sorted_bank(4000)
    whole = host_search.nearest(bank, queries, k=30, block_size=500)
    monkeypatch.setattr(host_search, "CANDIDATES", 1000)
    for found, expected in zip(host_search.nearest(bank, queries, k=30, block_size=500), whole, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_a_guess_that_is_too_high_is_made_good(monkeypatch):
    bank, queries = sorted_bank(4000)
    whole = host_search.nearest(bank, queries, k=30, block_size=500)
    monkeypatch.setattr(host_search, "_guess", lambda bank, queries, k: np.full(len(queries), 0.9, np.float32))
    guessed = host_search.nearest(bank, queries, k=30, block_size=500)
    assert 0 < np.mean(whole[0][:, -1] > 0.9) < 1  # some queries have k rows above it, some do not
    for found, expected in zip(guessed, whole, strict=True):
        np.testing.assert_array_equal(found, expected)
