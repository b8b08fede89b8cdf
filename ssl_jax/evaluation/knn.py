"""Weighted k-nearest-neighbor classification of frozen features."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int, Integer

from ssl_jax.evaluation._checks import check_labeled, check_same_dim
from ssl_jax.evaluation.search import ROWS, nearest
from ssl_jax.ops import check_finite


def weighted_knn(
    train_features: Float[np.ndarray, "train dim"],
    train_labels: Integer[np.ndarray, "train"],
    test_features: Float[np.ndarray, "test dim"],
    *,
    num_classes: int,
    k: Sequence[int] = (20, 200),
    temperature: float = 0.07,
    block_size: int = ROWS,
) -> dict[int, Int[np.ndarray, "test"]]:
    """Classes of test images by a vote of their nearest training images.

    The k training images with the highest cosine similarity s vote for their class with weight exp(s / temperature).
    The search is exact, in float32. Of equally similar images, the earlier ones count as nearer.

    Args:
      train_features: the bank; any scale.
      train_labels: in 0 .. num_classes - 1.
      test_features: any scale.
      num_classes: at least 1.
      k: numbers of neighbors, each at least 1. A number larger than the bank takes the whole bank.
      temperature: > 0.
      block_size: see `search.nearest`.

    Returns: for each of `k` the predicted classes, int32.
    Raises: ValueError for numbers out of range, negative labels, features that are not finite.
    Source: Wu et al. 2018, arXiv:1805.01978, section 3.4; k and temperature as in DINO's code.
    """
    check_labeled("train", train_features, train_labels, num_classes)
    check_finite("test", test_features)
    check_same_dim(train_features, test_features)
    if not k or min(k) < 1 or temperature <= 0 or block_size < 1:
        raise ValueError(f"k {k}, temperature {temperature} and block_size {block_size} must be positive")
    similarities, neighbors = nearest(train_features, test_features, k=max(k), block_size=block_size)
    # Relative to the nearest, so that no temperature overflows. This changes no vote. On the host, in float64.
    weights = np.exp((similarities - similarities[:, :1]).astype(np.float64) / temperature)
    # One bin for each test image and class.
    bins = np.arange(len(test_features))[:, None] * num_classes + train_labels[neighbors]
    predictions = {}
    for count in k:
        votes = np.bincount(bins[:, :count].ravel(), weights[:, :count].ravel(), len(test_features) * num_classes)
        predictions[count] = votes.reshape(-1, num_classes).argmax(axis=1).astype(np.int32)
    return predictions
