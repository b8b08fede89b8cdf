"""What is kept of a retrieval: ranks in a file, and what its page shows."""

import csv
import io
import json
from collections.abc import Sequence
from typing import Any

from ssl_jax.data.inspection import pictures
from ssl_jax.data.sources import Source, spread
from ssl_jax.evaluation.neighbors import Neighbors, count
from ssl_jax.paths import AnyPath
from ssl_jax.report import display
from ssl_jax.report import retrieval as page
from ssl_jax.weights import Backbone
from ssl_jax.workdir import files

COLUMNS = ("query", "query_label", "rank", "name", "label", "similarity")
MOST_PICTURES = 1000  # on a page


def save(found: Neighbors, path: AnyPath) -> None:
    """Writes the ranks, whole or not at all. A label is empty where there is none.

    .csv: a row for each query and rank, with COLUMNS; ranks count from 1.
    .json: "k", "queries" (of each "name", "label", "in_gallery" and "neighbors", the most similar first), and where
    there are labels, "scores", in percent.
    """
    files.write(path, _json(found) if path.suffix == ".json" else _csv(found))


def _csv(found: Neighbors) -> str:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(COLUMNS)
    for query, label, neighbors in _rows(found):
        table.writerows(
            [query, label, rank, one["name"], one["label"], f"{one['similarity']:.6f}"]
            for rank, one in enumerate(neighbors, 1)
        )
    return text.getvalue()


def _json(found: Neighbors) -> str:
    queries = [
        {"name": name, "label": label, "in_gallery": bool(inside), "neighbors": neighbors}
        for (name, label, neighbors), inside in zip(_rows(found), found.in_gallery, strict=True)
    ]
    made: dict[str, Any] = {"k": found.indices.shape[1], "queries": queries}
    if found.scores:
        (precision,) = found.scores.precision.values()
        average = found.scores.mean_average_precision
        made["scores"] = dict(precision_at_k=precision, mean_average_precision=average, queries=found.scores.queries)
    return json.dumps(made, indent=2)


def _rows(found: Neighbors) -> list[tuple[str, str, list[dict[str, Any]]]]:
    """(query, its label, its neighbors)."""
    return [
        (
            found.queries[i],
            found.query_labels[i],
            [
                dict(name=name, index=int(index), label=label, similarity=float(similarity))
                for name, index, label, similarity in zip(
                    found.names[i], found.indices[i], found.labels[i], found.similarities[i], strict=True
                )
            ],
        )
        for i in range(len(found.queries))
    ]


def shown(
    found: Neighbors,
    backbone: Backbone,
    gallery: Source,
    queries: Source,
    *,
    image_size: tuple[int, int],
    file: str = "",
    bands: Sequence[int] = (),
    stretch: tuple[float, ...] | None = None,
    windows: str = "mean",
) -> page.Retrieval:
    """What the page shows: at most MOST_PICTURES pictures, so of many queries some at equal distances.

    Args:
      found: of `retrieve`, with this backbone, gallery and queries, and these `windows`.
      image_size: (height, width) that images were read at. file: of the weights.
      bands, stretch: how images are shown, see `report.display.check`.
    Raises: ValueError as `report.display.check`.
    """
    k = found.indices.shape[1]
    most = min(k, MOST_PICTURES)
    chosen = spread(len(found.queries), max(MOST_PICTURES // (most + 1), 1)).tolist()
    of_queries = pictures.read(queries, found.query_indices[chosen].tolist())
    of_gallery = pictures.read(gallery, found.indices[chosen, :most].ravel().tolist())
    options = dict(photos=backbone.dtype == "uint8")
    made = display.shown([*of_queries.values(), *of_gallery.values()], bands, stretch, **options)
    of_queries = dict(zip(of_queries, made[: len(of_queries)], strict=True))
    of_gallery = dict(zip(of_gallery, made[len(of_queries) :], strict=True))

    def neighbor(query: int, rank: int) -> page.Neighbor:
        label, sought = found.labels[query][rank], found.query_labels[query]
        return page.Neighbor(
            of_gallery.get(int(found.indices[query, rank])),
            found.names[query][rank],
            float(found.similarities[query, rank]),
            label,
            label == sought if label and sought else None,
        )

    scores = found.scores
    windowed = windows != "all" and gallery.image_of is not None
    return page.Retrieval(
        gallery={
            "name": gallery.name,
            "kind": type(gallery).__name__,
            "digest": gallery.digest(),
            "images": count(gallery, windows),
        },
        queried=queries.name,
        queries=[
            page.Query(
                of_queries.get(int(found.query_indices[i])),
                found.queries[i],
                found.query_labels[i],
                bool(found.in_gallery[i]),
                [neighbor(i, rank) for rank in range(most)],
            )
            for i in chosen
        ],
        total=len(found.queries),
        k=k,
        backbone={"file": file, **backbone.described(image_size)},
        precision=scores and scores.precision[k],
        average_precision=scores and scores.mean_average_precision,
        scored=scores.queries if scores else 0,
        note="Of a large image that is read by windows, its first window is shown." if windowed else "",
    )
