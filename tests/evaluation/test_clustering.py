import numpy as np
import pytest

from ssl_jax.evaluation.clustering import agreement, kmeans, kmeans_agreement

# Three clusters against two classes: contingency [[3, 0, 1], [0, 2, 2]].
LABELS = np.array([0, 0, 0, 0, 1, 1, 1, 1])
CLUSTERS = np.array([0, 0, 0, 2, 1, 1, 2, 2])


def test_agreement_by_hand():
    found = agreement(CLUSTERS, LABELS)
    np.testing.assert_allclose(found.accuracy, 100 * 5 / 8)  # 3 + 2; the third cluster is left over
    counts = np.array([[3, 0, 1], [0, 2, 2]]) / 8
    entropies = [-np.sum(p * np.log(p)) for p in (counts.sum(0), counts.sum(1), counts[counts > 0])]
    information = entropies[0] + entropies[1] - entropies[2]
    np.testing.assert_allclose(found.nmi, 100 * 2 * information / (entropies[0] + entropies[1]))
    # Pairs: 3 + 1 + 1 together in both; 12 in the classes, 7 in the clusters, of 28.
    expected = 12 * 7 / 28
    np.testing.assert_allclose(found.ari, 100 * (5 - expected) / ((12 + 7) / 2 - expected))


def test_agreement_up_to_names():
    labels = np.random.default_rng(0).integers(0, 5, 200)
    found = agreement(np.array([3, 0, 4, 1, 2])[labels], labels)
    np.testing.assert_allclose(found, (100, 100, 100, 100))


def test_by_chance_what_is_adjusted_is_zero():
    rng = np.random.default_rng(0)
    found = agreement(rng.integers(0, 100, 1000), rng.integers(0, 100, 1000))
    assert abs(found.ami) < 2
    assert abs(found.ari) < 2
    assert found.nmi > 40


def directions(images, seed):
    """Clusters in 4 directions, at lengths that would hide them: 1 to 100."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, images).astype(np.int32)
    features = (np.eye(4)[labels] + 0.1 * rng.normal(size=(images, 4))) * 10 ** rng.uniform(0, 2, (images, 1))
    return features.astype(np.float32), labels


def test_directions_are_found_both_ways():
    test = directions(200, 2)
    found = kmeans_agreement(directions(300, 1)[0], *test, num_classes=4)
    for way in ("inductive", "transductive"):
        np.testing.assert_allclose(found[way], (100, 100, 100, 100))


def test_only_the_inductive_clusters_depend_on_train():
    """A train set without two of the classes cannot tell them apart."""
    features, labels = directions(300, 1)
    test = directions(200, 2)
    found = kmeans_agreement(features[labels < 2], *test, num_classes=4)
    assert found["inductive"].accuracy < 80
    assert found["transductive"].accuracy == 100


def test_more_clusters_than_classes():
    test = directions(200, 2)
    found = kmeans_agreement(test[0], *test, num_classes=4, num_clusters=20)["transductive"]
    assert found.accuracy < 60  # one cluster a class counts
    assert found.nmi < 80


def test_a_seed_gives_the_same_clusters():
    features = np.random.default_rng(0).normal(size=(200, 5)).astype(np.float32)
    first, again = (kmeans(features, features, num_clusters=7, seed=3) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert set(first) == set(range(7))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"num_clusters": 51}, r"num_clusters=51 must be in 1\.\.50, the number of images"),
        ({"num_clusters": 0}, r"num_clusters=0 must be in 1\.\.50"),
        ({"train_features": np.full((50, 4), np.nan, np.float32)}, "train: 50 of 50 rows"),
        ({"train_features": np.ones((50, 3), np.float32)}, "3 and 4 dimensions"),
        ({"test_labels": np.full(60, -1)}, "60 of 60 labels are negative"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_errors_name_what_is_wrong(change, message):
    (train, _), (test, labels) = directions(50, 1), directions(60, 2)
    arguments = {"train_features": train, "test_features": test, "test_labels": labels, "num_classes": 4}
    with pytest.raises(ValueError, match=message):
        kmeans_agreement(**{**arguments, **change})


@pytest.mark.usefixtures("unchecked")
def test_agreement_needs_a_cluster_for_each_image():
    with pytest.raises(ValueError, match="7 clusters and 8 labels"):
        agreement(CLUSTERS[1:], LABELS)
