import inspect
import warnings

import jax
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from ssl_jax.evaluation import linear, logistic
from ssl_jax.evaluation.labels import draw_labels
from ssl_jax.evaluation.linear import linear_probe


def correlated(images, *, classes=4, dim=15, seed=0):
    """Overlapping classes in strongly correlated features of very different scales, one of them constant; float32."""
    rng = np.random.default_rng(99)
    centers, mixing = rng.normal(size=(classes, dim)), rng.normal(size=(dim, dim))
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, images).astype(np.int32)
    features = (centers[labels] + 1.5 * rng.normal(size=(images, dim))) @ mixing * np.logspace(-2, 2, dim) + 5.0
    features[:, 3] = 0.7
    return features.astype(np.float32), labels


# Of two chunks where all are taken. Fits of all strengths are of 20 labels of each class, or of 3 draws and a chunk
# otherwise, so that they share a compiled program.
TRAIN, TEST = correlated(1500, seed=1), correlated(800, seed=2)


def standardized(features):
    std = TRAIN[0].std(axis=0, dtype=np.float64)
    return (features - TRAIN[0].mean(axis=0, dtype=np.float64)) / np.where(std > 1e-6, std, 1)


@pytest.mark.parametrize("strength", [0.01, 1.0, 300.0])
def test_equals_scikit_learn_at_the_same_strength(strength):
    reference = LogisticRegression(C=1 / strength, tol=1e-8, max_iter=10_000).fit(standardized(TRAIN[0]), TRAIN[1])
    expected = reference.predict(standardized(TEST[0]))
    probe = linear_probe(*TRAIN, *TEST, num_classes=4, per_class=None, strengths=(strength,))
    assert np.mean(probe.predictions[0] == expected) > 0.997  # two of 800, at a tie but for 1e-3
    assert abs(probe.mean - 100 * np.mean(expected == TEST[1])) <= 0.2
    assert 50 < probe.mean < 95


def test_fits_side_by_side_are_those_of_scikit_learn():
    """Coefficients and held-out losses of all strengths, in draws of several sizes."""
    features, labels = correlated(1000, seed=3)
    features = standardized(features).astype(np.float32)
    rows, dim, strengths = logistic.CHUNK, features.shape[1], np.float32(linear.STRENGTHS)
    sizes, each = (1000, 300, 100), (len(strengths), 4, dim + 1)
    x, y = np.ones((3, rows, dim + 1), np.float32), np.full((3, rows), logistic.FILLER, np.int32)
    held_out = np.zeros((3, rows), bool)
    for draw, size in enumerate(sizes):
        x[draw, :size, :-1], y[draw, :size], held_out[draw, :size:3] = features[:size], labels[:size], True
    start, variances = np.zeros((3, *each), np.float32), np.ones((3, dim + 1), np.float32)
    fit = jax.device_get(logistic.fit(x, y, held_out, variances, np.stack([strengths] * 3), start, 1e-5, 2000))
    for draw, size in enumerate(sizes):
        fitted = np.arange(size) % 3 > 0
        for i, strength in list(enumerate(strengths))[::3]:
            reference = LogisticRegression(C=1 / strength, tol=1e-9, max_iter=10_000)
            reference.fit(features[:size][fitted], labels[:size][fitted])
            # Coefficients of up to 10, in float32: a CPU without AVX-512 rounds to 0.02 off, one with it to 0.01.
            np.testing.assert_allclose(fit.weights[draw, i, :, :-1], reference.coef_, atol=0.04)
            log_p = reference.predict_log_proba(features[:size][~fitted])
            loss = -np.sum(log_p[np.arange(len(log_p)), labels[:size][~fitted]])
            np.testing.assert_allclose(fit.held_out_loss[draw, i], loss, rtol=2e-3)


@pytest.mark.parametrize("per_class, strengths", [(None, (1.0,)), (20, linear.STRENGTHS)])
def test_test_labels_change_no_prediction_and_no_strength(per_class, strengths):
    permuted = np.random.default_rng(0).permutation(TEST[1])
    probe, other = (
        linear_probe(*TRAIN, TEST[0], labels, num_classes=4, per_class=per_class, strengths=strengths)
        for labels in (TEST[1], permuted)
    )
    np.testing.assert_array_equal(probe.predictions, other.predictions)
    assert probe.strengths == other.strengths
    assert probe.mean > other.mean + 20  # but the labels did count the hits


def test_sees_the_drawn_images_only():
    """All that the others give is mean and deviation, which a permutation of their features does not change."""
    drawn = np.concatenate([draw_labels(TRAIN[1], 4, 20, seed)[0] for seed in (0, 1, 2)])
    others = np.setdiff1d(np.arange(len(TRAIN[1])), drawn)
    assert len(others) > 1200
    features = TRAIN[0].copy()
    features[others] = np.random.default_rng(0).permutation(features[others])
    probe, other = (linear_probe(f, TRAIN[1], *TEST, num_classes=4, per_class=20) for f in (TRAIN[0], features))
    assert probe.strengths == other.strengths
    assert np.mean(probe.predictions == other.predictions) > 0.998  # rounding of the mean


