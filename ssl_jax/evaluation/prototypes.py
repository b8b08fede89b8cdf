"""Few-shot classification of frozen features by the nearest class mean. Nothing is trained; one label is enough."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, Integer
from sklearn.preprocessing import normalize

from ssl_jax.evaluation._checks import check_labeled, check_same_dim
from ssl_jax.evaluation.accuracy import class_mean, top1
from ssl_jax.evaluation.intervals import Interval, student_t


class NearestClassMean(NamedTuple):
    """Accuracy in percent over draws of the labels. images: each image counts alike; classes: each class does."""

    images: Interval
    classes: Interval


def nearest_class_mean(
    train_features: Float[np.ndarray, "train dim"],
    train_labels: Integer[np.ndarray, "train"],
    test_features: Float[np.ndarray, "test dim"],
    test_labels: Integer[np.ndarray, "test"],
    *,
    num_classes: int,
    per_class: int,
    episodes: int = 100,
    seed: int = 0,
) -> NearestClassMean:
    """Top-1 in percent on the whole test set, among all classes, with `per_class` labels of each: mean over many draws.

    A test image is given the class with the most similar mean, by cosine. Features are scaled to unit length before the
    mean, and means after it. The interval reflects the draw of the labels, not the choice of the test set.

    Args:
      train_features, test_features: finite, any scale.
      train_labels, test_labels: in 0 .. num_classes - 1.
      num_classes: at least 2.
      per_class: labels per class, at least 1, at most as many as every class has in train.
      episodes: draws, at least 1.
      seed: of the draws, which depend on it and the train labels alone. So different features get the same images.

    Raises: ValueError for numbers out of range, a class with fewer labels, features that are not finite.
    Source: Snell et al. 2017, arXiv:1703.05175, section 2.3; cosine as in Wang et al. 2019, arXiv:1911.04623.
    """
    check_labeled("train", train_features, train_labels, num_classes)
    check_labeled("test", test_features, test_labels, num_classes)
    check_same_dim(train_features, test_features)
    _check_positive(per_class=per_class, episodes=episodes)
    images = _by_class(train_labels, num_classes)
    _check_enough(images, per_class, "per_class")
    train: Any = normalize(train_features)
    test: Any = normalize(test_features)
    rng = np.random.default_rng(seed)
    predictions = []
    for _ in range(episodes):
        drawn = np.stack([rng.choice(rows, per_class, replace=False) for rows in images])  # [classes, per_class]
        predictions.append(_nearest(train[drawn], test))
    found = np.stack(predictions)
    return NearestClassMean(student_t(top1(found, test_labels)), student_t(class_mean(found, test_labels)))


def few_shot(
    features: Float[np.ndarray, "images dim"],
    labels: Integer[np.ndarray, "images"],
    *,
    num_classes: int,
    ways: int = 5,
    shots: int = 1,
    queries: int = 15,
    episodes: int = 600,
    seed: int = 0,
) -> Interval:
    """Top-1 in percent of `ways`-way `shots`-shot episodes: mean and confidence interval over the episodes.

    Each episode draws `ways` classes. From each it draws `shots` images, whose mean stands for the class, and `queries`
    others, which are classified among the classes of the episode, by cosine as in `nearest_class_mean`.

    Args:
      features: finite, any scale; of images whose labels no training has seen. Better still, it has seen no label of
        their classes.
      labels: in 0 .. num_classes - 1.
      ways: from 2 to num_classes. shots, queries: at least 1, together at most what every class has.
      episodes: at least 1. More episodes give a narrower interval (600: about 0.8 points).
      seed: of the draws, which depend on it and the labels alone.

    Raises: ValueError for numbers out of range, a class with too few images, features that are not finite.
    Source: Vinyals et al. 2016, arXiv:1606.04080, section 2.2, for the episodes. Snell et al. 2017, arXiv:1703.05175,
      section 3, for 15 queries per class and 600 episodes with a 95 % interval, as in their tests on miniImageNet.
    """
    check_labeled("few-shot", features, labels, num_classes)
    _check_positive(shots=shots, queries=queries, episodes=episodes)
    if not 2 <= ways <= num_classes:
        raise ValueError(f"ways must be in 2..num_classes={num_classes}, got {ways}")
    images = _by_class(labels, num_classes)
    _check_enough(images, shots + queries, "shots + queries")
    unit: Any = normalize(features)
    rng = np.random.default_rng(seed)
    truth = np.repeat(np.arange(ways), queries)
    accuracies = []
    for _ in range(episodes):
        classes = rng.choice(num_classes, ways, replace=False)
        drawn = np.stack([rng.choice(images[label], shots + queries, replace=False) for label in classes])
        accuracies.append(float(top1(_nearest(unit[drawn[:, :shots]], unit[drawn[:, shots:].ravel()]), truth)))
    return student_t(accuracies)


def _nearest(
    supports: Float[np.ndarray, "classes shots dim"], queries: Float[np.ndarray, "queries dim"]
) -> Int[np.ndarray, "queries"]:
    """For each query the class of the most similar mean."""
    means: Any = normalize(supports.mean(axis=1))
    return np.argmax(queries @ means.T, axis=1)


def _by_class(labels: Integer[np.ndarray, "images"], num_classes: int) -> list[Int[np.ndarray, "_"]]:
    """The rows of each class."""
    return [np.flatnonzero(labels == label) for label in range(num_classes)]


def _check_positive(**numbers: int) -> None:
    for name, number in numbers.items():
        if number < 1:
            raise ValueError(f"{name} must be at least 1, got {number}")


def _check_enough(images: list[np.ndarray], needed: int, name: str) -> None:
    for label, rows in enumerate(images):
        if len(rows) < needed:
            raise ValueError(f"class {label} has {len(rows)} labels, fewer than {name} {needed}; lower {name}")
