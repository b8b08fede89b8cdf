import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from ssl_jax.evaluation import retrieval
from ssl_jax.evaluation.retrieval import retrieve


def clusters(images, *, classes=5, dim=12, seed=0):
    """Features of overlapping clusters, none of unit length, with their labels; float32."""
    centers = np.random.default_rng(99).normal(size=(classes, dim))
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, images).astype(np.int32)
    features = (centers[labels] + 2 * rng.normal(size=(images, dim))) * rng.uniform(0.1, 10, (images, 1))
    return features.astype(np.float32), labels


QUERIES, GALLERY = clusters(90, seed=1), clusters(200, seed=2)


def reference(queries, gallery, k, leave_one_out):
    """(mean average precision, recall) of one query after the other, in float64, by scikit-learn."""
    unit = [x.astype(np.float64) / np.linalg.norm(x, axis=1, keepdims=True) for x, _ in (queries, gallery)]
    precisions, hits = [], []
    for i, label in enumerate(queries[1]):
        others = np.arange(len(gallery[1])) != i if leave_one_out else np.full(len(gallery[1]), True)
        similarities, relevant = (unit[0][i] @ unit[1].T)[others], gallery[1][others] == label
        precisions.append(average_precision_score(relevant, similarities))
        hits.append(relevant[np.argsort(-similarities)[:k]].any())
    return 100 * np.mean(precisions), 100 * np.mean(hits)


@pytest.mark.parametrize("held", [2**24, 7 * 200, 1])  # similarities at a time: one chunk, many, one query each
def test_equals_scikit_learn(held, monkeypatch):
    monkeypatch.setattr(retrieval, "SIMILARITIES", held)
    found = retrieve(*QUERIES, *GALLERY, num_classes=5, k=(1, 3))
    assert found.queries == 90
    for k in (1, 3):
        precision, recall = reference(QUERIES, GALLERY, k, leave_one_out=False)
        assert 25 < precision < 80
        np.testing.assert_allclose(found.mean_average_precision, precision, rtol=1e-6)
        np.testing.assert_allclose(found.recall[k], recall)


def test_leaving_one_out_equals_scikit_learn():
    found = retrieve(*GALLERY, num_classes=5, k=(1,))
    precision, recall = reference(GALLERY, GALLERY, 1, leave_one_out=True)
    np.testing.assert_allclose((found.mean_average_precision, found.recall[1]), (precision, recall), rtol=1e-6)
    itself = retrieve(*GALLERY, *GALLERY, num_classes=5, k=(1,))
    assert itself.recall[1] == 100  # each finds itself


def test_by_hand():
    gallery = np.array([[1, 0], [4, 3], [3, 4], [0, 1], [-1, 0]], np.float32)  # cosines 1, 0.8, 0.6, 0, -1
    found = retrieve(
        np.array([[9, 0]], np.float32), np.array([1]), gallery, np.array([0, 1, 0, 1, 1]), num_classes=2, k=(1, 2)
    )
    np.testing.assert_allclose(found.mean_average_precision, 100 * (1 / 2 + 2 / 4 + 3 / 5) / 3)
    assert found.recall == {1: 0, 2: 100}


def test_collapsed_features_score_the_share_of_their_class():
    labels = np.arange(40) % 4
    found = retrieve(
        np.ones((40, 3), np.float32), labels, np.ones((40, 3), np.float32), labels, num_classes=4, k=(1, 40)
    )
    np.testing.assert_allclose(found.mean_average_precision, 25)
    assert found.recall == {1: 0, 40: 100}


def test_queries_without_an_image_of_their_class_do_not_count():
    labels = np.where(np.arange(90) < 80, 0, 1)
    found = retrieve(QUERIES[0], labels, GALLERY[0], np.zeros(200, np.int64), num_classes=2)
    assert found.queries == 80
    assert found.mean_average_precision == 100
    alone = retrieve(QUERIES[0], np.where(np.arange(90) < 89, 0, 1), num_classes=2)
    assert alone.queries == 89


@pytest.mark.parametrize(
    "change, message",
    [
        ({"gallery_labels": None}, "both features and labels"),
        ({"k": (0,)}, "at least 1"),
        ({"k": ()}, "at least 1"),
        ({"gallery_labels": np.full(200, -1)}, "200 of 200 labels are negative"),
        ({"gallery_features": GALLERY[0][:, 1:]}, "11 and 12 dimensions"),
        ({"query_features": np.full((90, 12), np.inf, np.float32)}, "90 of 90 rows"),
        ({"query_labels": np.full(90, 5), "num_classes": 6}, "no query has an image of its class"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_errors_name_what_is_wrong(change, message):
    names = ("query_features", "query_labels", "gallery_features", "gallery_labels")
    arguments = {**dict(zip(names, (*QUERIES, *GALLERY), strict=True)), "num_classes": 5}
    with pytest.raises(ValueError, match=message):
        retrieve(**{**arguments, **change})


def test_precision_is_the_share_of_the_class_among_the_most_similar():
    gallery = np.array([[1, 0], [4, 3], [3, 4], [0, 1], [-1, 0]], np.float32)  # cosines 1, 0.8, 0.6, 0, -1
    query, labels = (np.array([[9, 0]], np.float32), np.array([1])), np.array([1, 1, 0, 1, 1])
    found = retrieve(*query, gallery, labels, num_classes=2, k=(1, 3, 5))
    assert found.precision == {1: 100, 3: pytest.approx(200 / 3), 5: 80}


def test_a_query_is_not_compared_with_its_own_row():
    features, labels = GALLERY
    order = np.random.default_rng(5).permutation(200)
    itself = retrieve(features[order], labels[order], features, labels, num_classes=5, k=(1, 7), own=order)
    apart = retrieve(*GALLERY, num_classes=5, k=(1, 7))
    for value, expected in zip(itself, apart, strict=True):
        assert value == (expected if isinstance(expected, dict) else pytest.approx(expected))
    outside = retrieve(*QUERIES, *GALLERY, num_classes=5, k=(1, 7), own=np.full(90, -1))
    assert outside == retrieve(*QUERIES, *GALLERY, num_classes=5, k=(1, 7))
    with pytest.raises(ValueError, match="own says where each of 200 queries is in a gallery"):
        retrieve(*GALLERY, num_classes=5, own=order)
