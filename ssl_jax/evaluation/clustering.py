"""How well clusters of frozen features, found without labels, agree with the classes."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, Integer
from scipy.optimize import linear_sum_assignment
from sklearn import metrics
from sklearn.cluster import KMeans
from sklearn.preprocessing import normalize

from ssl_jax.evaluation._checks import check_labeled, check_same_dim
from ssl_jax.ops import check_finite

# k-means runs this often, and the run with the least inertia counts. Each run has at most this many iterations.
RESTARTS, ITERATIONS = 10, 100


class Agreement(NamedTuple):
    """Agreement of clusters with classes. All four are 100 if they are the same up to their names.

    accuracy: percent of the images whose cluster is matched to their class. Clusters and classes are matched one to one
      so that it is highest (Hungarian method); images of clusters or classes left over count as wrong.
    nmi: normalized mutual information 2 I / (H(clusters) + H(classes)) in percent. It grows with the number of clusters
      even by chance.
    ami, ari: adjusted mutual information and adjusted Rand index. Chance gives 0, and values below 0 are possible.
    """

    accuracy: float
    nmi: float
    ami: float
    ari: float


def kmeans_agreement(
    train_features: Float[np.ndarray, "train dim"],
    test_features: Float[np.ndarray, "test dim"],
    test_labels: Integer[np.ndarray, "test"],
    *,
    num_classes: int,
    num_clusters: int | None = None,
    seed: int = 0,
) -> dict[str, Agreement]:
    """Agreement of k-means with the classes of the test images, in two ways that papers do not always tell apart.

    Returns: {"inductive": clusters of the train images, each test image is given to the nearest center;
      "transductive": clusters of the test images themselves}. Train labels are not used.

    Args:
      train_features, test_features: finite, any scale: see `kmeans`.
      test_labels: in 0 .. num_classes - 1; they only serve to measure the agreement.
      num_clusters: at most the number of images of either set; None for as many as there are classes.
      seed: of the initial centers.

    Raises: ValueError for too few images, negative labels, features that are not finite.
    Source: Ji et al. 2018, arXiv:1807.06653, section 4.1, for the accuracy; Vinh et al. 2010, JMLR 11, for AMI.
    """
    check_finite("train", train_features)
    check_labeled("test", test_features, test_labels, num_classes)
    check_same_dim(train_features, test_features)
    k = num_classes if num_clusters is None else num_clusters
    return {
        "inductive": agreement(kmeans(train_features, test_features, num_clusters=k, seed=seed), test_labels),
        "transductive": agreement(kmeans(test_features, test_features, num_clusters=k, seed=seed), test_labels),
    }


def kmeans(
    fitted: Float[np.ndarray, "fitted dim"],
    assigned: Float[np.ndarray, "assigned dim"],
    *,
    num_clusters: int,
    seed: int = 0,
) -> Int[np.ndarray, "assigned"]:
    """The cluster of each row of `assigned`, in 0 .. num_clusters - 1, by the centers of `fitted`.

    Rows are scaled to unit length, so the nearest center is roughly the one with the highest cosine similarity. Only
    roughly, because centers are plain means and not scaled again. k-means++ starts RESTARTS runs; the run with the
    least inertia counts.

    Raises: ValueError if num_clusters is not from 1 to the number of rows of `fitted`.
    """
    if not 1 <= num_clusters <= len(fitted):
        raise ValueError(f"num_clusters={num_clusters} must be in 1..{len(fitted)}, the number of images to cluster")
    options: dict[str, Any] = dict(n_init=RESTARTS, max_iter=ITERATIONS, random_state=seed)
    found: Any = KMeans(num_clusters, **options).fit(normalize(fitted))
    return found.predict(normalize(assigned))


def agreement(clusters: Integer[np.ndarray, "images"], labels: Integer[np.ndarray, "images"]) -> Agreement:
    """Agreement of any clusters with any classes. How many there are of each, and their numbers, does not matter."""
    if len(clusters) != len(labels) or len(labels) == 0:
        raise ValueError(f"{len(clusters)} clusters and {len(labels)} labels; give one of each for every image")
    counts = metrics.cluster.contingency_matrix(labels, clusters)
    matched = counts[linear_sum_assignment(counts, maximize=True)].sum()
    return Agreement(
        accuracy=100.0 * float(matched) / len(labels),
        nmi=100.0 * float(metrics.normalized_mutual_info_score(labels, clusters, average_method="arithmetic")),
        ami=100.0 * float(metrics.adjusted_mutual_info_score(labels, clusters, average_method="arithmetic")),
        ari=100.0 * float(metrics.adjusted_rand_score(labels, clusters)),
    )
