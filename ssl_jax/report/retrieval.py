"""The page about a retrieval: each query image, and the images of a gallery that are most similar to it."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from ssl_jax.report import backbone, images, names, templates

Picture = UInt8[np.ndarray, "height width shown"]


@dataclasses.dataclass(frozen=True)
class Neighbor:
    """picture: None if it could not be read again. label: "" if it has none. agrees: whether its label is the query's;
    None if either has none."""

    picture: Picture | None
    name: str
    similarity: float
    label: str
    agrees: bool | None


@dataclasses.dataclass(frozen=True)
class Query:
    """neighbors: the most similar first. in_gallery: whether it is an image of the gallery itself."""

    picture: Picture | None
    name: str
    label: str
    in_gallery: bool
    neighbors: Sequence[Neighbor]


@dataclasses.dataclass(frozen=True)
class Retrieval:
    """queries: those that are shown, of `total`. k: the neighbors of each, of which a query may show fewer.

    precision, average_precision: in percent, means over the `scored` queries whose class the gallery has; None without
    labels. backbone: see `Backbone.described`. note: what else is to be said of the pictures; "" if nothing.
    """

    gallery: Mapping[str, Any]
    queried: str
    queries: Sequence[Query]
    total: int
    k: int
    backbone: Mapping[str, Any]
    precision: float | None = None
    average_precision: float | None = None
    scored: int = 0
    note: str = ""


def render(found: Retrieval) -> str:
    """The page as HTML."""
    shown = found.queries
    pictures = [one.picture for query in shown for one in (query, *query.neighbors) if one.picture is not None]
    return templates.render(
        "retrieval.html.jinja",
        title=_title(found),
        lead=_lead(found),
        facts=_facts(found),
        found=found,
        queries=[(query, _uri(query.picture), [(n, _uri(n.picture)) for n in query.neighbors]) for query in shown],
        notes=" ".join(_notes(found)),
        pixelated=images.css_class(max(pictures, key=lambda made: max(made.shape[:2]))[None]) if pictures else "",
    )


def _title(found: Retrieval) -> str:
    where = names.measured(found.gallery) or "the gallery"
    if found.total == 1:
        return f"Like {names.short(found.queries[0].name, 60)} in {where}"
    return f"Nearest images in {where}"


def _lead(found: Retrieval) -> str:
    images_of = "image" if found.k == 1 else f"{found.k:,} images"
    if found.precision is None or found.average_precision is None:
        to = "the query" if found.total == 1 else f"each of {found.total:,} queries"
        return f"The {images_of} most similar to {to}, by the cosine similarity of frozen features."
    to, over = ("the", "") if found.total == 1 else ("a", f", a mean over {found.scored:,} queries")
    return (
        f"Of the {images_of} most similar to {to} query, {found.precision:.1f}% are of its class{over}. "
        f"Over the whole gallery the mean average precision is {found.average_precision:.1f}%."
    )


def _notes(found: Retrieval) -> Iterator[str]:
    queries, most = found.queries, max((len(query.neighbors) for query in found.queries), default=0)
    yield "Left and outlined, a query; beside it images of the gallery, the most similar first, each with its cosine"
    yield "similarity."
    if any(neighbor.agrees is not None for query in queries for neighbor in query.neighbors):
        yield "A dashed frame with ✕ marks another class."
    if inside := sum(query.in_gallery for query in queries):
        those = "The query is" if found.total == 1 else f"{inside:,} of these queries {'is' if inside == 1 else 'are'}"
        yield f"{those} in the gallery, too; no image is its own neighbor."
    if len(queries) < found.total:
        yield f"Shown are {len(queries):,} of {found.total:,} queries, at equal distances; --out ranks.csv has all."
    if most < found.k:
        yield f"Shown are the first {most:,} of {found.k:,} neighbors; --out ranks.csv has all."
    if found.note:
        yield found.note


def _facts(found: Retrieval) -> list[tuple[str, str]]:
    gallery = found.gallery
    return [
        *backbone.facts(found.backbone),
        ("Gallery", f"{gallery['images']:,} images of {gallery['name']}, digest {gallery['digest']}"),
        ("Queries", f"{found.total:,} of {found.queried}" if found.total > 1 else found.queried),
    ]


def _uri(picture: Picture | None) -> str:
    return "" if picture is None else images.data_uri(picture, exact=False)
