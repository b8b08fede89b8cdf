"""The embeddings laid out in the plane."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits

from ssl_jax.report.images import SHEET_COLUMNS, class_name
from ssl_jax.report.palette import STYLES

# Numbers of images. Fewer have no neighborhoods to lay out; more take minutes.
FEWEST, MOST = 10, 2000
WIDTH, HEIGHT, MARGIN = 1000, 760, 30  # of the map, in its own units
# Of t-SNE. Its divergence is then 6 percent above that after the usual 1000 for 2000 images, in half of the time.
ITERATIONS = 500


@dataclasses.dataclass(frozen=True)
class Group:
    """The points of one class. `style`: an index into STYLES; None for the group of all other and unlabeled images."""

    name: str
    style: int | None
    points: list[tuple[int, int]]
    images: list[int]  # rows of the embeddings, in the order of the points
    label: tuple[int, int]  # where the class's number is drawn


def layout(embeddings: Mapping[str, np.ndarray]) -> list[Group]:
    """The classes' points on a map of WIDTH by HEIGHT, all other images first; [] for too few images.

    By t-SNE with cosine distance: the same features give the same map. Not by UMAP: for 2,000 points it takes longer,
    with compiling, and would bring numba along.
    """
    if not embeddings or len(embeddings["features"]) < FEWEST:
        return []
    features, labels = embeddings["features"][:MOST], embeddings["labels"][:MOST]
    points = _fit(_tsne(features))
    classes, counts = np.unique(labels[labels >= 0], return_counts=True)
    styled = np.sort(classes[np.argsort(-counts, kind="stable")][: len(STYLES)])
    groups = []
    rest = ~np.isin(labels, styled)
    if rest.any():
        groups.append(
            Group(_name_of_rest(labels[rest]), None, _pairs(points[rest]), np.flatnonzero(rest).tolist(), (0, 0))
        )
    taken: list[Float[np.ndarray, "2"]] = []
    for style, label in enumerate(styled):
        mine = points[labels == label]
        taken.append(_label_position(mine, taken))
        name = class_name(int(label), embeddings["class_names"])
        groups.append(Group(name, style, _pairs(mine), np.flatnonzero(labels == label).tolist(), _pair(taken[-1])))
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
        max_iter=ITERATIONS,
        random_state=0,
    )
    # Its threads wait for each other by spinning. On two busy cores, one thread is three times as fast as two.
    with threadpool_limits(1):
        return tsne.fit_transform(features)


def _fit(points: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n 2"]:
    """Turns the points so that the longer extent lies across, and scales them to the map; the aspect is kept."""
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
    """The densest point that is not too near the positions already taken; if there is none, the densest of all."""
    squares = ((points[:, None] - points[None]) ** 2).sum(axis=2)
    order = np.argsort(-(squares < 50.0**2).sum(axis=1), kind="stable")
    free = [i for i in order if all(np.hypot(*(points[i] - other)) >= apart for other in taken)]
    return points[free[0] if free else order[0]]


@dataclasses.dataclass(frozen=True)
class Thumbnail:
    """What is shown while the pointer is on a point: the point's place, and its image's place on images.sheet.

    left, top: the point's place in percent of the map. column, row: the image's place on the sheet.
    away: where the image opens, so that it stays on the map: "r" to the left, for points at the right; "t" below, for
    points at the top; "rt" for both; "" for neither.
    """

    left: float
    top: float
    column: int
    row: int
    away: str


def thumbnails(groups: Sequence[Group]) -> list[Thumbnail]:
    return [
        Thumbnail(
            round(100 * x / WIDTH, 1),
            round(100 * y / HEIGHT, 1),
            image % SHEET_COLUMNS,
            image // SHEET_COLUMNS,
            ("r" if x > WIDTH / 2 else "") + ("t" if y < HEIGHT / 2 else ""),
        )
        for group in groups
        for (x, y), image in zip(group.points, group.images, strict=True)
    ]


def _pairs(points: Float[np.ndarray, "n 2"]) -> list[tuple[int, int]]:
    return [_pair(point) for point in points]


def _pair(point: Float[np.ndarray, "2"]) -> tuple[int, int]:
    return round(float(point[0])), round(float(point[1]))