def test_all_labels_are_one_draw():
    probe = linear_probe(*TRAIN, *TEST, num_classes=4, per_class=None, strengths=(1.0,))
    assert (len(probe.accuracies), len(probe.strengths), probe.predictions.shape) == (1, 1, (1, 800))
    assert probe.std == 0


def test_mean_and_deviation_are_over_the_seeds():
    probe = linear_probe(*TRAIN, *TEST, num_classes=4, per_class=20, seeds=(3, 4, 5))
    expected = [100 * np.mean(predicted == TEST[1]) for predicted in probe.predictions]
    np.testing.assert_allclose(probe.accuracies, expected)
    np.testing.assert_allclose(probe.mean, np.mean(expected))
    np.testing.assert_allclose(probe.std, np.sqrt(np.sum((expected - np.mean(expected)) ** 2) / 2))
    other = linear_probe(*TRAIN, *TEST, num_classes=4, per_class=20, seeds=(5, 6, 7))
    assert other.strengths[0] == probe.strengths[2]
    assert np.mean(other.predictions[0] == probe.predictions[2]) > 0.998  # a seed's probe, whatever the others


def test_chooses_a_strength_that_suits():
    """Little signal: the weakest penalty overfits; what the held-out labels choose is nearly as good as the best."""
    rng = np.random.default_rng(0)
    labels = np.arange(3000, dtype=np.int32) % 4
    features = rng.normal(size=(3000, 15)).astype(np.float32)
    features[:, :4] += 1.5 * np.eye(4)[labels]
    data = features[:1000], labels[:1000], features[1000:], labels[1000:]
    weak, good = (
        linear_probe(*data, num_classes=4, per_class=20, strengths=(strength,)).mean for strength in (0.01, 20.0)
    )
    assert good > weak + 3
    probe = linear_probe(*data, num_classes=4, per_class=20)
    assert probe.mean > good - 1
    assert min(linear.STRENGTHS) < min(probe.strengths)
    assert max(probe.strengths) < max(linear.STRENGTHS)


def test_warns_where_a_fit_does_not_converge(monkeypatch):
    monkeypatch.setattr(linear, "MAX_ITERATIONS", 3)
    with pytest.warns(RuntimeWarning, match="has not converged"):
        linear_probe(*TRAIN, *TEST, num_classes=4, per_class=None, strengths=(0.01,))


def test_of_strengths_that_do_equally_well_the_strongest_is_chosen():
    """Features tell two pairs of classes apart and no more: the cross entropy is log 2 wherever the penalty is weak."""
    labels = np.arange(1000, dtype=np.int32) % 4
    features = np.tile(np.array([[1.0], [-1.0]], np.float32), (500, 15))
    probe = linear_probe(features, labels, features, labels, num_classes=4, per_class=250)
    assert probe.accuracies == (50,) * 3
    # Converged, 0.01 to 1 differ by less than 0.1 %; 5 is 0.4 % and 20 is 1 % above log 2. As far as the search goes,
    # rounding moves them by as much, so that a CPU may find the second instead of the fourth, but not the weakest.
    assert all(0.02 < strength < 20 for strength in probe.strengths)


@pytest.mark.parametrize("per_class", [20, 50])  # some, all
def test_converges_on_separable_and_on_dead_features(per_class):
    labels = np.arange(200, dtype=np.int32) % 4
    separable = np.eye(15, dtype=np.float32)[labels]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for features, accuracy in ((separable, 100), (0 * separable, 25)):
            probe = linear_probe(features, labels, features, labels, num_classes=4, per_class=per_class)
            assert probe.mean == accuracy


@pytest.mark.parametrize(
    "change, message",
    [
        ({"per_class": 700}, r"class \d has \d+ labels, fewer than per_class 700"),
        ({"num_classes": 5, "per_class": 10}, "class 4 has 0 labels, fewer than per_class 10"),
        ({"per_class": 1}, "give at least 2"),
        ({"train_labels": np.where(np.arange(1500) < 7, -1, TRAIN[1])}, "train: 7 of 1500 labels are negative"),
        ({"test_labels": np.full(800, -1)}, "test: 800 of 800 labels are negative"),
        ({"num_classes": 3}, "label 3 is too large for num_classes=3"),
        ({"test_labels": TEST[1][:-1]}, "800 rows of features but 799 labels"),
        ({"train_features": np.where(np.arange(15) == 2, np.nan, TRAIN[0])}, "1500 of 1500 rows of features are not"),
        ({"test_features": TEST[0][:, 1:]}, "15 and 14 dimensions"),
        ({"seeds": ()}, r"seeds and strengths must not be empty, .* got \(\) and"),
        ({"strengths": (1.0, 0.0)}, "strengths must be above 0"),
    ],
)
def test_errors_name_what_is_wrong(change, message):
    arguments = dict(
        zip(("train_features", "train_labels", "test_features", "test_labels"), (*TRAIN, *TEST), strict=True)
    )
    with pytest.raises(ValueError, match=message):
        # Without the check of annotations, which in the tests sees odd shapes first.
        inspect.unwrap(linear_probe)(**{**arguments, "num_classes": 4, "per_class": None, **change})
