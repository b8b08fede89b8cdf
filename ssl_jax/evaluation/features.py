"""Features of a data set, computed batch by batch."""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np
from jaxtyping import Float, Int
from tqdm import tqdm

from ssl_jax.data import pipeline
from ssl_jax.data.sources import Source

BATCH = 512  # images per call of the backbone

# Each call goes through a data set once, in batches {"image": uint8 [n, height, width, channels], "label": [n]}.
Batches = Callable[[], Iterable[Mapping[str, np.ndarray]]]


def extract(
    features: Callable[[np.ndarray], Float[np.ndarray, "batch *map dim"]],
    batches: Iterable[Mapping[str, np.ndarray]],
    batch_size: int,
    dtype: type = np.float32,
) -> tuple[Float[np.ndarray, "images *map dim"], Int[np.ndarray, "images"]]:
    """(features, labels) of all images of `batches`, in their order.

    Args:
      features: uint8 images [batch_size, height, width, channels] -> their features. It is called with full batches
        only (the last one is padded), so it is compiled once.
      batches: {"image", "label"}, each of at most `batch_size` images, as `pipeline.eval_batches` makes them.
      batch_size: images per call.
      dtype: of the returned features.
    """
    rows, labels = [], []
    for batch in batches:
        images = batch["image"]
        filled = np.zeros((batch_size, *images.shape[1:]), images.dtype)
        filled[: len(images)] = images
        rows.append(np.asarray(features(filled), dtype)[: len(images)])
        labels.append(batch["label"])
    return np.concatenate(rows), np.concatenate(labels)


def read_batches(source: Source, *, image_size: tuple[int, int], channels: int, memory_bytes: int) -> Batches:
    """The source's images in order, in batches of BATCH. They are kept decoded in memory if they take no more than
    `memory_bytes`; otherwise each call reads them again."""
    read = functools.partial(_read, source, image_size)
    if len(source) * np.prod(image_size) * channels > memory_bytes:
        return read
    held = list(read())
    return lambda: held


def _read(source: Source, image_size: tuple[int, int]) -> Iterator[Mapping[str, np.ndarray]]:
    batches = pipeline.eval_batches(source, image_size=image_size, batch_size=BATCH)
    with tqdm(desc=f"reading {source.name}", total=len(source), unit=" images", delay=1, leave=False) as progress:
        for batch in batches:
            progress.update(len(batch["image"]))
            yield batch
