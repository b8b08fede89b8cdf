"""The embeddings laid out in the plane."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits

from ssl_jax.report.images import class_name

# Fewer have no neighborhoods to lay out; more take minutes.
FEWEST, MOST = 10, 2000
WIDTH, HEIGHT, MARGIN = 1000, 760, 30  # of the map, in its own units


@dataclasses.dataclass(frozen=True)
class Mark:
    """A shape around the origin, some 14 units wide, as an SVG path."""

    d: str
    hollow: bool = False  # drawn as a line, not filled


# One for each class that has a style of its own (the page has as many colors), so that color is not needed.
MARKS = (
    Mark("M-6 0A6 6 0 1 0 6 0A6 6 0 1 0-6 0Z"),  # disc
    Mark("M-5.4-5.4H5.4V5.4H-5.4Z"),  # square
    Mark("M0-7.4 6.8 5H-6.8Z"),  # triangle
    Mark("M0-7.6 7.6 0 0 7.6-7.6 0Z"),  # diamond
    Mark("M-7 0H7M0-7V7", hollow=True),  # plus
    Mark("M-5.6 0A5.6 5.6 0 1 0 5.6 0A5.6 5.6 0 1 0-5.6 0Z", hollow=True),  # ring
    Mark("M-5.4-5.4 5.4 5.4M-5.4 5.4 5.4-5.4", hollow=True),  # cross
    Mark("M0 7 6.4-4.6H-6.4Z", hollow=True),  # open triangle, point down
    Mark("M-5-5H5V5H-5Z", hollow=True),  # open square
    Mark("M0-7V7M-6.1-3.5 6.1 3.5M-6.1 3.5 6.1-3.5", hollow=True),  # asterisk
)


@dataclasses.dataclass(frozen=True)
class Group:
    """The points of one class: `style` counts from 0, None is that of all other or unlabeled images."""

    name: str
    style: int | None
    points: list[tuple[int, int]]
    label: tuple[int, int]  # where the class's number is drawn


def layout(embeddings: Mapping[str, np.ndarray]) -> list[Group]:
    """The classes' points on a map of WIDTH by HEIGHT, the others first; [] for too few images.

    t-SNE by cosine distance, the same for the same features. Not UMAP: for 2,000 points it takes longer, with
    compiling, and would bring numba along.
    """
    if not embeddings or len(embeddings["features"]) < FEWEST:
        return []
    features, labels = embeddings["features"][:MOST], embeddings["labels"][:MOST]
    points = _fit(_tsne(features))
    classes, counts = np.unique(labels[labels >= 0], return_counts=True)
    styled = np.sort(classes[np.argsort(-counts, kind="stable")][: len(MARKS)])
    groups = []
    rest = ~np.isin(labels, styled)
    if rest.any():
        groups.append(Group(_name_of_rest(labels[rest]), None, [_pair(point) for point in points[rest]], (0, 0)))
    taken: list[Float[np.ndarray, "2"]] = []
    for style, label in enumerate(styled):
        mine = points[labels == label]
        taken.append(_label_position(mine, taken))
        name = class_name(int(label), embeddings["class_names"])
        groups.append(Group(name, style, [_pair(point) for point in mine], _pair(taken[-1])))
    return groups


def _name_of_rest(labels: Int[np.ndarray, " rest"]) -> str:
    kinds = {"other classes": (labels >= 0).any(), "unlabeled": (labels < 0).any()}
    return " and ".join(kind for kind, some in kinds.items() if some)


def _tsne(features: Float[np.ndarray, "n dim"]) -> Float[np.ndarray, "n 2"]:
    features = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    # A collapsed network's embeddings have no principal axes, and scikit-learn crashes on an initialization from them.
    spread = features.shape[1] > 1 and features.std(axis=0).max() > 1e-6
    tsne = TSNE(
        init="pca" if spread else "random",
        metric="cosine",
        perplexity=min(30.0, (len(features) - 1) / 3),
        random_state=0,
    )
    # Its threads wait for each other by spinning: on two busy cores one thread is three times as fast as two.
    with threadpool_limits(1):
        return tsne.fit_transform(features)


def _fit(points: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n 2"]:
    """Turned so that the longer extent lies across, scaled to the map, its aspect kept."""
    points = points - points.mean(axis=0)
    points = points @ np.linalg.svd(points, full_matrices=False)[2].T
    points -= points.min(axis=0)
    room = np.array([WIDTH - 2 * MARGIN, HEIGHT - 2 * MARGIN])
    extent = np.maximum(points.max(axis=0), 1e-9)
    scale = (room / extent).min()
    return points * scale + MARGIN + (room - extent * scale) / 2


def _label_position(
    points: Float[np.ndarray, "n 2"], taken: Sequence[Float[np.ndarray, "2"]], apart: float = 60.0
) -> Float[np.ndarray, "2"]:
    """The densest point that is not too near the positions already taken, or the densest of all."""
    squares = ((points[:, None] - points[None]) ** 2).sum(axis=2)
    order = np.argsort(-(squares < 50.0**2).sum(axis=1), kind="stable")
    free = [i for i in order if all(np.hypot(*(points[i] - other)) >= apart for other in taken)]
    return points[free[0] if free else order[0]]


def _pair(point: Float[np.ndarray, "2"]) -> tuple[int, int]:
    return round(float(point[0])), round(float(point[1]))
