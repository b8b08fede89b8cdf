"""Features of a data set, batch by batch."""

from collections.abc import Callable, Iterable, Mapping

import numpy as np
from jaxtyping import Float, Int

# Goes through a data set, as often as called, by batches {"image": uint8 [n, height, width, channels], "label": [n]}.
Batches = Callable[[], Iterable[Mapping[str, np.ndarray]]]


def extract(
    features: Callable[[np.ndarray], Float[np.ndarray, "batch *map dim"]],
    batches: Iterable[Mapping[str, np.ndarray]],
    batch_size: int,
    dtype: type = np.float32,
) -> tuple[Float[np.ndarray, "images *map dim"], Int[np.ndarray, "images"]]:
    """(features, labels) of all images of `batches`, in their order.

    Args:
      features: of uint8 images [batch_size, height, width, channels]; called with whole batches only (the last one is
        filled up), so that it is compiled once.
      batches: of {"image", "label"}, each of at most `batch_size` images, as `pipeline.eval_batches` makes them.
      batch_size: images a call.
      dtype: that features are kept in.
    """
    rows, labels = [], []
    for batch in batches:
        images = batch["image"]
        filled = np.zeros((batch_size, *images.shape[1:]), images.dtype)
        filled[: len(images)] = images
        rows.append(np.asarray(features(filled), dtype)[: len(images)])
        labels.append(batch["label"])
    return np.concatenate(rows), np.concatenate(labels)
