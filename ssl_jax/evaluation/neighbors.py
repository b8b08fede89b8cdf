"""The images of a gallery that are most similar to given ones.

found = retrieve(backbone, data.folder("GALLERY"), data.folder("QUERIES"), k=5)
found.queries[0], found.names[0], found.similarities[0]
"""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, Int

from ssl_jax.data import Items, as_source
from ssl_jax.data.sources import Source
from ssl_jax.evaluation import retrieval, search
from ssl_jax.evaluation.embedding import named_features
from ssl_jax.evaluation.features import Extracted
from ssl_jax.evaluation.retrieval import Retrieval
from ssl_jax.ops import check_finite
from ssl_jax.weights import Backbone


@dataclasses.dataclass(frozen=True)
class Neighbors:
    """The k images of a gallery most similar to each query, the most similar first. A query that cannot be decoded has
    no row.

    queries: names, as `Source.image_name` has them.
    names: of the k images of each query.
    indices: the same, in the gallery.
    similarities: the same, cosines in -1..1.
    query_indices: of the queries, in their source.
    query_labels, labels: names of classes; "" for an image without a label. A query that is in the gallery has the
      label that it has there.
    in_gallery: whether a query is an image of the gallery, too. It is never its own neighbor.
    scores: of the queries whose class the gallery has, over all its labelled images; None if there are none.
    """

    queries: list[str]
    names: list[list[str]]
    indices: Int[np.ndarray, "queries k"]
    similarities: Float[np.ndarray, "queries k"]
    query_indices: Int[np.ndarray, " queries"]
    query_labels: list[str]
    labels: list[list[str]]
    in_gallery: Bool[np.ndarray, " queries"]
    scores: Retrieval | None


def retrieve(
    backbone: Backbone,
    gallery: Source | Items,
    queries: Source | Items,
    k: int = 10,
    *,
    image_size: tuple[int, int] | None = None,
    windows: str = "mean",
) -> Neighbors:
    """Ranks the gallery for each query by the cosine similarity of frozen features.

    An image of the same file, or at the same place of the same data set, is the query itself and left out of its ranks.
    A copy in another file is not.

    Args:
      gallery, queries: as `data.as_source` takes them.
      k: how many images of the gallery to give for each query.
      image_size, windows: see `embed`.
    Raises: ValueError for a k below 1 or above the number of images that a query can be compared with; ImagesError if
      no image of the gallery, or no query, can be decoded; otherwise as `embed`.
    """
    one_set = queries is gallery
    gallery = as_source(gallery)
    queries = gallery if one_set else as_source(queries)
    _check(k, count(gallery, windows), gallery.name)
    sought_names, sought = named_features(backbone, queries, image_size=image_size, windows=windows)
    names, held = (
        (sought_names, sought) if one_set else named_features(backbone, gallery, image_size=image_size, windows=windows)
    )
    own = np.arange(len(names)) if one_set else own_rows(queries, sought, gallery, held)
    _check(k, len(names) - bool((own >= 0).any()), gallery.name)
    rows, similarities = nearest(sought.features, held.features, k, own)
    labels = _labels(gallery, held)
    query_labels = [
        (labels[row] if row >= 0 else "") or label for row, label in zip(own, _labels(queries, sought), strict=True)
    ]
    return Neighbors(
        queries=sought_names,
        names=[[names[row] for row in found] for found in rows],
        indices=held.index[rows],
        similarities=similarities,
        query_indices=sought.index,
        query_labels=query_labels,
        labels=[[labels[row] for row in found] for found in rows],
        in_gallery=own >= 0,
        scores=_scores(sought.features, query_labels, held.features, labels, own, k),
    )


def nearest(
    query_features: Float[np.ndarray, "queries dim"],
    gallery_features: Float[np.ndarray, "gallery dim"],
    k: int,
    own: Int[np.ndarray, " queries"] | None = None,
) -> tuple[Int[np.ndarray, "queries k"], Float[np.ndarray, "queries k"]]:
    """(rows of the gallery, cosine similarities) of the k most similar to each query, the most similar first.

    Of equally similar rows the first comes first.

    Args:
      query_features, gallery_features: finite, any scale; a row of zeros has the similarity 0 to all.
      k: at most the number of rows that a query is compared with.
      own: the row of each query that it is not compared with; -1 for none.
    Raises: ValueError for features that are not finite.
    """
    check_finite("queries", query_features)
    check_finite("gallery", gallery_features)
    own = np.full(len(query_features), -1) if own is None else own
    similarities, rows = search.nearest(gallery_features, query_features, k=k + bool((own >= 0).any()))
    kept = rows != own[:, None]
    kept[kept.all(axis=1), k:] = False  # where its own row is not among them, the last is one too many
    return rows[kept].reshape(-1, k), np.clip(similarities[kept].reshape(-1, k), -1.0, 1.0)


def own_rows(queries: Source, sought: Extracted, gallery: Source, held: Extracted) -> Int[np.ndarray, " queries"]:
    """Where each query is in the gallery, as rows of `held`: the image of the same file; for images without a file of
    their own, the image of the same index, if the two are one data set. -1 for a query that is not there."""
    if len(sought.index) and queries.origin(int(sought.index[0])) is not None:
        rows = {gallery.origin(int(index)): row for row, index in enumerate(held.index)}
        found = [rows.get(queries.origin(int(index)), -1) for index in sought.index]
    elif (queries.name, len(queries), queries.digest()) == (gallery.name, len(gallery), gallery.digest()):
        at = {int(index): row for row, index in enumerate(held.index)}
        found = [at.get(int(index), -1) for index in sought.index]
    else:
        found = [-1] * len(sought.index)
    return np.array(found, np.int64)


def _check(k: int, most: int, name: str) -> None:
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    if k > most:
        raise ValueError(
            f"k={k} is more than the {most:,} images of {name} that a query can be compared with; give at most {most}"
        )


def count(source: Source, windows: str) -> int:
    """How many images it has, decodable or not; where `windows` is "mean", those that the windows are of."""
    return len(source) if source.image_of is None or windows == "all" else len(np.unique(source.image_of))


def _labels(source: Source, found: Extracted) -> list[str]:
    """The class of each image by name; "" for an image without one."""
    return [source.class_names[label] if label >= 0 and source.class_names else "" for label in found.labels]


def _scores(
    query_features: np.ndarray,
    query_labels: list[str],
    features: np.ndarray,
    labels: list[str],
    own: Int[np.ndarray, " queries"],
    k: int,
) -> Retrieval | None:
    code = {name: number for number, name in enumerate(sorted(set(labels) - {""}))}
    sought = np.array([code.get(name, -1) for name in query_labels])
    held = np.array([code.get(name, -1) for name in labels])
    itself = (own >= 0) & (held[own] == sought)
    others = np.bincount(held[held >= 0], minlength=len(code) + 1)[sought] - itself
    counted = (sought >= 0) & (others > 0)  # whose class other images of the gallery have
    if not counted.any():
        return None
    labeled = held >= 0
    row = np.where(labeled, np.cumsum(labeled) - 1, -1)  # among the labelled
    return retrieval.retrieve(
        query_features[counted],
        sought[counted],
        features[labeled],
        held[labeled],
        num_classes=len(code),
        k=(k,),
        own=np.where(own[counted] >= 0, row[own[counted]], -1),
    )
