"""Retrieval: whether the images most similar to a query are of its class."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Integer
from sklearn.preprocessing import normalize

from ssl_jax.evaluation._checks import check_labeled, check_same_dim

# Similarities held in memory at a time: 64 MB.
SIMILARITIES = 2**24


class Retrieval(NamedTuple):
    """mean_average_precision: in percent.
    recall: for each k the percent of queries with an image of their class among the k most similar.
    precision: for each k the percent of images of the query's class among the k most similar, a mean over the queries.
    queries: how many were counted. A query counts if the gallery has an image of its class.
    """

    mean_average_precision: float
    recall: dict[int, float]
    precision: dict[int, float]
    queries: int


def retrieve(
    query_features: Float[np.ndarray, "queries dim"],
    query_labels: Integer[np.ndarray, "queries"],
    gallery_features: Float[np.ndarray, "gallery dim"] | None = None,
    gallery_labels: Integer[np.ndarray, "gallery"] | None = None,
    *,
    num_classes: int,
    k: Sequence[int] = (1, 5, 10),
    own: Integer[np.ndarray, "queries"] | None = None,
) -> Retrieval:
    """Ranks the whole gallery by cosine similarity to each query. Images with the query's label are relevant.

    At each relevant image, the precision is the share of relevant images among all that are ranked no lower. A query's
    average precision is the mean of these. Equally similar images share the last of their ranks. So features that have
    collapsed to a point score their class's share of the gallery, and a recall and a precision of 0.

    Besides the features, memory holds SIMILARITIES numbers, or one row of the gallery's size if that is more.

    Args:
      query_features, gallery_features: finite, any scale. Without a gallery, each query is compared with all other
        queries (leave one out).
      query_labels, gallery_labels: in 0 .. num_classes - 1.
      k: for recall and precision: numbers of most similar images to look at, each at least 1.
      own: of each query the row of the gallery that is the same image, which the query is not compared with; -1 for a
        query that is not in the gallery. None: no query is.

    Raises: ValueError for a gallery without labels or the reverse, no query whose class is in the gallery, k out of
      range, negative labels, features that are not finite, `own` without a gallery.
    Source: average precision as in scikit-learn's average_precision_score; recall as in metric learning, Oh Song et
      al. 2016, arXiv:1511.06452, section 6.
    """
    check_labeled("queries", query_features, query_labels, num_classes)
    if (gallery_features is None) != (gallery_labels is None):
        raise ValueError("a gallery needs both features and labels; give neither to leave one query out at a time")
    if not k or min(k) < 1:
        raise ValueError(f"k must be one or more numbers of at least 1, got {k}")
    if own is not None and (gallery_features is None or own.shape != query_labels.shape):
        raise ValueError(f"own says where each of {len(query_labels)} queries is in a gallery, got {own.shape} rows")
    if gallery_features is None or gallery_labels is None:
        gallery_features, gallery_labels, own = query_features, query_labels, np.arange(len(query_labels))
    own = np.full(len(query_labels), -1) if own is None else own
    check_labeled("gallery", gallery_features, gallery_labels, num_classes)
    check_same_dim(gallery_features, query_features)

    # Sorted by class, so that the relevant images are a slice.
    order = np.argsort(gallery_labels, kind="stable")
    ends = np.cumsum(np.bincount(gallery_labels, minlength=num_classes))
    starts = np.concatenate([[0], ends[:-1]])
    relevant = (ends - starts)[query_labels] - ((own >= 0) & (gallery_labels[own] == query_labels))
    counted = np.flatnonzero(relevant > 0)
    if len(counted) == 0:
        raise ValueError("no query has an image of its class in the gallery; give a gallery of the same classes")
    place = np.argsort(order)  # where each image of the gallery is in that order

    queries: Any = normalize(query_features)
    every: Any = normalize(gallery_features)
    gallery = every[order]
    precisions, ranks = np.empty(len(counted)), np.empty(len(counted), np.int64)
    found = np.empty((len(counted), len(k)), np.int64)  # relevant images among the k most similar
    rows = max(SIMILARITIES // len(gallery), 1)
    for begin in range(0, len(counted), rows):
        for i, similarities in enumerate(queries[counted[begin : begin + rows]] @ gallery.T, begin):
            query = counted[i]
            label = query_labels[query]
            if own[query] >= 0:
                similarities[place[own[query]]] = -np.inf  # the lowest, which is then cut off
            hits = np.sort(similarities[starts[label] : ends[label]])[-relevant[query] :]
            # For each hit, the number of images that are at least as similar: among all, and among those of its class.
            among_all = len(gallery) - np.searchsorted(np.sort(similarities), hits)
            among_hits = len(hits) - np.searchsorted(hits, hits)
            precisions[i], ranks[i] = np.mean(among_hits / among_all), among_all[-1]
            found[i] = [np.sum(among_all <= count) for count in k]
    recall = {count: 100.0 * float(np.mean(ranks <= count)) for count in k}
    precision = {count: 100.0 * float(np.mean(found[:, j])) / count for j, count in enumerate(k)}
    return Retrieval(100.0 * float(np.mean(precisions)), recall, precision, len(counted))
