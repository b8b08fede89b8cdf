"""Draws the labelled images of a training set that a protocol may use."""

import numpy as np
from jaxtyping import Bool, Int, Integer, Shaped

from ssl_jax.data import splits

Draw = tuple[Int[np.ndarray, " images"], Bool[np.ndarray, " images"]]  # of labels: see `draw_labels`
# The share of each class's labels that hyper-parameters are chosen on.
HELD_OUT = 0.2


def draw_labels(
    labels: Integer[np.ndarray, "train"],
    num_classes: int,
    per_class: int | None,
    seed: int,
    groups: Shaped[np.ndarray, "train"] | None = None,
) -> Draw:
    """(indices of `per_class` random images of each class, which of them are held out to choose hyper-parameters on).

    Args:
      labels: -1 for an image without one; it is not drawn.
      per_class: at least 2; None for all.
      seed: of the draw, which depends on the seed and the labels alone.
      groups: what each image belongs to; None if that is not known. Held-out images are then whole groups of the drawn
        images, unless no class has two groups. The draw is the same.
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
    drawn, of_classes = np.concatenate(index), np.concatenate(held_out)
    return drawn, of_classes if groups is None else _whole_groups(drawn, labels, groups, seed, of_classes)


def _whole_groups(
    drawn: Int[np.ndarray, "images"],
    labels: Integer[np.ndarray, "train"],
    groups: Shaped[np.ndarray, "train"],
    seed: int,
    otherwise: Bool[np.ndarray, "images"],
) -> Bool[np.ndarray, "images"]:
    """Which of the drawn images are held out with their group; `otherwise` if that leaves nothing to hold out."""
    try:
        _, held = splits.divide(
            list(map(str, drawn)), labels[drawn].tolist(), groups[drawn].tolist(), share=HELD_OUT, salt=f"{seed} "
        )
    except ValueError:  # no class has two groups
        return otherwise
    return np.isin(np.arange(len(drawn)), held)
