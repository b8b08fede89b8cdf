"""Draws the labelled images of a training set that a protocol may use."""

import numpy as np
from jaxtyping import Bool, Int, Integer

# The share of each class's labels that hyper-parameters are chosen on.
HELD_OUT = 0.2


def draw_labels(
    labels: Integer[np.ndarray, "train"], num_classes: int, per_class: int | None, seed: int
) -> tuple[Int[np.ndarray, "images"], Bool[np.ndarray, "images"]]:
    """(indices of `per_class` random images of each class, which of them are held out to choose hyper-parameters on).

    Args:
      labels: -1 for an image without one; it is not drawn.
      per_class: at least 2; None for all.
      seed: of the draw, which depends on the seed and the labels alone.
    Raises: ValueError for a class with fewer labels than per_class.
    """
    if per_class is not None and per_class < 2:
        raise ValueError(f"per_class {per_class} leaves no label to choose hyper-parameters on; give at least 2")
    rng = np.random.default_rng(seed)
    index, held_out = [], []
    for label in range(num_classes):
        rows = rng.permutation(np.flatnonzero(labels == label))[:per_class]
        if per_class is not None and len(rows) < per_class:
            raise ValueError(f"class {label} has {len(rows)} labels, fewer than per_class {per_class}; lower per_class")
        # Of two labels, one is held out; of a single label, none.
        held = max(round(HELD_OUT * len(rows)), 1) if len(rows) > 1 else 0
        index.append(rows)
        held_out.append(np.arange(len(rows)) < held)
    if not np.any(np.concatenate(held_out)):
        raise ValueError("no class has two labels, one to fit and one to choose hyper-parameters on; label more images")
    return np.concatenate(index), np.concatenate(held_out)
