"""Features of a data set, computed batch by batch."""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from tqdm import tqdm

from ssl_jax.data import pipeline
from ssl_jax.data.sources import Source

BATCH = 512  # images per call of the backbone

# Each call goes through a data set once, in batches {"image": [n, height, width, channels], "label", "index": [n]}.
Batches = Callable[[], Iterable[Mapping[str, np.ndarray]]]
WINDOWS = ("mean", "all")  # what stands for a large image: the mean over its windows, or each of them


class Extracted(NamedTuple):
    """Of images in order: features, labels (-1 for none), and their indices in the source."""

    features: Float[np.ndarray, "images *map dim"]
    labels: Int[np.ndarray, " images"]
    index: Int[np.ndarray, " images"]


def extract(
    features: Callable[[np.ndarray], Float[np.ndarray, "batch *map dim"]],
    batches: Iterable[Mapping[str, np.ndarray]],
    batch_size: int,
    dtype: type = np.float32,
) -> Extracted:
    """Features of all images of `batches`, in their order.

    Args:
      features: images [batch_size, height, width, channels] -> their features. It is called with full batches
        only (the last one is padded), so it is compiled once.
      batches: {"image", "label", "index"}, each of at most `batch_size` images, as `pipeline.eval_batches` makes them.
      batch_size: images per call.
      dtype: of the returned features.
    """
    rows, labels, index = [], [], []
    for batch in batches:
        images = batch["image"]
        filled = np.zeros((batch_size, *images.shape[1:]), images.dtype)
        filled[: len(images)] = images
        rows.append(np.asarray(features(filled), dtype)[: len(images)])
        labels.append(batch["label"])
        index.append(batch["index"])
    return Extracted(np.concatenate(rows), np.concatenate(labels), np.concatenate(index))


def over_windows(source: Source, found: Extracted, windows: str = "mean") -> Extracted:
    """Of images that are windows of larger ones: the mean over the windows of each, which count as one image then.

    windows: of WINDOWS; "all" changes nothing. The index and the label of an image are those of its first window.
    """
    if windows == "all" or source.image_of is None:
        return found
    image = source.image_of[found.index]
    order = np.argsort(image, kind="stable")
    starts = np.flatnonzero(np.diff(image[order], prepend=-1))
    sums = np.add.reduceat(found.features[order], starts)
    counts = np.diff(starts, append=len(order)).reshape(-1, *[1] * (sums.ndim - 1))
    first = order[starts]
    return Extracted((sums / counts).astype(found.features.dtype), found.labels[first], found.index[first])


def check_windows(windows: str) -> None:
    """Raises: ValueError for what is none of WINDOWS."""
    if windows not in WINDOWS:
        raise ValueError(f"windows must be {' or '.join(map(repr, WINDOWS))}, got {windows!r}")


def read_batches(source: Source, *, image_size: tuple[int, int], pixel_bytes: int, memory_bytes: int) -> Batches:
    """The source's images in order, in batches of BATCH. They are kept decoded in memory if they take no more than
    `memory_bytes`; otherwise each call reads them again. pixel_bytes: of one pixel with all its channels."""
    read = functools.partial(_read, source, image_size)
    if len(source) * np.prod(image_size) * pixel_bytes > memory_bytes:
        return read
    held = list(read())
    return lambda: held


def _read(source: Source, image_size: tuple[int, int]) -> Iterator[Mapping[str, np.ndarray]]:
    batches = pipeline.eval_batches(source, image_size=image_size, batch_size=BATCH)
    with tqdm(desc=f"reading {source.name}", total=len(source), unit=" images", delay=1, leave=False) as progress:
        for batch in batches:
            progress.update(len(batch["image"]))
            yield batch
