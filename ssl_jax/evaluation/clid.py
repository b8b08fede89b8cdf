"""Cluster learnability and intrinsic dimension: features of several models compared without labels."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from sklearn.cluster import KMeans
from sklearn.preprocessing import minmax_scale

from ssl_jax.evaluation.search import nearest
from ssl_jax.ops import check_finite


def cluster_learnability(h: Float[np.ndarray, "images dim"], *, clusters: int, seed: int = 0) -> float:
    """How well the nearest neighbor predicts the cluster that k-means gives each image, in percent.

    k-means labels all rows, which are then divided at random into two halves. Each row of one half is given the cluster
    of the row of the other half with the highest cosine similarity.

    Args:
      h: any scale.
      clusters: 2 <= clusters <= images. Chance is 100 / clusters or less, so use the same number for all models.
      seed: of the initial centers and of the halves.

    Returns: accuracy, in 0..100.
    Raises: ValueError for a number of clusters out of range, or features that are not finite.
    Source: Lu et al. 2022, arXiv:2206.01251, section 3.2. Here the accuracy of one division into halves; the paper
      averages over growing training sets.
    """
    if not 2 <= clusters <= len(h):
        raise ValueError(f"clusters must be in 2 .. {len(h)}, the number of images, got {clusters}")
    check_finite("cluster_learnability", h)
    means = KMeans(clusters, n_init=1, random_state=seed)  # pyright: ignore[reportArgumentType]  also a number
    labels = means.fit_predict(h)
    asked, bank = np.array_split(np.random.default_rng(seed).permutation(len(h)), 2)
    _, rows = nearest(h[bank], h[asked], k=1)
    return 100.0 * float(np.mean(labels[bank][rows[:, 0]] == labels[asked]))


def clid(learnabilities: Sequence[float], dimensions: Sequence[float]) -> Float[np.ndarray, "models"]:
    """Learnability and expressiveness of several models' features, as one number for each model.

    Both are scaled to 0..1 over the models, then added. So the number depends on the set of models: with other models
    it changes. If all models have equal values, these scale to 0.

    Args:
      learnabilities: `cluster_learnability` of each model, on the same images with the same number of clusters.
      dimensions: `neighbors.two_nn` of each, in the same order.

    Returns: for each model a number in 0..2; higher is better.
    Raises: ValueError unless both have the same length, at least 2, and are finite.
    Source: Lu et al. 2022, arXiv:2206.01251, section 3.3.
    """
    if len(learnabilities) != len(dimensions) or len(dimensions) < 2:
        raise ValueError(
            "clid needs a learnability and a dimension for each of at least two models, got "
            f"{len(learnabilities)} learnabilities, {len(dimensions)} dimensions"
        )
    if not np.isfinite([learnabilities, dimensions]).all():
        raise ValueError(
            f"clid needs finite values, got {learnabilities} and {dimensions}; leave out the models "
            "whose values are not finite"
        )
    return minmax_scale(learnabilities) + minmax_scale(dimensions)
