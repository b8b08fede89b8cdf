"""Images as data URIs, and the galleries made of them."""

import base64
import dataclasses
from collections.abc import Mapping, Sequence

import cv2
import numpy as np
from jaxtyping import Float, Int, UInt8

from ssl_jax.data.inspection.pictures import shown_bands

# Larger images are shrunk, so that a page of a hundred of them stays below a few MB.
LARGEST_SIDE = 96
SHEET_SIDE, SHEET_COLUMNS = 32, 50  # of the thumbnails on one sheet
NEIGHBORS, QUERIES = 8, 10
SMALL = 64  # images below it keep sharp pixels when scaled up
WEBP = (cv2.IMWRITE_WEBP_QUALITY, 80)


def data_uri(
    image: UInt8[np.ndarray, "height width channels"], largest_side: int = LARGEST_SIDE, *, exact: bool = True
) -> str:
    """A data URI: the image, made `displayable`, as a PNG. Its sides are shrunk to at most `largest_side`. exact: if
    not, as WebP if it is no small one, which loses a little and takes a fifth of the room."""
    image = displayable(image)
    scale = largest_side / max(image.shape[:2])
    if scale < 1:
        height, width = (max(round(side * scale), 1) for side in image.shape[:2])
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA).reshape(height, width, -1)
    stored = cv2.cvtColor(image, cv2.COLOR_RGB2BGR) if image.shape[2] == 3 else image
    if exact or max(image.shape[:2]) < SMALL:
        return _uri("png", stored)
    return _uri("webp", stored if image.shape[2] == 3 else cv2.cvtColor(image, cv2.COLOR_GRAY2BGR), WEBP)


def sheet(images: UInt8[np.ndarray, "n height width channels"]) -> str:
    """A data URI of all images side by side, each as a square of SHEET_SIDE pixels, in rows of SHEET_COLUMNS.

    As WebP, which loses a little: two thousand images stay below a megabyte. As PNG they take three.
    """
    rows = -(-len(images) // SHEET_COLUMNS)
    made = np.zeros((rows, SHEET_SIDE, SHEET_COLUMNS, SHEET_SIDE, 3), np.uint8)
    scale = SHEET_SIDE / max(images.shape[1:3])
    height, width = (max(round(side * scale), 1) for side in images.shape[1:3])
    top, left = (SHEET_SIDE - height) // 2, (SHEET_SIDE - width) // 2
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST
    for i, image in enumerate(images):
        small = cv2.resize(displayable(image), (width, height), interpolation=interpolation).reshape(height, width, -1)
        row, column = divmod(i, SHEET_COLUMNS)
        made[row, top : top + height, column, left : left + width] = small[..., ::-1]  # as OpenCV wants them: BGR
    pixels = made.reshape(rows * SHEET_SIDE, SHEET_COLUMNS * SHEET_SIDE, 3)
    return _uri("webp", pixels, WEBP)


def displayable(image: UInt8[np.ndarray, "height width channels"]) -> UInt8[np.ndarray, "height width shown"]:
    """The image if it has 1 or 3 channels, else its `shown_bands`."""
    return image if image.shape[2] in (1, 3) else np.ascontiguousarray(image[..., shown_bands(image.shape[2])])


def css_class(images: np.ndarray | None) -> str:
    """The CSS class for images of this size: small ones keep sharp pixels when scaled up."""
    return " pixelated" if images is not None and max(images.shape[1:3]) < SMALL else ""


def view_gallery(views: Mapping[str, np.ndarray]) -> list[tuple[str, list[str]]]:
    """(original, [view, ...]) of each image, as data URIs."""
    if not views:
        return []
    pairs = zip(views["original"], views["views"], strict=True)
    return [(data_uri(original), [data_uri(view) for view in made]) for original, made in pairs]


def picture_rows(pictures: Mapping[str, np.ndarray]) -> list[tuple[str, str, list[str]]]:
    """(title, CSS class, [image, ...]) of each row, as data URIs."""
    return [(title, css_class(made), [data_uri(image) for image in made]) for title, made in pictures.items()]


@dataclasses.dataclass(frozen=True)
class Neighbor:
    image: str  # data URI
    name: str  # of its class; "" if unlabeled
    agrees: bool | None  # with the query's class; None if either is unlabeled


@dataclasses.dataclass(frozen=True)
class Query:
    image: str
    name: str
    neighbors: list[Neighbor]


def neighbor_gallery(embeddings: Mapping[str, np.ndarray]) -> list[Query]:
    """For at most `QUERIES` classes, the class's first image and its most similar other images, best first.

    Without labels, the first images of all. No image is picked by how it looks.
    """
    if not embeddings or len(embeddings["images"]) < 2:
        return []
    images, labels, class_names = embeddings["images"], embeddings["labels"].tolist(), embeddings["class_names"]
    return [
        Query(
            data_uri(images[query]),
            class_name(labels[query], class_names),
            [
                Neighbor(
                    data_uri(images[i]),
                    class_name(labels[i], class_names),
                    None if min(labels[i], labels[query]) < 0 else labels[i] == labels[query],
                )
                for i in nearest
            ],
        )
        for query, nearest in neighbors(embeddings)
    ]


def neighbors(embeddings: Mapping[str, np.ndarray]) -> list[tuple[int, list[int]]]:
    """(image, its most similar other images, best first) of each query in the gallery. Images are row numbers."""
    features = embeddings["features"]
    chosen = _queries(embeddings["labels"])
    similarity = cosine(features, features[chosen])
    similarity[chosen, np.arange(len(chosen))] = -np.inf  # not its own neighbor
    nearest = np.argsort(-similarity, axis=0, kind="stable")[: min(NEIGHBORS, len(features) - 1)]
    return list(zip(chosen.tolist(), nearest.T.tolist(), strict=True))


def agreement(embeddings: Mapping[str, np.ndarray], block: int = 1024) -> float | None:
    """Percent of labeled images whose nearest other labeled image has the same label; None for fewer than two."""
    if not embeddings:
        return None
    labeled = embeddings["labels"] >= 0
    features, labels = embeddings["features"][labeled], embeddings["labels"][labeled]
    if len(labels) < 2:
        return None
    right = 0
    for start in range(0, len(labels), block):
        rows = np.arange(start, min(start + block, len(labels)))
        similarity = cosine(features, features[rows])
        similarity[rows, np.arange(len(rows))] = -np.inf
        right += int(np.sum(labels[similarity.argmax(axis=0)] == labels[rows]))
    return 100.0 * right / len(labels)


def cosine(a: Float[np.ndarray, "n dim"], b: Float[np.ndarray, "m dim"]) -> Float[np.ndarray, "n m"]:
    """Cosine similarity of each row of a with each row of b, in -1..1; 0 for a row of zeros."""
    a, b = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in (a, b))
    return a @ b.T


def class_name(label: int, class_names: np.ndarray) -> str:
    if label < 0:
        return ""
    return str(class_names[label]) if label < len(class_names) else f"class {label}"


def _uri(kind: str, image: np.ndarray, options: Sequence[int] = ()) -> str:
    """The data URI of an image in OpenCV's order of channels."""
    return (
        f"data:image/{kind};base64," + base64.b64encode(cv2.imencode(f".{kind}", image, options)[1].tobytes()).decode()
    )


def _queries(labels: Int[np.ndarray, "n"]) -> Int[np.ndarray, "queries"]:
    classes, first = np.unique(labels, return_index=True)
    first = first[classes >= 0]
    if len(first) == 0:
        return np.arange(min(QUERIES, len(labels)))
    return first[np.linspace(0, len(first) - 1, min(QUERIES, len(first))).round().astype(int)]
