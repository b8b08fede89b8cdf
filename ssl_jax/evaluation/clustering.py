"""How well clusters of frozen features, found without labels, agree with the classes."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Integer
from scipy.optimize import linear_sum_assignment
from sklearn import metrics
from sklearn.cluster import KMeans
from sklearn.preprocessing import normalize

from ssl_jax.evaluation._checks import check_finite, check_labeled, check_same_dim

# As many restarts, of which that of least inertia counts, and iterations of each at most.
RESTARTS, ITERATIONS = 10, 100


class Agreement(NamedTuple):
    """All 100 where clusters and classes are the same up to their names.

    accuracy: percent of the images whose cluster's class is theirs, clusters and classes matched one to one as suits
      best (Hungarian method); images of clusters or classes left over count as wrong.
    nmi: normalized mutual information 2 I / (H(clusters) + H(classes)) in percent. Grows with the number of clusters
      even by chance.
    ami, ari: mutual information and the Rand index, both adjusted: 0 by chance, below it possible.
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

    Returns: {"inductive": clusters of the train images, whose nearest center each test image is given to;
      "transductive": clusters of the test images themselves}. Train labels take no part.

    Args:
      train_features, test_features: finite, any scale: see `kmeans`.
      test_labels: in 0 .. num_classes - 1; serve to count the agreement, for nothing else.
      num_clusters: at most the images of either set; None for as many as there are classes.
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

    Rows are scaled to unit length, so that the nearest is about the most similar: the centers are plain means, which
    are not scaled again. Of RESTARTS runs from k-means++ the one of least inertia counts.

    Raises: ValueError if num_clusters is not in 1, ..., rows of `fitted`.
    """
    if not 1 <= num_clusters <= len(fitted):
        raise ValueError(f"num_clusters {num_clusters} must be from 1 to the {len(fitted)} images to cluster")
    found = KMeans(num_clusters, n_init=RESTARTS, max_iter=ITERATIONS, random_state=seed).fit(normalize(fitted))
    return found.predict(normalize(assigned))


def agreement(clusters: Integer[np.ndarray, "images"], labels: Integer[np.ndarray, "images"]) -> Agreement:
    """Agreement of any clusters with any classes; names and numbers of either do not matter."""
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
