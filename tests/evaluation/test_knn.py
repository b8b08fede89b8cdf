import inspect

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from ssl_jax.evaluation.knn import weighted_knn


def clusters(images, *, classes=5, dim=12, seed=0):
    """Features of overlapping clusters, none of unit length, with their labels; float32."""
    centers = np.random.default_rng(99).normal(size=(classes, dim))
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, images).astype(np.int32)
    features = (centers[labels] + rng.normal(size=(images, dim))) * rng.uniform(0.1, 10, (images, 1))
    return features.astype(np.float32), labels


BANK_OF_700, QUERIES_OF_300 = clusters(700, seed=1), clusters(300, seed=2)  # no multiple of the queries taken at a time


@pytest.mark.parametrize("temperature", [0.07, 1.0])
@pytest.mark.parametrize("ks", [(1, 20), (1, 20, 200)], ids=["few", "many"])  # the most decides how it is searched
def test_equals_scikit_learn(ks, temperature):
    (bank, labels), (queries, truth) = BANK_OF_700, QUERIES_OF_300
    predicted = weighted_knn(bank, labels, queries, num_classes=5, k=ks, temperature=temperature)
    for k in ks:
        reference = KNeighborsClassifier(
            k, metric="cosine", algorithm="brute", weights=lambda distances: np.exp((1 - distances) / temperature)
        ).fit(bank.astype(np.float64), labels)
        expected = reference.predict(queries.astype(np.float64))
        assert 50 < 100 * np.mean(expected == truth) < 95  # neither trivial nor noise
        np.testing.assert_array_equal(predicted[k], expected)


@pytest.mark.parametrize("block_size", [7, 233])  # 100 small blocks; three and a single row
def test_blocks_of_the_bank_change_nothing(block_size):
    (bank, labels), (queries, _) = BANK_OF_700, QUERIES_OF_300
    whole = weighted_knn(bank, labels, queries, num_classes=5, k=(3, 200))
    blocks = weighted_knn(bank, labels, queries, num_classes=5, k=(3, 200), block_size=block_size)
    for k in (3, 200):
        np.testing.assert_array_equal(blocks[k], whole[k])


# Cosines with the query [1, 0]: 1, 0.8, 0.8, 0.6, 0, -1, whatever the lengths.
BANK = np.array([[5, 0], [4, 3], [0.08, -0.06], [30, 40], [0, 2], [-1, 0]], np.float32)
LABELS = np.array([0, 1, 1, 2, 2, 2], np.int32)
QUERY = np.array([[9, 0]], np.float32)


@pytest.mark.parametrize(
    "temperature, winners",
    [
        (0.07, {1: 0, 3: 0}),  # exp(0.2 / 0.07) = 17 against two
        # Weights nearly equal. Of 3: two against one; of 6: three, though far away, against two and one. The bank has
        # six: of 100 all of them vote.
        (10.0, {3: 1, 6: 2, 100: 2}),
        (1e-4, {6: 0}),  # exp(1 / 1e-4) overflows even float64
    ],
)
def test_votes(temperature, winners):
    predicted = weighted_knn(BANK, LABELS, QUERY, num_classes=3, k=(1, 3, 6, 100), temperature=temperature)
    for k, winner in winners.items():
        np.testing.assert_array_equal(predicted[k], [winner])
        assert predicted[k].dtype == np.int32


@pytest.mark.parametrize(
    "change, message",
    [
        ({"train_labels": np.array([0, -1, 1, -1, 2, 2])}, "2 of 6 labels are negative"),
        ({"num_classes": 2}, "label 2 is too large for num_classes=2"),
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
    predicted = weighted_knn(0 * BANK, LABELS, 0 * QUERY, num_classes=3, k=(6,))
    np.testing.assert_array_equal(predicted[6], [2])  # all equally near: the most frequent class
