import numpy as np
import pytest
from sklearn.metrics import pairwise_distances_argmin

from ssl_jax.evaluation import of_features
from ssl_jax.evaluation.prototypes import few_shot, nearest_class_mean
from ssl_jax.evaluation.subject import Labeled


def clusters(images, *, classes=6, dim=8, noise=1.0, seed=0):
    """Features of overlapping clusters, none of unit length, with their labels; float32."""
    centers = np.random.default_rng(99).normal(size=(classes, dim))
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(images, dtype=np.int32) % classes)
    features = (centers[labels] + noise * rng.normal(size=(images, dim))) * rng.uniform(0.1, 10, (images, 1))
    return features.astype(np.float32), labels


TRAIN, TEST = clusters(300, seed=1), clusters(200, seed=2)


def test_with_all_labels_is_the_nearest_mean_by_scikit_learn():
    """All means of unit length: then the nearest is the most similar."""
    unit = [features / np.linalg.norm(features, axis=1, keepdims=True) for features in (TRAIN[0], TEST[0])]
    means = np.stack([unit[0][TRAIN[1] == label].mean(axis=0) for label in range(6)])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    expected = 100 * np.mean(pairwise_distances_argmin(unit[1], means) == TEST[1])
    assert 40 < expected < 95
    found = nearest_class_mean(*TRAIN, *TEST, num_classes=6, per_class=50, episodes=3)
    np.testing.assert_allclose(found.images, (expected, 0, expected, expected), atol=1e-9)


def test_of_classes_that_differ_in_size_each_counts_alike():
    """Class 0, whose images are all found, has 90 of 100; class 1 is named 0 throughout."""
    one, other = np.eye(2, dtype=np.float32)
    train, test = np.stack([one, one, other, other]), np.tile(one, (100, 1))
    labels = np.repeat(np.array([0, 1], np.int32), [90, 10])
    found = nearest_class_mean(
        train, np.array([0, 0, 1, 1], np.int32), test, labels, num_classes=2, per_class=2, episodes=2
    )
    np.testing.assert_allclose((found.images.mean, found.classes.mean), (90.0, 50.0))


def test_more_labels_help_and_narrow_the_interval():
    one, ten = (
        nearest_class_mean(*TRAIN, *TEST, num_classes=6, per_class=per_class, episodes=60).images
        for per_class in (1, 10)
    )
    assert one.low < one.mean < one.high < ten.low
    assert ten.std < one.std


def test_scale_of_the_features_and_test_labels_change_no_draw():
    found = nearest_class_mean(*TRAIN, *TEST, num_classes=6, per_class=2, episodes=20)
    scaled = TRAIN[0] * np.random.default_rng(0).uniform(0.1, 10, (300, 1)).astype(np.float32)
    np.testing.assert_allclose(
        nearest_class_mean(scaled, TRAIN[1], *TEST, num_classes=6, per_class=2, episodes=20), found, atol=0.5
    )
    assert found != nearest_class_mean(*TRAIN, *TEST, num_classes=6, per_class=2, episodes=20, seed=1)


@pytest.mark.parametrize("ways, shots", [(2, 1), (5, 1), (6, 5)])
def test_few_shot_of_pure_noise_is_chance(ways, shots):
    features = np.random.default_rng(0).normal(size=(600, 8)).astype(np.float32)
    labels = np.arange(600, dtype=np.int32) % 6
    found = few_shot(features, labels, num_classes=6, ways=ways, shots=shots, episodes=400)
    assert abs(found.mean - 100 / ways) < 1.7 * (found.high - found.low)


def test_few_shot_never_asks_for_an_image_that_it_has_shown():
    """Every image is like itself only: whoever sees a query among the supports would find it."""
    features = np.eye(60, dtype=np.float32)
    labels = np.arange(60, dtype=np.int32) % 6
    # All similarities are 0: the first class of the episode is taken.
    found = few_shot(features, labels, num_classes=6, ways=6, shots=5, queries=5, episodes=20)
    np.testing.assert_allclose(found.mean, 100 / 6)


def test_few_shot_interval_narrows_as_its_root():
    few, many = (few_shot(*TRAIN, num_classes=6, ways=5, shots=1, queries=10, episodes=count) for count in (50, 800))
    np.testing.assert_allclose((few.high - few.low) / (many.high - many.low), 4, rtol=0.3)
    assert few_shot(*TRAIN, num_classes=6, shots=5, queries=10, episodes=50).low > few.high


@pytest.mark.parametrize(
    "change, message",
    [
        ({"per_class": 51}, "class 0 has 50 labels, fewer than per_class 51; lower per_class"),
        ({"per_class": 0}, "per_class must be at least 1, got 0"),
        ({"episodes": 0}, "episodes must be at least 1, got 0"),
        ({"num_classes": 5}, "label 5 is too large for num_classes=5"),
        ({"test_features": TEST[0] + np.float32(np.inf)}, "test: 200 of 200 rows"),
        ({"test_features": TEST[0][:, 1:]}, "8 and 7 dimensions"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_errors_name_what_is_wrong(change, message):
    names = ("train_features", "train_labels", "test_features", "test_labels")
    arguments = {**dict(zip(names, (*TRAIN, *TEST), strict=True)), "num_classes": 6, "per_class": 1}
    with pytest.raises(ValueError, match=message):
        nearest_class_mean(**{**arguments, **change})


@pytest.mark.parametrize(
    "change, message",
    [
        ({"ways": 7}, r"ways must be in 2\.\.num_classes=6, got 7"),
        ({"ways": 1}, "ways must be in 2"),
        ({"shots": 36}, r"class 0 has 50 labels, fewer than shots \+ queries 51"),
        ({"queries": 0}, "queries must be at least 1, got 0"),
    ],
)
def test_few_shot_errors_name_what_is_wrong(change, message):
    with pytest.raises(ValueError, match=message):
        few_shot(*TRAIN, **{"num_classes": 6, **change})


def test_classes_too_small_for_an_episode_leave_episodes_out(capsys):
    train_labels, test_labels = np.repeat(np.arange(5), 3), np.repeat(np.arange(5), 17)
    rng = np.random.default_rng(0)
    train, test = (rng.normal(size=(len(x), 4)).astype(np.float32) for x in (train_labels, test_labels))
    data = Labeled(train, train_labels, test, test_labels, num_classes=5)
    found = of_features.nearest_prototypes(data)
    assert "prototypes/5_way_1_shot/top1" in found and "prototypes/5_way_5_shot/top1" not in found
    assert "episodes of 5 classes with 5 labels each left out: they need 20 test images" in capsys.readouterr().out
