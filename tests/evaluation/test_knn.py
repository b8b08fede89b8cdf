import inspect

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from ssl_jax.evaluation.knn import nearest, weighted_knn


def clusters(images, *, classes=5, dim=12, seed=0):
    """Features of overlapping clusters, none of unit length, with their labels; float32."""
    centers = np.random.default_rng(99).normal(size=(classes, dim))
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, images).astype(np.int32)
    features = (centers[labels] + rng.normal(size=(images, dim))) * rng.uniform(0.1, 10, (images, 1))
    return features.astype(np.float32), labels


@pytest.mark.parametrize("temperature", [0.07, 1.0])
@pytest.mark.parametrize("k", [1, 20, 200])
def test_equals_scikit_learn(k, temperature):
    bank, labels = clusters(700, seed=1)
    queries, truth = clusters(300, seed=2)  # no multiple of the queries taken at a time
    reference = KNeighborsClassifier(
        k, metric="cosine", algorithm="brute", weights=lambda distances: np.exp((1 - distances) / temperature)
    ).fit(bank.astype(np.float64), labels)
    expected = reference.predict(queries.astype(np.float64))
    assert 50 < 100 * np.mean(expected == truth) < 95  # neither trivial nor noise
    predicted = weighted_knn(bank, labels, queries, num_classes=5, k=(k,), temperature=temperature)
    np.testing.assert_array_equal(predicted[k], expected)


@pytest.mark.parametrize("block_size", [7, 100, 699, 700, 10_000])
def test_blocks_of_the_bank_change_nothing(block_size):
    bank, labels = clusters(700, seed=1)
    queries, _ = clusters(130, seed=2)
    whole = weighted_knn(bank, labels, queries, num_classes=5, k=(3, 50))
    blocks = weighted_knn(bank, labels, queries, num_classes=5, k=(3, 50), block_size=block_size)
    for k in (3, 50):
        np.testing.assert_array_equal(blocks[k], whole[k])


# Cosines with the query [1, 0]: 1, 0.8, 0.8, 0.6, 0, -1, whatever the lengths.
BANK = np.array([[5, 0], [4, 3], [0.08, -0.06], [30, 40], [0, 2], [-1, 0]], np.float32)
LABELS = np.array([0, 1, 1, 2, 2, 2], np.int32)


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4, 5], [5, 3, 1, 4, 2, 0]])
@pytest.mark.parametrize("block_size", [2, 6])
def test_nearest_by_cosine(order, block_size):
    similarities, rows = nearest(BANK[order], np.array([[9, 0]], np.float32), k=4, block_size=block_size)
    np.testing.assert_allclose(similarities, [[1, 0.8, 0.8, 0.6]], atol=1e-6)
    assert set(np.array(order)[rows[0, 1:3]]) == {1, 2}
    assert [order[rows[0, 0]], order[rows[0, 3]]] == [0, 3]


@pytest.mark.parametrize(
    "k, temperature, winner",
    [
        (1, 0.07, 0),
        (3, 10.0, 1),  # weights nearly equal: two against one
        (3, 0.07, 0),  # exp(0.2 / 0.07) = 17 against two
        (6, 10.0, 2),  # three, though far away, against two and one
        (100, 10.0, 2),  # the bank has six: all of them vote
        (6, 1e-4, 0),  # exp(1 / 1e-4) overflows even float64
    ],
)
def test_votes(k, temperature, winner):
    predicted = weighted_knn(
        BANK, LABELS, np.array([[9, 0]], np.float32), num_classes=3, k=(k,), temperature=temperature
    )
    np.testing.assert_array_equal(predicted[k], [winner])
    assert predicted[k].dtype == np.int32


@pytest.mark.parametrize("images, k", [(6, 4), (900, 20), (900, 40), (900, 600)])
def test_equally_near_the_earlier_wins(images, k):
    bank = np.ones((images, 3), np.float32)
    for block_size in (images // 3, images):
        _, rows = nearest(bank, bank[:1], k=k, block_size=block_size)
        np.testing.assert_array_equal(rows, [np.arange(k)])


@pytest.mark.parametrize("order", [slice(None), slice(None, None, -1)], ids=["nearest first", "nearest last"])
@pytest.mark.parametrize("k", [5, 100])
def test_the_bank_may_come_in_any_order(k, order):
    """Nearest first, later blocks have nothing to add; nearest last, each replaces all that was found before."""
    angles = np.linspace(0, np.pi, 3000, dtype=np.float32)[order]
    bank = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    _, rows = nearest(bank, np.array([[2, 0]] * 600, np.float32), k=k, block_size=1000)  # queries of two chunks
    np.testing.assert_array_equal(rows, [np.arange(3000)[order][:k]] * 600)


def test_no_queries_have_no_neighbors():
    similarities, rows = nearest(BANK, BANK[:0], k=2)
    assert similarities.shape == rows.shape == (0, 2)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"train_labels": np.array([0, -1, 1, -1, 2, 2])}, "2 of 6 labels are negative"),
        ({"num_classes": 2}, "label 2 where num_classes is 2"),
        ({"train_labels": LABELS[:5]}, "6 rows of features but 5 labels"),
        ({"train_features": BANK[:0], "train_labels": LABELS[:0]}, "no images"),
        ({"train_features": np.where(BANK == 5, np.float32(np.nan), BANK)}, "1 of 6 rows of features are not finite"),
        ({"test_features": np.full((2, 2), np.inf, np.float32)}, "test: 2 of 2 rows"),
        ({"test_features": np.zeros((2, 3), np.float32)}, "2 and 3 dimensions"),
        ({"k": (0,)}, "must be positive"),
        ({"k": ()}, "must be positive"),
        ({"temperature": 0.0}, "must be positive"),
    ],
)
def test_errors_name_what_is_wrong(change, message):
    arguments = {"train_features": BANK, "train_labels": LABELS, "test_features": BANK, "num_classes": 3, "k": (1,)}
    with pytest.raises(ValueError, match=message):
        # Without the check of annotations, which in the tests sees odd shapes first.
        inspect.unwrap(weighted_knn)(**{**arguments, **change})


def test_accepts_features_that_are_all_zero():
    predicted = weighted_knn(0 * BANK, LABELS, 0 * BANK, num_classes=3, k=(6,))
    np.testing.assert_array_equal(predicted[6], [2] * 6)  # all equally near: the most frequent class
